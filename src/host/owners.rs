//! Owners: the domain that owns each SPI, the vCPU that owns each vPE, and the VMIDs that are in use.
//!
//! The tables of SPIs and vPEs are read, without a lock, each time such an interrupt arrives. They are written when a
//! domain is built or torn down.

use crate::arch::nospec;
use crate::ids::{DomId, Intid, VmId, VpeId};
use crate::sync::Slot;
use crate::util::bits::IdAllocator;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU16, Ordering};

/// "No owner", in atomics that hold a domain number.
const NO_DOMAIN: u16 = u16::MAX;

/// The first SPI (IHI 0069, 2.2.1).
const SPI_FIRST: u32 = 32;

/// The domain that owns each SPI. An SPI has one owner or none.
pub struct SpiOwners(Vec<AtomicU16>);

impl SpiOwners {
    /// `spis` SPIs without an owner.
    #[must_use]
    pub fn new(spis: u32) -> SpiOwners {
        SpiOwners((0..spis).map(|_| AtomicU16::new(NO_DOMAIN)).collect())
    }

    fn slot(&self, spi: Intid) -> Option<&AtomicU16> {
        nospec::get(&self.0, spi.0.checked_sub(SPI_FIRST)? as usize)
    }

    /// The domain that owns an SPI.
    #[must_use]
    pub fn get(&self, spi: Intid) -> Option<DomId> {
        let domain = self.slot(spi)?.load(Ordering::Acquire);
        (domain != NO_DOMAIN).then_some(DomId(domain))
    }

    /// Gives `domain` every SPI that has no owner and for which `wanted` returns true.
    pub fn give(&self, domain: DomId, wanted: impl Fn(Intid) -> bool) {
        for (slot, spi) in self.0.iter().zip(SPI_FIRST..) {
            if wanted(Intid(spi)) {
                let _ = slot.compare_exchange(NO_DOMAIN, domain.0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// Leaves all SPIs of `domain` without an owner, each after `quiet` has disabled it.
    pub fn take_back(&self, domain: DomId, mut quiet: impl FnMut(Intid)) {
        for (slot, spi) in self.0.iter().zip(SPI_FIRST..) {
            if slot.load(Ordering::Acquire) == domain.0 {
                quiet(Intid(spi));
                slot.store(NO_DOMAIN, Ordering::Release);
            }
        }
    }
}

/// The vCPU that owns each vPE. A doorbell finds the vCPU to wake in one lookup.
pub struct VpeOwners<V>(Vec<Slot<V>>);

impl<V> VpeOwners<V> {
    /// `vpes` vPEs without an owner.
    #[must_use]
    pub fn new(vpes: u32) -> VpeOwners<V> {
        VpeOwners((0..vpes).map(|_| Slot::new()).collect())
    }

    /// The vCPU that owns a vPE.
    #[must_use]
    pub fn get(&self, vpe: VpeId) -> Option<Arc<V>> {
        self.0.get(vpe.index())?.get()
    }

    /// Makes `vcpu` the owner of a vPE that has none. A vPE that has an owner keeps it.
    pub fn give(&self, vpe: VpeId, vcpu: Arc<V>) {
        if let Some(slot) = self.0.get(vpe.index()) {
            let _ = slot.put(vcpu);
        }
    }

    /// Leaves a vPE without an owner.
    pub fn take_back(&self, vpe: VpeId) {
        if let Some(slot) = self.0.get(vpe.index()) {
            drop(slot.take());
        }
    }
}

/// The VMIDs of domains: 8 bits, of which 0 belongs to no domain.
pub struct VmIds(IdAllocator);

impl VmIds {
    /// All VMIDs except 0 are free.
    #[must_use]
    pub fn new() -> VmIds {
        let ids = IdAllocator::new(256);
        ids.reserve(0);
        VmIds(ids)
    }

    /// Allocates a VMID.
    #[must_use]
    pub fn take(&self) -> Option<VmId> {
        self.0.alloc().map(|id| VmId(id as u16))
    }

    /// Frees a VMID. Its TLB entries have been invalidated, or are invalidated before its next owner runs.
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
    fn an_spi_belongs_to_its_first_owner_until_it_is_taken_back() {
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
    fn a_vpe_has_its_vcpu_as_owner_until_it_is_taken_back() {
        let owners = VpeOwners::new(8);
        let vcpu = Arc::new(5);
        owners.give(VpeId(7), vcpu.clone());
        assert_eq!(owners.get(VpeId(7)), Some(vcpu.clone()));
        owners.take_back(VpeId(7));
        owners.give(VpeId(8), vcpu.clone());
        assert_eq!([owners.get(VpeId(7)), owners.get(VpeId(8)), owners.get(VpeId(0))], [None, None, None]);
        assert_eq!(Arc::strong_count(&vcpu), 1);
    }

    #[test]
    fn there_are_255_vmids_and_each_is_allocated_once() {
        let ids = VmIds::new();
        let all: Vec<_> = core::iter::from_fn(|| ids.take()).collect();
        assert!(all.iter().copied().eq((1..256).map(VmId)));
        ids.give_back(VmId(200));
        ids.give_back(VmId(0));
        assert_eq!((ids.take(), ids.take()), (Some(VmId(200)), None));
    }
}
