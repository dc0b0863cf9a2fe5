//! Batches, limits of devices and events, and operations that fail.

use super::*;
use crate::gic::its::{COMMAND_LIMIT_US, Command, Kind, RING_SIZE};
use crate::gic::testing::key;
use crate::gic::testing::{Bench, DEV, Guest, ITS0, vlpi};
use crate::gic::v4::V4Error;
use crate::gic::v4::Why::Preempt;
use crate::ids::EventKey;
use crate::ids::{CpuId, DeviceId, EventId, ItsId, Lpi};
use gic_model::{CommandFault, Config, Fault, Machine};
use std::vec::Vec;

/// More than one flush of a batch can synchronise.
const CPUS: usize = 12;
const EVENTS: u32 = 32;

fn guest() -> Guest {
    let g = Guest::new(Config::v4_0(CPUS), CPUS as u16);
    (0..EVENTS).for_each(|n| g.v4().configure(g.vm, vlpi(n), 0xa1).unwrap());
    g
}

/// An enabled LPI for each event.
fn lpis(g: &Guest) -> Vec<Lpi> {
    let enabled = |_| {
        let lpi = g.gic.alloc_lpi().unwrap();
        g.gic.configure_lpi(lpi, 0x80, true);
        lpi
    };
    (0..EVENTS).map(enabled).collect()
}

fn cpu_of(ev: u32) -> CpuId {
    CpuId((ev as usize % CPUS) as u16)
}

fn send_all(machine: &Machine) {
    (0..EVENTS).for_each(|ev| machine.msi(DEV.0, ev));
    machine.advance_us(500);
}

/// Asserts that each LPI is taken once, on its event's CPU. Doorbells are ignored.
fn assert_taken_at_el2(g: &Guest, lpis: &[Lpi], cpu_of: impl Fn(u32) -> CpuId) {
    for cpu in 0..CPUS {
        let taken = core::iter::from_fn(|| g.machine.host_ack(cpu)).filter(|i| g.gic.doorbell(Lpi(*i)).is_none());
        let mut got: Vec<_> = taken.collect();
        let mine = (0..EVENTS).filter(|ev| cpu_of(*ev).index() == cpu);
        let mut due: Vec<_> = mine.map(|ev| lpis[ev as usize].0).collect();
        got.sort_unstable();
        due.sort_unstable();
        assert_eq!(got, due, "CPU{cpu}");
    }
}

#[test]
fn a_batch_takes_any_number_of_operations_on_any_number_of_cpus_and_vpes() {
    let (g, evs) = (guest(), || (0..EVENTS).map(EventId));
    let lpis = lpis(&g);
    let lpi = |ev: EventId| lpis[ev.0 as usize];
    let mut batch = g.gic.batch(ITS0).unwrap();
    evs().for_each(|ev| batch.map_physical(DEV, ev, lpi(ev), cpu_of(ev.0)).unwrap());
    batch.finish().unwrap();
    send_all(&g.machine);
    assert_taken_at_el2(&g, &lpis, cpu_of);

    let elsewhere = |ev: u32| cpu_of(ev + 5);
    let mut batch = g.gic.batch(ITS0).unwrap();
    evs().for_each(|ev| batch.move_physical(DEV, ev, elsewhere(ev.0)).unwrap());
    batch.finish().unwrap();
    send_all(&g.machine);
    assert_taken_at_el2(&g, &lpis, elsewhere);

    let vpe = |ev: EventId| g.vpes[cpu_of(ev.0).index()];
    let mut batch = g.gic.batch(ITS0).unwrap();
    evs().for_each(|ev| batch.map_virtual(DEV, ev, vpe(ev), vlpi(ev.0)).unwrap());
    assert_eq!(batch.event(DEV, EventId(7)), Ok(Event::Virtual { vpe: g.vpes[7], vintid: vlpi(7) }));
    batch.finish().unwrap();
    let next = |ev: EventId| g.vpes[cpu_of(ev.0 + 1).index()];
    let mut batch = g.gic.batch(ITS0).unwrap();
    evs().for_each(|ev| batch.move_virtual(DEV, ev, next(ev)).unwrap());
    evs().for_each(|ev| batch.clear_pending(DEV, ev).unwrap());
    (0..5).flat_map(|_| evs()).for_each(|ev| batch.set_pending(DEV, ev).unwrap());
    batch.finish().unwrap();
    for n in 0..CPUS {
        let resident = g.enter(n, n as u16);
        let due: Vec<_> = (0..EVENTS).filter(|ev| cpu_of(ev + 1).index() == n).collect();
        let mut got = g.guest(n);
        got.sort_unstable();
        assert_eq!(got, due);
        let _ = g.leave(resident, Preempt);
    }

    let mut batch = g.gic.batch(ITS0).unwrap();
    evs().for_each(|ev| batch.to_software(DEV, ev, lpi(ev), cpu_of(ev.0)).unwrap());
    batch.finish().unwrap();
    assert_taken_at_el2(&g, &lpis, cpu_of);
    let mut batch = g.gic.batch(ITS0).unwrap();
    evs().for_each(|ev| assert!(matches!(batch.unmap_event(DEV, ev), Ok(Event::Physical { .. }))));
    batch.finish().unwrap();
    send_all(&g.machine);
    assert_taken_at_el2(&g, &lpis, |_| CpuId(u16::MAX));
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn a_batch_for_one_cpu_and_one_vpe_takes_any_number_of_changes() {
    let (g, evs) = (guest(), || (0..EVENTS).map(EventId));
    let lpis = lpis(&g);
    let mut batch = g.gic.batch(ITS0).unwrap();
    evs().for_each(|ev| batch.map_physical(DEV, ev, lpis[ev.0 as usize], CpuId(1)).unwrap());
    evs().for_each(|ev| batch.map_virtual(DEV, ev, g.vpes[2], vlpi(ev.0)).unwrap());
    evs().for_each(|ev| batch.to_software(DEV, ev, lpis[ev.0 as usize], CpuId(1)).unwrap());
    batch.finish().unwrap();
    assert_taken_at_el2(&g, &lpis, |_| CpuId(1));
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn operations_that_need_one_sync_or_two_can_be_mixed() {
    let g = guest();
    let lpis = lpis(&g);
    for odd in 0..2 {
        let mut batch = g.gic.batch(ITS0).unwrap();
        (0..EVENTS).for_each(|ev| batch.map_physical(DEV, EventId(ev), lpis[ev as usize], cpu_of(ev)).unwrap());
        batch.finish().unwrap();
        let mut batch = g.gic.batch(ITS0).unwrap();
        (0..odd).for_each(|_| batch.clear_pending(DEV, EventId(0)).unwrap());
        (1..11).step_by(2).for_each(|ev| batch.move_physical(DEV, EventId(ev), cpu_of(ev + 1)).unwrap());
        (0..EVENTS).for_each(|ev| batch.map_virtual(DEV, EventId(ev), g.vpes[cpu_of(ev).index()], vlpi(ev)).unwrap());
        batch.finish().unwrap();
        let mut batch = g.gic.batch(ITS0).unwrap();
        (0..odd).for_each(|_| batch.clear_pending(DEV, EventId(0)).unwrap());
        let next = |ev| g.vpes[cpu_of(ev + 1).index()];
        (1..11).step_by(2).for_each(|ev| batch.move_virtual(DEV, EventId(ev), next(ev)).unwrap());
        (0..EVENTS).for_each(|ev| assert!(batch.unmap_event(DEV, EventId(ev)).is_ok()));
        batch.finish().unwrap();
    }
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn a_full_flush_has_room_for_its_syncs() {
    let g = guest();
    let lpis = lpis(&g);
    (0..8).for_each(|n| g.gic.map_physical(key(ITS0, n), lpis[n as usize], cpu_of(n)).unwrap());
    (8..14).for_each(|n| g.map(ITS0, n, n as usize - 8));
    let start = g.machine.commands(0).len();
    let mut batch = g.gic.batch(ITS0).unwrap();
    let mut gathered = 0;
    // Six CPUs and six vPEs until the gathered commands are full; the next operation needs one more of each.
    for n in (0..6).chain(8..14).cycle().take(30) {
        batch.set_pending(DEV, EventId(n)).unwrap();
        gathered += 1;
    }
    batch.map_virtual(DEV, EventId(7), g.vpes[7], vlpi(7)).unwrap();
    gathered += 4;
    assert_eq!(g.machine.commands(0).len(), start, "no command is posted yet");
    batch.finish().unwrap();
    assert_eq!(g.machine.commands(0).len() - start, gathered + 7 + 7);
    let resident = g.enter(7, 7);
    assert_eq!(g.guest(7), [7]);
    let _ = g.leave(resident, Preempt);
    g.machine.assert_clean();
}

#[test]
fn a_batch_needs_one_sync_for_each_cpu_and_one_vsync_for_each_vpe() {
    let g = guest();
    let lpis = lpis(&g);
    let syncs = || [Kind::Sync, Kind::Vsync].map(|kind| g.gic.counters().commands(kind));
    let before = syncs();
    let mut batch = g.gic.batch(ITS0).unwrap();
    (0..8).for_each(|n| batch.map_physical(DEV, EventId(n), lpis[n as usize], CpuId(n as u16 % 2)).unwrap());
    assert_eq!(syncs(), before, "no command is posted yet");
    batch.finish().unwrap();
    assert_eq!(syncs(), [before[0] + 2, before[1]]);
    let before = syncs();
    let mut batch = g.gic.batch(ITS0).unwrap();
    (8..16).for_each(|n| batch.map_virtual(DEV, EventId(n), g.vpes[n as usize % 3], vlpi(n)).unwrap());
    batch.finish().unwrap();
    assert_eq!(syncs(), [before[0], before[1] + 3]);
    // As many as fit one flush: 31 of one command, or 12 changes on six CPUs in turn.
    let before = syncs();
    let mut batch = g.gic.batch(ITS0).unwrap();
    (0..31).for_each(|_| batch.set_pending(DEV, EventId(0)).unwrap());
    batch.finish().unwrap();
    assert_eq!(syncs(), [before[0] + 1, before[1]]);
    let mut batch = g.gic.batch(ITS0).unwrap();
    (16..28).for_each(|n| batch.map_physical(DEV, EventId(n), lpis[n as usize], CpuId(n as u16 % 6)).unwrap());
    batch.finish().unwrap();
    assert_eq!(syncs(), [before[0] + 1 + 6, before[1]]);
    let before = g.gic.counters().commands(Kind::Sync);
    g.gic.batch(ITS0).unwrap().finish().unwrap();
    assert_eq!(g.gic.counters().commands(Kind::Sync), before, "an empty batch needs no SYNC");
}

#[test]
fn a_dropped_batch_is_finished_and_its_failure_is_counted_once() {
    let g = guest();
    let lpis = lpis(&g);
    let errors = || g.gic.counters().batch_errors.get();
    let mut batch = g.gic.batch(ITS0).unwrap();
    batch.map_physical(DEV, EventId(3), lpis[3], CpuId(1)).unwrap();
    drop(batch);
    g.machine.msi(DEV.0, 3);
    g.machine.advance_us(100);
    assert_eq!((g.machine.host_ack(1), errors()), (Some(lpis[3].0), 0));
    g.machine.inject(Fault::Hung { its: 0 });
    let mut batch = g.gic.batch(ITS0).unwrap();
    batch.set_pending(DEV, EventId(3)).unwrap();
    assert_eq!(batch.finish(), Err(ItsError::Timeout));
    assert_eq!(errors(), 0, "the error was returned to the caller");
    let mut batch = g.gic.batch(ITS0).unwrap();
    batch.set_pending(DEV, EventId(3)).unwrap();
    drop(batch);
    assert_eq!(errors(), 1);
}

#[test]
fn an_operation_that_cannot_be_posted_changes_nothing() {
    let g = Guest::new(Config::its_list(4, 2), 2);
    g.map(ITS0, 1, 0);
    let lpi = g.gic.alloc_lpi().unwrap();
    // The ring is full, and the ITS consumes nothing for a while.
    g.machine.inject(Fault::Command { its: 0, nth: 1, fault: CommandFault::Late { us: 600_000 } });
    let its = g.gic.its(ITS0).unwrap();
    let harmless = Command::sync(its.target(g.gic.redist(CpuId(0)).unwrap()));
    let room = RING_SIZE / Command::SIZE - 1;
    (0..room).for_each(|_| assert!(its.queue.post(g.gic.counters(), &[harmless]).is_ok()));
    let refused = Err(ItsError::Timeout);
    assert_eq!(g.v4().move_event(key(ITS0, 1), g.vpes[1]), refused);
    assert_eq!(g.v4().map_event(key(ITS0, 2), g.vpes[0], vlpi(2)), refused);
    assert_eq!(g.gic.map_physical(key(ITS0, 3), lpi, CpuId(0)), refused);
    assert_eq!(g.gic.map_device(ITS0, DeviceId(0x77), 5), refused);
    g.machine.heal();
    g.gic.drain(ITS0).unwrap();
    let event = |ev| g.gic.event(key(ITS0, ev)).unwrap();
    assert_eq!(event(1), Event::Virtual { vpe: g.vpes[0], vintid: vlpi(1) });
    assert_eq!((event(2), event(3)), (Event::Unmapped, Event::Unmapped));
    assert_eq!(
        g.gic.event(EventKey::new(ITS0, DeviceId(0x77), EventId(0))),
        Err(ItsError::NoSuchDevice(DeviceId(0x77)))
    );
    // The failed operations pin neither vPE.
    assert_eq!(g.v4().remove_vpe(g.vpes[1]), Ok(()));
    assert_eq!(g.v4().remove_vpe(g.vpes[0]), Err(V4Error::HasEvents));
    g.gic.unmap_event(key(ITS0, 1)).unwrap();
    assert_eq!(g.v4().remove_vpe(g.vpes[0]), Ok(()));
    g.machine.assert_clean();
}

#[test]
fn the_last_device_and_the_last_event_can_be_used() {
    let config = Config::v4_0(2).each_its(|_, its| (its.device_bits, its.event_bits) = (10, 6));
    let Bench { machine, gic } = Bench::up(config);
    let (last, lpi) = (DeviceId(0x3ff), gic.alloc_lpi().unwrap());
    gic.configure_lpi(lpi, 0x80, true);
    assert_eq!(gic.map_device(ITS0, DeviceId(0x400), 6), Err(ItsError::DeviceRange(DeviceId(0x400))));
    assert_eq!(gic.map_device(ITS0, last, 7), Err(ItsError::EventBits(7)));
    assert_eq!(gic.map_device(ITS0, last, 6), Ok(()));
    assert_eq!(
        gic.map_physical(EventKey::new(ITS0, last, EventId(64)), lpi, CpuId(1)),
        Err(ItsError::EventRange(EventId(64)))
    );
    gic.map_physical(EventKey::new(ITS0, last, EventId(63)), lpi, CpuId(1)).unwrap();
    machine.msi(last.0, 63);
    machine.advance_us(100);
    assert_eq!(machine.host_ack(1), Some(lpi.0));
    // The smallest translation table: two events.
    gic.map_device(ITS0, DeviceId(0), 1).unwrap();
    assert_eq!(gic.event(EventKey::new(ITS0, DeviceId(0), EventId(1))), Ok(Event::Unmapped));
    assert_eq!(gic.event(EventKey::new(ITS0, DeviceId(0), EventId(2))), Err(ItsError::EventRange(EventId(2))));
    machine.assert_clean();
}

#[test]
fn a_caller_waits_for_one_deadline_only() {
    let g = guest();
    g.map(ITS0, 1, 0);
    g.machine.inject(Fault::Hung { its: 0 });
    let start = g.machine.now_us();
    assert_eq!(g.gic.set_pending(key(ITS0, 1)), Err(ItsError::Timeout));
    let took = g.machine.now_us() - start;
    assert!((COMMAND_LIMIT_US..COMMAND_LIMIT_US * 3 / 2).contains(&took), "{took} us");
}

#[test]
fn invalidate_cpu_uses_any_its_that_is_not_dead() {
    let g = Guest::new(Config::its_list(4, 2), 0);
    let (second, ev, lpi) = (ItsId(1), EventId(1), g.gic.alloc_lpi().unwrap());
    g.gic.map_physical(EventKey::new(second, DEV, ev), lpi, CpuId(2)).unwrap();
    let taken = || {
        g.machine.msi_at(1, DEV.0, ev.0);
        g.machine.advance_us(100);
        g.machine.host_ack(2)
    };
    assert_eq!(taken(), None, "disabled");
    g.gic.configure_lpi(lpi, 0x80, true);
    g.gic.invalidate_cpu(CpuId(2)).unwrap();
    g.machine.advance_us(100);
    assert_eq!(g.machine.host_ack(2), Some(lpi.0));
    assert_eq!(taken(), Some(lpi.0));
    g.gic.its(ITS0).unwrap().queue.mark_dead(g.gic.counters());
    g.gic.configure_lpi(lpi, 0x80, false);
    g.gic.invalidate_cpu(CpuId(2)).unwrap();
    assert_eq!(taken(), None);
    g.gic.its(second).unwrap().queue.mark_dead(g.gic.counters());
    assert_eq!(g.gic.invalidate_cpu(CpuId(2)), Err(ItsError::Dead));
    assert_eq!(g.gic.invalidate_cpu(CpuId(4)), Err(ItsError::CpuOffline(CpuId(4))));
}

#[test]
fn moving_an_event_to_its_present_target_posts_no_command() {
    let g = guest();
    let lpi = lpis(&g)[0];
    g.gic.map_physical(key(ITS0, 0), lpi, CpuId(3)).unwrap();
    g.map(ITS0, 1, 0);
    let before = g.machine.commands(0).len();
    g.gic.move_physical(key(ITS0, 0), CpuId(3)).unwrap();
    g.v4().move_event(key(ITS0, 1), g.vpes[0]).unwrap();
    assert_eq!(g.machine.commands(0).len(), before);
}

#[test]
fn set_all_pending_makes_every_mapped_event_of_every_device_pending() {
    let g = guest();
    let other = DeviceId(0x200);
    g.gic.map_device(ITS0, other, 2).unwrap();
    let lpis = lpis(&g);
    (0..20).for_each(|n| g.gic.map_physical(key(ITS0, n), lpis[n as usize], cpu_of(n)).unwrap());
    g.gic.map_physical(EventKey::new(ITS0, other, EventId(3)), lpis[31], CpuId(11)).unwrap();
    g.v4().map_event(EventKey::new(ITS0, other, EventId(0)), g.vpes[4], vlpi(9)).unwrap();
    let mut batch = g.gic.batch(ITS0).unwrap();
    batch.set_all_pending().unwrap();
    batch.finish().unwrap();
    let taken = |cpu: usize| core::iter::from_fn(|| g.machine.host_ack(cpu)).count();
    // The vPE's doorbell rings at its home.
    assert_eq!((0..CPUS).map(taken).sum::<usize>(), 20 + 1 + 1);
    let resident = g.enter(4, 4);
    assert_eq!(g.guest(4), [9]);
    let _ = g.leave(resident, Preempt);
    g.machine.assert_clean();
}
