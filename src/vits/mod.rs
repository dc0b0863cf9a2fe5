//! The ITS that a guest sees.
//!
//! A guest programs its ITS by a queue of commands in its own memory. This room reads them, checks every number in
//! them, keeps what they say in EL2's memory under a quota ([`shadow`]), and asks the host side for what follows: a
//! mapping, a move, an interrupt made pending. The host side is a trait, [`Backend`], which the domain implements; it
//! alone knows whether an event is injected directly (a VMAPTI on the host's ITS) or by list register.
//!
//! One rule ties the two sides together. **An event is mapped on the host exactly while the guest's ITS is enabled and
//! its device, its event and its collection are all mapped**; then the host has it mapped to the collection's vCPU.
//! MAPTI, MAPC, MOVI and GITS_CTLR.Enabled change one of these conditions, and what they do is to re-establish the
//! rule for the events concerned. If the host refuses, the event counts as not mapped there, and the next command that
//! touches it tries again; the guest's view does not change.
//!
//! One guest command may stand for thousands of host commands (MAPC on a full collection, MAPD V=0 on a large device,
//! INVALL, MOVALL, and the walk that an enable or disable entails). Such work is a task with a cursor. [`Vits::run`]
//! does as much of it as its budget allows, and GITS_CREADR passes a command only when its work is done. The vCPU that
//! wrote the register may not run before [`Progress::Done`].
//!
//! The commands and registers are IHI 0069, chapter 5 and 12.19. Deliberately not here: the virtual redistributors'
//! side of LPIs (configuration and pending tables), MSIs themselves (devices reach the host's ITS), saving and
//! restoring, and the guest's ITS tables.
#![deny(
    clippy::panic,
    clippy::todo,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    allow(
        clippy::panic,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod command;
mod interpreter;
mod refusal;
mod regs;
mod shadow;

#[cfg(test)]
mod behaviour;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod stream;

pub use refusal::{Counters, Refusal};

use crate::ids::{CollectionId, DeviceId, DomId, EventId, Ipa, ItsId, VIntid, VcpuId};
use crate::sync::{Lock, Rank};
use interpreter::{Budget, State};

/// How much of the host a guest may take through one vITS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Devices mapped at once.
    pub devices: u16,
    /// Events mapped at once, over all devices.
    pub events: u32,
    /// ITT entries, over all mapped devices: each takes a slot in EL2's heap and one in a host ITT.
    pub itt_entries: u32,
    /// EventID bits of one device; what a guest asks for beyond it is mapped but takes no events there. 11 bits are
    /// the 2048 vectors of MSI-X.
    pub device_event_bits: u8,
}

/// What a guest has mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Devices.
    pub devices: usize,
    /// Events, over all devices.
    pub events: u32,
}

/// What a command error does to the queue (IHI 0069, 5.3.1: the implementation chooses).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The command is skipped.
    Skip,
    /// GITS_CREADR.Stalled is set and the queue waits for GITS_CWRITER.Retry.
    Stall,
}

/// The shape of a vITS.
#[derive(Clone, Copy, Debug)]
pub struct VitsConfig {
    /// Whose it is, for log lines.
    pub domain: DomId,
    /// The host ITS behind it.
    pub its: ItsId,
    /// DeviceID bits, 1 to 32.
    pub device_bits: u8,
    /// EventID bits, 1 to 32.
    pub event_bits: u8,
    /// Collection number bits, 1 to 16. Linux uses its CPU numbers.
    pub collection_bits: u8,
    /// INTID bits, 14 to 24: a vINTID is one of 8192..2^id_bits.
    pub id_bits: u8,
    /// What the guest may use up.
    pub quota: Quota,
    /// What a command error does.
    pub on_error: OnError,
}

/// Why a vITS cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// A number is outside what its documentation says; which one.
    OutOfRange(&'static str),
    /// No memory for the shadow state.
    NoMemory,
}

/// Whether all that the guest asked for is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a vCPU may not go on before the work is done"]
pub enum Progress {
    /// Nothing is left to do.
    Done,
    /// [`Vits::run`] is to be called again.
    More,
}

/// Why the host could not do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendError {
    /// No memory for a table.
    NoMemory,
    /// No physical LPI or vPE left.
    NoLpi,
    /// The host does not have this device or event.
    NotMapped,
    /// The host's ITS did not do it in time.
    Hardware,
}

/// The host, as a vITS needs it.
///
/// Called with the vITS's lock (`Rank::Vits`) held: an implementation takes higher ranks only and does not call back.
/// `vintid` and `vcpu` come with an event so that the host need not keep them; several events may share a vINTID.
pub trait Backend {
    /// Copies from the guest's memory. `false` unless all of it is memory of the domain.
    fn read_guest(&self, ipa: Ipa, buf: &mut [u8]) -> bool;
    /// How many vCPUs the domain has.
    fn vcpus(&self) -> u16;
    /// The vCPU whose GICR_TYPER.Processor_Number is `rdbase` (GITS_TYPER.PTA is 0).
    fn vcpu_by_target(&self, rdbase: u64) -> Option<VcpuId>;
    /// Whether the device is the domain's. Asked before anything is mapped for it.
    fn owns_device(&self, its: ItsId, device: DeviceId) -> bool;

    /// Gives the device an ITT for 2^`event_bits` events.
    fn map_device(&self, its: ItsId, device: DeviceId, event_bits: u8) -> Result<(), BackendError>;
    /// Takes it away. All its events have been unmapped.
    fn unmap_device(&self, its: ItsId, device: DeviceId) -> Result<(), BackendError>;

    /// Maps an event that is not mapped. [`reload_config_byte_only`](Backend::reload_config_byte_only) came just before.
    /// On an error the event is not mapped.
    fn map_event(
        &self,
        its: ItsId,
        device: DeviceId,
        event: EventId,
        vcpu: VcpuId,
        vintid: VIntid,
    ) -> Result<(), BackendError>;
    /// Moves a mapped event with its pending state. On an error the event is not mapped.
    fn move_event(
        &self,
        its: ItsId,
        device: DeviceId,
        event: EventId,
        vintid: VIntid,
        from: VcpuId,
        to: VcpuId,
    ) -> Result<(), BackendError>;
    /// Unmaps a mapped event and drops its pending state (DISCARD, MAPD, MAPTI over a mapping). It counts as unmapped
    /// after an error, too.
    fn unmap_event(
        &self,
        its: ItsId,
        device: DeviceId,
        event: EventId,
        vintid: VIntid,
        vcpu: VcpuId,
    ) -> Result<(), BackendError>;
    /// Unmaps a mapped event; an interrupt that is already pending should stay so (MAPC V=0 and GITS_CTLR.Enabled = 0
    /// end translation, they do not reach into a redistributor). One extra edge is allowed.
    fn park_event(
        &self,
        its: ItsId,
        device: DeviceId,
        event: EventId,
        vintid: VIntid,
        vcpu: VcpuId,
    ) -> Result<(), BackendError>;

    /// INT on a mapped event.
    fn set_pending(&self, its: ItsId, device: DeviceId, event: EventId, vintid: VIntid, vcpu: VcpuId);
    /// CLEAR on a mapped event.
    fn clear_pending(&self, its: ItsId, device: DeviceId, event: EventId, vintid: VIntid, vcpu: VcpuId);

    /// INV on a mapped event: reads the guest's configuration byte, applies it, invalidates what caches it.
    fn reload_config(&self, its: ItsId, device: DeviceId, event: EventId, vintid: VIntid, vcpu: VcpuId);
    /// Reads the guest's configuration byte and applies it; what caches it is dealt with afterwards.
    fn reload_config_byte_only(&self, vintid: VIntid, vcpu: VcpuId);
    /// Invalidates all that is cached for a vCPU, after its bytes were reloaded.
    fn invalidate_all(&self, vcpu: VcpuId);

    /// MOVALL: moves software-pending interrupts, a bounded stretch of them from `resume` (0 at first; the meaning is
    /// the implementation's own). `Some` says where to go on, `None` that all are moved.
    fn move_all_pending(&self, from: VcpuId, to: VcpuId, resume: u32) -> Option<u32>;
}

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
