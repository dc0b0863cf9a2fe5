//! The readers of ACPI tables neither panic nor loop on any input, and a machine that they accept can be checked.
//!
//! The input has the format of `tests/data/*.acpi`. Checksums are corrected first, or hardly any input would pass them.
//!
//! `cargo +nightly fuzz run acpi fuzz/corpus/acpi tests/data -- -max_total_time=60 -max_len=16384`
#![cfg_attr(fuzzing, no_main)]

use doorward::ids::Pa;
use doorward::platform::Machine;
use doorward::platform::acpi::{PhysicalMemory, read_into};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|file: &[u8]| run(file));

struct Memory {
    rsdp: (Pa, Vec<u8>),
    tables: (Pa, Vec<u8>),
}

impl PhysicalMemory for Memory {
    fn bytes(&self, at: Pa, length: usize) -> Option<&[u8]> {
        [&self.rsdp, &self.tables].into_iter().find_map(|(base, bytes)| {
            let offset = usize::try_from(at.0.checked_sub(base.0)?).ok()?;
            bytes.get(offset..offset.checked_add(length)?)
        })
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)).wrapping_neg()
}

/// Corrects the checksums of tables that follow each other.
fn fix(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(head) = bytes.get(at..at + 36) {
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let Some(table) = bytes.get_mut(at..at.saturating_add(length)).filter(|_| length >= 36) else { return };
        table[9] = 0;
        table[9] = sum(table);
        at += length;
    }
}

/// Reads the tables of a file.
pub fn run(file: &[u8]) {
    if file.len() < 64 {
        return;
    }
    let address = |at: usize| Pa(u64::from_le_bytes(file[at..at + 8].try_into().unwrap()));
    let mut root = file[16..52].to_vec();
    root[8] = 0;
    root[8] = sum(&root[..20]);
    root[32] = 0;
    root[32] = sum(&root);
    let mut tables = file[64..].to_vec();
    fix(&mut tables);
    let memory = Memory { rsdp: (address(0), root), tables: (address(8), tables) };
    let mut machine = Box::new(Machine::new());
    match read_into(&mut machine, address(0), &memory) {
        Ok(()) => drop(machine.check()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
