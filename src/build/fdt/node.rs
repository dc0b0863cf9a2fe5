//! Helpers to read and write device tree nodes, shared by all the trees that EL2 makes or edits for guests.

use crate::util::range::Range;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use dtoolkit::model::{DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, Property, ToPropertyValue};

/// First cell of a GIC interrupt specifier (Linux, `arm,gic-v3.yaml`): an SPI, numbered from 0.
pub(crate) const SPI: u32 = 0;
/// First cell of a GIC interrupt specifier: a PPI, numbered from 0.
pub(crate) const PPI: u32 = 1;
/// Third cell of a GIC interrupt specifier: level-sensitive, active high.
pub(crate) const LEVEL_HIGH: u32 = 4;
/// Value of a property that only has to be present.
pub(crate) const EMPTY: [u8; 0] = [];

/// Returns a node without properties.
pub(crate) fn node(name: impl Into<String>) -> DeviceTreeNode {
    DeviceTreeNode::new_unchecked(name)
}

/// Adds a property, or replaces its value.
pub(crate) fn set(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

/// Sets `#address-cells` and `#size-cells`.
pub(crate) fn set_cells(node: &mut DeviceTreeNode, address: u32, size: u32) {
    set(node, "#address-cells", address);
    set(node, "#size-cells", size);
}

/// Sets the properties of `/chosen` that tell a kernel its command line and RAM disk. An empty command line and an
/// absent RAM disk leave the node as it is.
pub(crate) fn set_boot_args(chosen: &mut DeviceTreeNode, bootargs: &str, initrd: Option<Range>) {
    if !bootargs.is_empty() {
        set(chosen, "bootargs", bootargs);
    }
    if let Some(initrd) = initrd {
        // Kernels take one cell or two here, whatever the root's `#address-cells`.
        set(chosen, "linux,initrd-start", initrd.base.0.to_be_bytes());
        set(chosen, "linux,initrd-end", initrd.end().0.to_be_bytes());
    }
}

/// Returns the value of a property of one cell.
pub(crate) fn cell(node: &DeviceTreeNode, name: &str) -> Option<u32> {
    node.property(name)?.value_as::<u32>().ok()
}

/// Returns the value of a property that is one string.
pub(crate) fn string<'n>(node: &'n DeviceTreeNode, name: &str) -> Option<&'n str> {
    node.property(name)?.value_as::<&str>().ok()
}

/// Returns the numbers of cells in which a node's children give addresses and sizes, at most 4 each.
pub(crate) fn cells_of(node: &DeviceTreeNode) -> (usize, usize) {
    let cells = |name, default| cell(node, name).unwrap_or(default).min(4) as usize;
    (cells("#address-cells", 2), cells("#size-cells", 1))
}

/// Appends a number in `cells` cells. Returns `None`, and appends nothing, if the number does not fit or there are more
/// than 4 cells.
pub(crate) fn push_number(to: &mut Vec<u8>, number: u64, cells: usize) -> Option<()> {
    let wide = u128::from(number).to_be_bytes();
    let (rest, kept) = wide.split_at_checked(16usize.checked_sub(4 * cells)?)?;
    rest.iter().all(|&byte| byte == 0).then(|| to.extend_from_slice(kept))
}

/// Returns the value of `reg` for ranges with two cells each for address and size.
pub(crate) fn reg(ranges: &[Range]) -> Vec<u8> {
    ranges.iter().flat_map(|range| [range.base.0, range.size]).flat_map(u64::to_be_bytes).collect()
}

/// Returns the node of a memory bank below a root with two cells each for address and size.
pub(crate) fn memory(bank: Range) -> DeviceTreeNode {
    let mut memory = node(format!("memory@{:x}", bank.base.0));
    set(&mut memory, "device_type", "memory");
    set(&mut memory, "reg", reg(&[bank]));
    memory
}

/// Returns the node of a console device with ports, without registers and interrupt. Its accesses to memory are EL2's, so
/// they are coherent.
pub(crate) fn ports_node(regs: Range) -> DeviceTreeNode {
    let mut device = node(format!("virtio@{:x}", regs.base.0));
    set(&mut device, "compatible", "virtio,mmio");
    set(&mut device, "dma-coherent", EMPTY);
    device
}

/// Sets the properties of a PSCI 1.0 node whose calls are made by HVC.
pub(crate) fn set_psci(node: &mut DeviceTreeNode) {
    set(node, "compatible", &["arm,psci-1.0", "arm,psci-0.2"][..]);
    set(node, "method", "hvc");
}

/// Calls `edit` with every node below `node`, parents before children.
pub(crate) fn for_each(node: &mut DeviceTreeNode, edit: &mut dyn FnMut(&mut DeviceTreeNode)) {
    for child in node.children_mut() {
        edit(child);
        for_each(child, edit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_does_not_fit_its_cells_is_refused() {
        let mut cells = Vec::new();
        assert_eq!(push_number(&mut cells, 1 << 32, 1), None);
        assert_eq!(push_number(&mut cells, 0x1_0000_0002, 2), Some(()));
        assert_eq!(cells, [0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(push_number(&mut cells, 0, 5), None);
    }
}
