//! dom0's device tree: the host's, edited.
//!
//! dom0 gets every device that the hypervisor does not keep, so its tree is the host's with as few changes as possible:
//! CPUs, memory, PSCI and `/chosen` are written anew, the GIC node describes the virtual GIC, and devices that EL2
//! keeps or hides are removed together with every reference to them.
//!
//! | part | in dom0's tree |
//! |---|---|
//! | GIC | distributor, one redistributor region, the ITSs; no maintenance interrupt, stride or message-based SPIs |
//! | `/cpus` | a node for each vCPU; no `cpu-map`, caches or idle states |
//! | memory | dom0's banks; no `/memreserve/` and fixed reservations, whose memory is not dom0's; dynamic ones stay |
//! | `/chosen` | dom0's command line and RAM disk, the host's `stdout-path` and seeds; not modules, EFI or kdump |
//! | PSCI | 1.0 by `hvc`, without the function numbers of 0.1 |
//! | timer | without the EL2 timers |
//! | console device with ports | added |
//! | SMMUs, PMU, SPE, TRBE, trace units, OP-TEE, NUMA | removed, with `iommus` and `iommu-map` |
//!
//! The devices that domUs get are disabled. A device whose `memory-region` is a fixed reservation is disabled: its memory is not mapped into dom0.

use crate::build::fdt::kept::{disable_neighbours, disable_unused_pci_hosts};
use crate::build::fdt::node::{
    LEVEL_HIGH, SPI, cell, cells_of, for_each, node, ports_node, push_number, set, set_boot_args, set_cells, set_psci,
    string,
};
use crate::build::fdt::pci::cut_windows;
use crate::build::fdt::removal::{
    Removed, remove_broken_paths, remove_fixed_reservations, remove_hidden, remove_itss, remove_maps_without_devices,
    remove_references,
};
use crate::ids::{Intid, Mpidr, Pa};
use crate::platform::{Machine, MachineError, fdt};
use crate::util::range::Range;
use crate::vgic::VGICR_SIZE;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

/// Size in bytes of the largest tree that Linux accepts.
const LARGEST: usize = crate::build::layout::DTB_MAX as usize;

/// Alignment of the virtual devices' addresses.
pub(crate) const FRAME: u64 = 0x1_0000;

/// What dom0's description says, besides what is taken from the host's.
#[derive(Clone, Copy, Debug)]
pub struct Dom0Plan<'a> {
    /// The vCPUs' affinities, in order.
    pub vcpus: &'a [Mpidr],
    /// The memory banks.
    pub memory: &'a [Range],
    /// The virtual redistributors: see [`vgicr_region`].
    pub gicr: Range,
    /// The control frames of the ITSs that could not be brought up, which dom0 does not get.
    pub absent_itss: &'a [Pa],
    /// The BARs of the PCI functions that domUs get: dom0 may place nothing there.
    pub given_bars: &'a [Range],
    /// The paths of the devices that domUs get: they are disabled.
    pub given_devices: &'a [String],
    /// The registers and the interrupt of the console device with ports, if dom0 has one.
    pub ports: Option<(Range, Intid)>,
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
    /// The host's tree has no GIC node that matches the [`Machine`], or [`Dom0Plan::gicr`] is not at the start of one
    /// of the GIC's redistributor regions.
    Gic,
    /// A range does not fit into the root's `#address-cells` and `#size-cells`.
    Cells(Range),
    /// The tree is larger than a kernel accepts.
    TooLarge {
        /// The size of the tree in bytes.
        size: usize,
    },
}

impl fmt::Display for Dom0FdtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Dom0FdtError::Host(error) => write!(f, "{error}"),
            Dom0FdtError::NoRedistributorRoom { vcpus } => {
                write!(f, "no redistributor region of the GIC has room for {vcpus} virtual redistributors")
            }
            Dom0FdtError::Gic => f.write_str("the GIC node of the host's tree does not describe the GIC in use"),
            Dom0FdtError::Cells(range) => {
                write!(f, "memory {range} does not fit into the cells of the tree's root")
            }
            Dom0FdtError::TooLarge { size } => {
                write!(f, "the tree has {size} bytes, more than the {LARGEST} that a kernel accepts")
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

/// Returns the place of `vcpus` virtual redistributors: the start of the first host region that holds them all.
///
/// # Errors
///
/// [`Dom0FdtError::NoRedistributorRoom`].
pub fn vgicr_region(machine: &Machine, vcpus: usize) -> Result<Range, Dom0FdtError> {
    let size = VGICR_SIZE.saturating_mul(vcpus as u64);
    let region = machine.gic.redists.iter().find(|region| region.size >= size);
    region.map(|region| Range::new(region.base, size)).ok_or(Dom0FdtError::NoRedistributorRoom { vcpus })
}

/// Like [`vgicr_region`]. If no region has room, the place is in `own`, which is memory that EL2 keeps for good: after its
/// first 64 KiB, which are left for other virtual devices.
///
/// # Errors
///
/// [`Dom0FdtError::NoRedistributorRoom`] if `own` is too small as well.
pub fn vgicr_place(machine: &Machine, vcpus: usize, own: Range) -> Result<Range, Dom0FdtError> {
    vgicr_region(machine, vcpus).or_else(|error| {
        let start = Pa(own.base.0.next_multiple_of(FRAME) + FRAME);
        let region = Range::new(start, VGICR_SIZE.saturating_mul(vcpus as u64));
        if own.covers(region) { Ok(region) } else { Err(error) }
    })
}

/// Edits the host's tree into dom0's. `machine` is the result of [`fdt::read`] for the same blob.
///
/// # Errors
///
/// [`Dom0FdtError`].
pub fn build_dom0_fdt(host: &[u8], machine: &Machine, plan: &Dom0Plan<'_>) -> Result<Vec<u8>, Dom0FdtError> {
    let mut tree = DeviceTree::from_fdt(&fdt::parse(host)?);
    let mut removed = Removed::none_of(&tree.root);

    disable_neighbours(&mut tree, host, machine)?;
    disable_unused_pci_hosts(&mut tree, host, machine)?;
    for path in plan.given_devices {
        if let Some(node) = tree.find_node_mut(path) {
            set(node, "status", "disabled");
        }
    }
    remove_hidden(&mut tree.root, true, &mut removed);
    write_memory(&mut tree, plan)?;
    remove_fixed_reservations(&mut tree, &mut removed);
    let is_absent = |node: usize| {
        let skipped = machine.gic.skipped_itss;
        let is_skipped = |node: usize| node >= 64 || skipped >> node & 1 != 0;
        let number = (0..node).filter(|&node| !is_skipped(node)).count();
        is_skipped(node) || machine.gic.itss.get(number).is_some_and(|its| plan.absent_itss.contains(&its.control.base))
    };
    remove_itss(&mut tree.root, &mut 0, &is_absent, &mut removed);
    write_gic(&mut tree.root, machine, plan)?;
    write_cpus(&mut tree.root, plan, &mut removed);
    cut_windows(&mut tree.root, plan.given_bars);
    write_psci(&mut tree.root, &mut removed);
    write_ports(&mut tree.root, plan)?;
    write_chosen(&mut tree.root, plan);
    for_each(&mut tree.root, &mut |node| remove_references(node, &removed));
    for_each(&mut tree.root, &mut remove_maps_without_devices);
    remove_broken_paths(&mut tree);

    let blob = tree.to_dtb();
    if blob.len() > LARGEST {
        return Err(Dom0FdtError::TooLarge { size: blob.len() });
    }
    Ok(blob)
}

/// Appends a node for each of dom0's banks, in the cells of the host's root.
fn write_memory(tree: &mut DeviceTree, plan: &Dom0Plan<'_>) -> Result<(), Dom0FdtError> {
    tree.memory_reservations.clear();
    let (address, size) = cells_of(&tree.root);
    for &bank in plan.memory {
        let mut reg = Vec::new();
        push_number(&mut reg, bank.base.0, address).ok_or(Dom0FdtError::Cells(bank))?;
        push_number(&mut reg, bank.size, size).ok_or(Dom0FdtError::Cells(bank))?;
        let mut node = node(format!("memory@{:x}", bank.base.0));
        set(&mut node, "device_type", "memory");
        set(&mut node, "reg", reg);
        tree.root.add_child(node);
    }
    Ok(())
}

/// Makes the GIC's node describe the virtual GIC. Addresses are copied as cells, since the node may be behind a bus
/// that translates addresses. Redistributors that are in none of the GIC's regions get a way through these buses.
fn write_gic(root: &mut DeviceTreeNode, machine: &Machine, plan: &Dom0Plan<'_>) -> Result<(), Dom0FdtError> {
    let (gicr, dist) = (plan.gicr, machine.gic.dist);
    let is_own = machine.gic.redists.iter().any(|region| region.base == gicr.base);
    let is_elsewhere = !gicr.overlaps(dist) && !machine.gic.redists.iter().any(|region| region.overlaps(gicr));
    if !is_own && !is_elsewhere {
        return Err(Dom0FdtError::Gic);
    }
    let cells = cells_of(root);
    let mut written = false;
    let mut fits = true;
    edit_gic(root, cells, &mut |node, (address_cells, size_cells)| {
        if written {
            return;
        }
        let (address, entry) = (4 * address_cells, 4 * (address_cells + size_cells));
        let Some(reg) = node.property("reg").map(|reg| reg.value().to_vec()) else { return };
        let Some(first) = reg.get(..entry).filter(|_| address != 0) else { return };
        let number =
            |entry: &[u8]| entry.iter().take(address).fold(0, |number: u64, &byte| number << 8 | u64::from(byte));
        // A bus translates all of the GIC in the same way.
        let wanted = number(first).wrapping_add(gicr.base.0.wrapping_sub(dist.base.0));
        let mut new = first.to_vec();
        let own = reg.chunks_exact(entry).skip(1).find(|entry| is_own && number(entry) == wanted);
        fits = match own {
            Some(own) => {
                new.extend(own.iter().take(address));
                true
            }
            None => push_number(&mut new, gicr.base.0, address_cells).is_some(),
        } && push_number(&mut new, gicr.size, size_cells).is_some();
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
    if !written {
        return Err(Dom0FdtError::Gic);
    }
    if !fits || is_elsewhere && open_way(root, cells.0, true, gicr).is_none() {
        return Err(Dom0FdtError::Cells(gicr));
    }
    Ok(())
}

/// Whether a node is that of the GIC in use, or may be.
fn is_gic(node: &DeviceTreeNode) -> bool {
    let is_available = matches!(string(node, "status"), None | Some("okay" | "ok"));
    is_available && (node.is_compatible("arm,gic-v3") || node.is_compatible("arm,gic-v4"))
}

/// Adds `range` to the `ranges` of the buses above the GIC that translate addresses, untranslated. `up` is the number of
/// cells of an address above `bus`. Returns whether the GIC is below, or `None` if the cells are too few.
fn open_way(bus: &mut DeviceTreeNode, up: usize, is_root: bool, range: Range) -> Option<bool> {
    let (address, size) = cells_of(bus);
    let mut is_above = bus.children().any(is_gic);
    for child in bus.children_mut() {
        is_above |= open_way(child, address, false, range)?;
    }
    let translates = bus.property("ranges").map(|ranges| ranges.value().to_vec()).filter(|ranges| !ranges.is_empty());
    if let Some(mut ranges) = translates.filter(|_| is_above && !is_root) {
        push_number(&mut ranges, range.base.0, address)?;
        push_number(&mut ranges, range.base.0, up)?;
        push_number(&mut ranges, range.size, size)?;
        set(bus, "ranges", ranges);
    }
    Some(is_above)
}

/// Calls `edit` with every available GICv3 node and the numbers of cells of addresses and sizes in its `reg`.
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

/// Replaces the CPUs by one node for each vCPU. vCPU n has the `compatible` and the phandle of the host's CPU n, since
/// other nodes (thermal zones, interrupt partitions) refer to CPUs by phandle.
fn write_cpus(root: &mut DeviceTreeNode, plan: &Dom0Plan<'_>, removed: &mut Removed) {
    let old = root.remove_child("cpus");
    let mut host: Vec<&DeviceTreeNode> = Vec::new();
    if let Some(old) = &old {
        removed.add(old);
        host.extend(old.children().filter(|child| string(child, "device_type") == Some("cpu")));
    }
    let address_cells = if plan.vcpus.iter().any(|mpidr| mpidr.0 >> 32 != 0) { 2 } else { 1 };
    let mut cpus = node("cpus");
    set_cells(&mut cpus, address_cells as u32, 0);
    for (index, mpidr) in plan.vcpus.iter().enumerate() {
        let mut cpu = node(format!("cpu@{:x}", mpidr.0));
        set(&mut cpu, "device_type", "cpu");
        let is_same = |node: &&DeviceTreeNode| {
            let number = |reg: &[u8]| reg.iter().fold(0, |number: u64, &byte| number << 8 | u64::from(byte));
            node.property("reg").is_some_and(|reg| number(reg.value()) == mpidr.0)
        };
        let like = host.iter().copied().find(is_same).or_else(|| host.get(index).copied());
        match like.and_then(|like| like.property("compatible")) {
            Some(compatible) => set(&mut cpu, "compatible", compatible.value()),
            None => set(&mut cpu, "compatible", "arm,armv8"),
        }
        let mut reg = Vec::new();
        // The number fits: affinities have at most 40 bits, and at most 32 if there is one cell.
        let _ = push_number(&mut reg, mpidr.0, address_cells);
        set(&mut cpu, "reg", reg);
        set(&mut cpu, "enable-method", "psci");
        if let Some(phandle) = like.and_then(|like| cell(like, "phandle")) {
            set(&mut cpu, "phandle", phandle);
            removed.phandles.retain(|&other| other != phandle);
        }
        // Linux refuses a thermal zone that names CPUs without it.
        if let Some(count) = like.and_then(|like| cell(like, "#cooling-cells")) {
            set(&mut cpu, "#cooling-cells", count);
        }
        cpus.add_child(cpu);
    }
    root.add_child(cpus);
}

/// Makes every PSCI node ask for HVC, keeping its name and phandle, but not the power domains in it. Adds one if there is none.
fn write_psci(root: &mut DeviceTreeNode, removed: &mut Removed) {
    let is_psci = |node: &DeviceTreeNode| {
        node.compatible().is_some_and(|mut words| words.any(|word| word.starts_with("arm,psci")))
    };
    let mut found = false;
    for_each(root, &mut |psci| {
        if is_psci(psci) {
            let phandle = cell(psci, "phandle");
            // The power domains of CPUs.
            psci.children().for_each(|child| removed.add(child));
            *psci = node(psci.name());
            set_psci(psci);
            if let Some(phandle) = phandle {
                set(psci, "phandle", phandle);
            }
            found = true;
        }
    });
    if !found {
        let mut psci = node("psci");
        set_psci(&mut psci);
        root.add_child(psci);
    }
}

/// Adds the console device with ports.
fn write_ports(root: &mut DeviceTreeNode, plan: &Dom0Plan<'_>) -> Result<(), Dom0FdtError> {
    let Some((regs, irq)) = plan.ports else { return Ok(()) };
    let mut gic = None;
    edit_gic(root, cells_of(root), &mut |node, _| {
        let interrupt_cells = cell(node, "#interrupt-cells").unwrap_or(3);
        gic = gic.or(cell(node, "phandle").map(|phandle| (phandle, interrupt_cells)));
    });
    // Without a phandle, nothing refers to the GIC but as the only interrupt controller there is.
    let (phandle, interrupt_cells) = gic.map_or((None, 3), |(phandle, cells)| (Some(phandle), cells as usize));
    let (address, size) = cells_of(root);
    let mut reg = Vec::new();
    push_number(&mut reg, regs.base.0, address).ok_or(Dom0FdtError::Cells(regs))?;
    push_number(&mut reg, regs.size, size).ok_or(Dom0FdtError::Cells(regs))?;
    let specifier = [SPI, irq.0.saturating_sub(32), LEVEL_HIGH].into_iter().chain(core::iter::repeat(0));
    let interrupts: Vec<u8> = specifier.take(interrupt_cells.clamp(3, 8)).flat_map(u32::to_be_bytes).collect();
    let mut device = ports_node(regs);
    set(&mut device, "reg", reg);
    set(&mut device, "interrupts", interrupts);
    if let Some(phandle) = phandle {
        set(&mut device, "interrupt-parent", phandle);
    }
    root.add_child(device);
    Ok(())
}

/// Writes command line and RAM disk into `/chosen`. Properties that describe the host's boot (EFI tables, kdump, Xen)
/// are removed.
fn write_chosen(root: &mut DeviceTreeNode, plan: &Dom0Plan<'_>) {
    let mut chosen = root.remove_child("chosen").unwrap_or_else(|| node("chosen"));
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
                words.any(|word| {
                    // The memory of a framebuffer that the boot loader has left is not dom0's.
                    let others = ["boot,module", "simple-framebuffer"];
                    word.starts_with("multiboot,") || word.starts_with("xen,") || others.contains(&word)
                })
            })
        })
        .map(|child| child.name().to_string())
        .collect();
    for name in leaving {
        chosen.remove_child(&name);
    }
    set_boot_args(&mut chosen, plan.bootargs, plan.initrd);
    root.add_child(chosen);
}

#[cfg(test)]
mod tests;
