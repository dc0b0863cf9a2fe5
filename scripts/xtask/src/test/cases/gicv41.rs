//! On a machine with a GICv4.1: QEMU with the patches of `scripts/qemu-gicv41`.
//!
//! That QEMU reports each access that the architecture forbids. As for every Linux case, one such report fails the case.

mod beside_kvm;
mod cpus;
mod forbidden;
mod ipis;
mod stuck_lpis;

use std::path::PathBuf;

use crate::qemu::{Boot, Machine};
use crate::session::End;
use crate::setup;
use crate::test::{Case, Lab, Verdict};

/// A case that runs again on the GICv4.1 machine.
pub struct Again {
    /// The name of the case.
    name: &'static str,
    /// The name of the case that it repeats.
    of: &'static str,
    /// Properties of the machine, each after a comma.
    pub properties: &'static str,
    /// Properties of devices.
    pub globals: &'static [&'static str],
    /// Whether it runs with `--long` only.
    pub long: bool,
}

impl Again {
    const fn kind(name: &'static str, of: &'static str) -> Again {
        Again { name, of, properties: "", globals: &[], long: false }
    }

    /// On a machine with these properties.
    const fn unkind(self, properties: &'static str, globals: &'static [&'static str]) -> Again {
        Again { properties, globals, ..self }
    }

    const fn long(self) -> Again {
        Again { long: true, ..self }
    }
}

const STRICT: &[&str] = &["arm-gicv3.x-strict=on"];
/// Dirty takes 20 us and Busy 10 us, and only 64 KiB pages are accepted.
const SLOW: &[&str] = &["arm-gicv3.x-dirty-ns=20000", "arm-gicv3.x-busy-ns=10000", "arm-gicv3.x-64k-tables=on"];
const POWER: &[&str] = &["arm-gicv3.x-vlpi-needs-power=on", "arm-gicv3.x-strict=on"];
/// VMOVPs go to all ITSs.
const LISTED: &[&str] = &["arm-gicv3-its.x-vmovp=off"];
/// All redistributors share one table with all ITSs, those of one Aff3, Aff2 and Aff1, or few vPEs.
const ONE_GROUP: &[&str] = &["arm-gicv3.common-lpi-aff=0", "arm-gicv3-its.svpet=0"];
const SMALL_GROUPS: &[&str] = &["arm-gicv3.common-lpi-aff=3", "arm-gicv3-its.svpet=3"];
const FEW_VPES: &[&str] = &["arm-gicv3.common-lpi-aff=2", "arm-gicv3-its.svpet=2", "arm-gicv3.vpeid-bits=4"];
/// Half of the CPUs have Aff3 = 1.
const AFF3: &str = ",x-aff3=on";
const TWO_ITSS: &str = ",x-its-count=2,x-aff3=on";
const FOUR_ITSS: &str = ",x-its-count=4,x-aff3=on";

/// Each mechanism is in a case that runs by default: direct delivery without exits, doorbells, VMOVPs within a table and
/// between tables, CPUs that come and go, and tables that are made late.
const AGAIN: &[Again] = &[
    Again::kind("gicv41-counts", "counts-direct-4k-qd1"),
    Again::kind("gicv41-strict-oversubscribed", "sched-oversubscribed").unkind(AFF3, STRICT),
    Again::kind("gicv41-listed-cpus", "cpus-out-and-back").unkind(TWO_ITSS, LISTED),
    Again::kind("gicv41-power-hotplug", "io-hotplug").unkind(AFF3, POWER),
    Again::kind("gicv41-uefi-counts", "counts-uefi"),
    Again::kind("gicv41-wake-4", "wake-4").unkind(AFF3, STRICT),
    Again::kind("gicv41-wake-1", "wake-1").long(),
    Again::kind("gicv41-twins", "twins").unkind("", SLOW).long(),
    Again::kind("gicv41-storm-doorbells", "storm-doorbells").long(),
    Again::kind("gicv41-storm-io", "storm-io").long(),
    Again::kind("gicv41-fio", "io-fio-max").long(),
    Again::kind("gicv41-slow-fio", "io-fio-trapped-wfi").unkind("", SLOW).long(),
    Again::kind("gicv41-slow-oversubscribed", "sched-trapped-wfi").unkind(AFF3, SLOW).long(),
    Again::kind("gicv41-strict-rebind", "io-rebind").unkind("", STRICT).long(),
    Again::kind("gicv41-one-group-torture", "sched-torture").unkind(AFF3, ONE_GROUP).long(),
    Again::kind("gicv41-small-groups-torture", "sched-torture-debug").unkind(AFF3, SMALL_GROUPS).long(),
    Again::kind("gicv41-few-vpes", "sched-crowded").unkind("", FEW_VPES).long(),
    Again::kind("gicv41-listed-torture", "sched-torture").unkind(FOUR_ITSS, LISTED).long(),
    Again::kind("gicv41-two-itss-hotplug", "sched-hotplug").unkind(TWO_ITSS, STRICT).long(),
    Again::kind("gicv41-shared", "counts-shared").long(),
    Again::kind("gicv41-doorbells", "counts-doorbells").unkind("", STRICT).long(),
    Again::kind("gicv41-uefi-fio", "uefi-fio-acpi-8").unkind(AFF3, STRICT).long(),
    Again::kind("gicv41-uefi-same", "uefi-acpi-same").long(),
];

/// How the case `name` repeats another one, if it does.
pub fn again(name: &str) -> Option<&'static Again> {
    AGAIN.iter().find(|again| again.name == name)
}

/// Whether the case `name` runs with `--long` only.
pub fn is_long(name: &str) -> bool {
    again(name).is_some_and(|again| again.long) || cpus::is_long(name) || name == "gicv41-ipis-cpus"
}

/// The cases that repeat some of `others`.
pub fn cases_again(others: &[Case]) -> Vec<Case> {
    let repeated = |again: &Again| {
        let of = others.iter().find(|case| case.name == again.of).expect("a case of this name");
        Case { name: again.name, shows: of.shows, bare: of.bare, run: of.run }
    };
    AGAIN.iter().map(repeated).collect()
}

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, bare, run| Case { name, shows, bare, run };
    let mut cases = vec![
        case("gicv41-forbidden", "what the architecture forbids on a GICv4.1 is reported", false, forbidden::run),
        case("gicv41-boot", "dom0 boots, sleeps and does I/O on a GICv4.1 without a forbidden access", true, boots),
        case("gicv41-ipis", "an IPI of dom0 costs one exit to send and none to receive", false, ipis::running),
        case("gicv41-ipis-asleep", "IPIs wake vCPUs that sleep and move, by doorbell", false, ipis::asleep),
        case("gicv41-ipis-cpus", "CPUs go offline and come back with virtual SGIs pending", false, ipis::hotplug),
        case(
            "gicv41-lpis-stay",
            "LPIs left enabled, with tables in reserved memory: they are used",
            false,
            stuck_lpis::reserved,
        ),
        case("gicv41-lpis-lost", "the same with tables elsewhere: the machine has no LPIs", false, stuck_lpis::lost),
        case(
            "gicv41-kvm",
            "the GICv4.1 is one for KVM, too: vLPIs and vSGIs of a guest with a passed-through NVMe",
            false,
            kvm,
        ),
        case(
            "gicv41-beside-kvm",
            "dom0 takes at most as many exits for an I/O as a guest of KVM on the same machine",
            false,
            beside_kvm::run,
        ),
    ];
    cases.extend(cpus::cases());
    cases
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

/// The vLPIs and vSGIs that vPEs have acknowledged, from the trace.
fn acknowledged(lab: &Lab) -> Result<Vec<u64>, String> {
    let log = std::fs::read_to_string(lab.dir.join("guest.log")).map_err(|error| error.to_string())?;
    let taken = log.lines().filter(|line| line.starts_with("gicv3_vpe_acknowledge "));
    Ok(taken.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect())
}

/// The smallest LPI; vSGIs are below 16.
const LPI: u64 = 8192;

/// A CPU on which a guest of a guest does not take for ever: the default pointer authentication takes most of the time of an
/// emulated guest in an emulated host.
const KVM_CPU: &str = "max,pauth-impdef=on,sve=off,sme=off";

/// A machine with two CPUs that boots Linux with KVM without the hypervisor.
fn kvm_host(initrd: PathBuf) -> Machine {
    Machine {
        boot: Boot::Bare,
        initrd: Some(initrd),
        append: "console=ttyAMA0 kvm-arm.vgic_v4_enable=1".into(),
        smp: 2,
        cpu: KVM_CPU.into(),
        ..Machine::default()
    }
}

/// Linux with KVM without the hypervisor, as a check of the emulated GIC that does not depend on the hypervisor's driver.
fn kvm(lab: &Lab) -> Verdict {
    let initrd = setup::ensure_kvm().map_err(|failure| failure.text)?;
    let mut machine = kvm_host(initrd);
    machine.log = Some(lab.dir.join("guest.log"));
    machine.extra.extend(["-trace".into(), "gicv3_vpe_*".into()]);
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

    let taken = acknowledged(lab)?;
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
