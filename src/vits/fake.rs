//! A host that records and checks the calls of a virtual ITS, and a guest that writes commands.
//!
//! Used by the tests of `vits` and, by its path, by the fuzz target. The host panics if a call is invalid: if
//! an event is mapped twice or moved from a vCPU that it is not mapped to, or if a number is out of range.
#![allow(dead_code, reason = "the fuzz target and the tests use different parts")]

use super::{
    Backend, BackendError, DeviceId, DomId, EventKey, Ipa, ItsId, OnError, Progress, Quota, VIntid, VcpuId, Vits,
    VitsConfig,
};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

/// The address of the guest's command queue, and its size in bytes.
pub const QUEUE: u64 = 0x8000_0000;
pub const QUEUE_BYTES: u64 = 4096;
pub const ITS: ItsId = ItsId(3);

/// A virtual ITS with 16-bit DeviceIDs and EventIDs, 16 collections and 8192 LPIs.
pub fn config() -> VitsConfig {
    VitsConfig {
        domain: DomId(0),
        its: ITS,
        device_bits: 16,
        event_bits: 16,
        collection_bits: 4,
        id_bits: 14,
        quota: Quota { devices: 16, events: 4096, itt_entries: 8192, min_event_bits: 1, device_event_bits: 11 },
        on_error: OnError::Skip,
    }
}

/// A call of the host. `read_guest` and look-ups are not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    MapDevice(u32, u8),
    UnmapDevice(u32),
    Map(u32, u32, u16, u32),
    Move(u32, u32, u16, u16),
    Unmap(u32, u32, u16),
    Park(u32, u32, u16),
    SetPending(u32, u32, u32, u16),
    ClearPending(u32, u32, u32, u16),
    Reload(u32, u32, u32, u16),
    Byte(u32, u16),
    InvalidateAll(u16),
    MovePending(u16, u16, u32),
}

/// A host for tests.
pub struct Host {
    pub vcpus: u16,
    pub id_bits: u8,
    pub memory: RefCell<Vec<u8>>,
    /// Devices that the domain does not own.
    pub foreign: BTreeSet<u32>,
    pub calls: RefCell<Vec<Call>>,
    /// DeviceID to EventID bits.
    pub devices: RefCell<BTreeMap<u32, u8>>,
    /// (device, event) to (vINTID, vCPU).
    pub events: RefCell<BTreeMap<(u32, u32), (u32, u16)>>,
    /// (vCPU, vINTID).
    pub pending: RefCell<BTreeSet<(u16, u32)>>,
    /// The guest's configuration table, where it is not 0, and what the host has applied of it.
    pub config: RefCell<BTreeMap<u32, u8>>,
    pub applied: RefCell<BTreeMap<u32, u8>>,
    /// How many of the next operations that can fail do fail.
    pub failures: Cell<u32>,
    /// Number of calls that a MOVALL takes.
    pub movall_calls: u32,
    /// Whether all that was changed is in effect.
    pub settled: Cell<bool>,
    /// How often [`Backend::is_late`] returns `false` before it returns `true`; `None` for ever.
    pub in_time: Cell<Option<u32>>,
}

impl Host {
    pub fn new() -> Host {
        Host {
            vcpus: 4,
            id_bits: 14,
            memory: RefCell::new(std::vec![0; QUEUE_BYTES as usize]),
            foreign: BTreeSet::from([0x66]),
            calls: RefCell::default(),
            devices: RefCell::default(),
            events: RefCell::default(),
            pending: RefCell::default(),
            config: RefCell::default(),
            applied: RefCell::default(),
            failures: Cell::new(0),
            movall_calls: 1,
            settled: Cell::new(true),
            in_time: Cell::new(None),
        }
    }

    /// The calls since the last time, in order.
    pub fn take_calls(&self) -> Vec<Call> {
        self.calls.take()
    }

    fn call(&self, call: Call) {
        self.calls.borrow_mut().push(call);
    }

    fn fails(&self) -> Result<(), BackendError> {
        match self.failures.get() {
            0 => Ok(()),
            n => {
                self.failures.set(n - 1);
                Err(BackendError::Hardware)
            }
        }
    }

    fn check(&self, its: ItsId, vintid: VIntid, vcpu: VcpuId) {
        assert_eq!(its, ITS);
        assert!(vcpu.0 < self.vcpus, "{vcpu}");
        assert!((8192..1 << self.id_bits).contains(&vintid.0), "{vintid}");
    }

    /// Checks that an event is mapped as the caller says.
    fn mapped(&self, key: EventKey, vintid: VIntid, vcpu: VcpuId) {
        self.check(key.its, vintid, vcpu);
        let found = self.events.borrow().get(&(key.device.0, key.event.0)).copied();
        assert_eq!(found, Some((vintid.0, vcpu.0)), "{key}");
    }

    fn apply(&self, vintid: VIntid) {
        let byte = self.config.borrow().get(&vintid.0).copied().unwrap_or(0);
        self.applied.borrow_mut().insert(vintid.0, byte);
    }
}

impl Backend for Host {
    fn read_guest(&self, ipa: Ipa, buf: &mut [u8]) -> bool {
        let memory = self.memory.borrow();
        let Some(start) = ipa.0.checked_sub(QUEUE).and_then(|at| usize::try_from(at).ok()) else { return false };
        let Some(bytes) = start.checked_add(buf.len()).and_then(|end| memory.get(start..end)) else { return false };
        buf.copy_from_slice(bytes);
        true
    }

    fn vcpus(&self) -> u16 {
        self.vcpus
    }

    fn vcpu_by_target(&self, rdbase: u64) -> Option<VcpuId> {
        u16::try_from(rdbase).ok().filter(|&n| n < self.vcpus).map(VcpuId)
    }

    fn owns_device(&self, its: ItsId, device: DeviceId) -> bool {
        assert_eq!(its, ITS);
        !self.foreign.contains(&device.0)
    }

    fn map_device(&self, its: ItsId, device: DeviceId, event_bits: u8) -> Result<(), BackendError> {
        assert_eq!(its, ITS);
        assert!(self.owns_device(its, device));
        self.call(Call::MapDevice(device.0, event_bits));
        self.fails()?;
        assert!(self.devices.borrow_mut().insert(device.0, event_bits).is_none(), "{device} is mapped");
        Ok(())
    }

    fn unmap_device(&self, its: ItsId, device: DeviceId) -> Result<(), BackendError> {
        assert_eq!(its, ITS);
        self.call(Call::UnmapDevice(device.0));
        assert!(self.devices.borrow_mut().remove(&device.0).is_some(), "{device} is not mapped");
        assert!(self.events.borrow().keys().all(|&(d, _)| d != device.0), "{device} has events");
        self.fails()
    }

    fn map_event(&self, key: EventKey, vcpu: VcpuId, vintid: VIntid) -> Result<(), BackendError> {
        self.check(key.its, vintid, vcpu);
        let bits = self.devices.borrow().get(&key.device.0).copied().expect("the device is mapped");
        assert!(key.event.0 < 1 << bits, "{key}");
        assert_eq!(self.calls.borrow().last(), Some(&Call::Byte(vintid.0, vcpu.0)));
        self.call(Call::Map(key.device.0, key.event.0, vcpu.0, vintid.0));
        self.fails()?;
        let old = self.events.borrow_mut().insert((key.device.0, key.event.0), (vintid.0, vcpu.0));
        assert_eq!(old, None, "{key} is mapped");
        Ok(())
    }

    fn move_event(&self, key: EventKey, vintid: VIntid, from: VcpuId, to: VcpuId) -> Result<(), BackendError> {
        self.mapped(key, vintid, from);
        assert!(to.0 < self.vcpus && to != from);
        self.call(Call::Move(key.device.0, key.event.0, from.0, to.0));
        self.events.borrow_mut().remove(&(key.device.0, key.event.0));
        self.fails()?;
        self.events.borrow_mut().insert((key.device.0, key.event.0), (vintid.0, to.0));
        if self.pending.borrow_mut().remove(&(from.0, vintid.0)) {
            self.pending.borrow_mut().insert((to.0, vintid.0));
        }
        Ok(())
    }

    fn unmap_event(&self, key: EventKey, vintid: VIntid, vcpu: VcpuId) -> Result<(), BackendError> {
        self.mapped(key, vintid, vcpu);
        self.call(Call::Unmap(key.device.0, key.event.0, vcpu.0));
        self.events.borrow_mut().remove(&(key.device.0, key.event.0));
        self.pending.borrow_mut().remove(&(vcpu.0, vintid.0));
        self.fails()
    }

    fn park_event(&self, key: EventKey, vintid: VIntid, vcpu: VcpuId) -> Result<(), BackendError> {
        self.mapped(key, vintid, vcpu);
        self.call(Call::Park(key.device.0, key.event.0, vcpu.0));
        self.events.borrow_mut().remove(&(key.device.0, key.event.0));
        self.fails()
    }

    fn set_pending(&self, key: EventKey, vintid: VIntid, vcpu: VcpuId) {
        self.mapped(key, vintid, vcpu);
        self.call(Call::SetPending(key.device.0, key.event.0, vintid.0, vcpu.0));
        self.pending.borrow_mut().insert((vcpu.0, vintid.0));
    }

    fn clear_pending(&self, key: EventKey, vintid: VIntid, vcpu: VcpuId) {
        self.mapped(key, vintid, vcpu);
        self.call(Call::ClearPending(key.device.0, key.event.0, vintid.0, vcpu.0));
        self.pending.borrow_mut().remove(&(vcpu.0, vintid.0));
    }

    fn reload_config(&self, key: EventKey, vintid: VIntid, vcpu: VcpuId) {
        self.mapped(key, vintid, vcpu);
        self.call(Call::Reload(key.device.0, key.event.0, vintid.0, vcpu.0));
        self.apply(vintid);
    }

    fn reload_config_byte_only(&self, vintid: VIntid, vcpu: VcpuId) {
        self.check(ITS, vintid, vcpu);
        self.call(Call::Byte(vintid.0, vcpu.0));
        self.apply(vintid);
    }

    fn invalidate_all(&self, vcpu: VcpuId) {
        assert!(vcpu.0 < self.vcpus);
        self.call(Call::InvalidateAll(vcpu.0));
    }

    fn move_all_pending(&self, from: VcpuId, to: VcpuId, resume: u32) -> Option<u32> {
        assert!(from.0 < self.vcpus && to.0 < self.vcpus && from != to);
        self.call(Call::MovePending(from.0, to.0, resume));
        if resume + 1 < self.movall_calls {
            return Some(resume + 1);
        }
        let moved: Vec<_> = self.pending.borrow().iter().filter(|p| p.0 == from.0).copied().collect();
        for (_, vintid) in moved {
            self.pending.borrow_mut().remove(&(from.0, vintid));
            self.pending.borrow_mut().insert((to.0, vintid));
        }
        None
    }

    fn is_settled(&self) -> bool {
        self.settled.get()
    }

    fn is_late(&self) -> bool {
        match self.in_time.get() {
            None => false,
            Some(0) => true,
            Some(n) => {
                self.in_time.set(Some(n - 1));
                false
            }
        }
    }
}

/// Encodes commands as a guest writes them (IHI 0069, 5.3).
pub mod encode {
    pub type Words = [u64; 4];

    fn event(opcode: u64, device: u32, event: u32) -> Words {
        [opcode | u64::from(device) << 32, u64::from(event), 0, 0]
    }

    pub fn mapd(device: u32, bits: u8) -> Words {
        [0x08 | u64::from(device) << 32, u64::from(bits) - 1, 1 << 63 | 0x4000_0000, 0]
    }
    pub fn unmapd(device: u32) -> Words {
        [0x08 | u64::from(device) << 32, 0, 0, 0]
    }
    pub fn mapc(collection: u16, vcpu: u64) -> Words {
        [0x09, 0, 1 << 63 | vcpu << 16 | u64::from(collection), 0]
    }
    pub fn unmapc(collection: u16) -> Words {
        [0x09, 0, u64::from(collection), 0]
    }
    pub fn mapti(device: u32, id: u32, vintid: u32, collection: u16) -> Words {
        [0x0a | u64::from(device) << 32, u64::from(vintid) << 32 | u64::from(id), u64::from(collection), 0]
    }
    pub fn mapi(device: u32, id: u32, collection: u16) -> Words {
        [0x0b | u64::from(device) << 32, u64::from(id), u64::from(collection), 0]
    }
    pub fn movi(device: u32, id: u32, collection: u16) -> Words {
        [0x01 | u64::from(device) << 32, u64::from(id), u64::from(collection), 0]
    }
    pub fn movall(from: u64, to: u64) -> Words {
        [0x0e, 0, from << 16, to << 16]
    }
    pub fn inv(device: u32, id: u32) -> Words {
        event(0x0c, device, id)
    }
    pub fn invall(collection: u16) -> Words {
        [0x0d, 0, u64::from(collection), 0]
    }
    pub fn int(device: u32, id: u32) -> Words {
        event(0x03, device, id)
    }
    pub fn clear(device: u32, id: u32) -> Words {
        event(0x04, device, id)
    }
    pub fn discard(device: u32, id: u32) -> Words {
        event(0x0f, device, id)
    }
    pub fn sync(vcpu: u64) -> Words {
        [0x05, 0, vcpu << 16, 0]
    }
}

pub const CTLR: u64 = 0x00;
pub const CBASER: u64 = 0x80;
pub const CWRITER: u64 = 0x88;
pub const CREADR: u64 = 0x90;

/// A guest with its virtual ITS and the host.
pub struct Guest {
    pub host: Host,
    pub vits: Vits,
    writer: u64,
}

impl Guest {
    /// A guest whose ITS is enabled, with an empty queue.
    pub fn new(config: VitsConfig, host: Host) -> Guest {
        let mut guest = Guest { host, vits: Vits::new(config).expect("the configuration is valid"), writer: 0 };
        guest.bring_up();
        guest
    }

    /// Initializes the ITS as a driver does.
    pub fn bring_up(&mut self) {
        self.writer = 0;
        self.write(CBASER, 1 << 63 | QUEUE);
        self.write(CWRITER, 0);
        self.enable(true);
    }

    pub fn read(&self, offset: u64) -> u64 {
        self.vits.read(offset, 8)
    }

    /// Writes a register and does all the work that the write causes.
    pub fn write(&self, offset: u64, value: u64) {
        if self.vits.write(&self.host, offset, 8, value) == Progress::More {
            self.finish(1000);
        }
    }

    pub fn enable(&self, on: bool) {
        if self.vits.write(&self.host, CTLR, 4, u64::from(on)) == Progress::More {
            self.finish(1000);
        }
    }

    /// Runs to the end with a budget of `budget` operations per call. Returns how often there was more to do.
    pub fn finish(&self, budget: usize) -> usize {
        let mut rounds = 0;
        while self.vits.run(&self.host, budget) == Progress::More {
            rounds += 1;
            assert!(rounds < 1_000_000, "the work does not end");
        }
        rounds
    }

    /// Puts commands into the queue without writing GITS_CWRITER.
    pub fn enqueue(&mut self, commands: &[encode::Words]) {
        for command in commands {
            let at = self.writer as usize;
            for (n, word) in command.iter().enumerate() {
                let bytes = word.to_le_bytes();
                self.host.memory.borrow_mut()[at + 8 * n..at + 8 * n + 8].copy_from_slice(&bytes);
            }
            self.writer = (self.writer + 32) % QUEUE_BYTES;
        }
    }

    /// Writes GITS_CWRITER and does only the work that the write itself does.
    pub fn ring(&self) -> Progress {
        self.vits.write(&self.host, CWRITER, 8, self.writer)
    }

    /// Executes commands to their end.
    pub fn commands(&mut self, commands: &[encode::Words]) {
        for chunk in commands.chunks(100) {
            self.enqueue(chunk);
            if self.ring() == Progress::More {
                self.finish(1000);
            }
            assert_eq!(self.read(CREADR), self.writer);
        }
    }

    /// The calls of the host that the execution of commands causes.
    pub fn calls_of(&mut self, commands: &[encode::Words]) -> Vec<Call> {
        self.host.take_calls();
        self.commands(commands);
        self.host.take_calls()
    }

    pub fn writer(&self) -> u64 {
        self.writer
    }
}
