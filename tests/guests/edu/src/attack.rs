//! Random DMAs.
//!
//! * From watched memory to the buffer and back to another place of it: the content must be right.
//! * From the buffer to memory of others. The buffer holds one word again and again, which is nowhere else in the machine than in
//!   one page of this guest: the harness searches all memory for it.
//! * From memory of others to the buffer, and on to watched memory: the buffer must be as it was, or hold zeroes or ones.
//! * To GITS_TRANSLATER: the event is the guest's own, or it is dropped.
//!
//! dom0 has almost all memory. What it stores there is allowed, so the harness gets its ranges as `GUEST OWNS base size`.

use crate::device::{BUFFER_BYTES, Edu, TRANSLATER, sleep_for, sleep_until, taken, unexpected};
use crate::memory::{Random, Watched, byte, owned, ram, set_word, witness, word};
use guest_rt::its::Table;
use guest_rt::{cpu, fdt, mrs, off, say, smccc};

const PAGE: usize = 4096;

static MARKS: Table<PAGE> = Table::new();
static MESSAGE: Table<PAGE> = Table::new();

/// With this the word is printed, and kept in registers, so that it is nowhere but in [`MARKS`].
const VEIL: u64 = 0x5a5a_a5a5_3c3c_c3c3;

/// Ranges that belong to others, or to nobody, from a domU's point of view, as base and size. Some of them exist in the machine
/// only: RAM of EL2, of dom0 and of other domUs.
const OTHERS: [(u64, u64); 10] = [
    (0x4000_0000, 0x3000_0000),    // RAM of the machine
    (0x4000_0000, 0x8000_0000),    // and more of it
    (0x0000_0000, 0x0800_0000),    // flash
    (0x0800_0000, 0x0009_0000),    // distributor, ITS
    (0x080a_0000, 0x00f6_0000),    // redistributors
    (0x0900_0000, 0x0010_0000),    // UART, SMMU
    (0x0a00_0000, 0x3600_0000),    // virtio, PCI
    (0x40_0000_0000, 0x2000_0000), // PCI's configuration space
    (0, 1 << 40),
    (0, u64::MAX - 0x2000),
];

/// EL2 cuts off a function whose transactions fail more than 100 times in a second. QEMU passes a DMA that fails on in pieces of
/// four bytes at most, each of which fails. In a period of so many milliseconds, so many may fail here: a second of EL2 can have
/// a part of two periods.
const PERIOD: u64 = 1_100;
const FAILURES: u64 = 50;

/// The most bytes of a DMA to memory of others, whose failures [`FAILURES`] must cover.
const OUTSIDE_BYTES: u64 = 160;

/// Bytes whose failures are more than fit into EL2's queue of events of an SMMU.
const FLOOD_BYTES: u64 = BUFFER_BYTES;

/// An address without anything.
const BEYOND: u64 = 0x30_0000_0000;

const SYSTEM_RESET: u64 = 0x8400_0009;

/// What was done.
#[derive(Default)]
struct Counts {
    dmas: u64,
    inside: u64,
    stores: u64,
    loads: u64,
    own: u64,
    messages: u64,
    dropped: u64,
}

/// The attack.
pub struct Attack {
    edu: Edu,
    random: Random,
    watched: Watched,
    /// Whether this is dom0.
    dom0: bool,
    counts: Counts,
    /// The start of the period in which `failures` transactions were made that fail.
    since: u64,
    failures: u64,
}

impl Attack {
    /// Prepares memory and the buffer.
    pub fn new(edu: Edu, mut random: Random) -> Attack {
        let veiled = random.next() | 1;
        mark(veiled);
        say!("GUEST MARK {veiled:#x} veil={VEIL:#x}");
        ram().for_each(|(base, size)| say!("GUEST OWNS {base:#x} {size:#x}"));
        let watched = witness(&mut random);
        let dom0 = fdt::has("dom0");
        Attack { edu, random, watched, dom0, counts: Counts::default(), since: 0, failures: 0 }
    }

    fn load(&mut self, from: u64, offset: u64, bytes: u64) {
        self.counts.dmas += 1;
        self.edu.load(from, offset, bytes);
    }

    fn store(&mut self, offset: u64, to: u64, bytes: u64) {
        self.counts.dmas += 1;
        self.edu.store(offset, to, bytes);
    }

    /// A number of bytes from `least` to `most`: few of them as a rule.
    fn length(&mut self, least: u64, most: u64) -> u64 {
        let most = if self.random.below(8) == 0 { most } else { least + 16 };
        least + self.random.below(most - least + 1)
    }

    /// Waits until this many bytes may fail.
    fn pace(&mut self, bytes: u64) {
        let period = mrs!("cntfrq_el0") / 1000 * PERIOD;
        // At both ends of an unaligned range there are smaller pieces.
        let failures = bytes / 4 + 6;
        if self.failures + failures > FAILURES {
            while cpu::now() < self.since + period {
                sleep_for(PERIOD);
            }
        }
        if cpu::now() >= self.since + period {
            (self.since, self.failures) = (cpu::now(), 0);
        }
        self.failures += failures;
    }

    /// `bytes` bytes somewhere in the watched memory.
    fn watched(&mut self, bytes: u64) -> u64 {
        self.watched.address() + self.random.below(Watched::BYTES - bytes + 1)
    }

    /// A place where `bytes` bytes are not the guest's. For dom0, they are not those of its image.
    fn elsewhere(&mut self, bytes: u64) -> u64 {
        // Half of dom0's go to RAM that is not dom0's.
        let of_el2 = self.dom0 && self.random.below(2) == 0;
        loop {
            let which = if of_el2 { 0 } else { self.random.below(OTHERS.len() as u64) };
            let (base, size) = OTHERS[which as usize];
            let at = base + self.random.below(size);
            let own = owned(at, bytes);
            if of_el2 && own != 0 {
                continue;
            }
            // What lies partly in the doorbell's page could be a message.
            let rings = at < 0x080a_0000 && at + bytes > 0x0809_0000;
            // Before its image, dom0 has no device tree and no stack either.
            if !rings && (own == 0 || self.dom0 && own == bytes && !touches_image(at, bytes)) {
                return at;
            }
        }
    }

    fn inside(&mut self) {
        let bytes = self.length(1, BUFFER_BYTES);
        let offset = self.random.below(BUFFER_BYTES - bytes + 1);
        let from = self.watched(bytes);
        self.load(from, offset, bytes);
        let part = 1 + self.random.below(bytes);
        let start = self.random.below(bytes - part + 1);
        let to = self.watched(part);
        self.copy_expected(from + start, to, part);
        self.store(offset + start, to, part);
        let from = to.saturating_sub(64).max(self.watched.address());
        let end = (to + part + 64).min(self.watched.address() + Watched::BYTES);
        self.watched.check_range(from, end - from, "after a DMA to it");
        self.counts.inside += 1;
    }

    /// Says that a copy of `bytes` expected bytes is expected at `to`. The buffer holds the bytes of before, even if the ranges
    /// overlap.
    fn copy_expected(&mut self, from: u64, to: u64, bytes: u64) {
        let copy = |n: u64| self.watched.expect(to + n, self.watched.expected(from + n));
        if from < to { (0..bytes).rev().for_each(copy) } else { (0..bytes).for_each(copy) }
    }

    /// Stores marks to what is not the guest's.
    fn out(&mut self) {
        self.load(MARKS.address(), 0, BUFFER_BYTES);
        for _ in 0..3 {
            let bytes = self.length(32, OUTSIDE_BYTES);
            let at = self.elsewhere(bytes);
            let offset = self.random.below(BUFFER_BYTES - bytes + 1);
            self.pace(bytes);
            self.store(offset, at, bytes);
            if owned(at, 1) != 0 { self.counts.own += 1 } else { self.counts.stores += 1 }
        }
    }

    /// Loads what is not the guest's.
    fn fetch(&mut self) {
        let known = self.watched(BUFFER_BYTES);
        self.load(known, 0, BUFFER_BYTES);
        let bytes = self.length(1, OUTSIDE_BYTES);
        let from = self.elsewhere(bytes);
        let offset = self.random.below(BUFFER_BYTES - bytes + 1);
        self.pace(bytes);
        self.load(from, offset, bytes);
        let to = self.watched(bytes);
        self.store(offset, to, bytes);
        let own = owned(from, 1) != 0;
        // The two ranges may overlap, so what the buffer held is looked up before it is overwritten.
        let (mut old, mut wrong) = ([0u8; BUFFER_BYTES as usize], None);
        for n in 0..bytes {
            old[n as usize] = self.watched.expected(known + offset + n);
        }
        for n in 0..bytes {
            let is = byte(to + n);
            if !own && is != old[n as usize] && is != 0 && is != 0xff {
                wrong = wrong.or(Some((from + n, is)));
            }
            self.watched.expect(to + n, is);
        }
        if let Some((at, is)) = wrong {
            say!("GUEST FAIL edu: a DMA has read {is:#04x} at {at:#x}, which is not this domain's");
            off()
        }
        if own { self.counts.own += 1 } else { self.counts.loads += 1 }
    }

    /// Stores an EventID to GITS_TRANSLATER. The device's own event is taken, all others are dropped. A function whose DMAs have
    /// another DeviceID than its MSIs (see [`Edu`]) has no event.
    fn message(&mut self) {
        let event = match self.random.below(4) {
            0 => 0xffff_ffff & self.random.next(),
            1 => self.random.below(64),
            _ => 0,
        };
        set_word(MESSAGE.address(), event);
        self.load(MESSAGE.address(), 0, 4);
        let before = taken();
        self.store(0, TRANSLATER, 4);
        // The interrupt at the end of the DMA was taken, too, if it has one.
        let own = u64::from(event == 0 && self.edu.polls);
        let expected = before + own + u64::from(!self.edu.polls);
        let _ = sleep_until(|| taken() >= expected);
        sleep_for(1);
        if taken() != expected {
            say!(
                "GUEST FAIL edu: after event {event:#x}, {} interrupts came, not {}",
                taken() - before,
                expected - before
            );
            off()
        }
        if own != 0 { self.counts.messages += 1 } else { self.counts.dropped += 1 }
    }

    /// Makes at least so many DMAs.
    pub fn run(&mut self, dmas: u64) {
        while self.counts.dmas < dmas {
            match self.random.below(10) {
                0..3 => self.inside(),
                3..7 => self.out(),
                7..9 => self.fetch(),
                _ => self.message(),
            }
        }
        self.check();
    }

    /// One DMA to its own memory, to see that the device works.
    pub fn works(&mut self) {
        self.inside();
    }

    /// Makes so many transactions fail at once that the device is cut off, and resets the domain. In its next life, the device
    /// works again.
    pub fn flood(&mut self) -> ! {
        self.works();
        say!("GUEST WORKS edu");
        // The interrupt at the end of this one may come before it is cut off.
        self.edu.is_silent(BEYOND, FLOOD_BYTES);
        if !self.edu.is_silent(self.watched.address(), BUFFER_BYTES) {
            say!("GUEST FAIL edu: not cut off");
            off()
        }
        self.watched.check();
        say!("GUEST CUT edu");
        smccc::hvc(SYSTEM_RESET, 0, 0, 0);
        say!("GUEST FAIL edu: not reset");
        off()
    }

    fn check(&self) {
        self.watched.check();
        let first = word(MARKS.address());
        if (0..PAGE as u64).step_by(8).any(|offset| word(MARKS.address() + offset) != first) {
            say!("GUEST FAIL edu: the page of marks has changed");
            off()
        }
        if unexpected() != 0 {
            say!("GUEST FAIL edu: {} interrupts that belong to nothing", unexpected());
            off()
        }
    }

    /// Prints what was done.
    pub fn done(&self, writes: u64) {
        self.check();
        let Counts { dmas, inside, stores, loads, own, messages, dropped } = self.counts;
        say!(
            "GUEST DONE edu dmas={dmas} inside={inside} stores={stores} loads={loads} own={own} messages={messages} \
             dropped={dropped} writes={writes}"
        );
    }
}

/// Whether these bytes are in the guest's image or device tree.
fn touches_image(at: u64, bytes: u64) -> bool {
    unsafe extern "C" {
        static __image_start: u8;
        static __image_end: u8;
    }
    let image = (&raw const __image_start as u64, &raw const __image_end as u64);
    let tree = (fdt::address(), fdt::address() + fdt::bytes().len() as u64);
    [image, tree].iter().any(|(start, end)| at < *end && at + bytes > *start)
}

/// Fills the page of marks.
#[inline(never)]
fn mark(veiled: u64) {
    for offset in (0..PAGE as u64).step_by(8) {
        set_word(MARKS.address() + offset, core::hint::black_box(veiled) ^ VEIL);
    }
}
