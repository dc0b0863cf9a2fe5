//! The driver's state, its look-ups, and the verbs on LPIs.

use super::counters::Counters;
use super::dist::Dist;
use super::error::ItsError;
use super::facts::Facts;
use super::its::{Command, Its, Synced, Ticket, collection};
use super::lpi::Lpis;
use super::redist::Redist;
use super::v4::State;
use crate::ids::{CpuId, ItsId, Lpi, VpeId};
use crate::mmio::Hw;
use alloc::vec::Vec;

/// The GIC driver. Everything is reached through `&self`; one instance serves all CPUs.
pub struct Gic<H: Hw + Clone> {
    pub(super) hw: H,
    pub(super) dist: Dist<H>,
    pub(super) redists: Vec<Redist<H>>,
    pub(super) itss: Vec<Option<Its<H>>>,
    pub(super) lpis: Option<Lpis<H>>,
    pub(super) v4: Option<State>,
    pub(super) facts: Facts,
    pub(super) counters: Counters,
    pub(super) coherent: bool,
}

impl<H: Hw + Clone> Gic<H> {
    /// What this machine has.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// An ITS that was brought up.
    pub(super) fn its(&self, id: ItsId) -> Result<&Its<H>, ItsError> {
        self.itss.get(id.index()).and_then(Option::as_ref).ok_or(ItsError::NoSuchIts(id))
    }

    /// A CPU's redistributor, if its LPIs are on.
    #[inline]
    pub(super) fn online(&self, cpu: CpuId) -> Result<&Redist<H>, ItsError> {
        self.redists.get(cpu.index()).filter(|r| r.has_lpis()).ok_or(ItsError::CpuOffline(cpu))
    }

    /// The same, if LPIs and vPEs may be sent there: the CPU is not being taken out.
    #[inline]
    pub(super) fn open(&self, cpu: CpuId) -> Result<&Redist<H>, ItsError> {
        self.redists.get(cpu.index()).filter(|r| r.takes_lpis()).ok_or(ItsError::CpuOffline(cpu))
    }

    /// A CPU that takes LPIs: this one if it does, or the next that does.
    #[must_use]
    pub fn taker(&self, cpu: CpuId) -> Option<CpuId> {
        let (before, from) = self.redists.split_at_checked(cpu.index())?;
        from.iter().chain(before).find(|redist| redist.takes_lpis()).map(|redist| redist.cpu)
    }

    /// Takes an LPI number: disabled, mapped to nothing.
    pub fn alloc_lpi(&self) -> Option<Lpi> {
        self.lpis.as_ref()?.alloc()
    }

    /// Gives an LPI number back. Its event has been unmapped.
    pub fn free_lpi(&self, lpi: Lpi) {
        if let Some(lpis) = &self.lpis {
            lpis.free(lpi);
        }
    }

    /// Writes an LPI's configuration byte. The hardware reads it at `map_physical`, `invalidate` or `invalidate_cpu`.
    pub fn configure_lpi(&self, lpi: Lpi, priority: u8, enabled: bool) {
        if let Some(lpis) = &self.lpis {
            lpis.configure(lpi, priority, enabled);
        }
    }

    /// How many LPI numbers are given out, doorbells included.
    #[cfg(test)]
    pub fn lpis_in_use(&self) -> u32 {
        self.lpis.as_ref().map_or(0, Lpis::in_use)
    }

    /// Whose doorbell an LPI is. Takes no lock; any CPU may get any doorbell.
    #[inline]
    pub fn doorbell(&self, lpi: Lpi) -> Option<VpeId> {
        let vpe = self.lpis.as_ref()?.doorbell(lpi)?;
        self.counters.doorbells.bump();
        Some(vpe)
    }

    /// The same, without taking it for a ring.
    pub fn whose_doorbell(&self, lpi: Lpi) -> Option<VpeId> {
        self.lpis.as_ref()?.doorbell(lpi)
    }

    /// Waits for everything that has been posted on an ITS so far, by anybody: what to do after a `Timeout`. If the
    /// queue has stalled meanwhile, it is told to go on.
    #[cfg(test)]
    pub fn drain(&self, its: ItsId) -> Result<(), ItsError> {
        let its = self.its(its)?;
        self.wait(its, its.queue.latest(), super::its::COMMAND_LIMIT_US).map(|_| ())
    }

    /// Waits for commands. In ITSList mode an ITS may stand before a VMOVP because of another one, which nobody waits
    /// for: so after a missed deadline any that has stalled is told to go on.
    pub(super) fn wait(&self, its: &Its<H>, ticket: Ticket, limit_us: u64) -> Result<Synced, ItsError> {
        let result = its.queue.wait(&self.counters, ticket, limit_us);
        let prodded = |other: &Its<H>| other.id != its.id && other.queue.prod(&self.counters);
        // All of them, not just the first.
        if result == Err(ItsError::Timeout) && self.itss.iter().flatten().filter(|i| prodded(i)).count() > 0 {
            return its.queue.wait(&self.counters, ticket, limit_us);
        }
        result
    }

    /// Has the configuration of all physical LPIs of a CPU read anew.
    pub fn invalidate_cpu(&self, cpu: CpuId) -> Result<(), ItsError> {
        let redist = self.online(cpu)?;
        let its = self.itss.iter().flatten().find(|i| !i.queue.is_dead()).ok_or(ItsError::Dead)?;
        let commands = [Command::invall(collection(cpu)), Command::sync(its.target(redist))];
        its.run(&self.counters, &commands).map(|_| ())
    }
}

/// The driver is shared by all CPUs.
#[cfg(target_os = "none")]
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Gic<crate::mm::hw::El2>>();
};
