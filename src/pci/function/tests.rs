use super::super::fake::Fake;
use super::*;
use std::cell::Cell;
use std::vec::Vec;

const PAGE: Pa = Pa(0x40_1000_8000);

fn qemu(name: &str) -> (Fake, Facts) {
    let fake = Fake::default();
    fake.qemu(PAGE, name);
    let mut facts = Facts::read(8, PAGE, &fake).unwrap();
    facts.size_bars(&fake).unwrap();
    (fake, facts)
}

fn memory(space: Space, prefetchable: bool, size: u64) -> Option<Bar> {
    Some(Bar { space, prefetchable, base: 0, size })
}

#[test]
fn qemus_nvme_controller_is_read() {
    let (_, facts) = qemu("nvme");
    assert_eq!((facts.id, facts.class, facts.subsystem), (0x0010_1b36, 0x0108_0202, 0x1100_1af4));
    assert_eq!(facts.kind, Kind::Endpoint);
    assert_eq!(facts.bars, [memory(Space::Memory64, false, 0x4000), None, None, None, None, None]);
    assert_eq!(facts.msix, Some(MsiX { at: 0x40, vectors: 65, table: (0, 0x2000), pending: (0, 0x3000) }));
    assert_eq!(facts.power, Some(Power { at: 0x60, resets: false }));
    assert_eq!(facts.express, Some(Express { at: 0x80, version: 2, port: Port::Integrated, resets: true }));
    assert_eq!((facts.msi, facts.acs, facts.virtual_functions), (None, None, None));
    assert!(!facts.multi_function && !facts.ari && !facts.advanced_errors);
}

#[test]
fn qemus_conventional_devices_are_read() {
    let (_, edu) = qemu("edu");
    assert_eq!(edu.bars[0], memory(Space::Memory32, false, 1 << 20));
    assert_eq!(edu.msi, Some(Msi { at: 0x40, vectors_log2: 0, wide: true, masks: false }));
    // Extended configuration space of a conventional function reads as ones, and is not looked at.
    assert_eq!((edu.express, edu.power, edu.msix, edu.acs), (None, None, None, None));
    let (_, net) = qemu("virtio-net-pci");
    let io = Some(Bar { space: Space::Io, prefetchable: false, base: 0, size: 32 });
    let [port, table, rest, none, wide, upper] = net.bars;
    assert_eq!((port, table, rest, none), (io, memory(Space::Memory32, false, 4096), None, None));
    assert_eq!((wide, upper), (memory(Space::Memory64, true, 0x4000), None));
    assert_eq!(net.msix, Some(MsiX { at: 0x98, vectors: 4, table: (1, 0), pending: (1, 0x800) }));
    assert_eq!(net.memory_bars().map(|(index, _)| index).collect::<Vec<_>>(), [1, 4]);
}

#[test]
fn qemus_other_devices_are_read() {
    let (_, card) = qemu("e1000e");
    assert_eq!(card.bars.map(|bar| bar.map_or(0, |bar| bar.size)), [0x2_0000, 0x2_0000, 32, 0x4000, 0, 0]);
    assert_eq!(card.msi, Some(Msi { at: 0xd0, vectors_log2: 0, wide: true, masks: false }));
    assert_eq!(card.power, Some(Power { at: 0xc8, resets: true }));
    assert!(card.express.is_some_and(|express| express.at == 0xe0 && !express.resets) && card.advanced_errors);
    assert_eq!(card.msix.map(|msix| (msix.vectors, msix.table.0)), Some((5, 3)));
    let (_, usb) = qemu("qemu-xhci");
    assert_eq!(usb.msix.map(|msix| (msix.at, msix.vectors, msix.table)), Some((0x90, 16, (0, 0x3000))));
    let (fake, mut port) = (Fake::default(), PAGE);
    fake.qemu(port, "pcie-root-port");
    fake.words(port, &[(BUSES, 0x0005_0400)]);
    port = PAGE;
    let mut facts = Facts::read(8, port, &fake).unwrap();
    assert_eq!(facts.kind, Kind::Bridge { secondary: 4, subordinate: 5 });
    assert_eq!(facts.express, Some(Express { at: 0x54, version: 2, port: Port::Root, resets: false }));
    assert_eq!(facts.acs, Some(Acs { at: 0x148, capability: 0x5f, control: 0 }));
    assert!(!facts.acs.unwrap().isolates());
    // The registers of a bridge that are where others have BARs are left alone.
    fake.take_writes();
    assert_eq!(facts.size_bars(&fake), Ok(()));
    assert!(fake.take_writes().is_empty());
}

#[test]
fn bars_are_sized_while_nothing_is_decoded_and_are_as_before() {
    let fake = Fake::default();
    fake.qemu(PAGE, "virtio-net-pci");
    fake.words(PAGE, &[(COMMAND, 0x0010_0507), (0x10, 0x1001), (0x14, 0x1234_5000), (0x20, 0x8000_000c), (0x24, 0x80)]);
    let mut facts = Facts::read(8, PAGE, &fake).unwrap();
    fake.take_writes();
    facts.size_bars(&fake).unwrap();
    let writes = fake.take_writes();
    assert_eq!(writes.first(), Some(&(PAGE.0 + COMMAND, 2, 0x0500)));
    assert_eq!(writes.last(), Some(&(PAGE.0 + COMMAND, 2, 0x0507)));
    assert_eq!(facts.bars[1].map(|bar| bar.base), Some(0x1234_5000));
    assert_eq!(facts.bars[4].map(|bar| bar.base), Some(0x80_8000_0000));
    let word = |at| fake.read32(PAGE.add(at));
    assert_eq!([0x10, 0x14, 0x20, 0x24].map(word), [0x1001, 0x1234_5000, 0x8000_000c, 0x80]);
}

#[test]
fn a_bar_above_4_gib_in_size_and_one_of_16_bytes_are_sized() {
    let fake = Fake::default();
    fake.function(PAGE, &[]);
    (0..6).for_each(|index| fake.bar_register(PAGE, index, 0));
    fake.bar_register(PAGE, 2, 0x0000_000c);
    fake.fix(PAGE, 0x1c, 0xffff_fff8);
    fake.bar_register(PAGE, 5, 0xffff_fff0);
    let mut facts = Facts::read(8, PAGE, &fake).unwrap();
    facts.size_bars(&fake).unwrap();
    let expected = [None, None, memory(Space::Memory64, true, 8 << 32), None, None, memory(Space::Memory32, false, 16)];
    assert_eq!(facts.bars, expected);
}

/// What is said of a function with these words, whose BARs read as `bars` after ones.
fn problem(fields: &[(u64, u32)], bars: &[(u64, u32)]) -> Option<Broken> {
    let fake = Fake::default();
    fake.function(PAGE, fields);
    (0..6).for_each(|index| fake.bar_register(PAGE, index, 0));
    for &(index, mask) in bars {
        fake.bar_register(PAGE, index, mask);
    }
    let facts = Facts::read(8, PAGE, &fake);
    assert!(fake.take_writes().is_empty());
    facts.and_then(|mut facts| facts.size_bars(&fake)).err()
}

#[test]
fn what_makes_no_sense_is_refused() {
    let capable = |words: &[(u64, u32)]| {
        let mut fields: Vec<(u64, u32)> = [(COMMAND, HAS_CAPABILITIES), (CAPABILITIES, 0x40)].into();
        fields.extend(words);
        problem(&fields, &[(0, 0xffff_f000)])
    };
    assert_eq!(problem(&[(ID, NONE)], &[]), Some(Broken::Absent));
    assert_eq!(problem(&[(HEADER, 0x0002_0000)], &[]), Some(Broken::Header(2)));
    // A gap in the bits, a reserved type, no bits at all, a 64-bit BAR without an upper half.
    assert_eq!(problem(&[], &[(1, 0xfff0_f000)]), Some(Broken::Bar(1)));
    assert_eq!(problem(&[], &[(1, 0xffff_f006)]), Some(Broken::Bar(1)));
    assert_eq!(problem(&[], &[(3, 0x0000_0008)]), Some(Broken::Bar(3)));
    assert_eq!(problem(&[], &[(5, 0xffff_f004)]), Some(Broken::Bar(5)));
    // A capability at the end of configuration space, and one in the middle of another.
    assert_eq!(capable(&[(0x40, 0xf801), (0xf8, 0x0011)]), Some(Broken::Capability(MSI_X, 0xf8)));
    assert_eq!(capable(&[(0x40, 0x0000_4811), (0x48, 0x0005)]), Some(Broken::Capability(MSI, 0x48)));
    // The table is in a BAR that is not there, or goes beyond it; so do the pending bits.
    assert_eq!(capable(&[(0x40, 0x0007_0011), (0x44, 0x1), (0x48, 0x800)]), Some(Broken::Table));
    assert_eq!(capable(&[(0x40, 0x0007_0011), (0x44, 0x6), (0x48, 0x800)]), Some(Broken::Table));
    assert_eq!(capable(&[(0x40, 0x0007_0011), (0x44, 0xf88), (0x48, 0x800)]), Some(Broken::Table));
    assert_eq!(capable(&[(0x40, 0x0007_0011), (0x44, 0xf80), (0x48, 0x1000)]), Some(Broken::Table));
    assert_eq!(capable(&[(0x40, 0x0007_0011), (0x44, 0xf80), (0x48, 0x800)]), None);
}

#[test]
fn chains_in_circles_end_and_the_first_of_a_kind_counts() {
    let fake = Fake::default();
    let fields = [
        (COMMAND, HAS_CAPABILITIES),
        (CAPABILITIES, 0x43),
        (0x40, 0x0002_5010),
        (0x50, 0x0000_9001),
        (0x90, 0x0000_5001),
        (EXTENDED, 0x1401_0001),
        (0x140, 0x1001_000d),
    ];
    fake.function(PAGE, &fields);
    fake.take_reads();
    // The first power management capability lies in the PCI Express capability.
    assert_eq!(Facts::read(8, PAGE, &fake), Err(Broken::Capability(POWER, 0x50)));
    fake.words(PAGE, &[(0x40, 0x0002_9010)]);
    let facts = Facts::read(8, PAGE, &fake).unwrap();
    assert_eq!(facts.power.map(|power| power.at), Some(0x90));
    assert!(facts.advanced_errors && facts.acs.is_some());
    assert!(fake.take_reads() < 4000);
}

/// A function that is gone after a number of reads.
struct Vanishing(Fake, Cell<usize>);

impl ConfigSpace for Vanishing {
    fn read(&self, at: Pa, bytes: u8) -> u32 {
        let left = self.1.get();
        self.1.set(left.saturating_sub(1));
        if left == 0 { u32::MAX >> (32 - 8 * u32::from(bytes)) } else { self.0.read(at, bytes) }
    }

    fn write(&self, at: Pa, bytes: u8, value: u32) {
        self.0.write(at, bytes, value);
    }
}

#[test]
fn a_function_that_vanishes_while_it_is_read_is_absent_or_broken() {
    let mut complete = false;
    for reads in 0..200 {
        let fake = Fake::default();
        fake.qemu(PAGE, "nvme");
        let machine = Vanishing(fake, Cell::new(reads));
        let facts = Facts::read(8, PAGE, &machine).and_then(|mut facts| facts.size_bars(&machine).map(|()| facts));
        complete = facts.is_ok();
        assert!(!complete || facts.unwrap().bars[0].is_some_and(|bar| bar.size == 0x4000));
    }
    assert!(complete, "200 reads are enough");
}
