//! What reaches EL2 for each I/O, counted from outside, next to what a Linux without a hypervisor takes on the same machine.

use crate::count::{self, Counts, Source};
use crate::qemu::{Boot, Disk, Machine};
use crate::test::{Case, Lab, Verdict};

const CELLS: [(&str, &str); 4] =
    [("4k qd1", "4k,1,1"), ("16k qd1", "16k,1,1"), ("4k qd4", "4k,4,1"), ("4k qd1 x4 jobs", "4k,1,4")];

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("counts-direct-4k-qd1", "no exit for an NVMe interrupt", |lab| direct(lab, 0)),
        case("counts-direct-16k-qd1", "the same, 16k", |lab| direct(lab, 1)),
        case("counts-direct-4k-qd4", "the same, four in flight", |lab| direct(lab, 2)),
        case("counts-direct-4k-jobs", "the same, four jobs on four queues", |lab| direct(lab, 3)),
        case("counts-software", "direct=off costs one exit more for each I/O", software),
        case("counts-doorbells", "vwfi=trap: at least 0.5 doorbells for each I/O", doorbells),
    ]
}

/// One counted run, in a folder of its own.
fn counted(lab: &Lab, what: &str, boot: Boot, hv: &str, arg: &str, disk: Disk) -> Result<(Counts, u64), String> {
    let inner = Lab { dir: lab.dir.join(what), boot };
    std::fs::create_dir_all(&inner.dir).map_err(|error| error.to_string())?;
    let table = inner.dir.join("table");
    let mut machine = Machine { hv: hv.into(), disk, ..inner.linux("count", arg) };
    count::prepare(&mut machine, &table);
    let mut window = count::Window::new(&machine);
    let transcript =
        inner.watch(&machine, 120, |session, line| window.line(session, line).map_err(|failure| failure.text))?;
    // A counted run logs to one file: the complaints are looked for there.
    let raw = machine.log.clone().unwrap_or_default();
    std::fs::rename(&raw, inner.dir.join("guest.log")).map_err(|error| error.to_string())?;
    inner.judge(&transcript)?;
    let counts = Counts::read(&inner.dir.join("guest.log")).map_err(|failure| failure.text)?;
    let text = counts.table();
    println!("   -- {what}, {arg}");
    text.lines().for_each(|line| println!("   {line}"));
    let _ = std::fs::write(table, text);
    Ok((counts, transcript.number("irqs")?))
}

/// What bare Linux takes: its timer interrupts, and its SGIs twice (one trap to send, one to kick).
fn native(lab: &Lab, arg: &str) -> Result<f64, String> {
    let (counts, _) = counted(lab, "native", Boot::Bare, "", arg, Disk::Null)?;
    Ok((counts.of(Source::Timer) + 2 * counts.of(Source::Sgi)) as f64 / counts.ios as f64)
}

/// Pairs of runs to compare. The window of 600 I/Os holds a dozen timer interrupts, of either system's housekeeping, and
/// when they fall is chance; an exit that a device causes is in every run.
const PAIRS: u32 = 3;

/// Exits that neither a timer nor an SGI explains, for each I/O; and what the comparison with bare Linux leaves over.
const SLACK: f64 = 0.01;

fn direct(lab: &Lab, cell: usize) -> Verdict {
    let (name, arg) = CELLS[cell];
    let mut verdict = Ok(());
    for _ in 0..PAIRS {
        let native = native(lab, arg)?;
        let (counts, irqs) = counted(lab, "direct", Boot::Doorward, "", arg, Disk::Null)?;
        none_by_device(name, &counts, irqs)?;
        let exits = counts.total() as f64 / counts.ios as f64;
        println!("   {name}: {exits:.3} exits per I/O, at most {:.3} (bare Linux: {native:.3})", native + SLACK);
        if exits <= native + SLACK {
            return Ok(());
        }
        verdict = Err(format!("{name}: {exits:.3} exits per I/O, bare Linux would need {native:.3}, {PAIRS} times"));
    }
    verdict
}

/// What holds in every single run: no interrupt of the device costs an exit.
fn none_by_device(name: &str, counts: &Counts, irqs: u64) -> Verdict {
    let lpis = counts.of(Source::Lpi);
    if lpis != 0 {
        return Err(format!("{name}: {lpis} LPIs were taken at EL2"));
    }
    if counts.listed != 0 {
        return Err(format!("{name}: {} LPIs came through a list register", counts.listed));
    }
    // The kernel counts a little before the first read and after the last.
    if counts.direct + 2 < irqs.min(counts.messages) || counts.direct > irqs {
        return Err(format!("{name}: {} LPIs acknowledged directly, {irqs} in /proc/interrupts", counts.direct));
    }
    // An SGI is a trap where it is sent and an interrupt where it arrives.
    let explained = counts.of(Source::Timer) + 2 * counts.of(Source::Sgi);
    let rest = counts.total().saturating_sub(explained) as f64 / counts.ios as f64;
    if rest > SLACK {
        return Err(format!("{name}: {rest:.3} exits per I/O that neither a timer nor an SGI explains"));
    }
    Ok(())
}

fn software(lab: &Lab) -> Verdict {
    let (name, arg) = CELLS[0];
    let native = native(lab, arg)?;
    let (counts, _) = counted(lab, "software", Boot::Doorward, "direct=off", arg, Disk::Null)?;
    let more = counts.total() as f64 / counts.ios as f64 - native;
    println!("   {name}: {more:.3} exits per I/O above bare Linux");
    if counts.direct != 0 {
        return Err(format!("{name}: {} LPIs came without a list register although direct=off", counts.direct));
    }
    // One exit for each LPI, but for those that EL2 takes while it is there for something else, and the I/O at either
    // end of the window that has none.
    if (0.95..=1.1).contains(&more) {
        Ok(())
    } else {
        Err(format!("{name}: {more:.3} exits per I/O above bare Linux, not one"))
    }
}

fn doorbells(lab: &Lab) -> Verdict {
    let disk = Disk::Scratch(crate::paths::disk());
    let (counts, _) = counted(lab, "doorbells", Boot::Doorward, "vwfi=trap", CELLS[0].1, disk)?;
    let rate = counts.of(Source::Lpi) as f64 / counts.ios as f64;
    if rate >= 0.5 { Ok(()) } else { Err(format!("{rate:.3} doorbells per I/O")) }
}
