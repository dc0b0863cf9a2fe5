//! Background work: the teardown of domains that have ended, in short steps, on CPUs that have nothing else to run.
//!
//! One CPU at a time performs the work. An idle CPU performs one step after the other, and sleeps only if there is no
//! work or another CPU is performing it. A CPU that stops because it gets a vCPU to run, and a CPU that announces work,
//! kicks an idle CPU if no CPU is performing the work. If no CPU is idle, each CPU that exits from a guest because of
//! an interrupt performs some steps, and sets its timer so that it exits for the next ones.

use crate::ids::{CpuId, DOMAINS, DomId};
use crate::sync::Exclusive;
use crate::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering, fence, spin_loop};
use crate::util::progress::Progress;
use alloc::vec::Vec;

/// "Not announced", in atomics that hold a domain number.
const NONE: u16 = u16::MAX;

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<W> {
    /// There is no work, or another CPU is performing it.
    Nothing,
    /// There may be more work.
    More,
    /// This piece of work is finished; there may be more.
    Done(W),
}

/// The announced work, one value of type `W` for each domain, and the CPUs that are idle.
pub struct Background<W> {
    /// The number of domains that are announced or whose work is not finished.
    todo: AtomicU32,
    /// The domains that are announced, each at its [`DomId::slot`].
    announced: Vec<AtomicU16>,
    /// The work that has been started. It is taken by the CPU that performs a step.
    work: Exclusive<Option<W>>,
    /// The CPUs that are idle, by number.
    idle: Vec<AtomicBool>,
}

/// No domain is announced. A model checker looks at each place, so there are few for it.
fn announced() -> Vec<AtomicU16> {
    let places = if cfg!(loom) { 3 } else { DOMAINS };
    (0..places).map(|_| AtomicU16::new(NONE)).collect()
}

impl<W> Background<W> {
    /// No work, and `cpus` CPUs that are busy.
    #[must_use]
    pub fn new(cpus: usize) -> Background<W> {
        let idle = (0..cpus).map(|_| AtomicBool::new(false)).collect();
        Background { todo: AtomicU32::new(0), announced: announced(), work: Exclusive::new(None), idle }
    }

    /// Announces that a domain has ended and has to be taken down.
    pub fn announce(&self, id: DomId) {
        // In this order, the number is never below that of the domains that a CPU finds.
        self.todo.fetch_add(1, Ordering::SeqCst);
        if let Some(place) = self.announced.get(id.slot() % self.announced.len().max(1))
            && place.swap(id.0, Ordering::SeqCst) != NONE
        {
            // It was announced already.
            self.todo.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Whether there is no work.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.todo.load(Ordering::Relaxed) == 0
    }

    /// Performs one step. `begin` starts the work for an announced domain and returns `None` if there is no such
    /// domain. `advance` performs a step of work that has been started and returns whether it is finished.
    pub fn step(&self, begin: impl FnOnce(DomId) -> Option<W>, advance: impl FnOnce(&mut W) -> Progress) -> Step<W> {
        if self.is_empty() {
            return Step::Nothing;
        }
        let Some(mut work) = self.work.take() else { return Step::Nothing };
        if work.is_none() {
            let Some(id) = self.next() else {
                // A CPU that announces work now may have seen that this CPU holds `work`, and has then kicked no CPU.
                // So this CPU looks again after it has released `work`.
                drop(work);
                fence(Ordering::SeqCst);
                if self.is_empty() {
                    return Step::Nothing;
                }
                // A CPU has counted its domain and is about to announce it.
                spin_loop();
                return Step::More;
            };
            *work = begin(id);
        }
        if work.as_mut().is_some_and(|work| advance(work) == Progress::More) {
            return Step::More;
        }
        let done = work.take();
        self.todo.fetch_sub(1, Ordering::SeqCst);
        done.map_or(Step::More, Step::Done)
    }

    /// Removes and returns an announced domain. It stays counted.
    fn next(&self) -> Option<DomId> {
        let waiting = self.announced.iter().find(|place| place.load(Ordering::SeqCst) != NONE)?;
        Some(DomId(waiting.swap(NONE, Ordering::SeqCst)))
    }

    /// Marks `cpu` as idle. The caller then looks for work once more, and sleeps if it finds none.
    pub fn mark_idle(&self, cpu: CpuId) {
        self.set_idle(cpu, true);
        // Orders the flag before the access to `work`: either this CPU finds `work` free, or the CPU that releases it
        // finds this one idle.
        fence(Ordering::SeqCst);
    }

    /// Marks `cpu` as busy.
    pub fn mark_busy(&self, cpu: CpuId) {
        self.set_idle(cpu, false);
    }

    fn set_idle(&self, cpu: CpuId, now: bool) {
        if let Some(idle) = self.idle.get(cpu.index()) {
            idle.store(now, Ordering::SeqCst);
        }
    }

    /// Returns an idle CPU if there is work that no CPU is performing. The caller has announced work, or performs no
    /// further step, and has to kick the CPU that is returned.
    #[must_use]
    pub fn idle_cpu_to_kick(&self) -> Option<CpuId> {
        if self.is_empty() {
            return None;
        }
        fence(Ordering::SeqCst);
        if self.work.is_taken() {
            return None;
        }
        self.idle.iter().position(|idle| idle.load(Ordering::SeqCst)).map(|cpu| CpuId(cpu as u16))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn step(work: &Background<DomId>, progress: Progress) -> Step<DomId> {
        work.step(Some, |_| progress)
    }

    #[test]
    fn announced_work_is_started_once_in_order_and_removed_when_finished() {
        let work = Background::new(1);
        assert_eq!(step(&work, Progress::Done), Step::Nothing);
        work.announce(DomId(8));
        work.announce(DomId(3));
        assert_eq!(step(&work, Progress::More), Step::More);
        work.announce(DomId(3));
        for id in [3, 3, 8] {
            assert!(!work.is_empty());
            assert_eq!(step(&work, Progress::Done), Step::Done(DomId(id)));
        }
        assert!(work.is_empty());
        work.announce(DomId(1));
        assert_eq!(work.step(|_| None, |_| Progress::More), Step::More, "the domain no longer exists");
        assert!(work.is_empty());
    }

    #[test]
    fn an_idle_cpu_is_kicked_if_there_is_work_that_no_cpu_performs() {
        let work = Background::new(4);
        work.mark_idle(CpuId(2));
        assert_eq!(work.idle_cpu_to_kick(), None);
        work.announce(DomId(1));
        assert_eq!(work.idle_cpu_to_kick(), Some(CpuId(2)));
        let _ = work.step(Some, |_| {
            assert_eq!(work.idle_cpu_to_kick(), None);
            assert_eq!(step(&work, Progress::Done), Step::Nothing);
            Progress::More
        });
        assert_eq!(work.idle_cpu_to_kick(), Some(CpuId(2)));
        work.mark_busy(CpuId(2));
        assert_eq!(work.idle_cpu_to_kick(), None);
    }
}

/// Run by `RUSTFLAGS="--cfg loom" cargo test --lib interleavings`.
#[cfg(all(test, loom))]
mod interleavings {
    use super::*;
    use loom::sync::Arc;

    /// Work of one or two steps, on CPUs that can be kicked.
    struct Machine {
        background: Background<u8>,
        kicks: Vec<AtomicBool>,
    }

    impl Machine {
        fn new() -> Arc<Machine> {
            Arc::new(Machine {
                background: Background::new(2),
                kicks: (0..2).map(|_| AtomicBool::new(false)).collect(),
            })
        }

        fn step(&self) -> bool {
            let advance = |left: &mut u8| {
                *left -= 1;
                if *left == 0 { Progress::Done } else { Progress::More }
            };
            self.background.step(|id| Some(if id == DomId(1) { 2 } else { 1 }), advance) != Step::Nothing
        }

        fn hand_over(&self) {
            if let Some(cpu) = self.background.idle_cpu_to_kick() {
                // A swap and not a store: loom would order a store before the last swap that cleared it.
                self.kicks[cpu.index()].swap(true, Ordering::SeqCst);
            }
        }

        /// A CPU without a vCPU: until it sleeps and has not been kicked, or gets a vCPU after `steps` steps.
        fn idle(&self, cpu: u16, steps: usize) {
            for _ in 0..steps {
                self.background.mark_idle(CpuId(cpu));
                let worked = self.step();
                let kicked = !worked && self.kicks[usize::from(cpu)].swap(false, Ordering::SeqCst);
                if !worked && !kicked {
                    return;
                }
                self.background.mark_busy(CpuId(cpu));
            }
            self.hand_over();
        }

        /// A CPU that exits from a guest.
        fn busy(&self) {
            if self.background.idle_cpu_to_kick().is_some() || self.step() {
                self.hand_over();
            }
        }

        /// Lets the CPUs that were kicked while they slept wake up. After that no work may be left.
        fn check(&self) {
            for cpu in 0..2 {
                if self.kicks[usize::from(cpu)].swap(false, Ordering::SeqCst) {
                    self.idle(cpu, 9);
                }
            }
            assert!(self.background.is_empty(), "all CPUs sleep while there is work");
        }
    }

    /// Explores one CPU without a vCPU, while another one executes `act`.
    fn explore(model: &loom::model::Builder, announced: bool, act: impl Fn(&Machine) + Sync + Send + 'static) {
        model.check(move || {
            let machine = Machine::new();
            if announced {
                machine.background.announce(DomId(1));
            }
            let theirs = machine.clone();
            let other = loom::thread::spawn(move || theirs.idle(0, 9));
            act(&machine);
            other.join().unwrap();
            machine.check();
        });
    }

    /// A model that explores all interleavings.
    fn all() -> loom::model::Builder {
        loom::model::Builder::new()
    }

    #[test]
    fn an_idle_cpu_takes_over_when_a_cpu_returns_to_its_guest() {
        explore(&all(), true, Machine::busy);
    }

    #[test]
    fn an_idle_cpu_takes_over_when_the_working_cpu_gets_a_vcpu() {
        explore(&all(), true, |machine| machine.idle(1, 1));
    }

    #[test]
    fn no_cpu_sleeps_while_work_is_announced() {
        explore(&all(), false, |machine| {
            machine.background.announce(DomId(1));
            machine.hand_over();
        });
    }

    /// The CPU that finds no work holds `work` while it looks. Work that is announced at that moment must not be
    /// missed.
    #[test]
    fn no_cpu_sleeps_when_work_is_announced_while_it_finds_none() {
        let mut model = all();
        model.preemption_bound = Some(3);
        explore(&model, true, |machine| {
            while machine.step() {}
            machine.background.announce(DomId(2));
            machine.hand_over();
        });
    }
}
