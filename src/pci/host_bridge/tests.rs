use super::super::fake::Fake;
use super::super::function::Facts;
use super::super::regs::*;
use super::super::virt::Unfit;
use super::*;
use std::vec::Vec;

/// The physical functions' configuration space.
fn page(slot: usize) -> Pa {
    Pa(0x40_1000_8000 + 0x8000 * slot as u64)
}

/// Where the BARs of the functions are: from here on, one after the other.
const PLACES: u64 = 0x9_0000_0000;
const WINDOW: Range = Range::new(Pa(0x1000_0000), 0x1000_0000);
const WINDOW64: Range = Range::new(Pa(0x80_0000_0000), 0x1_0000_0000);

fn virtual_function(fake: &Fake, slot: usize, name: &str) -> VirtualFunction {
    fake.qemu(page(slot), name);
    let mut facts = Facts::read(8 * (slot as u16 + 1), page(slot), fake).unwrap();
    facts.size_bars(fake).unwrap();
    let mut next = PLACES + ((slot as u64) << 28);
    let mut places = [None; BAR_COUNT];
    for (index, bar) in facts.memory_bars() {
        next = next.next_multiple_of(bar.size.max(4096));
        places[index] = Some(Range::new(Pa(next), bar.size.max(4096)));
        next += bar.size;
    }
    VirtualFunction::new(facts, &places, true).unwrap()
}

/// A domU's host with QEMU's devices, which it may use.
fn machine(names: &[&str]) -> (Fake, HostBridge) {
    let fake = Fake::default();
    let slots: Vec<VirtualFunction> =
        names.iter().enumerate().map(|(slot, name)| virtual_function(&fake, slot, name)).collect();
    let mut bridge = HostBridge::new(&[WINDOW, WINDOW64], slots);
    (0..names.len()).for_each(|slot| bridge.returns(&fake, slot));
    fake.take_writes();
    (fake, bridge)
}

/// A register of the function in a slot, as an offset in the ECAM.
fn at(slot: u64, register: u64) -> u64 {
    (slot + 1) << 15 | register
}

/// The writes to a function, by offset.
fn writes(fake: &Fake, slot: usize) -> Vec<(u64, u8, u32)> {
    fake.take_writes().into_iter().map(|(at, bytes, value)| (at - page(slot).0, bytes, value)).collect()
}

/// What a guest finds when it sizes a BAR's register.
fn size(fake: &Fake, bridge: &mut HostBridge, slot: u64, register: u64) -> u32 {
    assert!(bridge.write(fake, at(slot, register), 4, u32::MAX).is_empty());
    bridge.read(fake, at(slot, register), 4)
}

/// The capabilities that a guest finds.
fn capabilities(fake: &Fake, bridge: &HostBridge, slot: u64) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    let mut next = bridge.read(fake, at(slot, 0x34), 1);
    while next != 0 {
        found.push((bridge.read(fake, at(slot, next.into()), 1), next));
        next = bridge.read(fake, at(slot, u64::from(next) + 1), 1);
        assert!(found.len() < 8);
    }
    found
}

#[test]
fn a_function_is_what_it_is_in_its_slot_and_nothing_is_beside_it() {
    let (fake, bridge) = machine(&["nvme", "edu"]);
    assert_eq!(bridge.read(&fake, at(0, 0), 4), 0x0010_1b36);
    assert_eq!(bridge.read(&fake, at(0, 8), 4), 0x0108_0202);
    assert_eq!(bridge.read(&fake, at(0, 0x2c), 4), 0x1100_1af4);
    assert_eq!(bridge.read(&fake, at(1, 0), 2), 0x1234);
    assert_eq!(bridge.read(&fake, at(1, 2), 2), 0x11e8);
    assert_eq!(bridge.read(&fake, at(1, 0xb), 1), 0);
    // Device 0, function 1, device 3, bus 1.
    for offset in [0, at(0, 0) + 0x1000, at(2, 0), ECAM_SIZE + at(0, 0)] {
        assert_eq!(bridge.read(&fake, offset, 4), u32::MAX);
        assert_eq!(bridge.read(&fake, offset, 2), 0xffff);
    }
    // Not aligned, and not of 1, 2 or 4 bytes.
    for (offset, bytes) in [(at(0, 1), 2), (at(0, 2), 4), (at(0, 0), 8), (at(0, 0), 3)] {
        assert!(matches!(bridge.read(&fake, offset, bytes), u32::MAX | 0xffff | 0xff_ffff));
    }
    // Header type, ROM, interrupt pin, extended capabilities.
    for register in [0x0c, 0x28, 0x30, 0x3c, 0x100, 0xffc] {
        assert_eq!(bridge.read(&fake, at(0, register), 4), 0, "{register:#x}");
    }
}

#[test]
fn bars_are_sized_as_in_hardware() {
    let (fake, mut bridge) = machine(&["virtio-net-pci", "nvme"]);
    // I/O ports are absent; a page, a 64-bit prefetchable BAR of 16 KiB.
    assert_eq!(size(&fake, &mut bridge, 0, 0x10), 0);
    assert_eq!(size(&fake, &mut bridge, 0, 0x14), 0xffff_f000);
    assert_eq!(size(&fake, &mut bridge, 0, 0x18), 0);
    assert_eq!(size(&fake, &mut bridge, 0, 0x20), 0xffff_c00c);
    assert_eq!(size(&fake, &mut bridge, 0, 0x24), 0xffff_ffff);
    assert_eq!(size(&fake, &mut bridge, 1, 0x10), 0xffff_c004);
    assert!(fake.take_writes().is_empty(), "the functions' own BARs stay");
    // Byte by byte.
    for (register, byte) in [(0x10, 0x12), (0x11, 0x34), (0x12, 0x56), (0x13, 0x78)] {
        let _ = bridge.write(&fake, at(1, register), 1, byte);
    }
    assert_eq!(bridge.read(&fake, at(1, 0x10), 4), 0x7856_0004);
    assert_eq!(bridge.read(&fake, at(1, 0x12), 2), 0x7856);
}

#[test]
fn a_bar_smaller_than_a_page_is_one_of_a_page() {
    let fake = Fake::default();
    fake.function(page(0), &[]);
    (0..6).for_each(|index| fake.bar_register(page(0), index, 0));
    fake.bar_register(page(0), 2, 0xffff_ff08);
    let mut facts = Facts::read(8, page(0), &fake).unwrap();
    facts.size_bars(&fake).unwrap();
    let place = |range| VirtualFunction::new(facts.clone(), &[None, None, range, None, None, None], false);
    let own = Range::new(Pa(PLACES), 4096);
    for bad in [None, Some(Range::new(Pa(PLACES), 256)), Some(Range::new(Pa(PLACES + 256), 4096))] {
        assert_eq!(place(bad).err(), Some(Unfit::NotPlaced(2)));
    }
    let mut bridge = HostBridge::new(&[WINDOW], [place(Some(own)).unwrap()].into());
    bridge.returns(&fake, 0);
    assert_eq!(size(&fake, &mut bridge, 0, 0x18), 0xffff_f008);
    let _ = bridge.write(&fake, at(0, 0x18), 4, 0x1000_5100);
    let effects = bridge.write(&fake, at(0, 4), 2, MEMORY_SPACE);
    assert_eq!(effects[..], [Effect::Map { at: Ipa(0x1000_5000), to: own, prefetchable: true }]);
}

#[test]
fn a_bar_is_mapped_while_memory_is_enabled_and_it_is_in_a_window() {
    let (fake, mut bridge) = machine(&["nvme"]);
    let to = Range::new(Pa(PLACES), 0x4000);
    let mapped = |at| Effect::Map { at: Ipa(at), to, prefetchable: false };
    let unmapped = |at| Effect::Unmap { at: Ipa(at), to };
    let mut write = |register, value| bridge.write(&fake, at(0, register), 4, value);
    assert!(write(0x10, 0x1000_4000).is_empty());
    assert_eq!(write(4, MEMORY_SPACE)[..], [mapped(0x1000_4000)]);
    assert!(write(4, MEMORY_SPACE | BUS_MASTER).is_empty(), "it is there");
    assert_eq!(write(0x10, 0x1000_8000)[..], [unmapped(0x1000_4000), mapped(0x1000_8000)]);
    assert_eq!(write(0x14, 0x80)[..], [unmapped(0x1000_8000), mapped(0x80_1000_8000)]);
    assert_eq!(write(0x10, 0x0000_8000)[..], [unmapped(0x80_1000_8000), mapped(0x80_0000_8000)]);
    assert_eq!(write(4, 0)[..], [unmapped(0x80_0000_8000)]);
    // The end of a window, and beyond it.
    write(4, MEMORY_SPACE);
    assert_eq!(write(0x10, 0xffff_c000)[..], [unmapped(0x80_0000_8000), mapped(0x80_ffff_c000)]);
    assert_eq!(write(0x14, 0xffff_ffff)[..], [unmapped(0x80_ffff_c000)]);
    assert!(write(0x14, 0x81).is_empty());
    assert_eq!(bridge.mappings().count(), 0);
}

#[test]
fn a_bar_over_another_is_mapped_when_that_has_gone_and_it_is_written_again() {
    let (fake, mut bridge) = machine(&["edu", "nvme"]);
    let _ = bridge.write(&fake, at(0, 0x10), 4, 0x1010_0000);
    let _ = bridge.write(&fake, at(0, 4), 2, MEMORY_SPACE);
    let _ = bridge.write(&fake, at(1, 0x10), 4, 0x101f_c000);
    assert!(bridge.write(&fake, at(1, 4), 2, MEMORY_SPACE).is_empty());
    assert_eq!(bridge.mappings().collect::<Vec<_>>(), [(Ipa(0x1010_0000), Range::new(Pa(PLACES), 0x10_0000))]);
    assert_eq!(bridge.write(&fake, at(0, 0x10), 4, 0x1020_0000).len(), 2);
    assert_eq!(bridge.write(&fake, at(1, 4), 2, MEMORY_SPACE).len(), 1);
    assert_eq!(bridge.mappings().count(), 2);
}

#[test]
fn the_function_decodes_memory_and_gets_bus_mastering_and_nothing_else_of_the_command() {
    let (fake, mut bridge) = machine(&["nvme"]);
    for (command, expected) in [(0xffff, 0x406), (0x0003, 0x402), (0, 0x402), (4, 0x406)] {
        let _ = bridge.write(&fake, at(0, 4), 2, command);
        assert_eq!(fake.read(page(0).add(COMMAND), 2), expected);
        assert_eq!(bridge.read(&fake, at(0, 4), 2), command & 0x546);
    }
    // Errors are cleared by a write of ones that leaves the command alone.
    fake.words(page(0), &[(COMMAND, 0xf910_0402)]);
    fake.clears(page(0), COMMAND, 0xf900_0000);
    fake.take_writes();
    assert_eq!(bridge.read(&fake, at(0, 6), 2), 0xf910);
    let _ = bridge.write(&fake, at(0, 6), 2, 0x8010);
    assert_eq!(writes(&fake, 0), [(6, 2, 0x8000)]);
    assert_eq!(bridge.read(&fake, at(0, 6), 2), 0x7910);
}

#[test]
fn only_capabilities_that_stay_within_the_domain_are_shown() {
    let (fake, bridge) = machine(&["nvme", "edu", "virtio-net-pci", "e1000e", "qemu-xhci"]);
    assert_eq!(capabilities(&fake, &bridge, 0), [(0x11, 0x40), (0x01, 0x60), (0x10, 0x80)]);
    assert_eq!(capabilities(&fake, &bridge, 1), [(0x05, 0x40)]);
    // The vendor-specific ones of virtio give access to BARs by addresses in configuration space.
    assert_eq!(capabilities(&fake, &bridge, 2), [(0x11, 0x98)]);
    for register in (0x40..0x98).step_by(4) {
        assert_eq!(bridge.read(&fake, at(2, register), 4), 0);
    }
    assert_eq!(capabilities(&fake, &bridge, 3), [(0x11, 0xa0), (0x01, 0xc8), (0x05, 0xd0), (0x10, 0xe0)]);
    assert_eq!(capabilities(&fake, &bridge, 4), [(0x11, 0x90), (0x10, 0xa0)]);
    // A function without capabilities says so.
    let fake = Fake::default();
    fake.function(page(0), &[]);
    (0..6).for_each(|index| fake.bar_register(page(0), index, 0));
    let facts = Facts::read(8, page(0), &fake).unwrap();
    let function = VirtualFunction::new(facts, &[None; BAR_COUNT], false).unwrap();
    let mut bridge = HostBridge::new(&[], [function].into());
    bridge.returns(&fake, 0);
    assert_eq!((bridge.read(&fake, at(0, 4), 4), bridge.read(&fake, at(0, 0x34), 4)), (0, 0));
}

#[test]
fn the_controls_of_msi_x_go_to_the_function() {
    let (fake, mut bridge) = machine(&["nvme"]);
    assert_eq!(bridge.read(&fake, at(0, 0x40), 4), 0x0040_6011);
    assert_eq!((bridge.read(&fake, at(0, 0x44), 4), bridge.read(&fake, at(0, 0x48), 4)), (0x2000, 0x3000));
    let _ = bridge.write(&fake, at(0, 0x42), 2, 0xffff);
    let _ = bridge.write(&fake, at(0, 0x43), 1, 0x80);
    let _ = bridge.write(&fake, at(0, 0x40), 4, 0x4000_ffff);
    let _ = bridge.write(&fake, at(0, 0x44), 4, 0xffff_ffff);
    assert_eq!(writes(&fake, 0), [(0x42, 2, 0xc040), (0x42, 2, 0x8040), (0x42, 2, 0x4040)]);
}

#[test]
fn an_msi_goes_to_the_function_within_its_bounds() {
    let (fake, mut bridge) = machine(&["edu"]);
    let mut write = |register, bytes, value| {
        let _ = bridge.write(&fake, at(0, register), bytes, value);
        writes(&fake, 0)
    };
    assert_eq!(write(0x44, 4, 0xffff_ffff), [(0x44, 4, 0xffff_fffc)]);
    assert_eq!(write(0x48, 4, 0x80), [(0x48, 4, 0x80)]);
    assert_eq!(write(0x4c, 4, 0xffff_1234), [(0x4c, 4, 0x1234)]);
    assert_eq!(write(0x4d, 1, 0x56), [(0x4c, 4, 0x5634)]);
    assert_eq!(write(0x42, 2, 0xff8f), [(0x42, 2, 0x81)]);
    // It has one vector. Vectors cannot be masked, so what follows the data is no part of it.
    assert_eq!(write(0x42, 2, 0x0011), []);
    assert_eq!(write(0x50, 4, 0xffff_ffff), []);
    assert_eq!(write(0x4e, 2, 0xffff), []);
    // 32 bits, eight vectors that can be masked.
    fake.words(page(1), &[]);
    let fake = Fake::default();
    fake.function(page(0), &[(COMMAND, HAS_CAPABILITIES), (0x34, 0x50), (0x50, 0x0106_0005), (0x60, 0xa5)]);
    (0..6).for_each(|index| fake.bar_register(page(0), index, 0));
    let facts = Facts::read(8, page(0), &fake).unwrap();
    let function = VirtualFunction::new(facts, &[None; BAR_COUNT], false).unwrap();
    let mut bridge = HostBridge::new(&[], [function].into());
    bridge.returns(&fake, 0);
    fake.take_writes();
    let mut write = |register, bytes, value| {
        let _ = bridge.write(&fake, at(0, register), bytes, value);
        writes(&fake, 0)
    };
    assert_eq!(write(0x52, 2, 0x0031), [(0x52, 2, 0x137)]);
    assert_eq!(write(0x52, 2, 0x0041), []);
    assert_eq!(write(0x58, 4, 0xffff_1234), [(0x58, 4, 0x1234)]);
    assert_eq!(write(0x5c, 4, 0xf0), [(0x5c, 4, 0xf0)]);
    assert_eq!(write(0x60, 4, 0xf0), []);
    assert_eq!(bridge.read(&fake, at(0, 0x60), 4), 0xa5);
    assert_eq!(bridge.read(&fake, at(0, 0x64), 4), 0);
}

#[test]
fn power_states_are_the_guests_alone() {
    let (fake, mut bridge) = machine(&["e1000e"]);
    assert_eq!(bridge.read(&fake, at(0, 0xc8), 4), 0x0002_d001);
    assert_eq!(bridge.read(&fake, at(0, 0xcc), 4), NO_SOFT_RESET);
    for (value, state) in [(3, 3), (1, 3), (2, 3), (0, 0), (0xffff, 3)] {
        let _ = bridge.write(&fake, at(0, 0xcc), 2, value);
        assert_eq!(bridge.read(&fake, at(0, 0xcc), 4), NO_SOFT_RESET | state);
    }
    assert!(fake.take_writes().is_empty());
}

#[test]
fn a_function_is_an_endpoint_of_the_root_complex_without_link() {
    let (fake, mut bridge) = machine(&["nvme"]);
    assert_eq!(bridge.read(&fake, at(0, 0x80), 4), 0x0092_0010);
    assert_eq!(bridge.read(&fake, at(0, 0x84), 4), 0x1000_8020);
    for register in (0x8c..0xbc).step_by(4) {
        assert_eq!(bridge.read(&fake, at(0, register), 4), 0, "{register:#x}");
        let _ = bridge.write(&fake, at(0, register), 4, u32::MAX);
    }
    assert!(fake.take_writes().is_empty());
    fake.words(page(0), &[(0x88, 0x000f_2120)]);
    fake.clears(page(0), 0x88, 0x000f_0000);
    // Error messages are the guest's alone; the payload and the tags are the machine's.
    let _ = bridge.write(&fake, at(0, 0x88), 2, 0x58ff);
    assert_eq!(writes(&fake, 0), [(0x88, 2, 0x5930)]);
    assert_eq!(bridge.read(&fake, at(0, 0x88), 4), 0x000f_593f);
    // A reserved read request size is not written.
    let _ = bridge.write(&fake, at(0, 0x88), 2, 0x6000);
    assert_eq!(writes(&fake, 0), [(0x88, 2, 0x5120)]);
    let _ = bridge.write(&fake, at(0, 0x8a), 2, 0x0003);
    assert_eq!(writes(&fake, 0), [(0x8a, 2, 0x0003)]);
    assert_eq!(bridge.read(&fake, at(0, 0x8a), 2), 0x000c);
}

#[test]
fn a_function_level_reset_takes_the_function_away_until_it_returns() {
    let (fake, mut bridge) = machine(&["nvme"]);
    let _ = bridge.write(&fake, at(0, 0x10), 4, 0x1000_4000);
    let _ = bridge.write(&fake, at(0, 4), 2, MEMORY_SPACE | BUS_MASTER);
    fake.take_writes();
    let effects = bridge.write(&fake, at(0, 0x88), 2, FUNCTION_RESET);
    let to = Range::new(Pa(PLACES), 0x4000);
    assert_eq!(effects[..], [Effect::Unmap { at: Ipa(0x1000_4000), to }, Effect::Reset { slot: 0 }]);
    // While a BAR is mapped, the function answers there.
    assert!(fake.take_writes().is_empty());
    assert!(bridge.functions()[0].is_away());
    assert_eq!(bridge.read(&fake, at(0, 0), 4), u32::MAX);
    assert!(bridge.write(&fake, at(0, 4), 2, MEMORY_SPACE).is_empty());
    assert!(fake.take_writes().is_empty());
    bridge.returns(&fake, 0);
    assert_eq!(bridge.read(&fake, at(0, 0), 4), 0x0010_1b36);
    assert_eq!((bridge.read(&fake, at(0, 4), 2), bridge.read(&fake, at(0, 0x10), 4)), (0, 4));
    // It returns once: what the guest has set since stays.
    let _ = bridge.write(&fake, at(0, 4), 2, BUS_MASTER);
    bridge.returns(&fake, 0);
    assert_eq!(bridge.read(&fake, at(0, 4), 2), BUS_MASTER);
}

#[test]
fn a_function_that_cannot_be_reset_does_not_offer_it() {
    let fake = Fake::default();
    let facts = virtual_function(&fake, 0, "nvme").facts().clone();
    let places = [Some(Range::new(Pa(PLACES), 0x4000)), None, None, None, None, None];
    let function = VirtualFunction::new(facts, &places, false).unwrap();
    let mut bridge = HostBridge::new(&[WINDOW], [function].into());
    bridge.returns(&fake, 0);
    fake.take_writes();
    assert_eq!(bridge.read(&fake, at(0, 0x84), 4) & FUNCTION_RESET_CAPABLE, 0);
    assert!(bridge.write(&fake, at(0, 0x88), 2, FUNCTION_RESET).is_empty());
    assert_eq!(writes(&fake, 0), [(0x88, 2, 0)]);
}

#[test]
fn when_the_domain_ends_its_functions_are_silent_and_mapped_nowhere() {
    let (fake, mut bridge) = machine(&["nvme", "edu"]);
    for slot in [0, 1] {
        let _ = bridge.write(&fake, at(slot, 0x10), 4, 0x1010_0000 + 0x10_0000 * slot as u32);
        let _ = bridge.write(&fake, at(slot, 4), 2, MEMORY_SPACE | BUS_MASTER);
    }
    let _ = bridge.write(&fake, at(0, 0x42), 2, 0x8000);
    let _ = bridge.write(&fake, at(1, 0x42), 2, 0x0001);
    let mapped: Vec<_> = bridge.mappings().map(|(at, to)| Effect::Unmap { at, to }).collect();
    assert_eq!(mapped.len(), 2);
    let mut unmapped = Vec::new();
    bridge.leave(&fake, |effect| unmapped.push(effect));
    assert_eq!((unmapped, bridge.mappings().count()), (mapped, 0));
    for slot in [0, 1] {
        assert_eq!(fake.read(page(slot).add(COMMAND), 2), INTERRUPT_DISABLE);
        assert_eq!(bridge.read(&fake, at(slot as u64, 0), 4), u32::MAX);
    }
    assert_eq!(fake.read(page(0).add(0x42), 2) & 0x8000, 0);
    assert_eq!(fake.read(page(1).add(0x42), 2) & 1, 0);
}

#[test]
fn bridges_and_functions_with_virtual_functions_are_refused() {
    let fake = Fake::default();
    fake.qemu(page(0), "pcie-root-port");
    let facts = Facts::read(8, page(0), &fake).unwrap();
    assert_eq!(VirtualFunction::new(facts, &[None; BAR_COUNT], false).err(), Some(Unfit::Bridge));
    fake.qemu(page(0), "nvme");
    fake.words(page(0), &[(EXTENDED, 0x0001_0010), (0x108, 1), (0x110, 3)]);
    let facts = Facts::read(8, page(0), &fake).unwrap();
    assert_eq!(facts.virtual_functions, Some(3));
    assert_eq!(VirtualFunction::new(facts, &[None; BAR_COUNT], false).err(), Some(Unfit::VirtualFunctions));
}
