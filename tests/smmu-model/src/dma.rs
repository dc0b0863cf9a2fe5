//! Transactions of devices.

use crate::config::Staleness;
use crate::eventq::{
    C_BAD_STE, C_BAD_STREAMID, Cause, F_ACCESS, F_ADDR_SIZE, F_PERMISSION, F_TLB_CONFLICT, F_TRANSLATION, F_WALK_EABT,
    record,
};
use crate::machine::State;
use crate::regs::{ABORT, SMMUEN};
use crate::ste::{self, Action, Stage2};
use crate::walk::WalkFault;

/// Why a transaction was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// SMMUEN is 0 and SMMU_GBPA.ABORT is 1, or the address is beyond the output address size.
    Disabled,
    /// The SMMU is in service failure mode.
    ServiceFailure,
    /// STE.Config is 0: abort without an event.
    Configured,
    /// C_BAD_STREAMID.
    BadStreamId,
    /// F_STE_FETCH.
    SteFetch,
    /// C_BAD_STE.
    BadSte,
    /// F_WALK_EABT.
    WalkAbort,
    /// F_TRANSLATION.
    Translation,
    /// F_ADDR_SIZE.
    AddressSize,
    /// F_ACCESS.
    Access,
    /// F_PERMISSION.
    Permission,
    /// F_TLB_CONFLICT.
    TlbConflict,
}

/// The end of a transaction that the SMMU has aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aborted {
    /// Why.
    pub why: Why,
    /// Whether an event was recorded.
    pub recorded: bool,
}

/// A part of a transaction, within one page, that the SMMU has let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landing {
    /// StreamID.
    pub stream: u32,
    /// The address that the device used.
    pub address: u64,
    /// The physical address.
    pub physical: u64,
    /// Size in bytes.
    pub size: u64,
    /// Whether it is a write.
    pub write: bool,
    /// The descriptor of the block or page, if it was translated.
    pub descriptor: Option<u64>,
}

/// The result of a translation.
struct Translated {
    physical: u64,
    /// VMID and descriptor, if it was translated.
    stage2: Option<(u16, u64)>,
}

/// A part of a transaction that was let through, and has not landed.
pub(crate) struct Passed {
    pub(crate) landing: Landing,
    pub(crate) vmid: Option<u16>,
    bytes: Vec<u8>,
}

impl State {
    /// Aborts a transaction, with an event if `recorded`.
    fn abort(&mut self, why: Why, event: Option<[u64; 4]>) -> Aborted {
        let recorded = event.is_some_and(|record| self.record_event(record));
        Aborted { why, recorded }
    }

    /// Whether a transaction that arrives now is subject to the stream table. While a change of SMMUEN is not
    /// acknowledged, it may be or not.
    fn is_enabled(&mut self) -> bool {
        let (new, old) = (self.regs.cr0 & SMMUEN != 0, self.regs.cr0ack & SMMUEN != 0);
        if new != old && !self.stale() { new } else { old }
    }

    /// Translates the address of a part of a transaction.
    fn translate(&mut self, cause: Cause) -> Result<Translated, Aborted> {
        let Cause { stream, address, .. } = cause;
        if self.failed() {
            return Err(self.abort(Why::ServiceFailure, None));
        }
        let implemented = address >> self.cfg.output_bits == 0;
        if !self.is_enabled() {
            let (now, next) = self.gbpa();
            let gbpa = match next {
                Some(next) if !self.stale() => next,
                _ => now,
            };
            if gbpa & ABORT != 0 || !implemented {
                return Err(self.abort(Why::Disabled, None));
            }
            return Ok(Translated { physical: address, stage2: None });
        }
        let ste = match self.look_up(stream) {
            Ok(ste) => ste,
            Err((kind, fetch)) => {
                let why = if kind == C_BAD_STREAMID { Why::BadStreamId } else { Why::SteFetch };
                return Err(self.abort(why, Some(record(kind, cause, false, fetch))));
            }
        };
        match ste::decode(&self.cfg, &ste) {
            Action::Bad => Err(self.abort(Why::BadSte, Some(record(C_BAD_STE, cause, false, 0)))),
            Action::Abort => Err(self.abort(Why::Configured, None)),
            Action::Bypass | Action::Translate(_) if !implemented => {
                Err(self.abort(Why::AddressSize, Some(record(F_ADDR_SIZE, cause, false, 0))))
            }
            Action::Bypass => Ok(Translated { physical: address, stage2: None }),
            Action::Translate(stage2) => {
                let found = self.through_stage2(&stage2, cause);
                found.map_err(|(why, kind, fetch)| {
                    let always = matches!(kind, F_WALK_EABT | F_TLB_CONFLICT);
                    let event = record(kind, cause, true, fetch);
                    self.abort(why, (always || stage2.record).then_some(event))
                })
            }
        }
    }

    fn through_stage2(&mut self, stage2: &Stage2, cause: Cause) -> Result<Translated, (Why, u8, u64)> {
        if std::mem::take(&mut self.faults.tlb_conflict) {
            return Err((Why::TlbConflict, F_TLB_CONFLICT, 0));
        }
        if cause.address >> stage2.input_bits != 0 {
            return Err((Why::Translation, F_TRANSLATION, 0));
        }
        let leaf = self.translate_stage2(stage2, cause.address).map_err(|fault| match fault {
            WalkFault::Translation => (Why::Translation, F_TRANSLATION, 0),
            WalkFault::AddressSize => (Why::AddressSize, F_ADDR_SIZE, 0),
            WalkFault::Access => (Why::Access, F_ACCESS, 0),
            WalkFault::Abort(at) => (Why::WalkAbort, F_WALK_EABT, at),
        })?;
        if !leaf.allows(cause.write) {
            return Err((Why::Permission, F_PERMISSION, 0));
        }
        Ok(Translated { physical: leaf.output_of(cause.address), stage2: Some((stage2.vmid, leaf.word)) })
    }

    /// Translates a transaction, page by page, until one aborts. Returns what was let through before.
    fn pass(&mut self, stream: u32, address: u64, size: u64, write: bool) -> (Vec<Passed>, Result<(), Aborted>) {
        let mut passed = Vec::new();
        let mut done = 0;
        while done < size {
            let at = address.wrapping_add(done);
            let part = (size - done).min(4096 - at % 4096);
            match self.translate(Cause { stream, address: at, write }) {
                Ok(Translated { physical, stage2 }) => {
                    let descriptor = stage2.map(|(_, word)| word);
                    let landing = Landing { stream, address: at, physical, size: part, write, descriptor };
                    passed.push(Passed { landing, vmid: stage2.map(|(vmid, _)| vmid), bytes: Vec::new() });
                }
                Err(aborted) => return (passed, Err(aborted)),
            }
            done += part;
        }
        (passed, Ok(()))
    }

    /// Carries out a part of a write.
    fn land(&mut self, passed: &Passed) {
        let landing = passed.landing;
        if let Some(used) = self.mem.used_by(landing.physical, landing.size) {
            let Landing { stream, physical, .. } = landing;
            self.flag("memory", format!("stream {stream:#x} writes to {physical:#x}, which is in use as {used}"));
        }
        // A write outside of allocated RAM may be one to a device.
        let _ = self.mem.device_write(landing.physical, &passed.bytes, self.device_snoop());
        self.landings.push(landing);
    }

    /// Translates a write.
    fn pass_write(&mut self, stream: u32, address: u64, bytes: &[u8]) -> (Vec<Passed>, Result<(), Aborted>) {
        let (mut passed, end) = self.pass(stream, address, bytes.len() as u64, true);
        for p in &mut passed {
            let from = p.landing.address.wrapping_sub(address) as usize;
            p.bytes = bytes[from..from + p.landing.size as usize].to_vec();
        }
        (passed, end)
    }

    pub(crate) fn write(&mut self, stream: u32, address: u64, bytes: &[u8]) -> Result<(), Aborted> {
        let (passed, end) = self.pass_write(stream, address, bytes);
        passed.iter().for_each(|p| self.land(p));
        end
    }

    /// Translates a write, which takes place later.
    pub(crate) fn write_later(&mut self, stream: u32, address: u64, bytes: &[u8]) -> Result<(), Aborted> {
        let (passed, end) = self.pass_write(stream, address, bytes);
        self.in_flight.extend(passed);
        end
    }

    /// Carries out the writes under way that `which` names.
    pub(crate) fn land_those(&mut self, which: impl Fn(&Passed) -> bool) {
        let (due, rest) = std::mem::take(&mut self.in_flight).into_iter().partition(which);
        self.in_flight = rest;
        let due: Vec<Passed> = due;
        due.iter().for_each(|p| self.land(p));
    }

    pub(crate) fn read(&mut self, stream: u32, address: u64, size: u64) -> Result<Vec<u8>, Aborted> {
        let (passed, end) = self.pass(stream, address, size, false);
        let mut bytes = vec![0; size as usize];
        for Passed { landing, .. } in passed {
            let from = landing.address.wrapping_sub(address) as usize;
            let part = &mut bytes[from..from + landing.size as usize];
            let _ = self.mem.device_read(landing.physical, part, self.device_snoop());
            self.landings.push(landing);
        }
        end.map(|()| bytes)
    }

    /// Whether the older of two possible values is used.
    pub(crate) fn stale(&mut self) -> bool {
        match self.cfg.staleness {
            Staleness::Immediate => false,
            Staleness::OnUse | Staleness::Worst => true,
            Staleness::Random(_) => self.pick(2) == 0,
        }
    }
}
