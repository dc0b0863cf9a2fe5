//! The emulated EL1 physical timer (CNTP_*). The CPU's own is not given to guests.
//!
//! The timer compares with the physical counter, which guests read directly (CNTVOFF_EL2 is 0 for dom0). Its interrupt
//! line, PPI 30, is level-sensitive: asserted while the timer is enabled and unmasked and the counter has reached the
//! compare value. After each access, and when the deadline has passed, the caller sets an EL2 timer to
//! [`VTimer::deadline`] and the interrupt line to [`VTimer::level`].
//!
//! Arm ARM (DDI 0487), D12.2 "The AArch64 view of the Generic Timer" and D24.8 (CNTP_CTL_EL0 and related registers).

use crate::ids::Intid;

const ENABLE: u64 = 1 << 0;
const IMASK: u64 = 1 << 1;
const ISTATUS: u64 = 1 << 2;

/// The PPI of the EL1 physical timer (Arm BSA, "PE peripherals").
pub const CNTP_PPI: Intid = Intid(30);

/// An emulated physical timer. It is disabled after reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VTimer {
    control: u64,
    compare: u64,
}

impl VTimer {
    /// Returns a timer in its reset state.
    #[must_use]
    pub const fn new() -> VTimer {
        VTimer { control: 0, compare: 0 }
    }

    /// Whether the timer condition is met.
    const fn met(&self, now: u64) -> bool {
        // Both are unsigned 64-bit counts, so wrap-around need not be handled (D12.2.4).
        now >= self.compare
    }

    /// Value of CNTP_CTL_EL0 when the counter is at `now`.
    #[must_use]
    pub const fn ctl(&self, now: u64) -> u64 {
        // ISTATUS is UNKNOWN while the timer is disabled. This timer returns 0.
        let status = if self.control & ENABLE != 0 && self.met(now) { ISTATUS } else { 0 };
        self.control | status
    }

    /// Writes CNTP_CTL_EL0.
    pub const fn set_ctl(&mut self, value: u64) {
        self.control = value & (ENABLE | IMASK);
    }

    /// Value of CNTP_CVAL_EL0.
    #[must_use]
    pub const fn cval(&self) -> u64 {
        self.compare
    }

    /// Writes CNTP_CVAL_EL0.
    pub const fn set_cval(&mut self, value: u64) {
        self.compare = value;
    }

    /// Value of CNTP_TVAL_EL0 when the counter is at `now`: the low 32 bits of the distance to the compare value.
    #[must_use]
    pub const fn tval(&self, now: u64) -> u64 {
        self.compare.wrapping_sub(now) & 0xffff_ffff
    }

    /// Writes CNTP_TVAL_EL0: the low 32 bits of `value` are a signed distance from `now`.
    pub const fn set_tval(&mut self, now: u64, value: u64) {
        self.compare = now.wrapping_add(value as u32 as i32 as i64 as u64);
    }

    /// Whether the interrupt line is asserted when the counter is at `now`.
    #[must_use]
    pub const fn level(&self, now: u64) -> bool {
        self.control & (ENABLE | IMASK) == ENABLE && self.met(now)
    }

    /// Counter value at which the line will be asserted without a further access. `None` if it is asserted already, or
    /// if the timer is disabled or masked.
    #[must_use]
    pub const fn deadline(&self, now: u64) -> Option<u64> {
        if self.control & (ENABLE | IMASK) == ENABLE && !self.met(now) { Some(self.compare) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_asserted_at_the_deadline_and_deasserted_when_the_guest_moves_it() {
        let mut timer = VTimer::new();
        assert_eq!((timer.level(u64::MAX), timer.deadline(0)), (false, None));
        timer.set_cval(100);
        timer.set_ctl(1);
        assert_eq!((timer.level(99), timer.deadline(99), timer.ctl(99)), (false, Some(100), 1));
        assert_eq!((timer.level(100), timer.deadline(100), timer.ctl(100)), (true, None, 5));
        timer.set_cval(200);
        assert_eq!((timer.level(100), timer.deadline(100)), (false, Some(200)));
    }

    #[test]
    fn a_masked_timer_shows_its_status_but_does_not_assert_the_line() {
        let mut timer = VTimer::new();
        timer.set_ctl(3);
        assert_eq!((timer.ctl(1), timer.level(1), timer.deadline(1)), (7, false, None));
    }

    #[test]
    fn tval_is_signed_and_has_32_bits() {
        let mut timer = VTimer::new();
        timer.set_tval(1000, 0xdead_0000_0000_0010);
        assert_eq!((timer.cval(), timer.tval(1000)), (1016, 16));
        timer.set_tval(1000, 0xffff_fff0);
        assert_eq!((timer.cval(), timer.tval(1000)), (984, 0xffff_fff0));
        timer.set_ctl(1);
        assert!(timer.level(1000));
    }

    #[test]
    fn the_largest_compare_value_does_not_fire_or_overflow() {
        let mut timer = VTimer::new();
        timer.set_cval(u64::MAX);
        timer.set_ctl(u64::MAX);
        assert_eq!(timer.ctl(5), 3, "only ENABLE and IMASK are written");
        timer.set_ctl(1);
        assert_eq!(timer.deadline(5), Some(u64::MAX));
        timer.set_tval(u64::MAX, 0x7fff_ffff);
        assert_eq!(timer.cval(), 0x7fff_fffe);
    }
}
