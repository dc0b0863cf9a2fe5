//! A walk of a guest's stage 1 tables, to find the instruction that the guest was executing.
//!
//! An `AT` instruction would do the same, but the tables are the guest's: a table at an address that does not answer
//! would be an external abort at EL2. So the tables are read like any other data of the guest, through a reader that
//! has nothing but the domain's RAM, in at most five reads.
//!
//! The CPU has fetched the instruction already, perhaps by a translation in its TLB that the tables do not have any
//! more. So the result is a hint that must not be trusted, and if there is none, the guest's next fetch with an empty
//! TLB takes the exception that it should. What only decides between two faults (the order of checks, the fault's
//! number) is left out, and so is what is no part of a fetch: attributes, ASIDs, the contiguous hint, and the features
//! that `arch/features/table.rs` hides (permission indirection, 52-bit physical addresses, 128-bit descriptors).
//!
//! Arm ARM (DDI 0487), D8.2 (walks), D8.3 (descriptors), D8.4 (permissions), D24.2.183 (TCR_EL1).

use crate::ids::Ipa;

/// The registers that control stage 1 of EL1 and EL0, and the ID registers that say what of them exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regime {
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1.
    pub ttbr0: u64,
    /// TTBR1_EL1.
    pub ttbr1: u64,
    /// ID_AA64MMFR0_EL1 as the guest reads it.
    pub mmfr0: u64,
    /// ID_AA64MMFR1_EL1 as the guest reads it.
    pub mmfr1: u64,
    /// ID_AA64MMFR2_EL1 as the guest reads it.
    pub mmfr2: u64,
}

/// Why an instruction cannot be fetched from an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoFetch {
    /// The tables, or TCR_EL1, do not translate the address.
    Translation,
    /// An address exceeds the physical address size.
    AddressSize,
    /// The access flag is clear and the hardware does not set it.
    AccessFlag,
    /// The memory may not be executed.
    Permission,
    /// A descriptor at this address cannot be read: it is not in the guest's RAM.
    Unreadable(Ipa),
}

const SCTLR_M: u32 = 0;
const SCTLR_WXN: u32 = 19;
const SCTLR_EE: u32 = 25;

const TCR_IPS: u32 = 32;
const TCR_HA: u32 = 39;
const TCR_DS: u32 = 59;

/// The position of the last level.
const LAST: i32 = 3;

/// Returns the mask of the bits below `n`.
const fn below(n: u32) -> u64 {
    match 1u64.checked_shl(n) {
        Some(bit) => bit.wrapping_sub(1),
        None => u64::MAX,
    }
}

const fn field(value: u64, lsb: u32, width: u32) -> u64 {
    value.wrapping_shr(lsb) & below(width)
}

const fn bit(value: u64, n: u32) -> bool {
    field(value, n, 1) != 0
}

/// The half of the address space that an address is in: what TCR_EL1 and a TTBR say of it.
struct Half {
    ttbr: u64,
    /// The number of address bits that are not translated.
    txsz: u32,
    /// log2 of the granule in bytes.
    granule: u32,
    /// The top byte of an instruction's address is ignored.
    ignores_top: bool,
    /// TCR_EL1.EPD: no walks.
    disabled: bool,
    /// TCR_EL1.E0PD: not for EL0.
    hidden_from_el0: bool,
    /// TCR_EL1.HPD: table descriptors restrict no permissions.
    flat: bool,
}

impl Half {
    fn of(regime: &Regime, va: u64) -> Half {
        let Regime { tcr, mmfr1, mmfr2, .. } = *regime;
        // FEAT_HPDS and FEAT_E0PD: without them the bits have no effect.
        let (has_hpds, has_e0pd) = (field(mmfr1, 12, 4) != 0, field(mmfr2, 60, 4) != 0);
        if bit(va, 55) {
            Half {
                ttbr: regime.ttbr1,
                txsz: field(tcr, 16, 6) as u32,
                granule: match field(tcr, 30, 2) {
                    1 => 14,
                    2 => 12,
                    _ => 16,
                },
                ignores_top: bit(tcr, 38) && !bit(tcr, 52),
                disabled: bit(tcr, 23),
                hidden_from_el0: has_e0pd && bit(tcr, 56),
                flat: has_hpds && bit(tcr, 42),
            }
        } else {
            Half {
                ttbr: regime.ttbr0,
                txsz: field(tcr, 0, 6) as u32,
                granule: match field(tcr, 14, 2) {
                    1 => 16,
                    2 => 14,
                    _ => 12,
                },
                ignores_top: bit(tcr, 37) && !bit(tcr, 51),
                disabled: bit(tcr, 7),
                hidden_from_el0: has_e0pd && bit(tcr, 55),
                flat: has_hpds && bit(tcr, 41),
            }
        }
    }
}

impl Regime {
    /// Returns the number of physical address bits: what TCR_EL1.IPS says, but not more than the guest's CPU has.
    fn pa_bits(&self) -> u32 {
        let bits = |code| match code {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            _ => 48,
        };
        bits(field(self.tcr, TCR_IPS, 3)).min(bits(field(self.mmfr0, 0, 4)))
    }

    /// Whether the guest has the granule, and whether it uses 52-bit descriptors (TCR_EL1.DS) for it.
    fn granule(&self, log2: u32) -> Option<bool> {
        let ds = bit(self.tcr, TCR_DS);
        // TGran4, TGran16 and TGran64.
        match (log2, field(self.mmfr0, 28, 4), field(self.mmfr0, 20, 4), field(self.mmfr0, 24, 4)) {
            (12, 0xf, ..) | (14, _, 0, _) | (16, .., 0xf) => None,
            (12, has, ..) => Some(ds && has == 1),
            (14, _, has, _) => Some(ds && has == 2),
            _ => Some(false),
        }
    }

    /// Whether the CPU sets access flags (FEAT_HAFDBS, TCR_EL1.HA).
    fn sets_access_flag(&self) -> bool {
        bit(self.tcr, TCR_HA) && field(self.mmfr1, 0, 4) != 0
    }
}

/// Permissions to execute and what restricts them, as gathered from the tables.
#[derive(Clone, Copy, Default)]
struct Limits {
    not_at_el0: bool,
    not_at_el1: bool,
    el0_has_no_access: bool,
    read_only: bool,
}

impl Limits {
    /// Adds the restrictions of a table descriptor.
    fn restrict(&mut self, table: u64) {
        self.not_at_el1 |= bit(table, 59);
        self.not_at_el0 |= bit(table, 60);
        self.el0_has_no_access |= bit(table, 61);
        self.read_only |= bit(table, 62);
    }

    /// Whether the memory of a leaf descriptor may be executed.
    fn allow(self, leaf: u64, el0: bool, wxn: bool) -> bool {
        let writable = !self.read_only && !bit(leaf, 7);
        let writable_at_el0 = writable && !self.el0_has_no_access && bit(leaf, 6);
        if el0 {
            !(self.not_at_el0 || bit(leaf, 54) || wxn && writable_at_el0)
        } else {
            // What EL0 can write, EL1 does not execute.
            !(self.not_at_el1 || bit(leaf, 53) || writable_at_el0 || wxn && writable)
        }
    }
}

/// Translates the address of an instruction at EL0 or EL1. `read` returns the eight bytes at an address, which is a
/// multiple of eight, in the order of memory; `None` if they are not the guest's RAM.
///
/// # Errors
///
/// [`NoFetch`].
pub fn fetch(
    regime: &Regime,
    va: u64,
    el0: bool,
    mut read: impl FnMut(Ipa) -> Option<[u8; 8]>,
) -> Result<Ipa, NoFetch> {
    let half = Half::of(regime, va);
    let top = if half.ignores_top { 56 } else { 64 };
    let pa_bits = regime.pa_bits();
    let fits = |address: u64| if address & !below(pa_bits) == 0 { Ok(()) } else { Err(NoFetch::AddressSize) };
    if !bit(regime.sctlr, SCTLR_M) {
        let address = va & below(top);
        return fits(address).map(|()| Ipa(address));
    }

    let ds = regime.granule(half.granule).ok_or(NoFetch::Translation)?;
    let large = ds || half.granule == 16 && field(regime.mmfr2, 16, 4) != 0;
    let least = if large { 12 } else { 16 };
    let most = match field(regime.mmfr2, 28, 4) {
        0 => 39,
        // FEAT_TTST.
        _ if half.granule == 16 => 47,
        _ => 48,
    };
    if half.disabled || el0 && half.hidden_from_el0 || !(least..=most).contains(&half.txsz) {
        return Err(NoFetch::Translation);
    }
    // The bits above those that are translated are all zeroes, or all ones in the upper half.
    let va_bits = 64u32.saturating_sub(half.txsz);
    let above = below(top) & !below(va_bits);
    if va & above != if bit(va, 55) { above } else { 0 } {
        return Err(NoFetch::Translation);
    }

    // Each level resolves `stride` bits; the first one what is left, at least one bit.
    let stride = half.granule.saturating_sub(3);
    let levels = va_bits.saturating_sub(half.granule).div_ceil(stride.max(1));
    let mut level = LAST.saturating_sub_unsigned(levels.saturating_sub(1));
    let shift = |level: i32| half.granule.saturating_add(stride.saturating_mul(LAST.abs_diff(level)));
    let first_bits = va_bits.saturating_sub(shift(level));

    // A root is aligned to its size, but in the format for 52 bits, which has no room for bits 5:0, to 64 bytes.
    let mut table = half.ttbr & 0x0000_ffff_ffff_fffe & !below(first_bits.saturating_add(3));
    if ds {
        table = table & !0x3f | field(half.ttbr, 2, 4) << 48;
    }
    let mut index = field(va, shift(level), first_bits);
    let mut limits = Limits::default();
    loop {
        fits(table)?;
        let at = Ipa(table | index << 3);
        let bytes = read(at).ok_or(NoFetch::Unreadable(at))?;
        let entry = if bit(regime.sctlr, SCTLR_EE) { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) };
        if !bit(entry, 0) {
            return Err(NoFetch::Translation);
        }
        let mut output = entry & 0x0000_ffff_ffff_f000;
        if ds {
            output |= entry & 0x0003_0000_0000_0000 | field(entry, 8, 2) << 50;
        }
        if bit(entry, 1) && level < LAST {
            if !half.flat {
                limits.restrict(entry);
            }
            table = output & !below(half.granule);
            level = level.saturating_add(1);
            index = field(va, shift(level), stride);
            continue;
        }
        // At the last level a page has bit 1 set; above, a block has it clear, where the granule has blocks.
        let is_leaf = match (half.granule, level) {
            (_, LAST) => bit(entry, 1),
            (12, 1 | 2) | (14 | 16, 2) => true,
            (12, 0) | (14, 1) => ds,
            _ => false,
        };
        if !is_leaf {
            return Err(NoFetch::Translation);
        }
        let offset = below(shift(level));
        let address = output & !offset | va & offset;
        fits(address)?;
        if !bit(entry, 10) && !regime.sets_access_flag() {
            return Err(NoFetch::AccessFlag);
        }
        if !limits.allow(entry, el0, bit(regime.sctlr, SCTLR_WXN)) {
            return Err(NoFetch::Permission);
        }
        return Ok(Ipa(address));
    }
}

#[cfg(test)]
mod tests;
