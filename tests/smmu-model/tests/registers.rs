//! What may be written to registers when, and what takes time.

mod common;

use common::*;
use smmu_model::{Config, Fault, Machine, Timing, Why};

#[test]
fn identification_registers_are_those_of_the_configuration() {
    let b = Bench::new(Config::server());
    assert_eq!([0, 4, 0xc, 0x14].map(|o| b.r32(o)), [b.c.idr0(), b.c.idr1(), b.c.idr3(), b.c.idr5()]);
    assert_eq!((b.r32(0x18), b.r32(0x1c)), (0x4832_243b, 2));
    b.w32(0, 0);
    b.expect("6.2");
    b.w32(CR0ACK, 0);
    b.expect("6.2");
    b.w32(GERROR, 0);
    b.expect("6.2");
}

#[test]
fn accesses_of_the_wrong_size_or_place_are_violations() {
    let b = Bench::queues(Config::server());
    let _ = b.r64(CR0);
    b.expect("6.2");
    b.w64(CMDQ_PROD, 0);
    b.expect("6.2");
    let _ = b.m.read32(b.c.base + 2);
    b.expect("6.2");
    let _ = b.m.read64(b.c.base + STRTAB_BASE + 4);
    b.expect("6.2");
    // The registers of page 1 are not in page 0, and page 1 has nothing else.
    let _ = b.r32(0xa8);
    b.expect("6.2");
    b.w32(0xac, 0);
    b.expect("6.2");
    let _ = b.r32(0x1_0000);
    b.expect("6.2");
    let _ = b.m.read32(b.c.base + 0x2_0000);
    b.expect("memory");
    b.m.write32(0x1000, 0);
    b.expect("memory");
    // Halves of 64-bit registers can be accessed alone.
    let whole = b.r64(STRTAB_BASE);
    assert_eq!(u64::from(b.r32(STRTAB_BASE)) | u64::from(b.r32(STRTAB_BASE + 4)) << 32, whole);
    b.w32(STRTAB_BASE, 0x1000_0000);
    b.w32(STRTAB_BASE + 4, 0x41);
    assert_eq!(b.r64(STRTAB_BASE), 0x41_1000_0000);
    b.m.assert_clean();
}

#[test]
fn a_change_of_cr0_is_acknowledged_later_and_must_be_waited_for() {
    let b = Bench::queues(Config::server());
    b.w32(CR0, CMDQEN);
    assert_eq!((b.r32(CR0), b.r32(CR0ACK)), (CMDQEN, CMDQEN | EVENTQEN));
    b.m.assert_clean();
    // Another field may be changed meanwhile, this one may not.
    b.w32(CR0, 0);
    b.m.assert_clean();
    b.w32(CR0, EVENTQEN);
    b.expect("6.3 SMMU_CR0");
    b.m.advance_us(2);
    // The first change has completed, the second was ignored.
    assert_eq!((b.r32(CR0), b.r32(CR0ACK)), (0, 0));
    b.w32(CR0, 2);
    b.expect("6.3 SMMU_CR0");
    b.w32(CR0, 1 << 4);
    b.expect("6.3 SMMU_CR0");
}

#[test]
fn registers_that_cr0_guards_are_read_only_from_the_write_of_the_field_until_its_acknowledgement() {
    let timing = Timing { acknowledge: 20_000, ..Timing::SERVER };
    let b = Bench::up(Config { timing, ..Config::server() });
    let guarded = |b: &Bench| {
        for (offset, wide, section) in [
            (STRTAB_BASE, true, "6.3 SMMU_STRTAB_BASE"),
            (STRTAB_BASE_CFG, false, "6.3 SMMU_STRTAB_BASE_CFG"),
            (CMDQ_BASE, true, "6.3 SMMU_CMDQ_BASE"),
            (CMDQ_CONS, false, "6.3 SMMU_CMDQ_CONS"),
            (EVENTQ_BASE, true, "6.3 SMMU_EVENTQ_BASE"),
            (EVENTQ_PROD, false, "6.3 SMMU_EVENTQ_PROD"),
            (CR2, false, "6.3 SMMU_CR2"),
        ] {
            let read = |b: &Bench| if wide { b.r64(offset) } else { b.r32(offset).into() };
            let before = read(b);
            if wide {
                b.w64(offset, 0);
            } else {
                b.w32(offset, 0);
            }
            b.expect(section);
            assert_eq!(read(b), before, "{section}");
        }
        for cr1 in [0xd75 ^ 0x10, 0xd75 ^ 0x400] {
            b.w32(CR1, cr1);
            b.expect("6.3 SMMU_CR1");
            assert_eq!(b.r32(CR1), 0xd75);
        }
    };
    guarded(&b);
    b.w32(CR0, 0);
    guarded(&b);
    b.m.advance_us(20);
    b.w64(STRTAB_BASE, 0x40_0000_0000);
    b.w64(CMDQ_BASE, 0);
    b.w64(EVENTQ_BASE, 0);
    b.w32(EVENTQ_PROD, 0);
    b.w32(CMDQ_CONS, 0);
    b.w32(CR1, 0);
    b.w32(CR2, 0);
    b.m.assert_clean();
    // The guard holds from the write on, not from the acknowledgement.
    let b = Bench::new(Config::server());
    b.w64(EVENTQ_BASE, b.events | 4);
    b.w32(EVENTQ_PROD, 0);
    b.w32(EVENTQ_CONS, 0);
    b.w32(CR1, 0xd75);
    b.w32(CR0, EVENTQEN);
    b.w64(EVENTQ_BASE, 0);
    b.expect("6.3 SMMU_EVENTQ_BASE");
}

#[test]
fn reserved_bits_of_registers_are_found() {
    let b = Bench::new(Config { output_bits: 40, ..Config::server() });
    for (offset, value, section) in [
        (STRTAB_BASE, 1 << 63, "6.3 SMMU_STRTAB_BASE"),
        (STRTAB_BASE, 1 << 41, "6.3 SMMU_STRTAB_BASE"),
        (STRTAB_BASE, 1 << 3, "6.3 SMMU_STRTAB_BASE"),
        (CMDQ_BASE, 1 << 56, "6.3 SMMU_CMDQ_BASE"),
        (EVENTQ_BASE, 1 << 40, "6.3 SMMU_EVENTQ_BASE"),
    ] {
        b.w64(offset, value);
        b.expect(section);
    }
    for (offset, value, section) in [
        (CR1, 1 << 12, "6.3 SMMU_CR1"),
        (CR2, 1 << 2, "6.3 SMMU_CR2"),
        (IRQ_CTRL, 1 << 1, "6.3 SMMU_IRQ_CTRL"),
        (STRTAB_BASE_CFG, 1 << 20, "6.3 SMMU_STRTAB_BASE_CFG"),
        (EVENTQ_PROD, 1 << 20, "6.3 SMMU_EVENTQ_PROD"),
        (0x68, 0, "6.3 SMMU_GERROR_IRQ_CFG"),
    ] {
        b.w32(offset, value);
        b.expect(section);
    }
}

#[test]
fn gbpa_is_written_with_update_and_takes_effect_when_update_is_0_again() {
    let b = Bench::new(Config::server());
    assert_eq!(b.r32(GBPA), 0x1000);
    assert_eq!(b.goes_to(1, 0x5000), Ok(0x5000));
    b.w32(GBPA, 1 << 20);
    b.expect("6.3 SMMU_GBPA");
    b.w32(GBPA, 1 << 31 | 1 << 20);
    assert_eq!(b.r32(GBPA), 1 << 31 | 1 << 20);
    assert_eq!(b.goes_to(1, 0x5000), Ok(0x5000), "the old value is in effect");
    b.w32(GBPA, 1 << 31);
    b.expect("6.3 SMMU_GBPA");
    b.m.advance_us(1);
    assert_eq!(b.r32(GBPA), 1 << 20);
    assert_eq!(b.goes_to(1, 0x5000), Err(Why::Disabled));
    b.w32(GBPA, 1 << 31 | 1 << 30);
    b.expect("6.3 SMMU_GBPA");
    b.m.advance_us(1);
    assert_eq!(b.goes_to(1, 1 << 48), Err(Why::Disabled), "beyond the output address size");
}

#[test]
fn an_smmu_can_abort_at_reset() {
    let m = Machine::new(Config { gbpa: 1 << 20, ..Config::server() });
    assert_eq!(m.dma_write(1, 0x5000, &[1]).map_err(|a| a.why), Err(Why::Disabled));
}

#[test]
fn irq_ctrl_is_acknowledged_later_and_must_be_waited_for() {
    let b = Bench::new(Config::server());
    b.w32(IRQ_CTRL, 1);
    assert_eq!((b.r32(IRQ_CTRL), b.r32(0x54)), (1, 0));
    b.w32(IRQ_CTRL, 0);
    b.expect("6.3 SMMU_IRQ_CTRL");
    b.m.advance_us(2);
    assert_eq!(b.r32(0x54), 1);
    b.w32(IRQ_CTRL, 5);
    b.m.advance_us(2);
    assert_eq!(b.r32(0x54), 5);
    b.m.assert_clean();
}

#[test]
fn only_active_errors_may_be_acknowledged() {
    let b = Bench::queues(Config::server());
    b.w32(GERRORN, 1);
    b.expect("6.3 SMMU_GERRORN");
    assert_eq!(b.r32(GERRORN), 0);
}

#[test]
fn acknowledgements_can_fail_to_come() {
    let b = Bench::queues(Config::server());
    b.m.inject(Fault::Cr0Stuck { fields: SMMUEN });
    b.m.inject(Fault::GbpaStuck);
    b.m.inject(Fault::IrqCtrlStuck);
    b.w32(CR0, EVENTQEN | CMDQEN | SMMUEN);
    b.w32(GBPA, 1 << 31);
    b.w32(IRQ_CTRL, 1);
    b.m.advance_us(100_000);
    assert_eq!((b.r32(CR0ACK), b.r32(GBPA), b.r32(0x54)), (EVENTQEN | CMDQEN, 1 << 31, 0));
    b.w32(CR0, SMMUEN | CMDQEN);
    b.m.advance_us(100);
    assert_eq!(b.r32(CR0ACK), CMDQEN, "other fields are acknowledged");
    b.m.heal();
    b.m.advance_us(1);
    assert_eq!((b.r32(CR0ACK), b.r32(GBPA), b.r32(0x54)), (CMDQEN | SMMUEN, 0, 1));
}

#[test]
fn a_queue_must_be_aligned_allocated_and_not_too_large() {
    let cases: [(fn(&mut Bench), &str); 6] = [
        (|b| b.w64(CMDQ_BASE, (b.queue + 0x800) | 8), "6.3 SMMU_CMDQ_BASE"),
        (|b| b.w64(CMDQ_BASE, 0x7000_0000 | 8), "6.3 SMMU_CMDQ_BASE"),
        (|b| b.w64(CMDQ_BASE, b.queue | 11), "6.3 SMMU_CMDQ_BASE"),
        (|b| b.w64(CMDQ_BASE, b.events | 1), "6.3 SMMU_CMDQ_BASE"),
        (|b| b.w32(CMDQ_PROD, 0x101), "6.3 SMMU_CMDQ_PROD"),
        (|b| b.w32(CR1, 0xd75 & !0x30 | 0x10), "6.3 SMMU_CR1"),
    ];
    for (n, (change, section)) in cases.into_iter().enumerate() {
        let mut b = Bench::queues(Config { command_bits: 8, ..Config::server() });
        b.cr0(EVENTQEN);
        if section == "6.3 SMMU_CR1" {
            b.cr0(0);
        }
        change(&mut b);
        let _ = b.m.take_violations();
        b.cr0(b.r32(CR0) | CMDQEN);
        let found = b.m.take_violations();
        assert!(found.iter().any(|v| v.section == section), "case {n}, {section}: {found:#?}");
    }
}

#[test]
fn indexes_of_queues_must_be_initialized() {
    let b = Bench::new(Config::server());
    b.w32(CR1, 0xd75);
    b.w64(CMDQ_BASE, b.queue | 1);
    b.w64(EVENTQ_BASE, b.events | 1);
    b.cr0(EVENTQEN);
    b.expect("6.3 SMMU_EVENTQ_PROD");
    b.cr0(EVENTQEN | CMDQEN);
    assert_eq!(b.m.take_violations()[0].section, "6.3 SMMU_CMDQ_PROD");
}

#[test]
fn queues_and_tables_in_use_must_not_be_freed() {
    for what in 0..3 {
        let b = Bench::up(Config::server());
        let (at, size) = [(b.queue, 0x1000), (b.events, 0x200), (b.table, 64)][what];
        b.m.free(at, size, size);
        b.expect("memory");
    }
    let b = Bench::up(Config::server());
    b.cr0(0);
    b.m.free(b.queue, 0x1000, 0x1000);
    b.m.free(b.events, 0x200, 0x200);
    b.m.free(b.table, 64, 64);
    b.m.assert_clean();
    assert!(b.m.allocations().is_empty());
}

#[test]
fn the_stream_table_must_be_aligned_published_and_fit() {
    let cases: [(fn(&Bench), &str); 6] = [
        (|b| b.w64(STRTAB_BASE, b.table + 0x40), "6.3 SMMU_STRTAB_BASE"),
        (|b| b.w64(STRTAB_BASE, 0x7000_0000), "6.3 SMMU_STRTAB_BASE"),
        (|b| b.m.store64(b.table, 0), "6.3 SMMU_STRTAB_BASE"),
        (|b| b.w32(STRTAB_BASE_CFG, 1 << 16 | 6 << 6 | 17), "6.3 SMMU_STRTAB_BASE_CFG"),
        (|b| b.w32(STRTAB_BASE_CFG, 1 << 16 | 7 << 6 | 9), "6.3 SMMU_STRTAB_BASE_CFG"),
        (|b| b.w32(STRTAB_BASE_CFG, 2 << 16 | 9), "6.3 SMMU_STRTAB_BASE_CFG"),
    ];
    for (n, (change, section)) in cases.into_iter().enumerate() {
        let mut b = Bench::queues(Config::server());
        b.invalidate_all();
        change(&b);
        b.cr0(CMDQEN | EVENTQEN | SMMUEN);
        let found = b.m.take_violations();
        assert!(found.iter().any(|v| v.section == section), "case {n}, {section}: {found:#?}");
    }
}

#[test]
fn caches_must_be_invalidated_before_smmuen_is_set() {
    for missing in 0..4 {
        let mut b = Bench::queues(Config::server());
        let mut list = vec![CFGI_ALL, NSNH_ALL, EL2_ALL];
        if missing < 3 {
            list.remove(missing);
        }
        b.commands(&list);
        if missing < 3 {
            b.sync();
        } else {
            b.m.advance_us(100);
        }
        b.cr0(CMDQEN | EVENTQEN | SMMUEN);
        b.expect("3.11");
    }
    // Nor does an SMMU invalidate anything when SMMUEN is cleared.
    let mut b = Bench::up(Config::server());
    b.cr0(CMDQEN | EVENTQEN);
    b.cr0(CMDQEN | EVENTQEN | SMMUEN);
    b.expect("3.11");
    b.cr0(CMDQEN | EVENTQEN);
    b.invalidate_all();
    b.cr0(CMDQEN | EVENTQEN | SMMUEN);
    b.m.assert_clean();
}

#[test]
fn an_smmu_that_firmware_left_enabled_bypasses_and_can_be_taken_over() {
    let mut b = Bench::new(Config::server().left_enabled());
    assert_eq!((b.r32(CR0), b.r32(CR0ACK)), (0xd, 0xd));
    assert_eq!(b.goes_to(5, 0x5000), Ok(0x5000));
    assert_eq!(b.goes_to(0x100, 0x5000), Err(Why::BadStreamId));
    b.w64(STRTAB_BASE, b.table);
    b.expect("6.3 SMMU_STRTAB_BASE");
    b.w32(GBPA, 1 << 31 | 1 << 20);
    b.m.advance_us(1);
    b.cr0(0);
    assert_eq!(b.goes_to(5, 0x5000), Err(Why::Disabled));
    b.m.assert_clean();
    b.program();
    // Without an invalidation the firmware's STEs stay in the cache.
    b.cr0(CMDQEN | EVENTQEN | SMMUEN);
    b.expect("3.11");
    assert_eq!(b.goes_to(5, 0x5000), Ok(0x5000));
    b.invalidate_all();
    assert_eq!(b.goes_to(5, 0x5000), Err(Why::BadStreamId));
    b.m.assert_clean();
}

#[test]
fn smmuen_takes_effect_with_its_acknowledgement_at_the_latest() {
    let mut b = Bench::queues(Config::server());
    b.invalidate_all();
    b.w32(CR0, CMDQEN | EVENTQEN | SMMUEN);
    assert_eq!(b.goes_to(5, 0x5000), Ok(0x5000));
    b.m.dma_write_later(5, 0x6000, &[1]).expect("still bypassed");
    b.m.advance_us(2);
    assert_eq!(b.goes_to(5, 0x5000), Err(Why::BadStreamId));
    // Nothing waits for a transaction that was under way.
    assert!(b.m.take_landings().is_empty());
    b.m.land();
    assert_eq!(b.m.take_landings()[0].physical, 0x6000);
    b.m.assert_clean();
}
