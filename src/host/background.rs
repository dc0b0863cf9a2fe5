//! Who does the work that nobody waits for: taking ended domains down, on a CPU that has nothing better to do.
//!
//! One CPU at a time is at it, for a short stretch. A CPU without a vCPU goes on from stretch to stretch, and only
//! sleeps when there is nothing, or another is at it. Nobody else may be left who would go on: so who lets go of the work for
//! something better, or announces some, calls a CPU that sleeps. Where none sleeps, CPUs that leave a guest because
//! of an interrupt do a stretch each.

use crate::ids::{CpuId, DomId};
use crate::sync::Exclusive;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use crate::vits::Progress;
use alloc::vec::Vec;

/// A piece of work has been begun.
const BEGUN: u64 = 1 << 63;

/// What came of a stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch<W> {
    /// There was nothing to do, or another CPU is at it.
    Nothing,
    /// There may be more to do.
    More,
    /// This has been done, and there may be more.
    Done(W),
}

/// What has to be done, in pieces of `W`, and the CPUs that could.
pub struct Duty<W> {
    /// A bit for each domain that was announced, and [`BEGUN`].
    todo: AtomicU64,
    work: Exclusive<Option<W>>,
    /// By CPU.
    asleep: Vec<AtomicBool>,
}

impl<W> Duty<W> {
    /// Nothing has to be done, and nobody of `cpus` CPUs sleeps.
    #[must_use]
    pub fn new(cpus: usize) -> Duty<W> {
        let asleep = (0..cpus).map(|_| AtomicBool::new(false)).collect();
        Duty { todo: AtomicU64::new(0), work: Exclusive::new(None), asleep }
    }

    /// A domain has ended.
    pub fn announce(&self, id: DomId) {
        self.todo.fetch_or(1 << id.0, Ordering::SeqCst);
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.todo.load(Ordering::Relaxed) == 0
    }

    /// Does a stretch: `begin` takes up the end of a domain, unless there is no such domain; `advance` goes on with
    /// what was begun and says whether it is done.
    pub fn stretch(
        &self,
        begin: impl FnOnce(DomId) -> Option<W>,
        advance: impl FnOnce(&mut W) -> Progress,
    ) -> Stretch<W> {
        if self.is_quiet() {
            return Stretch::Nothing;
        }
        let Some(mut work) = self.work.take() else { return Stretch::Nothing };
        if work.is_none() {
            let Some(id) = self.next() else {
                // Who announces something now may have seen this CPU at it, and have called nobody.
                drop(work);
                fence(Ordering::SeqCst);
                return if self.is_quiet() { Stretch::Nothing } else { Stretch::More };
            };
            *work = begin(id);
        }
        if work.as_mut().is_some_and(|work| advance(work) == Progress::More) {
            return Stretch::More;
        }
        let done = work.take();
        self.todo.fetch_and(!BEGUN, Ordering::SeqCst);
        done.map_or(Stretch::More, Stretch::Done)
    }

    /// A domain that was announced, and is now begun.
    fn next(&self) -> Option<DomId> {
        let todo = self.todo.load(Ordering::SeqCst) & !BEGUN;
        if todo == 0 {
            return None;
        }
        self.todo.fetch_or(BEGUN, Ordering::SeqCst);
        self.todo.fetch_and(!(todo & todo.wrapping_neg()), Ordering::SeqCst);
        Some(DomId(todo.trailing_zeros() as u16))
    }

    /// `cpu` is about to look for work for the last time, and to sleep if there is none for it.
    pub fn lie_down(&self, cpu: CpuId) {
        self.set_asleep(cpu, true);
        // Either it finds the work free, or who lets go of the work finds it asleep.
        fence(Ordering::SeqCst);
    }

    /// `cpu` is awake.
    pub fn get_up(&self, cpu: CpuId) {
        self.set_asleep(cpu, false);
    }

    fn set_asleep(&self, cpu: CpuId, now: bool) {
        if let Some(asleep) = self.asleep.get(cpu.index()) {
            asleep.store(now, Ordering::SeqCst);
        }
    }

    /// The CPU to call if there is something to do and nobody is at it; the caller has let go of the work, or
    /// announced some.
    #[must_use]
    pub fn whom_to_call(&self) -> Option<CpuId> {
        if self.is_quiet() {
            return None;
        }
        fence(Ordering::SeqCst);
        if self.work.is_taken() {
            return None;
        }
        self.asleep.iter().position(|asleep| asleep.load(Ordering::SeqCst)).map(|cpu| CpuId(cpu as u16))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn stretch(duty: &Duty<DomId>, progress: Progress) -> Stretch<DomId> {
        duty.stretch(Some, |_| progress)
    }

    #[test]
    fn what_is_announced_is_begun_once_in_order_and_quiet_when_done() {
        let duty = Duty::new(1);
        assert_eq!(stretch(&duty, Progress::Done), Stretch::Nothing);
        duty.announce(DomId(8));
        duty.announce(DomId(3));
        assert_eq!(stretch(&duty, Progress::More), Stretch::More);
        duty.announce(DomId(3));
        for id in [3, 3, 8] {
            assert!(!duty.is_quiet());
            assert_eq!(stretch(&duty, Progress::Done), Stretch::Done(DomId(id)));
        }
        assert!(duty.is_quiet());
        duty.announce(DomId(1));
        assert_eq!(duty.stretch(|_| None, |_| Progress::More), Stretch::More, "it has gone already");
        assert!(duty.is_quiet());
    }

    #[test]
    fn one_that_sleeps_is_called_if_there_is_something_and_nobody_is_at_it() {
        let duty = Duty::new(4);
        duty.lie_down(CpuId(2));
        assert_eq!(duty.whom_to_call(), None);
        duty.announce(DomId(1));
        assert_eq!(duty.whom_to_call(), Some(CpuId(2)));
        let _ = duty.stretch(Some, |_| {
            assert_eq!(duty.whom_to_call(), None);
            assert_eq!(stretch(&duty, Progress::Done), Stretch::Nothing);
            Progress::More
        });
        assert_eq!(duty.whom_to_call(), Some(CpuId(2)));
        duty.get_up(CpuId(2));
        assert_eq!(duty.whom_to_call(), None);
    }
}

/// Run by `RUSTFLAGS="--cfg loom" cargo test --lib interleavings`.
#[cfg(all(test, loom))]
mod interleavings {
    use super::*;
    use loom::sync::Arc;

    /// Work in one stretch or two, by CPUs that can be called.
    struct Machine {
        duty: Duty<u8>,
        calls: Vec<AtomicBool>,
    }

    impl Machine {
        fn new() -> Arc<Machine> {
            Arc::new(Machine { duty: Duty::new(2), calls: (0..2).map(|_| AtomicBool::new(false)).collect() })
        }

        fn stretch(&self) -> bool {
            let advance = |left: &mut u8| {
                *left -= 1;
                if *left == 0 { Progress::Done } else { Progress::More }
            };
            self.duty.stretch(|id| Some(if id == DomId(1) { 2 } else { 1 }), advance) != Stretch::Nothing
        }

        fn pass_on(&self) {
            if let Some(cpu) = self.duty.whom_to_call() {
                // Not a plain store: loom would let it come before the last time that it was taken.
                self.calls[cpu.index()].swap(true, Ordering::SeqCst);
            }
        }

        /// A CPU that has no vCPU, until it sleeps and nobody has called it; or until it has one after some stretches.
        fn idle(&self, cpu: u16, stretches: usize) {
            for _ in 0..stretches {
                self.duty.lie_down(CpuId(cpu));
                let worked = self.stretch();
                let called = !worked && self.calls[usize::from(cpu)].swap(false, Ordering::SeqCst);
                if !worked && !called {
                    return;
                }
                self.duty.get_up(CpuId(cpu));
            }
            self.pass_on();
        }

        /// A CPU that leaves a guest.
        fn busy(&self) {
            if self.duty.whom_to_call().is_some() || self.stretch() {
                self.pass_on();
            }
        }

        /// Whoever has been called since it fell asleep wakes up; then all is done.
        fn check(&self) {
            for cpu in 0..2 {
                if self.calls[usize::from(cpu)].swap(false, Ordering::SeqCst) {
                    self.idle(cpu, 9);
                }
            }
            assert!(self.duty.is_quiet(), "all sleep, and there is something to do");
        }
    }

    /// One CPU has no vCPU while `act` happens on another.
    fn explore(model: &loom::model::Builder, announced: bool, act: impl Fn(&Machine) + Sync + Send + 'static) {
        model.check(move || {
            let machine = Machine::new();
            if announced {
                machine.duty.announce(DomId(1));
            }
            let theirs = machine.clone();
            let other = loom::thread::spawn(move || theirs.idle(0, 9));
            act(&machine);
            other.join().unwrap();
            machine.check();
        });
    }

    fn all() -> loom::model::Builder {
        loom::model::Builder::new()
    }

    #[test]
    fn nobody_sleeps_while_a_cpu_leaves_work_for_its_guest() {
        explore(&all(), true, Machine::busy);
    }

    #[test]
    fn nobody_sleeps_while_the_one_that_was_at_it_gets_a_vcpu() {
        explore(&all(), true, |machine| machine.idle(1, 1));
    }

    #[test]
    fn nobody_sleeps_over_what_is_announced() {
        explore(&all(), false, |machine| {
            machine.duty.announce(DomId(1));
            machine.pass_on();
        });
    }

    /// Who comes for work that another has just finished finds none, and must not miss what is announced meanwhile.
    #[test]
    fn nobody_sleeps_over_what_is_announced_while_it_finds_that_all_is_done() {
        let mut model = all();
        model.preemption_bound = Some(3);
        explore(&model, true, |machine| {
            while machine.stretch() {}
            machine.duty.announce(DomId(2));
            machine.pass_on();
        });
    }
}
