//! What a domU can cause to be logged over and over: of each kind, one line for each domain and second.

use crate::ids::DomId;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The time after a line in which no further one of its kind is logged, in microseconds.
const SILENCE_US: u64 = 1_000_000;

/// The kinds of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The domain has powered itself off.
    Off,
    /// It has asked for a reset.
    Reset,
    /// It has crashed.
    Crashed,
    /// Why it has crashed.
    Cause,
    /// Its restart is delayed.
    Delayed,
    /// It has been restarted.
    Restarted,
}

const KINDS: usize = 6;

impl Report {
    const fn level(self) -> log::Level {
        match self {
            Report::Crashed | Report::Cause => log::Level::Warn,
            Report::Off | Report::Reset | Report::Delayed | Report::Restarted => log::Level::Info,
        }
    }
}

/// The lines of one kind.
#[derive(Default)]
struct Lines {
    /// No line is logged before this time, in microseconds.
    silent_until: AtomicU64,
    left_out: AtomicU32,
}

impl Lines {
    /// Whether a line is to be logged; then with the number of those that have been left out since the last one.
    fn next(&self, now_us: u64) -> Option<u32> {
        let until = self.silent_until.load(Ordering::Relaxed);
        let next = now_us.saturating_add(SILENCE_US);
        // Of two CPUs, one logs.
        if now_us < until
            || self.silent_until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }
}

/// The lines of one domain, by kind.
#[derive(Default)]
pub struct Reports([Lines; KINDS]);

impl Reports {
    /// Logs a line about domain `id`, unless there was one of this kind within the last second. Returns whether it has.
    pub fn log(&self, id: DomId, now_us: u64, kind: Report, text: fmt::Arguments<'_>) -> bool {
        let Some(left_out) = self.0.get(kind as usize).and_then(|lines| lines.next(now_us)) else { return false };
        match left_out {
            0 => log::log!(kind.level(), "{id}: {text}"),
            more => log::log!(kind.level(), "{id}: {text} ({more} such lines left out before)"),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_logged_in_each_second_with_the_number_of_those_before_it() {
        let lines = Lines::default();
        let logged = [5, 6, 7, 1_000_004, 1_000_005, 1_000_006, 9_000_000].map(|now| lines.next(now));
        assert_eq!(logged, [Some(0), None, None, None, Some(3), None, Some(1)]);
    }

    #[test]
    fn every_kind_has_its_lines() {
        let reports = Reports::default();
        assert_eq!(Report::Restarted as usize + 1, reports.0.len());
    }
}
