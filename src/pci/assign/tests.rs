use super::super::fake::Fake;
use super::*;
use crate::platform::PciWindow;
use arrayvec::ArrayVec;
use std::vec::Vec;

const MEM32: Range = Range::new(Pa(0x1000_0000), 0x2eff_0000);
const MEM64: Range = Range::new(Pa(0x80_0000_0000), 0x80_0000_0000);

fn window(kind: PciWindowKind, cpu: Range, pci_base: u64) -> PciWindow {
    PciWindow { kind, prefetchable: false, cpu, pci_base }
}

fn host_with(windows: &[PciWindow]) -> PciHost {
    PciHost {
        ecam: Range::new(Pa(0x40_1000_0000), 0x1000_0000),
        segment: 0,
        buses: (0, 255),
        windows: windows.iter().copied().collect(),
        msi_map_mask: u32::MAX,
        msi_map: ArrayVec::new(),
        iommu_map_mask: u32::MAX,
        iommu_map: ArrayVec::new(),
        coherent: true,
    }
}

/// The PCI host of QEMU's `virt`.
fn host() -> PciHost {
    host_with(&[
        window(PciWindowKind::Io, Range::new(Pa(0x3eff_0000), 0x1_0000), 0),
        window(PciWindowKind::Mem32, MEM32, MEM32.base.0),
        window(PciWindowKind::Mem64, MEM64, MEM64.base.0),
    ])
}

fn page(rid: u16) -> Pa {
    Buses::of(&host()).page(rid).unwrap()
}

fn facts(fake: &Fake, rid: u16) -> Facts {
    let mut facts = Facts::read(rid, page(rid), fake).unwrap();
    facts.size_bars(fake).unwrap();
    facts
}

/// QEMU's devices by their names, on bus 0 from device 1 on, without BARs.
fn machine(names: &[&str]) -> (Fake, Vec<Facts>) {
    let fake = Fake::default();
    names.iter().zip(1..).for_each(|(name, device)| fake.qemu(page(device << 3), name));
    let all = (1..=names.len() as u16).map(|device| facts(&fake, device << 3)).collect();
    (fake, all)
}

/// The BAR of a function as its registers have it.
fn register(fake: &Fake, rid: u16, index: u64) -> u64 {
    let word = |index| u64::from(fake.read32(page(rid).add(BARS + 4 * index)));
    let high = if word(index) & 6 == 4 { word(index + 1) << 32 } else { 0 };
    high | word(index) & !0xf
}

#[test]
fn bars_that_nobody_has_placed_go_to_the_end_of_the_windows() {
    let (fake, mut all) = machine(&["nvme", "edu", "e1000e"]);
    let places = place(&host(), &mut all, &[], &fake).unwrap();
    let [nvme, edu, card] = &places[..] else { panic!("three functions") };
    assert_eq!((nvme.rid, edu.rid, card.rid), (0x08, 0x10, 0x18));
    // 64-bit BARs above 4 GiB; the others below, the largest at the end.
    assert_eq!(nvme.bars[0], Some(Range::new(Pa(MEM64.end().0 - 0x4000), 0x4000)));
    assert_eq!(edu.bars[0], Some(Range::new(Pa(0x3ee0_0000), 0x10_0000)));
    let bars = card.bars.map(|bar| bar.map_or(0, |bar| bar.base.0));
    assert_eq!(bars, [0x3efd_0000 - 0x1_0000, 0x3efa_0000, 0, 0x3efe_c000, 0, 0]);
    for (facts, places) in all.iter().zip(&places) {
        for (index, bar) in facts.memory_bars() {
            assert_eq!(bar.base, places.bars[index].unwrap().base.0);
            assert_eq!(register(&fake, facts.rid, index as u64), bar.base);
        }
    }
}

#[test]
fn a_bar_is_written_only_while_its_function_decodes_nothing() {
    let (fake, mut all) = machine(&["nvme"]);
    fake.words(page(8), &[(COMMAND, 0x0010_0007)]);
    fake.take_writes();
    place(&host(), &mut all, &[], &fake).unwrap();
    let writes: Vec<(u64, u32)> =
        fake.take_writes().into_iter().map(|(at, _, value)| (at - page(8).0, value)).collect();
    assert_eq!(writes, [(COMMAND, 0), (0x10, 0xffff_c000), (0x14, 0xff), (COMMAND, 7)]);
}

#[test]
fn small_bars_get_pages_of_their_own_and_what_belongs_to_others_is_left_out() {
    let fake = Fake::default();
    for rid in [0x08, 0x10] {
        fake.function(page(rid), &[]);
        (0..6).for_each(|index| fake.bar_register(page(rid), index, 0));
        fake.bar_register(page(rid), 0, 0xffff_ff00);
        fake.bar_register(page(rid), 1, 0xffff_fff0);
    }
    let mut all = [facts(&fake, 0x08), facts(&fake, 0x10)];
    let others = [Range::new(Pa(0x3efe_f800), 0x10), Range::new(Pa(0x3efe_d000), 0x1800)];
    let places = place(&host(), &mut all, &others, &fake).unwrap();
    let mut bases: Vec<u64> = places.iter().flat_map(|places| places.bars).flatten().map(|bar| bar.base.0).collect();
    bases.sort_unstable();
    assert_eq!(bases, [0x3efe_9000, 0x3efe_a000, 0x3efe_b000, 0x3efe_c000]);
    assert!(places.iter().flat_map(|places| places.bars).flatten().all(|bar| bar.size == PAGE));
}

#[test]
fn what_the_firmware_has_placed_stays() {
    let (fake, _) = machine(&["nvme", "edu"]);
    fake.words(page(0x08), &[(0x10, 0x0000_8004), (0x14, 0x80)]);
    fake.words(page(0x10), &[(0x10, 0x1010_0000)]);
    let read = || [facts(&fake, 0x08), facts(&fake, 0x10)];
    fake.take_writes();
    let before = read();
    fake.take_writes();
    let mut all = before.clone();
    let places = place(&host(), &mut all, &[], &fake).unwrap();
    assert_eq!(places[0].bars[0], Some(Range::new(Pa(0x80_0000_8000), 0x4000)));
    assert_eq!(places[1].bars[0], Some(Range::new(Pa(0x1010_0000), 0x10_0000)));
    assert!(fake.take_writes().is_empty() && all == before);
    // An address that no window leads to is none.
    fake.words(page(0x10), &[(0x10, 0xe010_0000)]);
    let places = place(&host(), &mut read(), &[], &fake).unwrap();
    assert_eq!(places[1].bars[0], Some(Range::new(Pa(0x3ee0_0000), 0x10_0000)));
}

#[test]
fn a_bar_without_pages_of_its_own_is_moved_or_refused_behind_a_bridge() {
    let (fake, _) = machine(&["nvme"]);
    fake.words(page(0x08), &[(0x10, 0x0000_8004), (0x14, 0x80)]);
    let other = [Range::new(Pa(0x80_0000_bffc), 4)];
    let places = place(&host(), &mut [facts(&fake, 0x08)], &other, &fake).unwrap();
    assert_eq!(places[0].bars[0], Some(Range::new(Pa(MEM64.end().0 - 0x4000), 0x4000)));
    // Its registers would be in the middle of a page, and so nowhere where a guest looks for them.
    fake.bar_register(page(0x08), 0, 0xffff_ff00);
    fake.words(page(0x08), &[(0x10, 0x1000_0100), (0x14, 0), (0x34, 0)]);
    let places = place(&host(), &mut [facts(&fake, 0x08)], &[], &fake).unwrap();
    assert_eq!(places[0].bars[0], Some(Range::new(Pa(0x3efe_f000), PAGE)));

    let (fake, mut all) = behind_a_port(0x1020_0000, 0x1020_1020, MEMORY_SPACE);
    let refused = Err(Unplaced { rid: 0x100, bar: 0, problem: Problem::Shared });
    assert_eq!(place(&host(), &mut all, &[Range::new(Pa(0x102f_f000), 8)], &fake), refused);
    fake.bar_register(page(0x100), 0, 0xffff_ff00);
    fake.words(page(0x100), &[(0x10, 0x1020_0100)]);
    assert_eq!(place(&host(), &mut [facts(&fake, 0x100)], &[], &fake), refused);
}

#[test]
fn windows_that_are_full_or_too_small_are_an_error() {
    let (fake, mut all) = machine(&["edu"]);
    let no_room = Err(Unplaced { rid: 0x08, bar: 0, problem: Problem::NoRoom });
    assert_eq!(place(&host(), &mut all, &[MEM32], &fake), no_room);
    assert_eq!(place(&host_with(&[]), &mut all, &[], &fake), no_room);
    // A window of a megabyte without an aligned one; and one that is for prefetchable BARs.
    let odd = Range::new(Pa(0x1008_0000), 0x10_0000);
    assert_eq!(place(&host_with(&[window(PciWindowKind::Mem32, odd, odd.base.0)]), &mut all, &[], &fake), no_room);
    let prefetchable = PciWindow { prefetchable: true, ..window(PciWindowKind::Mem32, MEM32, MEM32.base.0) };
    assert_eq!(place(&host_with(&[prefetchable]), &mut all, &[], &fake), no_room);
    // PCI address 0 is no place: a BAR there counts as not placed.
    let low = Range::new(Pa(0x1000_0000), 0x10_0000);
    assert_eq!(place(&host_with(&[window(PciWindowKind::Mem32, low, 0)]), &mut all, &[], &fake), no_room);
}

#[test]
fn windows_that_translate_are_followed_both_ways() {
    let (fake, mut all) = machine(&["edu"]);
    let cpu = Range::new(Pa(0x50_0000_0000), 0x1000_0000);
    let host = host_with(&[window(PciWindowKind::Mem32, cpu, 0x4000_0000)]);
    let places = place(&host, &mut all, &[], &fake).unwrap();
    assert_eq!(places[0].bars[0], Some(Range::new(Pa(0x50_0ff0_0000), 0x10_0000)));
    assert_eq!(register(&fake, 0x08, 0), 0x4ff0_0000);
    // What has been placed is found where it is.
    assert_eq!(place(&host, &mut [facts(&fake, 0x08)], &[], &fake).unwrap(), places);
    assert_eq!(occupied(&host, &[], &fake), [Range::new(Pa(0x50_0ff0_0000), 0x10_0000)]);
}

/// A root port to bus 1 with QEMU's `edu` behind it, whose BAR is at `bar`; `window` is the port's memory window.
fn behind_a_port(bar: u32, window: u32, command: u32) -> (Fake, [Facts; 1]) {
    let fake = Fake::default();
    fake.qemu(page(0x08), "pcie-root-port");
    fake.words(page(0x08), &[(COMMAND, HAS_CAPABILITIES | command), (BUSES, 0x0001_0100), (WINDOWS[0], window)]);
    fake.qemu(page(0x100), "edu");
    fake.words(page(0x100), &[(0x10, bar)]);
    let all = [facts(&fake, 0x100)];
    (fake, all)
}

#[test]
fn a_function_behind_a_bridge_needs_windows_that_lead_to_it() {
    let (fake, mut all) = behind_a_port(0x1020_0000, 0x1020_1020, MEMORY_SPACE);
    let places = place(&host(), &mut all, &[], &fake).unwrap();
    assert_eq!(places[0].bars[0], Some(Range::new(Pa(0x1020_0000), 0x10_0000)));
    let problem = Err(Unplaced { rid: 0x100, bar: 0, problem: Problem::NoWindow });
    // Nobody has placed it; the port forwards other addresses, none, or nothing at all.
    let cases = [
        (0, 0x1020_1020, 2),
        (0x1020_0000, 0x1030_1030, 2),
        (0x1020_0000, 0x1010_1030, 2),
        (0x1020_0000, 0x1020_1020, 0),
    ];
    for (bar, window, command) in cases {
        let (fake, mut all) = behind_a_port(bar, window, command);
        fake.take_writes();
        assert_eq!(place(&host(), &mut all, &[], &fake), problem, "{bar:#x} {window:#x} {command}");
        assert!(fake.take_writes().is_empty());
    }
}

#[test]
fn a_64_bit_bar_may_be_in_a_bridges_prefetchable_window() {
    let (fake, _) = behind_a_port(0, 0xfff0, MEMORY_SPACE);
    fake.qemu(page(0x100), "nvme");
    fake.words(page(0x100), &[(0x10, 0x0010_4004), (0x14, 0x80)]);
    fake.words(page(0x08), &[(WINDOWS[1], 0x0021_0011), (WINDOWS[2], 0x80), (WINDOWS[3], 0x80)]);
    let places = place(&host(), &mut [facts(&fake, 0x100)], &[], &fake).unwrap();
    assert_eq!(places[0].bars[0], Some(Range::new(Pa(0x80_0010_4000), 0x4000)));
    fake.words(page(0x08), &[(WINDOWS[2], 0x81), (WINDOWS[3], 0x81)]);
    assert!(place(&host(), &mut [facts(&fake, 0x100)], &[], &fake).is_err());
}

#[test]
fn what_other_functions_and_bridges_have_is_occupied() {
    let (fake, _) = behind_a_port(0x1020_0000, 0x1020_1020, MEMORY_SPACE);
    fake.qemu(page(0x10), "nvme");
    fake.words(page(0x10), &[(0x10, 0x8004), (0x14, 0x80)]);
    fake.qemu(page(0x18), "edu");
    let mut found = occupied(&host(), &[], &fake);
    found.sort();
    let window = Range::new(Pa(0x1020_0000), 0x10_0000);
    assert_eq!(found, [window, window, Range::new(Pa(0x80_0000_8000), 0x4000)]);
    fake.take_writes();
    assert_eq!(occupied(&host(), &[0x10, 0x18, 0x100], &fake), [window]);
    assert!(fake.take_writes().is_empty(), "what is in use is left alone");
}
