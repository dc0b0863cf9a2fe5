//! EL2's own stage 1: an identity map in which nothing is both writable and executable.
//!
//! It is built twice. [`Map::new`] with a handful of tables from the image maps the image, the device tree and the
//! early UART, page by page, so that the rest of boot runs with caches, atomics and unaligned loads. When the machine
//! is known, [`install`] builds the map that stays: all RAM, the image by section, the devices the hypervisor drives.
//! Guard pages and memory that the firmware keeps (`no-map`) are in neither.
//!
//! Four levels, 4 KiB pages, the largest blocks that fit (DDI 0487, D8.3). Entries only ever go from invalid to valid,
//! which needs no break-before-make (D8.16.1) but a DSB, and an ISB on the CPU that goes on to use the address.

use crate::arch::barrier;
use crate::ids::Pa;
use core::fmt;

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Code: read and execute.
    Text,
    /// Constants: read only.
    Rodata,
    /// Memory: read and write, Normal write-back.
    Data,
    /// Registers: read and write, Device-nGnRE.
    Device,
}

const PAGE: u64 = 0x1000;
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

/// Why something could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// There is no memory left for tables.
    OutOfTables,
    /// This address is mapped already, as something else.
    Conflict(Pa),
    /// Not on a page boundary, or beyond 48 bits.
    BadRange(Pa),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapError::OutOfTables => f.write_str("no memory left for EL2's page tables"),
            MapError::Conflict(at) => write!(f, "{at} is mapped for EL2 already, as something else"),
            MapError::BadRange(at) => write!(f, "EL2 cannot map at {at}: not on a page boundary, or too high"),
        }
    }
}

/// Where tables come from.
pub trait Tables {
    /// A zeroed page, at its physical address.
    fn take(&mut self) -> Option<Pa>;
}

/// A tree of tables.
pub struct Map<T> {
    root: Pa,
    tables: T,
}

/// The bits of an address that one entry of a level covers.
const fn shift(level: u32) -> u32 {
    39 - 9 * level
}

impl<T: Tables> Map<T> {
    /// An empty map.
    pub fn new(mut tables: T) -> Result<Self, MapError> {
        let root = tables.take().ok_or(MapError::OutOfTables)?;
        Ok(Map { root, tables })
    }

    /// The first table, for TTBR0_EL2.
    pub fn root(&self) -> Pa {
        self.root
    }

    /// Maps `size` bytes from `base` at their own address. Mapping a page again as the same kind changes nothing.
    ///
    /// On an error, what came before the address it names is mapped.
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

    /// Maps the largest block that starts at `at` and is no longer than `left`; says how long it was.
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
                // A leaf. It serves if it says the same; what it covers beyond `at` need not be asked again.
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

    /// How `at` is mapped: the size of the block and its kind.
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

/// Reads a descriptor. Volatile: the walker reads and (with other bits set) might write them too.
fn load(slot: Pa) -> u64 {
    // SAFETY: slots lie in tables that `Tables::take` gave away for good; EL2 sees memory at its physical address.
    unsafe { (slot.0 as *const u64).read_volatile() }
}

/// Writes a descriptor: one 64-bit store, as the walker may look at any moment.
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
        // From 2 MiB - 4 KiB below 1 GiB, up to 2 GiB + 4 KiB.
        map.map(Pa(0x3fdf_f000), 0x4020_2000, Kind::Data).unwrap();
        assert_eq!(map.look_up(Pa(0x3fdf_e000)), None);
        assert_eq!(map.look_up(Pa(0x3fdf_f000)), Some((0x1000, Kind::Data)));
        assert_eq!(map.look_up(Pa(0x3fe0_0000)), Some((0x20_0000, Kind::Data)));
        assert_eq!(map.look_up(Pa(0x4000_0000)), Some((0x4000_0000, Kind::Data)));
        assert_eq!(map.look_up(Pa(0x8000_0000)), Some((0x1000, Kind::Data)));
        assert_eq!(map.look_up(Pa(0x8000_1000)), None);
    }

    #[test]
    fn nothing_is_both_writable_and_executable() {
        for kind in [Kind::Text, Kind::Rodata, Kind::Data, Kind::Device] {
            let bits = kind.attributes();
            assert!(bits & READ_ONLY != 0 || bits & EXECUTE_NEVER != 0, "{kind:?}");
        }
    }

    #[test]
    fn the_same_again_is_accepted_and_another_kind_is_not() {
        let mut pool = Pool { limit: 100, ..Pool::default() };
        let mut map = Map::new(&mut pool).unwrap();
        map.map(Pa(0x4000_0000), 0x4000_0000, Kind::Data).unwrap();
        map.map(Pa(0x4123_4000), 0x5000, Kind::Data).unwrap();
        assert_eq!(map.map(Pa(0x4123_4000), 0x1000, Kind::Device), Err(MapError::Conflict(Pa(0x4123_4000))));
        assert_eq!(map.look_up(Pa(0x4123_4000)), Some((0x4000_0000, Kind::Data)));
    }

    #[test]
    fn a_mapping_that_runs_into_another_ends_there() {
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
    fn what_is_not_a_page_is_refused() {
        let mut pool = Pool { limit: 100, ..Pool::default() };
        let mut map = Map::new(&mut pool).unwrap();
        assert_eq!(map.map(Pa(0x10), 0x1000, Kind::Data), Err(MapError::BadRange(Pa(0x10))));
        assert_eq!(map.map(Pa(0x1000), 0x10, Kind::Data), Err(MapError::BadRange(Pa(0x1000))));
        assert_eq!(map.map(Pa(1 << 48), 0x1000, Kind::Data), Err(MapError::BadRange(Pa(1 << 48))));
    }
}
