//! The credit scheduler on simulated CPUs: fairness, caps, work conservation and starvation over simulated time.
//!
//! A discrete-event simulation on one thread. Each vCPU has a behaviour (how long it computes, how long it then
//! sleeps). Each CPU does what the run loop does: it reschedules when it is kicked or its timer is due, runs the vCPU
//! that `next` returns, and blocks it when it has computed for long enough. Time advances to the next event.

use super::testing::TestVcpu;
use super::*;
use crate::ids::CpuId;
use alloc::sync::Arc;
use std::cell::RefCell;
use std::vec::Vec;

/// Ticks in a millisecond.
const MS: u64 = 1_000;
const SLICES: Slices = Slices { slice: 10 * MS, period: 100 * MS };

std::thread_local!(static KICKED: RefCell<Vec<CpuId>> = const { RefCell::new(Vec::new()) });

fn kick(cpu: CpuId) {
    KICKED.with_borrow_mut(|kicked| kicked.push(cpu));
}

/// The behaviour of a vCPU: it computes for the first number of ticks, sleeps for the second, and so on. If the second
/// is 0, it never sleeps.
#[derive(Clone, Copy)]
struct Behaviour(u64, u64);
const BUSY: Behaviour = Behaviour(u64::MAX, 0);

struct Guest {
    vcpu: Arc<TestVcpu>,
    behaviour: Behaviour,
    /// Ticks that it still computes before it sleeps.
    left: u64,
    wakes_at: u64,
    woken_at: u64,
    worst_wait: u64,
}

struct World {
    sched: Credit<TestVcpu>,
    cpus: usize,
    guests: Vec<Guest>,
    running: Vec<Option<usize>>,
    ran_until: u64,
    idle: u64,
    now: u64,
}

impl World {
    fn new(cpus: usize, torture: Option<u64>) -> World {
        let sched = Credit::new(cpus, Settings { slices: SLICES, torture, kick: Box::new(kick) });
        KICKED.with_borrow_mut(Vec::clear);
        (0..cpus).for_each(|cpu| sched.bring_online(CpuId(cpu as u16)));
        let running = (0..cpus).map(|_| None).collect();
        World { sched, cpus, guests: Vec::new(), running, ran_until: 0, idle: 0, now: 0 }
    }

    fn add(&mut self, weight: u32, behaviour: Behaviour) -> usize {
        let home = CpuId((self.guests.len() % self.cpus) as u16);
        let vcpu = Arc::new(TestVcpu::new(home));
        vcpu.entity.set_weight(weight);
        self.sched.add(&vcpu, home).unwrap();
        self.guests.push(Guest { vcpu, behaviour, left: behaviour.0, wakes_at: 0, woken_at: 0, worst_wait: 0 });
        self.guests.len() - 1
    }

    fn start(&mut self) {
        for index in 0..self.guests.len() {
            assert!(self.guests[index].vcpu.run.power_on());
            let cpu = self.sched.place(&self.guests[index].vcpu);
            kick(cpu);
        }
        self.settle();
    }

    fn index_of(&self, vcpu: &Arc<TestVcpu>) -> usize {
        self.guests.iter().position(|guest| Arc::ptr_eq(&guest.vcpu, vcpu)).unwrap()
    }

    /// What a CPU does that is idle or has been interrupted.
    fn schedule(&mut self, cpu: CpuId) {
        let now = self.now;
        if let Some(index) = self.running[cpu.index()] {
            let sleeps = self.guests[index].left == 0;
            if !sleeps && self.sched.should_resched(cpu, now) == Verdict::Continue {
                return;
            }
            let vcpu = self.sched.stop(cpu, now).unwrap();
            self.running[cpu.index()] = None;
            if sleeps {
                vcpu.run.begin_block();
                assert!(vcpu.run.commit_block(Found::Nothing));
                let guest = &mut self.guests[index];
                guest.left = guest.behaviour.0;
                guest.wakes_at = now + guest.behaviour.1;
            } else {
                vcpu.run.preempted();
                self.guests[index].woken_at = now;
                self.sched.requeue(cpu, vcpu, now);
            }
        }
        if let Some(vcpu) = self.sched.next(cpu, now) {
            let index = self.index_of(&vcpu);
            assert!(!self.running.contains(&Some(index)), "one vCPU on two CPUs");
            assert!(vcpu.entity.affinity.has(cpu));
            let guest = &mut self.guests[index];
            guest.worst_wait = guest.worst_wait.max(now - guest.woken_at);
            self.running[cpu.index()] = Some(index);
        }
    }

    fn settle(&mut self) {
        while let Some(cpu) = KICKED.with_borrow_mut(Vec::pop) {
            self.schedule(cpu);
        }
    }

    fn run(&mut self, until: u64) {
        while self.now < until {
            let mut at = until;
            for cpu in (0..self.cpus).map(|cpu| CpuId(cpu as u16)) {
                at = at.min(self.sched.next_resched_at(cpu).unwrap_or(u64::MAX));
                if let Some(index) = self.running[cpu.index()] {
                    at = at.min(self.now.saturating_add(self.guests[index].left));
                }
            }
            for guest in &self.guests {
                if guest.vcpu.run.get() == State::Blocked {
                    at = at.min(guest.wakes_at);
                }
            }
            let passed = at.saturating_sub(self.now);
            self.now = at.max(self.now);
            for cpu in 0..self.cpus {
                match self.running[cpu] {
                    Some(index) if self.guests[index].behaviour.1 != 0 => self.guests[index].left -= passed,
                    Some(_) => {}
                    None => self.idle += passed,
                }
            }
            for index in 0..self.guests.len() {
                let guest = &mut self.guests[index];
                if guest.vcpu.run.get() == State::Blocked && guest.wakes_at <= self.now {
                    assert_eq!(guest.vcpu.run.wake(), Woken::WasBlocked);
                    guest.woken_at = self.now;
                    guest.vcpu.entity.begin_wait(self.now);
                    let cpu = self.sched.place(&guest.vcpu);
                    kick(cpu);
                }
            }
            for cpu in (0..self.cpus).map(|cpu| CpuId(cpu as u16)) {
                let due = self.sched.next_resched_at(cpu).is_some_and(|at| at <= self.now);
                let done = self.running[cpu.index()].is_some_and(|index| self.guests[index].left == 0);
                if due || done {
                    kick(cpu);
                }
            }
            self.settle();
            self.ran_until = self.now;
        }
        // Charge all vCPUs until now.
        for cpu in (0..self.cpus).map(|cpu| CpuId(cpu as u16)) {
            let _ = self.sched.should_resched(cpu, self.now);
        }
    }

    fn ran(&self, index: usize) -> u64 {
        self.guests[index].vcpu.entity.ran()
    }

    fn moves(&self) -> u64 {
        self.guests.iter().map(|guest| guest.vcpu.entity.moves()).sum()
    }

    /// Checks that each of these vCPUs has had its share by weight of the time that they have had together, within 5 %.
    fn assert_fair(&self, which: &[usize]) {
        let total: u64 = which.iter().map(|&index| self.ran(index)).sum();
        let weights: u64 = which.iter().map(|&index| u64::from(self.guests[index].vcpu.entity.weight())).sum();
        for &index in which {
            let share = self.ran(index) as f64 / total as f64;
            let due = f64::from(self.guests[index].vcpu.entity.weight()) / weights as f64;
            assert!(
                (share / due - 1.0).abs() < 0.05,
                "vCPU {index} has had {share:.4} of the time instead of {due:.4}"
            );
        }
    }
}

const MINUTE: u64 = 60_000 * MS;

#[test]
fn eight_equal_vcpus_share_four_cpus() {
    let mut world = World::new(4, None);
    let all: Vec<_> = (0..8).map(|_| world.add(256, BUSY)).collect();
    world.start();
    world.run(MINUTE);
    world.assert_fair(&all);
    assert!(world.idle < MS, "{}", world.idle);
    assert!(world.moves() < 100, "they have no reason to move: {} moves", world.moves());
}

#[test]
fn shares_follow_weights_across_cpus() {
    let mut world = World::new(4, None);
    // The home CPUs put all heavy vCPUs on two CPUs.
    let weights = [512, 256, 128, 256, 512, 256, 128, 256, 512, 128, 256, 256];
    let all: Vec<_> = weights.iter().map(|&weight| world.add(weight, BUSY)).collect();
    world.start();
    world.run(MINUTE);
    world.assert_fair(&all);
}

#[test]
fn three_vcpus_share_two_cpus_and_five_share_four() {
    for (vcpus, cpus) in [(3, 2), (5, 4), (7, 3)] {
        let mut world = World::new(cpus, None);
        let all: Vec<_> = (0..vcpus).map(|_| world.add(256, BUSY)).collect();
        world.start();
        world.run(MINUTE);
        world.assert_fair(&all);
        assert!(world.idle < 2 * SLICES.slice, "work is conserved: {}", world.idle);
    }
}

#[test]
fn a_vcpu_does_not_starve_beside_others_of_a_hundred_times_its_weight() {
    let mut world = World::new(2, None);
    let light = world.add(16, BUSY);
    for _ in 0..5 {
        world.add(1600, BUSY);
    }
    world.start();
    world.run(MINUTE);
    let due = MINUTE * 2 * 16 / (16 + 5 * 1600);
    assert!(world.ran(light) > due / 2, "{} of {due}", world.ran(light));
    assert!(world.guests[light].worst_wait < 10_000 * MS, "{}", world.guests[light].worst_wait);
}

#[test]
fn a_vcpu_that_sleeps_often_runs_soon_after_it_wakes() {
    let mut world = World::new(2, None);
    for _ in 0..6 {
        world.add(256, BUSY);
    }
    let io = world.add(256, Behaviour(MS / 5, MS));
    world.start();
    world.run(100 * MS);
    world.guests[io].worst_wait = 0;
    world.run(MINUTE);
    // It asks for a sixth of a CPU, which is less than its share, and gets nearly all of it.
    let wanted = MINUTE / 6;
    assert!(world.ran(io) > wanted * 9 / 10, "{} of {wanted}", world.ran(io));
    assert!(world.guests[io].worst_wait < 2 * SLICES.slice, "{}", world.guests[io].worst_wait);
}

#[test]
fn a_cap_holds_even_when_cpus_are_idle() {
    let mut world = World::new(2, None);
    let capped = world.add(256, BUSY);
    world.guests[capped].vcpu.entity.set_cap(30);
    world.start();
    world.run(MINUTE);
    let share = world.ran(capped) as f64 / MINUTE as f64;
    assert!((share - 0.30).abs() < 0.015, "{share}");
}

#[test]
fn an_idle_cpu_steals_waiting_vcpus() {
    let mut world = World::new(2, None);
    // At first, four vCPUs are bound to CPU 0.
    let all: Vec<_> = (0..4).map(|_| world.add(256, BUSY)).collect();
    for &index in &all {
        world.guests[index].vcpu.entity.affinity.set([CpuId(0)].into_iter());
    }
    world.start();
    world.run(1000 * MS);
    assert_eq!(world.idle, 1000 * MS, "CPU 1 may run none of them");
    for &index in &all {
        world.guests[index].vcpu.entity.affinity.set([CpuId(0), CpuId(1)].into_iter());
    }
    world.run(MINUTE);
    assert!(world.idle <= 1000 * MS + SLICES.slice * 2, "{}", world.idle);
    world.assert_fair(&all);
}

#[test]
fn a_changed_affinity_of_a_running_vcpu_takes_effect_at_the_next_reschedule() {
    let mut world = World::new(2, None);
    let one = world.add(256, BUSY);
    world.start();
    world.run(100 * MS);
    let here = world.guests[one].vcpu.entity.cpu();
    let there = CpuId(1 - here.0);
    world.guests[one].vcpu.entity.affinity.set([there].into_iter());
    kick(here);
    world.settle();
    assert_eq!(world.guests[one].vcpu.entity.cpu(), there);
}

#[test]
fn cpus_go_offline_and_come_back_and_no_vcpu_is_lost_or_loses_its_share() {
    for torture in [None, Some(MS)] {
        let mut world = World::new(4, torture);
        let busy: Vec<_> = (0..8).map(|_| world.add(256, BUSY)).collect();
        let sleepers: Vec<_> = (0..4).map(|_| world.add(256, Behaviour(MS, MS))).collect();
        world.start();
        world.run(100 * MS);
        for round in 0..20 {
            let out = CpuId(round % 4);
            assert!(world.sched.take_offline(out).is_ok());
            kick(out);
            world.settle();
            for _ in 0..20 {
                world.run(world.now + 5 * MS);
                assert_eq!(world.running[out.index()], None);
                world.sched.for_each_waiting(out, &mut |_| panic!("a vCPU waits on an offline CPU"));
            }
            world.sched.bring_online(out);
            kick(out);
            world.settle();
            world.run(world.now + 100 * MS);
            assert!(world.running[out.index()].is_some());
        }
        for index in busy.iter().chain(&sleepers) {
            assert!(world.ran(*index) > 500 * MS, "{index}: {}", world.ran(*index));
            assert!(world.guests[*index].worst_wait < 20 * SLICES.slice, "{}", world.guests[*index].worst_wait);
        }
        if torture.is_none() {
            world.run(world.now + MINUTE);
            world.assert_fair(&busy);
        }
    }
}

/// Eight vCPUs that sleep now and then, six that never do, and CPUs that go offline and come back at any time.
#[test]
fn no_vcpu_waits_long_when_cpus_go_offline_and_come_back_at_any_time() {
    for seed in 1..=6u64 {
        let mut world = World::new(4, None);
        let mut random = seed;
        let mut below = |n: u64| {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(seed);
            (random >> 33) % n
        };
        for index in 0..14 {
            let behaviour = if index < 8 { Behaviour(1 + below(20 * MS), 1 + below(5 * MS)) } else { BUSY };
            world.add(256, behaviour);
        }
        world.start();
        let mut out = [false; 4];
        for _ in 0..400 {
            world.run(world.now + below(40 * MS));
            let cpu = CpuId(1 + below(3) as u16);
            out[cpu.index()] ^= true;
            match out[cpu.index()] {
                true => assert!(world.sched.take_offline(cpu).is_ok()),
                false => world.sched.bring_online(cpu),
            }
            kick(cpu);
            world.settle();
        }
        for (index, guest) in world.guests.iter().enumerate() {
            let waits = if guest.vcpu.run.get() == State::Runnable { world.now - guest.woken_at } else { 0 };
            assert_eq!(guest.vcpu.entity.longest_wait(), guest.worst_wait, "the value that the debug key prints");
            let worst = guest.worst_wait.max(waits);
            // With one CPU left, it waits for all others in turn.
            assert!(worst < 20 * SLICES.slice, "seed {seed}: vCPU {index} has waited {worst}");
        }
    }
}

#[test]
fn a_cpu_stays_online_for_a_vcpu_that_can_run_on_no_other() {
    let mut world = World::new(3, None);
    let bound = world.add(256, BUSY);
    world.guests[bound].vcpu.entity.affinity.set([CpuId(1), CpuId(2)].into_iter());
    world.start();
    assert!(world.sched.take_offline(CpuId(2)).is_ok());
    kick(CpuId(2));
    world.settle();
    let stays = world.sched.take_offline(CpuId(1));
    assert!(stays.is_err_and(|vcpu| Arc::ptr_eq(&vcpu, &world.guests[bound].vcpu)));
    assert_eq!(world.running[1], Some(bound));
    world.sched.bring_online(CpuId(2));
    assert!(world.sched.take_offline(CpuId(1)).is_ok());
    kick(CpuId(1));
    world.settle();
    assert_eq!((world.running[1], world.running[2]), (None, Some(bound)));
}

#[test]
fn a_vcpu_alone_on_a_cpu_has_no_tick_and_does_not_move() {
    let mut world = World::new(4, None);
    (0..4).for_each(|_| _ = world.add(256, BUSY));
    world.start();
    for cpu in 0..4 {
        assert_eq!(world.sched.next_resched_at(CpuId(cpu)), None);
        assert!(!world.sched.is_contended(CpuId(cpu)));
    }
    assert_eq!(world.moves(), 0);
}

#[test]
fn torture_moves_vcpus_at_its_rate_and_loses_none() {
    let mut world = World::new(4, Some(MS));
    let all: Vec<_> = (0..8).map(|index| world.add(256, if index < 4 { BUSY } else { Behaviour(MS, MS) })).collect();
    world.start();
    world.run(10_000 * MS);
    assert!(world.moves() > 3_000, "{}", world.moves());
    for index in all {
        assert!(world.ran(index) > 500 * MS, "{index}: {}", world.ran(index));
    }
}

#[test]
fn a_vcpu_whose_switch_took_longer_than_its_slice_runs_before_it_is_preempted() {
    for torture in [None, Some(MS)] {
        let mut world = World::new(1, torture);
        (0..3).for_each(|_| _ = world.add(256, BUSY));
        world.start();
        let (cpu, mut arrived) = (CpuId(0), 0);
        for _ in 0..100 {
            // A VMOVP takes fifty slices, and then a kick comes.
            world.now += 50 * SLICES.slice;
            world.sched.restart_slice(cpu, world.now);
            arrived += 1;
            world.sched.set_need_resched(cpu);
            assert_eq!(
                world.sched.should_resched(cpu, world.now),
                Verdict::Continue,
                "preempted before its first instruction"
            );
            assert!(world.sched.next_resched_at(cpu).unwrap() > world.now, "the timer would preempt it at once");
            world.now = world.sched.next_resched_at(cpu).unwrap();
            kick(cpu);
            world.settle();
        }
        let ran: u64 = (0..3).map(|index| world.ran(index)).sum();
        let least = if torture.is_some() { MS } else { SLICES.slice };
        assert!(ran >= arrived * least, "{ran} ticks in {arrived} runs");
    }
}

#[test]
fn a_removed_vcpu_leaves_its_slot_to_another() {
    let mut world = World::new(1, None);
    let first = world.add(256, BUSY);
    world.sched.remove(&world.guests[first].vcpu);
    let second = world.add(256, BUSY);
    world.start_only(second);
    assert_eq!(world.running[0], Some(second));
}

impl World {
    fn start_only(&mut self, index: usize) {
        assert!(self.guests[index].vcpu.run.power_on());
        let cpu = self.sched.place(&self.guests[index].vcpu);
        kick(cpu);
        self.settle();
    }
}
