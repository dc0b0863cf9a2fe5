//! The device tree of a domain beside dom0: made from nothing, since such a domain has nothing of the host's.
//!
//! CPUs, one stretch of memory, a GICv3 without ITS, the generic timer, PSCI by `hvc` and, if it has one, a PL011 with
//! the fixed clock that the binding wants.

use crate::build::domu_layout::{DIST, RAM, UART, UART_IRQ, redists};
use crate::build::fdt::edit::set;
use crate::ids::{Intid, Mpidr};
use crate::util::range::Range;
use alloc::format;
use alloc::vec::Vec;
use dtoolkit::model::{DeviceTree, DeviceTreeNode};

/// The phandle of the GIC's node.
const GIC: u32 = 1;
/// The phandle of the clock's node.
const CLOCK: u32 = 2;
/// The clock of a PL011 that has none: what QEMU says.
const CLOCK_HZ: u32 = 24_000_000;

/// Interrupt specifiers (Linux, `arm,gic-v3.yaml`).
const SPI: u32 = 0;
const PPI: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// What the tree is to say.
#[derive(Clone, Copy, Debug)]
pub struct DomuTree<'a> {
    /// The vCPUs' affinities, in order.
    pub vcpus: &'a [Mpidr],
    /// Bytes of RAM.
    pub ram: u64,
    /// The command line.
    pub bootargs: &'a str,
    /// Where the guest sees its RAM disk.
    pub initrd: Option<Range>,
    /// Whether there is a serial port.
    pub uart: bool,
    /// The PPIs of CNTP and CNTV.
    pub timers: (Intid, Intid),
}

fn node(name: &str) -> DeviceTreeNode {
    DeviceTreeNode::new_unchecked(name)
}

fn wide(ranges: &[Range]) -> Vec<u64> {
    ranges.iter().flat_map(|range| [range.base.0, range.size]).collect()
}

/// 64-bit numbers, as cells.
fn cells(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// The tree, flattened.
#[must_use]
pub fn build_domu_fdt(plan: &DomuTree<'_>) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    let root = &mut tree.root;
    set(root, "compatible", "linux,dummy-virt");
    set(root, "model", "Doorward domain");
    set(root, "#address-cells", 2u32);
    set(root, "#size-cells", 2u32);
    set(root, "interrupt-parent", GIC);

    root.add_child(chosen(plan));
    let mut memory = node(&format!("memory@{:x}", RAM.0));
    set(&mut memory, "device_type", "memory");
    set(&mut memory, "reg", cells(&[RAM.0, plan.ram]));
    root.add_child(memory);
    root.add_child(cpus(plan.vcpus));

    let mut psci = node("psci");
    set(&mut psci, "compatible", &["arm,psci-1.0", "arm,psci-0.2"][..]);
    set(&mut psci, "method", "hvc");
    root.add_child(psci);

    let mut timer = node("timer");
    set(&mut timer, "compatible", "arm,armv8-timer");
    let ppi = |intid: Intid| [PPI, intid.0 - 16, LEVEL_HIGH];
    let (physical, virt) = plan.timers;
    // The first is the Secure one, which nobody has; its place is taken all the same.
    set(&mut timer, "interrupts", &[ppi(Intid(29)), ppi(physical), ppi(virt)].concat()[..]);
    set(&mut timer, "always-on", &[0u32; 0][..]);
    root.add_child(timer);

    let mut gic = node(&format!("intc@{:x}", DIST.base.0));
    set(&mut gic, "compatible", "arm,gic-v3");
    set(&mut gic, "interrupt-controller", &[0u32; 0][..]);
    set(&mut gic, "#interrupt-cells", 3u32);
    set(&mut gic, "#address-cells", 0u32);
    set(&mut gic, "reg", cells(&wide(&[DIST, redists(plan.vcpus.len())])));
    set(&mut gic, "phandle", GIC);
    root.add_child(gic);

    if plan.uart {
        let mut clock = node("apb-pclk");
        set(&mut clock, "compatible", "fixed-clock");
        set(&mut clock, "#clock-cells", 0u32);
        set(&mut clock, "clock-frequency", CLOCK_HZ);
        set(&mut clock, "phandle", CLOCK);
        root.add_child(clock);
        let mut uart = node(&uart_name());
        set(&mut uart, "compatible", &["arm,pl011", "arm,primecell"][..]);
        set(&mut uart, "reg", cells(&wide(&[UART])));
        set(&mut uart, "interrupts", &[SPI, UART_IRQ.0 - 32, LEVEL_HIGH][..]);
        set(&mut uart, "clocks", &[CLOCK, CLOCK][..]);
        set(&mut uart, "clock-names", &["uartclk", "apb_pclk"][..]);
        root.add_child(uart);
    }
    tree.to_dtb()
}

fn uart_name() -> alloc::string::String {
    format!("pl011@{:x}", UART.base.0)
}

fn chosen(plan: &DomuTree<'_>) -> DeviceTreeNode {
    let mut chosen = node("chosen");
    if !plan.bootargs.is_empty() {
        set(&mut chosen, "bootargs", plan.bootargs);
    }
    if plan.uart {
        set(&mut chosen, "stdout-path", format!("/{}", uart_name()).as_str());
    }
    if let Some(initrd) = plan.initrd {
        set(&mut chosen, "linux,initrd-start", cells(&[initrd.base.0]));
        set(&mut chosen, "linux,initrd-end", cells(&[initrd.end().0]));
    }
    chosen
}

fn cpus(vcpus: &[Mpidr]) -> DeviceTreeNode {
    let mut cpus = node("cpus");
    set(&mut cpus, "#address-cells", 1u32);
    set(&mut cpus, "#size-cells", 0u32);
    for mpidr in vcpus {
        let mut cpu = node(&format!("cpu@{:x}", mpidr.0));
        set(&mut cpu, "device_type", "cpu");
        set(&mut cpu, "compatible", "arm,armv8");
        // It fits: affinities are given out from 0.0.0.0 on.
        set(&mut cpu, "reg", mpidr.0 as u32);
        set(&mut cpu, "enable-method", "psci");
        cpus.add_child(cpu);
    }
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::domu_layout::affinities;
    use crate::ids::Pa;
    use crate::platform::fdt;
    use crate::platform::testing::{cells as cells_at, edited, set as set_at};
    use dtoolkit::Node;
    use dtoolkit::Property;
    use dtoolkit::fdt::Fdt;

    fn tree(vcpus: &[Mpidr], uart: bool) -> Vec<u8> {
        build_domu_fdt(&DomuTree {
            vcpus,
            ram: 128 << 20,
            bootargs: "console=ttyAMA0 panic=1",
            initrd: Some(Range::new(Pa(0x4420_0000), 0x1235)),
            uart,
            timers: (Intid(30), Intid(27)),
        })
    }

    /// With what only a hypervisor needs put in, the reader of host trees can check it.
    #[test]
    fn the_tree_describes_the_map_to_a_reader_of_trees() {
        let vcpus = affinities(18);
        let blob = edited(&tree(&vcpus, true), |tree| {
            set_at(tree, "/intc@8000000", "interrupts", [1u32, 9, 4]);
            let mut timer = cells_at(tree, "/timer", "interrupts");
            timer.extend([1, 10, 4]);
            set_at(tree, "/timer", "interrupts", &timer[..]);
        });
        let machine = fdt::read(&blob).unwrap();
        assert_eq!(machine.memory[..], [Range::new(Pa(0x4000_0000), 128 << 20)]);
        assert!(machine.cpus.iter().map(|cpu| cpu.mpidr).eq(vcpus.iter().copied()));
        assert_eq!((machine.gic.dist, machine.gic.redists[..].to_vec()), (DIST, std::vec![redists(18)]));
        assert!(machine.gic.itss.is_empty());
        assert_eq!((machine.timer.phys, machine.timer.virt), (Intid(30), Intid(27)));
        assert_eq!(machine.psci, Some(crate::platform::Conduit::Hvc));
        let uart = machine.uart.unwrap();
        assert_eq!((uart.regs, uart.irq), (UART, Some(UART_IRQ)));
        assert_eq!(machine.bootargs.as_str(), "console=ttyAMA0 panic=1");
    }

    #[test]
    fn the_ram_disk_is_named_with_its_exact_end() {
        let blob = tree(&affinities(1), true);
        let parsed = Fdt::new(&blob).unwrap();
        let chosen = parsed.find_node("/chosen").unwrap();
        let bytes = |name| chosen.property(name).unwrap().value().to_vec();
        assert_eq!(bytes("linux,initrd-start"), 0x4420_0000u64.to_be_bytes());
        assert_eq!(bytes("linux,initrd-end"), 0x4420_1235u64.to_be_bytes());
    }

    #[test]
    fn without_a_serial_port_nothing_points_at_one() {
        let blob = tree(&affinities(1), false);
        let parsed = Fdt::new(&blob).unwrap();
        assert!(parsed.find_node("/pl011@9000000").is_none());
        assert!(parsed.find_node("/chosen").unwrap().property("stdout-path").is_none());
    }
}
