//! How a port is announced to the driver, and how it is taken away: one control message after the other (virtio 1.2,
//! 5.3.6.2).
//!
//! ```text
//! New ──PORT_ADD──► Added ··PORT_READY··► Ready ──PORT_NAME──► Named ──PORT_OPEN 1──► Connected
//!   └─ the driver refuses: Refused                                                        │ the port is withdrawn
//! Free ◄──PORT_REMOVE── Leaving ◄··the driver closes·· Ended ◄──PORT_OPEN 0── Ending ◄────┘
//! ```
//!
//! A port that is withdrawn while the driver has it open first ends: the driver gets what is left, then PORT_OPEN with 0,
//! which its reader sees as the end of the file. It is removed when the driver has closed it, since Linux drops what is
//! unread when a port is removed.

use super::port::{Open, Port};
use crate::ids::PortId;
use alloc::sync::Arc;
use arrayvec::ArrayVec;

/// Events of control messages (5.3.6.2).
pub mod event {
    /// The driver is there.
    pub const DEVICE_READY: u16 = 0;
    /// There is a port.
    pub const PORT_ADD: u16 = 1;
    /// A port is gone.
    pub const PORT_REMOVE: u16 = 2;
    /// The driver uses a port, or does not want it.
    pub const PORT_READY: u16 = 3;
    /// The other side, or the driver, has opened or closed a port.
    pub const PORT_OPEN: u16 = 6;
    /// The name of a port follows.
    pub const PORT_NAME: u16 = 7;
}

/// Size of a control message without a name, in bytes.
pub const MESSAGE: usize = 8;

/// The longest name of a port that is announced, in bytes.
pub const NAME: usize = 120;

/// A control message: number of the port, event, value, and a name.
pub type Message = ArrayVec<u8, { MESSAGE + NAME }>;

/// How far a port has been announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// There is no port.
    #[default]
    Free,
    /// PORT_ADD has to be sent.
    New,
    /// PORT_READY of the driver is awaited.
    Added,
    /// PORT_NAME has to be sent.
    Ready,
    /// PORT_OPEN with 1 has to be sent.
    Named,
    /// The driver knows all.
    Connected,
    /// The driver does not want the port.
    Refused,
    /// PORT_OPEN with 0 has to be sent when the driver has got all bytes.
    Ending,
    /// The driver is expected to close the port.
    Ended,
    /// PORT_REMOVE has to be sent.
    Leaving,
}

/// The place of a port in a device.
#[derive(Default)]
pub struct Slot {
    pub phase: Phase,
    pub port: Option<Arc<Port>>,
}

impl Slot {
    /// The port, if bytes can pass between it and the driver.
    pub fn active(&self) -> Option<&Arc<Port>> {
        let passes = matches!(
            self.phase,
            Phase::Added | Phase::Ready | Phase::Named | Phase::Connected | Phase::Refused | Phase::Ending
        );
        self.port.as_ref().filter(|_| passes)
    }

    /// The control message that has to be sent next, if any, as bytes.
    pub fn message(&self, id: PortId) -> Option<Message> {
        let (event, value) = match self.phase {
            Phase::New => (event::PORT_ADD, 0),
            Phase::Ready => (event::PORT_NAME, 0),
            Phase::Named => (event::PORT_OPEN, 1),
            Phase::Ending if self.port.as_ref().is_none_or(|port| port.to_fetch() == 0) => (event::PORT_OPEN, 0),
            Phase::Leaving => (event::PORT_REMOVE, 0),
            _ => return None,
        };
        let mut message = Message::new();
        message.extend(u32::from(id.0).to_le_bytes());
        message.extend(u16::to_le_bytes(event));
        message.extend(u16::to_le_bytes(value));
        if event == event::PORT_NAME {
            let name = self.port.as_ref().map_or("", |port| port.name());
            message.extend(name.bytes().take(NAME));
        }
        Some(message)
    }

    /// The message has been sent.
    pub fn sent(&mut self) {
        self.phase = match self.phase {
            Phase::New => Phase::Added,
            Phase::Ready => Phase::Named,
            Phase::Named => Phase::Connected,
            Phase::Ending => Phase::Ended,
            Phase::Leaving => Phase::Free,
            other => other,
        };
    }

    /// The driver has answered PORT_ADD.
    pub fn answered(&mut self, value: u16) {
        if self.phase == Phase::Added {
            self.phase = if value == 1 { Phase::Ready } else { Phase::Refused };
        }
    }

    /// The driver has opened or closed the port. Returns whether that changes something.
    pub fn opened(&mut self, open: Open) -> bool {
        if open == Open::No && matches!(self.phase, Phase::Ending | Phase::Ended) {
            self.leave();
            return true;
        }
        // Nobody begins a session with a port that ends.
        let may_open = matches!(self.phase, Phase::Added | Phase::Ready | Phase::Named | Phase::Connected);
        match &self.port {
            Some(port) if may_open || open == Open::No => {
                port.set_open(open);
                true
            }
            _ => false,
        }
    }

    /// The port is withdrawn.
    pub fn withdraw(&mut self) {
        let is_open = self.port.as_ref().is_some_and(|port| port.is_open());
        match self.phase {
            Phase::Free | Phase::Leaving | Phase::Ending | Phase::Ended => {}
            Phase::New => *self = Slot::default(),
            Phase::Ready | Phase::Named | Phase::Connected if is_open => self.phase = Phase::Ending,
            _ => self.leave(),
        }
    }

    /// The port is removed, whether the driver has closed it or not.
    pub fn leave(&mut self) {
        if let Some(port) = self.port.take() {
            port.set_open(Open::No);
        }
        self.phase = Phase::Leaving;
    }

    /// The driver has reset the device: it knows of no port.
    pub fn reset(&mut self) {
        if let Some(port) = &self.port {
            port.set_open(Open::No);
        }
        match self.phase {
            Phase::Free | Phase::Leaving | Phase::Ending | Phase::Ended => *self = Slot::default(),
            _ => self.phase = Phase::New,
        }
    }
}
