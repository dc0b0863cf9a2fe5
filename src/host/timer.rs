//! What a CPU's one EL2 timer is used for: the emulated CNTP of the vCPU that runs, the scheduler's next look, those
//! who sleep until a time, and interrupts that are masked until one.
//!
//! All but the sleepers are this CPU's alone. A sleeper is entered by the CPU that it went to sleep on and taken out by
//! the one that it wakes up on, which may be another; the timer may then fire once for nobody.

use crate::arch::timer;
use crate::host::sleepers::Sleepers;
use crate::sync::{Lock, Rank};
use crate::vcpu::Vcpu;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

const NEVER: u64 = u64::MAX;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fired {
    /// The scheduler's look.
    pub resched: bool,
    /// The end of a mask.
    pub relief: bool,
}

/// One CPU's EL2 timer.
pub struct SoftTimer {
    guest: AtomicU64,
    resched: AtomicU64,
    /// The first of the sleepers.
    wake: AtomicU64,
    /// When masked interrupts may come again.
    relief: AtomicU64,
    armed: AtomicU64,
    sleepers: Lock<Sleepers<Vcpu>>,
}

impl SoftTimer {
    /// Nothing is due.
    #[must_use]
    pub fn new() -> SoftTimer {
        let never = || AtomicU64::new(NEVER);
        SoftTimer {
            guest: never(),
            resched: never(),
            wake: never(),
            relief: never(),
            armed: never(),
            sleepers: Lock::new(Rank::RunQueue, Sleepers::default()),
        }
    }

    fn set(&self, what: &AtomicU64, at: Option<u64>) {
        let at = at.unwrap_or(NEVER);
        if what.load(Relaxed) != at {
            what.store(at, Relaxed);
            self.program();
        }
    }

    fn program(&self) {
        let at = [&self.guest, &self.resched, &self.wake, &self.relief];
        let at = at.map(|what| what.load(Relaxed)).into_iter().fold(NEVER, u64::min);
        if self.armed.load(Relaxed) != at {
            self.armed.store(at, Relaxed);
            if at == NEVER { timer::disarm() } else { timer::arm(at) }
        }
    }

    /// When the CNTP of this CPU's vCPU changes its level. On this CPU.
    pub fn set_guest(&self, at: Option<u64>) {
        self.set(&self.guest, at);
    }

    /// When the scheduler has to look. On this CPU.
    pub fn set_resched(&self, at: Option<u64>) {
        self.set(&self.resched, at);
    }

    /// Interrupts that this CPU has masked may come again at `at`. On this CPU.
    pub fn relieve_at(&self, at: u64) {
        self.set(&self.relief, Some(at.min(self.relief.load(Relaxed))));
    }

    /// Wakes `vcpu` at `at`, if nobody else does. On this CPU.
    pub fn sleep(&self, vcpu: Arc<Vcpu>, at: u64) {
        let mut sleepers = self.sleepers.lock();
        sleepers.add(at, vcpu);
        let next = sleepers.next();
        drop(sleepers);
        self.set(&self.wake, next);
    }

    /// `vcpu` is awake. On any CPU.
    pub fn forget(&self, vcpu: &Vcpu) {
        self.sleepers.lock().remove(vcpu);
    }

    /// This CPU goes: whoever sleeps is woken, and nothing is due any more. On this CPU.
    pub fn give_up(&self, wake: &mut dyn FnMut(&Arc<Vcpu>)) {
        loop {
            let sleeper = self.sleepers.lock().due(NEVER);
            let Some(vcpu) = sleeper else { break };
            wake(&vcpu);
        }
        [&self.guest, &self.resched, &self.wake, &self.relief].into_iter().for_each(|what| what.store(NEVER, Relaxed));
        self.program();
    }

    /// The timer has fired, on this CPU: `wake` is called for each sleeper that is due.
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
        // Before it enters, the vCPU's CNTP is looked at anyway.
        if self.guest.load(Relaxed) <= now {
            self.guest.store(NEVER, Relaxed);
        }
        let is_due = |what: &AtomicU64| {
            let due = what.load(Relaxed) <= now;
            if due {
                what.store(NEVER, Relaxed);
            }
            due
        };
        let fired = Fired { resched: is_due(&self.resched), relief: is_due(&self.relief) };
        self.program();
        fired
    }
}

impl Default for SoftTimer {
    fn default() -> SoftTimer {
        SoftTimer::new()
    }
}
