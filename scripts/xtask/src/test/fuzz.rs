//! Runs of the fuzz targets with libFuzzer. `cargo xtask test` runs each for ten seconds if cargo-fuzz is installed; `cargo
//! xtask fuzz` installs it and runs them for as long as it is told. Without cargo-fuzz, the unit tests in `fuzz/host.rs` run
//! them, for a bounded number of inputs, and [`check`] shows that all compile for libFuzzer.

use std::process::Command;
use std::time::Duration;

use super::{Mark, Options, Summary};
use crate::fail::{Failure, Outcome};
use crate::setup::tools;
use crate::{paths, sh};

/// For each target, as a test: enough for the stored corpus and inputs close to it.
const SECONDS: u32 = 10;

/// The version that `cargo xtask fuzz` installs.
const VERSION: &str = "0.13.2";

/// Runs the targets, or marks them as skipped if the tools are missing.
pub fn run(options: &Options, summary: &Summary) {
    let chosen: Vec<String> = targets().into_iter().filter(|name| options.takes(&case(name))).collect();
    if chosen.is_empty() {
        return;
    }
    match missing() {
        Some(missing) => {
            for name in chosen {
                let why = format!("{missing}; `cargo xtask fuzz` installs it");
                summary.count(&case(&name), Mark::Skipped(why), Duration::ZERO);
            }
        }
        None => run_each(&chosen, SECONDS, summary),
    }
}

/// Installs what is missing and runs the targets whose name contains `filter`.
pub fn install_and_run(filter: Option<&str>, seconds: u32, summary: &Summary) -> Outcome {
    let chosen: Vec<String> = targets().into_iter().filter(|n| filter.is_none_or(|f| n.contains(f))).collect();
    if chosen.is_empty() {
        return Err(Failure::usage(format!("the fuzz targets are {}", targets().join(", "))));
    }
    tools::nightly()?;
    if !has_cargo_fuzz() {
        tools::cargo("cargo-fuzz", VERSION)?;
    }
    run_each(&chosen, seconds, summary);
    Ok(())
}

/// Completes a command that checks all targets as cargo-fuzz builds them, but with the stable compiler and without libFuzzer,
/// whose build takes longer than all the rest.
pub fn check(mut cargo: Command) -> Command {
    cargo.args(["--bins", "--manifest-path", "fuzz/Cargo.toml", "--target-dir"]).arg(paths::root().join("target/fuzz"));
    // What is only checked is not linked, so the library need not exist.
    cargo.env("CUSTOM_LIBFUZZER_PATH", "/nonexistent/libfuzzer.a").env("RUSTFLAGS", "--cfg fuzzing -D warnings");
    cargo
}

fn case(target: &str) -> String {
    format!("host/fuzz/{target}")
}

fn targets() -> Vec<String> {
    let mut targets: Vec<String> = std::fs::read_dir(paths::root().join("fuzz/fuzz_targets"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".rs").map(str::to_owned))
        .collect();
    targets.sort();
    targets
}

fn run_each(targets: &[String], seconds: u32, summary: &Summary) {
    for name in targets {
        summary.case(&case(name), || {
            let mut command = tools::with_nightly();
            command.args(["fuzz", "run", name, "--"]);
            command.args([&format!("-max_total_time={seconds}"), "-timeout=10", "-max_len=4096"]);
            sh::quiet(&mut command).map(drop).map_err(|failure| failure.text)
        });
    }
}

/// The tool that is not installed, if one is missing.
fn missing() -> Option<&'static str> {
    if !tools::has_nightly() {
        Some("no nightly toolchain")
    } else if !has_cargo_fuzz() {
        Some("no cargo-fuzz")
    } else {
        None
    }
}

fn has_cargo_fuzz() -> bool {
    let mut command = tools::with_nightly();
    command.args(["fuzz", "--version"]).output().is_ok_and(|output| output.status.success())
}
