//! A machine's configuration space in memory, for tests. A register keeps what is written to it, unless something else was
//! said of it: bits that cannot be written, bits that are cleared by writing ones, and resets that take time.

use super::ConfigSpace;
use super::regs::{BARS, DEVICE_CONTROL, FUNCTION_RESET, ID, NONE, POWER_CONTROL, POWER_STATE};
use super::topology::FUNCTION;
use crate::ids::Pa;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::vec::Vec;

/// Configuration space of QEMU's devices.
const QEMU: &str = include_str!("../../tests/data/qemu-pci.txt");

/// How a function is reset.
#[derive(Clone, Copy)]
pub struct Resets {
    /// The offset of its PCI Express capability, if it has Function Level Reset.
    pub express: Option<u64>,
    /// The offset of its Power Management capability, if the way from D3hot to D0 resets it.
    pub power: Option<u64>,
    /// How long it does not answer, in microseconds.
    pub takes_us: u64,
    /// No access may be made for this time after the begin of the reset, in microseconds.
    pub quiet_us: u64,
    /// What its ID reads as meanwhile.
    pub answer: u32,
}

struct Function {
    resets: Resets,
    /// The words after a reset.
    fresh: BTreeMap<u64, u32>,
    began: Option<u64>,
}

/// Words by address, and the writes in their order: address, bytes, value.
#[derive(Default)]
pub struct Fake {
    words: RefCell<BTreeMap<u64, u32>>,
    /// The bits that can be written; all, where there is no entry.
    writable: RefCell<BTreeMap<u64, u32>>,
    /// The bits that are cleared by writing ones.
    cleared: RefCell<BTreeMap<u64, u32>>,
    writes: RefCell<Vec<(u64, u8, u32)>>,
    reads: Cell<usize>,
    functions: RefCell<BTreeMap<u64, Function>>,
    /// The time in microseconds.
    pub now: Cell<u64>,
    /// The number of resets that functions have begun.
    pub resets: Cell<usize>,
    /// The number of accesses to functions at times when none may be made.
    pub early: Cell<usize>,
}

impl Fake {
    /// Makes a function with these words; all other words are 0.
    pub fn function(&self, page: Pa, fields: &[(u64, u32)]) {
        let mut words = self.words.borrow_mut();
        (0..1024).for_each(|n| _ = words.insert(page.0 + 4 * n, 0));
        words.insert(page.0, 0x0001_1d0f);
        drop(words);
        self.words(page, fields);
    }

    /// Changes words of a function.
    pub fn words(&self, page: Pa, fields: &[(u64, u32)]) {
        self.words.borrow_mut().extend(fields.iter().map(|&(at, value)| (page.0 + at, value)));
    }

    /// Makes one of QEMU's devices, by its name. Its BARs have the sizes that QEMU's have, and its IDs cannot be written.
    pub fn qemu(&self, page: Pa, name: &str) {
        let start = std::format!("[{name}]\n");
        let text = QEMU.split_once(&start).expect("the device is in the file").1;
        self.function(page, &[]);
        let number = |text: &str| u32::from_str_radix(text, 16).unwrap();
        for line in text.lines().take_while(|line| !line.is_empty()) {
            let (at, values) = line.split_once(": ").unwrap();
            let values: Vec<u32> = values.split(' ').map(number).collect();
            match at {
                "bars" => values.iter().zip(0..).for_each(|(&mask, n)| self.bar_register(page, n, mask)),
                "ones" => (values[0].into()..FUNCTION).step_by(4).for_each(|at| self.words(page, &[(at, u32::MAX)])),
                at => values.iter().zip(0..).for_each(|(&word, n)| {
                    self.words(page, &[(u64::from(number(at)) + 4 * n, word)]);
                }),
            }
        }
        self.fix(page, ID, 0);
    }

    /// Makes a BAR's register read `mask` after ones are written to it.
    pub fn bar_register(&self, page: Pa, index: u64, mask: u32) {
        let flags = if mask & 1 == 1 { 3 } else { 0xf };
        let at = BARS + 4 * index;
        // The upper half of a 64-bit BAR has no flags.
        let flags = if mask == u32::MAX { 0 } else { flags };
        self.words(page, &[(at, mask & flags)]);
        self.fix(page, at, mask & !flags);
    }

    /// Only the bits `writable` of a word can be written.
    pub fn fix(&self, page: Pa, at: u64, writable: u32) {
        self.writable.borrow_mut().insert(page.0 + at, writable);
    }

    /// The bits `bits` of a word are cleared by writing ones, and cannot be written else.
    pub fn clears(&self, page: Pa, at: u64, bits: u32) {
        self.cleared.borrow_mut().insert(page.0 + at, bits);
    }

    /// The function can be reset from now on. Then it is as it is now.
    pub fn can_reset(&self, page: Pa, resets: Resets) {
        let range = page.0..page.0 + FUNCTION;
        let fresh = self.words.borrow().range(range).map(|(&at, &word)| (at, word)).collect();
        self.functions.borrow_mut().insert(page.0, Function { resets, fresh, began: None });
    }

    /// The writes since the last time.
    pub fn take_writes(&self) -> Vec<(u64, u8, u32)> {
        self.writes.take()
    }

    /// The number of reads since the last time.
    pub fn take_reads(&self) -> usize {
        self.reads.take()
    }

    /// What the function answers instead of its registers, if it is being reset.
    fn away(&self, at: u64) -> Option<u32> {
        let mut functions = self.functions.borrow_mut();
        let function = functions.get_mut(&(at & !(FUNCTION - 1)))?;
        let since = self.now.get() - function.began?;
        if since < function.resets.quiet_us {
            self.early.set(self.early.get() + 1);
        }
        if since < function.resets.takes_us {
            return Some(if at & (FUNCTION - 1) < 4 { function.resets.answer } else { NONE });
        }
        function.began = None;
        None
    }

    /// Begins a reset, if the write of a word that has changed from `old` to `new` does.
    fn reset(&self, at: u64, old: u32, new: u32) {
        let page = at & !(FUNCTION - 1);
        let mut functions = self.functions.borrow_mut();
        let Some(function) = functions.get_mut(&page) else { return };
        let is = |capability: Option<u64>, register: u64| capability.is_some_and(|start| page + start + register == at);
        let of_function = is(function.resets.express, DEVICE_CONTROL) && new & FUNCTION_RESET != 0;
        let of_power = is(function.resets.power, POWER_CONTROL) && old & POWER_STATE == 3 && new & POWER_STATE == 0;
        if of_function || of_power {
            function.began = Some(self.now.get());
            self.resets.set(self.resets.get() + 1);
            self.words.borrow_mut().extend(function.fresh.iter().map(|(&at, &word)| (at, word)));
        }
    }
}

fn mask(bytes: u8) -> u32 {
    u32::MAX >> (32 - 8 * u32::from(bytes))
}

impl ConfigSpace for Fake {
    fn read(&self, at: Pa, bytes: u8) -> u32 {
        assert!(matches!(bytes, 1 | 2 | 4) && at.0.is_multiple_of(bytes.into()));
        self.reads.set(self.reads.get() + 1);
        let word = self.words.borrow().get(&(at.0 & !3)).copied().unwrap_or(u32::MAX);
        let word = self.away(at.0).unwrap_or(word);
        word >> (8 * (at.0 & 3)) & mask(bytes)
    }

    fn write(&self, at: Pa, bytes: u8, value: u32) {
        assert!(matches!(bytes, 1 | 2 | 4) && at.0.is_multiple_of(bytes.into()));
        self.writes.borrow_mut().push((at.0, bytes, value));
        if self.away(at.0).is_some() {
            return;
        }
        let word_at = at.0 & !3;
        let shift = 8 * (at.0 & 3);
        let written = mask(bytes) << shift;
        let cleared = self.cleared.borrow().get(&word_at).copied().unwrap_or(0);
        let writable = written & self.writable.borrow().get(&word_at).copied().unwrap_or(u32::MAX) & !cleared;
        let Some(old) = self.words.borrow().get(&word_at).copied() else { return };
        let value = value << shift;
        let new = (old & !writable | value & writable) & !(value & written & cleared);
        self.words.borrow_mut().insert(word_at, new);
        self.reset(word_at, old, new);
    }
}
