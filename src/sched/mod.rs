//! Which vCPU runs where, and the protocol by which one goes to sleep without missing its wake-up.
//!
//! The scheduler knows a vCPU by [`Schedulable`] and by its [`RunState`]; it has never heard of a GIC. What
//! has to happen to interrupts when a vCPU comes and goes hangs on `switch_in` and `switch_out`, which `vm`
//! implements: that is the scheduler hook.
//!
//! # No lost wake-up
//!
//! A vCPU that blocks does three things in this order: it declares itself `Blocking`; it is switched out,
//! which arms its doorbell and only then leaves residency; it looks at what `switch_out` found pending and
//! tries to turn `Blocking` into `Blocked`. Whoever has something for it, at any moment, first makes that
//! visible and then calls [`RunState::wake`], which turns `Blocking` or `Blocked` into `Runnable`. So each
//! interrupt is either seen by the last look, or its `wake` comes after `Blocking` was declared and makes
//! the last step fail.

mod credit;
mod entity;
mod inbox;
#[cfg(all(test, loom))]
mod interleavings;
mod null;
mod queue;
#[cfg(test)]
mod simulation;
#[cfg(all(test, not(loom)))]
mod stress_tests;
pub use credit::{Credit, Settings};
pub use entity::{CpuSet, DEFAULT_WEIGHT, Entity, MAX_CPUS};
pub use null::Null;
pub use queue::Slices;

use crate::ids::CpuId;
use crate::sync::atomic::{AtomicU8, Ordering};
use alloc::sync::Arc;
use core::fmt;

/// Why a vCPU is switched out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It would go on if it could.
    Preempt,
    /// It waits for an interrupt.
    Block,
}

/// What was found when a vCPU had been switched out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Found {
    /// No interrupt that could wake it.
    Nothing,
    /// An interrupt is pending, or may be: it must not sleep.
    Pending,
}

/// A vCPU, as a scheduler knows it wherever it is.
pub trait Scheduled {
    /// Its share and what it has had.
    fn entity(&self) -> &Entity;
    /// Whether it sleeps, runs, or is off.
    fn run_state(&self) -> &RunState;
}

/// Why a vCPU cannot be taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddError {
    /// The scheduler's table is full.
    Full,
    /// That CPU has a vCPU, and can have one.
    Taken(CpuId),
    /// There is no such CPU, or it has been taken out.
    NoSuchCpu(CpuId),
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddError::Full => f.write_str("there are as many vCPUs as can be"),
            AddError::Taken(cpu) => write!(f, "{cpu} has a vCPU already; with sched=null it takes one"),
            AddError::NoSuchCpu(cpu) => write!(f, "there is no {cpu}"),
        }
    }
}

/// What a scheduler says of the vCPU that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It goes on.
    Continue,
    /// It makes way.
    Switch,
}

/// Decides which vCPU runs where. Times are in ticks of the counter. Nothing allocates but [`Scheduler::add`].
pub trait Scheduler<V>: Send + Sync {
    /// The word that selects it.
    fn name(&self) -> &'static str;

    /// Whether a CPU may have to run one vCPU after another. If not, a vCPU's state stays in its CPU.
    fn shares_cpus(&self) -> bool;

    /// A CPU can run vCPUs from now on.
    fn bring_online(&self, cpu: CpuId);

    /// A CPU is to run no more vCPUs. What runs there makes way when it looks; what waits there goes elsewhere when it
    /// asks who is [`next`](Scheduler::next), which is then nobody; once it has asked after this returned, nothing more comes. [`bring_online`](Scheduler::bring_online) takes it back.
    ///
    /// # Errors
    ///
    /// A vCPU that could run nowhere else: nothing has changed.
    fn take_offline(&self, cpu: CpuId) -> Result<(), Arc<V>>;

    /// Takes on a vCPU that is off.
    ///
    /// # Errors
    ///
    /// [`AddError`].
    fn add(&self, vcpu: &Arc<V>, home: CpuId) -> Result<(), AddError>;

    /// Forgets a vCPU that is off and has stopped.
    fn remove(&self, vcpu: &V);

    /// Has a vCPU run that has just become runnable (from sleep, or because it was powered on), and says which CPU
    /// is to be interrupted for it. Takes no lock, so that it may be called with any held. It has begun to
    /// [wait](Entity::begin_wait).
    fn place(&self, vcpu: &V) -> CpuId;

    /// The vCPU that is to run on this CPU now; it is `Running`. `None`: there is none; wait for an interrupt.
    fn next(&self, cpu: CpuId, now: u64) -> Option<Arc<V>>;

    /// The vCPU of this CPU is only now ready to run: to bring it here has taken long, and is not to count as its time.
    /// Without this, one whose way here takes longer than its slice would be sent away before its first instruction.
    fn restart_slice(&self, _cpu: CpuId, _now: u64) {}

    /// Whether the vCPU of this CPU goes on. To be asked when [`Scheduler::needs_resched`].
    fn should_resched(&self, cpu: CpuId, now: u64) -> Verdict;

    /// The vCPU of this CPU stops running; the caller has it until it is asleep, off, or given to
    /// [`Scheduler::requeue`].
    fn stop(&self, cpu: CpuId, now: u64) -> Option<Arc<V>>;

    /// One that has stopped here would go on: it is `Runnable`, and nothing of it is in this CPU any more.
    fn requeue(&self, cpu: CpuId, vcpu: Arc<V>, now: u64);

    /// The vCPU of a CPU.
    fn current(&self, cpu: CpuId) -> Option<Arc<V>>;

    /// Whether something has happened since the last look. Cheap: it is asked after each exit.
    fn needs_resched(&self, cpu: CpuId) -> bool;

    /// Makes a CPU look.
    fn set_need_resched(&self, cpu: CpuId);

    /// Whether another vCPU could use this CPU. Cheap: it is asked before each entry.
    fn is_contended(&self, cpu: CpuId) -> bool;

    /// When this CPU is to look again, whatever happens.
    fn next_resched_at(&self, cpu: CpuId) -> Option<u64>;

    /// A vCPU's move to another CPU has cost this much.
    fn record_move_cost(&self, ticks: u64);

    /// Who waits for a CPU, the next to run first. For a debug key; under a lock.
    fn for_each_waiting(&self, cpu: CpuId, visit: &mut dyn FnMut(&Arc<V>));
}

/// A vCPU on the CPU that is to run it, as far as a scheduler has to know it.
pub trait Schedulable {
    /// Makes it the vCPU of the CPU this runs on: everything a guest can see is loaded.
    fn switch_in(&mut self);
    /// The reverse. For [`Why::Block`], whatever can wake it is armed before its state is given up.
    fn switch_out(&mut self, why: Why) -> Found;
    /// Whether it sleeps, runs, or is off.
    fn run_state(&self) -> &RunState;
}

/// Where a vCPU is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Not started, or powered off by its guest.
    Off,
    /// Would run.
    Runnable,
    /// Runs.
    Running,
    /// On its way to sleep; a wake calls it back.
    Blocking,
    /// Sleeps.
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

/// What a wake did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Woken {
    /// It slept: its CPU has to be told.
    WasBlocked,
    /// It was about to sleep and will not.
    WasBlocking,
    /// It was awake already.
    WasAwake,
    /// It is off: there is nobody to wake.
    WasOff,
}

/// A vCPU's [`State`], changed by the CPU that runs it and by everybody who wakes it.
pub struct RunState(AtomicU8);

impl RunState {
    /// Off.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "a vCPU that is off is a decision, not a default")]
    #[cfg(not(loom))]
    pub const fn new() -> RunState {
        RunState(AtomicU8::new(State::Off as u8))
    }

    /// Off.
    #[must_use]
    #[cfg(loom)]
    #[allow(clippy::new_without_default, reason = "as above")]
    pub fn new() -> RunState {
        RunState(AtomicU8::new(State::Off as u8))
    }

    /// The state now; it may be another by the time it is looked at.
    #[must_use]
    pub fn get(&self) -> State {
        State::from_raw(self.0.load(Ordering::SeqCst))
    }

    fn change(&self, from: State, to: State) -> bool {
        self.0.compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Powers it on. `false` if it was on already: of two CPUs that ask, one wins.
    #[must_use]
    pub fn power_on(&self) -> bool {
        self.change(State::Off, State::Runnable)
    }

    /// Powers it off; only the CPU that runs it calls this.
    pub fn power_off(&self) {
        self.0.store(State::Off as u8, Ordering::SeqCst);
    }

    /// Its CPU takes it up. `false` if it is not runnable.
    #[must_use]
    pub fn start_running(&self) -> bool {
        self.change(State::Runnable, State::Running)
    }

    /// Its CPU puts it down, though it would go on.
    pub fn preempted(&self) {
        let _ = self.change(State::Running, State::Runnable);
    }

    /// Declares that it is about to sleep.
    pub fn begin_block(&self) {
        let _ = self.change(State::Running, State::Blocking);
    }

    /// The last step of going to sleep. `false` if it must not: something was found, or it was woken meanwhile;
    /// it is then runnable.
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

    /// Puts it to sleep, if nothing is there to wake it: declares that it is about to sleep, switches it out, and looks
    /// at what that found. Whether it sleeps; if not, it is runnable.
    ///
    /// `switch_out` arms whatever can wake it, then gives up its state, then looks: in this order.
    pub fn block(&self, switch_out: impl FnOnce() -> Found) -> bool {
        self.begin_block();
        let found = switch_out();
        self.commit_block(found)
    }

    /// Makes sure that it runs, or goes on running. What it is woken for is visible to it before this is called.
    pub fn wake(&self) -> Woken {
        if self.change(State::Blocked, State::Runnable) {
            return Woken::WasBlocked;
        }
        if self.change(State::Blocking, State::Runnable) {
            return Woken::WasBlocking;
        }
        // Between the two attempts it may have gone from Blocking to Blocked.
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
    fn a_wake_on_the_way_to_sleep_calls_it_back() {
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

    /// The protocol with real threads: each posted item is either seen by the last look or wakes the sleeper.
    #[test]
    fn nothing_posted_to_a_sleeper_is_left_lying() {
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
