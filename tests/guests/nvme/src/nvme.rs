//! The little of an NVMe driver that keeps I/O in flight (NVM Express Base Specification 2.0): the admin queues and one pair of
//! I/O queues, with interrupt vector 0 for both.

use core::arch::asm;
use guest_rt::its::Table;
use guest_rt::mmio::{read32, read64, write32, write64};
use guest_rt::{cpu, off, say};

const CAP: u64 = 0x00;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;

/// EN, entries of 64 and 16 bytes.
const ENABLE: u32 = 1 | 6 << 16 | 4 << 20;
const READY: u32 = 1 << 0;
const FATAL: u32 = 1 << 1;

const CREATE_SQ: u32 = 0x01;
const CREATE_CQ: u32 = 0x05;
const WRITE: u32 = 0x01;
const READ: u32 = 0x02;

/// Entries of each queue.
const ENTRIES: u32 = 32;
/// I/Os in flight.
const IN_FLIGHT: u32 = 16;
const PAGE: u64 = 4096;
/// Blocks of 512 bytes in a page.
const BLOCKS: u64 = PAGE / 512;
/// Pages of the disk that are read and written.
const DISK_PAGES: u64 = 1024;

static QUEUES: Table<0x4000> = Table::new();
static DATA: Table<{ IN_FLIGHT as usize * PAGE as usize }> = Table::new();

/// Checks that queues and data are zero.
pub fn expect_zeroes(when: &str) {
    let ranges = [(QUEUES.address(), 0x4000), (DATA.address(), u64::from(IN_FLIGHT) * PAGE)];
    for at in ranges.iter().flat_map(|(base, bytes)| (*base..base + bytes).step_by(8)) {
        // SAFETY: inside a table.
        let value = unsafe { (at as *const u64).read_volatile() };
        if value != 0 {
            say!("GUEST FAIL nvme: {when}: {value:#x} at {at:#x}");
            off()
        }
    }
}

/// A submission queue and its completion queue.
struct Queue {
    id: u64,
    submissions: u64,
    completions: u64,
    tail: u32,
    head: u32,
    phase: u16,
}

impl Queue {
    fn new(id: u64) -> Queue {
        let submissions = QUEUES.address() + 2 * id * PAGE;
        Queue { id, submissions, completions: submissions + PAGE, tail: 0, head: 0, phase: 1 }
    }

    fn submit(&mut self, regs: &Regs, command: [u32; 16]) {
        for (n, word) in (0..).zip(command) {
            let at = (self.submissions + 64 * u64::from(self.tail) + 4 * n) as *mut u32;
            // SAFETY: inside the queue, in an entry that the controller does not own.
            unsafe { at.write_volatile(word) };
        }
        self.tail = (self.tail + 1) % ENTRIES;
        // SAFETY: a barrier: the entry is in memory when the controller reads it.
        unsafe { asm!("dsb sy", options(nostack)) };
        write32(regs.doorbell(2 * self.id), self.tail);
    }

    /// The status of the next completion.
    fn complete(&mut self, regs: &Regs) -> Option<u16> {
        let at = (self.completions + 16 * u64::from(self.head) + 14) as *const u16;
        // SAFETY: inside the queue, which the controller writes.
        let status = unsafe { at.read_volatile() };
        if status & 1 != self.phase {
            return None;
        }
        self.head = (self.head + 1) % ENTRIES;
        if self.head == 0 {
            self.phase ^= 1;
        }
        write32(regs.doorbell(2 * self.id + 1), self.head);
        Some(status >> 1)
    }
}

struct Regs {
    base: u64,
    stride: u64,
}

impl Regs {
    fn doorbell(&self, number: u64) -> u64 {
        self.base + DOORBELLS + number * self.stride
    }
}

/// A controller at work.
pub struct Nvme {
    regs: Regs,
    io: Queue,
    started: u64,
    completed: u64,
    failed: u64,
}

impl Nvme {
    /// Makes the queues of a controller that has been reset.
    pub fn start(base: u64) -> Option<Nvme> {
        let regs = Regs { base, stride: 4 << (read64(base + CAP) >> 32 & 0xf) };
        if read32(base + CC) != 0 || read32(base + CSTS) != 0 {
            say!("GUEST FAIL nvme: not reset: CC {:#x}, CSTS {:#x}", read32(base + CC), read32(base + CSTS));
            off()
        }
        let mut admin = Queue::new(0);
        let io = Queue::new(1);
        write32(base + AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        write64(base + ASQ, admin.submissions);
        write64(base + ACQ, admin.completions);
        write32(base + CC, ENABLE);
        if !cpu::wait(cpu::LONG, || read32(base + CSTS) & (READY | FATAL) != 0) || read32(base + CSTS) & FATAL != 0 {
            return None;
        }
        let size = (ENTRIES - 1) << 16 | io.id as u32;
        let contiguous = 1;
        let interrupts = 1 << 1;
        let queues = [
            (CREATE_CQ, io.completions, interrupts | contiguous),
            (CREATE_SQ, io.submissions, (io.id as u32) << 16 | contiguous),
        ];
        for (command, at, flags) in queues {
            let mut entry = [0; 16];
            entry[0] = command;
            entry[6] = at as u32;
            entry[7] = (at >> 32) as u32;
            entry[10] = size;
            entry[11] = flags;
            admin.submit(&regs, entry);
            let mut status = None;
            let answered = cpu::wait(cpu::LONG, || {
                status = admin.complete(&regs);
                status.is_some()
            });
            if !answered || status != Some(0) {
                return None;
            }
        }
        Some(Nvme { regs, io, started: 0, completed: 0, failed: 0 })
    }

    /// Starts reads and writes until enough are in flight.
    pub fn fill(&mut self) {
        while self.started - self.completed < u64::from(IN_FLIGHT) {
            let n = self.started;
            let at = DATA.address() + n % u64::from(IN_FLIGHT) * PAGE;
            let block = n.wrapping_mul(0x9e37_79b9) % DISK_PAGES * BLOCKS;
            let mut entry = [0; 16];
            entry[0] = (if n.is_multiple_of(3) { WRITE } else { READ }) | (n as u32 & 0xffff) << 16;
            entry[1] = 1;
            entry[6] = at as u32;
            entry[7] = (at >> 32) as u32;
            entry[10] = block as u32;
            entry[12] = BLOCKS as u32 - 1;
            self.io.submit(&self.regs, entry);
            self.started += 1;
        }
    }

    /// Takes a completion; returns whether there was one.
    pub fn poll(&mut self) -> bool {
        let Some(status) = self.io.complete(&self.regs) else { return false };
        self.completed += 1;
        self.failed += u64::from(status & 0x7ff != 0);
        true
    }

    /// How many I/Os are complete.
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// How many of them failed.
    pub fn failed(&self) -> u64 {
        self.failed
    }
}
