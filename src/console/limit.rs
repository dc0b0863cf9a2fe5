//! Log lines at a limited rate.
//!
//! What a guest or broken hardware can cause without end is logged by [`log_limited!`](crate::log_limited): the first
//! lines of each kind at once, then one in a second. The turns of a domain's life, which come in a regular order, are
//! logged by [`log_each_second!`](crate::log_each_second). A kind is a place in the code; of what a domain causes, each
//! domain has its own limit there, which stays when the domain is built again or restarted. `cargo xtask lint` checks
//! that the rooms that run for guests use no other log macros.

use crate::ids::DomId;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The number of lines that [`log_limited!`](crate::log_limited) logs at once.
pub const BURST: u64 = 8;
/// After them, one line in so many microseconds.
const PERIOD_US: u64 = 1_000_000;
/// The number of limits of one kind: the first is dom0's, and domUs whose numbers differ by a multiple of the others share
/// one. A limit for each domain that there may be would take EL2 4 KiB for each kind.
const LIMITS: usize = 64;

/// The limit of one kind of line.
pub struct Limit {
    /// The time up to which lines are used up, in microseconds: each line uses up a period.
    used_until: AtomicU64,
    /// The number of lines that were not logged since the last one that was.
    withheld: AtomicU32,
}

impl Limit {
    /// No line was logged yet.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "it is for statics")]
    pub const fn new() -> Limit {
        Limit { used_until: AtomicU64::new(0), withheld: AtomicU32::new(0) }
    }

    /// Whether a line may be logged at `now_us`, if `burst` of them, one at least, are logged at once; then with the
    /// number of those before it that were not.
    pub fn admit(&self, now_us: u64, burst: u64) -> Option<Withheld> {
        let used = self.used_until.load(Ordering::Relaxed).max(now_us);
        if used.saturating_sub(now_us) > burst.saturating_sub(1) * PERIOD_US {
            self.withheld.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        // Two CPUs at once may log one line too many.
        self.used_until.store(used.saturating_add(PERIOD_US), Ordering::Relaxed);
        Some(Withheld(self.withheld.swap(0, Ordering::Relaxed)))
    }
}

/// The limits of one kind of line, for each domain.
pub struct Limits([Limit; LIMITS]);

impl Limits {
    /// No line was logged yet.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "it is for statics")]
    pub const fn new() -> Limits {
        Limits([const { Limit::new() }; LIMITS])
    }

    /// The limit of a domain.
    #[must_use]
    pub fn of(&self, domain: DomId) -> &Limit {
        let [dom0, domus @ ..] = &self.0;
        let domu = usize::from(domain.0).checked_sub(1).and_then(|domu| domus.get(domu % domus.len()));
        domu.unwrap_or(dom0)
    }
}

/// The number of lines that were not logged. It is displayed behind the one that is.
pub struct Withheld(u32);

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            n => write!(f, " ({n} like it not logged)"),
        }
    }
}

/// The time, in microseconds. In tests on the host there is none.
#[must_use]
pub fn now_us() -> u64 {
    if cfg!(target_os = "none") { crate::arch::timer::now_us() } else { 0 }
}

/// Logs at a limited rate: `log_limited!(Warn, domain; "text {}", …)` for what the domain of this number has caused,
/// `log_limited!(Warn; "text")` for what no domain has.
#[macro_export]
macro_rules! log_limited {
    ($level:ident; $($text:tt)+) => {{
        static LIMIT: $crate::console::limit::Limit = $crate::console::limit::Limit::new();
        if let Some(withheld) = LIMIT.admit($crate::console::limit::now_us(), $crate::console::limit::BURST) {
            log::log!(log::Level::$level, "{}{withheld}", format_args!($($text)+));
        }
    }};
    ($level:ident, $domain:expr; $($text:tt)+) => {{
        static LIMITS: $crate::console::limit::Limits = $crate::console::limit::Limits::new();
        if let Some(withheld) = LIMITS.of($domain).admit($crate::console::limit::now_us(), $crate::console::limit::BURST) {
            log::log!(log::Level::$level, "{}{withheld}", format_args!($($text)+));
        }
    }};
}

/// Logs what a domain has caused, at most one line of a kind in a second: `log_each_second!(Info, domain; "text")`.
/// Returns whether it has.
#[macro_export]
macro_rules! log_each_second {
    ($level:ident, $domain:expr; $($text:tt)+) => {{
        static LIMITS: $crate::console::limit::Limits = $crate::console::limit::Limits::new();
        let admitted = LIMITS.of($domain).admit($crate::console::limit::now_us(), 1);
        if let Some(withheld) = &admitted {
            log::log!(log::Level::$level, "{}{withheld}", format_args!($($text)+));
        }
        admitted.is_some()
    }};
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_burst_is_logged_then_one_line_in_a_second_with_the_number_of_the_others() {
        let limit = Limit::new();
        let at = |us: u64| limit.admit(us, BURST).map(|withheld| withheld.to_string());
        let first: std::vec::Vec<bool> = (0..100).map(|us| at(us).is_some()).collect();
        assert_eq!(first.iter().filter(|&&logged| logged).count() as u64, BURST);
        assert!(first[7] && !first[8]);
        assert_eq!(at(1_000_000).as_deref(), Some(" (92 like it not logged)"));
        assert_eq!(at(1_500_000), None);
        assert_eq!(at(2_000_000).as_deref(), Some(" (1 like it not logged)"));
        // After a pause, a burst again.
        assert_eq!((0..20).filter(|_| at(60_000_000).is_some()).count() as u64, BURST);
    }

    #[test]
    fn each_domain_has_a_limit_of_its_own_if_there_are_few() {
        let limits = Limits::new();
        while limits.of(DomId(1)).admit(0, BURST).is_some() {}
        assert!(limits.of(DomId(2)).admit(0, BURST).is_some());
        let is_one = |a, b| core::ptr::eq(limits.of(DomId(a)), limits.of(DomId(b)));
        assert!(is_one(2, 65) && is_one(63, 126));
        assert!((1..=u16::MAX).all(|domu| !is_one(domu, 0)), "no domU uses up what dom0 may log");
        assert!((1..=63).all(|a| (1..a).all(|b| !is_one(a, b))));
    }
}
