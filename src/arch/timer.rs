//! The system counter, and the physical timer of EL2 (DDI 0487, D12).

use super::barrier;
use super::sysreg::{CNTFRQ_EL0, CNTHP_CTL_EL2, CNTHP_CVAL_EL2, CNTPCT_EL0, Readable, Writeable};

/// Returns the physical count, in ticks. The counter is read after all earlier instructions have executed.
#[inline]
#[must_use]
pub fn now() -> u64 {
    // A later memory access may be moved ahead of the read of the counter, but not ahead of the ISB.
    barrier::isb();
    CNTPCT_EL0.get()
}

/// Returns the frequency of the counter in Hz, at least 1.
#[inline]
#[must_use]
pub fn frequency() -> u64 {
    CNTFRQ_EL0.get().max(1)
}

/// Returns the physical count in microseconds.
#[must_use]
pub fn now_us() -> u64 {
    ticks_to_us(now(), frequency())
}

/// Converts `ticks` of a counter that runs at `frequency` Hz to microseconds. Intermediate results do not overflow.
#[must_use]
pub fn ticks_to_us(ticks: u64, frequency: u64) -> u64 {
    let (seconds, rest) = (ticks / frequency, ticks % frequency);
    seconds * 1_000_000 + rest * 1_000_000 / frequency
}

/// Converts microseconds to ticks of the counter.
#[must_use]
pub fn us_to_ticks(us: u64) -> u64 {
    let frequency = frequency();
    (us / 1_000_000) * frequency + (us % 1_000_000) * frequency / 1_000_000
}

/// Sets EL2's timer to raise its interrupt once the physical count has reached `at`, in ticks.
pub fn arm(at: u64) {
    CNTHP_CVAL_EL2.set(at);
    CNTHP_CTL_EL2.write(CNTHP_CTL_EL2::ENABLE::SET);
    barrier::isb();
}

/// Disables EL2's timer.
pub fn disarm() {
    CNTHP_CTL_EL2.write(CNTHP_CTL_EL2::ENABLE::CLEAR);
    barrier::isb();
}
