//! One CPU's run queue: who runs here, who waits, in the order of what each has had.
//!
//! Time is counted per vCPU and divided by its weight (*vtime*); whoever has had least runs next. The queue's *clock*
//! is the least vtime of all who want to run here. It never goes back, and is what newcomers are measured by: one that
//! slept may be ahead of the clock by [`Slices::boost`] at most, so that it runs soon but cannot save up a monopoly; one
//! that comes from a CPU where time went faster may be behind it by two slices of its own. A CPU that was empty starts
//! in the *present*, the furthest of all clocks, or clocks would drift apart for ever.
//!
//! One whose cap is used up waits with a time before which it is passed over.
//!
//! Pure: time comes from the caller, in ticks. Nothing here locks, and nothing allocates but [`Queue::reserve`].

use super::policy::Scheduled;
use alloc::collections::VecDeque;
use alloc::sync::Arc;

/// The lengths of a queue's times, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slices {
    /// How long one runs while another waits.
    pub slice: u64,
    /// The period over which caps are kept.
    pub period: u64,
}

impl Slices {
    /// How far ahead of the clock one may be that was asleep.
    pub(super) const fn boost(&self) -> u64 {
        self.slice / 2
    }

    /// How far ahead of the clock one may be that comes from another CPU's queue.
    const fn credit(&self) -> u64 {
        self.slice * 4
    }

    /// How much less another must have had than the one that runs, to interrupt it within its slice.
    const fn grain(&self) -> u64 {
        self.slice / 10
    }
}

/// How a vCPU comes to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// From sleep.
    Sleep,
    /// From another CPU, where it waited.
    Elsewhere,
    /// It ran here until now.
    Here,
}

struct Waiting<V> {
    vtime: u64,
    not_before: u64,
    vcpu: Arc<V>,
}

/// One CPU's queue.
pub struct Queue<V> {
    /// The next to run first. Who has just run goes in near the end and who has slept near the front: both are cheap.
    waiting: VecDeque<Waiting<V>>,
    /// How many of them wait for their cap, or did when they came.
    parked: usize,
    clock: u64,
    current: Option<Arc<V>>,
    /// Up to when `current` has been charged.
    charged: u64,
    /// Since when `current` has its slice.
    started: u64,
}

impl<V: Scheduled> Queue<V> {
    /// An empty one.
    pub const fn new() -> Queue<V> {
        Queue { waiting: VecDeque::new(), parked: 0, clock: 0, current: None, charged: 0, started: 0 }
    }

    /// Makes room for `vcpus` in all.
    pub fn reserve(&mut self, vcpus: usize) {
        self.waiting.reserve(vcpus.saturating_sub(self.waiting.len()));
    }

    /// Who runs here.
    pub fn current(&self) -> Option<&Arc<V>> {
        self.current.as_ref()
    }

    /// The least that anybody here has had.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// How many wait that could run now.
    pub fn eligible(&self, now: u64) -> usize {
        if self.parked == 0 {
            return self.waiting.len();
        }
        self.waiting.iter().filter(|waiting| waiting.not_before <= now).count()
    }

    /// Who waits, the next to run first.
    pub fn for_each(&self, visit: &mut dyn FnMut(&Arc<V>)) {
        self.waiting.iter().for_each(|waiting| visit(&waiting.vcpu));
    }

    /// Books what the current one has had until `now`.
    pub fn charge(&mut self, now: u64, slices: &Slices) {
        if let Some(current) = &self.current {
            current.entity().charge(now.saturating_sub(self.charged), now, slices.period);
        }
        self.charged = now;
        let least = self.current.iter().map(|current| current.entity().vtime()).chain(self.next_vtime(now)).min();
        self.clock = self.clock.max(least.unwrap_or(0));
    }

    fn next_at(&self, now: u64, fits: impl Fn(&V) -> bool) -> Option<usize> {
        let takes = |waiting: &Waiting<V>| waiting.not_before <= now && fits(&waiting.vcpu);
        if takes(self.waiting.front()?) {
            return Some(0);
        }
        self.waiting.iter().position(takes)
    }

    /// The vtime of the one that runs next.
    pub fn next_vtime(&self, now: u64) -> Option<u64> {
        if self.parked == 0 {
            return self.waiting.front().map(|waiting| waiting.vtime);
        }
        Some(self.waiting.get(self.next_at(now, |_| true)?)?.vtime)
    }

    /// Has `vcpu` wait here.
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
        let not_before = entity.not_before(now, slices.period);
        self.parked += usize::from(not_before != 0);
        debug_assert!(self.waiting.len() < self.waiting.capacity(), "room was reserved for every vCPU");
        let waiting = Waiting { vtime, not_before, vcpu };
        // Mostly it has just run, and has had more than all others.
        if self.waiting.back().is_none_or(|last| last.vtime <= vtime) {
            self.waiting.push_back(waiting);
        } else {
            let at = self.waiting.partition_point(|waiting| waiting.vtime <= vtime);
            self.waiting.insert(at, waiting);
        }
    }

    /// Takes the next of those that `fits`, to run elsewhere or here.
    pub fn take(&mut self, now: u64, fits: impl Fn(&V) -> bool) -> Option<Arc<V>> {
        let taken = match self.next_at(now, fits)? {
            0 => self.waiting.pop_front()?,
            at => self.waiting.remove(at)?,
        };
        self.parked -= usize::from(taken.not_before != 0);
        Some(taken.vcpu)
    }

    /// Whether the current one, charged until `now`, is to make way.
    pub fn makes_way(&self, now: u64, slices: &Slices) -> bool {
        let Some(current) = &self.current else { return true };
        if current.entity().allowance(now, slices.period) == Some(0) {
            return true;
        }
        let Some(next) = self.next_vtime(now) else { return false };
        let slack = if now.saturating_sub(self.started) >= slices.slice { 0 } else { slices.grain() };
        next.saturating_add(slack) < current.entity().vtime()
    }

    /// How long the current one has run since it came, or since its slice was renewed.
    pub fn has_run(&self, now: u64) -> u64 {
        now.saturating_sub(self.started)
    }

    /// Whether the current one has had its slice.
    pub fn slice_is_over(&self, now: u64, slices: &Slices) -> bool {
        self.current.is_some() && now.saturating_sub(self.started) >= slices.slice
    }

    /// The current one has had its slice and nobody has had less: it gets another.
    pub fn renew(&mut self, now: u64, slices: &Slices) {
        if now.saturating_sub(self.started) >= slices.slice {
            self.started = now;
        }
    }

    /// Makes `vcpu`, which was the next, the current one.
    pub fn start(&mut self, vcpu: Arc<V>, now: u64) {
        self.clock = self.clock.max(vcpu.entity().vtime());
        self.current = Some(vcpu);
        self.charged = now;
        self.started = now;
    }

    /// The current one starts now, and not when it was made so.
    pub fn restart_slice(&mut self, now: u64) {
        self.charged = now;
        self.started = now;
    }

    /// Nobody is current any more.
    pub fn stop(&mut self, now: u64, slices: &Slices) -> Option<Arc<V>> {
        self.charge(now, slices);
        self.current.take()
    }

    /// When somebody has to look again: at the end of the slice if others wait, when a cap is used up, when one that
    /// waits for its cap may run.
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
            self.waiting.iter().map(|waiting| waiting.not_before).filter(|&at| at > now).for_each(also);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::CpuId;
    use crate::sched::{Entity, RunState};

    const SLICES: Slices = Slices { slice: 1000, period: 10_000 };

    struct V(&'static str, Entity);
    impl Scheduled for V {
        fn entity(&self) -> &Entity {
            &self.1
        }
        fn run_state(&self) -> &RunState {
            unreachable!("a queue does not ask")
        }
    }

    fn vcpu(name: &'static str) -> Arc<V> {
        Arc::new(V(name, Entity::new(CpuId(0))))
    }

    fn queue(names: &[&'static str]) -> (Queue<V>, alloc::vec::Vec<Arc<V>>) {
        let mut queue = Queue::new();
        queue.reserve(16);
        let vcpus: alloc::vec::Vec<_> = names.iter().map(|name| vcpu(name)).collect();
        for vcpu in &vcpus {
            queue.insert(vcpu.clone(), From::Sleep, 0, 0, &SLICES);
        }
        (queue, vcpus)
    }

    fn take(queue: &mut Queue<V>, now: u64) -> Option<&'static str> {
        queue.take(now, |_| true).map(|vcpu| vcpu.0)
    }

    #[test]
    fn whoever_has_had_least_runs_next() {
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
    fn a_sleeper_comes_back_a_little_ahead_and_no_more() {
        let (mut queue, vcpus) = queue(&["busy"]);
        let busy = queue.take(0, |_| true).unwrap();
        queue.start(busy, 0);
        queue.charge(50_000, &SLICES);
        let sleeper = vcpu("sleeper");
        queue.insert(sleeper.clone(), From::Sleep, 50_000, 0, &SLICES);
        assert_eq!(sleeper.entity().vtime(), 50_000 - SLICES.boost());
        assert!(queue.makes_way(50_000, &SLICES), "it interrupts at once");
        assert_eq!(vcpus[0].entity().vtime(), 50_000);
    }

    #[test]
    fn one_that_has_just_run_does_not_interrupt_its_equal() {
        let (mut queue, _) = queue(&["one"]);
        let one = queue.take(0, |_| true).unwrap();
        queue.start(one, 0);
        queue.charge(60, &SLICES);
        let equal = vcpu("equal");
        equal.entity().set_vtime(10);
        queue.insert(equal, From::Here, 60, 0, &SLICES);
        assert!(!queue.makes_way(60, &SLICES));
        queue.charge(1000, &SLICES);
        assert!(queue.makes_way(1000, &SLICES), "but after its slice it goes");
    }

    #[test]
    fn the_tick_exists_only_while_two_compete() {
        let (mut queue, _) = queue(&["one"]);
        let one = queue.take(0, |_| true).unwrap();
        queue.start(one, 0);
        assert_eq!(queue.next_resched_at(0, &SLICES), None);
        queue.insert(vcpu("two"), From::Sleep, 0, 0, &SLICES);
        assert_eq!(queue.next_resched_at(0, &SLICES), Some(1000));
    }

    #[test]
    fn one_whose_cap_is_used_up_is_passed_over_until_the_next_period() {
        let (mut queue, vcpus) = queue(&["capped"]);
        vcpus[0].entity().set_cap(10);
        let capped = queue.take(0, |_| true).unwrap();
        queue.start(capped, 0);
        assert_eq!(queue.next_resched_at(0, &SLICES), Some(1000), "10 % of the period");
        let capped = queue.stop(1000, &SLICES).unwrap();
        queue.insert(capped, From::Here, 1000, 0, &SLICES);
        assert_eq!((queue.waiting.len(), queue.eligible(1000)), (1, 0));
        assert_eq!(take(&mut queue, 1000), None);
        assert_eq!(queue.next_resched_at(1000, &SLICES), Some(10_000));
        assert_eq!(take(&mut queue, 10_000), Some("capped"));
    }
}
