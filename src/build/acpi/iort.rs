//! dom0's IORT: the host's without SMMUs.
//!
//! A root complex, or a device that AML names, may reach its ITS through an SMMU. EL2 keeps the SMMU, so such a path
//! becomes a direct one: the two mappings are combined, and the DeviceIDs stay the same. ITS groups, root complexes and
//! named components are copied with new offsets. All other nodes (SMMUs, their counters, memory that firmware has
//! reserved behind them) are left out, together with the mappings to them.

use crate::platform::acpi::iort::{
    FIRST, ITS_GROUP, MAPPING, Mapping, NAMED_COMPONENT, NODE, NODES, Node, ROOT_COMPLEX, SINGLE, SMMU_V2, SMMU_V3,
    nodes,
};
use crate::platform::acpi::{AcpiError, Fields};
use alloc::vec::Vec;

/// Offset in bytes of the first node of the new table.
const START: usize = 48;
/// Largest number of mappings in a path.
const LONGEST_PATH: usize = 3;
/// Largest number of mappings in the new table. Real tables have some dozens.
const MOST: usize = 4096;

/// A mapping that ends at an ITS group of the old table.
#[derive(Clone, Copy)]
struct Direct {
    input: u64,
    length: u64,
    output: u64,
    to: usize,
    flags: u32,
}

/// Returns the new table without a checksum.
pub(crate) fn rewrite(host: Fields<'_>) -> Result<Vec<u8>, AcpiError> {
    let mut table = host.part(0, FIRST + 8)?.bytes.to_vec();
    table.resize(START, 0);
    // Groups come first, so that their new offsets are known when the nodes that refer to them are written.
    let mut groups: Vec<(usize, usize)> = Vec::new();
    let mut count = 0u32;
    let mut mappings = 0;
    for want_groups in [true, false] {
        for node in nodes(host) {
            let node = node?;
            if (node.kind == ITS_GROUP) != want_groups || !is_kept(node.kind) {
                continue;
            }
            if want_groups {
                groups.push((node.at, table.len()));
            }
            let mut paths = Vec::new();
            if !want_groups {
                collect(host, node, None, LONGEST_PATH, &mut paths)?;
            }
            mappings += paths.len();
            if mappings > MOST {
                return Err(AcpiError::BadEntry(host.table));
            }
            write(node, &paths, &groups, &mut table)?;
            count += 1;
        }
    }
    put(&mut table, NODES, count);
    put(&mut table, FIRST, START as u32);
    Ok(table)
}

const fn is_kept(kind: u8) -> bool {
    matches!(kind, ITS_GROUP | NAMED_COMPONENT | ROOT_COMPLEX)
}

/// Collects the paths from `node` to ITS groups, with at most `left` mappings each. `so_far` is the path up to `node`.
fn collect(
    host: Fields<'_>,
    node: Node<'_>,
    so_far: Option<Direct>,
    left: usize,
    paths: &mut Vec<Direct>,
) -> Result<(), AcpiError> {
    let Some(left) = left.checked_sub(1) else { return Ok(()) };
    for mapping in node.mappings() {
        let mapping = mapping?;
        let is_single = mapping.flags & SINGLE != 0;
        // A single mapping of a node on the way describes that node's own interrupts.
        if so_far.is_some() && is_single {
            continue;
        }
        let Some(path) = extend(so_far, mapping) else { continue };
        let next = Node::at(host, mapping.to)?;
        match next.kind {
            ITS_GROUP => paths.push(Direct { to: next.at, ..path }),
            SMMU_V2 | SMMU_V3 => collect(host, next, Some(path), left, paths)?,
            _ => {}
        }
        if paths.len() > MOST {
            return Err(AcpiError::BadEntry(host.table));
        }
    }
    Ok(())
}

/// Returns the path extended by a mapping, or `None` if no ID is in both.
fn extend(so_far: Option<Direct>, mapping: Mapping) -> Option<Direct> {
    let (input, length, output) = (u64::from(mapping.input), u64::from(mapping.more) + 1, u64::from(mapping.output));
    // A single mapping has one ID, its output. Its input is not used.
    let own = if mapping.flags & SINGLE != 0 { (0, 1) } else { (input, length) };
    let Some(path) = so_far else {
        return Some(Direct { input: own.0, length: own.1, output, to: mapping.to, flags: mapping.flags });
    };
    let from = path.output.max(input);
    let to = (path.output + path.length).min(input + length);
    let length = to.checked_sub(from).filter(|&length| length > 0)?;
    Some(Direct { input: path.input + (from - path.output), length, output: output + (from - input), ..path })
}

/// Appends a copy of a node with new mappings.
fn write(node: Node<'_>, paths: &[Direct], groups: &[(usize, usize)], table: &mut Vec<u8>) -> Result<(), AcpiError> {
    let bad = AcpiError::BadEntry(node.fields.table);
    // A node's own fields precede its mappings.
    let first = if node.fields.u32(8)? == 0 {
        node.fields.bytes.len()
    } else {
        usize::try_from(node.fields.u32(12)?).map_err(|_| bad)?
    };
    let own = node.fields.part(0, first.max(NODE))?.bytes;
    let at = table.len();
    let length = u16::try_from(own.len() + MAPPING * paths.len()).map_err(|_| bad)?;
    table.extend_from_slice(own);
    table.get_mut(at + 1..at + 3).ok_or(bad)?.copy_from_slice(&length.to_le_bytes());
    put(table, at + 8, paths.len() as u32);
    put(table, at + 12, if paths.is_empty() { 0 } else { own.len() as u32 });
    for path in paths {
        let &(_, group) = groups.iter().find(|&&(old, _)| old == path.to).ok_or(bad)?;
        let word = |number: u64| u32::try_from(number).map_err(|_| bad);
        for word in [word(path.input)?, word(path.length - 1)?, word(path.output)?, group as u32, path.flags] {
            table.extend_from_slice(&word.to_le_bytes());
        }
    }
    Ok(())
}

fn put(table: &mut [u8], at: usize, word: u32) {
    if let Some(place) = table.get_mut(at..at + 4) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}
