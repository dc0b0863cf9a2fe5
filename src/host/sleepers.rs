//! vCPUs that sleep until a time, or until something else wakes them.
//!
//! A vCPU that sleeps is in no CPU, so its timers cannot interrupt. The CPU that it went to sleep on keeps the time for
//! it. There is one entry for each sleeper and room for all: nothing is allocated when one goes to sleep.

use alloc::sync::Arc;
use alloc::vec::Vec;

/// The sleepers of one CPU.
pub struct Sleepers<V> {
    entries: Vec<(u64, Arc<V>)>,
}

impl<V> Default for Sleepers<V> {
    fn default() -> Sleepers<V> {
        Sleepers { entries: Vec::new() }
    }
}

impl<V> Sleepers<V> {
    /// Makes room for one more.
    pub fn reserve(&mut self, vcpus: usize) {
        self.entries.reserve(vcpus.saturating_sub(self.entries.len()));
    }

    /// `vcpu` is to be woken at `at`.
    pub fn add(&mut self, at: u64, vcpu: Arc<V>) {
        self.entries.push((at, vcpu));
    }

    /// `vcpu` is awake.
    pub fn forget(&mut self, vcpu: &V) {
        self.entries.retain(|(_, other)| !core::ptr::eq(Arc::as_ptr(other), vcpu));
    }

    /// When the next has to be woken.
    pub fn next(&self) -> Option<u64> {
        self.entries.iter().map(|&(at, _)| at).min()
    }

    /// Takes out one that is due.
    pub fn due(&mut self, now: u64) -> Option<Arc<V>> {
        let at = self.entries.iter().position(|&(at, _)| at <= now)?;
        Some(self.entries.swap_remove(at).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_woken_when_it_is_due_unless_it_was_woken_before() {
        let mut sleepers = Sleepers::default();
        sleepers.reserve(3);
        let [a, b, c] = [1, 2, 3].map(Arc::new);
        for (at, vcpu) in [(30, &a), (10, &b), (20, &c)] {
            sleepers.add(at, vcpu.clone());
        }
        assert_eq!(sleepers.next(), Some(10));
        assert_eq!(sleepers.due(9), None);
        assert_eq!(sleepers.due(10), Some(b));
        sleepers.forget(&c);
        assert_eq!(sleepers.next(), Some(30));
        assert_eq!((sleepers.due(100), sleepers.due(100)), (Some(a), None));
    }
}
