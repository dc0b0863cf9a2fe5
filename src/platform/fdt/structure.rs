//! The check of a tree's header and structure (Devicetree Specification 0.4, chapter 5), after which the iterators of
//! `dtoolkit` cannot fail.
//!
//! `dtoolkit` has a check of its own, `Fdt::new`. It also refuses a tree for a name of more than 31 characters, or with
//! other characters than the specification has, anywhere in the tree. Linux and libfdt accept such names, and most
//! boards have one (`linux,rs485-enabled-at-boot-time`). So this check asks of names only what the iterators need: that
//! they end, and that they are UTF-8.

use super::walk::Cells;
use crate::platform::MachineError;
use dtoolkit::fdt::Fdt;

/// The version of the format, which says what the header and the structure look like.
const VERSION: u32 = 17;
/// The size of an entry of `/memreserve/` in cells: address and size.
const RESERVATION: u32 = 4;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// Checks the tree that `blob` begins with and consists of.
///
/// # Errors
///
/// [`MachineError::NotATree`], [`MachineError::Version`], [`MachineError::Malformed`].
pub(super) fn check(blob: &[u8]) -> Result<Fdt<'_>, MachineError> {
    let mut header = Cells(blob);
    let mut field = || header.one().ok_or(MachineError::NotATree);
    let (magic, size) = (field()?, field()?);
    if magic != 0xd00d_feed {
        return Err(MachineError::NotATree);
    }
    let (structure, strings, reservations) = (field()?, field()?, field()?);
    let (version, compatible, _boot_cpu) = (field()?, field()?, field()?);
    // What the structure's size adds to the structure's own end is only one more thing that may be wrong.
    let (strings_size, _structure_size) = (field()?, field()?);
    if !(compatible..=version).contains(&VERSION) {
        return Err(MachineError::Version(version));
    }
    // Properties and names are aligned to cells, counted from the start of the tree.
    let sound = size as usize == blob.len()
        && structure.is_multiple_of(4)
        && are_terminated(from(blob, reservations))
        && is_sound(from(blob, structure), block(blob, strings, strings_size));
    if sound { Ok(Fdt::new_unchecked(blob)) } else { Err(MachineError::Malformed) }
}

fn from(blob: &[u8], start: u32) -> &[u8] {
    blob.get(start as usize..).unwrap_or(&[])
}

fn block(blob: &[u8], start: u32, size: u32) -> &[u8] {
    from(blob, start).get(..size as usize).unwrap_or(&[])
}

/// Whether a list of reservations ends with one of zeros.
fn are_terminated(list: &[u8]) -> bool {
    let mut list = Cells(list);
    while let Some(entry) = list.take(RESERVATION) {
        if entry.0.iter().all(|&byte| byte == 0) {
            return true;
        }
    }
    false
}

/// Whether the structure is one root node, whose properties have names in `strings`.
fn is_sound(structure: &[u8], strings: &[u8]) -> bool {
    walk(structure, strings).is_some()
}

fn walk(structure: &[u8], strings: &[u8]) -> Option<()> {
    let mut cells = Cells(structure);
    let mut depth = 0usize;
    let mut had_root = false;
    // A node's properties come before its children.
    let mut takes_properties = false;
    loop {
        match cells.one()? {
            BEGIN_NODE => {
                let is_root = depth == 0;
                let name = text_at(cells.0, 0)?;
                cells.take(cells_of(name.len().checked_add(1)?)?)?;
                if is_root != name.is_empty() || is_root && had_root {
                    return None;
                }
                had_root = true;
                takes_properties = true;
                depth = depth.checked_add(1)?;
            }
            END_NODE => {
                depth = depth.checked_sub(1)?;
                takes_properties = false;
            }
            PROP if takes_properties => {
                let (size, name) = (cells.one()?, cells.one()?);
                text_at(strings, name as usize)?;
                cells.take(cells_of(size as usize)?)?;
            }
            NOP => {}
            END if depth == 0 && had_root => return Some(()),
            _ => return None,
        }
    }
}

/// The number of cells that hold `bytes` bytes.
fn cells_of(bytes: usize) -> Option<u32> {
    u32::try_from(bytes.div_ceil(4)).ok()
}

/// Returns the text at `start`, which ends with a zero.
fn text_at(bytes: &[u8], start: usize) -> Option<&str> {
    let bytes = bytes.get(start..)?;
    let end = bytes.iter().position(|&byte| byte == 0)?;
    core::str::from_utf8(bytes.get(..end)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::fdt;
    use crate::platform::testing::{DOM0, GICV2, GICV3, GICV4, edited};
    use alloc::format;
    use alloc::string::String;
    use alloc::vec::Vec;
    use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
    use dtoolkit::{Node, Property};

    const SEVENTEEN: [u32; 10] = [0xd00d_feed, 0, 56, 0, 40, 17, 16, 0, 0, 0];

    /// A tree with this structure and these strings.
    fn tree(structure: &[u32], strings: &[u8]) -> Vec<u8> {
        let mut header = SEVENTEEN;
        header[3] = 56 + 4 * structure.len() as u32;
        header[1] = header[3] + strings.len() as u32;
        header[8] = strings.len() as u32;
        header[9] = 4 * structure.len() as u32;
        let cells = header.iter().chain(&[0; 4]).chain(structure);
        let mut blob: Vec<u8> = cells.flat_map(|cell| cell.to_be_bytes()).collect();
        blob.extend(strings);
        blob
    }

    #[test]
    fn names_may_have_any_length_and_characters() {
        let long = "linux,rs485-enabled-at-boot-time-and-for-ever";
        assert!(long.len() > 31);
        let blob = edited(DOM0, |tree| {
            let mut node = DeviceTreeNode::new_unchecked(format!("{long}@9000000"));
            node.add_property(DeviceTreeProperty::new_unchecked(long, 7u32));
            node.add_property(DeviceTreeProperty::new_unchecked("x/y z@1~é", 8u32));
            node.add_child(DeviceTreeNode::new_unchecked("@@ ?"));
            tree.root.add_child(node);
        });
        assert!(Fdt::new(&blob).is_err(), "the check that this one is for");
        assert_eq!(fdt::read(&blob), fdt::read(DOM0));
        let tree = DeviceTree::from_fdt(&check(&blob).unwrap());
        let node = tree.root.child(long).unwrap();
        assert_eq!(node.property(long).unwrap().value(), [0, 0, 0, 7]);
        assert!(node.property("x/y z@1~é").is_some() && node.children().next().is_some());
    }

    #[test]
    fn a_structure_is_one_root_of_nodes_that_end_with_their_properties_first() {
        let a = u32::from_be_bytes(*b"a\0\0\0");
        let (one, name) = ([PROP, 1, 0, 0xff00_0000], b"n\0");
        let good = |structure: &[u32]| check(&tree(structure, name)).is_ok();
        assert!(good(&[BEGIN_NODE, 0, END_NODE, END]));
        assert!(good(&[NOP, BEGIN_NODE, 0, NOP, END_NODE, NOP, END]));
        let [p0, p1, p2, p3] = one;
        assert!(good(&[BEGIN_NODE, 0, p0, p1, p2, p3, BEGIN_NODE, a, p0, p1, p2, p3, END_NODE, END_NODE, END]));
        for bad in [
            &[][..],
            &[END],
            &[BEGIN_NODE, 0, END_NODE],
            &[BEGIN_NODE, 0, END],
            &[BEGIN_NODE, 0, END_NODE, END_NODE, END],
            &[BEGIN_NODE, a, END_NODE, END],
            &[BEGIN_NODE, 0, BEGIN_NODE, 0, END_NODE, END_NODE, END],
            &[BEGIN_NODE, 0, END_NODE, BEGIN_NODE, 0, END_NODE, END],
            &[BEGIN_NODE, 0, BEGIN_NODE, a, END_NODE, p0, p1, p2, p3, END_NODE, END],
            &[PROP, 0, 0, BEGIN_NODE, 0, END_NODE, END],
            &[BEGIN_NODE, 0, PROP, 5, 0, 0, END_NODE, END],
            &[BEGIN_NODE, 0, PROP, u32::MAX, 0, END_NODE, END],
            &[BEGIN_NODE, 0, PROP, 0, 2, END_NODE, END],
            &[BEGIN_NODE, 0, PROP, 0, u32::MAX, END_NODE, END],
            &[BEGIN_NODE, 0, 5, END_NODE, END],
            &[BEGIN_NODE, 0xff00_0000, END_NODE, END],
            &[BEGIN_NODE, 0x6161_6161],
        ] {
            assert!(!good(bad), "{bad:x?}");
        }
        // Names that do not end, and that are no text.
        let nameless = [BEGIN_NODE, 0, PROP, 0, 0, END_NODE, END];
        assert!(check(&tree(&nameless, b"n\0")).is_ok());
        assert!(check(&tree(&nameless, b"n")).is_err() && check(&tree(&nameless, b"\xff\0")).is_err());
    }

    #[test]
    fn a_header_with_blocks_out_of_bounds_is_refused() {
        let good = tree(&[BEGIN_NODE, 0, END_NODE, END], b"");
        assert!(check(&good).is_ok());
        for (field, value) in
            [(1, 71), (2, 57), (2, 60), (2, u32::MAX), (3, 73), (4, 64), (4, 72), (4, u32::MAX), (9, 12), (9, u32::MAX)]
        {
            let mut blob = good.clone();
            blob[4 * field..4 * field + 4].copy_from_slice(&u32::to_be_bytes(value));
            // Strings that nothing refers to need not be there, and the structure itself says where it ends.
            assert_eq!(check(&blob).is_ok(), matches!(field, 3 | 9), "{field}: {value:#x}");
        }
        for (version, compatible) in [(16, 16), (18, 18)] {
            let mut blob = good.clone();
            blob[20..24].copy_from_slice(&u32::to_be_bytes(version));
            blob[24..28].copy_from_slice(&u32::to_be_bytes(compatible));
            assert_eq!(check(&blob).err(), Some(MachineError::Version(version)));
        }
        assert_eq!(check(&good[..39]).err(), Some(MachineError::NotATree));
    }

    fn paths(node: &dtoolkit::fdt::FdtNode<'_>, above: &str, seen: &mut Vec<String>) {
        let path = format!("{above}/{}", node.name());
        seen.extend(node.properties().map(|property| format!("{path}:{} {:x?}", property.name(), property.value())));
        node.children().for_each(|child| paths(&child, &path, seen));
    }

    /// Damages trees at random. What `dtoolkit` accepts by its own check is accepted here, and all of what is accepted here
    /// can be read to the end.
    #[test]
    fn what_dtoolkit_accepts_is_accepted_and_all_that_is_accepted_can_be_read() {
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 11) as usize % below
        };
        for blob in [DOM0, GICV2, GICV3, GICV4] {
            assert!(Fdt::new(blob).is_ok() && check(blob).is_ok());
        }
        let (mut both, mut ours, mut neither) = (0, 0, 0);
        for round in 0..4000 {
            let mut blob = DOM0.to_vec();
            for _ in 0..=random(3) {
                let at = random(blob.len() - 3);
                let header = 4 * random(10);
                match round % 4 {
                    0 => blob[at] ^= 1 << random(8),
                    1 => blob[header + 3] ^= 1 << random(8),
                    2 => blob[at & !3..][..4].copy_from_slice(&u32::to_be_bytes(random(10) as u32)),
                    _ => blob[at] = random(256) as u8,
                }
            }
            let here = check(&blob);
            if let Ok(fdt) = &here {
                let mut seen = Vec::new();
                paths(&fdt.root(), "", &mut seen);
                assert!(seen.len() > 1);
                assert!(fdt.memory_reservations().count() < blob.len());
            }
            match (Fdt::new(&blob).is_ok(), here.is_ok()) {
                (true, true) => both += 1,
                (false, true) => ours += 1,
                (false, false) => neither += 1,
                (true, false) => panic!("refused here only: {:x?}", &blob[..40]),
            }
        }
        assert!(both > 500 && ours > 100 && neither > 500, "{both} {ours} {neither}");
    }
}
