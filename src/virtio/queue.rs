//! A split virtqueue (virtio 1.2, 2.7), as the device uses it.
//!
//! The driver makes chains of descriptors available, which name buffers in its memory, first those that the device
//! reads, then those that it writes. The device uses them in order and one at a time: the chain at the front is looked at
//! again for each use until it is [complete](Queue::complete). So a queue is the positions of both rings, and nothing is
//! remembered of what the guest may change meanwhile.
//!
//! Without VIRTIO_F_INDIRECT_DESC and VIRTIO_F_EVENT_IDX. A queue has at most [`SIZE`] entries, which bounds the length of
//! a chain and the number of chains that wait.

use super::Guest;
use crate::ids::Ipa;
use arrayvec::ArrayVec;
use core::fmt;
use core::sync::atomic::{Ordering, fence};

/// The largest number of entries of a queue: QueueNumMax. A driver gives each port buffers for a whole queue; Linux's
/// have 4 KiB each.
pub const SIZE: u16 = 16;

/// Flags of a descriptor (2.7.5): another one follows; the device writes the buffer; the buffer holds descriptors.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Flag of the available ring (2.7.6): the driver wants no interrupt.
const NO_INTERRUPT: u16 = 1;

/// Size of a descriptor in bytes.
const DESCRIPTOR: u64 = 16;
/// Offsets in both rings: the position behind the last entry, and the entries.
const RING_INDEX: u64 = 2;
const RING: u64 = 4;
/// Size of an entry of the available ring and of the used ring in bytes.
const AVAILABLE: u64 = 2;
const USED: u64 = 8;

/// How a driver has broken its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A part of the queue, or a buffer, is not in the domain's RAM, or not aligned.
    Memory(Ipa),
    /// More chains are available than the queue has entries.
    TooManyChains(u16),
    /// A chain begins with or goes on with a descriptor that does not exist.
    NoSuchDescriptor(u16),
    /// A chain is longer than the queue, or a circle.
    EndlessChain,
    /// A buffer to be read follows one to be written.
    Order,
    /// A descriptor is indirect, which was not negotiated.
    Indirect,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Memory(at) => write!(f, "{at} is not in its RAM, or not aligned"),
            Broken::TooManyChains(n) => write!(f, "{n} chains are available, more than the queue has entries"),
            Broken::NoSuchDescriptor(n) => write!(f, "there is no descriptor {n}"),
            Broken::EndlessChain => f.write_str("a chain is longer than the queue"),
            Broken::Order => f.write_str("a buffer to be read follows one to be written"),
            Broken::Indirect => f.write_str("a descriptor is indirect"),
        }
    }
}

/// A buffer in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The address of its first byte. No address of it has been checked.
    pub at: Ipa,
    /// Its size in bytes.
    pub size: u32,
}

/// The chain of descriptors at the front of a queue.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    readable: ArrayVec<Buffer, { SIZE as usize }>,
    writable: ArrayVec<Buffer, { SIZE as usize }>,
}

fn add(at: Ipa, offset: u64) -> Result<Ipa, Broken> {
    at.0.checked_add(offset).map(Ipa).ok_or(Broken::Memory(at))
}

/// The parts of buffers that hold the `wanted` bytes from `offset` on, as far as the buffers reach: address and length.
fn pieces(buffers: &[Buffer], offset: u64, wanted: u64) -> impl Iterator<Item = Result<(Ipa, usize), Broken>> {
    let (mut skip, mut left) = (offset, wanted);
    buffers.iter().filter_map(move |buffer| {
        let size = u64::from(buffer.size);
        let (first, here) = (skip, size.saturating_sub(skip).min(left));
        skip = skip.saturating_sub(size);
        left = left.saturating_sub(here);
        (here > 0).then(|| Ok((add(buffer.at, first)?, usize::try_from(here).unwrap_or(usize::MAX))))
    })
}

impl Chain {
    /// The number of descriptors.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        self.readable.len().saturating_add(self.writable.len())
    }

    /// The number of bytes to read.
    #[must_use]
    pub fn readable(&self) -> u64 {
        self.readable.iter().map(|buffer| u64::from(buffer.size)).sum()
    }

    /// The number of bytes that can be written.
    #[must_use]
    pub fn writable(&self) -> u64 {
        self.writable.iter().map(|buffer| u64::from(buffer.size)).sum()
    }

    /// Copies the bytes from `offset` on into `into`. Returns how many there were.
    ///
    /// # Errors
    ///
    /// [`Broken::Memory`].
    pub fn read(&self, guest: &dyn Guest, offset: u64, into: &mut [u8]) -> Result<usize, Broken> {
        let wanted = u64::try_from(into.len()).unwrap_or(u64::MAX);
        let mut left = into;
        for piece in pieces(&self.readable, offset, wanted) {
            let (at, here) = piece?;
            let Some((part, rest)) = left.split_at_mut_checked(here) else { break };
            if !guest.read(at, part) {
                return Err(Broken::Memory(at));
            }
            left = rest;
        }
        Ok(usize::try_from(self.readable().saturating_sub(offset).min(wanted)).unwrap_or(usize::MAX))
    }

    /// Copies `from` to the bytes from `offset` on. What does not fit is left out.
    ///
    /// # Errors
    ///
    /// [`Broken::Memory`].
    pub fn write(&self, guest: &dyn Guest, offset: u64, from: &[u8]) -> Result<(), Broken> {
        let mut left = from;
        for piece in pieces(&self.writable, offset, u64::try_from(from.len()).unwrap_or(u64::MAX)) {
            let (at, here) = piece?;
            let Some((part, rest)) = left.split_at_checked(here) else { break };
            if !guest.write(at, part) {
                return Err(Broken::Memory(at));
            }
            left = rest;
        }
        Ok(())
    }
}

/// A queue. It is in its reset state by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// The descriptor table.
    pub descriptors: Ipa,
    /// The available ring, which the driver writes.
    pub available: Ipa,
    /// The used ring, which the device writes.
    pub used: Ipa,
    /// The number of entries, a power of two: [`SIZE`] at most.
    size: u16,
    /// Whether the driver has said that the queue may be used.
    pub ready: bool,
    /// The position of the next entry to take from the available ring, and to fill in the used ring.
    next: u16,
    /// The number of bytes of the chain at the front that the device is done with. The owner counts them.
    pub done: u64,
    /// The largest number of chains that have been seen to wait.
    most: u16,
}

impl Queue {
    /// The number of entries; 0 until the driver has set it.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Sets the number of entries. Anything but a power of two up to [`SIZE`] makes the queue unusable (2.7).
    pub const fn set_size(&mut self, size: u32) {
        self.size = if size.is_power_of_two() && size <= SIZE as u32 { size as u16 } else { 0 };
    }

    /// Whether the queue can be used.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        self.ready && self.size != 0
    }

    /// The address of the entry at `position` of a ring with entries of `bytes` bytes.
    fn entry(&self, ring: Ipa, position: u16, bytes: u64) -> Result<Ipa, Broken> {
        let index = position.checked_rem(self.size).unwrap_or(0);
        add(ring, RING.saturating_add(u64::from(index).saturating_mul(bytes)))
    }

    /// The number of chains that the driver has made available and that are not complete.
    ///
    /// # Errors
    ///
    /// [`Broken`].
    pub fn waiting(&self, guest: &dyn Guest) -> Result<u16, Broken> {
        if !self.is_usable() {
            return Ok(0);
        }
        let at = add(self.available, RING_INDEX)?;
        let end = guest.load16(at).ok_or(Broken::Memory(at))?;
        // What the driver has stored before it moved the index is read after it.
        fence(Ordering::Acquire);
        let waiting = end.wrapping_sub(self.next);
        if waiting > self.size { Err(Broken::TooManyChains(waiting)) } else { Ok(waiting) }
    }

    /// Whether the driver has given back all that it gave first, as far as can be seen: it has no buffer of this queue that
    /// it has not looked at.
    ///
    /// # Errors
    ///
    /// [`Broken`].
    pub fn has_all(&mut self, guest: &dyn Guest) -> Result<bool, Broken> {
        let waiting = self.waiting(guest)?;
        self.most = self.most.max(waiting);
        Ok(waiting == self.most)
    }

    /// The chain at the front of the queue; `None` if none is available. It stays there until it is
    /// [complete](Queue::complete).
    ///
    /// # Errors
    ///
    /// [`Broken`].
    pub fn front(&self, guest: &dyn Guest) -> Result<Option<Chain>, Broken> {
        if self.waiting(guest)? == 0 {
            return Ok(None);
        }
        let at = self.entry(self.available, self.next, AVAILABLE)?;
        let head = guest.load16(at).ok_or(Broken::Memory(at))?;
        let mut chain = Chain { head, readable: ArrayVec::new(), writable: ArrayVec::new() };
        let mut index = head;
        for _ in 0..self.size {
            if index >= self.size {
                return Err(Broken::NoSuchDescriptor(index));
            }
            let at = add(self.descriptors, u64::from(index).saturating_mul(DESCRIPTOR))?;
            let mut bytes = [0; DESCRIPTOR as usize];
            if !guest.read(at, &mut bytes) {
                return Err(Broken::Memory(at));
            }
            let word = u128::from_le_bytes(bytes);
            let buffer = Buffer { at: Ipa(word as u64), size: (word >> 64) as u32 };
            let (flags, next) = ((word >> 96) as u16, (word >> 112) as u16);
            if flags & INDIRECT != 0 {
                return Err(Broken::Indirect);
            }
            let list = match (flags & WRITE != 0, chain.writable.is_empty()) {
                (true, _) => &mut chain.writable,
                (false, true) => &mut chain.readable,
                (false, false) => return Err(Broken::Order),
            };
            if list.try_push(buffer).is_err() {
                return Err(Broken::EndlessChain);
            }
            if flags & NEXT == 0 {
                return Ok(Some(chain));
            }
            index = next;
        }
        Err(Broken::EndlessChain)
    }

    /// Gives the chain at the front back to the driver, with `written` bytes written to it.
    ///
    /// # Errors
    ///
    /// [`Broken::Memory`].
    pub fn complete(&mut self, guest: &dyn Guest, chain: &Chain, written: u32) -> Result<(), Broken> {
        let at = self.entry(self.used, self.next, USED)?;
        let [id, length] = [u32::from(chain.head), written].map(u32::to_le_bytes);
        let [a, b, c, d] = id;
        let [e, f, g, h] = length;
        if !guest.write(at, &[a, b, c, d, e, f, g, h]) {
            return Err(Broken::Memory(at));
        }
        let next = self.next.wrapping_add(1);
        // The driver sees the entry, and what was written to the buffers, before the index.
        fence(Ordering::Release);
        let at = add(self.used, RING_INDEX)?;
        if !guest.store16(at, next) {
            return Err(Broken::Memory(at));
        }
        self.next = next;
        self.done = 0;
        Ok(())
    }

    /// Whether the driver wants an interrupt for the chains that are complete.
    ///
    /// # Errors
    ///
    /// [`Broken::Memory`].
    pub fn wants_interrupt(&self, guest: &dyn Guest) -> Result<bool, Broken> {
        // A driver that allows interrupts looks at the used ring afterwards. So either it sees what was completed, or its
        // flag is seen here.
        fence(Ordering::SeqCst);
        let flags = guest.load16(self.available).ok_or(Broken::Memory(self.available))?;
        Ok(flags & NO_INTERRUPT == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Memory, Ring};
    use super::*;

    fn fresh() -> (Memory, Ring, Queue) {
        let memory = Memory::new(64 << 10);
        let ring = Ring::new(memory.base(), 8);
        let queue = ring.queue();
        (memory, ring, queue)
    }

    #[test]
    fn a_chain_is_read_and_written_across_its_buffers_and_given_back_in_order() {
        let (memory, mut ring, mut queue) = fresh();
        let at = |offset: u64| Ipa(memory.base().0 + 0x1000 + offset);
        memory.put(at(0), b"abc");
        memory.put(at(0x100), b"defgh");
        ring.offer(&memory, &[(at(0), 3, false), (at(0x100), 5, false), (at(0x200), 2, true), (at(0x300), 9, true)]);
        ring.offer(&memory, &[(at(0x400), 1, true)]);
        assert_eq!(queue.waiting(&memory), Ok(2));
        let chain = queue.front(&memory).unwrap().unwrap();
        assert_eq!((chain.readable(), chain.writable(), chain.descriptors()), (8, 11, 4));
        let mut got = [0; 4];
        assert_eq!(chain.read(&memory, 1, &mut got), Ok(4));
        assert_eq!(&got, b"bcde");
        assert_eq!(chain.read(&memory, 6, &mut got), Ok(2), "the end");
        assert_eq!(&got[..2], b"gh");
        assert_eq!(chain.read(&memory, 99, &mut got), Ok(0));
        chain.write(&memory, 1, b"wxyz").unwrap();
        assert_eq!((memory.get(at(0x200), 2), memory.get(at(0x300), 4)), (b"\0w".to_vec(), b"xyz\0".to_vec()));
        queue.complete(&memory, &chain, 5).unwrap();
        assert_eq!(ring.used(&memory), [(0, 5)]);
        let chain = queue.front(&memory).unwrap().unwrap();
        queue.complete(&memory, &chain, 1).unwrap();
        assert_eq!(ring.used(&memory), [(4, 1)]);
        assert!(queue.front(&memory).unwrap().is_none());
    }

    #[test]
    fn rings_wrap_and_so_do_their_indices() {
        let (memory, mut ring, mut queue) = fresh();
        let at = Ipa(memory.base().0 + 0x1000);
        for round in 0..70_000u32 {
            ring.offer(&memory, &[(at, round % 7, true)]);
            let chain = queue.front(&memory).unwrap().unwrap();
            assert_eq!(chain.writable(), u64::from(round % 7));
            queue.complete(&memory, &chain, round).unwrap();
            assert_eq!(ring.used(&memory).last().map(|used| used.1), Some(round));
            ring.forget();
        }
    }

    #[test]
    fn a_driver_that_breaks_a_rule_is_found_out() {
        let far = Ipa(0xffff_ffff_ffff_fff8);
        let near = |memory: &Memory| Ipa(memory.base().0 + 0x1000);
        let outcome = |change: &dyn Fn(&Memory, &mut Ring, &mut Queue)| {
            let (memory, mut ring, mut queue) = fresh();
            change(&memory, &mut ring, &mut queue);
            let found = queue.front(&memory).and_then(|chain| match chain {
                Some(chain) => {
                    let read = chain.read(&memory, 0, &mut [0; 16]).map(drop);
                    read.and_then(|()| chain.write(&memory, 0, &[0; 16])).and_then(|()| {
                        queue.complete(&memory, &chain, 0)?;
                        queue.wants_interrupt(&memory).map(drop)
                    })
                }
                None => Ok(()),
            });
            found.err()
        };
        let offered = |memory: &Memory, ring: &mut Ring, size| ring.offer(memory, &[(near(memory), size, false)]);
        assert_eq!(outcome(&|memory, ring, _| offered(memory, ring, 16)), None);
        assert_eq!(
            outcome(&|memory, ring, _| ring.set_available(memory, 9)),
            Some(Broken::TooManyChains(9)),
            "of a queue with 8 entries"
        );
        assert_eq!(outcome(&|memory, ring, _| ring.set_available(memory, 0xffff)), Some(Broken::TooManyChains(0xffff)));
        assert_eq!(
            outcome(&|memory, ring, _| {
                offered(memory, ring, 1);
                ring.set_entry(memory, 0, 8);
            }),
            Some(Broken::NoSuchDescriptor(8))
        );
        let one = |flags: u16, next: u16| {
            outcome(&|memory, ring, _| {
                offered(memory, ring, 1);
                ring.set_descriptor(memory, 0, (near(memory), 1, flags, next));
            })
        };
        assert_eq!(one(NEXT, 300), Some(Broken::NoSuchDescriptor(300)));
        assert_eq!(one(NEXT, 0), Some(Broken::EndlessChain));
        assert_eq!(one(NEXT | WRITE, 0), Some(Broken::EndlessChain));
        assert_eq!(one(INDIRECT, 0), Some(Broken::Indirect));
        assert_eq!(
            outcome(&|memory, ring, _| ring.offer(memory, &[(near(memory), 1, true), (near(memory), 1, false)])),
            Some(Broken::Order)
        );
        assert_eq!(outcome(&|memory, ring, _| ring.offer(memory, &[(far, 7, false)])), Some(Broken::Memory(far)));
        assert_eq!(outcome(&|memory, ring, _| ring.offer(memory, &[(far, 99, true)])), Some(Broken::Memory(far)));
        let end = |memory: &Memory| Ipa(memory.base().0 + memory.size() - 8);
        assert!(outcome(&|memory, ring, _| ring.offer(memory, &[(end(memory), 9, true)])).is_some());
        assert!(outcome(&|memory, ring, _| ring.offer(memory, &[(end(memory), 8, true)])).is_none());
        for part in 0..3 {
            for bad in [far, Ipa(0), Ipa(1)] {
                let found = outcome(&|memory, ring, queue| {
                    offered(memory, ring, 1);
                    *[&mut queue.descriptors, &mut queue.available, &mut queue.used][part] = bad;
                });
                assert!(matches!(found, Some(Broken::Memory(_))), "{part} at {bad}: {found:?}");
            }
        }
        let odd = outcome(&|memory, ring, queue| {
            offered(memory, ring, 1);
            queue.available = Ipa(queue.available.0 + 1);
        });
        assert!(matches!(odd, Some(Broken::Memory(_))), "not aligned");
    }

    #[test]
    fn a_queue_that_is_not_ready_or_has_no_valid_size_has_nothing() {
        let (memory, mut ring, mut queue) = fresh();
        ring.offer(&memory, &[(memory.base(), 1, false)]);
        for size in [0, 3, 12, 32, 0x1_0000, 0x1_0008, u32::MAX] {
            queue.set_size(size);
            assert!(!queue.is_usable() && queue.front(&memory).unwrap().is_none(), "{size}");
        }
        queue.set_size(8);
        assert!(queue.front(&memory).unwrap().is_some());
        queue.ready = false;
        assert!(queue.front(&memory).unwrap().is_none());
        assert!(Queue::default().front(&memory).unwrap().is_none());
    }

    #[test]
    fn a_driver_that_wants_no_interrupts_is_heard() {
        let (memory, ring, queue) = fresh();
        assert_eq!(queue.wants_interrupt(&memory), Ok(true));
        ring.set_flags(&memory, 1);
        assert_eq!(queue.wants_interrupt(&memory), Ok(false));
    }
}
