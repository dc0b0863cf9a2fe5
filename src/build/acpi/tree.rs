//! A device tree made from nothing but a [`Machine`]: `dom0_acpi=off`.
//!
//! It describes what dom0 can use without AML: no platform devices, no legacy PCI interrupts (MSIs are described by
//! `msi-map`), and PCI windows only where the user has named them. DMA on servers snoops caches (SBSA), so PCI hosts
//! are coherent.

use crate::build::acpi::places::Places;
use crate::build::fdt::edit::Dom0Plan;
use crate::build::fdt::node::{
    EMPTY, LEVEL_HIGH, PPI, SPI, memory, node, ports_node, reg, set, set_boot_args, set_cells, set_psci,
};
use crate::build::fdt::pci::{PciHostNode, cut_windows, its, pci_host};
use crate::ids::ItsId;
use crate::platform::{Machine, PciHost};
use crate::util::range::Range;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use dtoolkit::model::{DeviceTree, DeviceTreeNode};

/// The GIC's phandle. Those of the ITSs follow.
const GIC: u32 = 1;

/// Makes the tree and returns it flattened.
#[must_use]
pub fn build(machine: &Machine, plan: &Dom0Plan<'_>, places: &Places) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    let root = &mut tree.root;
    set_cells(root, 2, 2);
    set(root, "compatible", "doorward,dom0");
    set(root, "interrupt-parent", GIC);
    root.add_child(chosen(machine, plan, places));
    for &bank in plan.memory {
        root.add_child(memory(bank));
    }
    root.add_child(cpus(plan));
    let mut psci = node("psci");
    set_psci(&mut psci);
    root.add_child(psci);
    root.add_child(timer(machine));
    root.add_child(gic(machine, plan, places));
    let its_is_there =
        |its: ItsId| machine.gic.itss.get(its.index()).is_some_and(|its| !plan.absent_itss.contains(&its.control.base));
    for host in &machine.pci {
        root.add_child(pci(host, &its_is_there));
    }
    cut_windows(root, plan.given_bars);
    if let Some((regs, irq)) = places.console {
        let mut uart = node(uart_name(regs));
        // Unlike a PL011, the subset of it that SBSA describes needs no clocks.
        set(&mut uart, "compatible", "arm,sbsa-uart");
        set(&mut uart, "reg", reg(&[regs]));
        set(&mut uart, "interrupts", [SPI, irq.0.saturating_sub(32), LEVEL_HIGH]);
        set(&mut uart, "current-speed", 115_200u32);
        root.add_child(uart);
    }
    if let Some((regs, irq)) = plan.ports {
        let mut device = ports_node(regs);
        set(&mut device, "reg", reg(&[regs]));
        set(&mut device, "interrupts", [SPI, irq.0.saturating_sub(32), LEVEL_HIGH]);
        root.add_child(device);
    }
    tree.to_dtb()
}

fn chosen(machine: &Machine, plan: &Dom0Plan<'_>, places: &Places) -> DeviceTreeNode {
    let mut chosen = node("chosen");
    set_boot_args(&mut chosen, plan.bootargs, plan.initrd);
    if let Some((regs, _)) = places.console {
        set(&mut chosen, "stdout-path", format!("/{}", uart_name(regs)).as_str());
    }
    // EL2's console may be a PCI function. dom0 must not move its BAR, so it is told to move none.
    let in_window =
        |uart: Range| machine.pci.iter().any(|host| host.windows.iter().any(|window| window.cpu.overlaps(uart)));
    if machine.uart.is_some_and(|uart| in_window(uart.regs)) {
        set(&mut chosen, "linux,pci-probe-only", 1u32);
    }
    chosen
}

fn cpus(plan: &Dom0Plan<'_>) -> DeviceTreeNode {
    let mut cpus = node("cpus");
    set_cells(&mut cpus, 2, 0);
    for mpidr in plan.vcpus {
        let mut cpu = node(format!("cpu@{:x}", mpidr.0));
        set(&mut cpu, "device_type", "cpu");
        set(&mut cpu, "compatible", "arm,armv8");
        set(&mut cpu, "reg", mpidr.0.to_be_bytes());
        set(&mut cpu, "enable-method", "psci");
        cpus.add_child(cpu);
    }
    cpus
}

fn timer(machine: &Machine) -> DeviceTreeNode {
    let ppis = &machine.timer;
    let mut names = Vec::new();
    let mut interrupts = Vec::new();
    for (name, intid) in [("sec-phys", ppis.phys_s), ("phys", Some(ppis.phys)), ("virt", Some(ppis.virt))] {
        let Some(intid) = intid else { continue };
        names.push(name);
        for cell in [PPI, intid.0.saturating_sub(16), LEVEL_HIGH] {
            interrupts.extend(cell.to_be_bytes());
        }
    }
    let mut timer = node("timer");
    set(&mut timer, "compatible", "arm,armv8-timer");
    set(&mut timer, "interrupts", interrupts);
    set(&mut timer, "interrupt-names", &names[..]);
    set(&mut timer, "always-on", EMPTY);
    timer
}

fn gic(machine: &Machine, plan: &Dom0Plan<'_>, places: &Places) -> DeviceTreeNode {
    let mut gic = node(format!("interrupt-controller@{:x}", machine.gic.dist.base.0));
    set(&mut gic, "compatible", "arm,gic-v3");
    set_cells(&mut gic, 2, 2);
    set(&mut gic, "ranges", EMPTY);
    set(&mut gic, "reg", reg(&[machine.gic.dist, places.gicr]));
    set(&mut gic, "#interrupt-cells", 3u32);
    set(&mut gic, "interrupt-controller", EMPTY);
    set(&mut gic, "phandle", GIC);
    let itss = machine.gic.itss.iter().enumerate();
    for (index, frames) in itss.filter(|(_, its)| !plan.absent_itss.contains(&its.control.base)) {
        gic.add_child(its(frames.control, its_phandle(index)));
    }
    gic
}

fn its_phandle(index: usize) -> u32 {
    GIC + 1 + u32::try_from(index).unwrap_or(0)
}

fn pci(host: &PciHost, its_is_there: &dyn Fn(ItsId) -> bool) -> DeviceTreeNode {
    let lines = host.msi_map.iter().filter(|line| its_is_there(line.target));
    let msi_map: Vec<_> =
        lines.map(|line| [line.rid_base, its_phandle(line.target.index()), line.out_base, line.length]).collect();
    pci_host(&PciHostNode {
        ecam: host.ecam,
        buses: host.buses,
        segment: host.segment,
        windows: &host.windows,
        msi_map: &msi_map,
        msi_map_mask: host.msi_map_mask,
        coherent: true,
    })
}

fn uart_name(regs: Range) -> String {
    format!("serial@{:x}", regs.base.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::acpi::places::places;
    use crate::ids::{Intid, Mpidr, Pa};
    use crate::platform::acpi::testing::{GICV4, Memory, graviton3};
    use crate::platform::testing::{cells as cells_at, edited, set as set_at};
    use crate::platform::{Conduit, fdt, windows};
    use alloc::boxed::Box;

    const BANKS: [Range; 2] = [Range::new(Pa(0x4020_0000), 64 << 20), Range::new(Pa(0x1_0000_0000), 2 << 30)];
    const POOL: Range = Range::new(Pa(0xb000_0000), 32 << 20);

    /// Reads dom0's tree with the reader of host trees. The interrupts that only a hypervisor needs, and that the
    /// reader insists on, are added first.
    fn read_as_host(machine: &Machine, vcpus: &[Mpidr]) -> (Box<Machine>, Places) {
        let places = places(machine, vcpus.len(), POOL).unwrap();
        let initrd = Some(Range::new(Pa(0x4100_0000), 5));
        let plan = Dom0Plan {
            vcpus,
            memory: &BANKS,
            gicr: places.gicr,
            absent_itss: &[],
            given_bars: &[],
            given_devices: &[],
            ports: Some((Range::new(Pa(0xb000_1000), 0x1000), Intid(288))),
            bootargs: "quiet",
            initrd,
        };
        let blob = build(machine, &plan, &places);
        let mut devices = Vec::new();
        fdt::for_each_device(&blob, |device| {
            if device.is_compatible("virtio,mmio") {
                devices.push((device.regs.to_vec(), device.spis.iter().map(|spi| spi.intid).collect::<Vec<_>>()));
            }
        })
        .unwrap();
        assert_eq!(devices, [([Range::new(Pa(0xb000_1000), 0x1000)].to_vec(), [Intid(288)].to_vec())]);
        let gic = format!("/interrupt-controller@{:x}", machine.gic.dist.base.0);
        let whole = edited(&blob, |tree| {
            set_at(tree, &gic, "interrupts", [1u32, 9, 4]);
            let mut timer = cells_at(tree, "/timer", "interrupts");
            timer.extend([1, 10, 4]);
            set_at(tree, "/timer", "interrupts", &timer[..]);
            let names: &[&str] = if timer.len() == 9 {
                &["phys", "virt", "hyp-phys"]
            } else {
                &["sec-phys", "phys", "virt", "hyp-phys"]
            };
            set_at(tree, "/timer", "interrupt-names", names);
        });
        (fdt::read(&whole).unwrap(), places)
    }

    #[test]
    fn the_tree_describes_the_same_machine_as_the_acpi_tables() {
        let mut machine = Memory::of(GICV4).read().unwrap();
        machine.bootargs.push_str("pci_windows=0:io:0x3eff0000+0x10000,0:mem32:0x10000000+0x2eff0000");
        windows::apply(&mut machine).unwrap();
        let vcpus: Vec<_> = machine.cpus.iter().map(|cpu| cpu.mpidr).collect();
        let (seen, _) = read_as_host(&machine, &vcpus);
        assert_eq!(seen.memory[..], BANKS);
        assert_eq!(seen.cpus, machine.cpus);
        assert_eq!(seen.psci, Some(Conduit::Hvc));
        assert_eq!(seen.gic.dist, machine.gic.dist);
        assert_eq!(seen.gic.redists[..], [Range::new(Pa(0x80a_0000), 0x8_0000)]);
        assert_eq!(seen.gic.itss, machine.gic.itss);
        assert_eq!(seen.timer, machine.timer);
        assert_eq!(seen.uart, machine.uart);
        assert!(seen.smmus.is_empty());
        let (host, original) = (&seen.pci[0], &machine.pci[0]);
        assert_eq!((host.ecam, host.segment, host.buses), (original.ecam, original.segment, original.buses));
        assert_eq!((&host.windows, &host.msi_map), (&original.windows, &original.msi_map));
        assert!(host.iommu_map.is_empty());
        assert_eq!(seen.bootargs.as_str(), "quiet");
    }

    #[test]
    fn an_its_that_could_not_be_brought_up_is_not_in_the_tree() {
        let machine = Memory::of(GICV4).read().unwrap();
        let vcpus = [Mpidr(0)];
        let places = places(&machine, 1, POOL).unwrap();
        let whole = Dom0Plan {
            vcpus: &vcpus,
            memory: &BANKS,
            gicr: places.gicr,
            absent_itss: &[],
            given_bars: &[],
            given_devices: &[],
            ports: Some((Range::new(Pa(0xb000_1000), 0x1000), Intid(288))),
            bootargs: "",
            initrd: None,
        };
        let names = |plan: &Dom0Plan<'_>| {
            let blob = build(&machine, plan, &places);
            let has = |name: &[u8]| blob.windows(name.len()).any(|text| text == name);
            (has(b"arm,gic-v3-its\0"), has(b"msi-map\0"))
        };
        assert_eq!(names(&whole), (true, true));
        let absent = [machine.gic.itss[0].control.base];
        assert_eq!(names(&Dom0Plan { absent_itss: &absent, ..whole }), (false, false));
    }

    #[test]
    fn the_tree_of_a_graviton3_keeps_affinities_segment_and_device_ids_and_has_a_pl011() {
        let mut machine = Memory::with(&graviton3()).read().unwrap();
        machine.bootargs.push_str("pci_windows=1:mem32:0xe0000000+0x20000000,1:mem64:0x1e000000000+0x2000000000");
        windows::apply(&mut machine).unwrap();
        let vcpus: Vec<_> = machine.cpus.iter().map(|cpu| cpu.mpidr).collect();
        let (seen, places) = read_as_host(&machine, &vcpus);
        assert_eq!(seen.cpus, machine.cpus);
        assert_eq!(seen.pci[0].segment, 1);
        assert_eq!(seen.pci[0].device_id(0x2400), machine.pci[0].device_id(0x2400));
        let uart = seen.uart.unwrap();
        assert_eq!((uart.kind, uart.irq), (crate::platform::UartKind::Pl011, machine.uart.unwrap().irq));
        assert_eq!(Some(uart.regs), places.console.map(|(regs, _)| regs));
        assert!(POOL.covers(uart.regs));
        assert_eq!(seen.timer, machine.timer);
    }

    #[test]
    fn dom0_moves_no_bar_if_el2s_console_is_a_pci_function() {
        let mut machine = Memory::with(&graviton3()).read().unwrap();
        let vcpus = [Mpidr(0)];
        let places = places(&machine, 1, POOL).unwrap();
        let plan = Dom0Plan {
            vcpus: &vcpus,
            memory: &BANKS,
            gicr: places.gicr,
            absent_itss: &[],
            given_bars: &[],
            given_devices: &[],
            ports: Some((Range::new(Pa(0xb000_1000), 0x1000), Intid(288))),
            bootargs: "",
            initrd: None,
        };
        let probe_only = |machine: &Machine| {
            let blob = build(machine, &plan, &places);
            let fdt = fdt::parse(&blob).unwrap();
            let chosen = dtoolkit::Node::child(&fdt.root(), "chosen").unwrap();
            dtoolkit::Node::property(&chosen, "linux,pci-probe-only").is_some()
        };
        assert!(!probe_only(&machine));
        machine.bootargs.push_str("pci_windows=1:mem32:0xe0000000+0x20000000");
        windows::apply(&mut machine).unwrap();
        assert!(probe_only(&machine));
    }
}
