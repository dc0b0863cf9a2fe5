//! How fast a domain is restarted.
//!
//! A domain that ends within a second of its start, twice in a row, begins anew at once. After the next short life it is
//! delayed by 100 ms, and each further one doubles the delay, up to `restart-delay=`. A life of a second or more sets it
//! back. (systemd: RestartSec=100ms, RestartSteps=, RestartMaxDelaySec=. Xen's xend refused to restart a domain that had
//! lived for less than MINIMUM_RESTART_TIME.)

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A life that is shorter than this, in microseconds, counts as short.
const SHORT_LIFE_US: u64 = 1_000_000;

/// So many short lives in a row are followed by a restart without a delay.
const FREE: u32 = 2;

/// The delay after the next short life, in microseconds; each further one doubles it.
const FIRST_DELAY_US: u64 = 100_000;

/// The pace of one domain. Only the vCPU that goes off last and the one that starts the domain use it.
pub struct Pace {
    /// The number of short lives in a row.
    short: AtomicU32,
    /// When the domain was started last, in microseconds.
    started: AtomicU64,
}

impl Pace {
    /// The pace of a domain that has not been started.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "a default would not say when it was started")]
    pub fn new() -> Pace {
        Pace { short: AtomicU32::new(0), started: AtomicU64::new(0) }
    }

    /// Records that a life begins.
    pub fn begin(&self, now_us: u64) {
        self.started.store(now_us, Ordering::Relaxed);
    }

    /// Records that the life has ended. Returns the delay before the next one, in microseconds.
    #[must_use]
    pub fn end(&self, now_us: u64, longest_us: u64) -> u64 {
        let lived = now_us.saturating_sub(self.started.load(Ordering::Relaxed));
        let short = if lived < SHORT_LIFE_US { self.short.load(Ordering::Relaxed).saturating_add(1) } else { 0 };
        self.short.store(short, Ordering::Relaxed);
        match short.checked_sub(FREE + 1) {
            None => 0,
            // 2^32 times the first delay is 13 years.
            Some(doublings) => (FIRST_DELAY_US << doublings.min(32)).min(longest_us),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: u64 = 5_000_000;

    #[test]
    fn the_third_short_life_is_followed_by_a_delay_which_doubles_up_to_the_longest() {
        let pace = Pace::new();
        let mut now = 0;
        let mut life = |lived: u64| {
            pace.begin(now);
            now += lived;
            let delay = pace.end(now, LONGEST);
            now += delay;
            delay / 1000
        };
        assert_eq!([5_000_000, 10, 10].map(&mut life), [0; 3]);
        assert_eq!([999_999, 10, 10, 10, 10, 10, 10, 10].map(&mut life), [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!([1_000_000, 10, 10, 10].map(&mut life), [0, 0, 0, 100], "a life of a second sets it back");
        assert!((0..100).all(|_| life(0) <= 5000));
    }

    #[test]
    fn without_a_longest_delay_there_is_none() {
        let pace = Pace::new();
        assert!((0..100).all(|_| pace.end(0, 0) == 0));
    }
}
