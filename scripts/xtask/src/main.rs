//! `cargo xtask`: every task around this repository except editing it.
//!
//! One verb per module: [`setup`] installs what is missing, [`image`] builds and packs the hypervisor, [`disk_image`] makes a
//! disk that boots, [`run`] boots it, [`mod@test`] runs the tests, [`symbolize`] reads a panic log, [`mod@bench`] measures, [`mutants`]
//! tests the tests, [`boards`] reads the device trees of real boards. The verbs share [`qemu`] (the machine and its command line) and [`session`] (its console). Each verb's
//! module declares its flags and their help, which `cargo xtask VERB --help` prints. Other scripts rely on flags and exit codes.

mod bench;
mod boards;
mod fail;
mod paths;
mod sh;

mod disk_image;
mod domu;
mod exit_count;
mod image;
mod instruction_count;
mod mutants;
mod pe;
mod qemu;
mod qmp;
mod qtest;
mod run;
mod session;
mod setup;
mod symbolize;
mod test;
mod trace_checker;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use fail::Outcome;

/// Builds, runs, tests and measures Doorward
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    disable_version_flag = true,
    after_help = "\
Exit codes: 0 success, 1 failure, 2 wrong usage; `run` has more.
Environment: DOORWARD_CACHE names the folder for everything that `setup` downloads and makes
(default: .cache/ in this checkout); several checkouts may share one.
`cargo xtask VERB --help` explains a verb."
)]
struct CommandLine {
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// The documentation of each is its module's.
#[derive(Subcommand)]
enum Verb {
    Setup(setup::Options),
    Build(image::Options),
    Dw(setup::dw::Options),
    Image(disk_image::Options),
    Run(Box<run::Options>),
    Test(test::Options),
    Lint(test::LintOptions),
    Bench(bench::Options),
    Fuzz(test::FuzzOptions),
    Boards(boards::Options),
    Mutants(mutants::Options),
    Symbolize(symbolize::Options),
}

impl Verb {
    fn run(self) -> Outcome {
        match self {
            Verb::Setup(options) => setup::verb(&options),
            Verb::Build(options) => image::verb(&options),
            Verb::Dw(options) => setup::dw::verb(&options),
            Verb::Image(options) => disk_image::verb(options),
            Verb::Run(options) => run::verb(*options),
            Verb::Test(options) => test::verb(options),
            Verb::Lint(options) => test::lint(&options),
            Verb::Bench(options) => bench::verb(options),
            Verb::Fuzz(options) => test::fuzz(&options),
            Verb::Boards(options) => boards::verb(&options),
            Verb::Mutants(options) => mutants::verb(&options),
            Verb::Symbolize(options) => symbolize::verb(&options),
        }
    }
}

fn main() -> ExitCode {
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let Some(verb) = line.verb else {
        let _ = CommandLine::command().print_help();
        return ExitCode::SUCCESS;
    };
    match verb.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.text.is_empty() {
                eprintln!("xtask: {}", failure.text);
            }
            ExitCode::from(failure.code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exit code of the error that a command line leads to.
    fn refused(line: &str) -> i32 {
        CommandLine::try_parse_from(line.split(' ')).err().map_or(-1, |error| error.exit_code())
    }

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn every_verb_has_a_help_that_explains_each_flag_and_fits_the_terminal() {
        let mut command = CommandLine::command();
        command.build();
        let mut open = vec![command];
        while let Some(mut command) = open.pop() {
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            let help = command.render_help().to_string();
            assert!(command.get_about().is_some() || command.get_name() == "help", "{}", command.get_name());
            assert!(help.lines().all(|line| line.chars().count() <= 120), "{help}");
            open.extend(command.get_subcommands().filter(|command| command.get_name() != "help").cloned());
        }
    }

    #[test]
    fn wrong_usage_has_exit_code_2_and_help_0() {
        for line in [
            "xtask nonsense",
            "xtask run --bogus",
            "xtask run --smp",
            "xtask run --smp four",
            "xtask run --smp 1 --smp 2",
            "xtask run --timeout -1",
            "xtask build --release --debug",
            "xtask image",
            "xtask bench",
            "xtask symbolize",
        ] {
            assert_eq!(refused(line), 2, "{line}");
        }
        for line in ["xtask --help", "xtask run --help", "xtask bench boot -h", "xtask help", "xtask help test"] {
            assert_eq!(refused(line), 0, "{line}");
        }
    }

    #[test]
    fn a_value_may_be_joined_to_its_flag_or_follow_it_and_words_for_a_command_line_may_begin_with_a_dash() {
        for line in ["xtask", "xtask run --smp 4 --mem=2G", "xtask test --qemu storm", "xtask run --qemu -nic"] {
            assert_eq!(refused(line), -1, "{line}");
        }
    }
}
