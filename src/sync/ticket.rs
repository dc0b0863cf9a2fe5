//! A ticket lock that passes over an absent waiter.
//!
//! A CPU that waits takes a ticket and gets the lock in the order of the tickets, so that on a machine of many CPUs no
//! CPU is starved by CPUs closer to the lock's memory. A plain ticket lock assumes that the CPU whose turn it is takes
//! the lock at once. Under a hypervisor or an emulator that runs more virtual CPUs than it has physical ones, the next
//! CPU in line may not be running. All CPUs behind it then spin until the host schedules it, and this repeats at each
//! hand-over: with four CPUs on two, a lock that is held for a microsecond at a time changes hands a few times a
//! second.
//!
//! So a ticket here is a place in the order and not the lock. The lock itself is a separate flag. A waiter that has
//! seen the lock free for some number of polls, without the CPU whose turn it is taking it, advances the turn by one. A
//! CPU that finds its ticket passed over takes a new one. On physical CPUs the next in line takes the lock within a few
//! polls and is never passed over.

use core::sync::atomic::{AtomicU32, Ordering};

/// A 32-bit atomic: the CPU's, or in a loom test one whose accesses are explored in every order.
pub trait Word {
    /// Loads the value (relaxed).
    fn load_relaxed(&self) -> u32;
    /// Stores `to` if the value is `from` (acquire). Returns whether it was.
    fn compare_exchange_acquire(&self, from: u32, to: u32) -> bool;
    /// Adds one (relaxed). Returns the value before.
    fn increment_relaxed(&self) -> u32;
    /// Stores 0 (release).
    fn clear_release(&self);
}

impl Word for AtomicU32 {
    #[inline]
    fn load_relaxed(&self) -> u32 {
        self.load(Ordering::Relaxed)
    }

    #[inline]
    fn compare_exchange_acquire(&self, from: u32, to: u32) -> bool {
        self.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[inline]
    fn increment_relaxed(&self) -> u32 {
        self.fetch_add(1, Ordering::Relaxed)
    }

    #[inline]
    fn clear_release(&self) {
        self.store(0, Ordering::Release);
    }
}

/// The state of a lock, without the data it protects.
pub struct TicketLock<W = AtomicU32> {
    /// 1 while a CPU holds the lock.
    held: W,
    /// The ticket whose turn it is; equal to `next` while no CPU waits.
    turn: W,
    /// The next ticket to hand out.
    next: W,
}

impl TicketLock {
    /// A free lock.
    pub const fn new() -> TicketLock {
        TicketLock { held: AtomicU32::new(0), turn: AtomicU32::new(0), next: AtomicU32::new(0) }
    }
}

impl<W: Word> TicketLock<W> {
    /// Takes the lock if it is free, even if other CPUs wait. Returns whether it did.
    #[inline]
    pub fn try_acquire(&self) -> bool {
        self.held.load_relaxed() == 0 && self.held.compare_exchange_acquire(0, 1)
    }

    /// Takes the lock, in the order of tickets. `spin` is called between two polls. A CPU that does not take its turn
    /// for `patience` polls of another while the lock is free is passed over.
    #[inline]
    pub fn acquire(&self, patience: u32, mut spin: impl FnMut()) {
        if self.turn.load_relaxed() == self.next.load_relaxed() && self.held.compare_exchange_acquire(0, 1) {
            return;
        }
        self.queue_up(patience, &mut spin);
    }

    /// The slow path of [`acquire`](Self::acquire), out of line: most locks are free, and the fast path is inlined into
    /// many callers.
    #[cold]
    #[inline(never)]
    fn queue_up(&self, patience: u32, spin: &mut impl FnMut()) {
        while !self.wait(self.next.increment_relaxed(), patience, spin) {}
    }

    /// Waits with a ticket until the lock is taken. Returns `false` if the ticket was passed over.
    fn wait(&self, ticket: u32, patience: u32, spin: &mut impl FnMut()) -> bool {
        let (mut seen, mut polls) = (ticket, 0);
        loop {
            let turn = self.turn.load_relaxed();
            let ahead = ticket.wrapping_sub(turn);
            if ahead > u32::MAX / 2 {
                return false;
            }
            if self.held.load_relaxed() != 0 || turn != seen {
                (seen, polls) = (turn, 0);
            } else {
                polls += 1;
            }
            if ahead == 0 {
                if self.try_acquire() {
                    self.advance(turn);
                    return true;
                }
            } else if polls >= patience {
                self.advance(turn);
                polls = 0;
            }
            spin();
        }
    }

    /// Advances the turn by one if it is still `turn`.
    fn advance(&self, turn: u32) {
        let _ = self.turn.compare_exchange_acquire(turn, turn.wrapping_add(1));
    }

    /// Releases the lock.
    #[inline]
    pub fn release(&self) {
        self.held.clear_release();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn waiters_get_the_lock_in_the_order_of_their_tickets() {
        let lock = TicketLock::new();
        lock.acquire(100, || {});
        let (first, second) = (lock.next.increment_relaxed(), lock.next.increment_relaxed());
        // The second waiter polls first: it is not its turn, and the lock is held.
        let mut polls = 0;
        std::thread::scope(|threads| {
            threads.spawn(|| {
                assert!(lock.wait(first, u32::MAX, &mut std::thread::yield_now));
                lock.release();
            });
            assert!(lock.wait(second, u32::MAX, &mut || {
                polls += 1;
                if polls == 1 {
                    lock.release();
                }
                std::thread::yield_now();
            }));
        });
        assert_eq!(lock.turn.load_relaxed(), 2, "both took their turn");
    }

    #[test]
    fn an_absent_next_in_line_is_passed_over() {
        let lock = TicketLock::new();
        lock.acquire(3, || {});
        // This waiter has a ticket, and its CPU is not running.
        let absent = lock.next.increment_relaxed();
        lock.release();
        let mut polls = 0;
        lock.acquire(3, || {
            polls += 1;
            assert!(polls < 10, "waits for an absent CPU");
        });
        lock.release();
        assert!(!lock.wait(absent, 3, &mut || {}), "a passed-over ticket is not valid any more");
        lock.acquire(3, || {});
    }

    #[test]
    fn no_waiter_is_passed_over_while_the_lock_is_held() {
        let lock = TicketLock::new();
        lock.acquire(3, || {});
        let first = lock.next.increment_relaxed();
        let second = lock.next.increment_relaxed();
        let mut polls = 0;
        std::thread::scope(|threads| {
            threads.spawn(|| {
                // Many more polls than its patience.
                assert!(lock.wait(second, 3, &mut || {
                    polls += 1;
                    if polls == 50 {
                        assert_eq!(lock.turn.load_relaxed(), first);
                        lock.release();
                    }
                }));
            });
        });
        assert_eq!(lock.turn.load_relaxed(), second + 1);
    }

    #[test]
    fn ticket_numbers_may_wrap() {
        let lock = TicketLock {
            held: AtomicU32::new(0),
            turn: AtomicU32::new(u32::MAX - 1),
            next: AtomicU32::new(u32::MAX - 1),
        };
        for _ in 0..5 {
            let _absent = lock.next.increment_relaxed();
            lock.acquire(1, || {});
            lock.release();
        }
        assert_eq!(lock.turn.load_relaxed(), lock.next.load_relaxed());
    }
}

/// Explores every order of the accesses of two CPUs, one of which may be passed over.
///
/// Run by `RUSTFLAGS="--cfg loom" cargo test --lib interleavings`.
#[cfg(all(test, loom))]
mod interleavings {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU32 as Explored;

    impl Word for Explored {
        fn load_relaxed(&self) -> u32 {
            self.load(Ordering::Relaxed)
        }
        fn compare_exchange_acquire(&self, from: u32, to: u32) -> bool {
            self.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed).is_ok()
        }
        fn increment_relaxed(&self) -> u32 {
            self.fetch_add(1, Ordering::Relaxed)
        }
        fn clear_release(&self) {
            self.store(0, Ordering::Release);
        }
    }

    fn lock() -> TicketLock<Explored> {
        TicketLock { held: Explored::new(0), turn: Explored::new(0), next: Explored::new(0) }
    }

    type Shared = (TicketLock<Explored>, UnsafeCell<u32>);

    fn count_one(shared: &Shared, patience: u32) {
        shared.0.acquire(patience, loom::thread::yield_now);
        // SAFETY: the lock excludes the other thread; loom reports it if not.
        shared.1.with_mut(|count| unsafe { *count += 1 });
        shared.0.release();
    }

    fn explore(patience: u32, absent: bool) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let shared: Arc<Shared> = Arc::new((lock(), UnsafeCell::new(0)));
            if absent {
                // A third CPU takes a ticket and never polls.
                let _ticket = shared.0.next.increment_relaxed();
            }
            let theirs = shared.clone();
            let other = loom::thread::spawn(move || count_one(&theirs, patience));
            count_one(&shared, patience);
            other.join().unwrap();
            // SAFETY: the other thread has ended.
            shared.1.with(|count| assert_eq!(unsafe { *count }, 2));
        });
    }

    #[test]
    fn two_cpus_exclude_each_other_and_both_finish() {
        explore(u32::MAX, false);
    }

    #[test]
    fn passing_over_preserves_mutual_exclusion() {
        explore(1, false);
    }

    #[test]
    fn two_cpus_finish_although_a_third_never_takes_its_turn() {
        explore(1, true);
    }
}
