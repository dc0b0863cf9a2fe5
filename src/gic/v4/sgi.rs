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
use crate::util::bits::set_bits;
use arrayvec::ArrayVec;

const SGIS: usize = 16;

impl<H: Hw + Clone> V4<'_, H> {
    /// Posts the commands for the SGIs `which` of a vPE (one bit each), and a VSYNC after them.
    fn sgi_commands(self, vpe: VpeId, which: u16, command: impl Fn(u8) -> Command) -> Result<(), V4Error> {
        if !self.gic.has_virtual_sgis() {
            return Err(V4Error::NoSuchSgi(0));
        }
        let slot = self.state.slot(vpe).ok_or(V4Error::NoSuchVpe(vpe))?;
        let mut guard = slot.vpe.lock();
        let v = guard.as_mut().ok_or(V4Error::NoSuchVpe(vpe))?;
        let its = self.alive(v.mapped).ok_or(V4Error::Its(ItsError::Dead))?;
        let mut commands: ArrayVec<Command, { SGIS + 1 }> = set_bits(which).map(|sgi| command(sgi as u8)).collect();
        commands.push(Command::vsync(vpe));
        its.run(&self.gic.counters, &commands)?;
        Ok(())
    }

    /// Sets the enable bits, groups and priorities of the virtual SGIs `which`, one bit each. Their pending state does
    /// not change.
    pub fn configure_sgis(self, vpe: VpeId, which: u16, config: impl Fn(u8) -> SgiConfig) -> Result<(), V4Error> {
        self.sgi_commands(vpe, which, |sgi| Command::vsgi(vpe, sgi, config(sgi)))
    }

    /// Clears the pending state of the virtual SGIs `which`, one bit each.
    pub fn clear_sgis(self, vpe: VpeId, which: u16) -> Result<(), V4Error> {
        self.sgi_commands(vpe, which, |sgi| Command::vsgi_clear(vpe, sgi))
    }

    /// Makes a virtual SGI pending by one store, without a command.
    pub fn send_sgi(self, vpe: VpeId, sgi: u8) -> Result<(), V4Error> {
        if usize::from(sgi) >= SGIS || !self.gic.has_virtual_sgis() {
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
