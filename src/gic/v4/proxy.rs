//! The proxy device: control of doorbells where redistributors have no GICR_INVLPIR (IHI 0069, 6.4).
//!
//! No device sends a doorbell, so no event names it, and without an event there is neither INV nor MOVI. A DeviceID
//! that no device has (the last that the ITS supports) lends its events: one for each doorbell.

use crate::gic::counters::Counters;
use crate::gic::error::ItsError;
use crate::gic::its::{Command, Its, collection};
use crate::gic::redist::Redist;
use crate::ids::{DeviceId, EventId, ItsId, Lpi};
use crate::mmio::Hw;
use crate::util::bits::IdAllocator;

/// EventID bits at most. Doorbells for which no event is left are made known with INVALL.
const MAX_EVENT_BITS: u8 = 12;

/// The proxy device.
pub struct Proxy {
    /// The ITS that it is mapped on. The functions below are given this ITS.
    pub its: ItsId,
    pub device: DeviceId,
    events: IdAllocator,
}

impl Proxy {
    /// Maps the proxy device on an ITS.
    pub fn set_up<H: Hw + Clone>(its: &Its<H>, counters: &Counters) -> Result<Self, ItsError> {
        let bits = its.facts.event_bits.min(MAX_EVENT_BITS);
        let device = its.last_device();
        its.map_reserved_device(counters, device, bits)?;
        Ok(Proxy { its: its.id, device, events: IdAllocator::new(1 << bits) })
    }

    /// Maps an event to a doorbell at its home.
    pub fn map<H: Hw + Clone>(
        &self,
        its: &Its<H>,
        counters: &Counters,
        doorbell: Lpi,
        home: &Redist<H>,
    ) -> Result<EventId, ItsError> {
        let ev = EventId(self.events.alloc().ok_or(ItsError::NoMemory)?);
        let commands = [
            Command::mapti(self.device, ev, doorbell, collection(home.cpu)),
            Command::inv(self.device, ev),
            Command::sync(its.target(home)),
        ];
        // Commands that were posted will take effect: the event is not reused before it has been discarded.
        match its.run(counters, &commands) {
            Ok(_) | Err(ItsError::Timeout) => Ok(ev),
            Err(e) => {
                self.events.free(ev.0);
                Err(e)
            }
        }
    }

    /// The commands that move a doorbell from one redistributor to another with its pending state, and make the latter
    /// reload its configuration byte.
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

    /// Makes the home of a doorbell reload its configuration byte.
    pub fn reload<H: Hw + Clone>(
        &self,
        its: &Its<H>,
        counters: &Counters,
        ev: EventId,
        home: &Redist<H>,
    ) -> Result<(), ItsError> {
        its.run(counters, &[Command::inv(self.device, ev), Command::sync(its.target(home))]).map(|_| ())
    }

    /// Clears the pending state of a doorbell.
    pub fn clear<H: Hw + Clone>(
        &self,
        its: &Its<H>,
        counters: &Counters,
        ev: EventId,
        home: &Redist<H>,
    ) -> Result<(), ItsError> {
        its.run(counters, &[Command::clear(self.device, ev), Command::sync(its.target(home))]).map(|_| ())
    }

    /// Unmaps the event of a doorbell that has been disabled. The event is reused only if this completes.
    pub fn unmap<H: Hw + Clone>(
        &self,
        its: &Its<H>,
        counters: &Counters,
        ev: EventId,
        home: &Redist<H>,
    ) -> Result<(), ItsError> {
        let commands =
            [Command::inv(self.device, ev), Command::discard(self.device, ev), Command::sync(its.target(home))];
        its.run(counters, &commands)?;
        self.events.free(ev.0);
        Ok(())
    }
}
