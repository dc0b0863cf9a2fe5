//! DomUs that end in the middle of I/O: by resets, by crashes, and after their function was cut off.

use super::{not_built, refusals};
use crate::domu::DomU;
use crate::paths;
use crate::qemu::{self, Disk, Machine};
use crate::session::Event;
use crate::test::cases::{domains, guests};
use crate::test::{Case, Lab, Verdict};

/// Restarts, and restarts with `--long`.
const RESTARTS: (usize, usize) = (10, 200);

/// The cases of this topic.
pub(super) fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("domu-nvme-ends", "a domU is reset or crashes with I/O in flight, and begins anew", |lab| ends(lab, "")),
        case("domu-nvme-ends-software", "the same with direct=off", |lab| ends(lab, "direct=off")),
        case("domu-cut-off", "a function that floods the SMMU's events is cut off until its domain is reset", cut_off),
    ]
}

/// Restarts a guest with reads and writes in flight. Its disk completes 100 of them in a second, so that most are in flight when it
/// ends. What is free stays the same, and no SMMU refuses anything: what is in flight has been stopped at the device.
fn ends(lab: &Lab, hv: &str) -> Verdict {
    let domu = DomU { cpus: 1, pci: vec![qemu::domu_disk(0)], ..domains::guest(lab, "guest-nvme")? };
    let hv = format!("sched=credit on-crash=restart restart-delay=0 {hv}");
    let domu_disks = vec![Disk::Slow(paths::domu_disk())];
    let machine = Machine { hv, smp: 2, domu_disks, ..domains::machine(lab, domu) };
    let restarts = if lab.long { RESTARTS.1 } else { RESTARTS.0 };
    let transcript = domains::restarted(lab, &machine, restarts)?;
    for way in ["by a reset", "by a crash"] {
        if !transcript.lines.iter().any(|(_, line)| line.contains(way)) {
            return Err(format!("it never ended {way}"));
        }
    }
    refusals(&transcript, &[])
}

/// Lives of the domU whose function is cut off.
const LIVES: usize = 3;

/// Runs a domU that has its function cut off in each life, and finds it working in the next.
fn cut_off(lab: &Lab) -> Verdict {
    let machine = guests::machine(lab, "guest-edu")?;
    let kernel = machine.kernel.clone().unwrap_or_default();
    let (pci, append) = (vec![super::hostile::EDU.to_owned()], "flood".to_owned());
    let domu = DomU { kernel, mem: 16, pci, pci_allow_no_reset: true, append, ..DomU::default() };
    let hv = "dom0_max_vcpus=1 restart-delay=0".to_owned();
    // dom0 only has to be there: it waits for a key.
    let append = "witness".to_owned();
    let mut machine = Machine { hv, smp: 2, append, domus: vec![domu], ..machine };
    machine.extra.extend(super::hostile::flags());
    let mut session = lab.start(&machine, 60)?;
    let (mut works, mut cut, mut logged) = (0, 0, 0);
    while works < LIVES {
        match session.next() {
            Event::Line(line) => {
                not_built(&line)?;
                works += usize::from(line.contains("GUEST WORKS edu"));
                cut += usize::from(line.contains("GUEST CUT edu"));
                logged += usize::from(line.contains(" dom1: stream 0x") && line.contains("cut off until"));
            }
            Event::Ended(end) => return Err(format!("{works} lives, {cut} cut off: {end:?}")),
        }
    }
    println!("   worked {works} times, cut off {cut} times, {logged} lines about it");
    if cut + 1 != works || logged == 0 {
        return Err(format!("it worked {works} times, and was cut off {cut} times, with {logged} lines about it"));
    }
    lab.complaints()
}
