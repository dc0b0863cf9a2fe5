//! A port of a console device: a named stream of bytes in each direction, of bounded size.
//!
//! The device moves bytes between a port and the driver's buffers; the other side of the port sends and receives here.
//! Both may do so on any CPU at the same time. What the driver does not read stays in the port, and what does not fit any
//! more is refused: nobody waits for the driver.
//!
//! The driver opens and closes the port. From one opening to the next closing is a session. What is left of an earlier
//! session is dropped when a new one begins, so that nobody gets half a line of somebody else.

use crate::sync::{Lock, Rank};
use alloc::collections::VecDeque;
use alloc::string::String;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes that wait, in memory that is allocated once.
struct Bytes {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// The sender waits for room.
    awaited: bool,
}

impl Bytes {
    fn new(capacity: usize) -> Lock<Bytes> {
        Lock::new(Rank::Stream, Bytes { bytes: VecDeque::with_capacity(capacity), capacity, awaited: false })
    }

    fn room(&self) -> usize {
        self.capacity.saturating_sub(self.bytes.len())
    }

    /// Appends as many bytes as there is room for, and returns their number.
    fn put(&mut self, from: &[u8]) -> usize {
        let fits = from.get(..self.room()).unwrap_or(from);
        self.bytes.extend(fits);
        fits.len()
    }

    /// Takes as many bytes as there are, and returns their number.
    fn take(&mut self, into: &mut [u8]) -> usize {
        let (front, back) = self.bytes.as_slices();
        let mut taken = 0usize;
        for part in [front, back] {
            let free = into.get_mut(taken..).unwrap_or_default();
            let count = part.len().min(free.len());
            if let (Some(free), Some(part)) = (free.get_mut(..count), part.get(..count)) {
                free.copy_from_slice(part);
            }
            taken = taken.saturating_add(count);
        }
        self.bytes.drain(..taken);
        taken
    }
}

/// A port.
pub struct Port {
    name: String,
    user: u16,
    /// Counts openings and closings: odd while the port is open.
    session: AtomicU32,
    to_guest: Lock<Bytes>,
    from_guest: Lock<Bytes>,
    /// The number of bytes in `from_guest`, as it was last changed.
    arrived: AtomicU32,
    lost: AtomicU64,
}

/// The sizes of a port's buffers in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// What waits for the driver.
    pub to_guest: usize,
    /// What waits for the other side. The driver's own buffers are behind it.
    pub from_guest: usize,
}

impl Port {
    /// A port that is closed. `user` is for whoever makes the port.
    #[must_use]
    pub fn new(name: &str, user: u16, capacity: Capacity) -> Port {
        Port {
            name: String::from(name),
            user,
            session: AtomicU32::new(0),
            to_guest: Bytes::new(capacity.to_guest),
            from_guest: Bytes::new(capacity.from_guest),
            arrived: AtomicU32::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// The name, by which programs find the port.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What was given to [`new`](Port::new).
    #[must_use]
    pub const fn user(&self) -> u16 {
        self.user
    }

    /// Whether the driver has opened the port.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.session() & 1 != 0
    }

    /// A number that changes whenever the driver opens or closes the port.
    #[must_use]
    pub fn session(&self) -> u32 {
        self.session.load(Ordering::SeqCst)
    }

    /// Takes bytes that the driver has sent, at most as many as fit `into`, and returns their number. The caller then
    /// has the device [serve](super::device::Device::announce) the port, since the driver may wait for room.
    pub fn receive(&self, into: &mut [u8]) -> usize {
        if !self.has_arrived() {
            return 0;
        }
        let mut bytes = self.from_guest.lock();
        let taken = bytes.take(into);
        self.arrived.store(bytes.bytes.len() as u32, Ordering::SeqCst);
        taken
    }

    /// Whether bytes of the driver wait.
    #[must_use]
    pub fn has_arrived(&self) -> bool {
        self.arrived.load(Ordering::SeqCst) != 0
    }

    /// Sends bytes to the driver, as many as there is room for, and returns their number; none while the port is closed.
    /// If not all fit, something [arrives](super::device::Device::take_arrived) when the driver has taken some. The caller
    /// then has the device [serve](super::device::Device::announce) the port.
    pub fn send(&self, from: &[u8]) -> usize {
        if !self.is_open() {
            return 0;
        }
        let mut bytes = self.to_guest.lock();
        let sent = bytes.put(from);
        bytes.awaited |= sent < from.len();
        sent
    }

    /// [`send`](Port::send) for bytes that belong together: sends all, or none if there is no room for all. What is not
    /// sent while the port is open is counted as lost.
    pub fn send_whole(&self, from: &[u8]) -> bool {
        if !self.is_open() {
            return false;
        }
        let mut bytes = self.to_guest.lock();
        let fits = bytes.room() >= from.len();
        if fits {
            bytes.put(from);
        } else {
            self.lost.fetch_add(from.len() as u64, Ordering::Relaxed);
        }
        fits
    }

    /// The number of bytes that were lost since the port was made, because the driver did not read.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The number of bytes that can be sent.
    #[must_use]
    pub fn room_to_send(&self) -> usize {
        self.to_guest.lock().room()
    }

    // For the device.

    /// Begins a session, or ends one.
    pub(super) fn set_open(&self, open: Open) {
        if self.is_open() == (open == Open::Yes) {
            return;
        }
        self.to_guest.lock().bytes.clear();
        if open == Open::Yes {
            let mut bytes = self.from_guest.lock();
            bytes.bytes.clear();
            self.arrived.store(0, Ordering::SeqCst);
        }
        self.session.fetch_add(1, Ordering::SeqCst);
    }

    /// The number of bytes that the other side can be passed.
    pub(super) fn room(&self) -> usize {
        self.from_guest.lock().room()
    }

    /// Passes bytes of the driver to the other side, as many as there is room for.
    pub(super) fn pass(&self, from: &[u8]) {
        let mut bytes = self.from_guest.lock();
        bytes.put(from);
        self.arrived.store(bytes.bytes.len() as u32, Ordering::SeqCst);
    }

    /// Takes bytes for the driver. Returns their number, and whether the sender has waited for that.
    pub(super) fn fetch(&self, into: &mut [u8]) -> (usize, bool) {
        let mut bytes = self.to_guest.lock();
        let taken = bytes.take(into);
        (taken, taken > 0 && core::mem::take(&mut bytes.awaited))
    }

    /// The number of bytes that wait for the driver.
    pub(super) fn to_fetch(&self) -> usize {
        self.to_guest.lock().bytes.len()
    }
}

/// Whether a side of a port is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Open {
    /// It is.
    Yes,
    /// It is not.
    No,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::counting::allocations;

    fn port() -> Port {
        Port::new("p", 7, Capacity { to_guest: 8, from_guest: 4 })
    }

    #[test]
    fn each_direction_is_in_order_and_bounded() {
        let port = port();
        port.set_open(Open::Yes);
        assert_eq!((port.send(b"abcdef"), port.send(b"ghij"), port.room_to_send()), (6, 2, 0));
        let mut got = [0; 5];
        assert_eq!((port.fetch(&mut got), &got), ((5, true), b"abcde"));
        assert_eq!(port.send(b"XYZABC"), 5);
        assert_eq!((port.fetch(&mut got), &got), ((5, true), b"fghXY"), "across the end of the memory");
        assert_eq!(port.fetch(&mut got), (3, false), "nobody has waited since");
        port.pass(b"123456");
        assert_eq!((port.room(), port.has_arrived()), (0, true));
        assert_eq!((port.receive(&mut got[..3]), &got[..3], port.room()), (3, &b"123"[..], 3));
        assert_eq!((port.receive(&mut got), got[0], port.has_arrived()), (1, b'4', false));
        assert_eq!(port.receive(&mut got), 0);
    }

    #[test]
    fn a_closed_port_takes_nothing_and_a_new_session_begins_empty() {
        let port = port();
        assert_eq!((port.is_open(), port.send(b"x"), port.send_whole(b"x")), (false, 0, false));
        port.set_open(Open::Yes);
        let session = port.session();
        port.set_open(Open::Yes);
        assert_eq!(port.session(), session, "it was open already");
        port.send(b"out");
        port.pass(b"in");
        port.set_open(Open::No);
        assert_eq!((port.to_fetch(), port.has_arrived()), (0, true), "what was sent before the end is still received");
        port.set_open(Open::Yes);
        assert_eq!((port.to_fetch(), port.has_arrived(), port.room()), (0, false, 4));
        assert_ne!(port.session(), session);
    }

    #[test]
    fn what_belongs_together_is_sent_whole_or_counted_as_lost() {
        let port = port();
        port.set_open(Open::Yes);
        assert!(port.send_whole(b"12345"));
        assert!(!port.send_whole(b"6789"));
        assert!(port.send_whole(b"678"));
        assert_eq!((port.lost(), port.to_fetch()), (4, 8));
    }

    #[test]
    fn nothing_is_allocated_for_bytes() {
        let port = port();
        port.set_open(Open::Yes);
        let count = allocations(|| {
            for _ in 0..100 {
                port.send(b"123456789");
                port.pass(b"123456789");
                port.fetch(&mut [0; 3]);
                port.receive(&mut [0; 3]);
            }
        });
        assert_eq!(count, 0);
    }
}
