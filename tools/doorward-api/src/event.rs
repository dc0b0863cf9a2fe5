//! What comes unasked, on a stream of its own.

use crate::VERSION;
use crate::frame::{Frame, Header, encode};
use crate::values::EventKind;
use crate::wire::{Body, Malformed, NoRoom, bodies};

/// The kind of frames on the port for events.
pub const EVENT: u16 = 0x100;

bodies! {
    /// Something has happened. The tag of its frame is the lower half of its sequence number.
    Event<'a> {
        /// Grows by one with each event, from 1 on, whether it is read or not. A gap says how many were lost.
        sequence: u64,
        /// When, in microseconds since the machine was started.
        time_us: u64,
        /// What.
        kind: EventKind,
        /// The domain's id; [`crate::ALL`] for an event of the machine.
        domain: u32,
        /// The domain's name; empty for an event of the machine.
        name: &'a str,
        /// More about it, such as the reason of a crash. May be empty.
        text: &'a str,
    }
}

impl<'a> Event<'a> {
    /// Writes the event as a frame and returns its length in bytes.
    ///
    /// # Errors
    ///
    /// The buffer is too short.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let [a, b, c, d, ..] = self.sequence.to_le_bytes();
        let tag = u32::from_le_bytes([a, b, c, d]);
        encode(Header { version: VERSION, kind: EVENT, status: 0, tag, length: 0 }, self, out)
    }

    /// Reads the event of a frame.
    ///
    /// # Errors
    ///
    /// It is another kind of frame, or the body is no event.
    pub fn decode(frame: &Frame<'a>) -> Result<Event<'a>, Malformed> {
        if frame.header.kind == EVENT { Event::read(frame.body) } else { Err(Malformed) }
    }
}
