//! The shape of a stream table, and which parts of it a range of streams has (IHI 0070, 3.3).

use super::facts::Facts;
use super::ste::SIZE;
use crate::ids::StreamId;
use arrayvec::ArrayVec;
use core::ops::{Range, RangeInclusive};

/// Bytes of a first-level descriptor.
pub const DESCRIPTOR: u64 = 8;

/// The shape of a stream table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// log2 of the number of streams.
    pub bits: u8,
    /// log2 of the number of entries of a leaf: all of a linear table, or SPLIT.
    pub leaf_bits: u8,
    /// Whether there are first-level descriptors.
    pub two_levels: bool,
}

impl Shape {
    /// The shape of the table for an SMMU: the smallest leaves with which the first level has at most 256 KiB.
    pub fn new(facts: &Facts) -> Shape {
        let bits = facts.stream_bits;
        let leaf_bits = match bits {
            ..=18 => 6,
            19..=21 => 8,
            _ => 10,
        };
        if facts.two_levels && bits > leaf_bits {
            Shape { bits, leaf_bits, two_levels: true }
        } else {
            Shape { bits, leaf_bits: bits, two_levels: false }
        }
    }

    /// Bytes of a leaf.
    pub const fn leaf_size(self) -> usize {
        (SIZE as usize).wrapping_shl(self.leaf_bits as u32)
    }

    /// The number of entries of a leaf.
    pub const fn leaf_entries(self) -> u64 {
        1u64.wrapping_shl(self.leaf_bits as u32)
    }

    /// The number of leaves, or of first-level descriptors.
    pub const fn leaves(self) -> u64 {
        1u64.wrapping_shl(self.bits.saturating_sub(self.leaf_bits) as u32)
    }

    /// Bytes of the table that STRTAB_BASE points at.
    pub const fn root_size(self) -> usize {
        if self.two_levels { self.leaves().wrapping_mul(DESCRIPTOR) as usize } else { self.leaf_size() }
    }

    /// The leaves of these streams, all in the table.
    pub fn parts(self, streams: &RangeInclusive<StreamId>) -> Parts {
        let entries = self.leaf_entries();
        let leaf_of = |stream: u64| stream.wrapping_shr(self.leaf_bits.into());
        let index_of = |stream: u64| stream & entries.saturating_sub(1);
        let (first, last) = (u64::from(streams.start().0), u64::from(streams.end().0));
        let end = last.saturating_add(1);
        // Leaves from the first one that begins in the range, up to the last one that ends in it. A linear table's leaf
        // is never replaced.
        let whole = leaf_of(first.saturating_add(entries.saturating_sub(1)))..leaf_of(end);
        let mut parts = Parts { edges: ArrayVec::new(), whole };
        if !self.two_levels || parts.whole.is_empty() {
            parts.whole = 0..0;
            let (low, high) = (leaf_of(first), leaf_of(last));
            let split = if low == high { index_of(last) } else { entries.saturating_sub(1) };
            parts.edges.push(Edge { leaf: low, entries: index_of(first)..split.saturating_add(1) });
            if low != high {
                parts.edges.push(Edge { leaf: high, entries: 0..index_of(end) });
            }
            return parts;
        }
        if index_of(first) != 0 {
            parts.edges.push(Edge { leaf: leaf_of(first), entries: index_of(first)..entries });
        }
        if index_of(end) != 0 {
            parts.edges.push(Edge { leaf: leaf_of(end), entries: 0..index_of(end) });
        }
        parts
    }
}

/// A range of streams, by leaves.
pub struct Parts {
    /// The leaves of which the range has a part.
    pub edges: ArrayVec<Edge, 2>,
    /// The leaves that the range has as a whole.
    pub whole: Range<u64>,
}

/// A part of a leaf.
#[derive(Clone)]
pub struct Edge {
    /// The leaf.
    pub leaf: u64,
    /// The entries of the part.
    pub entries: Range<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smmu::testing::facts;
    use std::vec::Vec;

    fn shape(stream_bits: u8) -> Shape {
        Shape::new(&Facts { stream_bits, ..facts() })
    }

    #[test]
    fn the_first_level_takes_no_more_than_256_kib() {
        let root = |bits| (shape(bits).leaf_bits, shape(bits).root_size());
        assert_eq!((root(16), root(18), root(19)), ((6, 8 << 10), (6, 8 << 12), (8, 8 << 11)));
        assert_eq!((root(21), root(22), root(25)), ((8, 8 << 13), (10, 8 << 12), (10, 8 << 15)));
        assert_eq!(shape(19).leaf_size(), 16 << 10);
        // With no more streams than a leaf has, one level is enough.
        assert_eq!((shape(6).two_levels, shape(7).two_levels), (false, true));
        assert_eq!((shape(6).root_size(), shape(0).root_size()), (64 * 64, 64));
    }

    /// A leaf, and the first and the last entry of a part of it.
    type Part = (u64, u64, u64);

    /// The edges of a range, and the first and the last whole leaf.
    fn parts(bits: u8, first: u32, last: u32) -> (Vec<Part>, Option<(u64, u64)>) {
        let parts = shape(bits).parts(&(StreamId(first)..=StreamId(last)));
        let edges = parts.edges.iter().map(|edge| (edge.leaf, edge.entries.start, edge.entries.end - 1));
        let whole = (!parts.whole.is_empty()).then(|| (parts.whole.start, parts.whole.end - 1));
        (edges.collect(), whole)
    }

    #[test]
    fn a_range_has_whole_leaves_and_parts_of_two_at_most() {
        assert_eq!(parts(16, 5, 5), (vec![(0, 5, 5)], None));
        assert_eq!(parts(16, 0, 63), (vec![], Some((0, 0))));
        assert_eq!(parts(16, 0, 64), (vec![(1, 0, 0)], Some((0, 0))));
        assert_eq!(parts(16, 63, 64), (vec![(0, 63, 63), (1, 0, 0)], None));
        assert_eq!(parts(16, 63, 127), (vec![(0, 63, 63)], Some((1, 1))));
        assert_eq!(parts(16, 1, 62), (vec![(0, 1, 62)], None));
        assert_eq!(parts(16, 1, 0x1001), (vec![(0, 1, 63), (0x40, 0, 1)], Some((1, 0x3f))));
        assert_eq!(parts(16, 0, 0xffff), (vec![], Some((0, 0x3ff))));
        assert_eq!(parts(16, 0xffff, 0xffff), (vec![(0x3ff, 63, 63)], None));
        assert_eq!(parts(5, 0, 31), (vec![(0, 0, 31)], None), "the leaf of a linear table is never replaced");
        assert_eq!(parts(0, 0, 0), (vec![(0, 0, 0)], None));
    }
}
