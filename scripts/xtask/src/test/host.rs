//! The tests that boot no machine: formatting, lints and documentation for host and target, imports, unit tests, models of
//! interleavings, and short fuzz runs.

use std::process::Command;
use std::time::Instant;

use super::{Mark, Options, Summary, Verdict, fuzz, imports, log_lines};
use crate::{paths, sh};

const TRIPLE: &str = "aarch64-unknown-none-softfloat";

/// Formatting, lints, documentation and imports.
pub fn lint(summary: &Summary) {
    side_by_side(|| built_checks(&|_| true, summary), || read_checks(&|_| true, summary));
}

/// All tests on the host.
///
/// What Cargo builds in `target/` waits for one lock, so it is one sequence. The rest is another, at the same time.
pub fn run(options: &Options, summary: &Summary) {
    let takes = |name: &str| options.takes(name);
    side_by_side(
        || {
            built_checks(&takes, summary);
            units(options, summary);
        },
        || {
            read_checks(&takes, summary);
            if takes("host/interleavings") {
                summary.case("host/interleavings", interleavings);
            }
            fuzz::run(options, summary);
        },
    );
}

/// Memory that two builds take at the same time, in KiB.
const TWO_BUILDS: u64 = 4 << 20;

/// Runs both at the same time if there is memory for two builds, else one after the other.
fn side_by_side(first: impl FnOnce(), second: impl FnOnce() + Send) {
    if available() < TWO_BUILDS {
        first();
        second();
        return;
    }
    std::thread::scope(|scope| {
        scope.spawn(second);
        first();
    });
}

/// Memory that new programs can have without swapping, in KiB; 0 if Linux does not say.
fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The checks that read sources.
fn read_checks(takes: &dyn Fn(&str) -> bool, summary: &Summary) {
    if takes("host/fmt") {
        summary.case("host/fmt", || run_cargo(&mut cargo(&["fmt", "--all", "--check"])));
    }
    if takes("host/imports") {
        summary.case("host/imports", imports::check);
    }
    if takes("host/log-lines") {
        summary.case("host/log-lines", log_lines::check);
    }
}

/// The checks that build: clippy and rustdoc, for the host and for the target.
fn built_checks(takes: &dyn Fn(&str) -> bool, summary: &Summary) {
    let all = ["--workspace", "--all-targets", "--features", "doorward/bench"];
    let target = ["--package", "doorward", "--target", TRIPLE];
    let strict = ["--", "-D", "warnings"];
    let clippy = |what: &[&str]| cargo(&[&["clippy", "--quiet"], what, &strict].concat());
    let doc = |what: &[&str]| {
        let mut command = cargo(&[&["doc", "--quiet", "--no-deps"], what].concat());
        command.env("RUSTDOCFLAGS", "-D warnings -D rustdoc::broken_intra_doc_links");
        command
    };
    for (name, mut command) in [
        ("host/clippy", clippy(&all)),
        ("host/clippy-target", clippy(&target)),
        ("host/doc", doc(&["--workspace"])),
        ("host/doc-target", doc(&target)),
        ("host/fuzz-targets", fuzz::check(cargo(&["check", "--quiet"]))),
    ] {
        if takes(name) {
            summary.case(name, || run_cargo(&mut command));
        }
    }
}

fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).current_dir(paths::root());
    command
}

fn run_cargo(command: &mut Command) -> Verdict {
    sh::quiet(command).map(drop).map_err(|failure| failure.text)
}

/// Runs `cargo test` and adds its counts to the summary.
fn units(options: &Options, summary: &Summary) {
    println!("== host/units");
    let start = Instant::now();
    let mut cargo = cargo(&["test", "--workspace", "--no-fail-fast"]);
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
            summary.add(ok, bad);
        } else if line.starts_with("test ") && line.ends_with("FAILED") {
            println!("   {line}");
        }
    }
    let took = start.elapsed();
    if output.status.success() {
        // The tests have been counted one by one.
        println!("   host/units: {passed} passed ({:.1} s)", took.as_secs_f64());
        summary.list(format!("host/units ({passed} tests)"), took);
    } else {
        print!("{said}{}", String::from_utf8_lossy(&output.stderr));
        summary.count("host/units", Mark::Failed("see the output of `cargo test` above".into()), took);
    }
}

/// Runs the tests that loom explores under every interleaving. They need a build of their own, with loom's atomics.
fn interleavings() -> Verdict {
    let mut cargo = cargo(&["test", "--quiet", "--lib", "interleavings", "--target-dir"]);
    cargo.arg(paths::root().join("target/loom")).env("RUSTFLAGS", "--cfg loom");
    let said = sh::quiet(&mut cargo).map_err(|failure| failure.text)?;
    let ran = said.lines().filter_map(result).map(|(ok, _)| ok).sum::<u64>();
    println!("   {ran} models explored");
    if ran == 0 { Err("no model was explored".into()) } else { Ok(()) }
}

/// The counts of passed and failed tests in `test result: ok. 85 passed; 0 failed; …`.
fn result(line: &str) -> Option<(u64, u64)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut numbers = counts.split(';').map(|part| part.split_whitespace().next().and_then(|n| n.parse().ok()));
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_cargo_test_are_read() {
        let line = "test result: FAILED. 85 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.47s";
        assert_eq!(result(line), Some((85, 2)));
        assert_eq!(result("test a ... ok"), None);
    }
}
