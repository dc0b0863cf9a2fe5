//! A short, bounded run of each fuzz target. Longer runs are a person's: `cargo +nightly fuzz run NAME`.

use std::process::Command;
use std::time::Duration;

use super::{Choice, Mark, Summary};
use crate::{paths, sh};

/// Per target; enough to run the stored corpus and to fall over what lies near it.
const SECONDS: u32 = 10;

/// Runs the targets, or says why it does not.
pub fn run(choice: &Choice, summary: &mut Summary) {
    let folder = paths::root().join("fuzz");
    let mut targets: Vec<String> = std::fs::read_dir(folder.join("fuzz_targets"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".rs").map(str::to_owned))
        .collect();
    targets.sort();
    let chosen: Vec<String> = targets.into_iter().filter(|name| choice.takes(&format!("host/fuzz/{name}"))).collect();
    if chosen.is_empty() {
        return;
    }
    if let Some(missing) = missing() {
        for name in chosen {
            summary.count(&format!("host/fuzz/{name}"), Mark::Skipped(missing.to_owned()), Duration::ZERO);
        }
        return;
    }
    for name in chosen {
        summary.case(&format!("host/fuzz/{name}"), || {
            let mut command = Command::new("cargo");
            command.args(["+nightly", "fuzz", "run", &name, "--"]);
            command.args([&format!("-max_total_time={SECONDS}"), "-timeout=10", "-max_len=4096"]);
            command.current_dir(paths::root()).env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
            sh::quiet(&mut command).map(drop).map_err(|failure| failure.text)
        });
    }
}

/// What is not installed.
fn missing() -> Option<&'static str> {
    let works = |words: &[&str]| {
        let mut command = Command::new("cargo");
        command.args(words).env_remove("RUSTUP_TOOLCHAIN").current_dir(paths::root());
        command.output().is_ok_and(|output| output.status.success())
    };
    if !works(&["+nightly", "--version"]) {
        Some("no nightly toolchain")
    } else if !works(&["+nightly", "fuzz", "--version"]) {
        Some("no cargo-fuzz")
    } else {
        None
    }
}
