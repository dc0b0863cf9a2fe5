//! The tables of EL2's stage 1: an identity map in which nothing is both writable and executable.
//!
//! EL2 builds two maps. The first has a few tables in the image and maps the image, the device tree and the early UART,
//! so that the rest of boot runs with caches, atomics and unaligned loads (`boot::early`). When the machine is known,
//! the second map replaces it: all RAM, the image by section, the devices that EL2 uses (`el2_map`). Guard pages and
//! memory that the firmware keeps are in neither.
//!
//! Four levels, 4 KiB pages, the largest blocks that fit (DDI 0487, D8.3). Entries only change from invalid to valid.
//! This needs no break-before-make (D8.16.1), but a DSB, and an ISB on each CPU that then uses the address.

use crate::arch::barrier;
use crate::ids::Pa;
use crate::util::PAGE;
use core::fmt;

/// The kind of a mapping, which determines its attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Code: readable and executable.
    Text,
    /// Constants: readable.
    Rodata,
    /// Memory: readable and writable, Normal write-back.
    Data,
    /// Registers: readable and writable, Device-nGnRE.
    Device,
}

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 2;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const ACCESSED: u64 = 1 << 10;
const INNER_SHAREABLE: u64 = 3 << 8;
const READ_ONLY: u64 = 1 << 7;
const AP1_RES1: u64 = 1 << 6;
const EXECUTE_NEVER: u64 = 1 << 54;
const NORMAL: u64 = 1 << 2; // index into MAIR_EL2, see arch::mmu

impl Kind {
    const fn attributes(self) -> u64 {
        VALID
            | ACCESSED
            | AP1_RES1
            | match self {
                Kind::Text => NORMAL | INNER_SHAREABLE | READ_ONLY,
                Kind::Rodata => NORMAL | INNER_SHAREABLE | READ_ONLY | EXECUTE_NEVER,
                Kind::Data => NORMAL | INNER_SHAREABLE | EXECUTE_NEVER,
                Kind::Device => EXECUTE_NEVER,
            }
    }
}

/// Why a mapping failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// There is no memory for a table.
    OutOfTables,
    /// The address is already mapped as another kind.
    Conflict(Pa),
    /// The address or the size is not a multiple of the page size, or the range exceeds 48 bits.
    BadRange(Pa),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapError::OutOfTables => f.write_str("EL2 map: no memory for a page table"),
            MapError::Conflict(at) => write!(f, "EL2 map: {at}: already mapped as another kind"),
            MapError::BadRange(at) => write!(f, "EL2 map: {at}: misaligned or beyond 48 bits of address"),
        }
    }
}

/// A source of memory for tables.
pub trait Tables {
    /// Takes a zeroed page and returns its physical address. It is never given back.
    fn take(&mut self) -> Option<Pa>;
}

/// A map: a tree of tables.
pub struct Map<T> {
    root: Pa,
    tables: T,
}

/// Returns the number of low address bits within the range of one entry of a level.
const fn shift(level: u32) -> u32 {
    39 - 9 * level
}

impl<T: Tables> Map<T> {
    /// An empty map.
    pub fn new(mut tables: T) -> Result<Self, MapError> {
        let root = tables.take().ok_or(MapError::OutOfTables)?;
        Ok(Map { root, tables })
    }

    /// Returns the root table, for TTBR0_EL2.
    pub fn root(&self) -> Pa {
        self.root
    }

    /// Maps `size` bytes from `base` to the same addresses. Mapping a page again as the same kind has no effect.
    ///
    /// After an error, the part below the address in the error is mapped.
    pub fn map(&mut self, base: Pa, size: u64, kind: Kind) -> Result<(), MapError> {
        let end = base.0.checked_add(size).ok_or(MapError::BadRange(base))?;
        if !(base.0 | size).is_multiple_of(PAGE) || end > 1 << 48 {
            return Err(MapError::BadRange(base));
        }
        let mut at = base.0;
        while at < end {
            at += self.map_one(at, end - at, kind)?;
        }
        Ok(())
    }

    /// Maps the largest block at `at` that has at most `left` bytes. Returns its size.
    fn map_one(&mut self, at: u64, left: u64, kind: Kind) -> Result<u64, MapError> {
        let mut table = self.root;
        for level in 0..4 {
            let size = 1u64 << shift(level);
            let slot = Pa(table.0 + 8 * ((at >> shift(level)) & 0x1ff));
            let entry = load(slot);
            let fits = level > 0 && at.is_multiple_of(size) && left >= size;
            let leaf = at | kind.attributes() | if level == 3 { TABLE_OR_PAGE } else { 0 };
            if entry & VALID == 0 {
                if fits {
                    store(slot, leaf);
                    return Ok(size);
                }
                let next = self.tables.take().ok_or(MapError::OutOfTables)?;
                store(slot, next.0 | TABLE_OR_PAGE | VALID);
                table = next;
            } else if level == 3 || entry & TABLE_OR_PAGE == 0 {
                // A leaf. If its kind and address are the same, all that it covers from `at` on is mapped already.
                let mask = !(size - 1) & ADDRESS;
                let same = entry & !ADDRESS & !TABLE_OR_PAGE == kind.attributes() && entry & mask == at & mask;
                let rest = size - (at & (size - 1));
                return if same { Ok(rest.min(left)) } else { Err(MapError::Conflict(Pa(at))) };
            } else {
                table = Pa(entry & ADDRESS);
            }
        }
        unreachable!("level 3 holds no tables")
    }

    /// Returns how `at` is mapped: the size of its block or page, and the kind.
    pub fn look_up(&self, at: Pa) -> Option<(u64, Kind)> {
        let mut table = self.root;
        for level in 0..4 {
            let entry = load(Pa(table.0 + 8 * ((at.0 >> shift(level)) & 0x1ff)));
            if entry & VALID == 0 {
                return None;
            }
            if level == 3 || entry & TABLE_OR_PAGE == 0 {
                let kind = [Kind::Text, Kind::Rodata, Kind::Data, Kind::Device]
                    .into_iter()
                    .find(|kind| entry & !ADDRESS & !TABLE_OR_PAGE == kind.attributes())?;
                return Some((1 << shift(level), kind));
            }
            table = Pa(entry & ADDRESS);
        }
        None
    }
}

/// Reads a descriptor. Volatile, because table walks access it, too.
fn load(slot: Pa) -> u64 {
    // SAFETY: descriptors are in pages from `Tables::take`, which are never given back; EL2 runs on an identity map.
    unsafe { (slot.0 as *const u64).read_volatile() }
}

/// Writes a descriptor by a single 64-bit store, since a table walk may read it at any time.
fn store(slot: Pa, value: u64) {
    // SAFETY: as for `load`, and the map is borrowed exclusively.
    unsafe { (slot.0 as *mut u64).write_volatile(value) };
    barrier::dsb_ishst();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[repr(align(4096))]
    struct Page([u64; 512]);

    #[derive(Default)]
    struct Pool {
        pages: Vec<Box<Page>>,
        limit: usize,
    }

    use std::boxed::Box;

    impl Tables for &mut Pool {
        fn take(&mut self) -> Option<Pa> {
            if self.pages.len() == self.limit {
                return None;
            }
            self.pages.push(Box::new(Page([0; 512])));
            Some(Pa(self.pages.last_mut()?.0.as_mut_ptr() as u64))
        }
    }

    #[test]
    fn the_largest_blocks_that_fit_are_used() {
        let mut pool = Pool { limit: 100, ..Pool::default() };
        let mut map = Map::new(&mut pool).unwrap();
        // From 2 MiB + 4 KiB below 1 GiB up to 2 GiB + 4 KiB.
        map.map(Pa(0x3fdf_f000), 0x4020_2000, Kind::Data).unwrap();
        assert_eq!(map.look_up(Pa(0x3fdf_e000)), None);
        assert_eq!(map.look_up(Pa(0x3fdf_f000)), Some((0x1000, Kind::Data)));
        assert_eq!(map.look_up(Pa(0x3fe0_0000)), Some((0x20_0000, Kind::Data)));
        assert_eq!(map.look_up(Pa(0x4000_0000)), Some((0x4000_0000, Kind::Data)));
        assert_eq!(map.look_up(Pa(0x8000_0000)), Some((0x1000, Kind::Data)));
        assert_eq!(map.look_up(Pa(0x8000_1000)), None);
    }

    #[test]
    fn no_kind_is_both_writable_and_executable() {
        for kind in [Kind::Text, Kind::Rodata, Kind::Data, Kind::Device] {
            let bits = kind.attributes();
            assert!(bits & READ_ONLY != 0 || bits & EXECUTE_NEVER != 0, "{kind:?}");
        }
    }

    #[test]
    fn mapping_again_is_accepted_for_the_same_kind_only() {
        let mut pool = Pool { limit: 100, ..Pool::default() };
        let mut map = Map::new(&mut pool).unwrap();
        map.map(Pa(0x4000_0000), 0x4000_0000, Kind::Data).unwrap();
        map.map(Pa(0x4123_4000), 0x5000, Kind::Data).unwrap();
        assert_eq!(map.map(Pa(0x4123_4000), 0x1000, Kind::Device), Err(MapError::Conflict(Pa(0x4123_4000))));
        assert_eq!(map.look_up(Pa(0x4123_4000)), Some((0x4000_0000, Kind::Data)));
    }

    #[test]
    fn a_mapping_that_reaches_one_of_another_kind_fails_there() {
        let mut pool = Pool { limit: 100, ..Pool::default() };
        let mut map = Map::new(&mut pool).unwrap();
        map.map(Pa(0x900_0000), 0x1000, Kind::Device).unwrap();
        assert_eq!(map.map(Pa(0x8ff_f000), 0x3000, Kind::Data), Err(MapError::Conflict(Pa(0x900_0000))));
        assert_eq!(map.look_up(Pa(0x8ff_f000)), Some((0x1000, Kind::Data)));
        assert_eq!(map.look_up(Pa(0x900_0000)), Some((0x1000, Kind::Device)));
    }

    #[test]
    fn running_out_of_tables_is_an_error() {
        let mut pool = Pool { limit: 3, ..Pool::default() };
        let mut map = Map::new(&mut pool).unwrap();
        assert_eq!(map.map(Pa(0x900_0000), 0x1000, Kind::Device), Err(MapError::OutOfTables));
    }

    #[test]
    fn misaligned_and_too_high_ranges_are_refused() {
        let mut pool = Pool { limit: 100, ..Pool::default() };
        let mut map = Map::new(&mut pool).unwrap();
        assert_eq!(map.map(Pa(0x10), 0x1000, Kind::Data), Err(MapError::BadRange(Pa(0x10))));
        assert_eq!(map.map(Pa(0x1000), 0x10, Kind::Data), Err(MapError::BadRange(Pa(0x1000))));
        assert_eq!(map.map(Pa(1 << 48), 0x1000, Kind::Data), Err(MapError::BadRange(Pa(1 << 48))));
    }
}
