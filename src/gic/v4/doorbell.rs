//! The doorbell of a vPE: a physical LPI that tells EL2 that an interrupt has come for a virtual CPU that does not run.
//!
//! No device sends it and it belongs to one redistributor at a time, which may keep its configuration byte in a cache.
//! So it has to be made known where its vPE lives, taken along when the vPE moves, kept quiet when nobody wants to hear
//! it, and taken away with the vPE. How that is done is a property of the machine: see [`Control`].

use super::V4;
use super::vm::{V4Error, Vpe};
use super::vmovp::Moving;
use crate::gic::its::{Command, Its, ItsError};
use crate::gic::redist::Redist;
use crate::ids::{EventId, Lpi, VpeId};
use crate::mmio::Hw;

/// The priority that every doorbell has.
pub(super) const DOORBELL_PRIORITY: u8 = 0xa0;

/// How a doorbell's configuration and place are changed.
#[derive(Clone, Copy)]
pub(super) enum Control {
    /// By its redistributor: INVLPIR, and CLRLPIR where there is one.
    Direct,
    /// As the vPE's default doorbell: INVDB (GICv4.1).
    Default,
    /// By an event of the proxy device.
    Proxy(EventId),
    /// By INVALL: the proxy has no event left.
    Coarse,
}

/// What becomes of a doorbell that is pending where a vPE leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ringing {
    /// It may go: the vPE is about to run.
    Drop,
    /// It stays pending, there or where the vPE goes.
    Keep,
}

impl<H: Hw + Clone> V4<'_, H> {
    /// Makes an enabled doorbell known to the redistributor it rings on.
    pub(super) fn introduce(self, doorbell: Lpi, home: &Redist<H>) -> Control {
        let facts = &self.gic.facts;
        if facts.v41 {
            return Control::Default;
        }
        if facts.can_invlpi {
            if !home.invalidate_lpi(doorbell) {
                self.gic.counters.redist_timeouts.bump();
            }
            return Control::Direct;
        }
        match self.state.proxy.as_ref().map(|p| p.map(self.gic, doorbell, home)) {
            Some(Ok(ev)) => Control::Proxy(ev),
            _ => {
                let _ = self.gic.invalidate_cpu(home.cpu);
                Control::Coarse
            }
        }
    }

    /// Has the configuration of a default doorbell read anew by all redistributors (GICv4.1). The vPE is mapped.
    pub(super) fn invalidate_default_doorbell(self, vpe: VpeId, v: &Vpe) -> Result<(), V4Error> {
        if let Control::Default = v.control {
            let its = self.alive(v.mapped).ok_or(V4Error::Its(ItsError::Dead))?;
            its.run(&self.gic.counters, &[Command::invdb(vpe), Command::vsync(vpe)])?;
        }
        Ok(())
    }

    /// The commands that take the doorbell along, if `its` is the one to take them: they go with the move in one piece, as
    /// to post is to take the ring's lock and to wake the ITS up.
    pub(super) fn doorbell_commands(self, its: &Its<H>, v: &Vpe, to: &Redist<H>) -> Option<[Command; 4]> {
        let (Control::Proxy(ev), Some(proxy)) = (v.control, &self.state.proxy) else { return None };
        let from = self.gic.online(v.home).ok()?;
        (proxy.its == its.id).then(|| proxy.move_commands(its, ev, from, to))
    }

    /// Takes the doorbell along.
    pub(super) fn move_doorbell(self, v: &mut Vpe, to: &Redist<H>, ringing: Ringing, moving: &mut Moving) {
        let gic = self.gic;
        let Ok(from) = gic.online(v.home) else { return };
        match v.control {
            // It follows the vPE by itself.
            Control::Default => {}
            Control::Direct => {
                let keep = ringing == Ringing::Keep || !gic.facts.can_setclr;
                let cleared = keep || from.clear_lpi(v.doorbell);
                if !(to.invalidate_lpi(v.doorbell) && cleared) {
                    gic.counters.redist_timeouts.bump();
                }
            }
            Control::Proxy(ev) => {
                let Some(proxy) = &self.state.proxy else { return };
                let posted = gic
                    .its(proxy.its)
                    .and_then(|its| its.queue.post(&gic.counters, &proxy.move_commands(its, ev, from, to)));
                match posted {
                    Ok(ticket) => moving.add(proxy.its, ticket),
                    Err(_) => v.control = Control::Coarse,
                }
            }
            Control::Coarse => {
                if gic.invalidate_cpu(to.cpu).is_err() {
                    gic.counters.batch_errors.bump();
                }
            }
        }
    }

    /// Lets a vPE's doorbell ring, or keeps it quiet; a ring that comes meanwhile is kept until it may. `false` where it
    /// needs no quiet: on GICv4.1 it rings once for each sleep.
    pub fn let_ring(self, vpe: VpeId, on: bool) -> Result<bool, V4Error> {
        let slot = self.state.slot(vpe).ok_or(V4Error::NoSuchVpe(vpe))?;
        let mut guard = slot.vpe.lock();
        let v = guard.as_mut().ok_or(V4Error::NoSuchVpe(vpe))?;
        if matches!(v.control, Control::Default) {
            return Ok(false);
        }
        if v.moving.is_some() {
            self.finish_move(vpe, v).map_err(|_| V4Error::Its(ItsError::Timeout))?;
        }
        let home = self.gic.online(v.home).map_err(|_| V4Error::CpuOffline(v.home))?;
        let lpis = self.gic.lpis.as_ref().ok_or(V4Error::NoLpi)?;
        lpis.configure(v.doorbell, DOORBELL_PRIORITY, on);
        match v.control {
            Control::Direct if !home.invalidate_lpi(v.doorbell) => return Err(V4Error::Redist(v.home)),
            Control::Default | Control::Direct => {}
            Control::Proxy(ev) => {
                if let Some(proxy) = &self.state.proxy {
                    proxy.reread(self.gic, ev, home)?;
                }
            }
            Control::Coarse => self.gic.invalidate_cpu(v.home)?,
        }
        Ok(true)
    }

    /// Disables a doorbell and makes that known.
    pub(super) fn dismiss(self, v: &Vpe) -> Result<(), V4Error> {
        let lpis = self.gic.lpis.as_ref().ok_or(V4Error::NoLpi)?;
        let home = self.gic.online(v.home).map_err(|_| V4Error::CpuOffline(v.home))?;
        lpis.configure(v.doorbell, DOORBELL_PRIORITY, false);
        if self.gic.facts.can_setclr && !home.clear_lpi(v.doorbell) {
            return Err(V4Error::Redist(v.home));
        }
        match v.control {
            Control::Default => Ok(()),
            Control::Direct if home.invalidate_lpi(v.doorbell) => Ok(()),
            Control::Direct => Err(V4Error::Redist(v.home)),
            Control::Proxy(ev) => match &self.state.proxy {
                Some(proxy) => Ok(proxy.unmap(self.gic, ev, home)?),
                None => Ok(()),
            },
            Control::Coarse => Ok(self.gic.invalidate_cpu(v.home)?),
        }
    }
}
