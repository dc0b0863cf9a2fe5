//! The guest's physical timer, CNTP_*: emulated, for EL2 does not lend its own.
//!
//! The comparison is with the physical counter, which guests read directly (CNTVOFF_EL2 is 0 for dom0). The
//! line is a level, PPI 30: up while the timer is enabled, unmasked and past its compare value. The caller
//! keeps an EL2 timer set to [`VTimer::deadline`] and copies [`VTimer::level`] to the interrupt after each
//! access and when the deadline has passed.
//!
//! Arm ARM (DDI 0487), D12.2 "The AArch64 view of the Generic Timer" and D24.8 (CNTP_CTL_EL0 and its kin).

const ENABLE: u64 = 1 << 0;
const IMASK: u64 = 1 << 1;
const ISTATUS: u64 = 1 << 2;

/// The interrupt of the EL1 physical timer, by the server base system architecture and every device tree.
pub const PPI: u32 = 30;

/// A timer, disabled until the guest says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VTimer {
    control: u64,
    compare: u64,
}

impl VTimer {
    /// As after reset.
    #[must_use]
    pub const fn new() -> VTimer {
        VTimer { control: 0, compare: 0 }
    }

    const fn met(&self, now: u64) -> bool {
        // Both are unsigned 64-bit counts: no wrap-around is to be expected (D12.2.4).
        now >= self.compare
    }

    /// Reads CNTP_CTL_EL0.
    #[must_use]
    pub const fn ctl(&self, now: u64) -> u64 {
        // ISTATUS is UNKNOWN while the timer is disabled; 0 here.
        let status = if self.control & ENABLE != 0 && self.met(now) { ISTATUS } else { 0 };
        self.control | status
    }

    /// Writes CNTP_CTL_EL0.
    pub const fn set_ctl(&mut self, value: u64) {
        self.control = value & (ENABLE | IMASK);
    }

    /// Reads CNTP_CVAL_EL0.
    #[must_use]
    pub const fn cval(&self) -> u64 {
        self.compare
    }

    /// Writes CNTP_CVAL_EL0.
    pub const fn set_cval(&mut self, value: u64) {
        self.compare = value;
    }

    /// Reads CNTP_TVAL_EL0: the distance to the compare value, 32 bits of it.
    #[must_use]
    pub const fn tval(&self, now: u64) -> u64 {
        self.compare.wrapping_sub(now) & 0xffff_ffff
    }

    /// Writes CNTP_TVAL_EL0: a signed 32-bit distance from now.
    pub const fn set_tval(&mut self, now: u64, value: u64) {
        self.compare = now.wrapping_add(value as u32 as i32 as i64 as u64);
    }

    /// Whether the interrupt line is up.
    #[must_use]
    pub const fn level(&self, now: u64) -> bool {
        self.control & (ENABLE | IMASK) == ENABLE && self.met(now)
    }

    /// The counter value at which the line goes up by itself; `None` if it is up, or never will be.
    #[must_use]
    pub const fn deadline(&self, now: u64) -> Option<u64> {
        if self.control & (ENABLE | IMASK) == ENABLE && !self.met(now) { Some(self.compare) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_rises_at_the_deadline_and_falls_when_the_guest_moves_it() {
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
    fn a_masked_timer_shows_its_status_but_raises_no_line() {
        let mut timer = VTimer::new();
        timer.set_ctl(3);
        assert_eq!((timer.ctl(1), timer.level(1), timer.deadline(1)), (7, false, None));
    }

    #[test]
    fn a_distance_is_signed_and_32_bits_wide() {
        let mut timer = VTimer::new();
        timer.set_tval(1000, 0xdead_0000_0000_0010);
        assert_eq!((timer.cval(), timer.tval(1000)), (1016, 16));
        timer.set_tval(1000, 0xffff_fff0);
        assert_eq!((timer.cval(), timer.tval(1000)), (984, 0xffff_fff0));
        timer.set_ctl(1);
        assert!(timer.level(1000));
    }

    #[test]
    fn a_compare_value_at_the_end_of_time_never_fires_and_never_overflows() {
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
