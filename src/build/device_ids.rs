//! The DeviceIDs of the devices that send MSIs.
//!
//! dom0 may map these devices on its ITSs, except those that a domU gets, and no others, so that memory for all that it
//! can map is reserved when it is built. They are what the description of the machine says: the translations of requester
//! IDs that PCI hosts have (`msi-map`, IORT root complexes), and the devices that are named one by one (`msi-parent`, IORT
//! named components).

use crate::ids::{DeviceId, DeviceIds, ItsId};
use crate::platform::{Machine, PciHost};
use alloc::vec::Vec;

/// The DeviceIDs that reach an ITS: sorted, disjoint.
pub fn of_its(machine: &Machine, its: ItsId) -> Vec<DeviceIds> {
    let mut all: Vec<DeviceIds> = machine.pci.iter().flat_map(|host| of_host(host, its)).collect();
    all.extend(machine.msi_devices.iter().filter(|devices| devices.its == its).map(|devices| devices.ids));
    merged(all)
}

/// The DeviceIDs in `ids`, which are sorted and disjoint, that are not `given` to another domain. The result is sorted and
/// disjoint, too.
pub fn without(ids: Vec<DeviceIds>, given: &[DeviceIds]) -> Vec<DeviceIds> {
    let mut left = ids;
    for taken in given {
        let mut cut = Vec::new();
        for ids in left {
            if taken.last < ids.first || ids.last < taken.first {
                cut.push(ids);
                continue;
            }
            // Neither subtraction nor addition can overflow: there is a DeviceID below, or above.
            if ids.first < taken.first {
                cut.push(DeviceIds { first: ids.first, last: DeviceId(taken.first.0 - 1) });
            }
            if taken.last < ids.last {
                cut.push(DeviceIds { first: DeviceId(taken.last.0 + 1), last: ids.last });
            }
        }
        left = cut;
    }
    left
}

/// The DeviceIDs of a PCI host's functions on an ITS.
fn of_host(host: &PciHost, its: ItsId) -> Vec<DeviceIds> {
    let (first, last) = (u32::from(host.buses.0) << 8, u32::from(host.buses.1) << 8 | 0xff);
    if host.msi_map.is_empty() {
        // The description does not say. Then drivers take the requester ID, and any ITS.
        return alloc::vec![DeviceIds { first: DeviceId(first), last: DeviceId(last) }];
    }
    let mut all = Vec::new();
    for line in host.msi_map.iter().filter(|line| line.target == its) {
        // The mask merges functions: it clears bits of each requester ID. So its results are between 0 and `last`.
        let first = if host.msi_map_mask & 0xffff == 0xffff { first } else { 0 };
        let from = first.max(line.rid_base);
        let Some(end) = line.length.checked_sub(1).and_then(|more| line.rid_base.checked_add(more)) else { continue };
        let to = last.min(end);
        let out = |rid: u32| line.out_base.checked_add(rid.checked_sub(line.rid_base)?);
        if let (true, Some(first), Some(last)) = (from <= to, out(from), out(to)) {
            all.push(DeviceIds { first: DeviceId(first), last: DeviceId(last) });
        }
    }
    all
}

fn merged(mut all: Vec<DeviceIds>) -> Vec<DeviceIds> {
    all.sort_unstable();
    let mut merged: Vec<DeviceIds> = Vec::new();
    for ids in all {
        match merged.last_mut() {
            Some(last) if ids.first.0 <= last.last.0.saturating_add(1) => last.last = last.last.max(ids.last),
            _ => merged.push(ids),
        }
    }
    merged
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
        of_its(machine, ItsId(its)).iter().map(|ids| (ids.first.0, ids.last.0)).collect()
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
    fn a_graviton3_has_the_devices_of_its_root_complexes() {
        let machine = Memory::with(&graviton3()).read().unwrap();
        let all: Vec<_> = (0..machine.gic.itss.len()).flat_map(|its| ids(&machine, its as u8)).collect();
        assert!(!all.is_empty());
        for host in &machine.pci {
            for rid in [u16::from(host.buses.0) << 8, u16::from(host.buses.1) << 8 | 0xff] {
                let Some((its, dev)) = host.device_id(rid) else { continue };
                assert!(of_its(&machine, its).iter().any(|ids| ids.contains(DeviceId(dev))), "{rid:#x}");
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
    fn devices_that_are_given_away_are_cut_out_wherever_they_are() {
        let r = |first, last| DeviceIds { first: DeviceId(first), last: DeviceId(last) };
        let all = || alloc::vec![r(0, 0xff), r(0x200, u32::MAX)];
        let left = |given: &[DeviceIds]| without(all(), given);
        assert_eq!(left(&[]), all());
        assert_eq!(left(&[r(0x100, 0x1ff)]), all());
        assert_eq!(left(&[r(0, 0)]), [r(1, 0xff), r(0x200, u32::MAX)]);
        assert_eq!(left(&[r(0x80, 0x80), r(0xff, 0x200)]), [r(0, 0x7f), r(0x81, 0xfe), r(0x201, u32::MAX)]);
        assert_eq!(left(&[r(u32::MAX, u32::MAX), r(0, 0xff)]), [r(0x200, u32::MAX - 1)]);
        assert_eq!(left(&[r(0, u32::MAX)]), []);
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
