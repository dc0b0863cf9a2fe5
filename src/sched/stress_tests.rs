//! The credit scheduler with a thread for each CPU: what the simulation cannot show, as there one thing happens at a time.
//!
//! The threads do what `vm` does: a CPU that idles does nothing until it is kicked or its timer is due; one that runs a
//! vCPU looks when it is to, lets it sleep, wakes others, and goes out of the machine and comes back. Threads yield in the
//! middle of the scheduler's work, by chance. After each round they stand still, what has been kicked is let run to the
//! end, and then each vCPU must be in one place, and no CPU idle that could run one that waits.

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
/// How often all stand still, and what each CPU does in between: little, or nothing is to be seen of what it did.
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
    stays: AtomicU64,
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
    /// They are moved at random, to CPUs that run others.
    torture: bool,
    now: AtomicU64,
    /// Asked to go; gone.
    asked: [AtomicBool; CPUS],
    out: [AtomicBool; CPUS],
}

/// A CPU, between two of its turns.
struct Cpu {
    id: CpuId,
    running: Option<Arc<V>>,
}

impl World {
    fn new(torture: Option<u64>) -> World {
        let sched = Credit::new(CPUS, Settings { slices: SLICES, torture, kick });
        KICKED.iter().for_each(|kicked| kicked.store(false, Ordering::SeqCst));
        (0..CPUS).for_each(|cpu| sched.bring_online(CpuId(cpu as u16)));
        let vcpus: Vec<_> = (0..VCPUS)
            .map(|index| {
                let home = CpuId((index % CPUS) as u16);
                Arc::new(V { entity: Entity::new(home), run: RunState::new(), stays: AtomicU64::new(0) })
            })
            .collect();
        for vcpu in &vcpus {
            sched.add(vcpu, vcpu.entity.cpu()).unwrap();
        }
        // One with a cap, one that may run on two CPUs only.
        vcpus[0].entity.set_cap(20);
        vcpus[1].entity.affinity.set([CpuId(0), CpuId(1)].into_iter());
        let none = || [const { AtomicBool::new(false) }; CPUS];
        World { sched, vcpus, torture: torture.is_some(), now: AtomicU64::new(1), asked: none(), out: none() }
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
                // It is in its loop, and goes around again.
                KICKED[from.index()].store(true, Ordering::SeqCst);
            }
        }
    }

    fn is_out(&self, cpu: CpuId) -> bool {
        self.out[cpu.index()].load(Ordering::SeqCst)
    }

    fn timer_is_due(&self, cpu: CpuId) -> bool {
        self.sched.next_resched_at(cpu).is_some_and(|at| at <= self.now())
    }

    /// Whether it has to do something: an interrupt is pending, or it is about to enter a guest and is to look first.
    fn is_called(&self, cpu: &Cpu) -> bool {
        let id = cpu.id;
        let looks = cpu.running.is_some() && self.sched.needs_resched(id);
        !self.is_out(id) && (looks || KICKED[id.index()].load(Ordering::SeqCst) || self.timer_is_due(id))
    }

    /// `cpu_loop` and `Stay::run`, from an interrupt to the next entry or to WFI.
    fn take(&self, cpu: &mut Cpu) {
        let id = cpu.id;
        while self.is_called(cpu) {
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

    fn pick(&self, cpu: &mut Cpu) {
        cpu.running = None;
        if self.asked[cpu.id.index()].load(Ordering::SeqCst) {
            assert!(self.sched.next(cpu.id, self.now()).is_none());
            self.out[cpu.id.index()].store(true, Ordering::SeqCst);
            self.asked[cpu.id.index()].store(false, Ordering::SeqCst);
            return;
        }
        cpu.running = self.sched.next(cpu.id, self.now());
        if let Some(vcpu) = &cpu.running {
            assert_eq!(vcpu.run.get(), State::Running);
            vcpu.stays.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What may happen on a CPU.
    fn step(&self, cpu: &mut Cpu) {
        self.now.fetch_add(1, Ordering::SeqCst);
        self.take(cpu);
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
                    self.take(cpu);
                }
                _ => race_point(),
            }
        } else if !self.is_out(cpu.id) && random(8) == 0 {
            // A timer, or a doorbell.
            self.wake(&self.vcpus[random(VCPUS as u64) as usize], cpu.id);
            self.take(cpu);
        }
        if cpu.id == CpuId(0) && random(20) == 0 {
            self.plug(CpuId(1 + random(CPUS as u64 - 1) as u16));
        }
    }

    /// The debug keys, on CPU 0.
    fn plug(&self, cpu: CpuId) {
        if self.is_out(cpu) {
            self.sched.bring_online(cpu);
            self.out[cpu.index()].store(false, Ordering::SeqCst);
            kick(cpu);
        } else if !(0..CPUS).any(|other| self.asked[other].load(Ordering::SeqCst))
            && self.sched.take_offline(cpu).is_ok()
        {
            race_point();
            self.asked[cpu.index()].store(true, Ordering::SeqCst);
            kick(cpu);
        }
    }

    /// All stand still: what was kicked runs to the end, one after the other.
    fn settle(&self, cpus: &mut [MutexGuard<'_, Cpu>]) {
        while cpus.iter().any(|cpu| self.is_called(cpu)) {
            cpus.iter_mut().for_each(|cpu| self.take(cpu));
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
                State::Blocking => panic!("nobody is on the way to sleep"),
            };
            assert_eq!((running, waiting), expected, "vCPU{index} is {:?}", vcpu.run.get());
        }
        if self.torture {
            return;
        }
        let idle: Vec<_> =
            cpus.iter().filter(|cpu| cpu.running.is_none() && !self.is_out(cpu.id)).map(|cpu| cpu.id).collect();
        for cpu in cpus {
            self.sched.for_each_waiting(cpu.id, &mut |vcpu| {
                let free = idle.iter().find(|idle| vcpu.entity.affinity.has(**idle));
                assert!(vcpu.entity.cap() != 0 || free.is_none(), "one waits on {}, and {free:?} idles", cpu.id);
            });
        }
    }
}

/// Lets the threads do so many rounds.
fn run(world: &World, rounds: u64) {
    let cpus: Vec<_> = (0..CPUS as u16).map(|id| Mutex::new(Cpu { id: CpuId(id), running: None })).collect();
    for vcpu in &world.vcpus {
        assert!(vcpu.run.power_on());
        kick(world.sched.place(vcpu));
    }
    let (barrier, failed) = (Barrier::new(CPUS), AtomicBool::new(false));
    // All others wait for one that fails: it says so, and comes to the barrier.
    let guarded = |work: &dyn Fn()| {
        let done = catch_unwind(AssertUnwindSafe(work));
        failed.fetch_or(done.is_err(), Ordering::SeqCst);
    };
    let stand_still = || {
        let mut all: Vec<_> = cpus.iter().map(|cpu| cpu.lock().unwrap()).collect();
        world.settle(&mut all);
        world.check(&all);
    };
    std::thread::scope(|threads| {
        for (cpu, seed) in cpus.iter().zip(1..) {
            let (barrier, failed, guarded, stand_still) = (&barrier, &failed, &guarded, &stand_still);
            threads.spawn(move || {
                race_point::seed(0x9e37_79b9 * seed);
                for _ in 0..rounds {
                    guarded(&|| {
                        let mut cpu = cpu.lock().unwrap();
                        (0..STEPS).for_each(|_| world.step(&mut cpu));
                    });
                    if barrier.wait().is_leader() && !failed.load(Ordering::SeqCst) {
                        guarded(stand_still);
                    }
                    barrier.wait();
                    if failed.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
        }
    });
    assert!(!failed.load(Ordering::SeqCst), "what it was is said above");
}

#[test]
fn whatever_cpus_do_at_once_each_vcpu_is_in_one_place_and_none_waits_while_a_cpu_idles() {
    for torture in [None, Some(10)] {
        let world = World::new(torture);
        run(&world, ROUNDS);
        for (index, vcpu) in world.vcpus.iter().enumerate() {
            let stays = vcpu.stays.load(Ordering::Relaxed);
            assert!(stays > ROUNDS / 10, "vCPU{index} ran {stays} times");
        }
    }
}
