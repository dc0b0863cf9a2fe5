//! The configuration space that a domU sees of its PCI functions. Whatever it reads and writes there, and whatever the
//! functions are:
//!
//! * the function keeps all bits but the few that a guest may change, and decodes its memory and nothing else;
//! * a BAR is mapped where its register says, while memory is enabled, within a window, and over no other BAR; and one
//!   that could be mapped is, once it has been written;
//! * the chain of capabilities ends and has nothing in it that leads out of the domain;
//! * a function that is being reset answers nothing and is mapped nowhere, and nothing is written to it.
//!
//! The functions are made from the first bytes. Some are damaged then, so that they may make no sense.
//!
//! `cargo +nightly fuzz run pci_config -- -max_total_time=60`
#![cfg_attr(fuzzing, no_main)]

use doorward::ids::Pa;
use doorward::pci::ConfigSpace;
use doorward::pci::function::{Facts, Space};
use doorward::pci::host_bridge::{Effect, HostBridge};
use doorward::pci::virt::VirtualFunction;
use doorward::util::range::Range;
use std::cell::{Cell, RefCell};
use std::vec::Vec;

#[path = "../input.rs"]
mod input;
use input::Input;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

const PAGES: [u64; 2] = [0x40_1000_8000, 0x40_1001_0000];
const WINDOWS: [Range; 2] = [Range::new(Pa(0x1000_0000), 0x100_0000), Range::new(Pa(0x80_0000_0000), 0x100_0000)];
/// The BARs of function `n` are from `n + 1 << PLACES` on.
const PLACES: u32 = 44;
/// No BAR is larger.
const LARGEST: u64 = 1 << 40;

/// A function of the machine: its registers, the bits of them that can be written, and those that ones clear.
struct Function {
    words: Vec<u32>,
    writable: Vec<u32>,
    cleared: Vec<u32>,
}

struct Machine {
    functions: [RefCell<Function>; 2],
    accesses: Cell<usize>,
}

impl Machine {
    fn at(&self, at: Pa) -> (&RefCell<Function>, usize, u64) {
        let number =
            PAGES.iter().position(|page| (*page..page + 0x1000).contains(&at.0)).expect("in a function's page");
        (&self.functions[number], (at.0 % 0x1000 / 4) as usize, 8 * (at.0 % 4))
    }
}

impl ConfigSpace for Machine {
    fn read(&self, at: Pa, bytes: u8) -> u32 {
        assert!(matches!(bytes, 1 | 2 | 4) && at.0.is_multiple_of(bytes.into()));
        self.accesses.set(self.accesses.get() + 1);
        let (function, word, shift) = self.at(at);
        function.borrow().words[word] >> shift & (u64::from(u32::MAX) >> (32 - 8 * bytes)) as u32
    }

    fn write(&self, at: Pa, bytes: u8, value: u32) {
        assert!(matches!(bytes, 1 | 2 | 4) && at.0.is_multiple_of(bytes.into()));
        self.accesses.set(self.accesses.get() + 1);
        let (function, word, shift) = self.at(at);
        let function = &mut *function.borrow_mut();
        let written = ((u64::from(u32::MAX) >> (32 - 8 * bytes)) as u32) << shift;
        let (value, cleared) = (value << shift, function.cleared[word]);
        let kept = !(written & function.writable[word]) | cleared;
        function.words[word] = (function.words[word] & kept | value & !kept) & !(value & written & cleared);
    }
}

/// A function with BARs, and capabilities at offsets, as the input says.
fn function(input: &mut Input) -> Function {
    let mut made =
        Function { words: std::vec![0; 1024], writable: std::vec![u32::MAX; 1024], cleared: std::vec![0; 1024] };
    let words = &mut made.words;
    words[0] = 0x5678_1af4;
    words[2] = 0x0108_0201;
    words[11] = 0x1100_1af4;
    (made.writable[1], made.cleared[1]) = (0xffff, 0xf900_0000);
    words[1] = 0xf910_0000;
    let mut table = None;
    let mut index = 0;
    while index < 6 {
        let (kind, size) = (input.byte(), 1u64 << (4 + input.byte() % 18));
        let register = 4 + index;
        let bar = (kind & 8) as u32;
        match kind % 4 {
            0 => made.writable[register] = 0,
            1 => (words[register], made.writable[register]) = (1, 0xff00),
            2 => (words[register], made.writable[register]) = (bar, size.wrapping_neg() as u32),
            _ if index < 5 => {
                let size = if kind & 16 != 0 { size << 20 } else { size };
                (words[register], made.writable[register]) = (bar | 4, size.wrapping_neg() as u32 & !0xf);
                made.writable[register + 1] = (size.wrapping_neg() >> 32) as u32;
            }
            _ => made.writable[register] = 0,
        }
        if kind % 4 >= 2 && index < 5 && size >= 0x40 {
            table = Some(index as u32);
        }
        index += if kind % 4 == 3 && index < 5 { 2 } else { 1 };
    }
    let (mut at, mut link) = (0x40usize, 13);
    for _ in 0..input.byte() % 8 {
        let (kind, flags) = (input.byte(), u32::from(input.half()));
        let word = at / 4;
        let length = match kind % 6 {
            0 => {
                words[word] = 0xfff2_0001 & !(u32::from(kind & 64) << 18);
                words[word + 1] = 0x8008 & flags;
                8
            }
            1 => {
                words[word] = (0x0180 & flags | flags >> 8 & 0xe) << 16 | 0x05;
                made.writable[word] = 0x0471_0000;
                0x18
            }
            2 if table.is_some() => {
                words[word] = 0x0000_0011;
                words[word + 1] = table.unwrap_or(0);
                words[word + 2] = 0x20 | table.unwrap_or(0);
                made.writable[word] = 0xc000_0000;
                0x0c
            }
            3 => {
                words[word] = (flags & 0xf3 | 1) << 16 | 0x10;
                words[word + 1] = u32::from(kind) << 24 | 0x8fff;
                words[word + 2] = 0x0030_2810;
                (made.writable[word + 2], made.cleared[word + 2]) = (0xffff, 0x000f_0000);
                0x3c
            }
            // Vendor-specific, and one that is not known.
            4 => {
                words[word] = 0x0010_0009;
                0x10
            }
            _ => {
                words[word] = flags << 16 | 0x7f;
                4
            }
        };
        // The pointer to it.
        words[link] |= (at as u32) << if link == 13 { 0 } else { 8 };
        link = word;
        at += length;
        if at > 0xb0 {
            break;
        }
    }
    words[0x100 / 4] = 0x1001_000d;
    for _ in 0..if input.byte() & 3 == 0 { input.byte() % 16 } else { 0 } {
        let place = usize::from(input.byte() % 62 + 2);
        words[place] = input.word() as u32;
        made.writable[place] = input.word() as u32;
    }
    made
}

/// The bits of each word that a guest may change in a function.
fn allowed(facts: &Facts) -> Vec<u32> {
    let mut bits = std::vec![0; 1024];
    let mut allow = |at: u64, allowed: u32| bits[(at / 4) as usize] |= allowed;
    allow(4, 0xf900_0004);
    if let Some(msi) = facts.msi {
        allow(msi.at, 0x0071_0000);
        allow(msi.at + 4, 0xffff_fffc);
        let data = msi.at + if msi.wide { 0xc } else { 8 };
        if msi.wide {
            allow(msi.at + 8, u32::MAX);
        }
        allow(data, 0xffff);
        if msi.masks {
            allow(data + 4, u32::MAX);
        }
    }
    if let Some(msix) = facts.msix {
        allow(msix.at, 0xc000_0000);
    }
    if let Some(express) = facts.express {
        // Error messages may be turned off.
        allow(express.at + 8, 0x000f_781f);
    }
    bits
}

struct World {
    machine: Machine,
    facts: Vec<Facts>,
    allowed: Vec<Vec<u32>>,
    bridge: HostBridge,
    /// What stage 2 has: guest address, size, physical address.
    mapped: Vec<(Range, Range)>,
    away: Vec<bool>,
    resettable: Vec<bool>,
}

/// Performs a sequence of accesses.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let functions = [RefCell::new(function(&mut input)), RefCell::new(function(&mut input))];
    let Some(mut world) = World::new(Machine { functions, accesses: Cell::new(0) }, input.byte()) else { return };
    while !input.0.is_empty() {
        world.act(&mut input);
        world.check();
    }
}

impl World {
    fn new(machine: Machine, flags: u8) -> Option<World> {
        let mut facts: Vec<Facts> = Vec::new();
        let mut slots = Vec::new();
        let mut resettable = Vec::new();
        for (number, page) in PAGES.into_iter().enumerate() {
            let before = machine.functions[number].borrow().words.clone();
            let found = Facts::read(8, Pa(page), &machine);
            assert!(before == machine.functions[number].borrow().words, "reading changes nothing");
            let mut found = found.ok()?;
            let sized = found.size_bars(&machine);
            assert!(machine.accesses.take() < 4000);
            sized.ok()?;
            let mut next = (number as u64 + 1) << PLACES;
            let places = found.bars.map(|bar| {
                let bar = bar.filter(|bar| bar.space != Space::Io && bar.size <= LARGEST)?;
                let size = bar.size.max(0x1000);
                let at = next.next_multiple_of(size);
                next = at + size;
                Some(Range::new(Pa(at), size))
            });
            let can_reset = flags >> number & 1 == 0;
            slots.push(VirtualFunction::new(found.clone(), &places, can_reset).ok()?);
            resettable.push(can_reset);
            facts.push(found);
        }
        let allowed = facts.iter().map(allowed).collect();
        let bridge = HostBridge::new(&WINDOWS, slots);
        Some(World { machine, facts, allowed, bridge, mapped: Vec::new(), away: std::vec![true; 2], resettable })
    }

    fn act(&mut self, input: &mut Input) {
        let act = input.byte();
        let slot = usize::from(act & 1);
        let base = (slot as u64 + 1) << 15;
        let bytes = [4, 2, 1, 4, 2, 1, 4, 4, 3, 0, 8][usize::from(input.byte() % 11)];
        let nearby = u64::from(input.byte() & 3) * u64::from(bytes != 4);
        match act >> 1 & 7 {
            0 => {
                let offset = u64::from(input.half()) << 4 | u64::from(input.byte() & 15);
                let value = self.bridge.read(&self.machine, offset, bytes);
                let end = 8 * u32::from(bytes);
                assert!(end == 0 || value.checked_shr(end).unwrap_or(0) == 0 || end > 32);
            }
            1 => {
                self.bridge.returns(&self.machine, slot);
                self.away[slot] = false;
            }
            2 if input.byte() == 0 => {
                let mapped = &mut self.mapped;
                self.bridge.leave(&self.machine, |effect| apply(mapped, effect));
                self.away.fill(true);
            }
            2 => self.write(base | 4, 2, u32::from(input.byte()) ^ 6),
            3 => {
                let register = u64::from(input.byte() % 6) * 4 + 0x10;
                self.write(base | register, 4, 0x1000_0000 + u32::from(input.byte()) * 0x8000);
            }
            4 => {
                let value = match input.byte() & 3 {
                    0 => 0x80,
                    1 => 0,
                    2 => u32::MAX,
                    _ => input.word() as u32,
                };
                let register = u64::from(input.byte() % 6) * 4 + 0x10;
                self.write(base + register + nearby, bytes, value);
            }
            5 | 6 => {
                // A register of a capability.
                let mut at = u64::from(self.bridge.read(&self.machine, base | 0x34, 1));
                for _ in 0..input.byte() % 4 {
                    at = u64::from(self.bridge.read(&self.machine, base + at + 1, 1));
                }
                let value = match input.byte() & 3 {
                    0 => u32::MAX,
                    1 => 1 << (input.byte() & 31),
                    2 => 0x8000,
                    _ => input.word() as u32,
                };
                self.write(base + at + u64::from(input.byte() % 7) * 4 + nearby, bytes, value);
            }
            _ => {
                let offset = u64::from(input.half()) << 4 | u64::from(input.byte() & 15);
                let offset = if act & 16 == 0 { offset } else { base | offset & 0xff };
                self.write(offset, bytes, input.word() as u32);
            }
        }
    }

    fn write(&mut self, offset: u64, bytes: u8, value: u32) {
        let before: Vec<Vec<u32>> = self.machine.functions.iter().map(|f| f.borrow().words.clone()).collect();
        let effects = self.bridge.write(&self.machine, offset, bytes, value);
        let was_reset = effects.iter().find_map(|effect| match effect {
            Effect::Reset { slot } => Some(*slot),
            _ => None,
        });
        effects.into_iter().for_each(|effect| apply(&mut self.mapped, effect));
        if let Some(slot) = was_reset {
            assert!(!self.away[slot] && self.resettable[slot]);
            self.away[slot] = true;
        }
        for (number, before) in before.iter().enumerate() {
            let after = &self.machine.functions[number].borrow().words;
            for (word, (&old, &new)) in before.iter().zip(after).enumerate() {
                let changed = old ^ new;
                assert!(changed & !self.allowed[number][word] == 0, "{:#x}: {old:#x} to {new:#x}", 4 * word);
                assert!(changed == 0 || !self.away[number], "a write reached a function that is being reset");
            }
        }
        if matches!(bytes, 1 | 2 | 4) && offset.is_multiple_of(bytes.into()) && offset < 0x100_0000 {
            let slot = (offset >> 15).wrapping_sub(1) as usize;
            let places_bars = matches!(offset & 0x7fff, 4 | 5 | 0x10..0x28);
            if slot < 2 && places_bars && !self.away[slot] {
                self.check_complete(slot);
            }
        }
    }

    /// A function's BAR by its registers, as the guest reads them, if it decodes memory.
    fn bar(&self, slot: usize, index: usize) -> Option<u64> {
        let base = (slot as u64 + 1) << 15;
        let read = |at: u64| self.bridge.read(&self.machine, base | at, 4);
        if self.away[slot] || read(4) & 2 == 0 {
            return None;
        }
        let low = read(0x10 + 4 * index as u64);
        let high = if low & 6 == 4 { read(0x14 + 4 * index as u64) } else { 0 };
        Some(u64::from(high) << 32 | u64::from(low & !0xf))
    }

    /// Whether the range is in a window.
    fn is_within(range: Range) -> bool {
        WINDOWS.iter().any(|window| window.covers(range))
    }

    /// A BAR of the function whose BARs or Command were written is mapped, or it cannot be.
    fn check_complete(&self, slot: usize) {
        for (index, bar) in self.facts[slot].memory_bars() {
            let Some(at) = self.bar(slot, index) else { continue };
            let range = Range::new(Pa(at), bar.size.max(0x1000));
            let is_mapped = self.mapped.iter().any(|(at, to)| *at == range && slot_of(*to) == slot);
            let is_taken = self.mapped.iter().any(|(other, _)| other.overlaps(range));
            assert!(is_mapped || is_taken || !Self::is_within(range), "BAR {index} of {slot} at {range}");
        }
    }

    fn check(&mut self) {
        let mut listed: Vec<(Range, Range)> =
            self.bridge.mappings().map(|(at, to)| (Range::new(Pa(at.0), to.size), to)).collect();
        listed.sort();
        self.mapped.sort();
        assert_eq!(listed, self.mapped);
        for (slot, facts) in self.facts.iter().enumerate() {
            let words = &self.machine.functions[slot].borrow().words;
            let base = (slot as u64 + 1) << 15;
            let read = |at: u64| self.bridge.read(&self.machine, base | at, 4);
            let command = words[1] & 0xffff;
            if self.away[slot] {
                assert!(read(0) == u32::MAX && read(0x40) == u32::MAX);
                continue;
            }
            assert_eq!(command & !4, 0x402);
            assert_eq!(command & 4, read(4) & 4);
            assert_eq!(read(0), facts.id);
            assert_eq!(read(0x100) | read(0xffc) | read(0x30) | read(0x3c) & 0xff00, 0);
            // The chain.
            let mut at = u64::from(read(0x34));
            for turn in 0.. {
                if at == 0 {
                    break;
                }
                assert!(turn < 4 && at >= 0x40 && at & 3 == 0);
                let head = read(at);
                assert!(matches!(head & 0xff, 0x01 | 0x05 | 0x10 | 0x11));
                at = u64::from(head >> 8 & 0xff);
            }
        }
        for (number, (at, to)) in self.mapped.iter().enumerate() {
            assert!(at.base.0.is_multiple_of(0x1000) && Self::is_within(*at), "{at}");
            assert!(!self.mapped[..number].iter().any(|(other, _)| other.overlaps(*at)));
            let slot = slot_of(*to);
            let mut bars = self.facts[slot].memory_bars();
            assert!(bars.any(|(index, _)| self.bar(slot, index) == Some(at.base.0)));
        }
    }
}

fn slot_of(place: Range) -> usize {
    (place.base.0 >> PLACES) as usize - 1
}

fn apply(mapped: &mut Vec<(Range, Range)>, effect: Effect) {
    match effect {
        Effect::Map { at, to, .. } => {
            assert!(!mapped.iter().any(|(_, other)| other.overlaps(to)), "it is mapped once");
            mapped.push((Range::new(Pa(at.0), to.size), to));
        }
        Effect::Unmap { at, to } => {
            let found = mapped.iter().position(|known| *known == (Range::new(Pa(at.0), to.size), to));
            mapped.remove(found.expect("it is mapped"));
        }
        Effect::Reset { .. } => {}
    }
}
