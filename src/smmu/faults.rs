//! What an SMMU reports: events of streams, and errors of its own (IHI 0070, 7.2 to 7.5).
//!
//! Both are behind one lock, which is never held while something is waited for, so that interrupts of the SMMU can be
//! taken while another CPU waits for commands.
//!
//! Events that the queue has no room for are lost, and the SMMU says so by EVENTQ_PROD.OVFLG (7.4). QEMU says so by
//! GERROR.EVENTQ_ABT_ERR. Whoever floods the queue has most of the events in it, so these are taken all the same, and are
//! marked: see [`Event::Stream`].
//!
//! EVENTQ_ABT_ERR also means that a write to the queue was aborted, and then EVENTQ_PROD may have passed a record that was
//! not written (7.2.2). To tell it from the record that was in its slot before, each record is zeroed when it is taken. If
//! the SMMU does not snoop, the queue is emptied instead: a cache line holds two records, and to clean one to memory
//! could overwrite the other.

use super::error::Reason;
use super::event::{self, Event};
use super::regs::{EVENTQ_INDEX, GERROR, smmu};
use super::ring::Ring;
use crate::ids::Pa;
use crate::mmio::{Coherence, Hw};
use core::fmt;
use tock_registers::LocalRegisterCopy;

/// The largest ring that is used, as log2 of its entries: 16 KiB.
pub const MOST_EVENT_BITS: u8 = 9;

/// The errors that were active, and have been acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// CMDQ_ERR: a command was refused, most recently for this reason. The operation that had posted it has failed.
    pub command: Option<Reason>,
    /// EVENTQ_ABT_ERR: an event could not be written to the queue.
    pub events_lost: bool,
    /// SFM_ERR: the SMMU has stopped, with all traffic through it. Only a reset can help.
    pub failure: bool,
    /// Other errors, as bits of GERROR: of MSIs and queues that the driver does not use.
    pub other: u32,
}

impl Errors {
    /// Whether there are any.
    #[must_use]
    pub fn any(&self) -> bool {
        *self != Errors::default()
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut part = |f: &mut fmt::Formatter<'_>, text: fmt::Arguments<'_>| {
            let done = write!(f, "{separator}{text}");
            separator = "; ";
            done
        };
        if let Some(reason) = self.command {
            part(f, format_args!("a command was refused: {reason}"))?;
        }
        if self.events_lost {
            part(f, format_args!("events were lost: their queue could not be written"))?;
        }
        if self.failure {
            part(f, format_args!("it has failed and passes no transaction"))?;
        }
        if self.other != 0 {
            part(f, format_args!("GERROR {:#x}", self.other))?;
        }
        Ok(())
    }
}

/// The errors that this driver knows; other bits of GERROR are reserved.
const KNOWN: u32 = 0x7fd;

/// The event queue and GERROR of one SMMU.
pub struct Faults<H> {
    hw: H,
    base: Pa,
    ring: Ring,
    /// The index after the last event that was taken.
    consumed: u32,
    /// OVACKFLG: which value of OVFLG has been reported.
    overflow: bool,
    /// Events were lost, and that has not been reported yet.
    lost: bool,
    /// The number of events that are left of those that were in the queue when it was found to have lost some.
    crowded: u32,
    /// Errors that were acknowledged and not taken yet.
    errors: Errors,
}

impl<H: Hw> Faults<H> {
    /// The events of the SMMU at `base`, in memory that EVENTQ_BASE points at, with EVENTQ_PROD and EVENTQ_CONS at 0.
    pub fn new(hw: H, base: Pa, ring: Ring) -> Self {
        Faults { hw, base, ring, consumed: 0, overflow: false, lost: false, crowded: 0, errors: Errors::default() }
    }

    /// Takes the oldest event. That some were lost is reported before those that are left.
    pub fn next_event(&mut self) -> Option<Event> {
        let prod = self.prod();
        let left = self.ring.between(self.consumed, prod.read(EVENTQ_INDEX::INDEX));
        let overflows = prod.is_set(EVENTQ_INDEX::OVERFLOW) != self.overflow;
        if overflows {
            self.overflow = !self.overflow;
            self.write_cons();
        }
        if left > self.ring.entries() {
            // No queue can be so full: the register is not to be trusted.
            self.discard();
            return Some(Event::Lost);
        }
        if overflows || core::mem::take(&mut self.lost) {
            self.crowded = left;
            return Some(Event::Lost);
        }
        if left == 0 {
            return None;
        }
        Some(self.take())
    }

    /// Takes the oldest record of a queue that has one.
    fn take(&mut self) -> Event {
        let at = self.ring.at(self.consumed);
        self.hw.acquire(at, event::SIZE as usize, self.ring.coherence);
        let word = |offset| self.hw.load64(at.add(offset));
        let record = [word(0), word(8), word(16), word(24)];
        // The loads come before the store by which the SMMU may reuse the slot.
        self.hw.acquire(at, event::SIZE as usize, self.ring.coherence);
        if self.ring.coherence == Coherence::Coherent {
            self.hw.store64(at, 0);
            self.hw.publish(at, event::SIZE as usize, self.ring.coherence);
        }
        self.consumed = self.ring.next(self.consumed);
        self.write_cons();
        let crowded = self.crowded > 0;
        self.crowded = self.crowded.saturating_sub(1);
        Event::decode(record, crowded)
    }

    /// Acknowledges the errors that are active, except CMDQ_ERR, and takes those that have been acknowledged.
    pub fn take_errors(&mut self) -> Errors {
        let active = self.active() & !GERROR::CMDQ_ERR::SET.value;
        let error = LocalRegisterCopy::<u32, GERROR::Register>::new(active);
        if error.is_set(GERROR::EVENTQ_ABT_ERR) {
            self.lost = true;
            if self.ring.coherence == Coherence::NonCoherent {
                self.discard();
            }
        }
        self.acknowledge(active);
        let named = GERROR::EVENTQ_ABT_ERR::SET.value | GERROR::SFM_ERR::SET.value;
        self.errors.events_lost |= error.is_set(GERROR::EVENTQ_ABT_ERR);
        self.errors.failure |= error.is_set(GERROR::SFM_ERR);
        self.errors.other |= active & !named;
        core::mem::take(&mut self.errors)
    }

    /// Acknowledges CMDQ_ERR, upon which the SMMU goes on with what is in the command queue then.
    pub fn acknowledge_command(&mut self, reason: Reason) {
        self.errors.command = Some(reason);
        self.acknowledge(self.active() & GERROR::CMDQ_ERR::SET.value);
    }

    /// The errors that are active.
    fn active(&self) -> u32 {
        (self.hw.read32(self.base.add(smmu::GERROR)) ^ self.hw.read32(self.base.add(smmu::GERRORN))) & KNOWN
    }

    /// Toggles the bits of errors that are active, and of no others (6.3.20).
    fn acknowledge(&self, active: u32) {
        if active != 0 {
            let gerrorn = self.hw.read32(self.base.add(smmu::GERRORN));
            self.hw.write32(self.base.add(smmu::GERRORN), gerrorn ^ active);
        }
    }

    /// Takes all events without looking at them.
    fn discard(&mut self) {
        self.consumed = self.prod().read(EVENTQ_INDEX::INDEX) & self.ring.index_mask();
        self.write_cons();
    }

    fn prod(&self) -> LocalRegisterCopy<u32, EVENTQ_INDEX::Register> {
        LocalRegisterCopy::new(self.hw.read32(self.base.add(smmu::EVENTQ_PROD)))
    }

    fn write_cons(&self) {
        let overflow = EVENTQ_INDEX::OVERFLOW.val(u32::from(self.overflow));
        let cons = EVENTQ_INDEX::INDEX.val(self.consumed).value | overflow.value;
        self.hw.write32(self.base.add(smmu::EVENTQ_CONS), cons);
    }
}
