//! GICv4: interrupts that reach a guest without the hypervisor (IHI 0069, chapter 6).
//!
//! The ITS maps an event to a *vPE* and a *vINTID* instead of to an LPI. A vPE is the hardware's idea of a virtual
//! CPU: it lives at one redistributor (its *home*), has a pending table in memory (the VPT), and shares a
//! configuration table with the other vPEs of its VM. While it is *resident* on its home, the redistributor feeds
//! its pending vLPIs to the CPU, and a guest takes them as its own; EL2 runs no instruction. While it is not, they
//! are set pending in the VPT, and a *doorbell* (a physical LPI) tells EL2 that its virtual CPU has something to do.
//!
//! What the rest of the tree sees are the verbs of [`V4`]; which commands they become is decided below them.
//!
//! | file | what it owns |
//! |---|---|
//! | `vm` | VMs and vPEs: tables, ids, doorbells, VMAPP |
//! | `moves` | VMOVP: one ITS for all, or the ITSs of a list in one global order |
//! | `mend` | what to do when one ITS of a list no longer comes to its VMOVPs |
//! | `residency` | enter and leave |
//! | `doorbell` | doorbells: made known, taken along, kept quiet, taken away |
//! | `proxy` | control of doorbells where redistributors cannot do it |
//! | `groups` | GICv4.1: which redistributors and ITSs have a vPE table in common |
//! | `sgi` | GICv4.1: virtual SGIs |
//!
//! Invariants: a vPE is resident on one redistributor at most and a redistributor holds one vPE at most; a vPE becomes
//! resident only where every ITS that maps it knows it to be (the VMOVP *completed*); nothing in GICR_VPENDBASER
//! changes while Valid is 1, nor is Valid cleared while Dirty is 1; memory that the hardware may still use is never
//! given back. Locks: VM map, vPE, VMOVP, ITS queue, redistributor, in this order.
//!
//! On GICv4.0 doorbells stay enabled: none rings while its vPE is resident, and one that rings for a runnable
//! virtual CPU is counted and ignored by the caller.

mod doorbell;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod property_tests;
mod proxy;
mod residency;
mod sgi;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod v41_tests;
mod vm;
#[cfg(test)]
mod vm_tests;
mod vmovp;
mod vmovp_recovery;
#[cfg(test)]
mod vmovp_tests;
mod vpe_tables;

pub use crate::gic::its::SgiConfig;
pub use residency::{EnterError, Groups as InterruptGroups, PendingLast, Resident, Why};
pub use vm::{V4Error, VmHandle};

pub(super) use proxy::Proxy;
pub(super) use vpe_tables::{Groups, Sharing};

use super::Gic;
use super::its::{Its, ItsError};
use crate::ids::{CpuId, DeviceId, EventId, ItsId, Lpi, VIntid, VpeId};
use crate::mmio::Hw;
use crate::sync::{Lock, Once, Rank};
use crate::util::bits::IdAllocator;
use alloc::boxed::Box;
use alloc::vec::Vec;
use vm::{Slot, Vm};
use vmovp::Moves;

/// vPEs are kept in chunks of this many, allocated when first needed and kept.
const CHUNK: usize = 64;
type Chunk = Box<[Slot]>;

/// Everything that exists only with virtual LPIs.
pub(super) struct State {
    ids: IdAllocator,
    chunks: Box<[Once<Chunk>]>,
    vms: Lock<Vec<Option<Vm>>>,
    moves: Lock<Moves>,
    pub(super) proxy: Option<Proxy>,
    pub(super) groups: Groups,
}

impl State {
    pub(super) fn new(vpes: u32, proxy: Option<Proxy>, groups: Groups) -> Self {
        State {
            ids: IdAllocator::new(vpes),
            chunks: (0..(vpes as usize).div_ceil(CHUNK)).map(|_| Once::new()).collect(),
            vms: Lock::new(Rank::VmMap, Vec::new()),
            moves: Lock::new(Rank::Vmovp, Moves::default()),
            proxy,
            groups,
        }
    }

    #[inline]
    fn slot(&self, vpe: VpeId) -> Option<&Slot> {
        self.chunks.get(vpe.index() / CHUNK)?.get()?.get(vpe.index() % CHUNK)
    }
}

/// The verbs. A view of [`Gic`] that exists only where virtual LPIs do.
pub struct V4<'a, H: Hw + Clone> {
    gic: &'a Gic<H>,
    state: &'a State,
}

impl<H: Hw + Clone> Clone for V4<'_, H> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<H: Hw + Clone> Copy for V4<'_, H> {}

impl<H: Hw + Clone> Gic<H> {
    /// The verbs of GICv4, if this machine has virtual LPIs and they are wanted.
    #[inline]
    pub fn v4(&self) -> Option<V4<'_, H>> {
        self.v4.as_ref().map(|state| V4 { gic: self, state })
    }

    /// The same, for events of an ITS that has virtual LPIs.
    pub(super) fn v4_on(&self, its: &Its<H>) -> Result<V4<'_, H>, ItsError> {
        if its.facts.virtual_lpis { self.v4().ok_or(ItsError::NotVirtual) } else { Err(ItsError::NotVirtual) }
    }
}

impl<H: Hw + Clone> V4<'_, H> {
    /// Maps an event to a vLPI. If it was physical, its LPI stays the caller's, and one INT makes up for what was
    /// pending or arrives meanwhile.
    pub fn map_event(self, its: ItsId, dev: DeviceId, ev: EventId, vpe: VpeId, vintid: VIntid) -> Result<(), ItsError> {
        let mut batch = self.gic.batch(its)?;
        batch.map_virtual(dev, ev, vpe, vintid)?;
        batch.finish()
    }

    /// Moves a virtual event to another vPE of the same VM, its pending state too.
    pub fn move_event(self, its: ItsId, dev: DeviceId, ev: EventId, vpe: VpeId) -> Result<(), ItsError> {
        let mut batch = self.gic.batch(its)?;
        batch.move_virtual(dev, ev, vpe)?;
        batch.finish()
    }

    /// Maps a virtual event to a physical LPI, which is left pending once.
    pub fn to_software(self, its: ItsId, dev: DeviceId, ev: EventId, lpi: Lpi, cpu: CpuId) -> Result<(), ItsError> {
        let mut batch = self.gic.batch(its)?;
        batch.to_software(dev, ev, lpi, cpu)?;
        batch.finish()
    }
}
