//! A virtual ITS: the interpreter behind a lock.

use super::Backend;
use super::config::{ConfigError, Progress, Usage, VitsConfig};
use super::interpreter::{Budget, State};
use super::refusal::Counters;
use super::regs;
use crate::ids::{CollectionId, DeviceId, EventId, VIntid, VcpuId};
use crate::sync::{Lock, Rank};

/// How much work a register write does itself, in host operations.
const WRITE_BUDGET: usize = 32;

/// A virtual ITS.
pub struct Vits {
    state: Lock<State>,
}

impl Vits {
    /// The size of the region: the control frame and the translation frame.
    pub const BYTES: u64 = 2 * regs::FRAME;

    /// A vITS at reset, with all the memory it will ever use.
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
        Ok(Vits { state: Lock::new(Rank::Vits, State::new(config)?) })
    }

    /// A guest's read of `size` bytes (1, 2, 4 or 8) at `offset` of the region.
    #[must_use]
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        self.state.lock().read(offset, size)
    }

    /// A guest's write. Work that it sets off is begun; [`Progress::More`] asks for [`run`](Vits::run).
    pub fn write(&self, backend: &dyn Backend, offset: u64, size: u8, value: u64) -> Progress {
        let mut state = self.state.lock();
        state.write(offset, size, value);
        state.run(backend, &mut Budget::new(WRITE_BUDGET))
    }

    /// Goes on with the work at hand, for about `budget` host operations (one at least).
    pub fn run(&self, backend: &dyn Backend, budget: usize) -> Progress {
        self.state.lock().run(backend, &mut Budget::new(budget))
    }

    /// GICR_CTLR.EnableLPIs of this vCPU went from 0 to 1: the configuration of its events is read (by `run`).
    pub fn lpis_enabled(&self, vcpu: VcpuId) -> Progress {
        self.state.lock().lpis_enabled(vcpu)
    }

    /// Back to reset: `run` takes every event and device down. The registers are at reset at once.
    pub fn reset(&self) -> Progress {
        self.state.lock().reset()
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.state.lock().counters().clone()
    }

    /// How much of its quota is in use.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.state.lock().usage()
    }

    /// A mapped event's vINTID, and the vCPU to which the host has it mapped, if it has.
    #[must_use]
    pub fn lookup(&self, device: DeviceId, event: EventId) -> Option<(VIntid, Option<VcpuId>)> {
        self.state.lock().lookup(device, event)
    }

    /// Visits each mapped event, by DeviceID, then EventID. The vITS is locked meanwhile.
    pub fn for_each_event(&self, visit: &mut dyn FnMut(DeviceId, EventId, VIntid, CollectionId, Option<VcpuId>)) {
        self.state.lock().for_each_event(visit);
    }
}
