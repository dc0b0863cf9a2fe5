//! A set of LPIs that any CPU may add to without a lock.
//!
//! One bit for each LPI (a leaf), and one summary bit for each word of leaves that may not be empty, so that iterating
//! over an empty set costs one or two loads. To insert, the leaf is set first and then its summary bit; to clear a
//! summary bit, it is cleared first and then its word is checked again. So a summary bit may be set for an empty word,
//! but no leaf stays without its summary bit.

use crate::util::bits::set_bits;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

/// A set of LPIs by index, which is the INTID less 8192.
pub(super) struct LpiSet {
    leaves: Box<[AtomicU64]>,
    summary: Box<[AtomicU64]>,
}

const fn mask(index: u32) -> u64 {
    1u64.wrapping_shl(index)
}

impl LpiSet {
    /// An empty set of LPIs with indices below `count`.
    pub fn new(count: u32) -> LpiSet {
        let zeros = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
        let leaves = (count as usize).div_ceil(64);
        LpiSet { leaves: zeros(leaves), summary: zeros(leaves.div_ceil(64)) }
    }

    fn raise_summary(&self, leaf: u32) {
        if let Some(word) = self.summary.get((leaf / 64) as usize) {
            word.fetch_or(mask(leaf), Ordering::SeqCst);
        }
    }

    /// Adds an LPI. Returns `false` if it was in the set or is out of range.
    pub fn insert(&self, index: u32) -> bool {
        self.insert_word(index / 64, mask(index)) != 0
    }

    /// Adds the LPIs `some` of one word. Returns those that were not in the set.
    pub fn insert_word(&self, leaf: u32, some: u64) -> u64 {
        let Some(word) = self.leaves.get(leaf as usize) else { return 0 };
        let before = word.fetch_or(some, Ordering::SeqCst);
        self.raise_summary(leaf);
        some & !before
    }

    /// Removes an LPI. Returns whether it was in the set.
    pub fn remove(&self, index: u32) -> bool {
        self.leaves
            .get((index / 64) as usize)
            .is_some_and(|word| word.fetch_and(!mask(index), Ordering::SeqCst) & mask(index) != 0)
    }

    /// The LPIs of one word.
    pub fn word(&self, leaf: u32) -> u64 {
        self.leaves.get(leaf as usize).map_or(0, |word| word.load(Ordering::SeqCst))
    }

    /// Removes the LPIs in `some` from one word.
    pub fn remove_from_word(&self, leaf: u32, some: u64) {
        if let Some(word) = self.leaves.get(leaf as usize) {
            word.fetch_and(!some, Ordering::SeqCst);
        }
    }

    /// Whether an LPI is in the set.
    pub fn contains(&self, index: u32) -> bool {
        self.leaves.get((index / 64) as usize).is_some_and(|word| word.load(Ordering::SeqCst) & mask(index) != 0)
    }

    /// Removes the 64 LPIs of a word. Returns those that were in the set.
    pub fn take_word(&self, leaf: u32) -> u64 {
        self.leaves
            .get(leaf as usize)
            .map_or(0, |word| if word.load(Ordering::Relaxed) == 0 { 0 } else { word.swap(0, Ordering::SeqCst) })
    }

    /// Number of words.
    pub fn words(&self) -> u32 {
        self.leaves.len() as u32
    }

    /// Visits the LPIs in the set, in rising order, as long as `visit` returns `true`. Clears the summary bits of empty
    /// words.
    pub fn for_each(&self, mut visit: impl FnMut(u32) -> bool) {
        for (summary, group) in self.summary.iter().zip(0u32..) {
            for bit in set_bits(summary.load(Ordering::SeqCst)) {
                let leaf = group.wrapping_mul(64) | bit;
                let Some(word) = self.leaves.get(leaf as usize) else { continue };
                let mut value = word.load(Ordering::SeqCst);
                if value == 0 {
                    summary.fetch_and(!mask(bit), Ordering::SeqCst);
                    value = word.load(Ordering::SeqCst);
                    if value != 0 {
                        self.raise_summary(leaf);
                    }
                }
                for at in set_bits(value) {
                    if !visit(leaf.wrapping_mul(64) | at) {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn all(set: &LpiSet) -> Vec<u32> {
        let mut found = Vec::new();
        set.for_each(|i| {
            found.push(i);
            true
        });
        found
    }

    #[test]
    fn lpis_are_added_once_and_visited_in_rising_order() {
        let set = LpiSet::new(8192);
        for i in [8191, 0, 64, 4095, 4096] {
            assert!(set.insert(i));
            assert!(!set.insert(i));
        }
        assert!(!set.insert(8192));
        assert_eq!(all(&set), [0, 64, 4095, 4096, 8191]);
        assert!(set.remove(64) && !set.remove(64) && !set.remove(8192));
        assert_eq!(all(&set), [0, 4095, 4096, 8191]);
    }

    #[test]
    fn an_lpi_added_after_its_word_was_found_empty_is_visited() {
        let set = LpiSet::new(128);
        let _ = set.insert(70);
        let _ = set.remove(70);
        assert!(all(&set).is_empty());
        let _ = set.insert(71);
        assert_eq!(all(&set), [71]);
    }

    #[test]
    fn lpis_added_by_several_threads_are_all_visited() {
        let set = LpiSet::new(4096);
        let seen = std::thread::scope(|s| {
            for t in 0..4u32 {
                let set = &set;
                s.spawn(move || (0..1024).for_each(|i| assert!(set.insert(i * 4 + t))));
            }
            let mut seen = 0;
            while seen < 4096 {
                set.for_each(|i| {
                    seen += u32::from(set.remove(i));
                    true
                });
            }
            seen
        });
        assert_eq!(seen, 4096);
        assert!(all(&set).is_empty());
    }
}
