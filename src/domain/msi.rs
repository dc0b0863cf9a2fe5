//! A domain's LPIs: which events go to it directly, which by way of EL2, and how one becomes the other.
//!
//! The virtual ITS decides *that* an event of a device is an LPI of a vCPU; this file decides *how* it gets
//! there and keeps the two halves together. A vCPU that has a vPE takes its events as vLPIs, which the
//! redistributor delivers while EL2 runs no instruction. A vCPU without one takes them as physical LPIs: EL2
//! acknowledges, looks up [`Routes`], and injects through a list register. The guest cannot tell which.
//!
//! Nothing here holds state about an event beyond the route of a physical LPI: `gic` knows what the hardware
//! was told, `vgic` what the guest configured, `vits` what the guest mapped.

use crate::gic::v4::{V4, VmHandle};
use crate::gic::{Event, Gic, ItsError};
use crate::host::routes::{PRIORITY, Route, Routes};
use crate::ids::{CpuId, DeviceId, DomId, EventId, Ipa, ItsId, Lpi, VIntid, VcpuId, VpeId};
use crate::mmio::Hw;
use crate::vgic::{Owner, Port, Vgic};
use crate::vits::{Backend, BackendError};
use alloc::vec::Vec;

/// What a domain has for taking LPIs.
pub struct LpiPaths {
    /// The VM in the GIC's tables; `None` where nothing is direct.
    pub vm: Option<VmHandle>,
    /// For each vCPU: the CPU it runs on, and its vPE if it has one.
    pub vcpus: Vec<(CpuId, Option<VpeId>)>,
}

impl LpiPaths {
    /// The vPE of a vCPU.
    #[must_use]
    pub fn vpe(&self, vcpu: VcpuId) -> Option<VpeId> {
        self.vcpus.get(vcpu.index())?.1
    }

    /// The CPU that takes a vCPU's LPIs where EL2 does; another, while that one is out.
    fn cpu<H: Hw + Clone>(&self, vcpu: VcpuId, gic: &Gic<H>) -> Option<CpuId> {
        gic.taker(self.vcpus.get(vcpu.index())?.0)
    }
}

/// The virtual ITS's way to the hardware, for the duration of a call.
pub struct LpiBackend<'a, H: Hw + Clone> {
    /// The physical GIC.
    pub gic: &'a Gic<H>,
    /// The domain's GIC.
    pub vgic: &'a Vgic,
    /// The domain, as its GIC reaches it.
    pub port: &'a dyn Port,
    /// The domain's number.
    pub domain: DomId,
    /// Its vPEs.
    pub paths: &'a LpiPaths,
    /// Where physical LPIs go.
    pub routes: &'a Routes,
}

fn failed(error: ItsError) -> BackendError {
    match error {
        ItsError::NoMemory => BackendError::NoMemory,
        _ => BackendError::Hardware,
    }
}

impl<H: Hw + Clone> LpiBackend<'_, H> {
    /// The way to a vCPU's vPE, if it takes its events directly.
    fn direct(&self, vcpu: VcpuId) -> Option<(V4<'_, H>, VmHandle, VpeId)> {
        Some((self.gic.v4()?, self.paths.vm?, self.paths.vpe(vcpu)?))
    }

    fn route(&self, (its, device, event): (ItsId, DeviceId, EventId), vcpu: VcpuId, vintid: VIntid) -> Route {
        Route { domain: self.domain, vcpu, vintid, its, device, event }
    }

    /// Takes a physical LPI for an event, ready to arrive.
    fn take_lpi(
        &self,
        from: (ItsId, DeviceId, EventId),
        vcpu: VcpuId,
        vintid: VIntid,
    ) -> Result<(Lpi, CpuId), BackendError> {
        let cpu = self.paths.cpu(vcpu, self.gic).ok_or(BackendError::NotMapped)?;
        let lpi = self.gic.alloc_lpi().ok_or(BackendError::NoLpi)?;
        self.gic.configure_lpi(lpi, PRIORITY, true);
        self.routes.set(lpi, self.route(from, vcpu, vintid));
        Ok((lpi, cpu))
    }

    fn give_lpi_back(&self, lpi: Lpi) {
        self.routes.clear(lpi);
        self.gic.free_lpi(lpi);
    }

    /// What an event was to become with `lpi` failed. A missed deadline may have made it that all the same: what it
    /// is now is taken down, and the LPI is given back once.
    fn undo(&self, its: ItsId, device: DeviceId, event: EventId, lpi: Lpi, error: ItsError) -> BackendError {
        let became = matches!(self.gic.event(its, device, event), Ok(Event::Physical { lpi: now, .. }) if now == lpi);
        if became {
            let _ = self.take_down(its, device, event);
        } else {
            self.give_lpi_back(lpi);
        }
        failed(error)
    }

    /// Unmaps at the host, whatever the event is there. Where the hardware does not confirm it, the LPI leads nowhere
    /// but stays taken: it may still arrive, and must not by then be somebody else's.
    fn take_down(&self, its: ItsId, device: DeviceId, event: EventId) -> Result<(), BackendError> {
        let known = self.gic.event(its, device, event).map_err(failed)?;
        let done = self.gic.unmap_event(its, device, event).map_err(failed);
        if let Event::Physical { lpi, .. } = known {
            match done {
                Ok(_) => self.give_lpi_back(lpi),
                Err(_) => self.routes.clear(lpi),
            }
        }
        done.map(|_| ())
    }

    /// Makes the vLPI the redistributor's: its configuration is what the guest says, and what was pending in
    /// software is made pending there.
    fn hand_over(&self, its: ItsId, device: DeviceId, event: EventId, vcpu: VcpuId, vintid: VIntid) {
        if self.vgic.set_lpi_owner(self.port, vcpu, vintid, Owner::Direct) {
            // A failed INT is counted by the GIC and would be a lost edge of an interrupt that software held;
            // the device's next one is not affected.
            let _ = self.gic.set_pending(its, device, event);
        }
    }

    /// `from` and `to` differ in having a vPE, or neither has one.
    fn try_move(
        &self,
        its: ItsId,
        device: DeviceId,
        event: EventId,
        v: VIntid,
        from: VcpuId,
        to: VcpuId,
    ) -> Result<(), BackendError> {
        let known = self.gic.event(its, device, event).map_err(failed)?;
        match (known, self.direct(to)) {
            (Event::Virtual { .. }, Some((v4, _, vpe))) => v4.move_event(its, device, event, vpe).map_err(failed),
            (Event::Physical { lpi, .. }, Some((v4, vm, vpe))) => {
                v4.configure(vm, v, self.vgic.lpi_config(v)).map_err(|_| BackendError::Hardware)?;
                self.vgic.move_lpi(self.port, from, to, v);
                v4.map_event(its, device, event, vpe, v).map_err(failed)?;
                self.give_lpi_back(lpi);
                self.hand_over(its, device, event, to, v);
                Ok(())
            }
            (Event::Virtual { .. }, None) => {
                let v4 = self.gic.v4().ok_or(BackendError::Hardware)?;
                let (lpi, cpu) = self.take_lpi((its, device, event), to, v)?;
                let _ = self.vgic.set_lpi_owner(self.port, to, v, Owner::Soft);
                v4.to_software(its, device, event, lpi, cpu).map_err(|error| self.undo(its, device, event, lpi, error))
            }
            (Event::Physical { lpi, .. }, None) => {
                let cpu = self.paths.cpu(to, self.gic).ok_or(BackendError::NotMapped)?;
                // The route changes first: from here on an arrival, on either CPU, is the new vCPU's.
                self.routes.set(lpi, self.route((its, device, event), to, v));
                self.gic.move_physical(its, device, event, cpu).map_err(failed)?;
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
        let number = u16::try_from(rdbase).ok()?;
        (number < self.vcpus()).then_some(VcpuId(number))
    }

    fn owns_device(&self, _: ItsId, _: DeviceId) -> bool {
        // All PCI is dom0's; what is not PCI sends no MSI on the machines we know.
        self.domain == DomId(0)
    }

    fn map_device(&self, its: ItsId, device: DeviceId, event_bits: u8) -> Result<(), BackendError> {
        self.gic.map_device(its, device, event_bits).map_err(|error| {
            // A MAPD whose completion was not seen leaves the device known: away with it, or no later one can succeed.
            let _ = self.gic.unmap_device(its, device);
            failed(error)
        })
    }

    fn unmap_device(&self, its: ItsId, device: DeviceId) -> Result<(), BackendError> {
        self.gic.unmap_device(its, device).map_err(failed)
    }

    fn map_event(
        &self,
        its: ItsId,
        device: DeviceId,
        event: EventId,
        vcpu: VcpuId,
        vintid: VIntid,
    ) -> Result<(), BackendError> {
        if let Some((v4, vm, vpe)) = self.direct(vcpu) {
            v4.configure(vm, vintid, self.vgic.lpi_config(vintid)).map_err(|_| BackendError::Hardware)?;
            v4.map_event(its, device, event, vpe, vintid).map_err(failed)?;
            self.hand_over(its, device, event, vcpu, vintid);
            return Ok(());
        }
        let (lpi, cpu) = self.take_lpi((its, device, event), vcpu, vintid)?;
        let _ = self.vgic.set_lpi_owner(self.port, vcpu, vintid, Owner::Soft);
        self.gic.map_physical(its, device, event, lpi, cpu).map_err(|error| self.undo(its, device, event, lpi, error))
    }

    fn move_event(
        &self,
        its: ItsId,
        device: DeviceId,
        event: EventId,
        vintid: VIntid,
        from: VcpuId,
        to: VcpuId,
    ) -> Result<(), BackendError> {
        let moved = self.try_move(its, device, event, vintid, from, to);
        if moved.is_err() {
            // What could not be moved is taken down, so that it is nowhere rather than in two places.
            let _ = self.take_down(its, device, event);
        }
        moved
    }

    fn unmap_event(
        &self,
        its: ItsId,
        device: DeviceId,
        event: EventId,
        vintid: VIntid,
        vcpu: VcpuId,
    ) -> Result<(), BackendError> {
        // Who owns the vINTID is left as it is: another event may share it, and the next mapping says anew.
        let done = self.take_down(its, device, event);
        self.vgic.clear_lpi(self.port, vcpu, vintid);
        done
    }

    fn park_event(
        &self,
        its: ItsId,
        device: DeviceId,
        event: EventId,
        vintid: VIntid,
        vcpu: VcpuId,
    ) -> Result<(), BackendError> {
        let done = self.take_down(its, device, event);
        let _ = self.vgic.set_lpi_owner(self.port, vcpu, vintid, Owner::Soft);
        // DISCARD dropped what was pending and GICv4.0 cannot say whether anything was: one edge makes up for it.
        self.vgic.inject_lpi(self.port, vcpu, vintid);
        done
    }

    fn set_pending(&self, its: ItsId, device: DeviceId, event: EventId, _: VIntid, _: VcpuId) {
        // Physical or virtual, the hardware makes it an arrival like any other. A failure is counted there.
        let _ = self.gic.set_pending(its, device, event);
    }

    fn clear_pending(&self, its: ItsId, device: DeviceId, event: EventId, vintid: VIntid, vcpu: VcpuId) {
        let _ = self.gic.clear_pending(its, device, event);
        if self.direct(vcpu).is_none() {
            self.vgic.clear_lpi(self.port, vcpu, vintid);
        }
    }

    fn reload_config(&self, its: ItsId, device: DeviceId, event: EventId, vintid: VIntid, vcpu: VcpuId) {
        self.reload_config_byte_only(vintid, vcpu);
        if self.direct(vcpu).is_some() {
            let _ = self.gic.invalidate(its, device, event);
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
}

#[cfg(test)]
mod tests;
