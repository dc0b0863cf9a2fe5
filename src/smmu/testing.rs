//! An SMMU for tests: registers, the command queue, the stream table, and caches that keep what they have until a
//! CMD_SYNC completes its invalidation. Memory is seen by the SMMU as it was published last.

use super::facts::Facts;
use super::{Smmu, View};
use crate::ids::{Pa, StreamId, VmId};
use crate::mm::stage2::Fwb;
use crate::mmio::{Coherence, Hw};
use crate::platform::machine;
use crate::util::range::Range;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

/// The facts of QEMU's SMMUv3, except that attributes can be overridden.
pub fn facts() -> Facts {
    Facts {
        minor: 1,
        stream_bits: 16,
        two_levels: true,
        address_bits: 44,
        vmid_bits: 16,
        range_invalidation: true,
        fwb: false,
        coherence: Coherence::Coherent,
        broadcast: false,
        ats: false,
        hyp: false,
        msi: false,
        overrides_types: true,
        command_bits: 19,
        event_bits: 19,
    }
}

const BASE: u64 = 0x905_0000;
const RAM: u64 = 0x4000_0000;

/// The SMMU in a platform description.
pub fn described() -> machine::Smmu {
    machine::Smmu { regs: Range::new(Pa(BASE), 0x2_0000), coherent: true, event: None, gerror: None }
}

/// A view with a VMID and root table of this number.
pub fn view(n: u16) -> View {
    View { vmid: VmId(n), vttbr: 0x8000_0000 + (u64::from(n) << 13), vtcr: 0x8002_3558, fwb: Fwb::Off }
}

/// What a stream reaches, as an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Nothing,
    /// A view: VMID and root table.
    View(u16, u64),
    /// The entry, or a descriptor, is not valid.
    Invalid,
}

#[derive(Default)]
pub struct State {
    pub registers: BTreeMap<u64, u32>,
    /// Memory as CPUs see it, and as the SMMU does.
    cpu: BTreeMap<u64, u64>,
    device: BTreeMap<u64, u64>,
    /// Allocations, with their sizes.
    pub allocations: BTreeMap<u64, usize>,
    /// Where the next allocation may begin, if that is RAM.
    pub next: u64,
    /// How many more allocations succeed; `None`: all.
    pub left: Option<usize>,
    /// Entries as the SMMU has cached them, by stream.
    cached: BTreeMap<u32, [u64; 8]>,
    /// Commands that were consumed, and of these those that no CMD_SYNC has completed.
    pub commands: Vec<[u64; 2]>,
    pending: Vec<[u64; 2]>,
    /// Consumes no commands.
    pub hangs: bool,
    /// Refuses the command that comes after so many others, with this reason.
    pub refuses: Option<(usize, u32)>,
    /// The one of CR0, IRQ_CTRL and GBPA whose writes are never acknowledged.
    pub stuck: Option<u64>,
    /// GBPA.ABORT stays 0.
    pub passes: bool,
    now: u64,
    /// Each write of a register.
    pub writes: Vec<(u64, u32)>,
}

/// An SMMU and RAM.
#[derive(Clone, Default)]
pub struct Fake(pub Rc<RefCell<State>>);

impl Fake {
    /// An SMMU like QEMU's.
    pub fn new() -> Fake {
        let fake = Fake::default();
        fake.set(0x00, 0x0d44_101b);
        fake.set(0x04, 0x0273_0010);
        fake.set(0x0c, 0x1414);
        fake.set(0x14, 0x74);
        fake.set(0x1c, 1);
        fake
    }

    /// The driver on it.
    pub fn start(&self) -> Smmu<Fake> {
        Smmu::start(self.clone(), &described()).unwrap()
    }

    pub fn set(&self, register: u64, value: u32) {
        self.0.borrow_mut().registers.insert(register, value);
    }

    pub fn get(&self, register: u64) -> u32 {
        self.0.borrow().registers.get(&register).copied().unwrap_or(0)
    }

    /// Bytes that are allocated.
    pub fn allocated(&self) -> usize {
        self.0.borrow().allocations.values().sum()
    }

    /// A transaction of a stream: what it reaches. The entry is cached.
    pub fn reach(&self, stream: u32) -> Reach {
        self.0.borrow_mut().reach(stream)
    }

    /// Records an event.
    pub fn event(&self, words: [u64; 4]) {
        let state = &mut *self.0.borrow_mut();
        let base = state.get64(0xa0);
        let (ring, bits) = (base & 0x00ff_ffff_ffff_ffe0, base & 0x1f);
        let prod = state.get(0x1_00a8);
        let entries = 1u32 << bits;
        if (prod ^ state.get(0x1_00ac)) & (2 * entries - 1) == entries {
            if (prod ^ state.get(0x1_00ac)) >> 31 == 0 {
                state.registers.insert(0x1_00a8, prod ^ 1 << 31);
            }
            return;
        }
        for (n, word) in words.into_iter().enumerate() {
            let at = ring + u64::from(prod & (entries - 1)) * 32 + 8 * n as u64;
            state.cpu.insert(at, word);
            state.device.insert(at, word);
        }
        let next = (prod + 1) & (2 * entries - 1);
        state.registers.insert(0x1_00a8, prod & 1 << 31 | next);
    }

    /// Executes what is in the command queue, after the CPU has changed something.
    pub fn resume(&self) {
        self.0.borrow_mut().execute();
    }
}

impl State {
    fn get(&self, register: u64) -> u32 {
        self.registers.get(&register).copied().unwrap_or(0)
    }

    fn get64(&self, register: u64) -> u64 {
        u64::from(self.get(register)) | u64::from(self.get(register + 4)) << 32
    }

    fn memory(&self, at: u64) -> u64 {
        self.device.get(&at).copied().unwrap_or(0xdead)
    }

    fn reach(&mut self, stream: u32) -> Reach {
        if self.get(0x20) & 1 == 0 {
            return if self.get(0x44) >> 20 & 1 == 1 { Reach::Nothing } else { Reach::Invalid };
        }
        let Some(entry) = self.cached.get(&stream).copied().or_else(|| self.entry(stream)) else {
            return Reach::Invalid;
        };
        self.cached.insert(stream, entry);
        match entry[0] & 0xf {
            1 => Reach::Nothing,
            0xd => Reach::View(entry[2] as u16, entry[3]),
            _ => Reach::Invalid,
        }
    }

    fn entry(&self, stream: u32) -> Option<[u64; 8]> {
        let config = self.get(0x88);
        let (bits, split, two_levels) = (config & 0x3f, config >> 6 & 0x1f, config >> 16 & 3 == 1);
        let root = self.get64(0x80) & 0x00ff_ffff_ffff_ffc0;
        if u64::from(stream) >> bits != 0 {
            return None;
        }
        let at = if two_levels {
            let descriptor = self.memory(root + 8 * u64::from(stream >> split));
            if descriptor & 0x1f != u64::from(split + 1) {
                return None;
            }
            (descriptor & 0x00ff_ffff_ffff_ffc0) + 64 * u64::from(stream & ((1 << split) - 1))
        } else {
            root + 64 * u64::from(stream)
        };
        Some(core::array::from_fn(|n| self.memory(at + 8 * n as u64)))
    }

    fn execute(&mut self) {
        let base = self.get64(0x90);
        let (ring, bits) = (base & 0x00ff_ffff_ffff_ffe0, base & 0x1f);
        let entries = 1u32 << bits;
        while self.get(0x20) & 8 != 0
            && !self.hangs
            && (self.get(0x60) ^ self.get(0x64)) & 1 == 0
            && (self.get(0x98) ^ self.get(0x9c)) & (2 * entries - 1) != 0
        {
            let cons = self.get(0x9c) & (2 * entries - 1);
            if let Some((after, reason)) = self.refuses {
                self.refuses = after.checked_sub(1).map(|left| (left, reason));
                if after == 0 {
                    self.registers.insert(0x9c, cons | reason << 24);
                    self.registers.insert(0x60, self.get(0x60) ^ 1);
                    return;
                }
            }
            let at = ring + 16 * u64::from(cons & (entries - 1));
            let command = [self.memory(at), self.memory(at + 8)];
            self.commands.push(command);
            self.pending.push(command);
            if command[0] & 0xff == 0x46 {
                self.complete();
            }
            self.registers.insert(0x9c, (cons + 1) & (2 * entries - 1));
        }
    }

    /// CMD_SYNC: what is pending takes effect.
    fn complete(&mut self) {
        for [first, second] in core::mem::take(&mut self.pending) {
            let stream = (first >> 32) as u32;
            match first & 0xff {
                0x03 => {
                    self.cached.remove(&stream);
                }
                0x04 => {
                    let bits = (second & 0x1f) + 1;
                    self.cached.retain(|at, _| u64::from(*at ^ stream) >> bits != 0);
                }
                0x20 | 0x28 | 0x2a | 0x30 | 0x46 => {}
                other => panic!("command {other:#x}"),
            }
        }
    }
}

impl Hw for Fake {
    fn read32(&self, at: Pa) -> u32 {
        self.get(at.0 - BASE)
    }
    fn write32(&self, at: Pa, value: u32) {
        let state = &mut *self.0.borrow_mut();
        let register = at.0 - BASE;
        state.writes.push((register, value));
        state.registers.insert(register, value);
        if state.stuck != Some(register) {
            match register {
                0x20 | 0x50 => drop(state.registers.insert(register + 4, value)),
                0x44 => {
                    let abort = if state.passes { 1 << 20 } else { 0 };
                    state.registers.insert(0x44, value & !(1 << 31) & !abort);
                }
                _ => {}
            }
        }
        state.execute();
    }
    fn read64(&self, at: Pa) -> u64 {
        self.0.borrow().get64(at.0 - BASE)
    }
    fn write64(&self, at: Pa, value: u64) {
        self.set(at.0 - BASE, value as u32);
        self.set(at.0 - BASE + 4, (value >> 32) as u32);
    }
    fn alloc(&self, size: usize, align: usize) -> Option<Pa> {
        let state = &mut *self.0.borrow_mut();
        state.left = match state.left {
            Some(0) => return None,
            left => left.map(|left| left - 1),
        };
        let (size, align) = (size.next_multiple_of(0x1000), align.max(0x1000) as u64);
        let at = state.next.max(RAM).next_multiple_of(align);
        state.next = at + size as u64;
        state.allocations.insert(at, size);
        state.cpu.extend((at..at + size as u64).step_by(8).map(|at| (at, 0)));
        Some(Pa(at))
    }
    fn free(&self, memory: Pa, size: usize, _: usize) {
        let state = &mut *self.0.borrow_mut();
        assert_eq!(state.allocations.remove(&memory.0), Some(size.next_multiple_of(0x1000)), "free of {memory}");
        state.cpu.retain(|at, _| !(memory.0..memory.0 + size as u64).contains(at));
        state.device.retain(|at, _| !(memory.0..memory.0 + size as u64).contains(at));
    }
    fn load8(&self, _: Pa) -> u8 {
        unreachable!()
    }
    fn store8(&self, _: Pa, _: u8) {
        unreachable!()
    }
    fn load64(&self, at: Pa) -> u64 {
        *self.0.borrow().cpu.get(&at.0).unwrap_or_else(|| panic!("load from {at}"))
    }
    fn store64(&self, at: Pa, value: u64) {
        let state = &mut *self.0.borrow_mut();
        assert!(state.cpu.contains_key(&at.0), "store to {at}");
        state.cpu.insert(at.0, value);
    }
    fn publish(&self, memory: Pa, size: usize, _: Coherence) {
        let state = &mut *self.0.borrow_mut();
        let words = state.cpu.range(memory.0..memory.0 + size as u64).map(|(at, word)| (*at, *word));
        state.device.extend(words.collect::<Vec<_>>());
    }
    fn acquire(&self, _: Pa, _: usize, _: Coherence) {}
    fn now_us(&self) -> u64 {
        let state = &mut *self.0.borrow_mut();
        state.now += 1_000;
        state.now
    }
    fn relax(&self) {}
}

/// The streams from `first` to `last`.
pub fn streams(first: u32, last: u32) -> core::ops::RangeInclusive<StreamId> {
    StreamId(first)..=StreamId(last)
}
