//! VMAPP: on which ITSs a vPE is mapped; and what events ask of the vPE that they are mapped to.
//!
//! Where one VMOVP reaches every ITS, a vPE is mapped on all of them from the start. In ITSList mode each ITS that maps
//! it has to get each VMOVP, so a vPE is mapped on an ITS with its first event there and unmapped with its last.

use super::backend;
use super::error::V4Error;
use super::view::{V4, bit};
use super::vpe::{Moving, VmHandle, Vpe};
use crate::gic::error::ItsError;
use crate::gic::its::{COMMAND_LIMIT_US, Command, Its, Ticket};
use crate::gic::lpi;
use crate::ids::{Lpi, VIntid, VpeId};
use crate::mmio::Hw;

impl<H: Hw + Clone> V4<'_, H> {
    /// Maps a new vPE on all ITSs, where vPEs are mapped so.
    pub(super) fn map_everywhere(self, vpe: VpeId, v: &mut Vpe) -> Result<(), V4Error> {
        if !backend::maps_on_all_itss(self) {
            return Ok(());
        }
        for its in self.itss().filter(|its| !its.queue.is_dead()) {
            let ticket = self.map_on(its, vpe, v)?;
            if let Err(error) = its.queue.wait(&self.gic.counters, ticket, COMMAND_LIMIT_US) {
                v.is_lost = true;
                return Err(V4Error::Its(error));
            }
        }
        if v.mapped == 0 {
            return Err(V4Error::Its(ItsError::Dead));
        }
        backend::after_map(self, vpe, v)
    }

    /// Posts VMAPP, and VINVALL so that no configuration from an earlier use of the vPEID is left.
    fn map_on(self, its: &Its<H>, vpe: VpeId, v: &mut Vpe) -> Result<Ticket, ItsError> {
        let home = self.gic.online(v.home)?;
        let map = backend::map(self, its, vpe, v, home);
        let commands = [map, Command::vsync(vpe), Command::vinvall(vpe), Command::vsync(vpe)];
        let ticket = its.queue.post(&self.gic.counters, &commands)?;
        v.mapped |= bit(its);
        Ok(ticket)
    }

    /// Posts the unmap.
    pub(super) fn unmap_on(self, its: &Its<H>, vpe: VpeId, v: &mut Vpe) -> Result<Ticket, ItsError> {
        let last = v.mapped == bit(its);
        let ticket = its.queue.post(&self.gic.counters, &backend::unmap(self, vpe, last))?;
        v.mapped &= !bit(its);
        Ok(ticket)
    }

    /// Counts an event of `its` that is about to be mapped to a vPE, and maps the vPE there if it is not. Returns the
    /// doorbell that the event has to name, if any.
    pub(in crate::gic) fn pin(self, its: &Its<H>, vpe: VpeId, vintid: VIntid) -> Result<Option<Lpi>, ItsError> {
        let slot = self.state.slot(vpe).ok_or(ItsError::NoSuchVpe(vpe))?;
        let mut guard = slot.vpe.lock();
        let v = guard.as_mut().ok_or(ItsError::NoSuchVpe(vpe))?;
        lpi::config_offset(vintid.0, v.id_bits).ok_or(ItsError::VIntidRange(vintid))?;
        if v.mapped & bit(its) == 0 {
            if v.moving.is_some() {
                self.finish_move(vpe, v).map_err(|_| ItsError::Timeout)?;
            }
            let ticket = self.map_on(its, vpe, v)?;
            v.moving.get_or_insert(Moving::new(v.home)).add(its.id, ticket);
        }
        let count = v.events.get_mut(its.id.index()).ok_or(ItsError::NotVirtual)?;
        *count += 1;
        Ok(backend::event_doorbell(self, v))
    }

    /// Counts an event of `its` that is no longer mapped to a vPE, and unmaps the vPE there if it was the last and vPEs
    /// are not mapped everywhere. The VSYNC that follows the event's own unmapping has been posted.
    pub(in crate::gic) fn unpin(self, its: &Its<H>, vpe: VpeId) {
        let Some(slot) = self.state.slot(vpe) else { return };
        let mut guard = slot.vpe.lock();
        let Some(v) = guard.as_mut() else { return };
        let Some(count) = v.events.get_mut(its.id.index()) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 && !backend::maps_on_all_itss(self) && !its.queue.is_dead() {
            match self.unmap_on(its, vpe, v) {
                // The vPE may run elsewhere only when this ITS no longer knows it.
                Ok(ticket) => v.moving.get_or_insert(Moving::new(v.home)).add(its.id, ticket),
                // It stays mapped there, gets the ITS's VMOVPs, and is unmapped when the vPE is removed.
                Err(_) => self.gic.counters.batch_errors.bump(),
            }
        }
    }

    /// The VM that a vPE belongs to.
    pub(in crate::gic) fn vm_of(self, vpe: VpeId) -> Option<VmHandle> {
        self.state.slot(vpe)?.vpe.lock().as_ref().map(|v| v.vm)
    }

    /// Makes the hardware reload the configuration of all vLPIs of a vPE.
    pub fn invalidate_all(self, vpe: VpeId) -> Result<(), V4Error> {
        let slot = self.state.slot(vpe).ok_or(V4Error::NoSuchVpe(vpe))?;
        let mut guard = slot.vpe.lock();
        let v = guard.as_mut().ok_or(V4Error::NoSuchVpe(vpe))?;
        if backend::reloads_at_redist(self) {
            // Which redistributor that is, is certain only when a move is complete.
            self.finish_move(vpe, v).map_err(|_| V4Error::Its(ItsError::Timeout))?;
            let home = self.gic.online(v.home).map_err(|_| V4Error::CpuOffline(v.home))?;
            if backend::reload_at_redist(self, vpe, None, home) {
                return Ok(());
            }
            self.gic.counters.redist_timeouts.bump();
        }
        for its in self.itss().filter(|its| v.mapped & bit(its) != 0 && !its.queue.is_dead()) {
            its.run(&self.gic.counters, &[Command::vinvall(vpe), Command::vsync(vpe)])?;
        }
        Ok(())
    }

    /// Makes the vPE's redistributor reload the configuration of one vLPI, without a command (GICv4.1). `false`: it
    /// cannot, or the vPE is being moved.
    pub(in crate::gic) fn invalidate_directly(self, vpe: VpeId, vintid: VIntid) -> bool {
        if !backend::reloads_at_redist(self) {
            return false;
        }
        let Some(slot) = self.state.slot(vpe) else { return false };
        // The lock keeps the vPE from being moved to another redistributor meanwhile.
        let guard = slot.vpe.lock();
        let Some(v) = guard.as_ref().filter(|v| v.moving.is_none()) else { return false };
        self.gic.online(v.home).is_ok_and(|home| backend::reload_at_redist(self, vpe, Some(vintid), home))
    }
}
