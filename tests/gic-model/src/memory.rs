//! RAM as CPUs and devices see it, its allocations and its uses by the GIC.
//!
//! CPUs see a CPU's store at once. A device that snoops (shareable attributes) sees it after a `publish`. A device that
//! does not snoop (non-shareable attributes, or a machine without shareability) sees it only after a `publish` with
//! `noncoherent`. Until then the device reads the old value: each byte has its value at the point of coherency beside
//! the CPUs' value. Fresh allocations are zero for the CPU and garbage for a device, since zeroing consists of stores.
//!
//! In the other direction, a CPU sees a device's write after an `acquire` of the right kind. An earlier load is a
//! violation.
//!
//! The file also has the list of allocations and of *uses*: ranges that the GIC was told to use and has not been told
//! to stop using. To free such a range, or to store to one that is private to the GIC, is a violation.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

const PAGE: u64 = 4096;
/// Value that a device reads from memory that has never been published.
const GARBAGE: u8 = 0xdb;

/// Flag of a byte that a CPU has stored to, without a barrier since.
const UNORDERED: u8 = 1;
/// Flag of a byte that a CPU has stored to and that has not been cleaned to the point of coherency since.
const UNCLEAN: u8 = 2;
/// Flag of a byte that a snooping device has written, without an acquire since.
const FOREIGN: u8 = 4;
/// Flag of a byte that a device that does not snoop has written and that has not been invalidated since.
const FOREIGN_NC: u8 = 8;

/// How a device's accesses relate to the CPUs' caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Snoop {
    /// The accesses are shareable and snoop the caches.
    Yes,
    /// The accesses are non-shareable and go to the point of coherency.
    No,
}

enum Page {
    /// A page that was never written since its allocation, with the flags of all its bytes. It is zero for the CPU.
    Blank(u8),
    /// Any other page.
    Full(Box<Bytes>),
}

struct Bytes {
    cpu: [u8; PAGE as usize],
    poc: [u8; PAGE as usize],
    flags: [u8; PAGE as usize],
}

impl Page {
    fn bytes(&mut self) -> &mut Bytes {
        if let Page::Blank(flags) = *self {
            let poc = if flags & UNCLEAN != 0 { GARBAGE } else { 0 };
            *self = Page::Full(Box::new(Bytes {
                cpu: [0; PAGE as usize],
                poc: [poc; PAGE as usize],
                flags: [flags; PAGE as usize],
            }));
        }
        match self {
            Page::Full(b) => b,
            Page::Blank(_) => unreachable!("made full above"),
        }
    }
}

/// Use of a range of memory by the GIC. The order of the variants has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Use {
    /// The command queue of an ITS.
    Queue(usize),
    /// A flat table of an ITS (GITS_BASER number).
    Table(usize, usize),
    /// The first level of an indirect table.
    Level1(usize, usize),
    /// A second-level page of an indirect table.
    Level2(usize, usize),
    /// An interrupt translation table (ITS, DeviceID).
    Itt(usize, u32),
    /// A virtual pending table.
    Vpt,
    /// A virtual configuration table.
    VConfig,
    /// The LPI configuration table.
    Config,
    /// An LPI pending table (CPU).
    Pending(usize),
    /// A vPE table of the redistributors (GICv4.1), flat or first level.
    VpeTable,
    /// A second-level page of a vPE table of the redistributors (GICv4.1).
    VpeLevel2,
}

impl Use {
    /// Whether software must not store to the range while it is in use.
    fn private(self) -> bool {
        matches!(self, Use::Table(..) | Use::Level2(..) | Use::Itt(..) | Use::Vpt | Use::Pending(_) | Use::VpeLevel2)
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::Queue(i) => write!(f, "the command queue of ITS{i}"),
            Use::Table(i, n) => write!(f, "the table of GITS_BASER{n} of ITS{i}"),
            Use::Level1(i, n) => write!(f, "the first-level table of GITS_BASER{n} of ITS{i}"),
            Use::Level2(i, n) => write!(f, "a second-level page of GITS_BASER{n} of ITS{i}"),
            Use::Itt(i, d) => write!(f, "the ITT of device {d:#x} on ITS{i}"),
            Use::Vpt => write!(f, "a virtual pending table"),
            Use::VConfig => write!(f, "a virtual configuration table"),
            Use::Config => write!(f, "the LPI configuration table"),
            Use::Pending(c) => write!(f, "the LPI pending table of CPU{c}"),
            Use::VpeTable => write!(f, "a vPE table of the redistributors"),
            Use::VpeLevel2 => write!(f, "a second-level page of a vPE table of the redistributors"),
        }
    }
}

/// An allocation that has not been freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Address of the memory.
    pub address: u64,
    /// Requested size in bytes.
    pub size: u64,
    /// Requested alignment in bytes.
    pub align: u64,
}

/// Why memory is not as a device needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The memory is not RAM that software has allocated.
    NotAllocated,
    /// A CPU's store has not been published to this device.
    Unpublished,
    /// The memory should be zero but is not.
    NotZero,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trouble::NotAllocated => "is not allocated memory throughout",
            Trouble::Unpublished => "has stores that are not published to this device",
            Trouble::NotZero => "is not zero",
        })
    }
}

pub(crate) struct Memory {
    base: u64,
    size: u64,
    pages: HashMap<u64, Page>,
    allocations: BTreeMap<u64, Allocation>,
    uses: BTreeMap<(u64, Use), (u64, u32)>,
    /// Number of allocations that may still succeed. `None`: as many as fit.
    pub(crate) allowance: Option<u64>,
}

const fn round_up(n: u64, to: u64) -> u64 {
    n.div_ceil(to) * to
}

impl Memory {
    pub(crate) fn new(base: u64, size: u64) -> Memory {
        Memory {
            base,
            size,
            pages: HashMap::new(),
            allocations: BTreeMap::new(),
            uses: BTreeMap::new(),
            allowance: None,
        }
    }

    pub(crate) fn is_ram(&self, at: u64) -> bool {
        at >= self.base && at - self.base < self.size
    }

    // ---- allocations

    pub(crate) fn alloc(&mut self, size: u64, align: u64) -> Option<u64> {
        if size == 0 || !align.is_power_of_two() {
            return None;
        }
        if let Some(left) = &mut self.allowance {
            *left = left.checked_sub(1)?;
        }
        let (len, step) = (round_up(size, PAGE), align.max(PAGE));
        let mut at = round_up(self.base, step);
        for a in self.allocations.values() {
            if at + len <= a.address {
                break;
            }
            at = at.max(round_up(a.address + round_up(a.size, PAGE), step));
        }
        if at + len > self.base + self.size {
            return None;
        }
        self.take(at, size, align);
        Some(at)
    }

    /// Allocates a range at a given address. Returns `false` if it is not free RAM.
    pub(crate) fn claim(&mut self, at: u64, size: u64) -> bool {
        let len = round_up(size, PAGE);
        let free = at.is_multiple_of(PAGE)
            && self.is_ram(at)
            && at + len <= self.base + self.size
            && self.allocations.range(..at + len).next_back().is_none_or(|(s, a)| s + round_up(a.size, PAGE) <= at);
        if free {
            self.take(at, size, PAGE);
        }
        free
    }

    fn take(&mut self, address: u64, size: u64, align: u64) {
        self.allocations.insert(address, Allocation { address, size, align });
        let first = address / PAGE;
        for page in first..first + size.div_ceil(PAGE) {
            self.pages.insert(page, Page::Blank(UNORDERED | UNCLEAN));
        }
    }

    pub(crate) fn free(&mut self, at: u64, size: u64, align: u64) -> Result<(), String> {
        let Some(a) = self.allocations.get(&at).copied() else {
            return Err(format!("free of {at:#x}, which is not allocated or was freed before"));
        };
        if (a.size, a.align) != (size, align) {
            return Err(format!(
                "free of {at:#x} with size {size:#x} and alignment {align:#x}, allocated with {:#x} and {:#x}",
                a.size, a.align
            ));
        }
        self.allocations.remove(&at);
        let first = at / PAGE;
        for page in first..first + size.div_ceil(PAGE) {
            self.pages.remove(&page);
        }
        match self.used_by(at, size) {
            Some(u) => Err(format!("free of {at:#x}, which is in use as {u}")),
            None => Ok(()),
        }
    }

    pub(crate) fn allocations(&self) -> Vec<Allocation> {
        self.allocations.values().copied().collect()
    }

    pub(crate) fn is_allocated(&self, at: u64, len: u64) -> bool {
        len == 0
            || at
                .checked_add(len)
                .is_some_and(|end| (at / PAGE..end.div_ceil(PAGE)).all(|p| self.pages.contains_key(&p)))
    }

    // ---- uses

    /// Adds a use, and counts it if it exists already.
    pub(crate) fn attach(&mut self, at: u64, len: u64, kind: Use) {
        let entry = self.uses.entry((at, kind)).or_insert((len, 0));
        entry.0 = entry.0.max(len);
        entry.1 += 1;
    }

    /// Adds a use unless it exists already.
    pub(crate) fn attach_once(&mut self, at: u64, len: u64, kind: Use) {
        self.uses.entry((at, kind)).or_insert((len, 1));
    }

    /// Removes a use, or reduces its count.
    pub(crate) fn detach(&mut self, at: u64, kind: Use) {
        if let Some(entry) = self.uses.get_mut(&(at, kind)) {
            entry.1 -= 1;
            if entry.1 == 0 {
                self.uses.remove(&(at, kind));
            }
        }
    }

    pub(crate) fn detach_all(&mut self, matching: impl Fn(Use) -> bool) {
        self.uses.retain(|(_, kind), _| !matching(*kind));
    }

    /// Returns a use that overlaps a range.
    pub(crate) fn used_by(&self, at: u64, len: u64) -> Option<Use> {
        self.uses.iter().find(|((s, _), (l, _))| *s < at + len && at < s + l).map(|((_, k), _)| *k)
    }

    /// Returns the first private use that overlaps a range, other than `own` at its start.
    pub(crate) fn clash(&self, at: u64, len: u64, own: Use) -> Option<Use> {
        let hit = |s: &u64, l: &u64, k: &Use| *s < at + len && at < s + l && !(*k == own && *s == at);
        self.uses.iter().find(|((s, k), (l, _))| k.private() && hit(s, l, k)).map(|((_, k), _)| *k)
    }

    // ---- accesses of CPUs

    pub(crate) fn load(&mut self, at: u64, out: &mut [u8]) -> Result<(), String> {
        let mut trouble = Ok(());
        for (i, byte) in out.iter_mut().enumerate() {
            let a = at + i as u64;
            match self.pages.get(&(a / PAGE)) {
                None => return Err(format!("load from {a:#x}, which is not allocated")),
                Some(Page::Blank(_)) => *byte = 0,
                Some(Page::Full(b)) => {
                    let o = (a % PAGE) as usize;
                    if b.flags[o] & (FOREIGN | FOREIGN_NC) != 0 && trouble.is_ok() {
                        trouble = Err(format!("load from {a:#x}, which the GIC has written, without an acquire"));
                    }
                    *byte = b.cpu[o];
                }
            }
        }
        trouble
    }

    pub(crate) fn store(&mut self, at: u64, data: &[u8]) -> Result<(), String> {
        for (i, byte) in data.iter().enumerate() {
            let a = at + i as u64;
            let Some(page) = self.pages.get_mut(&(a / PAGE)) else {
                return Err(format!("store to {a:#x}, which is not allocated"));
            };
            let (b, o) = (page.bytes(), (a % PAGE) as usize);
            b.cpu[o] = *byte;
            b.flags[o] = (b.flags[o] | UNORDERED | UNCLEAN) & !(FOREIGN | FOREIGN_NC);
        }
        let end = at + data.len() as u64;
        let owner = self
            .uses
            .range(..(end, Use::Queue(0)))
            .rev()
            .take(4)
            .find(|((s, k), (l, _))| k.private() && *s < end && at < s + l)
            .map(|((_, k), _)| *k);
        match owner {
            Some(k) => Err(format!("store to {at:#x}, which is in use as {k}")),
            None => Ok(()),
        }
    }

    pub(crate) fn publish(&mut self, at: u64, len: u64, noncoherent: bool) {
        self.sweep(
            at,
            len,
            |b, o| {
                b.flags[o] &= !UNORDERED;
                if noncoherent && b.flags[o] & UNCLEAN != 0 {
                    b.poc[o] = b.cpu[o];
                    b.flags[o] &= !UNCLEAN;
                }
            },
            if noncoherent { UNORDERED | UNCLEAN } else { UNORDERED },
        );
    }

    pub(crate) fn acquire(&mut self, at: u64, len: u64, noncoherent: bool) {
        self.sweep(
            at,
            len,
            |b, o| {
                b.flags[o] &= !FOREIGN;
                if noncoherent && b.flags[o] & FOREIGN_NC != 0 {
                    b.cpu[o] = b.poc[o];
                    b.flags[o] &= !FOREIGN_NC;
                }
            },
            0,
        );
    }

    /// Applies `to_byte` to each byte. From whole pages that were never written it removes the flags in `blank`
    /// instead.
    fn sweep(&mut self, at: u64, len: u64, to_byte: impl Fn(&mut Bytes, usize), blank: u8) {
        let end = at + len;
        let mut a = at;
        while a < end {
            let stop = end.min((a / PAGE + 1) * PAGE);
            if let Some(page) = self.pages.get_mut(&(a / PAGE)) {
                match page {
                    Page::Blank(flags) if stop - a == PAGE => *flags &= !blank,
                    Page::Blank(flags) if *flags & blank == 0 => {}
                    _ => {
                        let b = page.bytes();
                        (a..stop).for_each(|x| to_byte(b, (x % PAGE) as usize));
                    }
                }
            }
            a = stop;
        }
    }

    // ---- accesses of the GIC

    /// Returns the value of a byte for a device, and whether it is stale.
    fn seen(page: &Page, o: usize, snoop: Snoop) -> (u8, bool) {
        match (page, snoop) {
            (Page::Blank(f), Snoop::Yes) if f & UNORDERED != 0 => (GARBAGE, true),
            (Page::Blank(f), Snoop::No) if f & UNCLEAN != 0 => (GARBAGE, true),
            (Page::Blank(_), _) => (0, false),
            (Page::Full(b), Snoop::Yes) if b.flags[o] & UNORDERED != 0 => (b.poc[o], true),
            (Page::Full(b), Snoop::Yes) if b.flags[o] & FOREIGN_NC != 0 => (b.poc[o], false),
            (Page::Full(b), Snoop::Yes) => (b.cpu[o], false),
            (Page::Full(b), Snoop::No) => (b.poc[o], b.flags[o] & UNCLEAN != 0),
        }
    }

    /// Reads memory as a device does. `out` is what the device reads even if there is trouble.
    pub(crate) fn device_read(&self, at: u64, out: &mut [u8], snoop: Snoop) -> Option<Trouble> {
        let mut trouble = None;
        let mut rest = out;
        let mut a = at;
        while !rest.is_empty() {
            let o = (a % PAGE) as usize;
            let (now, later) = rest.split_at_mut(rest.len().min(PAGE as usize - o));
            match self.pages.get(&(a / PAGE)) {
                None => {
                    now.fill(0);
                    trouble = Some(Trouble::NotAllocated);
                }
                Some(page) => {
                    for (i, byte) in now.iter_mut().enumerate() {
                        let (value, stale) = Memory::seen(page, o + i, snoop);
                        *byte = value;
                        if stale {
                            trouble = trouble.or(Some(Trouble::Unpublished));
                        }
                    }
                }
            }
            a += now.len() as u64;
            rest = later;
        }
        trouble
    }

    pub(crate) fn device_read64(&self, at: u64, snoop: Snoop) -> (u64, Option<Trouble>) {
        let mut bytes = [0; 8];
        let trouble = self.device_read(at, &mut bytes, snoop);
        (u64::from_le_bytes(bytes), trouble)
    }

    pub(crate) fn device_read8(&self, at: u64, snoop: Snoop) -> (u8, Option<Trouble>) {
        let mut bytes = [0; 1];
        let trouble = self.device_read(at, &mut bytes, snoop);
        (bytes[0], trouble)
    }

    /// Writes memory as a device does.
    pub(crate) fn device_write(&mut self, at: u64, data: &[u8], snoop: Snoop) -> Option<Trouble> {
        let mut rest = data;
        let mut a = at;
        while !rest.is_empty() {
            let Some(page) = self.pages.get_mut(&(a / PAGE)) else { return Some(Trouble::NotAllocated) };
            let (b, o) = (page.bytes(), (a % PAGE) as usize);
            let (now, later) = rest.split_at(rest.len().min(PAGE as usize - o));
            let span = o..o + now.len();
            b.poc[span.clone()].copy_from_slice(now);
            if snoop == Snoop::Yes {
                b.cpu[span.clone()].copy_from_slice(now);
            }
            b.flags[span].fill(if snoop == Snoop::Yes { FOREIGN } else { FOREIGN_NC });
            a += now.len() as u64;
            rest = later;
        }
        None
    }

    /// Checks that a range is allocated, published and zero.
    pub(crate) fn device_zero(&self, at: u64, len: u64, snoop: Snoop) -> Option<Trouble> {
        let end = at.checked_add(len)?;
        let mut a = at;
        let mut trouble = None;
        while a < end {
            let stop = end.min((a / PAGE + 1) * PAGE);
            match self.pages.get(&(a / PAGE)) {
                None => return Some(Trouble::NotAllocated),
                Some(page @ Page::Blank(_)) => {
                    if Memory::seen(page, 0, snoop).1 {
                        return Some(Trouble::Unpublished);
                    }
                }
                Some(page @ Page::Full(_)) => {
                    for x in a..stop {
                        let (value, stale) = Memory::seen(page, (x % PAGE) as usize, snoop);
                        if stale {
                            return Some(Trouble::Unpublished);
                        }
                        if value != 0 {
                            trouble = Some(Trouble::NotZero);
                        }
                    }
                }
            }
            a = stop;
        }
        trouble
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        Memory::new(0x4000_0000, 0x100_0000)
    }

    #[test]
    fn fresh_memory_is_garbage_for_a_device_until_it_is_published() {
        let mut m = memory();
        let a = m.alloc(0x1_0000, 0x1_0000).expect("room");
        assert_eq!(m.device_zero(a, 0x1_0000, Snoop::Yes), Some(Trouble::Unpublished));
        m.publish(a, 0x1_0000, false);
        assert_eq!(m.device_zero(a, 0x1_0000, Snoop::Yes), None);
        assert_eq!(m.device_zero(a, 0x1_0000, Snoop::No), Some(Trouble::Unpublished));
        m.publish(a, 0x1_0000, true);
        assert_eq!(m.device_zero(a, 0x1_0000, Snoop::No), None);
    }

    #[test]
    fn a_device_reads_the_old_value_until_a_store_is_published() {
        let mut m = memory();
        let a = m.alloc(4096, 4096).expect("room");
        m.publish(a, 4096, true);
        m.store(a, &[7]).expect("allocated");
        assert_eq!(m.device_read8(a, Snoop::Yes), (0, Some(Trouble::Unpublished)));
        m.publish(a, 1, false);
        assert_eq!(m.device_read8(a, Snoop::Yes), (7, None));
        assert_eq!(m.device_read8(a, Snoop::No), (0, Some(Trouble::Unpublished)));
        m.publish(a, 1, true);
        assert_eq!(m.device_read8(a, Snoop::No), (7, None));
    }

    #[test]
    fn a_load_after_a_device_write_needs_an_acquire_of_the_right_kind() {
        let mut m = memory();
        let a = m.alloc(4096, 4096).expect("room");
        m.publish(a, 4096, true);
        assert_eq!(m.device_write(a, &[9], Snoop::No), None);
        let mut b = [0];
        assert!(m.load(a, &mut b).is_err());
        assert_eq!(b, [0]);
        m.acquire(a, 1, false);
        assert!(m.load(a, &mut b).is_err());
        m.acquire(a, 1, true);
        assert!(m.load(a, &mut b).is_ok());
        assert_eq!(b, [9]);
    }

    #[test]
    fn memory_is_freed_once_and_with_its_allocated_size() {
        let mut m = memory();
        let a = m.alloc(100, 256).expect("room");
        assert!(m.free(a, 200, 256).is_err());
        assert!(m.free(a, 100, 256).is_ok());
        assert!(m.free(a, 100, 256).is_err());
        assert!(m.allocations().is_empty());
        assert!(m.load(a, &mut [0]).is_err());
    }

    #[test]
    fn memory_in_use_must_not_be_freed_or_stored_to() {
        let mut m = memory();
        let a = m.alloc(4096, 4096).expect("room");
        m.attach(a, 256, Use::Itt(0, 5));
        assert!(m.store(a + 8, &[1]).is_err());
        assert!(m.store(a + 256, &[1]).is_ok());
        assert!(m.free(a, 4096, 4096).is_err());
    }

    #[test]
    fn allocations_do_not_overlap_and_fail_when_the_ram_is_full() {
        let mut m = Memory::new(0x4000_0000, 0x4000);
        assert!(m.claim(0x4000_1000, 0x1000));
        assert!(!m.claim(0x4000_0000, 0x1001));
        assert_eq!(m.alloc(0x2000, 0x1000), Some(0x4000_2000));
        assert_eq!(m.alloc(1, 1), Some(0x4000_0000));
        assert_eq!(m.alloc(1, 1), None);
    }
}
