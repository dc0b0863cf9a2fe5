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
mod config;
mod interpreter;
mod its;
mod refusal;
mod regs;
mod shadow;

#[cfg(test)]
mod behaviour;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod stream;

pub use config::{ConfigError, OnError, Progress, Quota, Usage, VitsConfig};
pub use its::Vits;
pub use refusal::{Counters, Refusal};

#[cfg(test)]
use crate::ids::DomId;
use crate::ids::{DeviceId, EventId, Ipa, ItsId, VIntid, VcpuId};

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

    /// Maps an event that is not mapped. [`reload_config_byte_only`](Backend::reload_config_byte_only) came just
    /// before. On an error the event is not mapped.
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
