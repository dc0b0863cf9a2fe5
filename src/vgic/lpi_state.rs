//! The configuration and the owner of each LPI of a domain.

use crate::arch::nospec;
use crate::ids::{Lpi, VIntid};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Who delivers an LPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// EL2, in a list register.
    Soft,
    /// The hardware, as a vLPI: its pending state is in the vPE's pending table.
    Direct,
}

/// Enable bit of a configuration byte (IHI 0069, 5.1.1). Bit 1 is RES1, bits [7:2] are the priority.
pub(super) const CONFIG_ENABLE: u8 = 1 << 0;
const CONFIG_PRIORITY: u8 = 0xfc;

/// The configuration and the owner of the LPIs of one domain.
pub(super) struct Lpis {
    id_bits: u8,
    /// Configuration bytes, by index.
    pub config: Box<[AtomicU8]>,
    /// A bit for each LPI that is delivered by the hardware.
    pub direct: Box<[AtomicU64]>,
}

impl Lpis {
    pub fn new(id_bits: u8, exist: bool) -> Lpis {
        let count = if exist { 1usize.wrapping_shl(id_bits.into()).saturating_sub(Lpi::FIRST as usize) } else { 0 };
        Lpis {
            id_bits,
            config: (0..count).map(|_| AtomicU8::new(0)).collect(),
            direct: (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// The state at reset: all LPIs are disabled, and none is delivered by the hardware.
    pub fn reset(&self) {
        self.config.iter().for_each(|byte| byte.store(0, Ordering::SeqCst));
        self.direct.iter().for_each(|word| word.store(0, Ordering::SeqCst));
    }

    pub fn exist(&self) -> bool {
        !self.config.is_empty()
    }

    pub fn id_bits(&self) -> u8 {
        self.id_bits
    }

    pub fn count(&self) -> u32 {
        self.config.len() as u32
    }

    /// The index of an LPI, which is its INTID less 8192; `None` if the domain does not have it.
    pub fn index(&self, vintid: VIntid) -> Option<u32> {
        let index = vintid.0.checked_sub(Lpi::FIRST)?;
        nospec::below(index.into(), self.count().into()).map(|index| index as u32)
    }

    pub fn config(&self, index: u32) -> u8 {
        self.config.get(index as usize).map_or(0, |byte| byte.load(Ordering::SeqCst))
    }

    pub fn is_direct(&self, index: u32) -> bool {
        self.direct_word(index / 64) & 1u64.wrapping_shl(index) != 0
    }

    fn direct_word(&self, word: u32) -> u64 {
        self.direct.get(word as usize).map_or(0, |word| word.load(Ordering::SeqCst))
    }

    /// The priority of an LPI, if it is enabled and delivered by software.
    pub fn deliverable(&self, index: u32) -> Option<u8> {
        let config = self.config(index);
        (config & CONFIG_ENABLE != 0 && !self.is_direct(index)).then_some(config & CONFIG_PRIORITY)
    }
}
