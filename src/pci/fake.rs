//! A machine's configuration space in memory, for tests. Every register keeps what is written to it.

use super::ConfigSpace;
use crate::ids::Pa;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::vec::Vec;

/// Words by address, and the writes in their order: address, bytes, value.
#[derive(Default)]
pub struct Fake {
    words: RefCell<BTreeMap<u64, u32>>,
    writes: RefCell<Vec<(u64, u8, u32)>>,
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

    /// The writes since the last time.
    pub fn take_writes(&self) -> Vec<(u64, u8, u32)> {
        self.writes.take()
    }
}

fn mask(bytes: u8) -> u32 {
    u32::MAX >> (32 - 8 * u32::from(bytes))
}

impl ConfigSpace for Fake {
    fn read(&self, at: Pa, bytes: u8) -> u32 {
        assert!(matches!(bytes, 1 | 2 | 4) && at.0.is_multiple_of(bytes.into()));
        let word = self.words.borrow().get(&(at.0 & !3)).copied().unwrap_or(u32::MAX);
        word >> (8 * (at.0 & 3)) & mask(bytes)
    }

    fn write(&self, at: Pa, bytes: u8, value: u32) {
        assert!(matches!(bytes, 1 | 2 | 4) && at.0.is_multiple_of(bytes.into()));
        self.writes.borrow_mut().push((at.0, bytes, value));
        if let Some(word) = self.words.borrow_mut().get_mut(&(at.0 & !3)) {
            let shift = 8 * (at.0 & 3);
            *word = *word & !(mask(bytes) << shift) | (value & mask(bytes)) << shift;
        }
    }
}
