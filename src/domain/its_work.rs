//! Work of a domain's virtual ITSs, in steps.
//!
//! One store of a guest may stand for thousands of commands at the host: GITS_CWRITER with a full queue, MAPC for a
//! collection with thousands of events, GICR_CTLR.EnableLPIs with a full pending table. The vCPU that made the store
//! performs the work, in steps of bounded length, and enters the guest again when it is done ([`ItsWork`]). Between two
//! steps the run loop takes physical interrupts and asks the scheduler, so the work costs the time of the domain that
//! started it, and delays other domains by one step at most.

use super::Domain;
use super::msi::LpiBackend;
use super::port::DomainPort;
use crate::arch::timer;
use crate::ids::{DeviceId, EventId, EventKey, ItsId, VcpuId};
use crate::mm::hw::El2;
use crate::util::progress::Progress;
use crate::vcpu::ItsWork;

/// How long a step may take, in microseconds. An operation that has begun is finished: an operation of the host's ITSs
/// takes up to 4500 instructions of EL2, and as long as the ITS takes for its commands.
const STEP_US: u64 = 100;

/// The largest number of operations of the host's ITSs in one step. They take about as long as [`STEP_US`] at 10^9
/// instructions a second, so that a faster CPU does not hold the lock of a virtual ITS longer than it has to.
const BUDGET: usize = 32;

/// The largest number of pending LPIs that are passed to the hardware in one step.
const PENDING: usize = 32;

/// The largest number of ITT entries that one step searches for events whose LPIs are pending.
const ENTRIES: usize = 2048;

/// The event where a search of all events starts. The search goes through the virtual ITSs in the domain's order: in a
/// place of a search, `its` is the number of the virtual ITS in that order.
const FIRST: EventKey = EventKey { its: ItsId(0), device: DeviceId(0), event: EventId(0) };

impl Domain {
    /// The access of the domain's virtual ITSs to the hardware.
    #[must_use]
    pub fn lpi_backend<'a>(&'a self, port: &'a DomainPort<'a>) -> LpiBackend<'a, El2> {
        LpiBackend {
            gic: &self.host.gic,
            vgic: &self.vgic,
            port,
            domain: self.id,
            paths: &self.paths,
            routes: &self.host.routes,
            until: timer::now().saturating_add(timer::us_to_ticks(STEP_US)),
        }
    }

    /// Starts the work that follows when the LPI tables of a vCPU have been read: the configuration bytes of its events
    /// are applied, and the pending bits of directly injected LPIs are passed to the hardware.
    fn lpis_enabled(&self, vcpu: VcpuId) -> Option<ItsWork> {
        if !self.vgic.lpis_on(vcpu) {
            // Another vCPU has disabled them already.
            return None;
        }
        for vits in self.itss() {
            let _ = vits.lpis_enabled(vcpu);
        }
        Some(ItsWork::LpisEnabled { vcpu, of_all: false, next: FIRST })
    }

    /// Resets the virtual ITSs of a domain that has ended; [`step_itss`](Domain::step_itss) then unmaps their events.
    pub fn reset_itss(&self) {
        for vits in self.itss() {
            let _ = vits.reset();
        }
    }

    /// Performs one step of `work`. Returns `None` when the work is finished.
    #[must_use]
    pub fn step_its_work(&self, work: ItsWork) -> Option<ItsWork> {
        match work {
            ItsWork::LpiTables { vcpu, cursor } => match self.vgic.read_tables(&self.port(), vcpu, cursor) {
                Some(cursor) => Some(ItsWork::LpiTables { vcpu, cursor }),
                None => self.lpis_enabled(vcpu),
            },
            work if self.step_itss() == Progress::More => Some(work),
            ItsWork::Commands => None,
            ItsWork::LpisEnabled { vcpu, of_all, next } => self.pass_pending_lpis(vcpu, of_all, next),
        }
    }

    /// Performs one step of the first virtual ITS that has work. Returns [`Progress::Done`] if none has.
    pub fn step_itss(&self) -> Progress {
        let port = self.port();
        let backend = self.lpi_backend(&port);
        for vits in self.itss() {
            if vits.run(&backend, BUDGET) == Progress::More {
                return Progress::More;
            }
        }
        Progress::Done
    }

    /// Passes directly injected LPIs that were set in a vCPU's pending table to the hardware: one step of a search for
    /// their events. Events of other vCPUs are searched second, with `of_all`: MOVI may have moved an event there after
    /// the pending table was read, and its pending state moves with it. Returns the work that is left.
    fn pass_pending_lpis(
        &self,
        vcpu: VcpuId,
        of_all: bool,
        EventKey { its, device, event }: EventKey,
    ) -> Option<ItsWork> {
        let Some(vits) = self.itss().nth(its.index()) else {
            if !of_all && self.vgic.has_direct_pending(vcpu) {
                return Some(ItsWork::LpisEnabled { vcpu, of_all: true, next: FIRST });
            }
            self.vgic.drop_direct_pending(vcpu);
            return None;
        };
        let mut left = PENDING;
        let next = vits.visit_events((device, event), ENTRIES, &mut |device, event, vintid, target| {
            // An INT for one event makes the vINTID pending, even if several events are mapped to it.
            if target.is_some_and(|target| of_all || target == vcpu) && self.vgic.take_direct_pending(vcpu, vintid) {
                // The GIC counts failures.
                let _ = self.host.gic.set_pending(EventKey { its: vits.its(), device, event });
                left = left.saturating_sub(1);
            }
            left > 0
        });
        let next = match next {
            Some((device, event)) => EventKey { its, device, event },
            None => EventKey { its: ItsId(its.0.saturating_add(1)), ..FIRST },
        };
        Some(ItsWork::LpisEnabled { vcpu, of_all, next })
    }
}
