//! The driver's state, its look-ups, and the verbs on LPIs.

use super::counters::Counters;
use super::dist::Dist;
use super::error::ItsError;
use super::facts::Facts;
use super::inherited::Inherited;
use super::interface::Interfaces;
use super::its::{Command, Its, Synced, Ticket, collection};
use super::lpi::Lpis;
use super::redist::Redist;
use super::v4::State;
use crate::ids::{CpuId, ItsId, Lpi, VpeId};
use crate::mmio::Hw;
use crate::util::range::Range;
use alloc::vec::Vec;
use core::fmt;

/// The GIC driver. Everything is reached through `&self`; one instance serves all CPUs.
pub struct Gic<H: Hw + Clone> {
    pub(super) hw: H,
    pub(super) dist: Dist<H>,
    /// By [`CpuId`]. Those that are absent hold a place, which costs the hot paths nothing: their state says that they
    /// are not in service, and no vPE is resident there. All other code uses [`redist`](Gic::redist).
    pub(super) redists: Vec<Redist<H>>,
    pub(super) itss: Vec<Option<Its<H>>>,
    pub(super) lpis: Option<Lpis<H>>,
    pub(super) inherited: Inherited,
    pub(super) interfaces: Interfaces,
    pub(super) v4: Option<State>,
    pub(super) facts: Facts,
    pub(super) counters: Counters,
    pub(super) coherent: bool,
}

impl<H: Hw + Clone> Gic<H> {
    /// What this machine's GIC supports.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether virtual SGIs can be used: the GIC and all CPUs support them.
    #[inline]
    #[must_use]
    pub fn has_virtual_sgis(&self) -> bool {
        self.facts.vsgi && self.interfaces.all_take_sgis()
    }

    /// Passes `map` the frame with GITS_SGIR of each ITS that has one: what the platform says of an ITS need not contain
    /// it (a MADT states no size). If one cannot be mapped, virtual SGIs are not used. Called before the GIC is.
    pub fn map_sgi_frames<E: fmt::Display>(&mut self, mut map: impl FnMut(Range) -> Result<(), E>) {
        for its in self.itss.iter().flatten().filter(|its| its.facts.vsgi) {
            if let Err(error) = map(its.sgi_frame()) {
                log::warn!("{}: the frame of GITS_SGIR cannot be mapped: {error}; no virtual SGIs", its.id);
                self.facts.vsgi = false;
            }
        }
    }

    /// The event counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// An ITS that was brought up.
    pub(super) fn its(&self, id: ItsId) -> Result<&Its<H>, ItsError> {
        self.itss.get(id.index()).and_then(Option::as_ref).ok_or(ItsError::NoSuchIts(id))
    }

    /// A CPU's redistributor.
    #[inline]
    pub(super) fn redist(&self, cpu: CpuId) -> Option<&Redist<H>> {
        self.redists.get(cpu.index()).filter(|r| r.is_present())
    }

    /// Whether a CPU has a redistributor. Without one it stays off.
    #[must_use]
    pub fn has_redistributor(&self, cpu: CpuId) -> bool {
        self.redist(cpu).is_some()
    }

    /// The LPI tables in memory that the firmware has reserved which redistributors use.
    #[must_use]
    pub fn inherited_tables(&self) -> Vec<Range> {
        self.inherited.tables()
    }

    /// A CPU's redistributor, if its LPIs are enabled.
    #[inline]
    pub(super) fn online(&self, cpu: CpuId) -> Result<&Redist<H>, ItsError> {
        self.redists.get(cpu.index()).filter(|r| r.has_lpis()).ok_or(ItsError::CpuOffline(cpu))
    }

    /// The same, if LPIs and vPEs may be sent there. They may not if the CPU is being taken out of service.
    #[inline]
    pub(super) fn in_service(&self, cpu: CpuId) -> Result<&Redist<H>, ItsError> {
        self.redists.get(cpu.index()).filter(|r| r.is_in_service()).ok_or(ItsError::CpuOffline(cpu))
    }

    /// A CPU in service, to which LPIs may be sent: this one if it is, or the next one that is.
    #[must_use]
    pub fn nearest_in_service(&self, cpu: CpuId) -> Option<CpuId> {
        let (before, from) = self.redists.split_at_checked(cpu.index())?;
        from.iter().chain(before).find(|redist| redist.is_in_service()).map(|redist| redist.cpu)
    }

    /// Reserves `count` LPIs for a domain. `false`, and none is reserved, if fewer are left. The domain allocates no more
    /// than it has reserved.
    #[must_use]
    pub fn reserve_lpis(&self, count: u32) -> bool {
        self.lpis.as_ref().map_or(count == 0, |lpis| lpis.reserve(count))
    }

    /// Gives back LPIs that [`reserve_lpis`](Gic::reserve_lpis) has reserved. They have been freed.
    pub fn release_lpis(&self, count: u32) {
        if let Some(lpis) = &self.lpis {
            lpis.unreserve(count);
        }
    }

    /// How many LPIs are neither reserved nor doorbells.
    #[must_use]
    pub fn unreserved_lpis(&self) -> u32 {
        self.lpis.as_ref().map_or(0, Lpis::unreserved)
    }

    /// Allocates an LPI, which its owner has reserved. It is disabled and no event is mapped to it.
    pub fn alloc_lpi(&self) -> Option<Lpi> {
        self.lpis.as_ref()?.alloc()
    }

    /// Frees an LPI whose event has been unmapped.
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

    /// How many LPIs are allocated, including doorbells.
    #[cfg(test)]
    pub fn lpis_in_use(&self) -> u32 {
        self.lpis.as_ref().map_or(0, Lpis::in_use)
    }

    /// The vPE whose doorbell an LPI is. Counts a doorbell. It takes no lock, and any CPU may take any doorbell.
    #[inline]
    pub fn doorbell(&self, lpi: Lpi) -> Option<VpeId> {
        let vpe = self.lpis.as_ref()?.doorbell(lpi)?;
        self.counters.doorbells.bump();
        Some(vpe)
    }

    /// The same, without counting a doorbell.
    pub fn peek_doorbell(&self, lpi: Lpi) -> Option<VpeId> {
        self.lpis.as_ref()?.doorbell(lpi)
    }

    /// Waits for all commands that any CPU has posted on an ITS so far. If the queue has stalled, it is retried.
    #[cfg(test)]
    pub fn drain(&self, its: ItsId) -> Result<(), ItsError> {
        let its = self.its(its)?;
        self.wait(its, its.queue.latest(), super::its::COMMAND_LIMIT_US).map(|_| ())
    }

    /// Waits for commands. In ITSList mode an ITS may be held up at a VMOVP by another ITS that has stalled and that no
    /// CPU waits for. So after a missed deadline every ITS that has stalled is retried.
    pub(super) fn wait(&self, its: &Its<H>, ticket: Ticket, limit_us: u64) -> Result<Synced, ItsError> {
        let result = its.queue.wait(&self.counters, ticket, limit_us);
        let retried = |other: &Its<H>| other.id != its.id && other.queue.retry_stalled(&self.counters);
        // `count` and not `any`: all of them are retried, not just the first.
        if result == Err(ItsError::Timeout) && self.itss.iter().flatten().filter(|i| retried(i)).count() > 0 {
            return its.queue.wait(&self.counters, ticket, limit_us);
        }
        result
    }

    /// Makes a CPU's redistributor reload the configuration of all its physical LPIs.
    pub fn invalidate_cpu(&self, cpu: CpuId) -> Result<(), ItsError> {
        let redist = self.online(cpu)?;
        let its = self.itss.iter().flatten().find(|i| !i.queue.is_dead()).ok_or(ItsError::Dead)?;
        let commands = [Command::invall(collection(cpu)), Command::sync(its.target(redist))];
        its.run(&self.counters, &commands).map(|_| ())
    }
}

// The driver is shared by all CPUs.
#[cfg(target_os = "none")]
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Gic<crate::mm::hw::El2>>();
};
