//! The counter, and EL2's own physical timer (DDI 0487, D12).

use super::barrier;
use super::sysreg::{CNTFRQ_EL0, CNTHP_CTL_EL2, CNTHP_CVAL_EL2, CNTPCT_EL0, Readable, Writeable};

/// The physical count, in ticks. Not read ahead of what comes before it.
#[inline]
#[must_use]
pub fn now() -> u64 {
    barrier::isb();
    CNTPCT_EL0.get()
}

/// Ticks per second.
#[inline]
#[must_use]
pub fn frequency() -> u64 {
    CNTFRQ_EL0.get().max(1)
}

/// Microseconds since the counter was started.
#[must_use]
pub fn now_us() -> u64 {
    ticks_to_us(now(), frequency())
}

/// `ticks` of a counter with `frequency` in microseconds, without overflow.
#[must_use]
pub fn ticks_to_us(ticks: u64, frequency: u64) -> u64 {
    let (seconds, rest) = (ticks / frequency, ticks % frequency);
    seconds * 1_000_000 + rest * 1_000_000 / frequency
}

/// Microseconds in ticks.
#[must_use]
pub fn us_to_ticks(us: u64) -> u64 {
    let frequency = frequency();
    (us / 1_000_000) * frequency + (us % 1_000_000) * frequency / 1_000_000
}

/// EL2's timer interrupts once the physical count has reached `at`.
pub fn arm(at: u64) {
    CNTHP_CVAL_EL2.set(at);
    CNTHP_CTL_EL2.write(CNTHP_CTL_EL2::ENABLE::SET);
    barrier::isb();
}

/// EL2's timer interrupts no more.
pub fn disarm() {
    CNTHP_CTL_EL2.write(CNTHP_CTL_EL2::ENABLE::CLEAR);
    barrier::isb();
}
