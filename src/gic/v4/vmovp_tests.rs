//! Moves in ITSList mode when a queue is full, and moves whose ITSs have died.

use super::*;
use crate::gic::TakeOutError;
use crate::gic::its::Command;
use crate::gic::testing::{Guest, ITS0};
use crate::gic::v4::Why::Preempt;
use crate::ids::EventKey;
use crate::ids::{CpuId, EventId, ItsId};
use gic_model::{Command as Seen, CommandFault, Config, Fault};
use std::vec::Vec;

const CPUS: usize = 4;
/// How many commands a ring has room for.
const ROOM: usize = 0x1_0000 / 32 - 1;
const SECOND: ItsId = ItsId(1);

fn with_slow_polling(mut config: Config) -> Config {
    config.timing.relax = 20_000;
    config
}

/// Two vPEs with an event on each of two ITSs, and a third with one on the second ITS only, whose ring is full for
/// `ms`.
fn held_up(ms: u64) -> Guest {
    let g = Guest::new(with_slow_polling(Config::its_list(CPUS, 2)), 3);
    for (ev, its, vpe) in [(1, ITS0, 0), (2, SECOND, 0), (3, ITS0, 1), (4, SECOND, 1), (5, SECOND, 2)] {
        g.map(its, ev, vpe);
    }
    g.machine.inject(Fault::Command { its: 1, nth: 1, fault: CommandFault::Late { us: ms * 1000 } });
    let its = g.gic.its(SECOND).unwrap();
    let harmless: Vec<_> = (0..ROOM).map(|_| Command::sync(its.target(g.gic.redist(CpuId(0)).unwrap()))).collect();
    assert!(its.queue.post(g.gic.counters(), &harmless).is_ok());
    g
}

/// Sequence number and vPE of each VMOVP that an ITS has seen.
fn seen(g: &Guest, its: usize) -> Vec<(u16, u16)> {
    let of = |c: &Seen| if let Seen::Vmovp { sequence, vpe, .. } = *c { Some((sequence, vpe)) } else { None };
    g.machine.commands(its).iter().filter_map(of).collect()
}

fn gets_its_interrupts(g: &Guest, vpe: usize, cpu: u16) {
    let resident = g.enter(vpe, cpu);
    let (first, second) = (2 * vpe as u32 + 1, 2 * vpe as u32 + 2);
    g.msi(ITS0, first);
    g.msi(SECOND, second);
    g.machine.advance_us(100);
    let mut got = g.guest(cpu.into());
    got.sort_unstable();
    assert_eq!(got, [first, second]);
    let _ = g.leave(resident, Preempt);
}

#[test]
fn a_move_that_one_ring_has_no_room_for_is_posted_there_later() {
    let g = held_up(350);
    assert_eq!(g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1).err(), Some(EnterError::Moving));
    assert_eq!(g.v4().home(g.vpes[0]), Some(CpuId(0)));
    // No other move may overtake it; one that is refused changes nothing.
    assert_eq!(
        g.v4().enter(g.vpes[1], CpuId(3), InterruptGroups::GROUP1).err(),
        Some(EnterError::NotMoved { home: CpuId(1) })
    );
    assert_eq!((seen(&g, 0).len(), seen(&g, 1).len()), (0, 0), "the first ITS waits for the second");
    g.machine.advance_us(350_000);
    gets_its_interrupts(&g, 0, 2);
    gets_its_interrupts(&g, 1, 3);
    assert_eq!(seen(&g, 0), seen(&g, 1));
    assert_eq!(seen(&g, 0).len(), 2);
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn a_move_whose_rest_another_vpes_move_has_posted_completes() {
    let g = held_up(250);
    assert_eq!(g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1).err(), Some(EnterError::Moving));
    g.machine.advance_us(250_000);
    // This move posts the rest of the other one first.
    gets_its_interrupts(&g, 1, 3);
    assert_eq!(seen(&g, 0), seen(&g, 1));
    assert_eq!(seen(&g, 0).iter().map(|(_, vpe)| *vpe).collect::<Vec<_>>(), [g.vpes[0].0, g.vpes[1].0]);
    gets_its_interrupts(&g, 0, 2);
    assert_eq!(seen(&g, 0).len(), 2, "it was moved once");
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn a_move_whose_rest_another_vpes_move_has_posted_is_waited_for_on_every_its() {
    let g = held_up(250);
    // The command after the VMOVP is slow on the second ITS; the first ITS has finished by then.
    let late = CommandFault::Late { us: 60_000 };
    g.machine.inject(Fault::Command { its: 1, nth: ROOM + 2, fault: late });
    assert_eq!(g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1).err(), Some(EnterError::Moving));
    g.machine.advance_us(250_000);
    assert_eq!(g.v4().enter(g.vpes[2], CpuId(3), InterruptGroups::GROUP1).err(), Some(EnterError::Moving));
    assert_eq!(g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1).err(), Some(EnterError::Moving));
    g.machine.advance_us(60_000);
    gets_its_interrupts(&g, 0, 2);
    gets_its_interrupts(&g, 1, 3);
    g.machine.assert_clean();
}

#[test]
fn a_move_whose_rest_was_posted_on_two_rings_is_waited_for_on_these_two_only() {
    let g = Guest::new(with_slow_polling(Config::its_list(CPUS, 4)), 2);
    let elsewhere = g.machine.commands(3).len();
    for (ev, its, vpe) in [(1, 0, 0), (2, 1, 0), (3, 2, 0), (4, 0, 1)] {
        g.map(ItsId(its), ev, vpe);
    }
    for its in [1, 2] {
        g.machine.inject(Fault::Command { its, nth: 1, fault: CommandFault::Late { us: 250_000 } });
        let queue = &g.gic.its(ItsId(its as u8)).unwrap();
        let harmless: Vec<_> =
            (0..ROOM).map(|_| Command::sync(queue.target(g.gic.redist(CpuId(0)).unwrap()))).collect();
        assert!(queue.queue.post(g.gic.counters(), &harmless).is_ok());
    }
    // The command after the VMOVP is slow on the third ITS; the others have finished by then.
    g.machine.inject(Fault::Command { its: 2, nth: ROOM + 2, fault: CommandFault::Late { us: 60_000 } });
    assert_eq!(g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1).err(), Some(EnterError::Moving));
    g.machine.advance_us(250_000);
    let resident = g.enter(1, 3);
    let _ = g.leave(resident, Preempt);
    assert_eq!(g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1).err(), Some(EnterError::Moving));
    g.machine.advance_us(60_000);
    let resident = g.enter(0, 2);
    (0..3).for_each(|its| g.msi(ItsId(its), u32::from(its) + 1));
    g.machine.advance_us(100);
    assert_eq!(g.guest(2).len(), 3);
    let _ = g.leave(resident, Preempt);
    assert_eq!(g.machine.commands(3).len(), elsewhere, "the last ITS does not map the vPE");
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn a_cpu_is_taken_out_only_when_the_moves_to_it_and_from_it_are_complete() {
    for (gone, home, moved) in [(2, CpuId(3), 1), (0, CpuId(2), 0)] {
        let g = Guest::new(with_slow_polling(Config::v4_0(CPUS)), 1);
        g.map(ITS0, 1, 0);
        g.machine.inject(Fault::Command { its: 0, nth: 1, fault: CommandFault::Late { us: 60_000 } });
        assert_eq!(g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1).err(), Some(EnterError::Moving));
        let take_out = || g.gic.take_out(CpuId(gone), CpuId(3));
        assert_eq!(take_out(), Err(TakeOutError::Vpe(g.vpes[0], EnterError::Moving)));
        g.machine.advance_us(60_000);
        assert_eq!(take_out().map(|all| all.vpes), Ok(moved));
        assert_eq!(g.v4().home(g.vpes[0]), Some(home));
        g.msi(ITS0, 1);
        assert_eq!(g.doorbells(home.index()), [g.vpes[0]]);
        let resident = g.enter(0, home.0);
        assert_eq!(g.guest(home.index()), [1]);
        let _ = g.leave(resident, Preempt);
        g.machine.assert_clean();
    }
}

#[test]
fn the_commands_for_the_doorbell_are_posted_together_with_the_move() {
    let g = Guest::new(Config::v4_0(CPUS).each_cpu(|_, cpu| cpu.direct_lpi = false), 1);
    g.map(ITS0, 1, 0);
    let writer = crate::ids::Pa(g.machine.config().its[0].base + 0x88);
    let posts = || g.gic.hw.writes().iter().filter(|at| **at == writer).count();
    // Until earlier register writes are no longer recorded.
    while posts() > 0 {
        let resident = g.enter(0, 0);
        let _ = g.leave(resident, Preempt);
    }
    let resident = g.enter(0, 2);
    assert_eq!(posts(), 1);
    let _ = g.leave(resident, Preempt);
    g.machine.assert_clean();
}

#[test]
fn a_wait_for_one_its_retries_a_stalled_one_that_holds_it_up_at_a_vmovp() {
    let g = Guest::new(with_slow_polling(Config::its_list(CPUS, 2)), 1);
    g.map(ITS0, 1, 0);
    g.map(SECOND, 2, 0);
    let next = |fault| g.machine.inject(Fault::Command { its: 1, nth: 1, fault });
    next(CommandFault::Late { us: 60_000 });
    assert_eq!(g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1).err(), Some(EnterError::Moving));
    // The second ITS stalls there, and no CPU waits for it.
    next(CommandFault::Stall);
    assert_eq!(g.gic.set_pending(EventKey::new(ITS0, crate::gic::testing::DEV, EventId(1))), Ok(()));
    assert_eq!(g.gic.counters().stalls.get(), 1);
    let resident = g.enter(0, 2);
    assert_eq!(g.guest(2), [1]);
    let _ = g.leave(resident, Preempt);
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn a_vpe_keeps_its_home_if_all_itss_die_before_they_move_it() {
    let g = Guest::new(with_slow_polling(Config::v4_1(CPUS, 2)), 1);
    g.gic.its(ITS0).unwrap().queue.mark_dead(g.gic.counters());
    g.machine.inject(Fault::HangsAtVmovp { its: 1 });
    let start = g.machine.now_us();
    let mut last = EnterError::Moving;
    while last == EnterError::Moving && g.machine.now_us() - start < 3_000_000 {
        last = g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1).unwrap_err();
    }
    assert_eq!(last, EnterError::NotMoved { home: CpuId(0) });
    assert_eq!(g.v4().home(g.vpes[0]), Some(CpuId(0)));
    g.machine.assert_clean();
}

#[test]
fn in_itslist_mode_a_move_completes_when_the_only_its_that_has_it_dies() {
    let g = Guest::new(with_slow_polling(Config::its_list(CPUS, 2)), 1);
    g.map(ITS0, 1, 0);
    g.machine.inject(Fault::HangsAtVmovp { its: 0 });
    let start = g.machine.now_us();
    let resident = loop {
        match g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1) {
            Ok(resident) => break resident,
            Err(e) => assert_eq!(e, EnterError::Moving),
        }
        assert!(g.machine.now_us() - start < 3_000_000);
    };
    assert_eq!(g.v4().home(g.vpes[0]), Some(CpuId(2)), "a dead ITS translates nothing");
    let _ = g.v4().leave(resident, Preempt);
    // The ITS that is not dead gets the new home with VMAPP.
    g.map(SECOND, 2, 0);
    g.msi(SECOND, 2);
    assert_eq!(g.doorbells(2), [g.vpes[0]]);
}

#[test]
fn a_pending_doorbell_does_not_stay_at_the_old_home() {
    let proxy = |c: Config| c.each_cpu(|_, cpu| cpu.direct_lpi = false);
    for config in [Config::v4_0(CPUS), proxy(Config::v4_0(CPUS)), Config::qemu(CPUS), proxy(Config::its_list(CPUS, 2))]
    {
        let g = Guest::new(config, 1);
        g.map(ITS0, 1, 0);
        g.msi(ITS0, 1);
        g.machine.advance_us(100);
        assert!(g.machine.host_irq(0));
        let resident = g.enter(0, 2);
        g.machine.advance_us(100);
        assert!(!g.machine.host_irq(0), "the doorbell was moved or dropped");
        let _ = g.leave(resident, Preempt);
        g.machine.assert_clean();
    }
}

#[test]
fn a_move_that_is_missing_on_a_dead_its_completes_without_it() {
    let g = held_up(600_000);
    assert_eq!(g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1).err(), Some(EnterError::Moving));
    g.gic.its(SECOND).unwrap().queue.mark_dead(g.gic.counters());
    let start = g.machine.now_us();
    let mut resident = loop {
        match g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1) {
            Ok(resident) => break resident,
            Err(e) => assert_eq!(e, EnterError::Moving),
        }
        assert!(g.machine.now_us() - start < 5_000_000);
    };
    g.v4().before_eret(&mut resident);
    g.msi(ITS0, 1);
    g.machine.advance_us(100);
    assert!(g.guest(2).contains(&1));
    let _ = g.leave(resident, Preempt);
}

#[test]
fn a_vpe_whose_itss_are_all_dead_can_run_only_at_its_home() {
    for config in [Config::v4_0(CPUS), Config::its_list(CPUS, 2), Config::v4_1(CPUS, 2)] {
        let itss = config.its.len() as u8;
        let g = Guest::new(config, 1);
        g.map(ITS0, 1, 0);
        (0..itss).for_each(|its| g.gic.its(ItsId(its)).unwrap().queue.mark_dead(g.gic.counters()));
        let stays = EnterError::NotMoved { home: CpuId(0) };
        assert_eq!(g.v4().enter(g.vpes[0], CpuId(1), InterruptGroups::GROUP1).err(), Some(stays));
        let resident = g.v4().enter(g.vpes[0], CpuId(0), InterruptGroups::GROUP1).unwrap();
        let _ = g.v4().leave(resident, Preempt);
        assert_eq!(g.gic.counters().vmovp.get(), 0);
    }
}

#[test]
fn sequence_numbers_increase_and_each_move_lists_the_itss_that_map_the_vpe() {
    let g = Guest::new(Config::its_list(CPUS, 3), 2);
    for (ev, its, vpe) in [(1, 0, 0), (2, 2, 0), (3, 1, 1), (4, 2, 1)] {
        g.map(ItsId(its), ev, vpe);
    }
    for (vpe, cpu) in [(0, 2), (1, 3), (0, 1)] {
        let resident = g.enter(vpe, cpu);
        let _ = g.leave(resident, Preempt);
    }
    let lists = |its: usize| {
        let of = |c: &Seen| if let Seen::Vmovp { sequence, list, .. } = *c { Some((sequence, list)) } else { None };
        g.machine.commands(its).iter().filter_map(of).collect::<Vec<_>>()
    };
    let [a, b, c]: [(u16, u16); 3] = lists(2).try_into().unwrap();
    assert_eq!([a.1, b.1, c.1], [0b101, 0b110, 0b101]);
    assert_eq!([b.0, c.0], [a.0.wrapping_add(1), a.0.wrapping_add(2)]);
    assert_eq!((lists(0), lists(1)), (vec![a, c], vec![b]));
    g.machine.assert_clean();
}
