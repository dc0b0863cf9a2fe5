//! `bench`: measurements. The tests hold most of them to a limit.

mod gic;
mod sched;

use std::time::Duration;

use crate::fail::{Failure, Outcome};
use crate::image::{self, Profile};
use crate::qemu::{Boot, Machine};
use crate::session::{Echo, End, Event, Input, Session};
use crate::{instruction_count, paths, setup};

/// Measure boot time, instructions, exits and latency
#[derive(clap::Args)]
#[command(
    subcommand_value_name = "BENCHMARK",
    subcommand_help_heading = "Benchmarks",
    disable_help_subcommand = true,
    after_help = "Each has a --help of its own. The tests hold most of these figures to a limit."
)]
pub struct Options {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(clap::Subcommand)]
enum Benchmark {
    /// Time to dom0's init against the same Linux without the hypervisor, as a ratio
    #[command(after_help = "Prints each run in seconds, then the medians and their ratio. Use an idle host.")]
    Boot {
        /// Runs of either
        #[arg(long, value_name = "N", default_value_t = 3)]
        runs: usize,
    },
    /// Instructions of the GIC driver's verbs with 1, 64 and 16384 vPEs, counted by valgrind on this machine
    #[command(after_help = "Exit code 1 if a verb takes more instructions with more vPEs. Installs valgrind by apt.")]
    Gic,
    /// Instructions in EL2 for a wake, a switch, a sleep and a VMOVP, with 1 to 64 vCPUs
    #[command(
        after_help = "Prints how often each was seen, and its least, median and most instructions. Valid on a busy host."
    )]
    Cost {
        /// Print in which functions the instructions are
        #[arg(long)]
        functions: bool,
        /// The kind of CPU
        #[arg(long, value_name = "MODEL", default_value = "max")]
        cpu: String,
        /// More options for the hypervisor
        #[arg(long, value_name = "OPTIONS", default_value = "")]
        hv: String,
    },
    /// Exceptions to EL2 for each I/O, and latency next to a bare Linux, for each sched=, vwfi= and direct=
    #[command(
        after_help = "Prints the table of docs/benchmarks.md. Counts are valid on a busy host, latency (microseconds) is not."
    )]
    Sched {
        /// Rounds of each measurement
        #[arg(long, value_name = "N", default_value_t = 3)]
        runs: usize,
        /// Only the counts of exceptions
        #[arg(long)]
        counts: bool,
        /// Only the latency
        #[arg(long)]
        latency: bool,
    },
}

/// The verb.
pub fn verb(options: Options) -> Outcome {
    if !matches!(options.benchmark, Benchmark::Gic) {
        setup::ensure()?;
        image::build(Profile::Release)?;
    }
    match options.benchmark {
        Benchmark::Boot { runs } => boot(runs).map(drop),
        Benchmark::Gic => gic::run(),
        Benchmark::Cost { functions, cpu, hv } => instructions(functions, &cpu, &hv),
        Benchmark::Sched { runs, counts, latency } => {
            let what = match (counts, latency) {
                (true, false) => sched::What::Counts,
                (false, true) => sched::What::Latency,
                _ => sched::What::All,
            };
            sched::table(what, runs)
        }
    }
}

/// Measures the wall time from QEMU's start to the guest's first process, with and without the hypervisor by turns, so that
/// other load of the host slows down both. Returns the ratio of the medians.
pub fn boot(runs: usize) -> Outcome<f64> {
    let mut times: [Vec<Duration>; 2] = Default::default();
    for run in 1..=runs.max(1) {
        for (boot, times) in [Boot::Bare, Boot::Doorward].into_iter().zip(&mut times) {
            let name = if matches!(boot, Boot::Bare) { "bare Linux" } else { "Doorward" };
            let time = to_init(boot)?;
            println!("  run {run}, {name}: {:.2} s to init", time.as_secs_f64());
            times.push(time);
        }
    }
    let [bare, ours] = times.map(|mut times| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    });
    let ratio = ours / bare;
    println!("boot to init, medians of {runs}: {bare:.2} s bare, {ours:.2} s under Doorward, ratio {ratio:.2}");
    Ok(ratio)
}

/// Counts the instructions of a wake, a switch and a move, with more and more vCPUs on two CPUs.
fn instructions(functions: bool, cpu: &str, hv: &str) -> Outcome {
    let folder = paths::target().join("bench/cost");
    for vcpus in [1, 4, 16, 64] {
        println!("{vcpus} vCPUs and one that wakes them: how often, least, median, most");
        instruction_count::measure(&folder, vcpus, cpu, hv, functions)?.print();
    }
    println!("16 vCPUs that are moved each millisecond");
    instruction_count::measure(&folder, 16, cpu, &format!("sched-torture=1ms {hv}"), functions)?.print();
    Ok(())
}

fn to_init(boot: Boot) -> Outcome<Duration> {
    let mut machine = Machine { boot, ..Machine::default() };
    machine.append += " iommu.passthrough=1 dw.test=boot";
    let limit = Some(Duration::from_secs(150));
    let mut session = Session::start(machine.batch()?, Echo::Off, Input::Typed, None, limit)?;
    loop {
        match session.next() {
            Event::Line(line) if line.starts_with("DW-TEST: init") => return Ok(session.started.elapsed()),
            Event::Line(_) => {}
            Event::Ended(End::Fatal(line)) => return Err(Failure::new(line)),
            Event::Ended(end) => return Err(Failure::new(format!("the machine did not reach init: {end:?}"))),
        }
    }
}
