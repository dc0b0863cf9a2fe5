//! The stream table, what is cached of it, and how it may be changed.

mod common;

use common::*;
use smmu_model::{Config, Staleness, Why};

fn bench() -> Bench {
    Bench::up(Config::server())
}

#[test]
fn an_ste_stays_cached_until_the_sync_after_its_invalidation() {
    for leaf in [0, 1] {
        let mut b = bench();
        b.attach(5, BYPASS);
        assert_eq!(b.goes_to(5, 0x1000), Ok(0x1000));
        let at = b.ste_at(5);
        b.put(at, 0);
        assert_eq!(b.goes_to(5, 0x1000), Ok(0x1000), "cached");
        b.commands(&[cfgi_ste(5, leaf)]);
        b.m.advance_us(100);
        assert_eq!(b.goes_to(5, 0x1000), Ok(0x1000), "no SYNC");
        b.sync();
        assert_eq!(b.goes_to(5, 0x1000), Err(Why::BadSte));
        b.m.assert_clean();
    }
}

#[test]
fn an_invalid_ste_is_cached_too() {
    let mut b = bench();
    let at = b.ste_at(5);
    b.put(at, BYPASS[0]);
    assert_eq!(b.goes_to(5, 0x1000), Err(Why::BadSte));
    b.run(&[cfgi_ste(5, 1)]);
    assert_eq!(b.goes_to(5, 0x1000), Ok(0x1000));
    b.m.assert_clean();
}

#[test]
fn an_invalidation_of_another_stream_has_no_effect() {
    let mut b = bench();
    b.attach(5, BYPASS);
    let at = b.ste_at(5);
    b.put(at, 0);
    b.run(&[cfgi_ste(4, 0), [4, 1], s12_vmall(7), NSNH_ALL]);
    assert_eq!(b.goes_to(5, 0x1000), Ok(0x1000));
    b.run(&[[4 | 4 << 32, 0]]);
    assert_eq!(b.goes_to(5, 0x1000), Err(Why::BadSte), "streams 4 and 5");
    b.m.assert_clean();
}

#[test]
fn the_least_number_of_streams_of_a_range_is_aligned() {
    let mut b = bench();
    b.attach(5, BYPASS);
    let at = b.ste_at(5);
    b.put(at, 0);
    b.run(&[[4 | 7 << 32, 1]]);
    assert_eq!(b.goes_to(5, 0x1000), Err(Why::BadSte), "streams 4 to 7");
}

#[test]
fn an_ste_whose_words_may_be_seen_mixed_is_a_violation() {
    let fill = |b: &Bench, at: u64, ste: [u64; 8]| (1..8).for_each(|n| b.m.store64(at + n * 8, ste[n as usize]));
    // All at once.
    let mut b = bench();
    let root = b.table();
    let at = b.ste_at(5);
    fill(&b, at, stage2(7, root));
    b.m.store64(at, 0xd);
    b.publish(at, 64);
    b.expect("3.21.3.1");
    // One after the other, but without an invalidation between them.
    let mut b = bench();
    let root = b.table();
    let at = b.ste_at(5);
    fill(&b, at, stage2(7, root));
    b.publish(at, 64);
    b.put(at, 0xd);
    b.expect("3.21.3.1");
    // Without a step with V = 0.
    let mut b = bench();
    let roots = [b.table(), b.table()];
    b.attach(5, stage2(7, roots[0]));
    let at = b.ste_at(5);
    fill(&b, at, stage2(8, roots[1]));
    b.publish(at, 64);
    b.expect("3.21.3.1");
    // With V = 0, which is not invalidated before the rest changes.
    let mut b = bench();
    let roots = [b.table(), b.table()];
    b.attach(5, stage2(7, roots[0]));
    let at = b.ste_at(5);
    b.put(at, 0);
    b.m.assert_clean();
    fill(&b, at, stage2(8, roots[1]));
    b.publish(at, 64);
    b.expect("3.21.3.1");
}

#[test]
fn a_valid_ste_may_change_in_one_word_and_in_words_that_it_does_not_use() {
    let mut b = bench();
    let root = b.table();
    b.attach(5, ABORT);
    let at = b.ste_at(5);
    let new = stage2(7, root);
    (1..8).for_each(|n| b.m.store64(at + n * 8, new[n as usize]));
    b.publish(at, 64);
    b.run(&[cfgi_ste(5, 1)]);
    b.put(at, new[0]);
    b.run(&[cfgi_ste(5, 1)]);
    b.m.assert_clean();
    b.put(at, ABORT[0]);
    assert_eq!(b.goes_to(5, 0x1000), Err(Why::Translation));
    b.run(&[cfgi_ste(5, 1)]);
    assert_eq!(b.goes_to(5, 0x1000), Err(Why::Configured));
    b.m.assert_clean();
}

#[test]
fn an_invalidation_of_an_ste_that_is_not_published_is_a_violation() {
    let mut b = bench();
    let at = b.ste_at(5);
    b.m.store64(at, BYPASS[0]);
    b.run(&[cfgi_ste(5, 1)]);
    b.expect("4.3");
    let mut b = Bench::up(Config::server().noncoherent());
    let at = b.ste_at(5);
    b.m.store64(at, BYPASS[0]);
    b.m.publish(at, 8, false);
    b.run(&[cfgi_ste(5, 1)]);
    b.expect("4.3");
    assert_eq!(b.goes_to(5, 0x1000), Err(Why::BadSte));
}

#[test]
fn a_descriptor_of_the_first_level_stays_cached_until_an_invalidation_that_is_not_leaf() {
    let mut b = bench();
    let l2 = b.table();
    b.put(b.table, l2 | 7);
    assert_eq!(b.goes_to(5, 0x1000), Err(Why::BadStreamId));
    b.run(&[cfgi_ste(5, 1)]);
    assert_eq!(b.goes_to(5, 0x1000), Err(Why::BadStreamId));
    b.run(&[cfgi_ste(5, 0)]);
    assert_eq!(b.goes_to(5, 0x1000), Err(Why::BadSte));
    b.attach(5, BYPASS);
    b.attach(6, BYPASS);
    // Decommissioned: each STE stays cached until it is invalidated itself, and the array in use.
    b.put(b.table, 0);
    b.run(&[cfgi_ste(5, 1)]);
    assert_eq!(b.goes_to(5, 0x1000), Ok(0x1000), "through the cached descriptor");
    b.run(&[cfgi_ste(5, 0)]);
    assert_eq!(b.goes_to(5, 0x1000), Err(Why::BadStreamId));
    assert_eq!(b.goes_to(6, 0x1000), Ok(0x1000));
    b.m.free(l2, 0x1000, 0x1000);
    b.m.assert_clean();
    b.run(&[[4, 5]]);
    assert_eq!(b.goes_to(6, 0x1000), Err(Why::BadStreamId));
    b.m.assert_clean();
}

#[test]
fn an_array_of_the_second_level_is_in_use_while_its_descriptor_may_be_cached() {
    let mut b = bench();
    let _ = b.ste_at(5);
    let l2 = b.m.load64(b.table) & !0x3f;
    b.put(b.table, 0);
    b.run(&[cfgi_ste(5, 1)]);
    b.m.free(l2, 0x1000, 0x1000);
    b.expect("memory");
}

#[test]
fn an_array_may_be_filled_in_before_the_smmu_can_reach_it() {
    let mut b = bench();
    let (l2, tables) = (b.table(), [b.table(), b.table()]);
    b.put(tables[1], 0x50_0000_0000 | BLOCK);
    b.put(tables[0], tables[1] | TABLE);
    for (n, word) in (0..).zip(stage2(7, tables[0])) {
        b.m.store64(l2 + 5 * 64 + n * 8, word);
    }
    b.publish(l2, 0x1000);
    b.put(b.table, l2 | 7);
    b.run(&[cfgi_ste(5, 0)]);
    assert_eq!(b.goes_to(5, 0x1234), Ok(0x50_0000_1234));
    b.m.assert_clean();
    // What it leads to is followed.
    b.put(tables[1], 0);
    assert_eq!(b.goes_to(5, 0x1234), Ok(0x50_0000_1234));
    b.m.free(tables[0], 0x1000, 0x1000);
    b.expect("memory");
}

#[test]
fn span_bounds_the_streams_of_an_array() {
    let mut b = bench();
    let l2 = b.table();
    for span in [0, 12, 31, 8] {
        b.put(b.table + 8, l2 | span);
        b.run(&[[4, 31]]);
        assert_eq!(b.goes_to(0x40, 0x1000), Err(Why::BadStreamId), "{span}");
    }
    b.put(b.table + 8, l2 | 3);
    b.run(&[CFGI_ALL]);
    for (stream, why) in [(0x3f, Why::BadStreamId), (0x40, Why::BadSte), (0x43, Why::BadSte), (0x44, Why::BadStreamId)]
    {
        assert_eq!(b.goes_to(stream, 0x1000), Err(why), "{stream:#x}");
    }
    b.m.assert_clean();
}

#[test]
fn an_array_must_be_aligned_allocated_and_published() {
    let b = bench();
    let l2 = b.table();
    b.put(b.table, (l2 + 0x40) | 7);
    b.expect("5.1 L1STD");
    let mut b = bench();
    b.put(b.table, 0x7000_0000 | 7);
    b.expect("5.1 L1STD");
    b.run(&[CFGI_ALL]);
    let _ = b.m.take_violations();
    assert_eq!(b.goes_to(5, 0x1000), Err(Why::SteFetch));
    b.expect("3.21.3");
    let b = bench();
    let l2 = b.m.alloc(0x1000, 0x1000).expect("memory");
    b.put(b.table, l2 | 7);
    b.expect("5.1 L1STD");
}

#[test]
fn an_illegal_ste_is_a_violation_and_faults() {
    let mut b = bench();
    let mut ste = stage2(7, b.table());
    ste[2] &= !(1 << 51);
    b.attach(5, ste);
    b.expect("5.2 STE");
    assert_eq!(b.goes_to(5, 0x1000), Err(Why::BadSte));
    b.attach(6, [0xb, 0, 0, 0, 0, 0, 0, 0]);
    b.expect("5.2 STE");
    assert_eq!(b.goes_to(6, 0x1000), Err(Why::BadSte));
}

#[test]
fn streams_of_one_vmid_must_have_the_same_stage_2() {
    let mut b = bench();
    let roots = [b.table(), b.table()];
    b.attach(5, stage2(7, roots[0]));
    b.attach(6, stage2(7, roots[0]));
    b.attach(8, stage2(8, roots[1]));
    // S2R is not cached in a TLB.
    let mut other = stage2(7, roots[0]);
    other[2] &= !(1 << 58);
    b.attach(9, other);
    b.m.assert_clean();
    b.attach(10, stage2(7, roots[1]));
    b.expect("5.2 STE");
}

#[test]
fn a_transaction_ends_before_the_sync_after_the_invalidation_of_its_ste() {
    let mut b = bench();
    b.attach(5, BYPASS);
    let buffer = b.table();
    b.m.dma_write_later(5, buffer, &[7]).expect("bypassed");
    b.run(&[]);
    assert!(b.m.take_landings().is_empty(), "a SYNC alone waits for no transaction");
    let at = b.ste_at(5);
    b.put(at, 0);
    b.commands(&[cfgi_ste(5, 1)]);
    b.m.advance_us(100);
    assert!(b.m.take_landings().is_empty());
    b.sync();
    assert_eq!(b.m.take_landings()[0].physical, buffer);
    b.m.acquire(buffer, 1, false);
    assert_eq!(b.m.load8(buffer), 7);
    b.m.assert_clean();
}

#[test]
fn a_random_machine_may_use_the_old_or_the_new_ste() {
    let seen = |seed| {
        let mut b = Bench::up(Config::server().stale(Staleness::Random(seed)));
        b.attach(5, BYPASS);
        let at = b.ste_at(5);
        b.put(at, 0);
        let seen: Vec<bool> = (0..20).map(|_| b.goes_to(5, 0x1000).is_ok()).collect();
        b.run(&[cfgi_ste(5, 1)]);
        assert_eq!(b.goes_to(5, 0x1000), Err(Why::BadSte));
        b.m.assert_clean();
        seen
    };
    let first = seen(1);
    assert!(first.contains(&true) && first.contains(&false), "{first:?}");
    assert_eq!(first, seen(1), "the same seed, the same choices");
    assert_ne!(first, seen(2));
}

#[test]
fn qemu_caches_an_ste_when_it_is_used() {
    let mut b = Bench::up(Config::qemu());
    let at = b.ste_at(5);
    b.put(at, BYPASS[0]);
    assert_eq!(b.goes_to(5, 0x1000), Ok(0x1000), "not used before");
    b.put(at, 0);
    assert_eq!(b.goes_to(5, 0x1000), Ok(0x1000));
    b.run(&[cfgi_ste(5, 1)]);
    assert_eq!(b.goes_to(5, 0x1000), Err(Why::BadSte));
    b.m.assert_clean();
}
