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
    /// Time to dom0's init against the same Linux without the hypervisor, and with the SMMU off, as ratios
    #[command(
        after_help = "Prints each run in seconds, then the medians and their ratio. Use an idle host, or --instructions."
    )]
    Boot {
        /// Runs of either
        #[arg(long, value_name = "N", default_value_t = 3)]
        runs: usize,
        /// The uptime of Linux on QEMU's clock of instructions, which is valid on a busy host
        #[arg(long)]
        instructions: bool,
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
        Benchmark::Boot { runs, instructions } => boot(runs, instructions),
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

/// How the machine of a measurement boots.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Bare,
    Smmu,
    NoSmmu,
}

impl Variant {
    const ALL: [Variant; 3] = [Variant::Bare, Variant::Smmu, Variant::NoSmmu];

    fn name(self) -> &'static str {
        match self {
            Variant::Bare => "bare Linux",
            Variant::Smmu => "Doorward",
            Variant::NoSmmu => "Doorward, iommu=off",
        }
    }
}

/// Measures the time to the guest's first process, without the hypervisor, with it, and with it and `iommu=off`, by turns, so that
/// other load of the host slows down all: the wall time from QEMU's start or, with `instructions`, the uptime of Linux on QEMU's
/// clock of instructions.
fn boot(runs: usize, instructions: bool) -> Outcome {
    let runs = runs.max(1);
    let mut times: [Vec<f64>; 3] = Default::default();
    for run in 1..=runs {
        for (variant, times) in Variant::ALL.into_iter().zip(&mut times) {
            let time = to_init(variant, instructions)?;
            println!("  run {run}, {}: {time:.2} s to init", variant.name());
            times.push(time);
        }
    }
    let [bare, smmu, without] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    println!(
        "boot to init, medians of {runs}: {bare:.2} s bare, {smmu:.2} s under Doorward, ratio {:.2}; {without:.2} s with \
         iommu=off, ratio of the SMMU on to off {:.2}",
        smmu / bare,
        smmu / without
    );
    Ok(())
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

/// Seconds to init.
fn to_init(variant: Variant, instructions: bool) -> Outcome<f64> {
    let boot = if variant == Variant::Bare { Boot::Bare } else { Boot::Doorward };
    let mut machine = Machine { boot, ..Machine::default() };
    machine.append += " iommu.passthrough=1 dw.test=boot";
    if variant == Variant::NoSmmu {
        machine.hv += " iommu=off";
    }
    if instructions {
        machine.extra.extend(["-icount".to_owned(), "shift=0,sleep=off".to_owned()]);
    }
    let limit = Some(Duration::from_secs(if instructions { 600 } else { 150 }));
    let mut session = Session::start(machine.batch()?, Echo::Off, Input::Typed, None, limit)?;
    loop {
        match session.next() {
            Event::Line(line) => {
                let Some(uptime) = line.strip_prefix("DW-TEST: init at ") else { continue };
                if !instructions {
                    return Ok(session.started.elapsed().as_secs_f64());
                }
                return uptime.trim().parse().map_err(|_| Failure::new(format!("`{line}` has no time")));
            }
            Event::Ended(End::Fatal(line)) => return Err(Failure::new(line)),
            Event::Ended(end) => return Err(Failure::new(format!("the machine did not reach init: {end:?}"))),
        }
    }
}
