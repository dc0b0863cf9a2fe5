//! Whose turn it is: the order in which CPUs get a lock.
//!
//! Who waits takes a ticket and gets the lock in the order of the tickets, so that on a machine of many CPUs nobody is
//! starved by a near neighbour. That alone assumes that a CPU whose turn it is takes it. A CPU may be away: under a hypervisor
//! or an emulator that has fewer CPUs of its own, the next in line may not be running, and everybody behind it would burn
//! time until the host runs it, at each hand-over anew; with four CPUs on two, a lock that is held for a microsecond is
//! then handed on a few times a second.
//!
//! So the ticket is an order and not the lock. The lock is a flag of its own. Whoever waits and sees that it is free and
//! that for some time nobody took it passes the next in line over; one that was passed over takes a new ticket when it is
//! back. On real CPUs the turn is taken within a few polls and nobody is ever passed over.

use core::sync::atomic::{AtomicU32, Ordering};

/// A 32-bit atomic: the CPU's, or in a test one whose accesses are explored in every order.
pub trait Word {
    /// Reads it. Orders nothing.
    fn peek(&self) -> u32;
    /// Makes it `to` if it is `from`; what comes after is not seen before (acquire).
    fn change(&self, from: u32, to: u32) -> bool;
    /// Adds one and returns what it was. Orders nothing.
    fn bump(&self) -> u32;
    /// Makes it 0; what came before is seen before (release).
    fn clear(&self);
}

impl Word for AtomicU32 {
    #[inline]
    fn peek(&self) -> u32 {
        self.load(Ordering::Relaxed)
    }

    #[inline]
    fn change(&self, from: u32, to: u32) -> bool {
        self.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[inline]
    fn bump(&self) -> u32 {
        self.fetch_add(1, Ordering::Relaxed)
    }

    #[inline]
    fn clear(&self) {
        self.store(0, Ordering::Release);
    }
}

/// The state of a lock.
pub struct Turns<W = AtomicU32> {
    held: W,
    /// The ticket whose turn it is; behind all tickets while nobody waits.
    turn: W,
    /// The next ticket to be taken.
    next: W,
}

impl Turns {
    /// Free.
    pub const fn new() -> Turns {
        Turns { held: AtomicU32::new(0), turn: AtomicU32::new(0), next: AtomicU32::new(0) }
    }
}

impl<W: Word> Turns<W> {
    /// Takes the lock if it is free, whoever waits.
    #[inline]
    pub fn try_take(&self) -> bool {
        self.held.peek() == 0 && self.held.change(0, 1)
    }

    /// Takes the lock, in turn. `spin` is called between two looks; one that is away for `patience` of them while the lock is
    /// free loses its turn.
    #[inline]
    pub fn take(&self, patience: u32, mut spin: impl FnMut()) {
        if self.turn.peek() == self.next.peek() && self.held.change(0, 1) {
            return;
        }
        self.queue_up(patience, &mut spin);
    }

    /// Out of line: most locks are free, and who takes one shall not carry the waiting with it.
    #[cold]
    #[inline(never)]
    fn queue_up(&self, patience: u32, spin: &mut impl FnMut()) {
        while !self.wait(self.next.bump(), patience, spin) {}
    }

    /// Waits with a ticket. `false`: it was passed over.
    fn wait(&self, ticket: u32, patience: u32, spin: &mut impl FnMut()) -> bool {
        let (mut seen, mut looks) = (ticket, 0);
        loop {
            let turn = self.turn.peek();
            let ahead = ticket.wrapping_sub(turn);
            if ahead > u32::MAX / 2 {
                return false;
            }
            if self.held.peek() != 0 || turn != seen {
                (seen, looks) = (turn, 0);
            } else {
                looks += 1;
            }
            if ahead == 0 {
                if self.try_take() {
                    self.pass(turn);
                    return true;
                }
            } else if looks >= patience {
                self.pass(turn);
                looks = 0;
            }
            spin();
        }
    }

    /// The turn goes on, if it is still `turn`'s.
    fn pass(&self, turn: u32) {
        let _ = self.turn.change(turn, turn.wrapping_add(1));
    }

    /// Gives the lock back.
    #[inline]
    pub fn give_back(&self) {
        self.held.clear();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn who_waits_gets_it_in_the_order_of_coming() {
        let turns = Turns::new();
        turns.take(100, || {});
        let (first, second) = (turns.next.bump(), turns.next.bump());
        // The second looks: it is not its turn, and the lock is held.
        let mut looks = 0;
        std::thread::scope(|threads| {
            threads.spawn(|| {
                assert!(turns.wait(first, u32::MAX, &mut std::thread::yield_now));
                turns.give_back();
            });
            assert!(turns.wait(second, u32::MAX, &mut || {
                looks += 1;
                if looks == 1 {
                    turns.give_back();
                }
                std::thread::yield_now();
            }));
        });
        assert_eq!(turns.turn.peek(), 2, "both turns were taken");
    }

    #[test]
    fn a_next_in_line_that_does_not_come_is_passed_over() {
        let turns = Turns::new();
        turns.take(3, || {});
        // It took a ticket, and its CPU is away.
        let away = turns.next.bump();
        turns.give_back();
        let mut looks = 0;
        turns.take(3, || {
            looks += 1;
            assert!(looks < 10, "everybody waits for one that is not there");
        });
        turns.give_back();
        assert!(!turns.wait(away, 3, &mut || {}), "when it is back it has to ask anew");
        turns.take(3, || {});
    }

    #[test]
    fn nobody_is_passed_over_while_the_lock_is_held() {
        let turns = Turns::new();
        turns.take(3, || {});
        let first = turns.next.bump();
        let second = turns.next.bump();
        let mut looks = 0;
        std::thread::scope(|threads| {
            threads.spawn(|| {
                // Long after its patience would have ended.
                assert!(turns.wait(second, 3, &mut || {
                    looks += 1;
                    if looks == 50 {
                        assert_eq!(turns.turn.peek(), first);
                        turns.give_back();
                    }
                }));
            });
        });
        assert_eq!(turns.turn.peek(), second + 1);
    }

    #[test]
    fn tickets_may_wrap() {
        let turns =
            Turns { held: AtomicU32::new(0), turn: AtomicU32::new(u32::MAX - 1), next: AtomicU32::new(u32::MAX - 1) };
        for _ in 0..5 {
            let _away = turns.next.bump();
            turns.take(1, || {});
            turns.give_back();
        }
        assert_eq!(turns.turn.peek(), turns.next.peek());
    }
}

/// With the accesses in every order: two CPUs that are at times passed over.
///
/// Run by `RUSTFLAGS="--cfg loom" cargo test --lib interleavings`.
#[cfg(all(test, loom))]
mod interleavings {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU32 as Explored;

    impl Word for Explored {
        fn peek(&self) -> u32 {
            self.load(Ordering::Relaxed)
        }
        fn change(&self, from: u32, to: u32) -> bool {
            self.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed).is_ok()
        }
        fn bump(&self) -> u32 {
            self.fetch_add(1, Ordering::Relaxed)
        }
        fn clear(&self) {
            self.store(0, Ordering::Release);
        }
    }

    fn turns() -> Turns<Explored> {
        Turns { held: Explored::new(0), turn: Explored::new(0), next: Explored::new(0) }
    }

    type Shared = (Turns<Explored>, UnsafeCell<u32>);

    fn count_one(shared: &Shared, patience: u32) {
        shared.0.take(patience, loom::thread::yield_now);
        // SAFETY: none is claimed; that two are here at once is what loom would find.
        shared.1.with_mut(|count| unsafe { *count += 1 });
        shared.0.give_back();
    }

    fn explore(patience: u32, away: bool) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let shared: Arc<Shared> = Arc::new((turns(), UnsafeCell::new(0)));
            if away {
                // A third took a ticket and never comes.
                let _ticket = shared.0.next.bump();
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
    fn one_at_a_time_and_both_in_the_end() {
        explore(u32::MAX, false);
    }

    #[test]
    fn passing_over_lets_nobody_in_beside_the_holder() {
        explore(1, false);
    }

    #[test]
    fn both_get_by_one_that_never_comes() {
        explore(1, true);
    }
}
