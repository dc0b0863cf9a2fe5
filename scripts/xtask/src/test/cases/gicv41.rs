//! On a machine with a GICv4.1: QEMU with the patches of `scripts/qemu-gicv41`.
//!
//! That QEMU reports each access that the architecture forbids. As for every Linux case, one such report fails the case.

mod forbidden;

use crate::qemu::{Boot, Machine};
use crate::session::End;
use crate::setup;
use crate::test::{Case, Lab, Verdict};

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, bare, run| Case { name, shows, bare, run };
    vec![
        case("gicv41-forbidden", "what the architecture forbids on a GICv4.1 is reported", false, forbidden::run),
        case("gicv41-boot", "dom0 boots, sleeps and does I/O on a GICv4.1 without a forbidden access", true, boots),
        case(
            "gicv41-kvm",
            "the GICv4.1 is one for KVM, too: vLPIs and vSGIs of a guest with a passed-through NVMe",
            false,
            kvm,
        ),
    ]
}

/// With WFI trapped, so that vPEs become resident and leave all the time.
fn boots(lab: &Lab) -> Verdict {
    let mut machine = lab.gicv41(lab.linux("fio", "300"))?;
    machine.hv = "vwfi=trap".into();
    let transcript = lab.linux_run(&machine, 120)?;
    let says = match lab.boot {
        Boot::Bare => "Using GICv4.1 mode",
        _ => "direct injection by GICv4.1",
    };
    if transcript.lines.iter().any(|(_, line)| line.contains(says)) {
        Ok(())
    } else {
        Err(format!("no line `{says}`: the GICv4.1 is not used"))
    }
}

/// The smallest LPI; vSGIs are below 16.
const LPI: u64 = 8192;

/// Linux with KVM without the hypervisor, as a check of the emulated GIC that does not depend on the hypervisor's driver.
fn kvm(lab: &Lab) -> Verdict {
    let text = |failure: crate::fail::Failure| failure.text;
    let machine = Machine {
        boot: Boot::Bare,
        initrd: Some(setup::ensure_kvm().map_err(text)?),
        append: "console=ttyAMA0 kvm-arm.vgic_v4_enable=1".into(),
        smp: 2,
        // The default pointer authentication takes most of the time of an emulated guest in an emulated host.
        cpu: "max,pauth-impdef=on,sve=off,sme=off".into(),
        log: Some(lab.dir.join("guest.log")),
        extra: vec!["-trace".into(), "gicv3_vpe_*".into()],
        ..Machine::default()
    };
    let transcript = lab.watch(&lab.gicv41(machine)?, 120, |_, _| Ok(()))?;
    if transcript.end != End::Off {
        return Err(format!("the host did not power off: {:?}", transcript.end));
    }
    for says in ["Using GICv4.1 mode", "GICv4.1 support enabled", "KVM-GUEST: done", "KVM-HOST: exit 0"] {
        if !transcript.lines.iter().any(|(_, line)| line.contains(says)) {
            return Err(format!("no line `{says}` ({})", lab.dir.join("console.log").display()));
        }
    }
    lab.complaints()?;

    let log = std::fs::read_to_string(lab.dir.join("guest.log")).map_err(|error| error.to_string())?;
    let taken = log.lines().filter(|line| line.starts_with("gicv3_vpe_acknowledge "));
    let taken: Vec<u64> = taken.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    let vlpis = taken.iter().filter(|&&irq| irq >= LPI).count();
    let vsgis = taken.iter().filter(|&&irq| irq < 16).count();
    let host = transcript.lines.iter().find_map(|(_, line)| line.trim().strip_prefix("KVM-HOST: vfio ")?.parse().ok());
    let host: u64 = host.ok_or("the host printed no count of the device's interrupts")?;
    println!("   {vlpis} vLPIs and {vsgis} vSGIs taken; the host took {host} of the device's interrupts");
    if vlpis == 0 || vsgis == 0 || host != 0 {
        return Err(format!("{vlpis} vLPIs, {vsgis} vSGIs, and {host} device interrupts taken by the host"));
    }
    Ok(())
}
