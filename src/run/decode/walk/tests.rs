use super::*;
use std::collections::BTreeMap;
use std::vec::Vec;

/// A guest's memory, by words. What is not in it is no RAM.
#[derive(Default)]
struct Memory {
    words: BTreeMap<u64, u64>,
    big_endian: bool,
    reads: Vec<u64>,
}

impl Memory {
    fn read(&mut self, at: Ipa) -> Option<[u8; 8]> {
        assert_eq!(at.0 % 8, 0);
        self.reads.push(at.0);
        let word = *self.words.get(&at.0)?;
        Some(if self.big_endian { word.to_be_bytes() } else { word.to_le_bytes() })
    }

    fn fetch(&mut self, regime: &Regime, va: u64, el0: bool) -> Result<Ipa, NoFetch> {
        self.reads.clear();
        let found = fetch(regime, va, el0, |at| self.read(at));
        assert!(self.reads.len() <= 5, "{} reads", self.reads.len());
        found
    }
}

const M: u64 = 1;
const EE: u64 = 1 << 25;
const WXN: u64 = 1 << 19;
const AF: u64 = 1 << 10;
const TABLE: u64 = 3;
const PAGE: u64 = 3 | AF;
const BLOCK: u64 = 1 | AF;
const IPS_48: u64 = 5 << 32;
/// All granules with 52-bit descriptors, 48 physical address bits.
const MMFR0: u64 = 1 << 28 | 2 << 20 | 5;
/// Access flags in hardware, hierarchical permissions can be disabled.
const MMFR1: u64 = 1 << 12 | 1;
/// 52-bit virtual addresses, small tables, E0PD.
const MMFR2: u64 = 1 << 60 | 1 << 28 | 1 << 16;

fn regime(tcr: u64) -> Regime {
    Regime { sctlr: M, tcr: tcr | IPS_48, ttbr0: 0, ttbr1: 0, mmfr0: MMFR0, mmfr1: MMFR1, mmfr2: MMFR2 }
}

/// The 4 KiB tables that the test guests use: T0SZ 25, a block of 1 GiB at level 1.
fn one_block() -> (Regime, Memory) {
    let mut memory = Memory::default();
    memory.words.insert(0x4000_0008, 0x4000_0000 | BLOCK);
    (Regime { ttbr0: 0x4000_0000, ..regime(25) }, memory)
}

#[test]
fn a_block_of_a_small_space_is_found_in_one_read() {
    let (regime, mut memory) = one_block();
    assert_eq!(memory.fetch(&regime, 0x4123_4568, false), Ok(Ipa(0x4123_4568)));
    assert_eq!(memory.reads, [0x4000_0008]);
    assert_eq!(memory.fetch(&regime, 0x8000_0000, false), Err(NoFetch::Unreadable(Ipa(0x4000_0010))));
    assert_eq!(memory.fetch(&regime, 0x80_0000_0000, false), Err(NoFetch::Translation), "above T0SZ");
    assert_eq!(memory.fetch(&regime, 0x0100_0000_4123_4568, false), Err(NoFetch::Translation), "a tag without TBI");
}

#[test]
fn with_the_mmu_off_an_address_is_its_own_translation() {
    let mut memory = Memory::default();
    let off = Regime { sctlr: 0, ..regime(0) };
    assert_eq!(memory.fetch(&off, 0x4000_1234, false), Ok(Ipa(0x4000_1234)));
    assert_eq!(memory.fetch(&off, 1 << 48, false), Err(NoFetch::AddressSize));
    let small = Regime { mmfr0: MMFR0 & !0xf | 2, ..off };
    assert_eq!(memory.fetch(&small, 1 << 40, false), Err(NoFetch::AddressSize));
    let tagged = Regime { tcr: off.tcr | 1 << 37, ..off };
    assert_eq!(memory.fetch(&tagged, 0xab00_0000_4000_1234, true), Ok(Ipa(0x4000_1234)));
    assert!(memory.reads.is_empty());
}

#[test]
fn a_table_that_is_not_ram_ends_the_walk_without_a_read_of_it() {
    let mut memory = Memory::default();
    let regime = Regime { ttbr0: 0x4000_0000, ..regime(16) };
    // Level 0 points to a BAR.
    memory.words.insert(0x4000_0000, 0x1000_0000 | TABLE);
    assert_eq!(memory.fetch(&regime, 0x4020_0000, false), Err(NoFetch::Unreadable(Ipa(0x1000_0008))));
    assert_eq!(memory.reads, [0x4000_0000, 0x1000_0008], "the reader refuses the second");
}

#[test]
fn each_half_has_its_own_controls() {
    let (mut regime, mut memory) = one_block();
    let high = 0xffff_ff80_4123_4568u64;
    // T1SZ 25, TG1 4 KiB.
    regime.tcr |= 25 << 16 | 2 << 30;
    regime.ttbr1 = 0x5000_0000;
    memory.words.insert(0x5000_0008, 0x8000_0000 | BLOCK);
    assert_eq!(memory.fetch(&regime, high, false), Ok(Ipa(0x8123_4568)));
    let with = |bits: u64| Regime { tcr: regime.tcr | bits, ..regime };
    assert_eq!(memory.fetch(&with(1 << 23), high, false), Err(NoFetch::Translation), "EPD1");
    assert!(memory.fetch(&with(1 << 23), 0x4000_0000, false).is_ok());
    assert_eq!(memory.fetch(&with(1 << 7), 0x4000_0000, false), Err(NoFetch::Translation), "EPD0");
    assert_eq!(memory.fetch(&with(1 << 56), high, true), Err(NoFetch::Translation), "E0PD1");
    assert!(memory.fetch(&with(1 << 56), high, false).is_ok());
    // TBI1, and TBID1, which takes it back for instructions.
    assert_eq!(memory.fetch(&with(1 << 38), high & below(56), false), Ok(Ipa(0x8123_4568)));
    assert_eq!(memory.fetch(&with(1 << 38 | 1 << 52), high & below(56), false), Err(NoFetch::Translation));
}

#[test]
fn tables_may_be_big_endian() {
    let (regime, mut memory) = one_block();
    let regime = Regime { sctlr: M | EE, ..regime };
    assert_eq!(memory.fetch(&regime, 0x4000_0000, false), Err(NoFetch::Translation));
    memory.big_endian = true;
    assert_eq!(memory.fetch(&regime, 0x4000_0000, false), Ok(Ipa(0x4000_0000)));
}

#[test]
fn access_flag_and_permissions_are_those_of_a_fetch() {
    let (regime, mut memory) = one_block();
    let mut with = |entry: u64, sctlr: u64, tcr: u64, el0: bool| {
        memory.words.insert(0x4000_0008, 0x4000_0000 | entry);
        let regime = Regime { sctlr: regime.sctlr | sctlr, tcr: regime.tcr | tcr, ..regime };
        memory.fetch(&regime, 0x4000_0000, el0).map(|_| ())
    };
    const PXN: u64 = 1 << 53;
    const UXN: u64 = 1 << 54;
    const EL0: u64 = 1 << 6;
    const READ_ONLY: u64 = 1 << 7;
    const DENIED: Result<(), NoFetch> = Err(NoFetch::Permission);
    assert_eq!(with(1, 0, 0, false), Err(NoFetch::AccessFlag));
    assert_eq!(with(1, 0, 1 << 39, false), Ok(()), "HA");
    assert_eq!((with(BLOCK | PXN, 0, 0, false), with(BLOCK | PXN, 0, 0, true)), (DENIED, Ok(())));
    assert_eq!((with(BLOCK | UXN, 0, 0, false), with(BLOCK | UXN, 0, 0, true)), (Ok(()), DENIED));
    assert_eq!(with(BLOCK | EL0, 0, 0, false), DENIED, "writable at EL0");
    assert_eq!(with(BLOCK | EL0, 0, 0, true), Ok(()));
    assert_eq!(with(BLOCK | EL0 | READ_ONLY, 0, 0, false), Ok(()));
    assert_eq!((with(BLOCK, WXN, 0, false), with(BLOCK | READ_ONLY, WXN, 0, false)), (DENIED, Ok(())));
    assert_eq!((with(BLOCK, WXN, 0, true), with(BLOCK | EL0, WXN, 0, true)), (Ok(()), DENIED));
}

#[test]
fn table_descriptors_restrict_unless_that_is_disabled() {
    let mut memory = Memory::default();
    let regime = Regime { ttbr0: 0x4000_0000, ..regime(25) };
    memory.words.insert(0x4100_0000, 0x4000_0000 | BLOCK | 1 << 6);
    let mut with = |bits: u64, regime: &Regime, el0: bool| {
        memory.words.insert(0x4000_0000, 0x4100_0000 | TABLE | bits);
        memory.fetch(regime, 0, el0).map(|_| ())
    };
    assert_eq!(with(1 << 60, &regime, true), Err(NoFetch::Permission), "UXNTable");
    assert_eq!(with(1 << 60, &Regime { tcr: regime.tcr | 1 << 41, ..regime }, true), Ok(()), "HPD0");
    let without = Regime { tcr: regime.tcr | 1 << 41, mmfr1: 0, ..regime };
    assert_eq!(with(1 << 60, &without, true), Err(NoFetch::Permission), "HPD0 without FEAT_HPDS");
    assert_eq!(with(0, &regime, false), Err(NoFetch::Permission), "writable at EL0");
    assert_eq!(with(1 << 61, &regime, false), Ok(()), "no access at EL0");
    assert_eq!(with(1 << 62, &regime, false), Ok(()), "read-only");
    assert_eq!(with(1 << 61 | 1 << 59, &regime, false), Err(NoFetch::Permission), "PXNTable");
}

#[test]
fn an_output_or_a_table_beyond_the_physical_address_size_is_refused() {
    let mut memory = Memory::default();
    let small = |ttbr0| Regime { ttbr0, tcr: 16 | 2 << 32, ..regime(0) };
    assert_eq!(memory.fetch(&small(1 << 40), 0, false), Err(NoFetch::AddressSize));
    memory.words.insert(0x4000_0000, 1 << 41 | TABLE);
    assert_eq!(memory.fetch(&small(0x4000_0000), 0, false), Err(NoFetch::AddressSize));
    memory.words.insert(0x4000_0000, 0x5000_0000 | TABLE);
    memory.words.insert(0x5000_0000, 1 << 40 | BLOCK);
    assert_eq!(memory.fetch(&small(0x4000_0000), 0, false), Err(NoFetch::AddressSize));
}

#[test]
fn only_what_the_guest_reads_in_its_id_registers_exists() {
    let (regime, mut memory) = one_block();
    let at = 0x4000_0000;
    assert!(memory.fetch(&regime, at, false).is_ok());
    assert_eq!(memory.fetch(&Regime { mmfr0: 0xf << 28 | 5, ..regime }, at, false), Err(NoFetch::Translation));
    // Small tables: T0SZ 42 leaves one level.
    let tiny = Regime { tcr: 42 | IPS_48, ttbr0: 0x4000_0010, ..regime };
    memory.words.insert(0x4000_0010, 0x4020_0000 | BLOCK);
    assert_eq!(memory.fetch(&tiny, 0x1234, false), Ok(Ipa(0x4020_1234)));
    assert_eq!(memory.fetch(&Regime { mmfr2: 0, ..tiny }, 0x1234, false), Err(NoFetch::Translation));
    // DS without LPA2 has no effect: bits 9:8 are the shareability.
    let ds = Regime { tcr: regime.tcr | 1 << TCR_DS, ..regime };
    memory.words.insert(0x4000_0008, 0x4000_0000 | BLOCK | 3 << 8);
    assert_eq!(memory.fetch(&ds, at, false), Err(NoFetch::AddressSize), "output bits 51:50");
    assert_eq!(memory.fetch(&Regime { mmfr0: 5, ..ds }, at, false), Ok(Ipa(at)));
    // 52-bit virtual addresses need DS, or 64 KiB pages and FEAT_LVA.
    assert_eq!(memory.fetch(&Regime { tcr: 12 | IPS_48, ..regime }, at, false), Err(NoFetch::Translation));
}

/// The random numbers of xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 33) % limit
    }
}

/// Makes tables that map `va` to `to` by a leaf at `leaf`. It goes from the leaf to the root, level by level, and names
/// levels by the address bits that they resolve, so that it shares no formula with the walk.
fn map(memory: &mut Memory, va: u64, to: u64, granule: u32, va_bits: u32, leaf: u32, ds: bool) -> u64 {
    let address = |at: u64| {
        if ds { at & 0x0003_ffff_ffff_ffff | (at >> 50 & 3) << 8 } else { at }
    };
    // The lowest address bit that each level resolves, from the last level up.
    let lows: Vec<u32> = (granule..va_bits).step_by(granule as usize - 3).collect();
    let mut entry = address(to & !((1 << lows[leaf as usize]) - 1)) | if leaf == 0 { PAGE } else { BLOCK };
    let mut at = 0;
    for (n, &low) in lows.iter().enumerate().skip(leaf as usize) {
        let high = (low + granule - 3).min(va_bits);
        let index = va >> low & ((1 << (high - low)) - 1);
        // Tables are 16 MiB apart, which is aligned for all.
        at = 0x1_0000_0000 + ((n as u64) << 24);
        memory.words.insert(at + 8 * index, entry);
        entry = address(at) | TABLE;
    }
    at
}

#[test]
fn what_is_mapped_with_any_granule_size_and_level_is_found() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut tried = [0; 3];
    for _ in 0..20_000 {
        let which = random.below(3) as usize;
        let granule = [12u32, 14, 16][which];
        let ds = granule != 16 && random.below(3) == 0;
        let least = if ds || granule == 16 { 12 } else { 16 };
        let most = if granule == 16 { 47 } else { 48 };
        let tsz = (least + random.below(most - least + 1)) as u32;
        let va_bits = 64 - tsz;
        let upper = random.below(2) == 1;
        let levels = (va_bits - granule).div_ceil(granule - 3);
        // Blocks are at levels 1 and 2, with 52-bit descriptors one level further up, with larger granules one down.
        let blocks = match granule {
            12 => 2 + u32::from(ds),
            14 => 1 + u32::from(ds),
            _ => 1,
        };
        let leaf = random.below(u64::from(levels.min(blocks + 1))) as u32;
        let low = random.next() & below(va_bits);
        let va = if upper { low | !below(va_bits) } else { low };
        if (va >> 55 & 1 == 1) != upper {
            continue;
        }
        let to = random.next() & below(48);
        let mut memory = Memory { big_endian: random.below(2) == 1, ..Memory::default() };
        let root = map(&mut memory, low, to, granule, va_bits, leaf, ds);
        let tcr = match (granule, upper) {
            (12, false) | (14, true) => u64::from(upper) << 30,
            (14, false) | (12, true) => {
                if upper {
                    2 << 30
                } else {
                    2 << 14
                }
            }
            (_, false) => 1 << 14,
            (_, true) => 3 << 30,
        };
        let tcr = tcr | u64::from(tsz) << if upper { 16 } else { 0 } | if ds { 1 << TCR_DS } else { 0 };
        let sctlr = M | if memory.big_endian { EE } else { 0 };
        let half = Regime { sctlr, ..regime(tcr) };
        let half = if upper { Regime { ttbr1: root, ..half } } else { Regime { ttbr0: root, ..half } };
        let offset = below(granule + leaf * (granule - 3));
        let expected = to & !offset | va & offset;
        assert_eq!(
            memory.fetch(&half, va, false),
            Ok(Ipa(expected)),
            "granule {granule} tsz {tsz} leaf {leaf} ds {ds} upper {upper} va {va:#x}"
        );
        assert_eq!(memory.reads.len() as u32, levels - leaf);
        // The same with the path broken at a random place.
        let gone = memory.reads[random.below(memory.reads.len() as u64) as usize];
        memory.words.insert(gone, random.next() & !1);
        assert_eq!(memory.fetch(&half, va, false), Err(NoFetch::Translation));
        memory.words.remove(&gone);
        assert_eq!(memory.fetch(&half, va, false), Err(NoFetch::Unreadable(Ipa(gone))));
        tried[which] += 1;
    }
    assert!(tried.iter().all(|&n| n > 4_000), "{tried:?}");
}

#[test]
fn whatever_registers_and_tables_hold_the_walk_ends_after_five_reads() {
    let mut random = Random(1);
    for _ in 0..200_000 {
        let mut word = |likely: u64| if random.below(2) == 0 { random.next() } else { likely ^ 1 << random.below(64) };
        let regime = Regime {
            sctlr: word(M),
            tcr: word(16 | IPS_48),
            ttbr0: word(0x4000_0000),
            ttbr1: word(0x5000_0000),
            mmfr0: word(MMFR0),
            mmfr1: word(MMFR1),
            mmfr2: word(MMFR2),
        };
        let va = word(u64::MAX);
        let mut reads = 0;
        let found = fetch(&regime, va, reads == 1, |at| {
            assert_eq!(at.0 % 8, 0);
            assert_eq!(at.0 >> 48, 0);
            reads += 1;
            Some(word(0x4000_0000 | TABLE | AF).to_le_bytes())
        });
        assert!(reads <= 5);
        if let Ok(ipa) = found {
            assert_eq!(ipa.0 >> 48, 0);
        }
    }
}
