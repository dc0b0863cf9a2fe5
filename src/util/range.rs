//! Ranges of physical addresses, and what is left of some when others are taken out.

use crate::ids::Pa;
use alloc::vec::Vec;
use core::fmt;

const PAGE: u64 = 4096;

/// A stretch of physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Range {
    /// The first address.
    pub base: Pa,
    /// Its length in bytes.
    pub size: u64,
}

impl Range {
    /// `size` bytes from `base` on.
    #[must_use]
    pub const fn new(base: Pa, size: u64) -> Range {
        Range { base, size }
    }

    /// From `start` up to, but not including, `end`; empty when `end` is not above `start`.
    #[must_use]
    pub const fn between(start: Pa, end: Pa) -> Range {
        Range { base: start, size: end.0.saturating_sub(start.0) }
    }

    /// The first address behind it. A range that wraps ends at the top of the address space; the check of a machine's
    /// description
    /// lets none through.
    #[must_use]
    pub const fn end(self) -> Pa {
        Pa(self.base.0.saturating_add(self.size))
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.size == 0
    }

    /// Whether `address` lies in it.
    #[must_use]
    pub const fn contains(self, address: Pa) -> bool {
        address.0 >= self.base.0 && address.0 < self.end().0
    }

    /// Whether all of `other` lies in it. An empty range lies nowhere.
    #[must_use]
    pub const fn covers(self, other: Range) -> bool {
        other.size != 0 && other.base.0 >= self.base.0 && other.end().0 <= self.end().0
    }

    /// Whether they share an address.
    #[must_use]
    pub const fn overlaps(self, other: Range) -> bool {
        self.size != 0 && other.size != 0 && self.base.0 < other.end().0 && other.base.0 < self.end().0
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.base.0, self.end().0)
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The pages that `wanted` touches, without the pages that `hidden` touches: sorted, merged, disjoint.
///
/// A page that holds both goes to nobody: what is hidden stays hidden.
#[must_use]
pub fn pages_without(wanted: &[Range], hidden: &[Range]) -> Vec<Range> {
    let mut left = merged(wanted);
    for hole in merged(hidden) {
        left = left.into_iter().flat_map(|range| without(range, hole)).filter(|range| !range.is_empty()).collect();
    }
    left
}

fn without(range: Range, hole: Range) -> [Range; 2] {
    if !range.overlaps(hole) {
        return [range, Range::new(Pa(0), 0)];
    }
    [Range::between(range.base, hole.base), Range::between(hole.end(), range.end())]
}

/// Rounded out to pages, sorted, and joined where they touch or overlap.
fn merged(ranges: &[Range]) -> Vec<Range> {
    let mut pages: Vec<Range> = ranges
        .iter()
        .filter(|range| !range.is_empty())
        .map(|range| {
            let end = range.end().0.checked_next_multiple_of(PAGE).unwrap_or(!(PAGE - 1));
            Range::between(Pa(range.base.0 & !(PAGE - 1)), Pa(end))
        })
        .collect();
    pages.sort();
    let mut merged: Vec<Range> = Vec::new();
    for range in pages {
        match merged.last_mut() {
            Some(last) if last.end() >= range.base => {
                *last = Range::between(last.base, last.end().max(range.end()));
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(base: u64, end: u64) -> Range {
        Range::between(Pa(base), Pa(end))
    }

    #[test]
    fn ranges_meet_only_where_they_share_an_address() {
        let r = |base, size| Range::new(Pa(base), size);
        assert!(!r(0, 0x1000).overlaps(r(0x1000, 0x1000)));
        assert!(r(0, 0x1001).overlaps(r(0x1000, 0x1000)));
        assert!(!r(0x1000, 0).overlaps(r(0, 0x10000)));
        assert!(r(0, 0x2000).covers(r(0x1000, 0x1000)));
        assert!(!r(0, 0x2000).covers(r(0x1000, 0x1001)));
        assert!(!r(0, 0x2000).covers(r(0x1000, 0)));
        assert!(r(0x1000, 1).contains(Pa(0x1000)) && !r(0x1000, 1).contains(Pa(0x1001)));
        assert_eq!(r(u64::MAX, 2).end(), Pa(u64::MAX));
        assert_eq!(Range::between(Pa(5), Pa(3)), r(5, 0));
    }

    #[test]
    fn small_devices_of_one_page_become_that_page_once() {
        let wanted = [r(0xa00_0200, 0xa00_0400), r(0xa00_0000, 0xa00_0200), r(0xa00_0e00, 0xa00_1000)];
        assert_eq!(pages_without(&wanted, &[]), [r(0xa00_0000, 0xa00_1000)]);
    }

    #[test]
    fn what_is_hidden_is_cut_out_with_its_whole_page() {
        let wanted = [r(0x0, 0x10_0000)];
        let hidden = [r(0x8_0000, 0x9_0000), r(0x2_0010, 0x2_0020), r(0xf_f000, 0x20_0000)];
        assert_eq!(pages_without(&wanted, &hidden), [r(0, 0x2_0000), r(0x2_1000, 0x8_0000), r(0x9_0000, 0xf_f000)]);
    }

    #[test]
    fn a_range_that_is_hidden_whole_leaves_nothing() {
        assert_eq!(pages_without(&[r(0x1000, 0x2000)], &[r(0, 0x10_0000)]), []);
        assert_eq!(pages_without(&[r(0x1000, 0x1000)], &[]), []);
    }
}
