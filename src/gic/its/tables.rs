//! The tables that GITS_BASER registers point at (IHI 0069, 5.2.1 and 12.19.4).
//!
//! Each register is asked by itself which page sizes it takes, whether it can be indirect, and which
//! shareability it accepts; none of that can be concluded from another register. An indirect table's second
//! level is allocated when an id is first used, and stays.

use super::regs::{GITS_BASER, LEVEL1, baser_pa, gits};
use crate::gic::regs::attributes;
use crate::ids::Pa;
use crate::mmio::{Coherence, Hw};
use tock_registers::LocalRegisterCopy;

type Baser = LocalRegisterCopy<u64, GITS_BASER::Register>;

/// GITS_BASER.Size counts pages in eight bits.
const MAX_PAGES: u64 = 256;
const LEVEL1_ENTRY: u64 = 8;

/// What a table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Device table entries.
    Devices,
    /// vPE table entries.
    Vpes,
    /// Collection table entries.
    Collections,
}

impl Content {
    /// What GITS_BASER.Type says; `None` for a register that is not implemented or of a reserved type.
    pub fn of(register: u64) -> Option<Content> {
        match Baser::new(register).read_as_enum(GITS_BASER::TYPE) {
            Some(GITS_BASER::TYPE::Value::Devices) => Some(Content::Devices),
            Some(GITS_BASER::TYPE::Value::Vpes) => Some(Content::Vpes),
            Some(GITS_BASER::TYPE::Value::Collections) => Some(Content::Collections),
            _ => None,
        }
    }
}

/// A table that an ITS (or on GICv4.1 a redistributor) walks.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    base: Pa,
    pages: u64,
    page: u64,
    entry: u64,
    indirect: bool,
}

/// Why a table could not be set up or grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// The register keeps none of the three page sizes.
    PageSize,
    /// The register did not keep what was written.
    ReadBack,
    /// No memory left.
    Memory,
    /// The id is beyond the table.
    Range,
}

fn page_bytes(code: u64) -> u64 {
    0x1000 << (2 * code)
}

/// Finds the largest page size that GITS_BASER`n` keeps.
fn probe_page<H: Hw>(hw: &H, at: Pa, found: Baser) -> Option<u64> {
    for code in [2u64, 1, 0] {
        let mut wish = found;
        wish.modify(GITS_BASER::VALID::CLEAR + GITS_BASER::PAGE_SIZE.val(code));
        hw.write64(at, wish.get());
        if Baser::new(hw.read64(at)).read(GITS_BASER::PAGE_SIZE) == code {
            return Some(page_bytes(code));
        }
    }
    None
}

impl Table {
    /// Sets up GITS_BASER`n` for `wanted` entries, or as many as it can describe. The ITS is disabled.
    pub fn set_up<H: Hw>(hw: &H, its: Pa, n: u64, wanted: u64, coherent: bool) -> Result<Table, TableError> {
        let at = its.add(gits::baser(n));
        let found = Baser::new(hw.read64(at));
        let entry = found.read(GITS_BASER::ENTRY_SIZE) + 1;
        let page = probe_page(hw, at, found).ok_or(TableError::PageSize)?;
        let can_be_indirect = || Self::can_be_indirect(hw, at, found, page);
        let table = Self::allocate(hw, (wanted, entry), page, MAX_PAGES, can_be_indirect)?;
        if let Err(e) = table.point(hw, at, found, coherent) {
            // Never valid, so never walked.
            table.give_back(hw);
            return Err(e);
        }
        Ok(table)
    }

    /// Memory for `wanted` entries of a size, zeroed and visible to everybody. A flat table is taken when it fits one
    /// page; beyond that one with two levels, where that is possible.
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
        // Before a register that points at it is written, and whatever attributes that will have.
        hw.publish(base, size, Coherence::NonCoherent);
        Ok(Table { base, pages, page, entry, indirect })
    }

    /// Frees a table that no register has pointed at with Valid set.
    pub fn give_back<H: Hw>(&self, hw: &H) {
        hw.free(self.base, (self.pages * self.page) as usize, self.page as usize);
    }

    /// Points GITS_BASER`n` at a table that exists: ITSs of one affinity group share their vPE table (GICv4.1).
    pub fn adopt<H: Hw>(&self, hw: &H, its: Pa, n: u64, coherent: bool) -> Result<Table, TableError> {
        let at = its.add(gits::baser(n));
        let found = Baser::new(hw.read64(at));
        if found.read(GITS_BASER::ENTRY_SIZE) + 1 != self.entry {
            return Err(TableError::ReadBack);
        }
        self.point(hw, at, found, coherent)?;
        Ok(*self)
    }

    fn can_be_indirect<H: Hw>(hw: &H, at: Pa, found: Baser, page: u64) -> bool {
        let mut wish = found;
        wish.modify(GITS_BASER::VALID::CLEAR + GITS_BASER::INDIRECT::SET + page_code(page));
        hw.write64(at, wish.get());
        Baser::new(hw.read64(at)).is_set(GITS_BASER::INDIRECT)
    }

    /// Writes the register and reads it back. Whether the ITS looks into caches does not matter: tables are cleaned.
    fn point<H: Hw>(&self, hw: &H, at: Pa, found: Baser, coherent: bool) -> Result<(), TableError> {
        let value = |shared: bool| {
            let mut v = found;
            let (share, inner) = if shared {
                (attributes::INNER_SHAREABLE, attributes::WRITE_ALLOCATE)
            } else {
                (0, attributes::NON_CACHEABLE)
            };
            v.modify(
                GITS_BASER::VALID::SET
                    + GITS_BASER::INDIRECT.val(u64::from(self.indirect))
                    + GITS_BASER::INNER_CACHE.val(inner)
                    + GITS_BASER::OUTER_CACHE.val(attributes::SAME_AS_INNER)
                    + GITS_BASER::SHAREABILITY.val(share)
                    + GITS_BASER::PA.val(baser_pa(self.base, self.page))
                    + GITS_BASER::SIZE.val(self.pages - 1)
                    + page_code(self.page),
            );
            v
        };
        let mut wish = value(coherent);
        hw.write64(at, wish.get());
        let mut got = Baser::new(hw.read64(at));
        let accepted = coherent && got.read(GITS_BASER::SHAREABILITY) != 0;
        if coherent && !accepted {
            wish = value(false);
            hw.write64(at, wish.get());
            got = Baser::new(hw.read64(at));
        }
        let same = |f: tock_registers::fields::Field<u64, GITS_BASER::Register>| got.read(f) == wish.read(f);
        let kept = [GITS_BASER::VALID, GITS_BASER::INDIRECT, GITS_BASER::PA, GITS_BASER::SIZE, GITS_BASER::PAGE_SIZE];
        if !kept.into_iter().all(same) {
            // Leave nothing half-way.
            let mut off = got;
            off.modify(GITS_BASER::VALID::CLEAR);
            hw.write64(at, off.get());
            return Err(TableError::ReadBack);
        }
        Ok(())
    }

    /// How many ids it has room for.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        if self.indirect {
            self.pages * self.page / LEVEL1_ENTRY * (self.page / self.entry)
        } else {
            self.pages * self.page / self.entry
        }
    }

    /// Address, pages, bytes of a page, whether it has two levels: what a register that points at it says.
    #[must_use]
    pub const fn shape(&self) -> (Pa, u64, u64, bool) {
        (self.base, self.pages, self.page, self.indirect)
    }

    /// Makes sure that the entry for `id` has memory behind it.
    pub fn ensure<H: Hw>(&self, hw: &H, id: u64) -> Result<(), TableError> {
        if id >= self.capacity() {
            return Err(TableError::Range);
        }
        if !self.indirect {
            return Ok(());
        }
        let slot = self.base.add(id / (self.page / self.entry) * LEVEL1_ENTRY);
        if LocalRegisterCopy::<u64, LEVEL1::Register>::new(hw.load64(slot)).is_set(LEVEL1::VALID) {
            return Ok(());
        }
        let level2 = hw.alloc(self.page as usize, self.page as usize).ok_or(TableError::Memory)?;
        hw.publish(level2, self.page as usize, Coherence::NonCoherent);
        hw.store64(slot, (LEVEL1::VALID::SET + LEVEL1::PA.val(level2.0 >> 12)).value);
        hw.publish(slot, LEVEL1_ENTRY as usize, Coherence::NonCoherent);
        Ok(())
    }
}

fn page_code(page: u64) -> tock_registers::fields::FieldValue<u64, GITS_BASER::Register> {
    match page {
        0x1000 => GITS_BASER::PAGE_SIZE::Size4K,
        0x4000 => GITS_BASER::PAGE_SIZE::Size16K,
        _ => GITS_BASER::PAGE_SIZE::Size64K,
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
    }

    #[test]
    fn page_codes_are_4k_16k_64k() {
        assert_eq!([0, 1, 2].map(page_bytes), [0x1000, 0x4000, 0x1_0000]);
        for code in 0..3u64 {
            assert_eq!(page_code(page_bytes(code)).value, code << 8);
        }
    }

    #[test]
    fn only_implemented_types_have_content() {
        assert_eq!(Content::of(0x0107_0000_0000_0200), Some(Content::Devices));
        assert_eq!(Content::of(0x0207_0000_0000_0200), Some(Content::Vpes));
        assert_eq!(Content::of(0x0407_0000_0000_0200), Some(Content::Collections));
        assert_eq!(Content::of(0), None);
    }
}
