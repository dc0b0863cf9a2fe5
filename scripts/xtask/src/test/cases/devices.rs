//! DomUs with PCI functions of their own, behind the SMMU: a Linux on its NVMe disk, what its interrupts cost, domains that end in the
//! middle of I/O, hostile ones, and functions that cannot be given away.

mod counts;
mod ends;
mod hostile;
mod platform;
mod refused;

use crate::domu::DomU;
use crate::paths;
use crate::qemu::{self, Disk, Machine};
use crate::session::{NEXT, Session};
use crate::test::cases::uefi;
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    let mut cases = vec![
        case("domu-nvme", "five fio jobs of a domU on its own NVMe, beside those of dom0", |lab| {
            nvme(lab, dom0(lab, NULL), 2, 1)
        }),
        case("domu-nvme-software", "the same with direct=off", |lab| {
            nvme(lab, dom0(lab, "dom0_max_vcpus=2 direct=off"), 2, 1)
        }),
        case("domu-nvme-shared", "the same with sched=credit: 8 vCPUs on 4 CPUs", |lab| {
            nvme(lab, dom0(lab, "sched=credit"), 4, 1)
        }),
        case("domu-nvme-uefi", "domu-nvme with UEFI and ACPI tables; dom0 has a device tree", |lab| {
            // ACPI describes the windows, and so the places for BARs, in AML only.
            let hv = format!("{NULL} dom0_acpi=off pci_windows={}", uefi::WINDOWS);
            nvme(lab, uefi::acpi(lab, 4, &hv), 2, 1)
        }),
        case("domu-nvme-shared-software", "domu-nvme-shared with direct=off", |lab| {
            nvme(lab, dom0(lab, "sched=credit direct=off"), 4, 1)
        }),
        case("domu-nvme-two", "two domUs with a disk each, beside dom0", |lab| {
            nvme(lab, dom0(lab, "sched=credit"), 2, 2)
        }),
    ];
    cases.extend(counts::cases());
    cases.extend(ends::cases());
    cases.extend(hostile::cases());
    cases.extend(platform::cases());
    cases.extend(refused::cases());
    cases
}

/// Cases that run with `--long` only: others show most of what they do.
const LONG: [&str; 4] = ["domu-nvme-shared-software", "domu-nvme-two", "domu-nvme-ends-software", "counts-domu-jobs"];

/// Whether this case runs with `--long` only.
pub fn is_long(name: &str) -> bool {
    LONG.contains(&name)
}

/// dom0 has two of the four CPUs, and the domU the others.
const NULL: &str = "dom0_max_vcpus=2";

/// A part of what the hypervisor logs of a transaction that an SMMU refuses.
const REFUSES: &str = ": stream 0x";

/// A Linux that runs a test, with disk `index` for domUs.
fn linux(test: &str, arg: &str, cpus: u32, index: usize) -> DomU {
    let append = format!("console=ttyAMA0 dw.test={test} dw.arg={arg}");
    let pci = vec![qemu::domu_disk(index)];
    DomU { initrd: Some(paths::initramfs()), cpus, mem: 384, pci, append, ..DomU::default() }
}

/// A machine whose dom0 runs fio's jobs.
fn dom0(lab: &Lab, hv: &str) -> Machine {
    Machine { hv: hv.into(), ..lab.linux("fio", "") }
}

/// Runs the five jobs in dom0 and in domUs at the same time, each with its own disk.
fn nvme(lab: &Lab, mut machine: Machine, cpus: u32, domus: usize) -> Verdict {
    let ios = if lab.long { "1500" } else { "200" };
    machine.append += &format!(" dw.arg={ios}");
    // When both are done, a line ends dom0.
    machine.append += " dw.wait";
    machine.domus = (0..domus).map(|index| linux("fio", ios, cpus, index)).collect();
    machine.domu_disks = vec![Disk::Scratch(paths::domu_disk()); domus];
    machine.make_disk_image().map_err(|failure| failure.text)?;
    let (mut waits, mut ended) = (false, 0);
    let transcript = lab.watch(&machine, 240, |session, line| {
        not_built(line)?;
        let before = waits && ended == domus;
        waits |= line.starts_with("DW-TEST: waits");
        ended += usize::from(line.contains(": powered off") && !line.contains(" dom0: "));
        if !before && waits && ended == domus { typed(session, "\r") } else { Ok(()) }
    });
    uefi::forget(&machine);
    let transcript = transcript?;
    lab.judge(&transcript)?;
    for id in 0..=domus {
        let guest = transcript.of(id);
        lab.judge_test(&guest).map_err(|why| format!("dom{id}: {why}"))?;
        let (jobs, irqs) = (guest.said("job").count(), guest.number("irqs")?);
        println!("   dom{id}: {jobs} jobs, {irqs} interrupts");
        if jobs != 5 || irqs == 0 {
            return Err(format!("dom{id}: {jobs} jobs ended, not 5, with {irqs} interrupts of the disk"));
        }
    }
    refusals(&transcript, &[])
}

/// Types keys.
fn typed(session: &mut Session, keys: &str) -> Verdict {
    session.type_in(keys).map_err(|failure| failure.text)
}

/// Ends a case at once in which a domU was not built, a domain has crashed, or its test has failed.
fn not_built(line: &str) -> Verdict {
    let bad = [": not built: ", ": crashed", ": not restarted: ", "GUEST FAIL", "DW-TEST: fail ", "Internal error: "];
    if bad.iter().any(|bad| line.contains(bad)) { Err(line.trim().to_owned()) } else { Ok(()) }
}

/// Checks that an SMMU has refused transactions of these domains, and no others.
fn refusals(transcript: &Transcript, expected: &[&str]) -> Verdict {
    let lines = || transcript.lines.iter().map(|(_, line)| line.trim()).filter(|line| line.contains(REFUSES));
    let of = |line: &str, domain: &str| line.contains(&format!(": {domain}{REFUSES}"));
    if let Some(line) = lines().find(|line| !expected.iter().any(|domain| of(line, domain))) {
        return Err(format!("an SMMU has refused a transaction that it should not: `{line}`"));
    }
    match expected.iter().find(|domain| !lines().any(|line| of(line, domain))) {
        Some(domain) => Err(format!("no refused transaction of {domain} was logged")),
        None => Ok(()),
    }
}

/// Whether this line of QEMU's log says that an SMMU has refused a transaction, or that an ITS has dropped a message: what the
/// hostile guests cause.
fn is_refusal(line: &str) -> bool {
    line.contains("translation failed for iova=") || line.starts_with("do_process_its_cmd: ")
}

/// What is to be done when the console has certain lines, one step after the other.
struct Script<'a> {
    steps: Vec<Step<'a>>,
    at: usize,
}

struct Step<'a> {
    /// Lines that must have come, each once, in any order.
    awaited: Vec<&'static str>,
    act: Box<dyn FnMut(&mut Session) -> Verdict + 'a>,
}

impl<'a> Script<'a> {
    fn new() -> Self {
        Self { steps: Vec::new(), at: 0 }
    }

    /// Acts when the console has a line with each of these texts, after the steps before.
    fn when(mut self, awaited: &[&'static str], act: impl FnMut(&mut Session) -> Verdict + 'a) -> Self {
        self.steps.push(Step { awaited: awaited.to_vec(), act: Box::new(act) });
        self
    }

    /// Types keys when the console has a line with this text.
    fn types(self, awaited: &'static str, keys: &'static str) -> Self {
        self.when(&[awaited], move |session| typed(session, keys))
    }

    /// Moves the keyboard on when the console has a line with this text.
    fn moves_on(self, awaited: &'static str) -> Self {
        self.types(awaited, NEXT)
    }

    /// Handles a line.
    fn line(&mut self, session: &mut Session, line: &str) -> Verdict {
        let Some(step) = self.steps.get_mut(self.at) else { return Ok(()) };
        let Some(index) = step.awaited.iter().position(|text| line.contains(text)) else { return Ok(()) };
        step.awaited.swap_remove(index);
        if !step.awaited.is_empty() {
            return Ok(());
        }
        self.at += 1;
        (step.act)(session)
    }

    /// Checks that all steps were done.
    fn finish(&self) -> Verdict {
        match self.steps.get(self.at) {
            None => Ok(()),
            Some(step) => Err(format!("the console never had `{}`", step.awaited.join("`, `"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::End;
    use std::time::Duration;

    #[test]
    fn refused_transactions_are_attributed() {
        let transcript = |line: &str| Transcript { lines: vec![(Duration::ZERO, line.to_owned())], end: End::Off };
        let one = transcript("[ 1.0] warn smmu: SMMU0: dom1: stream 0x40: write of 0x1000: not mapped");
        assert!(refusals(&one, &["dom1"]).is_ok());
        assert!(refusals(&one, &[]).is_err() && refusals(&one, &["dom0"]).is_err());
        assert!(refusals(&one, &["dom0", "dom1"]).is_err());
        let nobody = transcript("[ 1.0] warn smmu: SMMU0: no domain: stream 0x40: its entry is invalid");
        assert!(refusals(&nobody, &["dom1"]).is_err());
    }
}
