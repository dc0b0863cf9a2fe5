//! Devices behind SMMUs that are no PCI functions of a host with an ECAM (binding `iommu.txt`), and the memory that they
//! access for the firmware (`iommu-addresses` of `reserved-memory.yaml`).
//!
//! A device's `iommus` has its StreamIDs; a bus whose devices have IDs of their own has `iommu-map`, or both.
//!
//! All of this is more than a machine needs to start, so nothing that is odd here refuses it: an entry that cannot be
//! understood ends its property, and one for an IOMMU of another kind is skipped.

use super::devices::write_path;
use super::lists::Phandles;
use super::open::open;
use super::walk::{Cells, Go, Place, Tree, cell_count, u32_value};
use crate::ids::{Pa, SmmuId, StreamId, Streams};
use crate::platform::{Machine, MachineError, Part, SMMUS};
use crate::util::range::Range;
use arrayvec::{ArrayString, ArrayVec};

/// The number of IDs on a bus.
const BUS_IDS: u32 = 0x1_0000;
/// How often the whole tree is walked to find a node by its phandle.
const WALKS: u32 = 256;

/// Reads `iommus` and `iommu-map` of every available node, and `iommu-addresses`.
pub(super) fn read(tree: Tree<'_>, machine: &mut Machine, known: &Phandles) -> Result<(), MachineError> {
    if machine.smmus.is_empty() {
        return Ok(());
    }
    let mut iommus = Iommus { tree, smmus: ArrayVec::new(), last: None, walks: 0 };
    for smmu in &known.smmus {
        let count = smmu.and_then(|smmu| u32_value(tree.by_phandle(smmu)?, "#iommu-cells"));
        let _ = iommus.smmus.try_push((*smmu, count)); // as large as the list
    }
    tree.walk_available(&mut |place| {
        iommus.of(place.value("iommus").unwrap_or(&[]), &mut |streams| machine.add_stream_device(streams));
        if !place.is_compatible("pci-host-ecam-generic") {
            iommus.of_bus(place, machine);
        }
        if place.parent.is_some_and(|parent| parent.depth == 1 && parent.name() == "reserved-memory") {
            iommus.reserved(place, machine);
        }
        Ok(Go::In)
    })?;
    if iommus.walks > WALKS {
        machine.leave_out(Part::StreamDevices);
        machine.leave_out(Part::DmaReserved);
    }
    Ok(())
}

/// The largest number of streams of one device that [`device_streams`] lists.
pub const DEVICE_STREAMS: usize = 16;

/// By what SMMUs know a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceStreams {
    /// It is behind no SMMU: it has no `iommus`.
    None,
    /// Its `iommus` is damaged, names an IOMMU of another kind, or has more than [`DEVICE_STREAMS`] entries.
    Unknown,
    /// Its streams.
    Known(ArrayVec<Streams, DEVICE_STREAMS>),
}

/// Reads the streams of the available device at `path`, a full path.
///
/// # Errors
///
/// Those of [`read`](super::read) for a damaged tree.
pub fn device_streams(blob: &[u8], path: &str) -> Result<DeviceStreams, MachineError> {
    let tree = open(blob)?;
    let mut iommus = Iommus { tree, smmus: ArrayVec::new(), last: None, walks: 0 };
    tree.walk_available(&mut |place| {
        if place.is_compatible("arm,smmu-v3") {
            let _ = iommus.smmus.try_push((place.phandle(), place.u32("#iommu-cells")));
        }
        Ok(Go::In)
    })?;
    let mut found = DeviceStreams::None;
    tree.walk_available(&mut |place| {
        let mut at: ArrayString<256> = ArrayString::new();
        write_path(place, &mut at);
        if place.depth > 0 && at.as_str() == path && place.has("iommus") {
            found = iommus.device_streams(place.value("iommus").unwrap_or(&[]));
        }
        Ok(Go::In)
    })?;
    Ok(found)
}

/// The IOMMUs of a tree.
struct Iommus<'a> {
    tree: Tree<'a>,
    /// The phandle and the `#iommu-cells` of each SMMU, in the order of the machine's list.
    smmus: ArrayVec<(Option<u32>, Option<u32>), SMMUS>,
    /// The last other IOMMU and its `#iommu-cells`.
    last: Option<(u32, Option<u32>)>,
    walks: u32,
}

/// A device that accesses memory for the firmware.
struct Device<'a> {
    /// `#address-cells` and `#size-cells` of its bus.
    cells: (u32, u32),
    iommus: &'a [u8],
}

impl<'a> Iommus<'a> {
    /// Passes the streams in a device's `iommus` to `each`.
    fn of(&mut self, iommus: &[u8], each: &mut dyn FnMut(Streams)) {
        let mut list = Cells(iommus);
        while let Some((smmu, first)) = self.entry(&mut list) {
            if let Some((smmu, first)) = smmu.zip(first) {
                each(Streams { smmu, first: StreamId(first), last: StreamId(first) });
            }
        }
    }

    /// Reads a device's `iommus`.
    fn device_streams(&mut self, list: &[u8]) -> DeviceStreams {
        let mut list = Cells(list);
        let mut streams = ArrayVec::new();
        while !list.is_empty() {
            let Some((Some(smmu), Some(id))) = self.entry(&mut list) else { return DeviceStreams::Unknown };
            let one = Streams { smmu, first: StreamId(id), last: StreamId(id) };
            if streams.try_push(one).is_err() {
                return DeviceStreams::Unknown;
            }
        }
        if streams.is_empty() { DeviceStreams::Unknown } else { DeviceStreams::Known(streams) }
    }

    /// Adds the streams that a bus' `iommu-map` translates to.
    fn of_bus(&mut self, place: &Place<'_, '_>, machine: &mut Machine) {
        let mut map = Cells(place.value("iommu-map").unwrap_or(&[]));
        while let (Some(_), Some((smmu, first)), Some(count)) = (map.one(), self.entry(&mut map), map.one()) {
            if let (Some((smmu, first)), Some(more)) = (smmu.zip(first), count.min(BUS_IDS).checked_sub(1)) {
                let last = StreamId(first.saturating_add(more));
                machine.add_stream_device(Streams { smmu, first: StreamId(first), last });
            }
        }
    }

    /// Takes the phandle of an IOMMU and its specifier. Returns the SMMU, if it is one, and the StreamID, if the
    /// specifier is that of an SMMUv3.
    fn entry(&mut self, list: &mut Cells<'_>) -> Option<(Option<SmmuId>, Option<u32>)> {
        let phandle = list.one()?;
        let smmu = self.smmus.iter().position(|&(smmu, _)| smmu == Some(phandle));
        let count = match smmu.and_then(|index| self.smmus.get(index)) {
            Some(&(_, count)) => count,
            None => self.specifier(phandle),
        };
        let count = count.filter(|&count| count <= 4)?;
        let specifier = list.take(count)?.value().filter(|_| count == 1);
        Some((smmu.map(|index| SmmuId(index as u8)), specifier.map(|id| id as u32)))
    }

    /// Returns the `#iommu-cells` of an IOMMU that is no SMMUv3.
    fn specifier(&mut self, phandle: u32) -> Option<u32> {
        if let Some((_, count)) = self.last.filter(|&(last, _)| last == phandle) {
            return count;
        }
        let count = self.find(phandle, |place| u32_value(place.node, "#iommu-cells"));
        self.last = Some((phandle, count));
        count
    }

    /// Returns what `found` reads of the node that has a phandle. After [`WALKS`] calls it returns nothing.
    fn find<T>(&mut self, phandle: u32, found: impl Fn(&Place<'_, 'a>) -> Option<T>) -> Option<T> {
        self.walks = self.walks.saturating_add(1);
        if self.walks > WALKS {
            return None;
        }
        let (mut done, mut answer) = (false, None);
        let walk = self.tree.walk(&mut |place| {
            if !done && place.phandle() == Some(phandle) {
                done = true;
                answer = found(place);
            }
            Ok(if done { Go::Over } else { Go::In })
        });
        walk.ok().and(answer)
    }

    /// Adds the memory of a reservation that devices access at its own address. What is mapped to other addresses
    /// cannot be kept without the firmware's tables, and what has no memory is an operating system's concern.
    fn reserved(&mut self, place: &Place<'_, '_>, machine: &mut Machine) {
        let Some(list) = place.value("iommu-addresses") else { return };
        // Linux takes the cells of the device's bus. The example in the binding has two cells each, on a bus with one.
        for cells in [None, Some((2, 2))] {
            let valid = self.addresses(list, cells, &mut |_, _| ());
            if valid.is_some() {
                self.addresses(list, cells, &mut |streams, at| {
                    if place.regs().flatten().any(|memory| memory.covers(at)) {
                        machine.add_dma_reserved(streams, at);
                    }
                });
                return;
            }
        }
    }

    /// Reads entries of a device, an address and a size, with the cells of the device's bus unless they are given.
    /// Returns `None` if they are not the whole of the list, each with a device that the tree has.
    fn addresses(
        &mut self,
        list: &[u8],
        cells: Option<(u32, u32)>,
        each: &mut dyn FnMut(Streams, Range),
    ) -> Option<()> {
        let mut list = Cells(list);
        while !list.is_empty() {
            let device = self.device(list.one()?)?;
            let (address, size) = cells.unwrap_or(device.cells);
            let (address, size) = (list.take(address)?.value()?, list.take(size)?.value()?);
            let range = Range::between(Pa(address), Pa(address.checked_add(size)?));
            self.of(device.iommus, &mut |streams| each(streams, range));
        }
        Some(())
    }

    fn device(&mut self, phandle: u32) -> Option<Device<'a>> {
        self.find(phandle, |place| {
            let bus = place.parent?.node;
            let cells = (cell_count(bus, "#address-cells", 2), cell_count(bus, "#size-cells", 1));
            let iommus = if place.is_available() { place.value("iommus") } else { None };
            Some(Device { cells, iommus: iommus.unwrap_or(&[]) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::fdt;
    use crate::platform::testing::{DOM0, GICV3, GICV4, cells, edited, node, set};
    use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
    use std::vec::Vec;

    const SMMU: &str = "/smmuv3@9050000";

    /// Reads a board with one SMMU after `edit`, which gets the SMMU's phandle.
    fn read(edit: impl FnOnce(&mut DeviceTree, u32)) -> std::boxed::Box<Machine> {
        let blob = edited(DOM0, |tree| {
            let phandle = cells(tree, SMMU, "phandle")[0];
            edit(tree, phandle);
        });
        fdt::read(&blob).unwrap()
    }

    fn streams(machine: &Machine) -> Vec<(u32, u32)> {
        assert!(machine.stream_devices.iter().all(|streams| streams.smmu == SmmuId(0)));
        machine.stream_devices.iter().map(|streams| (streams.first.0, streams.last.0)).collect()
    }

    fn reserved(machine: &Machine) -> Vec<(u32, u64, u64)> {
        machine.dma_reserved.iter().map(|found| (found.streams.first.0, found.range.base.0, found.range.size)).collect()
    }

    fn child(tree: &mut DeviceTree, parent: &str, name: &str, properties: &[(&str, &[u32])]) {
        let mut child = DeviceTreeNode::new(name).unwrap();
        for &(name, value) in properties {
            child.add_property(DeviceTreeProperty::new(name, value).unwrap());
        }
        if parent.is_empty() { tree.root.add_child(child) } else { node(tree, parent).add_child(child) }
    }

    #[test]
    fn qemus_board_has_no_device_behind_its_smmu_beside_its_pci_host() {
        for blob in [DOM0, GICV4, GICV3] {
            let machine = fdt::read(blob).unwrap();
            assert!(
                machine.stream_devices.is_empty() && machine.dma_reserved.is_empty() && machine.left_out.is_empty()
            );
        }
    }

    #[test]
    fn a_device_has_the_streams_in_its_iommus() {
        let machine = read(|tree, smmu| {
            child(tree, "", "dma@1", &[("iommus", &[smmu, 0x1_2345])]);
            child(tree, "", "dma@2", &[("iommus", &[smmu, 0x1_2345])]);
            child(tree, "", "two@3", &[("iommus", &[smmu, 7, smmu, u32::MAX])]);
            child(tree, "", "off@4", &[("iommus", &[smmu, 8])]);
            set(tree, "/off@4", "status", "disabled");
        });
        assert_eq!(streams(&machine), [(0x1_2345, 0x1_2345), (7, 7), (u32::MAX, u32::MAX)]);
    }

    #[test]
    fn entries_of_other_iommus_are_skipped_and_odd_ones_end_their_property() {
        let machine = read(|tree, smmu| {
            child(tree, "", "iommu@1", &[("phandle", &[0x7001]), ("#iommu-cells", &[2])]);
            child(tree, "", "iommu@2", &[("phandle", &[0x7002]), ("#iommu-cells", &[0])]);
            child(tree, "", "wild@3", &[("phandle", &[0x7003]), ("#iommu-cells", &[u32::MAX])]);
            child(tree, "", "mixed@4", &[("iommus", &[0x7001, 1, 2, 0x7002, smmu, 4])]);
            child(tree, "", "dangling@5", &[("iommus", &[smmu, 5, 0xdead, 6, smmu, 7])]);
            child(tree, "", "wild@6", &[("iommus", &[smmu, 8, 0x7003, 9, smmu, 10])]);
            child(tree, "", "short@7", &[("iommus", &[smmu, 11, smmu])]);
            child(tree, "", "odd@8", &[("iommus", &[])]);
            node(tree, "/odd@8").add_property(DeviceTreeProperty::new("iommus", &b"\0\0\0"[..]).unwrap());
        });
        assert_eq!(streams(&machine), [(4, 4), (5, 5), (8, 8), (11, 11)]);
        // An SMMU whose specifiers are not StreamIDs.
        let machine = read(|tree, smmu| {
            set(tree, SMMU, "#iommu-cells", 2u32);
            child(tree, "", "dma@1", &[("iommus", &[smmu, 1, 2])]);
        });
        assert!(streams(&machine).is_empty());
    }

    #[test]
    fn a_bus_has_the_streams_that_its_map_translates_to() {
        let machine = read(|tree, smmu| {
            let map = [0, smmu, 0x4_0000, 0x100, 0x100, 0xdead, 0, 1];
            child(tree, "", "fsl-mc@1", &[("iommu-map", &map)]);
            child(tree, "", "pcie@2", &[("iommu-map", &[0, smmu, 0x10, 0, 0, smmu, 0xffff_ff00, u32::MAX])]);
        });
        assert_eq!(streams(&machine), [(0x4_0000, 0x4_00ff), (0xffff_ff00, u32::MAX)]);
    }

    #[test]
    fn a_machine_with_more_devices_than_the_capacity_is_read() {
        let machine = read(|tree, smmu| {
            let all: Vec<u32> = (0..200).flat_map(|id| [smmu, id]).collect();
            child(tree, "", "many@1", &[("iommus", &all)]);
        });
        assert_eq!((machine.stream_devices.len(), &machine.left_out[..]), (128, &[Part::StreamDevices][..]));
        // As many other IOMMUs as there are walks, and one more.
        let machine = read(|tree, smmu| {
            // They take turns, so that none is the last one.
            let others = |range: core::ops::Range<u32>| range.flat_map(|turn| [0x7001 + turn % 2, 0]);
            let within: Vec<u32> = others(0..WALKS).chain([smmu, 1]).collect();
            let beyond: Vec<u32> = others(WALKS..WALKS + 1).chain([smmu, 2]).collect();
            child(tree, "", "within@1", &[("iommus", &within)]);
            child(tree, "", "beyond@2", &[("iommus", &beyond)]);
            child(tree, "", "x@8", &[("phandle", &[0x7001]), ("#iommu-cells", &[1])]);
            child(tree, "", "y@9", &[("phandle", &[0x7002]), ("#iommu-cells", &[1])]);
        });
        assert_eq!(streams(&machine), [(1, 1)]);
        assert_eq!(machine.left_out[..], [Part::StreamDevices, Part::DmaReserved]);
    }

    /// A framebuffer and the display that reads it, on a bus with one cell each, and what the framebuffer says of it.
    fn splash(tree: &mut DeviceTree, smmu: u32, iommu_addresses: &[u32]) {
        let two: [(&str, &[u32]); 3] = [("#address-cells", &[2]), ("#size-cells", &[2]), ("ranges", &[])];
        let one: [(&str, &[u32]); 3] = [("#address-cells", &[1]), ("#size-cells", &[1]), ("ranges", &[])];
        child(tree, "", "reserved-memory", &two);
        child(tree, "", "bus", &one);
        let display: [(&str, &[u32]); 2] = [("phandle", &[0x7001]), ("iommus", &[smmu, 5, smmu, 6])];
        child(tree, "/bus", "display@1", &display);
        let memory: [(&str, &[u32]); 2] =
            [("reg", &[0, 0x5000_0000, 0, 0x80_0000]), ("iommu-addresses", iommu_addresses)];
        child(tree, "/reserved-memory", "fb@50000000", &memory);
    }

    #[test]
    fn memory_that_a_device_accesses_for_the_firmware_is_kept_for_its_streams() {
        let found = |list: &[u32]| reserved(&read(|tree, smmu| splash(tree, smmu, list)));
        let whole = [(5, 0x5000_0000, 0x80_0000), (6, 0x5000_0000, 0x80_0000)];
        // The cells of the display's bus, and those of the example in the binding.
        assert_eq!(found(&[0x7001, 0x5000_0000, 0x80_0000]), whole);
        assert_eq!(found(&[0x7001, 0, 0x5000_0000, 0, 0x80_0000]), whole);
        assert_eq!(found(&[0x7001, 0x5000_1000, 0x1000])[0], (5, 0x5000_1000, 0x1000));
        assert_eq!(found(&[0x7001, 0x5000_0000, 1, 0x7001, 0x5000_1001, 0xfff]).len(), 4);
        // At another address, beyond the memory, of no device, cut short, too large.
        for odd in [
            &[0x7001, 0x6000_0000, 0x80_0000][..],
            &[0x7001, 0x5000_0000, 0x80_0001],
            &[0xdead, 0x5000_0000, 0x80_0000],
            &[0x7001, 0x5000_0000],
            &[0x7001],
            &[],
            &[0x7001, u32::MAX, u32::MAX, u32::MAX, u32::MAX],
            &[0x7001, 0x5000_0000, 0],
        ] {
            assert_eq!(found(odd), [], "{odd:x?}");
        }
        // The device is off, or is behind no SMMU.
        for off in [true, false] {
            let machine = read(|tree, smmu| {
                splash(tree, smmu, &[0x7001, 0x5000_0000, 0x80_0000]);
                if off {
                    set(tree, "/bus/display@1", "status", "disabled");
                } else {
                    set(tree, "/bus/display@1", "iommus", [0xdeadu32, 5]);
                }
            });
            assert_eq!(reserved(&machine), []);
        }
    }
}
