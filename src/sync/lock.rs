//! A lock with a rank, given in [turn](super::ticket).
//!
//! In turn, not to whoever is quickest: on a machine of 64 CPUs an unfair lock starves the far socket, and a fair one
//! bounds the wait by the number of CPUs times the longest hold. There is no timed acquire: a lock that is
//! held for ever is a defect of EL2, and the panic path (the console) only ever uses [`Lock::try_lock`].

use super::ticket::Turns;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

/// How often a waiter looks at a lock that is free before it takes the next in line for absent. A CPU that is there takes
/// its turn within two or three looks.
const PATIENCE: u32 = 100;

/// The one order in which locks are taken: a CPU may take a lock only of a higher rank than all it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rank {
    /// A domain's own state.
    Domain,
    /// A virtual ITS.
    Vits,
    /// The part of a virtual GIC that vCPUs share, then a vCPU's own.
    VgicDist,
    /// A vCPU's part of the virtual GIC.
    VgicCpu,
    /// What the events of one ITS are mapped to.
    ItsEvents,
    /// Which ITSs a VM is mapped on.
    VmMap,
    /// One vPE.
    Vpe,
    /// The order of VMOVPs over all ITSs.
    Vmovp,
    /// One ITS's command ring.
    ItsQueue,
    /// One redistributor's invalidate registers.
    Redist,
    /// A run queue; taken with none of the above held.
    RunQueue,
    /// EL2's own stage 1.
    Stage1,
    /// Frames and heap.
    Memory,
    /// The console: a leaf, and only ever tried.
    Console,
}

/// Mutual exclusion between CPUs.
pub struct Lock<T> {
    turns: Turns,
    rank: Rank,
    data: UnsafeCell<T>,
}

// SAFETY: `turns` lets one CPU at a time reach `data`.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// A free lock.
    pub const fn new(rank: Rank, data: T) -> Self {
        Lock { turns: Turns::new(), rank, data: UnsafeCell::new(data) }
    }

    /// Waits for its turn and takes the lock. In debug builds, panics when this CPU holds one of this rank or higher.
    pub fn lock(&self) -> Guard<'_, T> {
        held::rising(self.rank);
        self.turns.take(PATIENCE, spin);
        held::push(self.rank);
        Guard { lock: self, not_send: PhantomData }
    }

    /// Takes the lock if it is free now. Its rank is not checked: what does not wait cannot deadlock.
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        if !self.turns.try_take() {
            return None;
        }
        held::push(self.rank);
        Some(Guard { lock: self, not_send: PhantomData })
    }

    /// The contents, where the borrow checker already proves that nobody else is there.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }
}

/// The right to the contents; given back on drop. Stays on the CPU that took it.
pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
    not_send: PhantomData<*mut ()>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: a guard exists only while its CPU has the lock.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`, and the guard is borrowed exclusively.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        held::pop(self.lock.rank);
        self.lock.turns.give_back();
    }
}

/// One turn of a wait. On the host, threads outnumber CPUs and the next in line may not be running.
fn spin() {
    #[cfg(target_os = "none")]
    core::hint::spin_loop();
    #[cfg(not(target_os = "none"))]
    std::thread::yield_now();
}

/// Which ranks this CPU holds: a bit set, so that guards may be dropped in any order.
mod held {
    use super::Rank;

    #[cfg(all(debug_assertions, not(target_os = "none")))]
    mod cpu {
        use core::cell::Cell;
        std::thread_local!(static HELD: Cell<u32> = const { Cell::new(0) });
        pub fn get() -> u32 {
            HELD.get()
        }
        pub fn set(v: u32) {
            HELD.set(v);
        }
    }

    #[cfg(all(debug_assertions, target_os = "none"))]
    mod cpu {
        use crate::arch::percpu;
        pub fn get() -> u32 {
            percpu::locks_held().get()
        }
        pub fn set(v: u32) {
            percpu::locks_held().set(v);
        }
    }

    #[cfg(debug_assertions)]
    pub fn rising(rank: Rank) {
        let held = cpu::get();
        assert!(held >> rank as u8 == 0, "lock order: taking {rank:?} while holding {held:#b}");
    }
    #[cfg(debug_assertions)]
    pub fn push(rank: Rank) {
        cpu::set(cpu::get() | 1 << rank as u8);
    }
    #[cfg(debug_assertions)]
    pub fn pop(rank: Rank) {
        cpu::set(cpu::get() & !(1 << rank as u8));
    }

    #[cfg(not(debug_assertions))]
    pub fn rising(_: Rank) {}
    #[cfg(not(debug_assertions))]
    pub fn push(_: Rank) {}
    #[cfg(not(debug_assertions))]
    pub fn pop(_: Rank) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_increment_under_the_lock_is_kept() {
        let lock = Lock::new(Rank::Memory, 0u64);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| (0..1_000).for_each(|_| *lock.lock() += 1));
            }
        });
        assert_eq!(*lock.lock(), 4_000);
    }

    #[test]
    fn a_lock_that_is_held_cannot_be_tried() {
        let lock = Lock::new(Rank::Console, ());
        let held = lock.try_lock();
        assert!(held.is_some());
        assert!(lock.try_lock().is_none());
        drop(held);
        assert!(lock.try_lock().is_some());
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "lock order")]
    fn taking_a_lower_rank_under_a_higher_one_is_caught() {
        let (high, low) = (Lock::new(Rank::ItsQueue, ()), Lock::new(Rank::Vpe, ()));
        let _high = high.lock();
        let _low = low.lock();
    }
}
