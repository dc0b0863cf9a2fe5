//! `test`: every test there is, on the host and on QEMU, and one line at the end that counts them.
//!
//! A case is a name, a description and a function. [`cases`] lists those that boot a machine, [`host`] runs those that do not.
//! Each case on QEMU keeps its console and logs in `target/tests/NAME/`, whether it passes or not.

pub mod cases;
mod fuzz;
mod host;
pub mod imports;
pub mod linux;
mod log_lines;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::fail::{Doing, Failure, Outcome};
use crate::image::{self, Profile};
use crate::qemu::{Boot, Gicv41};
use crate::{paths, setup};

/// What a case returns: nothing, or a message with what was expected and what came.
type Verdict = Result<(), String>;

/// The result of one test.
enum Mark {
    Passed,
    Failed(String),
    /// Not run, for this reason. Counts neither as passed nor as failed.
    Skipped(String),
}

/// The results of all tests so far. Several threads may add to it.
#[derive(Default)]
struct Summary(Mutex<Results>);

#[derive(Default)]
struct Results {
    lines: Vec<(String, Mark, Duration)>,
    passed: u64,
    failed: u64,
}

impl Summary {
    fn results(&self) -> MutexGuard<'_, Results> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one case and adds its result.
    fn case(&self, name: &str, run: impl FnOnce() -> Verdict) {
        println!("== {name}");
        let start = Instant::now();
        let mark = run().map_or_else(Mark::Failed, |()| Mark::Passed);
        self.count(name, mark, start.elapsed());
    }

    /// Adds a result and prints it.
    fn count(&self, name: &str, mark: Mark, took: Duration) {
        let mut results = self.results();
        let word = match &mark {
            Mark::Passed => {
                results.passed += 1;
                "passed".to_owned()
            }
            Mark::Failed(why) => {
                results.failed += 1;
                format!("FAILED: {why}")
            }
            Mark::Skipped(why) => format!("skipped: {why}"),
        };
        println!("   {name}: {word} ({:.1} s)", took.as_secs_f64());
        results.lines.push((name.to_owned(), mark, took));
    }

    /// Adds the results of `passed` and `failed` tests that have been printed one by one.
    fn add(&self, passed: u64, failed: u64) {
        let mut results = self.results();
        results.passed += passed;
        results.failed += failed;
    }

    /// Adds a line to the final list, whose tests have been added already.
    fn list(&self, name: String, took: Duration) {
        self.results().lines.push((name, Mark::Passed, took));
    }

    fn finish(self) -> Outcome {
        let Results { lines, passed, failed } = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        println!("\nsummary");
        for (name, mark, took) in &lines {
            let took = took.as_secs_f64();
            match mark {
                Mark::Passed => println!("  passed   {name:<40} {took:>7.1} s"),
                Mark::Failed(why) => {
                    println!("  FAILED   {name:<40} {took:>7.1} s  {}", why.lines().next().unwrap_or_default())
                }
                Mark::Skipped(why) => println!("  skipped  {name:<40} {:>9}  {why}", ""),
            }
        }
        let skipped = lines.iter().filter(|(_, mark, _)| matches!(mark, Mark::Skipped(_))).count();
        let note = if skipped == 0 { String::new() } else { format!(", {skipped} skipped") };
        println!("{passed} passed, {failed} failed{note}");
        if failed == 0 { Ok(()) } else { Err(Failure::silent(1)) }
    }
}

/// The environment of a case on QEMU.
pub struct Lab {
    /// A folder for this case alone.
    pub dir: PathBuf,
    /// What the machine boots: the hypervisor, or Linux without it, to tell the guest's faults from the hypervisor's.
    pub boot: Boot,
    /// Whether `--long` was given.
    pub long: bool,
    /// The GICv4.1 that the Linux machines of the case have instead of a GICv4.0.
    pub gicv41: Option<Gicv41>,
}

/// The topic of the cases that need the QEMU of `setup --gicv41`. Without it they are skipped.
const GICV41: &str = "gicv41-";

/// One case on QEMU.
pub struct Case {
    /// A short name that starts with the topic.
    pub name: &'static str,
    /// What it shows, as `test --list` prints it.
    pub shows: &'static str,
    /// Whether it also works without the hypervisor (`--bare`).
    pub bare: bool,
    /// Runs the case.
    pub run: fn(&Lab) -> Verdict,
}

/// Run all tests, or those whose name contains FILTER
#[derive(clap::Args)]
#[command(after_help = "\
The last line counts passed, failed and skipped tests. Exit code 1 if one failed. Logs of each test on QEMU are kept in
target/tests/NAME/. Fuzz targets get a bounded number of inputs, and run for ten seconds each if `cargo xtask fuzz` has
installed its tools.")]
pub struct Options {
    /// A part of the names of the tests to run
    filter: Option<String>,
    /// Only the tests that boot no machine
    #[arg(long)]
    host: bool,
    /// Only the tests that boot a machine
    #[arg(long)]
    qemu: bool,
    /// Run the guest's part of the QEMU tests without the hypervisor, to tell its faults from the guest's
    #[arg(long)]
    bare: bool,
    /// Print the names of the tests that boot a machine, and exit
    #[arg(long)]
    list: bool,
    /// Build QEMU with a GICv4.1 if it is missing, for the tests that need it (otherwise they are skipped)
    #[arg(long)]
    gicv41: bool,
    /// Longer runs: ten minutes of moved vCPUs, a million random accesses, all cases with a GICv4.1
    #[arg(long)]
    long: bool,
    /// Random steps of the GIC driver's property tests [default: 100000]
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
}

impl Options {
    fn takes(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    }
}

/// The verb.
pub fn verb(options: Options) -> Outcome {
    if options.list {
        for case in cases::all() {
            println!("qemu/{:<24} {}", case.name, case.shows);
        }
        return Ok(());
    }
    let summary = Summary::default();
    let both = options.host == options.qemu;
    if (both || options.host) && !options.bare {
        setup::rust_targets()?;
        host::run(&options, &summary);
    }
    if both || options.qemu {
        on_qemu(&options, &summary)?;
    }
    summary.finish()
}

/// Check formatting, lints, documentation and imports
#[derive(clap::Args)]
#[command(after_help = "Exit code 1 if a check failed. `cargo xtask test --host` runs the same checks first.")]
pub struct LintOptions {
    /// Only the imports: rooms of src that import rooms above them, and files in circles
    #[arg(long)]
    imports: bool,
}

/// The verb `lint`.
pub fn lint(options: &LintOptions) -> Outcome {
    let summary = Summary::default();
    if options.imports {
        summary.case("host/imports", imports::check);
        summary.case("host/log-lines", log_lines::check);
    } else {
        setup::rust_targets()?;
        host::lint(&summary);
    }
    summary.finish()
}

/// Run the fuzz targets, or those whose name contains FILTER
#[derive(clap::Args)]
#[command(after_help = "\
Installs Rust's nightly toolchain by rustup and cargo-fuzz into the cache if they are missing.
Exit code 1 if a target found a fault; its input is kept in fuzz/artifacts/.")]
pub struct FuzzOptions {
    /// A part of the names of the targets to run
    filter: Option<String>,
    /// Seconds for each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
}

/// The verb `fuzz`.
pub fn fuzz(options: &FuzzOptions) -> Outcome {
    let summary = Summary::default();
    fuzz::install_and_run(options.filter.as_deref(), options.seconds, &summary)?;
    summary.finish()
}

fn on_qemu(options: &Options, summary: &Summary) -> Outcome {
    let chosen: Vec<Case> = cases::all()
        .into_iter()
        .filter(|case| options.takes(&format!("qemu/{}", case.name)) && (case.bare || !options.bare))
        .collect();
    if chosen.is_empty() {
        return Ok(());
    }
    setup::ensure()?;
    if options.gicv41 {
        setup::ensure_gicv41()?;
    }
    let gicv41 = setup::gicv41::program();
    if !options.bare {
        let start = Instant::now();
        if let Err(failure) = image::build(Profile::Release) {
            summary.count("qemu/build", Mark::Failed(failure.text), start.elapsed());
            return Ok(());
        }
    }
    for case in chosen {
        let again = cases::again(case.name);
        let skipped = match &gicv41 {
            None if case.name.starts_with(GICV41) => "there is no QEMU with a GICv4.1: --gicv41 builds it",
            _ if cases::is_long(case.name) && !options.long => "only with --long",
            _ => "",
        };
        if !skipped.is_empty() {
            summary.count(&format!("qemu/{}", case.name), Mark::Skipped(skipped.to_owned()), Duration::ZERO);
            continue;
        }
        let dir = paths::target().join("tests").join(case.name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).doing(format_args!("creating {}", dir.display()))?;
        let boot = if options.bare { Boot::Bare } else { Boot::Doorward };
        let kind = again.zip(gicv41.clone());
        let gicv41 =
            kind.map(|(again, program)| Gicv41 { program, properties: again.properties, globals: again.globals });
        let lab = Lab { dir, boot, long: options.long, gicv41 };
        summary.case(&format!("qemu/{}", case.name), || (case.run)(&lab));
    }
    Ok(())
}
