//! A virtual ITS: the interpreter behind a lock.

use super::Backend;
#[cfg(any(test, fuzzing))]
use super::config::Usage;
use super::config::{ConfigError, VitsConfig};
use super::interpreter::{Budget, State};
use super::refusal::Counters;
use super::regs;
use crate::ids::{CollectionId, DeviceId, EventId, ItsId, VIntid, VcpuId};
use crate::sync::{Lock, Rank};
use crate::util::progress::Progress;

/// Number of host operations that a register write does itself: those of one command. Another vCPU that accesses the
/// registers meanwhile waits for the lock.
const WRITE_BUDGET: usize = 1;

/// A virtual ITS.
pub struct Vits {
    its: ItsId,
    state: Lock<State>,
}

impl Vits {
    /// Size of its region, in bytes: the control frame and the translation frame.
    pub const BYTES: u64 = 2 * regs::FRAME;

    /// A virtual ITS at reset. Allocates all the memory that it ever uses.
    pub fn new(config: VitsConfig) -> Result<Vits, ConfigError> {
        let ranges = [
            ("device_bits", config.device_bits, 1, 32),
            ("event_bits", config.event_bits, 1, 32),
            ("collection_bits", config.collection_bits, 1, 16),
            ("id_bits", config.id_bits, 14, 24),
            ("device_event_bits", config.quota.device_event_bits, 1, 20),
        ];
        for (name, value, low, high) in ranges {
            if value < low || value > high {
                return Err(ConfigError::OutOfRange(name));
            }
        }
        Ok(Vits { its: config.its, state: Lock::new(Rank::Vits, State::new(config)?) })
    }

    /// The physical ITS behind it.
    #[must_use]
    pub fn its(&self) -> ItsId {
        self.its
    }

    /// Handles a guest's read of `size` bytes (1, 2, 4 or 8) at `offset` of the region.
    #[must_use]
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        self.state.lock().read(offset, size)
    }

    /// Handles a guest's write and begins the work that it causes. After [`Progress::More`], call [`run`](Vits::run).
    pub fn write(&self, backend: &dyn Backend, offset: u64, size: u8, value: u64) -> Progress {
        let mut state = self.state.lock();
        state.write(offset, size, value);
        state.run(backend, &mut Budget::new(WRITE_BUDGET))
    }

    /// Continues the work, for about `budget` host operations and at least one. Does nothing, and returns
    /// [`Progress::More`], while another CPU does the work.
    pub fn run(&self, backend: &dyn Backend, budget: usize) -> Progress {
        match self.state.try_lock() {
            Some(mut state) => state.run(backend, &mut Budget::new(budget)),
            None => Progress::More,
        }
    }

    /// Requests that [`run`](Vits::run) reads the configuration of a vCPU's events: its GICR_CTLR.EnableLPIs has
    /// changed from 0 to 1.
    pub fn lpis_enabled(&self, vcpu: VcpuId) -> Progress {
        self.state.lock().lpis_enabled(vcpu)
    }

    /// Resets the registers, and requests that [`run`](Vits::run) unmaps all events and devices.
    pub fn reset(&self) -> Progress {
        self.state.lock().reset()
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.state.lock().counters().clone()
    }

    /// How much of its quota the guest uses.
    #[cfg(any(test, fuzzing))]
    pub fn usage(&self) -> Usage {
        self.state.lock().usage()
    }

    /// The vINTID of a mapped event and the vCPU that the host has it mapped to, if any.
    #[cfg(test)]
    pub fn lookup(&self, device: DeviceId, event: EventId) -> Option<(VIntid, Option<VcpuId>)> {
        self.state.lock().lookup(device, event)
    }

    /// Visits mapped events from `from` on, by DeviceID, then EventID, until `visit` returns `false` or `entries` entries,
    /// mapped or not, have been read. Returns where to continue, or `None` if there is no further entry. Devices may be
    /// mapped and unmapped between two calls. The lock is held during a call.
    pub fn visit_events(
        &self,
        from: (DeviceId, EventId),
        entries: usize,
        visit: &mut dyn FnMut(DeviceId, EventId, VIntid, Option<VcpuId>) -> bool,
    ) -> Option<(DeviceId, EventId)> {
        self.state.lock().visit_events(from, entries, visit)
    }

    /// Visits each mapped event, by DeviceID, then EventID, with its vINTID, its collection and the vCPU that the host
    /// has it mapped to. The lock is held meanwhile.
    pub fn for_each_event(&self, visit: &mut dyn FnMut(DeviceId, EventId, VIntid, CollectionId, Option<VcpuId>)) {
        self.state.lock().for_each_event(visit);
    }
}
