//! The DeviceIDs of dom0's devices that send MSIs.
//!
//! dom0 may map these devices on its ITSs and no others, so that memory for all that it can map is reserved when it is
//! built. They are what the description of the machine says: the translations of requester IDs that PCI hosts have
//! (`msi-map`, IORT root complexes), and the devices that are named one by one (`msi-parent`, IORT named components).

use crate::ids::{DeviceId, DeviceIds, ItsId};
use crate::platform::{Machine, PciHost};
use crate::util::id_ranges::{IdRange, merged, without};
use alloc::vec::Vec;

/// The DeviceIDs of dom0's devices that reach an ITS, sorted and disjoint: all but those of `given`, which belong to domUs.
pub fn of_dom0(machine: &Machine, its: ItsId, given: &[DeviceIds]) -> Vec<DeviceIds> {
    let named = machine.msi_devices.iter().filter(|devices| devices.its == its);
    let named = named.map(|devices| (devices.ids.first.0, devices.ids.last.0));
    let all = machine.pci.iter().flat_map(|host| of_host(host, its)).chain(named);
    let left = without(merged(all.collect()), given.iter().map(|ids| (ids.first.0, ids.last.0)));
    left.into_iter().map(|(first, last)| DeviceIds { first: DeviceId(first), last: DeviceId(last) }).collect()
}

/// The DeviceIDs of a PCI host's functions on an ITS.
fn of_host(host: &PciHost, its: ItsId) -> Vec<IdRange> {
    if host.msi_map.is_empty() {
        // The description does not say. Then drivers take the requester ID, and any ITS.
        let (first, last) = host.buses;
        return alloc::vec![(u32::from(first) << 8, u32::from(last) << 8 | 0xff)];
    }
    let lines = host.msi_map.iter().filter(|line| line.target == its);
    lines.filter_map(|line| line.ids(host.buses, host.msi_map_mask)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pa;
    use crate::platform::acpi::testing::{Memory, graviton3};
    use crate::platform::fdt;
    use crate::platform::testing::{DOM0, edited, set};
    use crate::platform::{IdMap, MsiDevices};
    use crate::util::range::Range;

    fn ids(machine: &Machine, its: u8) -> Vec<(u32, u32)> {
        of_dom0(machine, ItsId(its), &[]).iter().map(|ids| (ids.first.0, ids.last.0)).collect()
    }

    #[test]
    fn qemus_board_has_the_requester_ids_of_its_pci_host() {
        let machine = fdt::read(DOM0).unwrap();
        assert_eq!(ids(&machine, 0), [(0, 0xffff)]);
        assert_eq!(ids(&machine, 1), []);
    }

    #[test]
    fn buses_that_a_host_does_not_have_yield_no_device() {
        let blob = edited(DOM0, |tree| {
            set(tree, "/pcie@10000000", "bus-range", [0u32, 15]);
            set(tree, "/pcie@10000000", "reg", [0x40u32, 0x1000_0000, 0, 0x100_0000]);
        });
        assert_eq!(ids(&fdt::read(&blob).unwrap(), 0), [(0, 0xfff)]);
    }

    #[test]
    fn devices_that_domus_get_are_not_dom0s() {
        let machine = fdt::read(DOM0).unwrap();
        let given = DeviceIds { first: DeviceId(0x108), last: DeviceId(0x108) };
        let left = of_dom0(&machine, ItsId(0), &[given]);
        let left: Vec<_> = left.iter().map(|ids| (ids.first.0, ids.last.0)).collect();
        assert_eq!(left, [(0, 0x107), (0x109, 0xffff)]);
    }

    #[test]
    fn a_graviton3_has_the_devices_of_its_root_complexes() {
        let machine = Memory::with(&graviton3()).read().unwrap();
        let all: Vec<_> = (0..machine.gic.itss.len()).flat_map(|its| ids(&machine, its as u8)).collect();
        assert!(!all.is_empty());
        for host in &machine.pci {
            for rid in [u16::from(host.buses.0) << 8, u16::from(host.buses.1) << 8 | 0xff] {
                let Some((its, dev)) = host.device_id(rid) else { continue };
                assert!(of_dom0(&machine, its, &[]).iter().any(|ids| ids.contains(dev)), "{rid:#x}");
            }
        }
    }

    /// A machine with one host that has these buses and lines of (first requester ID, ITS, first DeviceID, length).
    fn host(buses: (u8, u8), mask: u32, lines: &[(u32, u8, u32, u32)]) -> Machine {
        let mut machine = Machine::new();
        let lines = lines.iter().map(|&(rid_base, its, out_base, length)| IdMap {
            rid_base,
            target: ItsId(its),
            out_base,
            length,
        });
        machine.pci.push(PciHost {
            ecam: Range::new(Pa(0), 0),
            segment: 0,
            buses,
            windows: Default::default(),
            msi_map_mask: mask,
            msi_map: lines.collect(),
            iommu_map_mask: u32::MAX,
            iommu_map: Default::default(),
            coherent: true,
        });
        machine
    }

    #[test]
    fn lines_are_cut_to_the_buses_of_the_host_and_merged() {
        let two = host((1, 2), u32::MAX, &[(0, 0, 0x1_0000, 0x180), (0x180, 0, 0x1_0180, 0x1000), (0, 1, 7, 0)]);
        assert_eq!(ids(&two, 0), [(0x1_0100, 0x1_02ff)]);
        assert_eq!(ids(&two, 1), []);
        let apart = host((0, 0xff), u32::MAX, &[(0x100, 0, 0x8000, 0x100), (0x200, 0, 0, 0x10), (0xff00, 0, !0, 0x10)]);
        assert_eq!(ids(&apart, 0), [(0, 0xf), (0x8000, 0x80ff)]);
        assert_eq!(ids(&host((0x20, 0x20), 0xff, &[(0, 0, 0, 0x1_0000)]), 0), [(0, 0x20ff)]);
    }

    #[test]
    fn without_a_description_the_requester_ids_reach_every_its() {
        let mut machine = host((2, 3), u32::MAX, &[]);
        machine
            .msi_devices
            .push(MsiDevices { its: ItsId(1), ids: DeviceIds { first: DeviceId(0x2_0000), last: DeviceId(0x2_0003) } });
        assert_eq!(ids(&machine, 0), [(0x200, 0x3ff)]);
        assert_eq!(ids(&machine, 1), [(0x200, 0x3ff), (0x2_0000, 0x2_0003)]);
    }
}
