//! Nodes of PCI hosts (bindings `host-generic-pci.yaml`, `pci-msi.txt`) and of ITSs (`arm,gic-v3.yaml`), for trees that are
//! made rather than edited.

use super::node::{EMPTY, node, reg, set, set_cells};
use crate::platform::{PciWindow, PciWindowKind};
use crate::util::range::Range;
use alloc::format;
use alloc::vec::Vec;
use dtoolkit::model::DeviceTreeNode;

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
