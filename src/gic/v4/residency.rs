//! Making a vPE resident and taking it off again (IHI 0069, 6.3 and 12.11.33 to 12.11.35).
//!
//! The path that every switch of virtual CPUs takes: no allocation, no command unless the vPE moves, one register
//! write to enter and one to leave when nothing has to be waited for.
//!
//! | | GICv4.0 | GICv4.1 |
//! |---|---|---|
//! | enter | VPROPBASER if it differs, VPENDBASER = VPT, PendingLast, IDAI as it was, Valid | VPENDBASER = vPEID, groups, Valid |
//! | leave | wait Dirty, Valid off, wait Dirty, read PendingLast and IDAI | the same; to block: Doorbell, and PendingLast off; preempted: PendingLast on |
//!
//! A wait that misses its deadline is answered as "an interrupt may be pending": a spurious wake is cheap, a lost
//! one is not. The redistributor is then waited for again before anything else is written to it, and the vPE's
//! memory is not given back until it is known to be clean.

use super::V4;
use super::doorbell::Ringing;
use super::vm::Vpe;
use crate::gic::redist::Redist;
use crate::gic::regs::{GICR_VPENDBASER, GICR_VPENDBASER_4_1, GICR_VPROPBASER, attributes, pa_4k, pa_64k};
use crate::ids::{CpuId, Pa, VpeId};
use crate::mmio::{Coherence, Hw};
use core::fmt;
use core::marker::PhantomData;
use core::mem;
use core::sync::atomic::Ordering;

/// The right to have this vPE resident on this CPU. Given back to [`V4::leave`], on the same CPU.
#[must_use = "a resident vPE has to leave again"]
#[derive(Debug)]
pub struct Resident {
    vpe: VpeId,
    cpu: CpuId,
    not_send: PhantomData<*mut ()>,
}

impl Resident {
    /// Whose.
    #[must_use]
    pub const fn vpe(&self) -> VpeId {
        self.vpe
    }

    /// Where.
    #[must_use]
    pub const fn cpu(&self) -> CpuId {
        self.cpu
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        // The register cannot be reached from here; the redistributor stays claimed, so that nobody writes over Valid.
        log::error!("{} was dropped while resident on {}", self.vpe, self.cpu);
    }
}

/// Why a vPE leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its virtual CPU could go on; it will be back by itself.
    Preempt,
    /// Its virtual CPU waits for an interrupt: a doorbell is wanted.
    Block,
}

/// Whether an interrupt is (or may be) pending for a vPE that left: then its virtual CPU must not block.
#[must_use = "a virtual CPU that blocks with an interrupt pending may sleep for ever"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingLast(pub bool);

/// Why a vPE could not be made resident. It is not, and nothing was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnterError {
    /// There is no such vPE.
    NoSuchVpe(VpeId),
    /// There is no such CPU, or its LPIs are not on.
    CpuOffline(CpuId),
    /// It is resident on that CPU already.
    Elsewhere(CpuId),
    /// Another vPE is resident on this CPU.
    Occupied(VpeId),
    /// It could not be moved here, and lives where it did: it can be entered there.
    NotMoved {
        /// Where.
        home: CpuId,
    },
    /// It is being moved and the ITS has not said that it is done: try again later, on any CPU.
    Moving,
    /// The redistributor is still writing back the last vPE: try again later.
    Busy,
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnterError::NoSuchVpe(v) => write!(f, "there is no {v}"),
            EnterError::CpuOffline(c) => write!(f, "{c} takes no LPIs"),
            EnterError::Elsewhere(c) => write!(f, "the vPE is resident on {c}"),
            EnterError::Occupied(v) => write!(f, "{v} is resident here"),
            EnterError::NotMoved { home } => write!(f, "the vPE could not be moved and lives on {home}"),
            EnterError::Moving => write!(f, "the vPE's move is not complete"),
            EnterError::Busy => write!(f, "the redistributor is still writing back the last vPE"),
        }
    }
}

impl<H: Hw + Clone> V4<'_, H> {
    /// Makes a vPE resident on this CPU, after moving it here if it lives elsewhere.
    pub fn enter(self, vpe: VpeId, cpu: CpuId) -> Result<Resident, EnterError> {
        let slot = self.state.slot(vpe).ok_or(EnterError::NoSuchVpe(vpe))?;
        let redist = self.gic.open(cpu).map_err(|_| EnterError::CpuOffline(cpu))?;
        if redist.dirty_missed.load(Ordering::Relaxed) {
            self.recover(redist)?;
        }
        let mut guard = slot.vpe.lock();
        let v = guard.as_mut().ok_or(EnterError::NoSuchVpe(vpe))?;
        if v.unclean_on.is_some() {
            self.settle(v)?;
        }
        if let Some(there) = v.resident {
            return Err(EnterError::Elsewhere(there));
        }
        // Before it is moved: one that cannot run here has its doorbell where it was.
        redist.claim(vpe).map_err(EnterError::Occupied)?;
        if (v.home != cpu || v.moving.is_some())
            && let Err(e) = self.bring(vpe, v, cpu, Ringing::Drop)
        {
            redist.release();
            drop(guard);
            self.mend();
            return Err(e);
        }
        if self.gic.facts.v41 {
            enter_v41(vpe, v, redist)
        } else {
            enter_v40(v, redist)
        }
        v.resident = Some(cpu);
        // Invariants 1 to 3, live in a debug build: here and nowhere else, where it lives, and the register says so.
        debug_assert!(v.home == cpu && v.moving.is_none(), "{vpe} is resident on {cpu} and lives on {}", v.home);
        debug_assert!(
            redist.resident() == Some(vpe) && redist.vpend().is_set(GICR_VPENDBASER::VALID),
            "{vpe} on {cpu}"
        );
        self.gic.counters.enters.bump();
        Ok(Resident { vpe, cpu, not_send: PhantomData })
    }

    /// To be called just before the guest is entered, once a residency: waits until its pending table has been read,
    /// as a guest that is faster finds no interrupt, waits for one, and causes a doorbell.
    #[inline]
    pub fn before_eret(self, resident: &Resident) {
        if self.gic.facts.dirty
            && let Some(redist) = self.gic.redists.get(resident.cpu.index())
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
        let Left { pending, idai, state } =
            if redist.clean_before_change() { self.take_off(redist, why) } else { Left::STUCK };
        if state != Off::Clean {
            counters.redist_timeouts.bump();
            redist.dirty_missed.store(true, Ordering::Relaxed);
            say_dirty(vpe, cpu);
        }
        if let Some(v) = guard.as_mut() {
            v.idai = idai;
            v.unclean_on = if state == Off::Clean { None } else { Some(cpu) };
            if state != Off::Stuck {
                v.resident = None;
            }
        }
        if state == Off::Clean {
            redist.release();
        }
        if pending {
            counters.pending_last.bump();
        }
        PendingLast(pending)
    }

    fn take_off(self, redist: &Redist<H>, why: Why) -> Left {
        if self.gic.facts.v41 { leave_v41(redist, why) } else { leave_v40(redist) }
    }

    /// A redistributor missed its deadline earlier: waits once more, and takes off what could not be taken off then.
    #[cold]
    fn recover(self, redist: &Redist<H>) -> Result<(), EnterError> {
        if let Some(slot) = redist.resident().and_then(|vpe| self.state.slot(vpe))
            && let Some(v) = slot.vpe.lock().as_mut()
        {
            self.settle(v)?;
        }
        redist.dirty_missed.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The same for a vPE, wherever it is dirty, if it is. Until then the redistributor stays claimed: its register is the
    /// only one that says with which IDAI the vPE was left.
    #[cold]
    pub(super) fn settle(self, v: &mut Vpe) -> Result<(), EnterError> {
        let Some(redist) = v.unclean_on.and_then(|cpu| self.gic.redists.get(cpu.index())) else { return Ok(()) };
        if v.resident.is_some() {
            if !redist.clean_before_change() {
                return Err(EnterError::Busy);
            }
            let left = self.take_off(redist, Why::Preempt);
            v.resident = None;
            v.idai = left.idai;
            if left.state != Off::Clean {
                return Err(EnterError::Busy);
            }
        } else {
            if !redist.clean() {
                return Err(EnterError::Busy);
            }
            v.idai = redist.vpend().is_set(GICR_VPENDBASER::IDAI);
        }
        redist.release();
        v.unclean_on = None;
        Ok(())
    }
}

#[cold]
fn say_dirty(vpe: VpeId, cpu: CpuId) {
    log::error!("{cpu}: {vpe} is still dirty after its time; taken as having an interrupt pending");
}

/// How far a vPE has come off its redistributor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Off {
    /// All written back.
    Clean,
    /// Valid is clear; what was to be written back may still be.
    Dirty,
    /// Valid could not be cleared: Dirty stayed set before.
    Stuck,
}

#[derive(Clone, Copy)]
struct Left {
    pending: bool,
    idai: bool,
    state: Off,
}

impl Left {
    const STUCK: Left = Left { pending: true, idai: false, state: Off::Stuck };

    fn new(pending: bool, idai: bool, clean: bool) -> Left {
        Left { pending: pending || !clean, idai, state: if clean { Off::Clean } else { Off::Dirty } }
    }
}

fn enter_v40<H: Hw>(v: &Vpe, redist: &Redist<H>) {
    redist.set_vpropbaser(v.vpropbaser);
    redist
        .write_vpend((GICR_VPENDBASER::VALID::SET + GICR_VPENDBASER::IDAI.val(u64::from(v.idai))).value | v.vpendbaser);
}

/// What GICR_VPROPBASER says for a VM (GICv4.0).
pub fn vpropbaser(config: Pa, id_bits: u8, coherence: Coherence) -> u64 {
    let (share, inner) = share(coherence, attributes::READ_ALLOCATE);
    (GICR_VPROPBASER::PA_4K.val(pa_4k(config))
        + GICR_VPROPBASER::ID_BITS.val(u64::from(id_bits - 1))
        + GICR_VPROPBASER::SHAREABILITY.val(share)
        + GICR_VPROPBASER::INNER_CACHE.val(inner)
        + GICR_VPROPBASER::OUTER_CACHE.val(attributes::SAME_AS_INNER))
    .value
}

/// What GICR_VPENDBASER says for a vPE (GICv4.0), but for Valid and IDAI. PendingLast is only a hint: it is always given.
pub fn vpendbaser(vpt: Pa, coherence: Coherence) -> u64 {
    let (share, inner) = share(coherence, attributes::WRITE_ALLOCATE);
    (GICR_VPENDBASER::PA_64K.val(pa_64k(vpt))
        + GICR_VPENDBASER::PENDING_LAST::SET
        + GICR_VPENDBASER::SHAREABILITY.val(share)
        + GICR_VPENDBASER::INNER_CACHE.val(inner)
        + GICR_VPENDBASER::OUTER_CACHE.val(attributes::SAME_AS_INNER))
    .value
}

fn share(coherence: Coherence, inner: u64) -> (u64, u64) {
    match coherence {
        Coherence::Coherent => (attributes::INNER_SHAREABLE, inner),
        Coherence::NonCoherent => (0, attributes::NON_CACHEABLE),
    }
}

fn leave_v40<H: Hw>(redist: &Redist<H>) -> Left {
    let mut value = redist.vpend();
    value.modify(GICR_VPENDBASER::VALID::CLEAR);
    redist.write_vpend(value.get());
    let clean = redist.clean();
    let value = redist.vpend();
    Left::new(value.is_set(GICR_VPENDBASER::PENDING_LAST), value.is_set(GICR_VPENDBASER::IDAI), clean)
}

fn enter_v41<H: Hw>(vpe: VpeId, v: &Vpe, redist: &Redist<H>) {
    let value = GICR_VPENDBASER_4_1::VALID::SET
        + GICR_VPENDBASER_4_1::VGRP0EN.val(u64::from(v.groups.group0))
        + GICR_VPENDBASER_4_1::VGRP1EN.val(u64::from(v.groups.group1))
        + GICR_VPENDBASER_4_1::VPEID.val(u64::from(vpe.0));
    redist.write_vpend(value.value);
}

fn leave_v41<H: Hw>(redist: &Redist<H>, why: Why) -> Left {
    match why {
        Why::Block => {
            redist.write_vpend(GICR_VPENDBASER_4_1::DOORBELL::SET.value);
            let clean = redist.clean();
            Left::new(redist.vpend().is_set(GICR_VPENDBASER::PENDING_LAST), false, clean)
        }
        // It comes back by itself: neither a doorbell nor a search for pending interrupts is worth its time.
        Why::Preempt => {
            redist.write_vpend(GICR_VPENDBASER_4_1::PENDING_LAST::SET.value);
            Left::new(true, false, redist.clean())
        }
    }
}

impl<H: Hw + Clone> V4<'_, H> {
    /// Says which groups of interrupts a guest has on (GICv4.1; group 1 at first). Counts from the next
    /// [`enter`](Self::enter): a vPE that is resident is taken off and entered again by the caller.
    pub fn set_groups(self, vpe: VpeId, groups: Groups) -> Result<(), EnterError> {
        let slot = self.state.slot(vpe).ok_or(EnterError::NoSuchVpe(vpe))?;
        slot.vpe.lock().as_mut().ok_or(EnterError::NoSuchVpe(vpe))?.groups = groups;
        Ok(())
    }
}

/// Which groups of interrupts a guest has on (GICv4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// GICD_CTLR.EnableGrp0.
    pub group0: bool,
    /// GICD_CTLR.EnableGrp1.
    pub group1: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registers_of_a_vpe_are_encoded_as_the_manual_says() {
        let pa = Pa(0x000a_bcde_1234_0000);
        let (shared, not) = (Coherence::Coherent, Coherence::NonCoherent);
        // InnerCache 0b011 (read-allocate, write-back), inner shareable, IDbits one less than the bits.
        assert_eq!(vpropbaser(pa, 14, shared), 0x000a_bcde_1234_058d);
        // InnerCache 0b001 (non-cacheable), non-shareable.
        assert_eq!(vpropbaser(pa, 16, not), 0x000a_bcde_1234_008f);
        // InnerCache 0b111 (read- and write-allocate, write-back), inner shareable, PendingLast.
        assert_eq!(vpendbaser(pa, shared), 0x200a_bcde_1234_0780);
        assert_eq!(vpendbaser(pa, not), 0x200a_bcde_1234_0080);
    }
}
