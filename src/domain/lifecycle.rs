//! The lifecycle of a domain: why it ends, and when its last vCPU is off.
//!
//! The vCPUs that are on are counted. A scan of their states would race with PSCI CPU_ON: vCPU 1 reads as off, vCPU 2
//! then powers vCPU 1 on and goes off, and the scan finds all vCPUs off while vCPU 1 runs. With the counter, a vCPU
//! that is on counts another one before it powers it on. So the counter reaches 0 once, and stays there until the
//! domain is restarted.

use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// How a domain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It has powered itself off (PSCI SYSTEM_OFF).
    Off,
    /// It has requested a reset (PSCI SYSTEM_RESET).
    Reset,
    /// It cannot continue, has reported a crash, or was ended by a debug key.
    Crash,
    /// It was destroyed.
    Destroyed,
}

impl End {
    const fn raw(self) -> u8 {
        match self {
            End::Off => 1,
            End::Reset => 2,
            End::Crash => 3,
            End::Destroyed => 4,
        }
    }
}

/// The lifecycle of one domain.
pub struct Lifecycle {
    /// 0 while the domain has not ended; then the number of an [`End`].
    end: AtomicU8,
    /// The number of vCPUs that are on or about to be powered on.
    on: AtomicU64,
    /// Whether no vCPU is on that would announce the end: the domain has not been started, or it has crashed and is kept.
    rests: AtomicBool,
}

impl Lifecycle {
    /// The lifecycle of a domain that has not ended and whose vCPUs are all off.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "a default would not say that no vCPU is on")]
    pub fn new() -> Lifecycle {
        Lifecycle { end: AtomicU8::new(0), on: AtomicU64::new(0), rests: AtomicBool::new(true) }
    }

    /// Returns how the domain has ended, or `None` if it has not.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        match self.end.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(End::Off),
            2 => Some(End::Reset),
            4 => Some(End::Destroyed),
            _ => Some(End::Crash),
        }
    }

    /// Records how the domain ends. Returns `false`, and changes nothing, if an end is recorded already.
    pub fn record_end(&self, end: End) -> bool {
        self.end.compare_exchange(0, end.raw(), Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Records that the domain ends by a crash, also if it has requested a reset. Returns `false`, and changes nothing,
    /// if it has ended otherwise.
    pub fn record_crash_by_hand(&self) -> bool {
        self.record_end(End::Crash) || self.replace(End::Reset, End::Crash.raw())
    }

    /// Records that the domain is destroyed, also if it was to begin anew or is kept. Returns `false`, and changes nothing, if
    /// it is taken down already.
    pub fn record_destroyed(&self) -> bool {
        self.record_end(End::Destroyed)
            || self.replace(End::Reset, End::Destroyed.raw())
            || self.replace(End::Crash, End::Destroyed.raw())
    }

    /// Whether no vCPU is on that would announce the end of the domain.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.rests.load(Ordering::SeqCst)
    }

    /// The domain has crashed and is kept. The caller then looks whether it has been destroyed meanwhile.
    pub fn rest(&self) {
        self.rests.store(true, Ordering::SeqCst);
    }

    /// Ends the rest of the domain. Of several callers, one gets `true`: it starts the domain, or announces its end.
    #[must_use]
    pub fn end_rest(&self) -> bool {
        self.rests.swap(false, Ordering::SeqCst)
    }

    /// Records that the domain cannot begin anew.
    pub fn end_for_good(&self) {
        self.end.store(End::Off.raw(), Ordering::SeqCst);
    }

    fn replace(&self, end: End, by: u8) -> bool {
        self.end.compare_exchange(end.raw(), by, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Begins another life of a domain that has ended by `end` and whose vCPUs are off. Returns `false`, and changes
    /// nothing, if another end is recorded.
    pub fn begin_anew(&self, end: End) -> bool {
        self.replace(end, 0)
    }

    /// Counts a vCPU that is about to be powered on. The caller runs on a vCPU that is on, or builds the domain.
    pub fn count_power_on(&self) {
        self.on.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes back one [`count_power_on`](Self::count_power_on): the vCPU has gone off, or it was on already. Returns
    /// `true` for the last one: all vCPUs are off and remain so.
    #[must_use]
    pub fn count_power_off(&self) -> bool {
        self.on.fetch_sub(1, Ordering::SeqCst) == 1
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_first_recorded_end_counts() {
        let lifecycle = Lifecycle::new();
        assert_eq!(lifecycle.end(), None);
        assert!(lifecycle.record_end(End::Reset) && !lifecycle.record_end(End::Crash));
        assert_eq!(lifecycle.end(), Some(End::Reset));
    }

    #[test]
    fn a_domain_begins_anew_unless_its_end_has_been_replaced() {
        let lifecycle = Lifecycle::new();
        assert!(lifecycle.record_end(End::Reset) && lifecycle.begin_anew(End::Reset));
        assert_eq!(lifecycle.end(), None);
        assert!(lifecycle.record_end(End::Reset));
        assert!(lifecycle.record_crash_by_hand());
        assert!(!lifecycle.begin_anew(End::Reset));
        assert_eq!(lifecycle.end(), Some(End::Crash));
        lifecycle.end_for_good();
        assert!(!lifecycle.record_crash_by_hand() && !lifecycle.begin_anew(End::Crash));
    }

    #[test]
    fn a_domain_that_is_destroyed_does_not_begin_anew_and_one_that_is_taken_down_stays_so() {
        for end in [End::Reset, End::Crash] {
            let lifecycle = Lifecycle::new();
            assert!(lifecycle.record_end(end) && lifecycle.record_destroyed());
            assert!(!lifecycle.begin_anew(end) && !lifecycle.record_destroyed() && !lifecycle.record_crash_by_hand());
            assert_eq!(lifecycle.end(), Some(End::Destroyed));
        }
        let lifecycle = Lifecycle::new();
        assert!(lifecycle.record_end(End::Off) && !lifecycle.record_destroyed());
    }

    #[test]
    fn the_end_of_a_domain_that_rests_has_one_announcer() {
        let lifecycle = Lifecycle::new();
        assert!(lifecycle.rests() && lifecycle.end_rest() && !lifecycle.end_rest() && !lifecycle.rests());
        lifecycle.rest();
        assert!(lifecycle.end_rest() && !lifecycle.end_rest());
    }

    #[test]
    fn only_the_last_vcpu_that_goes_off_is_reported_as_the_last() {
        let lifecycle = Lifecycle::new();
        (0..2).for_each(|_| lifecycle.count_power_on());
        assert!(!lifecycle.count_power_off());
        // A vCPU that is on is powered on: the call is counted and taken back.
        lifecycle.count_power_on();
        assert!(!lifecycle.count_power_off());
        assert!(lifecycle.count_power_off());
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
        lifecycle: Lifecycle,
        runs: [RunState; 3],
        announced: Explored,
    }

    impl Domain {
        /// A domain of three vCPUs, of which the first `on` run.
        fn new(on: usize) -> Arc<Domain> {
            let domain = Domain {
                lifecycle: Lifecycle::new(),
                runs: [RunState::new(), RunState::new(), RunState::new()],
                announced: Explored::new(0),
            };
            (0..on).for_each(|vcpu| assert!(domain.power_on(vcpu) && domain.runs[vcpu].start_running()));
            Arc::new(domain)
        }

        /// The same steps as `Domain::power_on`.
        fn power_on(&self, vcpu: usize) -> bool {
            self.lifecycle.count_power_on();
            self.runs[vcpu].power_on() || {
                let _ = self.lifecycle.count_power_off();
                false
            }
        }

        /// The same steps as `VcpuRun::off`.
        fn go_off(&self, vcpu: usize) {
            self.runs[vcpu].power_off();
            if self.lifecycle.count_power_off() {
                let all_off = self.runs.iter().all(|run| run.get() == State::Off);
                assert!(all_off, "the end is announced while a vCPU is on");
                self.announced.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    #[test]
    fn the_end_is_announced_once_when_two_vcpus_go_off_at_the_same_time() {
        loom::model(|| {
            let domain = Domain::new(2);
            assert!(domain.lifecycle.record_end(End::Reset));
            let theirs = domain.clone();
            let other = loom::thread::spawn(move || theirs.go_off(1));
            domain.go_off(0);
            other.join().unwrap();
            assert_eq!(domain.announced.load(Ordering::SeqCst), 1);
        });
    }

    /// vCPU 2 powers vCPU 1 on and goes off, while vCPU 0 goes off.
    #[test]
    fn a_vcpu_that_is_powered_on_by_one_that_then_goes_off_keeps_the_domain_running() {
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
            assert_eq!((domain.announced.load(Ordering::SeqCst), domain.lifecycle.end()), (0, None));
            domain.go_off(1);
            assert_eq!(domain.announced.load(Ordering::SeqCst), 1);
        });
    }
}
