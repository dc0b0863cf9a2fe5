//! Tables that the hardware walks: of devices, collections and vPEs (IHI 0069, 5.2.1).
//!
//! A table is flat, or has two levels; then a part of the second level is allocated before an id in it is first used, and
//! stays.
//! Which register points at a table is not known here: a GITS_BASER (`its/tables`), or on GICv4.1 the GICR_VPROPBASER
//! of redistributors as well.

use super::regs::LEVEL1;
use crate::ids::Pa;
use crate::mmio::{Coherence, Hw};
use crate::util::PAGE;
use core::fmt;
use tock_registers::LocalRegisterCopy;

const LEVEL1_ENTRY: u64 = 8;

/// A table that an ITS or a redistributor walks. Copies describe the same memory.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    pub(super) base: Pa,
    /// The number of pages in the register: those of the first level if there are two.
    pub(super) pages: u64,
    /// Bytes of a page.
    pub(super) page: u64,
    /// Bytes of an entry.
    pub(super) entry: u64,
    /// Whether there are two levels.
    pub(super) indirect: bool,
}

/// Why a table could not be set up or extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// The register accepts none of the three page sizes.
    PageSize,
    /// The register did not keep the value written to it.
    ReadBack,
    /// The table has more pages than a register can describe.
    Pages,
    /// Out of memory.
    Memory,
    /// The id is beyond the table.
    Range,
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TableError::PageSize => "the register accepts no page size",
            TableError::ReadBack => "the register did not keep the value written to it",
            TableError::Pages => "the table has more pages than a register can describe",
            TableError::Memory => "out of memory",
            TableError::Range => "the id is beyond the table",
        })
    }
}

/// Bytes of a page as GITS_BASER.Page_Size and GICR_VPROPBASER.Page_Size encode it: 4, 16 or 64 KiB.
pub const fn page_bytes(code: u64) -> u64 {
    PAGE << (2 * code)
}

impl Table {
    /// Allocates zeroed memory for `wanted` entries of `entry` bytes and makes it visible to every observer. The table
    /// is flat if it fits one page; a larger one has two levels if the register supports that. At most `max_pages`
    /// pages are taken, so the table may have room for fewer entries: see [`capacity`](Self::capacity).
    pub fn allocate<H: Hw>(
        hw: &H,
        (wanted, entry): (u64, u64),
        page: u64,
        max_pages: u64,
        can_be_indirect: impl FnOnce() -> bool,
    ) -> Result<Table, TableError> {
        let indirect = wanted * entry > page && can_be_indirect();
        let bytes = if indirect { wanted.div_ceil(page / entry) * LEVEL1_ENTRY } else { wanted * entry };
        let pages = bytes.div_ceil(page).clamp(1, max_pages);
        let size = (pages * page) as usize;
        let base = hw.alloc(size, page as usize).ok_or(TableError::Memory)?;
        // Cleaned to memory whatever attributes the register will have, and before the register is written.
        hw.publish(base, size, Coherence::NonCoherent);
        Ok(Table { base, pages, page, entry, indirect })
    }

    /// Frees the memory of a table that no register has pointed at with Valid set.
    pub fn free<H: Hw>(&self, hw: &H) {
        hw.free(self.base, (self.pages * self.page) as usize, self.page as usize);
    }

    /// Refuses a table of more than `max_pages` pages, which another register could not describe.
    pub const fn fits(self, max_pages: u64) -> Result<Table, TableError> {
        if self.pages <= max_pages { Ok(self) } else { Err(TableError::Pages) }
    }

    /// How many ids the table has room for.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        if self.indirect {
            self.pages * self.page / LEVEL1_ENTRY * (self.page / self.entry)
        } else {
            self.pages * self.page / self.entry
        }
    }

    /// What a register that points at the table says: address, pages, bytes of a page, whether there are two levels.
    #[must_use]
    pub const fn shape(&self) -> (Pa, u64, u64, bool) {
        (self.base, self.pages, self.page, self.indirect)
    }

    /// Makes sure that the entry of `id` has memory behind it: allocates its second level if that is missing.
    ///
    /// Calls for the same table are serialised by the caller.
    pub fn ensure<H: Hw>(&self, hw: &H, id: u64) -> Result<(), TableError> {
        let Some(slot) = self.missing(hw, id)? else { return Ok(()) };
        let level2 = hw.alloc(self.page as usize, self.page as usize).ok_or(TableError::Memory)?;
        hw.publish(level2, self.page as usize, Coherence::NonCoherent);
        hw.store64(slot, (LEVEL1::VALID::SET + LEVEL1::PA.val(level2.0 >> 12)).value);
        hw.publish(slot, LEVEL1_ENTRY as usize, Coherence::NonCoherent);
        Ok(())
    }

    /// Makes sure that the entries of the ids `first` to `last` have memory behind them. Ids beyond the table are left
    /// out. Calls for the same table are serialised by the caller.
    pub fn ensure_all<H: Hw>(&self, hw: &H, first: u64, last: u64) -> Result<(), TableError> {
        let step = if self.indirect { self.page / self.entry } else { self.capacity() };
        let last = last.min(self.capacity() - 1);
        (first / step..=last / step).filter(|_| first <= last).try_for_each(|n| self.ensure(hw, n * step))
    }

    /// Checks that the entry of `id` has memory behind it. Allocates nothing.
    pub fn check<H: Hw>(&self, hw: &H, id: u64) -> Result<(), TableError> {
        if self.missing(hw, id)?.is_some() { Err(TableError::Memory) } else { Ok(()) }
    }

    /// The first level entry of `id`, if its second level is missing.
    fn missing<H: Hw>(&self, hw: &H, id: u64) -> Result<Option<Pa>, TableError> {
        if id >= self.capacity() {
            return Err(TableError::Range);
        }
        if !self.indirect {
            return Ok(None);
        }
        let slot = self.base.add(id / (self.page / self.entry) * LEVEL1_ENTRY);
        let is_valid = LocalRegisterCopy::<u64, LEVEL1::Register>::new(hw.load64(slot)).is_set(LEVEL1::VALID);
        Ok((!is_valid).then_some(slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(indirect: bool) -> Table {
        Table { base: Pa(0x10_0000), pages: 1, page: 0x1_0000, entry: 8, indirect }
    }

    #[test]
    fn capacity_counts_both_levels() {
        assert_eq!(table(false).capacity(), 8192);
        assert_eq!(table(true).capacity(), 8192 * 8192);
        assert_eq!(Table { pages: 2, ..table(false) }.capacity(), 16384);
        assert_eq!(Table { pages: 2, page: 0x1000, entry: 32, ..table(true) }.capacity(), 1024 * 128);
    }
}
