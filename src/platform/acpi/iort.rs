//! IORT: the ITS and DeviceIDs of the MSIs of PCI functions and of devices that AML names, the SMMUs in front of them,
//! and the memory that devices access for the firmware (DEN 0049E).
//!
//! The table is a graph: nodes refer to each other by offset, and an edge translates a range of IDs. A root complex is
//! connected to an ITS group directly, or to an SMMU (requester IDs become StreamIDs) that is connected to a group
//! (StreamIDs become DeviceIDs). The reader follows each path range by range, so that a PCI host gets the same two lists
//! as from a device tree. The length of a path is limited, so a graph with a cycle terminates.

use super::madt::ItsNames;
use super::{AcpiError, Fields};
use crate::ids::{DeviceId, DeviceIds, Intid, ItsId, Pa, SmmuId, StreamId, Streams};
use crate::platform::{IdMap, Machine, MachineError, MsiDevices, Part, SMMUS, Smmu};
use crate::util::range::Range;
use arrayvec::ArrayVec;

/// Offsets of fields in the table's header.
pub(crate) const NODES: usize = 36;
pub(crate) const FIRST: usize = 40;
/// Node types.
pub(crate) const ITS_GROUP: u8 = 0;
pub(crate) const NAMED_COMPONENT: u8 = 1;
pub(crate) const ROOT_COMPLEX: u8 = 2;
pub(crate) const SMMU_V2: u8 = 3;
pub(crate) const SMMU_V3: u8 = 4;
/// A reserved memory range (RMR).
pub(crate) const RESERVED_MEMORY: u8 = 6;
/// The lengths of a node's header and of an ID mapping.
pub(crate) const NODE: usize = 16;
pub(crate) const MAPPING: usize = 20;
/// Flag of an ID mapping: it is for the single ID of the node itself.
pub(crate) const SINGLE: u32 = 1 << 0;

const SMMU_REGS: u64 = 0x2_0000;
/// SMMUv3 flag: COHACC override, the SMMU's accesses are coherent.
const COHACC: u32 = 1 << 0;
/// The revision of the table from which on (E.b) an RMR node has the fields that are read here.
const RMR_REVISION: u8 = 3;
/// The length of a memory range descriptor of an RMR node.
const RMR_DESCRIPTOR: usize = 20;
/// The offset of the OEM revision in the header of a table.
const OEM_REVISION: usize = 24;
/// The longest path from a root complex to an ITS. One SMMU is usual, two are allowed.
const LONGEST_PATH: usize = 3;

/// The offsets of the SMMUs' nodes, in the order of [`Machine::smmus`].
type SmmuPlaces = ArrayVec<usize, SMMUS>;

/// A node of the graph.
#[derive(Clone, Copy)]
pub(crate) struct Node<'m> {
    /// The node type.
    pub kind: u8,
    /// The offset in the table, by which other nodes refer to this one.
    pub at: usize,
    /// The bytes of the node.
    pub fields: Fields<'m>,
}

/// An ID mapping.
#[derive(Clone, Copy)]
pub(crate) struct Mapping {
    pub input: u32,
    /// The number of IDs minus one.
    pub more: u32,
    pub output: u32,
    pub to: usize,
    pub flags: u32,
}

impl<'m> Node<'m> {
    /// Reads the node at an offset.
    pub(crate) fn at(iort: Fields<'m>, at: usize) -> Result<Node<'m>, AcpiError> {
        let head = iort.part(at, NODE)?;
        let length = usize::from(head.u16(1)?);
        if length < NODE {
            return Err(AcpiError::BadEntry(iort.table));
        }
        Ok(Node { kind: head.u8(0)?, at, fields: iort.part(at, length)? })
    }

    /// Returns the ID mappings; an invalid one is the last.
    pub(crate) fn mappings(self) -> impl Iterator<Item = Result<Mapping, AcpiError>> + use<'m> {
        let fields = self.fields;
        let (count, first) = (fields.u32(8).unwrap_or(0), fields.u32(12).unwrap_or(0));
        let mut failed = false;
        (0..count).map_while(move |index| {
            if failed {
                return None;
            }
            let mapping = mapping(fields, first, index);
            failed = mapping.is_err();
            Some(mapping)
        })
    }
}

fn mapping(node: Fields<'_>, first: u32, index: u32) -> Result<Mapping, AcpiError> {
    let at = u64::from(first) + u64::from(index) * MAPPING as u64;
    let line = node.part(usize::try_from(at).unwrap_or(usize::MAX), MAPPING)?;
    Ok(Mapping {
        input: line.u32(0)?,
        more: line.u32(4)?,
        output: line.u32(8)?,
        to: usize::try_from(line.u32(12)?).unwrap_or(usize::MAX),
        flags: line.u32(16)?,
    })
}

/// Returns what a mapping means. The tables of Huawei's HIP07 and HIP08 have the number of IDs where the specification
/// has one less (in Linux: `iort_check_id_count_workaround`). A guest that gets these tables corrects them itself.
fn corrected(iort: Fields<'_>, mapping: Mapping) -> Mapping {
    let oem = iort.oem();
    let is_known = oem.id == *b"HISI  " && (oem.table == *b"HIP07   " || oem.table == *b"HIP08   ");
    if is_known && iort.u32(OEM_REVISION) == Ok(0) {
        return Mapping { more: mapping.more.saturating_sub(1), ..mapping };
    }
    mapping
}

/// Returns all nodes in the order of the table. A node is at least as long as its header, so this terminates.
pub(crate) fn nodes(iort: Fields<'_>) -> impl Iterator<Item = Result<Node<'_>, AcpiError>> {
    let count = iort.u32(NODES);
    let mut at = iort.u32(FIRST).map(|at| usize::try_from(at).unwrap_or(usize::MAX));
    let mut left = count.unwrap_or(1);
    core::iter::from_fn(move || {
        left = left.checked_sub(1)?;
        let node = at.and_then(|at| Node::at(iort, at));
        match node {
            Ok(node) => at = Ok(node.at + node.fields.bytes.len()),
            Err(_) => left = 0,
        }
        Some(node)
    })
}

/// A range of requester IDs on a path, and what it has been translated to so far.
#[derive(Clone, Copy)]
struct Ids {
    rid_base: u32,
    /// The ID that `rid_base` has been translated to.
    now: u32,
    length: u32,
}

impl Ids {
    /// Translates the part of the range that a mapping covers.
    fn through(self, mapping: Mapping) -> Option<Ids> {
        if mapping.flags & SINGLE != 0 {
            // The node has one ID, the output. The input is not used.
            return Some(Ids { now: mapping.output, length: 1, ..self });
        }
        let (start, end) = (u64::from(self.now), u64::from(self.now) + u64::from(self.length));
        let from = start.max(u64::from(mapping.input));
        let to = end.min(u64::from(mapping.input) + u64::from(mapping.more) + 1);
        let length = u32::try_from(to.checked_sub(from).filter(|&length| length > 0)?).ok()?;
        let skipped = u32::try_from(from - start).ok()?;
        let now = u64::from(mapping.output) + (from - u64::from(mapping.input));
        // A translation to an ID of more than 32 bits is ignored.
        u32::try_from(now + u64::from(length) - 1).ok()?;
        Some(Ids { rid_base: self.rid_base.checked_add(skipped)?, now: u32::try_from(now).ok()?, length })
    }
}

/// Where a path ends, or passes through.
#[derive(Clone, Copy)]
enum Target {
    Its(ItsId),
    Smmu(SmmuId),
}

/// What the translations at the targets of a path are passed to.
type Found<'a> = dyn FnMut(Ids, Target) -> Result<(), MachineError> + 'a;

/// Adds the SMMUs and the devices that AML names, and fills the two maps of each PCI host.
pub(super) fn read(iort: Fields<'_>, names: &ItsNames, machine: &mut Machine) -> Result<(), AcpiError> {
    let mut places = SmmuPlaces::new();
    for node in nodes(iort) {
        let node = node?;
        if node.kind == SMMU_V3 {
            let smmu = read_smmu(node.fields)?;
            if machine.smmus.try_push(smmu).is_ok() {
                let _ = places.try_push(node.at); // as large as the other
            } else {
                machine.leave_out(Part::Smmu);
                // Nor may a domain use it.
                machine.gic.add_unused(smmu.regs)?;
            }
        }
    }
    for node in nodes(iort) {
        let node = node?;
        if node.kind == NAMED_COMPONENT {
            // Its inputs are its own, and few; what matters is the DeviceIDs that they become.
            let ids = Ids { rid_base: 0, now: 0, length: u32::MAX };
            follow(iort, node, ids, LONGEST_PATH, names, &places, &mut |ids, target| match target {
                Target::Its(its) => add_device(machine, ids, its),
                Target::Smmu(smmu) => {
                    machine.add_stream_device(streams(smmu, ids));
                    Ok(())
                }
            })?;
        }
        if node.kind == RESERVED_MEMORY && iort.revision() >= RMR_REVISION {
            read_reserved(iort, node, &places, machine);
        }
        if node.kind != ROOT_COMPLEX {
            continue;
        }
        let segment = node.fields.u32(28)?;
        for host in machine.pci.iter_mut().filter(|host| u32::from(host.segment) == segment) {
            let (first, last) = host.buses;
            let rid_base = u32::from(first) << 8;
            let length = (u32::from(last.saturating_sub(first)) + 1) << 8;
            let ids = Ids { rid_base, now: rid_base, length };
            follow(iort, node, ids, LONGEST_PATH, names, &places, &mut |ids, target| match target {
                Target::Its(its) => add(&mut host.msi_map, ids, its),
                Target::Smmu(smmu) => add(&mut host.iommu_map, ids, smmu),
            })?;
        }
    }
    Ok(())
}

fn read_smmu(smmu: Fields<'_>) -> Result<Smmu, AcpiError> {
    let irq = |at| smmu.u32(at).map(|gsiv| (gsiv != 0).then_some(Intid(gsiv)));
    Ok(Smmu {
        regs: Range::new(Pa(smmu.u64(16)?), SMMU_REGS),
        coherent: smmu.u32(24)? & COHACC != 0,
        event: irq(44)?,
        gerror: irq(52)?,
    })
}

/// Follows `ids` from `node` on and adds the translations that they end with to `found`.
fn follow(
    iort: Fields<'_>,
    node: Node<'_>,
    ids: Ids,
    left: usize,
    names: &ItsNames,
    smmus: &SmmuPlaces,
    found: &mut Found<'_>,
) -> Result<(), AcpiError> {
    let Some(left) = left.checked_sub(1) else { return Ok(()) };
    for mapping in node.mappings() {
        let mapping = corrected(iort, mapping?);
        // This one is for the node's own MSIs.
        if mapping.flags & SINGLE != 0 && node.kind != NAMED_COMPONENT {
            continue;
        }
        let Some(ids) = ids.through(mapping) else { continue };
        let next = Node::at(iort, mapping.to)?;
        match next.kind {
            ITS_GROUP => {
                // If the group has several ITSs, any of them can be used; take the first.
                let name = if next.fields.u32(16)? == 0 { None } else { Some(next.fields.u32(20)?) };
                if let Some(its) = names.iter().position(|&its| Some(its) == name) {
                    found(ids, Target::Its(ItsId(its as u8)))?;
                }
            }
            SMMU_V3 => {
                if let Some(smmu) = smmus.iter().position(|&at| at == next.at) {
                    found(ids, Target::Smmu(SmmuId(smmu as u8)))?;
                }
                follow(iort, next, ids, left, names, smmus, found)?;
            }
            // Not managed, but MSIs pass through it.
            SMMU_V2 => follow(iort, next, ids, left, names, smmus, found)?,
            _ => {}
        }
    }
    Ok(())
}

impl Ids {
    /// Returns the last ID that the range has been translated to. A length that no device has is cut to the IDs of a bus.
    fn last(self) -> u32 {
        self.now.saturating_add(self.length.min(0x1_0000).saturating_sub(1))
    }
}

fn streams(smmu: SmmuId, ids: Ids) -> Streams {
    Streams { smmu, first: StreamId(ids.now), last: StreamId(ids.last()) }
}

/// Adds the memory ranges of an RMR node for the streams of its ID mappings. All that is invalid is left out. The flags
/// say how an operating system may map the ranges, and do not matter to one that maps them at their own address.
fn read_reserved(iort: Fields<'_>, node: Node<'_>, smmus: &SmmuPlaces, machine: &mut Machine) {
    let (Ok(count), Ok(first)) = (node.fields.u32(20), node.fields.u32(24)) else { return };
    for mapping in node.mappings().map_while(Result::ok).map(|mapping| corrected(iort, mapping)) {
        let is_smmu = Node::at(iort, mapping.to).is_ok_and(|next| next.kind == SMMU_V3);
        let Some(smmu) = smmus.iter().position(|&at| is_smmu && at == mapping.to) else { continue };
        // The input means nothing, since the node stands for no device.
        let ids = Ids { rid_base: 0, now: mapping.output, length: mapping.more.saturating_add(1) };
        let streams = streams(SmmuId(smmu as u8), ids);
        let descriptors = node.fields.rest(first as usize).bytes.chunks_exact(RMR_DESCRIPTOR);
        for bytes in descriptors.take(count as usize) {
            let descriptor = Fields { bytes, ..node.fields };
            if let (Ok(base), Ok(size)) = (descriptor.u64(0), descriptor.u64(8)) {
                machine.add_dma_reserved(streams, Range::new(Pa(base), size));
            }
        }
    }
}

/// Adds the DeviceIDs of a device that AML names.
fn add_device(machine: &mut Machine, ids: Ids, its: ItsId) -> Result<(), MachineError> {
    let devices = MsiDevices { its, ids: DeviceIds { first: DeviceId(ids.now), last: DeviceId(ids.last()) } };
    if machine.msi_devices.contains(&devices) {
        return Ok(());
    }
    if machine.msi_devices.try_push(devices).is_err() {
        machine.leave_out(Part::MsiDevices);
    }
    Ok(())
}

/// Appends an entry, or extends the last one if the new one continues it without a gap.
fn add<T: Copy + PartialEq, const N: usize>(
    map: &mut ArrayVec<IdMap<T>, N>,
    ids: Ids,
    target: T,
) -> Result<(), MachineError> {
    let line = IdMap { rid_base: ids.rid_base, target, out_base: ids.now, length: ids.length };
    if let Some(last) = map.last_mut()
        && last.target == target
        && last.rid_base.checked_add(last.length) == Some(line.rid_base)
        && last.out_base.checked_add(last.length) == Some(line.out_base)
        && let Some(length) = last.length.checked_add(line.length)
    {
        last.length = length;
        return Ok(());
    }
    map.try_push(line).map_err(|_| MachineError::TooMany { part: Part::IdMap, limit: N })
}
