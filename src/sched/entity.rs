//! A scheduler's data in each vCPU: its weight and cap, the CPUs that it may run on, and the time that it has run.
//!
//! The numbers are atomics so that a debug key can read them at any time. Those that count the time are written by the
//! CPU that runs the vCPU, or under the lock of the queue that it waits in, so never by two CPUs at once.

use super::cpu_set::CpuSet;
use super::links::{QueueLink, SleepLink};
use crate::ids::CpuId;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// The weight of a vCPU unless it is set to another.
pub const DEFAULT_WEIGHT: u32 = 256;

/// A scheduler's data in a vCPU.
#[derive(Debug)]
pub struct Entity {
    /// Index in the scheduler's table, set by `Scheduler::add`.
    slot: AtomicU16,
    /// The CPU that it runs on, or ran on last.
    cpu: AtomicU16,
    weight: AtomicU32,
    /// Percent of a CPU; 0 for no limit.
    cap: AtomicU32,
    /// The CPUs that it may run on.
    pub affinity: CpuSet,
    /// Virtual time: ticks that it has run, scaled by default weight over own weight.
    pub(super) vtime: AtomicU64,
    /// Ticks that it has run.
    pub(super) ran: AtomicU64,
    /// Ticks that it has run in the current period of its cap.
    pub(super) used: AtomicU64,
    /// When that period began.
    pub(super) period: AtomicU64,
    /// How often it started on a CPU other than the one before.
    pub(super) moves: AtomicU64,
    /// Since when it has been runnable without running.
    waits_since: AtomicU64,
    /// The longest time that it has waited for a CPU, in ticks.
    waited: AtomicU64,
    /// It is in an inbox because another CPU passed it on, not because it was woken.
    pub(super) moving: AtomicBool,
    /// Links it into the run queue of one CPU. The scheduler moves a vCPU from one place to the next, so it is in one
    /// queue at most.
    pub queue_link: QueueLink,
    /// While it is in a run queue: the time before which its cap does not let it run; 0 for none.
    parked_until: AtomicU64,
    /// Links it into the list of sleepers of one CPU. The switch to a vCPU takes it out of the list that it is in, and
    /// only a vCPU that runs goes to sleep, so it is in one list at most.
    pub sleep_link: SleepLink,
    /// While it is in a list of sleepers: when it has to be woken.
    wakes_at: AtomicU64,
}

const NO_SLOT: u16 = u16::MAX;

impl Entity {
    /// An entity with the default weight, without a cap, that may run on every CPU.
    #[must_use]
    pub const fn new(home: CpuId) -> Entity {
        Entity {
            slot: AtomicU16::new(NO_SLOT),
            cpu: AtomicU16::new(home.0),
            weight: AtomicU32::new(DEFAULT_WEIGHT),
            cap: AtomicU32::new(0),
            affinity: CpuSet::all(),
            vtime: AtomicU64::new(0),
            ran: AtomicU64::new(0),
            used: AtomicU64::new(0),
            period: AtomicU64::new(0),
            moves: AtomicU64::new(0),
            waits_since: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            moving: AtomicBool::new(false),
            queue_link: QueueLink::new(),
            parked_until: AtomicU64::new(0),
            sleep_link: SleepLink::new(),
            wakes_at: AtomicU64::new(0),
        }
    }

    /// The CPU that it runs on, or ran on last.
    #[must_use]
    pub fn cpu(&self) -> CpuId {
        CpuId(self.cpu.load(Ordering::SeqCst))
    }

    pub(super) fn set_cpu(&self, cpu: CpuId) {
        if self.cpu.swap(cpu.0, Ordering::SeqCst) != cpu.0 {
            self.moves.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn slot(&self) -> usize {
        usize::from(self.slot.load(Ordering::Relaxed))
    }

    pub(super) fn set_slot(&self, slot: Option<usize>) {
        let slot = slot.and_then(|slot| u16::try_from(slot).ok()).unwrap_or(NO_SLOT);
        self.slot.store(slot, Ordering::Relaxed);
    }

    /// The weight: a vCPU with twice the weight gets twice the time.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Sets the weight, clamped to 1 to 65535.
    pub fn set_weight(&self, weight: u32) {
        self.weight.store(weight.clamp(1, 0xffff), Ordering::Relaxed);
    }

    /// The cap: the largest part of a CPU that it may use, in percent; 0 for no limit.
    #[must_use]
    pub fn cap(&self) -> u32 {
        self.cap.load(Ordering::Relaxed)
    }

    /// Sets the cap to `percent` of a CPU; 0, and 100 or more, for no limit.
    pub fn set_cap(&self, percent: u32) {
        self.cap.store(if percent < 100 { percent } else { 0 }, Ordering::Relaxed);
    }

    /// Ticks that it has run.
    #[must_use]
    pub fn ran(&self) -> u64 {
        self.ran.load(Ordering::Relaxed)
    }

    /// How often it started on a CPU other than the one before.
    #[must_use]
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    /// The longest time that it has waited for a CPU, in ticks.
    #[must_use]
    pub fn longest_wait(&self) -> u64 {
        self.waited.load(Ordering::Relaxed)
    }

    /// Records that it became runnable at `now`.
    pub fn begin_wait(&self, now: u64) {
        self.waits_since.store(now, Ordering::Relaxed);
    }

    /// Records that it runs at `now`, which may be earlier than its wake if its CPU read the clock before.
    pub(super) fn end_wait(&self, now: u64) {
        let waited = now.saturating_sub(self.waits_since.load(Ordering::Relaxed));
        if waited > self.longest_wait() {
            self.waited.store(waited, Ordering::Relaxed);
        }
    }

    /// Converts `ticks` of running to virtual time.
    pub(super) fn weighted(&self, ticks: u64) -> u64 {
        let weight = u64::from(self.weight());
        match ticks.checked_mul(u64::from(DEFAULT_WEIGHT)) {
            Some(scaled) => scaled / weight,
            None => (ticks / weight).saturating_mul(u64::from(DEFAULT_WEIGHT)),
        }
    }

    pub(super) fn parked_until(&self) -> u64 {
        self.parked_until.load(Ordering::Relaxed)
    }

    pub(super) fn set_parked_until(&self, time: u64) {
        self.parked_until.store(time, Ordering::Relaxed);
    }

    /// When it has to be woken, while it is in a list of sleepers. Under the lock of that list.
    #[must_use]
    pub fn wakes_at(&self) -> u64 {
        self.wakes_at.load(Ordering::Relaxed)
    }

    /// Sets when it has to be woken. Before it is put into a list of sleepers, under the lock of that list.
    pub fn set_wakes_at(&self, time: u64) {
        self.wakes_at.store(time, Ordering::Relaxed);
    }

    pub(super) fn vtime(&self) -> u64 {
        self.vtime.load(Ordering::Relaxed)
    }

    pub(super) fn set_vtime(&self, vtime: u64) {
        self.vtime.store(vtime, Ordering::Relaxed);
    }

    /// Charges `ticks` of running that ended at `now`.
    pub(super) fn charge(&self, ticks: u64, now: u64, period: u64) {
        self.ran.store(self.ran().wrapping_add(ticks), Ordering::Relaxed);
        self.set_vtime(self.vtime().saturating_add(self.weighted(ticks)));
        if self.cap() != 0 {
            self.renew(now, period);
            self.used.store(self.used.load(Ordering::Relaxed).saturating_add(ticks), Ordering::Relaxed);
        }
    }

    /// Ticks that it may run in each period.
    fn quota(&self, period: u64) -> u64 {
        period / 100 * u64::from(self.cap())
    }

    /// Starts the next period of the cap once it is due. Ticks beyond the quota count in the new period.
    fn renew(&self, now: u64, period: u64) {
        let since = self.period.load(Ordering::Relaxed);
        let elapsed = now.saturating_sub(since) / period.max(1);
        if elapsed > 0 {
            let used = self.used.load(Ordering::Relaxed);
            self.used.store(used.saturating_sub(self.quota(period).saturating_mul(elapsed)), Ordering::Relaxed);
            self.period.store(since + elapsed * period, Ordering::Relaxed);
        }
    }

    /// How many ticks it may still run in this period of its cap; `None` without a cap.
    #[inline]
    pub(super) fn allowance(&self, now: u64, period: u64) -> Option<u64> {
        (self.cap() != 0).then(|| self.allowance_with_cap(now, period))
    }

    #[cold]
    fn allowance_with_cap(&self, now: u64, period: u64) -> u64 {
        self.renew(now, period);
        self.quota(period).saturating_sub(self.used.load(Ordering::Relaxed))
    }

    /// The time before which its cap does not let it run; 0 if it may run now.
    pub(super) fn not_before(&self, now: u64, period: u64) -> u64 {
        match self.allowance(now, period) {
            Some(0) => self.period.load(Ordering::Relaxed) + period,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_virtual_time_of_twice_the_weight_passes_half_as_fast() {
        let (light, heavy) = (Entity::new(CpuId(0)), Entity::new(CpuId(0)));
        heavy.set_weight(512);
        light.charge(1000, 1000, 100);
        heavy.charge(1000, 1000, 100);
        assert_eq!((light.vtime(), heavy.vtime()), (1000, 500));
        assert_eq!((light.ran(), heavy.ran()), (1000, 1000));
    }

    #[test]
    fn a_new_period_of_a_cap_is_charged_with_the_overrun_of_the_last() {
        let entity = Entity::new(CpuId(0));
        entity.set_cap(25);
        assert_eq!(entity.allowance(0, 1000), Some(250));
        entity.charge(300, 300, 1000);
        assert_eq!(entity.not_before(300, 1000), 1000);
        assert_eq!(entity.allowance(1000, 1000), Some(200), "50 ticks of overrun");
        assert_eq!(entity.not_before(1000, 1000), 0);
    }
}
