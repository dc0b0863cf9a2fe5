//! GICv4.0: vPEs, residency, doorbells. Their behaviour and, for each rule, a violation of it beside a legal use.

mod common;

use common::*;
use gic_model::{Config, Delivery, Fault, Staleness};

const DB: u32 = LPI + 100;
const V: u32 = LPI + 5;

struct Vm {
    b: Bench,
    vconf: u64,
    vpt: [u64; 2],
}

/// vPE 0 on CPU 0 and vPE 1 on CPU 1. Device 5, event 1 is vLPI V of vPE 0 with doorbell DB.
fn vm_on(config: Config) -> Vm {
    let b = Bench::up(config);
    let (vconf, vpt) = (b.vconf(), [b.vpt(), b.vpt()]);
    b.set_config(DB, 0xa1);
    b.set_config(DB + 1, 0xa1);
    b.set_vconfig(vconf, V, 0xa1);
    b.device(0, 5);
    for n in 0..2u16 {
        b.run(0, &[vmapp(n, b.rdbase(0, n.into()), vpt[usize::from(n)]), vsync(n), vinvall(n), vsync(n)]);
    }
    for cpu in 0..b.c.cpus.len() {
        b.m.write64(b.vlpi(cpu) + 0x70, 13);
    }
    b.run(0, &[vmapti(5, 1, 0, V, DB), vsync(0)]);
    Vm { b, vconf, vpt }
}

fn vm() -> Vm {
    vm_on(Config::v4_0(3))
}

#[test]
fn an_msi_reaches_a_resident_vpe_without_the_hypervisor() {
    for config in [Config::v4_0(3), Config::qemu(3), Config::v4_0(2).stale(Staleness::Random(7))] {
        let Vm { b, vconf, vpt } = vm_on(config);
        b.enter(0, vpt[0], vconf);
        b.m.msi(5, 1);
        assert_eq!(b.m.guest_ack(0), Some(V));
        assert_eq!(b.m.guest_ack(0), None);
        assert_eq!(b.m.take_deliveries(), [Delivery::Guest { cpu: 0, vpe: Some(0), vpt: vpt[0], intid: V }]);
        assert!((0..2).all(|cpu| b.m.host_pending(cpu).is_empty()));
        assert_eq!(b.leave(0) & PENDING_LAST, 0);
        b.m.assert_clean();
    }
}

#[test]
fn an_msi_for_a_vpe_that_is_not_resident_is_pending_and_rings_its_doorbell_once() {
    let Vm { b, vconf, vpt } = vm();
    b.m.msi(5, 1);
    b.m.msi(5, 1);
    assert_eq!(b.m.vpt_pending(vpt[0]), [V]);
    assert_eq!(b.m.host_ack(0), Some(DB));
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(0), None, "the vLPI was pending already");
    b.enter(0, vpt[0], vconf);
    assert_eq!(b.m.guest_ack(0), Some(V));
    b.m.assert_clean();
}

#[test]
fn qemu_rings_the_doorbell_for_every_msi() {
    let Vm { b, .. } = vm_on(Config::qemu(2));
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(0), Some(DB));
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(0), Some(DB));
}

#[test]
fn a_doorbell_rings_for_a_disabled_vlpi_but_not_if_it_is_1023() {
    let Vm { b, vconf, .. } = vm();
    b.set_vconfig(vconf, V, 0xa0);
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(0), Some(DB));
    b.run(0, &[clear(5, 1), vmovi(5, 1, 0, Some(1023)), vsync(0)]);
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(0), None);
    b.m.assert_clean();
}

#[test]
fn pending_last_shows_a_vlpi_that_was_not_acknowledged() {
    let Vm { b, vconf, vpt } = vm();
    b.enter(0, vpt[0], vconf);
    b.m.msi(5, 1);
    assert_ne!(b.leave(0) & PENDING_LAST, 0);
    assert!(!b.m.host_irq(0));
    b.enter(0, vpt[0], vconf);
    assert_eq!(b.m.guest_ack(0), Some(V));
    assert_eq!(b.leave(0) & PENDING_LAST, 0);
    b.m.assert_clean();
}

#[test]
fn an_msi_while_a_residency_ends_shows_in_pending_last_and_rings_no_doorbell() {
    let Vm { b, vconf, vpt } = vm();
    b.enter(0, vpt[0], vconf);
    b.m.write64(b.vlpi(0) + 0x78, b.vpendbaser(0) & !(VALID | PENDING_LAST));
    b.m.msi(5, 1);
    assert_eq!(b.vpendbaser(0) & (DIRTY | PENDING_LAST), DIRTY, "PendingLast is not valid yet");
    b.wait_dirty(0);
    assert_ne!(b.vpendbaser(0) & PENDING_LAST, 0);
    assert!(!b.m.host_irq(0));
    b.m.assert_clean();
}

#[test]
fn interrupts_are_signalled_when_the_scan_is_over() {
    let Vm { b, vconf, vpt } = vm();
    b.m.msi(5, 1);
    b.m.write64(b.vlpi(0) + 0x70, vconf | SHARED | 13);
    b.m.write64(b.vlpi(0) + 0x78, VALID | PENDING_LAST | vpt[0] | SHARED);
    assert!(!b.m.guest_irq(0));
    b.wait_dirty(0);
    assert!(b.m.guest_irq(0));
    b.m.set_virtual_interface(0, false);
    assert!(!b.m.guest_irq(0));
    b.m.assert_clean();
}

#[test]
fn clearing_valid_while_dirty_and_changes_while_valid_are_violations() {
    let Vm { b, vconf, vpt } = vm();
    let register = b.vlpi(0) + 0x78;
    b.m.write64(b.vlpi(0) + 0x70, vconf | SHARED | 13);
    b.m.write64(register, VALID | PENDING_LAST | vpt[0] | SHARED);
    b.m.write64(register, vpt[0] | SHARED);
    b.expect("12.11 GICR_VPENDBASER");
    b.wait_dirty(0);
    b.m.write64(register, VALID | PENDING_LAST | vpt[0] | SHARED);
    b.m.assert_clean();
    b.m.write64(register, VALID | PENDING_LAST | vpt[1] | SHARED);
    b.expect("12.11 GICR_VPENDBASER");
    b.m.write64(b.vlpi(0) + 0x70, vconf | SHARED | 13);
    b.expect("12.11 GICR_VPROPBASER");
    b.m.write64(register, vpt[1] | SHARED);
    b.expect("12.11 GICR_VPENDBASER");
    b.m.write64(register, VALID | PENDING_LAST | vpt[0] | SHARED);
    b.expect("12.11 GICR_VPENDBASER");
    b.wait_dirty(0);
    b.enter(0, vpt[0], vconf);
    b.leave(0);
    b.m.assert_clean();
}

#[test]
fn a_stuck_dirty_stays_1_after_valid_is_set_and_after_it_is_cleared() {
    let Vm { b, vconf, vpt } = vm();
    b.enter(0, vpt[0], vconf);
    b.m.inject(Fault::DirtyStuck { cpu: 0 });
    b.m.advance_us(100_000);
    assert_ne!(b.vpendbaser(0) & DIRTY, 0);
    b.m.heal();
    assert_eq!(b.vpendbaser(0) & DIRTY, 0);
    b.m.inject(Fault::DirtyStuck { cpu: 1 });
    b.m.write64(b.vlpi(0) + 0x78, b.vpendbaser(0) & !(VALID | PENDING_LAST));
    b.wait_dirty(0);
    b.m.assert_clean();
}

#[test]
fn a_residency_that_begins_with_pending_last_0_ignores_pending_vlpis() {
    let Vm { b, vconf, vpt } = vm();
    b.m.msi(5, 1);
    b.enter_with(0, vpt[0], vconf, IDAI);
    b.expect("12.11 GICR_VPENDBASER");
    assert!(!b.m.guest_irq(0));
    b.m.msi(5, 1);
    assert!(b.m.guest_irq(0));
}

#[test]
fn idai_must_be_written_back_as_it_was_at_the_end_of_the_last_residency() {
    let Vm { b, vconf, vpt } = vm();
    b.enter_with(0, vpt[0], vconf, PENDING_LAST);
    b.m.assert_clean();
    let idai = b.leave(0) & IDAI;
    assert_ne!(idai, 0);
    b.enter_with(0, vpt[0], vconf, PENDING_LAST | idai);
    let idai = b.leave(0) & IDAI;
    assert_eq!(idai, 0);
    b.enter_with(0, vpt[0], vconf, PENDING_LAST | idai);
    b.leave(0);
    b.m.assert_clean();
    b.enter_with(0, vpt[0], vconf, PENDING_LAST);
    b.expect("12.11 GICR_VPENDBASER");
}

#[test]
fn a_vpe_must_be_resident_once_and_on_its_home_cpu() {
    let Vm { b, vconf, vpt } = vm();
    b.enter(1, vpt[0], vconf);
    b.expect("12.11 GICR_VPENDBASER");
    b.m.msi(5, 1);
    assert!(!b.m.guest_irq(1), "the message went to CPU0");
    assert_eq!(b.m.host_ack(0), Some(DB));
    b.leave(1);
    b.enter(0, vpt[0], vconf);
    b.m.assert_clean();
    b.enter(1, vpt[0], vconf);
    b.expect("12.11 GICR_VPENDBASER");
}

#[test]
fn a_move_needs_vmovp_and_vsync_while_the_vpe_is_not_resident() {
    let Vm { b, vconf, vpt } = vm();
    b.run(0, &[vmovp(0, 0, 0, b.rdbase(0, 2))]);
    b.enter(2, vpt[0], vconf);
    b.expect("12.11 GICR_VPENDBASER");
    b.leave(2);
    b.run(0, &[vsync(0)]);
    b.enter(2, vpt[0], vconf);
    b.m.msi(5, 1);
    assert_eq!(b.m.guest_ack(2), Some(V));
    b.m.assert_clean();
    b.run(0, &[vmovp(0, 0, 0, b.rdbase(0, 0))]);
    b.expect("5.3 VMOVP");
    b.run(0, &[vmovp(1, 1, 1, b.rdbase(0, 0))]);
    b.expect("5.3 VMOVP");
    b.run(0, &[vmovp(0, 0, 7, b.rdbase(0, 0))]);
    b.expect("5.3 VMOVP");
}

#[test]
fn a_pending_doorbell_stays_on_the_old_cpu_after_a_vmovp() {
    let Vm { b, .. } = vm();
    b.m.msi(5, 1);
    b.run(0, &[vmovp(0, 0, 0, b.rdbase(0, 2)), vsync(0)]);
    assert_eq!(b.m.host_pending(0), [DB]);
    b.m.write64(rd_base(&b.c, 0) + 0x48, DB.into());
    assert_eq!(b.m.host_pending(0), []);
    b.run(0, &[clear(5, 1), vsync(0)]);
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(2), Some(DB));
    b.m.assert_clean();
}

#[test]
fn vmovi_moves_the_pending_bit() {
    let Vm { b, vconf, vpt } = vm();
    b.m.msi(5, 1);
    b.run(0, &[vmovi(5, 1, 1, Some(DB + 1)), vsync(1)]);
    assert_eq!((b.m.vpt_pending(vpt[0]), b.m.vpt_pending(vpt[1])), (vec![], vec![V]));
    assert_eq!(b.m.host_ack(1), Some(DB + 1));
    b.enter(1, vpt[1], vconf);
    assert_eq!(b.m.guest_ack(1), Some(V));
    b.m.assert_clean();
}

#[test]
fn virtual_configuration_is_stale_until_inv_and_vsync() {
    let Vm { b, vconf, vpt } = vm();
    b.enter(0, vpt[0], vconf);
    b.set_vconfig(vconf, V, 0xa0);
    b.m.msi(5, 1);
    assert!(b.m.guest_irq(0));
    b.run(0, &[inv(5, 1), sync(b.rdbase(0, 0))]);
    assert!(b.m.guest_irq(0), "SYNC does not cover virtual events");
    b.run(0, &[vsync(0)]);
    assert!(!b.m.guest_irq(0));
    b.set_vconfig(vconf, V, 0xa1);
    b.run(0, &[vinvall(0), vsync(0)]);
    assert!(b.m.guest_irq(0));
    b.m.store8(vconf + u64::from(V - LPI), 0xa0);
    b.run(0, &[inv(5, 1)]);
    b.expect("5.3 INV");
}

#[test]
fn a_vpt_that_is_used_again_has_stale_configuration_until_vinvall() {
    let Vm { b, vconf, vpt } = vm();
    b.enter(0, vpt[0], vconf);
    b.leave(0);
    b.run(0, &[discard(5, 1), vsync(0), vunmapp(0), vsync(0)]);
    b.set_vconfig(vconf, V, 0xa0);
    b.run(0, &[vmapp(0, b.rdbase(0, 0), vpt[0]), vsync(0), vmapti(5, 1, 0, V, 1023), vsync(0)]);
    b.enter(0, vpt[0], vconf);
    b.m.msi(5, 1);
    assert!(b.m.guest_irq(0), "the cached configuration has it enabled");
    b.run(0, &[vinvall(0), vsync(0)]);
    assert!(!b.m.guest_irq(0));
    b.m.assert_clean();
}

#[test]
fn a_switch_to_a_physical_lpi_and_back_drops_msis_in_between() {
    let Vm { b, vconf, vpt } = vm();
    b.enter(0, vpt[0], vconf);
    b.set_config(LPI, 0xa1);
    b.run(0, &[discard(5, 1), vsync(0)]);
    b.m.msi(5, 1);
    assert_eq!(b.m.take_drops().len(), 1);
    b.run(0, &[mapti(5, 1, LPI, 1), int(5, 1), sync(b.rdbase(0, 1))]);
    assert_eq!(b.m.host_ack(1), Some(LPI));
    b.run(0, &[discard(5, 1), vmapti(5, 1, 0, V, DB), vsync(0), int(5, 1), vsync(0)]);
    assert_eq!(b.m.guest_ack(0), Some(V));
    b.m.assert_clean();
}

#[test]
fn the_pending_bits_of_an_unmapped_vpe_are_in_its_vpt() {
    let Vm { b, vpt, .. } = vm();
    b.m.msi(5, 1);
    b.run(0, &[vmapti(5, 2, 0, V + 1, 1023), vsync(0), discard(5, 2), vsync(0)]);
    b.m.assert_clean();
    b.run(0, &[vunmapp(0), vsync(0)]);
    b.expect("5.3 VMAPP");
    b.m.acquire(vpt[0], 0x800, false);
    assert_eq!(b.m.load8(vpt[0] + 1024), 1 << 5);
    b.run(0, &[vmapp(0, b.rdbase(0, 0), vpt[0]), vsync(0)]);
    assert_eq!(b.m.vpt_pending(vpt[0]), [V]);
    b.m.assert_clean();
}

#[test]
fn vmapp_needs_a_zeroed_vpt_that_no_other_vpe_has() {
    let Vm { b, vpt, .. } = vm();
    let target = b.rdbase(0, 2);
    b.run(0, &[vmapp(0, target, b.vpt())]);
    b.expect("5.3 VMAPP");
    b.run(0, &[vmapp(4, target, vpt[1])]);
    b.expect("5.3 VMAPP");
    b.run(0, &[vunmapp(9)]);
    b.expect("5.3 VMAPP");
    let fresh = b.m.alloc(0x800, 0x1_0000).expect("memory");
    b.run(0, &[vmapp(5, target, fresh)]);
    b.expect("5.3 VMAPP");
    let used = b.m.alloc(0x800, 0x1_0000).expect("memory");
    b.m.store8(used + 0x700, 1);
    b.m.publish(used, 0x800, false);
    b.run(0, &[vmapp(6, target, used)]);
    b.expect("5.3 VMAPP");
    b.run(0, &[vmapp(7, 0x7777_0000, b.vpt())]);
    b.expect("5.3 VMAPP");
    b.run(0, &[[0x29, 7 << 32, VALID | target, b.vpt() | 5]]);
    b.expect("5.3 VMAPP");
    b.run(0, &[[0x129, 7 << 32, VALID | target, b.vpt() | 13]]);
    b.expect("5.3 VMAPP");
    b.run(0, &[vmapp(8, target, b.vpt()), vsync(8)]);
    b.m.assert_clean();
}

#[test]
fn a_vpt_must_not_be_freed_before_the_vsync_after_its_unmapping() {
    let Vm { b, vpt, .. } = vm();
    b.m.free(vpt[1], 0x1_0000, 0x1_0000);
    b.expect("memory");
    let Vm { b, vpt, .. } = vm();
    b.run(0, &[vunmapp(1)]);
    b.m.free(vpt[1], 0x1_0000, 0x1_0000);
    b.expect("memory");
    let Vm { b, vpt, .. } = vm();
    b.run(0, &[vunmapp(1), vsync(1)]);
    b.m.free(vpt[1], 0x1_0000, 0x1_0000);
    b.m.assert_clean();
    let Vm { b, vconf, vpt } = vm();
    b.enter(0, vpt[0], vconf);
    b.m.free(vconf, 0x2000, 0x1_0000);
    b.expect("memory");
    let Vm { b, vconf, vpt } = vm();
    b.enter(0, vpt[0], vconf);
    b.leave(0);
    b.m.free(vconf, 0x2000, 0x1_0000);
    b.m.assert_clean();
}

#[test]
fn unmapping_a_resident_vpe_is_a_violation() {
    let Vm { b, vconf, vpt } = vm();
    b.run(0, &[discard(5, 1), vsync(0)]);
    b.enter(0, vpt[0], vconf);
    b.run(0, &[vunmapp(0)]);
    b.expect("5.3 VMAPP");
    let Vm { b, vconf, vpt } = vm();
    b.run(0, &[discard(5, 1), vsync(0)]);
    b.enter(0, vpt[0], vconf);
    b.leave(0);
    b.run(0, &[vunmapp(0), vsync(0)]);
    b.m.assert_clean();
}

#[test]
fn virtual_commands_with_unmapped_or_invalid_operands_are_violations() {
    let Vm { b, .. } = vm();
    for (command, section) in [
        (vmapti(5, 1, 0, V, 1023), "5.3 VMAPTI"),
        (vmapti(5, 2, 9, V, 1023), "5.3 VMAPTI"),
        (vmapti(5, 2, 0, 1 << 14, 1023), "5.3 VMAPTI"),
        (vmapti(5, 2, 0, 5, 1023), "5.3 VMAPTI"),
        (vmapti(5, 2, 0, V, 50), "5.3 VMAPTI"),
        (vmapti(5, 99, 0, V, 1023), "5.3 VMAPTI"),
        (vmapi(5, 2, 0, 1023), "5.3 VMAPI"),
        (vmovi(5, 2, 0, None), "5.3 VMOVI"),
        (vmovi(5, 1, 9, None), "5.3 VMOVI"),
        (vmovi(5, 1, 1, Some(5)), "5.3 VMOVI"),
        (movi(5, 1, 0), "5.3 MOVI"),
        (vinvall(9), "5.3 VINVALL"),
        (invdb(0), "5.3 ITS commands"),
        (vsgi(0, 3), "5.3 ITS commands"),
    ] {
        b.run(0, &[command]);
        b.expect(section);
    }
    b.run(0, &[mapti(5, 3, LPI + 3, 0), vmovi(5, 3, 0, None)]);
    b.expect("5.3 VMOVI");
    b.run(0, &[vsync(9)]);
    b.m.assert_clean();
}

#[test]
fn residency_needs_enabled_lpis_and_valid_intid_bits() {
    let Vm { b, vconf, vpt } = vm();
    b.m.write64(b.vlpi(0) + 0x70, vconf | SHARED | 12);
    b.m.write64(b.vlpi(0) + 0x78, VALID | PENDING_LAST | vpt[0] | SHARED);
    b.expect("12.11 GICR_VPROPBASER");
    b.m.write64(b.vlpi(0) + 0x70, vconf | SHARED | 31);
    b.expect("12.11 GICR_VPROPBASER");
    b.m.write64(b.vlpi(0) + 0x70, vconf | SHARED | 14);
    b.m.write64(b.vlpi(0) + 0x78, VALID | PENDING_LAST | vpt[0] | SHARED);
    b.expect_first("12.11 GICR_VPROPBASER");
    let Vm { b, vconf, vpt } = vm();
    b.m.write32(rd_base(&b.c, 0), 0);
    b.m.advance_us(5);
    b.enter(0, vpt[0], vconf);
    b.expect("12.11 GICR_VPENDBASER");
    let Vm { b, vconf, vpt } = vm();
    b.enter(0, vpt[0], vconf);
    b.m.write32(rd_base(&b.c, 0), 0);
    b.expect("12.11 GICR_CTLR");
}

#[test]
fn vlpis_beyond_idbits_are_dropped_before_the_first_residency() {
    let b = Bench::up(Config::v4_0(1));
    let vpt = b.vpt();
    b.device(0, 5);
    b.run(0, &[vmapp(0, b.rdbase(0, 0), vpt), vsync(0), vmapti(5, 1, 0, V, DB), vsync(0)]);
    b.m.msi(5, 1);
    assert_eq!(b.m.take_drops()[0].why, "beyond GICR_VPROPBASER.IDbits");
    b.m.write64(b.vlpi(0) + 0x70, 13);
    b.m.msi(5, 1);
    assert_eq!(b.m.vpt_pending(vpt), [V]);
    b.m.assert_clean();
}

#[test]
fn a_residency_left_at_reset_can_be_ended() {
    let c = Config::v4_0(1).each_cpu(|_, p| p.residency_at_reset = Some((0x40_1000_040d, VALID | 0x40_2000_0400)));
    let b = Bench::raw(c);
    assert_ne!(b.vpendbaser(0) & VALID, 0);
    b.leave(0);
    assert_eq!(b.vpendbaser(0) & (VALID | DIRTY), 0);
    b.m.assert_clean();
}

#[test]
fn qemu_writes_pending_bits_to_memory_at_once() {
    let Vm { b, vpt, .. } = vm_on(Config::qemu(2));
    b.m.msi(5, 1);
    b.m.acquire(vpt[0], 0x800, true);
    assert_eq!(b.m.load8(vpt[0] + 1024), 1 << 5);
    b.run(0, &[clear(5, 1)]);
    b.m.acquire(vpt[0], 0x800, true);
    assert_eq!(b.m.load8(vpt[0] + 1024), 0);
    b.m.assert_clean();
}
