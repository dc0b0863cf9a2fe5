//! The EL2 timer of a CPU, which is shared by several deadlines: the emulated CNTP of the running vCPU, the next
//! reschedule, the wake-ups of sleeping vCPUs, and the end of a mask of interrupts.
//!
//! All but the sleepers are accessed by this CPU only. A vCPU is added to the sleepers of the CPU that it goes to sleep
//! on and removed by the CPU that it next runs on. If that is another CPU, the timer may fire once without a sleeper
//! that is due.

use crate::arch::timer;
use crate::host::sleepers::Sleepers;
use crate::sync::{Lock, Rank};
use crate::vcpu::Vcpu;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

const NEVER: u64 = u64::MAX;

/// The deadlines that were due when the timer fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fired {
    /// The next reschedule.
    pub resched: bool,
    /// The end of a mask of interrupts.
    pub relief: bool,
}

/// The EL2 timer of one CPU. Deadlines are in ticks; `u64::MAX` for none.
pub struct SoftTimer {
    /// The emulated CNTP of the running vCPU changes its level.
    guest: AtomicU64,
    /// The scheduler has to be called.
    resched: AtomicU64,
    /// The first sleeper has to be woken.
    wake: AtomicU64,
    /// Masked interrupts have to be unmasked.
    relief: AtomicU64,
    /// What the hardware timer is set to.
    armed: AtomicU64,
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

    /// Sets when the CNTP of this CPU's vCPU changes its level. Called on this CPU.
    pub fn set_guest(&self, at: Option<u64>) {
        self.set(&self.guest, at);
    }

    /// Sets when the scheduler has to be called. Called on this CPU.
    pub fn set_resched(&self, at: Option<u64>) {
        self.set(&self.resched, at);
    }

    /// Sets that interrupts that this CPU has masked are unmasked at `at` or earlier. Called on this CPU.
    pub fn relieve_at(&self, at: u64) {
        self.set(&self.relief, Some(at.min(self.relief.load(Relaxed))));
    }

    /// Wakes `vcpu` at `at` unless it is woken before. Called on this CPU.
    pub fn sleep(&self, vcpu: Arc<Vcpu>, at: u64) {
        let mut sleepers = self.sleepers.lock();
        sleepers.add(at, vcpu);
        let next = sleepers.next();
        drop(sleepers);
        self.set(&self.wake, next);
    }

    /// Removes `vcpu`, which is awake, from the sleepers. Called on any CPU.
    pub fn forget(&self, vcpu: &Vcpu) {
        self.sleepers.lock().remove(vcpu);
    }

    /// Wakes all sleepers and clears all deadlines, because this CPU goes offline. Called on this CPU.
    pub fn give_up(&self, wake: &mut dyn FnMut(&Arc<Vcpu>)) {
        loop {
            let sleeper = self.sleepers.lock().due(NEVER);
            let Some(vcpu) = sleeper else { break };
            wake(&vcpu);
        }
        [&self.guest, &self.resched, &self.wake, &self.relief].into_iter().for_each(|what| what.store(NEVER, Relaxed));
        self.program();
    }

    /// Handles the timer interrupt. Calls `wake` for each sleeper that is due. Called on this CPU.
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
        // The run loop computes the level of the CNTP before each entry.
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
