//! `cargo xtask`: everything a person does with this tree besides editing it.
//!
//! One verb per module: [`setup`] gets what is missing, [`image`] builds and packs, [`run`] boots, [`test`] runs every test,
//! [`symbolize`] reads a panic log, [`bench`] measures. [`qemu`] is the machine they share and [`guest`] the Linux that runs in
//! it. `cargo xtask help` prints the flags; other scripts rely on them and on the exit codes.

#![allow(dead_code, reason = "build, run and test land next and use the rest")]

mod args;
mod fail;
mod paths;
mod sh;

mod setup;

use std::process::ExitCode;

use args::Args;
use fail::{Failure, Outcome};

const HELP: &str = "\
usage: cargo xtask VERB [FLAGS]

  setup                           gets what is missing: targets, QEMU, a Linux to run, a disk; each step is said

The cache is .cache/ in this checkout, or the folder that DOORWARD_CACHE names.
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let verb = words.next().unwrap_or_else(|| "help".into());
    match dispatch(&verb, Args::new(words.collect())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.text.is_empty() {
                eprintln!("xtask: {}", failure.text);
            }
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(verb: &str, args: Args) -> Outcome {
    match verb {
        "setup" => {
            args.finish("setup")?;
            setup::everything()
        }
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        _ => Err(Failure::usage(format!("no verb `{verb}`\n\n{HELP}"))),
    }
}
