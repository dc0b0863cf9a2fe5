//! Sets of CPUs.

use crate::ids::CpuId;
use core::sync::atomic::{AtomicU64, Ordering};

/// Number of CPUs that a [`CpuSet`] can hold.
pub const MAX_CPUS: usize = 256;
const WORDS: usize = MAX_CPUS / 64;

/// A set of CPUs that several CPUs may change and read at the same time.
#[derive(Debug)]
pub struct CpuSet([AtomicU64; WORDS]);

impl CpuSet {
    /// The empty set.
    #[must_use]
    pub const fn none() -> CpuSet {
        CpuSet([const { AtomicU64::new(0) }; WORDS])
    }

    /// The set of all CPUs.
    #[must_use]
    pub const fn all() -> CpuSet {
        CpuSet([const { AtomicU64::new(u64::MAX) }; WORDS])
    }

    fn word(&self, cpu: CpuId) -> Option<(&AtomicU64, u64)> {
        Some((self.0.get(cpu.index() / 64)?, 1 << (cpu.index() % 64)))
    }

    /// Whether `cpu` is in the set.
    #[must_use]
    pub fn has(&self, cpu: CpuId) -> bool {
        self.word(cpu).is_some_and(|(word, bit)| word.load(Ordering::SeqCst) & bit != 0)
    }

    /// Adds `cpu`.
    pub fn add(&self, cpu: CpuId) {
        if let Some((word, bit)) = self.word(cpu) {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// Removes `cpu`. Returns whether it was in the set: of several CPUs that call this at once, one gets `true`.
    pub fn take(&self, cpu: CpuId) -> bool {
        self.word(cpu).is_some_and(|(word, bit)| word.fetch_and(!bit, Ordering::SeqCst) & bit != 0)
    }

    /// Replaces the contents by `cpus`.
    pub fn set(&self, cpus: impl Iterator<Item = CpuId>) {
        let mut words = [0u64; WORDS];
        for cpu in cpus {
            if let Some(word) = words.get_mut(cpu.index() / 64) {
                *word |= 1 << (cpu.index() % 64);
            }
        }
        for (to, from) in self.0.iter().zip(words) {
            to.store(from, Ordering::SeqCst);
        }
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| word.load(Ordering::SeqCst) == 0)
    }

    /// The first CPU that is in both sets, searched from `start` upwards and then from 0.
    #[must_use]
    pub fn common(&self, other: &CpuSet, start: CpuId) -> Option<CpuId> {
        let (first, shift) = (start.index() / 64 % WORDS, start.index() % 64);
        // The first word is read twice: from `start` on, and at the end the part below `start`.
        for step in 0..=WORDS {
            let at = (first + step) % WORDS;
            let mut both = self.0[at].load(Ordering::SeqCst) & other.0[at].load(Ordering::SeqCst);
            if step == 0 {
                both &= u64::MAX << shift;
            }
            if both != 0 {
                return Some(CpuId((at * 64) as u16 + both.trailing_zeros() as u16));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_begins_at_the_start_and_wraps() {
        let (one, two) = (CpuSet::none(), CpuSet::all());
        for cpu in [3, 70, 255] {
            one.add(CpuId(cpu));
        }
        assert_eq!(one.common(&two, CpuId(0)), Some(CpuId(3)));
        assert_eq!(one.common(&two, CpuId(4)), Some(CpuId(70)));
        assert_eq!(one.common(&two, CpuId(71)), Some(CpuId(255)));
        assert!(one.take(CpuId(255)) && !one.take(CpuId(255)));
        assert_eq!(one.common(&two, CpuId(71)), Some(CpuId(3)), "wraps");
        two.set([CpuId(70)].into_iter());
        assert_eq!(one.common(&two, CpuId(0)), Some(CpuId(70)));
        assert_eq!(one.common(&CpuSet::none(), CpuId(0)), None);
    }
}
