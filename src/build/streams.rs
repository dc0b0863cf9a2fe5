//! The streams by which the SMMUs know dom0's devices.
//!
//! They are what the description of the machine says: the translations of requester IDs that PCI hosts have (`iommu-map`,
//! IORT root complexes), and the devices that are named one by one (`iommus`, IORT named components). A stream that it does
//! not mention belongs to no domain, and reaches nothing.

use crate::ids::{SmmuId, StreamId, Streams};
use crate::platform::Machine;
use crate::util::id_ranges::{merged, without};
use alloc::vec::Vec;

/// The streams of dom0's devices: all but those of `given`, which belong to domUs or to nobody.
#[must_use]
pub fn of_dom0(machine: &Machine, given: &[Streams]) -> Vec<Streams> {
    let smmus = (0..).map(SmmuId).take(machine.smmus.len());
    let of_smmu = |smmu: SmmuId| {
        let of_hosts = machine.pci.iter().flat_map(|host| {
            let lines = host.iommu_map.iter().filter(|line| line.target == smmu);
            lines.filter_map(|line| line.ids(host.buses, host.iommu_map_mask))
        });
        let named = machine.stream_devices.iter().filter(|streams| streams.smmu == smmu);
        let all = of_hosts.chain(named.map(|streams| (streams.first.0, streams.last.0)));
        let given = given.iter().filter(|streams| streams.smmu == smmu);
        let left = without(merged(all.collect()), given.map(|streams| (streams.first.0, streams.last.0)));
        left.into_iter().map(move |(first, last)| Streams { smmu, first: StreamId(first), last: StreamId(last) })
    };
    smmus.flat_map(of_smmu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::fdt;
    use crate::platform::testing::{GICV4, edited, set};

    fn streams(smmu: u8, first: u32, last: u32) -> Streams {
        Streams { smmu: SmmuId(smmu), first: StreamId(first), last: StreamId(last) }
    }

    #[test]
    fn dom0_has_the_streams_of_the_pci_host_without_those_that_are_given_away() {
        let machine = fdt::read(GICV4).unwrap();
        assert_eq!(of_dom0(&machine, &[]), [streams(0, 0, 0xffff)]);
        let given = [streams(0, 0x10, 0x10), streams(1, 0x20, 0x20), streams(0, 0x11, 0x11)];
        assert_eq!(of_dom0(&machine, &given), [streams(0, 0, 0xf), streams(0, 0x12, 0xffff)]);
    }

    #[test]
    fn dom0_has_the_streams_of_devices_that_are_on_no_pci_bus() {
        let mut machine = fdt::read(GICV4).unwrap();
        machine.stream_devices.push(streams(0, 0x1_0000, 0x1_0000));
        machine.stream_devices.push(streams(0, 0x2_0000, 0x2_0003));
        let all = [streams(0, 0, 0x1_0000), streams(0, 0x2_0000, 0x2_0003)];
        assert_eq!(of_dom0(&machine, &[]), all);
    }

    #[test]
    fn a_machine_that_names_no_stream_has_none() {
        let blob = edited(GICV4, |tree| set(tree, "/pcie@10000000", "iommu-map", [0u8; 0]));
        assert_eq!(of_dom0(&fdt::read(&blob).unwrap(), &[]), []);
    }
}
