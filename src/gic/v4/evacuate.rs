//! Moving all vPEs away from a CPU that is taken out of service.

use super::error::EnterError;
use super::view::V4;
use super::vpe::{PendingDoorbell, Vpe};
use crate::ids::{CpuId, VpeId};
use crate::mmio::Hw;

impl<H: Hw + Clone> V4<'_, H> {
    /// Moves every vPE that lives at a CPU, or is being moved there, to another, and returns how many. Stops at the
    /// first one that cannot be moved, and names it. `from` is being taken out, so no vPE can be moved there meanwhile.
    pub(in crate::gic) fn evacuate(self, from: CpuId, to: CpuId) -> Result<u32, (VpeId, EnterError)> {
        // A CPU that found `from` in service while it made a vPE has finished that when this lock is free.
        drop(self.state.vms.lock());
        let mut moved = 0;
        for (vpe, slot) in self.state.slots() {
            let mut guard = slot.vpe.lock();
            let Some(v) = guard.as_mut() else { continue };
            match self.evacuate_vpe(vpe, v, from, to) {
                Ok(one) => moved += u32::from(one),
                Err(e) => {
                    drop(guard);
                    self.recover_vmovps();
                    return Err((vpe, e));
                }
            }
        }
        Ok(moved)
    }

    fn evacuate_vpe(self, vpe: VpeId, v: &mut Vpe, from: CpuId, to: CpuId) -> Result<bool, EnterError> {
        if v.unclean_on == Some(from) {
            self.finish_write_back(v)?;
        }
        if v.resident == Some(from) {
            return Err(EnterError::Elsewhere(from));
        }
        if v.moving.as_ref().is_some_and(|m| m.to == from || v.home == from) {
            self.finish_move(vpe, v)?;
        }
        if v.home != from {
            return Ok(false);
        }
        self.migrate_vpe(vpe, v, to, PendingDoorbell::Keep)?;
        Ok(true)
    }
}
