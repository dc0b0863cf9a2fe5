//! The reservations that a Linux has left: the reader neither panics nor loops on any input. What it accepts adds ranges that
//! are not empty, do not touch one another, and leave those alone that were there before; reading it again changes nothing.
//!
//! The input is memory: the first list is at its start.
//!
//! `cargo +nightly fuzz run efi_memreserve -- -max_total_time=60 -max_len=4096`
#![cfg_attr(fuzzing, no_main)]

use doorward::ids::Pa;
use doorward::platform::Machine;
use doorward::platform::acpi::PhysicalMemory;
use doorward::platform::efi::add_memreserve;
use doorward::util::range::Range;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|memory: &[u8]| run(memory));

/// Where the memory starts.
pub const BASE: u64 = 0x1000;

struct Memory<'a>(&'a [u8]);

impl PhysicalMemory for Memory<'_> {
    fn bytes(&self, at: Pa, length: usize) -> Option<&[u8]> {
        let offset = usize::try_from(at.0.checked_sub(BASE)?).ok()?;
        self.0.get(offset..offset.checked_add(length)?)
    }
}

/// Reads the lists.
pub fn run(memory: &[u8]) {
    let mut machine = Box::new(Machine::new());
    let described = Range::new(Pa(0x8000), 0x1000);
    machine.reserved.push(described);
    if let Err(error) = add_memreserve(&mut machine, 1, Pa(BASE), &Memory(memory)) {
        assert!(!error.to_string().is_empty());
        return;
    }
    let mut added = machine.reserved.to_vec();
    assert_eq!(added.remove(0), described);
    added.sort_unstable();
    assert!(added.iter().all(|range| !range.is_empty()));
    assert!(added.windows(2).all(|pair| pair[0].end() < pair[1].base));
    add_memreserve(&mut machine, 1, Pa(BASE), &Memory(memory)).unwrap();
    let mut again = machine.reserved[1..].to_vec();
    again.sort_unstable();
    assert_eq!(again, added);
}
