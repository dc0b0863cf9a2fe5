//! dom0's console device and its ports, as data: what other domains' consoles and EL2's server hold of it.
//!
//! `ports` has what a domain does with it.

use crate::console::ring::Ring;
use crate::dev::pl011;
use crate::ids::{Intid, PortId};
use crate::sync::Once;
use crate::util::progress::Progress;
use crate::util::range::Range;
use crate::virtio::Guest;
use crate::virtio::device::Device;
use crate::virtio::port::{Capacity, Port};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::AtomicBool;

/// The port for requests and answers.
const CONTROL: &str = "org.doorward.control";
/// The port for events.
const EVENTS: &str = "org.doorward.events";

/// The sizes of the buffers of EL2's own streams. Behind what dom0 sends are sixteen buffers of up to 32 KiB in its own
/// memory.
pub(super) const STREAM: Capacity = Capacity { to_guest: 16 << 10, from_guest: 16 << 10 };
/// Those of a domain's console. Behind what a domain prints are sixteen buffers of 4 KiB in dom0's memory.
pub(super) const CONSOLE: Capacity = Capacity { to_guest: 4 << 10, from_guest: 256 };

/// [`Port::user`] of EL2's own streams; that of a console is the number of its domain.
const OWN: u16 = u16::MAX;

/// The console device of dom0.
pub struct Ports {
    /// Its registers.
    pub(super) regs: Range,
    pub(super) irq: Intid,
    pub(super) device: Device,
    pub(super) control: PortId,
    pub(super) events: PortId,
    pub(super) server: Once<&'static dyn Server>,
    /// The server may have something to do.
    pub(super) is_due: AtomicBool,
}

impl Ports {
    /// The device with EL2's own streams.
    #[must_use]
    pub fn new(regs: Range, irq: Intid) -> Ports {
        let device = Device::new();
        let add = |name| device.add_first(Arc::new(Port::new(name, OWN, STREAM)));
        let [control, events] = [CONTROL, EVENTS].map(add);
        Ports { regs, irq, device, control, events, server: Once::new(), is_due: AtomicBool::new(false) }
    }
}

/// What serves `org.doorward.control`.
pub trait Server: Sync {
    /// Does a piece of what was asked for, which keeps a CPU no longer than 100 us. Called on dom0's vCPU that has sent
    /// something, with no lock held, after bytes have come or the driver has opened or closed the port, and then again
    /// until it returns [`Progress::Done`]: nothing is left to do before more bytes come, or before there is room for what did not
    /// fit.
    fn step(&self, stream: &Stream<'_>) -> Progress;
}

/// A stream of bytes between a program in dom0 and EL2.
pub struct Stream<'a> {
    device: &'a Device,
    id: PortId,
    port: Arc<Port>,
}

impl<'a> Stream<'a> {
    /// A port of `device`. The caller has the device perform a step after it has been used.
    pub(super) fn new(device: &'a Device, id: PortId) -> Option<Stream<'a>> {
        Some(Stream { device, id, port: device.port(id)? })
    }

    /// Whether a program has opened the stream.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.port.is_open()
    }

    /// A number that changes whenever a program opens or closes the stream. What was sent and received in another session
    /// has nothing to do with this one.
    #[must_use]
    pub fn session(&self) -> u32 {
        self.port.session()
    }

    /// Takes bytes that the program has written, at most as many as fit `into`, and returns their number.
    pub fn receive(&self, into: &mut [u8]) -> usize {
        let count = self.port.receive(into);
        self.mark(count > 0);
        count
    }

    /// Sends bytes to the program, as many as there is room for, and returns their number. None if it is not open. If not all
    /// fit, the [`Server`] is called again when the program has read some.
    pub fn send(&self, from: &[u8]) -> usize {
        let count = self.port.send(from);
        self.mark(count > 0);
        count
    }

    /// Sends all of `from`, or nothing if there is no room for all.
    pub fn send_whole(&self, from: &[u8]) -> bool {
        let sent = self.port.send_whole(from);
        self.mark(sent);
        sent
    }

    /// The number of bytes that can be sent.
    #[must_use]
    pub fn room_to_send(&self) -> usize {
        self.port.room_to_send()
    }

    fn mark(&self, changed: bool) {
        if changed {
            self.device.mark(self.id);
        }
    }
}

/// The port in dom0 of a domain's console.
pub(super) struct Link {
    pub device: &'static Device,
    pub guest: Box<dyn Guest + Send + Sync>,
    pub id: PortId,
    pub port: Arc<Port>,
}

impl Link {
    /// Has the device serve the port.
    pub fn announce(&self) {
        self.device.announce(&*self.guest, self.id);
    }
}

/// Where the console of a domain sends to: EL2's console or, while a program in dom0 has it open, its port.
pub(super) struct Output {
    /// What waits for the UART.
    pub(super) ring: Arc<Ring>,
    pub(super) link: Once<Link>,
}

impl Output {
    pub(super) fn new(capacity: usize) -> Output {
        Output { ring: Arc::new(Ring::new(capacity)), link: Once::new() }
    }

    pub(super) fn open_link(&self) -> Option<&Link> {
        self.link.get().filter(|link| link.port.is_open())
    }
}

impl pl011::Output for Arc<Output> {
    fn push(&self, byte: u8) -> bool {
        match self.open_link() {
            // A byte for which there is no room counts as sent: the guest does not wait for dom0.
            Some(link) => {
                let _ = link.port.send_whole(&[byte]);
                true
            }
            None => self.ring.push(byte),
        }
    }

    fn room(&self) -> usize {
        self.open_link().map_or_else(|| self.ring.room(), |_| usize::MAX)
    }

    fn is_low(&self) -> bool {
        self.open_link().is_some() || self.ring.is_low()
    }

    fn request_room(&self) -> bool {
        self.open_link().is_none() && self.ring.request_room()
    }
}
