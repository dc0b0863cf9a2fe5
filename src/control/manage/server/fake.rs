//! A client for tests.

use super::Stream;
use doorward_api::{HEADER_LEN, Header};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::vec::Vec;

/// A stream whose other end is the test. It is closed at first, and its client reads nothing by itself.
#[derive(Default)]
pub struct Pipe {
    /// The session; odd while the stream is open.
    pub session: Cell<u32>,
    /// Bytes for the server.
    pub to_server: RefCell<VecDeque<u8>>,
    /// Bytes for the client.
    pub to_client: RefCell<VecDeque<u8>>,
    /// How many bytes the client leaves unread at most.
    pub room: Cell<usize>,
}

impl Pipe {
    fn left(&self) -> usize {
        self.room.get().saturating_sub(self.to_client.borrow().len())
    }

    /// Takes the next whole frame that the server has sent.
    ///
    /// # Panics
    ///
    /// If the server has sent something that is no frame.
    pub fn frame(&self) -> Option<(Header, Vec<u8>)> {
        let mut bytes = self.to_client.borrow_mut();
        let head: Vec<u8> = bytes.iter().take(HEADER_LEN).copied().collect();
        let header = Header::read(&head.try_into().ok()?).expect("the server sends frames");
        let whole = HEADER_LEN + header.length as usize;
        (bytes.len() >= whole).then(|| (header, bytes.drain(..whole).skip(HEADER_LEN).collect()))
    }
}

impl Stream for Pipe {
    fn session(&self) -> u32 {
        self.session.get()
    }

    fn receive(&self, into: &mut [u8]) -> usize {
        let mut bytes = self.to_server.borrow_mut();
        let count = into.len().min(bytes.len());
        into.iter_mut().zip(bytes.drain(..count)).for_each(|(to, from)| *to = from);
        count
    }

    fn send(&self, from: &[u8]) -> usize {
        let count = from.len().min(self.left());
        self.to_client.borrow_mut().extend(&from[..count]);
        count
    }

    fn send_whole(&self, from: &[u8]) -> bool {
        from.len() <= self.left() && self.send(from) == from.len()
    }
}
