//! dom0's device tree: the host's, edited.
//!
//! dom0 gets every device that the hypervisor does not keep, so its tree is the host's with the smallest change that
//! makes it true: CPUs, memory, PSCI and `/chosen` are written anew, the GIC becomes the virtual one, and what EL2
//! keeps or hides is taken out together with whatever points at it.
//!
//! | part | what becomes of it |
//! |---|---|
//! | GIC | distributor, one redistributor region; no maintenance interrupt, no stride, no message-based SPIs; ITSs stay |
//! | `/cpus` | a node for each vCPU; no `cpu-map`, caches or idle states |
//! | memory | dom0's banks; `/memreserve/` and fixed reservations go (that memory is not dom0's), dynamic ones stay |
//! | `/chosen` | command line and RAM disk; `stdout-path` and seeds stay; modules, EFI and kdump properties go |
//! | PSCI | 1.0 by `hvc`, without the function numbers of 0.1 |
//! | timer | without the EL2 timers |
//! | SMMUs, PMU, SPE, TRBE, trace units, OP-TEE, NUMA | gone, with `iommus` and `iommu-map` |
//!
//! A device whose `memory-region` is a fixed reservation is disabled: its memory is not mapped into dom0.

use super::removal::{Gone, drop_broken_paths, drop_reservations, take_out, tidy};
use crate::ids::Mpidr;
use crate::platform::{Machine, MachineError, fdt};
use crate::util::range::Range;
use crate::vgic::VGICR_SIZE;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property, ToPropertyValue};

/// The largest tree that Linux takes.
const LARGEST: usize = crate::build::layout::DTB_MAX as usize;

/// What the tree is to say.
#[derive(Clone, Copy, Debug)]
pub struct Dom0Plan<'a> {
    /// The vCPUs' affinities, in order.
    pub vcpus: &'a [Mpidr],
    /// The memory banks.
    pub memory: &'a [Range],
    /// Where the virtual redistributors are: see [`vgicr_region`].
    pub gicr: Range,
    /// The command line.
    pub bootargs: &'a str,
    /// The RAM disk.
    pub initrd: Option<Range>,
}

/// Why there is no tree for dom0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dom0FdtError {
    /// The host's tree is damaged.
    Host(MachineError),
    /// No host region has room for the virtual redistributors.
    NoRedistributorRoom {
        /// How many are wanted.
        vcpus: usize,
    },
    /// The host's tree has no GIC node where it was when the machine was read, or [`Dom0Plan::gicr`] is not at the
    /// start of one of its regions.
    Gic,
    /// A range does not fit into the root's `#address-cells` and `#size-cells`.
    Cells(Range),
    /// The result is larger than a kernel accepts.
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
}

impl fmt::Display for Dom0FdtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Dom0FdtError::Host(error) => write!(f, "{error}"),
            Dom0FdtError::NoRedistributorRoom { vcpus } => {
                write!(f, "no redistributor region of the GIC has room for dom0's {vcpus} virtual ones")
            }
            Dom0FdtError::Gic => f.write_str("the GIC's node in the device tree does not describe the GIC in use"),
            Dom0FdtError::Cells(range) => {
                write!(f, "the memory at {range} does not fit into the cells of the device tree's root")
            }
            Dom0FdtError::TooLarge { size } => {
                write!(f, "dom0's device tree has {size} bytes, more than the {LARGEST} that a kernel accepts")
            }
        }
    }
}

impl core::error::Error for Dom0FdtError {}

impl From<MachineError> for Dom0FdtError {
    fn from(error: MachineError) -> Dom0FdtError {
        Dom0FdtError::Host(error)
    }
}

/// The place of `vcpus` virtual redistributors: the start of the first host region that holds them all.
///
/// # Errors
///
/// [`Dom0FdtError::NoRedistributorRoom`].
pub fn vgicr_region(machine: &Machine, vcpus: usize) -> Result<Range, Dom0FdtError> {
    let size = VGICR_SIZE.saturating_mul(vcpus as u64);
    let region = machine.gic.redists.iter().find(|region| region.size >= size);
    region.map(|region| Range::new(region.base, size)).ok_or(Dom0FdtError::NoRedistributorRoom { vcpus })
}

/// Edits the host's tree into dom0's. `machine` is what [`fdt::read`] made of the same blob.
///
/// # Errors
///
/// [`Dom0FdtError`], each as a sentence.
pub fn build_dom0_fdt(host: &[u8], machine: &Machine, plan: &Dom0Plan<'_>) -> Result<Vec<u8>, Dom0FdtError> {
    let mut tree = DeviceTree::from_fdt(&fdt::parse(host)?);
    let mut gone = Gone::default();

    take_out(&mut tree.root, true, &mut gone);
    write_memory(&mut tree, plan)?;
    drop_reservations(&mut tree, &mut gone);
    write_gic(&mut tree.root, machine, plan)?;
    write_cpus(&mut tree.root, plan, &mut gone);
    write_psci(&mut tree.root);
    write_chosen(&mut tree.root, plan);
    for_each(&mut tree.root, &mut |node| tidy(node, &gone));
    drop_broken_paths(&mut tree);

    let blob = tree.to_dtb();
    if blob.len() > LARGEST {
        return Err(Dom0FdtError::TooLarge { size: blob.len() });
    }
    Ok(blob)
}

/// dom0's banks, as nodes behind what is there.
fn write_memory(tree: &mut DeviceTree, plan: &Dom0Plan<'_>) -> Result<(), Dom0FdtError> {
    tree.memory_reservations.clear();
    let (address, size) = cells_of(&tree.root);
    for &bank in plan.memory {
        let mut reg = Vec::new();
        push_number(&mut reg, bank.base.0, address).ok_or(Dom0FdtError::Cells(bank))?;
        push_number(&mut reg, bank.size, size).ok_or(Dom0FdtError::Cells(bank))?;
        let mut node = DeviceTreeNode::new_unchecked(format!("memory@{:x}", bank.base.0));
        set(&mut node, "device_type", "memory");
        set(&mut node, "reg", reg);
        tree.root.add_child(node);
    }
    Ok(())
}

/// The GIC as dom0 sees it. Addresses are copied as cells, since the node may be behind a bus that translates.
fn write_gic(root: &mut DeviceTreeNode, machine: &Machine, plan: &Dom0Plan<'_>) -> Result<(), Dom0FdtError> {
    let region =
        machine.gic.redists.iter().position(|region| region.base == plan.gicr.base).ok_or(Dom0FdtError::Gic)?;
    let cells = cells_of(root);
    let mut written = false;
    edit_gic(root, cells, &mut |node, (address_cells, size_cells)| {
        if written {
            return;
        }
        let (address, entry) = (4 * address_cells, 4 * (address_cells + size_cells));
        let Some(reg) = node.property("reg").map(|reg| reg.value().to_vec()) else { return };
        let (Some(dist), Some(gicr)) =
            (reg.get(..entry), reg.get(entry * (1 + region)..).and_then(|at| at.get(..address)))
        else {
            return;
        };
        let mut new = dist.to_vec();
        new.extend_from_slice(gicr);
        if push_number(&mut new, plan.gicr.size, size_cells).is_none() {
            return;
        }
        set(node, "reg", new);
        for property in [
            "#redistributor-regions",
            "redistributor-stride",
            "interrupts",
            "interrupts-extended",
            "mbi-ranges",
            "mbi-alias",
            "msi-controller",
        ] {
            node.remove_property(property);
        }
        written = true;
    });
    written.then_some(()).ok_or(Dom0FdtError::Gic)
}

/// Calls `edit` with GICv3 nodes that are available, and the cells that their `reg` is in.
fn edit_gic(
    node: &mut DeviceTreeNode,
    cells: (usize, usize),
    edit: &mut dyn FnMut(&mut DeviceTreeNode, (usize, usize)),
) {
    for child in node.children_mut() {
        if !matches!(string(child, "status"), None | Some("okay" | "ok")) {
            continue;
        }
        if child.is_compatible("arm,gic-v3") || child.is_compatible("arm,gic-v4") {
            edit(child, cells);
        }
        let own = cells_of(child);
        edit_gic(child, own, edit);
    }
}

/// A node for each vCPU, with the host CPU's `compatible` and phandle of the same place in the list: other nodes
/// (thermal zones, interrupt partitions) refer to CPUs by phandle.
fn write_cpus(root: &mut DeviceTreeNode, plan: &Dom0Plan<'_>, gone: &mut Gone) {
    let old = root.remove_child("cpus");
    let mut host: Vec<&DeviceTreeNode> = Vec::new();
    if let Some(old) = &old {
        gone.add(old);
        host.extend(old.children().filter(|child| string(child, "device_type") == Some("cpu")));
    }
    let address_cells = if plan.vcpus.iter().any(|mpidr| mpidr.0 >> 32 != 0) { 2 } else { 1 };
    let mut cpus = DeviceTreeNode::new_unchecked("cpus");
    set(&mut cpus, "#address-cells", address_cells as u32);
    set(&mut cpus, "#size-cells", 0u32);
    for (index, mpidr) in plan.vcpus.iter().enumerate() {
        let mut cpu = DeviceTreeNode::new_unchecked(format!("cpu@{:x}", mpidr.0));
        set(&mut cpu, "device_type", "cpu");
        let like = host.get(index).copied();
        match like.and_then(|like| like.property("compatible")) {
            Some(compatible) => set(&mut cpu, "compatible", compatible.value()),
            None => set(&mut cpu, "compatible", "arm,armv8"),
        }
        let mut reg = Vec::new();
        // It fits: affinities have 40 bits, and 32 where there is one cell.
        let _ = push_number(&mut reg, mpidr.0, address_cells);
        set(&mut cpu, "reg", reg);
        set(&mut cpu, "enable-method", "psci");
        if let Some(phandle) = like.and_then(|like| cell(like, "phandle")) {
            set(&mut cpu, "phandle", phandle);
            gone.phandles.retain(|&other| other != phandle);
        }
        cpus.add_child(cpu);
    }
    root.add_child(cpus);
}

/// PSCI by HVC. The host's node keeps its name, or there is a new one.
fn write_psci(root: &mut DeviceTreeNode) {
    let is_psci = |node: &DeviceTreeNode| {
        node.compatible().is_some_and(|mut words| words.any(|word| word.starts_with("arm,psci")))
    };
    let mut new = DeviceTreeNode::new_unchecked("psci");
    set(&mut new, "compatible", &["arm,psci-1.0", "arm,psci-0.2"][..]);
    set(&mut new, "method", "hvc");
    let mut found = false;
    for_each(root, &mut |node| {
        if is_psci(node) {
            let phandle = cell(node, "phandle");
            let name = node.name().to_string();
            *node = DeviceTreeNode::new_unchecked(name);
            for property in new.properties() {
                node.add_property(property.clone());
            }
            if let Some(phandle) = phandle {
                set(node, "phandle", phandle);
            }
            found = true;
        }
    });
    if !found {
        root.add_child(new);
    }
}

/// Command line and RAM disk. Properties that describe the host's boot (EFI tables, kdump, Xen) go.
fn write_chosen(root: &mut DeviceTreeNode, plan: &Dom0Plan<'_>) {
    let mut chosen = root.remove_child("chosen").unwrap_or_else(|| DeviceTreeNode::new_unchecked("chosen"));
    let kept = ["stdout-path", "linux,stdout-path", "stdin-path", "rng-seed", "kaslr-seed", "linux,pci-probe-only"];
    let leaving: Vec<String> = chosen
        .properties()
        .map(|property| property.name().to_string())
        .filter(|name| !kept.contains(&name.as_str()))
        .collect();
    for name in leaving {
        chosen.remove_property(&name);
    }
    let leaving: Vec<String> = chosen
        .children()
        .filter(|child| {
            child.compatible().is_some_and(|mut words| {
                words.any(|word| word.starts_with("multiboot,") || word.starts_with("xen,") || word == "boot,module")
            })
        })
        .map(|child| child.name().to_string())
        .collect();
    for name in leaving {
        chosen.remove_child(&name);
    }
    if !plan.bootargs.is_empty() {
        set(&mut chosen, "bootargs", plan.bootargs);
    }
    if let Some(initrd) = plan.initrd {
        // Two cells each, whatever the root's cells are.
        set(&mut chosen, "linux,initrd-start", initrd.base.0.to_be_bytes());
        set(&mut chosen, "linux,initrd-end", initrd.end().0.to_be_bytes());
    }
    root.add_child(chosen);
}

/// Calls `edit` with every node below `node`.
fn for_each(node: &mut DeviceTreeNode, edit: &mut dyn FnMut(&mut DeviceTreeNode)) {
    for child in node.children_mut() {
        edit(child);
        for_each(child, edit);
    }
}

pub(crate) fn set(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

pub(crate) fn cell(node: &DeviceTreeNode, name: &str) -> Option<u32> {
    node.property(name)?.value_as::<u32>().ok()
}

pub(crate) fn string<'n>(node: &'n DeviceTreeNode, name: &str) -> Option<&'n str> {
    node.property(name)?.value_as::<&str>().ok()
}

/// The cells in which a node's children give addresses and sizes.
pub(crate) fn cells_of(node: &DeviceTreeNode) -> (usize, usize) {
    let cells = |name, default| cell(node, name).unwrap_or(default).min(4) as usize;
    (cells("#address-cells", 2), cells("#size-cells", 1))
}

/// Appends a number of `cells` cells; `None` when it does not fit.
fn push_number(to: &mut Vec<u8>, number: u64, cells: usize) -> Option<()> {
    let wide = u128::from(number).to_be_bytes();
    let (rest, kept) = wide.split_at_checked(16usize.checked_sub(4 * cells)?)?;
    rest.iter().all(|&byte| byte == 0).then(|| to.extend_from_slice(kept))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Intid, Pa};
    use crate::platform::testing::{DOM0, GICV3, cells, edited, node, set as set_at};
    use crate::platform::{Conduit, Cpu};
    use alloc::vec;
    use dtoolkit::fdt::Fdt;

    const M: u64 = 1 << 20;

    fn r(base: u64, size: u64) -> Range {
        Range::new(Pa(base), size)
    }

    fn plan<'a>(vcpus: &'a [Mpidr], memory: &'a [Range]) -> Dom0Plan<'a> {
        Dom0Plan {
            vcpus,
            memory,
            gicr: r(0x080a_0000, VGICR_SIZE * vcpus.len() as u64),
            bootargs: "console=ttyAMA0 quiet",
            initrd: Some(r(0x4c00_0000, 5)),
        }
    }

    const TWO: [Mpidr; 2] = [Mpidr(0), Mpidr(1)];
    const BANKS: [Range; 2] = [r_const(0x4020_0000, 64 * M), r_const(0x1_0000_0000, 2 << 30)];

    const fn r_const(base: u64, size: u64) -> Range {
        Range::new(Pa(base), size)
    }

    fn build(host: &[u8], plan: &Dom0Plan<'_>) -> Vec<u8> {
        build_dom0_fdt(host, &fdt::read(host).unwrap(), plan).unwrap()
    }

    fn model(blob: &[u8]) -> DeviceTree {
        DeviceTree::from_fdt(&Fdt::new(blob).unwrap())
    }

    /// A guest's tree lacks what only a hypervisor needs; with that put back, the reader of host trees can check it.
    fn read_as_host(blob: &[u8]) -> Machine {
        let whole = edited(blob, |tree| {
            set_at(tree, "/intc@8000000", "interrupts", [1u32, 9, 4]);
            let mut timer = cells(tree, "/timer", "interrupts");
            timer.extend([1, 10, 4]);
            set_at(tree, "/timer", "interrupts", &timer[..]);
        });
        fdt::read(&whole).unwrap()
    }

    fn every_cell(node: &DeviceTreeNode, seen: &mut Vec<u32>) {
        for property in node.properties() {
            if property.name() != "reg" && property.name() != "rng-seed" && property.name() != "kaslr-seed" {
                seen.extend(property.value().as_chunks::<4>().0.iter().map(|&cell| u32::from_be_bytes(cell)));
            }
        }
        node.children().for_each(|child| every_cell(child, seen));
    }

    #[test]
    fn the_result_describes_the_machine_that_dom0_sees() {
        let host = fdt::read(DOM0).unwrap();
        let blob = build(DOM0, &plan(&TWO, &BANKS));
        let seen = read_as_host(&blob);
        assert_eq!(seen.memory[..], BANKS);
        assert!(seen.reserved.is_empty() && seen.modules.is_empty() && seen.smmus.is_empty());
        assert_eq!(seen.cpus[..], TWO.map(|mpidr| Cpu { mpidr, enabled: true }));
        assert_eq!(seen.psci, Some(Conduit::Hvc));
        assert_eq!(seen.gic.dist, host.gic.dist);
        assert_eq!(seen.gic.redists[..], [r(0x080a_0000, 0x4_0000)]);
        assert_eq!(seen.gic.itss, host.gic.itss);
        assert_eq!((seen.uart, seen.bootargs.as_str()), (host.uart, "console=ttyAMA0 quiet"));
        let mut pci = host.pci.clone();
        pci[0].iommu_map.clear();
        assert_eq!(seen.pci, pci);
        assert_eq!(seen.timer.phys_s, Some(Intid(29)));
    }

    #[test]
    fn dom0_has_every_device_but_the_smmu() {
        let list = |blob: &[u8]| {
            let mut paths = Vec::new();
            fdt::for_each_device(blob, |device| paths.push(device.path.to_string())).unwrap();
            paths.sort();
            paths
        };
        let mut expected = list(DOM0);
        expected.retain(|path| path != "/smmuv3@9050000");
        assert_eq!(list(&build(DOM0, &plan(&TWO, &BANKS))), expected);
    }

    #[test]
    fn nothing_points_at_what_is_gone() {
        let tree = model(&build(DOM0, &plan(&TWO, &BANKS)));
        for path in ["/pmu", "/smmuv3@9050000", "/memory@40000000", "/cpus/cpu-map", "/cpus/cpu@2"] {
            assert!(tree.find_node(path).is_none(), "{path} is still there");
        }
        let mut seen = Vec::new();
        every_cell(&tree.root, &mut seen);
        // SMMU, CPU 3, CPU 2; and as a check of the check, the GIC.
        assert!(!seen.iter().any(|cell| [0x8007, 0x8001, 0x8002].contains(cell)));
        assert!(seen.contains(&0x8005));
        assert!(tree.find_node("/pcie@10000000").unwrap().property("iommu-map").is_none());
        assert_eq!(cell(tree.find_node("/cpus/cpu@1").unwrap(), "phandle"), Some(0x8003));
    }

    #[test]
    fn gic_timer_psci_and_chosen_are_dom0s() {
        let blob = edited(DOM0, |tree| {
            set_at(tree, "/intc@8000000", "redistributor-stride", [0u32, 0x4_0000]);
            set_at(tree, "/intc@8000000", "mbi-ranges", [64u32, 32]);
            set_at(tree, "/chosen", "linux,uefi-system-table", [0u32, 1]);
            set_at(tree, "/chosen", "xen,xen-bootargs", "sched=null");
        });
        let mut tree = model(&build(&blob, &plan(&TWO, &BANKS)));
        let gic = tree.find_node("/intc@8000000").unwrap();
        for property in ["interrupts", "#redistributor-regions", "redistributor-stride", "mbi-ranges"] {
            assert!(gic.property(property).is_none(), "{property}");
        }
        assert!(gic.property("interrupt-controller").is_some() && gic.child("its").is_some());
        assert_eq!(cells(&mut tree, "/timer", "interrupts"), [1, 13, 4, 1, 14, 4, 1, 11, 4]);
        let psci = tree.find_node("/psci").unwrap();
        assert_eq!(psci.properties().map(|p| p.name().to_string()).collect::<Vec<_>>(), ["compatible", "method"]);
        let chosen = tree.find_node("/chosen").unwrap();
        assert!(chosen.children().next().is_none());
        let mut names: Vec<_> = chosen.properties().map(|p| p.name().to_string()).collect();
        names.sort_unstable();
        let expected = ["bootargs", "kaslr-seed", "linux,initrd-end", "linux,initrd-start", "rng-seed", "stdout-path"];
        assert_eq!(names, expected);
        assert_eq!(chosen.property("linux,initrd-end").unwrap().value_as::<u64>(), Ok(0x4c00_0005));
    }

    #[test]
    fn a_timer_with_names_loses_the_hyp_ones() {
        let blob = edited(DOM0, |tree| {
            let names = ["sec-phys", "phys", "virt", "hyp-phys", "hyp-virt"];
            set_at(tree, "/timer", "interrupt-names", &names[..]);
        });
        let tree = model(&build(&blob, &plan(&TWO, &BANKS)));
        let timer = tree.find_node("/timer").unwrap();
        let names = timer.property("interrupt-names").unwrap().value_as::<Vec<&str>>().unwrap();
        assert_eq!(names, ["sec-phys", "phys", "virt"]);
        assert_eq!(timer.property("interrupts").unwrap().value().len(), 36);
    }

    #[test]
    fn vcpus_may_have_aff3_and_be_more_than_the_cpus() {
        let vcpus: Vec<Mpidr> = (0..6).map(|n| Mpidr((n & 1) << 32 | n)).collect();
        let blob = build(DOM0, &plan(&vcpus, &BANKS));
        let seen = read_as_host(&blob);
        assert!(seen.cpus.iter().map(|cpu| cpu.mpidr).eq(vcpus.iter().copied()));
        assert_eq!(seen.gic.redists[..], [r(0x080a_0000, 0xc_0000)]);
        let mut tree = model(&blob);
        assert_eq!(cells(&mut tree, "/cpus/cpu@100000005", "reg"), [1, 5]);
    }

    #[test]
    fn fixed_reservations_go_and_take_their_devices_with_them() {
        let blob = edited(DOM0, |tree| {
            tree.memory_reservations.push(dtoolkit::memreserve::MemoryReservation::new(0x4100_0000, 0x1000));
            let mut reserved = DeviceTreeNode::new("reserved-memory").unwrap();
            set(&mut reserved, "#address-cells", 2u32);
            set(&mut reserved, "#size-cells", 2u32);
            set(&mut reserved, "ranges", vec![0u8; 0]);
            let mut fixed = DeviceTreeNode::new("fb@42000000").unwrap();
            set(&mut fixed, "reg", [0u32, 0x4200_0000, 0, 0x10_0000]);
            set(&mut fixed, "phandle", 0x9000u32);
            let mut dynamic = DeviceTreeNode::new("cma").unwrap();
            set(&mut dynamic, "size", [0u32, 0x100_0000]);
            set(&mut dynamic, "phandle", 0x9001u32);
            reserved.add_child(fixed);
            reserved.add_child(dynamic);
            tree.root.add_child(reserved);
            set_at(tree, "/pl031@9010000", "memory-region", 0x9000u32);
            set_at(tree, "/pl061@9030000", "memory-region", 0x9001u32);
            set_at(tree, "/aliases", "smmu0", "/smmuv3@9050000");
        });
        let blob = build(&blob, &plan(&TWO, &BANKS));
        let tree = model(&blob);
        assert!(tree.memory_reservations.is_empty());
        assert!(tree.find_node("/reserved-memory/cma").is_some());
        assert!(tree.find_node("/reserved-memory/fb@42000000").is_none());
        assert_eq!(string(tree.find_node("/pl031@9010000").unwrap(), "status"), Some("disabled"));
        assert!(tree.find_node("/pl061@9030000").unwrap().property("status").is_none());
        let aliases: Vec<_> = tree.find_node("/aliases").unwrap().properties().map(|p| p.name().to_string()).collect();
        assert_eq!(aliases, ["serial0"]);
    }

    #[test]
    fn the_virtual_redistributors_take_the_first_region_with_room() {
        // The GIC behind a bus, with a small region before the large one.
        let blob = edited(GICV3, |tree| {
            let gic = tree.root.remove_child("intc@8000000").unwrap();
            let mut bus = DeviceTreeNode::new("soc").unwrap();
            set(&mut bus, "#address-cells", 1u32);
            set(&mut bus, "#size-cells", 1u32);
            set(&mut bus, "ranges", [0u32, 0x10, 0, 0x4000_0000]);
            bus.add_child(gic);
            tree.root.add_child(bus);
            let reg = [0x800_0000u32, 0x1_0000, 0x900_0000, 0x2_0000, 0xa00_0000, 0x20_0000, 0xb00_0000, 0x1000];
            set_at(tree, "/soc/intc@8000000", "reg", reg);
            set_at(tree, "/soc/intc@8000000", "#redistributor-regions", 2u32);
            node(tree, "/soc/intc@8000000").remove_child("its@8080000");
            for property in ["msi-map", "msi-map-mask"] {
                node(tree, "/pcie@10000000").remove_property(property);
            }
        });
        let machine = fdt::read(&blob).unwrap();
        let gicr = vgicr_region(&machine, 2).unwrap();
        assert_eq!(gicr, r(0x10_0a00_0000, 0x4_0000));
        assert_eq!(vgicr_region(&machine, 1).unwrap().base, Pa(0x10_0900_0000));
        assert_eq!(vgicr_region(&machine, 17), Err(Dom0FdtError::NoRedistributorRoom { vcpus: 17 }));
        let blob = build_dom0_fdt(&blob, &machine, &Dom0Plan { gicr, ..plan(&TWO, &BANKS) }).unwrap();
        let mut tree = model(&blob);
        let reg = cells(&mut tree, "/soc/intc@8000000", "reg");
        assert_eq!(reg, [0x800_0000, 0x1_0000, 0xa00_0000, 0x4_0000]);
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let machine = fdt::read(DOM0).unwrap();
        let wrong = Dom0Plan { gicr: r(0x080c_0000, 0x4_0000), ..plan(&TWO, &BANKS) };
        assert_eq!(build_dom0_fdt(DOM0, &machine, &wrong), Err(Dom0FdtError::Gic));
        assert_eq!(
            build_dom0_fdt(&DOM0[..100], &machine, &wrong),
            Err(Dom0FdtError::Host(MachineError::Truncated { promised: DOM0.len() as u32, present: 100 }))
        );
        let mut cells = Vec::new();
        assert_eq!(push_number(&mut cells, 1 << 32, 1), None);
        assert_eq!(push_number(&mut cells, 0x1_0000_0002, 2), Some(()));
        assert_eq!(cells, [0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(push_number(&mut cells, 0, 5), None);
    }
}
