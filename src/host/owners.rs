//! Who has what: the tables by which an interrupt finds its domain, and the numbers that domains hold.
//!
//! The tables are read on each interrupt and written when a domain is built or taken down, so every entry is one
//! atomic word and nobody waits.

use crate::ids::{DomId, Intid, VcpuId, VmId, VpeId};
use crate::util::bits::IdAllocator;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

const NOBODY16: u16 = u16::MAX;
const NOBODY32: u32 = u32::MAX;

/// The first SPI (IHI 0069, 2.2.1).
const SPI_FIRST: u32 = 32;

/// Which domain each SPI belongs to; an SPI belongs to one domain or to none.
pub struct SpiOwners(Vec<AtomicU16>);

impl SpiOwners {
    /// `spis` SPIs of nobody.
    #[must_use]
    pub fn new(spis: u32) -> SpiOwners {
        SpiOwners((0..spis).map(|_| AtomicU16::new(NOBODY16)).collect())
    }

    fn slot(&self, spi: Intid) -> Option<&AtomicU16> {
        self.0.get(spi.0.checked_sub(SPI_FIRST)? as usize)
    }

    /// The domain that an SPI belongs to.
    #[must_use]
    pub fn get(&self, spi: Intid) -> Option<DomId> {
        let domain = self.slot(spi)?.load(Ordering::Acquire);
        (domain != NOBODY16).then_some(DomId(domain))
    }

    /// Gives every SPI that is nobody's, and that `wanted` wants, to `domain`.
    pub fn give(&self, domain: DomId, wanted: impl Fn(Intid) -> bool) {
        for (slot, spi) in self.0.iter().zip(SPI_FIRST..) {
            if wanted(Intid(spi)) {
                let _ = slot.compare_exchange(NOBODY16, domain.0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// Takes back what belongs to `domain`, each after `quiet` has made the interrupt quiet.
    pub fn take_back(&self, domain: DomId, mut quiet: impl FnMut(Intid)) {
        for (slot, spi) in self.0.iter().zip(SPI_FIRST..) {
            if slot.load(Ordering::Acquire) == domain.0 {
                quiet(Intid(spi));
                slot.store(NOBODY16, Ordering::Release);
            }
        }
    }
}

/// Which vCPU each vPE is.
pub struct VpeOwners(Vec<AtomicU32>);

impl VpeOwners {
    /// `vpes` vPEs of nobody.
    #[must_use]
    pub fn new(vpes: u32) -> VpeOwners {
        VpeOwners((0..vpes).map(|_| AtomicU32::new(NOBODY32)).collect())
    }

    /// The domain and the vCPU of a vPE.
    #[must_use]
    pub fn get(&self, vpe: VpeId) -> Option<(DomId, VcpuId)> {
        let raw = self.0.get(vpe.index())?.load(Ordering::Acquire);
        (raw != NOBODY32).then_some((DomId((raw >> 16) as u16), VcpuId(raw as u16)))
    }

    /// Says whose a vPE is; `None` for nobody's.
    pub fn set(&self, vpe: VpeId, owner: Option<(DomId, VcpuId)>) {
        if let Some(slot) = self.0.get(vpe.index()) {
            let raw = owner.map_or(NOBODY32, |(domain, vcpu)| u32::from(domain.0) << 16 | u32::from(vcpu.0));
            slot.store(raw, Ordering::Release);
        }
    }
}

/// The VMIDs of domains: 8 bits, of which 0 belongs to no domain.
pub struct VmIds(IdAllocator);

impl VmIds {
    /// All but 0 are free.
    #[must_use]
    pub fn new() -> VmIds {
        let ids = IdAllocator::new(256);
        ids.reserve(0);
        VmIds(ids)
    }

    /// Takes a free one.
    #[must_use]
    pub fn take(&self) -> Option<VmId> {
        self.0.alloc().map(|id| VmId(id as u16))
    }

    /// Gives one back. The TLBs have forgotten it, or are made to before its next owner runs.
    pub fn give_back(&self, vmid: VmId) {
        if vmid.0 != 0 {
            self.0.free(vmid.0.into());
        }
    }
}

impl Default for VmIds {
    fn default() -> VmIds {
        VmIds::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_spi_belongs_to_the_first_who_gets_it_until_it_is_taken_back() {
        let owners = SpiOwners::new(64);
        owners.give(DomId(1), |spi| spi == Intid(40));
        owners.give(DomId(0), |spi| spi != Intid(33));
        assert_eq!(
            [32, 33, 40, 95].map(|spi| owners.get(Intid(spi))),
            [Some(DomId(0)), None, Some(DomId(1)), Some(DomId(0))]
        );
        let mut quiet = Vec::new();
        owners.take_back(DomId(1), |spi| quiet.push(spi));
        assert_eq!((quiet, owners.get(Intid(40))), (std::vec![Intid(40)], None));
        assert_eq!([0, 31, 96, u32::MAX].map(|other| owners.get(Intid(other))), [None; 4]);
    }

    #[test]
    fn a_vpe_leads_to_its_vcpu_until_it_is_nobodys() {
        let owners = VpeOwners::new(8);
        owners.set(VpeId(7), Some((DomId(3), VcpuId(5))));
        assert_eq!(owners.get(VpeId(7)), Some((DomId(3), VcpuId(5))));
        owners.set(VpeId(7), None);
        owners.set(VpeId(8), Some((DomId(0), VcpuId(0))));
        assert_eq!([owners.get(VpeId(7)), owners.get(VpeId(8)), owners.get(VpeId(0))], [None; 3]);
    }

    #[test]
    fn vmids_are_255_and_each_is_one_domains() {
        let ids = VmIds::new();
        let all: Vec<_> = core::iter::from_fn(|| ids.take()).collect();
        assert!(all.iter().copied().eq((1..256).map(VmId)));
        ids.give_back(VmId(200));
        ids.give_back(VmId(0));
        assert_eq!((ids.take(), ids.take()), (Some(VmId(200)), None));
    }
}
