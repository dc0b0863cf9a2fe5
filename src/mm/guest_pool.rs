//! The allocator of RAM for domUs. The RAM is set aside at boot, allocated when a domU is built, and freed when it
//! ends.
//!
//! The unit is 2 MiB, a stage 2 block. Nothing here accesses the memory itself; the caller must zero it before freeing
//! it.

use super::guest_ram::{BANKS, GuestRam};
use crate::ids::Pa;
use crate::util::range::Range;
use alloc::vec::Vec;
use arrayvec::ArrayVec;

/// The unit of allocation in bytes.
pub const UNIT: u64 = 2 << 20;

/// The number of free ranges for which room is allocated at once, so that the pool seldom allocates when domains come and go.
const RANGES: usize = 1024;

/// The ranges of one allocation, each of whole units.
pub type GuestRanges = ArrayVec<Range, BANKS>;

/// The pool of free RAM.
#[derive(Debug, Default)]
pub struct GuestPool {
    /// The free ranges, sorted by address; no two are adjacent.
    free: Vec<Range>,
}

impl GuestPool {
    /// An empty pool.
    #[must_use]
    pub const fn new() -> GuestPool {
        GuestPool { free: Vec::new() }
    }

    /// Returns the number of free bytes.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.free.iter().map(|range| range.size).sum()
    }

    /// Allocates `bytes`, rounded up to units: in one range if possible, else in few. Returns `None` if `bytes` is
    /// zero, or if there is too little RAM or it is too fragmented.
    #[must_use]
    pub fn take(&mut self, bytes: u64) -> Option<GuestRanges> {
        let bytes = bytes.checked_next_multiple_of(UNIT).filter(|&bytes| bytes > 0)?;
        let mut taken = GuestRanges::new();
        let mut left = bytes;
        while left > 0 {
            // The smallest range that holds all that is left to allocate, or else the largest one.
            let fits = self.free.iter().enumerate().filter(|(_, range)| range.size >= left);
            let best = fits.min_by_key(|(_, range)| range.size);
            let found = best.or_else(|| self.free.iter().enumerate().max_by_key(|(_, range)| range.size));
            let Some((index, range)) = found.map(|(index, range)| (index, *range)).filter(|_| !taken.is_full()) else {
                taken.into_iter().for_each(|range| self.give(range));
                return None;
            };
            let size = range.size.min(left);
            taken.push(Range::new(range.base, size));
            left -= size;
            if size == range.size {
                self.free.remove(index);
            } else if let Some(rest) = self.free.get_mut(index) {
                *rest = Range::between(Pa(range.base.0 + size), range.end());
            }
        }
        Some(taken)
    }

    /// Frees the RAM of a domain. It has been zeroed.
    pub fn give_back(&mut self, ram: GuestRam) {
        ram.banks().iter().for_each(|bank| self.give(Range::new(bank.pa, bank.size)));
    }

    /// Frees a range, or adds a new one to the pool.
    pub fn give(&mut self, range: Range) {
        if range.is_empty() {
            return;
        }
        if self.free.capacity() == 0 {
            self.free.reserve(RANGES);
        }
        let place = self.free.partition_point(|other| other.base < range.base);
        self.free.insert(place, range);
        if let Some(&next) = self.free.get(place + 1).filter(|next| next.base == range.end()) {
            self.free[place].size += next.size;
            self.free.remove(place + 1);
        }
        if place > 0 && self.free[place - 1].end() == self.free[place].base {
            self.free[place - 1].size += self.free[place].size;
            self.free.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1 << 20;

    fn r(base: u64, size: u64) -> Range {
        Range::new(Pa(base * M), size * M)
    }

    fn pool(ranges: &[Range]) -> GuestPool {
        let mut pool = GuestPool::new();
        ranges.iter().for_each(|&range| pool.give(range));
        pool
    }

    #[test]
    fn an_allocation_is_one_range_if_one_is_large_enough() {
        let mut pool = pool(&[r(100, 64), r(200, 32)]);
        assert_eq!(pool.take(31 * M).unwrap()[..], [r(200, 32)]);
        assert_eq!(pool.take(32 * M).unwrap()[..], [r(100, 32)]);
        assert_eq!(pool.free_bytes(), 32 * M);
        assert_eq!(pool.take(0), None);
    }

    #[test]
    fn an_allocation_larger_than_every_range_is_made_of_several() {
        let mut pool = pool(&[r(100, 8), r(200, 32), r(300, 16)]);
        assert_eq!(pool.take(54 * M).unwrap()[..], [r(200, 32), r(300, 16), r(100, 6)]);
        assert_eq!(pool.free_bytes(), 2 * M);
    }

    #[test]
    fn a_failed_allocation_changes_nothing() {
        let mut pool = pool(&[r(100, 8), r(200, 32)]);
        assert_eq!(pool.take(41 * M), None);
        assert_eq!(pool.free_bytes(), 40 * M);
        assert_eq!(pool.take(40 * M).unwrap().len(), 2);
        // Nine ranges are more than a domain can have.
        let pieces: Vec<Range> = (0..9).map(|n| r(10 * n, 2)).collect();
        let mut pool = self::pool(&pieces);
        assert_eq!(pool.take(18 * M), None);
        assert_eq!((pool.free_bytes(), pool.free.len()), (18 * M, 9));
    }

    #[test]
    fn freed_ranges_are_merged_in_any_order() {
        let mut pool = pool(&[r(100, 64)]);
        let mut parts: Vec<Range> = (0..32).map(|_| pool.take(2 * M).unwrap()[0]).collect();
        assert_eq!((pool.free_bytes(), pool.take(1)), (0, None));
        // A scrambled order.
        for step in 0..32 {
            let at = (step * 13 + 5) % parts.len();
            pool.give(parts.swap_remove(at));
        }
        assert_eq!(pool.free, [r(100, 64)]);
    }
}
