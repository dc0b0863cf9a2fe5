//! vCPUs that sleep until a time, or until something else wakes them.
//!
//! A sleeping vCPU is loaded in no CPU, so its own timers cannot interrupt. The CPU that it went to sleep on wakes it
//! instead. That CPU's list links its sleepers by `Entity::sleep_link`, so that going to sleep does not allocate.

use crate::sched::Scheduled;
use alloc::sync::Arc;
use core::ptr;
use intrusive_collections::LinkedList;

/// The sleepers of one CPU, in the order of their deadlines.
pub struct Sleepers<V: Scheduled> {
    list: LinkedList<V::SleepAdapter>,
}

impl<V: Scheduled> Default for Sleepers<V> {
    fn default() -> Sleepers<V> {
        Sleepers { list: LinkedList::new(V::SleepAdapter::default()) }
    }
}

impl<V: Scheduled> Sleepers<V> {
    /// Adds `vcpu`, which is to be woken at `at`.
    ///
    /// # Panics
    ///
    /// If `vcpu` is in a list of sleepers. It is not: a vCPU goes to sleep on the CPU that runs it, and before that the
    /// switch to it has taken it out of the list that it was in.
    pub fn add(&mut self, at: u64, vcpu: Arc<V>) {
        vcpu.entity().set_wakes_at(at);
        // Mostly, the last to go to sleep is among the last to wake.
        let mut before = self.list.back_mut();
        while before.get().is_some_and(|other| other.entity().wakes_at() > at) {
            before.move_prev();
        }
        before.insert_after(vcpu);
    }

    /// Removes `vcpu`, which is awake, if it is in this list.
    pub fn remove(&mut self, vcpu: &V) {
        if !vcpu.entity().sleep_link.is_linked() {
            return;
        }
        let mut at = self.list.front_mut();
        while let Some(other) = at.get() {
            if ptr::eq(other, vcpu) {
                at.remove();
                return;
            }
            at.move_next();
        }
    }

    /// The first deadline.
    pub fn next(&self) -> Option<u64> {
        self.list.front().get().map(|vcpu| vcpu.entity().wakes_at())
    }

    /// Removes one vCPU whose deadline is `now` or earlier.
    pub fn due(&mut self, now: u64) -> Option<Arc<V>> {
        self.next().filter(|&at| at <= now)?;
        self.list.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sched::testing::TestVcpu;

    #[test]
    fn each_sleeper_is_woken_when_it_is_due_unless_it_was_woken_before() {
        let mut sleepers = Sleepers::default();
        let [a, b, c] = ["a", "b", "c"].map(|name| Arc::new(TestVcpu::named(name)));
        for (at, vcpu) in [(30, &a), (10, &b), (20, &c)] {
            sleepers.add(at, vcpu.clone());
        }
        let due = |sleepers: &mut Sleepers<TestVcpu>, now| sleepers.due(now).map(|vcpu| vcpu.name);
        assert_eq!(sleepers.next(), Some(10));
        assert_eq!(due(&mut sleepers, 9), None);
        assert_eq!(due(&mut sleepers, 10), Some("b"));
        sleepers.remove(&b);
        sleepers.remove(&c);
        assert_eq!(sleepers.next(), Some(30));
        assert_eq!((due(&mut sleepers, 100), due(&mut sleepers, 100)), (Some("a"), None));
        sleepers.add(5, b);
        assert_eq!(sleepers.next(), Some(5), "it can sleep again");
    }
}
