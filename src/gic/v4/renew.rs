//! Making a VM and its vPEs as new, in the memory that they have: their guest begins anew.
//!
//! What the hardware holds of a vPE (pending vLPIs, virtual SGIs and their configuration, the copies that redistributors
//! have of its tables) ends with VMAPP V=0 on every ITS. Then the pending table is zeroed, and the vPE is mapped again
//! with VMAPP and VINVALL as one that was just made. So no allocation can fail.
//!
//! Kept are the vPEID, the home, and the doorbell, which stays enabled. A doorbell that is pending is cleared where
//! software can do that; otherwise it rings once for a vCPU that needs no wake-up. The IDAI of GICv4.0 is kept, too: 1
//! tells the redistributor to read the whole table, and 0 that the first part of the table is valid, as it is if zero
//! (IHI 0069, 12.11 GICR_VPENDBASER).

use super::backend;
use super::error::V4Error;
use super::view::{V4, bit};
use super::vm::fill_config;
use super::vpe::{VmHandle, Vpe};
use crate::gic::error::ItsError;
use crate::gic::its::COMMAND_LIMIT_US;
use crate::gic::lpi::pending_bytes;
use crate::ids::VpeId;
use crate::mmio::Hw;

impl<H: Hw + Clone> V4<'_, H> {
    /// Disables all vLPIs of a VM. It takes effect for each vPE when that is renewed.
    pub fn renew_vm(self, vm: VmHandle) -> Result<(), V4Error> {
        let vms = self.state.vms.lock();
        let v = vms.get(usize::from(vm.0)).and_then(Option::as_ref).ok_or(V4Error::NoSuchVm)?;
        fill_config(&self.gic.hw, v, self.coherence());
        Ok(())
    }

    /// Makes a vPE that is not resident, and has no event mapped to it, as it was when it was made, but for its home.
    /// After `Resident` it may be called again. After an error other than that, `NoSuchVpe` and `HasEvents` the vPE can
    /// only be removed.
    pub fn renew_vpe(self, vpe: VpeId) -> Result<(), V4Error> {
        let slot = self.state.slot(vpe).ok_or(V4Error::NoSuchVpe(vpe))?;
        let mut guard = slot.vpe.lock();
        let v = guard.as_mut().ok_or(V4Error::NoSuchVpe(vpe))?;
        self.check_unused(v)?;
        self.unmap_everywhere(vpe, v)?;
        backend::clear_doorbell(self, v)?;
        self.zero_table(v);
        self.map_everywhere(vpe, v)
    }

    /// Unmaps a vPE on every ITS. If one does not confirm it, the pending table may be in use for ever.
    fn unmap_everywhere(self, vpe: VpeId, v: &mut Vpe) -> Result<(), V4Error> {
        // In ITSList mode these may be unmappings, too.
        if self.finish_move(vpe, v).is_err() {
            return Err(V4Error::Its(ItsError::Timeout));
        }
        for its in self.itss() {
            if v.mapped & bit(its) == 0 {
                continue;
            }
            let ticket = self.unmap_on(its, vpe, v)?;
            if let Err(error) = its.queue.wait(&self.gic.counters, ticket, COMMAND_LIMIT_US) {
                v.is_lost = true;
                return Err(V4Error::Its(error));
            }
        }
        Ok(())
    }

    /// Zeroes the pending table of a vPE that no ITS maps and no redistributor holds.
    fn zero_table(self, v: &Vpe) {
        let bytes = pending_bytes(v.id_bits);
        for at in (0..bytes as u64).step_by(8) {
            self.gic.hw.store64(v.vpt.add(at), 0);
        }
        self.gic.hw.publish(v.vpt, bytes, self.coherence());
    }
}
