//! Control of doorbells where redistributors have no INVLPIR (IHI 0069, 6.4 and the absence of DirectLPI).
//!
//! A doorbell is a physical LPI that no device sends, so no event names it, and without an event there is no INV
//! and no MOVI. A device that does not exist (the last DeviceID that fits) lends its events: one for each doorbell.

use crate::gic::Gic;
use crate::gic::its::{Command, Its, ItsError, collection};
use crate::gic::redist::Redist;
use crate::ids::{DeviceId, EventId, ItsId, Lpi};
use crate::mmio::Hw;
use crate::util::bits::IdAllocator;

/// EventID bits at most: doorbells beyond are made known with INVALL.
const MAX_EVENT_BITS: u8 = 12;

/// The device that does not exist.
pub(in crate::gic) struct Proxy {
    pub its: ItsId,
    pub device: DeviceId,
    events: IdAllocator,
}

impl Proxy {
    /// Maps the device on an ITS.
    pub fn set_up<H: Hw + Clone>(gic: &Gic<H>, its: &Its<H>) -> Result<Self, ItsError> {
        let bits = its.facts.event_bits.min(MAX_EVENT_BITS);
        let device = its.last_device();
        its.map_device(gic, device, bits, true)?;
        Ok(Proxy { its: its.id, device, events: IdAllocator::new(1 << bits) })
    }

    /// An event for a doorbell that rings on `home`.
    pub fn map<H: Hw + Clone>(&self, gic: &Gic<H>, doorbell: Lpi, home: &Redist<H>) -> Result<EventId, ItsError> {
        let its = gic.its(self.its)?;
        let ev = EventId(self.events.alloc().ok_or(ItsError::NoMemory)?);
        let commands = [
            Command::mapti(self.device, ev, doorbell, collection(home.cpu)),
            Command::inv(self.device, ev),
            Command::sync(its.target(home)),
        ];
        // Once posted it is mapped, or will be: the event is not given out again before it has been discarded.
        match its.run(&gic.counters, &commands) {
            Ok(_) | Err(ItsError::Timeout) => Ok(ev),
            Err(e) => {
                self.events.free(ev.0);
                Err(e)
            }
        }
    }

    /// The commands that take a doorbell from one CPU to another, pending or not, and have its byte read there.
    pub fn move_commands<H: Hw + Clone>(
        &self,
        its: &Its<H>,
        ev: EventId,
        from: &Redist<H>,
        to: &Redist<H>,
    ) -> [Command; 4] {
        [
            Command::movi(self.device, ev, collection(to.cpu)),
            Command::inv(self.device, ev),
            Command::sync(its.target(from)),
            Command::sync(its.target(to)),
        ]
    }

    /// Has a doorbell's byte read anew.
    pub fn reread<H: Hw + Clone>(&self, gic: &Gic<H>, ev: EventId, home: &Redist<H>) -> Result<(), ItsError> {
        let its = gic.its(self.its)?;
        its.run(&gic.counters, &[Command::inv(self.device, ev), Command::sync(its.target(home))]).map(|_| ())
    }

    /// Takes a doorbell's event away; its byte has been disabled. The event is only used again after that is complete.
    pub fn unmap<H: Hw + Clone>(&self, gic: &Gic<H>, ev: EventId, home: &Redist<H>) -> Result<(), ItsError> {
        let its = gic.its(self.its)?;
        let commands =
            [Command::inv(self.device, ev), Command::discard(self.device, ev), Command::sync(its.target(home))];
        its.run(&gic.counters, &commands)?;
        self.events.free(ev.0);
        Ok(())
    }
}
