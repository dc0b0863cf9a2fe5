//! Uses of memory, and tests that nothing software or devices do makes the model panic, and that a driver that does
//! everything right causes no violation.

mod common;

use common::*;
use smmu_model::{Config, Fault, Machine, Staleness, Why};
use std::collections::BTreeMap;

/// A small generator of numbers.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[test]
fn unaligned_and_unallocated_accesses_of_memory_are_violations() {
    let m = Machine::new(Config::server());
    let a = m.alloc(4096, 4096).expect("memory");
    let count = |n: usize| assert_eq!(m.take_violations().len(), n);
    let _ = m.load64(a + 4);
    m.store64(a + 4, 0);
    count(2);
    let _ = m.load8(0x1000);
    m.store8(0x1000, 0);
    m.publish(a, 4097, false);
    m.acquire(a, 4097, false);
    count(4);
    m.store64(a, 0x1122_3344_5566_7788);
    assert_eq!((m.load64(a), m.load8(a), m.load8(a + 7)), (0x1122_3344_5566_7788, 0x88, 0x11));
    m.free(a, 4096, 4096);
    count(0);
    m.free(a, 4096, 4096);
    count(1);
    assert!(m.claim(a, 4096) && !m.claim(a, 4096));
    m.inject(Fault::OutOfMemory { after: 1 });
    assert!(m.alloc(4096, 4096).is_some() && m.alloc(4096, 4096).is_none());
    m.heal();
    assert!(m.alloc(4096, 4096).is_some());
    assert_eq!(m.allocations().len(), 3);
}

#[test]
fn time_passes_with_each_access() {
    let m = Machine::new(Config::server());
    let start = m.now_us();
    for _ in 0..100 {
        m.relax();
        let _ = m.read32(m.config().base);
    }
    assert_eq!(m.now_us() - start, 30);
    assert!(m.commands().is_empty());
}

#[test]
fn nothing_that_software_and_devices_do_makes_the_model_panic() {
    let mut n = Numbers(0x1234_5678_9abc_def1);
    for round in 0..60u64 {
        let c = match round % 6 {
            0 => Config::server(),
            1 => Config::small(),
            2 => Config::qemu(),
            3 => Config { msi: true, bbml: 1, ..Config::server() },
            4 => Config::server().left_enabled(),
            _ => Config::server().linear().noncoherent(),
        };
        let c = if round % 4 == 3 { c.stale(Staleness::Random(round)) } else { c };
        let mut b = Bench::up_dirty(c);
        let pages: Vec<u64> = (0..4).map(|_| b.table()).collect();
        b.mapped(5, 0x4000_3000, pages[0]);
        let somewhere = |n: &mut Numbers, b: &Bench| {
            let at = [pages[0], pages[1], pages[2], b.table, b.queue, b.events][n.below(6) as usize];
            at + n.below(8) * 8
        };
        for _ in 0..400 {
            let offset = [n.below(0x34) * 4, 0x1_0000 + n.below(0x34) * 4][usize::from(n.below(8) == 0)];
            let bits = n.below(64);
            let value = [n.next() >> bits, somewhere(&mut n, &b) | n.below(16), n.below(16)][n.below(3) as usize];
            match n.below(8) {
                0 => b.w32(offset, value as u32),
                1 => b.w64(offset & !7, value),
                2 => {
                    let at = somewhere(&mut n, &b);
                    b.m.store64(at, value);
                    b.publish(at, 8);
                }
                3 => {
                    let _ = b.m.dma_write(n.below(12) as u32, value, &[0; 16]);
                    let _ = b.m.dma_read(5, 0x4000_3000 + n.below(0x2000), 0x1001);
                    let _ = b.m.dma_write_later(n.below(12) as u32, value, &[0; 16]);
                }
                4 => b.commands(&[[n.below(0x50) | n.next() << 8, value]]),
                5 => b.w32(GERRORN, b.r32(GERROR)),
                6 => {
                    let entry = somewhere(&mut n, &b) & !0xfff | [TABLE, PAGE, BLOCK][n.below(3) as usize];
                    let at = somewhere(&mut n, &b);
                    b.m.store64(at, entry);
                    b.publish(at, 8);
                }
                _ => b.m.advance_us(n.below(5)),
            }
        }
        let _ = b.m.take_violations();
    }
}

/// A domain of [`a_driver_that_does_everything_right_causes_no_violation`].
struct Domain {
    tables: [u64; 3],
    /// What is mapped now.
    map: BTreeMap<u64, u64>,
    streams: Vec<u64>,
}

#[test]
fn a_driver_that_does_everything_right_causes_no_violation() {
    for seed in 1..=8u64 {
        let c = match seed % 4 {
            0 => Config::server(),
            1 => Config::server().noncoherent().linear(),
            2 => Config::small(),
            _ => Config::qemu(),
        };
        let c = if seed > 4 { c.stale(Staleness::Random(seed)) } else { c };
        random_driver(c, &mut Numbers(seed * 0x9e37_79b9));
    }
}

/// Attaches, maps, unmaps and detaches at random, each with the right invalidations, while devices write all the time.
/// What is published but not yet complete may have its old or its new effect; all else must be exact.
fn random_driver(c: Config, n: &mut Numbers) {
    let exact = !matches!(c.staleness, Staleness::Random(_));
    let mut b = Bench::up(c);
    let mut domains: BTreeMap<u64, Domain> = BTreeMap::new();
    for step in 0..400 {
        let vmid = 1 + n.below(3);
        let stream = 1 + n.below(6);
        let owner = domains.iter().find(|(_, d)| d.streams.contains(&stream)).map(|(v, _)| *v);
        let page = 0x4000_0000 + n.below(4) * 0x1000;
        match (n.below(4), owner) {
            (0, None) => {
                let fresh = [b.table(), b.table(), b.table()];
                let d = domains.entry(vmid).or_insert_with(|| {
                    b.put(fresh[1], fresh[2] | TABLE);
                    b.put(fresh[0] + 8, fresh[1] | TABLE);
                    Domain { tables: fresh, map: BTreeMap::new(), streams: Vec::new() }
                });
                if d.tables != fresh {
                    fresh.iter().for_each(|t| b.m.free(*t, 0x1000, 0x1000));
                }
                d.streams.push(stream);
                let root = d.tables[0];
                b.attach(stream, stage2(vmid, root));
            }
            (1, Some(vmid)) => {
                b.detach(stream);
                let d = domains.get_mut(&vmid).expect("it owns the stream");
                d.streams.retain(|s| *s != stream);
                if d.streams.is_empty() {
                    b.run(&[s12_vmall(vmid)]);
                    d.tables.iter().for_each(|t| b.m.free(*t, 0x1000, 0x1000));
                    domains.remove(&vmid);
                }
            }
            (2, _) => {
                if let Some(d) = domains.get_mut(&vmid)
                    && !d.map.contains_key(&page)
                {
                    let output = 0x1_0000_0000 + n.below(8) * 0x1000;
                    b.put(d.tables[2] + (page >> 12 & 0x1ff) * 8, output | PAGE);
                    d.map.insert(page, output);
                }
            }
            (3, _) => {
                if let Some(d) = domains.get_mut(&vmid)
                    && let Some(output) = d.map.remove(&page)
                {
                    b.put(d.tables[2] + (page >> 12 & 0x1ff) * 8, 0);
                    let stream = d.streams[0] as u32;
                    let seen = b.goes_to(stream, page);
                    if exact && b.c.staleness == Staleness::Worst {
                        assert_eq!(seen, Ok(output), "step {step}: the old translation");
                    } else {
                        assert!(seen == Ok(output) || seen == Err(Why::Translation), "step {step}: {seen:?}");
                    }
                    b.run(&[s2_ipa(vmid, page, 1)]);
                }
            }
            _ => {}
        }
        for stream in 1..7u64 {
            let owner = domains.values().find(|d| d.streams.contains(&stream));
            for page in (0..4).map(|p| 0x4000_0000 + p * 0x1000) {
                let seen = b.goes_to(stream as u32, page + 8);
                match owner.map(|d| d.map.get(&page)) {
                    Some(Some(output)) => assert_eq!(seen, Ok(output + 8), "step {step}"),
                    Some(None) => assert_eq!(seen, Err(Why::Translation), "step {step}"),
                    None => assert!(matches!(seen, Err(Why::BadSte | Why::BadStreamId)), "step {step}: {seen:?}"),
                }
            }
        }
        b.m.assert_clean();
    }
}
