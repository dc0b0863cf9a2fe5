//! A domain's output that waits for the UART: a queue of bytes with one producer and one consumer, without a lock.
//!
//! The domain is the producer: it pushes under the lock of its emulated port. Whoever holds the console's lock is the
//! consumer. Each side writes its own positions only, so a domain never waits for the console or for another domain: if
//! its ring is full, its port says so, and it waits for room by itself.

use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use alloc::boxed::Box;

/// The capacity of a domain's ring in bytes: a third of a second at 115200 baud.
pub const RING_LEN: usize = 4096;

/// A ring of bytes. Positions count all bytes that have ever been pushed, and do not wrap.
pub struct Ring {
    bytes: Box<[AtomicU8]>,
    /// The position of the next byte to take. Written by the consumer.
    head: AtomicU64,
    /// The position of the next byte to push. Written by the producer.
    tail: AtomicU64,
    /// The position behind the last line feed. Written by the producer.
    line: AtomicU64,
    /// Whether the producer waits for room.
    waiting: AtomicBool,
    /// No more bytes are taken from the producer.
    sealed: AtomicBool,
}

impl Ring {
    /// An empty ring for `capacity` bytes. Its memory is allocated here and never again.
    #[must_use]
    pub fn new(capacity: usize) -> Ring {
        Ring {
            bytes: (0..capacity).map(|_| AtomicU8::new(0)).collect(),
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            line: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            sealed: AtomicBool::new(false),
        }
    }

    fn slot(&self, at: u64) -> Option<&AtomicU8> {
        let index = at.checked_rem(self.bytes.len() as u64)?;
        self.bytes.get(usize::try_from(index).ok()?)
    }

    /// The number of bytes that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        // Read in this order, `head` may have passed the value of `tail` if the consumer is another CPU.
        let tail = self.tail.load(Ordering::SeqCst);
        let waiting = tail.saturating_sub(self.head.load(Ordering::SeqCst));
        usize::try_from(waiting).unwrap_or(usize::MAX)
    }

    /// Whether no byte waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of bytes for which there is room.
    #[must_use]
    pub fn room(&self) -> usize {
        self.bytes.len().saturating_sub(self.len())
    }

    /// The position behind the last byte that was pushed.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.tail.load(Ordering::SeqCst)
    }

    /// Whether all bytes before the position `end` have been taken.
    #[must_use]
    pub fn has_passed(&self, end: u64) -> bool {
        self.head.load(Ordering::SeqCst) >= end
    }

    /// From now on, what the producer pushes is lost.
    pub fn seal(&self) {
        self.sealed.store(true, Ordering::SeqCst);
    }

    /// Appends a byte. Called by the producer. Returns `false` if the ring is full or sealed: then the byte is lost.
    pub fn push(&self, byte: u8) -> bool {
        let tail = self.tail.load(Ordering::Relaxed);
        match self.slot(tail) {
            Some(slot) if self.room() > 0 && !self.sealed.load(Ordering::Relaxed) => {
                slot.store(byte, Ordering::Relaxed)
            }
            _ => return false,
        }
        self.tail.store(tail.saturating_add(1), Ordering::SeqCst);
        if byte == b'\n' {
            self.line.store(tail.saturating_add(1), Ordering::Release);
        }
        true
    }

    /// Whether a complete line waits.
    #[must_use]
    pub fn has_line(&self) -> bool {
        self.line.load(Ordering::Acquire) > self.head.load(Ordering::Relaxed)
    }

    /// The byte `distance` bytes behind the next one to take. Called by the consumer.
    #[must_use]
    pub fn peek(&self, distance: usize) -> Option<u8> {
        if distance >= self.len() {
            return None;
        }
        let at = self.head.load(Ordering::Relaxed).saturating_add(distance as u64);
        Some(self.slot(at)?.load(Ordering::Relaxed))
    }

    /// Takes a byte. Called by the consumer.
    pub fn pop(&self) -> Option<u8> {
        let byte = self.peek(0)?;
        self.head.store(self.head.load(Ordering::Relaxed).saturating_add(1), Ordering::SeqCst);
        Some(byte)
    }

    /// Whether at most half of the ring is in use.
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.len() <= self.bytes.len() / 2
    }

    /// Requests that the producer is told when the ring [is low](Ring::is_low). Called by the producer. Returns `false`
    /// if it is so already: then there is no request.
    #[must_use]
    pub fn request_room(&self) -> bool {
        self.waiting.store(true, Ordering::SeqCst);
        !self.take_request()
    }

    /// Whether the producer waits for room, as was to be seen at the last fence.
    #[must_use]
    pub fn has_request(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether the producer waits for room and there is some. The request is answered by that.
    #[must_use]
    pub fn take_request(&self) -> bool {
        // Both sides write before the fence and read after it: either the producer sees the room that the consumer has
        // made, or the consumer sees the request.
        fence(Ordering::SeqCst);
        self.waiting.load(Ordering::SeqCst) && self.is_low() && self.waiting.swap(false, Ordering::SeqCst)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_and_a_full_ring_takes_none() {
        let ring = Ring::new(4);
        for round in 0..5u8 {
            assert!((0..4).all(|n| ring.push(round + n)));
            assert!(!ring.push(99), "full");
            assert_eq!((ring.len(), ring.room(), ring.peek(3), ring.peek(4)), (4, 0, Some(round + 3), None));
            assert_eq!([ring.pop(), ring.pop(), ring.pop(), ring.pop()], [0, 1, 2, 3].map(|n| Some(round + n)));
            assert!(ring.is_empty() && ring.pop().is_none());
        }
    }

    #[test]
    fn a_line_is_complete_from_its_line_feed_until_that_is_taken() {
        let ring = Ring::new(8);
        ring.push(b'a');
        assert!(!ring.has_line());
        b"\nb".iter().for_each(|&byte| _ = ring.push(byte));
        assert!(ring.has_line());
        ring.pop();
        assert!(ring.has_line());
        ring.pop();
        assert!(!ring.has_line(), "what is left has no line feed");
    }

    #[test]
    fn a_request_for_room_is_answered_once_when_there_is_room() {
        let ring = Ring::new(4);
        (0..4).for_each(|n| _ = ring.push(n));
        assert!(ring.request_room());
        ring.pop();
        assert!(!ring.take_request());
        ring.pop();
        assert!(ring.take_request());
        assert!(!ring.take_request(), "answered");
        assert!(!ring.request_room(), "there is room already");
        assert!(!ring.take_request());
    }

    #[test]
    fn a_ring_without_capacity_takes_nothing() {
        let ring = Ring::new(0);
        assert!(!ring.push(1) && ring.pop().is_none());
    }
}

/// Run by `RUSTFLAGS="--cfg loom" cargo test --lib interleavings`.
#[cfg(all(test, loom))]
mod interleavings {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn bytes_cross_from_one_cpu_to_another_in_order() {
        loom::model(|| {
            let ring = Arc::new(Ring::new(2));
            let theirs = ring.clone();
            let producer = loom::thread::spawn(move || [1, b'\n', 3].map(|byte| theirs.push(byte)));
            let mut taken = std::vec::Vec::new();
            for _ in 0..2 {
                assert!(!ring.has_line() || ring.peek(0).is_some());
                taken.extend(ring.pop());
            }
            let sent = producer.join().unwrap();
            taken.extend(std::iter::from_fn(|| ring.pop()));
            let expected: std::vec::Vec<u8> =
                [1, b'\n', 3].into_iter().zip(sent).filter_map(|(byte, sent)| sent.then_some(byte)).collect();
            assert_eq!(taken, expected);
        });
    }

    #[test]
    fn a_producer_that_waits_for_room_is_told_of_it() {
        loom::model(|| {
            let ring = Arc::new(Ring::new(2));
            assert!(ring.push(1) && ring.push(2));
            let theirs = ring.clone();
            let consumer = loom::thread::spawn(move || {
                theirs.pop();
                theirs.take_request()
            });
            let waits = ring.request_room();
            let told = consumer.join().unwrap();
            assert_eq!(waits, told, "told exactly if it waits");
        });
    }
}
