//! The machine: the interface of the model for drivers and tests.
//!
//! [`Machine`] is a handle, whose clones refer to the same machine. Every call takes the one lock, advances the clock
//! by the duration of the access, executes everything in the SMMU that is due, and then makes the access.

use crate::cmdq::{Commands, Unknown};
use crate::command::Command;
use crate::config::{Config, Firmware, Staleness};
use crate::dma::{Aborted, Landing, Passed};
use crate::faults::{Armed, Fault};
use crate::memory::{Allocation, Memory, Trouble};
use crate::regs::{CMDQEN, EVENTQEN, Regs, SMMUEN};
use crate::streams::Streams;
use crate::tlb::Tlb;
use crate::violation::Violation;
use std::sync::{Arc, Mutex, MutexGuard};

/// An interrupt of the SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// The line of the event queue.
    Event,
    /// The line of global errors.
    Error,
    /// The line of completed SYNCs.
    Sync,
    /// A message.
    Message {
        /// Where it was written.
        address: u64,
        /// What was written.
        data: u32,
    },
}

/// A machine. See the documentation of the crate.
#[derive(Clone)]
pub struct Machine {
    state: Arc<Mutex<State>>,
}

pub(crate) struct State {
    pub(crate) cfg: Config,
    pub(crate) mem: Memory,
    /// Time since reset in nanoseconds.
    pub(crate) now: u64,
    pub(crate) regs: Regs,
    pub(crate) commands: Commands,
    pub(crate) unknown: Unknown,
    pub(crate) streams: Streams,
    pub(crate) tlb: Tlb,
    pub(crate) faults: Armed,
    pub(crate) in_flight: Vec<Passed>,
    pub(crate) landings: Vec<Landing>,
    pub(crate) events: Vec<[u64; 4]>,
    pub(crate) interrupts: Vec<Interrupt>,
    pub(crate) violations: Vec<Violation>,
    seed: u64,
}

impl State {
    fn new(cfg: Config) -> State {
        let mut state = State {
            mem: Memory::new(cfg.ram.0, cfg.ram.1),
            now: 0,
            regs: Regs { gbpa: cfg.gbpa, ..Regs::default() },
            commands: Commands::default(),
            unknown: Unknown { streams: true, translations: true, hyp: true },
            streams: Streams::default(),
            tlb: Tlb::default(),
            faults: Armed::default(),
            in_flight: Vec::new(),
            landings: Vec::new(),
            events: Vec::new(),
            interrupts: Vec::new(),
            violations: Vec::new(),
            seed: match cfg.staleness {
                Staleness::Random(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
                _ => 1,
            },
            cfg,
        };
        if state.cfg.unknown_reset_values {
            let r = &mut state.regs;
            (r.cr1, r.cr2) = (0x555, 0x2);
            (r.strtab_base, r.strtab_cfg) = (0x1234_5640, 0x86);
            (r.cmdq_base, r.cmdq_prod, r.cmdq_cons, r.cmdq_err) = (0x1234_0004, 5, 3, 1);
            (r.eventq_base, r.eventq_prod, r.eventq_cons) = (0x1234_1004, 0x8000_0006, 2);
        }
        if let Some(firmware) = state.cfg.firmware {
            state.leave(firmware);
        }
        state
    }

    /// Brings the SMMU into the state in which firmware leaves it.
    fn leave(&mut self, firmware: Firmware) {
        let Firmware { memory, stream_bits } = firmware;
        let table = 64u64 << stream_bits;
        let (queue, events) = (memory + table.max(0x1000), memory + table.max(0x1000) + 0x1000);
        assert!(self.mem.claim(memory, events + 0x1000 - memory), "the firmware's memory is RAM");
        for stream in 0..1u64 << stream_bits {
            self.mem.store(memory + stream * 64, &9u64.to_le_bytes()).expect("it was claimed");
        }
        self.mem.publish(memory, events + 0x1000 - memory, true);
        self.regs = Regs {
            cr0: SMMUEN | EVENTQEN | CMDQEN,
            cr0ack: SMMUEN | EVENTQEN | CMDQEN,
            cr1: 0xd75,
            cr2: 0,
            gbpa: self.cfg.gbpa,
            strtab_base: memory,
            strtab_cfg: stream_bits,
            cmdq_base: queue | u64::from(self.cfg.command_bits.min(8)),
            eventq_base: events | u64::from(self.cfg.event_bits.min(7)),
            ..Regs::default()
        };
        self.unknown = Unknown::default();
        self.open_commands();
        self.open_events();
        self.open_streams();
        self.violations.clear();
    }

    /// Records a violation.
    pub(crate) fn flag(&mut self, section: &'static str, what: impl Into<String>) {
        self.violations.push(Violation { section, what: what.into() });
    }

    /// Records a violation if memory is not as the SMMU needs it. Returns whether it did.
    pub(crate) fn flag_memory(&mut self, section: &'static str, name: &str, at: u64, trouble: Option<Trouble>) -> bool {
        if let Some(t) = trouble {
            self.flag(section, format!("{name} at {at:#x} {t}"));
        }
        trouble.is_some()
    }

    /// Chooses one of `n` possibilities. It is the first one, unless the machine is random.
    pub(crate) fn pick(&mut self, n: usize) -> usize {
        let Staleness::Random(_) = self.cfg.staleness else { return 0 };
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 20) as usize % n
    }

    /// Advances the clock.
    fn tick(&mut self, ns: u64) {
        self.now += ns;
        self.settle();
    }

    /// Executes everything that is due.
    fn settle(&mut self) {
        self.settle_registers();
        self.settle_commands();
    }

    /// The offset of a register.
    fn offset(&self, at: u64) -> Option<u64> {
        at.checked_sub(self.cfg.base).filter(|o| *o < 0x2_0000)
    }

    fn register(&mut self, at: u64, size: u64, what: &str) -> Option<u64> {
        if !at.is_multiple_of(size) {
            self.flag("6.2", format!("unaligned {}-bit register {what} at {at:#x}", size * 8));
            return None;
        }
        self.tick(self.cfg.timing.access);
        let offset = self.offset(at);
        if offset.is_none() {
            self.flag("memory", format!("register {what} at {at:#x}, where there is no device (external abort)"));
        }
        offset
    }

    /// Returns a 64-bit register after a 64-bit write or a 32-bit write to one of its halves.
    pub(crate) fn merge(old: u64, offset: u64, value: u64, wide: bool) -> u64 {
        match (wide, offset & 4) {
            (true, _) => value,
            (false, 0) => (old & !0xffff_ffff) | (value & 0xffff_ffff),
            (false, _) => (old & 0xffff_ffff) | (value << 32),
        }
    }
}

impl Machine {
    /// Returns a machine in its reset state.
    #[must_use]
    pub fn new(config: Config) -> Machine {
        Machine { state: Arc::new(Mutex::new(State::new(config))) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the lock has failed already, but its violations can still be read.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns the description of the machine.
    #[must_use]
    pub fn config(&self) -> Config {
        self.lock().cfg.clone()
    }

    // ---- for drivers

    /// Reads a 32-bit register, or a half of a 64-bit one.
    #[must_use]
    pub fn read32(&self, at: u64) -> u32 {
        let mut s = self.lock();
        s.register(at, 4, "read").map_or(0, |offset| s.register_read(offset, false)) as u32
    }

    /// Writes a 32-bit register, or a half of a 64-bit one.
    pub fn write32(&self, at: u64, value: u32) {
        let mut s = self.lock();
        if let Some(offset) = s.register(at, 4, "write") {
            s.register_write(offset, value.into(), false);
            s.settle();
        }
    }

    /// Reads a 64-bit register in one access.
    #[must_use]
    pub fn read64(&self, at: u64) -> u64 {
        let mut s = self.lock();
        let Some(offset) = s.register(at, 8, "read") else { return 0 };
        let low = s.register_read(offset, true);
        low & 0xffff_ffff | s.register_read(offset + 4, true) << 32
    }

    /// Writes a 64-bit register in one access.
    pub fn write64(&self, at: u64, value: u64) {
        let mut s = self.lock();
        if let Some(offset) = s.register(at, 8, "write") {
            s.register_write(offset, value, true);
            s.settle();
        }
    }

    /// Allocates memory that is zero for the CPU. The zeros are not published.
    #[must_use]
    pub fn alloc(&self, size: usize, align: usize) -> Option<u64> {
        self.lock().mem.alloc(size as u64, align as u64)
    }

    /// Allocates memory at a given 4 KiB-aligned address. Returns `false` if it is not free.
    #[must_use]
    pub fn claim(&self, at: u64, size: usize) -> bool {
        self.lock().mem.claim(at, size as u64)
    }

    /// Frees memory. Size and alignment must be those of the allocation.
    pub fn free(&self, at: u64, size: usize, align: usize) {
        let mut s = self.lock();
        s.settle();
        if let Err(e) = s.mem.free(at, size as u64, align as u64) {
            s.flag("memory", e);
        }
    }

    /// Loads a byte of shared memory.
    #[must_use]
    pub fn load8(&self, at: u64) -> u8 {
        let mut byte = [0];
        self.load(at, &mut byte);
        byte[0]
    }

    /// Loads an aligned little-endian word of shared memory.
    #[must_use]
    pub fn load64(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.load(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn load(&self, at: u64, out: &mut [u8]) {
        let mut s = self.lock();
        if !at.is_multiple_of(out.len() as u64) {
            s.flag("memory", format!("unaligned load of {} bytes at {at:#x}", out.len()));
        }
        if let Err(e) = s.mem.load(at, out) {
            s.flag("memory", e);
        }
    }

    /// Stores a byte to shared memory.
    pub fn store8(&self, at: u64, value: u8) {
        self.store(at, &[value]);
    }

    /// Stores an aligned little-endian word to shared memory.
    pub fn store64(&self, at: u64, value: u64) {
        self.store(at, &value.to_le_bytes());
    }

    fn store(&self, at: u64, data: &[u8]) {
        let mut s = self.lock();
        if !at.is_multiple_of(data.len() as u64) {
            s.flag("memory", format!("unaligned store of {} bytes at {at:#x}", data.len()));
        }
        if let Err(e) = s.mem.store(at, data)
            && !s.is_consumers_event(at, data.len() as u64)
        {
            s.flag("memory", e);
        }
        s.check_command_store(at, data.len() as u64);
    }

    /// Makes stores visible to devices that snoop and, with `noncoherent`, to all devices.
    pub fn publish(&self, at: u64, size: usize, noncoherent: bool) {
        let mut s = self.lock();
        let size = size as u64;
        if !s.mem.is_allocated(at, size) {
            return s
                .flag("memory", format!("publish of {size:#x} bytes at {at:#x}, which are not allocated throughout"));
        }
        let (streams, descriptors) = (s.watched_streams(at, size), s.watched_descriptors(at, size));
        s.mem.publish(at, size, noncoherent);
        s.descriptors_published(descriptors);
        s.streams_published(streams);
    }

    /// Makes writes of devices that snoop visible to loads and, with `noncoherent`, writes of all devices.
    pub fn acquire(&self, at: u64, size: usize, noncoherent: bool) {
        let mut s = self.lock();
        if !s.mem.is_allocated(at, size as u64) {
            s.flag("memory", format!("acquire of {size:#x} bytes at {at:#x}, which are not allocated throughout"));
        }
        s.mem.acquire(at, size as u64, noncoherent);
    }

    /// Returns the time since reset in microseconds. Takes as long as a register access.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        let mut s = self.lock();
        let ns = s.cfg.timing.access;
        s.tick(ns);
        s.now / 1000
    }

    /// Advances the clock by one turn of a polling loop.
    pub fn relax(&self) {
        let mut s = self.lock();
        let ns = s.cfg.timing.relax;
        s.tick(ns);
    }

    // ---- for tests

    /// Advances the clock.
    pub fn advance_us(&self, us: u64) {
        self.lock().tick(us * 1000);
    }

    /// A device writes to memory.
    ///
    /// # Errors
    ///
    /// If the SMMU aborts the transaction. Parts of it in earlier pages have been carried out.
    pub fn dma_write(&self, stream: u32, address: u64, bytes: &[u8]) -> Result<(), Aborted> {
        let mut s = self.lock();
        s.settle();
        s.write(stream, address, bytes)
    }

    /// A device starts a write to memory. It is translated now, and carried out when a SYNC has to wait for it, because
    /// what it used is invalidated, or by [`land`](Machine::land).
    ///
    /// # Errors
    ///
    /// As for [`dma_write`](Machine::dma_write).
    pub fn dma_write_later(&self, stream: u32, address: u64, bytes: &[u8]) -> Result<(), Aborted> {
        let mut s = self.lock();
        s.settle();
        s.write_later(stream, address, bytes)
    }

    /// Carries out the writes that were started by [`dma_write_later`](Machine::dma_write_later).
    pub fn land(&self) {
        let mut s = self.lock();
        s.settle();
        s.land_those(|_| true);
    }

    /// A device reads memory. Memory that is not allocated reads as zero.
    ///
    /// # Errors
    ///
    /// If the SMMU aborts the transaction.
    pub fn dma_read(&self, stream: u32, address: u64, size: usize) -> Result<Vec<u8>, Aborted> {
        let mut s = self.lock();
        s.settle();
        s.read(stream, address, size as u64)
    }

    /// A device writes an MSI. Returns the physical address at which it arrives.
    ///
    /// # Errors
    ///
    /// If the SMMU aborts the write.
    pub fn msi(&self, stream: u32, address: u64, data: u32) -> Result<u64, Aborted> {
        let mut s = self.lock();
        s.settle();
        s.write(stream, address & !3, &data.to_le_bytes())?;
        Ok(s.landings.last().map_or(0, |l| l.physical))
    }

    /// Returns where the transactions of devices went since the last call of this function.
    #[must_use]
    pub fn take_landings(&self) -> Vec<Landing> {
        std::mem::take(&mut self.lock().landings)
    }

    /// Returns the records that were written to the event queue since the last call of this function.
    #[must_use]
    pub fn take_events(&self) -> Vec<[u64; 4]> {
        std::mem::take(&mut self.lock().events)
    }

    /// Returns the interrupts since the last call of this function.
    #[must_use]
    pub fn take_interrupts(&self) -> Vec<Interrupt> {
        let mut s = self.lock();
        s.settle();
        std::mem::take(&mut s.interrupts)
    }

    /// Returns the commands that the SMMU has consumed, in order.
    #[must_use]
    pub fn commands(&self) -> Vec<Command> {
        let mut s = self.lock();
        s.settle();
        s.commands.history.clone()
    }

    /// Returns the violations recorded since the last [`take_violations`](Machine::take_violations).
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.lock().violations.clone()
    }

    /// Returns the recorded violations and clears the record.
    #[must_use]
    pub fn take_violations(&self) -> Vec<Violation> {
        std::mem::take(&mut self.lock().violations)
    }

    /// Fails the test if a violation was recorded since the last `take_violations`.
    ///
    /// # Panics
    ///
    /// If there are violations. The message lists all of them.
    #[track_caller]
    pub fn assert_clean(&self) {
        let found = self.violations();
        assert!(found.is_empty(), "{} violation(s): {found:#?}", found.len());
    }

    /// Returns the allocations that have not been freed, without the firmware's.
    #[must_use]
    pub fn allocations(&self) -> Vec<Allocation> {
        let s = self.lock();
        let firmware = s.cfg.firmware.map(|f| f.memory);
        s.mem.allocations().into_iter().filter(|a| Some(a.address) != firmware).collect()
    }

    /// Arms a fault.
    pub fn inject(&self, fault: Fault) {
        self.lock().inject(fault);
    }

    /// Removes all faults. Operations that hang because of one continue.
    pub fn heal(&self) {
        let mut s = self.lock();
        s.heal();
        s.settle();
    }
}

const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Machine>();
};
