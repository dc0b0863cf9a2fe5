//! Whether a domain lives, how it ends, and that its end is announced once.
//!
//! A domain is over when its last vCPU has gone off. That is counted, not looked up: who looks at one vCPU after the other
//! may see one off that is then powered on by another, and that other off, and finds all off though one runs. A vCPU is
//! counted before it is powered on, by one that is on itself, so the count gets to 0 once, and then for good.

use crate::sync::atomic::{AtomicU8, AtomicU64, Ordering};

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

/// Whether a domain lives, and how it ends if not.
pub struct Life {
    end: AtomicU8,
    /// How many vCPUs are on, or about to be.
    on: AtomicU64,
}

impl Life {
    /// It lives, and none of its vCPUs is on yet.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "to live is no default")]
    pub fn new() -> Life {
        Life { end: AtomicU8::new(0), on: AtomicU64::new(0) }
    }

    /// How it ends, once it does.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        match self.end.load(Ordering::SeqCst) {
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
        self.end.compare_exchange(0, raw, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// A vCPU is about to be powered on: by one that is on, or by who builds the domain.
    pub fn one_comes_on(&self) {
        self.on.fetch_add(1, Ordering::SeqCst);
    }

    /// A vCPU has gone off, or was on already when it was to come on. `true` for the last one: all are off, for good.
    #[must_use]
    pub fn one_goes_off(&self) -> bool {
        self.on.fetch_sub(1, Ordering::SeqCst) == 1
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
        assert_eq!(life.end(), Some(End::Reset));
    }

    #[test]
    fn it_is_over_when_the_last_vcpu_goes_off() {
        let life = Life::new();
        (0..2).for_each(|_| life.one_comes_on());
        assert!(!life.one_goes_off());
        // Powered on though it was on.
        life.one_comes_on();
        assert!(!life.one_goes_off());
        assert!(life.one_goes_off());
    }
}

/// Run by `RUSTFLAGS="--cfg loom" cargo test --lib interleavings`.
#[cfg(all(test, loom))]
mod interleavings {
    use super::*;
    use crate::sched::{RunState, State};
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU8 as Explored;

    struct Domain {
        life: Life,
        runs: [RunState; 3],
        announced: Explored,
    }

    impl Domain {
        /// The first `on` vCPUs run.
        fn new(on: usize) -> Arc<Domain> {
            let domain = Domain {
                life: Life::new(),
                runs: [RunState::new(), RunState::new(), RunState::new()],
                announced: Explored::new(0),
            };
            (0..on).for_each(|vcpu| assert!(domain.power_on(vcpu) && domain.runs[vcpu].start_running()));
            Arc::new(domain)
        }

        /// `Domain::power_on`.
        fn power_on(&self, vcpu: usize) -> bool {
            self.life.one_comes_on();
            self.runs[vcpu].power_on() || {
                let _ = self.life.one_goes_off();
                false
            }
        }

        /// `Stay::off`.
        fn go_off(&self, vcpu: usize) {
            self.runs[vcpu].power_off();
            if self.life.one_goes_off() {
                assert!(self.runs.iter().all(|run| run.get() == State::Off), "over, and one is on");
                self.announced.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    #[test]
    fn of_two_vcpus_that_go_off_at_once_one_announces_the_end() {
        loom::model(|| {
            let domain = Domain::new(2);
            assert!(domain.life.finish(End::Reset));
            let theirs = domain.clone();
            let other = loom::thread::spawn(move || theirs.go_off(1));
            domain.go_off(0);
            other.join().unwrap();
            assert_eq!(domain.announced.load(Ordering::SeqCst), 1);
        });
    }

    /// vCPU 2 powers vCPU 1 on and goes off, while vCPU 0 goes off and is perhaps the last.
    #[test]
    fn one_that_is_powered_on_by_another_that_goes_off_keeps_the_domain_alive() {
        loom::model(|| {
            let domain = Domain::new(3);
            domain.go_off(1);
            let theirs = domain.clone();
            let other = loom::thread::spawn(move || {
                assert!(theirs.power_on(1));
                theirs.go_off(2);
            });
            domain.go_off(0);
            other.join().unwrap();
            assert_eq!((domain.announced.load(Ordering::SeqCst), domain.life.end()), (0, None));
            domain.go_off(1);
            assert_eq!(domain.announced.load(Ordering::SeqCst), 1);
        });
    }
}
