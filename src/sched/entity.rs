//! What a scheduler keeps in each vCPU: its share, where it may run, and how much it has had.
//!
//! The numbers are atomics so that a debug key may read them at any time. Those that say how much a vCPU has had
//! are changed by the CPU that runs it, or under the lock of the queue that it waits in: never by two at once.

use crate::ids::CpuId;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// CPUs that a [`CpuSet`] can name.
pub const MAX_CPUS: usize = 256;
const WORDS: usize = MAX_CPUS / 64;

/// The weight of a vCPU that nobody has given another.
pub const DEFAULT_WEIGHT: u32 = 256;

/// A set of CPUs that is read while it changes.
#[derive(Debug)]
pub struct CpuSet([AtomicU64; WORDS]);

impl CpuSet {
    /// No CPU.
    #[must_use]
    pub const fn none() -> CpuSet {
        CpuSet([const { AtomicU64::new(0) }; WORDS])
    }

    /// Every CPU.
    #[must_use]
    pub const fn all() -> CpuSet {
        CpuSet([const { AtomicU64::new(u64::MAX) }; WORDS])
    }

    fn word(&self, cpu: CpuId) -> Option<(&AtomicU64, u64)> {
        Some((self.0.get(cpu.index() / 64)?, 1 << (cpu.index() % 64)))
    }

    /// Whether `cpu` is in it.
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

    /// Takes `cpu` out. `true` if it was in it, for one of several who ask at once.
    pub fn take(&self, cpu: CpuId) -> bool {
        self.word(cpu).is_some_and(|(word, bit)| word.fetch_and(!bit, Ordering::SeqCst) & bit != 0)
    }

    /// Makes it `cpus` and no other.
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

    /// Whether no CPU is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| word.load(Ordering::SeqCst) == 0)
    }

    /// The first CPU of both sets, from `start` on and around.
    #[must_use]
    pub fn common(&self, other: &CpuSet, start: CpuId) -> Option<CpuId> {
        let (first, shift) = (start.index() / 64 % WORDS, start.index() % 64);
        // The first word is looked at twice: from the start on, and at the end the part before it.
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

/// A vCPU, to a scheduler.
#[derive(Debug)]
pub struct Entity {
    /// Its number in the scheduler's table, from [`super::Scheduler::add`] on.
    slot: AtomicU16,
    cpu: AtomicU16,
    weight: AtomicU32,
    cap: AtomicU32,
    /// Where it may run.
    pub affinity: CpuSet,
    /// What it has had, in ticks at the default weight.
    pub(super) vtime: AtomicU64,
    /// What it has had, in ticks.
    pub(super) ran: AtomicU64,
    /// What it has had in the period of its cap, in ticks.
    pub(super) used: AtomicU64,
    pub(super) period: AtomicU64,
    /// How often it started on another CPU than the one before.
    pub(super) moves: AtomicU64,
    /// Since when it would run, while it does not.
    waits_since: AtomicU64,
    /// The longest that it has waited, in ticks.
    waited: AtomicU64,
    /// It is in an inbox because another CPU gave it away, not because it was woken.
    pub(super) moving: AtomicBool,
}

const NO_SLOT: u16 = u16::MAX;

impl Entity {
    /// Of the default weight, without a cap, free to run anywhere.
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

    /// Its share: one of twice the weight gets twice the time.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Sets its share, 1 to 65535.
    pub fn set_weight(&self, weight: u32) {
        self.weight.store(weight.clamp(1, 0xffff), Ordering::Relaxed);
    }

    /// The most it may have of a CPU, in percent; 0 for no limit.
    #[must_use]
    pub fn cap(&self) -> u32 {
        self.cap.load(Ordering::Relaxed)
    }

    /// Limits it to `percent` of a CPU; 0 and 100 or more for no limit.
    pub fn set_cap(&self, percent: u32) {
        self.cap.store(if percent < 100 { percent } else { 0 }, Ordering::Relaxed);
    }

    /// Ticks that it has run.
    #[must_use]
    pub fn ran(&self) -> u64 {
        self.ran.load(Ordering::Relaxed)
    }

    /// How often it started on another CPU than the one before.
    #[must_use]
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    /// The longest that it has waited for a CPU, in ticks.
    #[must_use]
    pub fn longest_wait(&self) -> u64 {
        self.waited.load(Ordering::Relaxed)
    }

    /// From `now` on it would run.
    pub fn begin_wait(&self, now: u64) {
        self.waits_since.store(now, Ordering::Relaxed);
    }

    /// It runs at `now`. Its CPU may have taken the time before it was woken.
    pub(super) fn end_wait(&self, now: u64) {
        let waited = now.saturating_sub(self.waits_since.load(Ordering::Relaxed));
        if waited > self.longest_wait() {
            self.waited.store(waited, Ordering::Relaxed);
        }
    }

    /// Ticks at the default weight that `ticks` of its own are.
    pub(super) fn weighted(&self, ticks: u64) -> u64 {
        let weight = u64::from(self.weight());
        match ticks.checked_mul(u64::from(DEFAULT_WEIGHT)) {
            Some(scaled) => scaled / weight,
            None => (ticks / weight).saturating_mul(u64::from(DEFAULT_WEIGHT)),
        }
    }

    pub(super) fn vtime(&self) -> u64 {
        self.vtime.load(Ordering::Relaxed)
    }

    pub(super) fn set_vtime(&self, vtime: u64) {
        self.vtime.store(vtime, Ordering::Relaxed);
    }

    /// Books `ticks` that ended at `now`.
    pub(super) fn charge(&self, ticks: u64, now: u64, period: u64) {
        self.ran.store(self.ran().wrapping_add(ticks), Ordering::Relaxed);
        self.set_vtime(self.vtime().saturating_add(self.weighted(ticks)));
        if self.cap() != 0 {
            self.renew(now, period);
            self.used.store(self.used.load(Ordering::Relaxed).saturating_add(ticks), Ordering::Relaxed);
        }
    }

    fn quota(&self, period: u64) -> u64 {
        period / 100 * u64::from(self.cap())
    }

    /// Starts the cap's next period once it is due. What was used beyond the quota counts in the new one.
    fn renew(&self, now: u64, period: u64) {
        let since = self.period.load(Ordering::Relaxed);
        let elapsed = now.saturating_sub(since) / period.max(1);
        if elapsed > 0 {
            let used = self.used.load(Ordering::Relaxed);
            self.used.store(used.saturating_sub(self.quota(period).saturating_mul(elapsed)), Ordering::Relaxed);
            self.period.store(since + elapsed * period, Ordering::Relaxed);
        }
    }

    /// How long it may still run in this period of its cap; `None` without one.
    pub(super) fn allowance(&self, now: u64, period: u64) -> Option<u64> {
        if self.cap() == 0 {
            return None;
        }
        self.renew(now, period);
        Some(self.quota(period).saturating_sub(self.used.load(Ordering::Relaxed)))
    }

    /// When it may run again; 0 for now.
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
    fn a_set_is_searched_from_a_start_and_around() {
        let (one, two) = (CpuSet::none(), CpuSet::all());
        for cpu in [3, 70, 255] {
            one.add(CpuId(cpu));
        }
        assert_eq!(one.common(&two, CpuId(0)), Some(CpuId(3)));
        assert_eq!(one.common(&two, CpuId(4)), Some(CpuId(70)));
        assert_eq!(one.common(&two, CpuId(71)), Some(CpuId(255)));
        assert!(one.take(CpuId(255)) && !one.take(CpuId(255)));
        assert_eq!(one.common(&two, CpuId(71)), Some(CpuId(3)), "around");
        two.set([CpuId(70)].into_iter());
        assert_eq!(one.common(&two, CpuId(0)), Some(CpuId(70)));
        assert_eq!(one.common(&CpuSet::none(), CpuId(0)), None);
    }

    #[test]
    fn twice_the_weight_ages_half_as_fast() {
        let (light, heavy) = (Entity::new(CpuId(0)), Entity::new(CpuId(0)));
        heavy.set_weight(512);
        light.charge(1000, 1000, 100);
        heavy.charge(1000, 1000, 100);
        assert_eq!((light.vtime(), heavy.vtime()), (1000, 500));
        assert_eq!((light.ran(), heavy.ran()), (1000, 1000));
    }

    #[test]
    fn a_cap_is_used_up_and_renewed_with_what_was_overrun() {
        let entity = Entity::new(CpuId(0));
        entity.set_cap(25);
        assert_eq!(entity.allowance(0, 1000), Some(250));
        entity.charge(300, 300, 1000);
        assert_eq!(entity.not_before(300, 1000), 1000);
        assert_eq!(entity.allowance(1000, 1000), Some(200), "50 too many before");
        assert_eq!(entity.not_before(1000, 1000), 0);
    }
}
