//! IORT: which ITS takes a PCI function's MSIs, with which DeviceID, and which SMMU is in front of it (DEN 0049E).
//!
//! The table is a graph: nodes refer to each other by offset, and an edge maps a range of IDs. A root complex leads to
//! an ITS group at once, or to an SMMU (requester IDs become StreamIDs) and from there to a group (StreamIDs become
//! DeviceIDs). The path is followed here range by range, so that a [`PciHost`] ends up with the same two lists as one
//! from a device tree. It has a few steps at most: a graph with a circle ends there.

use super::madt::ItsNames;
use super::{AcpiError, Fields};
use crate::ids::{Intid, ItsId, Pa};
use crate::platform::{IdMap, Machine, MachineError, PciHost, Smmu, SmmuId, What};
use crate::util::range::Range;
use arrayvec::ArrayVec;

/// Offsets in the table's header.
pub(crate) const NODES: usize = 36;
pub(crate) const FIRST: usize = 40;
/// Types of nodes.
pub(crate) const ITS_GROUP: u8 = 0;
pub(crate) const NAMED_COMPONENT: u8 = 1;
pub(crate) const ROOT_COMPLEX: u8 = 2;
pub(crate) const SMMU_V2: u8 = 3;
pub(crate) const SMMU_V3: u8 = 4;
/// Length of a node's own header, and of an ID mapping.
pub(crate) const NODE: usize = 16;
pub(crate) const MAPPING: usize = 20;
/// An ID mapping for one ID, that of the node itself.
pub(crate) const SINGLE: u32 = 1 << 0;

const SMMU_REGS: u64 = 0x2_0000;
/// SMMUv3 flags: COHACC is to be taken for set.
const COHACC: u32 = 1 << 0;
/// A path from a root complex to an ITS has one SMMU; two are allowed for.
const LONGEST_PATH: usize = 3;

/// The SMMUs' places in the table, in the order of [`Machine::smmus`].
type SmmuPlaces = ArrayVec<usize, 16>;

/// A node.
#[derive(Clone, Copy)]
pub(crate) struct Node<'m> {
    /// What it is.
    pub kind: u8,
    /// Its offset in the table, by which others refer to it.
    pub at: usize,
    /// Its bytes.
    pub fields: Fields<'m>,
}

/// An ID mapping.
#[derive(Clone, Copy)]
pub(crate) struct Mapping {
    pub input: u32,
    /// How many IDs, less one.
    pub more: u32,
    pub output: u32,
    pub to: usize,
    pub flags: u32,
}

impl<'m> Node<'m> {
    /// The node at an offset.
    pub(crate) fn at(iort: Fields<'m>, at: usize) -> Result<Node<'m>, AcpiError> {
        let head = iort.part(at, NODE)?;
        let length = usize::from(head.u16(1)?);
        if length < NODE {
            return Err(AcpiError::BadEntry(iort.table));
        }
        Ok(Node { kind: head.u8(0)?, at, fields: iort.part(at, length)? })
    }

    /// Its ID mappings.
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

/// All nodes, in the table's order. Each is at least as long as its header, so this ends with the table.
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

/// A stretch of requester IDs on its way: what `rid_base` has become, and for how many the same holds.
#[derive(Clone, Copy)]
struct Ids {
    rid_base: u32,
    /// The number that `rid_base` has become.
    now: u32,
    length: u32,
}

impl Ids {
    /// The part of it that a mapping is about, mapped.
    fn through(self, mapping: Mapping) -> Option<Ids> {
        let (start, end) = (u64::from(self.now), u64::from(self.now) + u64::from(self.length));
        let from = start.max(u64::from(mapping.input));
        let to = end.min(u64::from(mapping.input) + u64::from(mapping.more) + 1);
        let length = u32::try_from(to.checked_sub(from).filter(|&length| length > 0)?).ok()?;
        let skipped = u32::try_from(from - start).ok()?;
        let now = u64::from(mapping.output) + (from - u64::from(mapping.input));
        // What would become a number of more than 32 bits becomes nothing.
        u32::try_from(now + u64::from(length) - 1).ok()?;
        Some(Ids { rid_base: self.rid_base.checked_add(skipped)?, now: u32::try_from(now).ok()?, length })
    }
}

/// Adds the SMMUs, and the two maps of each PCI host.
pub(super) fn read(iort: Fields<'_>, names: &ItsNames, machine: &mut Machine) -> Result<(), AcpiError> {
    let mut places = SmmuPlaces::new();
    for node in nodes(iort) {
        let node = node?;
        if node.kind == SMMU_V3 {
            let full = MachineError::TooMany { what: What::Smmu, limit: machine.smmus.capacity() };
            machine.smmus.try_push(read_smmu(node.fields)?).map_err(|_| full)?;
            places.try_push(node.at).map_err(|_| full)?;
        }
    }
    for node in nodes(iort) {
        let node = node?;
        if node.kind != ROOT_COMPLEX {
            continue;
        }
        let segment = node.fields.u32(28)?;
        for host in machine.pci.iter_mut().filter(|host| u32::from(host.segment) == segment) {
            let (first, last) = host.buses;
            let rid_base = u32::from(first) << 8;
            let length = (u32::from(last.saturating_sub(first)) + 1) << 8;
            follow(iort, node, Ids { rid_base, now: rid_base, length }, LONGEST_PATH, names, &places, host)?;
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

/// Follows `ids` out of `node` and writes down where they arrive.
fn follow(
    iort: Fields<'_>,
    node: Node<'_>,
    ids: Ids,
    left: usize,
    names: &ItsNames,
    smmus: &SmmuPlaces,
    host: &mut PciHost,
) -> Result<(), AcpiError> {
    let Some(left) = left.checked_sub(1) else { return Ok(()) };
    for mapping in node.mappings() {
        let mapping = mapping?;
        // One of its own, not of what is behind it.
        if mapping.flags & SINGLE != 0 && node.kind != NAMED_COMPONENT {
            continue;
        }
        let Some(ids) = ids.through(mapping) else { continue };
        let next = Node::at(iort, mapping.to)?;
        match next.kind {
            ITS_GROUP => {
                // A group of several is for whoever wants to choose; the first is as good as any.
                let name = if next.fields.u32(16)? == 0 { None } else { Some(next.fields.u32(20)?) };
                if let Some(its) = names.iter().position(|&its| Some(its) == name) {
                    add(&mut host.msi_map, ids, ItsId(its as u8))?;
                }
            }
            SMMU_V3 => {
                if let Some(smmu) = smmus.iter().position(|&at| at == next.at) {
                    add(&mut host.iommu_map, ids, SmmuId(smmu as u8))?;
                }
                follow(iort, next, ids, left, names, smmus, host)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Appends a line, or makes the last one longer where it goes on without a gap.
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
    map.try_push(line).map_err(|_| MachineError::TooMany { what: What::IdMap, limit: N })
}
