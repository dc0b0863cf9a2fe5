//! dom0's console device: streams between programs in dom0 and EL2, and the consoles of other domains.
//!
//! | port | what it is |
//! |---|---|
//! | `org.doorward.control` | requests of a program in dom0, for the [`Server`] of EL2, and its answers |
//! | `org.doorward.events` | what EL2 tells by itself |
//! | `domain.NAME.console` | the console of the domain NAME, while the domain exists |
//!
//! While a program in dom0 has the console of a domain open, the domain's output goes there and not to EL2's console, and
//! what the program writes is the domain's input. So it is in Xen between a guest and xenconsoled. What the program does
//! not read in time is lost: a domain waits for the UART, but not for dom0.
//!
//! What a program in dom0 has written is handled by the vCPU whose access has told EL2 of it, in steps
//! ([`step`]), before it enters its guest again. So requests cost dom0's own time.

use super::Domain;
use super::streams::{CONSOLE, Link, Ports, STREAM, Server, Stream};
use super::table::Domains;
use crate::ids::{DomId, Intid, Ipa, PortId};
use crate::log_limited;
use crate::sync::set_once;
use crate::util::progress::Progress;
use crate::vgic::Signal;
use crate::virtio::Guest;
use crate::virtio::port::Port;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

/// What the device asks of its domain.
struct DeviceGuest<'a> {
    domain: &'a Domain,
    irq: Intid,
}

impl Guest for DeviceGuest<'_> {
    fn read(&self, at: Ipa, into: &mut [u8]) -> bool {
        self.domain.ram().read(at, into).is_ok()
    }

    fn write(&self, at: Ipa, from: &[u8]) -> bool {
        self.domain.ram().write(at, from).is_ok()
    }

    fn load16(&self, at: Ipa) -> Option<u16> {
        self.domain.ram().load16(at).ok()
    }

    fn store16(&self, at: Ipa, value: u16) -> bool {
        self.domain.ram().store16(at, value).is_ok()
    }

    fn set_line(&self, high: bool) {
        self.domain.vgic().inject_spi(&self.domain.port(), self.irq, Signal::Level(high));
    }
}

impl Domain {
    fn device_guest(&self, ports: &Ports) -> DeviceGuest<'_> {
        DeviceGuest { domain: self, irq: ports.irq }
    }

    /// Emulates a load of the device's registers.
    pub(super) fn ports_read(&self, offset: u64, bytes: u8) -> u64 {
        self.ports.as_ref().map_or(0, |ports| ports.device.read(offset, bytes))
    }

    /// Emulates a store to the device's registers. After [`Progress::More`], [`step`] is called.
    pub(super) fn ports_write(&self, offset: u64, bytes: u8, value: u64) -> Progress {
        let Some(ports) = &self.ports else { return Progress::Done };
        let served = ports.device.write(&self.device_guest(ports), offset, bytes, value);
        self.report_broken(ports);
        served
    }

    fn report_broken(&self, ports: &Ports) {
        if let Some(broken) = ports.device.take_broken() {
            log_limited!(Warn, self.id; "{}: console device: {broken}: stopped until it is reset", self.id);
        }
    }

    /// Calls `act` with the stream on which EL2 tells events, on any CPU, with no lock held. What is sent there while there
    /// is no room is lost: use [`send_whole`](Stream::send_whole). `None` if the domain has no console device.
    pub fn with_events<R>(&self, act: impl FnOnce(&Stream<'_>) -> R) -> Option<R> {
        self.with_stream(|ports| ports.events, act)
    }

    /// The same with the stream of requests, for a server that answers on another CPU than that of dom0's vCPU.
    pub fn with_control<R>(&self, act: impl FnOnce(&Stream<'_>) -> R) -> Option<R> {
        self.with_stream(|ports| ports.control, act)
    }

    fn with_stream<R>(&self, which: impl Fn(&Ports) -> PortId, act: impl FnOnce(&Stream<'_>) -> R) -> Option<R> {
        let ports = self.ports.as_ref()?;
        let done = act(&Stream::new(&ports.device, which(ports))?);
        ports.device.announce(&self.device_guest(ports), which(ports));
        Some(done)
    }

    /// Sets what serves `org.doorward.control`; the first one stays. Until there is one, what is
    /// written there is dropped.
    pub fn serve_control(&self, server: &'static dyn Server) {
        if let Some(ports) = &self.ports {
            let _ = set_once(&ports.server, server);
        }
    }

    /// Offers the domain's console to `dom0` as a port, for as long as the domain exists. Does nothing if this domain has
    /// no console, or dom0 no device.
    pub fn offer_console(&self, dom0: &'static Domain) {
        let name = self.name();
        let (Some(console), Some(ports)) = (&self.console, &dom0.ports) else { return };
        let port = Arc::new(Port::new(&alloc::format!("domain.{name}.console"), self.id.0, CONSOLE));
        match ports.device.add(&dom0.device_guest(ports), port.clone()) {
            Ok(id) => {
                let guest = Box::new(dom0.device_guest(ports));
                let _ = set_once(&console.output.link, Link { device: &ports.device, guest, id, port });
            }
            Err(_) => {
                log_limited!(Warn, self.id; "{} `{name}`: no port for its console: it is on the UART only", self.id);
            }
        }
    }

    /// Takes the port of the domain's console away from dom0, because the domain has ended.
    pub fn withdraw_console(&self) {
        if let Some(link) = self.console.as_ref().and_then(|console| console.output.link.get()) {
            link.device.remove(&*link.guest, link.id);
        }
    }

    /// Has dom0 get what the domain has just printed, if a program there has the console open.
    pub(super) fn announce_output(&self) {
        if let Some(link) = self.console.as_ref().and_then(|console| console.output.open_link()) {
            link.announce();
        }
    }

    /// Passes what a program in dom0 has typed to the emulated console, as far as that has room.
    pub(super) fn take_input(&self) {
        let Some(link) = self.console.as_ref().and_then(|console| console.output.link.get()) else { return };
        // Once more, because the announcement may bring more bytes, and nobody else would pass them on. After that, the guest
        // has something to read, and this is called again when it does.
        for _ in 0..2 {
            if !link.port.has_arrived() {
                return;
            }
            let taken = self.with_uart(|uart| {
                let (mut byte, mut taken) = ([0], false);
                while uart.input_room() > 0 && link.port.receive(&mut byte) == 1 {
                    let [byte] = byte;
                    taken |= uart.push_input(byte);
                }
                taken
            });
            if taken != Some(true) {
                return;
            }
            link.announce();
        }
    }
}

/// Performs one step of what dom0 has asked of its console device: passes on what has arrived at one port, has the server do a
/// piece of its work, or moves bytes. Called by dom0's vCPU, with no lock held, until it returns [`Progress::Done`].
pub fn step(domains: &Domains, dom0: &Domain) -> Progress {
    let Some(ports) = &dom0.ports else { return Progress::Done };
    if let Some((id, port)) = ports.device.take_arrived() {
        if id == ports.control {
            ports.is_due.store(true, Ordering::SeqCst);
        } else if id == ports.events {
            Stream::new(&ports.device, id).iter().for_each(drop_all);
            // A program may have opened it: it gets the events from now on.
            dom0.host.events.announce();
        } else if let Some(domain) = domains.get(DomId(port.user())) {
            domain.take_input();
        }
        return Progress::More;
    }
    if ports.is_due.swap(false, Ordering::SeqCst) {
        if serve(ports) == Progress::More {
            ports.is_due.store(true, Ordering::SeqCst);
        }
        return Progress::More;
    }
    let served = ports.device.step(&dom0.device_guest(ports));
    dom0.report_broken(ports);
    served
}

fn serve(ports: &Ports) -> Progress {
    let Some(stream) = Stream::new(&ports.device, ports.control) else { return Progress::Done };
    match ports.server.get() {
        Some(server) => server.step(&stream),
        None => {
            drop_all(&stream);
            Progress::Done
        }
    }
}

/// Drops what was written to a stream that nobody reads, so that the program that has written it does not wait.
fn drop_all(stream: &Stream<'_>) {
    let mut bytes = [0; 512];
    // At most what the port holds; the device then passes on what is left, which arrives again.
    for _ in 0..STREAM.from_guest / 512 {
        if stream.receive(&mut bytes) == 0 {
            break;
        }
    }
}
