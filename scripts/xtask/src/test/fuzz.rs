//! Runs of the fuzz targets: ten seconds each among the tests, where cargo-fuzz is installed; as long as one likes by
//! `cargo xtask fuzz`, which installs it.

use std::time::Duration;

use super::{Mark, Options, Summary};
use crate::fail::{Failure, Outcome};
use crate::setup::tools;
use crate::{paths, sh};

/// Per target; enough to run the stored corpus and to fall over what lies near it.
const SECONDS: u32 = 10;

/// What `cargo xtask fuzz` installs where there is none.
const VERSION: &str = "0.13.2";

/// Runs the targets, or says why it does not.
pub fn run(options: &Options, summary: &mut Summary) {
    let chosen: Vec<String> = targets().into_iter().filter(|name| options.takes(&case(name))).collect();
    if chosen.is_empty() {
        return;
    }
    match missing() {
        Some(missing) => {
            for name in chosen {
                let why = format!("{missing}; `cargo xtask fuzz` gets it");
                summary.count(&case(&name), Mark::Skipped(why), Duration::ZERO);
            }
        }
        None => run_each(&chosen, SECONDS, summary),
    }
}

/// Installs what is missing and runs the targets whose name contains `filter`.
pub fn install_and_run(filter: Option<&str>, seconds: u32, summary: &mut Summary) -> Outcome {
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

fn run_each(targets: &[String], seconds: u32, summary: &mut Summary) {
    for name in targets {
        summary.case(&case(name), || {
            let mut command = tools::with_nightly();
            command.args(["fuzz", "run", name, "--"]);
            command.args([&format!("-max_total_time={seconds}"), "-timeout=10", "-max_len=4096"]);
            sh::quiet(&mut command).map(drop).map_err(|failure| failure.text)
        });
    }
}

/// What is not installed.
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
