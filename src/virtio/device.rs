//! A console device behind its lock, as a domain has it.
//!
//! The driver's vCPUs access the registers. The other sides of ports send and receive on any CPU, and then
//! [announce](Device::announce) the port. While the interrupt line is low, the CPU that announces a port serves it at
//! once; while it is high, the driver is about to acknowledge the interrupt, and serves the port then, on its own CPU and
//! in its own time. So a port that gets byte after byte fills a buffer with each interrupt, not with each byte, and a CPU
//! that runs another domain does no more than one step for the driver's.
//!
//! No announcement is lost: the port is in `attention` before the line is looked at, and the line is
//! known to be low before `attention` is looked at.

use super::Guest;
use super::console::NoPort;
use super::mmio::Mmio;
use super::port::Port;
use super::queue::Broken;
use super::set::AtomicPortSet;
use crate::ids::PortId;
use crate::sync::{Lock, Rank};
use crate::util::progress::Progress;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

/// A console device.
pub struct Device {
    /// Held until the level of the line has been reported, so that two CPUs report it in the order in which it changes.
    state: Lock<Mmio>,
    /// The ports whose other side has sent or received since they were served.
    attention: AtomicPortSet,
    /// The level of the line, as it was last reported.
    line: AtomicBool,
}

impl Device {
    /// A device in its reset state, without ports.
    #[must_use]
    pub fn new() -> Device {
        Device {
            state: Lock::new(Rank::Domain, Mmio::new()),
            attention: AtomicPortSet::default(),
            line: AtomicBool::new(false),
        }
    }

    /// Accesses the device, and reports the level of its line if that changes. Returns [`Progress::More`] as well if
    /// something has arrived for the other side of a port.
    fn with(&self, guest: &dyn Guest, access: impl FnOnce(&mut Mmio) -> Progress) -> Progress {
        let mut state = self.state.lock();
        state.console_mut().serve(self.attention.take());
        let served = access(&mut state);
        let line = state.line();
        if self.line.swap(line, Ordering::SeqCst) != line {
            guest.set_line(line);
        }
        if state.console().has_arrived() { Progress::More } else { served }
    }

    /// Emulates a load of `bytes` bytes at `offset`.
    #[must_use]
    pub fn read(&self, offset: u64, bytes: u8) -> u64 {
        self.state.lock().read(offset, bytes)
    }

    /// Emulates a store of `bytes` bytes at `offset`. After [`Progress::More`], the vCPU calls [`step`](Device::step) and
    /// [`take_arrived`](Device::take_arrived) before it enters its guest.
    pub fn write(&self, guest: &dyn Guest, offset: u64, bytes: u8, value: u64) -> Progress {
        let served = self.with(guest, |state| state.write(guest, offset, bytes, value));
        self.again(guest, served)
    }

    /// Does what there is to do, in a step of bounded length. Called by a vCPU of the driver's.
    pub fn step(&self, guest: &dyn Guest) -> Progress {
        self.with(guest, |state| state.step(guest))
    }

    /// A port was announced while its line was high, and has become low in this access.
    fn again(&self, guest: &dyn Guest, served: Progress) -> Progress {
        let missed = !self.line.load(Ordering::SeqCst) && !self.attention.is_empty();
        if missed && served == Progress::Done { self.step(guest) } else { served }
    }

    /// Has a port served in the next step, when its other side has sent or received bytes. For those who know that there will
    /// be one: [`announce`](Device::announce) sees to it.
    pub fn mark(&self, port: PortId) {
        self.attention.insert(port);
    }

    /// Has a port served whose other side has sent or received bytes. Called on any CPU, with no lock held.
    pub fn announce(&self, guest: &dyn Guest, port: PortId) {
        self.attention.insert(port);
        if self.line.load(Ordering::SeqCst) {
            return;
        }
        let _ = self.with(guest, |state| if state.line() { Progress::Done } else { state.step(guest) });
    }

    /// Adds a port before any driver is there. A new device has room for it.
    #[must_use]
    pub fn add_first(&self, port: Arc<Port>) -> PortId {
        self.state.lock().console_mut().add(port).unwrap_or_default()
    }

    /// A port.
    #[must_use]
    pub fn port(&self, port: PortId) -> Option<Arc<Port>> {
        self.state.lock().console().port(port).cloned()
    }

    /// Adds a port.
    ///
    /// # Errors
    ///
    /// [`NoPort`].
    pub fn add(&self, guest: &dyn Guest, port: Arc<Port>) -> Result<PortId, NoPort> {
        let mut added = Err(NoPort);
        let _ = self.with(guest, |state| {
            added = state.console_mut().add(port);
            state.step(guest)
        });
        added
    }

    /// Takes a port away, after the driver has got what it can take of its bytes.
    pub fn remove(&self, guest: &dyn Guest, port: PortId) {
        let _ = self.with(guest, |state| {
            state.console_mut().remove(port);
            state.step(guest)
        });
    }

    /// Takes a port for whose other side something has come: bytes, room for what did not fit, the begin of a session, or
    /// its end.
    #[must_use]
    pub fn take_arrived(&self) -> Option<(PortId, Arc<Port>)> {
        let mut state = self.state.lock();
        loop {
            let id = state.console_mut().take_arrived()?;
            if let Some(port) = state.console().port(id) {
                return Some((id, port.clone()));
            }
        }
    }

    /// How the driver has broken the device, if it has since the last call.
    #[must_use]
    pub fn take_broken(&self) -> Option<Broken> {
        self.state.lock().take_broken()
    }
}

impl Default for Device {
    fn default() -> Self {
        Device::new()
    }
}
