//! Bits of words: iteration over those that are set, and an allocator of small numbers.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The positions of the bits that are set in a word, lowest first.
#[inline]
pub fn set_bits(word: impl Into<u64>) -> SetBits {
    SetBits(word.into())
}

/// The iterator of [`set_bits`].
#[derive(Clone, Copy, Debug)]
pub struct SetBits(u64);

impl Iterator for SetBits {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some(bit)
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.0.count_ones() as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for SetBits {}

/// A word in which these bits are set. Positions are taken modulo 32.
pub fn to_bits(positions: impl Iterator<Item = u32>) -> u32 {
    positions.fold(0, |word, bit| word | 1u32.wrapping_shl(bit))
}

/// Allocates the numbers below a limit. It takes no lock, so numbers can be allocated and freed with any lock held.
pub struct IdAllocator {
    /// A bit for each number that is taken. Bits beyond the limit are set for ever.
    words: Box<[AtomicU64]>,
    limit: u32,
    /// The word in which a number was last allocated or freed: the search starts there.
    hint: AtomicU32,
}

impl IdAllocator {
    /// All numbers below `limit` are free.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        let words: Box<[AtomicU64]> = (0..limit.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        if !limit.is_multiple_of(64)
            && let Some(last) = words.last()
        {
            last.store(!0 << (limit % 64), Ordering::Relaxed);
        }
        IdAllocator { words, limit, hint: AtomicU32::new(0) }
    }

    /// Allocates a number; `None` if all are taken.
    #[must_use]
    pub fn alloc(&self) -> Option<u32> {
        let count = self.words.len() as u32;
        let start = self.hint.load(Ordering::Relaxed);
        for n in (start..count).chain(0..start) {
            let word = self.words.get(n as usize)?;
            loop {
                let bit = word.load(Ordering::Relaxed).trailing_ones();
                if bit == 64 {
                    break;
                }
                if word.fetch_or(1 << bit, Ordering::AcqRel) & 1 << bit == 0 {
                    self.hint.store(n, Ordering::Relaxed);
                    return Some(n * 64 + bit);
                }
            }
        }
        None
    }

    /// Takes one number out of circulation. It must be free.
    pub fn reserve(&self, id: u32) {
        debug_assert!(id < self.limit, "{id} is beyond the limit {}", self.limit);
        if let Some(word) = self.words.get(id as usize / 64) {
            let was = word.fetch_or(1 << (id % 64), Ordering::AcqRel);
            debug_assert!(was & 1 << (id % 64) == 0, "{id} is taken already");
        }
    }

    /// Frees a number that was allocated. One at or above the limit is ignored.
    pub fn free(&self, id: u32) {
        if id >= self.limit {
            return;
        }
        if let Some(word) = self.words.get(id as usize / 64) {
            let was = word.fetch_and(!(1 << (id % 64)), Ordering::AcqRel);
            debug_assert!(was & 1 << (id % 64) != 0, "{id} was free already");
            self.hint.store(id / 64, Ordering::Relaxed);
        }
    }

    /// How many numbers are taken.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        let beyond = (64 - self.limit % 64) % 64;
        self.words.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum::<u32>() - beyond
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    #[test]
    fn set_bits_come_lowest_first_and_are_counted() {
        assert_eq!(set_bits(0u32).next(), None);
        assert_eq!(set_bits(0x8000_0011u32).collect::<Vec<_>>(), [0, 4, 31]);
        assert_eq!(set_bits(1u64 << 63 | 1 << 32).collect::<Vec<_>>(), [32, 63]);
        assert_eq!((set_bits(u64::MAX).len(), set_bits(u64::MAX).last()), (64, Some(63)));
    }

    #[test]
    fn every_number_below_the_limit_is_allocated_once() {
        for limit in [0, 1, 63, 64, 65, 128, 200] {
            let ids = IdAllocator::new(limit);
            assert!(core::iter::from_fn(|| ids.alloc()).eq(0..limit), "{limit}");
            assert_eq!((ids.alloc(), ids.in_use()), (None, limit));
        }
    }

    #[test]
    fn numbers_run_out_and_the_one_that_is_freed_is_allocated_next() {
        let ids = IdAllocator::new(66);
        let mut all: Vec<_> = core::iter::from_fn(|| ids.alloc()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..66).collect::<Vec<_>>());
        ids.free(65);
        assert_eq!((ids.alloc(), ids.alloc()), (Some(65), None));
    }

    #[test]
    fn a_freed_number_is_allocated_again_and_no_other_is() {
        let ids = IdAllocator::new(130);
        (0..130).for_each(|_| assert!(ids.alloc().is_some()));
        [3, 129, 64].into_iter().for_each(|id| ids.free(id));
        // Beyond the limit, though within the last word.
        ids.free(130);
        ids.free(u32::MAX);
        assert_eq!(ids.in_use(), 127);
        let again: BTreeSet<_> = core::iter::from_fn(|| ids.alloc()).collect();
        assert_eq!(again, BTreeSet::from([3, 64, 129]));
    }

    #[test]
    fn the_search_starts_where_a_number_was_last_freed() {
        let ids = IdAllocator::new(256);
        (0..200).for_each(|_| assert!(ids.alloc().is_some()));
        ids.free(70);
        assert_eq!((ids.alloc(), ids.alloc()), (Some(70), Some(200)));
    }

    #[test]
    fn a_reserved_number_is_not_allocated_until_it_is_freed() {
        let ids = IdAllocator::new(3);
        ids.reserve(0);
        ids.reserve(2);
        assert_eq!((ids.alloc(), ids.alloc(), ids.in_use()), (Some(1), None, 3));
        ids.free(2);
        assert_eq!(ids.alloc(), Some(2));
    }

    #[test]
    fn cpus_that_allocate_at_the_same_time_get_different_numbers() {
        let ids = IdAllocator::new(1000);
        let taken = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let own: Vec<_> = (0..250).filter_map(|_| ids.alloc()).collect();
                    taken.lock().unwrap().extend(own);
                });
            }
        });
        let taken = taken.into_inner().unwrap();
        assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), 1000);
        assert_eq!(taken.len(), 1000);
    }
}
