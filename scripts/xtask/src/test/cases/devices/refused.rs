//! Functions that cannot be given to a domU: dom0 runs, the domU does not, and one line says why.

use super::{linux, uefi};
use crate::domu::TreeEdit;
use crate::paths;
use crate::qemu::{Disk, Machine};
use crate::test::{Case, Lab, Verdict};

/// The requester ID of the first disk for domUs.
const DISK: u16 = 3 << 3;

/// The cases of this topic.
pub(super) fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("refuse-pci-no-smmu", "without an SMMU dom0 runs with a warning, and no function is given away", |lab| {
            let machine = with_disk(lab);
            let properties = machine.properties.replace(",iommu=smmuv3", "");
            let warning = "devices reach all memory by DMA";
            refused(
                lab,
                Machine { properties, ..machine },
                &[warning, "not built: 0000:00:03.0: no SMMU limits its DMA"],
            )
        }),
        case("refuse-pci-iommu-off", "the same with iommu=off", |lab| {
            let warning = "in bypass: DMA is unprotected";
            let machine = Machine { hv: "iommu=off".into(), ..with_disk(lab) };
            refused(lab, machine, &[warning, "not built: 0000:00:03.0: no SMMU limits its DMA"])
        }),
        case("refuse-pci-no-stream", "a function without a StreamID", |lab| {
            let machine = Machine { edits: vec![TreeEdit::NoStream(DISK)], ..with_disk(lab) };
            refused(lab, machine, &["not built: 0000:00:03.0: it has no StreamID"])
        }),
        case("refuse-pci-dom0-acpi", "a dom0 with ACPI tables, which may place BARs anywhere", |lab| {
            let Machine { domus, domu_disks, .. } = with_disk(lab);
            let mut machine = Machine { domus, domu_disks, ..uefi::acpi(lab, 4, "") };
            machine.append = machine.append.replace("dw.test=fio", "dw.test=boot");
            machine.make_disk_image().map_err(|failure| failure.text)?;
            refused(lab, machine, &["not built: 0000:00:03.0: dom0 has ACPI tables"])
        }),
        case("refuse-pci-nothing", "a function that does not exist", |lab| {
            let mut machine = with_disk(lab);
            machine.domus[0].pci = vec!["0000:00:1d.0".into()];
            refused(lab, machine, &["not built: 0000:00:1d.0: "])
        }),
        case("refuse-pci-no-reset", "a function that cannot be reset", |lab| {
            let mut machine = with_disk(lab);
            machine.domus[0].pci = vec![super::hostile::EDU.into()];
            machine.extra.extend(super::hostile::flags());
            refused(lab, machine, &["not built: 0000:00:08.0: it cannot be reset"])
        }),
    ]
}

/// dom0, and a domU that gets a disk.
fn with_disk(lab: &Lab) -> Machine {
    let domus = vec![linux("boot", "", 1, 0)];
    let domu_disks = vec![Disk::Scratch(paths::domu_disk())];
    Machine { domus, domu_disks, ..lab.linux("boot", "") }
}

/// Checks that dom0 boots, that the hypervisor logs each of these texts once, and that the domU does not start.
fn refused(lab: &Lab, mut machine: Machine, texts: &[&str]) -> Verdict {
    machine.hv += " dom0_max_vcpus=2";
    let transcript = lab.linux_run(&machine, 120)?;
    for text in texts {
        let lines: Vec<&str> =
            transcript.lines.iter().map(|(_, line)| line.trim()).filter(|line| line.contains(text)).collect();
        let [line] = lines[..] else { return Err(format!("{} lines with `{text}`, not one", lines.len())) };
        println!("   {line}");
    }
    match transcript.lines.iter().find(|(_, line)| line.starts_with("(d1) ")) {
        None => Ok(()),
        Some((_, line)) => Err(format!("the domU runs: `{line}`")),
    }
}
