//! The list of all devices in the tree, for assigning devices to domains.

use super::lists::push;
use super::open::open;
use super::walk::{Go, Place, Tree, Trigger, strings};
use crate::ids::Intid;
use crate::platform::{MachineError, Part};
use crate::util::range::Range;
use arrayvec::{ArrayString, ArrayVec};
use core::fmt::Write;

/// A shared peripheral interrupt of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spi {
    /// The INTID, of an SPI or an extended SPI.
    pub intid: Intid,
    /// Its trigger mode.
    pub trigger: Trigger,
}

/// A device: a node that has registers or interrupts.
pub struct DeviceNode<'a> {
    /// The full path, truncated to 256 bytes.
    pub path: &'a str,
    compatible: &'a [u8],
    /// The entries of `reg` that the CPU can access, as CPU addresses.
    pub regs: &'a [Range],
    /// The SPIs of the GIC in `interrupts`, `interrupts-extended` and `interrupt-map`.
    pub spis: &'a [Spi],
}

impl<'a> DeviceNode<'a> {
    /// Returns the words of `compatible`, the most specific first.
    pub fn compatible(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        strings(self.compatible)
    }

    /// Whether `word` is among [`compatible`](Self::compatible).
    #[must_use]
    pub fn is_compatible(&self, word: &str) -> bool {
        self.compatible().any(|own| own == word)
    }
}

/// Calls `each` with every available device that has SPIs of the GIC, or registers that a CPU can access. This includes
/// the GIC, ITSs, SMMUs and the console, but not memory, CPUs, reservations and `/chosen`. The windows of PCI hosts are
/// not listed; they are in [`PciHost::windows`](crate::platform::PciHost::windows).
///
/// # Errors
///
/// Those of [`read`](super::read) for a damaged tree; [`MachineError::TooMany`] if a node has more than 64 ranges or
/// 512 interrupts.
pub fn for_each_device(blob: &[u8], mut each: impl FnMut(DeviceNode<'_>)) -> Result<(), MachineError> {
    let tree = open(blob)?;
    tree.walk_available(&mut |place| {
        if place.depth == 0 {
            return Ok(Go::In);
        }
        let is_memory = place.value("device_type").is_some_and(|kind| strings(kind).next() == Some("memory"));
        let is_no_bus = place.depth == 1 && ["cpus", "reserved-memory", "chosen", "aliases"].contains(&place.name());
        if is_memory || is_no_bus {
            return Ok(Go::Over);
        }
        visit(tree, place, &mut each)?;
        Ok(Go::In)
    })
}

fn visit(tree: Tree<'_>, place: &Place<'_, '_>, each: &mut impl FnMut(DeviceNode<'_>)) -> Result<(), MachineError> {
    let mut regs: ArrayVec<Range, 64> = ArrayVec::new();
    for range in place.regs().flatten().filter(|range| !range.is_empty()) {
        push(&mut regs, range, Part::DeviceRegs)?;
    }
    let mut spis: ArrayVec<Spi, 512> = ArrayVec::new();
    tree.interrupts(place, &mut |intid, trigger| {
        let is_shared = matches!(intid.0, 32..1020 | 4096..5120);
        // The interrupt map of a PCI host has each of its few interrupts many times.
        if is_shared && !spis.iter().any(|spi| spi.intid == intid) {
            push(&mut spis, Spi { intid, trigger }, Part::DeviceInterrupts)?;
        }
        Ok(())
    })?;
    if !regs.is_empty() || !spis.is_empty() {
        let mut path: ArrayString<256> = ArrayString::new();
        write_path(place, &mut path);
        let compatible = place.value("compatible").unwrap_or(&[]);
        each(DeviceNode { path: &path, compatible, regs: &regs, spis: &spis });
    }
    Ok(())
}

pub(super) fn write_path(place: &Place<'_, '_>, path: &mut ArrayString<256>) {
    if let Some(parent) = place.parent {
        write_path(parent, path);
        let _ = write!(path, "/{}", place.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pa;
    use crate::platform::testing::{DOM0, edited, node, set};
    use alloc::string::String;
    use alloc::vec::Vec;
    use dtoolkit::model::{DeviceTreeNode, DeviceTreeProperty};

    type Seen = (String, Vec<Range>, Vec<Spi>);

    fn devices(blob: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        for_each_device(blob, |device| seen.push((device.path.into(), device.regs.to_vec(), device.spis.to_vec())))
            .unwrap();
        seen
    }

    fn device(blob: &[u8], path: &str) -> Seen {
        devices(blob).into_iter().find(|seen| seen.0 == path).unwrap_or_else(|| panic!("no {path}"))
    }

    fn level(intid: u32) -> Spi {
        Spi { intid: Intid(intid), trigger: Trigger::Level }
    }

    #[test]
    fn every_device_is_listed_once() {
        let all = devices(DOM0);
        // 32 virtio, fw-cfg, GPIO, SMMU, PCI, RTC, UART, flash, GIC, ITS.
        assert_eq!(all.len(), 32 + 9);
        assert!(!all.iter().any(|seen| seen.0.starts_with("/memory") || seen.0.starts_with("/chosen")));
        let (_, regs, spis) = device(DOM0, "/virtio_mmio@a000e00");
        assert_eq!(regs, [Range::new(Pa(0xa00_0e00), 0x200)]);
        assert_eq!(spis, [Spi { intid: Intid(55), trigger: Trigger::Edge }]);
        assert_eq!(device(DOM0, "/flash@0").1.len(), 2);
        assert_eq!(device(DOM0, "/intc@8000000/its@8080000").1, [Range::new(Pa(0x808_0000), 0x2_0000)]);
    }

    #[test]
    fn a_pci_hosts_intx_lines_come_from_its_interrupt_map() {
        let (_, regs, mut spis) = device(DOM0, "/pcie@10000000");
        spis.sort_by_key(|spi| spi.intid);
        assert_eq!(regs, [Range::new(Pa(0x40_1000_0000), 0x1000_0000)]);
        assert_eq!(spis, [level(35), level(36), level(37), level(38)]);
    }

    #[test]
    fn registers_behind_buses_are_translated() {
        let blob = edited(DOM0, |tree| {
            set(tree, "/platform-bus@c000000", "ranges", [0x100u32, 0, 0x0c00_0100, 0x1000, 0x2000, 1, 0, 0x1000]);
            let mut inner = DeviceTreeNode::new("bus@0").unwrap();
            inner.add_property(DeviceTreeProperty::new("#address-cells", 1u32).unwrap());
            inner.add_property(DeviceTreeProperty::new("#size-cells", 1u32).unwrap());
            inner.add_property(DeviceTreeProperty::new("ranges", [0u8; 0]).unwrap());
            let mut dev = DeviceTreeNode::new("dev@2010").unwrap();
            // Within the second entry of `ranges`, across its end, within the first entry, and below it.
            let reg = [0x2010u32, 0x20, 0x2ff0, 0x20, 0x100, 0x1000, 0x80, 0x10];
            dev.add_property(DeviceTreeProperty::new("reg", reg).unwrap());
            dev.add_property(DeviceTreeProperty::new("interrupts", [0u32, 100, 4, 1, 5, 4, 2, 7, 1]).unwrap());
            inner.add_child(dev);
            node(tree, "/platform-bus@c000000").add_child(inner);
        });
        let (_, regs, spis) = device(&blob, "/platform-bus@c000000/bus@0/dev@2010");
        assert_eq!(regs, [Range::new(Pa(0x1_0000_0010), 0x20), Range::new(Pa(0x0c00_0100), 0x1000)]);
        assert_eq!(spis, [level(132), Spi { intid: Intid(4103), trigger: Trigger::Edge }]);
    }

    #[test]
    fn disabled_and_inaccessible_devices_are_not_listed() {
        let blob = edited(DOM0, |tree| {
            let mut child = DeviceTreeNode::new("sensor@48").unwrap();
            child.add_property(DeviceTreeProperty::new("reg", [0u32, 0x48, 0, 1]).unwrap());
            node(tree, "/pl031@9010000").add_child(child);
            set(tree, "/pl061@9030000", "status", "disabled");
        });
        let paths: Vec<_> = devices(&blob).into_iter().map(|seen| seen.0).collect();
        assert!(paths.iter().any(|path| path == "/pl031@9010000"));
        assert!(!paths.iter().any(|path| path.contains("sensor") || path.contains("pl061")));
    }

    #[test]
    fn extended_interrupts_of_other_controllers_are_ignored() {
        let blob = edited(DOM0, |tree| {
            set(tree, "/pl061@9030000", "#interrupt-cells", 2u32);
            set(tree, "/pl031@9010000", "interrupts-extended", [0x8008u32, 3, 4, 0x8005, 0, 50, 4]);
        });
        assert_eq!(device(&blob, "/pl031@9010000").2, [level(82)]);
    }
}
