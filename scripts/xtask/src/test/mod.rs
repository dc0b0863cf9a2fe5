//! `test`: every test there is, on the host and on QEMU, and one line at the end that counts them.
//!
//! A case is a name, a sentence and a function; [`cases`] lists those that boot a machine, [`host`] those that do not. Each
//! case on QEMU keeps its console and logs in `target/tests/NAME/`, whether it passes or not.

pub mod cases;
mod fuzz;
mod host;
mod imports;
pub mod linux;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::fail::{Doing, Failure, Outcome};
use crate::image::{self, Profile};
use crate::qemu::Boot;
use crate::{paths, setup};

/// What a case returns: nothing, or a sentence that says what was expected and what came.
type Verdict = Result<(), String>;

/// How one line of the summary ends.
enum Mark {
    Passed,
    Failed(String),
    /// Said, and counted on neither side.
    Skipped(String),
}

/// Everything that ran.
#[derive(Default)]
struct Summary {
    lines: Vec<(String, Mark, Duration)>,
    passed: u64,
    failed: u64,
}

impl Summary {
    /// Runs one case and says how it went.
    fn case(&mut self, name: &str, run: impl FnOnce() -> Verdict) {
        println!("== {name}");
        let start = Instant::now();
        let mark = run().map_or_else(Mark::Failed, |()| Mark::Passed);
        self.count(name, mark, start.elapsed());
    }

    fn count(&mut self, name: &str, mark: Mark, took: Duration) {
        let word = match &mark {
            Mark::Passed => {
                self.passed += 1;
                "passed".to_owned()
            }
            Mark::Failed(why) => {
                self.failed += 1;
                format!("FAILED: {why}")
            }
            Mark::Skipped(why) => format!("skipped: {why}"),
        };
        println!("   {name}: {word} ({:.1} s)", took.as_secs_f64());
        self.lines.push((name.to_owned(), mark, took));
    }

    fn finish(self) -> Outcome {
        println!("\nsummary");
        for (name, mark, took) in &self.lines {
            let took = took.as_secs_f64();
            match mark {
                Mark::Passed => println!("  passed   {name:<40} {took:>7.1} s"),
                Mark::Failed(why) => {
                    println!("  FAILED   {name:<40} {took:>7.1} s  {}", why.lines().next().unwrap_or_default())
                }
                Mark::Skipped(why) => println!("  skipped  {name:<40} {:>9}  {why}", ""),
            }
        }
        let skipped = self.lines.iter().filter(|(_, mark, _)| matches!(mark, Mark::Skipped(_))).count();
        let note = if skipped == 0 { String::new() } else { format!(", {skipped} skipped") };
        println!("{} passed, {} failed{note}", self.passed, self.failed);
        if self.failed == 0 { Ok(()) } else { Err(Failure::silent(1)) }
    }
}

/// What a case on QEMU is given.
pub struct Lab {
    /// A folder of its own.
    pub dir: PathBuf,
    /// What starts the machine: ours, or (to tell the guest's faults from ours) Linux alone.
    pub boot: Boot,
    /// Whether time is no object: what can go on for longer does.
    pub long: bool,
}

/// One case on QEMU.
pub struct Case {
    /// Short, with the topic first.
    pub name: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// Does it make sense without the hypervisor?
    pub bare: bool,
    /// Runs it.
    pub run: fn(&Lab) -> Verdict,
}

/// Which tests.
struct Choice {
    filter: Option<String>,
    host: bool,
    qemu: bool,
    bare: bool,
    /// How many steps the property tests take; their own number if not given.
    steps: Option<u64>,
    long: bool,
}

impl Choice {
    fn takes(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    }
}

/// The verb.
pub fn verb(mut args: Args) -> Outcome {
    let (host, qemu) = (args.flag("--host"), args.flag("--qemu"));
    let (bare, list) = (args.flag("--bare"), args.flag("--list"));
    let long = args.flag("--long");
    let steps = args.number("--steps")?;
    let choice = Choice { filter: args.word(), host: host || !qemu, qemu: qemu || !host, bare, steps, long };
    args.finish("test")?;
    if list {
        for case in cases::all() {
            println!("qemu/{:<24} {}", case.name, case.shows);
        }
        return Ok(());
    }
    let mut summary = Summary::default();
    if choice.host && !bare {
        setup::rust_targets()?;
        host::run(&choice, &mut summary);
    }
    if choice.qemu {
        on_qemu(&choice, &mut summary)?;
    }
    summary.finish()
}

/// The checks that compile and read, but run nothing of ours: the verb `lint`.
pub fn lint(mut args: Args) -> Outcome {
    let imports_only = args.flag("--imports");
    args.finish("lint")?;
    let mut summary = Summary::default();
    if imports_only {
        summary.case("host/imports", imports::check);
    } else {
        host::lint(&mut summary);
    }
    summary.finish()
}

/// The verb `fuzz`.
pub fn fuzz(mut args: Args) -> Outcome {
    let seconds = args.number("--seconds")?.unwrap_or(60);
    let filter = args.word();
    args.finish("fuzz")?;
    let mut summary = Summary::default();
    fuzz::install_and_run(filter.as_deref(), seconds, &mut summary)?;
    summary.finish()
}

fn on_qemu(choice: &Choice, summary: &mut Summary) -> Outcome {
    let chosen: Vec<Case> = cases::all()
        .into_iter()
        .filter(|case| choice.takes(&format!("qemu/{}", case.name)) && (case.bare || !choice.bare))
        .collect();
    if chosen.is_empty() {
        return Ok(());
    }
    setup::ensure()?;
    if !choice.bare {
        let start = Instant::now();
        if let Err(failure) = image::build(Profile::Release) {
            summary.count("qemu/build", Mark::Failed(failure.text), start.elapsed());
            return Ok(());
        }
    }
    for case in chosen {
        let dir = paths::target().join("tests").join(case.name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).doing(format_args!("creating {}", dir.display()))?;
        let lab = Lab { dir, boot: if choice.bare { Boot::Bare } else { Boot::Doorward }, long: choice.long };
        summary.case(&format!("qemu/{}", case.name), || (case.run)(&lab));
    }
    Ok(())
}
