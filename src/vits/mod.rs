//! The ITS that a guest sees.
//!
//! | file | contents |
//! |---|---|
//! | `mod.rs` | [`Backend`]: what a virtual ITS asks of its host |
//! | `its` | [`Vits`]: a virtual ITS behind its lock |
//! | `config` | configuration, quotas and results |
//! | `regs` | the registers |
//! | `command` | decodes commands |
//! | `interpreter` | executes commands |
//! | `shadow` | the guest's mappings, in EL2's memory |
//! | `refusal` | why a request was not carried out, and counters of that |
//! | `behaviour`, `stream`, `fake` | tests: one rule each; random command streams; a host that checks its calls |
//!
//! A guest programs its ITS by a queue of commands in its own memory. A virtual ITS reads them, checks every number in
//! them, keeps the mappings in EL2's memory under a quota, and asks its host for the rest: to map or move an event, or
//! to make an interrupt pending. The host is a trait, [`Backend`], which the domain implements. Only the host knows
//! whether an event is injected directly (by a VMAPTI on the physical ITS) or by list register.
//!
//! One rule connects the two sides: **an event is mapped on the host exactly while the guest's ITS is enabled and the
//! event, its device and its collection are all mapped**; it is then mapped to the vCPU of the collection. MAPTI, MAPC,
//! MOVI and GITS_CTLR.Enabled change one of these conditions, and then re-establish the rule for the events concerned.
//! If the host fails, the event counts as not mapped there, and the next command for it tries again; the guest's view
//! does not change.
//!
//! One command of a guest may need thousands of operations on the host: MAPC of a full collection, MAPD with V = 0 for
//! a large device, INVALL, MOVALL, and a change of GITS_CTLR.Enabled. Such work is a task with a cursor. [`Vits::run`]
//! does as much of it as its budget and its time allow, and GITS_CREADR advances past a command only when its work is
//! done and is in effect on all vCPUs. The vCPU that wrote the register must not run before [`Done`](crate::util::progress::Progress::Done).
//!
//! Commands and registers are described in IHI 0069, chapter 5 and 12.19. Not here: the LPI tables of the virtual
//! redistributors, MSIs (devices write to the physical ITS), saving and restoring, and the guest's ITS tables.
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
pub(crate) mod fake;
#[cfg(test)]
mod stream;

#[cfg(any(test, fuzzing))]
pub use config::Usage;
pub use config::{ConfigError, OnError, Quota, VitsConfig};
pub use its::Vits;
pub use refusal::{Counters, Refusal};

use crate::ids::{DeviceId, EventKey, Ipa, ItsId, VIntid, VcpuId};
#[cfg(test)]
use crate::ids::{DomId, EventId};
#[cfg(test)]
use crate::util::progress::Progress;

/// Why the host could not carry out an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendError {
    /// There is no memory for a table.
    NoMemory,
    /// All physical LPIs or vPEs are in use.
    NoLpi,
    /// The device or event is not mapped on the host.
    NotMapped,
    /// The physical ITS did not complete a command in time.
    Hardware,
}

/// What a virtual ITS asks of its host.
///
/// Called with the lock of the virtual ITS (`Rank::Vits`) held: an implementation takes locks of higher ranks only and
/// does not call back. `vintid` and `vcpu` are passed with an event so that the host need not store them; several
/// events may share a vINTID.
pub trait Backend {
    /// Copies from the guest's memory. Returns `false` unless all of it is memory of the domain.
    fn read_guest(&self, ipa: Ipa, buf: &mut [u8]) -> bool;
    /// Number of vCPUs of the domain.
    fn vcpus(&self) -> u16;
    /// The vCPU whose GICR_TYPER.Processor_Number is `rdbase` (GITS_TYPER.PTA is 0).
    fn vcpu_by_target(&self, rdbase: u64) -> Option<VcpuId>;
    /// Whether the domain owns the device. Called before the device is mapped.
    fn owns_device(&self, its: ItsId, device: DeviceId) -> bool;

    /// Maps the device, with an ITT for 2^`event_bits` events.
    fn map_device(&self, its: ItsId, device: DeviceId, event_bits: u8) -> Result<(), BackendError>;
    /// Unmaps the device, whose events have all been unmapped.
    fn unmap_device(&self, its: ItsId, device: DeviceId) -> Result<(), BackendError>;

    /// Maps an event that is not mapped. [`reload_config_byte_only`](Backend::reload_config_byte_only) was called for
    /// it just before. After an error the event is not mapped.
    fn map_event(&self, key: EventKey, vcpu: VcpuId, vintid: VIntid) -> Result<(), BackendError>;
    /// Moves a mapped event with its pending state. After an error the event is not mapped.
    fn move_event(&self, key: EventKey, vintid: VIntid, from: VcpuId, to: VcpuId) -> Result<(), BackendError>;
    /// Unmaps a mapped event and clears its pending state (DISCARD, MAPD, MAPTI of a mapped event). It counts as
    /// unmapped after an error, too.
    fn unmap_event(&self, key: EventKey, vintid: VIntid, vcpu: VcpuId) -> Result<(), BackendError>;
    /// Unmaps a mapped event, but an interrupt that is pending should stay pending: MAPC with V = 0 and
    /// GITS_CTLR.Enabled = 0 end the translation and do not affect a redistributor. One additional edge is allowed.
    fn park_event(&self, key: EventKey, vintid: VIntid, vcpu: VcpuId) -> Result<(), BackendError>;

    /// Makes a mapped event pending (INT).
    fn set_pending(&self, key: EventKey, vintid: VIntid, vcpu: VcpuId);
    /// Clears the pending state of a mapped event (CLEAR).
    fn clear_pending(&self, key: EventKey, vintid: VIntid, vcpu: VcpuId);

    /// Reads the guest's configuration byte of a mapped event, applies it and invalidates cached copies (INV).
    fn reload_config(&self, key: EventKey, vintid: VIntid, vcpu: VcpuId);
    /// Reads the guest's configuration byte and applies it. The caller has cached copies invalidated afterwards.
    fn reload_config_byte_only(&self, vintid: VIntid, vcpu: VcpuId);
    /// Invalidates all configuration that is cached for a vCPU, after its bytes were reloaded.
    fn invalidate_all(&self, vcpu: VcpuId);

    /// Moves a bounded number of interrupts that are pending in software (MOVALL), from `resume` on. `resume` is 0 at
    /// first, then the value that the previous call returned; `None` means that all are moved.
    fn move_all_pending(&self, from: VcpuId, to: VcpuId, resume: u32) -> Option<u32>;

    /// Whether all that the calls so far have changed is in effect on all vCPUs. If not, [`Vits::run`] leaves the
    /// command uncompleted and returns.
    fn is_settled(&self) -> bool;
    /// Whether the time for one call of [`Vits::run`] is over.
    fn is_late(&self) -> bool;
}
