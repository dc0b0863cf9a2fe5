//! Arithmetic on address ranges: what is left of some when others are taken out.

use crate::ids::Pa;
use crate::platform::Range;
use alloc::vec::Vec;

const PAGE: u64 = 4096;

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
