//! A small driver for the model's own tests: numbers from the manual, and nothing else.

#![allow(dead_code, reason = "each test binary uses a part")]

use smmu_model::{Aborted, Config, Machine, Why};

pub const CR0: u64 = 0x20;
pub const CR0ACK: u64 = 0x24;
pub const CR1: u64 = 0x28;
pub const CR2: u64 = 0x2c;
pub const GBPA: u64 = 0x44;
pub const IRQ_CTRL: u64 = 0x50;
pub const GERROR: u64 = 0x60;
pub const GERRORN: u64 = 0x64;
pub const STRTAB_BASE: u64 = 0x80;
pub const STRTAB_BASE_CFG: u64 = 0x88;
pub const CMDQ_BASE: u64 = 0x90;
pub const CMDQ_PROD: u64 = 0x98;
pub const CMDQ_CONS: u64 = 0x9c;
pub const EVENTQ_BASE: u64 = 0xa0;
pub const EVENTQ_PROD: u64 = 0x1_00a8;
pub const EVENTQ_CONS: u64 = 0x1_00ac;

pub const SMMUEN: u32 = 1;
pub const EVENTQEN: u32 = 4;
pub const CMDQEN: u32 = 8;

pub const SYNC: [u64; 2] = [0x46, 0];
pub const CFGI_ALL: [u64; 2] = [4, 31];
pub const NSNH_ALL: [u64; 2] = [0x30, 0];
pub const EL2_ALL: [u64; 2] = [0x20, 0];

pub const fn cfgi_ste(stream: u64, leaf: u64) -> [u64; 2] {
    [3 | stream << 32, leaf]
}

pub const fn s12_vmall(vmid: u64) -> [u64; 2] {
    [0x28 | vmid << 32, 0]
}

pub const fn s2_ipa(vmid: u64, address: u64, leaf: u64) -> [u64; 2] {
    [0x2a | vmid << 32, address | leaf]
}

/// The range form: NUM, SCALE, TG = 4 KiB, TTL.
pub const fn s2_range(vmid: u64, address: u64, num: u64, scale: u64, level: u64) -> [u64; 2] {
    [0x2a | vmid << 32 | num << 12 | scale << 20, address | 1 << 10 | level << 8]
}

/// Writable, readable, AF, inner shareable, write-back.
pub const PAGE: u64 = 0x7ff;
pub const BLOCK: u64 = 0x7fd;
pub const TABLE: u64 = 3;

pub const BYPASS: [u64; 8] = [9, 0, 0, 0, 0, 0, 0, 0];
pub const ABORT: [u64; 8] = [1, 0, 0, 0, 0, 0, 0, 0];

/// An STE for stage 2: 39 bits of input, from level 1, cacheable and shareable walks, S2R.
pub fn stage2(vmid: u64, root: u64) -> [u64; 8] {
    [0xd, 0, vmid | 25 << 32 | 1 << 38 | 1 << 40 | 1 << 42 | 3 << 44 | 2 << 48 | 1 << 51 | 1 << 58, root, 0, 0, 0, 0]
}

pub struct Bench {
    pub m: Machine,
    pub c: Config,
    pub table: u64,
    pub queue: u64,
    pub events: u64,
    /// log2 of the number of commands and of events.
    pub bits: (u32, u32),
    /// SMMU_STRTAB_BASE_CFG.
    pub format: u32,
    pub prod: u32,
}

/// Number of StreamIDs that [`Bench`] configures, and of those, the bits below the split.
pub const STREAMS: u32 = 9;

impl Bench {
    /// With memory, but no register written.
    pub fn new(c: Config) -> Bench {
        let m = Machine::new(c.clone());
        let bits = (c.command_bits.min(8), c.event_bits.min(4));
        let streams = c.stream_bits.min(STREAMS);
        let (format, bytes) = if c.two_level { (1 << 16 | 6 << 6 | streams, 64) } else { (streams, 64 << streams) };
        let table = m.alloc(bytes, bytes).expect("memory");
        let queue = m.alloc(16 << bits.0, 16 << bits.0).expect("memory");
        let events = m.alloc(32 << bits.1, 32 << bits.1).expect("memory");
        let b = Bench { m, c, table, queue, events, bits, format, prod: 0 };
        b.publish(table, bytes);
        b.publish(events, 32 << bits.1);
        b
    }

    /// With both queues enabled.
    pub fn queues(c: Config) -> Bench {
        let b = Bench::new(c);
        b.program();
        b
    }

    /// Writes the registers and enables the queues.
    pub fn program(&self) {
        self.w32(CR1, 0xd75);
        self.w32(CR2, 2);
        self.w64(STRTAB_BASE, self.table);
        self.w32(STRTAB_BASE_CFG, self.format);
        self.w64(CMDQ_BASE, self.queue | u64::from(self.bits.0));
        self.w32(CMDQ_PROD, 0);
        self.w32(CMDQ_CONS, 0);
        self.w64(EVENTQ_BASE, self.events | u64::from(self.bits.1));
        self.w32(EVENTQ_PROD, 0);
        self.w32(EVENTQ_CONS, 0);
        self.cr0(CMDQEN | EVENTQEN);
    }

    /// Enabled, with caches invalidated and an empty stream table.
    pub fn up(c: Config) -> Bench {
        let mut b = Bench::queues(c);
        b.invalidate_all();
        b.cr0(CMDQEN | EVENTQEN | SMMUEN);
        b.m.assert_clean();
        b
    }

    /// As [`up`](Bench::up), on a machine that need not be in its reset state.
    pub fn up_dirty(c: Config) -> Bench {
        if c.firmware.is_none() {
            return Bench::up(c);
        }
        let b = Bench::new(c);
        b.cr0(0);
        b.program();
        let mut b = b;
        b.invalidate_all();
        b.cr0(CMDQEN | EVENTQEN | SMMUEN);
        b.m.assert_clean();
        b
    }

    pub fn invalidate_all(&mut self) {
        self.commands(&[CFGI_ALL, SYNC, NSNH_ALL]);
        if self.c.hyp {
            self.commands(&[EL2_ALL]);
        }
        self.sync();
    }

    pub fn r32(&self, offset: u64) -> u32 {
        self.m.read32(self.c.base + offset)
    }

    pub fn r64(&self, offset: u64) -> u64 {
        self.m.read64(self.c.base + offset)
    }

    pub fn w32(&self, offset: u64, value: u32) {
        self.m.write32(self.c.base + offset, value);
    }

    pub fn w64(&self, offset: u64, value: u64) {
        self.m.write64(self.c.base + offset, value);
    }

    /// Writes SMMU_CR0 and waits for the acknowledgement.
    pub fn cr0(&self, value: u32) {
        self.w32(CR0, value);
        for _ in 0..100 {
            if self.r32(CR0ACK) == value {
                return;
            }
            self.m.relax();
        }
        panic!("SMMU_CR0 {value:#x} is not acknowledged");
    }

    pub fn publish(&self, at: u64, size: usize) {
        self.m.publish(at, size, !self.c.coherent);
    }

    /// Stores a word and publishes it.
    pub fn put(&self, at: u64, word: u64) {
        self.m.store64(at, word);
        self.publish(at, 8);
    }

    pub fn commands(&mut self, list: &[[u64; 2]]) {
        let size = 1u32 << self.bits.0;
        for words in list {
            let at = self.queue + u64::from(self.prod % size) * 16;
            self.m.store64(at, words[0]);
            self.m.store64(at + 8, words[1]);
            self.publish(at, 16);
            self.prod = (self.prod + 1) % (2 * size);
        }
        self.w32(CMDQ_PROD, self.prod);
    }

    /// Issues a SYNC and waits until all is consumed.
    pub fn sync(&mut self) {
        self.commands(&[SYNC]);
        for _ in 0..1000 {
            if self.r32(CMDQ_CONS) & 0xf_ffff == self.prod {
                return;
            }
            self.m.relax();
        }
        panic!("the queue is not consumed: GERROR {:#x}, {:#?}", self.r32(GERROR), self.m.violations());
    }

    /// Issues commands and a SYNC.
    pub fn run(&mut self, list: &[[u64; 2]]) {
        self.commands(list);
        self.sync();
    }

    /// The address of a stream's STE. Makes the second level if there is none.
    pub fn ste_at(&mut self, stream: u64) -> u64 {
        if !self.c.two_level {
            return self.table + stream * 64;
        }
        let descriptor = self.table + (stream >> 6) * 8;
        let mut l2 = self.m.load64(descriptor) & !0x3f;
        if l2 == 0 {
            l2 = self.m.alloc(0x1000, 0x1000).expect("memory");
            self.publish(l2, 0x1000);
            self.put(descriptor, l2 | 7);
            self.run(&[cfgi_ste(stream, 0)]);
        }
        l2 + (stream & 0x3f) * 64
    }

    /// Fills in an invalid STE and makes it valid, as in 3.21.3.1.
    pub fn attach(&mut self, stream: u64, ste: [u64; 8]) {
        let at = self.ste_at(stream);
        for n in 1..8 {
            self.m.store64(at + n * 8, ste[n as usize]);
        }
        self.publish(at, 64);
        self.run(&[cfgi_ste(stream, 1)]);
        self.put(at, ste[0]);
        self.run(&[cfgi_ste(stream, 1)]);
    }

    /// Makes an STE invalid.
    pub fn detach(&mut self, stream: u64) {
        let at = self.ste_at(stream);
        self.put(at, 0);
        self.run(&[cfgi_ste(stream, 1)]);
    }

    /// A table, all zero and published.
    pub fn table(&self) -> u64 {
        let at = self.m.alloc(0x1000, 0x1000).expect("memory");
        self.publish(at, 0x1000);
        at
    }

    /// Attaches a stream to tables of VMID 7 in which `ipa` is mapped to `output` by a page. Returns the tables of levels
    /// 1, 2 and 3.
    pub fn mapped(&mut self, stream: u64, ipa: u64, output: u64) -> [u64; 3] {
        let tables = [self.table(), self.table(), self.table()];
        self.put(tables[2] + (ipa >> 12 & 0x1ff) * 8, output | PAGE);
        self.put(tables[1] + (ipa >> 21 & 0x1ff) * 8, tables[2] | TABLE);
        self.put(tables[0] + (ipa >> 30 & 0x1ff) * 8, tables[1] | TABLE);
        self.attach(stream, stage2(7, tables[0]));
        tables
    }

    /// Writes as a device, and returns where it went.
    pub fn goes_to(&self, stream: u32, address: u64) -> Result<u64, Why> {
        let _ = self.m.take_landings();
        self.m.dma_write(stream, address, &[1]).map_err(|Aborted { why, .. }| why)?;
        Ok(self.m.take_landings()[0].physical)
    }

    /// Requires violations, all of this section, and at least one.
    #[track_caller]
    pub fn expect(&self, section: &str) {
        let found = self.m.take_violations();
        assert!(!found.is_empty(), "no violation of {section}");
        assert!(found.iter().all(|v| v.section == section), "{section} expected: {found:#?}");
    }
}
