//! Tests of stage 2 on a model of memory and TLB that checks the rules of the architecture.

use super::*;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// A model of memory and TLB. It detects a valid descriptor that is replaced without break-before-make, a table that is
/// used after it was freed or freed before the TLB was invalidated, and a table that is linked before it is published.
#[derive(Default)]
struct Fake {
    words: RefCell<BTreeMap<u64, u64>>,
    allocated: RefCell<BTreeMap<u64, usize>>,
    next: Cell<u64>,
    budget: Cell<usize>,
    unpublished: RefCell<BTreeSet<u64>>,
    /// Whether walks do not snoop the CPUs' caches.
    noncoherent: Cell<bool>,
    /// Addresses of descriptors that were made invalid, before the TLB invalidation.
    broken: RefCell<BTreeSet<u64>>,
    /// The TLB entries: first guest address to level and descriptor.
    tlb: RefCell<BTreeMap<u64, (u32, u64)>>,
    all: Cell<usize>,
    single: Cell<usize>,
}

impl Fake {
    fn new() -> Fake {
        let fake = Fake::default();
        fake.next.set(0x8000_0000);
        fake.budget.set(usize::MAX);
        fake
    }

    fn tables(&self) -> usize {
        self.allocated.borrow().len()
    }
}

impl Hw for Fake {
    fn read32(&self, _: Pa) -> u32 {
        unreachable!()
    }
    fn write32(&self, _: Pa, _: u32) {
        unreachable!()
    }
    fn read64(&self, _: Pa) -> u64 {
        unreachable!()
    }
    fn write64(&self, _: Pa, _: u64) {
        unreachable!()
    }
    fn alloc(&self, size: usize, align: usize) -> Option<Pa> {
        self.budget.set(self.budget.get().checked_sub(1)?);
        let base = self.next.get().next_multiple_of(align as u64);
        self.next.set(base + size as u64);
        self.allocated.borrow_mut().insert(base, size);
        for at in (base..base + size as u64).step_by(8) {
            self.words.borrow_mut().insert(at, 0);
            self.unpublished.borrow_mut().insert(at);
        }
        Some(Pa(base))
    }
    fn free(&self, memory: Pa, size: usize, _: usize) {
        assert_eq!(self.allocated.borrow_mut().remove(&memory.0), Some(size));
        assert!(self.broken.borrow().is_empty(), "freed before the TLB was invalidated");
        for at in (memory.0..memory.0 + size as u64).step_by(8) {
            self.words.borrow_mut().remove(&at);
        }
    }
    fn load8(&self, _: Pa) -> u8 {
        unreachable!()
    }
    fn store8(&self, _: Pa, _: u8) {
        unreachable!()
    }
    fn load64(&self, at: Pa) -> u64 {
        self.words.borrow()[&at.0]
    }
    fn store64(&self, at: Pa, value: u64) {
        let old = self.words.borrow_mut().insert(at.0, value).expect("store to a freed table");
        self.unpublished.borrow_mut().insert(at.0);
        if desc::is_valid(value) {
            assert!(!desc::is_valid(old) || old == value, "a valid descriptor is replaced by another one");
            assert!(!self.broken.borrow().contains(&at.0), "made valid before the TLB was invalidated");
            let target = value & desc::ADDRESS;
            if self.allocated.borrow().contains_key(&target) {
                assert!(!self.unpublished.borrow().contains(&target), "linked before it was published");
            }
        } else if desc::is_valid(old) {
            self.broken.borrow_mut().insert(at.0);
        }
    }
    fn publish(&self, memory: Pa, size: usize, coherence: Coherence) {
        if self.noncoherent.get() && coherence == Coherence::Coherent {
            return;
        }
        self.unpublished.borrow_mut().retain(|at| !(memory.0..memory.0 + size as u64).contains(at));
    }
    fn acquire(&self, _: Pa, _: usize, _: Coherence) {
        unreachable!()
    }
    fn now_us(&self) -> u64 {
        0
    }
    fn relax(&self) {}
}

impl Tlb for Fake {
    fn coherence(&self) -> Coherence {
        if self.noncoherent.get() { Coherence::NonCoherent } else { Coherence::Coherent }
    }
    fn invalidate_ipa(&self, _: VmId, ipa: Ipa) {
        assert!(self.unpublished.borrow().is_empty());
        self.tlb.borrow_mut().retain(|&base, &mut (level, _)| !(base..base + span(level)).contains(&ipa.0));
        self.broken.borrow_mut().clear();
        self.single.set(self.single.get() + 1);
    }
    fn invalidate_all(&self, _: VmId) {
        assert!(self.unpublished.borrow().is_empty());
        self.tlb.borrow_mut().clear();
        self.broken.borrow_mut().clear();
        self.all.set(self.all.get() + 1);
    }
}

type S<'h> = Stage2<'h, Fake, Fake>;

fn space(fake: &Fake, bits: u8) -> S<'_> {
    Stage2::new(fake, fake, VmId(7), bits, Fwb::Off).unwrap()
}

fn touch(s: &S<'_>, ipa: u64) {
    let slot = s.walk(ipa);
    if desc::is_valid(slot.entry) {
        s.hw.tlb.borrow_mut().insert(slot.base, (slot.level, slot.entry));
    }
}

fn assert_tlb_true(s: &S<'_>) {
    assert!(s.hw.unpublished.borrow().is_empty());
    for (&base, &(level, entry)) in s.hw.tlb.borrow().iter() {
        let slot = s.walk(base);
        assert_eq!((slot.level, slot.entry), (level, entry), "stale TLB entry for {base:#x}");
    }
}

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;
const G: u64 = 1 << 30;

#[test]
fn descriptors_are_encoded_as_in_the_manual() {
    let fake = Fake::new();
    let mut s = space(&fake, 40);
    let leaf = |s: &S<'_>, ipa| s.walk(ipa).entry;
    s.map(Ipa(0x4000_0000), Pa(0x4000_0000), G, Attr::Ram).unwrap();
    assert_eq!(leaf(&s, 0x4000_0000), 0x4000_07fd);
    s.map(Ipa(0x20_0000), Pa(0x60_0000), 2 * M, Attr::PciWindow).unwrap();
    assert_eq!(leaf(&s, 0x20_0000), 0x0040_0000_0060_06d5);
    s.map(Ipa(0x1000), Pa(0x9000), 4 * K, Attr::Device).unwrap();
    assert_eq!(leaf(&s, 0x1000), 0x0040_0000_0000_96c7);
    s.map(Ipa(0x2000), Pa(0xa000), 4 * K, Attr::Ram).unwrap();
    assert_eq!(leaf(&s, 0x2000), 0xa7ff);
    assert_eq!(s.translate(Ipa(0x4123_4567)), Some((Pa(0x4123_4567), Attr::Ram)));
    assert_eq!(s.translate(Ipa(0x20_0008)), Some((Pa(0x60_0008), Attr::PciWindow)));
    assert_eq!(s.translate(Ipa(0x1ffc)), Some((Pa(0x9ffc), Attr::Device)));
    assert_eq!(s.translate(Ipa(0x3000)), None);
    assert_eq!(s.translate(Ipa(1 << 40)), None);

    let fwb = Fake::new();
    let mut s = Stage2::new(&fwb, &fwb, VmId(1), 40, Fwb::On).unwrap();
    s.map(Ipa(0x2000), Pa(0xa000), 4 * K, Attr::Ram).unwrap();
    assert_eq!(leaf(&s, 0x2000), 0xa7db);
    assert_eq!(s.translate(Ipa(0x2000)), Some((Pa(0xa000), Attr::Ram)));
}

#[test]
fn the_root_is_concatenated_up_to_43_bits() {
    for (bits, vtcr, root) in [
        // 64 - bits | SL0 << 6 | WBWA, WBWA, inner | PS << 16 | RES1
        (32u8, 0x8000_3560u64, 4096usize),
        (36, 0x8001_355c, 4096),
        (40, 0x8002_3558, 8192),
        (42, 0x8003_3556, 32768),
        (44, 0x8004_3594, 4096),
        (48, 0x8005_3590, 4096),
    ] {
        let fake = Fake::new();
        let mut s = space(&fake, bits);
        assert_eq!(s.vtcr(), vtcr, "{bits} bits");
        assert_eq!(fake.allocated.borrow().values().copied().collect::<Vec<_>>(), [root]);
        assert_eq!(s.vttbr(), 7 << 48 | s.root.0);
        assert_eq!(s.root.0 % root as u64, 0);
        // The last page is mapped, and no other address uses the same descriptor.
        let last = (1u64 << bits) - PAGE;
        s.map(Ipa(last), Pa(0x1000), PAGE, Attr::Device).unwrap();
        assert_eq!(s.translate(Ipa(last)), Some((Pa(0x1000), Attr::Device)));
        for bit in 12..bits {
            assert_eq!(s.translate(Ipa(last ^ (1 << bit))), None);
        }
        s.unmap(Ipa(0), 1 << bits).unwrap();
        assert_eq!(fake.tables(), 1);
        s.destroy();
        assert_eq!(fake.tables(), 0);
    }
    assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(ipa_bits), [32, 36, 40, 42, 44, 48, 48, 48]);
    let fake = Fake::new();
    assert_eq!(Stage2::new(&fake, &fake, VmId(1), 31, Fwb::Off).err(), Some(Stage2Error::BadIpaBits(31)));
    assert_eq!(Stage2::new(&fake, &fake, VmId(256), 40, Fwb::Off).err(), Some(Stage2Error::BadVmid(VmId(256))));
}

#[test]
fn a_doorbell_can_be_written_only() {
    let fake = Fake::new();
    let mut s = space(&fake, 40);
    s.map(Ipa(0x1000), Pa(0x9000), 4 * K, Attr::Doorbell).unwrap();
    // XN, AF, outer shareable, S2AP = 0b10, Device-nGnRE, a page.
    assert_eq!(s.walk(0x1000).entry, 0x0040_0000_0000_9687);
    assert_eq!(s.translate(Ipa(0x1000)), Some((Pa(0x9000), Attr::Doorbell)));
}

#[test]
fn tables_are_cleaned_to_memory_for_walks_that_do_not_snoop() {
    let fake = Fake::new();
    fake.noncoherent.set(true);
    let mut s = space(&fake, 40);
    s.map(Ipa(0), Pa(4 * G), G + 4 * K, Attr::Ram).unwrap();
    s.unmap(Ipa(2 * M), 4 * K).unwrap();
    assert!(fake.unpublished.borrow().is_empty());
    s.destroy();
    assert_eq!(fake.tables(), 0);
}

#[test]
fn the_largest_blocks_that_fit_are_used() {
    let fake = Fake::new();
    let mut s = space(&fake, 40);
    // 4 KiB, then 2 MiB, then 1 GiB, then smaller again.
    s.map(Ipa(G - 2 * M - 4 * K), Pa(3 * G - 2 * M - 4 * K), 2 * G + 4 * M + 8 * K, Attr::Ram).unwrap();
    let levels: Vec<_> =
        s.slots(G - 2 * M - 4 * K, 3 * G + 2 * M + 4 * K).map(|slot| (slot.level, slot.base)).collect();
    let expected = [(3, G - 2 * M - 4 * K), (2, G - 2 * M), (1, G), (1, 2 * G), (2, 3 * G), (3, 3 * G + 2 * M)];
    assert_eq!(levels, expected);
    // A block needs both addresses aligned.
    s.map(Ipa(8 * G), Pa(8 * G + 2 * M), G, Attr::Ram).unwrap();
    assert_eq!(s.walk(8 * G).level, 2);
    s.map(Ipa(16 * G), Pa(16 * G + 4 * K), 2 * M, Attr::Ram).unwrap();
    assert_eq!(s.walk(16 * G).level, 3);
}

#[test]
fn unmapping_part_of_a_block_splits_it_with_break_before_make() {
    let fake = Fake::new();
    let mut s = space(&fake, 40);
    s.map(Ipa(G), Pa(4 * G), G, Attr::Device).unwrap();
    touch(&s, G + 5 * M);
    s.unmap(Ipa(G + 4 * M + 4 * K), 4 * K).unwrap();
    assert_tlb_true(&s);
    assert_eq!(s.translate(Ipa(G + 4 * M + 4 * K)), None);
    for ipa in [G, G + 4 * M, G + 4 * M + 8 * K, G + 6 * M, 2 * G - 4 * K] {
        assert_eq!(s.translate(Ipa(ipa)), Some((Pa(ipa + 3 * G), Attr::Device)), "{ipa:#x}");
    }
    assert_eq!(fake.tables(), 3);
    s.unmap(Ipa(G), G).unwrap();
    assert_eq!(fake.tables(), 1);
}

#[test]
fn a_few_pages_are_invalidated_one_by_one_and_many_at_once() {
    let fake = Fake::new();
    let mut s = space(&fake, 40);
    s.map(Ipa(4 * K), Pa(4 * K), 64 * K, Attr::Ram).unwrap();
    let (all, single) = (fake.all.get(), fake.single.get());
    s.unmap(Ipa(4 * K), 8 * K).unwrap();
    assert_eq!((fake.all.get() - all, fake.single.get() - single), (0, 2));
    s.unmap(Ipa(0), 48 * K).unwrap();
    assert_eq!((fake.all.get() - all, fake.single.get() - single), (1, 2));
}

#[test]
fn mapping_over_a_mapping_is_refused() {
    let fake = Fake::new();
    let mut s = space(&fake, 40);
    s.map(Ipa(G + 8 * K), Pa(0), 4 * K, Attr::Ram).unwrap();
    assert_eq!(s.map(Ipa(G), Pa(0), G, Attr::Ram), Err(Stage2Error::Mapped(Ipa(G + 8 * K))));
    assert_eq!(s.translate(Ipa(G)), None);
    assert_eq!(s.translate(Ipa(G + 8 * K)), Some((Pa(0), Attr::Ram)));
    assert_eq!(s.map(Ipa(0x800), Pa(0), 4 * K, Attr::Ram), Err(Stage2Error::Misaligned));
    assert_eq!(s.map(Ipa(0), Pa(0x800), 4 * K, Attr::Ram), Err(Stage2Error::Misaligned));
    assert_eq!(s.map(Ipa(0), Pa(0), 0, Attr::Ram), Err(Stage2Error::Misaligned));
    assert_eq!(s.map(Ipa((1 << 40) - 4 * K), Pa(0), 8 * K, Attr::Ram), Err(Stage2Error::OutOfRange));
    assert_eq!(s.map(Ipa(0), Pa(1 << 40), 4 * K, Attr::Ram), Err(Stage2Error::OutOfRange));
    assert_eq!(s.map(Ipa(0), Pa(u64::MAX - 0xfff), 8 * K, Attr::Ram), Err(Stage2Error::OutOfRange));
    assert_eq!(s.unmap(Ipa(u64::MAX - 0xfff), 8 * K), Err(Stage2Error::OutOfRange));
}

#[test]
fn running_out_of_tables_changes_nothing() {
    let fake = Fake::new();
    let mut s = space(&fake, 40);
    s.map(Ipa(4 * G), Pa(4 * G), G, Attr::Ram).unwrap();
    fake.budget.set(1);
    // There is memory for the table of level 2 and none for that of level 3.
    assert_eq!(s.map(Ipa(G - 2 * M), Pa(0), 2 * M + 4 * K, Attr::Ram), Err(Stage2Error::OutOfMemory));
    assert_eq!(s.translate(Ipa(G - 2 * M)), None);
    assert_eq!(fake.tables(), 1);
    // The same without a leaf: a walk cache may still hold the table that is removed.
    fake.budget.set(1);
    assert_eq!(s.map(Ipa(16 * G), Pa(0), 4 * K, Attr::Ram), Err(Stage2Error::OutOfMemory));
    assert_eq!(fake.tables(), 1);
    fake.budget.set(1);
    assert_eq!(s.unmap(Ipa(4 * G), 4 * K), Err(Stage2Error::OutOfMemory));
    for ipa in [4 * G, 4 * G + 4 * K, 5 * G - 4 * K] {
        assert_eq!(s.translate(Ipa(ipa)), Some((Pa(ipa), Attr::Ram)));
    }
    s.destroy();
    assert_eq!(fake.tables(), 0);
}

#[test]
fn random_sequences_of_changes_agree_with_a_list_of_pages() {
    const PAGES: u64 = 6 * 512;
    const BASE: u64 = G - 6 * M;
    let fake = Fake::new();
    let mut s = space(&fake, 40);
    let mut model: BTreeMap<u64, (u64, Attr)> = BTreeMap::new();
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) % below
    };
    let mut refused = 0;
    for _ in 0..600 {
        let coarse = random(2) == 0;
        let (first, count) =
            if coarse { (random(6) * 512, (1 + random(3)) * 512) } else { (random(PAGES), 1 + random(40)) };
        let count = count.min(PAGES - first);
        let pages = first..first + count;
        let attr = [Attr::Ram, Attr::PciWindow, Attr::Device, Attr::Doorbell][random(4) as usize];
        let ipa = Ipa(BASE + first * PAGE);
        for _ in 0..20 {
            touch(&s, BASE + random(PAGES) * PAGE);
        }
        let result = match random(2) {
            0 => {
                let to = 8 * G + (if coarse { random(8) * 512 } else { random(4096) }) * PAGE;
                let free = model.range(pages.clone()).next().is_none();
                let result = s.map(ipa, Pa(to), count * PAGE, attr);
                assert_eq!(result.is_ok(), free);
                if free {
                    model.extend(pages.map(|page| (page, (to + (page - first) * PAGE, attr))));
                }
                result
            }
            _ => {
                model.retain(|page, _| !pages.contains(page));
                s.unmap(ipa, count * PAGE)
            }
        };
        refused += usize::from(result.is_err());
        assert_tlb_true(&s);
        for page in 0..PAGES {
            let expected = model.get(&page).map(|&(pa, attr)| (Pa(pa), attr));
            assert_eq!(s.translate(Ipa(BASE + page * PAGE)), expected, "page {page}");
        }
    }
    assert!((80..480).contains(&refused), "{refused} changes were refused");
    s.unmap(Ipa(0), 1 << 40).unwrap();
    assert_eq!(fake.tables(), 1);
}
