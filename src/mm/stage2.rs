//! Stage 2 translation tables of a domain.
//!
//! 4 KiB granule, up to 48 address bits, concatenated root tables where that saves a level, and blocks of 1 GiB and 2
//! MiB where both addresses allow them. Tables come from [`Hw::alloc`] and are accessed by [`Hw::load64`] and
//! [`Hw::store64`], so that this file has no `unsafe` and runs on the host. Arm ARM (DDI 0487), D8.2 (walks), D8.3
//! (descriptors), D8.6 (attributes), D8.16 (break-before-make), D24.2 (VTCR_EL2, VTTBR_EL2).
//!
//! Invariants:
//!
//! - A valid descriptor is replaced by another valid one only through an invalid one and a TLB invalidation. This
//!   includes the split of a block by [`Stage2::unmap`]. In between, a running vCPU of the domain would take a stage 2
//!   fault on an address that stays mapped.
//! - A table is freed only after it has been unlinked and the TLBs (including walk caches) have been invalidated.
//! - There are no empty tables below the root.
//! - An operation that fails changes no translation.
//!
//! Hardware ignores all other bits of an invalid descriptor. Tables that are to be freed are linked through their first
//! words, which stay invalid descriptors.

use crate::arch::sysreg::{VTCR_EL2, VTTBR_EL2};
use crate::ids::{Ipa, Pa, VmId};
use crate::mmio::{Coherence, Hw};
use crate::util::PAGE;
use core::fmt;

const TABLE_ENTRIES: u64 = 512;
const LAST_LEVEL: u32 = 3;

/// What walks the tables and keeps translations: the CPUs of the inner shareable domain, or the SMMUs of the machine.
/// Each invalidation is complete when the method returns.
pub trait Tlb {
    /// Whether walks are coherent with the CPUs' caches.
    fn coherence(&self) -> Coherence {
        Coherence::Coherent
    }

    /// Invalidates the translations of the block or page at `ipa`, including those in walk caches (so not by the
    /// last-level-only instruction), and those combined with the guest's stage 1.
    fn invalidate_ipa(&self, vmid: VmId, ipa: Ipa);
    /// Invalidates all translations of a VMID, of both stages.
    fn invalidate_all(&self, vmid: VmId);
}

/// The attributes of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attr {
    /// Memory: Normal write-back, inner shareable, readable, writable, executable.
    Ram,
    /// A PCI memory window: Normal non-cacheable, so that the guest's stage 1 can choose between that and Device; not
    /// executable.
    PciWindow,
    /// Registers: Device-nGnRE, not executable.
    Device,
    /// Registers that can be written only, as [`Attr::Device`] otherwise: the doorbell of an ITS, to which devices write
    /// their MSIs.
    Doorbell,
}

/// Whether HCR_EL2.FWB is set for the domain (FEAT_S2FWB). It changes the encoding of the attributes, and makes memory
/// write-back even if the guest's stage 1 says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fwb {
    /// FWB is clear: the weaker of the two stages' attributes applies.
    Off,
    /// FWB is set.
    On,
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage2Error {
    /// An address or the size is not a multiple of 4 KiB, or the size is zero.
    Misaligned,
    /// The range exceeds the input or output address size.
    OutOfRange,
    /// The address is already mapped.
    Mapped(Ipa),
    /// There is no memory for a table.
    OutOfMemory,
    /// The VMID has more than 8 bits, while VTCR_EL2.VS is 0.
    BadVmid(VmId),
    /// The input address size is not 32 to 48 bits.
    BadIpaBits(u8),
}

impl fmt::Display for Stage2Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Stage2Error::Misaligned => f.write_str("stage 2: address or size is not a multiple of 4 KiB"),
            Stage2Error::OutOfRange => f.write_str("stage 2: the range exceeds the address size"),
            Stage2Error::Mapped(ipa) => write!(f, "stage 2: guest address {ipa} is already mapped"),
            Stage2Error::OutOfMemory => f.write_str("stage 2: no memory for a table"),
            Stage2Error::BadVmid(vmid) => write!(f, "stage 2: {vmid} exceeds 8 bits"),
            Stage2Error::BadIpaBits(bits) => write!(f, "stage 2: guest addresses of {bits} bits are not supported"),
        }
    }
}

impl core::error::Error for Stage2Error {}

/// Returns the input address size for a CPU with this ID_AA64MMFR0_EL1.PARange: that of physical addresses, but at most
/// 48 bits (52 bits need another descriptor format).
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

/// The descriptor format (D8.3.1 and D8.3.2).
mod desc {
    use super::{Attr, Fwb, LAST_LEVEL};

    pub const VALID: u64 = 1;
    pub const TABLE_OR_PAGE: u64 = 1 << 1;
    pub const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
    const S2AP_READ_WRITE: u64 = 0b11 << 6;
    const S2AP_WRITE: u64 = 0b10 << 6;
    const SH_OUTER: u64 = 0b10 << 8;
    const SH_INNER: u64 = 0b11 << 8;
    const AF: u64 = 1 << 10;
    const XN: u64 = 1 << 54;

    /// Returns the MemAttr field (bits 3:0 of the attributes), D8.6.5 (FWB off) and D8.6.6 (FWB on).
    const fn memattr(attr: Attr, fwb: Fwb) -> u64 {
        match (attr, fwb) {
            (Attr::Ram, Fwb::Off) => 0b1111 << 2,              // outer and inner write-back
            (Attr::Ram, Fwb::On) => 0b0110 << 2,               // write-back regardless of stage 1
            (Attr::PciWindow, _) => 0b0101 << 2,               // non-cacheable, or Device by stage 1
            (Attr::Device | Attr::Doorbell, _) => 0b0001 << 2, // Device-nGnRE
        }
    }

    /// Returns all bits of a leaf descriptor except its address.
    pub const fn leaf(attr: Attr, fwb: Fwb, level: u32) -> u64 {
        let kind = if level == LAST_LEVEL { VALID | TABLE_OR_PAGE } else { VALID };
        let rest = match attr {
            Attr::Ram => SH_INNER,
            Attr::PciWindow | Attr::Device | Attr::Doorbell => SH_OUTER | XN,
        };
        let access = if matches!(attr, Attr::Doorbell) { S2AP_WRITE } else { S2AP_READ_WRITE };
        kind | memattr(attr, fwb) | access | AF | rest
    }

    pub const fn is_valid(entry: u64) -> bool {
        entry & VALID != 0
    }

    pub const fn is_table(entry: u64, level: u32) -> bool {
        is_valid(entry) && entry & TABLE_OR_PAGE != 0 && level != LAST_LEVEL
    }

    /// Decodes the attributes of a leaf descriptor.
    #[cfg(test)]
    pub fn attr(entry: u64, fwb: Fwb) -> Option<Attr> {
        const SHOWS: u64 = 0xf << 2 | S2AP_READ_WRITE;
        let all = [Attr::Ram, Attr::PciWindow, Attr::Device, Attr::Doorbell];
        all.into_iter().find(|&attr| (leaf(attr, fwb, LAST_LEVEL) ^ entry) & SHOWS == 0)
    }
}

/// Returns the number of bytes that one descriptor of a level covers.
const fn span(level: u32) -> u64 {
    1 << (39 - 9 * level)
}

/// The descriptor at which a walk ends: a leaf or an invalid one.
#[derive(Clone, Copy)]
struct Slot {
    /// The address of the descriptor.
    at: Pa,
    level: u32,
    /// The first guest address that it covers.
    base: u64,
    entry: u64,
}

impl Slot {
    fn end(self) -> u64 {
        self.base + span(self.level)
    }
}

/// The largest number of TLB invalidations by address that is cheaper than one of the whole VMID.
const FEW: usize = 8;

/// The guest addresses to invalidate; all of them if there are more than [`FEW`].
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

/// The stage 2 tables of one domain.
///
/// Dropping this leaks them. [`destroy`](Self::destroy) frees them; its caller guarantees that no CPU has the VTTBR
/// loaded.
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
    /// An address space of `ipa_bits` bits (32 to 48, see [`ipa_bits`]) in which nothing is mapped.
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
        // Up to 16 concatenated tables replace a level above them (D8.2.2). From 44 bits on, this is not enough to
        // start at level 1.
        let start_level = if ipa_bits > 43 { 0 } else { 1 };
        let mut stage2 = Stage2 { hw, tlb, vmid, ipa_bits, fwb, start_level, root: Pa(0) };
        let size = stage2.root_size();
        stage2.root = hw.alloc(size, size).ok_or(Stage2Error::OutOfMemory)?;
        hw.publish(stage2.root, size, tlb.coherence());
        // Another domain may have used the VMID before.
        tlb.invalidate_all(vmid);
        Ok(stage2)
    }

    /// Returns the size of the root in bytes: one page, or several if tables are concatenated.
    fn root_size(&self) -> usize {
        let entries = 1u64 << u32::from(self.ipa_bits).saturating_sub(span(self.start_level).trailing_zeros());
        (entries * 8).max(PAGE) as usize
    }

    /// Returns the VMID.
    #[must_use]
    pub fn vmid(&self) -> VmId {
        self.vmid
    }

    /// Returns the value of VTTBR_EL2.
    #[must_use]
    pub fn vttbr(&self) -> u64 {
        VTTBR_EL2::VMID.val(self.vmid.0.into()).value | self.root.0
    }

    /// Returns the value of VTCR_EL2: 4 KiB granule, walks write-back and inner shareable, 8-bit VMID, and the output
    /// size equal to the input size.
    #[must_use]
    pub fn vtcr(&self) -> u64 {
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
        let fields = VTCR_EL2::RES1::SET
            + VTCR_EL2::PS.val(ps)
            + VTCR_EL2::TG0::Granule4KB
            + VTCR_EL2::SH0::Inner
            + VTCR_EL2::ORGN0::NormalWBRAWA
            + VTCR_EL2::IRGN0::NormalWBRAWA
            + VTCR_EL2::SL0.val(sl0)
            + VTCR_EL2::T0SZ.val(t0sz);
        fields.value
    }

    /// Translates a guest address. Returns the physical address and the attributes, or `None` if it is not mapped.
    #[cfg(test)]
    #[must_use]
    fn translate(&self, ipa: Ipa) -> Option<(Pa, Attr)> {
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
    /// [`Stage2Error::Misaligned`], [`Stage2Error::OutOfRange`], [`Stage2Error::Mapped`], and
    /// [`Stage2Error::OutOfMemory`]. After an error nothing is mapped.
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
            // No TLB caches an invalid descriptor, so it is enough that walks see the store.
            self.set(slot, to | desc::leaf(attr, self.fwb, level));
            at += span(level);
        }
        Ok(())
    }

    /// Unmaps `size` bytes at `ipa`. Parts of the range may be unmapped already.
    ///
    /// # Errors
    ///
    /// [`Stage2Error::Misaligned`], [`Stage2Error::OutOfRange`], and [`Stage2Error::OutOfMemory`] if a block must be
    /// split. After an error nothing is unmapped.
    pub fn unmap(&mut self, ipa: Ipa, size: u64) -> Result<(), Stage2Error> {
        let (start, end) = self.bounds(ipa, size)?;
        self.split_at(start)?;
        self.split_at(end)?;
        self.clear(start, end);
        Ok(())
    }

    /// Invalidates the TLB entries of the domain, those of the guest's own translations included.
    pub fn invalidate_tlbs(&self) {
        self.tlb.invalidate_all(self.vmid);
    }

    /// Frees all tables. The caller guarantees that no CPU has this VTTBR loaded or will load it.
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

    /// Checks a guest range and returns its start and end.
    fn bounds(&self, ipa: Ipa, size: u64) -> Result<(u64, u64), Stage2Error> {
        if size == 0 || !(ipa.0 | size).is_multiple_of(PAGE) {
            return Err(Stage2Error::Misaligned);
        }
        match ipa.0.checked_add(size) {
            Some(end) if end <= 1 << self.ipa_bits => Ok((ipa.0, end)),
            _ => Err(Stage2Error::OutOfRange),
        }
    }

    /// Returns the address of the descriptor for `ipa` in a table of `level`. Concatenated tables are treated as one.
    fn place(&self, table: Pa, level: u32, ipa: u64) -> Pa {
        let index = ipa / span(level);
        table.add(8 * if level == self.start_level { index } else { index % TABLE_ENTRIES })
    }

    /// Walks the tables for `ipa` to a leaf or an invalid descriptor.
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

    /// Returns the leaves and invalid descriptors that cover `start` to `end`.
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

    /// Returns the address of the descriptor of `level` for `ipa`, after making the tables above it; `None` if there is
    /// no memory for a table. The caller has checked that nothing is mapped there.
    fn make_slot(&self, ipa: u64, level: u32) -> Option<Pa> {
        let mut table = self.root;
        for above in self.start_level..level {
            let at = self.place(table, above, ipa);
            let entry = self.hw.load64(at);
            table = if desc::is_table(entry, above) { Pa(entry & desc::ADDRESS) } else { self.link_table(at, |_| 0)? };
        }
        Some(self.place(table, level, ipa))
    }

    /// Makes a table with the entries that `fill` returns and links it at `at`, which is invalid and not cached in any
    /// TLB.
    fn link_table(&self, at: Pa, fill: impl Fn(u64) -> u64) -> Option<Pa> {
        let table = self.make_table(fill)?;
        self.set(at, table.0 | desc::VALID | desc::TABLE_OR_PAGE);
        Some(table)
    }

    /// Makes a table, which is visible to table walks when this returns.
    fn make_table(&self, fill: impl Fn(u64) -> u64) -> Option<Pa> {
        let table = self.hw.alloc(PAGE as usize, PAGE as usize)?;
        for index in 0..TABLE_ENTRIES {
            match fill(index) {
                0 => {} // it is allocated zeroed
                entry => self.hw.store64(table.add(8 * index), entry),
            }
        }
        self.hw.publish(table, PAGE as usize, self.tlb.coherence());
        Some(table)
    }

    /// Splits the block that extends across `ipa`, if there is one, until `ipa` is the start of a block or page.
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
        // A walk cache may hold an empty table for an address that was not a leaf.
        stale.all |= unlinked.is_some();
        self.invalidate(&stale);
        while let Some(table) = unlinked {
            let next = self.hw.load64(table);
            self.hw.free(table, PAGE as usize, PAGE as usize);
            unlinked = (next != 0).then_some(Pa(next));
        }
    }

    /// Unlinks the empty tables below the part of `table` that covers `range`, and chains them through their first
    /// words, which stay invalid descriptors because table addresses are multiples of 4 KiB. `base` is the guest
    /// address of `table`.
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

    /// Changes a descriptor in a linked table. The change is visible to table walks when this returns.
    fn set(&self, at: Pa, entry: u64) {
        self.hw.store64(at, entry);
        self.hw.publish(at, 8, self.tlb.coherence());
    }

    /// Invalidates the TLB entries of the guest addresses in `stale`.
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
mod tests;
