//! Exceptions to EL2 for each I/O of a domU on its own NVMe disk, counted as for dom0 (see `cases/exits.rs`). dom0 is idle.

use super::{NULL, linux, not_built, typed};
use crate::exit_count::{self, Clock, Counts, Hypervisor};
use crate::qemu::{Disk, Machine};
use crate::session::NEXT;
use crate::test::cases::exits::{ATTEMPTS, SLACK, check_direct, native_on};
use crate::test::{Case, Lab, Verdict};

/// vCPUs of the domU.
const CPUS: u32 = 2;

/// The cases of this topic.
pub(super) fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("counts-domu", "no exit for an NVMe interrupt of a domU", |lab| counts(lab, "4k,1,1")),
        case("counts-domu-jobs", "the same, two jobs on two queues", |lab| counts(lab, "4k,1,2")),
    ]
}

/// Counts until a run has no more exits than the timer interrupts of bare Linux and twice its SGIs.
fn counts(lab: &Lab, arg: &str) -> Verdict {
    let (mut bare, mut ours) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ATTEMPTS {
        bare = bare.min(native_on(lab, arg, CPUS)?);
        let (counts, irqs) = run(lab, arg)?;
        check_direct(&counts, irqs)?;
        ours = ours.min(counts.total() as f64 / counts.ios as f64);
        println!("   {arg}: {ours:.3} exits per I/O; bare Linux takes {bare:.3} timer interrupts and twice its SGIs");
        if ours <= bare + SLACK {
            return Ok(());
        }
    }
    Err(format!("{ours:.3} exits per I/O, at most {:.3} expected", bare + SLACK))
}

/// One run; returns the counts, and the number of interrupts in the domU's /proc/interrupts.
fn run(lab: &Lab, arg: &str) -> Result<(Counts, u64), String> {
    let dir = lab.dir.join("domu");
    let inner = Lab { dir, boot: lab.boot.clone(), long: lab.long, gicv41: lab.gicv41.clone() };
    std::fs::create_dir_all(&inner.dir).map_err(|error| error.to_string())?;
    let table = inner.dir.join("table");
    let mut machine = Machine { hv: NULL.into(), disk: Disk::Null, ..inner.linux("boot", "") };
    machine.append += " dw.wait";
    machine.domus.push(linux("count", arg, CPUS, 0));
    machine.domu_disks.push(Disk::Null);
    exit_count::prepare(&mut machine, &table, Clock::Instructions);
    let mut window = exit_count::Window::new(&machine, Clock::Instructions);
    // The domU asks for the window when it likes. It gets its answers by the keyboard, which it has once dom0 is idle.
    let (mut asks, mut hears) = (false, false);
    let transcript = inner.watch(&machine, 300, |session, line| {
        not_built(line)?;
        if line.starts_with("DW-TEST: waits") {
            typed(session, NEXT)?;
        }
        let ready = asks && hears;
        asks |= line.contains("DW-TEST: count?");
        hears |= line.starts_with("(dom1 has the keyboard)");
        if asks && hears && !ready {
            window.line(session, "DW-TEST: count?").map_err(|failure| failure.text)?;
        } else if line.starts_with("DW-TEST: counted") {
            window.line(session, line).map_err(|failure| failure.text)?;
        } else if line.starts_with("(nobody has the keyboard") {
            typed(session, NEXT)?;
        } else if line.starts_with("(dom0 has the keyboard)") {
            typed(session, "\r")?;
        }
        Ok(())
    })?;
    // A counted run has one log, which `judge` searches for complaints.
    let log = inner.dir.join("guest.log");
    std::fs::rename(machine.log.unwrap_or_default(), &log).map_err(|error| error.to_string())?;
    inner.judge(&transcript)?;
    let domu = transcript.of(1);
    inner.judge_test(&domu).map_err(|why| format!("dom1: {why}"))?;
    let counts = Counts::read(&log, Clock::Instructions, Hypervisor::Doorward).map_err(|failure| failure.text)?;
    let text = counts.table();
    println!("   -- domu, {arg}");
    text.lines().for_each(|line| println!("   {line}"));
    let _ = std::fs::write(table, text);
    Ok((counts, domu.number("irqs")?))
}
