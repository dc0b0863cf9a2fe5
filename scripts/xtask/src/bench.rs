//! `bench`: figures that a person asks for, and that tests hold to a limit.

mod gic;
mod sched;

use std::time::Duration;

use crate::args::Args;
use crate::fail::{Failure, Outcome};
use crate::image::{self, Profile};
use crate::qemu::{Boot, Machine};
use crate::session::{Echo, End, Event, Input, Session};
use crate::{cost, paths, setup};

/// The verb.
pub fn verb(mut args: Args) -> Outcome {
    let verb = args.word();
    let runs = args.number("--runs")?.unwrap_or(3);
    let functions = args.flag("--functions");
    let what = (args.flag("--counts"), args.flag("--latency"));
    args.finish("bench")?;
    match verb.as_deref() {
        Some("boot") => {
            setup::ensure()?;
            image::build(Profile::Release)?;
            boot(runs).map(drop)
        }
        Some("gic") => gic::run(),
        Some("cost") => {
            setup::ensure()?;
            image::build(Profile::Release)?;
            cost(functions)
        }
        Some("sched") => {
            setup::ensure()?;
            image::build(Profile::Release)?;
            let what = match what {
                (true, false) => sched::What::Counts,
                (false, true) => sched::What::Latency,
                _ => sched::What::All,
            };
            sched::table(what, runs)
        }
        _ => Err(Failure::usage("bench knows `boot`, `gic`, `cost` and `sched`")),
    }
}

/// Wall time from QEMU's start to the guest's first process, with and without us, in turns: what else the host does meanwhile
/// meets both. The ratio of the medians.
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

/// Instructions for a wake, a switch and a move, with more and more vCPUs on two CPUs.
fn cost(functions: bool) -> Outcome {
    let folder = paths::target().join("bench/cost");
    for vcpus in [1, 4, 16, 64] {
        println!("{vcpus} vCPUs, and one that wakes them: how often, least, median, most");
        cost::measure(&folder, vcpus, "", functions)?.print();
    }
    println!("16 vCPUs that are moved all the time");
    cost::measure(&folder, 16, "sched-torture=1ms", functions)?.print();
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
