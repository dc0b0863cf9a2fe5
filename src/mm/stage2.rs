//! What a domain sees of physical memory: stage 2 translation tables.
//!
//! 4 KiB granule, up to 48 bits, tables concatenated at the root where that saves a level, blocks of 1 GiB and 2 MiB
//! wherever both addresses allow. Tables come from [`Hw::alloc`] and are reached by [`Hw::load64`] and
//! [`Hw::store64`], so that this file has no `unsafe` and runs on the host. Arm ARM (DDI 0487), D8.2 (walks),
//! D8.3 (descriptors), D8.6 (attributes), D8.16 (break-before-make), D24.2 (VTCR_EL2, VTTBR_EL2).
//!
//! Invariants:
//!
//! - A valid descriptor is replaced by another valid one only through an invalid one and a TLB invalidation, also
//!   when it is a block that is split. In between, a vCPU that runs takes a stage 2 fault on an address that is
//!   mapped: the fault handler looks with [`Stage2::translate`] and lets the guest try again.
//! - A table is freed only after it was unlinked and the TLBs (and with them the walk caches) were invalidated.
//! - Below the root there are no empty tables.
//! - An operation that fails has changed nothing that [`Stage2::translate`] can see.
//!
//! An invalid descriptor may have any other bits. Two uses are made of that: [`Stage2::protect`] parks descriptors
//! with bit 0 clear, and tables that wait to be freed are linked through their first words.

use crate::ids::{Ipa, Pa, VmId};
use crate::mmio::{Coherence, Hw};
use core::fmt;

const PAGE: u64 = 4096;
const TABLE_ENTRIES: u64 = 512;
const LAST_LEVEL: u32 = 3;

/// TLB maintenance for one VMID, on all CPUs of the inner shareable domain, complete when the method returns.
pub trait Tlb {
    /// Forgets what is known about the block or page at `ipa`, walk caches included (so not the last-level-only
    /// form), and what combines it with the guest's stage 1.
    fn invalidate_ipa(&self, vmid: VmId, ipa: Ipa);
    /// Forgets everything of a VMID, both stages.
    fn invalidate_all(&self, vmid: VmId);
}

/// What kind of access a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attr {
    /// Memory: Normal write-back, inner shareable, readable, writable, executable.
    Ram,
    /// A PCI memory window: Normal non-cacheable, so that the guest's stage 1 decides between that and Device; never
    /// executable.
    PciWindow,
    /// Registers: Device-nGnRE, never executable.
    Device,
}

/// Whether HCR_EL2.FWB is set for this domain (FEAT_S2FWB). It changes the meaning of the attribute bits: memory is
/// then write-back even where the guest's stage 1 says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fwb {
    /// Clear: the weaker of the two stages' attributes holds.
    Off,
    /// Set.
    On,
}

/// Why a change was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage2Error {
    /// An address or the size is no multiple of 4 KiB, or the size is zero.
    Misaligned,
    /// Some of the range is beyond the input or output size.
    OutOfRange,
    /// Something is mapped here already.
    Mapped(Ipa),
    /// Nothing is mapped here.
    NotMapped(Ipa),
    /// No memory for a table.
    OutOfMemory,
    /// A VMID of more than 8 bits; VTCR_EL2.VS stays 0.
    BadVmid(VmId),
    /// An input size that is not 32 to 48 bits.
    BadIpaBits(u8),
}

impl fmt::Display for Stage2Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Stage2Error::Misaligned => f.write_str("a stage 2 mapping is not in units of 4 KiB"),
            Stage2Error::OutOfRange => f.write_str("a stage 2 mapping is beyond the size of addresses"),
            Stage2Error::Mapped(ipa) => write!(f, "guest address {ipa} is already mapped"),
            Stage2Error::NotMapped(ipa) => write!(f, "guest address {ipa} is not mapped"),
            Stage2Error::OutOfMemory => f.write_str("there is no memory left for stage 2 tables"),
            Stage2Error::BadVmid(vmid) => write!(f, "{vmid} does not fit into 8 bits"),
            Stage2Error::BadIpaBits(bits) => write!(f, "guest addresses cannot have {bits} bits"),
        }
    }
}

impl core::error::Error for Stage2Error {}

/// The input size to use on a CPU with this ID_AA64MMFR0_EL1.PARange: all of the physical address space, but no
/// more than 48 bits (52 need another descriptor format).
#[must_use]
pub const fn ipa_bits(parange: u8) -> u8 {
    match parange {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => 48,
    }
}

/// Descriptors, D8.3.1 and D8.3.2.
mod desc {
    use super::{Attr, Fwb, LAST_LEVEL};

    pub const VALID: u64 = 1;
    pub const TABLE_OR_PAGE: u64 = 1 << 1;
    pub const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
    const MEMATTR: u64 = 0xf << 2;
    const S2AP_READ_WRITE: u64 = 0b11 << 6;
    const SH_OUTER: u64 = 0b10 << 8;
    const SH_INNER: u64 = 0b11 << 8;
    const AF: u64 = 1 << 10;
    const XN: u64 = 1 << 54;

    /// MemAttr[3:0], D8.6.5 (FWB off) and D8.6.6 (FWB on).
    const fn memattr(attr: Attr, fwb: Fwb) -> u64 {
        match (attr, fwb) {
            (Attr::Ram, Fwb::Off) => 0b1111 << 2, // outer and inner write-back
            (Attr::Ram, Fwb::On) => 0b0110 << 2,  // write-back, whatever stage 1 says
            (Attr::PciWindow, _) => 0b0101 << 2,  // non-cacheable, or the Device that stage 1 says
            (Attr::Device, _) => 0b0001 << 2,     // Device-nGnRE
        }
    }

    /// Everything of a leaf but its address.
    pub const fn leaf(attr: Attr, fwb: Fwb, level: u32) -> u64 {
        let kind = if level == LAST_LEVEL { VALID | TABLE_OR_PAGE } else { VALID };
        let rest = match attr {
            Attr::Ram => SH_INNER,
            Attr::PciWindow | Attr::Device => SH_OUTER | XN,
        };
        kind | memattr(attr, fwb) | S2AP_READ_WRITE | AF | rest
    }

    pub const fn is_valid(entry: u64) -> bool {
        entry & VALID != 0
    }

    pub const fn is_table(entry: u64, level: u32) -> bool {
        is_valid(entry) && entry & TABLE_OR_PAGE != 0 && level != LAST_LEVEL
    }

    pub fn attr(entry: u64, fwb: Fwb) -> Option<Attr> {
        [Attr::Ram, Attr::PciWindow, Attr::Device].into_iter().find(|&attr| memattr(attr, fwb) == entry & MEMATTR)
    }
}

/// What one descriptor of a level stands for, in bytes.
const fn span(level: u32) -> u64 {
    1 << (39 - 9 * level)
}

/// The place where a walk ends: a leaf or an invalid descriptor.
#[derive(Clone, Copy)]
struct Slot {
    /// Where the descriptor is.
    at: Pa,
    level: u32,
    /// The first guest address it stands for.
    base: u64,
    entry: u64,
}

impl Slot {
    fn end(self) -> u64 {
        self.base + span(self.level)
    }
}

/// How many TLB invalidations by address are cheaper than one of everything.
const FEW: usize = 8;

/// The guest addresses to invalidate, or "all" when there are many.
struct Stale {
    few: arrayvec::ArrayVec<u64, FEW>,
    all: bool,
}

impl Stale {
    fn new() -> Stale {
        Stale { few: arrayvec::ArrayVec::new(), all: false }
    }

    fn add(&mut self, ipa: u64) {
        self.all |= self.few.try_push(ipa).is_err();
    }
}

/// One domain's tables.
///
/// Dropping it leaks them: [`destroy`](Self::destroy) needs the caller's word that no CPU has the VTTBR loaded.
pub struct Stage2<'h, H: Hw, T: Tlb> {
    hw: &'h H,
    tlb: &'h T,
    vmid: VmId,
    ipa_bits: u8,
    fwb: Fwb,
    start_level: u32,
    root: Pa,
}

impl<'h, H: Hw, T: Tlb> Stage2<'h, H, T> {
    /// An empty address space of `ipa_bits` (32 to 48, see [`ipa_bits`]).
    ///
    /// # Errors
    ///
    /// [`Stage2Error::BadVmid`], [`Stage2Error::BadIpaBits`], [`Stage2Error::OutOfMemory`].
    pub fn new(hw: &'h H, tlb: &'h T, vmid: VmId, ipa_bits: u8, fwb: Fwb) -> Result<Self, Stage2Error> {
        if vmid.0 > 0xff {
            return Err(Stage2Error::BadVmid(vmid));
        }
        if !(32..=48).contains(&ipa_bits) {
            return Err(Stage2Error::BadIpaBits(ipa_bits));
        }
        // Up to 16 concatenated tables take over what a level above would do (D8.2.2): from 44 bits on that is no
        // longer enough to start at level 1.
        let start_level = if ipa_bits > 43 { 0 } else { 1 };
        let mut stage2 = Stage2 { hw, tlb, vmid, ipa_bits, fwb, start_level, root: Pa(0) };
        let size = stage2.root_size();
        stage2.root = hw.alloc(size, size).ok_or(Stage2Error::OutOfMemory)?;
        hw.publish(stage2.root, size, Coherence::Coherent);
        // A VMID may have had another owner.
        tlb.invalidate_all(vmid);
        Ok(stage2)
    }

    /// The root in bytes: one page, or as many as are concatenated.
    fn root_size(&self) -> usize {
        let entries = 1u64 << u32::from(self.ipa_bits).saturating_sub(span(self.start_level).trailing_zeros());
        (entries * 8).max(PAGE) as usize
    }

    /// The VMID.
    #[must_use]
    pub fn vmid(&self) -> VmId {
        self.vmid
    }

    /// VTTBR_EL2.
    #[must_use]
    pub fn vttbr(&self) -> u64 {
        u64::from(self.vmid.0) << 48 | self.root.0
    }

    /// VTCR_EL2: 4 KiB granule, walks write-back and inner shareable, 8-bit VMID, output size as input size.
    #[must_use]
    pub fn vtcr(&self) -> u64 {
        const RES1: u64 = 1 << 31;
        const SH0_INNER: u64 = 0b11 << 12;
        const ORGN0_WBWA: u64 = 0b01 << 10;
        const IRGN0_WBWA: u64 = 0b01 << 8;
        let ps: u64 = match self.ipa_bits {
            32 => 0,
            33..=36 => 1,
            37..=40 => 2,
            41..=42 => 3,
            43..=44 => 4,
            _ => 5,
        };
        let sl0 = u64::from(2 - self.start_level);
        let t0sz = 64 - u64::from(self.ipa_bits);
        RES1 | ps << 16 | SH0_INNER | ORGN0_WBWA | IRGN0_WBWA | sl0 << 6 | t0sz
    }

    /// Where a guest address leads, and how.
    #[must_use]
    pub fn translate(&self, ipa: Ipa) -> Option<(Pa, Attr)> {
        if ipa.0 >> self.ipa_bits != 0 {
            return None;
        }
        let slot = self.walk(ipa.0);
        if !desc::is_valid(slot.entry) {
            return None;
        }
        Some((Pa((slot.entry & desc::ADDRESS) + (ipa.0 - slot.base)), desc::attr(slot.entry, self.fwb)?))
    }

    /// Maps `size` bytes at `ipa` to `pa`.
    ///
    /// # Errors
    ///
    /// All but [`Stage2Error::NotMapped`]; nothing is mapped then.
    pub fn map(&mut self, ipa: Ipa, pa: Pa, size: u64, attr: Attr) -> Result<(), Stage2Error> {
        let (start, end) = self.bounds(ipa, size)?;
        if !pa.0.is_multiple_of(PAGE) {
            return Err(Stage2Error::Misaligned);
        }
        if pa.0.checked_add(size).is_none_or(|end| end > 1 << self.ipa_bits) {
            return Err(Stage2Error::OutOfRange);
        }
        if let Some(slot) = self.slots(start, end).find(|slot| slot.entry != 0) {
            return Err(Stage2Error::Mapped(Ipa(slot.base.max(start))));
        }
        let mut at = start;
        while at < end {
            let to = pa.0 + (at - start);
            let fits = |&level: &u32| (at | to).is_multiple_of(span(level)) && end - at >= span(level);
            let level = (1..LAST_LEVEL).find(fits).unwrap_or(LAST_LEVEL);
            let Some(slot) = self.make_slot(at, level) else {
                self.clear(start, end);
                return Err(Stage2Error::OutOfMemory);
            };
            // What was invalid is in no TLB; the walkers only have to see the store.
            self.set(slot, to | desc::leaf(attr, self.fwb, level));
            at += span(level);
        }
        Ok(())
    }

    /// Unmaps `size` bytes at `ipa`; parts that are not mapped stay so.
    ///
    /// # Errors
    ///
    /// [`Stage2Error::Misaligned`], [`Stage2Error::OutOfRange`], and [`Stage2Error::OutOfMemory`] when a block has to
    /// be split; nothing is unmapped then.
    pub fn unmap(&mut self, ipa: Ipa, size: u64) -> Result<(), Stage2Error> {
        let (start, end) = self.bounds(ipa, size)?;
        self.split_at(start)?;
        self.split_at(end)?;
        self.clear(start, end);
        Ok(())
    }

    /// Changes the attributes of `size` bytes at `ipa`, all of which must be mapped.
    ///
    /// # Errors
    ///
    /// [`Stage2Error::Misaligned`], [`Stage2Error::OutOfRange`], [`Stage2Error::NotMapped`], and
    /// [`Stage2Error::OutOfMemory`] when a block has to be split; nothing is changed then.
    pub fn protect(&mut self, ipa: Ipa, size: u64, attr: Attr) -> Result<(), Stage2Error> {
        let (start, end) = self.bounds(ipa, size)?;
        if let Some(hole) = self.slots(start, end).find(|slot| slot.entry == 0) {
            return Err(Stage2Error::NotMapped(Ipa(hole.base.max(start))));
        }
        self.split_at(start)?;
        self.split_at(end)?;
        let mut stale = Stale::new();
        for slot in self.slots(start, end) {
            self.set(slot.at, slot.entry & !desc::VALID);
            stale.add(slot.base);
        }
        self.invalidate(&stale);
        for slot in self.slots(start, end) {
            self.set(slot.at, slot.entry & desc::ADDRESS | desc::leaf(attr, self.fwb, slot.level));
        }
        Ok(())
    }

    /// Frees all tables. The caller knows that no CPU has this VTTBR loaded, and will load it no more.
    pub fn destroy(self) {
        self.tlb.invalidate_all(self.vmid);
        let entries = self.root_size() as u64 / 8;
        self.free_below(self.root, self.start_level, entries);
        self.hw.free(self.root, self.root_size(), self.root_size());
    }

    fn free_below(&self, table: Pa, level: u32, entries: u64) {
        for index in 0..entries {
            let entry = self.hw.load64(table.add(8 * index));
            if desc::is_table(entry, level) {
                let child = Pa(entry & desc::ADDRESS);
                self.free_below(child, level + 1, TABLE_ENTRIES);
                self.hw.free(child, PAGE as usize, PAGE as usize);
            }
        }
    }

    /// Start and end of a guest range.
    fn bounds(&self, ipa: Ipa, size: u64) -> Result<(u64, u64), Stage2Error> {
        if size == 0 || !(ipa.0 | size).is_multiple_of(PAGE) {
            return Err(Stage2Error::Misaligned);
        }
        match ipa.0.checked_add(size) {
            Some(end) if end <= 1 << self.ipa_bits => Ok((ipa.0, end)),
            _ => Err(Stage2Error::OutOfRange),
        }
    }

    /// The descriptor for `ipa` in a table of `level`. Concatenated tables are one long table.
    fn place(&self, table: Pa, level: u32, ipa: u64) -> Pa {
        let index = ipa / span(level);
        table.add(8 * if level == self.start_level { index } else { index % TABLE_ENTRIES })
    }

    /// Follows tables down to a leaf or an invalid descriptor.
    fn walk(&self, ipa: u64) -> Slot {
        let (mut table, mut level) = (self.root, self.start_level);
        loop {
            let at = self.place(table, level, ipa);
            let entry = self.hw.load64(at);
            if !desc::is_table(entry, level) {
                return Slot { at, level, base: ipa & !(span(level) - 1), entry };
            }
            table = Pa(entry & desc::ADDRESS);
            level += 1;
        }
    }

    /// All places where walks from `start` to `end` end.
    fn slots(&self, start: u64, end: u64) -> impl Iterator<Item = Slot> + use<'_, 'h, H, T> {
        let mut at = start;
        core::iter::from_fn(move || {
            (at < end).then(|| {
                let slot = self.walk(at);
                at = slot.end();
                slot
            })
        })
    }

    /// The descriptor of `level` for `ipa`, with the tables above it; `None` when there is no memory for one.
    /// The caller has seen that nothing is mapped there.
    fn make_slot(&self, ipa: u64, level: u32) -> Option<Pa> {
        let mut table = self.root;
        for above in self.start_level..level {
            let at = self.place(table, above, ipa);
            let entry = self.hw.load64(at);
            table = if desc::is_table(entry, above) { Pa(entry & desc::ADDRESS) } else { self.link_table(at, |_| 0)? };
        }
        Some(self.place(table, level, ipa))
    }

    /// Makes a table of `fill`'s entries and links it at `at`, which is invalid and in no TLB.
    fn link_table(&self, at: Pa, fill: impl Fn(u64) -> u64) -> Option<Pa> {
        let table = self.make_table(fill)?;
        self.set(at, table.0 | desc::VALID | desc::TABLE_OR_PAGE);
        Some(table)
    }

    /// A new table, visible to walkers before anything can point at it.
    fn make_table(&self, fill: impl Fn(u64) -> u64) -> Option<Pa> {
        let table = self.hw.alloc(PAGE as usize, PAGE as usize)?;
        for index in 0..TABLE_ENTRIES {
            match fill(index) {
                0 => {} // as it was allocated
                entry => self.hw.store64(table.add(8 * index), entry),
            }
        }
        self.hw.publish(table, PAGE as usize, Coherence::Coherent);
        Some(table)
    }

    /// Splits blocks until none extends across `ipa`.
    fn split_at(&mut self, ipa: u64) -> Result<(), Stage2Error> {
        if ipa >> self.ipa_bits != 0 {
            return Ok(()); // the end of the address space
        }
        loop {
            let slot = self.walk(ipa);
            if slot.base == ipa || slot.entry == 0 {
                return Ok(());
            }
            let level = slot.level + 1;
            let (first, kept) = (slot.entry & desc::ADDRESS, slot.entry & !desc::ADDRESS);
            let kind = if level == LAST_LEVEL { desc::TABLE_OR_PAGE } else { 0 };
            let table =
                self.make_table(|index| (first + index * span(level)) | kept | kind).ok_or(Stage2Error::OutOfMemory)?;
            self.set(slot.at, 0);
            self.tlb.invalidate_ipa(self.vmid, Ipa(slot.base));
            self.set(slot.at, table.0 | desc::VALID | desc::TABLE_OR_PAGE);
        }
    }

    /// Unmaps whole leaves and frees the tables that become empty.
    fn clear(&mut self, start: u64, end: u64) {
        let mut stale = Stale::new();
        for slot in self.slots(start, end) {
            if slot.entry != 0 {
                self.set(slot.at, 0);
                stale.add(slot.base);
            }
        }
        let mut unlinked = None;
        self.unlink_empty(self.root, self.start_level, 0, (start, end), &mut unlinked);
        // Walk caches may hold a table that is empty through an address that was never a leaf.
        stale.all |= unlinked.is_some();
        self.invalidate(&stale);
        while let Some(table) = unlinked {
            let next = self.hw.load64(table);
            self.hw.free(table, PAGE as usize, PAGE as usize);
            unlinked = (next != 0).then_some(Pa(next));
        }
    }

    /// Unlinks the empty tables under the part of `table` (at guest address `base`) that is about `range`, and chains
    /// them through their first words: an address of 4 KiB alignment is an invalid descriptor.
    fn unlink_empty(&self, table: Pa, level: u32, base: u64, range: (u64, u64), unlinked: &mut Option<Pa>) {
        let first = range.0.max(base) / span(level);
        let limit = if level == self.start_level { u64::MAX } else { base + span(level - 1) };
        let last = (range.1.min(limit) - 1) / span(level);
        for index in first..=last {
            let at = self.place(table, level, index * span(level));
            let entry = self.hw.load64(at);
            if !desc::is_table(entry, level) {
                continue;
            }
            let child = Pa(entry & desc::ADDRESS);
            self.unlink_empty(child, level + 1, index * span(level), range, unlinked);
            if (0..TABLE_ENTRIES).all(|index| self.hw.load64(child.add(8 * index)) == 0) {
                self.set(at, 0);
                self.set(child, unlinked.map_or(0, |next| next.0));
                *unlinked = Some(child);
            }
        }
    }

    /// Changes a descriptor in a linked table. The walkers see it when this returns.
    fn set(&self, at: Pa, entry: u64) {
        self.hw.store64(at, entry);
        self.hw.publish(at, 8, Coherence::Coherent);
    }

    /// Makes the TLBs forget.
    fn invalidate(&self, stale: &Stale) {
        if stale.all {
            self.tlb.invalidate_all(self.vmid);
        } else {
            for &ipa in &stale.few {
                self.tlb.invalidate_ipa(self.vmid, Ipa(ipa));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::{BTreeMap, BTreeSet};
    use alloc::vec::Vec;
    use core::cell::{Cell, RefCell};

    /// Memory and TLB of a machine. It sees a valid descriptor that is replaced without break-before-make, a table
    /// that is used after it was freed or freed while the TLB still knows what it said, and one that is linked before
    /// it is published.
    #[derive(Default)]
    struct Fake {
        words: RefCell<BTreeMap<u64, u64>>,
        allocated: RefCell<BTreeMap<u64, usize>>,
        next: Cell<u64>,
        budget: Cell<usize>,
        unpublished: RefCell<BTreeSet<u64>>,
        /// Descriptors that were broken and not yet invalidated.
        broken: RefCell<BTreeSet<u64>>,
        /// What the TLB holds: first address, level, descriptor.
        tlb: RefCell<BTreeMap<u64, (u32, u64)>>,
        all: Cell<usize>,
        single: Cell<usize>,
    }

    impl Fake {
        fn new() -> Fake {
            let fake = Fake::default();
            fake.next.set(0x8000_0000);
            fake.budget.set(usize::MAX);
            fake
        }

        fn tables(&self) -> usize {
            self.allocated.borrow().len()
        }
    }

    impl Hw for Fake {
        fn read32(&self, _: Pa) -> u32 {
            unreachable!()
        }
        fn write32(&self, _: Pa, _: u32) {
            unreachable!()
        }
        fn read64(&self, _: Pa) -> u64 {
            unreachable!()
        }
        fn write64(&self, _: Pa, _: u64) {
            unreachable!()
        }
        fn alloc(&self, size: usize, align: usize) -> Option<Pa> {
            self.budget.set(self.budget.get().checked_sub(1)?);
            let base = self.next.get().next_multiple_of(align as u64);
            self.next.set(base + size as u64);
            self.allocated.borrow_mut().insert(base, size);
            for at in (base..base + size as u64).step_by(8) {
                self.words.borrow_mut().insert(at, 0);
                self.unpublished.borrow_mut().insert(at);
            }
            Some(Pa(base))
        }
        fn free(&self, memory: Pa, size: usize, _: usize) {
            assert_eq!(self.allocated.borrow_mut().remove(&memory.0), Some(size));
            assert!(self.broken.borrow().is_empty(), "freed before the TLB forgot");
            for at in (memory.0..memory.0 + size as u64).step_by(8) {
                self.words.borrow_mut().remove(&at);
            }
        }
        fn load8(&self, _: Pa) -> u8 {
            unreachable!()
        }
        fn store8(&self, _: Pa, _: u8) {
            unreachable!()
        }
        fn load64(&self, at: Pa) -> u64 {
            self.words.borrow()[&at.0]
        }
        fn store64(&self, at: Pa, value: u64) {
            let old = self.words.borrow_mut().insert(at.0, value).expect("a table that is no longer one");
            self.unpublished.borrow_mut().insert(at.0);
            if desc::is_valid(value) {
                assert!(!desc::is_valid(old) || old == value, "valid over valid");
                assert!(!self.broken.borrow().contains(&at.0), "made before the TLB forgot");
                let target = value & desc::ADDRESS;
                if self.allocated.borrow().contains_key(&target) {
                    assert!(!self.unpublished.borrow().contains(&target), "linked before it was published");
                }
            } else if desc::is_valid(old) {
                self.broken.borrow_mut().insert(at.0);
            }
        }
        fn publish(&self, memory: Pa, size: usize, _: Coherence) {
            self.unpublished.borrow_mut().retain(|at| !(memory.0..memory.0 + size as u64).contains(at));
        }
        fn acquire(&self, _: Pa, _: usize, _: Coherence) {
            unreachable!()
        }
        fn now_us(&self) -> u64 {
            0
        }
        fn relax(&self) {}
    }

    impl Tlb for Fake {
        fn invalidate_ipa(&self, _: VmId, ipa: Ipa) {
            assert!(self.unpublished.borrow().is_empty());
            self.tlb.borrow_mut().retain(|&base, &mut (level, _)| !(base..base + span(level)).contains(&ipa.0));
            self.broken.borrow_mut().clear();
            self.single.set(self.single.get() + 1);
        }
        fn invalidate_all(&self, _: VmId) {
            assert!(self.unpublished.borrow().is_empty());
            self.tlb.borrow_mut().clear();
            self.broken.borrow_mut().clear();
            self.all.set(self.all.get() + 1);
        }
    }

    type S<'h> = Stage2<'h, Fake, Fake>;

    fn space(fake: &Fake, bits: u8) -> S<'_> {
        Stage2::new(fake, fake, VmId(7), bits, Fwb::Off).unwrap()
    }

    fn touch(s: &S<'_>, ipa: u64) {
        let slot = s.walk(ipa);
        if desc::is_valid(slot.entry) {
            s.hw.tlb.borrow_mut().insert(slot.base, (slot.level, slot.entry));
        }
    }

    fn assert_tlb_true(s: &S<'_>) {
        assert!(s.hw.unpublished.borrow().is_empty());
        for (&base, &(level, entry)) in s.hw.tlb.borrow().iter() {
            let slot = s.walk(base);
            assert_eq!((slot.level, slot.entry), (level, entry), "stale TLB entry for {base:#x}");
        }
    }

    const K: u64 = 1 << 10;
    const M: u64 = 1 << 20;
    const G: u64 = 1 << 30;

    #[test]
    fn descriptors_are_the_manuals() {
        let fake = Fake::new();
        let mut s = space(&fake, 40);
        let leaf = |s: &S<'_>, ipa| s.walk(ipa).entry;
        s.map(Ipa(0x4000_0000), Pa(0x4000_0000), G, Attr::Ram).unwrap();
        assert_eq!(leaf(&s, 0x4000_0000), 0x4000_07fd);
        s.map(Ipa(0x20_0000), Pa(0x60_0000), 2 * M, Attr::PciWindow).unwrap();
        assert_eq!(leaf(&s, 0x20_0000), 0x0040_0000_0060_06d5);
        s.map(Ipa(0x1000), Pa(0x9000), 4 * K, Attr::Device).unwrap();
        assert_eq!(leaf(&s, 0x1000), 0x0040_0000_0000_96c7);
        s.map(Ipa(0x2000), Pa(0xa000), 4 * K, Attr::Ram).unwrap();
        assert_eq!(leaf(&s, 0x2000), 0xa7ff);
        assert_eq!(s.translate(Ipa(0x4123_4567)), Some((Pa(0x4123_4567), Attr::Ram)));
        assert_eq!(s.translate(Ipa(0x20_0008)), Some((Pa(0x60_0008), Attr::PciWindow)));
        assert_eq!(s.translate(Ipa(0x1ffc)), Some((Pa(0x9ffc), Attr::Device)));
        assert_eq!(s.translate(Ipa(0x3000)), None);
        assert_eq!(s.translate(Ipa(1 << 40)), None);

        let fwb = Fake::new();
        let mut s = Stage2::new(&fwb, &fwb, VmId(1), 40, Fwb::On).unwrap();
        s.map(Ipa(0x2000), Pa(0xa000), 4 * K, Attr::Ram).unwrap();
        assert_eq!(leaf(&s, 0x2000), 0xa7db);
        assert_eq!(s.translate(Ipa(0x2000)), Some((Pa(0xa000), Attr::Ram)));
    }

    #[test]
    fn the_root_is_concatenated_up_to_43_bits() {
        for (bits, vtcr, root) in [
            // 64 - bits | SL0 << 6 | WBWA, WBWA, inner | PS << 16 | RES1
            (32u8, 0x8000_3560u64, 4096usize),
            (36, 0x8001_355c, 4096),
            (40, 0x8002_3558, 8192),
            (42, 0x8003_3556, 32768),
            (44, 0x8004_3594, 4096),
            (48, 0x8005_3590, 4096),
        ] {
            let fake = Fake::new();
            let mut s = space(&fake, bits);
            assert_eq!(s.vtcr(), vtcr, "{bits} bits");
            assert_eq!(fake.allocated.borrow().values().copied().collect::<Vec<_>>(), [root]);
            assert_eq!(s.vttbr(), 7 << 48 | s.root.0);
            assert_eq!(s.root.0 % root as u64, 0);
            // The last page and the first, and nothing wraps into another's place.
            let last = (1u64 << bits) - PAGE;
            s.map(Ipa(last), Pa(0x1000), PAGE, Attr::Device).unwrap();
            assert_eq!(s.translate(Ipa(last)), Some((Pa(0x1000), Attr::Device)));
            for bit in 12..bits {
                assert_eq!(s.translate(Ipa(last ^ (1 << bit))), None);
            }
            s.unmap(Ipa(0), 1 << bits).unwrap();
            assert_eq!(fake.tables(), 1);
            s.destroy();
            assert_eq!(fake.tables(), 0);
        }
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(ipa_bits), [32, 36, 40, 42, 44, 48, 48, 48]);
        let fake = Fake::new();
        assert_eq!(Stage2::new(&fake, &fake, VmId(1), 31, Fwb::Off).err(), Some(Stage2Error::BadIpaBits(31)));
        assert_eq!(Stage2::new(&fake, &fake, VmId(256), 40, Fwb::Off).err(), Some(Stage2Error::BadVmid(VmId(256))));
    }

    #[test]
    fn the_largest_blocks_that_fit_are_used() {
        let fake = Fake::new();
        let mut s = space(&fake, 40);
        // 4 KiB, then 2 MiB, then 1 GiB, and down again.
        s.map(Ipa(G - 2 * M - 4 * K), Pa(3 * G - 2 * M - 4 * K), 2 * G + 4 * M + 8 * K, Attr::Ram).unwrap();
        let levels: Vec<_> =
            s.slots(G - 2 * M - 4 * K, 3 * G + 2 * M + 4 * K).map(|slot| (slot.level, slot.base)).collect();
        let expected = [(3, G - 2 * M - 4 * K), (2, G - 2 * M), (1, G), (1, 2 * G), (2, 3 * G), (3, 3 * G + 2 * M)];
        assert_eq!(levels, expected);
        // Blocks need both sides aligned.
        s.map(Ipa(8 * G), Pa(8 * G + 2 * M), G, Attr::Ram).unwrap();
        assert_eq!(s.walk(8 * G).level, 2);
        s.map(Ipa(16 * G), Pa(16 * G + 4 * K), 2 * M, Attr::Ram).unwrap();
        assert_eq!(s.walk(16 * G).level, 3);
    }

    #[test]
    fn unmapping_part_of_a_block_splits_it_with_break_before_make() {
        let fake = Fake::new();
        let mut s = space(&fake, 40);
        s.map(Ipa(G), Pa(4 * G), G, Attr::Device).unwrap();
        touch(&s, G + 5 * M);
        s.unmap(Ipa(G + 4 * M + 4 * K), 4 * K).unwrap();
        assert_tlb_true(&s);
        assert_eq!(s.translate(Ipa(G + 4 * M + 4 * K)), None);
        for ipa in [G, G + 4 * M, G + 4 * M + 8 * K, G + 6 * M, 2 * G - 4 * K] {
            assert_eq!(s.translate(Ipa(ipa)), Some((Pa(ipa + 3 * G), Attr::Device)), "{ipa:#x}");
        }
        assert_eq!(fake.tables(), 3);
        s.unmap(Ipa(G), G).unwrap();
        assert_eq!(fake.tables(), 1);
    }

    #[test]
    fn a_few_pages_are_invalidated_one_by_one_and_many_at_once() {
        let fake = Fake::new();
        let mut s = space(&fake, 40);
        s.map(Ipa(4 * K), Pa(4 * K), 64 * K, Attr::Ram).unwrap();
        let (all, single) = (fake.all.get(), fake.single.get());
        s.unmap(Ipa(4 * K), 8 * K).unwrap();
        assert_eq!((fake.all.get() - all, fake.single.get() - single), (0, 2));
        s.unmap(Ipa(0), 48 * K).unwrap();
        assert_eq!((fake.all.get() - all, fake.single.get() - single), (1, 2));
    }

    #[test]
    fn what_is_mapped_is_not_mapped_over() {
        let fake = Fake::new();
        let mut s = space(&fake, 40);
        s.map(Ipa(G + 8 * K), Pa(0), 4 * K, Attr::Ram).unwrap();
        assert_eq!(s.map(Ipa(G), Pa(0), G, Attr::Ram), Err(Stage2Error::Mapped(Ipa(G + 8 * K))));
        assert_eq!(s.translate(Ipa(G)), None);
        assert_eq!(s.protect(Ipa(G + 8 * K), 8 * K, Attr::Device), Err(Stage2Error::NotMapped(Ipa(G + 12 * K))));
        assert_eq!(s.translate(Ipa(G + 8 * K)), Some((Pa(0), Attr::Ram)));
        assert_eq!(s.map(Ipa(0x800), Pa(0), 4 * K, Attr::Ram), Err(Stage2Error::Misaligned));
        assert_eq!(s.map(Ipa(0), Pa(0x800), 4 * K, Attr::Ram), Err(Stage2Error::Misaligned));
        assert_eq!(s.map(Ipa(0), Pa(0), 0, Attr::Ram), Err(Stage2Error::Misaligned));
        assert_eq!(s.map(Ipa((1 << 40) - 4 * K), Pa(0), 8 * K, Attr::Ram), Err(Stage2Error::OutOfRange));
        assert_eq!(s.map(Ipa(0), Pa(1 << 40), 4 * K, Attr::Ram), Err(Stage2Error::OutOfRange));
        assert_eq!(s.map(Ipa(0), Pa(u64::MAX - 0xfff), 8 * K, Attr::Ram), Err(Stage2Error::OutOfRange));
        assert_eq!(s.unmap(Ipa(u64::MAX - 0xfff), 8 * K), Err(Stage2Error::OutOfRange));
    }

    #[test]
    fn running_out_of_tables_changes_nothing() {
        let fake = Fake::new();
        let mut s = space(&fake, 40);
        s.map(Ipa(4 * G), Pa(4 * G), G, Attr::Ram).unwrap();
        fake.budget.set(1);
        // One table for level 2 can be had, the one for level 3 cannot.
        assert_eq!(s.map(Ipa(G - 2 * M), Pa(0), 2 * M + 4 * K, Attr::Ram), Err(Stage2Error::OutOfMemory));
        assert_eq!(s.translate(Ipa(G - 2 * M)), None);
        assert_eq!(fake.tables(), 1);
        // The same with no leaf: a walk cache may still hold the table that is taken away again.
        fake.budget.set(1);
        assert_eq!(s.map(Ipa(16 * G), Pa(0), 4 * K, Attr::Ram), Err(Stage2Error::OutOfMemory));
        assert_eq!(fake.tables(), 1);
        fake.budget.set(1);
        assert_eq!(s.unmap(Ipa(4 * G), 4 * K), Err(Stage2Error::OutOfMemory));
        fake.budget.set(0);
        assert_eq!(s.protect(Ipa(4 * G), 4 * K, Attr::Device), Err(Stage2Error::OutOfMemory));
        for ipa in [4 * G, 4 * G + 4 * K, 5 * G - 4 * K] {
            assert_eq!(s.translate(Ipa(ipa)), Some((Pa(ipa), Attr::Ram)));
        }
        s.destroy();
        assert_eq!(fake.tables(), 0);
    }

    #[test]
    fn any_sequence_of_changes_agrees_with_a_list_of_pages() {
        const PAGES: u64 = 6 * 512;
        const BASE: u64 = G - 6 * M;
        let fake = Fake::new();
        let mut s = space(&fake, 40);
        let mut model: BTreeMap<u64, (u64, Attr)> = BTreeMap::new();
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 11) % below
        };
        let mut refused = 0;
        for _ in 0..600 {
            let coarse = random(2) == 0;
            let (first, count) =
                if coarse { (random(6) * 512, (1 + random(3)) * 512) } else { (random(PAGES), 1 + random(40)) };
            let count = count.min(PAGES - first);
            let pages = first..first + count;
            let attr = [Attr::Ram, Attr::PciWindow, Attr::Device][random(3) as usize];
            let ipa = Ipa(BASE + first * PAGE);
            for _ in 0..20 {
                touch(&s, BASE + random(PAGES) * PAGE);
            }
            let result = match random(3) {
                0 => {
                    let to = 8 * G + (if coarse { random(8) * 512 } else { random(4096) }) * PAGE;
                    let free = model.range(pages.clone()).next().is_none();
                    let result = s.map(ipa, Pa(to), count * PAGE, attr);
                    assert_eq!(result.is_ok(), free);
                    if free {
                        model.extend(pages.map(|page| (page, (to + (page - first) * PAGE, attr))));
                    }
                    result
                }
                1 => {
                    model.retain(|page, _| !pages.contains(page));
                    s.unmap(ipa, count * PAGE)
                }
                _ => {
                    let result = s.protect(ipa, count * PAGE, attr);
                    assert_eq!(result.is_ok(), pages.clone().all(|page| model.contains_key(&page)));
                    if result.is_ok() {
                        model.range_mut(pages).for_each(|(_, mapping)| mapping.1 = attr);
                    }
                    result
                }
            };
            refused += usize::from(result.is_err());
            assert_tlb_true(&s);
            for page in 0..PAGES {
                let expected = model.get(&page).map(|&(pa, attr)| (Pa(pa), attr));
                assert_eq!(s.translate(Ipa(BASE + page * PAGE)), expected, "page {page}");
            }
        }
        assert!((80..480).contains(&refused), "{refused} changes were refused");
        s.unmap(Ipa(0), 1 << 40).unwrap();
        assert_eq!(fake.tables(), 1);
    }
}
