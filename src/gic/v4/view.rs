//! The view of the driver that the GICv4 verbs are defined on.

use super::state::State;
use crate::gic::driver::Gic;
use crate::gic::error::ItsError;
use crate::gic::its::Its;
use crate::gic::lpi::Lpis;
use crate::ids::{CpuId, VpeId};
use crate::mmio::{Coherence, Hw};

/// The GICv4 verbs: a view of [`Gic`] that exists only if the machine has virtual LPIs and they are used.
pub struct V4<'a, H: Hw + Clone> {
    pub(in crate::gic) gic: &'a Gic<H>,
    pub(in crate::gic) state: &'a State,
}

impl<H: Hw + Clone> Clone for V4<'_, H> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<H: Hw + Clone> Copy for V4<'_, H> {}

impl<H: Hw + Clone> Gic<H> {
    /// The verbs of GICv4, if this machine has virtual LPIs and they are used.
    #[inline]
    pub fn v4(&self) -> Option<V4<'_, H>> {
        self.v4.as_ref().map(|state| V4 { gic: self, state })
    }

    /// The same, if an ITS supports virtual LPIs.
    pub(in crate::gic) fn v4_on(&self, its: &Its<H>) -> Result<V4<'_, H>, ItsError> {
        if its.facts.virtual_lpis { self.v4().ok_or(ItsError::NotVirtual) } else { Err(ItsError::NotVirtual) }
    }
}

impl<'a, H: Hw + Clone> V4<'a, H> {
    /// How redistributors access the tables of VMs and vPEs: the same way as the LPI configuration table, whose
    /// shareability they have accepted or refused.
    pub(super) fn coherence(self) -> Coherence {
        self.gic.lpis.as_ref().map_or(Coherence::NonCoherent, Lpis::coherence)
    }

    /// The ITSs that support virtual LPIs.
    pub(super) fn itss(self) -> impl Iterator<Item = &'a Its<H>> {
        self.gic.itss.iter().flatten().filter(|its| its.facts.virtual_lpis)
    }

    /// The first ITS of a set that is not dead.
    pub(super) fn alive(self, set: u16) -> Option<&'a Its<H>> {
        self.itss().find(|its| set & bit(its) != 0 && !its.queue.is_dead())
    }

    /// The home of a vPE.
    pub fn home(self, vpe: VpeId) -> Option<CpuId> {
        self.state.slot(vpe)?.vpe.lock().as_ref().map(|v| v.home)
    }

    /// The CPU that a vPE is resident on.
    pub fn resident_on(self, vpe: VpeId) -> Option<CpuId> {
        self.state.slot(vpe)?.vpe.lock().as_ref().and_then(|v| v.resident)
    }
}

/// The bit of an ITS in a set of ITSs.
pub fn bit<H>(its: &Its<H>) -> u16 {
    1u16.checked_shl(u32::from(its.id.0)).unwrap_or(0)
}
