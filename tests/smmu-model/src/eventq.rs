//! The event queue and its records (IHI 0070, 7.2 to 7.4).

use crate::machine::State;
use crate::memory::{Snoop, Use};
use crate::regs::{EVENTQ_ABT_ERR, EVENTQ_IRQEN, EVENTQEN, OVFLG, RECINVSID};

/// Numbers of events.
pub(crate) const C_BAD_STREAMID: u8 = 0x02;
pub(crate) const F_STE_FETCH: u8 = 0x03;
pub(crate) const C_BAD_STE: u8 = 0x04;
pub(crate) const F_WALK_EABT: u8 = 0x0b;
pub(crate) const F_TRANSLATION: u8 = 0x10;
pub(crate) const F_ADDR_SIZE: u8 = 0x11;
pub(crate) const F_ACCESS: u8 = 0x12;
pub(crate) const F_PERMISSION: u8 = 0x13;
pub(crate) const F_TLB_CONFLICT: u8 = 0x20;

/// The transaction that an event is about, as far as records tell.
#[derive(Clone, Copy)]
pub(crate) struct Cause {
    pub(crate) stream: u32,
    pub(crate) address: u64,
    pub(crate) write: bool,
}

/// The record of an event.
///
/// `stage2`: the fault is one of stage 2. `fetch`: the address of the structure whose fetch was aborted.
pub(crate) fn record(kind: u8, cause: Cause, stage2: bool, fetch: u64) -> [u64; 4] {
    let first = u64::from(kind) | u64::from(cause.stream) << 32;
    // RnW, S2, and CLASS = IN.
    let access = u64::from(!cause.write) << 35 | u64::from(stage2) << 39 | 2 << 40;
    let ipa = if stage2 { cause.address & 0x00ff_ffff_ffff_f000 } else { 0 };
    match kind {
        C_BAD_STREAMID | C_BAD_STE => [first, 0, 0, 0],
        F_STE_FETCH => [first, 0, 0, fetch & 0x00ff_ffff_ffff_fff8],
        F_WALK_EABT => [first, access, cause.address, fetch & 0x00ff_ffff_ffff_fff8],
        _ => [first, access, cause.address, ipa],
    }
}

impl State {
    /// Checks the event queue when it is enabled.
    pub(crate) fn open_events(&mut self) {
        const SECTION: &str = "6.3 SMMU_EVENTQ_BASE";
        let ring = self.events_ring();
        self.check_queue(SECTION, self.regs.eventq_base, self.cfg.event_bits, ring, 32, Use::Events);
        let r = &self.regs;
        let indexes = (r.eventq_prod | r.eventq_cons) & !OVFLG;
        if indexes & !ring.mask() != 0 || ring.used(r.eventq_prod, r.eventq_cons) > ring.entries() {
            self.flag("6.3 SMMU_EVENTQ_PROD", "the queue is enabled with indexes that were not initialized");
        }
    }

    /// Whether software may store to a range, as it lies in a record that has not been consumed yet: the SMMU neither reads
    /// nor writes it. Without snooping, the line could be written back over the next record.
    pub(crate) fn is_consumers_event(&self, at: u64, len: u64) -> bool {
        if self.queue_snoop() == Snoop::No {
            return false;
        }
        let (ring, cons) = (self.events_ring(), self.regs.eventq_cons);
        (0..ring.used(self.regs.eventq_prod, cons).min(ring.entries())).any(|index| {
            let entry = ring.entry(cons.wrapping_add(index), 32);
            entry <= at && at + len <= entry + 32
        })
    }

    pub(crate) fn write_eventq_cons(&mut self, value: u32) {
        const SECTION: &str = "6.3 SMMU_EVENTQ_CONS";
        let ring = self.events_ring();
        let r = &self.regs;
        if r.cr0 & EVENTQEN != 0 {
            let (used, left) = (ring.used(r.eventq_prod, r.eventq_cons), ring.used(r.eventq_prod, value));
            let acknowledges = (value ^ r.eventq_cons) & OVFLG != 0;
            if acknowledges && (value ^ r.eventq_prod) & OVFLG != 0 {
                self.flag(SECTION, "OVACKFLG changed to another value than that of OVFLG");
            }
            if left > used {
                return self.flag(SECTION, format!("index {value:#x} is beyond the producer's"));
            }
        }
        if value & !OVFLG & !ring.mask() != 0 {
            self.flag(SECTION, format!("reserved bits set in {value:#x}"));
        }
        self.regs.eventq_cons = value & (OVFLG | ring.mask());
    }

    /// Records an event, if the queue can take it. Returns whether it did.
    pub(crate) fn record_event(&mut self, record: [u64; 4]) -> bool {
        let kind = record[0] as u8;
        if self.failed()
            || self.regs.cr0ack & self.regs.cr0 & EVENTQEN == 0
            || self.active(EVENTQ_ABT_ERR)
            || (kind == C_BAD_STREAMID && self.regs.cr2 & RECINVSID == 0)
        {
            return false;
        }
        let ring = self.events_ring();
        let (prod, cons) = (self.regs.eventq_prod, self.regs.eventq_cons);
        let used = ring.used(prod, cons);
        if used >= ring.entries() || std::mem::take(&mut self.faults.event_overflow) {
            if (prod ^ cons) & OVFLG == 0 {
                self.regs.eventq_prod ^= OVFLG;
            }
            return false;
        }
        let bytes: Vec<u8> = record.iter().flat_map(|w| w.to_le_bytes()).collect();
        let at = ring.entry(prod, 32);
        let aborts = std::mem::take(&mut self.faults.event_write_aborts);
        if aborts || self.mem.device_write(at, &bytes, self.queue_snoop()).is_some() {
            self.raise(EVENTQ_ABT_ERR);
            return false;
        }
        self.regs.eventq_prod = (prod & OVFLG) | ((prod + 1) & ring.mask());
        self.events.push(record);
        if self.regs.irq_ctrl & EVENTQ_IRQEN != 0 && (used == 0 || self.cfg.interrupt_for_each_event) {
            let message = self.regs.eventq_message;
            self.interrupt(crate::Interrupt::Event, message);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_encodings_of_the_manual() {
        let read = Cause { stream: 0x18, address: 0x1234_5678, write: false };
        let write = Cause { write: true, ..read };
        assert_eq!(record(C_BAD_STREAMID, read, false, 0), [0x18_0000_0002, 0, 0, 0]);
        assert_eq!(record(F_STE_FETCH, read, false, 0x4000_0600), [0x18_0000_0003, 0, 0, 0x4000_0600]);
        assert_eq!(record(C_BAD_STE, write, false, 0), [0x18_0000_0004, 0, 0, 0]);
        let walk = [0x18_0000_000b, 0x288_0000_0000, 0x1234_5678, 0x4000_0008];
        assert_eq!(record(F_WALK_EABT, read, true, 0x4000_0008), walk);
        let translation = [0x18_0000_0010, 0x280_0000_0000, 0x1234_5678, 0x1234_5000];
        assert_eq!(record(F_TRANSLATION, write, true, 0), translation);
        let permission = [0x18_0000_0013, 0x288_0000_0000, 0x1234_5678, 0x1234_5000];
        assert_eq!(record(F_PERMISSION, read, true, 0), permission);
        let size = [0x18_0000_0011, 0x208_0000_0000, 0x1234_5678, 0];
        assert_eq!(record(F_ADDR_SIZE, read, false, 0), size);
    }
}
