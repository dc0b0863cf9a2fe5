//! Ranges of physical addresses: comparison, rounding to pages, and difference.

use super::PAGE;
use crate::ids::Pa;
use alloc::vec::Vec;
use core::fmt;

/// A range of physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Range {
    /// The first address.
    pub base: Pa,
    /// The size in bytes.
    pub size: u64,
}

impl Range {
    /// A range of `size` bytes from `base` on.
    #[must_use]
    pub const fn new(base: Pa, size: u64) -> Range {
        Range { base, size }
    }

    /// The range from `start` up to, but not including, `end`; empty if `end` is not above `start`.
    #[must_use]
    pub const fn between(start: Pa, end: Pa) -> Range {
        Range { base: start, size: end.0.saturating_sub(start.0) }
    }

    /// Returns the first address after the range. For a range that wraps this is the top of the address space; the
    /// checks of a machine's description refuse such ranges.
    #[must_use]
    pub const fn end(self) -> Pa {
        Pa(self.base.0.saturating_add(self.size))
    }

    /// Whether the range is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.size == 0
    }

    /// Whether the range contains `address`.
    #[must_use]
    pub const fn contains(self, address: Pa) -> bool {
        address.0 >= self.base.0 && address.0 < self.end().0
    }

    /// Whether the range contains all of `other`. An empty range is contained in none.
    #[must_use]
    pub const fn covers(self, other: Range) -> bool {
        other.size != 0 && other.base.0 >= self.base.0 && other.end().0 <= self.end().0
    }

    /// Whether the two ranges have a common address.
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

/// Shrinks `range` to the pages that lie wholly in it.
#[must_use]
pub fn whole_pages_in(range: Range) -> Range {
    Range::between(Pa(range.base.0.next_multiple_of(PAGE)), Pa(range.end().0 & !(PAGE - 1)))
}

/// Extends `range` to all pages that it touches.
#[must_use]
pub fn pages_around(range: Range) -> Range {
    let end = range.end().0.checked_next_multiple_of(PAGE).unwrap_or(!(PAGE - 1));
    Range::between(Pa(range.base.0 & !(PAGE - 1)), Pa(end))
}

/// Returns the parts of `range` outside all of `holes`, from low to high. The holes may overlap, in any order.
pub fn gaps(range: Range, holes: &[Range]) -> impl Iterator<Item = Range> + '_ {
    let mut at = range.base;
    core::iter::from_fn(move || {
        while at < range.end() {
            // The lowest hole that extends beyond `at`.
            let next = holes.iter().filter(|hole| !hole.is_empty() && hole.end() > at).min_by_key(|hole| hole.base);
            let start = at;
            let stop = next.map_or(range.end(), |hole| hole.base.max(at).min(range.end()));
            at = next.map_or(range.end(), |hole| hole.end());
            if stop > start {
                return Some(Range::between(start, stop));
            }
        }
        None
    })
}

/// Returns the pages that `wanted` touches, without the pages that `hidden` touches: sorted, merged, disjoint.
///
/// A page that holds parts of both is left out, so that nothing of `hidden` is exposed.
#[must_use]
pub fn pages_without(wanted: &[Range], hidden: &[Range]) -> Vec<Range> {
    let holes: Vec<Range> = hidden.iter().filter(|range| !range.is_empty()).map(|&range| pages_around(range)).collect();
    merged_pages(wanted).into_iter().flat_map(|range| gaps(range, &holes)).collect()
}

/// Rounds the ranges out to pages, sorts them, and joins those that touch or overlap.
fn merged_pages(ranges: &[Range]) -> Vec<Range> {
    let mut pages: Vec<Range> =
        ranges.iter().filter(|range| !range.is_empty()).map(|&range| pages_around(range)).collect();
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
    fn ranges_overlap_only_if_they_have_a_common_address() {
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
    fn several_devices_in_one_page_become_one_page() {
        let wanted = [r(0xa00_0200, 0xa00_0400), r(0xa00_0000, 0xa00_0200), r(0xa00_0e00, 0xa00_1000)];
        assert_eq!(pages_without(&wanted, &[]), [r(0xa00_0000, 0xa00_1000)]);
    }

    #[test]
    fn hidden_ranges_are_cut_out_with_their_whole_pages() {
        let wanted = [r(0x0, 0x10_0000)];
        let hidden = [r(0x8_0000, 0x9_0000), r(0x2_0010, 0x2_0020), r(0xf_f000, 0x20_0000)];
        assert_eq!(pages_without(&wanted, &hidden), [r(0, 0x2_0000), r(0x2_1000, 0x8_0000), r(0x9_0000, 0xf_f000)]);
    }

    #[test]
    fn a_range_that_is_all_hidden_leaves_nothing() {
        assert_eq!(pages_without(&[r(0x1000, 0x2000)], &[r(0, 0x10_0000)]), []);
        assert_eq!(pages_without(&[r(0x1000, 0x1000)], &[]), []);
    }

    #[test]
    fn gaps_are_the_parts_outside_all_holes_in_any_order() {
        let r = |base, size| Range::new(Pa(base), size);
        let gaps = |whole, holes: &[Range]| gaps(whole, holes).collect::<Vec<_>>();
        let whole = r(10, 90);
        let holes = [r(80, 40), r(0, 15), r(30, 10), r(35, 20), r(60, 0), r(200, 5)];
        assert_eq!(gaps(whole, &holes), [r(15, 15), r(55, 25)]);
        assert_eq!(gaps(whole, &[]), [whole]);
        assert_eq!(gaps(whole, &[r(0, 1000)]), []);
    }

    #[test]
    fn pages_are_rounded_in_or_out() {
        let r = |base, size| Range::new(Pa(base), size);
        assert_eq!(whole_pages_in(r(0x1001, 0x3000)), r(0x2000, 0x2000));
        assert!(whole_pages_in(r(0x1001, 0x10)).is_empty());
        assert_eq!(pages_around(r(0x1fff, 2)), r(0x1000, 0x2000));
    }
}
