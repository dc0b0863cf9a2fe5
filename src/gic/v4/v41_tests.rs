//! What only GICv4.1 has: shared vPE tables, default doorbells, virtual SGIs, direct invalidation.

use super::*;
use crate::gic::ItsError;
use crate::gic::testing::key;
use crate::gic::testing::{Bench, DEV, Guest, ITS0, vlpi};
use crate::gic::v4::Why::{Block, Preempt};
use crate::ids::{CpuId, ItsId, VpeId};
use gic_model::{Command, Config, Delivery, Fault};
use std::vec::Vec;

const CPUS: usize = 4;
const ON: SgiConfig = SgiConfig { enabled: true, group1: true, priority: 0xa0 };

fn guest(itss: usize) -> Guest {
    Guest::new(Config::v4_1(CPUS, itss), 2)
}

/// V, Alloc and PTZ of each VMAPP of a vPE on an ITS.
fn vmapps(g: &Guest, its: usize, vpe: VpeId) -> Vec<(bool, bool, bool)> {
    let of = |c: &Command| match *c {
        Command::Vmapp { vpe: v, valid, v4_1: Some(x), .. } if v == vpe.0 => Some((valid, x.alloc, x.ptz)),
        _ => None,
    };
    g.machine.commands(its).iter().filter_map(of).collect()
}

#[test]
fn only_the_first_map_and_the_last_unmap_over_all_itss_allocate() {
    let g = guest(3);
    let vpe = g.vpes[0];
    g.take_down();
    assert_eq!(vmapps(&g, 0, vpe), [(true, true, false), (false, false, false)]);
    assert_eq!(vmapps(&g, 1, vpe), [(true, false, false), (false, false, false)]);
    assert_eq!(vmapps(&g, 2, vpe), [(true, false, false), (false, true, false)]);
    g.machine.assert_clean();
}

#[test]
fn no_vsync_names_a_vpe_that_is_unmapped() {
    let g = guest(2);
    g.map(ITS0, 1, 0);
    g.take_down();
    for its in 0..2 {
        let mut mapped = [false; 16];
        for command in g.machine.commands(its) {
            match command {
                Command::Vmapp { vpe, valid, .. } => mapped[usize::from(vpe)] = valid,
                Command::Vsync { vpe } => assert!(mapped[usize::from(vpe)], "VSYNC to {vpe}"),
                _ => {}
            }
        }
    }
}

#[test]
fn a_doorbell_is_requested_when_a_vpe_blocks_and_not_when_it_is_preempted() {
    let g = guest(1);
    g.map(ITS0, 1, 0);
    let r = g.enter(0, 0);
    assert!(!g.leave(r, Block));
    g.msi(ITS0, 1);
    assert_eq!(g.all_doorbells(), [g.vpes[0]]);
    let r = g.enter(0, 0);
    assert_eq!(g.guest(0), [1]);
    assert!(g.leave(r, Preempt), "PendingLast is set without a search for pending interrupts");
    g.msi(ITS0, 1);
    assert!(g.all_doorbells().is_empty());
    let r = g.enter(0, 0);
    assert_eq!(g.guest(0), [1]);
    assert!(!g.leave(r, Block));
    g.machine.assert_clean();
}

#[test]
fn a_doorbell_rings_even_if_its_lpi_was_disabled_before() {
    let g = guest(1);
    let (v4, home, lpi) = (g.v4(), CpuId(3), g.gic.alloc_lpi().unwrap());
    // The redistributor has cached that it is disabled.
    g.gic.map_physical(key(ITS0, 9), lpi, home).unwrap();
    g.gic.unmap_event(key(ITS0, 9)).unwrap();
    g.gic.free_lpi(lpi);
    let vpe = v4.add_vpe(g.vm, home).unwrap();
    assert_eq!(g.gic.doorbell(lpi), Some(vpe));
    v4.configure(g.vm, vlpi(1), 0xa1).unwrap();
    v4.map_event(key(ITS0, 1), vpe, vlpi(1)).unwrap();
    let mut r = v4.enter(vpe, home, InterruptGroups::GROUP1).unwrap();
    v4.before_eret(&mut r);
    assert!(!g.leave(r, Block));
    g.msi(ITS0, 1);
    assert_eq!(g.all_doorbells(), [vpe]);
    g.machine.assert_clean();
}

#[test]
fn a_doorbell_that_is_pending_when_its_vpe_is_removed_does_not_ring() {
    // It cannot be cleared: redistributors have GICR_INVLPIR, but not GICR_CLRLPIR.
    let config = Config::v4_1(CPUS, 2).each_cpu(|_, cpu| (cpu.direct_lpi, cpu.ir) = (false, true));
    let g = Guest::new(config, 2);
    g.map(ITS0, 1, 0);
    let r = g.enter(0, 0);
    assert!(!g.leave(r, Block));
    g.msi(ITS0, 1);
    g.gic.unmap_event(key(ITS0, 1)).unwrap();
    g.v4().remove_vpe(g.vpes[0]).unwrap();
    assert_eq!(g.machine.host_ack(0), None);
    g.machine.assert_clean();
}

#[test]
fn events_name_no_doorbell() {
    let g = guest(1);
    g.map(ITS0, 1, 0);
    g.v4().move_event(key(ITS0, 1), g.vpes[1]).unwrap();
    for command in g.machine.commands(0) {
        match command {
            Command::Vmapti { doorbell, .. } => assert_eq!(doorbell, 1023),
            Command::Vmovi { doorbell, .. } => assert_eq!(doorbell, None),
            _ => {}
        }
    }
    g.machine.assert_clean();
}

#[test]
fn a_vpe_is_moved_with_its_doorbell_on_every_change_of_cpu_even_within_an_affinity_group() {
    // A vPE can be resident anywhere within an affinity group without a move, but its doorbell would still ring on the
    // old CPU. The driver moves it, so the doorbell rings where the vPE ran last.
    let g = guest(1);
    g.map(ITS0, 1, 0);
    for cpu in [1, 2, 3, 0] {
        let r = g.enter(0, cpu);
        assert!(!g.leave(r, Block));
        g.msi(ITS0, 1);
        assert_eq!(g.doorbells(usize::from(cpu)), [g.vpes[0]]);
        g.gic.clear_pending(key(ITS0, 1)).unwrap();
    }
    let doorbells: Vec<_> = (g.machine.commands(0).iter())
        .filter_map(|c| if let Command::Vmovp { doorbell, .. } = c { Some(doorbell.is_some()) } else { None })
        .collect();
    assert_eq!(doorbells, [true; 4]);
    assert!(g.all_doorbells().is_empty());
    g.machine.assert_clean();
}

#[test]
fn a_vlpi_is_invalidated_by_its_redistributor_without_a_command() {
    let g = guest(1);
    g.map(ITS0, 1, 0);
    let r = g.enter(0, 2);
    let before = g.machine.commands(0).len();
    g.v4().configure(g.vm, vlpi(1), 0xa0).unwrap();
    g.gic.invalidate(key(ITS0, 1)).unwrap();
    g.msi(ITS0, 1);
    assert!(g.guest(2).is_empty(), "disabled");
    g.v4().configure(g.vm, vlpi(1), 0xa1).unwrap();
    g.v4().invalidate_all(g.vpes[0]).unwrap();
    assert_eq!(g.guest(2), [1]);
    assert_eq!(g.machine.commands(0).len(), before);
    let _ = g.leave(r, Preempt);
    g.machine.assert_clean();
}

#[test]
fn an_invalidate_falls_back_to_the_its_if_the_redistributor_stays_busy() {
    let g = guest(1);
    g.map(ITS0, 1, 0);
    g.machine.inject(Fault::BusyStuck { cpu: 0 });
    g.v4().configure(g.vm, vlpi(1), 0xa0).unwrap();
    let start = g.machine.now_us();
    g.gic.invalidate(key(ITS0, 1)).unwrap();
    assert!(g.machine.now_us() - start < 10_000);
    let r = g.enter(0, 1);
    g.msi(ITS0, 1);
    assert!(g.guest(1).is_empty(), "INV made the redistributor reload it");
    let _ = g.leave(r, Preempt);
    assert_eq!(g.v4().invalidate_all(g.vpes[1]), Ok(()));
    g.machine.assert_clean();
}

#[test]
fn a_virtual_sgi_reaches_a_resident_vpe_without_an_interrupt_of_el2() {
    let g = guest(2);
    assert!(g.gic.facts().vsgi);
    let v4 = g.v4();
    v4.configure_sgis(g.vpes[1], 1 << 5, |_| ON).unwrap();
    let r = g.enter(1, 1);
    v4.send_sgi(g.vpes[1], 5).unwrap();
    assert_eq!(g.machine.guest_ack(1), Some(5));
    assert!(g.machine.take_deliveries().iter().all(|d| matches!(d, Delivery::Guest { cpu: 1, intid: 5, .. })));
    assert!(!g.leave(r, Block));
    v4.send_sgi(g.vpes[1], 5).unwrap();
    assert_eq!(g.all_doorbells(), [g.vpes[1]]);
    assert_eq!(v4.pending_sgis(g.vpes[1]), Ok(1 << 5));
    v4.clear_sgis(g.vpes[1], 1 << 5).unwrap();
    assert_eq!(v4.pending_sgis(g.vpes[1]), Ok(0));
    assert_eq!(v4.send_sgi(g.vpes[1], 16), Err(V4Error::NoSuchSgi(16)));
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn a_virtual_sgi_is_sent_to_the_its_of_the_vpes_socket() {
    let socket = |n: usize| (n as u32 % 2) << 24;
    let g = Guest::new(
        Config::v4_1(CPUS, 2)
            .each_cpu(|n, cpu| cpu.affinity = socket(n) | n as u32)
            .each_its(|n, its| (its.mpidr, its.svpet) = (socket(n), 1)),
        2,
    );
    let v4 = g.v4();
    for (vpe, sgir) in g.machine.config().its.iter().map(|its| crate::ids::Pa(its.base + 0x2_0020)).enumerate() {
        v4.configure_sgis(g.vpes[vpe], 1 << 3, |_| ON).unwrap();
        v4.send_sgi(g.vpes[vpe], 3).unwrap();
        assert_eq!(g.gic.hw.writes().last(), Some(&sgir));
    }
    g.machine.assert_clean();
}

#[test]
fn there_are_no_virtual_sgis_unless_all_itss_and_redistributors_support_them() {
    let g = Guest::new(Config::v4_1(CPUS, 2).each_its(|n, its| its.vsgi = n == 0), 1);
    assert!(!g.gic.facts().vsgi);
    assert_eq!(g.v4().send_sgi(g.vpes[0], 1), Err(V4Error::NoSuchSgi(1)));
    assert_eq!(g.v4().configure_sgis(g.vpes[0], 1 << 1, |_| ON), Err(V4Error::NoSuchSgi(0)));
}

#[test]
fn with_two_vpeids_the_third_vcpu_gets_no_vpe() {
    let mut config = Config::v4_1(CPUS, 1);
    config.vpeid_bits = Some(1);
    let g = Guest::new(config, 2);
    assert_eq!(g.gic.facts().vpes, 2);
    assert_eq!(g.v4().add_vpe(g.vm, CpuId(0)), Err(V4Error::NoVpeId));
    g.v4().remove_vpe(g.vpes[1]).unwrap();
    assert_eq!(g.v4().add_vpe(g.vm, CpuId(0)), Ok(g.vpes[1]));
    g.machine.assert_clean();
}

#[test]
fn a_vpe_table_is_made_when_the_first_cpu_of_its_group_has_power() {
    // With 13 bits, a table has room for exactly as many vPEs as there may be.
    [16, 13].into_iter().for_each(enter_on_cpus_without_power_at_reset);
}

fn enter_on_cpus_without_power_at_reset(vpeid_bits: u32) {
    // Two groups of redistributors; only those of the first have power.
    let mut config = Config::v4_1(4, 1).each_cpu(|n, cpu| {
        (cpu.affinity, cpu.common_lpi_aff) = (((n as u32 / 2) << 24) | (n as u32 % 2), 1);
        cpu.powered_at_reset = n < 2;
    });
    config.vpeid_bits = Some(vpeid_bits);
    let Bench { machine, gic } = Bench::discovered(config).unwrap();
    (0..2).for_each(|cpu| gic.init_cpu(CpuId(cpu)).unwrap());
    let v4 = gic.v4().unwrap();
    let vm = v4.create_vm(14).unwrap();
    let vpe = v4.add_vpe(vm, CpuId(0)).unwrap();
    gic.map_device(ITS0, DEV, 5).unwrap();
    v4.configure(vm, vlpi(1), 0xa1).unwrap();
    v4.map_event(key(ITS0, 1), vpe, vlpi(1)).unwrap();
    for cpu in 2..4 {
        machine.power_on(cpu);
        gic.init_cpu(CpuId(cpu as u16)).unwrap();
    }
    for cpu in [2, 0, 3] {
        let mut r = v4.enter(vpe, CpuId(cpu), InterruptGroups::GROUP1).unwrap();
        v4.before_eret(&mut r);
        machine.msi_at(0, DEV.0, 1);
        assert_eq!(machine.guest_ack(usize::from(cpu)), Some(vlpi(1).0));
        let _ = v4.leave(r, Preempt);
    }
    machine.assert_clean();
}

#[test]
fn disabled_groups_keep_interrupts_from_a_guest() {
    let g = guest(1);
    g.map(ITS0, 1, 0);
    let r = g.enter_with(0, 0, InterruptGroups { group0: false, group1: false });
    g.msi(ITS0, 1);
    assert!(g.guest(0).is_empty());
    let _ = g.leave(r, Preempt);
    let r = g.enter(0, 0);
    assert_eq!(g.guest(0), [1]);
    let _ = g.leave(r, Preempt);
    g.machine.assert_clean();
}

#[test]
fn a_machine_with_gicv4_0_and_gicv4_1_parts_uses_no_virtual_lpis() {
    let half = [
        Config::v4_1(CPUS, 1).each_cpu(|n, cpu| cpu.rvpeid = n != 2),
        Config::v4_1(CPUS, 1).each_its(|_, its| its.vmapp = false),
        Config::v4_1(CPUS, 1).each_its(|_, its| its.virtual_lpis = false),
    ];
    for config in half {
        let b = Bench::discovered(config).unwrap();
        assert!(!b.gic.facts().virtual_lpis && b.gic.v4().is_none());
    }
}

#[test]
fn a_residency_that_an_earlier_owner_left_is_ended_first() {
    let left = 1u64 << 63 | 5;
    let b = Bench::up(Config::v4_1(CPUS, 1).each_cpu(|n, cpu| {
        if n == 1 {
            cpu.residency_at_reset = Some((left, 0));
        }
    }));
    assert_eq!(b.machine.resident(1), None);
    b.machine.assert_clean();
}

#[test]
fn virtual_sgis_are_sent_by_any_its_that_is_not_dead() {
    let g = guest(2);
    let (v4, vpe) = (g.v4(), g.vpes[0]);
    let dead = |its: u8| g.gic.its(ItsId(its)).unwrap().queue.mark_dead(g.gic.counters());
    let sgir = |its: usize| crate::ids::Pa(g.machine.config().its[its].base + 0x2_0020);
    v4.configure_sgis(vpe, 1 << 15, |_| ON).unwrap();
    v4.send_sgi(vpe, 15).unwrap();
    assert_eq!(g.gic.hw.writes().last(), Some(&sgir(0)));
    dead(0);
    v4.configure_sgis(vpe, 1 << 2, |_| ON).unwrap();
    v4.send_sgi(vpe, 2).unwrap();
    assert_eq!(g.gic.hw.writes().last(), Some(&sgir(1)));
    assert_eq!(v4.pending_sgis(vpe), Ok(1 << 15 | 1 << 2));
    v4.clear_sgis(vpe, 1 << 2).unwrap();
    assert_eq!(v4.pending_sgis(vpe), Ok(1 << 15));
    dead(1);
    assert_eq!(v4.send_sgi(vpe, 2), Err(V4Error::Its(ItsError::Dead)));
    assert_eq!(v4.configure_sgis(vpe, 1 << 2, |_| ON), Err(V4Error::Its(ItsError::Dead)));
}

#[test]
fn there_are_no_virtual_sgis_on_gicv4_0() {
    let g = Guest::new(Config::v4_0(CPUS), 1);
    assert_eq!(g.v4().pending_sgis(g.vpes[0]), Err(V4Error::NoSuchSgi(0)));
    assert_eq!(g.v4().clear_sgis(g.vpes[0], 1 << 3), Err(V4Error::NoSuchSgi(0)));
}
