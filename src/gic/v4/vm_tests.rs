//! Limits of VMs and vPEs, and failures to make or remove them.

use super::*;
use crate::gic::ItsError;
use crate::gic::its::{COMMAND_LIMIT_US, Event};
use crate::gic::testing::key;
use crate::gic::testing::{Bench, DEV, Guest, ITS0, vlpi};
use crate::gic::v4::Why::{Block, Preempt};
use crate::ids::EventKey;
use crate::ids::{CpuId, DeviceId, EventId, ItsId, VIntid, VpeId};
use gic_model::{Command, CommandFault, Config, Fault, TableKind};
use std::collections::BTreeSet;
use std::string::{String, ToString};
use std::vec::Vec;

const CPUS: usize = 4;

/// How many commands of a kind an ITS has seen; `kind` is the model's name for it.
fn count(g: &Guest, its: usize, kind: &str) -> usize {
    g.machine.commands(its).iter().filter(|c| std::format!("{c:?}").starts_with(kind)).count()
}

fn mark_dead(g: &Guest, its: u8) {
    g.gic.its(ItsId(its)).unwrap().queue.mark_dead(g.gic.counters());
}

/// Two ITSs; one VMOVP moves a vPE for both.
fn two_itss() -> Config {
    let mut config = Config::v4_0(CPUS);
    let second = gic_model::Its { base: 0x2d00_0000, ..config.its[0].clone() };
    config.its.push(second);
    config
}

#[test]
fn every_error_has_a_message_of_its_own() {
    let (cpu, vpe) = (CpuId(1), VpeId(2));
    let all = [
        V4Error::NoMemory,
        V4Error::NoVpeId,
        V4Error::NoLpi,
        V4Error::NoSuchVm,
        V4Error::NoSuchVpe(vpe),
        V4Error::HasVpes,
        V4Error::Resident(cpu),
        V4Error::HasEvents,
        V4Error::CpuOffline(cpu),
        V4Error::IdBits(13),
        V4Error::VIntidRange(VIntid(1)),
        V4Error::Its(ItsError::Dead),
        V4Error::Redist(cpu),
        V4Error::NoSuchSgi(16),
    ];
    let enter = [
        EnterError::NoSuchVpe(vpe),
        EnterError::CpuOffline(cpu),
        EnterError::Elsewhere(cpu),
        EnterError::Occupied(vpe),
        EnterError::NotMoved { home: cpu },
        EnterError::Moving,
        EnterError::Busy,
    ];
    for sentences in [all.map(|e| e.to_string()).to_vec(), enter.map(|e| e.to_string()).to_vec()] {
        assert!(sentences.iter().all(|s| s.contains(' ')));
        assert_eq!(sentences.iter().collect::<BTreeSet<&String>>().len(), sentences.len());
    }
}

#[test]
fn each_of_many_vpes_has_its_own_interrupts() {
    const VPES: usize = 150;
    let g = Guest::new(Config::v4_0(2), 1);
    let v4 = g.v4();
    let vpes: Vec<VpeId> = (0..VPES).map(|n| v4.add_vpe(g.vm, CpuId(n as u16 % 2)).unwrap()).collect();
    assert_eq!(vpes.iter().collect::<BTreeSet<_>>().len(), VPES);
    g.gic.map_device(ITS0, DeviceId(0x20), 8).unwrap();
    for (n, vpe) in (0..).zip(&vpes) {
        v4.configure(g.vm, vlpi(n), 0xa1).unwrap();
        v4.map_event(EventKey::new(ITS0, DeviceId(0x20), EventId(n)), *vpe, vlpi(n)).unwrap();
        g.machine.msi(0x20, n);
    }
    for (n, vpe) in (0..).zip(&vpes) {
        let cpu = n as u16 % 2;
        assert_eq!(v4.home(*vpe), Some(CpuId(cpu)));
        let mut resident = v4.enter(*vpe, CpuId(cpu), InterruptGroups::GROUP1).unwrap();
        v4.before_eret(&mut resident);
        assert_eq!(g.guest(cpu.into()), [n]);
        let _ = v4.leave(resident, Preempt);
    }
    let moved = g.gic.take_out(CpuId(0), CpuId(1)).unwrap();
    // The vPE that every guest of these tests has lives there, too.
    assert_eq!((moved.vpes as usize, moved.events), (VPES / 2 + 1, 0));
    assert!(vpes.iter().all(|vpe| v4.home(*vpe) == Some(CpuId(1))));
    for (n, vpe) in (0..).zip(&vpes) {
        g.machine.msi(0x20, n);
        let mut resident = v4.enter(*vpe, CpuId(1), InterruptGroups::GROUP1).unwrap();
        v4.before_eret(&mut resident);
        assert_eq!(g.guest(1), [n], "the hardware has it there");
        let _ = v4.leave(resident, Preempt);
    }
    g.gic.unmap_device(ITS0, DeviceId(0x20)).unwrap();
    vpes.iter().for_each(|vpe| v4.remove_vpe(*vpe).unwrap());
    g.take_down();
    g.machine.assert_clean();
}

#[test]
fn a_vm_has_the_vlpis_of_its_intid_bits_and_they_are_disabled_at_first() {
    for bits in [14u8, 15, 16] {
        let g = Guest::new(Config::v4_0(CPUS), 0);
        let (v4, before) = (g.v4(), g.machine.allocations());
        let vm = v4.create_vm(bits).unwrap();
        let table = *g.machine.allocations().iter().find(|a| !before.contains(a)).unwrap();
        assert_eq!((table.size, table.align), ((1 << bits) - 8192, 0x1_0000));
        let byte = |n: u64| g.machine.load8(table.address + n);
        assert!((0..table.size).all(|n| byte(n) == 0xa2), "priority 0xa0, disabled");
        let (last, beyond) = (VIntid((1 << bits) - 1), VIntid(1 << bits));
        assert_eq!(v4.configure(vm, VIntid(8191), 1), Err(V4Error::VIntidRange(VIntid(8191))));
        assert_eq!(v4.configure(vm, beyond, 1), Err(V4Error::VIntidRange(beyond)));
        v4.configure(vm, last, 0x41).unwrap();
        assert_eq!((byte(table.size - 1), byte(table.size - 2)), (0x43, 0xa2));
        v4.configure(vm, VIntid(8192), 0x81).unwrap();
        assert_eq!((byte(0), byte(1)), (0x83, 0xa2));
        let before = g.machine.allocations();
        let vpe = v4.add_vpe(vm, CpuId(0)).unwrap();
        let added = g.machine.allocations();
        let vpt = added.iter().find(|a| !before.contains(a) && a.align == 0x1_0000).unwrap();
        assert_eq!(vpt.size, (1 << bits) / 8, "a bit for each INTID");
        v4.map_event(key(ITS0, 1), vpe, last).unwrap();
        g.machine.msi(DEV.0, 1);
        let mut resident = v4.enter(vpe, CpuId(0), InterruptGroups::GROUP1).unwrap();
        v4.before_eret(&mut resident);
        assert_eq!(g.machine.guest_ack(0), Some(last.0));
        let _ = v4.leave(resident, Preempt);
        g.machine.assert_clean();
    }
}

#[test]
fn a_vm_needs_14_intid_bits_and_at_most_those_of_the_redistributors() {
    let refused = |config, bits| Guest::new(config, 0).v4().create_vm(bits).err() == Some(V4Error::IdBits(bits));
    assert!(refused(Config::v4_0(CPUS), 13));
    assert!(refused(Config::v4_0(CPUS), 17));
    let mut small = Config::v4_0(CPUS);
    small.intid_bits = 15;
    assert!(!refused(small.clone(), 15));
    assert!(refused(small, 16));
}

#[test]
fn a_removed_vm_is_unknown_and_its_handle_is_reused() {
    let g = Guest::new(Config::v4_0(CPUS), 0);
    let v4 = g.v4();
    let (first, second) = (v4.create_vm(14).unwrap(), v4.create_vm(14).unwrap());
    v4.destroy_vm(first).unwrap();
    assert_eq!(v4.destroy_vm(first), Err(V4Error::NoSuchVm));
    assert_eq!(v4.configure(first, vlpi(0), 1), Err(V4Error::NoSuchVm));
    assert_eq!(v4.add_vpe(first, CpuId(0)), Err(V4Error::NoSuchVm));
    assert_eq!(v4.create_vm(14), Ok(first));
    assert_ne!(v4.create_vm(14), Ok(second));
    v4.configure(second, vlpi(0), 1).unwrap();
}

#[test]
fn a_vpe_that_fails_for_lack_of_memory_takes_no_vpeid() {
    let mut config = Config::v4_1(CPUS, 1);
    config.vpeid_bits = Some(1);
    let g = Guest::new(config, 0);
    let lpis = g.gic.lpis_in_use();
    for _ in 0..4 {
        g.machine.inject(Fault::OutOfMemory { after: 0 });
        assert_eq!(g.v4().add_vpe(g.vm, CpuId(0)), Err(V4Error::NoMemory));
        g.machine.heal();
    }
    assert_eq!(g.gic.lpis_in_use(), lpis);
    let vpes = [0, 1].map(|cpu| g.v4().add_vpe(g.vm, CpuId(cpu)).unwrap());
    assert_eq!(g.v4().add_vpe(g.vm, CpuId(0)), Err(V4Error::NoVpeId));
    vpes.iter().for_each(|vpe| g.v4().remove_vpe(*vpe).unwrap());
    g.v4().destroy_vm(g.vm).unwrap();
    g.machine.assert_clean();
}

#[test]
fn a_vpe_whose_map_times_out_is_not_used_and_its_vpeid_is_quarantined() {
    let g = Guest::new(Config::v4_0(CPUS), 1);
    let memory = g.machine.allocations().len();
    g.machine.inject(Fault::Hung { its: 0 });
    assert_eq!(g.v4().add_vpe(g.vm, CpuId(1)), Err(V4Error::Its(ItsError::Timeout)));
    g.machine.heal();
    g.machine.advance_us(COMMAND_LIMIT_US);
    assert_eq!(g.machine.allocations().len(), memory + 1, "its pending table is not freed");
    assert_eq!(g.gic.counters().quarantined_bytes.get(), 2048);
    let next = g.v4().add_vpe(g.vm, CpuId(1)).unwrap();
    assert_eq!(next, VpeId(g.vpes[0].0 + 2));
    g.v4().remove_vpe(next).unwrap();
    g.v4().remove_vpe(g.vpes[0]).unwrap();
    // The VM can be removed, but its configuration table is not freed: the hardware may still read it.
    g.v4().destroy_vm(g.vm).unwrap();
    assert_eq!(g.gic.counters().quarantined_bytes.get(), 2048 + 8192);
    g.machine.assert_clean();
}

#[test]
fn a_vpe_whose_map_finds_no_room_in_the_ring_is_named_in_no_command() {
    let mut config = Config::v4_1(CPUS, 2);
    config.timing.relax = 20_000;
    let g = Guest::new(config, 0);
    g.machine.inject(Fault::Command { its: 0, nth: 1, fault: CommandFault::Late { us: 150_000 } });
    let its = g.gic.its(ITS0).unwrap();
    let harmless = crate::gic::its::Command::sync(its.target(g.gic.redist(CpuId(0)).unwrap()));
    (0..0x1_0000 / 32 - 1).for_each(|_| assert!(its.queue.post(g.gic.counters(), &[harmless]).is_ok()));
    assert!(g.v4().add_vpe(g.vm, CpuId(0)).is_err());
    g.machine.advance_us(150_000);
    g.gic.drain(ITS0).unwrap();
    let named = |its| g.machine.commands(its).iter().any(|c| std::format!("{c:?}").starts_with('V'));
    assert!(!named(0) && !named(1));
    g.machine.assert_clean();
}

#[test]
fn vpes_are_mapped_on_the_itss_that_are_not_dead() {
    for (config, dead) in [(two_itss(), 0), (two_itss(), 1), (Config::v4_1(CPUS, 2), 0), (Config::v4_1(CPUS, 2), 1)] {
        let g = Guest::new(config, 0);
        mark_dead(&g, dead);
        let vpe = g.v4().add_vpe(g.vm, CpuId(0)).unwrap();
        let alive = ItsId(1 - dead);
        g.v4().configure(g.vm, vlpi(3), 0xa1).unwrap();
        g.v4().map_event(key(alive, 3), vpe, vlpi(3)).unwrap();
        // The remaining ITS moves it.
        let mut resident = g.v4().enter(vpe, CpuId(2), InterruptGroups::GROUP1).unwrap();
        g.v4().before_eret(&mut resident);
        g.msi(alive, 3);
        assert_eq!(g.guest(2), [3]);
        let _ = g.v4().leave(resident, Preempt);
        assert_eq!(g.v4().invalidate_all(vpe), Ok(()));
        g.gic.unmap_event(key(alive, 3)).unwrap();
        g.v4().remove_vpe(vpe).unwrap();
        mark_dead(&g, alive.0);
        assert_eq!(g.v4().add_vpe(g.vm, CpuId(0)), Err(V4Error::Its(ItsError::Dead)));
        g.v4().destroy_vm(g.vm).unwrap();
    }
}

#[test]
fn invalidate_all_posts_commands_only_on_itss_that_map_the_vpe() {
    let g = Guest::new(Config::its_list(CPUS, 3), 1);
    g.map(ITS0, 1, 0);
    g.map(ItsId(2), 2, 0);
    let before = [0, 1, 2].map(|its| count(&g, its, "Vinvall"));
    g.v4().invalidate_all(g.vpes[0]).unwrap();
    let after = [0, 1, 2].map(|its| count(&g, its, "Vinvall"));
    assert_eq!(after, [before[0] + 1, before[1], before[2] + 1]);
    mark_dead(&g, 0);
    g.v4().invalidate_all(g.vpes[0]).unwrap();
    assert_eq!(count(&g, 2, "Vinvall"), after[2] + 1);
    g.machine.assert_clean();
}

#[test]
fn in_itslist_mode_a_vpe_stays_mapped_until_its_last_event_is_unmapped() {
    let g = Guest::new(Config::its_list(CPUS, 2), 1);
    (1..=3).for_each(|ev| g.map(ITS0, ev, 0));
    assert_eq!(count(&g, 0, "Vmapp"), 1);
    for ev in [2, 1] {
        g.gic.unmap_event(key(ITS0, ev)).unwrap();
        assert_eq!(count(&g, 0, "Vmapp"), 1);
    }
    assert_eq!(g.v4().remove_vpe(g.vpes[0]), Err(V4Error::HasEvents));
    g.gic.unmap_event(key(ITS0, 3)).unwrap();
    g.gic.drain(ITS0).unwrap();
    assert_eq!(count(&g, 0, "Vmapp"), 2);
    assert!(matches!(g.machine.commands(0).last(), Some(Command::Vsync { .. })));
    g.take_down();
    assert_eq!((count(&g, 0, "Vmapp"), count(&g, 1, "Vmapp")), (2, 0));
    g.machine.assert_clean();
}

#[test]
fn a_vpe_without_events_moves_without_a_command() {
    let g = Guest::new(Config::its_list(CPUS, 2), 1);
    let before = [0, 1].map(|its| g.machine.commands(its).len());
    let resident = g.enter(0, 3);
    assert!(!g.leave(resident, Block));
    assert_eq!([0, 1].map(|its| g.machine.commands(its).len()), before);
    assert_eq!(g.v4().home(g.vpes[0]), Some(CpuId(3)));
    g.map(ITS0, 1, 0);
    g.msi(ITS0, 1);
    assert_eq!(g.doorbells(3), [g.vpes[0]]);
    g.machine.assert_clean();
}

#[test]
fn doorbells_for_which_the_proxy_has_no_event_ring_all_the_same() {
    // The proxy device has 32 events: the 33rd vPE's doorbell is made known with INVALL.
    let config = Config::qemu(CPUS).each_its(|_, its| its.event_bits = 5);
    let g = Guest::new(config, 0);
    let vpes: Vec<VpeId> = (0..34).map(|_| g.v4().add_vpe(g.vm, CpuId(0)).unwrap()).collect();
    let (_, proxy) = g.gic.facts().proxy.unwrap();
    let lent = |c: &&Command| matches!(c, Command::Mapti { device, .. } if *device == proxy.0);
    assert_eq!(g.machine.commands(0).iter().filter(lent).count(), 32);
    let (v4, last) = (g.v4(), vpes[33]);
    v4.configure(g.vm, vlpi(1), 0xa1).unwrap();
    v4.map_event(key(ITS0, 1), last, vlpi(1)).unwrap();
    g.msi(ITS0, 1);
    assert_eq!(g.doorbells(0), [last]);
    for cpu in [2, 1] {
        let mut resident = v4.enter(last, CpuId(cpu), InterruptGroups::GROUP1).unwrap();
        v4.before_eret(&mut resident);
        g.machine.advance_us(10);
        assert_eq!(g.guest(cpu.into()), [1]);
        let _ = v4.leave(resident, Block);
        g.msi(ITS0, 1);
        assert_eq!(g.all_doorbells(), [last]);
    }
    assert_eq!(g.gic.counters().batch_errors.get(), 0);
    g.gic.unmap_event(key(ITS0, 1)).unwrap();
    vpes.iter().for_each(|vpe| v4.remove_vpe(*vpe).unwrap());
    // The events of the proxy are free again: as many vPEs can be made, and their doorbells ring.
    let vpes: Vec<VpeId> = (0..32).map(|_| v4.add_vpe(g.vm, CpuId(1)).unwrap()).collect();
    v4.map_event(key(ITS0, 1), vpes[31], vlpi(1)).unwrap();
    g.msi(ITS0, 1);
    assert_eq!(g.doorbells(1), [vpes[31]]);
    g.machine.assert_clean();
}

#[test]
fn a_vpes_memory_is_not_freed_if_its_redistributor_times_out() {
    // With GICR_CLRLPIR and GICR_INVLPIR, and with GICR_INVLPIR alone.
    let inv_only = Config::v4_0(CPUS).each_cpu(|_, cpu| (cpu.direct_lpi, cpu.ir) = (false, true));
    for config in [Config::v4_0(CPUS), inv_only] {
        let g = Guest::new(config, 1);
        let memory = g.machine.allocations().len();
        g.machine.inject(Fault::BusyStuck { cpu: 0 });
        let timeouts = || g.gic.counters().redist_timeouts.get();
        assert_eq!(timeouts(), 0);
        let second = g.v4().add_vpe(g.vm, CpuId(0)).unwrap();
        assert_eq!(timeouts(), 1, "the redistributor may not know its doorbell");
        assert_eq!(g.v4().remove_vpe(second), Err(V4Error::Redist(CpuId(0))));
        assert_eq!(g.v4().remove_vpe(g.vpes[0]), Err(V4Error::Redist(CpuId(0))));
        assert_eq!(g.machine.allocations().len(), memory + 1);
        assert_eq!(g.gic.counters().quarantined_bytes.get(), 2 * 2048);
        g.machine.heal();
        g.machine.assert_clean();
    }
}

#[test]
fn operations_that_succeed_count_no_faults() {
    for config in [Config::v4_0(CPUS), Config::qemu(CPUS), Config::its_list(CPUS, 2), Config::v4_1(CPUS, 2)] {
        let g = Guest::new(config, 2);
        g.map(ITS0, 1, 0);
        for cpu in [0, 2, 3, 0] {
            let resident = g.enter(0, cpu);
            let _ = g.leave(resident, if cpu == 2 { Preempt } else { Block });
        }
        let c = g.gic.counters();
        assert_eq!((c.enters.get(), c.leaves_preempt.get(), c.leaves_block.get(), c.vmovp.get()), (4, 1, 3, 3));
        assert_eq!((c.redist_timeouts.get(), c.timeouts.get(), c.batch_errors.get()), (0, 0, 0));
        assert_eq!(
            (c.quarantined_bytes.get(), c.dead_itss.get(), c.vmovp_recoveries.get(), c.stalls.get()),
            (0, 0, 0, 0)
        );
        g.take_down();
        g.machine.assert_clean();
    }
}

#[test]
fn the_number_of_vpes_is_limited_by_the_smallest_table() {
    let flat = |pages: u32| {
        move |_, its: &mut gic_model::Its| {
            for baser in its.basers.iter_mut().flatten().filter(|b| b.kind == TableKind::Vpe) {
                (baser.pages, baser.indirect, baser.entry_size) = (vec![pages], false, 32);
            }
        }
    };
    // 256 pages of 4 KiB with entries of 32 bytes.
    let bench = Bench::up(Config::v4_0(2).each_its(flat(4)));
    assert_eq!(bench.gic.facts().vpes, 32768);
    assert_eq!(Bench::up(Config::v4_1(2, 1)).gic.facts().vpes, 65535);
}

#[test]
fn an_event_of_an_its_without_virtual_lpis_cannot_be_mapped_to_a_vlpi() {
    let mut config = two_itss();
    config.its[1].virtual_lpis = false;
    let g = Guest::new(config, 1);
    let refused = g.v4().map_event(key(ItsId(1), 1), g.vpes[0], vlpi(1));
    assert_eq!(refused, Err(ItsError::NotVirtual));
    assert_eq!(g.gic.event(key(ItsId(1), 1)), Ok(Event::Unmapped));
    g.map(ITS0, 1, 0);
    g.machine.assert_clean();
}

#[test]
fn a_masked_doorbell_stays_pending_and_rings_when_it_is_unmasked() {
    let proxy = |c: Config| c.each_cpu(|_, cpu| cpu.direct_lpi = false);
    // By GICR_INVLPIR; by the proxy; by INVALL, because the proxy has no event for the 33rd vPE.
    let few = Config::qemu(CPUS).each_its(|_, its| its.event_bits = 5);
    for (config, others) in [(Config::v4_0(CPUS), 0), (proxy(Config::v4_0(CPUS)), 0), (few, 32)] {
        let g = Guest::new(config, 0);
        (0..others).for_each(|_| _ = g.v4().add_vpe(g.vm, CpuId(0)).unwrap());
        let vpe = g.v4().add_vpe(g.vm, CpuId(1)).unwrap();
        g.v4().configure(g.vm, vlpi(1), 0xa1).unwrap();
        g.v4().map_event(key(ITS0, 1), vpe, vlpi(1)).unwrap();
        assert_eq!(g.v4().mask_doorbell(vpe, true), Ok(true));
        g.msi(ITS0, 1);
        assert!(g.all_doorbells().is_empty(), "the doorbell is masked");
        assert_eq!(g.v4().mask_doorbell(vpe, false), Ok(true));
        g.machine.advance_us(100);
        assert_eq!(g.all_doorbells(), [vpe], "the doorbell stayed pending");
        g.machine.assert_clean();
    }
}

#[test]
fn masking_a_doorbell_fails_if_its_redistributor_times_out() {
    let g = Guest::new(Config::v4_0(CPUS), 2);
    g.machine.inject(Fault::BusyStuck { cpu: 1 });
    assert_eq!(g.v4().mask_doorbell(g.vpes[1], true), Err(V4Error::Redist(CpuId(1))));
}

#[test]
fn a_default_doorbell_needs_no_mask() {
    let g = Guest::new(Config::v4_1(CPUS, 1), 1);
    let before = g.machine.commands(0).len();
    assert_eq!(g.v4().mask_doorbell(g.vpes[0], true), Ok(false));
    assert_eq!(g.machine.commands(0).len(), before);
}
