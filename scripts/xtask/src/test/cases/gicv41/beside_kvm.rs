//! Exits for each I/O, next to those of a guest of KVM on the same machine: the same Linux with the same reads from the same disk,
//! which both pass through, counted in the same way in QEMU's log.

use crate::exit_count::{self, Clock, Counts, Hypervisor, RESIDENCY, SENT, Source, TIMER, Window};
use crate::qemu::{Boot, Disk, Machine};
use crate::setup;
use crate::test::linux::Transcript;
use crate::test::{Lab, Verdict};

use super::{KVM_CPU, kvm_host};

/// 600 reads of 4 KiB, one at a time.
const READS: &str = "4k,1,1";

/// Attempts. Runs differ in the guest's own timer interrupts and SGIs, so each figure is the smallest of the runs so far.
const ATTEMPTS: usize = 3;

/// Exits per I/O by which runs of the same hypervisor differ.
const SLACK: f64 = 0.01;

pub fn run(lab: &Lab) -> Verdict {
    let (mut ours, mut kvm) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ATTEMPTS {
        let (beside, console) = counted(lab, "kvm", Hypervisor::Kvm)?;
        for says in ["GICv4.1 support enabled", "KVM-HOST: exit 0"] {
            if !console.lines.iter().any(|(_, line)| line.contains(says)) {
                return Err(format!("no line `{says}` ({})", lab.dir.join("kvm/console.log").display()));
            }
        }
        let (counts, _) = counted(lab, "doorward", Hypervisor::Doorward)?;
        for line in side_by_side(&counts, &beside).lines() {
            println!("   {line}");
        }
        for (name, counts) in [("dom0", &counts), ("the guest of KVM", &beside)] {
            if counts.direct < counts.ios / 2 {
                return Err(format!("{name} acknowledged {} of {} LPIs directly", counts.direct, counts.messages));
            }
        }
        if other(&counts) > other(&beside) {
            return Err(format!(
                "{} exits for neither a timer nor an SGI, {} with KVM",
                other(&counts),
                other(&beside)
            ));
        }
        let each = |counts: &Counts| counts.total() as f64 / counts.ios as f64;
        (ours, kvm) = (ours.min(each(&counts)), kvm.min(each(&beside)));
        if ours <= kvm + SLACK {
            return Ok(());
        }
    }
    Err(format!("{ours:.3} exits per I/O, {kvm:.3} with KVM"))
}

/// The exits that neither a guest's timer interrupt nor an SGI explains, which is an exit of its sender.
fn other(counts: &Counts) -> u64 {
    counts.exits.iter().filter(|(class, _)| ![TIMER, SENT].contains(&class.as_str())).map(|(_, count)| count).sum()
}

/// A run, in a folder of its own.
fn counted(lab: &Lab, what: &str, hypervisor: Hypervisor) -> Result<(Counts, Transcript), String> {
    let text = |failure: crate::fail::Failure| failure.text;
    let inner = Lab { dir: lab.dir.join(what), boot: Boot::Doorward, long: lab.long, gicv41: None };
    std::fs::create_dir_all(&inner.dir).map_err(|error| error.to_string())?;
    let machine = inner.linux("count", READS);
    let machine = match hypervisor {
        Hypervisor::Doorward => Machine { smp: 2, cpu: KVM_CPU.into(), ..machine },
        Hypervisor::Kvm => {
            let mut host = kvm_host(setup::ensure_kvm_counted().map_err(text)?);
            host.append += machine.append.trim_start_matches("console=ttyAMA0");
            host
        }
    };
    let mut machine = Machine { mem: "3G".into(), disk: Disk::Null, ..inner.gicv41(machine)? };
    let table = inner.dir.join("table");
    exit_count::prepare(&mut machine, &table, Clock::Instructions);
    for event in RESIDENCY {
        machine.extra.extend(["-trace".into(), event.into()]);
    }
    let mut window = Window::new(&machine, Clock::Instructions);
    let transcript =
        inner.watch(&machine, 300, |session, line| window.line(session, line).map_err(|failure| failure.text))?;
    let log = inner.dir.join("guest.log");
    std::fs::rename(machine.log.unwrap_or_default(), &log).map_err(|error| error.to_string())?;
    inner.judge(&transcript)?;
    let counts = Counts::read(&log, Clock::Instructions, hypervisor).map_err(text)?;
    let _ = std::fs::write(table, counts.table());
    Ok((counts, transcript))
}

/// A table with the exits of both, for each I/O.
fn side_by_side(ours: &Counts, kvm: &Counts) -> String {
    let mut classes: Vec<&str> = ours.exits.keys().chain(kvm.exits.keys()).map(String::as_str).collect();
    classes.sort_unstable();
    classes.dedup();
    let each = |count: u64, of: &Counts| count as f64 / of.ios.max(1) as f64;
    let row = |name: &str, count: &dyn Fn(&Counts) -> u64| {
        format!("{name:<44} {:>9.3} {:>9.3}\n", each(count(ours), ours), each(count(kvm), kvm))
    };
    let mut table = format!("{:<44} {:>9} {:>9}\n", "per I/O", "Doorward", "KVM");
    table += &row("exceptions from a guest to EL2", &Counts::total);
    for class in classes {
        table += &row(&format!("  {class}"), &|counts| counts.exits.get(class).copied().unwrap_or(0));
    }
    table += &row("interrupts taken at EL2: LPI", &|counts| counts.of(Source::Lpi));
    table += &row("LPIs a guest acknowledged directly", &|counts| counts.direct);
    table += &row("LPIs a guest acknowledged by list register", &|counts| counts.listed);
    table
}
