//! RAM as CPUs and devices see it, its allocations and its uses by devices.
//!
//! CPUs see a CPU's store at once. A device that snoops (shareable attributes) sees it after a `publish`. A device that
//! does not snoop (non-shareable attributes, or a machine without shareability) sees it only after a `publish` with
//! `noncoherent`. Until then the device reads the old value: each byte has its value at the point of coherency beside
//! the CPUs' value. Fresh allocations are zero for the CPU and garbage for a device, since zeroing consists of stores.
//!
//! In the other direction, a CPU sees a device's write after an `acquire` of the right kind. An earlier load is a
//! violation.
//!
//! The crate also has the list of allocations and of *uses*: ranges that a device was told to use and has not been told
//! to stop using. To free such a range, or to store to one that is private to the device, is a violation.

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
pub enum Snoop {
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
    snooped: [u8; PAGE as usize],
    flags: [u8; PAGE as usize],
}

impl Page {
    fn bytes(&mut self) -> &mut Bytes {
        if let Page::Blank(flags) = *self {
            let old = |stale: u8| if flags & stale != 0 { GARBAGE } else { 0 };
            *self = Page::Full(Box::new(Bytes {
                cpu: [0; PAGE as usize],
                poc: [old(UNCLEAN); PAGE as usize],
                snooped: [old(UNORDERED); PAGE as usize],
                flags: [flags; PAGE as usize],
            }));
        }
        match self {
            Page::Full(b) => b,
            Page::Blank(_) => unreachable!("made full above"),
        }
    }
}

/// What a device uses a range of memory for.
pub trait Usage: Copy + Ord + fmt::Display {
    /// A value that is not greater than any other.
    const FIRST: Self;

    /// Whether software must not store to the range while it is in use.
    fn private(self) -> bool;
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
pub enum Trouble {
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

/// RAM, its allocations, and its uses of kind `U`.
pub struct Memory<U> {
    base: u64,
    size: u64,
    pages: HashMap<u64, Page>,
    allocations: BTreeMap<u64, Allocation>,
    uses: BTreeMap<(u64, U), (u64, u32)>,
    /// Number of allocations that may still succeed. `None`: as many as fit.
    pub allowance: Option<u64>,
}

const fn round_up(n: u64, to: u64) -> u64 {
    n.div_ceil(to) * to
}

impl<U: Usage> Memory<U> {
    /// Returns RAM of `size` bytes at `base`, none of it allocated.
    #[must_use]
    pub fn new(base: u64, size: u64) -> Memory<U> {
        Memory {
            base,
            size,
            pages: HashMap::new(),
            allocations: BTreeMap::new(),
            uses: BTreeMap::new(),
            allowance: None,
        }
    }

    /// Whether an address is RAM.
    #[must_use]
    pub fn is_ram(&self, at: u64) -> bool {
        at >= self.base && at - self.base < self.size
    }

    // ---- allocations

    /// Allocates memory that is zero for the CPU. Returns `None` if it does not fit or if the allowance is used up.
    pub fn alloc(&mut self, size: u64, align: u64) -> Option<u64> {
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
    pub fn claim(&mut self, at: u64, size: u64) -> bool {
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

    /// Frees an allocation.
    ///
    /// # Errors
    ///
    /// If there is no such allocation, or if it is in use, in which case it has been freed nevertheless.
    pub fn free(&mut self, at: u64, size: u64, align: u64) -> Result<(), String> {
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

    /// Returns the allocations that have not been freed.
    #[must_use]
    pub fn allocations(&self) -> Vec<Allocation> {
        self.allocations.values().copied().collect()
    }

    /// Whether a range is allocated throughout.
    #[must_use]
    pub fn is_allocated(&self, at: u64, len: u64) -> bool {
        len == 0
            || at
                .checked_add(len)
                .is_some_and(|end| (at / PAGE..end.div_ceil(PAGE)).all(|p| self.pages.contains_key(&p)))
    }

    // ---- uses

    /// Adds a use, and counts it if it exists already.
    pub fn attach(&mut self, at: u64, len: u64, kind: U) {
        let entry = self.uses.entry((at, kind)).or_insert((len, 0));
        entry.0 = entry.0.max(len);
        entry.1 += 1;
    }

    /// Adds a use unless it exists already.
    pub fn attach_once(&mut self, at: u64, len: u64, kind: U) {
        self.uses.entry((at, kind)).or_insert((len, 1));
    }

    /// Removes a use, or reduces its count.
    pub fn detach(&mut self, at: u64, kind: U) {
        if let Some(entry) = self.uses.get_mut(&(at, kind)) {
            entry.1 -= 1;
            if entry.1 == 0 {
                self.uses.remove(&(at, kind));
            }
        }
    }

    /// Removes all uses of some kinds.
    pub fn detach_all(&mut self, matching: impl Fn(U) -> bool) {
        self.uses.retain(|(_, kind), _| !matching(*kind));
    }

    /// Returns a use that overlaps a range.
    #[must_use]
    pub fn used_by(&self, at: u64, len: u64) -> Option<U> {
        self.uses.iter().find(|((s, _), (l, _))| *s < at + len && at < s + l).map(|((_, k), _)| *k)
    }

    /// Returns the first private use that overlaps a range, other than `own` at its start.
    #[must_use]
    pub fn clash(&self, at: u64, len: u64, own: U) -> Option<U> {
        let hit = |s: &u64, l: &u64, k: &U| *s < at + len && at < s + l && !(*k == own && *s == at);
        self.uses.iter().find(|((s, k), (l, _))| k.private() && hit(s, l, k)).map(|((_, k), _)| *k)
    }

    // ---- accesses of CPUs

    /// Loads bytes as a CPU does.
    ///
    /// # Errors
    ///
    /// If they are not allocated, or if a device has written them and they have not been acquired since.
    pub fn load(&mut self, at: u64, out: &mut [u8]) -> Result<(), String> {
        let mut trouble = Ok(());
        for (i, byte) in out.iter_mut().enumerate() {
            let a = at + i as u64;
            match self.pages.get(&(a / PAGE)) {
                None => return Err(format!("load from {a:#x}, which is not allocated")),
                Some(Page::Blank(_)) => *byte = 0,
                Some(Page::Full(b)) => {
                    let o = (a % PAGE) as usize;
                    if b.flags[o] & (FOREIGN | FOREIGN_NC) != 0 && trouble.is_ok() {
                        trouble = Err(format!("load from {a:#x}, which a device has written, without an acquire"));
                    }
                    *byte = b.cpu[o];
                }
            }
        }
        trouble
    }

    /// Stores bytes as a CPU does.
    ///
    /// # Errors
    ///
    /// If they are not allocated, or if they are private to a device. In the latter case they have been stored.
    pub fn store(&mut self, at: u64, data: &[u8]) -> Result<(), String> {
        for (i, byte) in data.iter().enumerate() {
            let a = at + i as u64;
            let Some(page) = self.pages.get_mut(&(a / PAGE)) else {
                return Err(format!("store to {a:#x}, which is not allocated"));
            };
            let (b, o) = (page.bytes(), (a % PAGE) as usize);
            if b.flags[o] & UNORDERED == 0 {
                b.snooped[o] = if b.flags[o] & FOREIGN_NC != 0 { b.poc[o] } else { b.cpu[o] };
            }
            b.cpu[o] = *byte;
            b.flags[o] = (b.flags[o] | UNORDERED | UNCLEAN) & !(FOREIGN | FOREIGN_NC);
        }
        let end = at + data.len() as u64;
        let owner = self
            .uses
            .range(..(end, U::FIRST))
            .rev()
            .take(4)
            .find(|((s, k), (l, _))| k.private() && *s < end && at < s + l)
            .map(|((_, k), _)| *k);
        match owner {
            Some(k) => Err(format!("store to {at:#x}, which is in use as {k}")),
            None => Ok(()),
        }
    }

    /// Makes stores visible to devices that snoop and, with `noncoherent`, to all devices.
    pub fn publish(&mut self, at: u64, len: u64, noncoherent: bool) {
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

    /// Makes writes of devices that snoop visible to loads and, with `noncoherent`, writes of all devices.
    pub fn acquire(&mut self, at: u64, len: u64, noncoherent: bool) {
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

    // ---- accesses of devices

    /// Returns the value of a byte for a device, and whether it is stale.
    fn seen(page: &Page, o: usize, snoop: Snoop) -> (u8, bool) {
        match (page, snoop) {
            (Page::Blank(f), Snoop::Yes) if f & UNORDERED != 0 => (GARBAGE, true),
            (Page::Blank(f), Snoop::No) if f & UNCLEAN != 0 => (GARBAGE, true),
            (Page::Blank(_), _) => (0, false),
            (Page::Full(b), Snoop::Yes) if b.flags[o] & UNORDERED != 0 => (b.snooped[o], true),
            (Page::Full(b), Snoop::Yes) if b.flags[o] & FOREIGN_NC != 0 => (b.poc[o], false),
            (Page::Full(b), Snoop::Yes) => (b.cpu[o], false),
            (Page::Full(b), Snoop::No) => (b.poc[o], b.flags[o] & UNCLEAN != 0),
        }
    }

    /// Reads memory as a device does. `out` is what the device reads even if there is trouble.
    pub fn device_read(&self, at: u64, out: &mut [u8], snoop: Snoop) -> Option<Trouble> {
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
                        let (value, stale) = Memory::<U>::seen(page, o + i, snoop);
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

    /// Reads a little-endian word as a device does.
    #[must_use]
    pub fn device_read64(&self, at: u64, snoop: Snoop) -> (u64, Option<Trouble>) {
        let mut bytes = [0; 8];
        let trouble = self.device_read(at, &mut bytes, snoop);
        (u64::from_le_bytes(bytes), trouble)
    }

    /// Reads a byte as a device does.
    #[must_use]
    pub fn device_read8(&self, at: u64, snoop: Snoop) -> (u8, Option<Trouble>) {
        let mut bytes = [0; 1];
        let trouble = self.device_read(at, &mut bytes, snoop);
        (bytes[0], trouble)
    }

    /// Writes memory as a device does.
    pub fn device_write(&mut self, at: u64, data: &[u8], snoop: Snoop) -> Option<Trouble> {
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

    /// Checks that a range is allocated, and published to a device.
    #[must_use]
    pub fn trouble(&self, at: u64, len: u64, snoop: Snoop) -> Option<Trouble> {
        let Some(end) = at.checked_add(len) else { return Some(Trouble::NotAllocated) };
        let mut a = at;
        while a < end {
            let stop = end.min((a / PAGE + 1) * PAGE);
            let stale = match self.pages.get(&(a / PAGE)) {
                None => return Some(Trouble::NotAllocated),
                Some(page @ Page::Blank(_)) => Memory::<U>::seen(page, 0, snoop).1,
                Some(page) => (a..stop).any(|x| Memory::<U>::seen(page, (x % PAGE) as usize, snoop).1),
            };
            if stale {
                return Some(Trouble::Unpublished);
            }
            a = stop;
        }
        None
    }

    /// Checks that a range is allocated, published and zero.
    #[must_use]
    pub fn device_zero(&self, at: u64, len: u64, snoop: Snoop) -> Option<Trouble> {
        let end = at.checked_add(len)?;
        let mut a = at;
        let mut trouble = None;
        while a < end {
            let stop = end.min((a / PAGE + 1) * PAGE);
            match self.pages.get(&(a / PAGE)) {
                None => return Some(Trouble::NotAllocated),
                Some(page @ Page::Blank(_)) => {
                    if Memory::<U>::seen(page, 0, snoop).1 {
                        return Some(Trouble::Unpublished);
                    }
                }
                Some(page @ Page::Full(_)) => {
                    for x in a..stop {
                        let (value, stale) = Memory::<U>::seen(page, (x % PAGE) as usize, snoop);
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

    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    struct Private;

    impl fmt::Display for Private {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a private table")
        }
    }

    impl Usage for Private {
        const FIRST: Private = Private;

        fn private(self) -> bool {
            true
        }
    }

    fn memory() -> Memory<Private> {
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
    fn a_snooping_device_reads_the_value_of_the_last_publish() {
        let mut m = memory();
        let a = m.alloc(4096, 4096).expect("room");
        m.publish(a, 4096, false);
        for value in 1..3 {
            m.store(a, &[value]).expect("allocated");
            m.store(a, &[value]).expect("allocated");
            assert_eq!(m.device_read8(a, Snoop::Yes), (value - 1, Some(Trouble::Unpublished)));
            m.publish(a, 1, false);
            assert_eq!(m.device_read8(a, Snoop::Yes), (value, None));
        }
        assert_eq!(m.device_write(a, &[9], Snoop::Yes), None);
        m.store(a, &[3]).expect("allocated");
        assert_eq!(m.device_read8(a, Snoop::Yes), (9, Some(Trouble::Unpublished)));
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
    fn trouble_names_what_is_not_published_or_not_allocated() {
        let mut m = memory();
        let a = m.alloc(8192, 4096).expect("room");
        m.publish(a, 4096, true);
        assert_eq!(m.trouble(a, 4096, Snoop::No), None);
        assert_eq!(m.trouble(a, 4097, Snoop::No), Some(Trouble::Unpublished));
        m.store(a + 8, &[0]).expect("allocated");
        assert_eq!(m.trouble(a, 8, Snoop::Yes), None);
        assert_eq!(m.trouble(a, 9, Snoop::Yes), Some(Trouble::Unpublished));
        assert_eq!(m.trouble(a, u64::MAX, Snoop::Yes), Some(Trouble::NotAllocated));
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
        m.attach(a, 256, Private);
        assert!(m.store(a + 8, &[1]).is_err());
        assert!(m.store(a + 256, &[1]).is_ok());
        assert!(m.free(a, 4096, 4096).is_err());
    }

    #[test]
    fn allocations_do_not_overlap_and_fail_when_the_ram_is_full() {
        let mut m = Memory::<Private>::new(0x4000_0000, 0x4000);
        assert!(m.claim(0x4000_1000, 0x1000));
        assert!(!m.claim(0x4000_0000, 0x1001));
        assert_eq!(m.alloc(0x2000, 0x1000), Some(0x4000_2000));
        assert_eq!(m.alloc(1, 1), Some(0x4000_0000));
        assert_eq!(m.alloc(1, 1), None);
    }
}
