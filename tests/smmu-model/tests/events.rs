//! Events, the event queue and its interrupt.

mod common;

use common::*;
use smmu_model::{Aborted, Config, Fault, Interrupt, Why};

/// An enabled SMMU with interrupts, and stream 5 attached to tables that map 0x4000_3000.
fn bench() -> (Bench, [u64; 3]) {
    let mut b = Bench::up(Config { event_bits: 2, ..Config::server() });
    b.w32(IRQ_CTRL, 5);
    let tables = b.mapped(5, 0x4000_3000, 0x5000_0000);
    b.m.assert_clean();
    (b, tables)
}

/// Reads the next record as a driver does.
fn next(b: &Bench) -> Option<[u64; 4]> {
    let (prod, cons) = (b.r32(EVENTQ_PROD), b.r32(EVENTQ_CONS));
    if (prod ^ cons) & 7 == 0 {
        return None;
    }
    let at = b.events + u64::from(cons & 3) * 32;
    b.m.acquire(at, 32, !b.c.coherent);
    let record = [0, 8, 16, 24].map(|o| b.m.load64(at + o));
    b.w32(EVENTQ_CONS, (cons & 1 << 31) | ((cons + 1) & 7));
    Some(record)
}

fn aborted(b: &Bench, stream: u32, address: u64) -> (Why, bool) {
    let Aborted { why, recorded } = b.m.dma_write(stream, address, &[1]).expect_err("it faults");
    (why, recorded)
}

#[test]
fn each_fault_has_its_record() {
    let (mut b, tables) = bench();
    let access = 0x280_0000_0000u64;
    assert_eq!(aborted(&b, 0x1ff, 0x1000), (Why::BadStreamId, true));
    assert_eq!(next(&b), Some([0x1ff_0000_0002, 0, 0, 0]));
    assert_eq!(aborted(&b, 0x200, 0x1000), (Why::BadStreamId, true), "beyond LOG2SIZE");
    assert_eq!(next(&b), Some([0x200_0000_0002, 0, 0, 0]));
    assert_eq!(aborted(&b, 6, 0x1000), (Why::BadSte, true));
    assert_eq!(next(&b), Some([0x6_0000_0004, 0, 0, 0]));
    assert_eq!(aborted(&b, 5, 0x4000_4567), (Why::Translation, true));
    assert_eq!(next(&b), Some([0x5_0000_0010, access, 0x4000_4567, 0x4000_4000]));
    let read = b.m.dma_read(5, 0x4000_4560, 4).expect_err("a read faults too");
    assert_eq!(read, Aborted { why: Why::Translation, recorded: true });
    assert_eq!(next(&b), Some([0x5_0000_0010, access | 1 << 35, 0x4000_4560, 0x4000_4000]));
    // Beyond the size of the input, and beyond the SMMU's addresses, which is a fault of stage 1.
    assert_eq!(aborted(&b, 5, 0x80_0000_0000), (Why::Translation, true));
    assert_eq!(next(&b), Some([0x5_0000_0010, access, 0x80_0000_0000, 0x80_0000_0000]));
    assert_eq!(aborted(&b, 5, 1 << 48), (Why::AddressSize, true));
    assert_eq!(next(&b), Some([0x5_0000_0011, 0x200_0000_0000, 1 << 48, 0]));
    // Descriptors: an output beyond S2PS (40 bits), no access flag, read-only and write-only.
    let word = |n: u64| tables[2] + n * 8;
    b.put(word(8), 1 << 40 | PAGE);
    b.put(word(9), 0x5000_0000 | (PAGE & !(1 << 10)));
    b.put(word(10), 0x5000_0000 | (PAGE & !(2 << 6)));
    b.put(word(11), 0x5000_0000 | (PAGE & !(1 << 6)));
    assert_eq!(aborted(&b, 5, 0x4000_8000), (Why::AddressSize, true));
    assert_eq!(next(&b), Some([0x5_0000_0011, access, 0x4000_8000, 0x4000_8000]));
    assert_eq!(aborted(&b, 5, 0x4000_9000), (Why::Access, true));
    assert_eq!(next(&b), Some([0x5_0000_0012, access, 0x4000_9000, 0x4000_9000]));
    assert_eq!(aborted(&b, 5, 0x4000_a000), (Why::Permission, true));
    assert_eq!(next(&b), Some([0x5_0000_0013, access, 0x4000_a000, 0x4000_a000]));
    assert!(b.m.dma_read(5, 0x4000_a000, 4).is_ok());
    assert!(b.m.dma_write(5, 0x4000_b000, &[1]).is_ok());
    assert_eq!(b.m.dma_read(5, 0x4000_b000, 4).map_err(|a| a.why), Err(Why::Permission));
    assert_eq!(next(&b).map(|r| r[0]), Some(0x5_0000_0013));
    b.m.assert_clean();
    // Injected: aborts of fetches, and a conflict.
    b.m.inject(Fault::SteFetchAborts);
    assert_eq!(aborted(&b, 5, 0x4000_3000), (Why::SteFetch, true));
    let ste = b.ste_at(5);
    assert_eq!(next(&b), Some([0x5_0000_0003, 0, 0, ste]));
    b.m.inject(Fault::WalkAborts);
    assert_eq!(aborted(&b, 5, 0x4000_3000), (Why::WalkAbort, true));
    assert_eq!(next(&b), Some([0x5_0000_000b, access, 0x4000_3000, tables[0] + 8]));
    b.m.inject(Fault::TlbConflict);
    assert_eq!(aborted(&b, 5, 0x4000_3000), (Why::TlbConflict, true));
    assert_eq!(next(&b).map(|r| r[0]), Some(0x5_0000_0020));
    assert_eq!(b.goes_to(5, 0x4000_3000), Ok(0x5000_0000));
    assert_eq!(next(&b), None);
    b.m.assert_clean();
}

#[test]
fn only_records_that_are_not_consumed_may_be_stored_to() {
    let alone = Bench::up(Config::server().noncoherent());
    let _ = aborted(&alone, 6, 0);
    alone.m.store64(alone.events, 0);
    alone.expect("memory");
    let (b, _) = bench();
    for _ in 0..2 {
        assert_eq!(aborted(&b, 5, 0x4000_4567), (Why::Translation, true));
    }
    b.m.acquire(b.events, 64, !b.c.coherent);
    b.m.store64(b.events + 32, 0);
    b.m.assert_clean();
    assert!(next(&b).is_some());
    for other in [0, 64] {
        b.m.store64(b.events + other, 0);
        assert_eq!(b.m.take_violations().len(), 1, "{other}");
    }
}

#[test]
fn the_access_flag_does_not_matter_with_s2affd() {
    let (mut b, tables) = bench();
    b.put(tables[2] + 9 * 8, 0x5000_0000 | (PAGE & !(1 << 10)));
    assert_eq!(b.goes_to(5, 0x4000_9000), Err(Why::Access));
    b.detach(5);
    b.run(&[s12_vmall(7)]);
    let mut ste = stage2(7, tables[0]);
    ste[2] |= 1 << 53;
    b.attach(5, ste);
    assert_eq!(b.goes_to(5, 0x4000_9000), Ok(0x5000_0000));
    b.m.assert_clean();
}

#[test]
fn faults_are_recorded_only_with_s2r() {
    let (mut b, tables) = bench();
    let mut ste = stage2(8, tables[0]);
    ste[2] &= !(1 << 58);
    b.attach(6, ste);
    assert_eq!(aborted(&b, 6, 0x4000_4000), (Why::Translation, false));
    assert_eq!(aborted(&b, 6, 1 << 48), (Why::AddressSize, true), "a fault of stage 1");
    b.m.inject(Fault::WalkAborts);
    assert_eq!(aborted(&b, 6, 0x4000_3000), (Why::WalkAbort, true));
    b.m.assert_clean();
}

#[test]
fn bad_stream_ids_are_recorded_only_with_recinvsid() {
    let mut b = Bench::queues(Config::server());
    b.w32(CR2, 0);
    b.invalidate_all();
    b.cr0(CMDQEN | EVENTQEN | SMMUEN);
    assert_eq!(aborted(&b, 5, 0x1000), (Why::BadStreamId, false));
}

#[test]
fn a_full_queue_overflows_once_until_that_is_acknowledged() {
    let (b, _) = bench();
    for _ in 0..4 {
        assert_eq!(aborted(&b, 6, 0), (Why::BadSte, true));
    }
    assert_eq!(b.r32(EVENTQ_PROD), 4);
    assert_eq!(aborted(&b, 6, 0), (Why::BadSte, false));
    assert_eq!(b.r32(EVENTQ_PROD), 1 << 31 | 4);
    assert_eq!(aborted(&b, 6, 0), (Why::BadSte, false));
    assert_eq!(b.r32(EVENTQ_PROD), 1 << 31 | 4, "not acknowledged: not toggled again");
    while next(&b).is_some() {}
    assert_eq!(aborted(&b, 6, 0), (Why::BadSte, true), "events are recorded again");
    b.w32(EVENTQ_CONS, 1 << 31 | 4);
    for _ in 0..4 {
        let _ = aborted(&b, 6, 0);
    }
    assert_eq!(b.r32(EVENTQ_PROD), 8 & 7, "toggled back");
    b.w32(EVENTQ_CONS, 1 << 31);
    b.m.assert_clean();
    // The flag can only be set to what it acknowledges, and the index only to what was produced.
    b.w32(EVENTQ_CONS, 0);
    b.m.assert_clean();
    b.w32(EVENTQ_CONS, 1 << 31);
    b.expect("6.3 SMMU_EVENTQ_CONS");
    b.w32(EVENTQ_CONS, 1);
    b.expect("6.3 SMMU_EVENTQ_CONS");
    b.w32(EVENTQ_CONS, 8);
    b.expect("6.3 SMMU_EVENTQ_CONS");
    b.m.inject(Fault::EventOverflow);
    assert_eq!(aborted(&b, 6, 0), (Why::BadSte, false));
    assert_eq!(b.r32(EVENTQ_PROD), 1 << 31);
}

#[test]
fn the_interrupt_is_raised_when_the_queue_becomes_non_empty() {
    let (b, _) = bench();
    let _ = (aborted(&b, 6, 0), aborted(&b, 6, 0));
    assert_eq!(b.m.take_interrupts(), [Interrupt::Event]);
    let _ = (next(&b), next(&b));
    let _ = aborted(&b, 6, 0);
    assert_eq!(b.m.take_interrupts(), [Interrupt::Event]);
    b.w32(IRQ_CTRL, 1);
    let _ = next(&b);
    let _ = aborted(&b, 6, 0);
    assert!(b.m.take_interrupts().is_empty());
}

#[test]
fn interrupts_can_be_messages() {
    let mut b = Bench::queues(Config { msi: true, ..Config::server() });
    b.w64(0xb0, 0x808_0040);
    b.w32(0xb8, 9);
    b.w32(0xbc, 1);
    assert_eq!((b.r64(0xb0), b.r32(0xb8), b.r32(0xbc)), (0x808_0040, 9, 1));
    b.w64(0x68, 0x808_0044);
    b.w32(0x70, 10);
    b.w32(0x74, 2);
    assert_eq!((b.r64(0x68), b.r32(0x70), b.r32(0x74)), (0x808_0044, 10, 2));
    b.w32(IRQ_CTRL, 5);
    b.m.advance_us(2);
    b.w32(0xb8, 8);
    b.expect("6.3 SMMU_EVENTQ_IRQ_CFG");
    b.w32(0x74, 8);
    b.expect("6.3 SMMU_GERROR_IRQ_CFG");
    b.invalidate_all();
    b.cr0(CMDQEN | EVENTQEN | SMMUEN);
    let _ = aborted(&b, 6, 0);
    assert_eq!(b.m.take_interrupts(), [Interrupt::Message { address: 0x808_0040, data: 9 }]);
    b.m.inject(Fault::ServiceFailure);
    assert_eq!(b.m.take_interrupts(), [Interrupt::Message { address: 0x808_0044, data: 10 }]);
    b.m.assert_clean();
}

#[test]
fn an_aborted_write_of_an_event_is_a_global_error() {
    let (b, _) = bench();
    b.m.inject(Fault::EventWriteAborts);
    assert_eq!(aborted(&b, 6, 0), (Why::BadSte, false));
    assert_eq!((b.r32(GERROR), b.r32(EVENTQ_PROD)), (4, 0));
    assert_eq!(b.m.take_interrupts(), [Interrupt::Error]);
    assert_eq!(aborted(&b, 6, 0), (Why::BadSte, false), "nothing is recorded until it is acknowledged");
    b.w32(GERRORN, 4);
    assert_eq!(aborted(&b, 6, 0), (Why::BadSte, true));
    b.m.assert_clean();
}

#[test]
fn a_failed_smmu_stops() {
    let (mut b, _) = bench();
    b.m.inject(Fault::ServiceFailure);
    assert_eq!(b.r32(GERROR), 1 << 8);
    assert_eq!(b.m.take_interrupts(), [Interrupt::Error]);
    assert_eq!(aborted(&b, 5, 0x4000_3000), (Why::ServiceFailure, false));
    b.w32(GERRORN, 1 << 8);
    assert_eq!(aborted(&b, 5, 0x4000_3000), (Why::ServiceFailure, false), "an acknowledgement does not help");
    let cons = b.r32(CMDQ_CONS);
    b.commands(&[SYNC]);
    b.m.advance_us(1000);
    assert_eq!(b.r32(CMDQ_CONS), cons);
    b.m.assert_clean();
}

#[test]
fn records_must_be_acquired_and_are_not_the_drivers_to_write() {
    for c in [Config::server(), Config::server().noncoherent()] {
        let b = Bench::up(c.clone());
        let _ = aborted(&b, 6, 0);
        let _ = b.m.load64(b.events);
        b.expect("memory");
        b.m.acquire(b.events, 32, false);
        let _ = b.m.load64(b.events);
        if c.coherent {
            b.m.assert_clean();
        } else {
            b.expect("memory");
        }
        b.m.store64(b.events + 32, 0);
        b.expect("memory");
    }
    // What is not cleaned before the queue is enabled could be written back over a record.
    let b = Bench::queues(Config::server().noncoherent());
    b.cr0(0);
    b.m.store64(b.events, 0);
    b.m.publish(b.events, 8, false);
    b.cr0(EVENTQEN);
    b.expect("6.3 SMMU_EVENTQ_BASE");
}
