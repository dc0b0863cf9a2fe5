//! LPIs: their allocation, and the configuration table that all redistributors read (IHI 0069, 5.1).
//!
//! Nothing here takes a lock, because doorbells are looked up and LPIs freed with locks of any rank held. Whether an
//! LPI is allocated is an atomic bit, the vPE whose doorbell it is an atomic word, and its configuration a byte that
//! only its owner writes.
//!
//! An LPI is reserved before it is allocated: a domain reserves as many as its guest can make EL2 allocate when it is
//! built, and a doorbell is reserved when its vPE is made. So no guest takes an LPI that another one was promised.

use super::error::GicError;
use super::regs::config;
use crate::ids::{Lpi, Pa, VpeId};
use crate::mmio::{Coherence, Hw};
use crate::util::bits::IdAllocator;
use crate::util::range::Range;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};

/// The fewest INTID bits with which there are LPIs.
pub const MIN_ID_BITS: u8 = 14;
/// The most INTID bits that are used: 57344 LPIs.
pub const MAX_ID_BITS: u8 = 16;
const NO_VPE: u16 = u16::MAX;
/// The alignment of configuration and pending tables: registers and commands hold PA[51:16] of most of them.
pub const TABLE_ALIGN: usize = 0x1_0000;

/// All physical LPIs.
pub struct Lpis<H> {
    hw: H,
    table: Pa,
    id_bits: u8,
    count: u32,
    /// Every redistributor so far snoops the caches.
    coherent: AtomicBool,
    numbers: IdAllocator,
    /// How many are neither doorbells nor reserved.
    unreserved: AtomicU32,
    /// The vPE whose doorbell each LPI is.
    doorbells: Box<[AtomicU16]>,
}

impl<H: Hw> Lpis<H> {
    /// Makes a configuration table for `id_bits` INTID bits. All LPIs are disabled; the first `count` can be allocated.
    pub fn new(hw: H, id_bits: u8, count: u32, coherent: bool) -> Result<Self, GicError> {
        let table = hw.alloc(config_bytes(id_bits), TABLE_ALIGN).ok_or(GicError::NoMemory)?;
        Ok(Self::with_table(hw, table, id_bits, count, coherent))
    }

    /// The same with the memory of a table that is in use already. A redistributor may have cached its old content until
    /// the INVALL of its CPU's collection.
    pub fn with_table(hw: H, table: Pa, id_bits: u8, count: u32, coherent: bool) -> Self {
        let bytes = config_bytes(id_bits);
        let word = u64::from_le_bytes([config::DEFAULT; 8]);
        for at in (0..bytes as u64).step_by(8) {
            hw.store64(table.add(at), word);
        }
        hw.publish(table, bytes, Coherence::NonCoherent);
        let doorbells = (0..count).map(|_| AtomicU16::new(NO_VPE)).collect();
        Lpis {
            hw,
            table,
            id_bits,
            count,
            coherent: AtomicBool::new(coherent),
            numbers: IdAllocator::new(count),
            unreserved: AtomicU32::new(count),
            doorbells,
        }
    }

    pub fn table(&self) -> Pa {
        self.table
    }

    /// Whether a redistributor with these tables uses the configuration table.
    pub fn is_configured_by(&self, tables: &LpiTables) -> bool {
        tables.config == self.table && tables.id_bits == self.id_bits
    }

    pub fn id_bits(&self) -> u8 {
        self.id_bits
    }

    /// Notes that a redistributor does not snoop the caches: from now on the table is cleaned to memory.
    pub fn set_noncoherent(&self) {
        if self.coherent.swap(false, Ordering::AcqRel) {
            self.hw.publish(self.table, config_bytes(self.id_bits), Coherence::NonCoherent);
        }
    }

    /// Whether every redistributor so far snoops the caches.
    pub fn coherence(&self) -> Coherence {
        if self.coherent.load(Ordering::Relaxed) { Coherence::Coherent } else { Coherence::NonCoherent }
    }

    pub fn contains(&self, lpi: Lpi) -> bool {
        self.index(lpi).is_some()
    }

    fn index(&self, lpi: Lpi) -> Option<usize> {
        lpi.0.checked_sub(Lpi::FIRST).filter(|i| *i < self.count).map(|i| i as usize)
    }

    /// Reserves LPIs. `false`, and none is reserved, if fewer are left.
    pub fn reserve(&self, count: u32) -> bool {
        let left = |left: u32| left.checked_sub(count);
        self.unreserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok()
    }

    /// Gives back LPIs that were reserved. They are not allocated.
    pub fn unreserve(&self, count: u32) {
        self.unreserved.fetch_add(count, Ordering::Relaxed);
    }

    /// How many can be reserved.
    pub fn unreserved(&self) -> u32 {
        self.unreserved.load(Ordering::Relaxed)
    }

    /// Reserves and allocates an LPI for a doorbell.
    pub fn alloc_doorbell(&self) -> Option<Lpi> {
        if !self.reserve(1) {
            return None;
        }
        let lpi = self.alloc();
        if lpi.is_none() {
            self.unreserve(1);
        }
        lpi
    }

    /// Frees the LPI of a doorbell.
    pub fn free_doorbell(&self, lpi: Lpi) {
        self.free(lpi);
        self.unreserve(1);
    }

    /// Allocates an LPI, which is disabled and has the default priority. It has been reserved.
    pub fn alloc(&self) -> Option<Lpi> {
        self.numbers.alloc().map(|n| Lpi(Lpi::FIRST + n))
    }

    /// Frees an LPI and resets its configuration byte. Its next owner makes the hardware reload the byte.
    pub fn free(&self, lpi: Lpi) {
        let Some(i) = self.index(lpi) else { return };
        self.write(lpi, config::DEFAULT);
        if let Some(d) = self.doorbells.get(i) {
            d.store(NO_VPE, Ordering::Release);
        }
        self.numbers.free(i as u32);
    }

    pub fn configure(&self, lpi: Lpi, priority: u8, enabled: bool) {
        self.write(lpi, config::byte(priority, enabled));
    }

    fn write(&self, lpi: Lpi, byte: u8) {
        if let Some(i) = self.index(lpi) {
            let at = self.table.add(i as u64);
            self.hw.store8(at, byte);
            self.hw.publish(at, 1, self.coherence());
        }
    }

    pub fn set_doorbell(&self, lpi: Lpi, vpe: Option<VpeId>) {
        if let Some(d) = self.index(lpi).and_then(|i| self.doorbells.get(i)) {
            d.store(vpe.map_or(NO_VPE, |v| v.0), Ordering::Release);
        }
    }

    #[inline]
    pub fn doorbell(&self, lpi: Lpi) -> Option<VpeId> {
        let vpe = self.doorbells.get(lpi.0.checked_sub(Lpi::FIRST)? as usize)?.load(Ordering::Acquire);
        (vpe != NO_VPE).then_some(VpeId(vpe))
    }

    /// How many LPIs are allocated.
    #[cfg(test)]
    pub fn in_use(&self) -> u32 {
        self.numbers.in_use()
    }
}

/// The LPI tables in the registers of a redistributor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LpiTables {
    /// The configuration table.
    pub config: Pa,
    /// The pending table.
    pub pending: Pa,
    /// The number of INTID bits.
    pub id_bits: u8,
    /// The redistributor snoops the caches when it accesses them.
    pub coherent: bool,
}

impl LpiTables {
    /// The memory of the two tables.
    pub fn ranges(&self) -> (Range, Range) {
        let of = |at, bytes| Range::new(at, bytes as u64);
        (of(self.config, config_bytes(self.id_bits)), of(self.pending, pending_bytes(self.id_bits)))
    }

    pub fn shares_config_with(&self, other: LpiTables) -> bool {
        self.config == other.config && self.id_bits == other.id_bits
    }
}

/// Bytes of a configuration table: one for each INTID from 8192 on.
pub const fn config_bytes(id_bits: u8) -> usize {
    (1usize << id_bits).saturating_sub(Lpi::FIRST as usize)
}

/// The offset of an LPI's or vLPI's byte in a configuration table; `None` if the table has none.
pub fn config_offset(intid: u32, id_bits: u8) -> Option<u64> {
    (Lpi::FIRST..1 << id_bits).contains(&intid).then(|| u64::from(intid - Lpi::FIRST))
}

/// Bytes of a pending table: a bit for each INTID from 0 on.
pub const fn pending_bytes(id_bits: u8) -> usize {
    (1usize << id_bits) / 8
}
