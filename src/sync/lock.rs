//! A fair lock with a rank, on top of the [ticket lock](super::ticket).
//!
//! Fair, because on a machine of 64 CPUs an unfair lock starves the CPUs of the far socket, and a fair one bounds the
//! wait by the number of CPUs times the longest hold. There is no acquire with a timeout: a lock that is held for ever
//! is a bug in EL2, and the panic path (the console) only uses [`Lock::try_lock`].

use super::ticket::TicketLock;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

/// The number of polls of a free lock after which a waiter takes the next CPU in line for absent. A running CPU takes
/// its turn within two or three polls of another.
const PATIENCE: u32 = 100;

/// The lock order: a CPU may only take a lock of a higher rank than all the locks it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rank {
    /// A domain's own state.
    Domain,
    /// The bytes of one direction of a virtio port.
    Stream,
    /// The stage 2 tables of a domain.
    Stage2,
    /// A virtual ITS.
    Vits,
    /// The part of a virtual GIC that all its vCPUs share.
    VgicDist,
    /// The part of a virtual GIC that belongs to one vCPU.
    VgicCpu,
    /// The event mappings of one ITS.
    ItsEvents,
    /// The set of ITSs that a VM is mapped on.
    VmMap,
    /// One vPE.
    Vpe,
    /// The order of VMOVPs over all ITSs.
    Vmovp,
    /// The command queue of one ITS.
    ItsQueue,
    /// The invalidate registers of one redistributor.
    Redist,
    /// Which domain each stream of the SMMUs belongs to.
    Streams,
    /// The stream table and the command queue of one SMMU.
    Smmu,
    /// The event queue and the error registers of one SMMU.
    SmmuEvents,
    /// A run queue; taken while none of the above is held.
    RunQueue,
    /// What has happened, for the tools of dom0.
    Events,
    /// EL2's own stage 1.
    Stage1,
    /// The allocator of frames, and the heap.
    Memory,
    /// The console, highest of all. Printing only tries to take it.
    Console,
}

/// Data that one CPU at a time may access.
pub struct Lock<T> {
    ticket: TicketLock,
    rank: Rank,
    data: UnsafeCell<T>,
}

// SAFETY: `ticket` lets one CPU at a time reach `data`.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// A free lock.
    pub const fn new(rank: Rank, data: T) -> Self {
        Lock { ticket: TicketLock::new(), rank, data: UnsafeCell::new(data) }
    }

    /// Returns the data.
    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }

    /// Waits for its turn and takes the lock. In debug builds, panics if this CPU holds a lock of this rank or a higher
    /// one.
    pub fn lock(&self) -> Guard<'_, T> {
        held::assert_above(self.rank);
        self.ticket.acquire(PATIENCE, spin);
        held::push(self.rank);
        Guard { lock: self, not_send: PhantomData }
    }

    /// Takes the lock if it is free now. The rank is not checked: a CPU that does not wait cannot deadlock.
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        if !self.ticket.try_acquire() {
            return None;
        }
        held::push(self.rank);
        Some(Guard { lock: self, not_send: PhantomData })
    }
}

/// Access to the data of a [`Lock`]; dropping it releases the lock. It stays on the CPU that took the lock.
pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
    not_send: PhantomData<*mut ()>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: a guard exists only while its CPU holds the lock.
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
        self.lock.ticket.release();
    }
}

/// Pauses between two polls. On the host, threads outnumber CPUs and the next thread in line may not be running.
fn spin() {
    #[cfg(target_os = "none")]
    core::hint::spin_loop();
    #[cfg(not(target_os = "none"))]
    std::thread::yield_now();
}

/// The ranks of the locks this CPU holds. A bit set, so that guards may be dropped in any order.
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
    pub fn assert_above(rank: Rank) {
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
    pub fn assert_above(_: Rank) {}
    #[cfg(not(debug_assertions))]
    pub fn push(_: Rank) {}
    #[cfg(not(debug_assertions))]
    pub fn pop(_: Rank) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_increment_under_the_lock_is_lost() {
        let lock = Lock::new(Rank::Memory, 0u64);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| (0..1_000).for_each(|_| *lock.lock() += 1));
            }
        });
        assert_eq!(*lock.lock(), 4_000);
    }

    #[test]
    fn try_lock_fails_while_the_lock_is_held() {
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
    fn taking_a_lower_rank_while_holding_a_higher_one_panics() {
        let (high, low) = (Lock::new(Rank::ItsQueue, ()), Lock::new(Rank::Vpe, ()));
        let _high = high.lock();
        let _low = low.lock();
    }
}
