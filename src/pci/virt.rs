//! One function as a domU sees it.
//!
//! Configuration space is EL2's own: what a guest reads and writes is the state of [`VirtualFunction`], and only the bits
//! in the last column of this table reach the function.
//!
//! | register | the guest sees | the function gets |
//! |---|---|---|
//! | Vendor, Device, Subsystem IDs, Class | as they are | |
//! | Command | Memory Space, Bus Master, Interrupt Disable, SERR#, Parity | Bus Master |
//! | Status | the function's errors | errors are cleared |
//! | Header Type | 0: one function | |
//! | BARs | memory BARs as in hardware, of a page at least; I/O BARs as absent | |
//! | Expansion ROM | absent | |
//! | Interrupt Pin | 0: no INTx | |
//! | Power Management | D0 and D3hot, without effect (No_Soft_Reset) | |
//! | MSI | as it is | enable, number of vectors, address, data, masks |
//! | MSI-X | as it is; the table is in a BAR | enable, mask |
//! | PCI Express | an endpoint of the root complex, without link or slot | ordering, read request size, errors are cleared |
//! | Function Level Reset | if EL2 can reset the function; EL2 does it | |
//! | other capabilities, extended capabilities | absent | |
//!
//! The function decodes its memory all the time. What the guest's Memory Space Enable and BARs decide is where stage 2
//! maps it, so that a guest that turns decoding off and accesses a BAR takes a stage 2 fault, and no access of a CPU goes
//! to a function that does not answer.
//!
//! What MSIs may do is not decided here: the address of an MSI is translated by the SMMU as any DMA of the function, and
//! the ITS knows it by its DeviceID.
//!
//! A BAR smaller than a page is shown as one of a page, because stage 2 maps pages: so each BAR has pages of its own in
//! the guest, and its registers are at their offsets. That a page holds nothing of another function is a condition for
//! the physical BAR, which [`assign`](super::assign) guarantees.

use super::ConfigSpace;
use super::function::{Facts, Msi, Space};
use super::regs::*;
use crate::arch::nospec;
use crate::ids::Ipa;
use crate::util::PAGE;
use crate::util::range::Range;
use arrayvec::ArrayVec;

/// Command: what a guest can set.
const COMMAND_BITS: u32 = MEMORY_SPACE | BUS_MASTER | REPORTS | INTERRUPT_DISABLE;

/// Why a function cannot be given to a domU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is a bridge.
    Bridge,
    /// The BAR with this index has no place, or one that is not of whole pages.
    NotPlaced(u8),
    /// Its virtual functions are enabled.
    VirtualFunctions,
}

impl core::fmt::Display for Unfit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Unfit::Bridge => write!(f, "it is a bridge"),
            Unfit::NotPlaced(index) => write!(f, "its BAR {index} has no place of its own"),
            Unfit::VirtualFunctions => write!(f, "its virtual functions are enabled"),
        }
    }
}

/// A capability that the guest sees, at the offset that it has in the function.
#[derive(Clone, Copy, Debug)]
struct Shown {
    id: u8,
    at: u64,
    length: u64,
    /// The offset of the next one; 0 for the last.
    next: u64,
}

/// A BAR that the guest sees.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Its size: that of the function's, or a page.
    size: u64,
    /// The bits that are no address.
    flags: u32,
    wide: bool,
    /// Where the function has it: whole pages.
    to: Range,
}

/// What a write asks for that is not done yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Nothing,
    /// BARs may have moved.
    Moved,
    /// The guest has begun a Function Level Reset.
    Reset,
}

/// What a guest has set. This is the state after a reset.
#[derive(Clone, Copy, Debug, Default)]
struct Registers {
    command: u32,
    cache_line: u8,
    interrupt_line: u8,
    bars: [u32; BAR_COUNT],
    power: u32,
    /// The enables of error messages, which the function does not get.
    error_messages: u32,
}

/// A function as a domU sees it.
#[derive(Debug)]
pub struct VirtualFunction {
    facts: Facts,
    bars: [Option<Shape>; BAR_COUNT],
    /// In the order of the chain.
    shown: ArrayVec<Shown, 4>,
    can_reset: bool,
    registers: Registers,
    /// Where the BARs are mapped.
    pub(super) mapped: [Option<Ipa>; BAR_COUNT],
    /// It is being reset, or has not come back: it reads as ones, and ignores writes.
    is_away: bool,
}

impl VirtualFunction {
    /// The function with these facts, whose BARs are at the CPU addresses `places` (see [`assign`](super::assign)). It is
    /// away until [`HostBridge::returns`](super::host_bridge::HostBridge::returns) is called. `can_reset` is whether EL2 carries out a Function Level Reset.
    ///
    /// # Errors
    ///
    /// [`Unfit`].
    pub fn new(facts: Facts, places: &[Option<Range>; BAR_COUNT], can_reset: bool) -> Result<VirtualFunction, Unfit> {
        if facts.kind != super::function::Kind::Endpoint {
            return Err(Unfit::Bridge);
        }
        if facts.virtual_functions.is_some_and(|count| count != 0) {
            return Err(Unfit::VirtualFunctions);
        }
        let mut bars = [None; BAR_COUNT];
        for ((index, bar), shape) in facts.bars.iter().enumerate().zip(&mut bars) {
            let Some(bar) = bar.filter(|bar| bar.space != Space::Io) else { continue };
            let size = bar.size.max(PAGE);
            let place = places.get(index).copied().flatten();
            let to = place.filter(|to| to.size == size && to.base.0.is_multiple_of(PAGE));
            let wide = bar.space == Space::Memory64;
            let prefetchable = if bar.prefetchable { BAR_PREFETCHABLE } else { 0 };
            let flags = prefetchable | if wide { BAR_64 } else { 0 };
            *shape = Some(Shape { size, flags, wide, to: to.ok_or(Unfit::NotPlaced(index as u8))? });
        }
        let shown = shown(&facts);
        Ok(VirtualFunction {
            facts,
            bars,
            shown,
            can_reset,
            registers: Registers::default(),
            mapped: [None; BAR_COUNT],
            is_away: true,
        })
    }

    /// The facts of the function.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether the guest cannot reach it now, because it is being reset or has not come back.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.is_away
    }

    /// The function has been reset: the guest finds it as after a reset. It decodes its memory from now on, and sends
    /// nothing.
    pub(super) fn returns(&mut self, config: &impl ConfigSpace) {
        self.registers = Registers::default();
        self.is_away = false;
        self.set_command(config);
    }

    /// The function goes away: the guest reads ones. The caller unmaps its BARs, and then silences it.
    pub(super) fn leave(&mut self) {
        self.is_away = true;
        self.registers = Registers::default();
    }

    /// Where the guest wants a BAR: the address, and what is to be there.
    pub(super) fn wanted(&self, index: usize) -> Option<(Ipa, Range, bool)> {
        let shape = self.bars.get(index).copied().flatten()?;
        // While it is away, the command is as after a reset.
        if self.registers.command & MEMORY_SPACE == 0 {
            return None;
        }
        let low = self.registers.bars.get(index)?;
        let high = if shape.wide { *self.registers.bars.get(index.saturating_add(1))? } else { 0 };
        let at = Ipa(u64::from(high) << 32 | u64::from(*low));
        Some((at, shape.to, shape.flags & BAR_PREFETCHABLE != 0))
    }

    /// Where the BARs are mapped, and to what.
    pub(super) fn mappings(&self) -> impl Iterator<Item = (Ipa, Range)> {
        self.bars.iter().zip(&self.mapped).filter_map(|(shape, at)| Some(((*at)?, shape.as_ref()?.to)))
    }

    /// Where the function has a BAR.
    pub(super) fn pages(&self, index: usize) -> Option<Range> {
        Some(self.bars.get(index)?.as_ref()?.to)
    }

    /// Loads the word at `at`, a multiple of 4.
    pub(super) fn read_word(&self, config: &impl ConfigSpace, at: u64) -> u32 {
        if self.is_away {
            return NONE;
        }
        let registers = &self.registers;
        match at {
            ID => self.facts.id,
            COMMAND => {
                let errors = config.read(self.facts.page.add(STATUS), 2) & STATUS_ERRORS;
                let list = if self.shown.is_empty() { 0 } else { HAS_CAPABILITIES };
                errors << 16 | list | registers.command
            }
            CLASS => self.facts.class,
            HEADER => registers.cache_line.into(),
            BARS..=0x24 => self.read_bar(at),
            SUBSYSTEM => self.facts.subsystem,
            CAPABILITIES => self.shown.first().map_or(0, |first| first.at as u32),
            INTERRUPT_LINE => registers.interrupt_line.into(),
            _ => self.read_capability(config, at),
        }
    }

    /// Stores the bytes of `value` that `bytes` (a mask) has to the word at `at`, a multiple of 4.
    pub(super) fn write_word(&mut self, config: &impl ConfigSpace, at: u64, bytes: u32, value: u32) -> Outcome {
        if self.is_away {
            return Outcome::Nothing;
        }
        match at {
            COMMAND => {
                let errors = (value & bytes) >> 16 & STATUS_ERRORS;
                if errors != 0 {
                    config.write(self.facts.page.add(STATUS), 2, errors);
                }
                if bytes & 0xffff != 0 {
                    self.registers.command = merge(self.registers.command, bytes, value) & COMMAND_BITS;
                    self.set_command(config);
                    return Outcome::Moved;
                }
            }
            HEADER if bytes & 0xff != 0 => self.registers.cache_line = value as u8,
            INTERRUPT_LINE if bytes & 0xff != 0 => self.registers.interrupt_line = value as u8,
            BARS..=0x24 => {
                let (_, mask) = self.bar_bits(at);
                let index = (at.saturating_sub(BARS) / 4) as usize;
                if let Some(bar) = nospec::get_mut(&mut self.registers.bars, index) {
                    *bar = merge(*bar, bytes, value) & mask;
                    return Outcome::Moved;
                }
            }
            _ => return self.write_capability(config, at, bytes, value),
        }
        Outcome::Nothing
    }

    /// The function's Command: its own decoding, and what the guest has a say in.
    fn set_command(&self, config: &impl ConfigSpace) {
        let command = MEMORY_SPACE | INTERRUPT_DISABLE | self.registers.command & BUS_MASTER;
        config.write(self.facts.page.add(COMMAND), 2, command);
    }

    /// The bits of the BAR register at `at` that are fixed, and a mask of those that can be written.
    fn bar_bits(&self, at: u64) -> (u32, u32) {
        let index = (at.saturating_sub(BARS) / 4) as usize;
        let shape = |index: usize| nospec::get(&self.bars, index).copied().flatten();
        let mask = |shape: Shape| shape.size.wrapping_neg();
        if let Some(shape) = shape(index) {
            return (shape.flags, mask(shape) as u32);
        }
        let lower = index.checked_sub(1).and_then(shape).filter(|lower| lower.wide);
        (0, lower.map_or(0, |lower| (mask(lower) >> 32) as u32))
    }

    fn read_bar(&self, at: u64) -> u32 {
        let index = (at.saturating_sub(BARS) / 4) as usize;
        nospec::get(&self.registers.bars, index).map_or(0, |value| value | self.bar_bits(at).0)
    }

    /// The capability that has the word at `at`, and the word's offset in it.
    fn capability(&self, at: u64) -> Option<(Shown, u64)> {
        self.shown.iter().find_map(|shown| {
            let offset = at.checked_sub(shown.at)?;
            (offset < shown.length).then_some((*shown, offset))
        })
    }

    fn read_capability(&self, config: &impl ConfigSpace, at: u64) -> u32 {
        let Some((shown, offset)) = self.capability(at) else { return 0 };
        let word = || config.read32(self.facts.page.add(at));
        let registers = &self.registers;
        let body = match (shown.id, offset) {
            (POWER, 0) => word() & POWER_VERSION,
            (POWER, _) => registers.power | NO_SOFT_RESET,
            (MSI, 0) => word() & MSI_CONTROL << 16,
            (MSI, offset) => self.facts.msi.map_or(0, |msi| word() & msi_bits(msi, offset).0),
            (MSI_X, 0) => word() & !0xffff,
            (MSI_X, _) => word(),
            (EXPRESS, 0) => word() & EXPRESS_VERSION | INTEGRATED_TYPE << EXPRESS_TYPE_SHIFT,
            (EXPRESS, DEVICE_CAPABILITIES) => {
                let reset = if self.can_reset { FUNCTION_RESET_CAPABLE } else { 0 };
                word() & (PAYLOADS | EXTENDED_TAGS | ROLE_BASED_ERRORS) | reset
            }
            (EXPRESS, DEVICE_CONTROL) => {
                let shown = (DEVICE_ERRORS | TRANSACTIONS_PENDING) << 16
                    | OF_THE_PATH
                    | ORDERING
                    | READ_SIZE << READ_SIZE_SHIFT;
                word() & shown | registers.error_messages
            }
            _ => 0,
        };
        if offset == 0 { body & !0xffff | (shown.next as u32) << 8 | u32::from(shown.id) } else { body }
    }

    fn write_capability(&mut self, config: &impl ConfigSpace, at: u64, bytes: u32, value: u32) -> Outcome {
        let Some((shown, offset)) = self.capability(at) else { return Outcome::Nothing };
        let page = self.facts.page;
        // The upper half of a capability's first word. Reserved bits are preserved, here and below.
        let control = |bits: u32| {
            if bytes >> 16 & bits != 0 {
                let at = page.add(at).add(MESSAGE_CONTROL);
                config.write(at, 2, merge(config.read(at, 2), bytes >> 16 & bits, value >> 16));
            }
        };
        match (shown.id, offset) {
            // D1 and D2 are not supported: a write of them is discarded (7.5.2.2).
            (POWER, POWER_CONTROL) if bytes & 0xff != 0 && matches!(value & POWER_STATE, 0 | POWER_STATE) => {
                self.registers.power = value & POWER_STATE;
            }
            (MSI_X, 0) => control(MSI_X_CONTROLS),
            (MSI, 0) => {
                // More vectors than the function has would be reserved (7.7.1.2).
                let most = self.facts.msi.map_or(0, |msi| msi.vectors_log2);
                let count = value >> 16 >> MSI_ENABLED_SHIFT & MSI_COUNT;
                let is_valid = bytes >> 16 & 0xff == 0 || count <= most;
                if is_valid {
                    control(MSI_ENABLE | MSI_COUNT << MSI_ENABLED_SHIFT);
                }
            }
            (MSI, offset) => {
                let bits = self.facts.msi.map_or(0, |msi| msi_bits(msi, offset).1);
                if bytes & bits != 0 {
                    let now = config.read32(page.add(at));
                    config.write(page.add(at), 4, merge(now, bytes & bits, value));
                }
            }
            (EXPRESS, DEVICE_CONTROL) => return self.write_device_control(config, at, bytes, value),
            _ => {}
        }
        Outcome::Nothing
    }

    fn write_device_control(&mut self, config: &impl ConfigSpace, at: u64, bytes: u32, value: u32) -> Outcome {
        let page = self.facts.page;
        if value & bytes & FUNCTION_RESET != 0 && self.can_reset {
            return Outcome::Reset;
        }
        let errors = (value & bytes) >> 16 & DEVICE_ERRORS;
        if errors != 0 {
            config.write(page.add(at).add(DEVICE_STATUS.saturating_sub(DEVICE_CONTROL)), 2, errors);
        }
        if bytes & 0xffff == 0 {
            return Outcome::Nothing;
        }
        self.registers.error_messages = merge(self.registers.error_messages, bytes, value) & ERROR_MESSAGES;
        let mut passed = bytes & ORDERING;
        if value >> READ_SIZE_SHIFT & READ_SIZE <= READ_SIZE_MOST {
            passed |= bytes & READ_SIZE << READ_SIZE_SHIFT;
        }
        let now = config.read(page.add(at), 2) & !(FUNCTION_RESET | ERROR_MESSAGES);
        config.write(page.add(at), 2, merge(now, passed, value));
        Outcome::Nothing
    }
}

/// The capabilities that a guest sees, in the order of their offsets.
fn shown(facts: &Facts) -> ArrayVec<Shown, 4> {
    let found = [
        facts.power.map(|power| (POWER, power.at, POWER_LEN)),
        facts.msi.map(|msi| (MSI, msi.at, msi.len())),
        facts.msix.map(|msix| (MSI_X, msix.at, MSI_X_LEN)),
        facts
            .express
            .map(|express| (EXPRESS, express.at, if express.version >= 2 { EXPRESS2_LEN } else { EXPRESS_LEN })),
    ];
    let mut shown: ArrayVec<Shown, 4> =
        found.into_iter().flatten().map(|(id, at, length)| Shown { id, at, length, next: 0 }).collect();
    shown.sort_unstable_by_key(|shown| core::cmp::Reverse(shown.at));
    let mut next = 0;
    for shown in &mut shown {
        shown.next = core::mem::replace(&mut next, shown.at);
    }
    shown.reverse();
    shown
}

/// The bits of a word of the MSI capability that can be read, and those that can be written.
fn msi_bits(msi: Msi, offset: u64) -> (u32, u32) {
    let masks = msi.data().saturating_add(4);
    match offset {
        MSI_ADDRESS => (MSI_ADDRESS_BITS, MSI_ADDRESS_BITS),
        _ if offset == msi.data() => (0xffff, 0xffff),
        _ if offset < msi.data() => (u32::MAX, u32::MAX),
        _ if offset == masks => (u32::MAX, u32::MAX),
        // Pending Bits.
        _ => (u32::MAX, 0),
    }
}

/// `old` with the bits of `new` that `mask` has.
const fn merge(old: u32, mask: u32, new: u32) -> u32 {
    old & !mask | new & mask
}
