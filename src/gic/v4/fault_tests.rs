//! The verbs on a GIC that fails: they take bounded time, violate no rule, and free no memory that the hardware may
//! use.

use super::*;
use crate::gic::ItsError;
use crate::gic::TakeOutError;
use crate::gic::its::{DEAD_AFTER_US, Event};
use crate::gic::testing::key;
use crate::gic::testing::{DEV, Guest, ITS0, vlpi};
use crate::gic::v4::Why::{Block, Preempt};
use crate::ids::EventKey;
use crate::ids::{CpuId, EventId, ItsId};
use gic_model::{CommandFault, Config, Fault};

const CPUS: usize = 4;

fn guest() -> Guest {
    Guest::new(Config::v4_0(CPUS), 2)
}

/// For tests that wait for whole deadlines: registers are polled every 20 us.
fn with_slow_polling(mut config: Config) -> Config {
    config.timing.relax = 20_000;
    config
}

fn on_next(nth: usize, fault: CommandFault) -> Fault {
    Fault::Command { its: 0, nth, fault }
}

#[test]
fn a_command_that_is_late_but_in_time_is_waited_for() {
    let g = guest();
    g.machine.inject(on_next(1, CommandFault::Late { us: 50_000 }));
    g.map(ITS0, 1, 0);
    let r = g.enter(0, 0);
    g.msi(ITS0, 1);
    assert_eq!(g.guest(0), [1]);
    let _ = g.leave(r, Preempt);
    assert_eq!(g.gic.counters().timeouts.get(), 0);
    g.machine.assert_clean();
}

#[test]
fn a_stall_is_retried_once_and_the_command_is_executed() {
    for config in [Config::v4_0(CPUS), Config::v4_0(CPUS).each_its(|_, its| its.retry_needed = true)] {
        let g = Guest::new(config, 2);
        g.machine.inject(on_next(1, CommandFault::Stall));
        g.map(ITS0, 1, 0);
        let r = g.enter(0, 0);
        g.msi(ITS0, 1);
        assert_eq!(g.guest(0), [1]);
        let _ = g.leave(r, Preempt);
        assert_eq!(g.gic.counters().stalls.get(), 1);
        g.take_down();
        g.machine.assert_clean();
    }
}

#[test]
fn a_vpe_whose_move_is_late_cannot_run_until_it_is_complete() {
    let g = guest();
    g.map(ITS0, 1, 0);
    g.machine.inject(on_next(1, CommandFault::Late { us: 60_000 }));
    let start = g.machine.now_us();
    assert_eq!(g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1).err(), Some(EnterError::Moving));
    assert!(g.machine.now_us() - start < 20_000, "a switch waits for a short time only");
    // It can run neither at the old home nor at the new one, because it is not known at which it lives.
    assert_eq!(g.v4().enter(g.vpes[0], CpuId(0), InterruptGroups::GROUP1).err(), Some(EnterError::Moving));
    // Other vPEs are not held up.
    let r = g.enter(1, 1);
    let _ = g.leave(r, Preempt);
    g.machine.advance_us(60_000);
    let r = g.enter(0, 2);
    g.msi(ITS0, 1);
    assert_eq!(g.guest(2), [1]);
    let _ = g.leave(r, Preempt);
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn invalidate_all_on_gicv4_1_waits_for_the_vpes_move_to_complete() {
    let config = Config::v4_1(CPUS, 1).each_cpu(|n, cpu| (cpu.affinity, cpu.common_lpi_aff) = ((n as u32) << 24, 1));
    let g = Guest::new(config, 1);
    g.map(ITS0, 1, 0);
    g.machine.inject(on_next(1, CommandFault::Late { us: 60_000 }));
    assert_eq!(g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1).err(), Some(EnterError::Moving));
    assert_eq!(g.v4().invalidate_all(g.vpes[0]), Err(V4Error::Its(ItsError::Timeout)));
    g.machine.advance_us(60_000);
    assert_eq!(g.v4().invalidate_all(g.vpes[0]), Ok(()));
    assert_eq!(g.v4().home(g.vpes[0]), Some(CpuId(2)));
    g.machine.assert_clean();
}

#[test]
fn a_vpe_runs_elsewhere_only_when_the_its_of_its_last_event_has_unmapped_it() {
    let g = Guest::new(Config::its_list(CPUS, 2), 1);
    g.map(ITS0, 1, 0);
    // DISCARD and VSYNC are complete; VMAPP with V = 0, which no caller waits for, is late.
    g.machine.inject(on_next(3, CommandFault::Late { us: 60_000 }));
    g.gic.unmap_event(key(ITS0, 1)).unwrap();
    assert_eq!(g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1).err(), Some(EnterError::Moving));
    g.machine.advance_us(60_000);
    let r = g.enter(0, 2);
    let _ = g.leave(r, Preempt);
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn an_its_that_is_held_up_at_a_vmovp_by_a_stalled_one_continues() {
    let g = Guest::new(Config::its_list(CPUS, 2), 1);
    g.map(ITS0, 1, 0);
    g.map(ItsId(1), 2, 0);
    g.machine.inject(Fault::Command { its: 1, nth: 1, fault: CommandFault::Stall });
    let r = g.enter(0, 2);
    g.msi(ITS0, 1);
    g.msi(ItsId(1), 2);
    assert_eq!(g.guest(2).len(), 2);
    let _ = g.leave(r, Preempt);
    // The same if the ITS that the caller waits for is not the one that has stalled.
    g.machine.inject(Fault::Command { its: 1, nth: 1, fault: CommandFault::Stall });
    let _ = g.v4().enter(g.vpes[0], CpuId(1), InterruptGroups::GROUP1).map(|r| g.v4().leave(r, Preempt));
    assert_eq!(g.gic.drain(ITS0), Ok(()));
    assert_eq!(g.gic.counters().stalls.get(), 2);
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn an_its_that_stops_is_declared_dead_in_bounded_time_and_its_memory_is_not_freed() {
    let g = Guest::new(with_slow_polling(Config::v4_0(CPUS)), 2);
    g.map(ITS0, 1, 0);
    let memory = g.machine.allocations().len();
    g.machine.inject(Fault::Hung { its: 0 });
    let start = g.machine.now_us();
    let ev = EventId(2);
    g.v4().configure(g.vm, vlpi(2), 0xa1).unwrap();
    assert_eq!(g.v4().map_event(EventKey::new(ITS0, DEV, ev), g.vpes[0], vlpi(2)), Err(ItsError::Timeout));
    // The commands were posted and may take effect, so this is the recorded state.
    assert_eq!(g.gic.event(EventKey::new(ITS0, DEV, ev)), Ok(Event::Virtual { vpe: g.vpes[0], vintid: vlpi(2) }));
    while g.gic.set_pending(EventKey::new(ITS0, DEV, ev)) == Err(ItsError::Timeout) {
        assert!(g.machine.now_us() - start < 3 * DEAD_AFTER_US);
    }
    assert_eq!(g.gic.set_pending(EventKey::new(ITS0, DEV, ev)), Err(ItsError::Dead));
    assert_eq!(g.gic.counters().dead_itss.get(), 1);
    // Commands for a dead ITS are refused at once.
    let now = g.machine.now_us();
    assert_eq!(g.gic.unmap_device(ITS0, DEV), Err(ItsError::Dead));
    assert_eq!(g.v4().remove_vpe(g.vpes[0]), Err(V4Error::Its(ItsError::Dead)));
    assert!(g.machine.now_us() - now < 10_000);
    assert_eq!(g.gic.event(EventKey::new(ITS0, DEV, ev)), Err(ItsError::NoSuchDevice(DEV)));
    assert_eq!(g.v4().home(g.vpes[0]), None);
    g.v4().remove_vpe(g.vpes[1]).unwrap_err();
    g.v4().destroy_vm(g.vm).unwrap();
    assert_eq!(g.machine.allocations().len(), memory, "the memory is quarantined");
    assert!(g.gic.counters().quarantined_bytes.get() > 0);
    g.machine.assert_clean();
}

#[test]
fn a_vpe_keeps_its_home_if_its_only_its_dies_before_the_move() {
    let g = Guest::new(with_slow_polling(Config::v4_0(CPUS)), 2);
    g.map(ITS0, 1, 0);
    g.machine.inject(Fault::HangsAtVmovp { its: 0 });
    let start = g.machine.now_us();
    let mut last = EnterError::Moving;
    while last == EnterError::Moving && g.machine.now_us() - start < 3 * DEAD_AFTER_US {
        last = g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1).unwrap_err();
    }
    assert_eq!(last, EnterError::NotMoved { home: CpuId(0) });
    assert_eq!(g.v4().home(g.vpes[0]), Some(CpuId(0)));
    // It can still run there.
    let r = g.v4().enter(g.vpes[0], CpuId(0), InterruptGroups::GROUP1).unwrap();
    let _ = g.v4().leave(r, Preempt);
    g.machine.assert_clean();
}

#[test]
fn if_one_its_of_a_list_stops_at_a_vmovp_the_others_complete_it_and_lose_no_interrupt() {
    let g = Guest::new(with_slow_polling(Config::its_list(CPUS, 3)), 2);
    for its in 0..3u8 {
        g.map(ItsId(its), u32::from(its) + 1, 0);
    }
    g.machine.inject(Fault::HangsAtVmovp { its: 1 });
    let start = g.machine.now_us();
    let mut resident = loop {
        match g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1) {
            Ok(resident) => break resident,
            Err(e) => assert_eq!(e, EnterError::Moving),
        }
        assert!(g.machine.now_us() - start < 3 * DEAD_AFTER_US);
        // An MSI that arrives at any time is not lost.
        g.msi(ItsId(2), 3);
    };
    g.v4().before_eret(&mut resident);
    assert_eq!(g.v4().home(g.vpes[0]), Some(CpuId(2)));
    assert_eq!((g.gic.counters().dead_itss.get(), g.gic.counters().vmovp_recoveries.get()), (1, 1));
    let mut got = g.guest(2);
    got.sort_unstable();
    assert_eq!(got, [1, 3], "one edge for each event of the ITSs that were disabled");
    g.msi(ITS0, 1);
    g.msi(ItsId(2), 3);
    assert_eq!(g.guest(2).len(), 2);
    let _ = g.leave(resident, Preempt);
    // Later lists do not contain the dead ITS.
    let r = g.enter(0, 3);
    g.msi(ITS0, 1);
    assert_eq!(g.guest(3), [1]);
    let _ = g.leave(r, Preempt);
    assert_eq!(g.gic.set_pending(key(ItsId(1), 2)), Err(ItsError::Dead));
    g.machine.assert_clean();
}

#[test]
fn an_its_that_becomes_quiescent_but_never_executes_its_vmovp_is_declared_dead() {
    let g = Guest::new(with_slow_polling(Config::its_list(CPUS, 2)), 1);
    g.map(ITS0, 1, 0);
    g.map(ItsId(1), 2, 0);
    g.machine.inject(on_next(1, CommandFault::Hang));
    let start = g.machine.now_us();
    while g.gic.counters().vmovp_recoveries.get() == 0 {
        assert_eq!(g.v4().enter(g.vpes[0], CpuId(2), InterruptGroups::GROUP1).err(), Some(EnterError::Moving));
        assert!(g.machine.now_us() - start < 3 * DEAD_AFTER_US);
    }
    assert_eq!(g.gic.counters().dead_itss.get(), 1, "at once");
    let r = g.enter(0, 2);
    let _ = g.guest(2);
    g.msi(ItsId(1), 2);
    assert_eq!(g.guest(2), [2]);
    let _ = g.leave(r, Preempt);
    g.machine.assert_clean();
}

#[test]
fn a_timeout_of_a_redistributor_when_a_doorbell_is_moved_is_counted() {
    for cpu in [0, 2] {
        let g = guest();
        g.machine.inject(Fault::BusyStuck { cpu });
        let r = g.enter(0, 2);
        assert_eq!(g.gic.counters().redist_timeouts.get(), 1, "CPU{cpu}");
        let _ = g.leave(r, Preempt);
    }
}

#[test]
fn a_ring_that_stays_full_is_an_error_and_no_completion_is_reported() {
    let g = guest();
    g.map(ITS0, 1, 0);
    g.machine.inject(Fault::QueueLooksFull { its: 0 });
    assert_eq!(g.gic.set_pending(key(ITS0, 1)), Err(ItsError::Timeout));
    g.machine.heal();
    g.gic.set_pending(key(ITS0, 1)).unwrap();
    let r = g.enter(0, 0);
    assert_eq!(g.guest(0), [1]);
    let _ = g.leave(r, Preempt);
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn the_ring_wraps_many_times() {
    let g = guest();
    g.map(ITS0, 1, 0);
    let r = g.enter(0, 0);
    for _ in 0..3_000 {
        g.gic.set_pending(key(ITS0, 1)).unwrap();
        assert_eq!(g.guest(0), [1]);
    }
    let _ = g.leave(r, Preempt);
    g.machine.assert_clean();
}

#[test]
fn a_write_back_that_times_out_counts_as_pending_and_the_vpe_cannot_enter() {
    let g = guest();
    g.map(ITS0, 1, 0);
    let r = g.enter(0, 0);
    g.machine.inject(Fault::DirtyStuck { cpu: 0 });
    assert!(g.leave(r, Block), "an interrupt may be pending");
    // Neither this vPE can enter elsewhere, nor another one here.
    assert_eq!(g.v4().enter(g.vpes[0], CpuId(1), InterruptGroups::GROUP1).err(), Some(EnterError::Busy));
    assert_eq!(g.v4().enter(g.vpes[1], CpuId(0), InterruptGroups::GROUP1).err(), Some(EnterError::Busy));
    assert_eq!(g.v4().enter(g.vpes[0], CpuId(0), InterruptGroups::GROUP1).err(), Some(EnterError::Busy));
    let r = g.enter(1, 1);
    let _ = g.leave(r, Preempt);
    assert!(g.gic.counters().redist_timeouts.get() > 0);
    g.machine.heal();
    g.machine.advance_us(100);
    g.msi(ITS0, 1);
    let r = g.enter(0, 2);
    assert_eq!(g.guest(2), [1]);
    let _ = g.leave(r, Preempt);
    let r = g.enter(1, 0);
    let _ = g.leave(r, Preempt);
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn valid_is_not_cleared_while_dirty_is_set_even_if_it_stays_set() {
    let g = guest();
    g.map(ITS0, 1, 0);
    g.machine.inject(Fault::DirtyStuck { cpu: 0 });
    let mut r = g.v4().enter(g.vpes[0], CpuId(0), InterruptGroups::GROUP1).unwrap();
    g.v4().before_eret(&mut r);
    assert!(g.leave(r, Block));
    g.machine.assert_clean();
    assert_eq!(g.v4().resident_on(g.vpes[0]), Some(CpuId(0)), "it could not leave");
    assert_eq!(g.v4().enter(g.vpes[1], CpuId(0), InterruptGroups::GROUP1).err(), Some(EnterError::Busy));
    assert_eq!(g.v4().enter(g.vpes[0], CpuId(3), InterruptGroups::GROUP1).err(), Some(EnterError::Busy));
    g.machine.heal();
    g.machine.advance_us(100);
    let r = g.enter(0, 3);
    g.msi(ITS0, 1);
    assert_eq!(g.guest(3), [1]);
    let _ = g.leave(r, Preempt);
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn a_cpu_is_taken_out_only_when_the_vpe_that_could_not_leave_has_left() {
    // Without GICR_TYPER.Dirty the driver cannot tell that it is too early to clear Valid; then the write-back hangs.
    for says_dirty in [true, false] {
        let g = Guest::new(Config::v4_0(CPUS).each_cpu(|_, cpu| cpu.dirty = says_dirty), 2);
        g.map(ITS0, 1, 0);
        let r = g.enter(0, 0);
        g.machine.inject(Fault::DirtyStuck { cpu: 0 });
        assert!(g.leave(r, Block));
        assert_eq!(g.v4().resident_on(g.vpes[0]), says_dirty.then_some(CpuId(0)));
        let take_out = || g.gic.take_out(CpuId(0), CpuId(2));
        assert_eq!(take_out(), Err(TakeOutError::Vpe(g.vpes[0], EnterError::Busy)));
        g.machine.heal();
        g.machine.advance_us(100);
        assert_eq!(take_out().map(|all| all.vpes), Ok(1));
        g.msi(ITS0, 1);
        assert_eq!(g.doorbells(2), [g.vpes[0]]);
        let r = g.enter(0, 2);
        assert_eq!(g.guest(2), [1]);
        let _ = g.leave(r, Preempt);
        g.machine.assert_clean();
    }
}

#[test]
fn the_idai_of_a_late_write_back_is_kept_whichever_vpe_enters_next() {
    for idai in [true, false] {
        let mut config = Config::v4_0(CPUS).each_cpu(|_, cpu| cpu.dirty = false);
        config.idai = Some(idai);
        let g = Guest::new(config, 2);
        g.map(ITS0, 1, 0);
        let r = g.enter(0, 0);
        g.machine.inject(Fault::DirtyStuck { cpu: 0 });
        assert!(g.leave(r, Block));
        assert_eq!(g.v4().enter(g.vpes[1], CpuId(0), InterruptGroups::GROUP1).err(), Some(EnterError::Busy));
        g.machine.heal();
        g.machine.advance_us(100);
        let r = g.enter(1, 0);
        let _ = g.leave(r, Preempt);
        let r = g.enter(0, 3);
        g.msi(ITS0, 1);
        assert_eq!(g.guest(3), [1]);
        let _ = g.leave(r, Preempt);
        g.machine.assert_clean();
    }
}

#[test]
fn the_memory_of_a_vpe_that_is_still_being_written_back_is_not_freed() {
    let g = guest();
    let r = g.enter(0, 0);
    g.machine.inject(Fault::DirtyStuck { cpu: 0 });
    let _ = g.leave(r, Preempt);
    let memory = g.machine.allocations().len();
    assert_eq!(g.v4().remove_vpe(g.vpes[0]), Err(V4Error::Resident(CpuId(0))));
    assert_eq!(g.machine.allocations().len(), memory);
    g.machine.heal();
    g.machine.advance_us(100);
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn running_out_of_memory_at_any_step_leaks_nothing() {
    for after in 0..6 {
        let g = guest();
        g.take_down();
        let before = g.machine.allocations().len();
        g.machine.inject(Fault::OutOfMemory { after });
        let v4 = g.v4();
        let made = v4.create_vm(14).and_then(|vm| {
            let vpe = v4.add_vpe(vm, CpuId(0));
            if let Ok(vpe) = vpe {
                let mapped = g.gic.map_device(ITS0, DEV, 5);
                if mapped.is_ok() {
                    g.gic.unmap_device(ITS0, DEV).unwrap();
                }
                v4.remove_vpe(vpe).unwrap();
            }
            v4.destroy_vm(vm).unwrap();
            vpe.map(|_| ())
        });
        assert_eq!(made.is_ok(), after >= 2, "after {after}");
        assert_eq!(g.machine.allocations().len(), before, "after {after}");
        g.machine.assert_clean();
    }
}
