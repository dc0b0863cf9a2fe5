//! The credit scheduler with a thread for each CPU, which shows races that the simulation cannot show.
//!
//! The threads do what the run loop does: an idle CPU does nothing until it is kicked or its timer is due; a CPU that
//! runs a vCPU reschedules when it has to, lets the vCPU sleep, wakes others, goes offline and comes back. At the
//! scheduler's race points, threads yield by chance. After each round the threads stop, the CPUs that were kicked are
//! run until none has work left, and then each vCPU must be in one place, and no CPU may be idle that could run a
//! waiting vCPU.

use super::race_point::{self, race_point, random};
use super::*;
use crate::ids::CpuId;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use intrusive_collections::intrusive_adapter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Barrier, Mutex, MutexGuard};
use std::vec::Vec;

const CPUS: usize = 4;
const VCPUS: usize = 9;
/// How often the threads stop, and how many steps each CPU takes in between. More steps would hide what one did.
const ROUNDS: u64 = 8_000;
const STEPS: usize = 12;
const SLICES: Slices = Slices { slice: 40, period: 400 };

static KICKED: [AtomicBool; CPUS] = [const { AtomicBool::new(false) }; CPUS];

fn kick(cpu: CpuId) {
    KICKED[cpu.index()].store(true, Ordering::SeqCst);
}

struct V {
    entity: Entity,
    run: RunState,
    runs: AtomicU64,
}

intrusive_adapter!(QueueAdapter = Arc<V>: V { entity.queue_link => QueueLink });
intrusive_adapter!(SleepAdapter = Arc<V>: V { entity.sleep_link => SleepLink });

impl Scheduled for V {
    type QueueAdapter = QueueAdapter;
    type SleepAdapter = SleepAdapter;

    fn entity(&self) -> &Entity {
        race_point();
        &self.entity
    }
    fn run_state(&self) -> &RunState {
        race_point();
        &self.run
    }
}

struct World {
    sched: Credit<V>,
    vcpus: Vec<Arc<V>>,
    /// vCPUs are moved to CPUs at random, also to busy ones.
    torture: bool,
    now: AtomicU64,
    /// The CPUs that were told to go offline, and those that are offline.
    leaving: [AtomicBool; CPUS],
    offline: [AtomicBool; CPUS],
}

/// A CPU, between two of its steps.
struct Cpu {
    id: CpuId,
    running: Option<Arc<V>>,
}

impl World {
    fn new(torture: Option<u64>) -> World {
        let sched = Credit::new(CPUS, Settings { slices: SLICES, torture, kick: Box::new(kick) });
        KICKED.iter().for_each(|kicked| kicked.store(false, Ordering::SeqCst));
        (0..CPUS).for_each(|cpu| sched.bring_online(CpuId(cpu as u16)));
        let vcpus: Vec<_> = (0..VCPUS)
            .map(|index| {
                let home = CpuId((index % CPUS) as u16);
                Arc::new(V { entity: Entity::new(home), run: RunState::new(), runs: AtomicU64::new(0) })
            })
            .collect();
        for vcpu in &vcpus {
            sched.add(vcpu, vcpu.entity.cpu()).unwrap();
        }
        // One has a cap, and one may run on two CPUs only.
        vcpus[0].entity.set_cap(20);
        vcpus[1].entity.affinity.set([CpuId(0), CpuId(1)].into_iter());
        let none = || [const { AtomicBool::new(false) }; CPUS];
        World { sched, vcpus, torture: torture.is_some(), now: AtomicU64::new(1), leaving: none(), offline: none() }
    }

    fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    /// `Domain::kick`, on `from`.
    fn wake(&self, vcpu: &V, from: CpuId) {
        if vcpu.run.wake() == Woken::WasBlocked {
            let cpu = self.sched.place(vcpu);
            if cpu != from {
                kick(cpu);
            } else {
                // It goes through its loop once more.
                KICKED[from.index()].store(true, Ordering::SeqCst);
            }
        }
    }

    fn is_offline(&self, cpu: CpuId) -> bool {
        self.offline[cpu.index()].load(Ordering::SeqCst)
    }

    fn timer_is_due(&self, cpu: CpuId) -> bool {
        self.sched.next_resched_at(cpu).is_some_and(|at| at <= self.now())
    }

    /// Whether an interrupt is pending, or the CPU has to reschedule before it enters a guest.
    fn has_work(&self, cpu: &Cpu) -> bool {
        let id = cpu.id;
        let reschedules = cpu.running.is_some() && self.sched.needs_resched(id);
        !self.is_offline(id) && (reschedules || KICKED[id.index()].load(Ordering::SeqCst) || self.timer_is_due(id))
    }

    /// What the run loop does from an interrupt to the next entry or WFI.
    fn handle(&self, cpu: &mut Cpu) {
        let id = cpu.id;
        while self.has_work(cpu) {
            KICKED[id.index()].store(false, Ordering::SeqCst);
            if self.timer_is_due(id) {
                self.sched.set_need_resched(id);
            }
            let Some(vcpu) = &cpu.running else {
                self.pick(cpu);
                continue;
            };
            if self.sched.needs_resched(id) && self.sched.should_resched(id, self.now()) == Verdict::Switch {
                let stopped = self.sched.stop(id, self.now()).unwrap();
                assert!(Arc::ptr_eq(&stopped, vcpu));
                stopped.run.preempted();
                self.sched.requeue(id, stopped, self.now());
                self.pick(cpu);
            }
        }
    }

    /// Runs the next vCPU, or goes offline.
    fn pick(&self, cpu: &mut Cpu) {
        cpu.running = None;
        if self.leaving[cpu.id.index()].load(Ordering::SeqCst) {
            assert!(self.sched.next(cpu.id, self.now()).is_none());
            self.offline[cpu.id.index()].store(true, Ordering::SeqCst);
            self.leaving[cpu.id.index()].store(false, Ordering::SeqCst);
            return;
        }
        cpu.running = self.sched.next(cpu.id, self.now());
        if let Some(vcpu) = &cpu.running {
            assert_eq!(vcpu.run.get(), State::Running);
            vcpu.runs.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One random step of a CPU.
    fn step(&self, cpu: &mut Cpu) {
        self.now.fetch_add(1, Ordering::SeqCst);
        self.handle(cpu);
        if let Some(vcpu) = cpu.running.clone() {
            match random(6) {
                0 | 1 => {
                    let stopped = self.sched.stop(cpu.id, self.now());
                    cpu.running = None;
                    race_point();
                    if !vcpu.run.block(|| Found::Nothing) {
                        self.sched.requeue(cpu.id, stopped.unwrap(), self.now());
                    }
                    self.pick(cpu);
                }
                2 | 3 => {
                    self.wake(&self.vcpus[random(VCPUS as u64) as usize], cpu.id);
                    self.handle(cpu);
                }
                _ => race_point(),
            }
        } else if !self.is_offline(cpu.id) && random(8) == 0 {
            // A timer or a doorbell.
            self.wake(&self.vcpus[random(VCPUS as u64) as usize], cpu.id);
            self.handle(cpu);
        }
        if cpu.id == CpuId(0) && random(20) == 0 {
            self.toggle(CpuId(1 + random(CPUS as u64 - 1) as u16));
        }
    }

    /// Takes a CPU offline or brings it back, as CPU 0 does for the debug keys.
    fn toggle(&self, cpu: CpuId) {
        if self.is_offline(cpu) {
            self.sched.bring_online(cpu);
            self.offline[cpu.index()].store(false, Ordering::SeqCst);
            kick(cpu);
        } else if !(0..CPUS).any(|other| self.leaving[other].load(Ordering::SeqCst))
            && self.sched.take_offline(cpu).is_ok()
        {
            race_point();
            self.leaving[cpu.index()].store(true, Ordering::SeqCst);
            kick(cpu);
        }
    }

    /// Runs the CPUs one after the other until none has work left.
    fn settle(&self, cpus: &mut [MutexGuard<'_, Cpu>]) {
        while cpus.iter().any(|cpu| self.has_work(cpu)) {
            cpus.iter_mut().for_each(|cpu| self.handle(cpu));
        }
    }

    fn check(&self, cpus: &[MutexGuard<'_, Cpu>]) {
        let is = |vcpu: &Arc<V>, other: &Arc<V>| Arc::ptr_eq(vcpu, other);
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            let running = cpus.iter().filter(|cpu| cpu.running.as_ref().is_some_and(|other| is(vcpu, other))).count();
            let mut waiting = 0;
            for cpu in cpus {
                self.sched.for_each_waiting(cpu.id, &mut |other| waiting += usize::from(is(vcpu, other)));
            }
            let expected = match vcpu.run.get() {
                State::Running => (1, 0),
                State::Runnable => (0, 1),
                State::Blocked | State::Off => (0, 0),
                State::Blocking => panic!("vCPU{index} is about to sleep, but all threads have stopped"),
            };
            assert_eq!((running, waiting), expected, "vCPU{index} is {:?}", vcpu.run.get());
        }
        if self.torture {
            return;
        }
        let idle: Vec<_> =
            cpus.iter().filter(|cpu| cpu.running.is_none() && !self.is_offline(cpu.id)).map(|cpu| cpu.id).collect();
        for cpu in cpus {
            self.sched.for_each_waiting(cpu.id, &mut |vcpu| {
                let free = idle.iter().find(|idle| vcpu.entity.affinity.has(**idle));
                assert!(vcpu.entity.cap() != 0 || free.is_none(), "a vCPU waits on {} while {free:?} is idle", cpu.id);
            });
        }
    }
}

/// Runs the threads for `rounds` rounds.
fn run(world: &World, rounds: u64) {
    let cpus: Vec<_> = (0..CPUS as u16).map(|id| Mutex::new(Cpu { id: CpuId(id), running: None })).collect();
    for vcpu in &world.vcpus {
        assert!(vcpu.run.power_on());
        kick(world.sched.place(vcpu));
    }
    let (barrier, failed) = (Barrier::new(CPUS), AtomicBool::new(false));
    // A thread that panics would keep the others at the barrier: it records that it failed and goes on to the barrier.
    let guarded = |work: &dyn Fn()| {
        let done = catch_unwind(AssertUnwindSafe(work));
        failed.fetch_or(done.is_err(), Ordering::SeqCst);
    };
    let settle_and_check = || {
        let mut all: Vec<_> = cpus.iter().map(|cpu| cpu.lock().unwrap()).collect();
        world.settle(&mut all);
        world.check(&all);
    };
    std::thread::scope(|threads| {
        for (cpu, seed) in cpus.iter().zip(1..) {
            let (barrier, failed, guarded, settle_and_check) = (&barrier, &failed, &guarded, &settle_and_check);
            threads.spawn(move || {
                race_point::seed(0x9e37_79b9 * seed);
                for _ in 0..rounds {
                    guarded(&|| {
                        let mut cpu = cpu.lock().unwrap();
                        (0..STEPS).for_each(|_| world.step(&mut cpu));
                    });
                    if barrier.wait().is_leader() && !failed.load(Ordering::SeqCst) {
                        guarded(settle_and_check);
                    }
                    barrier.wait();
                    if failed.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
        }
    });
    assert!(!failed.load(Ordering::SeqCst), "a thread failed; its panic is above");
}

#[test]
fn each_vcpu_is_in_one_place_and_none_waits_while_a_cpu_that_could_run_it_is_idle() {
    for torture in [None, Some(10)] {
        let world = World::new(torture);
        run(&world, ROUNDS);
        for (index, vcpu) in world.vcpus.iter().enumerate() {
            let runs = vcpu.runs.load(Ordering::Relaxed);
            assert!(runs > ROUNDS / 10, "vCPU{index} ran {runs} times");
        }
    }
}
