//! Exceptions to EL2 for each I/O, counted from outside, compared with a Linux without the hypervisor on the same machine.

use crate::exit_count::{self, Clock, Counts, Hypervisor, Source};
use crate::qemu::{Boot, Disk, Machine, Tables, Uefi};
use crate::test::cases::sched::{BUSY, busy};
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
        case("counts-uefi", "no exit for an NVMe interrupt with UEFI and ACPI", uefi),
        case("counts-adaptive-wfi", "vwfi=auto: WFI traps only where another vCPU could use the CPU", adaptive),
        case("counts-software", "direct=off: one more exit for each I/O", software),
        case("counts-shared", "4 vCPUs of dom0 and 4 busy ones of a domU on 4 CPUs", |lab| shared(lab, "", 1.2)),
        case("counts-shared-software", "the same with direct=off", |lab| shared(lab, "direct=off", 2.5)),
        case("counts-doorbells", "vwfi=trap: at least 0.5 doorbells for each I/O", doorbells),
    ]
}

/// Attempts of a count. Only the host's load makes runs differ: while QEMU's main loop does not run, the guest is idle, its clock
/// jumps to the next timer, and timer interrupts are added. So each figure is the smallest of the runs so far.
pub(super) const ATTEMPTS: usize = 6;

/// Exits per I/O that may be neither of a timer nor of an SGI, and by which bare Linux may be exceeded.
pub(super) const SLACK: f64 = 0.01;

/// CPUs of the machine.
const SMP: u32 = 4;

/// A counted run, with a folder of its own.
pub struct Run<'a> {
    what: &'a str,
    boot: Boot,
    hv: &'a str,
    arg: &'a str,
    disk: Disk,
    clock: Clock,
    /// Whether a domU keeps every CPU busy meanwhile.
    busy: bool,
    /// The number of CPUs.
    smp: u32,
}

impl<'a> Run<'a> {
    /// A run under the hypervisor on the clock of instructions, with a disk that completes at once.
    pub fn counted(what: &'a str, hv: &'a str, arg: &'a str) -> Self {
        Run { what, boot: Boot::Doorward, hv, arg, disk: Disk::Null, clock: Clock::Instructions, busy: false, smp: SMP }
    }

    /// Runs it; returns the counts and the number of interrupts in the guest's /proc/interrupts.
    pub fn go(self, lab: &Lab) -> Result<(Counts, u64), String> {
        let inner = Lab { dir: lab.dir.join(self.what), boot: self.boot, long: lab.long, gicv41: lab.gicv41.clone() };
        std::fs::create_dir_all(&inner.dir).map_err(|error| error.to_string())?;
        let table = inner.dir.join("table");
        let smp = self.smp;
        let mut machine = Machine { hv: self.hv.into(), disk: self.disk, smp, ..inner.linux("count", self.arg) };
        if self.busy {
            machine.domus.push(busy(4));
        }
        exit_count::prepare(&mut machine, &table, self.clock);
        machine.make_disk_image().map_err(|failure| failure.text)?;
        let mut window = exit_count::Window::new(&machine, self.clock);
        // The window is opened, which dom0 waits for, when the domU is busy.
        let (mut busy, mut waits) = (!self.busy, None);
        let transcript = inner.watch(&machine, 300, |session, line| {
            busy |= line.contains(BUSY);
            if line.starts_with("DW-TEST: count?") {
                waits = Some(line.to_owned());
            } else {
                window.line(session, line).map_err(|failure| failure.text)?;
            }
            match waits.take_if(|_| busy) {
                Some(line) => window.line(session, &line).map_err(|failure| failure.text),
                None => Ok(()),
            }
        })?;
        // A counted run has one log, which `judge` searches for complaints.
        let log = inner.dir.join("guest.log");
        std::fs::rename(machine.log.unwrap_or_default(), &log).map_err(|error| error.to_string())?;
        inner.judge(&transcript)?;
        let counts = Counts::read(&log, self.clock, Hypervisor::Doorward).map_err(|failure| failure.text)?;
        let text = counts.table();
        println!("   -- {}, {}", self.what, self.arg);
        text.lines().for_each(|line| println!("   {line}"));
        let _ = std::fs::write(table, text);
        Ok((counts, transcript.number("irqs")?))
    }
}

/// The exits expected from bare Linux: its timer interrupts, and its SGIs twice (one exit to send, one to receive).
fn native(lab: &Lab, arg: &str) -> Result<f64, String> {
    native_on(lab, arg, SMP)
}

/// The same on a machine with so many CPUs.
pub(super) fn native_on(lab: &Lab, arg: &str, smp: u32) -> Result<f64, String> {
    let run = Run {
        what: "native",
        boot: Boot::Bare,
        hv: "",
        arg,
        disk: Disk::Null,
        clock: Clock::Instructions,
        busy: false,
        smp,
    };
    let (counts, _) = run.go(lab)?;
    Ok((counts.of(Source::Timer) + 2 * counts.of(Source::Sgi)) as f64 / counts.ios as f64)
}

/// Counts with firmware that describes the machine by ACPI tables, and with a second NVMe disk, to boot from.
fn uefi(lab: &Lab) -> Verdict {
    let disk = lab.dir.join("boot.raw");
    let boot = Boot::Uefi(Uefi { disk: disk.clone(), tables: Tables::Acpi });
    let run = Run {
        what: "uefi",
        boot,
        hv: "",
        arg: CELLS[0].1,
        disk: Disk::Null,
        clock: Clock::Instructions,
        busy: false,
        smp: SMP,
    };
    let outcome = run.go(lab);
    let _ = std::fs::remove_file(disk);
    let (counts, _) = outcome?;
    match (counts.of(Source::Lpi), counts.listed, counts.direct) {
        (0, 0, 1..) => Ok(()),
        (lpis, listed, direct) => {
            Err(format!("{lpis} LPIs at EL2, {listed} by list register, {direct} directly: all must be direct"))
        }
    }
}

/// Runs bare Linux and the hypervisor until `enough` accepts the figures, which are exits per I/O. `check` checks each run.
fn compare(
    lab: &Lab,
    cell: usize,
    hv: &str,
    check: impl Fn(&Counts, u64) -> Verdict,
    enough: impl Fn(f64, f64) -> bool,
) -> Result<(f64, f64), String> {
    let (name, arg) = CELLS[cell];
    let (mut bare, mut ours) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ATTEMPTS {
        bare = bare.min(native(lab, arg)?);
        let what = if hv.is_empty() { "direct" } else { "software" };
        let (counts, irqs) = Run::counted(what, hv, arg).go(lab)?;
        check(&counts, irqs).map_err(|why| format!("{name}: {why}"))?;
        ours = ours.min(counts.total() as f64 / counts.ios as f64);
        println!("   {name}: {ours:.3} exits per I/O; bare Linux takes {bare:.3} timer interrupts and twice its SGIs");
        if enough(bare, ours) {
            break;
        }
    }
    Ok((bare, ours))
}

/// Checks that all LPIs were direct, and that timers and SGIs explain the exits. `irqs` is what the guest has counted.
pub(super) fn check_direct(counts: &Counts, irqs: u64) -> Verdict {
    let (lpis, listed, direct) = (counts.of(Source::Lpi), counts.listed, counts.direct);
    if (lpis, listed) != (0, 0) {
        return Err(format!("{lpis} LPIs were taken at EL2, {listed} came through a list register"));
    }
    // The kernel also counts those in flight at the last read, which are not in the window.
    if direct > irqs || irqs - direct > 5 {
        return Err(format!("{direct} LPIs acknowledged directly, {irqs} in /proc/interrupts"));
    }
    let rest = counts.unexplained();
    if rest > SLACK { Err(format!("{rest:.3} exits per I/O that neither a timer nor an SGI explains")) } else { Ok(()) }
}

fn direct(lab: &Lab, cell: usize) -> Verdict {
    let enough = |bare: f64, ours: f64| ours <= bare + SLACK;
    let (bare, ours) = compare(lab, cell, "", check_direct, enough)?;
    if enough(bare, ours) {
        Ok(())
    } else {
        Err(format!("{ours:.3} exits per I/O, at most {:.3} expected", bare + SLACK))
    }
}

fn software(lab: &Lab) -> Verdict {
    let check = |counts: &Counts, _| match counts.direct {
        0 => Ok(()),
        direct => Err(format!("{direct} LPIs came without a list register although direct=off")),
    };
    // One exit for each LPI, except those that come while EL2 runs for another reason, and the I/O at the ends of the window.
    let enough = |bare: f64, ours: f64| (0.95..=1.1).contains(&(ours - bare));
    let (bare, ours) = compare(lab, 0, "direct=off", check, enough)?;
    if enough(bare, ours) { Ok(()) } else { Err(format!("{:.3} exits per I/O above bare Linux, not one", ours - bare)) }
}

/// Counts the exits of both domains for dom0's I/O, with more vCPUs than CPUs and no idle CPU.
fn shared(lab: &Lab, direct: &str, limit: f64) -> Verdict {
    let what = if direct.is_empty() { "direct" } else { "software" };
    let hv = format!("sched=credit {direct}");
    let mut best = f64::INFINITY;
    for _ in 0..ATTEMPTS {
        let (boot, arg, clock) = (Boot::Doorward, CELLS[0].1, Clock::Instructions);
        let (counts, _) = Run { what, boot, hv: &hv, arg, disk: Disk::Null, clock, busy: true, smp: SMP }.go(lab)?;
        if let Some(class) = counts.exits.keys().find(|class| class.contains("(trapped)")) {
            return Err(format!("exits for {class}"));
        }
        best = best.min(counts.total() as f64 / counts.ios as f64);
        println!("   {best:.3} exits per I/O");
        if best < limit {
            return Ok(());
        }
    }
    Err(format!("{best:.3} exits per I/O, fewer than {limit} expected"))
}

/// Checks that WFI traps only where another vCPU can use the CPU.
fn adaptive(lab: &Lab) -> Verdict {
    let waits = |what, hv, busy| {
        let (counts, _) = Run { busy, ..Run::counted(what, hv, CELLS[0].1) }.go(lab)?;
        Ok::<_, String>(counts.exits.get(exit_count::WAIT).copied().unwrap_or(0))
    };
    let alone = waits("alone", "sched=credit vwfi=auto", false)?;
    let trapped = waits("trapped", "sched=credit vwfi=trap", false)?;
    let shared = waits("shared", "sched=credit vwfi=auto", true)?;
    println!("   WFIs that trapped: {alone} alone, {trapped} alone with vwfi=trap, {shared} beside a busy domain");
    match (alone, trapped, shared) {
        (0, 1.., 1..) => Ok(()),
        _ => Err(format!("{alone}, {trapped} and {shared} WFIs trapped; none, some and some were expected")),
    }
}

/// Takes the best of several runs: on a busy host a vCPU may not yet sleep when its I/O is complete.
fn doorbells(lab: &Lab) -> Verdict {
    let mut best = 0.0_f64;
    for _ in 0..ATTEMPTS {
        let disk = Disk::Slow(crate::paths::disk());
        let (boot, arg) = (Boot::Doorward, CELLS[0].1);
        let run =
            Run { what: "doorbells", boot, hv: "vwfi=trap", arg, disk, clock: Clock::Real, busy: false, smp: SMP };
        let (counts, _) = run.go(lab)?;
        best = best.max(counts.of(Source::Lpi) as f64 / counts.ios as f64);
        println!("   {best:.3} doorbells per I/O");
        if best >= 0.5 {
            return Ok(());
        }
    }
    Err(format!("{best:.3} doorbells per I/O, at least 0.5 expected"))
}
