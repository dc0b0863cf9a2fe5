//! `mutants`: checks whether the tests of the ITS, GICv4 and SMMU code notice errors in it.
//!
//! cargo-mutants changes that code in one place at a time and runs the drivers' tests for each change. A change that all tests
//! pass shows a missing test or superfluous code. This is done in a copy of the checkout whose library has only the rooms that
//! the drivers need, so that a change is built in a second.
//!
//! Cargo runs the test binary by this program ([`run_tests`]): quick tests first, until the first failure, with a bound on
//! processor time and memory instead of on time. So an endless loop is noticed, and a busy host does not change the outcome.
//!
//! The outcome of each mutant is kept in `target/mutants/outcomes` with the commit. A run without flags starts anew; `--missed`,
//! `--rest` and `--file` repeat a part. The score covers all current mutants. They are tried in random order, so that those of
//! an interrupted run, which `--rest` continues, are a fair sample.

mod outcomes;
mod tree;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::fail::{Doing, Failure, Outcome};
use crate::setup::tools;
use crate::{paths, sh};
use outcomes::{Outcomes, Reasons, Seen};

/// The version of cargo-mutants. Other versions make other mutants.
const VERSION: &str = "27.1.0";
/// The files that are changed.
const FILES: [&str; 4] = ["src/gic/events.rs", "src/gic/its/**", "src/gic/v4/**", "src/smmu/**"];
/// The share of mutants that must be noticed, in percent.
const WANTED: f64 = 90.0;
/// The file with a reason for each mutant that is not noticed.
const SURVIVORS: &str = "tests/mutants.md";

/// Names of the tests to run, in stages. A stage leaves out the tests of later stages.
const STAGES: [&[&str]; 4] =
    [&["gic::", "smmu::"], &["gic::v4::fault_tests"], &["smmu::property_tests"], &["gic::v4::property_tests"]];
/// Seconds of processor time for a stage. That of the SMMU's property tests takes two to five, depending on the sequences
/// that are drawn and on what else the machine does; ten have been too few for code without a change.
const CPU_SECONDS: u32 = 30;
/// KiB of address space.
const MEMORY: u32 = 4 << 20;
/// Random steps of each property test, which takes at least two thousand in all.
const STEPS: &str = "1000";
/// A bound on time, in case a run waits for ever. No test does.
const SECONDS: &str = "600";

/// Measure whether the tests of src/smmu and of src/gic/events.rs, its/ and v4/ notice changes of that code
#[derive(clap::Args)]
#[command(after_help = "\
Takes hours without flags. The last line is the score. Exit code 1 if less than 90 % of the changes are noticed,
if one was not tried, or if one that is not noticed has no reason in tests/mutants.md. Installs cargo-mutants into the
cache. Outcomes are kept in target/mutants/outcomes.")]
pub struct Options {
    /// Try again only what the tests did not notice
    #[arg(long)]
    missed: bool,
    /// Try only what was not tried yet: goes on with a run that was interrupted
    #[arg(long)]
    rest: bool,
    /// Try only the changes of this file
    #[arg(long, value_name = "FILE")]
    file: Option<String>,
    /// Cargo's runner for test binaries is this program: the binary and what follows it.
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true)]
    run_tests: Vec<String>,
}

/// The verb.
pub fn verb(options: &Options) -> Outcome {
    if let Some(binary) = options.run_tests.first() {
        return run_tests(binary);
    }
    let (missed, rest, file) = (options.missed, options.rest, &options.file);
    let program = tools::cargo("cargo-mutants", VERSION)?;
    let workspace = Workspace { program, tree: tree::prepare()? };
    let all = workspace.list()?;
    let commit = commit()?;

    let part = missed || rest || file.is_some();
    let mut outcomes = if part { Outcomes::read(&workspace.output())? } else { Outcomes::default() };
    let chosen: Vec<&String> = (all.iter())
        .filter(|name| !missed || outcomes.get(name) == Some(Seen::Missed))
        .filter(|name| !rest || outcomes.get(name).is_none())
        .filter(|name| file.as_deref().is_none_or(|file| name.starts_with(&format!("{file}:"))))
        .collect();
    if !chosen.is_empty() {
        println!("{} of {} mutants at {commit}", chosen.len(), all.len());
        let names = (chosen.len() < all.len()).then_some(&chosen[..]);
        outcomes.write()?;
        outcomes::begin(&commit)?;
        let ran = workspace.run(names);
        outcomes = Outcomes::read(&workspace.output())?;
        ran?;
    }
    outcomes.keep(&all);
    outcomes.write()?;
    judge(&outcomes, all.len())
}

/// Prints the score as the last line, and fails if it is too low.
fn judge(outcomes: &Outcomes, all: usize) -> Outcome {
    let reasons = Reasons::of(&std::fs::read_to_string(paths::root().join(SURVIVORS)).doing(SURVIVORS)?);
    let survivors: Vec<&str> = outcomes.names(Seen::Missed).collect();
    let unexplained: Vec<&&str> = survivors.iter().filter(|name| !reasons.has(name)).collect();
    for name in &unexplained {
        println!("not noticed, and no reason in {SURVIVORS}: {name}");
    }
    let open = all - outcomes.len();
    let (caught, ended) = (outcomes.names(Seen::Caught).count(), outcomes.names(Seen::Timeout).count());
    let viable = caught + ended + survivors.len();
    let score = 100.0 * (caught + ended) as f64 / viable.max(1) as f64;
    let (commits, unviable) = (outcomes.commits().join(", "), outcomes.names(Seen::Unviable).count());
    println!(
        "score: {score:.1} % of {viable} mutants noticed, {ended} of them by time-out ({} missed; {unviable} do not build; \
         {open} not tried); at {commits}",
        survivors.len()
    );
    let good = score >= WANTED && open == 0 && unexplained.is_empty();
    if good { Ok(()) } else { Err(Failure::silent(1)) }
}

/// cargo-mutants and the copy of the checkout that it changes.
struct Workspace {
    program: PathBuf,
    tree: PathBuf,
}

impl Workspace {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("mutants").args(FILES.iter().flat_map(|file| ["--file", file])).current_dir(&self.tree);
        command
    }

    /// The names of all mutants.
    fn list(&self) -> Outcome<Vec<String>> {
        let said = sh::quiet(self.command().args(["--list", "--colors", "never"]))?;
        Ok(said.lines().map(str::to_owned).collect())
    }

    /// The folder where cargo-mutants writes its results.
    fn output(&self) -> PathBuf {
        tree::folder().join("mutants.out")
    }

    /// Tries all mutants, or those that are named.
    fn run(&self, names: Option<&[&String]>) -> Outcome {
        let mut command = self.command();
        command.args(["--in-place", "--shuffle", "--timeout", SECONDS, "--build-timeout", SECONDS, "--output"]);
        command.arg(tree::folder());
        for name in names.unwrap_or_default() {
            command.arg(format!("--re=^{}$", escaped(name)));
        }
        command.args(["--", "--lib"]);
        // Debug information would take half of the time to build.
        command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_TEST_DEBUG", "0").env("CARGO_INCREMENTAL", "1");
        command.env("CARGO_TARGET_DIR", tree::folder().join("build")).env("DOORWARD_STEPS", STEPS);
        command.env("DOORWARD_FORGET_SEEDS", "1");
        command.env_remove("RUSTC").env_remove("CARGO");
        let status = command.status().doing(sh::shown(&command))?;
        // 2: some mutants were missed; 3: some timed out.
        match status.code() {
            Some(0 | 2 | 3) => Ok(()),
            _ => Err(Failure::new(format!("cargo-mutants: {status}; its log is in {}", self.output().display()))),
        }
    }
}

/// A regular expression that matches exactly this name.
fn escaped(name: &str) -> String {
    let special = |c: char| r"\.+*?()|[]{}^$#&-~".contains(c);
    name.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// The commit of the checkout.
fn commit() -> Outcome<String> {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--abbrev=9", "--dirty=+changes", "--exclude=*"]).current_dir(paths::root());
    Ok(sh::quiet(&mut git)?.trim().to_owned())
}

/// Runs a test binary in stages, until a test fails.
fn run_tests(binary: &str) -> Outcome {
    for (n, stage) in STAGES.iter().enumerate() {
        let limits = format!("ulimit -t {CPU_SECONDS} -v {MEMORY} && exec \"$0\" \"$@\"");
        let mut command = Command::new("bash");
        command.args(["-c", &limits, binary]).args(*stage);
        command.args(STAGES[n + 1..].iter().copied().flatten().flat_map(|later| ["--skip", *later]));
        let mut tests = command.stdout(Stdio::piped()).spawn().doing(binary)?;
        let mut failed = false;
        for line in BufReader::new(tests.stdout.take().expect("it is piped")).lines() {
            let line = line.doing(binary)?;
            println!("{line}");
            if line.starts_with("test ") && line.ends_with("FAILED") {
                failed = true;
                // One failure is enough.
                tests.kill().doing(binary)?;
                break;
            }
        }
        let status = tests.wait().doing(binary)?;
        if failed || !status.success() {
            return Err(Failure::silent(101));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_matched_literally() {
        let name = "src/a.rs:1:2: replace | with ^ in A<H>::b -> Result<(), [u8; 4]>";
        assert_eq!(escaped(name), r"src/a\.rs:1:2: replace \| with \^ in A<H>::b \-> Result<\(\), \[u8; 4\]>");
    }

    #[test]
    fn every_stage_is_a_part_of_the_first() {
        let in_first = |later: &&str| STAGES[0].iter().any(|first| later.starts_with(first));
        assert!(STAGES[1..].iter().copied().flatten().all(in_first));
    }
}
