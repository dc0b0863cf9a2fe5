//! Whether a domain lives, how it ends, and that its end is announced once.

use crate::sync::atomic::{AtomicU8, Ordering};

/// How a domain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It switched itself off.
    Off,
    /// It asked for a reset.
    Reset,
    /// It cannot go on.
    Crash,
}

/// How it ends, once it does.
const END: u8 = 0b11;

/// Its last vCPU has gone off, and that has been noticed.
const OVER: u8 = 0b100;

/// Whether a domain lives, and how it ends if not.
pub struct Life(AtomicU8);

impl Life {
    /// It lives.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "to live is no default")]
    pub fn new() -> Life {
        Life(AtomicU8::new(0))
    }

    /// How it ends, once it does.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        match self.0.load(Ordering::SeqCst) & END {
            0 => None,
            1 => Some(End::Off),
            2 => Some(End::Reset),
            _ => Some(End::Crash),
        }
    }

    /// It ends. `true` for the first who says so.
    pub fn finish(&self, end: End) -> bool {
        let raw = match end {
            End::Off => 1,
            End::Reset => 2,
            End::Crash => 3,
        };
        self.0.compare_exchange(0, raw, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// It has ended and all of its vCPUs are off. `true` for the first who says so: the last two vCPUs may both find all off,
    /// and by the time that the second says it, a new domain may stand in the place of this one.
    pub fn is_over(&self) -> bool {
        self.0.fetch_or(OVER, Ordering::SeqCst) & OVER == 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_domain_ends_once_in_the_way_that_was_said_first() {
        let life = Life::new();
        assert_eq!(life.end(), None);
        assert!(life.finish(End::Reset) && !life.finish(End::Crash));
        assert!(life.is_over() && !life.is_over());
        assert_eq!(life.end(), Some(End::Reset));
    }
}

/// Run by `RUSTFLAGS="--cfg loom" cargo test --lib interleavings`.
#[cfg(all(test, loom))]
mod interleavings {
    use super::*;
    use crate::sched::{RunState, State};
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU8 as Explored;

    #[test]
    fn of_two_vcpus_that_go_off_at_once_one_announces_the_end() {
        loom::model(|| {
            let shared = Arc::new((Life::new(), [RunState::new(), RunState::new()], Explored::new(0)));
            shared.1.iter().for_each(|run| assert!(run.power_on() && run.start_running()));
            assert!(shared.0.finish(End::Reset));
            let go_off = |shared: &(Life, [RunState; 2], Explored), which: usize| {
                let (life, runs, announced) = shared;
                runs[which].power_off();
                if runs.iter().all(|run| run.get() == State::Off) && life.is_over() {
                    announced.fetch_add(1, Ordering::SeqCst);
                }
            };
            let theirs = shared.clone();
            let other = loom::thread::spawn(move || go_off(&theirs, 1));
            go_off(&shared, 0);
            other.join().unwrap();
            assert_eq!(shared.2.load(Ordering::SeqCst), 1);
        });
    }
}
