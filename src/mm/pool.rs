//! Where EL2's own memory comes from, and which memory its stage 1 covers: arithmetic on ranges.

use crate::ids::Pa;
use crate::util::range::Range;

/// The pool starts and ends on such a boundary, so that what is left for domains is in whole blocks too.
pub const GRAIN: u64 = 2 << 20;
const PAGE: u64 = 0x1000;

/// How much EL2 takes of `memory` bytes: a 64th, and 32 MiB at least.
#[must_use]
pub fn wanted(memory: u64) -> u64 {
    (memory / 64).max(32 << 20).next_multiple_of(GRAIN)
}

/// The highest run of `size` bytes (a multiple of [`GRAIN`]) in `memory` that touches nothing of `avoid`.
///
/// High, since low memory is what devices with short address lines, and kernels, ask for.
#[must_use]
pub fn choose(memory: &[Range], avoid: &[Range], size: u64) -> Option<Range> {
    let mut best: Option<Range> = None;
    for bank in memory {
        let mut end = bank.end().0 & !(GRAIN - 1);
        while let Some(base) = end.checked_sub(size).filter(|&base| base >= bank.base.0) {
            let candidate = Range::new(Pa(base), size);
            // Below the lowest obstacle, and look again.
            match avoid.iter().filter(|range| range.overlaps(candidate)).map(|range| range.base.0).min() {
                Some(obstacle) => end = obstacle & !(GRAIN - 1),
                None => {
                    if best.is_none_or(|other| other.base < candidate.base) {
                        best = Some(candidate);
                    }
                    break;
                }
            }
        }
    }
    best
}

/// `range` without the page that it only touches at either end.
#[must_use]
pub fn whole_pages_in(range: Range) -> Range {
    Range::between(Pa(range.base.0.next_multiple_of(PAGE)), Pa(range.end().0 & !(PAGE - 1)))
}

/// `range` and the rest of the pages that it touches.
#[must_use]
pub fn pages_around(range: Range) -> Range {
    Range::between(Pa(range.base.0 & !(PAGE - 1)), Pa(range.end().0.next_multiple_of(PAGE)))
}

/// Calls `each` for what is left of `range` without `holes`, from low to high.
pub fn for_each_gap<E>(range: Range, holes: &[Range], mut each: impl FnMut(Range) -> Result<(), E>) -> Result<(), E> {
    let mut at = range.base;
    while at < range.end() {
        // The lowest hole that reaches beyond `at`.
        let next = holes.iter().filter(|hole| !hole.is_empty() && hole.end() > at).min_by_key(|hole| hole.base);
        let stop = next.map_or(range.end(), |hole| hole.base.max(at).min(range.end()));
        if stop > at {
            each(Range::between(at, stop))?;
        }
        at = next.map_or(range.end(), |hole| hole.end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const M: u64 = 1 << 20;

    fn range(base: u64, size: u64) -> Range {
        Range::new(Pa(base), size)
    }

    #[test]
    fn the_pool_lies_at_the_top_of_the_highest_bank_with_room() {
        let memory = [range(1024 * M, 512 * M), range(8192 * M, 16 * M)];
        assert_eq!(choose(&memory, &[], 32 * M), Some(range((1536 - 32) * M, 32 * M)));
        assert_eq!(choose(&memory, &[], 16 * M), Some(range(8192 * M, 16 * M)));
    }

    #[test]
    fn the_pool_keeps_clear_of_what_is_taken() {
        let memory = [range(1024 * M, 128 * M)];
        // Device tree at the top, a module below it with one byte too little room between them.
        let avoid = [range(1151 * M, M), range(1088 * M, 30 * M + 1), range(1024 * M, 3 * M)];
        assert_eq!(choose(&memory, &avoid, 32 * M), Some(range(1056 * M, 32 * M)));
        assert_eq!(choose(&memory, &avoid, 64 * M), None);
    }

    #[test]
    fn a_bank_that_is_off_the_grain_is_used_inside() {
        let memory = [range(1024 * M + 0x1000, 64 * M)];
        assert_eq!(choose(&memory, &[], 62 * M), Some(range(1026 * M, 62 * M)));
        assert_eq!(choose(&memory, &[], 64 * M), None);
    }

    #[test]
    fn the_size_follows_the_memory() {
        assert_eq!(wanted(512 * M), 32 * M);
        assert_eq!(wanted(8192 * M), 128 * M);
        assert_eq!(wanted(8193 * M) % GRAIN, 0);
    }

    #[test]
    fn gaps_are_what_holes_leave_whatever_their_order() {
        let gaps = |whole, holes: &[Range]| {
            let mut found = Vec::new();
            for_each_gap(whole, holes, |gap| {
                found.push(gap);
                Ok::<(), ()>(())
            })
            .unwrap();
            found
        };
        let whole = range(10, 90);
        let holes = [range(80, 40), range(0, 15), range(30, 10), range(35, 20), range(60, 0), range(200, 5)];
        assert_eq!(gaps(whole, &holes), [range(15, 15), range(55, 25)]);
        assert_eq!(gaps(whole, &[]), [whole]);
        assert_eq!(gaps(whole, &[range(0, 1000)]), []);
    }

    #[test]
    fn pages_are_counted_inwards_for_memory_and_outwards_for_the_rest() {
        assert_eq!(whole_pages_in(range(0x1001, 0x3000)), range(0x2000, 0x2000));
        assert!(whole_pages_in(range(0x1001, 0x10)).is_empty());
        assert_eq!(pages_around(range(0x1fff, 2)), range(0x1000, 0x2000));
    }
}
