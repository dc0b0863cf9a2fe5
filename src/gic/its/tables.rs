//! GITS_BASER registers, and setting up the tables that they point at (IHI 0069, 5.2.1 and 12.19.4).
//!
//! Page sizes, indirection and shareability are probed for each register: what one supports says nothing about another.

use super::regs::{GITS_BASER, baser_pa, gits};
use crate::gic::regs::attributes;
use crate::gic::table::{Table, TableError, page_bytes};
use crate::ids::Pa;
use crate::mmio::Hw;
use tock_registers::LocalRegisterCopy;

type Baser = LocalRegisterCopy<u64, GITS_BASER::Register>;

/// GITS_BASER.Size counts pages in eight bits.
const MAX_PAGES: u64 = 256;

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
    /// Decodes GITS_BASER.Type; `None` for a register that is not implemented or of a reserved type.
    pub fn of(register: u64) -> Option<Content> {
        match Baser::new(register).read_as_enum(GITS_BASER::TYPE) {
            Some(GITS_BASER::TYPE::Value::Devices) => Some(Content::Devices),
            Some(GITS_BASER::TYPE::Value::Vpes) => Some(Content::Vpes),
            Some(GITS_BASER::TYPE::Value::Collections) => Some(Content::Collections),
            _ => None,
        }
    }
}

/// Finds the largest page size that the register at `at` supports.
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
    /// Makes a table of `wanted` entries, or as many as the register can describe, and points GITS_BASER`n` at it. The
    /// ITS is disabled.
    pub fn set_up<H: Hw>(hw: &H, its: Pa, n: u64, wanted: u64, coherent: bool) -> Result<Table, TableError> {
        let at = its.add(gits::baser(n));
        let found = Baser::new(hw.read64(at));
        let entry = found.read(GITS_BASER::ENTRY_SIZE) + 1;
        let page = probe_page(hw, at, found).ok_or(TableError::PageSize)?;
        let can_be_indirect = || Self::can_be_indirect(hw, at, found, page);
        let table = Self::allocate(hw, (wanted, entry), page, MAX_PAGES, can_be_indirect)?;
        if let Err(e) = table.point(hw, at, found, coherent) {
            // Valid was never set, so the ITS has not accessed it.
            table.free(hw);
            return Err(e);
        }
        Ok(table)
    }

    /// Points GITS_BASER`n` at this table, which another ITS uses already: ITSs of one affinity group share their vPE
    /// table (GICv4.1).
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

    /// Points a register at the table, as non-cacheable if shareable is not accepted. Tables are cleaned to memory in
    /// any case, so the outcome is not kept.
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
            // Do not leave the register valid with values that differ from the table.
            let mut off = got;
            off.modify(GITS_BASER::VALID::CLEAR);
            hw.write64(at, off.get());
            return Err(TableError::ReadBack);
        }
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
    use crate::gic::testing::ModelHw;
    use gic_model::{Config, Its, Machine};

    const VALID: u64 = 1 << 63;

    /// A machine whose GITS_BASER0, for the device table, supports what is given.
    fn machine(pages: &[u32], indirect: bool, entry_size: u32) -> (ModelHw, Pa) {
        let change = |_, its: &mut Its| {
            let baser = its.basers[0].as_mut().unwrap();
            (baser.pages, baser.indirect, baser.entry_size) = (pages.to_vec(), indirect, entry_size);
        };
        let config = Config::v4_0(1).each_its(change);
        (ModelHw::new(Machine::new(config.clone())), Pa(config.its[0].base))
    }

    fn set_up(pages: &[u32], indirect: bool, entry_size: u32, wanted: u64) -> (ModelHw, Pa, Table) {
        let (hw, its) = machine(pages, indirect, entry_size);
        let table = Table::set_up(&hw, its, 0, wanted, true).unwrap();
        (hw, its, table)
    }

    #[test]
    fn page_sizes_are_encoded_as_4k_16k_64k() {
        assert_eq!([0, 1, 2].map(page_bytes), [0x1000, 0x4000, 0x1_0000]);
        for code in 0..3u64 {
            assert_eq!(page_code(page_bytes(code)).value, code << 8);
        }
    }

    #[test]
    fn a_register_that_is_not_implemented_has_no_content() {
        assert_eq!(Content::of(0x0107_0000_0000_0200), Some(Content::Devices));
        assert_eq!(Content::of(0x0207_0000_0000_0200), Some(Content::Vpes));
        assert_eq!(Content::of(0x0407_0000_0000_0200), Some(Content::Collections));
        assert_eq!(Content::of(0), None);
    }

    #[test]
    fn the_largest_page_size_that_a_register_supports_is_used() {
        for (pages, page) in
            [(&[4u32][..], 0x1000), (&[16], 0x4000), (&[64], 0x1_0000), (&[4, 16], 0x4000), (&[4, 16, 64], 0x1_0000)]
        {
            let (hw, its, table) = set_up(pages, false, 8, 1 << 12);
            assert_eq!(table.page, page, "{pages:?}");
            let register = Baser::new(hw.read64(its.add(0x100)));
            assert_eq!(page_bytes(register.read(GITS_BASER::PAGE_SIZE)), page);
            assert!(register.is_set(GITS_BASER::VALID));
            assert_eq!(register.read(GITS_BASER::SIZE) + 1, table.pages);
        }
    }

    #[test]
    fn a_table_that_fits_one_page_is_flat_and_a_larger_one_has_two_levels_if_supported() {
        let shape = |indirect, wanted| {
            let (hw, its, table) = set_up(&[64], indirect, 8, wanted);
            let register = hw.read64(its.add(0x100));
            assert_eq!(register >> 62 & 1 == 1, table.indirect);
            (table.indirect, table.pages, table.capacity())
        };
        assert_eq!(shape(true, 8192), (false, 1, 8192));
        assert_eq!(shape(true, 8193), (true, 1, 8192 * 8192));
        assert_eq!(shape(false, 8193), (false, 2, 16384));
        // The register describes 256 pages at most: the table has fewer entries than wanted, and its capacity says so.
        assert_eq!(shape(false, 1 << 32), (false, 256, 256 * 8192));
        // The first level takes more than one page.
        assert_eq!(shape(true, 8192 * 8192 + 1), (true, 2, 2 * 8192 * 8192));
    }

    #[test]
    fn a_second_level_is_allocated_once_for_the_ids_that_share_it() {
        let (hw, _, table) = set_up(&[4], true, 32, 1 << 12);
        let made = || hw.0.allocations().len();
        let entry = |n: u64| hw.load64(table.base.add(8 * n));
        let before = made();
        table.ensure(&hw, 0).unwrap();
        table.ensure(&hw, 127).unwrap();
        table.ensure(&hw, 1).unwrap();
        assert_eq!((made(), entry(0) & VALID, entry(1)), (before + 1, VALID, 0));
        table.ensure(&hw, 128).unwrap();
        assert_eq!((made(), entry(1) & VALID, entry(2)), (before + 2, VALID, 0));
        let page = hw.0.allocations().iter().any(|a| a.address == entry(1) & !VALID && a.size == 0x1000);
        assert!(page, "{:#x} is the address of an allocated page", entry(1));
    }

    #[test]
    fn a_flat_table_allocates_nothing_more_and_ids_beyond_a_table_are_refused() {
        let (hw, _, flat) = set_up(&[64], false, 8, 16384);
        let before = hw.0.allocations().len();
        assert_eq!((flat.ensure(&hw, 0), flat.ensure(&hw, 16383)), (Ok(()), Ok(())));
        assert_eq!(hw.0.allocations().len(), before);
        assert_eq!(flat.ensure(&hw, 16384), Err(TableError::Range));
        let (hw, _, two) = set_up(&[4], true, 32, 1 << 12);
        assert_eq!(
            (two.ensure(&hw, two.capacity() - 1), two.ensure(&hw, two.capacity())),
            (Ok(()), Err(TableError::Range))
        );
    }

    #[test]
    fn a_table_is_shared_only_between_registers_with_the_same_entry_size() {
        let (hw, its, table) = set_up(&[64], true, 8, 1 << 20);
        // The model's collection table has entries of the same size, but no second level.
        assert_eq!(table.adopt(&hw, its, 1, true).err(), Some(TableError::ReadBack), "Indirect is not kept");
        assert_eq!(hw.read64(its.add(0x108)) & VALID, 0, "Valid is cleared again");
        let adopted = table.adopt(&hw, its, 2, true).unwrap();
        assert_eq!(adopted.shape(), table.shape());
        let address = |n: u64| hw.read64(its.add(0x100 + 8 * n)) & 0xffff_ffff_f000;
        assert_eq!(address(2), address(0));
        let (hw, its, table) = set_up(&[64], true, 16, 1 << 20);
        assert_eq!(table.adopt(&hw, its, 2, true).err(), Some(TableError::ReadBack));
        assert_eq!(hw.read64(its.add(0x110)) & VALID, 0);
    }

    #[test]
    fn the_memory_of_a_table_has_the_size_in_its_register_and_is_freed_whole() {
        let (hw, _) = machine(&[64], true, 8);
        let before = hw.0.allocations().len();
        let table = Table::allocate(&hw, (8192 * 3 + 1, 8), 0x1_0000, MAX_PAGES, || false).unwrap();
        assert_eq!(table.shape(), (table.base, 4, 0x1_0000, false));
        assert!(hw.0.allocations().iter().any(|a| a.address == table.base.0 && a.size == 0x4_0000));
        table.free(&hw);
        assert_eq!(hw.0.allocations().len(), before);
        hw.0.assert_clean();
    }
}
