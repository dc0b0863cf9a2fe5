//! GICv4.1: vPE tables, Alloc, default doorbells, vSGIs. Their behaviour and, for each rule, a violation of it.

mod common;

use common::*;
use gic_model::{Command, Config, Counters, Delivery, LpisAtReset, Version, Vmapp41, VpeTable};

const V: u32 = LPI + 5;
const DB: u32 = LPI + 100;
const ALLOC: u64 = 0x100;
const PTZ: u64 = 0x200;

struct Vm {
    b: Bench,
    vconf: u64,
    vpt: u64,
}

/// vPE 3 on CPU 0, mapped on every ITS with the default doorbell DB. Device 5, event 1 of ITS 0 is its vLPI V.
fn vm_on(config: Config) -> Vm {
    let b = Bench::up41(config);
    let (vconf, vpt) = (b.vconf(), b.vpt());
    b.set_config(DB, 0xa1);
    b.set_vconfig(vconf, V, 0xa1);
    for its in 0..b.c.its.len() {
        let alloc = if its == 0 { ALLOC } else { 0 };
        let map = vmapp41(3, b.rdbase(its, 0), vpt, vconf, DB, alloc);
        b.run(its, &[map, vsync(3), vinvall(3), vsync(3)]);
    }
    b.device(0, 5);
    b.run(0, &[vmapti(5, 1, 3, V, 1023), vsync(3)]);
    b.m.assert_clean();
    Vm { b, vconf, vpt }
}

fn vm() -> Vm {
    vm_on(Config::v4_1(3, 2))
}

fn unmap_all(b: &Bench) {
    b.run(0, &[discard(5, 1), vsync(3), vunmapp41(3, 0)]);
    b.run(1, &[vunmapp41(3, ALLOC)]);
}

#[test]
fn an_msi_reaches_a_resident_vpe_if_its_group_is_enabled() {
    for config in [Config::v4_1(3, 2), Config::v4_1(3, 2).instant(), Config::graviton3(4)] {
        let Vm { b, vpt, .. } = vm_on(config);
        b.enter41(0, 3);
        b.m.advance_us(3);
        b.m.msi(5, 1);
        assert_eq!(b.m.guest_ack(0), Some(V));
        assert_eq!(b.m.take_deliveries(), [Delivery::Guest { cpu: 0, vpe: Some(3), vpt, intid: V }]);
        b.leave_with(0, PENDING_LAST);
        b.m.write64(b.vlpi(0) + 0x78, VALID | 3);
        b.wait_dirty(0);
        b.m.msi(5, 1);
        assert!(!b.m.guest_irq(0));
        assert_eq!(b.leave(0) & PENDING_LAST, 0, "the group is disabled");
        b.m.assert_clean();
    }
}

#[test]
fn a_requested_doorbell_rings_once() {
    let Vm { b, .. } = vm();
    b.m.msi(5, 1);
    assert!(!b.m.host_irq(0), "no doorbell was requested");
    b.enter41(0, 3);
    assert_eq!(b.m.guest_ack(0), Some(V));
    assert_eq!(b.leave_with(0, DOORBELL) & PENDING_LAST, 0);
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(0), Some(DB));
    b.run(0, &[clear(5, 1), vsync(3)]);
    b.m.msi(5, 1);
    assert!(!b.m.host_irq(0));
    b.m.assert_clean();
}

#[test]
fn no_doorbell_rings_after_pending_last() {
    let Vm { b, .. } = vm();
    b.enter41(0, 3);
    b.m.msi(5, 1);
    assert_ne!(b.leave_with(0, DOORBELL) & PENDING_LAST, 0);
    b.m.msi(5, 1);
    assert!(!b.m.host_irq(0));
    b.enter41(0, 3);
    assert_eq!(b.m.guest_ack(0), Some(V));
    assert_ne!(b.leave_with(0, PENDING_LAST) & PENDING_LAST, 0, "as software wrote");
    b.m.msi(5, 1);
    assert!(!b.m.host_irq(0));
    b.m.assert_clean();
}

#[test]
fn a_disabled_vlpi_rings_when_it_is_enabled() {
    let Vm { b, vconf, .. } = vm();
    b.set_vconfig(vconf, V, 0xa0);
    b.run(0, &[inv(5, 1), vsync(3)]);
    b.enter41(0, 3);
    assert_eq!(b.leave_with(0, DOORBELL) & PENDING_LAST, 0);
    b.m.msi(5, 1);
    assert!(!b.m.host_irq(0));
    b.set_vconfig(vconf, V, 0xa1);
    b.m.write64(rd_base(&b.c, 0) + 0xa0, VALID | 3 << 32 | u64::from(V));
    assert!(!b.m.host_irq(0), "still busy");
    while b.m.read32(rd_base(&b.c, 0) + 0xc0) & 1 == 1 {
        b.m.relax();
    }
    assert_eq!(b.m.host_ack(0), Some(DB));
    b.m.assert_clean();
}

#[test]
fn direct_invalidation_needs_the_group_of_the_vpe_and_no_other_in_progress() {
    let Vm { b, vconf, .. } = vm_on(Config::graviton3(4));
    b.enter41(0, 3);
    b.m.msi(5, 1);
    b.set_vconfig(vconf, V, 0xa0);
    let invallr = rd_base(&b.c, 1) + 0xb0;
    b.m.write64(invallr, VALID | 3 << 32);
    b.m.write64(invallr, VALID | 3 << 32);
    b.expect("12.11 GICR_INVALLR");
    b.m.advance_us(2);
    assert!(!b.m.guest_irq(0));
    b.m.write64(rd_base(&b.c, 2) + 0xb0, VALID | 3 << 32);
    b.expect("12.11 GICR_INVALLR");
    b.m.advance_us(2);
    b.m.write64(rd_base(&b.c, 0) + 0xa0, VALID | 9 << 32 | u64::from(V));
    b.expect("12.11 GICR_INVLPIR");
    b.m.advance_us(2);
    b.m.store8(vconf + 5, 0xa1);
    b.m.write64(rd_base(&b.c, 0) + 0xa0, VALID | 3 << 32 | u64::from(V));
    b.expect("12.11 GICR_INVLPIR");
}

#[test]
fn alloc_must_be_set_for_the_first_mapping_and_the_last_unmapping_only() {
    let Vm { b, .. } = vm();
    unmap_all(&b);
    b.m.assert_clean();
    let Vm { b, vconf, .. } = vm();
    b.run(0, &[vmapp41(4, b.rdbase(0, 0), b.vpt(), vconf, 1023, 0)]);
    b.expect("5.3 VMAPP");
    b.run(1, &[vmapp41(4, b.rdbase(1, 0), b.vpt(), vconf, 1023, ALLOC)]);
    b.expect_first("5.3 VMAPP");
    let Vm { b, .. } = vm();
    b.run(1, &[vunmapp41(3, ALLOC)]);
    b.expect("5.3 VMAPP");
    b.run(0, &[vunmapp41(3, 0)]);
    b.expect("5.3 VMAPP");
}

#[test]
fn all_itss_must_map_a_vpe_alike() {
    let Vm { b, vconf, .. } = vm();
    let vpt = b.vpt();
    b.run(0, &[vmapp41(4, b.rdbase(0, 0), vpt, vconf, 1023, ALLOC)]);
    b.run(1, &[vmapp41(4, b.rdbase(1, 1), vpt, vconf, 1023, 0)]);
    b.expect("5.3 VMAPP");
    b.run(1, &[vunmapp41(4, 0), vmapp41(4, b.rdbase(1, 0), vpt, vconf, DB + 1, 0)]);
    b.expect("5.3 VMAPP");
}

#[test]
fn an_unmapped_vpe_cannot_be_synchronised_and_its_memory_can_be_freed_at_once() {
    let Vm { b, vpt, .. } = vm();
    b.m.msi(5, 1);
    b.run(0, &[vunmapp41(3, 0)]);
    b.run(0, &[vsync(3)]);
    b.expect("5.3 VSYNC");
    b.run(1, &[vunmapp41(3, ALLOC)]);
    b.m.acquire(vpt, 0x800, false);
    assert_eq!(b.m.load8(vpt + 1024), 1 << 5, "the pending bit is in the table");
    b.m.free(vpt, 0x1_0000, 0x1_0000);
    b.m.assert_clean();
}

#[test]
fn a_vpe_can_be_unmapped_and_mapped_again_with_its_events() {
    let Vm { b, vconf, vpt } = vm();
    b.m.msi(5, 1);
    b.run(0, &[vunmapp41(3, 0)]);
    b.run(1, &[vunmapp41(3, ALLOC)]);
    b.m.msi(5, 1);
    assert_eq!(b.m.take_drops()[0].why, "vPE not mapped");
    b.run(0, &[vmapp41(3, b.rdbase(0, 1), vpt, vconf, DB, ALLOC), vsync(3), vinvall(3), vsync(3)]);
    b.enter41(1, 3);
    assert_eq!(b.m.guest_ack(1), Some(V));
    b.m.assert_clean();
    b.leave_with(1, PENDING_LAST);
    b.m.msi(5, 1);
    b.run(0, &[vunmapp41(3, ALLOC), vmapp41(3, b.rdbase(0, 1), vpt, vconf, DB, ALLOC | PTZ)]);
    b.expect("5.3 VMAPP");
    assert_eq!(b.m.vpt_pending(vpt), [], "PTZ = 1 discards the pending bits");
}

#[test]
fn an_individual_doorbell_is_a_violation() {
    let Vm { b, .. } = vm();
    b.run(0, &[vmapti(5, 2, 3, V + 1, DB)]);
    b.expect("5.3 VMAPTI");
    b.run(0, &[vmovi(5, 1, 3, Some(1023))]);
    b.expect("5.3 VMOVI");
    b.run(0, &[vmovi(5, 1, 3, None), vsync(3)]);
    b.m.assert_clean();
}

#[test]
fn vmovp_moves_the_doorbell_and_residency_within_a_group_needs_no_vmovp() {
    let Vm { b, .. } = vm();
    b.enter41(1, 3);
    b.m.msi(5, 1);
    assert_eq!(b.m.guest_ack(1), Some(V), "MSIs find it on any redistributor that shares the table");
    b.leave_with(1, DOORBELL);
    b.m.msi(5, 1);
    assert_eq!(b.m.host_pending(0), [DB], "the doorbell rings on the CPU of the mapping");
    b.run(0, &[vmovp41(3, b.rdbase(0, 2), DB), vsync(3)]);
    assert_eq!((b.m.host_pending(0), b.m.host_ack(2)), (vec![], Some(DB)));
    b.run(0, &[vmovp41(3, b.rdbase(0, 1), DB + 1)]);
    b.expect("5.3 VMOVP");
    b.enter41(1, 3);
    b.expect("12.11 GICR_VPENDBASER");
    b.leave_with(1, PENDING_LAST);
    b.run(0, &[vsync(3)]);
    b.enter41(1, 3);
    b.m.assert_clean();
    b.run(0, &[vmovp41(3, b.rdbase(0, 0), DB)]);
    b.expect("5.3 VMOVP");
}

#[test]
fn residency_in_another_group_needs_a_vmovp() {
    let Vm { b, .. } = vm_on(Config::graviton3(4));
    b.enter41(2, 3);
    b.expect("12.11 GICR_VPENDBASER");
    b.run(0, &[vmovp41(3, b.rdbase(0, 2), DB), vsync(3)]);
    b.enter41(2, 3);
    b.m.msi(5, 1);
    assert_eq!(b.m.guest_ack(2), Some(V));
    b.m.assert_clean();
}

#[test]
fn a_resident_vpe_must_be_mapped_resident_once_and_in_a_vpe_table() {
    let Vm { b, .. } = vm();
    b.enter41(0, 9);
    b.expect("12.11 GICR_VPENDBASER");
    b.enter41(0, 3);
    b.enter41(1, 3);
    b.expect("12.11 GICR_VPENDBASER");
    b.m.write64(b.vlpi(0) + 0x70, 0);
    b.expect("12.11 GICR_VPROPBASER");
    b.run(0, &[vunmapp41(3, 0)]);
    b.expect("5.3 VMAPP");
    b.leave_with(0, PENDING_LAST);
    b.m.write64(b.vlpi(1) + 0x70, 0);
    b.m.assert_clean();
    let Vm { b, .. } = vm();
    b.m.write64(b.vlpi(1) + 0x70, 0);
    b.enter41(1, 3);
    b.expect("12.11 GICR_VPROPBASER");
}

#[test]
fn the_write_that_clears_valid_must_not_change_other_fields() {
    const GROUP0: u64 = 1 << 59;
    // The vPEID, one group enable, both, and everything.
    for change in [7, GROUP1, GROUP0, GROUP0 | GROUP1, GROUP1 | 3] {
        let Vm { b, .. } = vm();
        b.enter41(0, 3);
        b.m.write64(b.vlpi(0) + 0x78, (GROUP1 | 3 | PENDING_LAST) ^ change);
        b.expect("12.11 GICR_VPENDBASER");
        b.wait_dirty(0);
        assert_eq!(b.vpendbaser(0) & VALID, 0);
    }
    for flags in [0, DOORBELL, PENDING_LAST, DOORBELL | PENDING_LAST] {
        let Vm { b, .. } = vm();
        b.enter41(0, 3);
        b.m.write64(b.vlpi(0) + 0x78, GROUP1 | 3 | flags);
        b.m.assert_clean();
    }
    // While Valid stays 1, no field may change.
    let Vm { b, .. } = vm();
    b.enter41(0, 3);
    b.m.write64(b.vlpi(0) + 0x78, VALID | GROUP1 | 3);
    b.m.assert_clean();
    for change in [7, GROUP1, GROUP0] {
        b.m.write64(b.vlpi(0) + 0x78, (VALID | GROUP1 | 3) ^ change);
        b.expect("12.11 GICR_VPENDBASER");
    }
}

#[test]
fn a_group_that_the_write_clearing_valid_disables_may_ring_no_doorbell() {
    for samples in [false, true] {
        let mut c = Config::v4_1(1, 1);
        c.samples_groups_on_leave = samples;
        let Vm { b, .. } = vm_on(c);
        b.enter41(0, 3);
        b.m.write64(b.vlpi(0) + 0x78, DOORBELL);
        b.expect("12.11 GICR_VPENDBASER");
        b.wait_dirty(0);
        b.m.msi(5, 1);
        assert_eq!(b.m.host_irq(0), !samples);
        let _ = b.m.host_ack(0);
        b.enter41(0, 3);
        assert_eq!(b.m.guest_ack(0), Some(V));
        b.leave_with(0, DOORBELL);
        b.m.msi(5, 1);
        assert_eq!(b.m.host_ack(0), Some(DB));
        b.m.assert_clean();
    }
}

#[test]
fn a_group_has_one_vpe_table_and_z_is_written_for_its_first_use_only() {
    let b = Bench::raw(Config::v4_1(3, 1));
    let (one, two) = (b.memory(0x1_0000, 0x1_0000), b.memory(0x1_0000, 0x1_0000));
    let reg = |cpu: usize| b.vlpi(cpu) + 0x70;
    b.m.write64(reg(0), vpropbaser41(one) | 1 << 52);
    b.m.write64(reg(1), vpropbaser41(two));
    b.expect("12.11 GICR_VPROPBASER");
    b.m.write64(reg(1), vpropbaser41(one));
    b.expect("12.11 GICR_VPROPBASER");
    b.m.write64(reg(1), 0);
    b.m.write64(reg(1), vpropbaser41(one) | 1 << 52);
    b.expect("12.11 GICR_VPROPBASER");
    b.m.write64(reg(1), 0);
    b.m.write64(reg(1), vpropbaser41(one) | 3);
    b.expect("12.11 GICR_VPROPBASER");
    b.m.write64(reg(1), 0);
    b.m.write64(reg(1), vpropbaser41(one));
    b.m.assert_clean();
    let unpublished = b.m.alloc(0x1_0000, 0x1_0000).expect("memory");
    let b2 = Bench::raw(Config::v4_1(1, 1));
    b2.m.write64(b2.vlpi(0) + 0x70, vpropbaser41(unpublished));
    b2.expect("12.11 GICR_VPROPBASER");
    b.m.free(one, 0x1_0000, 0x1_0000);
    b.expect("memory");
}

#[test]
fn an_its_must_share_the_vpe_table_of_the_redistributors_that_svpet_covers() {
    let b = Bench::raw(Config::v4_1(1, 2));
    let (one, two) = (b.memory(0x1_0000, 0x1_0000), b.memory(0x1_0000, 0x1_0000));
    b.m.write64(b.vlpi(0) + 0x70, vpropbaser41(one));
    b.m.write64(b.c.its[0].base + 0x110, VALID | two | SHARED | 2 << 8);
    b.its_on(0);
    assert_eq!(b.m.take_violations()[0].section, "12.19 GITS_BASER<n>");
    b.m.write64(b.c.its[1].base + 0x110, VALID | one | SHARED | 2 << 8);
    b.its_on(1);
    assert_eq!(b.m.take_violations()[0].section, "12.19 GITS_BASER<n>", "the ITSs differ");
    b.m.write64(b.vlpi(0) + 0x70, 0);
    b.m.write64(b.vlpi(0) + 0x70, vpropbaser41(two));
    b.expect("12.11 GICR_VPROPBASER");
    // An ITS of another affinity, or with SVPET = 0, may have its own table.
    let mut b = Bench::raw(Config::v4_1(1, 2).each_its(|n, i| {
        i.mpidr = 0x0100_0000;
        i.svpet = n as u8;
    }));
    b.m.write32(b.c.gicd, 0x12);
    b.propbase = b.memory(0x1_0000, 0x1_0000);
    b.lpis_on(0);
    b.m.write64(b.vlpi(0) + 0x70, vpropbaser41(b.memory(0x1_0000, 0x1_0000)));
    for its in 0..2 {
        b.m.write64(b.c.its[its].base + 0x110, VALID | b.memory(0x1_0000, 0x1_0000) | SHARED | 2 << 8);
        b.its_on(its);
    }
    b.m.assert_clean();
}

#[test]
fn a_vpeid_needs_a_published_second_level_page() {
    let mut b = Bench::raw(Config::v4_1(1, 1));
    b.m.write32(b.c.gicd, 0x12);
    b.propbase = b.memory(0x1_0000, 0x1_0000);
    b.lpis_on(0);
    // The table is indirect with 4 KiB pages, which have entries for 512 vPEs each.
    let l1 = b.memory(4096, 4096);
    b.m.write64(b.vlpi(0) + 0x70, VALID | 1 << 55 | 1 << 52 | l1 | SHARED);
    b.m.write64(b.c.its[0].base + 0x110, VALID | 1 << 62 | l1 | SHARED);
    b.its_on(0);
    let map = vmapp41(600, b.rdbase(0, 0), b.vpt(), b.vconf(), 1023, ALLOC);
    b.run(0, &[map]);
    b.expect("5.3 VMAPP");
    let l2 = b.memory(4096, 4096);
    b.m.store64(l1 + 8, VALID | l2);
    b.run(0, &[map]);
    b.expect("5.3 VMAPP");
    b.m.publish(l1 + 8, 8, false);
    b.run(0, &[map, vsync(600)]);
    b.enter41(0, 600);
    b.m.assert_clean();
    b.m.free(l2, 4096, 4096);
    b.expect("memory");
}

#[test]
fn a_vpeid_must_be_in_the_range_of_gicd_typer2_and_the_tables() {
    let mut c = Config::v4_1(1, 1);
    c.vpeid_bits = Some(2);
    let b = Bench::up41(c);
    assert_eq!(b.m.read32(b.c.gicd + 0xc) & 0x9f, 0x81);
    b.run(0, &[vmapp41(4, b.rdbase(0, 0), b.vpt(), b.vconf(), 1023, ALLOC)]);
    b.expect("5.3 VMAPP");
    b.run(0, &[vmapp41(3, b.rdbase(0, 0), b.vpt(), b.vconf(), 1023, ALLOC), vsync(3)]);
    b.m.assert_clean();
    let b = Bench::up41(Config::v4_1(1, 1));
    b.run(0, &[vmapp41(8192, b.rdbase(0, 0), b.vpt(), b.vconf(), 1023, ALLOC)]);
    b.expect("5.3 VMAPP");
}

#[test]
fn a_default_doorbell_must_be_an_lpi_or_1023() {
    let Vm { b, vconf, .. } = vm();
    b.run(0, &[vmapp41(4, b.rdbase(0, 0), b.vpt(), vconf, 77, ALLOC)]);
    b.expect("5.3 VMAPP");
    b.run(0, &[vmapp41(5, b.rdbase(0, 0), b.vpt(), 0x1000_0000, 1023, ALLOC)]);
    b.expect("5.3 VMAPP");
    b.run(0, &[vmapp41(6, b.rdbase(0, 0), b.vpt(), vconf, 1023, ALLOC | PTZ)]);
    b.m.assert_clean();
}

#[test]
fn the_configuration_of_a_default_doorbell_is_invalidated_by_invdb() {
    let Vm { b, .. } = vm();
    b.set_config(DB, 0xa0);
    b.enter41(0, 3);
    b.leave_with(0, DOORBELL);
    b.m.msi(5, 1);
    assert!(b.m.host_irq(0), "the cached configuration has it enabled");
    b.run(1, &[invdb(3), vsync(3)]);
    assert!(!b.m.host_irq(0));
    b.set_config(DB, 0xa1);
    b.run(1, &[invdb(3), vsync(3)]);
    assert_eq!(b.m.host_ack(0), Some(DB));
    b.run(0, &[invdb(9)]);
    b.expect("5.3 INVDB");
}

#[test]
fn virtual_sgis_can_be_configured_sent_queried_and_cleared() {
    let Vm { b, .. } = vm();
    let sgir = b.c.its[1].base + 0x2_0020;
    b.run(0, &[vsgi(3, 7), vsync(3)]);
    b.enter41(0, 3);
    b.m.write64(sgir, 3 << 32 | 7);
    assert_eq!(b.m.guest_ack(0), Some(7));
    assert_eq!(b.leave_with(0, DOORBELL) & PENDING_LAST, 0);
    b.m.write64(sgir, 3 << 32 | 7);
    assert_eq!(b.m.host_ack(0), Some(DB));
    b.m.write64(sgir, 3 << 32 | 8);
    let pending = |cpu: usize| {
        b.m.write32(b.vlpi(cpu) + 0x80, 3);
        loop {
            let v = b.m.read32(b.vlpi(cpu) + 0x88);
            if v >> 31 == 0 {
                break v;
            }
        }
    };
    assert_eq!(pending(0), 0x180);
    b.run(0, &[vsgi_clear(3, 7), vsync(3)]);
    assert_eq!(pending(1), 0x100);
    b.m.assert_clean();
    b.m.write32(b.vlpi(0) + 0x80, 3);
    b.m.write32(b.vlpi(0) + 0x80, 3);
    b.expect("12.11 GICR_VSGIR");
    b.m.advance_us(2);
    b.m.write32(b.vlpi(0) + 0x80, 9);
    b.expect("12.11 GICR_VSGIR");
    b.m.write64(sgir, 9 << 32 | 7);
    b.expect("12.19 GITS_SGIR");
    b.m.write64(sgir, 3 << 32 | 0x17);
    b.expect("12.19 GITS_SGIR");
    b.run(0, &[vsgi(9, 1)]);
    b.expect("5.3 VSGI");
}

#[test]
fn a_virtual_sgi_is_disabled_until_its_configuration_is_synchronised() {
    let Vm { b, .. } = vm();
    let sgir = b.c.its[0].base + 0x2_0020;
    b.run(0, &[vsgi(3, 2)]);
    b.enter41(0, 3);
    b.m.write64(sgir, 3 << 32 | 2);
    assert!(!b.m.guest_irq(0));
    b.run(0, &[vsync(3)]);
    assert_eq!(b.m.guest_ack(0), Some(2));
    b.m.assert_clean();
}

#[test]
fn a_residency_left_at_reset_ends_with_its_fields_unchanged() {
    let c = Config::v4_1(1, 1)
        .each_cpu(|_, p| p.residency_at_reset = Some((VALID | 2 << 53 | 0x40_1000_0400, VALID | GROUP1 | 5)));
    let b = Bench::raw(c);
    assert_ne!(b.vpendbaser(0) & VALID, 0);
    b.leave_with(0, PENDING_LAST);
    b.m.write64(b.vlpi(0) + 0x70, 0);
    assert_eq!(b.vpendbaser(0) & VALID, 0);
    b.m.assert_clean();
}

// ---- power

#[test]
fn a_redistributor_without_power_identifies_itself_and_ignores_everything_else() {
    let b = Bench::raw(Config::v4_1(2, 1).powered(1));
    let rd = rd_base(&b.c, 1);
    assert_eq!(b.m.read64(rd + 8), b.c.cpus[1].typer());
    assert_eq!(b.m.read32(rd + 0xffe8) & 0xf0, 0x40);
    assert_eq!(b.m.read64(b.vlpi(1) + 0x70), 0);
    b.m.assert_clean();
    // As a driver would that looks for a page size.
    b.m.write64(b.vlpi(1) + 0x70, 2 << 53);
    b.expect("11.1 Power management");
    assert_eq!(b.m.read64(b.vlpi(1) + 0x70), 0);
    b.m.write32(rd, 1);
    b.expect("11.1 Power management");
    b.m.power_on(1);
    b.m.write64(b.vlpi(1) + 0x70, 2 << 53);
    assert_eq!(b.m.read64(b.vlpi(1) + 0x70), 2 << 53);
    b.m.assert_clean();
}

#[test]
fn a_cpu_can_be_powered_off_when_no_vpe_and_no_event_is_mapped_to_it() {
    let Vm { b, .. } = vm();
    b.m.power_off(0);
    let found = b.m.take_violations();
    assert_eq!(found.len(), 2, "on both ITSs: {found:?}");
    assert!(found.iter().all(|v| v.section == "11.1 Power management"));
    let Vm { b, .. } = vm();
    b.run(0, &[vmovp41(3, b.rdbase(0, 1), DB), vsync(3)]);
    b.m.power_off(0);
    b.m.assert_clean();
    b.enter41(1, 3);
    b.m.msi(5, 1);
    assert_eq!(b.m.guest_ack(1), Some(V));
    b.leave_with(1, DOORBELL);
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(1), Some(DB));
    b.m.power_off(1);
    assert_eq!(b.m.take_violations().len(), 2);
    let Vm { b, .. } = vm();
    b.enter41(1, 3);
    b.m.power_off(1);
    b.expect_first("11.1 Power management");
}

#[test]
fn a_doorbell_for_a_cpu_without_power_is_lost() {
    let Vm { b, .. } = vm();
    b.enter41(1, 3);
    b.leave_with(1, DOORBELL);
    b.m.power_off(0);
    assert_eq!(b.m.take_violations().len(), 2);
    b.m.msi(5, 1);
    assert_eq!(b.m.take_drops()[0].why, "the redistributor has no power");
}

// ---- identification

#[test]
fn the_architecture_version_is_in_pidr2() {
    let rev = |c: Config| {
        let b = Bench::raw(c);
        [b.c.gicd, rd_base(&b.c, 0), b.c.its[0].base].map(|at| b.m.read32(at + 0xffe8) >> 4 & 0xf)
    };
    assert_eq!(rev(Config::gicv3(1)), [3; 3]);
    assert_eq!(rev(Config::v4_0(1)), [4; 3]);
    assert_eq!(rev(Config::v4_1(1, 1)), [4; 3]);
}

#[test]
fn an_its_can_stay_busy_until_imde_is_cleared() {
    let b = Bench::raw(Config::v4_1(1, 1).each_its(|_, i| (i.imde_at_reset, i.imde_keeps_busy) = (true, true)));
    let base = b.c.its[0].base;
    let quiescent = || b.m.read32(base) >> 31 == 1;
    b.m.advance_us(10);
    assert!(!quiescent());
    b.m.write64(base + 0x80, VALID);
    b.expect("12.19 GITS_CBASER");
    b.m.write32(base, 0);
    b.m.advance_us(10);
    assert!(quiescent());
    let queue = b.memory(0x1_0000, 0x1_0000);
    b.m.write64(base + 0x80, VALID | queue | SHARED | 0xf);
    b.m.write32(base, 3);
    b.m.assert_clean();
    assert!(!quiescent(), "GICv4.1 reads 0 while it is enabled");
    b.m.write32(base, 2);
    b.m.advance_us(10);
    assert!(!quiescent());
    // GICv3 has no such bit.
    let b = Bench::raw(Config::gicv3(1).each_its(|_, i| (i.imde_at_reset, i.imde_keeps_busy) = (true, true)));
    b.m.write32(b.c.its[0].base, 2);
    assert_eq!(b.m.read32(b.c.its[0].base), 1 << 31);
}

#[test]
fn the_size_of_entries_and_pages_of_the_vpe_table_can_be_read() {
    let mut c = Config::v4_1(1, 1);
    c.vpe_table = VpeTable { entry_size: 16, pages: vec![64], indirect: false };
    let b = Bench::raw(c);
    let reg = b.vlpi(0) + 0x70;
    assert_eq!(b.m.read64(reg), 1 << 59 | 2 << 53);
    b.m.write64(reg, 1 << 55 | 1 << 53);
    assert_eq!(b.m.read64(reg), 1 << 59 | 2 << 53);
    let b = Bench::raw(Config::v4_1(1, 1));
    for page in 0..3 {
        b.m.write64(reg, 1 << 55 | page << 53);
        assert_eq!(b.m.read64(reg), 1 << 55 | page << 53);
    }
    b.m.assert_clean();
    // With entries of 16 bytes a page of 64 KiB has 4096.
    let mut c = Config::v4_1(1, 1);
    c.vpe_table.entry_size = 16;
    let b = Bench::up41(c);
    b.run(0, &[vmapp41(4096, b.rdbase(0, 0), b.vpt(), b.vconf(), 1023, ALLOC)]);
    b.expect("5.3 VMAPP");
    b.run(0, &[vmapp41(4095, b.rdbase(0, 0), b.vpt(), b.vconf(), 1023, ALLOC)]);
    b.m.assert_clean();
}

#[test]
fn reads_that_end_a_polling_loop_are_counted() {
    let Vm { b, .. } = vm();
    b.enter41(0, 3);
    let c = b.m.counters(0);
    assert_eq!((c.residencies, c.vpendbaser_writes, c.vpendbaser_settled), (1, 1, 1));
    assert!(c.vpendbaser_reads > 1, "Dirty takes time");
    let _ = b.vpendbaser(0);
    assert_eq!(b.m.counters(0).vpendbaser_settled, 2);
    assert_eq!(b.m.counters(1), Counters::default());
}

// ---- virtual SGIs and the CPU interface

#[test]
fn sgis_without_active_state_are_chosen_before_the_groups_are_enabled() {
    let mut c = Config::v4_1(1, 1);
    let b = Bench::raw(c.clone());
    assert_eq!(b.m.read32(b.c.gicd + 0xc) & 1 << 8, 0, "RES0 with two Security states");
    c.ds = true;
    let b = Bench::raw(c);
    assert_ne!(b.m.read32(b.c.gicd + 0xc) & 1 << 8, 0);
    b.m.write32(b.c.gicd, 0x110);
    b.m.write32(b.c.gicd, 0x112);
    assert_ne!(b.m.read32(b.c.gicd) & 1 << 8, 0);
    b.m.write32(b.c.gicd, 0x12);
    b.expect("12.9 GICD_CTLR");
    assert_ne!(b.m.read32(b.c.gicd) & 1 << 8, 0, "ignored");
    b.m.write32(b.c.gicd, 0x110);
    b.m.advance_us(1);
    b.m.write32(b.c.gicd, 0x10);
    assert_eq!(b.m.read32(b.c.gicd) & 1 << 8, 0);
    b.m.assert_clean();
}

#[test]
fn virtual_sgis_need_its_redistributor_and_cpu_interface() {
    let sgir = |b: &Bench| b.m.write64(b.c.its[0].base + 0x2_0020, 3 << 32 | 7);
    let Vm { b, .. } = vm_on(Config::v4_1(1, 1).each_its(|_, i| i.vsgi = false));
    b.run(0, &[vsgi(3, 7), vsync(3)]);
    b.expect("5.3 VSGI");
    sgir(&b);
    b.expect("memory");
    let Vm { b, .. } = vm_on(Config::v4_1(1, 1).each_cpu(|_, p| p.vsgi = false));
    b.m.write32(b.vlpi(0) + 0x80, 3);
    b.expect("12.11 GICR_VSGIR");
    let Vm { b, .. } = vm_on(Config::v4_1(1, 1).each_cpu(|_, p| p.interface = Version::V4_0));
    assert_eq!(b.c.cpus[0].id_gic(), 1);
    b.run(0, &[vsgi(3, 7), vsync(3)]);
    b.enter41(0, 3);
    sgir(&b);
    assert!(!b.m.guest_irq(0), "the CPU interface does not know virtual SGIs");
    b.m.msi(5, 1);
    assert_eq!(b.m.guest_ack(0), Some(V));
    b.m.assert_clean();
}

#[test]
fn a_vpe_must_not_be_resident_where_the_cpu_interface_is_not_gicv4() {
    let Vm { b, .. } = vm_on(Config::v4_1(2, 1).each_cpu(|n, p| {
        if n == 1 {
            p.interface = Version::V3;
        }
    }));
    assert!(b.c.cpus[1].nv4() && !b.c.cpus[0].nv4());
    b.enter41(1, 3);
    b.expect("12.11 GICR_VPENDBASER");
    b.enter41(0, 3);
    b.m.assert_clean();
}

#[test]
fn a_virtual_sgi_stays_pending_until_its_clearing_is_synchronised() {
    let Vm { b, .. } = vm();
    b.run(0, &[vsgi(3, 7), vsync(3)]);
    b.enter41(0, 3);
    b.m.write64(b.c.its[0].base + 0x2_0020, 3 << 32 | 7);
    b.run(0, &[vsgi_clear(3, 7)]);
    assert!(b.m.guest_irq(0));
    b.run(0, &[vsync(3)]);
    assert!(!b.m.guest_irq(0));
    b.m.write64(b.c.its[0].base + 0x2_0020, 3 << 32 | 7);
    assert_eq!(b.m.guest_ack(0), Some(7), "its configuration is kept");
    b.m.assert_clean();
}

#[test]
fn the_answer_of_gicr_vsgipendr_counts_when_busy_is_0() {
    let Vm { b, .. } = vm();
    b.m.write32(b.vlpi(0) + 0x80, 3);
    assert_eq!(b.m.read32(b.vlpi(0) + 0x88), 1 << 31 | 0xffff);
    b.m.advance_us(1);
    assert_eq!(b.m.read32(b.vlpi(0) + 0x88), 0);
    b.m.write32(b.vlpi(0) + 0x80, 0x1_0003);
    b.expect("12.11 GICR_VSGIR");
}

#[test]
fn invdb_needs_a_published_configuration_byte() {
    let Vm { b, .. } = vm();
    b.m.store8(b.propbase + u64::from(DB - LPI), 0xa0);
    b.run(0, &[invdb(3)]);
    b.expect("5.3 INVDB");
}

#[test]
fn the_end_of_a_virtual_sgi_is_counted_unless_software_chooses_otherwise() {
    let Vm { b, .. } = vm();
    b.run(0, &[vsgi(3, 7), vsync(3)]);
    b.enter41(0, 3);
    for (ignored, count) in [(false, 1), (true, 1)] {
        b.m.set_vsgi_eoi_count(0, ignored);
        b.m.write64(b.c.its[0].base + 0x2_0020, 3 << 32 | 7);
        assert_eq!(b.m.guest_ack(0), Some(7));
        b.m.guest_eoi(0, 7);
        assert_eq!(b.m.eoi_count(0), count);
    }
    b.m.msi(5, 1);
    assert_eq!(b.m.guest_ack(0), Some(V));
    b.m.guest_eoi(0, V);
    assert_eq!(b.m.eoi_count(0), 1, "LPIs have no active state");
    b.m.assert_clean();
}

// ---- sharing of vPE tables

#[test]
fn those_who_share_a_vpe_table_must_describe_it_alike() {
    let b = Bench::raw(Config::v4_1(2, 1));
    let table = b.memory(0x2_0000, 0x1_0000);
    let rd = vpropbaser41(table);
    b.m.write64(b.vlpi(0) + 0x70, rd);
    // Other attributes, another page size, another size.
    for wrong in [rd ^ 4 << 7, rd ^ 3 << 53, rd | 1] {
        b.m.write64(b.vlpi(1) + 0x70, wrong);
        b.expect("12.11 GICR_VPROPBASER");
        b.m.write64(b.vlpi(1) + 0x70, 0);
    }
    let its = VALID | table | SHARED | 2 << 8;
    for (baser, wrong) in [(its | 1, true), (its, false)] {
        b.m.write64(b.c.its[0].base + 0x110, baser);
        b.its_on(0);
        let found = b.m.take_violations();
        assert_eq!(found.iter().any(|v| v.section == "12.19 GITS_BASER<n>"), wrong, "{found:?}");
        b.m.write32(b.c.its[0].base, 0);
        b.m.advance_us(10);
    }
}

#[test]
fn a_table_of_more_than_128_pages_cannot_be_shared_with_a_redistributor() {
    let mut c = Config::v4_1(1, 1);
    c.vpe_table.pages = vec![4];
    let b = Bench::raw(c);
    let table = b.memory(129 * 4096, 4096);
    b.m.write64(b.c.its[0].base + 0x110, VALID | table | SHARED | 128);
    b.its_on(0);
    let _ = b.m.take_violations();
    // 7 bits of Size hold 127 at most. The eighth is the lowest of InnerCache.
    b.m.write64(b.vlpi(0) + 0x70, VALID | table | SHARED | 127);
    b.expect("12.11 GICR_VPROPBASER");
}

#[test]
fn common_lpi_aff_of_each_value_says_who_has_the_same_table() {
    // Pairs that are in one group for CommonLPIAff 0, 1, 2 and 3.
    let affinities = [0x0000_0000, 0x0100_0000, 0x0101_0000, 0x0101_0100, 0x0101_0101];
    for aff in 0..4u8 {
        let b = Bench::raw(Config::v4_1(5, 1).each_cpu(|n, p| {
            p.common_lpi_aff = aff;
            p.affinity = affinities[n];
        }));
        for one in 0..5 {
            for two in one + 1..5 {
                b.m.write64(b.vlpi(one) + 0x70, vpropbaser41(b.memory(0x1_0000, 0x1_0000)));
                b.m.write64(b.vlpi(two) + 0x70, vpropbaser41(b.memory(0x1_0000, 0x1_0000)));
                let level = 32 - 8 * u32::from(aff);
                let same = u64::from(affinities[one]) >> level == u64::from(affinities[two]) >> level;
                assert_eq!(b.m.take_violations().len(), usize::from(same), "{aff}: {one} and {two}");
                b.m.write64(b.vlpi(one) + 0x70, 0);
                b.m.write64(b.vlpi(two) + 0x70, 0);
            }
        }
    }
}

#[test]
fn a_vpe_table_must_not_be_taken_away_from_a_redistributor_with_vpes() {
    let Vm { b, .. } = vm();
    b.m.write64(b.vlpi(0) + 0x70, 0);
    b.expect("12.11 GICR_VPROPBASER");
    let Vm { b, .. } = vm();
    b.run(0, &[vmovp41(3, b.rdbase(0, 1), DB), vsync(3)]);
    b.m.write64(b.vlpi(0) + 0x70, 0);
    b.m.assert_clean();
}

// ---- what firmware leaves

#[test]
fn lpis_that_firmware_has_left_on_stay_on_with_their_tables() {
    let (prop, pend) = (0x41_0000_0000, 0x41_0010_0000);
    let tables = LpisAtReset { propbaser: prop | SHARED | 15, pendbaser: pend | SHARED };
    let b = Bench::raw({
        let mut c = Config::v4_1(1, 1).each_cpu(|_, p| (p.ces, p.lpis_at_reset) = (false, Some(tables)));
        c.ram = (0x41_0000_0000, 0x1000_0000);
        c
    });
    assert!(b.m.claim(prop, 0x1_0000) && b.m.claim(pend, 0x1_0000));
    let rd = rd_base(&b.c, 0);
    b.m.write32(rd, 0);
    assert_eq!(b.m.read32(rd) & 3, 1, "CES = 0: EnableLPIs cannot be cleared");
    b.m.write64(rd + 0x70, 0);
    b.expect("12.11 GICR_PROPBASER");
    b.m.free(pend, 0x1_0000, 4096);
    b.expect("memory");
    b.m.free(prop, 0x1_0000, 4096);
    b.expect("memory");
}

// ---- pending tables

#[test]
fn ptz_needs_a_zeroed_table_and_can_be_counted() {
    let Vm { b, vconf, vpt } = vm();
    let ptz = || {
        let with = |c: &&Command| matches!(c, Command::Vmapp { v4_1: Some(Vmapp41 { ptz: true, .. }), .. });
        b.m.commands(0).iter().filter(with).count()
    };
    assert_eq!(ptz(), 0);
    b.m.msi(5, 1);
    b.run(1, &[vunmapp41(3, 0)]);
    b.run(0, &[vunmapp41(3, ALLOC), vmapp41(3, b.rdbase(0, 0), vpt, vconf, DB, ALLOC), vsync(3), vinvall(3), vsync(3)]);
    b.enter41(0, 3);
    assert_eq!(b.m.guest_ack(0), Some(V), "PTZ = 0: the table is read");
    b.leave_with(0, PENDING_LAST);
    b.m.assert_clean();
    b.run(0, &[vmapp41(4, b.rdbase(0, 0), b.vpt(), vconf, 1023, ALLOC | PTZ), vsync(4)]);
    b.m.assert_clean();
    assert_eq!(ptz(), 1);
}

#[test]
fn a_mapped_vpe_may_meet_configuration_that_was_cached_before() {
    for keeps in [false, true] {
        let mut c = Config::v4_1(1, 1);
        c.unmapping_keeps_cache = keeps;
        let Vm { b, vconf, vpt } = vm_on(c);
        b.run(0, &[vunmapp41(3, ALLOC)]);
        b.set_vconfig(vconf, V, 0xa0);
        b.run(0, &[vmapp41(3, b.rdbase(0, 0), vpt, vconf, DB, ALLOC), vsync(3)]);
        b.enter41(0, 3);
        b.m.msi(5, 1);
        assert_eq!(b.m.guest_irq(0), keeps);
        b.run(0, &[vinvall(3), vsync(3)]);
        assert!(!b.m.guest_irq(0));
        b.m.assert_clean();
    }
}

#[test]
fn doorbell_and_pending_last_are_unknown_while_a_vpe_is_resident() {
    let Vm { b, .. } = vm();
    b.enter41(0, 3);
    assert_eq!(b.vpendbaser(0), VALID | DOORBELL | PENDING_LAST | GROUP1 | 3);
    assert_eq!(b.leave(0) & (DOORBELL | PENDING_LAST), 0);
    b.m.assert_clean();
}

#[test]
fn a_cpu_with_physical_events_must_not_be_powered_off() {
    let b = Bench::up41(Config::v4_1(2, 1));
    b.device(0, 6);
    b.run(0, &[mapti(6, 2, LPI + 9, 1), sync(b.rdbase(0, 1))]);
    b.m.power_off(1);
    b.expect("11.1 Power management");
    b.m.power_on(1);
    b.lpis_on(1);
    b.run(0, &[movi(6, 2, 0), sync(b.rdbase(0, 0))]);
    b.m.power_off(1);
    b.m.assert_clean();
}
