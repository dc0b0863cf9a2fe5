//! Devices on no PCI bus that send MSIs (bindings `msi.txt`, `arm,gic-v3.yaml`), and buses other than PCI hosts with an
//! ECAM.
//!
//! A device's `msi-parent` has the DeviceID. A bus whose devices have IDs of 16 bits of their own (a PCI host without an
//! ECAM, a management complex of NXP) has `msi-map`, or `msi-parent` if the IDs are not translated.

use super::lists::Phandles;
use super::walk::{Cells, Go, Place, Tree, strings, u32_value};
use crate::ids::{DeviceId, DeviceIds, ItsId};
use crate::platform::{ITSS, Machine, MachineError, MsiDevices, Part};
use arrayvec::ArrayVec;

/// The number of IDs on a bus.
const BUS_IDS: u32 = 0x1_0000;

/// Reads `msi-parent` and `msi-map` of every available node that is not a PCI host with an ECAM.
pub(super) fn read(tree: Tree<'_>, machine: &mut Machine, known: &Phandles) -> Result<(), MachineError> {
    // How many cells follow the phandle of each ITS.
    let cells: ArrayVec<u32, ITSS> = known
        .itss
        .iter()
        .map(|its| its.and_then(|its| u32_value(tree.by_phandle(its)?, "#msi-cells")).unwrap_or(0))
        .collect();
    tree.walk_available(&mut |place| {
        if !place.is_compatible("pci-host-ecam-generic") {
            read_map(place, machine, known);
            read_parents(place, machine, known, &cells);
        }
        Ok(Go::In)
    })
}

/// Whether the node is a bus, whose devices have IDs of their own.
fn is_bus(place: &Place<'_, '_>) -> bool {
    let is_pci = place.value("device_type").is_some_and(|kind| strings(kind).next() == Some("pci"));
    is_pci || ["bus-range", "msi-map", "msi-map-mask", "iommu-map"].iter().any(|name| place.has(name))
}

fn read_parents(place: &Place<'_, '_>, machine: &mut Machine, known: &Phandles, cells: &[u32]) {
    if place.has("msi-map") {
        return;
    }
    let mut parents = Cells(place.value("msi-parent").unwrap_or(&[]));
    while let Some(phandle) = parents.one() {
        // The number of cells after a controller of another kind is not known.
        let Some(its) = known.itss.iter().position(|&its| its == Some(phandle)) else { return };
        let specifier = match cells.get(its) {
            Some(&(1..)) => parents.one(),
            _ => None,
        };
        let (first, count) = match specifier {
            Some(id) if !is_bus(place) => (id, 1),
            base => (base.unwrap_or(0), BUS_IDS),
        };
        add(machine, its, first, count);
    }
}

fn read_map(place: &Place<'_, '_>, machine: &mut Machine, known: &Phandles) {
    let mut map = Cells(place.value("msi-map").unwrap_or(&[]));
    while let (Some(_), Some(phandle), Some(first), Some(count)) = (map.one(), map.one(), map.one(), map.one()) {
        if let Some(its) = known.itss.iter().position(|&its| its == Some(phandle)) {
            add(machine, its, first, count.min(BUS_IDS));
        }
    }
}

fn add(machine: &mut Machine, its: usize, first: u32, count: u32) {
    let Some(more) = count.checked_sub(1) else { return };
    let ids = DeviceIds { first: DeviceId(first), last: DeviceId(first.saturating_add(more)) };
    let devices = MsiDevices { its: ItsId(its as u8), ids };
    // Several devices may share an ID.
    if !machine.msi_devices.contains(&devices) && machine.msi_devices.try_push(devices).is_err() {
        machine.leave_out(Part::MsiDevices);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::fdt;
    use crate::platform::testing::{DOM0, GICV3, cells, edited, set};
    use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
    use std::vec::Vec;

    /// The phandle of the ITS in the recorded tree.
    fn its(tree: &mut DeviceTree) -> u32 {
        cells(tree, "/intc@8000000/its@8080000", "phandle")[0]
    }

    fn read(edit: impl FnOnce(&mut DeviceTree, u32)) -> Vec<(u32, u32)> {
        let blob = edited(DOM0, |tree| {
            let phandle = its(tree);
            edit(tree, phandle);
        });
        let machine = fdt::read(&blob).unwrap();
        assert!(machine.msi_devices.iter().all(|devices| devices.its == ItsId(0)));
        machine.msi_devices.iter().map(|devices| (devices.ids.first.0, devices.ids.last.0)).collect()
    }

    fn add_node(tree: &mut DeviceTree, name: &str, property: &str, value: &[u32]) {
        let mut device = DeviceTreeNode::new(name).unwrap();
        device.add_property(DeviceTreeProperty::new(property, value).unwrap());
        tree.root.add_child(device);
    }

    #[test]
    fn qemus_board_has_no_device_beside_its_pci_host() {
        for blob in [DOM0, GICV3] {
            assert!(fdt::read(blob).unwrap().msi_devices.is_empty());
        }
    }

    #[test]
    fn a_device_has_the_id_in_its_msi_parent() {
        let found = read(|tree, its| {
            add_node(tree, "uart@1", "msi-parent", &[its, 0x1_2345]);
            add_node(tree, "uart@2", "msi-parent", &[its, 0x1_2345]);
            add_node(tree, "two@3", "msi-parent", &[its, 7, its, 9]);
            add_node(tree, "elsewhere@4", "msi-parent", &[0xdead, 11, its, 12]);
        });
        assert_eq!(found, [(0x1_2345, 0x1_2345), (7, 7), (9, 9)]);
    }

    #[test]
    fn a_bus_has_the_ids_of_its_devices() {
        let found = read(|tree, its| {
            add_node(tree, "fsl-mc@1", "msi-parent", &[its, 0]);
            set(tree, "/fsl-mc@1", "iommu-map", [0u32, 0, 0, 0]);
            add_node(tree, "pcie@2", "msi-map", &[0, its, 0x4_0000, 0x100, 0x100, its, 0x5_0000, u32::MAX]);
        });
        assert_eq!(found, [(0, 0xffff), (0x4_0000, 0x4_00ff), (0x5_0000, 0x5_ffff)]);
        // Without #msi-cells the ITS is told nothing, so the IDs are those of the bus.
        let found = read(|tree, its| {
            set(tree, "/intc@8000000/its@8080000", "#msi-cells", 0u32);
            add_node(tree, "pcie@2", "msi-parent", &[its]);
        });
        assert_eq!(found, [(0, 0xffff)]);
    }
}
