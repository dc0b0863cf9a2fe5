//! The deadlines of one CPU's EL2 timer.
//!
//! Each CPU has one EL2 timer (CNTHP), which is armed for the earliest of four deadlines: the emulated CNTP of the
//! current vCPU, the scheduler's next decision, the wake-up of a vCPU that is blocked with a timer, and chores: the
//! unmasking of interrupts that are above their rate, output that waits for a UART without an interrupt, and this CPU's
//! share of background work.
//!
//! Only this CPU accesses the deadlines. The list of sleepers has a lock: a vCPU is added by the CPU that it blocks on,
//! and removed by the CPU that it runs on next, which may be another. That CPU does not re-arm the timer, so the timer
//! may fire once without a vCPU to wake.

use crate::arch::timer;
use crate::host::sleepers::Sleepers;
use crate::sync::{Lock, Rank};
use crate::vcpu::Vcpu;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// "No deadline". All times in this file are in ticks of the counter.
const NEVER: u64 = u64::MAX;

/// What is due after the timer has fired, apart from vCPUs to wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fired {
    /// The scheduler has to decide.
    pub resched: bool,
    /// Masked interrupts have to be unmasked, or output has to be printed.
    pub chores: bool,
}

/// The EL2 timer of one CPU. Deadlines are in ticks; `u64::MAX` for none.
pub struct SoftTimer {
    /// The time at which the current vCPU's CNTP asserts its interrupt.
    guest: AtomicU64,
    /// The time at which the scheduler has to decide.
    resched: AtomicU64,
    /// The earliest deadline in `sleepers`.
    wake: AtomicU64,
    /// The time at which masked interrupts have to be unmasked, output has to be printed, or `assist` if that is earlier.
    /// One deadline for all: a fifth would cost each sleep its instructions.
    chores: AtomicU64,
    /// The time at which background work is due.
    assist: AtomicU64,
    /// The deadline that the hardware is armed for.
    armed: AtomicU64,
    /// The vCPUs that this timer has to wake.
    sleepers: Lock<Sleepers<Vcpu>>,
}

impl SoftTimer {
    /// A timer without deadlines.
    #[must_use]
    pub fn new() -> SoftTimer {
        let never = || AtomicU64::new(NEVER);
        SoftTimer {
            guest: never(),
            resched: never(),
            wake: never(),
            chores: never(),
            assist: never(),
            armed: never(),
            sleepers: Lock::new(Rank::RunQueue, Sleepers::default()),
        }
    }

    fn set(&self, deadline: &AtomicU64, at: Option<u64>) {
        let at = at.unwrap_or(NEVER);
        if deadline.load(Relaxed) != at {
            deadline.store(at, Relaxed);
            self.program();
        }
    }

    /// Arms the hardware for the earliest deadline.
    fn program(&self) {
        let deadlines = [&self.guest, &self.resched, &self.wake, &self.chores];
        let at = deadlines.map(|deadline| deadline.load(Relaxed)).into_iter().fold(NEVER, u64::min);
        if self.armed.load(Relaxed) != at {
            self.armed.store(at, Relaxed);
            if at == NEVER { timer::disarm() } else { timer::arm(at) }
        }
    }

    /// Sets the time at which the current vCPU's CNTP asserts its interrupt. Called on this CPU.
    pub fn set_guest(&self, at: Option<u64>) {
        self.set(&self.guest, at);
    }

    /// Sets the time at which the scheduler has to decide. Called on this CPU.
    pub fn set_resched(&self, at: Option<u64>) {
        self.set(&self.resched, at);
    }

    /// Requests that chores are done at `at`; an earlier request stays. Called on this CPU.
    pub fn chores_at(&self, at: u64) {
        self.set(&self.chores, Some(at.min(self.chores.load(Relaxed))));
    }

    /// Requests that this CPU exits from its guest for background work at `at`; a request that stands stays. Called on
    /// this CPU.
    pub fn set_assist(&self, at: u64) {
        if self.assist.load(Relaxed) == NEVER {
            self.assist.store(at, Relaxed);
            self.chores_at(at);
        }
    }

    /// Whether no background work is requested for later than `now`. Called on this CPU.
    #[must_use]
    pub fn may_assist(&self, now: u64) -> bool {
        let at = self.assist.load(Relaxed);
        at == NEVER || at <= now
    }

    /// Adds `vcpu` to the vCPUs to wake, at `at`, unless it is removed before. Called on this CPU.
    pub fn sleep(&self, vcpu: Arc<Vcpu>, at: u64) {
        let mut sleepers = self.sleepers.lock();
        sleepers.add(at, vcpu);
        let next = sleepers.next();
        drop(sleepers);
        self.set(&self.wake, next);
    }

    /// Removes `vcpu` from the vCPUs to wake. Called on any CPU.
    pub fn remove_sleeper(&self, vcpu: &Vcpu) {
        self.sleepers.lock().remove(vcpu);
    }

    /// Wakes all sleepers and clears all deadlines, because this CPU leaves service. Called on this CPU.
    pub fn shut_down(&self, wake: &mut dyn FnMut(&Arc<Vcpu>)) {
        loop {
            let sleeper = self.sleepers.lock().due(NEVER);
            let Some(vcpu) = sleeper else { break };
            wake(&vcpu);
        }
        let deadlines = [&self.guest, &self.resched, &self.wake, &self.chores, &self.assist];
        deadlines.into_iter().for_each(|deadline| deadline.store(NEVER, Relaxed));
        self.program();
    }

    /// Handles the interrupt of this CPU's timer: calls `wake` for each sleeper whose deadline has passed, and returns
    /// what else is due.
    pub fn fired(&self, wake: &mut dyn FnMut(&Arc<Vcpu>)) -> Fired {
        let now = timer::now();
        timer::disarm();
        self.armed.store(NEVER, Relaxed);
        loop {
            let due = self.sleepers.lock().due(now);
            let Some(vcpu) = due else { break };
            wake(&vcpu);
        }
        self.wake.store(self.sleepers.lock().next().unwrap_or(NEVER), Relaxed);
        // Nothing is returned for these deadlines: the vCPU's CNTP is evaluated each time before it enters the guest, and
        // background work is looked for after each exit because of an interrupt.
        for deadline in [&self.guest, &self.assist] {
            if deadline.load(Relaxed) <= now {
                deadline.store(NEVER, Relaxed);
            }
        }
        let is_due = |deadline: &AtomicU64| {
            let due = deadline.load(Relaxed) <= now;
            if due {
                deadline.store(NEVER, Relaxed);
            }
            due
        };
        let fired = Fired { resched: is_due(&self.resched), chores: is_due(&self.chores) };
        // Not yet due, though the deadline that it shares was.
        self.chores.fetch_min(self.assist.load(Relaxed), Relaxed);
        self.program();
        fired
    }
}

impl Default for SoftTimer {
    fn default() -> SoftTimer {
        SoftTimer::new()
    }
}
