//! The UEFI memory map, and its translation to the memory and reservations of a [`Machine`] (UEFI 2.10, 7.2 Memory
//! Allocation Services: GetMemoryMap).
//!
//! The code, data and registers of runtime services and the tables of ACPI are reserved. The memory of boot services and
//! of loaders is free.

use crate::ids::Pa;
use crate::platform::{Machine, MachineError, Part};
use crate::util::PAGE;
use crate::util::range::Range;
use arrayvec::ArrayVec;
use core::fmt;
use r_efi::efi;

/// The size in bytes of a descriptor of the specification's first version.
const DESCRIPTOR: usize = 40;

/// A descriptor of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The memory type (EFI_MEMORY_TYPE).
    pub kind: u32,
    /// The physical addresses.
    pub range: Range,
    /// The attributes (EFI_MEMORY_ bits).
    pub attributes: u64,
}

/// The memory map as the firmware returned it.
#[derive(Clone, Copy, Debug)]
pub struct MemoryMap<'a> {
    bytes: &'a [u8],
    step: usize,
}

/// The error of a map with descriptors that are smaller than in the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadDescriptorSize;

impl fmt::Display for BadDescriptorSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UEFI memory map: descriptors have less than 40 bytes")
    }
}

impl<'a> MemoryMap<'a> {
    /// A map with a descriptor every `step` bytes.
    ///
    /// # Errors
    ///
    /// [`BadDescriptorSize`] if `step` is smaller than a descriptor.
    pub fn new(bytes: &'a [u8], step: usize) -> Result<MemoryMap<'a>, BadDescriptorSize> {
        if step < DESCRIPTOR { Err(BadDescriptorSize) } else { Ok(MemoryMap { bytes, step }) }
    }

    /// Returns the descriptors, in no particular order.
    pub fn iter(self) -> impl Iterator<Item = Descriptor> + 'a {
        self.bytes.chunks_exact(self.step).map(|bytes| {
            let word =
                |at: usize| bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes);
            #[allow(clippy::cast_possible_truncation, reason = "the type is the lower half of the first word")]
            let kind = word(0) as u32;
            let range = Range::new(Pa(word(8)), word(24).saturating_mul(PAGE));
            Descriptor { kind, range, attributes: word(32) }
        })
    }

    /// Returns the descriptor that covers `at`.
    #[must_use]
    pub fn find(self, at: Pa) -> Option<Descriptor> {
        self.iter().find(|descriptor| descriptor.range.contains(at))
    }

    /// Makes all RAM the machine's memory, and adds what the firmware keeps to the machine's reservations.
    ///
    /// # Errors
    ///
    /// [`MachineError::TooMany`] if the map is too fragmented even after merging.
    pub fn fill(self, machine: &mut Machine) -> Result<(), MachineError> {
        machine.memory.clear();
        self.merge(Descriptor::is_ram, &mut machine.memory, Part::Memory)?;
        machine.acpi_memory.clear();
        self.merge(Descriptor::is_acpi, &mut machine.acpi_memory, Part::Reserved)?;
        self.merge(Descriptor::is_kept, &mut machine.reserved, Part::Reserved)
    }

    /// Appends the descriptors that `wanted` accepts to `list`, sorted, and merged if adjacent.
    fn merge<const N: usize>(
        self,
        wanted: fn(&Descriptor) -> bool,
        list: &mut ArrayVec<Range, N>,
        part: Part,
    ) -> Result<(), MachineError> {
        let mut run = Range::default();
        let mut from = Pa(0);
        let too_many = MachineError::TooMany { part, limit: N };
        // Without a heap there is no room to sort, so each step searches for the next one.
        loop {
            let next = self
                .iter()
                .filter(|descriptor| {
                    wanted(descriptor) && descriptor.range.end() > from && !descriptor.range.is_empty()
                })
                .map(|descriptor| Range::between(descriptor.range.base.max(from), descriptor.range.end()))
                .min();
            match next {
                Some(next) if !run.is_empty() && next.base == run.end() => run = Range::between(run.base, next.end()),
                Some(next) => {
                    if !run.is_empty() {
                        list.try_push(run).map_err(|_| too_many)?;
                    }
                    run = next;
                }
                None => {
                    return if run.is_empty() { Ok(()) } else { list.try_push(run).map_err(|_| too_many) };
                }
            }
            from = run.end();
        }
    }
}

impl Descriptor {
    /// Whether it is RAM, free or in use.
    #[must_use]
    pub fn is_ram(&self) -> bool {
        let is_memory = matches!(
            self.kind,
            efi::LOADER_CODE
                | efi::LOADER_DATA
                | efi::BOOT_SERVICES_CODE
                | efi::BOOT_SERVICES_DATA
                | efi::CONVENTIONAL_MEMORY
                | efi::RUNTIME_SERVICES_CODE
                | efi::RUNTIME_SERVICES_DATA
                | efi::ACPI_RECLAIM_MEMORY
                | efi::ACPI_MEMORY_NVS
        );
        is_memory && self.attributes & efi::MEMORY_WB != 0
    }

    /// Whether it holds ACPI tables, or is reserved for what AML refers to.
    #[must_use]
    pub fn is_acpi(&self) -> bool {
        matches!(self.kind, efi::ACPI_RECLAIM_MEMORY | efi::ACPI_MEMORY_NVS)
    }

    /// Whether the firmware keeps it after ExitBootServices. It need not be RAM: the devices that runtime services use
    /// (flash, a clock) are the firmware's.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        let is_runtime = self.attributes & efi::MEMORY_RUNTIME != 0;
        is_runtime && self.kind == efi::MEMORY_MAPPED_IO
            || matches!(
                self.kind,
                efi::RESERVED_MEMORY_TYPE
                    | efi::RUNTIME_SERVICES_CODE
                    | efi::RUNTIME_SERVICES_DATA
                    | efi::UNUSABLE_MEMORY
                    | efi::ACPI_RECLAIM_MEMORY
                    | efi::ACPI_MEMORY_NVS
                    | efi::PAL_CODE
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const MIB: u64 = 1 << 20;

    fn map(step: usize, lines: &[(u32, u64, u64, u64)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &(kind, base, size, attributes) in lines {
            let mut line = std::vec![0xee; step];
            for (at, word) in [(0, kind.into()), (8, base), (16, 0), (24, size / PAGE), (32, attributes)] {
                line[at..at + 8].copy_from_slice(&u64::to_le_bytes(word));
            }
            bytes.extend(line);
        }
        bytes
    }

    fn range(base: u64, size: u64) -> Range {
        Range::new(Pa(base), size)
    }

    #[test]
    fn adjacent_descriptors_of_any_order_and_type_become_one_bank() {
        let bytes = map(
            48,
            &[
                (efi::BOOT_SERVICES_DATA, 0x5000_0000, 16 * MIB, 0xf),
                (efi::RUNTIME_SERVICES_DATA, 0x4ff0_0000, MIB, 0x8000_0000_0000_000f),
                (efi::CONVENTIONAL_MEMORY, 0x4000_0000, 255 * MIB, 0xf),
                (efi::ACPI_RECLAIM_MEMORY, 0x5100_0000, MIB, 0xf),
                (efi::MEMORY_MAPPED_IO, 0x0900_0000, MIB, 0x8000_0000_0000_0001),
                (efi::MEMORY_MAPPED_IO, 0x0a00_0000, MIB, 0x0000_0000_0000_0001),
                (efi::ACPI_MEMORY_NVS, 0x5110_0000, MIB, 0xf),
                (efi::CONVENTIONAL_MEMORY, 0x8_0000_0000, 64 * MIB, 0xf),
            ],
        );
        let mut machine = Machine::new();
        MemoryMap::new(&bytes, 48).unwrap().fill(&mut machine).unwrap();
        assert_eq!(machine.memory[..], [range(0x4000_0000, 274 * MIB), range(0x8_0000_0000, 64 * MIB)]);
        assert_eq!(
            machine.reserved[..],
            [range(0x0900_0000, MIB), range(0x4ff0_0000, MIB), range(0x5100_0000, 2 * MIB)]
        );
        assert_eq!(machine.acpi_memory[..], [range(0x5100_0000, 2 * MIB)]);
    }

    #[test]
    fn only_write_back_memory_is_ram() {
        let bytes = map(
            40,
            &[
                (efi::CONVENTIONAL_MEMORY, 0, MIB, efi::MEMORY_UC),
                (efi::RESERVED_MEMORY_TYPE, 0x10_0000, MIB, 0xf),
                (efi::PERSISTENT_MEMORY, 0x20_0000, MIB, 0xf),
                (efi::UNUSABLE_MEMORY, 0x30_0000, MIB, 0xf),
                (efi::CONVENTIONAL_MEMORY, 0x40_0000, 0, 0xf),
            ],
        );
        let mut machine = Machine::new();
        machine.reserved.push(range(0x9000_0000, 0x1000));
        MemoryMap::new(&bytes, 40).unwrap().fill(&mut machine).unwrap();
        assert!(machine.memory.is_empty());
        assert_eq!(machine.reserved[..], [range(0x9000_0000, 0x1000), range(0x10_0000, MIB), range(0x30_0000, MIB)]);
    }

    #[test]
    fn merging_overlapping_or_wrapping_descriptors_terminates() {
        let bytes = map(
            40,
            &[
                (efi::LOADER_DATA, 0x1000, 0x3000, 0xf),
                (efi::LOADER_CODE, 0x2000, 0x4000, 0xf),
                (efi::LOADER_CODE, 0x2000, 0x1000, 0xf),
                (efi::LOADER_CODE, u64::MAX - 0xfff, u64::MAX, 0xf),
            ],
        );
        let mut machine = Machine::new();
        MemoryMap::new(&bytes, 40).unwrap().fill(&mut machine).unwrap();
        assert_eq!(machine.memory[0], range(0x1000, 0x5000));
        assert_eq!(machine.memory.len(), 2);
    }

    #[test]
    fn a_map_that_is_too_fragmented_is_refused() {
        let lines: Vec<_> = (0..65).map(|n| (efi::CONVENTIONAL_MEMORY, n * 2 * MIB, MIB, 0xf)).collect();
        let mut machine = Machine::new();
        let error = MemoryMap::new(&map(48, &lines), 48).unwrap().fill(&mut machine).unwrap_err();
        assert_eq!(error, MachineError::TooMany { part: Part::Memory, limit: 64 });
    }

    #[test]
    fn find_returns_the_descriptor_of_an_address() {
        let bytes = map(48, &[(efi::LOADER_DATA, 0x1000, 0x3000, 0xf)]);
        let map = MemoryMap::new(&bytes, 48).unwrap();
        assert_eq!(map.find(Pa(0x3fff)).unwrap().kind, efi::LOADER_DATA);
        assert_eq!(map.find(Pa(0x4000)), None);
        assert_eq!(MemoryMap::new(&[], 39).unwrap_err(), BadDescriptorSize);
    }
}
