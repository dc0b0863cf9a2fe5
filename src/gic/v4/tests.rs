//! The verbs on the executable GIC.

use super::*;
use crate::gic::ItsError;
use crate::gic::its::{Event, Kind};
use crate::gic::testing::key;
use crate::gic::testing::{DEV, Guest, ITS0, vlpi};
use crate::gic::v4::Why::{Block, Preempt};
use crate::ids::EventKey;
use crate::ids::{CpuId, DeviceId, EventId, ItsId, Lpi, VIntid, VpeId};
use gic_model::{Config, Delivery, Staleness};
use std::vec::Vec;

const CPUS: usize = 4;

/// Variants of GICv4.0, with and without direct control of LPIs, coherent or not, with one ITS or several; and of
/// GICv4.1.
fn machines() -> Vec<Config> {
    let proxy = |c: Config| c.each_cpu(|_, cpu| cpu.direct_lpi = false);
    vec![
        Config::qemu(CPUS),
        Config::v4_0(CPUS),
        proxy(Config::v4_0(CPUS)),
        proxy(Config::v4_0(CPUS)).noncoherent(),
        Config::v4_0(CPUS).stale(Staleness::Random(1)),
        Config::v4_0(CPUS).each_cpu(|_, cpu| cpu.dirty = false),
        Config::v4_0(CPUS).each_cpu(|_, cpu| (cpu.direct_lpi, cpu.ir) = (false, true)),
        Config::v4_0(CPUS).each_its(|_, its| its.pta = true),
        Config::v4_0(CPUS).with_holes(0x8_0000),
        Config::its_list(CPUS, 3),
        proxy(Config::its_list(CPUS, 2)),
    ]
    .into_iter()
    .chain(machines_v41())
    .collect()
}

/// Variants of GICv4.1: which redistributors and ITSs share a vPE table.
fn machines_v41() -> Vec<Config> {
    let spread = |n: usize| ((n as u32 & 1) << 24) | ((n as u32 >> 1 & 1) << 16) | ((n as u32) << 8);
    let mut all = vec![
        Config::v4_1(CPUS, 1),
        Config::v4_1(CPUS, 2).stale(Staleness::Random(3)),
        Config::v4_1(CPUS, 1).noncoherent(),
        Config::graviton3(CPUS),
    ];
    for common in 0..4u8 {
        for svpet in 0..4u8 {
            let config = Config::v4_1(CPUS, 2)
                .each_cpu(|n, cpu| (cpu.affinity, cpu.common_lpi_aff) = (spread(n), common))
                .each_its(|n, its| (its.mpidr, its.svpet) = (spread(n), svpet));
            all.push(config);
        }
    }
    all
}

fn everywhere(test: impl Fn(Guest)) {
    for config in machines() {
        test(Guest::new(config, 2));
    }
}

#[test]
fn an_msi_reaches_a_resident_vpe_without_an_interrupt_of_el2() {
    everywhere(|g| {
        g.map(ITS0, 1, 0);
        let r = g.enter(0, 0);
        g.msi(ITS0, 1);
        assert_eq!(g.guest(0), [1]);
        assert!(g.machine.take_deliveries().iter().all(|d| matches!(d, Delivery::Guest { cpu: 0, .. })));
        assert!(!g.leave(r, Block));
        assert!(g.all_doorbells().is_empty());
        g.machine.assert_clean();
    });
}

#[test]
fn an_msi_for_a_vpe_that_blocked_rings_its_doorbell_and_stays_pending() {
    everywhere(|g| {
        g.map(ITS0, 1, 1);
        let r = g.enter(1, 1);
        assert!(!g.leave(r, Block));
        g.msi(ITS0, 1);
        assert_eq!(g.all_doorbells(), [g.vpes[1]]);
        let r = g.enter(1, 1);
        assert_eq!(g.guest(1), [1]);
        assert!(!g.leave(r, Block));
        g.machine.assert_clean();
    });
}

#[test]
fn a_vpe_that_blocks_with_a_pending_vlpi_is_woken_at_once() {
    everywhere(|g| {
        g.map(ITS0, 1, 0);
        let r = g.enter(0, 0);
        g.msi(ITS0, 1);
        assert!(g.leave(r, Block), "PendingLast");
        let r = g.enter(0, 0);
        assert_eq!(g.guest(0), [1]);
        assert!(!g.leave(r, Block));
        g.machine.assert_clean();
    });
}

#[test]
fn a_vpe_that_runs_elsewhere_moves_with_its_interrupts_and_its_doorbell() {
    everywhere(|g| {
        g.map(ITS0, 1, 0);
        g.msi(ITS0, 1);
        let r = g.enter(0, 3);
        assert_eq!(g.v4().home(g.vpes[0]), Some(CpuId(3)));
        assert_eq!(g.guest(3), [1]);
        g.msi(ITS0, 1);
        assert_eq!(g.guest(3), [1]);
        assert!(!g.leave(r, Block));
        let _ = g.all_doorbells();
        g.msi(ITS0, 1);
        assert_eq!(g.doorbells(3), [g.vpes[0]]);
        assert!(g.all_doorbells().is_empty(), "no doorbell is left at its old home");
        assert_eq!(g.gic.counters().vmovp.get(), 1);
        let r = g.enter(0, 0);
        assert_eq!(g.guest(0), [1]);
        let _ = g.leave(r, Preempt);
        g.machine.assert_clean();
    });
}

#[test]
fn entering_a_vpe_at_its_home_posts_no_command() {
    everywhere(|g| {
        g.map(ITS0, 1, 0);
        let before = g.machine.commands(0).len();
        for _ in 0..10 {
            let r = g.enter(0, 0);
            let _ = g.leave(r, Preempt);
        }
        assert_eq!(g.machine.commands(0).len(), before);
    });
}

#[test]
fn a_vpe_needs_group_1_to_be_resident_exactly_where_the_hardware_ignores_its_groups() {
    everywhere(|g| {
        g.map(ITS0, 1, 0);
        let r = g.enter_with(0, 0, InterruptGroups { group0: false, group1: false });
        g.msi(ITS0, 1);
        assert_eq!(g.v4().needs_group1(), !g.guest(0).is_empty());
        let _ = g.leave(r, Preempt);
        g.machine.assert_clean();
    });
}

#[test]
fn a_pending_table_is_waited_for_once_in_a_residency_and_only_where_dirty_shows_that_it_has_been_read() {
    for dirty in [true, false] {
        let mut config = Config::v4_0(CPUS).each_cpu(|_, cpu| cpu.dirty = dirty);
        // A look at the clock takes as long as an access to a register: 10 us.
        config.timing.access = 10_000;
        let g = Guest::new(config, 1);
        for _ in 0..2 {
            let mut r = g.v4().enter(g.vpes[0], CpuId(0), InterruptGroups::GROUP1).unwrap();
            let waits = [(); 2].map(|()| {
                let start = g.machine.now_us();
                g.v4().before_eret(&mut r);
                g.machine.now_us() - start > 10
            });
            assert_eq!(waits, [dirty, false]);
            let _ = g.leave(r, Preempt);
        }
        g.machine.assert_clean();
    }
}

#[test]
fn an_event_that_changes_between_guest_and_el2_loses_no_interrupt() {
    everywhere(|g| {
        let (ev, lpi) = (EventId(2), g.gic.alloc_lpi().unwrap());
        g.gic.configure_lpi(lpi, 0x80, true);
        g.gic.map_physical(EventKey::new(ITS0, DEV, ev), lpi, CpuId(2)).unwrap();
        g.msi(ITS0, 2);
        // It was pending as an LPI, so it is pending in the guest now.
        g.map(ITS0, 2, 0);
        let r = g.enter(0, 0);
        assert_eq!(g.guest(0), [2]);
        g.msi(ITS0, 2);
        g.v4().to_software(EventKey::new(ITS0, DEV, ev), lpi, CpuId(2)).unwrap();
        assert_eq!(g.machine.host_ack(2), Some(lpi.0));
        assert_eq!(g.gic.event(EventKey::new(ITS0, DEV, ev)), Ok(Event::Physical { lpi, cpu: CpuId(2) }));
        g.msi(ITS0, 2);
        assert_eq!((g.machine.host_ack(2), g.guest(0)), (Some(lpi.0), Vec::new()));
        let _ = g.leave(r, Preempt);
        g.machine.assert_clean();
    });
}

#[test]
fn a_moved_event_is_pending_for_its_new_vpe() {
    everywhere(|g| {
        g.map(ITS0, 1, 0);
        g.msi(ITS0, 1);
        g.v4().move_event(key(ITS0, 1), g.vpes[1]).unwrap();
        let r = g.enter(0, 0);
        assert!(g.guest(0).is_empty());
        let _ = g.leave(r, Preempt);
        let r = g.enter(1, 1);
        assert_eq!(g.guest(1), [1]);
        assert!(!g.leave(r, Block));
        let _ = g.all_doorbells();
        g.msi(ITS0, 1);
        assert_eq!(g.all_doorbells(), [g.vpes[1]]);
        g.machine.assert_clean();
    });
}

#[test]
fn a_configuration_byte_takes_effect_at_the_invalidate() {
    everywhere(|g| {
        g.map(ITS0, 1, 0);
        g.map(ITS0, 2, 0);
        g.v4().configure(g.vm, vlpi(1), 0xa0).unwrap();
        g.gic.invalidate(key(ITS0, 1)).unwrap();
        let r = g.enter(0, 0);
        g.msi(ITS0, 1);
        g.msi(ITS0, 2);
        assert_eq!(g.guest(0), [2]);
        g.v4().configure(g.vm, vlpi(1), 0xa1).unwrap();
        g.v4().invalidate_all(g.vpes[0]).unwrap();
        assert_eq!(g.guest(0), [1]);
        // The vLPI of the higher priority comes first.
        g.v4().configure(g.vm, vlpi(2), 0x41).unwrap();
        g.gic.invalidate(key(ITS0, 2)).unwrap();
        g.msi(ITS0, 1);
        g.msi(ITS0, 2);
        assert_eq!(g.guest(0), [2, 1]);
        let _ = g.leave(r, Preempt);
        g.machine.assert_clean();
    });
}

#[test]
fn a_vlpi_that_is_mapped_again_has_its_present_configuration() {
    everywhere(|g| {
        g.map(ITS0, 1, 0);
        let r = g.enter(0, 0);
        g.msi(ITS0, 1);
        assert_eq!(g.guest(0), [1]);
        g.gic.unmap_event(key(ITS0, 1)).unwrap();
        g.v4().configure(g.vm, vlpi(1), 0xa0).unwrap();
        g.v4().map_event(key(ITS0, 1), g.vpes[0], vlpi(1)).unwrap();
        g.msi(ITS0, 1);
        assert!(g.guest(0).is_empty(), "it has been disabled");
        let _ = g.leave(r, Preempt);
        g.machine.assert_clean();
    });
}

#[test]
fn an_interrupt_that_returns_to_a_redistributor_has_its_present_configuration() {
    everywhere(|g| {
        // A vLPI that is disabled when it leaves its vPE, and enabled before it returns.
        g.map(ITS0, 1, 0);
        let set = |byte| {
            g.v4().configure(g.vm, vlpi(1), byte).unwrap();
            g.gic.invalidate(key(ITS0, 1)).unwrap();
        };
        set(0xa0);
        g.v4().move_event(key(ITS0, 1), g.vpes[1]).unwrap();
        set(0xa1);
        g.v4().move_event(key(ITS0, 1), g.vpes[0]).unwrap();
        let r = g.enter(0, 0);
        g.msi(ITS0, 1);
        assert_eq!(g.guest(0), [1]);
        let _ = g.leave(r, Preempt);
        // The same for an LPI.
        let (ev, lpi) = (EventId(2), g.gic.alloc_lpi().unwrap());
        g.gic.map_physical(EventKey::new(ITS0, DEV, ev), lpi, CpuId(2)).unwrap();
        g.gic.move_physical(EventKey::new(ITS0, DEV, ev), CpuId(3)).unwrap();
        g.gic.configure_lpi(lpi, 0x80, true);
        g.gic.invalidate(EventKey::new(ITS0, DEV, ev)).unwrap();
        g.gic.move_physical(EventKey::new(ITS0, DEV, ev), CpuId(2)).unwrap();
        g.msi(ITS0, 2);
        g.machine.advance_us(20);
        assert_eq!(g.machine.host_ack(2), Some(lpi.0));
        g.machine.assert_clean();
    });
}

#[test]
fn an_lpi_that_is_allocated_again_has_its_present_configuration() {
    everywhere(|g| {
        let (ev, lpi) = (EventId(1), g.gic.alloc_lpi().unwrap());
        g.gic.configure_lpi(lpi, 0x80, true);
        g.gic.map_physical(EventKey::new(ITS0, DEV, ev), lpi, CpuId(0)).unwrap();
        g.msi(ITS0, 1);
        g.machine.advance_us(20);
        assert_eq!(g.machine.host_ack(0), Some(lpi.0));
        g.gic.unmap_event(EventKey::new(ITS0, DEV, ev)).unwrap();
        g.gic.free_lpi(lpi);
        let again = core::iter::from_fn(|| g.gic.alloc_lpi()).find(|l| *l == lpi).unwrap();
        g.gic.map_physical(EventKey::new(ITS0, DEV, ev), again, CpuId(0)).unwrap();
        g.msi(ITS0, 1);
        g.machine.advance_us(20);
        assert_eq!(g.machine.host_ack(0), None, "it is disabled again");
        g.machine.assert_clean();
    });
}

#[test]
fn software_sets_and_clears_the_pending_state_of_a_virtual_event() {
    everywhere(|g| {
        g.map(ITS0, 1, 0);
        g.gic.set_pending(key(ITS0, 1)).unwrap();
        g.gic.clear_pending(key(ITS0, 1)).unwrap();
        let r = g.enter(0, 0);
        assert!(g.guest(0).is_empty());
        g.gic.set_pending(key(ITS0, 1)).unwrap();
        assert_eq!(g.guest(0), [1]);
        let _ = g.leave(r, Preempt);
        g.machine.assert_clean();
    });
}

#[test]
fn removing_vms_and_vpes_frees_their_memory_and_numbers() {
    for config in machines() {
        let g = Guest::new(config, 2);
        g.map(ITS0, 1, 0);
        g.take_down();
        // Second levels of tables stay allocated, so memory is compared from the second round on.
        let (memory, lpis) = (g.machine.allocations().len(), g.gic.lpis_in_use());
        let v4 = g.v4();
        let vm = v4.create_vm(14).unwrap();
        let vpe = v4.add_vpe(vm, CpuId(1)).unwrap();
        g.gic.map_device(ITS0, DEV, 5).unwrap();
        v4.map_event(key(ITS0, 0), vpe, vlpi(0)).unwrap();
        assert_eq!(v4.remove_vpe(vpe), Err(V4Error::HasEvents));
        assert_eq!(v4.destroy_vm(vm), Err(V4Error::HasVpes));
        let r = v4.enter(vpe, CpuId(2), InterruptGroups::GROUP1).unwrap();
        assert_eq!(v4.remove_vpe(vpe), Err(V4Error::Resident(CpuId(2))));
        let _ = v4.leave(r, Preempt);
        g.gic.unmap_event(key(ITS0, 0)).unwrap();
        v4.remove_vpe(vpe).unwrap();
        v4.destroy_vm(vm).unwrap();
        g.gic.unmap_device(ITS0, DEV).unwrap();
        assert_eq!((g.machine.allocations().len(), g.gic.lpis_in_use()), (memory, lpis));
        assert_eq!((v4.home(vpe), v4.remove_vpe(vpe)), (None, Err(V4Error::NoSuchVpe(vpe))));
        g.machine.assert_clean();
    }
}

#[test]
fn a_vpe_is_resident_on_one_cpu_and_a_cpu_holds_one_vpe() {
    let g = Guest::new(Config::v4_0(CPUS), 2);
    let v4 = g.v4();
    let r = g.enter(0, 0);
    assert_eq!(v4.enter(g.vpes[0], CpuId(1), InterruptGroups::GROUP1).err(), Some(EnterError::Elsewhere(CpuId(0))));
    assert_eq!(v4.enter(g.vpes[1], CpuId(0), InterruptGroups::GROUP1).err(), Some(EnterError::Occupied(g.vpes[0])));
    assert_eq!(v4.enter(VpeId(77), CpuId(0), InterruptGroups::GROUP1).err(), Some(EnterError::NoSuchVpe(VpeId(77))));
    assert_eq!(v4.enter(g.vpes[1], CpuId(99), InterruptGroups::GROUP1).err(), Some(EnterError::CpuOffline(CpuId(99))));
    assert_eq!(v4.resident_on(g.vpes[0]), Some(CpuId(0)));
    let _ = g.leave(r, Preempt);
    assert_eq!(v4.resident_on(g.vpes[0]), None);
    let r = g.enter(0, 1);
    let _ = g.leave(r, Preempt);
    g.machine.assert_clean();
}

#[test]
fn no_command_is_posted_that_is_an_error_for_the_state_of_its_event() {
    let g = Guest::new(Config::v4_0(CPUS), 2);
    let (v4, ev, lpi) = (g.v4(), EventId(1), g.gic.alloc_lpi().unwrap());
    let before = g.machine.commands(0).len();
    assert_eq!(v4.map_event(key(ITS0, 32), g.vpes[0], vlpi(1)), Err(ItsError::EventRange(EventId(32))));
    assert_eq!(
        v4.map_event(EventKey::new(ITS0, DeviceId(9), ev), g.vpes[0], vlpi(1)),
        Err(ItsError::NoSuchDevice(DeviceId(9)))
    );
    for wrong in [VIntid(8191), VIntid(1 << 14), VIntid(0)] {
        assert_eq!(v4.map_event(EventKey::new(ITS0, DEV, ev), g.vpes[0], wrong), Err(ItsError::VIntidRange(wrong)));
    }
    assert_eq!(v4.map_event(EventKey::new(ITS0, DEV, ev), VpeId(50), vlpi(1)), Err(ItsError::NoSuchVpe(VpeId(50))));
    assert_eq!(v4.move_event(EventKey::new(ITS0, DEV, ev), g.vpes[0]), Err(ItsError::EventState(ev)));
    assert_eq!(v4.to_software(EventKey::new(ITS0, DEV, ev), lpi, CpuId(0)), Err(ItsError::EventState(ev)));
    assert_eq!(g.gic.set_pending(EventKey::new(ITS0, DEV, ev)), Err(ItsError::EventState(ev)));
    assert_eq!(g.gic.move_physical(EventKey::new(ITS0, DEV, ev), CpuId(0)), Err(ItsError::EventState(ev)));
    assert_eq!(
        g.gic.map_physical(EventKey::new(ITS0, DEV, ev), Lpi(8191), CpuId(0)),
        Err(ItsError::LpiRange(Lpi(8191)))
    );
    assert_eq!(g.gic.map_physical(EventKey::new(ITS0, DEV, ev), lpi, CpuId(9)), Err(ItsError::CpuOffline(CpuId(9))));
    assert_eq!(g.gic.map_device(ITS0, DEV, 5), Err(ItsError::DeviceMapped(DEV)));
    assert_eq!(g.gic.map_device(ITS0, DeviceId(u32::MAX), 5), Err(ItsError::DeviceRange(DeviceId(u32::MAX))));
    assert_eq!(g.gic.map_device(ITS0, DeviceId(9), 0), Err(ItsError::EventBits(0)));
    assert_eq!(g.gic.map_device(ItsId(5), DeviceId(9), 5), Err(ItsError::NoSuchIts(ItsId(5))));
    assert_eq!(g.gic.unmap_event(EventKey::new(ITS0, DEV, ev)), Ok(Event::Unmapped));
    assert_eq!(g.machine.commands(0).len(), before, "no command was posted");

    g.map(ITS0, 1, 0);
    assert_eq!(v4.map_event(EventKey::new(ITS0, DEV, ev), g.vpes[0], vlpi(2)), Err(ItsError::EventMapped(ev)));
    assert_eq!(g.gic.map_physical(EventKey::new(ITS0, DEV, ev), lpi, CpuId(0)), Err(ItsError::EventMapped(ev)));
    let other = v4.create_vm(14).unwrap();
    let stranger = v4.add_vpe(other, CpuId(0)).unwrap();
    assert_eq!(v4.move_event(EventKey::new(ITS0, DEV, ev), stranger), Err(ItsError::OtherVm(stranger)));
    g.machine.assert_clean();
}

#[test]
fn callers_cannot_use_the_proxy_device() {
    let g = Guest::new(Config::qemu(CPUS), 1);
    let (its, dev) = g.gic.facts().proxy.expect("no DirectLPI");
    assert_eq!((its, dev), (ITS0, DeviceId(0xffff)));
    assert_eq!(g.gic.map_device(its, dev, 5), Err(ItsError::DeviceMapped(dev)));
    assert_eq!(g.gic.unmap_device(its, dev), Err(ItsError::DeviceRange(dev)));
    assert_eq!(g.gic.unmap_event(EventKey::new(its, dev, EventId(0))), Err(ItsError::EventRange(EventId(0))));
}

#[test]
fn the_commands_of_a_vpe_have_the_order_that_the_manual_requires() {
    let g = Guest::new(Config::v4_0(CPUS), 1);
    g.map(ITS0, 1, 0);
    let r = g.enter(0, 2);
    let _ = g.leave(r, Preempt);
    g.take_down();
    let c = g.gic.counters();
    let count = |k| c.commands(k);
    assert_eq!((count(Kind::Vmapp), count(Kind::Vinvall), count(Kind::Vmapti), count(Kind::Vmovp)), (2, 1, 1, 1));
    let names: Vec<_> = g.machine.commands(0).iter().map(|c| std::format!("{c:?}")).collect();
    let kinds: Vec<&str> =
        names.iter().map(|n| n.split([' ', '{', '(']).next().unwrap()).filter(|n| n.starts_with('V')).collect();
    assert_eq!(
        kinds,
        ["Vmapp", "Vsync", "Vinvall", "Vsync", "Vmapti", "Vsync", "Vmovp", "Vsync", "Vsync", "Vmapp", "Vsync"]
    );
}

#[test]
fn in_itslist_mode_a_vpe_is_mapped_and_moved_on_exactly_the_itss_of_its_events() {
    let g = Guest::new(Config::its_list(CPUS, 3), 2);
    let count = |kind: &str, its: usize| {
        g.machine.commands(its).iter().filter(|c| std::format!("{c:?}").starts_with(kind)).count()
    };
    assert_eq!([0, 1, 2].map(|its| count("Vmapp", its)), [0, 0, 0]);
    g.map(ITS0, 1, 0);
    g.map(ItsId(2), 2, 0);
    assert_eq!([0, 1, 2].map(|its| count("Vmapp", its)), [1, 0, 1]);
    let r = g.enter(0, 3);
    assert_eq!([0, 1, 2].map(|its| count("Vmovp", its)), [1, 0, 1]);
    g.msi(ITS0, 1);
    g.msi(ItsId(2), 2);
    let mut got = g.guest(3);
    got.sort_unstable();
    assert_eq!(got, [1, 2]);
    let _ = g.leave(r, Preempt);
    g.gic.unmap_event(key(ITS0, 1)).unwrap();
    g.machine.advance_us(100);
    assert_eq!([0, 1, 2].map(|its| count("Vmapp", its)), [2, 0, 1], "unmapped with its last event");
    let r = g.enter(0, 1);
    assert_eq!([0, 1, 2].map(|its| count("Vmovp", its)), [1, 0, 2]);
    // It is mapped again at its new home.
    g.map(ItsId(1), 3, 0);
    g.msi(ItsId(1), 3);
    assert_eq!(g.guest(1), [3]);
    let _ = g.leave(r, Preempt);
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn when_vpeids_run_out_add_vpe_fails_and_other_vpes_keep_working() {
    let g = Guest::new(
        Config::v4_0(CPUS).each_its(|_, its| {
            for baser in its.basers.iter_mut().flatten().filter(|b| b.kind == gic_model::TableKind::Vpe) {
                (baser.pages, baser.indirect) = (vec![4], false);
            }
        }),
        0,
    );
    let limit = g.gic.facts().vpes as usize;
    let v4 = g.v4();
    let all: Vec<_> = core::iter::from_fn(|| v4.add_vpe(g.vm, CpuId(0)).ok()).take(limit.min(300)).collect();
    assert!(all.len() == limit || limit > 300);
    all.iter().for_each(|v| v4.remove_vpe(*v).unwrap());
    g.machine.assert_clean();
}
