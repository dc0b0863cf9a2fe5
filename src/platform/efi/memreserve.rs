//! Reservations that a Linux has left for the kernel after it: the configuration table LINUX_EFI_MEMRESERVE_TABLE.
//!
//! Linux reserves there what hardware goes on using after it, such as the LPI tables of redistributors whose LPIs cannot
//! be disabled. The table is the first of a chain of lists. A list has a header of 16 bytes, and entries of 16 bytes:
//!
//! | offset | size | content |
//! |---|---|---|
//! | 0 | 4 | number of entries that there is room for |
//! | 4 | 4 | number of entries that are used |
//! | 8 | 8 | physical address of the next list, 0 for none |
//! | 16 + 16n | 8 | physical address of a reserved range |
//! | 24 + 16n | 8 | its size in bytes |
//!
//! The lists are untrusted: a list that cannot be read, or a chain without an end, is an error. To go on without the
//! reservations would be to give away memory that hardware writes to.

use crate::ids::Pa;
use crate::platform::acpi::PhysicalMemory;
use crate::platform::{Machine, MachineError, Part};
use crate::util::range::Range;
use r_efi::efi::Guid;

/// The GUID of the configuration table.
pub const LINUX_EFI_MEMRESERVE_TABLE: Guid =
    Guid::from_fields(0x888e_b0c6, 0x8ede, 0x4ff5, 0xa8, 0xf0, &[0x9a, 0xee, 0x5c, 0xb9, 0x77, 0xc2]);

const HEADER: usize = 16;
const ENTRY: usize = 16;

/// The largest number of lists. Linux makes one for each 255 entries, after a first one without entries.
const LISTS: usize = 64;
/// The largest number of entries in a list.
const ENTRIES: u32 = 4096;

/// Adds the reservations of the chain that starts at `first` to those of the machine from the index `kept` on, with
/// which they are merged where they touch.
///
/// # Errors
///
/// [`MachineError::BadReservations`] if a list is damaged or the chain does not end, and [`MachineError::TooMany`] if
/// there are too many reservations even after merging.
pub fn add_memreserve(
    machine: &mut Machine,
    kept: usize,
    first: Pa,
    memory: &impl PhysicalMemory,
) -> Result<(), MachineError> {
    let mut at = first;
    for _ in 0..LISTS {
        if at.0 == 0 {
            return Ok(());
        }
        let bad = |problem| MachineError::BadReservations { at, problem };
        let header = memory.bytes(at, HEADER).ok_or(bad("it cannot be read"))?;
        let (room, used, next) = (word(header, 0), word(header, 4), Pa(address(header, 8)));
        if used > room || used > ENTRIES {
            return Err(bad("its number of entries is wrong"));
        }
        for index in 0..u64::from(used) {
            let place = at.0.checked_add(HEADER as u64 + index * ENTRY as u64);
            let entry = place.and_then(|place| memory.bytes(Pa(place), ENTRY)).ok_or(bad("it cannot be read"))?;
            let (base, size) = (address(entry, 0), address(entry, 8));
            if base.checked_add(size).is_none() {
                return Err(bad("an entry exceeds the address space"));
            }
            add(machine, kept, Range::new(Pa(base), size))?;
        }
        at = next;
    }
    Err(MachineError::BadReservations { at: first, problem: "the lists do not end" })
}

/// Adds one range, or extends those that it touches.
fn add(machine: &mut Machine, kept: usize, range: Range) -> Result<(), MachineError> {
    if range.is_empty() {
        return Ok(());
    }
    let limit = machine.reserved.capacity();
    let mut all = range;
    let mut index = kept;
    while let Some(&known) = machine.reserved.get(index) {
        if known.base <= all.end() && all.base <= known.end() {
            all = Range::between(known.base.min(all.base), known.end().max(all.end()));
            machine.reserved.swap_remove(index);
            // What was looked at before may touch the larger range.
            index = kept;
        } else {
            index += 1;
        }
    }
    machine.reserved.try_push(all).map_err(|_| MachineError::TooMany { part: Part::Reserved, limit })
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn address(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::vec::Vec;

    const BASE: u64 = 0x4800_0000;
    const PAGE: u64 = 0x1000;

    /// Memory from [`BASE`] on.
    struct Memory(Vec<u8>);

    impl PhysicalMemory for Memory {
        fn bytes(&self, at: Pa, length: usize) -> Option<&[u8]> {
            let offset = usize::try_from(at.0.checked_sub(BASE)?).ok()?;
            self.0.get(offset..offset.checked_add(length)?)
        }
    }

    /// A list in a page of its own: room, used, next list, entries.
    type List<'a> = (u32, u32, u64, &'a [(u64, u64)]);

    /// One page for each list.
    fn memory(lists: &[List<'_>]) -> Memory {
        let mut bytes = Vec::new();
        for &(room, used, next, entries) in lists {
            bytes.resize(bytes.len().next_multiple_of(PAGE as usize), 0);
            bytes.extend([room.to_le_bytes(), used.to_le_bytes()].concat());
            bytes.extend(next.to_le_bytes());
            entries.iter().for_each(|(base, size)| bytes.extend([base.to_le_bytes(), size.to_le_bytes()].concat()));
        }
        bytes.resize(bytes.len().next_multiple_of(PAGE as usize), 0);
        Memory(bytes)
    }

    /// The reservations of a machine that has `known` already.
    fn read(lists: &[List<'_>], known: &[Range], kept: usize) -> Result<Vec<Range>, MachineError> {
        let mut machine = Box::new(Machine::new());
        machine.reserved.extend(known.iter().copied());
        add_memreserve(&mut machine, kept, Pa(BASE), &memory(lists))?;
        Ok(machine.reserved.to_vec())
    }

    fn range(base: u64, size: u64) -> Range {
        Range::new(Pa(base), size)
    }

    fn bad(at: u64, problem: &'static str) -> MachineError {
        MachineError::BadReservations { at: Pa(at), problem }
    }

    #[test]
    fn the_guid_is_stored_as_linux_writes_it() {
        let bytes = [0xc6, 0xb0, 0x8e, 0x88, 0xde, 0x8e, 0xf5, 0x4f, 0xa8, 0xf0, 0x9a, 0xee, 0x5c, 0xb9, 0x77, 0xc2];
        assert_eq!(LINUX_EFI_MEMRESERVE_TABLE.as_bytes(), &bytes);
    }

    #[test]
    fn the_lists_of_a_chain_are_read_as_far_as_they_are_used() {
        let lists: &[List<'_>] = &[
            (0, 0, BASE + PAGE, &[]),
            (255, 2, BASE + 2 * PAGE, &[(0x5000_0000, 0x1_0000), (0x6000_0000, 0x1_0000), (0x7000_0000, 0x1_0000)]),
            (255, 1, 0, &[(0x8000_0000, 0x2_0000)]),
        ];
        let expected = [range(0x5000_0000, 0x1_0000), range(0x6000_0000, 0x1_0000), range(0x8000_0000, 0x2_0000)];
        assert_eq!(read(lists, &[], 0).unwrap(), expected);
        // A first list alone, as Linux's boot stub makes it.
        assert_eq!(read(&[(0, 0, 0, &[])], &[], 0).unwrap(), []);
    }

    #[test]
    fn ranges_that_touch_become_one_and_what_the_description_reserves_stays_as_it_is() {
        // Pending tables that were allocated one after another, in any order, and an empty range.
        let entries: Vec<(u64, u64)> =
            (0..200).map(|n| (0x5000_0000 + (n * 77 % 200) * 0x1_0000, 0x1_0000)).chain([(0x9000_0000, 0)]).collect();
        let known = [range(0x4fff_0000, 0x1_0000), range(0x50c8_0000, 0x1000)];
        let all = read(&[(255, 201, 0, &entries)], &known, 1).unwrap();
        assert_eq!(all, [known[0], range(0x5000_0000, 0xc8_1000)]);
        // A second time nothing changes.
        assert_eq!(read(&[(255, 201, 0, &entries)], &all, 1).unwrap(), all);
    }

    #[test]
    fn damaged_lists_are_refused() {
        assert_eq!(read(&[(1, 2, 0, &[(0, 1), (4, 1)])], &[], 0), Err(bad(BASE, "its number of entries is wrong")));
        assert_eq!(read(&[(u32::MAX, u32::MAX, 0, &[])], &[], 0), Err(bad(BASE, "its number of entries is wrong")));
        assert_eq!(read(&[(4096, 4096, 0, &[])], &[], 0), Err(bad(BASE, "it cannot be read")));
        for next in [1, BASE - 8, BASE + PAGE, u64::MAX, u64::MAX - 15] {
            assert_eq!(read(&[(0, 0, next, &[])], &[], 0), Err(bad(next, "it cannot be read")));
        }
        let beyond = read(&[(1, 1, 0, &[(u64::MAX, 1)])], &[], 0);
        assert_eq!(beyond, Err(bad(BASE, "an entry exceeds the address space")));
    }

    #[test]
    fn a_chain_without_an_end_is_refused() {
        let endless = Err(bad(BASE, "the lists do not end"));
        assert_eq!(read(&[(0, 0, BASE, &[])], &[], 0), endless);
        assert_eq!(read(&[(1, 1, BASE + PAGE, &[(1 << 30, 1)]), (0, 0, BASE, &[])], &[], 0), endless);
        let long: Vec<List<'_>> =
            (1..=100).map(|n| (0, 0, if n < 100 { BASE + n * PAGE } else { 0 }, &[][..])).collect();
        assert_eq!(read(&long, &[], 0), endless);
    }

    #[test]
    fn more_reservations_than_there_is_room_for_are_refused() {
        let entries: Vec<(u64, u64)> = (0..257).map(|n| (0x5000_0000 + n * 0x2_0000, 0x1_0000)).collect();
        let too_many = MachineError::TooMany { part: Part::Reserved, limit: 256 };
        assert_eq!(read(&[(300, 257, 0, &entries)], &[], 0), Err(too_many));
        assert_eq!(read(&[(300, 256, 0, &entries)], &[], 0).unwrap().len(), 256);
    }
}
