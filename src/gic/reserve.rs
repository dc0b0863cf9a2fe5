//! What is reserved for a domain when it is built, and given back when it is taken down: memory for its devices, and LPIs.

use super::driver::Gic;
use super::error::ItsError;
use super::its::DeviceQuota;
use super::lpi::Lpis;
use crate::ids::{DeviceIds, DomId, ItsId};
use crate::mmio::Hw;

impl<H: Hw + Clone> Gic<H> {
    /// Reserves all the memory that a domain's devices and events take on an ITS, for the devices `ids`, which no other
    /// domain has. Other devices cannot be mapped. Returns the number of bytes. Called when a domain is built;
    /// [`release_devices`](Gic::release_devices) frees the memory.
    pub fn reserve_devices(
        &self,
        its: ItsId,
        owner: DomId,
        ids: &[DeviceIds],
        quota: DeviceQuota,
    ) -> Result<u64, ItsError> {
        self.its(its)?.reserve(owner, ids, quota)
    }

    /// Frees the memory that is reserved for a domain's devices on all ITSs, except what an ITS may still use. No CPU uses
    /// the devices any more. If one is still mapped, because the domain's virtual ITS could not unmap it, it is unmapped
    /// instead; returns `false`, and has to be called again.
    #[must_use]
    pub fn release_devices(&self, owner: DomId) -> bool {
        for its in self.itss.iter().flatten() {
            let mapped = its.state.lock().first_of(owner);
            if let Some(dev) = mapped {
                // The ITS may not answer. EL2 forgets the device in any case.
                let _ = self.unmap_device(its.id, dev);
                return false;
            }
            self.counters.quarantined_bytes.add(its.release(owner));
        }
        true
    }

    /// Whether a domain's memory for devices is as it was reserved.
    ///
    /// # Errors
    ///
    /// Of the first ITS on which it is not: `DeviceMapped` if a device is mapped, `Timeout` if the ITS may still use memory
    /// of one that was unmapped, `Dead` if it translates no more.
    pub fn check_devices(&self, owner: DomId) -> Result<(), (ItsId, ItsError)> {
        for its in self.itss.iter().flatten() {
            let state = its.state.lock();
            let found = match state.first_of(owner) {
                Some(dev) => ItsError::DeviceMapped(dev),
                None if state.has_lost(owner) => ItsError::Timeout,
                None if state.serves(owner) && its.queue.is_dead() => ItsError::Dead,
                None => continue,
            };
            return Err((its.id, found));
        }
        Ok(())
    }

    /// Reserves `count` LPIs for a domain. `false`, and none is reserved, if fewer are left. The domain allocates no more
    /// than it has reserved.
    #[must_use]
    pub fn reserve_lpis(&self, count: u32) -> bool {
        self.lpis.as_ref().map_or(count == 0, |lpis| lpis.reserve(count))
    }

    /// Gives back LPIs that [`reserve_lpis`](Gic::reserve_lpis) has reserved. They have been freed.
    pub fn release_lpis(&self, count: u32) {
        if let Some(lpis) = &self.lpis {
            lpis.unreserve(count);
        }
    }

    /// How many LPIs are neither reserved nor doorbells.
    #[must_use]
    pub fn unreserved_lpis(&self) -> u32 {
        self.lpis.as_ref().map_or(0, Lpis::unreserved)
    }
}
