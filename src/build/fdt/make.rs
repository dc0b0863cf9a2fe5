//! The device tree of a domU. It is made from nothing, since a domU has none of the host's devices.
//!
//! CPUs, one range of memory, a GICv3, the generic timer, PSCI by `hvc` and, if the domain has one, a PL011 with the
//! fixed clock that its binding requires. A domain that has PCI functions also gets a PCI host and the ITSs that take
//! their MSIs.

use crate::build::fdt::node::{
    EMPTY, LEVEL_HIGH, PPI, SPI, memory, node, reg, set, set_boot_args, set_cells, set_psci,
};
use crate::build::fdt::pci::{self, PciHostNode};
use crate::build::layout::domu::{DIST, ECAM, MAX_ITSS, RAM, UART, UART_IRQ, its, redists};
use crate::ids::{DeviceId, Intid, Mpidr};
use crate::platform::PciWindow;
use crate::util::range::Range;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use dtoolkit::model::{DeviceTree, DeviceTreeNode};

/// The phandle of the GIC's node, as Xen has it. It leaves low numbers, from which on `dtc` counts, to what is copied from a
/// partial tree.
pub const GIC: u32 = 65_000;
/// The phandle of the clock's node.
const CLOCK: u32 = GIC + 1;
/// Frequency of the PL011's clock in Hz, the same as on QEMU's `virt`. The emulated port has no baud rate.
const CLOCK_HZ: u32 = 24_000_000;

/// The phandle of the first ITS's node. Those of the others follow.
const ITS: u32 = GIC + 2;

/// Whether a phandle may be that of a node that EL2 makes.
#[must_use]
pub fn is_own_phandle(phandle: u32) -> bool {
    (GIC..ITS + MAX_ITSS as u32).contains(&phandle)
}

/// A PCI function that a domU has been given.
#[derive(Clone, Copy, Debug)]
pub struct GuestFunction {
    /// The requester ID by which the domain knows it.
    pub rid: u16,
    /// The domain's ITS that takes its MSIs, by its index.
    pub its: usize,
    /// The DeviceID of these MSIs.
    pub device: DeviceId,
}

/// The PCI host of a domU.
#[derive(Clone, Copy, Debug)]
pub struct GuestPci<'a> {
    /// The number of ITSs.
    pub itss: usize,
    /// The functions on its bus.
    pub functions: &'a [GuestFunction],
    /// The windows for BARs.
    pub windows: &'a [PciWindow],
    /// Whether DMA of the functions snoops the CPUs' caches.
    pub coherent: bool,
}

/// What is copied from the partial tree of a domU that has platform devices.
#[derive(Debug, Default)]
pub struct Partial {
    /// The phandle that its nodes have for the GIC.
    pub gic: Option<u32>,
    /// `/passthrough`, and `/aliases` if there is one.
    pub nodes: Vec<DeviceTreeNode>,
}

/// What the tree describes.
#[derive(Clone, Copy, Debug)]
pub struct DomuTree<'a> {
    /// The vCPUs' affinities, in order.
    pub vcpus: &'a [Mpidr],
    /// Size of the RAM in bytes.
    pub ram: u64,
    /// The command line.
    pub bootargs: &'a str,
    /// Where the guest sees its RAM disk.
    pub initrd: Option<Range>,
    /// Whether there is a serial port.
    pub uart: bool,
    /// The PPIs of CNTP and CNTV.
    pub timers: (Intid, Intid),
    /// The PCI host, if the domain has one.
    pub pci: Option<GuestPci<'a>>,
    /// What is copied from the domain's partial tree.
    pub partial: &'a Partial,
}

/// Makes the tree and returns it flattened.
#[must_use]
pub fn build_domu_fdt(plan: &DomuTree<'_>) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    let root = &mut tree.root;
    let phandle = plan.partial.gic.unwrap_or(GIC);
    set(root, "compatible", "linux,dummy-virt");
    set(root, "model", "Doorward domain");
    set_cells(root, 2, 2);
    set(root, "interrupt-parent", phandle);

    root.add_child(chosen(plan));
    root.add_child(memory(Range::new(RAM, plan.ram)));
    root.add_child(cpus(plan.vcpus));

    let mut psci = node("psci");
    set_psci(&mut psci);
    root.add_child(psci);

    let mut timer = node("timer");
    set(&mut timer, "compatible", "arm,armv8-timer");
    let ppi = |intid: Intid| [PPI, intid.0 - 16, LEVEL_HIGH];
    let (physical, virt) = plan.timers;
    // Interrupts are told apart by position. The first is the Secure timer's, which no domU has, but the binding
    // requires it.
    set(&mut timer, "interrupts", &[ppi(Intid(29)), ppi(physical), ppi(virt)].concat()[..]);
    set(&mut timer, "always-on", EMPTY);
    root.add_child(timer);

    let mut gic = node(format!("intc@{:x}", DIST.base.0));
    set(&mut gic, "compatible", "arm,gic-v3");
    set(&mut gic, "interrupt-controller", EMPTY);
    set(&mut gic, "#interrupt-cells", 3u32);
    set(&mut gic, "reg", reg(&[DIST, redists(plan.vcpus.len())]));
    set(&mut gic, "phandle", phandle);
    match &plan.pci {
        None => set(&mut gic, "#address-cells", 0u32),
        Some(host) => {
            set_cells(&mut gic, 2, 2);
            set(&mut gic, "ranges", EMPTY);
            for (index, phandle) in (0..host.itss).zip(ITS..) {
                gic.add_child(pci::its(its(index), phandle));
            }
        }
    }
    root.add_child(gic);
    if let Some(host) = &plan.pci {
        root.add_child(pci_host(host));
    }

    if plan.uart {
        let mut clock = node("apb-pclk");
        set(&mut clock, "compatible", "fixed-clock");
        set(&mut clock, "#clock-cells", 0u32);
        set(&mut clock, "clock-frequency", CLOCK_HZ);
        set(&mut clock, "phandle", CLOCK);
        root.add_child(clock);
        let mut uart = node(uart_name());
        set(&mut uart, "compatible", &["arm,pl011", "arm,primecell"][..]);
        set(&mut uart, "reg", reg(&[UART]));
        set(&mut uart, "interrupts", &[SPI, UART_IRQ.0 - 32, LEVEL_HIGH][..]);
        set(&mut uart, "clocks", &[CLOCK, CLOCK][..]);
        set(&mut uart, "clock-names", &["uartclk", "apb_pclk"][..]);
        root.add_child(uart);
    }
    for node in &plan.partial.nodes {
        root.add_child(node.clone());
    }
    tree.to_dtb()
}

fn pci_host(host: &GuestPci<'_>) -> DeviceTreeNode {
    let line = |function: &GuestFunction| [function.rid.into(), ITS + function.its as u32, function.device.0, 1];
    let msi_map: Vec<_> = host.functions.iter().map(line).collect();
    pci::pci_host(&PciHostNode {
        ecam: ECAM,
        buses: (0, 0),
        segment: 0,
        windows: host.windows,
        msi_map: &msi_map,
        msi_map_mask: u32::MAX,
        coherent: host.coherent,
    })
}

fn uart_name() -> String {
    format!("pl011@{:x}", UART.base.0)
}

fn chosen(plan: &DomuTree<'_>) -> DeviceTreeNode {
    let mut chosen = node("chosen");
    set_boot_args(&mut chosen, plan.bootargs, plan.initrd);
    if plan.uart {
        set(&mut chosen, "stdout-path", format!("/{}", uart_name()).as_str());
    }
    chosen
}

fn cpus(vcpus: &[Mpidr]) -> DeviceTreeNode {
    let mut cpus = node("cpus");
    set_cells(&mut cpus, 1, 0);
    for mpidr in vcpus {
        let mut cpu = node(format!("cpu@{:x}", mpidr.0));
        set(&mut cpu, "device_type", "cpu");
        set(&mut cpu, "compatible", "arm,armv8");
        // The affinity fits one cell: a domU's affinities are assigned from 0.0.0.0 on.
        set(&mut cpu, "reg", mpidr.0 as u32);
        set(&mut cpu, "enable-method", "psci");
        cpus.add_child(cpu);
    }
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::layout::domu::{PCI_MEM32, affinities};
    use crate::ids::{ItsId, Pa};
    use crate::platform::testing::{cells as cells_at, edited, set as set_at};
    use crate::platform::{Machine, PciWindowKind, fdt};
    use dtoolkit::Node;
    use dtoolkit::Property;
    use dtoolkit::fdt::Fdt;

    fn tree(vcpus: &[Mpidr], uart: bool) -> Vec<u8> {
        tree_with(vcpus, uart, None)
    }

    fn tree_with(vcpus: &[Mpidr], uart: bool, pci: Option<GuestPci<'_>>) -> Vec<u8> {
        build_domu_fdt(&DomuTree {
            vcpus,
            ram: 128 << 20,
            bootargs: "console=ttyAMA0 panic=1",
            initrd: Some(Range::new(Pa(0x4420_0000), 0x1235)),
            uart,
            timers: (Intid(30), Intid(27)),
            pci,
            partial: &Partial::default(),
        })
    }

    /// Reads the tree with the reader of host trees. The interrupts that only a hypervisor needs, and that the reader
    /// insists on, are added first.
    fn read_as_host(blob: &[u8]) -> alloc::boxed::Box<Machine> {
        let blob = edited(blob, |tree| {
            set_at(tree, "/intc@8000000", "interrupts", [1u32, 9, 4]);
            let mut timer = cells_at(tree, "/timer", "interrupts");
            timer.extend([1, 10, 4]);
            set_at(tree, "/timer", "interrupts", &timer[..]);
        });
        fdt::read(&blob).unwrap()
    }

    #[test]
    fn a_reader_of_the_tree_finds_the_memory_map_of_the_domain() {
        let vcpus = affinities(18);
        let machine = read_as_host(&tree(&vcpus, true));
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
    fn a_domain_with_pci_functions_has_a_pci_host_and_their_itss() {
        let window =
            PciWindow { kind: PciWindowKind::Mem32, prefetchable: false, cpu: PCI_MEM32, pci_base: PCI_MEM32.base.0 };
        let function = |rid, its, device| GuestFunction { rid, its, device: DeviceId(device) };
        let functions = [function(8, 0, 0x1_0018), function(16, 1, 0x20)];
        let pci = GuestPci { itss: 2, functions: &functions, windows: &[window], coherent: true };
        let machine = read_as_host(&tree_with(&affinities(2), true, Some(pci)));
        let itss: Vec<Range> = machine.gic.itss.iter().map(|its| its.control).collect();
        // The reader lists them by address.
        assert_eq!(itss, [its(0), its(1)]);
        let [host] = &machine.pci[..] else { panic!("one PCI host") };
        assert_eq!((host.ecam, host.buses, &host.windows[..]), (ECAM, (0, 0), &[window][..]));
        assert_eq!(host.device_id(8), Some((ItsId(0), DeviceId(0x1_0018))));
        assert_eq!(host.device_id(16), Some((ItsId(1), DeviceId(0x20))));
        assert_eq!(host.device_id(24), None);
    }

    #[test]
    fn nodes_of_a_partial_tree_are_copied_and_the_gic_has_the_phandle_that_they_use() {
        let mut device = node("rtc@9010000");
        set(&mut device, "compatible", "arm,pl031");
        set(&mut device, "interrupt-parent", 7u32);
        let mut passthrough = node("passthrough");
        passthrough.add_child(device);
        let partial = Partial { gic: Some(7), nodes: std::vec![passthrough] };
        let vcpus = affinities(1);
        let timers = (Intid(30), Intid(27));
        let (bootargs, initrd, pci) = ("", None, None);
        let plan =
            DomuTree { vcpus: &vcpus, ram: 128 << 20, bootargs, initrd, uart: true, timers, pci, partial: &partial };
        let blob = build_domu_fdt(&plan);
        let parsed = Fdt::new(&blob).unwrap();
        assert!(parsed.find_node("/passthrough/rtc@9010000").is_some());
        let phandle = |path, name| parsed.find_node(path).unwrap().property(name).unwrap().value().to_vec();
        assert_eq!(phandle("/intc@8000000", "phandle"), 7u32.to_be_bytes());
        assert_eq!(phandle("/", "interrupt-parent"), 7u32.to_be_bytes());
        assert!(is_own_phandle(GIC) && is_own_phandle(ITS + 3) && !is_own_phandle(ITS + 4) && !is_own_phandle(7));
    }

    #[test]
    fn the_end_of_the_ram_disk_is_exact() {
        let blob = tree(&affinities(1), true);
        let parsed = Fdt::new(&blob).unwrap();
        let chosen = parsed.find_node("/chosen").unwrap();
        let bytes = |name| chosen.property(name).unwrap().value().to_vec();
        assert_eq!(bytes("linux,initrd-start"), 0x4420_0000u64.to_be_bytes());
        assert_eq!(bytes("linux,initrd-end"), 0x4420_1235u64.to_be_bytes());
    }

    #[test]
    fn a_domain_without_serial_port_has_no_stdout_path() {
        let blob = tree(&affinities(1), false);
        let parsed = Fdt::new(&blob).unwrap();
        assert!(parsed.find_node("/pl011@9000000").is_none());
        assert!(parsed.find_node("/chosen").unwrap().property("stdout-path").is_none());
    }
}
