//! How many device interrupts EL2 may take for a vCPU, and how many it has taken.
//!
//! The meter is one word: the time at which all interrupts taken so far will have been paid for. Charging is one atomic
//! update by the CPU that takes the interrupt. What happens above the rate is in `host::rate_limit`.

use core::sync::atomic::{AtomicU64, Ordering};

/// The least burst, in interrupts. The burst is otherwise a hundredth of the rate per second.
const BURST: u64 = 32;

/// The credit, in interrupts, that a meter must have before masked interrupts are unmasked.
pub const UNMASK_CREDIT: u64 = 16;

/// The rate at which EL2 takes device interrupts for one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// What one interrupt costs, in counter ticks.
    interval: u64,
    /// What the interrupts that may arrive at once cost, in counter ticks.
    burst: u64,
}

impl Rate {
    /// A rate of `per_second` interrupts, for a counter of `frequency` Hz.
    #[must_use]
    pub fn new(per_second: u32, frequency: u64) -> Rate {
        let interval = (frequency / u64::from(per_second.max(1))).max(1);
        Rate { interval, burst: interval * (u64::from(per_second) / 100).max(BURST) }
    }

    /// The number of interrupts that may arrive at once.
    #[must_use]
    pub fn burst(&self) -> u64 {
        self.burst / self.interval
    }

    /// The ticks after which unmasking is tried again if the hardware has not confirmed the first attempt.
    #[must_use]
    pub fn retry_after(&self) -> u64 {
        UNMASK_CREDIT * self.interval
    }
}

/// What the device interrupts of one vCPU have cost: the time, in counter ticks, at which all of them are paid for.
#[derive(Debug, Default)]
pub struct Meter(AtomicU64);

impl Meter {
    /// Charges for one interrupt at `now`. Returns `false` if the vCPU is above the rate.
    #[must_use]
    pub fn take(&self, rate: &Rate, now: u64) -> bool {
        let charge = |paid: u64| Some(paid.max(now).saturating_add(rate.interval));
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charge).unwrap_or(now);
        before.max(now).saturating_add(rate.interval).saturating_sub(now) <= rate.burst
    }

    /// The time at which masked interrupts may be unmasked.
    #[must_use]
    pub fn unmask_at(&self, rate: &Rate) -> u64 {
        (self.0.load(Ordering::Relaxed) + UNMASK_CREDIT * rate.interval).saturating_sub(rate.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks of the counter in a second.
    const SECOND: u64 = 1_000_000;

    fn rate() -> Rate {
        Rate::new(1000, SECOND)
    }

    #[test]
    fn a_burst_passes_and_after_it_the_rate() {
        let meter = Meter::default();
        let passed = |from: u64, to: u64| (from..to).filter(|&now| meter.take(&rate(), now)).count();
        // One interrupt in each microsecond. Each is charged, whether it passes or not, so none passes after the burst.
        assert_eq!(rate().burst(), 32);
        assert_eq!(passed(SECOND, SECOND + 5000), 32);
        let room = meter.unmask_at(&rate());
        assert_eq!(room, SECOND + 5000 * 1000 + 16_000 - 32_000, "16 interrupts are paid for");
        assert_eq!(passed(room, room + 100), 16);
        // Interrupts at a lower rate always pass.
        let late = 100 * SECOND;
        assert!((0..1000).all(|n| meter.take(&rate(), late + n * 1000)));
    }

    #[test]
    fn a_rate_above_the_counters_frequency_is_one_interrupt_for_each_tick() {
        assert_eq!(Rate::new(10_000_000, SECOND), Rate { interval: 1, burst: 100_000 });
    }
}
