//! vCPUs that are blocked until a deadline, unless something else wakes them earlier.
//!
//! While a vCPU is blocked its timers are not in a CPU and cannot interrupt. The CPU that it blocked on wakes it with
//! its own timer instead. Each CPU has one list of such vCPUs, linked by `Entity::sleep_link`, so that blocking does
//! not allocate.

use crate::sched::Scheduled;
use alloc::sync::Arc;
use core::ptr;
use intrusive_collections::LinkedList;

/// The sleepers of one CPU, in the order of their deadlines (ticks of the counter).
pub struct Sleepers<V: Scheduled> {
    list: LinkedList<V::SleepAdapter>,
}

impl<V: Scheduled> Default for Sleepers<V> {
    fn default() -> Sleepers<V> {
        Sleepers { list: LinkedList::new(V::SleepAdapter::default()) }
    }
}

impl<V: Scheduled> Sleepers<V> {
    /// Adds `vcpu` with the deadline `at`.
    ///
    /// # Panics
    ///
    /// If `vcpu` is in a list of sleepers. This cannot happen: a vCPU blocks on the CPU that runs it, and the switch to
    /// it on that CPU has removed it from the list that it was in.
    pub fn add(&mut self, at: u64, vcpu: Arc<V>) {
        vcpu.entity().set_wakes_at(at);
        // The search starts at the back, because the vCPU that blocks last is usually among the last to wake.
        let mut before = self.list.back_mut();
        while before.get().is_some_and(|other| other.entity().wakes_at() > at) {
            before.move_prev();
        }
        before.insert_after(vcpu);
    }

    /// Removes `vcpu` if it is in this list.
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

    /// The earliest deadline; `None` if the list is empty.
    pub fn next(&self) -> Option<u64> {
        self.list.front().get().map(|vcpu| vcpu.entity().wakes_at())
    }

    /// Removes and returns the first vCPU, if its deadline is `now` or earlier.
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
    fn each_sleeper_is_returned_at_its_deadline_unless_it_was_removed_before() {
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
        assert_eq!(sleepers.next(), Some(5), "a removed sleeper can be added again");
    }
}
