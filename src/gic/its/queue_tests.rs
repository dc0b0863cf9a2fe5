//! The command queue: completion, a full ring, stalls, and the death of an ITS.

use super::*;
use crate::gic::Gic;
use crate::gic::ItsError;
use crate::gic::counters::Counter;
use crate::gic::its::queue::Queue;
use crate::gic::its::queue::{DEAD_AFTER_US, RING_SIZE};
use crate::gic::testing::{Bench, Described, ITS0, ModelHw};
use crate::ids::{CpuId, Pa, VpeId};
use crate::mmio::Hw;
use gic_model::{CommandFault, Config, Fault, Machine};
use std::cell::Cell;
use std::rc::Rc;
use std::vec::Vec;

/// How many commands fit: one slot stays free.
const ROOM: usize = (RING_SIZE / Command::SIZE) as usize - 1;
const CREADR: u64 = 0x90;
const STALLED: u64 = 1;
const MS: u64 = 1000;

/// A driver whose first ITS has consumed everything, on a machine that is polled every 10 us.
fn bench(mut config: Config) -> Bench {
    config.timing.relax = 10_000;
    let bench = Bench::up(config);
    bench.gic.drain(ITS0).unwrap();
    bench
}

fn queue<H: Hw + Clone>(gic: &Gic<H>) -> &Queue<H> {
    &gic.its(ITS0).unwrap().queue
}

/// A command without effect.
fn harmless<H: Hw + Clone>(gic: &Gic<H>) -> Command {
    Command::sync(gic.its(ITS0).unwrap().target(gic.redist(CpuId(0)).unwrap()))
}

fn late(machine: &Machine, nth: usize, ms: u64) {
    machine.inject(Fault::Command { its: 0, nth, fault: CommandFault::Late { us: ms * MS } });
}

/// Posts one command without effect.
fn post<H: Hw + Clone>(gic: &Gic<H>) -> Result<Ticket, ItsError> {
    queue(gic).post(gic.counters(), &[harmless(gic)])
}

fn wait<H: Hw + Clone>(gic: &Gic<H>, ticket: Ticket) -> Result<(), ItsError> {
    queue(gic).wait(gic.counters(), ticket, COMMAND_LIMIT_US).map(|_| ())
}

fn seen(counters: [&Counter; 3]) -> [u64; 3] {
    counters.map(Counter::get)
}

/// Counts of timeouts, stalls and dead ITSs.
fn faults<H: Hw + Clone>(gic: &Gic<H>) -> [u64; 3] {
    let c = gic.counters();
    seen([&c.timeouts, &c.stalls, &c.dead_itss])
}

#[test]
fn a_ticket_is_done_when_the_its_has_consumed_its_commands() {
    let Bench { machine, gic } = bench(Config::v4_0(2));
    late(&machine, 2, 50);
    let (first, second) = (post(&gic).unwrap(), post(&gic).unwrap());
    machine.advance_us(MS);
    assert_eq!((queue(&gic).is_done(first), queue(&gic).is_done(second)), (true, false));
    assert_eq!(queue(&gic).latest(), second);
    machine.advance_us(60 * MS);
    assert!(queue(&gic).is_done(second) && queue(&gic).is_done(first));
    machine.assert_clean();
}

#[test]
fn as_many_commands_are_posted_at_once_as_fit_and_none_is_overwritten() {
    for config in [Config::v4_0(2), Config::v4_0(2).noncoherent()] {
        let Bench { machine, gic } = bench(config);
        let before = machine.commands(0).len();
        // The position is in the middle of the ring.
        let half: Vec<_> = (0..ROOM / 2).map(|_| harmless(&gic)).collect();
        let ticket = queue(&gic).post(gic.counters(), &half).unwrap();
        wait(&gic, ticket).unwrap();
        late(&machine, 1, 50);
        let start = machine.now_us();
        let full: Vec<_> = (0..ROOM).map(|_| harmless(&gic)).collect();
        queue(&gic).post(gic.counters(), &full).unwrap();
        assert!(machine.now_us() - start < 10 * MS, "there is room for all of them");
        let last = post(&gic).unwrap();
        assert!(machine.now_us() - start >= 50 * MS, "there is no room for one more before the first is consumed");
        wait(&gic, last).unwrap();
        assert_eq!(machine.commands(0).len() - before, ROOM / 2 + ROOM + 1);
        assert_eq!(faults(&gic), [0, 0, 0]);
        machine.assert_clean();
    }
}

#[test]
fn posting_on_a_ring_that_stays_full_times_out_and_its_commands_are_executed_later() {
    let Bench { machine, gic } = bench(Config::v4_0(2));
    let before = machine.commands(0).len();
    late(&machine, 1, 300);
    let full: Vec<_> = (0..ROOM).map(|_| harmless(&gic)).collect();
    let ticket = queue(&gic).post(gic.counters(), &full).unwrap();
    let start = machine.now_us();
    assert_eq!(post(&gic), Err(ItsError::Timeout));
    let took = machine.now_us() - start;
    assert!((COMMAND_LIMIT_US..COMMAND_LIMIT_US + MS).contains(&took), "{took} us");
    assert_eq!(queue(&gic).latest(), ticket, "the command without room was not posted");
    machine.advance_us(300 * MS);
    assert_eq!(wait(&gic, ticket), Ok(()));
    assert_eq!(machine.commands(0).len() - before, ROOM);
    machine.assert_clean();
}

#[test]
fn an_its_without_progress_for_a_second_is_declared_dead_and_a_slow_one_is_not() {
    let Bench { machine, gic } = bench(Config::v4_0(2));
    // Each command takes longer than a caller waits, and all of them take longer than an ITS may make no progress.
    (1..=8).for_each(|nth| late(&machine, nth, 300));
    let tickets: Vec<_> = (0..8).map(|_| post(&gic).unwrap()).collect();
    let start = machine.now_us();
    while wait(&gic, tickets[7]) == Err(ItsError::Timeout) {}
    assert!(machine.now_us() - start > 2 * DEAD_AFTER_US);
    assert!(queue(&gic).is_done(tickets[7]) && !queue(&gic).is_dead());

    machine.inject(Fault::Hung { its: 0 });
    let ticket = post(&gic).unwrap();
    assert_eq!(wait(&gic, ticket), Err(ItsError::Timeout));
    let first_miss = machine.now_us();
    while wait(&gic, ticket) == Err(ItsError::Timeout) {}
    let stood = machine.now_us() - first_miss;
    assert!((DEAD_AFTER_US..DEAD_AFTER_US + 2 * COMMAND_LIMIT_US).contains(&stood), "declared dead after {stood} us");
    assert!(queue(&gic).is_dead());
    assert_eq!(gic.counters().dead_itss.get(), 1);
    // It is disabled and consumes no more commands, and callers no longer wait for it.
    assert_eq!(machine.read32(machine.config().its[0].base) & 1, 0);
    let now = machine.now_us();
    assert_eq!((post(&gic), wait(&gic, ticket)), (Err(ItsError::Dead), Err(ItsError::Dead)));
    assert!(machine.now_us() - now < MS);
    assert!(!queue(&gic).retry_stalled(gic.counters()));
    machine.assert_clean();
}

#[test]
fn posting_on_the_full_ring_of_an_its_without_progress_declares_it_dead() {
    let Bench { machine, gic } = bench(Config::v4_0(2));
    machine.inject(Fault::Hung { its: 0 });
    let full: Vec<_> = (0..ROOM).map(|_| harmless(&gic)).collect();
    queue(&gic).post(gic.counters(), &full).unwrap();
    let start = machine.now_us();
    while post(&gic) == Err(ItsError::Timeout) {
        assert!(machine.now_us() - start < 2 * DEAD_AFTER_US);
    }
    assert!(queue(&gic).is_dead());
    assert_eq!(post(&gic), Err(ItsError::Dead));
}

#[test]
fn a_stall_is_retried_once_at_each_position() {
    let Bench { machine, gic } = bench(Config::v4_0(2));
    for nth in [1, 3, 4] {
        machine.inject(Fault::Command { its: 0, nth, fault: CommandFault::Stall });
    }
    let tickets: Vec<_> = (0..5).map(|_| post(&gic).unwrap()).collect();
    let start = machine.now_us();
    assert_eq!(wait(&gic, tickets[4]), Ok(()));
    assert!(machine.now_us() - start < 10 * MS, "no deadline was waited for");
    assert_eq!(faults(&gic), [0, 3, 0]);
    machine.assert_clean();
}

#[test]
fn posting_on_a_full_ring_that_has_stalled_retries_it() {
    let Bench { machine, gic } = bench(Config::v4_0(2));
    machine.inject(Fault::Command { its: 0, nth: 1, fault: CommandFault::Stall });
    let full: Vec<_> = (0..ROOM).map(|_| harmless(&gic)).collect();
    queue(&gic).post(gic.counters(), &full).unwrap();
    let start = machine.now_us();
    let ticket = post(&gic).unwrap();
    assert_eq!(wait(&gic, ticket), Ok(()));
    assert!(machine.now_us() - start < 10 * MS);
    assert_eq!(faults(&gic), [0, 1, 0]);
    machine.assert_clean();
}

#[test]
fn any_cpu_can_retry_a_queue_that_has_stalled() {
    let Bench { machine, gic } = bench(Config::v4_0(2));
    assert!(!queue(&gic).retry_stalled(gic.counters()), "it has not stalled");
    machine.inject(Fault::Command { its: 0, nth: 2, fault: CommandFault::Stall });
    let (first, second) = (post(&gic).unwrap(), post(&gic).unwrap());
    machine.advance_us(MS);
    assert_eq!((queue(&gic).is_done(first), queue(&gic).is_done(second)), (true, false));
    assert!(queue(&gic).retry_stalled(gic.counters()));
    machine.advance_us(MS);
    assert!(queue(&gic).is_done(second));
    assert!(!queue(&gic).retry_stalled(gic.counters()));
    assert_eq!(faults(&gic), [0, 1, 0]);
    machine.assert_clean();
}

#[test]
fn a_queue_that_is_only_slow_is_not_retried() {
    let Bench { machine, gic } = bench(Config::v4_0(2));
    let tickets: Vec<_> = (0..200).map(|_| post(&gic).unwrap()).collect();
    while !queue(&gic).is_done(tickets[199]) {
        assert!(!queue(&gic).retry_stalled(gic.counters()));
    }
    assert_eq!(faults(&gic), [0, 0, 0]);
    machine.assert_clean();
}

const NEVER: u32 = 0;
const ALWAYS: u32 = u32::MAX;

/// A driver on a machine whose GITS_CREADR reads as stalled that many times from now on, whatever the ITS does.
fn seems_stalled() -> (Machine, Gic<ModelHw>, Rc<Cell<u32>>) {
    let mut config = Config::v4_0(2);
    config.timing.relax = 10_000;
    let (machine, stalled) = (Machine::new(config.clone()), Rc::new(Cell::new(NEVER)));
    let (at, times) = (config.its[0].base + CREADR, stalled.clone());
    let hw = ModelHw::amended(machine.clone(), move |a, v| {
        if a.0 != at || times.get() == NEVER {
            return v;
        }
        times.set(times.get() - 1);
        v | STALLED
    });
    let gic = Gic::discover(hw, &Described::new(&config).layout()).unwrap();
    (0..2).for_each(|cpu| gic.init_cpu(CpuId(cpu)).unwrap());
    (machine, gic, stalled)
}

#[test]
fn a_stalled_bit_that_stays_set_is_ignored_if_there_is_progress() {
    let (machine, gic, stalled) = seems_stalled();
    stalled.set(ALWAYS);
    for _ in 0..3 {
        let ticket = post(&gic).unwrap();
        assert_eq!(wait(&gic, ticket), Ok(()));
    }
    late(&machine, 1, 50);
    let ticket = post(&gic).unwrap();
    stalled.set(NEVER);
    assert_eq!(wait(&gic, ticket), Ok(()));
    stalled.set(ALWAYS);
    assert!(!queue(&gic).retry_stalled(gic.counters()), "no command is left to consume");
    assert!(!queue(&gic).is_dead());
    machine.assert_clean();
}

#[test]
fn an_its_that_stays_stalled_after_a_retry_is_declared_dead() {
    for retried in [false, true] {
        let (machine, gic, stalled) = seems_stalled();
        let ticket = post(&gic).unwrap();
        wait(&gic, ticket).unwrap();
        machine.inject(Fault::Hung { its: 0 });
        stalled.set(ALWAYS);
        let ticket = post(&gic).unwrap();
        let start = machine.now_us();
        if retried {
            assert!(queue(&gic).retry_stalled(gic.counters()), "it had stalled, and is dead now");
        }
        assert_eq!(wait(&gic, ticket), Err(ItsError::Dead));
        assert!(machine.now_us() - start < 10 * MS, "at once");
        assert_eq!(faults(&gic), [0, 1, 1]);
        assert_eq!(machine.read32(machine.config().its[0].base) & 1, 0);
        assert!(!queue(&gic).retry_stalled(gic.counters()), "a dead ITS is not retried");
    }
}

#[test]
fn a_stall_that_ends_before_the_lock_is_taken_is_not_reported_as_retried() {
    let (machine, gic, stalled) = seems_stalled();
    let ticket = post(&gic).unwrap();
    wait(&gic, ticket).unwrap();
    machine.inject(Fault::Hung { its: 0 });
    let _ = post(&gic).unwrap();
    stalled.set(1);
    assert!(!queue(&gic).retry_stalled(gic.counters()));
    assert_eq!(faults(&gic), [0, 0, 0]);
}

#[test]
fn an_its_is_declared_dead_once() {
    let Bench { machine, gic } = bench(Config::v4_0(2));
    assert!(!queue(&gic).is_dead() && !queue(&gic).waits_for_other_itss());
    queue(&gic).mark_dead(gic.counters());
    queue(&gic).mark_dead(gic.counters());
    assert!(queue(&gic).is_dead());
    assert_eq!(gic.counters().dead_itss.get(), 1);
    machine.assert_clean();
}

#[test]
fn a_disabled_its_consumes_nothing_and_continues_where_it_was_disabled() {
    let Bench { machine, gic } = bench(Config::v4_0(2));
    let control = || machine.read32(machine.config().its[0].base);
    assert!(queue(&gic).disable());
    assert_eq!(control() & 3, 0, "neither Enabled nor ImDe is set");
    let ticket = post(&gic).unwrap();
    machine.advance_us(10 * MS);
    assert!(!queue(&gic).is_done(ticket));
    queue(&gic).enable();
    assert_eq!(control() & 3, 3);
    assert_eq!(wait(&gic, ticket), Ok(()));
    machine.inject(Fault::NeverQuiescent { its: 0 });
    let start = machine.now_us();
    assert!(!queue(&gic).disable());
    assert!(machine.now_us() - start < 10 * MS);
    assert_eq!(faults(&gic), [0, 0, 0]);
    machine.assert_clean();
}

#[test]
fn unlisting_changes_pending_vmovps_and_no_other_command() {
    let Bench { machine, gic } = bench(Config::its_list(2, 2));
    let target = gic.its(ITS0).unwrap().target(gic.redist(CpuId(1)).unwrap());
    let moved = |n| Command::vmovp_listed(VpeId(n), target, 7, 0b11);
    assert!(queue(&gic).disable());
    let base = {
        let at = machine.config().its[0].base;
        (machine.read64(at + 0x80) & 0x000f_ffff_ffff_f000, (machine.read64(at + 0x88) >> 5) as usize)
    };
    let posted = [moved(1), harmless(&gic), Command::vmovp(VpeId(2), target), moved(3), Command::vsync(VpeId(3))];
    queue(&gic).post(gic.counters(), &posted).unwrap();
    queue(&gic).unlist_vmovps(1);
    let ring = ModelHw::new(machine.clone());
    let word = |slot: usize, n: u64| ring.load64(Pa(base.0 + slot as u64 * Command::SIZE + 8 * n));
    let found: Vec<_> = (0..5).map(|n| Command::from_words([0, 1, 2, 3].map(|w| word(base.1 + n, w)))).collect();
    let alone = |n| Command::vmovp_listed(VpeId(n), target, 7, 0b10);
    assert_eq!(found, [alone(1), posted[1], posted[2], alone(3), posted[4]]);
}
