//! Stage 2, what is cached of it, and how it may be changed.

mod common;

use common::*;
use smmu_model::{Config, Staleness, Why};

const IPA: u64 = 0x4000_3000;
const OUT: u64 = 0x12_3456_7000;

fn machines() -> [Config; 6] {
    let server = Config::server();
    let random = server.clone().stale(Staleness::Random(3));
    [server.clone(), server.clone().linear(), server.clone().noncoherent(), server.instant(), random, Config::small()]
}

/// An enabled SMMU with stream 5 attached to tables of VMID 7 that map IPA.
fn bench() -> (Bench, [u64; 3]) {
    with(Config::server())
}

fn with(c: Config) -> (Bench, [u64; 3]) {
    let mut b = Bench::up(c);
    let tables = b.mapped(5, IPA, OUT);
    (b, tables)
}

const fn entry(table: u64, ipa: u64, level: u32) -> u64 {
    table + (ipa >> (39 - 9 * level) & 0x1ff) * 8
}

#[test]
fn a_stream_goes_where_its_tables_say() {
    for c in machines() {
        let mut b = Bench::up(c);
        assert_eq!(b.goes_to(5, IPA), Err(if b.c.two_level { Why::BadStreamId } else { Why::BadSte }));
        b.mapped(5, IPA, OUT);
        b.attach(6, BYPASS);
        b.attach(7, ABORT);
        assert_eq!(b.goes_to(5, IPA + 0xabc), Ok(OUT + 0xabc));
        assert_eq!(b.goes_to(5, IPA + 0x1000), Err(Why::Translation));
        assert_eq!(b.goes_to(5, 0x80_0000_0000), Err(Why::Translation));
        assert_eq!(b.goes_to(6, 0x1234), Ok(0x1234));
        assert_eq!(b.goes_to(7, 0x1234), Err(Why::Configured));
        assert_eq!(b.goes_to(8, 0x1234), Err(Why::BadSte));
        b.m.assert_clean();
    }
}

#[test]
fn blocks_and_concatenated_roots_translate() {
    let mut b = Bench::up(Config::server());
    // 34 bits of input from level 2: 16 tables in a row.
    let root = b.m.alloc(0x1_0000, 0x1_0000).expect("memory");
    b.publish(root, 0x1_0000);
    let ipa = 0x3_c020_0000;
    b.put(root + (ipa >> 21) * 8, 0x50_0000_0000 | BLOCK);
    let mut ste = stage2(7, root);
    ste[2] = ste[2] & !(0x3f << 32 | 3 << 38) | 30 << 32;
    b.attach(5, ste);
    assert_eq!(b.goes_to(5, ipa + 0x12_3456), Ok(0x50_0012_3456));
    assert_eq!(b.goes_to(5, ipa + 0x20_0000), Err(Why::Translation));
    // 44 bits from level 0, with a block of 1 GiB.
    let (root, l1) = (b.table(), b.table());
    let ipa = 0x123_4000_0000;
    b.put(l1 + (ipa >> 30 & 0x1ff) * 8, 0x60_4000_0000 | BLOCK);
    b.put(root + (ipa >> 39) * 8, l1 | TABLE);
    let mut ste = stage2(8, root);
    ste[2] = ste[2] & !(0x3f << 32 | 3 << 38) | 20 << 32 | 2 << 38;
    b.attach(6, ste);
    assert_eq!(b.goes_to(6, ipa + 0x3fff_f000), Ok(0x60_7fff_f000));
    b.m.assert_clean();
}

#[test]
fn a_transaction_over_several_pages_goes_to_each_of_them() {
    let (b, tables) = bench();
    b.put(entry(tables[2], IPA + 0x1000, 3), 0x5000_0000 | PAGE);
    let end = b.m.dma_write(5, IPA + 0xff8, &[1; 0x1010]).expect_err("the third page is not mapped");
    assert_eq!(end.why, Why::Translation);
    let seen: Vec<(u64, u64)> = b.m.take_landings().iter().map(|l| (l.physical, l.size)).collect();
    assert_eq!(seen, [(OUT + 0xff8, 8), (0x5000_0000, 0x1000)]);
    assert_eq!(b.m.msi(5, IPA + 0x40, 3), Ok(OUT + 0x40));
    let msi = b.m.take_landings()[0];
    assert_eq!((msi.stream, msi.address, msi.write, msi.size), (5, IPA + 0x40, true, 4));
    assert_eq!(msi.descriptor, Some(OUT | PAGE));
}

#[test]
fn devices_read_and_write_memory() {
    for c in [Config::server(), Config::server().noncoherent()] {
        let mut b = Bench::up(c);
        let buffer = b.table();
        b.mapped(5, IPA, buffer);
        b.put(buffer, 0x1122_3344);
        assert_eq!(b.m.dma_read(5, IPA, 4), Ok(vec![0x44, 0x33, 0x22, 0x11]));
        b.m.dma_write(5, IPA + 8, &[1, 2, 3, 4, 5, 6, 7, 8]).expect("mapped");
        b.m.acquire(buffer, 16, !b.c.coherent);
        assert_eq!(b.m.load64(buffer + 8), 0x0807_0605_0403_0201);
        b.m.assert_clean();
    }
}

#[test]
fn a_write_to_what_the_smmu_uses_is_a_violation() {
    for what in 0..4 {
        let mut b = Bench::up(Config::server());
        let tables = [b.table(), b.table(), b.table()];
        let at = [b.table, b.queue, b.events, tables[1]][what];
        b.put(entry(tables[2], IPA, 3), at & !0xfff | PAGE);
        b.put(entry(tables[1], IPA, 2), tables[2] | TABLE);
        b.put(entry(tables[0], IPA, 1), tables[1] | TABLE);
        b.attach(5, stage2(7, tables[0]));
        b.m.assert_clean();
        assert_eq!(b.goes_to(5, IPA + at % 0x1000), Ok(at));
        b.expect("memory");
    }
}

#[test]
fn a_translation_stays_cached_until_the_sync_after_its_invalidation() {
    for command in [s12_vmall(7), s2_ipa(7, IPA, 0), s2_ipa(7, IPA, 1), NSNH_ALL, s2_range(7, IPA, 0, 0, 3)] {
        let (mut b, tables) = bench();
        b.put(entry(tables[2], IPA, 3), 0);
        assert_eq!(b.goes_to(5, IPA), Ok(OUT), "cached, though never used");
        b.commands(&[command]);
        b.m.advance_us(100);
        assert_eq!(b.goes_to(5, IPA), Ok(OUT), "no SYNC");
        b.sync();
        assert_eq!(b.goes_to(5, IPA), Err(Why::Translation), "{command:#x?}");
        b.m.assert_clean();
    }
}

#[test]
fn other_invalidations_leave_a_translation_cached() {
    let others = [
        s12_vmall(8),
        s2_ipa(8, IPA, 0),
        s2_ipa(7, IPA + 0x1000, 0),
        s2_ipa(7, IPA - 0x1000, 0),
        s2_range(7, IPA + 0x1000, 7, 3, 0),
        s2_range(7, IPA & !0x1f_ffff, 0, 0, 2),
        CFGI_ALL,
        EL2_ALL,
        [0x10 | 7 << 32, 0],
    ];
    for command in others {
        let (mut b, tables) = bench();
        b.put(entry(tables[2], IPA, 3), 0);
        b.run(&[command]);
        assert_eq!(b.goes_to(5, IPA), Ok(OUT), "{command:#x?}");
        b.m.assert_clean();
    }
}

#[test]
fn a_range_covers_num_plus_1_times_2_to_the_scale_pages() {
    // 3 * 2^1 pages from one page before.
    for (pages, gone) in [(0u64, true), (4, true), (5, false)] {
        let (mut b, tables) = bench();
        let ipa = IPA + pages * 0x1000;
        b.put(entry(tables[2], ipa, 3), 0);
        b.run(&[s2_ipa(7, ipa, 1)]);
        b.put(entry(tables[2], ipa, 3), OUT | PAGE);
        b.put(entry(tables[2], ipa, 3), 0);
        b.run(&[s2_range(7, IPA - 0x1000, 2, 1, 0)]);
        assert_eq!(b.goes_to(5, ipa), if gone { Err(Why::Translation) } else { Ok(OUT) }, "{pages}");
        b.m.assert_clean();
    }
}

#[test]
fn a_fault_is_not_cached() {
    let (b, tables) = bench();
    let ipa = IPA + 0x1000;
    assert_eq!(b.goes_to(5, ipa), Err(Why::Translation));
    b.put(entry(tables[2], ipa, 3), 0x5000_0000 | (PAGE & !(1 << 10)));
    assert_eq!(b.goes_to(5, ipa), Err(Why::Access));
    b.put(entry(tables[2], ipa, 3), 0x5000_0000 | PAGE);
    assert_eq!(b.goes_to(5, ipa), Ok(0x5000_0000));
    b.m.assert_clean();
}

#[test]
fn permissions_stay_cached_but_may_be_changed_in_place() {
    let (mut b, tables) = bench();
    b.put(entry(tables[2], IPA, 3), OUT | (PAGE & !(2 << 6)));
    assert_eq!(b.goes_to(5, IPA), Ok(OUT));
    b.run(&[s2_ipa(7, IPA, 1)]);
    assert_eq!(b.goes_to(5, IPA), Err(Why::Permission));
    b.m.assert_clean();
}

#[test]
fn changes_without_break_before_make_are_violations() {
    // Another address or attribute, at once or without an invalidation.
    for word in [0x5000_0000 | PAGE, OUT | (PAGE & !(0xf << 2))] {
        for broken in [false, true] {
            let (b, tables) = bench();
            if broken {
                b.put(entry(tables[2], IPA, 3), 0);
            }
            b.m.assert_clean();
            b.put(entry(tables[2], IPA, 3), word);
            b.expect("3.21.1.1");
        }
    }
    // Consumed, but no SYNC.
    let (mut b, tables) = bench();
    b.put(entry(tables[2], IPA, 3), 0);
    b.commands(&[s2_ipa(7, IPA, 1)]);
    b.m.advance_us(100);
    b.put(entry(tables[2], IPA, 3), 0x5000_0000 | PAGE);
    b.expect("3.21.1.1");
    // Done as it should be.
    let (mut b, tables) = bench();
    b.put(entry(tables[2], IPA, 3), 0);
    b.run(&[s2_ipa(7, IPA, 1)]);
    b.put(entry(tables[2], IPA, 3), 0x5000_0000 | PAGE);
    assert_eq!(b.goes_to(5, IPA), Ok(0x5000_0000));
    // The same again needs nothing.
    b.put(entry(tables[2], IPA, 3), 0);
    b.put(entry(tables[2], IPA, 3), 0x5000_0000 | PAGE);
    b.m.assert_clean();
}

#[test]
fn changes_of_size_need_break_before_make_unless_the_smmu_has_level_2() {
    let base = IPA & !0x1f_ffff;
    let block = OUT & !0x1f_ffff | BLOCK;
    // The page that is mapped goes to the same address by the block.
    let page = (OUT & !0x1f_ffff) | (IPA & 0x1f_f000);
    for (bbml, broken, nt, clean) in [
        (0, false, false, false),
        (0, true, false, true),
        (1, false, false, false),
        (1, false, true, true),
        (2, false, false, true),
    ] {
        let mut b = Bench::up(Config { bbml, ..Config::server() });
        let tables = b.mapped(5, IPA, page);
        if broken {
            b.put(entry(tables[1], IPA, 2), 0);
            b.run(&[s12_vmall(7)]);
        }
        b.put(entry(tables[1], IPA, 2), block | u64::from(nt) << 16);
        assert_eq!(b.m.take_violations().is_empty(), clean, "table to block, BBML {bbml}, {broken}");
        b.run(&[s2_ipa(7, base, 0)]);
        b.run(&[s12_vmall(7)]);
        assert_eq!(b.goes_to(5, base + 0x1234), Ok((OUT & !0x1f_ffff) + 0x1234));
        // And back.
        if broken {
            b.put(entry(tables[1], IPA, 2), 0);
            b.run(&[s12_vmall(7)]);
        }
        b.put(entry(tables[1], IPA, 2), tables[2] | TABLE);
        assert_eq!(b.m.take_violations().is_empty(), clean, "block to table, BBML {bbml}, {broken}");
    }
}

#[test]
fn a_pointer_to_a_table_stays_cached_until_an_invalidation_that_is_not_leaf() {
    let (mut b, tables) = bench();
    b.put(entry(tables[1], IPA, 2), 0);
    b.run(&[s2_ipa(7, IPA, 1)]);
    assert_eq!(b.goes_to(5, IPA), Ok(OUT), "the walk goes on from the cached pointer");
    b.m.free(tables[2], 0x1000, 0x1000);
    b.expect("memory");
    let (mut b, tables) = bench();
    b.put(entry(tables[1], IPA, 2), 0);
    // Any address of the table removes the pointer, and its own translation. Those of other addresses stay.
    b.run(&[s2_ipa(7, IPA + 0x1000, 0)]);
    assert_eq!(b.goes_to(5, IPA), Ok(OUT));
    b.m.free(tables[2], 0x1000, 0x1000);
    b.m.assert_clean();
    b.run(&[s2_ipa(7, IPA, 0)]);
    assert_eq!(b.goes_to(5, IPA), Err(Why::Translation));
    b.m.assert_clean();
}

#[test]
fn tables_are_in_use_until_stream_and_vmid_are_invalidated() {
    let free = |b: &Bench, tables: [u64; 3]| tables.iter().for_each(|t| b.m.free(*t, 0x1000, 0x1000));
    let (mut b, tables) = bench();
    b.detach(5);
    b.run(&[s12_vmall(7)]);
    free(&b, tables);
    b.m.assert_clean();
    // Only the stream.
    let (mut b, tables) = bench();
    b.detach(5);
    free(&b, tables);
    b.expect("memory");
    // Only the VMID.
    let (mut b, tables) = bench();
    let at = b.ste_at(5);
    b.put(at, 0);
    b.run(&[s12_vmall(7)]);
    free(&b, tables);
    b.expect("memory");
    // Both before one SYNC: the TLB may be filled again by the STE that is still cached.
    let (mut b, tables) = bench();
    let at = b.ste_at(5);
    b.put(at, 0);
    b.run(&[cfgi_ste(5, 1), s12_vmall(7)]);
    free(&b, tables);
    b.expect("memory");
    // Nothing is walked any more once SMMUEN = 0 is acknowledged.
    let (b, tables) = bench();
    b.cr0(0);
    free(&b, tables);
    b.m.assert_clean();
}

#[test]
fn a_vmid_must_be_invalidated_before_it_is_used_for_other_tables() {
    let (mut b, _) = bench();
    let other = b.table();
    b.detach(5);
    b.attach(6, stage2(7, other));
    b.expect("4.4");
    assert_eq!(b.goes_to(6, IPA), Ok(OUT), "a translation of the earlier tables");
    b.run(&[s12_vmall(7)]);
    assert_eq!(b.goes_to(6, IPA), Err(Why::Translation));
    let (mut b, tables) = bench();
    let other = b.table();
    b.detach(5);
    // Attached again to the same tables, nothing has to be invalidated.
    b.attach(5, stage2(7, tables[0]));
    b.detach(5);
    b.run(&[s12_vmall(7)]);
    b.attach(6, stage2(7, other));
    assert_eq!(b.goes_to(6, IPA), Err(Why::Translation));
    b.m.assert_clean();
}

#[test]
fn tables_must_be_published_before_the_smmu_can_reach_them() {
    // The root, when the stream is attached.
    let mut b = Bench::up(Config::server());
    let root = b.m.alloc(0x1000, 0x1000).expect("memory");
    b.attach(5, stage2(7, root));
    b.expect("3.21.1");
    // A table, when the entry that points to it is published.
    let (b, tables) = bench();
    let table = b.m.alloc(0x1000, 0x1000).expect("memory");
    b.put(entry(tables[1], IPA + 0x20_0000, 2), table | TABLE);
    b.expect("3.21.1");
    let (b, tables) = bench();
    b.put(entry(tables[1], IPA + 0x20_0000, 2), 0x7000_0000 | TABLE);
    b.expect("3.21.1");
    assert_eq!(b.goes_to(5, IPA + 0x20_0000), Err(Why::WalkAbort));
    b.expect("3.21.1");
    // An SMMU that does not snoop needs clean lines.
    let mut b = Bench::up(Config::server().noncoherent());
    let root = b.m.alloc(0x1000, 0x1000).expect("memory");
    b.m.publish(root, 0x1000, false);
    b.attach(5, stage2(7, root));
    b.expect("3.21.1");
    // So does one that snoops, if the attributes of the STE do not.
    let mut b = Bench::up(Config::server());
    let root = b.m.alloc(0x1000, 0x1000).expect("memory");
    b.m.publish(root, 0x1000, false);
    let mut ste = stage2(7, root);
    ste[2] &= !(3 << 44);
    b.attach(5, ste);
    b.expect("3.21.1");
}

#[test]
fn a_change_that_is_not_published_is_not_seen_and_must_not_be_relied_on() {
    let (mut b, tables) = bench();
    b.m.store64(entry(tables[2], IPA, 3), 0);
    assert_eq!(b.goes_to(5, IPA), Ok(OUT));
    b.m.assert_clean();
    b.run(&[s2_ipa(7, IPA, 1)]);
    b.expect("4.4");
    assert_eq!(b.goes_to(5, IPA), Ok(OUT));
    b.m.store64(entry(tables[2], IPA + 0x1000, 3), 0);
    b.run(&[s2_ipa(7, IPA + 0x2000, 1), s12_vmall(9)]);
    b.m.assert_clean();
    b.run(&[s12_vmall(7)]);
    b.expect("4.4");
}

#[test]
fn a_transaction_ends_before_the_sync_after_the_invalidation_of_its_translation() {
    let (mut b, tables) = bench();
    b.m.dma_write_later(5, IPA, &[1]).expect("mapped");
    b.put(entry(tables[2], IPA, 3), 0);
    b.run(&[s2_ipa(7, IPA + 0x1000, 1), s12_vmall(8), cfgi_ste(6, 1)]);
    assert!(b.m.take_landings().is_empty(), "other invalidations do not wait for it");
    b.commands(&[s2_ipa(7, IPA, 1)]);
    b.m.advance_us(100);
    assert!(b.m.take_landings().is_empty());
    b.sync();
    assert_eq!(b.m.take_landings()[0].physical, OUT);
    b.m.dma_write_later(5, IPA, &[1]).expect_err("not mapped any more");
    b.m.assert_clean();
}

#[test]
fn a_random_machine_may_use_old_and_new_translations() {
    let c = Config::server().stale(Staleness::Random(9));
    let (mut b, tables) = with(c);
    b.put(entry(tables[2], IPA, 3), 0);
    let seen: Vec<bool> = (0..20).map(|_| b.goes_to(5, IPA).is_ok()).collect();
    assert!(seen.contains(&true) && seen.contains(&false), "{seen:?}");
    b.run(&[s2_ipa(7, IPA, 1)]);
    assert!((0..20).all(|_| b.goes_to(5, IPA).is_err()));
    b.m.assert_clean();
}

#[test]
fn qemu_caches_a_translation_when_it_is_used() {
    let (mut b, tables) = with(Config::qemu());
    let other = IPA + 0x1000;
    b.put(entry(tables[2], other, 3), 0x5000_0000 | PAGE);
    assert_eq!(b.goes_to(5, IPA), Ok(OUT));
    b.put(entry(tables[2], IPA, 3), 0);
    b.put(entry(tables[2], other, 3), 0);
    assert_eq!((b.goes_to(5, IPA), b.goes_to(5, other)), (Ok(OUT), Err(Why::Translation)));
    b.run(&[s2_ipa(7, IPA, 1)]);
    assert_eq!(b.goes_to(5, IPA), Err(Why::Translation));
    b.m.assert_clean();
}
