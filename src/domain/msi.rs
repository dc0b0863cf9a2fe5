//! A domain's MSIs: whether an event is injected directly or by software, and how it switches between the two.
//!
//! The virtual ITS knows which LPI of which vCPU an event of a device is. This file decides how the event gets there.
//! The events of a vCPU that has a vPE are mapped to vLPIs, which the redistributor delivers without EL2. The events of
//! a vCPU that has none are mapped to physical LPIs: EL2 acknowledges each, looks its [`Route`] up and injects it
//! through a list register. The guest sees no difference.
//!
//! Apart from the routes of physical LPIs and what the domain has of the physical GIC (`paths`), this file has no state. `gic` has the mappings of the host's ITSs, `vgic`
//! the guest's LPI configuration, and `vits` the guest's mappings.

mod paths;

pub use paths::{LpiPaths, LpiQuota, NotRenewed, Renewed};

use crate::arch::nospec;
use crate::arch::timer;
use crate::gic::v4::{V4, VmHandle};
use crate::gic::{Event, Gic, ItsError};
use crate::host::routes::{PRIORITY, Route, Routes};
use crate::ids::{CpuId, DeviceId, DomId, EventKey, Ipa, ItsId, Lpi, VIntid, VcpuId, VpeId};
use crate::mmio::Hw;
use crate::vgic::{Owner, Port, Vgic};
use crate::vits::{Backend, BackendError};

/// The virtual ITSs' access to the physical ITSs, for the duration of a call.
pub struct LpiBackend<'a, H: Hw + Clone> {
    /// The physical GIC.
    pub gic: &'a Gic<H>,
    /// The domain's virtual GIC.
    pub vgic: &'a Vgic,
    /// The functions that the virtual GIC needs from the domain.
    pub port: &'a dyn Port,
    /// The domain's number.
    pub domain: DomId,
    /// The domain's VM and vPEs.
    pub paths: &'a LpiPaths,
    /// The routes of physical LPIs, for all domains.
    pub routes: &'a Routes,
    /// When its user has to stop, in ticks.
    pub until: u64,
}

fn failed(error: ItsError) -> BackendError {
    match error {
        ItsError::NoMemory => BackendError::NoMemory,
        _ => BackendError::Hardware,
    }
}

impl<H: Hw + Clone> LpiBackend<'_, H> {
    /// The GIC's GICv4 functions, the domain's VM and the vCPU's vPE; `None` if the vCPU has no vPE.
    fn direct(&self, vcpu: VcpuId) -> Option<(V4<'_, H>, VmHandle, VpeId)> {
        Some((self.gic.v4()?, self.paths.vm?, self.paths.vpe(vcpu)?))
    }

    fn route(&self, key: EventKey, vcpu: VcpuId, vintid: VIntid) -> Route {
        Route { domain: self.domain, vcpu, vintid, event: key }
    }

    /// Allocates a physical LPI for an event, enables it and sets its route. Returns it with the CPU that it is to be
    /// sent to.
    fn alloc_lpi(&self, key: EventKey, vcpu: VcpuId, vintid: VIntid) -> Result<(Lpi, CpuId), BackendError> {
        let cpu = self.paths.cpu(vcpu, self.gic).ok_or(BackendError::NotMapped)?;
        let lpi = self.paths.lpis.alloc(self.gic).ok_or(BackendError::NoLpi)?;
        self.gic.configure_lpi(lpi, PRIORITY, true);
        self.routes.set(lpi, self.route(key, vcpu, vintid));
        Ok((lpi, cpu))
    }

    fn free_lpi(&self, lpi: Lpi) {
        self.routes.clear(lpi);
        self.paths.lpis.free(self.gic, lpi);
    }

    /// Cleans up after mapping an event to `lpi` failed with `error`. If the command timed out, the event may be mapped
    /// all the same; then it is unmapped. The LPI is freed once.
    fn undo_map(&self, key: EventKey, lpi: Lpi, error: ItsError) -> BackendError {
        let mapped = matches!(self.gic.event(key), Ok(Event::Physical { lpi: now, .. }) if now == lpi);
        if mapped {
            let _ = self.unmap_at_host(key);
        } else {
            self.free_lpi(lpi);
        }
        failed(error)
    }

    /// Unmaps an event at the host's ITS, whether it is physical or virtual there. If the hardware does not confirm the
    /// command, the physical LPI loses its route but is not freed: it may still arrive, and must not be in use for
    /// another event then.
    fn unmap_at_host(&self, key: EventKey) -> Result<(), BackendError> {
        let known = self.gic.event(key).map_err(failed)?;
        let done = self.gic.unmap_event(key).map_err(failed);
        if let Event::Physical { lpi, .. } = known {
            match done {
                Ok(_) => self.free_lpi(lpi),
                Err(_) => self.routes.clear(lpi),
            }
        }
        done.map(|_| ())
    }

    /// Makes the hardware the owner of a vLPI. If the LPI was pending in software, it is made pending in the hardware.
    fn give_to_hardware(&self, key: EventKey, vcpu: VcpuId, vintid: VIntid) {
        if self.vgic.set_lpi_owner(self.port, vcpu, vintid, Owner::Direct) {
            // If the INT command fails, this one edge is lost and the GIC counts the failure. Later MSIs are not
            // affected.
            let _ = self.gic.set_pending(key);
        }
    }

    /// Moves an event from one vCPU to another; each of them has a vPE or not. On failure the event may be in any
    /// state.
    fn try_move(&self, key: EventKey, v: VIntid, from: VcpuId, to: VcpuId) -> Result<(), BackendError> {
        let known = self.gic.event(key).map_err(failed)?;
        match (known, self.direct(to)) {
            (Event::Virtual { .. }, Some((v4, _, vpe))) => v4.move_event(key, vpe).map_err(failed),
            (Event::Physical { lpi, .. }, Some((v4, vm, vpe))) => {
                v4.configure(vm, v, self.vgic.lpi_config(v)).map_err(|_| BackendError::Hardware)?;
                self.vgic.move_lpi(self.port, from, to, v);
                v4.map_event(key, vpe, v).map_err(failed)?;
                self.free_lpi(lpi);
                self.give_to_hardware(key, to, v);
                Ok(())
            }
            (Event::Virtual { .. }, None) => {
                let v4 = self.gic.v4().ok_or(BackendError::Hardware)?;
                let (lpi, cpu) = self.alloc_lpi(key, to, v)?;
                let _ = self.vgic.set_lpi_owner(self.port, to, v, Owner::Soft);
                v4.to_software(key, lpi, cpu).map_err(|error| self.undo_map(key, lpi, error))
            }
            (Event::Physical { lpi, .. }, None) => {
                let cpu = self.paths.cpu(to, self.gic).ok_or(BackendError::NotMapped)?;
                // The route changes first: from here on, an arrival on either CPU is injected into the new vCPU.
                self.routes.set(lpi, self.route(key, to, v));
                self.gic.move_physical(key, cpu).map_err(failed)?;
                self.vgic.move_lpi(self.port, from, to, v);
                Ok(())
            }
            (Event::Unmapped, _) => Err(BackendError::NotMapped),
        }
    }
}

impl<H: Hw + Clone> Backend for LpiBackend<'_, H> {
    fn read_guest(&self, ipa: Ipa, buf: &mut [u8]) -> bool {
        self.port.read_guest(ipa, buf)
    }

    fn vcpus(&self) -> u16 {
        u16::try_from(self.paths.vcpus.len()).unwrap_or(u16::MAX)
    }

    fn vcpu_by_target(&self, rdbase: u64) -> Option<VcpuId> {
        nospec::below(rdbase, self.vcpus().into()).map(|number| VcpuId(number as u16))
    }

    fn owns_device(&self, its: ItsId, device: DeviceId) -> bool {
        self.paths.owns(its, device)
    }

    fn map_device(&self, its: ItsId, device: DeviceId, event_bits: u8) -> Result<(), BackendError> {
        self.gic.map_device(its, device, event_bits).map_err(|error| {
            // If the MAPD timed out, `gic` still lists the device. It is unmapped, so that a later MAPD can succeed.
            let _ = self.gic.unmap_device(its, device);
            failed(error)
        })
    }

    fn unmap_device(&self, its: ItsId, device: DeviceId) -> Result<(), BackendError> {
        self.gic.unmap_device(its, device).map_err(failed)
    }

    fn map_event(&self, key: EventKey, vcpu: VcpuId, vintid: VIntid) -> Result<(), BackendError> {
        if let Some((v4, vm, vpe)) = self.direct(vcpu) {
            v4.configure(vm, vintid, self.vgic.lpi_config(vintid)).map_err(|_| BackendError::Hardware)?;
            v4.map_event(key, vpe, vintid).map_err(failed)?;
            self.give_to_hardware(key, vcpu, vintid);
            return Ok(());
        }
        let (lpi, cpu) = self.alloc_lpi(key, vcpu, vintid)?;
        let _ = self.vgic.set_lpi_owner(self.port, vcpu, vintid, Owner::Soft);
        self.gic.map_physical(key, lpi, cpu).map_err(|error| self.undo_map(key, lpi, error))
    }

    fn move_event(&self, key: EventKey, vintid: VIntid, from: VcpuId, to: VcpuId) -> Result<(), BackendError> {
        let moved = self.try_move(key, vintid, from, to);
        if moved.is_err() {
            // The event must not reach two vCPUs, so an event that cannot be moved is unmapped.
            let _ = self.unmap_at_host(key);
        }
        moved
    }

    fn unmap_event(&self, key: EventKey, vintid: VIntid, vcpu: VcpuId) -> Result<(), BackendError> {
        // The owner of the vINTID does not change: another event may be mapped to it, and the next mapping sets the
        // owner.
        let done = self.unmap_at_host(key);
        self.vgic.clear_lpi(self.port, vcpu, vintid);
        done
    }

    fn park_event(&self, key: EventKey, vintid: VIntid, vcpu: VcpuId) -> Result<(), BackendError> {
        let done = self.unmap_at_host(key);
        let _ = self.vgic.set_lpi_owner(self.port, vcpu, vintid, Owner::Soft);
        // DISCARD has cleared the pending state, and GICv4.0 cannot tell whether the event was pending. Injecting one
        // edge makes sure that none is lost.
        self.vgic.inject_lpi(self.port, vcpu, vintid);
        done
    }

    fn set_pending(&self, key: EventKey, _: VIntid, _: VcpuId) {
        // An INT command works for a physical and for a virtual event. The GIC counts a failure.
        let _ = self.gic.set_pending(key);
    }

    fn clear_pending(&self, key: EventKey, vintid: VIntid, vcpu: VcpuId) {
        let _ = self.gic.clear_pending(key);
        if self.direct(vcpu).is_none() {
            self.vgic.clear_lpi(self.port, vcpu, vintid);
        }
    }

    fn reload_config(&self, key: EventKey, vintid: VIntid, vcpu: VcpuId) {
        self.reload_config_byte_only(vintid, vcpu);
        if self.direct(vcpu).is_some() {
            let _ = self.gic.invalidate(key);
        }
    }

    fn reload_config_byte_only(&self, vintid: VIntid, vcpu: VcpuId) {
        let Some(byte) = self.vgic.reload_lpi_config(self.port, vintid) else { return };
        if let Some((v4, vm, _)) = self.direct(vcpu) {
            let _ = v4.configure(vm, vintid, byte);
        }
    }

    fn invalidate_all(&self, vcpu: VcpuId) {
        if let Some((v4, _, vpe)) = self.direct(vcpu) {
            let _ = v4.invalidate_all(vpe);
        }
    }

    fn move_all_pending(&self, from: VcpuId, to: VcpuId, resume: u32) -> Option<u32> {
        self.vgic.move_all_lpis(self.port, from, to, resume)
    }

    fn is_settled(&self) -> bool {
        self.port.is_settled()
    }

    fn is_late(&self) -> bool {
        // Without a limit, as in a test, the time is not read.
        self.until != u64::MAX && timer::now() >= self.until
    }
}

#[cfg(test)]
mod lives;
#[cfg(test)]
mod no_allocation;
#[cfg(test)]
mod tests;
