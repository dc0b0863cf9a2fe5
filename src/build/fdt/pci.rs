//! Nodes of PCI hosts (bindings `host-generic-pci.yaml`, `pci-msi.txt`) and of ITSs (`arm,gic-v3.yaml`), for trees that are
//! made rather than edited.

use super::node::{EMPTY, cells_of, node, push_number, reg, set, set_cells};
use crate::ids::Pa;
use crate::platform::{PciWindow, PciWindowKind};
use crate::util::range::{Range, pages_without};
use alloc::format;
use alloc::vec::Vec;
use dtoolkit::model::DeviceTreeNode;
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

/// Pieces of a window that are smaller are not worth a line of `ranges`: 1 MiB, the unit of the windows of bridges.
const LEAST_PIECE: u64 = 1 << 20;
/// The cells of a PCI address, and of the size of a window.
const PCI_ADDRESS: usize = 3;
const PCI_SIZE: usize = 2;

/// Takes what `taken`, CPU addresses, covers out of the windows of all PCI hosts below `parent`.
pub(crate) fn cut_windows(parent: &mut DeviceTreeNode, taken: &[Range]) {
    let (address_cells, _) = cells_of(parent);
    for child in parent.children_mut() {
        if child.is_compatible("pci-host-ecam-generic")
            && let Some(ranges) = child.property("ranges").map(|ranges| ranges.value().to_vec())
        {
            let line = 4 * (PCI_ADDRESS + address_cells + PCI_SIZE);
            let cut: Vec<u8> = ranges.chunks(line).flat_map(|line| cut_line(line, address_cells, taken)).collect();
            set(child, "ranges", cut);
        }
        cut_windows(child, taken);
    }
}

/// The lines of `ranges` that are left of one. A line is space, PCI address, CPU address, size.
fn cut_line(line: &[u8], address_cells: usize, taken: &[Range]) -> Vec<u8> {
    let number = |first: usize, cells: usize| {
        let bytes = line.get(4 * first..4 * (first + cells))?;
        Some(bytes.iter().fold(0u64, |number, &byte| number << 8 | u64::from(byte)))
    };
    let read = || {
        let (pci, cpu) = (number(1, 2)?, number(PCI_ADDRESS, address_cells)?);
        Some((number(0, 1)?, pci, Range::new(Pa(cpu), number(PCI_ADDRESS + address_cells, PCI_SIZE)?)))
    };
    match read() {
        Some((space, pci, window)) if taken.iter().any(|range| range.overlaps(window)) => {
            let mut lines = Vec::new();
            let pieces = pages_without(&[window], taken);
            for piece in pieces.into_iter().filter(|piece| piece.size >= LEAST_PIECE) {
                let at = pci + (piece.base.0 - window.base.0);
                // All of it fitted before.
                for (number, cells) in [(space, 1), (at, 2), (piece.base.0, address_cells), (piece.size, PCI_SIZE)] {
                    let _ = push_number(&mut lines, number, cells);
                }
            }
            lines
        }
        _ => line.to_vec(),
    }
}

/// A PCI host with an ECAM.
pub(crate) struct PciHostNode<'a> {
    /// The configuration space.
    pub ecam: Range,
    /// The first and the last bus number.
    pub buses: (u8, u8),
    /// The segment.
    pub segment: u16,
    /// The windows to memory and I/O ports.
    pub windows: &'a [PciWindow],
    /// The lines of `msi-map`: first requester ID, phandle of the ITS, first DeviceID, number of IDs.
    pub msi_map: &'a [[u32; 4]],
    /// `msi-map-mask`.
    pub msi_map_mask: u32,
    /// Whether DMA snoops the CPUs' caches.
    pub coherent: bool,
}

/// Makes the node of a PCI host. Parent and node have two cells each for addresses and sizes.
pub(crate) fn pci_host(host: &PciHostNode<'_>) -> DeviceTreeNode {
    let mut node = node(format!("pcie@{:x}", host.ecam.base.0));
    set(&mut node, "compatible", "pci-host-ecam-generic");
    set(&mut node, "device_type", "pci");
    set_cells(&mut node, 3, 2);
    set(&mut node, "reg", reg(&[host.ecam]));
    set(&mut node, "bus-range", [u32::from(host.buses.0), u32::from(host.buses.1)]);
    set(&mut node, "linux,pci-domain", u32::from(host.segment));
    if host.coherent {
        set(&mut node, "dma-coherent", EMPTY);
    }
    let mut ranges = Vec::new();
    for window in host.windows {
        let space = match window.kind {
            PciWindowKind::Io => 0x0100_0000u32,
            PciWindowKind::Mem32 => 0x0200_0000,
            PciWindowKind::Mem64 => 0x0300_0000,
        };
        ranges.extend((space | u32::from(window.prefetchable) << 30).to_be_bytes());
        for number in [window.pci_base, window.cpu.base.0, window.cpu.size] {
            ranges.extend(number.to_be_bytes());
        }
    }
    set(&mut node, "ranges", ranges);
    if !host.msi_map.is_empty() {
        let cells: Vec<u8> = host.msi_map.iter().flatten().flat_map(|cell| cell.to_be_bytes()).collect();
        set(&mut node, "msi-map", cells);
        set(&mut node, "msi-map-mask", host.msi_map_mask);
    }
    node
}

/// Makes the node of an ITS, a child of the GIC's node.
pub(crate) fn its(regs: Range, phandle: u32) -> DeviceTreeNode {
    let mut node = node(format!("msi-controller@{:x}", regs.base.0));
    set(&mut node, "compatible", "arm,gic-v3-its");
    set(&mut node, "reg", reg(&[regs]));
    set(&mut node, "msi-controller", EMPTY);
    set(&mut node, "#msi-cells", 1u32);
    set(&mut node, "phandle", phandle);
    node
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::testing::{DOM0, cells as cells_at, edited};

    #[test]
    fn windows_of_dom0_are_cut_where_domus_have_bars() {
        let windows = |taken: &[Range]| {
            let blob = edited(DOM0, |tree| cut_windows(&mut tree.root, taken));
            let mut seen = Vec::new();
            let _ = edited(&blob, |tree| seen = cells_at(tree, "/pcie@10000000", "ranges"));
            seen
        };
        let r = |base, size| Range::new(Pa(base), size);
        let whole = windows(&[]);
        assert_eq!(whole.len(), 3 * 7);
        assert_eq!(windows(&[r(0x3fff_0000, 0x1000)]), whole, "in no window");
        // Two BARs at the end of the window of 32 bits: 0x1000_0000 + 0x2eff_0000.
        let cut = windows(&[r(0x3eff_0000 - 0x4000, 0x4000), r(0x3eff_0000 - 0x8000, 0x4000)]);
        let line: Vec<_> = cut.chunks(7).find(|line| line[0] == 0x0200_0000).unwrap().to_vec();
        assert_eq!(line, [0x0200_0000, 0, 0x1000_0000, 0, 0x1000_0000, 0, 0x2eff_0000 - 0x8000]);
        assert_eq!(cut.len(), whole.len());
        // One in the middle leaves two windows.
        let cut = windows(&[r(0x80_4000_0000, 0x100_0000)]);
        let lines: Vec<_> = cut.chunks(7).filter(|line| line[0] == 0x0300_0000).map(<[u32]>::to_vec).collect();
        assert_eq!(
            lines,
            [
                [0x0300_0000, 0x80, 0, 0x80, 0, 0, 0x4000_0000],
                [0x0300_0000, 0x80, 0x4100_0000, 0x80, 0x4100_0000, 0x7f, 0xbf00_0000],
            ]
        );
        // All of a window.
        assert!(windows(&[r(0, 1 << 52)]).is_empty());
    }
}
