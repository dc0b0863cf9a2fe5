//! Physical LPIs: their behaviour and, for each rule, a violation of it beside a legal use.

mod common;

use common::*;
use gic_model::{CommandFault, Config, Delivery, Fault, LpisAtReset, Machine};

/// A GICv3 where device 5, event 1 is mapped to the enabled LPI 8192 on CPU 0.
fn mapped() -> Bench {
    let b = Bench::up(Config::gicv3(4));
    b.set_config(LPI, 0xa1);
    b.device(0, 5);
    b.run(0, &[mapti(5, 1, LPI, 0), sync(b.rdbase(0, 0))]);
    b
}

#[test]
fn an_msi_reaches_the_cpu_of_its_collection_once() {
    let b = mapped();
    b.m.msi(5, 1);
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(1), None);
    assert_eq!(b.m.host_ack(0), Some(LPI));
    assert_eq!(b.m.host_ack(0), None);
    assert_eq!(b.m.take_deliveries(), [Delivery::Host { cpu: 0, intid: LPI }]);
    b.m.assert_clean();
}

#[test]
fn commands_take_effect_at_once_in_qemus_configuration() {
    let b = Bench::up(Config::qemu(2));
    b.set_config(LPI + 3, 0xa1);
    b.device(0, 0);
    b.post(0, &[mapti(0, 7, LPI + 3, 1)]);
    b.m.write32(0x0809_0040, 7);
    assert_eq!(b.m.host_ack(1), Some(LPI + 3));
    b.m.assert_clean();
}

#[test]
fn a_translation_is_not_used_before_its_sync() {
    let b = Bench::up(Config::gicv3(1));
    b.set_config(LPI, 0xa1);
    b.device(0, 5);
    b.run(0, &[mapti(5, 1, LPI, 0)]);
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(0), None);
    assert_eq!(b.m.take_drops()[0].why, "no translation");
    b.run(0, &[sync(b.rdbase(0, 0))]);
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(0), Some(LPI));
    b.m.assert_clean();
}

#[test]
fn configuration_is_stale_until_inv_and_sync() {
    let b = mapped();
    b.set_config(LPI, 0xa0);
    b.m.msi(5, 1);
    assert!(b.m.host_irq(0), "the cached byte still has it enabled");
    b.run(0, &[inv(5, 1)]);
    assert!(b.m.host_irq(0), "the INV is not synchronised");
    b.run(0, &[sync(b.rdbase(0, 0))]);
    assert!(!b.m.host_irq(0));
    assert_eq!(b.m.host_pending(0), [LPI]);
    b.set_config(LPI, 0xa1);
    b.run(0, &[invall(0), sync(b.rdbase(0, 0))]);
    assert_eq!(b.m.host_ack(0), Some(LPI));
    b.m.assert_clean();
}

#[test]
fn movi_moves_the_pending_bit_and_movall_moves_all_of_them() {
    let b = mapped();
    b.m.msi(5, 1);
    b.run(0, &[movi(5, 1, 2), sync(b.rdbase(0, 2))]);
    assert_eq!((b.m.host_pending(0), b.m.host_pending(2)), (vec![], vec![LPI]));
    b.run(0, &[movall(b.rdbase(0, 2), b.rdbase(0, 3)), sync(b.rdbase(0, 3))]);
    assert_eq!(b.m.host_ack(3), Some(LPI));
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(2), Some(LPI), "the event is still mapped where MOVI moved it");
    b.m.assert_clean();
}

#[test]
fn int_sets_clear_and_discard_remove_the_pending_bit() {
    let b = mapped();
    let s = sync(b.rdbase(0, 0));
    b.run(0, &[int(5, 1), s]);
    assert_eq!(b.m.host_pending(0), [LPI]);
    b.run(0, &[clear(5, 1), s]);
    assert_eq!(b.m.host_pending(0), []);
    b.run(0, &[int(5, 1), discard(5, 1), s]);
    assert_eq!(b.m.host_pending(0), []);
    b.m.msi(5, 1);
    assert_eq!(b.m.host_pending(0), []);
    b.m.assert_clean();
}

#[test]
fn a_discarded_event_is_translated_until_the_sync_and_not_pending_after_it() {
    let b = mapped();
    b.run(0, &[discard(5, 1)]);
    b.m.msi(5, 1);
    assert_eq!(b.m.host_pending(0), [LPI]);
    b.run(0, &[sync(b.rdbase(0, 0))]);
    assert_eq!(b.m.host_pending(0), []);
    b.m.assert_clean();
}

#[test]
fn an_lpi_made_pending_through_a_new_mapping_survives_the_sync() {
    let b = mapped();
    b.run(0, &[discard(5, 1), mapti(5, 2, LPI, 0), int(5, 2), sync(b.rdbase(0, 0))]);
    assert_eq!(b.m.host_ack(0), Some(LPI));
    b.m.assert_clean();
}

#[test]
fn the_highest_priority_is_acknowledged_first() {
    let b = mapped();
    b.set_config(LPI + 1, 0x41);
    b.run(0, &[mapti(5, 2, LPI + 1, 0), sync(b.rdbase(0, 0))]);
    b.m.msi(5, 1);
    b.m.msi(5, 2);
    assert_eq!(b.m.host_ack(0), Some(LPI + 1));
    assert_eq!(b.m.host_ack(0), Some(LPI));
}

#[test]
fn no_lpi_is_signalled_while_group_1_is_disabled_or_the_redistributor_sleeps() {
    let b = mapped();
    b.m.msi(5, 1);
    b.m.write32(b.c.gicd, 0);
    assert!(!b.m.host_irq(0));
    b.m.advance_us(10);
    b.m.write32(b.c.gicd, 2);
    assert!(b.m.host_irq(0));
    let waker = rd_base(&b.c, 0) + 0x14;
    b.m.write32(waker, 2);
    assert_eq!(b.m.read32(waker), 0, "GICR_WAKER is Secure with two Security states");
    assert!(b.m.host_irq(0));
    b.m.assert_clean();
    let b = Bench::up(Config::qemu(1));
    b.set_config(LPI, 0xa1);
    b.device(0, 5);
    b.run(0, &[mapti(5, 1, LPI, 0), int(5, 1)]);
    assert!(b.m.host_irq(0));
    b.m.write32(rd_base(&b.c, 0) + 0x14, 2);
    assert_eq!(b.m.read32(rd_base(&b.c, 0) + 0x14), 6);
    assert!(!b.m.host_irq(0));
    b.m.assert_clean();
}

#[test]
fn mapping_a_mapped_event_is_a_violation_unless_it_is_discarded_first() {
    let b = mapped();
    b.run(0, &[mapti(5, 1, LPI + 1, 0)]);
    b.expect("5.3 MAPTI");
    b.run(0, &[discard(5, 1), mapti(5, 1, LPI + 2, 0), sync(b.rdbase(0, 0))]);
    b.m.assert_clean();
}

#[test]
fn commands_with_unmapped_or_invalid_operands_are_violations() {
    let b = mapped();
    for (command, section) in [
        (int(5, 2), "5.3 INT"),
        (clear(6, 1), "5.3 CLEAR"),
        (inv(5, 32), "5.3 INV"),
        (discard(5, 2), "5.3 DISCARD"),
        (movi(5, 1, 77), "5.3 MOVI"),
        (mapti(5, 3, LPI + 9, 77), "5.3 MAPTI"),
        (mapti(5, 3, 1023, 0), "5.3 MAPTI"),
        (mapi(5, 3, 0), "5.3 MAPI"),
        (mapti(5, 32, LPI + 9, 0), "5.3 MAPTI"),
        (mapti(6, 1, LPI + 9, 0), "5.3 MAPTI"),
        (mapti(5, 3, LPI, 1), "5.3 MAPTI"),
        (invall(77), "5.3 INVALL"),
        (sync(0x7777_0000), "5.3 SYNC"),
        (movall(0x7777_0000, 0), "5.3 MOVALL"),
        (mapc(4, 0x7777_0000), "5.3 MAPC"),
        (mapd(0x1_0000, 4, 0), "5.3 MAPD"),
        (mapd(0x7000, 16, 0), "5.3 MAPD"),
        (unmapd(9), "5.3 MAPD"),
        ([0x77, 0, 0, 0], "5.3 ITS commands"),
        ([0x05, 1, b.rdbase(0, 0), 0], "5.3 SYNC"),
    ] {
        b.run(0, &[command]);
        if section == "5.3 ITS commands" || command[0] == 5 && command[1] == 1 {
            b.expect(section);
        } else {
            b.expect_first(section);
        }
    }
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(0), Some(LPI), "the earlier mapping still works");
}

#[test]
fn a_device_or_collection_must_be_unmapped_after_its_events() {
    let b = mapped();
    b.run(0, &[unmapc(0)]);
    b.expect("5.3 MAPC");
    let b = mapped();
    b.run(0, &[unmapd(5)]);
    b.expect("5.3 MAPD");
    let b = mapped();
    b.run(0, &[discard(5, 1), sync(b.rdbase(0, 0)), unmapd(5), unmapc(0), sync(b.rdbase(0, 0))]);
    b.m.assert_clean();
}

#[test]
fn an_itt_must_be_zero_published_allocated_and_not_shared() {
    let b = mapped();
    let fresh = b.m.alloc(4096, 4096).expect("memory");
    b.run(0, &[mapd(6, 4, fresh)]);
    b.expect("5.3 MAPD");
    b.m.publish(fresh, 4096, false);
    b.run(0, &[unmapd(6), mapd(6, 4, fresh)]);
    b.m.assert_clean();
    b.run(0, &[mapd(7, 4, fresh)]);
    b.expect("5.3 MAPD");
    b.run(0, &[mapd(8, 4, 0x1000)]);
    b.expect("5.3 MAPD");
}

#[test]
fn an_itt_that_was_used_must_be_cleared_again() {
    let b = mapped();
    let itt = b.device(0, 6);
    b.run(0, &[mapti(6, 0, LPI + 1, 0), discard(6, 0), sync(b.rdbase(0, 0)), unmapd(6), mapd(6, 4, itt)]);
    b.expect("5.3 MAPD");
    b.run(0, &[unmapd(6)]);
    (0..512).for_each(|n| b.m.store64(itt + 8 * n, 0));
    b.m.publish(itt, 4096, false);
    b.run(0, &[mapd(6, 4, itt)]);
    b.m.assert_clean();
}

#[test]
fn memory_in_use_by_an_its_must_not_be_freed_or_written() {
    let b = mapped();
    let itt = b.device(0, 6);
    b.m.store64(itt, 1);
    b.expect("memory");
    b.m.free(itt, 4096, 4096);
    b.expect("memory");
    let b = mapped();
    let itt = b.device(0, 7);
    b.post(0, &[unmapd(7)]);
    b.m.free(itt, 4096, 4096);
    b.expect("memory");
    let b = mapped();
    let itt = b.device(0, 8);
    b.run(0, &[unmapd(8)]);
    b.m.free(itt, 4096, 4096);
    b.m.free(itt, 4096, 4096);
    b.expect("memory");
}

#[test]
fn an_unpublished_command_is_not_seen() {
    let b = mapped();
    let base = b.c.its[0].base;
    let queue = b.m.read64(base + 0x80) & 0x000f_ffff_ffff_f000;
    let at = b.m.read64(base + 0x88);
    for (n, word) in int(5, 1).iter().enumerate() {
        b.m.store64(queue + at + 8 * n as u64, *word);
    }
    b.m.write64(base + 0x88, at + 32);
    assert!(b.drained(0));
    assert!(b.m.violations().iter().any(|v| v.section == "5.3 the command queue"));
    assert!(!b.m.host_irq(0));
}

#[test]
fn without_snooping_a_barrier_does_not_publish_a_store() {
    let b = Bench::up(Config::gicv3(1).noncoherent());
    assert_eq!(b.m.read64(b.c.its[0].base + 0x80) >> 10 & 3, 0);
    assert_eq!(b.m.read64(b.c.its[0].base + 0x100) >> 10 & 3, 0);
    assert_eq!(b.m.read64(rd_base(&b.c, 0) + 0x70) >> 10 & 3, 0);
    let itt = b.m.alloc(4096, 4096).expect("memory");
    b.m.publish(itt, 4096, false);
    b.run(0, &[mapd(6, 4, itt)]);
    b.expect("5.3 MAPD");
    let itt = b.m.alloc(4096, 4096).expect("memory");
    b.m.publish(itt, 4096, true);
    b.run(0, &[unmapd(6), mapd(6, 4, itt)]);
    b.m.assert_clean();
}

#[test]
fn a_configuration_byte_must_be_published_before_its_inv() {
    let b = mapped();
    b.m.store8(b.propbase, 0xa0);
    b.run(0, &[inv(5, 1)]);
    b.expect("5.3 INV");
}

#[test]
fn overflowing_the_queue_or_changing_posted_commands_is_a_violation() {
    let b = mapped();
    b.m.inject(Fault::Hung { its: 0 });
    let base = b.c.its[0].base;
    let at = b.m.read64(base + 0x88);
    b.post(0, &[int(5, 1)]);
    b.m.assert_clean();
    let queue = b.m.read64(base + 0x80) & 0x000f_ffff_ffff_f000;
    b.m.store64(queue + at, 5);
    b.expect("5.3 the command queue");
    b.m.write64(base + 0x88, (b.m.read64(base + 0x90)) & 0xf_ffe0);
    b.expect("12.19 GITS_CWRITER");
    b.m.write64(base + 0x88, 0x1_0000);
    b.expect("12.19 GITS_CWRITER");
}

#[test]
fn base_registers_must_be_written_while_disabled_and_quiescent() {
    let b = mapped();
    let base = b.c.its[0].base;
    b.m.write64(base + 0x100, 0);
    b.expect("12.19 GITS_BASER<n>");
    b.m.write64(base + 0x80, 0);
    b.expect("12.19 GITS_CBASER");
    b.m.write32(base, 0);
    b.m.write64(base + 0x100, 0);
    b.expect("12.19 GITS_BASER<n>");
    while b.m.read32(base) >> 31 == 0 {
        b.m.relax();
    }
    b.m.write64(base + 0x100, 0);
    b.m.assert_clean();
}

#[test]
fn an_unsupported_page_size_reads_back_as_a_supported_one() {
    let c = Config::gicv3(1).each_its(|_, i| {
        i.basers[0].as_mut().expect("BASER0").pages = vec![16];
    });
    let b = Bench::raw(c);
    let reg = b.c.its[0].base + 0x100;
    b.m.write64(reg, 2 << 8 | 2 << 56 | 0x1f << 48);
    assert_eq!(b.m.read64(reg), 0x0107_0000_0000_0100, "type and entry size are read-only, pages are 16K");
}

#[test]
fn an_indirect_table_needs_a_published_second_level() {
    let mut b = Bench::raw(Config::gicv3(1));
    b.m.write32(b.c.gicd, 0x12);
    b.propbase = b.memory(0x1_0000, 0x1_0000);
    b.lpis_on(0);
    let base = b.c.its[0].base;
    let l1 = b.memory(4096, 4096);
    b.m.write64(base + 0x100, VALID | 1 << 62 | l1 | SHARED);
    let table = b.memory(0x1_0000, 0x1_0000);
    b.m.write64(base + 0x108, VALID | table | SHARED | 2 << 8);
    b.its_go(0);
    let itt = b.memory(4096, 4096);
    // A 4 KiB page has 512 entries of 8 bytes, so device 0x401 is in the third page.
    b.run(0, &[mapd(0x401, 4, itt)]);
    b.expect("5.3 MAPD");
    let l2 = b.m.alloc(4096, 4096).expect("memory");
    b.m.store64(l1 + 16, VALID | l2);
    b.m.publish(l1 + 16, 8, false);
    b.run(0, &[mapd(0x401, 4, itt)]);
    b.expect("5.3 MAPD");
    b.run(0, &[unmapd(0x401)]);
    b.m.assert_clean();
    b.m.free(l2, 4096, 4096);
    b.expect("memory");
}

#[test]
fn tables_must_be_zero_and_published_when_the_its_is_enabled() {
    for (fill, publish, ok) in [(0, true, true), (7, true, false), (0, false, false)] {
        let b = Bench::raw(Config::gicv3(1));
        let base = b.c.its[0].base;
        for n in 0..2u64 {
            let table = b.m.alloc(0x1_0000, 0x1_0000).expect("memory");
            if fill != 0 {
                b.m.store64(table + 0x800, fill);
            }
            if publish {
                b.m.publish(table, 0x1_0000, false);
            }
            b.m.write64(base + 0x100 + 8 * n, VALID | table | SHARED | 2 << 8);
        }
        let queue = b.memory(0x1_0000, 0x1_0000);
        b.m.write64(base + 0x80, VALID | queue | SHARED | 0xf);
        b.m.write32(base, 1);
        if ok {
            b.m.assert_clean();
        } else {
            b.expect_first("12.19 GITS_BASER<n>");
        }
    }
}

#[test]
fn changing_lpi_tables_while_lpis_are_enabled_is_a_violation() {
    let b = mapped();
    let rd = rd_base(&b.c, 0);
    b.m.write64(rd + 0x70, 0);
    b.expect("12.11 GICR_PROPBASER");
    b.m.write64(rd + 0x78, 0);
    b.expect("12.11 GICR_PENDBASER");
    b.m.write32(rd, 0);
    b.m.advance_us(5);
    b.m.write64(rd + 0x78, 0);
    b.m.assert_clean();
}

#[test]
fn redistributors_of_a_group_share_a_configuration_table_but_no_pending_table() {
    let b = Bench::up(Config::gicv3(2));
    let (one, two) = (rd_base(&b.c, 0), rd_base(&b.c, 1));
    b.m.write32(two, 0);
    b.m.advance_us(5);
    let other = b.memory(0x1_0000, 0x1_0000);
    let prop = b.m.read64(two + 0x70);
    b.m.write64(two + 0x70, other | SHARED | 15);
    b.m.write32(two, 1);
    b.expect("12.11 GICR_PROPBASER");
    b.m.write32(two, 0);
    b.m.advance_us(5);
    b.m.write64(two + 0x70, prop);
    b.m.write64(two + 0x78, b.m.read64(one + 0x78));
    b.m.write32(two, 1);
    b.expect_first("12.11 GICR_PENDBASER");
}

#[test]
fn pending_bits_are_written_to_memory_and_read_again() {
    let b = mapped();
    let rd = rd_base(&b.c, 0);
    b.m.msi(5, 1);
    let pend = b.m.read64(rd + 0x78) & 0x000f_ffff_ffff_0000;
    b.m.write32(rd, 0);
    b.m.advance_us(5);
    b.m.acquire(pend, 0x1_0000, false);
    assert_eq!(b.m.load8(pend + 1024), 1);
    b.m.write32(rd, 1);
    assert_eq!(b.m.host_ack(0), Some(LPI));
    b.m.assert_clean();
    b.m.write32(rd, 0);
    b.m.advance_us(5);
    b.m.msi(5, 1);
    assert_eq!(b.m.take_drops()[0].why, "GICR_CTLR.EnableLPIs is 0");
}

#[test]
fn a_pending_table_enabled_with_ptz_must_be_zero() {
    let b = mapped();
    let rd = rd_base(&b.c, 0);
    b.m.msi(5, 1);
    b.m.write32(rd, 0);
    b.m.advance_us(5);
    b.m.write64(rd + 0x78, b.m.read64(rd + 0x78) | 1 << 62);
    b.m.write32(rd, 1);
    b.expect("12.11 GICR_PENDBASER");
}

#[test]
fn lpis_stay_enabled_where_enable_lpis_cannot_be_cleared() {
    let c = Config::gicv3(1).each_cpu(|_, p| {
        p.ces = false;
        p.lpis_at_reset = Some(LpisAtReset { propbaser: 0x40_1000_040f, pendbaser: 0x40_1001_0400 });
    });
    let m = Machine::new(c.clone());
    let rd = c.cpus[0].gicr;
    assert_eq!(m.read32(rd) & 3, 1);
    m.write32(rd, 0);
    assert_eq!(m.read32(rd) & 1, 1);
    assert_eq!(m.read64(rd + 0x70), 0x40_1000_040f);
    m.assert_clean();
}

#[test]
fn direct_registers_set_clear_and_invalidate() {
    let b = mapped();
    let rd = rd_base(&b.c, 0);
    b.m.write64(rd + 0x40, LPI.into());
    assert!(b.m.host_irq(0));
    b.m.write64(rd + 0x48, LPI.into());
    assert!(!b.m.host_irq(0));
    b.m.write64(rd + 0x40, LPI.into());
    b.set_config(LPI, 0xa0);
    b.m.write64(rd + 0xa0, LPI.into());
    assert!(b.m.host_irq(0), "still busy");
    assert_eq!(b.m.read32(rd + 0xc0), 1);
    b.m.write64(rd + 0xb0, 0);
    b.expect("12.11 GICR_INVALLR");
    while b.m.read32(rd + 0xc0) & 1 == 1 {
        b.m.relax();
    }
    assert!(!b.m.host_irq(0));
    b.m.write64(rd + 0xa0, VALID | u64::from(LPI));
    b.expect("12.11 GICR_INVLPIR");
    b.m.assert_clean();
}

#[test]
fn using_unimplemented_direct_registers_is_a_violation() {
    let b = Bench::up(Config::qemu(1));
    let rd = rd_base(&b.c, 0);
    b.m.write64(rd + 0xa0, LPI.into());
    b.expect("12.11 GICR_INVLPIR");
    let _ = b.m.read32(rd + 0xc0);
    b.expect("12.11 GICR_SYNCR");
    let b = Bench::up(Config::qemu(1).each_cpu(|_, p| p.ir = true));
    b.m.write64(rd + 0xa0, LPI.into());
    b.m.assert_clean();
    b.m.write64(rd + 0x40, LPI.into());
    b.expect("12.11 GICR_SETLPIR");
}

#[test]
fn redistributors_are_at_the_configured_addresses() {
    let b = Bench::raw(Config::v4_0(3).each_cpu(|n, p| p.vlpis = n != 1).with_holes(0x4_0000));
    let typers: Vec<u64> = (0..3).map(|n| b.m.read64(rd_base(&b.c, n) + 8)).collect();
    assert_eq!(typers.iter().map(|t| t >> 1 & 1).collect::<Vec<_>>(), [1, 0, 1]);
    assert_eq!(typers.iter().map(|t| t >> 4 & 1).collect::<Vec<_>>(), [0, 0, 1]);
    b.m.assert_clean();
    let _ = b.m.read32(rd_base(&b.c, 1) + 0x2_0000);
    b.expect("memory");
    let _ = b.m.read32(rd_base(&b.c, 0) + 0x4_0000);
    b.expect("memory");
}

#[test]
fn a_cpu_write_to_gits_translater_is_a_violation() {
    let b = mapped();
    b.m.write32(b.c.its[0].base + 0x1_0040, 1);
    b.expect("12.19 GITS_TRANSLATER");
}

#[test]
fn a_stalled_queue_continues_after_a_retry() {
    let b = mapped();
    let base = b.c.its[0].base;
    b.m.inject(Fault::Command { its: 0, nth: 2, fault: CommandFault::Stall });
    b.post(0, &[int(5, 1), clear(5, 1), sync(b.rdbase(0, 0))]);
    assert!(!b.drained(0));
    assert_eq!(b.m.read64(base + 0x90) & 1, 1);
    assert_eq!(b.m.host_pending(0), [LPI]);
    b.m.write64(base + 0x88, b.m.read64(base + 0x88));
    assert!(!b.drained(0));
    b.m.write64(base + 0x88, b.m.read64(base + 0x88) | 1);
    assert!(b.drained(0));
    assert_eq!(b.m.host_pending(0), []);
    b.m.assert_clean();
}

#[test]
fn faults_delay_hang_or_stall_commands() {
    let b = mapped();
    b.m.inject(Fault::Command { its: 0, nth: 1, fault: CommandFault::Late { us: 1500 } });
    b.post(0, &[int(5, 1)]);
    assert!(!b.drained(0));
    assert!(b.drained(0));
    b.m.inject(Fault::Command { its: 0, nth: 1, fault: CommandFault::Hang });
    b.post(0, &[clear(5, 1)]);
    assert!(!b.drained(0));
    b.m.advance_us(100_000);
    assert!(!b.drained(0));
    b.m.heal();
    assert!(b.drained(0));
    b.m.inject(Fault::QueueLooksFull { its: 0 });
    let base = b.c.its[0].base;
    assert_eq!(b.m.read64(base + 0x90), b.m.read64(base + 0x88) + 32);
    b.m.heal();
    b.m.inject(Fault::TableWriteFails { its: 0 });
    b.post(0, &[mapd(9, 4, b.memory(4096, 4096))]);
    assert!(!b.drained(0));
    assert_eq!(b.m.read64(base + 0x90) & 1, 1);
    b.m.assert_clean();
}

#[test]
fn faults_keep_quiescent_0_and_busy_1_and_exhaust_the_memory() {
    let b = mapped();
    b.m.inject(Fault::NeverQuiescent { its: 0 });
    b.m.inject(Fault::BusyStuck { cpu: 0 });
    b.m.write32(b.c.its[0].base, 0);
    b.m.write64(rd_base(&b.c, 0) + 0xb0, 0);
    b.m.advance_us(1_000_000);
    assert_eq!(b.m.read32(b.c.its[0].base) >> 31, 0);
    assert_eq!(b.m.read32(rd_base(&b.c, 0) + 0xc0), 1);
    b.m.inject(Fault::OutOfMemory { after: 1 });
    assert!(b.m.alloc(1, 1).is_some());
    assert!(b.m.alloc(1, 1).is_none());
}

#[test]
fn the_clock_never_goes_back() {
    let m = Machine::new(Config::gicv3(1));
    let mut last = m.now_us();
    for _ in 0..100 {
        m.relax();
        let now = m.now_us();
        assert!(now >= last);
        last = now;
    }
    assert!(last > 0);
}
