//! The tests that boot nothing: formatting, lints for host and target, every unit test, the import order, short fuzz runs.

use std::process::Command;
use std::time::Instant;

use super::{Mark, Options, Summary, Verdict, fuzz, imports};
use crate::{paths, sh};

const TRIPLE: &str = "aarch64-unknown-none-softfloat";

/// Formatting and lints.
pub fn lint(summary: &mut Summary) {
    for (name, words) in lints() {
        summary.case(name, || cargo(&words));
    }
    summary.case("host/imports", imports::check);
}

/// All of it.
pub fn run(options: &Options, summary: &mut Summary) {
    for (name, words) in lints() {
        if options.takes(name) {
            summary.case(name, || cargo(&words));
        }
    }
    if options.takes("host/imports") {
        summary.case("host/imports", imports::check);
    }
    units(options, summary);
    if options.takes("host/interleavings") {
        summary.case("host/interleavings", interleavings);
    }
    fuzz::run(options, summary);
}

fn lints() -> [(&'static str, Vec<&'static str>); 3] {
    let strict = ["--", "-D", "warnings"];
    [
        ("host/fmt", vec!["fmt", "--all", "--check"]),
        (
            "host/clippy",
            [&["clippy", "--quiet", "--workspace", "--all-targets", "--features", "doorward/bench"][..], &strict]
                .concat(),
        ),
        (
            "host/clippy-target",
            [&["clippy", "--quiet", "--package", "doorward", "--target", TRIPLE][..], &strict].concat(),
        ),
    ]
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).current_dir(paths::root());
    command
}

fn cargo(words: &[&str]) -> Verdict {
    sh::quiet(&mut command(words)).map(drop).map_err(|failure| failure.text)
}

/// `cargo test`, whose own count goes into ours.
fn units(options: &Options, summary: &mut Summary) {
    println!("== host/units");
    let start = Instant::now();
    let mut cargo = command(&["test", "--workspace", "--no-fail-fast"]);
    cargo.args(options.filter.as_deref());
    if let Some(steps) = options.steps {
        cargo.env("DOORWARD_STEPS", steps.to_string());
    }
    let output = match cargo.output() {
        Ok(output) => output,
        Err(error) => return summary.count("host/units", Mark::Failed(error.to_string()), start.elapsed()),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let mut passed = 0;
    for line in said.lines() {
        if let Some((ok, bad)) = result(line) {
            passed += ok;
            summary.passed += ok;
            summary.failed += bad;
        } else if line.starts_with("test ") && line.ends_with("FAILED") {
            println!("   {line}");
        }
    }
    let took = start.elapsed();
    if output.status.success() {
        // The tests have been counted one by one.
        println!("   host/units: {passed} passed ({:.1} s)", took.as_secs_f64());
        summary.lines.push((format!("host/units ({passed} tests)"), Mark::Passed, took));
    } else {
        print!("{said}{}", String::from_utf8_lossy(&output.stderr));
        summary.count("host/units", Mark::Failed("see the output of `cargo test` above".into()), took);
    }
}

/// The tests that loom runs under every interleaving; a build of its own, as the atomics are loom's.
fn interleavings() -> Verdict {
    let mut cargo = command(&["test", "--quiet", "--lib", "interleavings", "--target-dir"]);
    cargo.arg(paths::root().join("target/loom")).env("RUSTFLAGS", "--cfg loom");
    let said = sh::quiet(&mut cargo).map_err(|failure| failure.text)?;
    let ran = said.lines().filter_map(result).map(|(ok, _)| ok).sum::<u64>();
    println!("   {ran} models explored");
    if ran == 0 { Err("no model ran".into()) } else { Ok(()) }
}

/// Passed and failed, from `test result: ok. 85 passed; 0 failed; …`.
fn result(line: &str) -> Option<(u64, u64)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut numbers = counts.split(';').map(|part| part.split_whitespace().next().and_then(|n| n.parse().ok()));
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_own_count_is_read() {
        let line = "test result: FAILED. 85 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.47s";
        assert_eq!(result(line), Some((85, 2)));
        assert_eq!(result("test a ... ok"), None);
    }
}
