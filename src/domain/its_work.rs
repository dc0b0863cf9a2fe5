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
use crate::ids::{EventKey, ItsId, VIntid, VcpuId};
use crate::mm::hw::El2;
use crate::vcpu::ItsWork;
use crate::vits::Progress;
use arrayvec::ArrayVec;

/// The largest number of operations of the host's ITSs in one step.
const BUDGET: usize = 64;

/// The largest number of pending LPIs that are passed to the hardware in one step.
const PENDING: usize = 64;

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
        }
    }

    /// Starts the work that follows when GICR_CTLR.EnableLPIs of a vCPU is set: the configuration bytes of its events
    /// are read again, and the pending bits of directly injected LPIs are passed to the hardware.
    pub(super) fn lpis_enabled(&self, vcpu: VcpuId) -> Option<ItsWork> {
        for vits in self.itss() {
            let _ = vits.lpis_enabled(vcpu);
        }
        Some(ItsWork::LpisEnabled(vcpu))
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
        if self.step_itss() == Progress::More {
            return Some(work);
        }
        match work {
            ItsWork::Commands => None,
            ItsWork::LpisEnabled(vcpu) => self.pass_pending_lpis(vcpu).then_some(work),
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

    /// Passes up to [`PENDING`] directly injected LPIs that were set in a vCPU's pending table to the hardware. Returns
    /// `false` if there were none.
    fn pass_pending_lpis(&self, vcpu: VcpuId) -> bool {
        let next = || self.vgic.take_direct_pending(vcpu);
        let mut pending: ArrayVec<VIntid, PENDING> = core::iter::from_fn(next).take(PENDING).collect();
        if pending.is_empty() {
            return false;
        }
        pending.sort_unstable();
        // Events of another vCPU come second: MOVI may have moved an event there after the pending table was read, and
        // its pending state moves with it.
        for of_other in [false, true] {
            if pending.is_empty() {
                break;
            }
            for (its, vits) in (0..).map(ItsId).zip(self.itss()) {
                vits.for_each_event(&mut |device, event, vintid, _, target| {
                    // An INT for one event makes the vINTID pending, even if several events are mapped to it.
                    if target.is_some_and(|target| of_other || target == vcpu)
                        && let Ok(index) = pending.binary_search(&vintid)
                    {
                        pending.remove(index);
                        // The GIC counts failures.
                        let _ = self.host.gic.set_pending(EventKey { its, device, event });
                    }
                });
            }
        }
        true
    }
}
