//! The command queue: consumption, and the effects of commands (IHI 0070, 4 and 7.1).
//!
//! Commands are consumed one by one, each after a delay. That an invalidation is consumed means nothing: it takes effect
//! with the SYNC that follows. Invalidations before one SYNC are not ordered among themselves, so that a TLB may be
//! filled again through an STE whose invalidation comes earlier in the queue but is carried out later: the model
//! carries out invalidations of the TLB before those of STEs.

use crate::command::{Command, Extent, Features, Signal};
use crate::config::Staleness;
use crate::faults::CommandFault;
use crate::machine::State;
use crate::memory::{Snoop, Trouble, Use};
use crate::regs::{CMDQ_ERR, CMDQEN, Message, Ring};
use crate::tlb::Scope;
use std::collections::BTreeMap;

const CERROR_ILL: u32 = 1;
const CERROR_ABT: u32 = 2;

/// The command queue.
#[derive(Default)]
pub(crate) struct Commands {
    /// When the command under way will be consumed.
    due: Option<u64>,
    /// PROD was moved in a way that is not allowed: nothing is consumed until the queue is enabled again.
    broken: bool,
    /// Invalidations without a SYNC.
    pending: Vec<Invalidation>,
    /// The commands that were consumed.
    pub(crate) history: Vec<Command>,
    /// Faults of commands to come, by their number in `history`.
    pub(crate) plan: BTreeMap<usize, CommandFault>,
}

/// An invalidation that waits for its SYNC.
#[derive(Clone, Copy, Debug)]
enum Invalidation {
    Streams {
        first: u32,
        last: u32,
        descriptors: bool,
    },
    Translations(Scope),
    /// Translations of EL2.
    Hyp,
}

/// Caches whose content software does not know, at reset or after SMMUEN = 0.
#[derive(Clone, Copy, Default)]
pub(crate) struct Unknown {
    pub(crate) streams: bool,
    pub(crate) translations: bool,
    pub(crate) hyp: bool,
}

impl State {
    /// Checks a queue when it is enabled.
    pub(crate) fn check_queue(&mut self, section: &'static str, reg: u64, limit: u32, ring: Ring, entry: u64, u: Use) {
        if reg as u32 & 0x1f > limit {
            self.flag(section, format!("LOG2SIZE {} is more than the SMMU supports", reg & 0x1f));
        }
        if reg & crate::regs::ADDRESS != ring.base {
            self.flag(section, format!("{u} at {reg:#x} is not aligned to its size"));
        }
        let bytes = (entry << ring.bits).max(32);
        let trouble = self.mem.trouble(ring.base, bytes, self.queue_snoop());
        // Commands are checked as they are produced. What the CPU has not cleaned would overwrite events.
        if u == Use::Events || trouble == Some(Trouble::NotAllocated) {
            self.flag_memory(section, &u.to_string(), ring.base, trouble);
        }
        if let Some(other) = self.mem.used_by(ring.base, bytes) {
            self.flag(section, format!("{u} at {:#x} overlaps {other}", ring.base));
        }
        self.check_attributes(0);
        self.mem.attach_once(ring.base, bytes, u);
    }

    /// Checks the command queue when it is enabled.
    pub(crate) fn open_commands(&mut self) {
        let ring = self.commands_ring();
        self.check_queue("6.3 SMMU_CMDQ_BASE", self.regs.cmdq_base, self.cfg.command_bits, ring, 16, Use::Commands);
        let r = &self.regs;
        if (r.cmdq_prod | r.cmdq_cons) & !ring.mask() != 0 || ring.used(r.cmdq_prod, r.cmdq_cons) > ring.entries() {
            self.flag("6.3 SMMU_CMDQ_PROD", "the queue is enabled with indexes that were not initialized");
        }
        self.commands.broken = false;
    }

    /// Starts consumption when the queue is enabled, or when an error was acknowledged.
    pub(crate) fn start_commands(&mut self) {
        self.commands.due = None;
        self.schedule(self.now);
    }

    pub(crate) fn resume_commands(&mut self) {
        self.start_commands();
    }

    pub(crate) fn write_cmdq_prod(&mut self, value: u32) {
        const SECTION: &str = "6.3 SMMU_CMDQ_PROD";
        let ring = self.commands_ring();
        if value & !ring.mask() != 0 {
            self.flag(SECTION, format!("reserved bits set in {value:#x}"));
        }
        let value = value & ring.mask();
        let enabled = (self.regs.cr0 | self.regs.cr0ack) & CMDQEN != 0;
        if !enabled {
            self.regs.cmdq_prod = value;
            return;
        }
        let (old, cons) = (self.regs.cmdq_prod, self.regs.cmdq_cons);
        let (before, after) = (ring.used(old, cons), ring.used(value, cons));
        let error = self.active(CMDQ_ERR);
        if after > ring.entries() || (after < before && !error) {
            self.flag(SECTION, format!("index moved from {old:#x} to {value:#x} with the consumer at {cons:#x}"));
            self.commands.broken = true;
            return;
        }
        for index in before..after {
            let at = ring.entry(cons.wrapping_add(index), 16);
            let trouble = self.mem.trouble(at, 16, self.queue_snoop());
            self.flag_memory("3.21.2", "a command", at, trouble);
        }
        self.regs.cmdq_prod = value;
        if self.commands.due.is_none() {
            self.schedule(self.now);
        }
    }

    /// Records a violation if a CPU stores to a command that the SMMU may have read already.
    pub(crate) fn check_command_store(&mut self, at: u64, len: u64) {
        if self.regs.cr0 & CMDQEN == 0 || self.active(CMDQ_ERR) {
            return;
        }
        let (ring, cons) = (self.commands_ring(), self.regs.cmdq_cons);
        for index in 0..ring.used(self.regs.cmdq_prod, cons) {
            let entry = ring.entry(cons.wrapping_add(index), 16);
            if at < entry + 16 && entry < at + len {
                self.flag("3.21.2", format!("store to the command at {entry:#x}, which is not consumed"));
            }
        }
    }

    /// Starts the next command, if there is one.
    fn schedule(&mut self, from: u64) {
        let ring = self.commands_ring();
        if ring.used(self.regs.cmdq_prod, self.regs.cmdq_cons) == 0 {
            return;
        }
        let at = ring.entry(self.regs.cmdq_cons, 16);
        let (word, _) = self.mem.device_read64(at, self.queue_snoop());
        let mut time = if word as u8 == 0x46 { self.cfg.timing.sync } else { self.cfg.timing.command };
        if let Some(CommandFault::Late { us }) = self.commands.plan.get(&self.commands.history.len()) {
            time += us * 1000;
        }
        self.commands.due = Some(from + time);
    }

    /// Consumes the commands that are due.
    pub(crate) fn settle_commands(&mut self) {
        while let Some(due) = self.commands.due
            && due <= self.now
            && self.regs.cr0ack & CMDQEN != 0
            && !self.failed()
            && !self.active(CMDQ_ERR)
            && !self.commands.broken
            && self.faults.queue_stopped.is_none_or(|until| self.now >= until)
        {
            let number = self.commands.history.len();
            let fault = self.commands.plan.get(&number).copied();
            if fault == Some(CommandFault::Hang) {
                return;
            }
            self.commands.plan.remove(&number);
            self.commands.due = None;
            let ring = self.commands_ring();
            let at = ring.entry(self.regs.cmdq_cons, 16);
            let (low, trouble) = self.mem.device_read64(at, self.queue_snoop());
            let (high, _) = self.mem.device_read64(at + 8, self.queue_snoop());
            if fault == Some(CommandFault::Abort) || trouble == Some(Trouble::NotAllocated) {
                return self.command_error(CERROR_ABT);
            }
            let c = &self.cfg;
            let features = Features { stage1: c.stage1, stage2: c.stage2, hyp: c.hyp, ranges: c.ranges };
            match Command::decode([low, high], features) {
                Err(why) => {
                    self.flag("4.1.3", format!("illegal command at {at:#x}: {why}"));
                    return self.command_error(CERROR_ILL);
                }
                Ok(_) if fault == Some(CommandFault::Illegal) => return self.command_error(CERROR_ILL),
                Ok(command) => {
                    self.commands.history.push(command);
                    // The effects of a SYNC are visible before its consumption.
                    self.execute(command);
                    self.regs.cmdq_cons = (self.regs.cmdq_cons + 1) & ring.mask();
                    self.signal(command);
                }
            }
            self.schedule(due);
        }
    }

    fn command_error(&mut self, code: u32) {
        self.regs.cmdq_err = code;
        self.raise(CMDQ_ERR);
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::PrefetchConfig { stream } | Command::PrefetchAddr { stream } => {
                let _ = self.in_range(stream);
            }
            // There are no context descriptors, and no translations of stage 1.
            Command::CfgiCd { stream } | Command::CfgiCdAll { stream } => {
                let _ = self.in_range(stream);
            }
            Command::TlbiNh { vmid, .. } => {
                let _ = self.vmid_in_range(vmid);
            }
            Command::TlbiEl2 { opcode } => {
                if opcode == 0x20 {
                    self.pend(Invalidation::Hyp);
                }
            }
            Command::CfgiSte { stream, leaf } => {
                if self.in_range(stream) {
                    self.pend(Invalidation::Streams { first: stream, last: stream, descriptors: !leaf });
                }
            }
            Command::CfgiSteRange { stream, range } => {
                let low = (2u64 << range) - 1;
                let first = stream & !low as u32;
                if range == 31 || self.in_range(first) {
                    let last = (u64::from(first) | low) as u32;
                    self.pend(Invalidation::Streams { first, last, descriptors: true });
                }
            }
            Command::TlbiS12Vmall { vmid } => {
                if self.vmid_in_range(vmid) {
                    let scope = Scope { vmid: Some(vmid), range: None, leaf: false, level: None };
                    self.pend(Invalidation::Translations(scope));
                }
            }
            Command::TlbiS2Ipa { vmid, address, leaf, extent } => {
                if self.vmid_in_range(vmid)
                    && let Some(scope) = self.scope(vmid, address, leaf, extent)
                {
                    self.pend(Invalidation::Translations(scope));
                }
            }
            Command::TlbiNsnhAll => {
                self.pend(Invalidation::Translations(Scope { vmid: None, range: None, leaf: false, level: None }));
            }
            Command::Sync { .. } => self.synchronize(),
        }
    }

    /// What a TLBI_S2_IPA covers. `None`: nothing, or it cannot be told.
    fn scope(&mut self, vmid: u16, address: u64, leaf: bool, extent: Extent) -> Option<Scope> {
        const SECTION: &str = "4.4.1.1";
        let Extent { num, scale, granule, level } = extent;
        if granule == 0 {
            return Some(Scope { vmid: Some(vmid), range: Some((address, 4096)), leaf, level: None });
        }
        if granule != 1 {
            self.flag(SECTION, format!("TLBI_S2_IPA with TG {granule}, for tables of 4 KiB granule"));
            return None;
        }
        let aligned = match level {
            1 => 30,
            2 => 21,
            _ => 12,
        };
        if address & ((1 << aligned) - 1) != 0 {
            self.flag(SECTION, format!("TLBI_S2_IPA of {address:#x}, which is not aligned for TTL {level}"));
            return None;
        }
        let size = (u64::from(num) + 1).saturating_mul(4096 << scale);
        let level = (level != 0).then_some(level as u8);
        Some(Scope { vmid: Some(vmid), range: Some((address, size)), leaf, level })
    }

    fn in_range(&mut self, stream: u32) -> bool {
        let fits = u64::from(stream) >> self.cfg.stream_bits == 0;
        if !fits {
            self.flag("4.1.7", format!("command with StreamID {stream:#x}, which is out of range"));
        }
        fits
    }

    fn vmid_in_range(&mut self, vmid: u16) -> bool {
        let fits = self.cfg.vmid16 || vmid < 0x100;
        if !fits {
            self.flag("4.4", format!("command with VMID {vmid:#x}, of which only 8 bits exist"));
        }
        fits
    }

    /// Notes an invalidation for the next SYNC.
    fn pend(&mut self, invalidation: Invalidation) {
        match invalidation {
            Invalidation::Streams { first, last, .. } => self.check_published(first, last),
            Invalidation::Translations(scope) => self.check_tables_published(scope),
            Invalidation::Hyp => {}
        }
        if matches!(self.cfg.staleness, Staleness::Immediate | Staleness::OnUse) {
            self.invalidate(invalidation);
        } else {
            self.commands.pending.push(invalidation);
        }
    }

    fn synchronize(&mut self) {
        let pending = std::mem::take(&mut self.commands.pending);
        let (streams, others): (Vec<Invalidation>, Vec<Invalidation>) =
            pending.into_iter().partition(|i| matches!(i, Invalidation::Streams { .. }));
        others.into_iter().chain(streams).for_each(|i| self.invalidate(i));
    }

    /// Carries out an invalidation, after the transactions that have used what is invalidated.
    fn invalidate(&mut self, invalidation: Invalidation) {
        match invalidation {
            Invalidation::Streams { first, last, descriptors } => {
                self.land_those(|p| (first..=last).contains(&p.landing.stream));
                self.invalidate_streams(first, last, descriptors);
                if (first, last) == (0, u32::MAX) {
                    self.unknown.streams = false;
                }
            }
            Invalidation::Translations(scope) => {
                self.land_those(|p| p.vmid.is_some_and(|vmid| scope.reaches(vmid, p.landing.address)));
                self.invalidate_translations(scope);
                if scope.vmid.is_none() {
                    self.unknown.translations = false;
                }
            }
            Invalidation::Hyp => self.unknown.hyp = false,
        }
    }

    /// Signals that a SYNC was consumed.
    fn signal(&mut self, command: Command) {
        if let Command::Sync { signal: Signal::Irq { address, data } } = command {
            self.interrupt(crate::Interrupt::Sync, Message::new(address, data));
        }
    }

    /// How writes of devices, and messages of the SMMU, relate to caches.
    pub(crate) fn device_snoop(&self) -> Snoop {
        if self.cfg.coherent { Snoop::Yes } else { Snoop::No }
    }
}
