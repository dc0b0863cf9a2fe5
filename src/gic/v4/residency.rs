//! Making a vPE resident on a CPU and taking it off again (IHI 0069, 6.3 and 12.11.33 to 12.11.35).
//!
//! Every switch of vCPUs takes this path: it allocates nothing, posts no command unless the vPE moves, and writes one
//! register to enter and one to leave if there is nothing to wait for.
//!
//! | | GICv4.0 | GICv4.1 |
//! |---|---|---|
//! | enter | VPROPBASER if it differs; VPENDBASER = VPT, PendingLast, IDAI as read, Valid | vPEID, groups, Valid |
//! | leave | wait for Dirty, clear Valid, wait for Dirty, read PendingLast and IDAI | the same, without IDAI |
//! | ... to block | the same | with Doorbell set |
//! | ... preempted | the same | with PendingLast set |
//!
//! After a wait that misses its deadline an interrupt is assumed to be pending: a spurious wake is cheap, a lost
//! interrupt is not. Then the redistributor is waited for again before anything else is written to it, and the vPE's
//! memory is not freed until the write-back is known to be complete.

use super::backend;
use super::error::EnterError;
use super::view::V4;
use super::vpe::{InterruptGroups, Left, PendingDoorbell, Vpe, Why, WriteBack};
use crate::gic::redist::Redist;
use crate::gic::regs::GICR_VPENDBASER;
use crate::ids::{CpuId, VpeId};
use crate::log_limited;
use crate::mmio::Hw;
use core::marker::PhantomData;
use core::mem;
use core::sync::atomic::Ordering;

/// A vPE that is resident on a CPU. It is handed to [`V4::leave`] on the same CPU.
#[must_use = "a resident vPE has to leave again"]
#[derive(Debug)]
pub struct Resident {
    vpe: VpeId,
    cpu: CpuId,
    groups: InterruptGroups,
    /// The redistributor has read the pending table.
    table_read: bool,
    not_send: PhantomData<*mut ()>,
}

impl Resident {
    /// The vPE.
    #[must_use]
    pub const fn vpe(&self) -> VpeId {
        self.vpe
    }

    /// The CPU.
    #[must_use]
    pub const fn cpu(&self) -> CpuId {
        self.cpu
    }

    /// The interrupt groups that it was entered with.
    #[must_use]
    pub const fn groups(&self) -> InterruptGroups {
        self.groups
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        // The register cannot be reached from here. The redistributor stays claimed, so that no other vPE is entered
        // while Valid is set.
        log_limited!(Error; "{}: dropped while resident on {}; no vPE can run there any more", self.vpe, self.cpu);
    }
}

/// Whether an interrupt is pending, or may be, for a vPE that left. If so, its vCPU must not block.
#[must_use = "a vCPU that blocks with an interrupt pending may sleep for ever"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingLast(pub bool);

impl<H: Hw + Clone> V4<'_, H> {
    /// Whether a vPE may be resident only while the guest has enabled interrupt group 1.
    #[inline]
    #[must_use]
    pub fn needs_group1(self) -> bool {
        backend::needs_group1(self)
    }

    /// Makes a vPE resident on this CPU, after moving it here if it lives elsewhere. On GICv4.1 its guest gets only
    /// interrupts of `groups`; to change them, the vPE leaves and enters again. GICv4.0 does not look at them
    /// ([`needs_group1`](Self::needs_group1)).
    pub fn enter(self, vpe: VpeId, cpu: CpuId, groups: InterruptGroups) -> Result<Resident, EnterError> {
        let slot = self.state.slot(vpe).ok_or(EnterError::NoSuchVpe(vpe))?;
        let redist = self.gic.in_service(cpu).map_err(|_| EnterError::CpuOffline(cpu))?;
        if redist.dirty_missed.load(Ordering::Relaxed) {
            self.recover_redist(redist)?;
        }
        let mut guard = slot.vpe.lock();
        let v = guard.as_mut().ok_or(EnterError::NoSuchVpe(vpe))?;
        if v.unclean_on.is_some() {
            self.finish_write_back(v)?;
        }
        if let Some(there) = v.resident {
            return Err(EnterError::Elsewhere(there));
        }
        // Claimed before the vPE is moved: if it cannot run here, its doorbell stays where it was.
        redist.claim(vpe).map_err(EnterError::Occupied)?;
        if (v.home != cpu || v.moving.is_some())
            && let Err(e) = self.migrate_vpe(vpe, v, cpu, PendingDoorbell::Drop)
        {
            redist.release();
            drop(guard);
            self.recover_vmovps();
            return Err(e);
        }
        backend::enter(self, vpe, v, groups, redist);
        v.resident = Some(cpu);
        // The invariants of residency, checked in debug builds: the vPE lives here, and is resident here only.
        debug_assert!(v.home == cpu && v.moving.is_none(), "{vpe} is resident on {cpu} and lives on {}", v.home);
        debug_assert!(
            redist.resident() == Some(vpe) && redist.vpend().is_set(GICR_VPENDBASER::VALID),
            "{vpe} on {cpu}"
        );
        self.gic.counters.enters.bump();
        Ok(Resident { vpe, cpu, groups, table_read: false, not_send: PhantomData })
    }

    /// Waits until the redistributor has read the resident vPE's pending table, once in each residency. Called just
    /// before the guest is entered: a guest that is faster finds no interrupt, waits for one, and causes a doorbell.
    #[inline]
    pub fn before_eret(self, resident: &mut Resident) {
        if self.gic.facts.dirty && !mem::replace(&mut resident.table_read, true) {
            self.wait_for_table(resident.cpu);
        }
    }

    fn wait_for_table(self, cpu: CpuId) {
        if let Some(redist) = self.gic.redists.get(cpu.index())
            && !redist.clean()
        {
            self.gic.counters.redist_timeouts.bump();
        }
    }

    /// Takes a vPE off its CPU.
    pub fn leave(self, resident: Resident, why: Why) -> PendingLast {
        let Resident { vpe, cpu, .. } = resident;
        mem::forget(resident);
        let counters = &self.gic.counters;
        match why {
            Why::Preempt => counters.leaves_preempt.bump(),
            Why::Block => counters.leaves_block.bump(),
        }
        let (Some(redist), Some(slot)) = (self.gic.redists.get(cpu.index()), self.state.slot(vpe)) else {
            return PendingLast(true);
        };
        let mut guard = slot.vpe.lock();
        debug_assert!(redist.resident() == Some(vpe), "{vpe} leaves {cpu}, where {:?} is", redist.resident());
        debug_assert!(
            guard.as_ref().is_none_or(|v| v.resident == Some(cpu) && v.home == cpu),
            "{vpe} leaves {cpu}, where it does not live"
        );
        let Left { pending, carry, state } =
            if redist.clean_before_change() { backend::leave(self, redist, why) } else { Left::STUCK };
        if state != WriteBack::Clean {
            counters.redist_timeouts.bump();
            redist.dirty_missed.store(true, Ordering::Relaxed);
            log_dirty(vpe, cpu);
        }
        if let Some(v) = guard.as_mut() {
            v.backend.carry = carry;
            v.unclean_on = if state == WriteBack::Clean { None } else { Some(cpu) };
            if state != WriteBack::Stuck {
                v.resident = None;
            }
        }
        if state == WriteBack::Clean {
            redist.release();
        }
        if pending {
            counters.pending_last.bump();
        }
        PendingLast(pending)
    }

    /// Handles a redistributor that missed its deadline earlier: waits once more, and takes the vPE off if that was not
    /// possible then.
    #[cold]
    fn recover_redist(self, redist: &Redist<H>) -> Result<(), EnterError> {
        if let Some(slot) = redist.resident().and_then(|vpe| self.state.slot(vpe))
            && let Some(v) = slot.vpe.lock().as_mut()
        {
            self.finish_write_back(v)?;
        }
        redist.dirty_missed.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Completes the write-back of a vPE, if one was not seen to complete. Until then the redistributor stays claimed:
    /// its register alone says with which IDAI the vPE left.
    #[cold]
    pub(super) fn finish_write_back(self, v: &mut Vpe) -> Result<(), EnterError> {
        let Some(redist) = v.unclean_on.and_then(|cpu| self.gic.redist(cpu)) else { return Ok(()) };
        if v.resident.is_some() {
            if !redist.clean_before_change() {
                return Err(EnterError::Busy);
            }
            let left = backend::leave(self, redist, Why::Preempt);
            v.resident = None;
            v.backend.carry = left.carry;
            if left.state != WriteBack::Clean {
                return Err(EnterError::Busy);
            }
        } else {
            if !redist.clean() {
                return Err(EnterError::Busy);
            }
            v.backend.carry = backend::carry(self, redist.vpend().get());
        }
        redist.release();
        v.unclean_on = None;
        Ok(())
    }
}

#[cold]
fn log_dirty(vpe: VpeId, cpu: CpuId) {
    log_limited!(Error; "{vpe}: VPENDBASER.Dirty timed out on {cpu}; assuming a pending interrupt");
}
