//! The PCI host that a domU sees: a generic ECAM with bus 0 alone, and its functions there.
//!
//! Each function is function 0 of a device of its own: slot `n` is device `n + 1`. Device 0 is empty.
//!
//! A BAR is mapped while the guest has enabled Memory Space, and the BAR is within a window of the host and overlaps no
//! BAR that is mapped already. A BAR that has lost its place to another one gets it when its own function's BARs or
//! Command are written again: what an overlap does is not defined by the specification, and this way a write has effects
//! on one function.
//!
//! A write changes no stage 2 itself. It returns [`Effect`]s, which the domain carries out in their order, before the
//! vCPU goes on.

use super::ConfigSpace;
use super::regs::BAR_COUNT;
use super::reset::silence;
use super::topology::FUNCTION;
use super::virt::{Outcome, VirtualFunction};
use crate::arch::nospec;
use crate::ids::{Ipa, Pa};
use crate::util::range::{Range, whole_pages_in};
use alloc::vec::Vec;
use arrayvec::ArrayVec;

/// Size of the ECAM in bytes: one bus (7.2.2).
pub const ECAM_SIZE: u64 = 1 << 20;
/// The largest number of functions: devices 1 to 31.
pub const SLOTS: usize = 31;
/// The functions of a device.
const FUNCTIONS: u64 = 8;

/// What the domain has to do because of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Unmap a BAR from stage 2.
    Unmap {
        /// Where it is mapped.
        at: Ipa,
        /// Its pages.
        to: Range,
    },
    /// Map a BAR in stage 2, as device memory of which the guest decides whether it is write-combining, as all PCI memory.
    Map {
        /// Where the guest wants it.
        at: Ipa,
        /// Its pages.
        to: Range,
        /// Whether reads have no side effects.
        prefetchable: bool,
    },
    /// Begin a reset of the function in a slot ([`Reset`](super::reset::Reset)), and call [`HostBridge::returns`] when it is
    /// done. Until then the guest reads ones. The function's BARs have been unmapped by the effects before; it sends until
    /// the first step of its reset.
    Reset {
        /// The slot.
        slot: usize,
    },
}

/// The effects of one write: each BAR of a function unmapped and mapped, and a reset.
pub type Effects = ArrayVec<Effect, { 2 * BAR_COUNT + 1 }>;

/// A domU's PCI host.
#[derive(Debug)]
pub struct HostBridge {
    /// The guest addresses at which BARs may be.
    windows: ArrayVec<Range, 2>,
    slots: Vec<VirtualFunction>,
}

impl HostBridge {
    /// A host with these windows, in the guest's addresses, and these functions; more than [`SLOTS`] are not seen. All
    /// functions are away: [`returns`](Self::returns) is called for each when it has been reset. That has to be before the
    /// domain begins, since a guest looks for functions once.
    #[must_use]
    pub fn new(windows: &[Range], mut slots: Vec<VirtualFunction>) -> HostBridge {
        slots.truncate(SLOTS);
        HostBridge { windows: windows.iter().map(|&window| whole_pages_in(window)).take(2).collect(), slots }
    }

    /// The functions; their indices are the slots.
    #[must_use]
    pub fn functions(&self) -> &[VirtualFunction] {
        &self.slots
    }

    /// Loads `bytes` bytes (1, 2 or 4) at `offset` in the ECAM. What does not exist reads as ones, and so does an access
    /// that is not aligned.
    #[must_use]
    pub fn read(&self, config: &impl ConfigSpace, offset: u64, bytes: u8) -> u32 {
        let Some((slot, at, mask)) = place(offset, bytes) else { return low_bytes(bytes) };
        let Some(function) = nospec::get(&self.slots, slot) else { return low_bytes(bytes) };
        let shift = offset.wrapping_rem(4).saturating_mul(8) as u32;
        (function.read_word(config, at) & mask).checked_shr(shift).unwrap_or(0)
    }

    /// Stores the lowest `bytes` bytes (1, 2 or 4) of `value` at `offset` in the ECAM. What does not exist, and an access
    /// that is not aligned, is ignored.
    #[must_use]
    pub fn write(&mut self, config: &impl ConfigSpace, offset: u64, bytes: u8, value: u32) -> Effects {
        let mut effects = Effects::new();
        let Some((slot, at, mask)) = place(offset, bytes) else { return effects };
        let Some(function) = nospec::get_mut(&mut self.slots, slot) else { return effects };
        let shift = offset.wrapping_rem(4).saturating_mul(8) as u32;
        match function.write_word(config, at, mask, value.checked_shl(shift).unwrap_or(0)) {
            Outcome::Nothing => {}
            Outcome::Moved => self.remap(slot, &mut effects),
            Outcome::Reset => {
                // It still decodes until its BARs are unmapped, and sends until its reset begins.
                function.leave();
                self.remap(slot, &mut effects);
                let _ = effects.try_push(Effect::Reset { slot });
            }
        }
        effects
    }

    /// The function in a slot has been reset and may be used: the guest finds it as after a reset. One that has not come
    /// back stays away. Nothing happens if the function is not away.
    pub fn returns(&mut self, config: &impl ConfigSpace, slot: usize) {
        if let Some(function) = self.slots.get_mut(slot).filter(|function| function.is_away()) {
            function.returns(config);
        }
    }

    /// The domain has ended or begins anew: silences all functions, and calls `unmap` for each BAR that is mapped. Then
    /// the functions have to be reset; the guest reads ones until they return.
    pub fn leave(&mut self, config: &impl ConfigSpace, mut unmap: impl FnMut(Effect)) {
        for function in &mut self.slots {
            function.leave();
            function.mappings().for_each(|(at, to)| unmap(Effect::Unmap { at, to }));
            function.mapped = [None; BAR_COUNT];
            silence(function.facts(), config);
        }
    }

    /// The BARs that are mapped: where, and to what.
    pub fn mappings(&self) -> impl Iterator<Item = (Ipa, Range)> {
        self.slots.iter().flat_map(VirtualFunction::mappings)
    }

    /// Brings the mappings of a function in line with its BARs.
    fn remap(&mut self, slot: usize, effects: &mut Effects) {
        for index in 0..BAR_COUNT {
            let Some(function) = self.slots.get_mut(slot) else { return };
            let wanted = function.wanted(index).map(|(at, ..)| at);
            let Some(mapped) = function.mapped.get_mut(index) else { return };
            if let Some(at) = mapped.take_if(|at| Some(*at) != wanted)
                && let Some(to) = function.pages(index)
            {
                let _ = effects.try_push(Effect::Unmap { at, to });
            }
        }
        for index in 0..BAR_COUNT {
            let Some(function) = self.slots.get(slot) else { return };
            let Some((at, to, prefetchable)) = function.wanted(index) else { continue };
            let is_mapped = function.mapped.get(index).copied().flatten().is_some();
            if is_mapped || !self.is_free(Range::new(Pa(at.0), to.size)) {
                continue;
            }
            let _ = effects.try_push(Effect::Map { at, to, prefetchable });
            if let Some(mapped) = self.slots.get_mut(slot).and_then(|function| function.mapped.get_mut(index)) {
                *mapped = Some(at);
            }
        }
    }

    /// Whether a BAR may be at these guest addresses.
    fn is_free(&self, wanted: Range) -> bool {
        // A range that wraps ends at the top of all addresses, which no window reaches.
        let is_within = self.windows.iter().any(|window| window.covers(wanted));
        is_within && !self.mappings().any(|(at, to)| Range::new(Pa(at.0), to.size).overlaps(wanted))
    }
}

/// Where an access goes: the slot, the offset of the word in its configuration space, and the bytes of the word.
fn place(offset: u64, bytes: u8) -> Option<(usize, u64, u32)> {
    if !matches!(bytes, 1 | 2 | 4) || offset & u64::from(bytes).saturating_sub(1) != 0 || offset >= ECAM_SIZE {
        return None;
    }
    let function = offset / FUNCTION;
    // Other functions than 0, and device 0, do not exist.
    let slot = if function.is_multiple_of(FUNCTIONS) { (function / FUNCTIONS).checked_sub(1)? } else { return None };
    let shift = (offset & 3).saturating_mul(8) as u32;
    Some((slot as usize, (offset % FUNCTION) & !3, low_bytes(bytes).checked_shl(shift)?))
}

fn low_bytes(bytes: u8) -> u32 {
    u32::MAX.checked_shr(32u32.saturating_sub(8u32.saturating_mul(bytes.into()))).unwrap_or(0)
}

#[cfg(test)]
mod tests;
