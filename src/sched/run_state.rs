//! The state of a vCPU, and the steps by which it goes to sleep and is woken.

use crate::sync::atomic::{AtomicU8, Ordering};

/// Whether an interrupt was found for a vCPU while it was switched out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Found {
    /// No interrupt is pending that could wake it.
    Nothing,
    /// An interrupt is pending, or may be: it must not sleep.
    Pending,
}

/// The state of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Not started, or powered off by its guest.
    Off,
    /// It waits for a CPU.
    Runnable,
    /// It runs on a CPU.
    Running,
    /// It is being switched out to sleep. A wake makes it `Runnable`, and it does not sleep.
    Blocking,
    /// It sleeps until it is woken.
    Blocked,
}

impl State {
    const fn from_raw(raw: u8) -> State {
        match raw {
            1 => State::Runnable,
            2 => State::Running,
            3 => State::Blocking,
            4 => State::Blocked,
            _ => State::Off,
        }
    }
}

/// What [`RunState::wake`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Woken {
    /// The vCPU slept: the caller has to pass it to [`Scheduler::place`](super::Scheduler::place).
    WasBlocked,
    /// The vCPU was about to sleep and stays awake.
    WasBlocking,
    /// The vCPU was awake.
    WasAwake,
    /// The vCPU is off.
    WasOff,
}

/// A vCPU's [`State`]. It is changed by the CPU that runs the vCPU and by every CPU that wakes it.
pub struct RunState(AtomicU8);

impl RunState {
    /// [`State::Off`].
    #[must_use]
    #[allow(clippy::new_without_default, reason = "the caller decides that the vCPU is off")]
    #[cfg(not(loom))]
    pub const fn new() -> RunState {
        RunState(AtomicU8::new(State::Off as u8))
    }

    /// [`State::Off`].
    #[must_use]
    #[cfg(loom)]
    #[allow(clippy::new_without_default, reason = "as above")]
    pub fn new() -> RunState {
        RunState(AtomicU8::new(State::Off as u8))
    }

    /// The current state. It may have changed by the time the caller uses it.
    #[must_use]
    pub fn get(&self) -> State {
        State::from_raw(self.0.load(Ordering::SeqCst))
    }

    fn change(&self, from: State, to: State) -> bool {
        self.0.compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Changes `Off` to `Runnable`. Returns `false` if the vCPU was not off: of two CPUs that call this, one gets
    /// `true`.
    #[must_use]
    pub fn power_on(&self) -> bool {
        self.change(State::Off, State::Runnable)
    }

    /// Makes it `Off`. Only the CPU that runs the vCPU calls this.
    pub fn power_off(&self) {
        self.0.store(State::Off as u8, Ordering::SeqCst);
    }

    /// Changes `Runnable` to `Running`. Returns `false` if the vCPU was not runnable.
    #[must_use]
    pub fn start_running(&self) -> bool {
        self.change(State::Runnable, State::Running)
    }

    /// Changes `Running` to `Runnable`: its CPU has preempted it.
    pub fn preempted(&self) {
        let _ = self.change(State::Running, State::Runnable);
    }

    /// Changes `Running` to `Blocking`: the first step of going to sleep.
    pub fn begin_block(&self) {
        let _ = self.change(State::Running, State::Blocking);
    }

    /// Changes `Blocking` to `Blocked`: the last step of going to sleep. Returns `false` if an interrupt was found or
    /// the vCPU was woken meanwhile; it is then runnable.
    #[must_use]
    pub fn commit_block(&self, found: Found) -> bool {
        match found {
            Found::Pending => {
                let _ = self.change(State::Blocking, State::Runnable);
                false
            }
            Found::Nothing => self.change(State::Blocking, State::Blocked),
        }
    }

    /// Puts the vCPU to sleep unless an interrupt is pending for it: [`begin_block`](Self::begin_block), `switch_out`,
    /// [`commit_block`](Self::commit_block). Returns whether it sleeps; if not, it is runnable.
    ///
    /// `switch_out` does three things in this order: it arms everything that can wake the vCPU, it takes the vCPU's
    /// state off the CPU, and it checks for pending interrupts.
    pub fn block(&self, switch_out: impl FnOnce() -> Found) -> bool {
        self.begin_block();
        let found = switch_out();
        self.commit_block(found)
    }

    /// Makes a sleeping vCPU runnable, and keeps one that is about to sleep awake. The caller has made visible what it
    /// wakes the vCPU for.
    pub fn wake(&self) -> Woken {
        if self.change(State::Blocked, State::Runnable) {
            return Woken::WasBlocked;
        }
        if self.change(State::Blocking, State::Runnable) {
            return Woken::WasBlocking;
        }
        // Between the two attempts it may have changed from Blocking to Blocked.
        if self.change(State::Blocked, State::Runnable) {
            return Woken::WasBlocked;
        }
        match self.get() {
            State::Off => Woken::WasOff,
            _ => Woken::WasAwake,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicBool, AtomicU32};

    #[test]
    fn a_vcpu_that_blocks_with_something_pending_is_runnable_at_once() {
        let s = RunState::new();
        assert!(s.power_on() && s.start_running());
        s.begin_block();
        assert!(!s.commit_block(Found::Pending));
        assert_eq!(s.get(), State::Runnable);
    }

    #[test]
    fn a_wake_of_a_vcpu_that_is_about_to_sleep_keeps_it_awake() {
        let s = RunState::new();
        assert!(s.power_on() && s.start_running());
        s.begin_block();
        assert_eq!(s.wake(), Woken::WasBlocking);
        assert!(!s.commit_block(Found::Nothing));
        assert_eq!(s.get(), State::Runnable);
    }

    #[test]
    fn a_vcpu_that_is_off_is_not_woken_but_can_be_powered_on_once() {
        let s = RunState::new();
        assert_eq!(s.wake(), Woken::WasOff);
        assert!(s.power_on());
        assert!(!s.power_on());
    }

    /// Runs the protocol with real threads: each posted item is either found while blocking or wakes the sleeper.
    #[test]
    fn a_vcpu_that_sleeps_and_wakes_in_turn_misses_no_posted_item() {
        const ROUNDS: u32 = 20_000;
        let state = RunState::new();
        let (posted, pending) = (AtomicU32::new(0), AtomicBool::new(false));
        let taken = AtomicU32::new(0);
        assert!(state.power_on() && state.start_running());
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while posted.load(Ordering::SeqCst) < ROUNDS {
                    if taken.load(Ordering::SeqCst) == posted.load(Ordering::SeqCst) {
                        posted.fetch_add(1, Ordering::SeqCst);
                        pending.store(true, Ordering::SeqCst);
                        let _ = state.wake();
                    } else {
                        std::thread::yield_now();
                    }
                }
            });
            while taken.load(Ordering::SeqCst) < ROUNDS {
                if pending.swap(false, Ordering::SeqCst) {
                    taken.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                state.begin_block();
                let found = if pending.load(Ordering::SeqCst) { Found::Pending } else { Found::Nothing };
                if state.commit_block(found) {
                    while state.get() == State::Blocked {
                        std::thread::yield_now();
                    }
                }
                assert!(state.start_running());
            }
        });
    }
}
