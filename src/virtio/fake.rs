//! For tests: a guest's memory, the driver's side of a queue, and a driver of the console device.
#![allow(
    missing_docs,
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

use super::Guest;
use super::console::QUEUES;
use super::device::Device;
use super::queue::{Queue, SIZE};
use crate::ids::{Ipa, PortId};
use crate::util::progress::Progress;
use std::cell::{Cell, RefCell};
use std::vec::Vec;

/// Where the memory begins.
const BASE: u64 = 0x4000_0000;

/// A guest's memory, and the level of the device's line.
pub struct Memory {
    bytes: RefCell<Vec<u8>>,
    pub line: Cell<bool>,
    /// Accesses of the device, and their bytes.
    cost: Cell<(u64, u64)>,
}

impl Memory {
    pub fn new(size: usize) -> Memory {
        Memory { bytes: RefCell::new(std::vec![0; size]), line: Cell::new(false), cost: Cell::new((0, 0)) }
    }

    pub fn base(&self) -> Ipa {
        Ipa(BASE)
    }

    pub fn size(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    /// Returns how often the device has accessed the memory since the last call, and how many bytes.
    pub fn take_cost(&self) -> (u64, u64) {
        self.cost.take()
    }

    fn pay(&self, bytes: usize) {
        let (accesses, all) = self.cost.get();
        self.cost.set((accesses + 1, all + bytes as u64));
    }

    fn index(&self, at: Ipa, size: usize) -> Option<usize> {
        let start = usize::try_from(at.0.checked_sub(BASE)?).ok()?;
        (start.checked_add(size)? <= self.bytes.borrow().len()).then_some(start)
    }

    pub fn put(&self, at: Ipa, from: &[u8]) {
        let start = self.index(at, from.len()).unwrap();
        self.bytes.borrow_mut()[start..start + from.len()].copy_from_slice(from);
    }

    pub fn get(&self, at: Ipa, size: usize) -> Vec<u8> {
        let start = self.index(at, size).unwrap();
        self.bytes.borrow()[start..start + size].to_vec()
    }

    fn half(&self, at: Ipa) -> u16 {
        let bytes = self.get(at, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }
}

impl Guest for Memory {
    fn read(&self, at: Ipa, into: &mut [u8]) -> bool {
        self.pay(into.len());
        let Some(start) = self.index(at, into.len()) else { return false };
        into.copy_from_slice(&self.bytes.borrow()[start..start + into.len()]);
        true
    }

    fn write(&self, at: Ipa, from: &[u8]) -> bool {
        self.pay(from.len());
        let Some(start) = self.index(at, from.len()) else { return false };
        self.bytes.borrow_mut()[start..start + from.len()].copy_from_slice(from);
        true
    }

    fn load16(&self, at: Ipa) -> Option<u16> {
        self.pay(2);
        (at.0.is_multiple_of(2) && self.index(at, 2).is_some()).then(|| self.half(at))
    }

    fn store16(&self, at: Ipa, value: u16) -> bool {
        at.0.is_multiple_of(2) && self.write(at, &value.to_le_bytes())
    }

    fn set_line(&self, high: bool) {
        assert_ne!(self.line.replace(high), high, "only changes are reported");
    }
}

/// A buffer of a chain: address, size, and whether the device writes it.
pub type Part = (Ipa, u32, bool);

/// The driver's side of a queue: three pages of memory from `at` on. Written from the specification (2.7), it allocates
/// descriptors from the lowest on and never twice at a time.
#[derive(Clone)]
pub struct Ring {
    descriptors: Ipa,
    available: Ipa,
    used: Ipa,
    size: u16,
    next: u16,
    seen: u16,
    /// The chain that each head begins, for as long as the device has it.
    chains: Vec<Option<Vec<Part>>>,
    taken: Vec<bool>,
}

impl Ring {
    /// Bytes of memory that a ring takes.
    pub const BYTES: u64 = 0x400;

    pub fn new(at: Ipa, size: u16) -> Ring {
        assert!(size <= SIZE);
        let count = usize::from(size);
        Ring {
            descriptors: at,
            available: Ipa(at.0 + 0x100),
            used: Ipa(at.0 + 0x200),
            size,
            next: 0,
            seen: 0,
            chains: std::vec![None; count],
            taken: std::vec![false; count],
        }
    }

    /// The device's side of the queue.
    pub fn queue(&self) -> Queue {
        let mut queue = Queue::default();
        (queue.descriptors, queue.available, queue.used) = (self.descriptors, self.available, self.used);
        queue.ready = true;
        queue.set_size(self.size.into());
        queue
    }

    pub fn set_descriptor(&self, memory: &Memory, index: u16, (at, size, flags, next): (Ipa, u32, u16, u16)) {
        let place = Ipa(self.descriptors.0 + u64::from(index) * 16);
        memory.put(place, &at.0.to_le_bytes());
        memory.put(Ipa(place.0 + 8), &size.to_le_bytes());
        memory.put(Ipa(place.0 + 12), &flags.to_le_bytes());
        memory.put(Ipa(place.0 + 14), &next.to_le_bytes());
    }

    pub fn set_available(&self, memory: &Memory, index: u16) {
        memory.put(Ipa(self.available.0 + 2), &index.to_le_bytes());
    }

    pub fn set_entry(&self, memory: &Memory, position: u16, head: u16) {
        memory.put(Ipa(self.available.0 + 4 + 2 * u64::from(position % self.size)), &head.to_le_bytes());
    }

    pub fn set_flags(&self, memory: &Memory, flags: u16) {
        memory.put(self.available, &flags.to_le_bytes());
    }

    /// Makes a chain available. Returns `false` if there are not enough descriptors.
    pub fn try_offer(&mut self, memory: &Memory, chain: &[Part]) -> bool {
        let free: Vec<u16> =
            (0..self.size).filter(|&index| !self.taken[usize::from(index)]).take(chain.len()).collect();
        if free.len() < chain.len() {
            return false;
        }
        for (n, (&index, &(at, size, writes))) in free.iter().zip(chain).enumerate() {
            let next = free.get(n + 1).copied();
            let flags = u16::from(next.is_some()) | u16::from(writes) << 1;
            self.set_descriptor(memory, index, (at, size, flags, next.unwrap_or(0)));
            self.taken[usize::from(index)] = true;
        }
        self.chains[usize::from(free[0])] = Some(chain.to_vec());
        self.set_entry(memory, self.next, free[0]);
        self.next = self.next.wrapping_add(1);
        self.set_available(memory, self.next);
        true
    }

    pub fn offer(&mut self, memory: &Memory, chain: &[Part]) {
        assert!(self.try_offer(memory, chain), "no descriptors are free");
    }

    /// Takes what the device has given back: the head and the number of bytes written.
    pub fn used(&mut self, memory: &Memory) -> Vec<(u32, u32)> {
        self.used_chains(memory).into_iter().map(|(head, written, _)| (head, written)).collect()
    }

    pub fn used_chains(&mut self, memory: &Memory) -> Vec<(u32, u32, Vec<Part>)> {
        let mut all = Vec::new();
        while self.seen != memory.half(Ipa(self.used.0 + 2)) {
            let entry = memory.get(Ipa(self.used.0 + 4 + 8 * u64::from(self.seen % self.size)), 8);
            let [id, written] = [0, 4].map(|at| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap()));
            let head = id as usize;
            let chain = self.chains[head].take().expect("the device gives back what it was given");
            // The descriptors of the chain are found in memory, as a driver finds them.
            let mut index = id as u16;
            for _ in &chain {
                self.taken[usize::from(index)] = false;
                index = memory.half(Ipa(self.descriptors.0 + u64::from(index) * 16 + 14));
            }
            all.push((id, written, chain));
            self.seen = self.seen.wrapping_add(1);
        }
        all
    }

    /// The device has given everything back.
    pub fn forget(&mut self) {
        assert!(self.chains.iter().all(Option::is_none));
    }

    /// The number of chains that the device has.
    pub fn out(&self) -> usize {
        self.chains.iter().flatten().count()
    }
}

// Registers (4.2.2).
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;

/// The size of a receive buffer.
const BUFFER: u32 = 64;
/// The number of buffers in each receive queue.
const BUFFERS: u64 = 8;
/// The number of queues that the driver uses.
pub const USED_QUEUES: usize = 16;

/// A driver of the console device, as Linux's does it: it fills the receive queues with buffers, and gives each one back
/// when it has read it.
pub struct Driver {
    pub memory: Memory,
    pub device: Device,
    pub rings: Vec<Ring>,
    /// Control messages that have come: port, event, value, name.
    pub messages: Vec<(u32, u16, u16, Vec<u8>)>,
    /// Bytes that have come from each port.
    pub received: Vec<Vec<u8>>,
    /// Memory for what is sent.
    scratch: Vec<Ipa>,
}

impl Default for Driver {
    fn default() -> Self {
        Driver::new()
    }
}

impl Driver {
    pub fn new() -> Driver {
        let memory = Memory::new(1 << 20);
        let base = memory.base().0;
        let rings = (0..USED_QUEUES as u64).map(|n| Ring::new(Ipa(base + n * Ring::BYTES), SIZE)).collect();
        let scratch = (0..USED_QUEUES as u64).map(|n| Ipa(base + 0x8_0000 + n * 0x8000)).collect();
        Driver {
            memory,
            device: Device::new(),
            rings,
            messages: Vec::new(),
            received: std::vec![Vec::new(); USED_QUEUES / 2],
            scratch,
        }
    }

    pub fn get(&self, register: u64) -> u32 {
        self.device.read(register, 4) as u32
    }

    pub fn set(&self, register: u64, value: u32) -> Progress {
        self.device.write(&self.memory, register, 4, value.into())
    }

    /// The vCPU goes on with what an access has begun, until it may enter the guest. Returns the number of steps.
    pub fn finish(&self) -> usize {
        let mut steps = 0;
        while self.device.step(&self.memory) == Progress::More {
            while self.device.take_arrived().is_some() {}
            steps += 1;
            assert!(steps < 1000, "it never ends");
        }
        steps
    }

    pub fn act(&self, register: u64, value: u32) {
        if self.set(register, value) == Progress::More {
            self.finish();
        }
    }

    /// Brings the device up (3.1.1).
    pub fn start(&mut self) {
        self.negotiate();
        for queue in 0..USED_QUEUES {
            self.set_up(queue);
        }
        self.act(STATUS, 4);
        assert_eq!(self.get(STATUS), 15);
        self.control(0, 0, 1);
        self.poll();
    }

    pub fn negotiate(&mut self) {
        assert_eq!([0, 4, 8].map(|at| self.get(at)), [0x7472_6976, 2, 3]);
        self.act(STATUS, 0);
        self.act(STATUS, 1);
        self.act(STATUS, 2);
        self.act(DEVICE_FEATURES_SEL, 0);
        assert_eq!(self.get(DEVICE_FEATURES), 2, "MULTIPORT");
        self.act(DEVICE_FEATURES_SEL, 1);
        assert_eq!(self.get(DEVICE_FEATURES), 1, "VERSION_1");
        for (half, features) in [(0, 2), (1, 1)] {
            self.act(DRIVER_FEATURES_SEL, half);
            self.act(DRIVER_FEATURES, features);
        }
        self.act(STATUS, 8);
        assert_eq!(self.get(STATUS), 11, "FEATURES_OK");
    }

    /// Sets a queue up; a receive queue gets its buffers.
    pub fn set_up(&mut self, queue: usize) {
        let base = self.memory.base().0 + queue as u64 * Ring::BYTES;
        // The rings of an earlier life.
        self.memory.put(Ipa(base), &[0; Ring::BYTES as usize]);
        self.rings[queue] = Ring::new(Ipa(base), SIZE);
        self.act(QUEUE_SEL, queue as u32);
        assert_eq!(self.get(QUEUE_READY), 0);
        self.act(QUEUE_NUM, SIZE.into());
        for (register, at) in [(0x80, base), (0x90, base + 0x100), (0xa0, base + 0x200)] {
            self.act(register, at as u32);
            self.act(register + 4, (at >> 32) as u32);
        }
        self.act(QUEUE_READY, 1);
        if queue.is_multiple_of(2) {
            for n in 0..BUFFERS {
                let at = Ipa(self.memory.base().0 + 0x2_0000 + (queue as u64 * BUFFERS + n) * u64::from(BUFFER));
                self.rings[queue].offer(&self.memory, &[(at, BUFFER, true)]);
            }
        }
    }

    /// Sends a control message, and waits until the device has taken it, with interrupts off.
    pub fn control(&mut self, port: u32, event: u16, value: u16) {
        let at = self.scratch[3];
        self.memory.put(at, &port.to_le_bytes());
        self.memory.put(Ipa(at.0 + 4), &event.to_le_bytes());
        self.memory.put(Ipa(at.0 + 6), &value.to_le_bytes());
        self.rings[3].offer(&self.memory, &[(at, 8, false)]);
        self.act(QUEUE_NOTIFY, 3);
        assert_eq!(self.rings[3].used(&self.memory).len(), 1, "Linux's driver would spin");
    }

    /// The receive queue of a port.
    pub fn rx(port: PortId) -> usize {
        if port.0 == 0 { 0 } else { 2 * usize::from(port.0) + 2 }
    }

    /// Sends bytes through a port, as one chain of `parts` buffers. Returns `false` if the queue is full.
    pub fn send(&mut self, port: PortId, bytes: &[u8], parts: usize) -> bool {
        let queue = Self::rx(port) + 1;
        self.rings[queue].used(&self.memory);
        let at = self.scratch[queue];
        // A place for each chain, so that none is overwritten before it is read.
        let place = Ipa(at.0 + u64::from(self.rings[queue].next % SIZE) * 0x800);
        self.memory.put(place, bytes);
        let each = bytes.len().div_ceil(parts.max(1)).max(1);
        let chain: Vec<Part> = bytes
            .chunks(each)
            .enumerate()
            .map(|(n, part)| (Ipa(place.0 + (n * each) as u64), part.len() as u32, false))
            .collect();
        let sent = !chain.is_empty() && self.rings[queue].try_offer(&self.memory, &chain);
        if sent {
            self.act(QUEUE_NOTIFY, queue as u32);
        }
        sent
    }

    /// Handles the interrupt, if the line is high.
    pub fn interrupt(&mut self) -> bool {
        if !self.memory.line.get() {
            return false;
        }
        let status = self.get(INTERRUPT_STATUS);
        assert_ne!(status, 0);
        self.act(INTERRUPT_ACK, status);
        self.poll();
        true
    }

    /// Looks at all receive queues.
    pub fn poll(&mut self) {
        for queue in (0..USED_QUEUES).step_by(2) {
            for (_, written, chain) in self.rings[queue].used_chains(&self.memory) {
                let (at, size, _) = chain[0];
                assert!(written <= size, "more than the buffer holds");
                let bytes = self.memory.get(at, written as usize);
                if queue == 2 {
                    assert!(bytes.len() >= 8);
                    let word = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                    self.messages.push((word as u32, (word >> 32) as u16, (word >> 48) as u16, bytes[8..].to_vec()));
                } else {
                    self.received[queue / 2].extend(bytes);
                }
                self.rings[queue].offer(&self.memory, &[(at, size, true)]);
                self.act(QUEUE_NOTIFY, queue as u32);
            }
        }
    }

    /// Answers the messages that have come as a driver does, until there are no more. Returns them.
    pub fn settle(&mut self) -> Vec<(u32, u16, u16, Vec<u8>)> {
        let mut all = Vec::new();
        while !self.messages.is_empty() || self.memory.line.get() {
            self.interrupt();
            for message in core::mem::take(&mut self.messages) {
                if message.1 == 1 {
                    self.control(message.0, 3, 1);
                }
                all.push(message);
            }
        }
        all
    }
}

const _: () = assert!(USED_QUEUES <= QUEUES);
