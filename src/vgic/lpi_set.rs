//! A set of LPIs that any CPU may add to without a lock.
//!
//! One bit for each LPI, and above it one bit for each word that may not be empty, so that looking through an empty set
//! costs a load or two. Bits go up in the order leaf, summary and come down in the order summary, leaf-check: a
//! summary bit may stand over an empty word, but no leaf stays without its summary bit.

use crate::util::bits::set_bits;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

/// LPIs by their distance from 8192.
pub(super) struct LpiSet {
    leaves: Box<[AtomicU64]>,
    summary: Box<[AtomicU64]>,
}

const fn mask(index: u32) -> u64 {
    1u64.wrapping_shl(index)
}

impl LpiSet {
    /// An empty set of LPIs below `count`.
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

    /// Adds one; false if it was there, or is out of range.
    pub fn insert(&self, index: u32) -> bool {
        self.insert_word(index / 64, mask(index)) != 0
    }

    /// Adds some of one word; those that were not there.
    pub fn insert_word(&self, leaf: u32, some: u64) -> u64 {
        let Some(word) = self.leaves.get(leaf as usize) else { return 0 };
        let before = word.fetch_or(some, Ordering::SeqCst);
        self.raise_summary(leaf);
        some & !before
    }

    /// Takes one out; whether it was there.
    pub fn remove(&self, index: u32) -> bool {
        self.leaves
            .get((index / 64) as usize)
            .is_some_and(|word| word.fetch_and(!mask(index), Ordering::SeqCst) & mask(index) != 0)
    }

    /// Whether it is there.
    pub fn contains(&self, index: u32) -> bool {
        self.leaves.get((index / 64) as usize).is_some_and(|word| word.load(Ordering::SeqCst) & mask(index) != 0)
    }

    /// Takes a whole word of 64 out.
    pub fn take_word(&self, leaf: u32) -> u64 {
        self.leaves
            .get(leaf as usize)
            .map_or(0, |word| if word.load(Ordering::Relaxed) == 0 { 0 } else { word.swap(0, Ordering::SeqCst) })
    }

    /// How many words there are.
    pub fn words(&self) -> u32 {
        self.leaves.len() as u32
    }

    /// All that are there, in rising order; `visit` says whether to go on. Summary bits over empty words are cleared on
    /// the way.
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
    fn members_come_out_in_rising_order_and_only_once_added() {
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
    fn a_word_that_fills_again_after_it_was_seen_empty_is_found() {
        let set = LpiSet::new(128);
        let _ = set.insert(70);
        let _ = set.remove(70);
        assert!(all(&set).is_empty());
        let _ = set.insert(71);
        assert_eq!(all(&set), [71]);
    }

    #[test]
    fn adding_and_looking_on_many_threads_loses_nothing() {
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
