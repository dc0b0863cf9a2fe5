//! Virtual SGIs (GICv4.1; IHI 0069, 6.5): a guest's IPIs without an exit on the receiving side.
//!
//! A vPE has sixteen of them, without active state. They are configured and cleared by ITS commands, made pending by a
//! store to an ITS (the nearest one: a store to another socket doubles the cost), and read back at the vPE's
//! redistributor.

use super::error::{EnterError, V4Error};
use super::view::{V4, bit};
use crate::gic::error::ItsError;
use crate::gic::its::{Command, SgiConfig};
use crate::ids::VpeId;
use crate::mmio::Hw;

const SGIS: u8 = 16;

impl<H: Hw + Clone> V4<'_, H> {
    fn sgi_commands(self, vpe: VpeId, sgi: u8, command: Command) -> Result<(), V4Error> {
        if sgi >= SGIS || !self.gic.has_virtual_sgis() {
            return Err(V4Error::NoSuchSgi(sgi));
        }
        let slot = self.state.slot(vpe).ok_or(V4Error::NoSuchVpe(vpe))?;
        let mut guard = slot.vpe.lock();
        let v = guard.as_mut().ok_or(V4Error::NoSuchVpe(vpe))?;
        let its = self.alive(v.mapped).ok_or(V4Error::Its(ItsError::Dead))?;
        its.run(&self.gic.counters, &[command, Command::vsync(vpe)])?;
        Ok(())
    }

    /// Sets the enable bit, the group and the priority of a virtual SGI. Its pending state does not change.
    pub fn configure_sgi(self, vpe: VpeId, sgi: u8, config: SgiConfig) -> Result<(), V4Error> {
        self.sgi_commands(vpe, sgi, Command::vsgi(vpe, sgi, config))
    }

    /// Clears the pending state of a virtual SGI.
    pub fn clear_sgi(self, vpe: VpeId, sgi: u8) -> Result<(), V4Error> {
        self.sgi_commands(vpe, sgi, Command::vsgi_clear(vpe, sgi))
    }

    /// Makes a virtual SGI pending by one store, without a command.
    pub fn send_sgi(self, vpe: VpeId, sgi: u8) -> Result<(), V4Error> {
        if sgi >= SGIS || !self.gic.has_virtual_sgis() {
            return Err(V4Error::NoSuchSgi(sgi));
        }
        let slot = self.state.slot(vpe).ok_or(V4Error::NoSuchVpe(vpe))?;
        // The vPE's lock keeps it mapped.
        let guard = slot.vpe.lock();
        let v = guard.as_ref().ok_or(V4Error::NoSuchVpe(vpe))?;
        let home = self.gic.redist(v.home).map_or(0, |r| r.affinity());
        let near = self
            .itss()
            .find(|its| v.mapped & bit(its) != 0 && !its.queue.is_dead() && its.facts.shares_vpes_with(home));
        near.or_else(|| self.alive(v.mapped)).ok_or(V4Error::Its(ItsError::Dead))?.send_vsgi(vpe, sgi);
        Ok(())
    }

    /// The pending virtual SGIs of a vPE, one bit each.
    pub fn pending_sgis(self, vpe: VpeId) -> Result<u16, V4Error> {
        if !self.gic.has_virtual_sgis() {
            return Err(V4Error::NoSuchSgi(0));
        }
        let slot = self.state.slot(vpe).ok_or(V4Error::NoSuchVpe(vpe))?;
        let mut guard = slot.vpe.lock();
        let v = guard.as_mut().ok_or(V4Error::NoSuchVpe(vpe))?;
        self.finish_move(vpe, v).map_err(|_: EnterError| V4Error::Its(ItsError::Timeout))?;
        let home = self.gic.online(v.home)?;
        home.pending_vsgis(vpe).ok_or(V4Error::Redist(v.home))
    }
}
