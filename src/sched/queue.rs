//! The run queue of one CPU: the vCPU that runs there, and those that wait, ordered by virtual time.
//!
//! Virtual time (*vtime*) is the time that a vCPU has run, divided by its weight; the vCPU with the least runs next.
//! The queue's *clock* is the least vtime of the vCPUs that run or wait here. It never goes back, and limits the vtime
//! of a vCPU that is inserted: one that slept may be behind the clock by [`Slices::boost`] at most, so that it runs
//! soon but cannot save up time; one that comes from a CPU whose clock is further on may be ahead of it by two of its
//! own slices. An empty queue takes over the *present*, the furthest of all clocks; without that, the clocks would
//! drift apart.
//!
//! A vCPU that has used up its cap waits with a time before which it is skipped.
//!
//! The time, in ticks, comes from the caller. A queue takes no lock and does not allocate: it links vCPUs by
//! [`Entity::queue_link`](super::Entity).

use super::policy::Scheduled;
use alloc::sync::Arc;
use intrusive_collections::LinkedList;

/// The lengths of a queue's times, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slices {
    /// How long a vCPU runs while another waits.
    pub slice: u64,
    /// The period over which caps are kept.
    pub period: u64,
}

impl Slices {
    /// How far behind the clock the vtime of a vCPU that slept may be.
    pub(super) const fn boost(&self) -> u64 {
        self.slice / 2
    }

    /// How far behind the clock the vtime of a vCPU from another CPU's queue may be.
    const fn credit(&self) -> u64 {
        self.slice * 4
    }

    /// How much less vtime than the running vCPU another must have to preempt it within its slice.
    const fn grain(&self) -> u64 {
        self.slice / 10
    }
}

/// Where a vCPU that is inserted into a queue comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// It slept.
    Sleep,
    /// It waited on another CPU.
    Elsewhere,
    /// It ran here until now.
    Here,
}

/// One CPU's run queue.
pub struct Queue<V: Scheduled> {
    /// Those that wait, in rising order of vtime. A vCPU that has just run belongs near the end and one that slept near
    /// the front, so each is inserted from the end that is nearer.
    waiting: LinkedList<V::QueueAdapter>,
    /// Length of `waiting`.
    len: usize,
    /// How many of `waiting` had used up their cap when they were inserted.
    parked: usize,
    clock: u64,
    current: Option<Arc<V>>,
    /// Up to when `current` has been charged.
    charged: u64,
    /// When the slice of `current` began.
    started: u64,
}

impl<V: Scheduled> Queue<V> {
    /// An empty queue.
    pub fn new() -> Queue<V> {
        let waiting = LinkedList::new(V::QueueAdapter::default());
        Queue { waiting, len: 0, parked: 0, clock: 0, current: None, charged: 0, started: 0 }
    }

    /// The vCPU that runs here.
    pub fn current(&self) -> Option<&Arc<V>> {
        self.current.as_ref()
    }

    /// The least vtime of the vCPUs here.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// How many vCPUs wait that could run now.
    pub fn eligible(&self, now: u64) -> usize {
        if self.parked == 0 {
            return self.len;
        }
        self.waiting.iter().filter(|vcpu| vcpu.entity().parked_until() <= now).count()
    }

    /// Visits the vCPUs that wait, the next to run first.
    pub fn for_each(&self, visit: &mut dyn FnMut(&Arc<V>)) {
        let mut at = self.waiting.front();
        while let Some(vcpu) = at.clone_pointer() {
            visit(&vcpu);
            at.move_next();
        }
    }

    /// Charges the current vCPU for the time until `now`.
    pub fn charge(&mut self, now: u64, slices: &Slices) {
        if let Some(current) = &self.current {
            current.entity().charge(now.saturating_sub(self.charged), now, slices.period);
        }
        self.charged = now;
        let least = self.current.iter().map(|current| current.entity().vtime()).chain(self.next_vtime(now)).min();
        self.clock = self.clock.max(least.unwrap_or(0));
    }

    /// Ticks until `now` that the current vCPU has not been charged for; 0 for another one.
    pub fn uncharged(&self, vcpu: &V, now: u64) -> u64 {
        let runs = self.current.as_ref().is_some_and(|current| core::ptr::eq(&raw const **current, vcpu));
        if runs { now.saturating_sub(self.charged) } else { 0 }
    }

    /// The vtime of the vCPU that runs next.
    pub fn next_vtime(&self, now: u64) -> Option<u64> {
        let next = match self.parked {
            0 => self.waiting.front().get(),
            _ => self.waiting.iter().find(|vcpu| vcpu.entity().parked_until() <= now),
        };
        next.map(|vcpu| vcpu.entity().vtime())
    }

    /// Adds `vcpu` to those that wait.
    ///
    /// # Panics
    ///
    /// If it waits in a queue already. The scheduler has one place for each vCPU at a time, and so passes on only those
    /// that it has taken out of another.
    pub fn insert(&mut self, vcpu: Arc<V>, from: From, now: u64, present: u64, slices: &Slices) {
        let entity = vcpu.entity();
        let own = entity.vtime();
        if self.current.is_none() && self.waiting.is_empty() {
            self.clock = self.clock.max(own).max(present);
        }
        let most = || self.clock.saturating_add(entity.weighted(slices.slice).saturating_mul(2));
        let vtime = match from {
            From::Sleep => own.clamp(self.clock.saturating_sub(slices.boost()), most()),
            From::Elsewhere => own.clamp(self.clock.saturating_sub(slices.credit()), most()),
            From::Here => own,
        };
        entity.set_vtime(vtime);
        let parked_until = entity.not_before(now, slices.period);
        entity.set_parked_until(parked_until);
        self.parked += usize::from(parked_until != 0);
        self.len += 1;
        // Behind those with the same vtime.
        if from == From::Here {
            let mut at = self.waiting.back_mut();
            while at.get().is_some_and(|other| other.entity().vtime() > vtime) {
                at.move_prev();
            }
            at.insert_after(vcpu);
        } else {
            let mut at = self.waiting.front_mut();
            while at.get().is_some_and(|other| other.entity().vtime() <= vtime) {
                at.move_next();
            }
            at.insert_before(vcpu);
        }
    }

    /// Removes the first vCPU that could run now and for which `fits` is true, to run it here or elsewhere.
    pub fn take(&mut self, now: u64, fits: impl Fn(&V) -> bool) -> Option<Arc<V>> {
        let mut at = self.waiting.front_mut();
        while let Some(vcpu) = at.get() {
            let parked_until = vcpu.entity().parked_until();
            if parked_until <= now && fits(vcpu) {
                self.parked -= usize::from(parked_until != 0);
                self.len -= 1;
                return at.remove();
            }
            at.move_next();
        }
        None
    }

    /// Whether the current vCPU, charged until `now`, has to make way for another.
    pub fn makes_way(&self, now: u64, slices: &Slices) -> bool {
        let Some(current) = &self.current else { return true };
        if current.entity().allowance(now, slices.period) == Some(0) {
            return true;
        }
        let Some(next) = self.next_vtime(now) else { return false };
        let slack = if now.saturating_sub(self.started) >= slices.slice { 0 } else { slices.grain() };
        next.saturating_add(slack) < current.entity().vtime()
    }

    /// Ticks since the slice of the current vCPU began.
    pub fn has_run(&self, now: u64) -> u64 {
        now.saturating_sub(self.started)
    }

    /// Whether the current vCPU has used up its slice.
    pub fn slice_is_over(&self, now: u64, slices: &Slices) -> bool {
        self.current.is_some() && now.saturating_sub(self.started) >= slices.slice
    }

    /// Gives the current vCPU another slice if it has used up its own, because none has less vtime.
    pub fn renew(&mut self, now: u64, slices: &Slices) {
        if now.saturating_sub(self.started) >= slices.slice {
            self.started = now;
        }
    }

    /// Makes `vcpu`, which was taken from a queue, the current one.
    pub fn start(&mut self, vcpu: Arc<V>, now: u64) {
        self.clock = self.clock.max(vcpu.entity().vtime());
        self.current = Some(vcpu);
        self.charged = now;
        self.started = now;
    }

    /// Starts the slice of the current vCPU anew at `now`, without a charge for the time before.
    pub fn restart_slice(&mut self, now: u64) {
        self.charged = now;
        self.started = now;
    }

    /// Leaves `ticks` out of the next charge.
    pub fn exclude(&mut self, ticks: u64) {
        self.charged = self.charged.saturating_add(ticks);
    }

    /// Takes the current vCPU off, charged until `now`.
    pub fn stop(&mut self, now: u64, slices: &Slices) -> Option<Arc<V>> {
        self.charge(now, slices);
        self.current.take()
    }

    /// The time at which this CPU has to reschedule: when the slice ends, if others wait; when the current vCPU has
    /// used up its cap; when one that has used up its cap may run again.
    pub fn next_resched_at(&self, now: u64, slices: &Slices) -> Option<u64> {
        let mut at = None;
        let mut also = |other: u64| at = Some(at.map_or(other, |at: u64| at.min(other)));
        if let Some(current) = &self.current {
            if self.eligible(now) > 0 {
                also(self.started + slices.slice);
            }
            if let Some(left) = current.entity().allowance(now, slices.period) {
                also(now + left);
            }
        }
        if self.parked > 0 {
            self.waiting.iter().map(|vcpu| vcpu.entity().parked_until()).filter(|&at| at > now).for_each(also);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sched::testing::TestVcpu;
    use std::vec::Vec;

    const SLICES: Slices = Slices { slice: 1000, period: 10_000 };

    fn vcpu(name: &'static str) -> Arc<TestVcpu> {
        Arc::new(TestVcpu::named(name))
    }

    fn queue(names: &[&'static str]) -> (Queue<TestVcpu>, Vec<Arc<TestVcpu>>) {
        let mut queue = Queue::new();
        let vcpus: Vec<_> = names.iter().map(|name| vcpu(name)).collect();
        for vcpu in &vcpus {
            queue.insert(vcpu.clone(), From::Sleep, 0, 0, &SLICES);
        }
        (queue, vcpus)
    }

    fn take(queue: &mut Queue<TestVcpu>, now: u64) -> Option<&'static str> {
        queue.take(now, |_| true).map(|vcpu| vcpu.name)
    }

    #[test]
    fn the_vcpu_with_the_least_vtime_runs_next() {
        let (mut queue, vcpus) = queue(&[]);
        for (name, vtime) in [("late", 900), ("early", 100), ("middle", 500)] {
            let vcpu = vcpu(name);
            vcpu.entity().set_vtime(vtime);
            queue.insert(vcpu, From::Here, 0, 0, &SLICES);
        }
        assert!(vcpus.is_empty());
        assert_eq!(take(&mut queue, 0), Some("early"));
        assert_eq!(take(&mut queue, 0), Some("middle"));
        assert_eq!(take(&mut queue, 0), Some("late"));
        assert_eq!(take(&mut queue, 0), None);
    }

    #[test]
    fn time_that_is_excluded_is_not_charged_and_does_not_prolong_the_slice() {
        let (mut queue, vcpus) = queue(&["one", "two"]);
        let one = queue.take(0, |_| true).unwrap();
        queue.start(one, 0);
        queue.exclude(300);
        queue.charge(800, &SLICES);
        assert_eq!(vcpus[0].entity().ran(), 500);
        assert!(!queue.slice_is_over(999, &SLICES) && queue.slice_is_over(1000, &SLICES));
    }

    #[test]
    fn what_a_vcpu_has_not_been_charged_for_is_what_it_has_run_since() {
        let (mut queue, vcpus) = queue(&["one", "two"]);
        let one = queue.take(0, |_| true).unwrap();
        queue.start(one, 100);
        let uncharged = |queue: &Queue<TestVcpu>, now| [0, 1].map(|which| queue.uncharged(&vcpus[which], now));
        assert_eq!(uncharged(&queue, 500), [400, 0]);
        queue.charge(500, &SLICES);
        assert_eq!((vcpus[0].entity().ran(), uncharged(&queue, 700)), (400, [200, 0]));
        queue.stop(800, &SLICES);
        assert_eq!((vcpus[0].entity().ran(), uncharged(&queue, 900)), (700, [0, 0]));
    }

    #[test]
    fn vcpus_with_the_same_vtime_run_in_the_order_in_which_they_came() {
        for from in [From::Here, From::Sleep] {
            let (mut queue, _) = queue(&["first"]);
            queue.insert(vcpu("second"), from, 0, 0, &SLICES);
            queue.insert(vcpu("third"), from, 0, 0, &SLICES);
            assert_eq!([0; 3].map(|now| take(&mut queue, now)), [Some("first"), Some("second"), Some("third")]);
        }
    }

    #[test]
    #[should_panic(expected = "already linked")]
    fn a_vcpu_that_waits_cannot_be_inserted_again() {
        let (mut queue, vcpus) = queue(&["one"]);
        queue.insert(vcpus[0].clone(), From::Sleep, 0, 0, &SLICES);
    }

    #[test]
    fn a_vcpu_that_slept_is_behind_the_clock_by_no_more_than_the_boost() {
        let (mut queue, vcpus) = queue(&["busy"]);
        let busy = queue.take(0, |_| true).unwrap();
        queue.start(busy, 0);
        queue.charge(50_000, &SLICES);
        let sleeper = vcpu("sleeper");
        queue.insert(sleeper.clone(), From::Sleep, 50_000, 0, &SLICES);
        assert_eq!(sleeper.entity().vtime(), 50_000 - SLICES.boost());
        assert!(queue.makes_way(50_000, &SLICES), "it preempts at once");
        assert_eq!(vcpus[0].entity().vtime(), 50_000);
    }

    #[test]
    fn a_vcpu_that_has_just_run_does_not_preempt_its_equal() {
        let (mut queue, _) = queue(&["one"]);
        let one = queue.take(0, |_| true).unwrap();
        queue.start(one, 0);
        queue.charge(60, &SLICES);
        let equal = vcpu("equal");
        equal.entity().set_vtime(10);
        queue.insert(equal, From::Here, 60, 0, &SLICES);
        assert!(!queue.makes_way(60, &SLICES));
        queue.charge(1000, &SLICES);
        assert!(queue.makes_way(1000, &SLICES), "but after its slice it makes way");
    }

    #[test]
    fn a_cpu_has_a_tick_only_while_two_vcpus_compete() {
        let (mut queue, _) = queue(&["one"]);
        let one = queue.take(0, |_| true).unwrap();
        queue.start(one, 0);
        assert_eq!(queue.next_resched_at(0, &SLICES), None);
        queue.insert(vcpu("two"), From::Sleep, 0, 0, &SLICES);
        assert_eq!(queue.next_resched_at(0, &SLICES), Some(1000));
    }

    #[test]
    fn a_vcpu_that_has_used_up_its_cap_is_skipped_until_the_next_period() {
        let (mut queue, vcpus) = queue(&["capped"]);
        vcpus[0].entity().set_cap(10);
        let capped = queue.take(0, |_| true).unwrap();
        queue.start(capped, 0);
        assert_eq!(queue.next_resched_at(0, &SLICES), Some(1000), "10 % of the period");
        let capped = queue.stop(1000, &SLICES).unwrap();
        queue.insert(capped, From::Here, 1000, 0, &SLICES);
        assert_eq!((queue.len, queue.eligible(1000)), (1, 0));
        assert_eq!(take(&mut queue, 1000), None);
        assert_eq!(queue.next_resched_at(1000, &SLICES), Some(10_000));
        assert_eq!(take(&mut queue, 10_000), Some("capped"));
    }
}
