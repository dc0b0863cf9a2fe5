//! A ring in memory that the driver shares with the SMMU: the command queue, or the event queue (IHI 0070, 3.5.1).

use crate::ids::Pa;
use crate::mmio::Coherence;

/// A ring of 2^`bits` entries.
#[derive(Clone, Copy)]
pub struct Ring {
    /// Its address.
    pub memory: Pa,
    /// log2 of the number of entries.
    pub bits: u8,
    /// Bytes of an entry.
    pub entry: u64,
    /// Whether the SMMU snoops the CPUs' caches when it accesses the ring.
    pub coherence: Coherence,
}

impl Ring {
    /// Bytes of the ring.
    pub const fn size(self) -> usize {
        (self.entries() as usize).wrapping_mul(self.entry as usize)
    }

    /// The number of entries.
    pub const fn entries(self) -> u32 {
        1u32.wrapping_shl(self.bits as u32)
    }

    /// The number of entries from index `from` up to index `to`; more than there are if the indices are inconsistent.
    pub const fn between(self, from: u32, to: u32) -> u32 {
        to.wrapping_sub(from) & self.index_mask()
    }

    /// The index after `index`.
    pub const fn next(self, index: u32) -> u32 {
        index.wrapping_add(1) & self.index_mask()
    }

    /// The bits of an index.
    pub const fn index_mask(self) -> u32 {
        self.entries().wrapping_mul(2).wrapping_sub(1)
    }

    /// The address of the entry at an index.
    pub const fn at(self, index: u32) -> Pa {
        let slot = index & self.entries().wrapping_sub(1);
        Pa(self.memory.0.wrapping_add((slot as u64).wrapping_mul(self.entry)))
    }
}
