//! The doorbell of a vPE: a physical LPI that tells EL2 that an interrupt is pending for a vCPU that does not run.
//!
//! How a doorbell is enabled, moved with its vPE and disabled differs between the generations: see
//! [`backend`]. What is here is the verb that masks it.

use super::backend;
use super::error::V4Error;
use super::view::V4;
use crate::gic::error::ItsError;
use crate::ids::VpeId;
use crate::mmio::Hw;

impl<H: Hw + Clone> V4<'_, H> {
    /// Masks or unmasks a vPE's doorbell. While it is masked it stays pending, and is taken once it is unmasked.
    /// `false`: the doorbell needs no mask, because it rings only once before the vPE runs again (GICv4.1).
    pub fn mask_doorbell(self, vpe: VpeId, masked: bool) -> Result<bool, V4Error> {
        let slot = self.state.slot(vpe).ok_or(V4Error::NoSuchVpe(vpe))?;
        let mut guard = slot.vpe.lock();
        let v = guard.as_mut().ok_or(V4Error::NoSuchVpe(vpe))?;
        if !backend::doorbell_repeats(self) {
            return Ok(false);
        }
        if v.moving.is_some() {
            self.finish_move(vpe, v).map_err(|_| V4Error::Its(ItsError::Timeout))?;
        }
        let home = self.gic.online(v.home).map_err(|_| V4Error::CpuOffline(v.home))?;
        backend::mask_doorbell(self, v, home, masked)?;
        Ok(true)
    }
}
