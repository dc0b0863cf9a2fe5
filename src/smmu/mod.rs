//! SMMUv3: which memory a device reaches (IHI 0070).
//!
//! [`Smmu`] drives one SMMU for stage 2 only: a stream, by which the SMMU knows a device, either reaches what a
//! domain's stage 2 maps (its [`View`]), or nothing. Chapter, section and register names are those of the manual.
//!
//! | file | contents |
//! |---|---|
//! | this file | [`View`], and the deadline of waits |
//! | [`bypass()`] | an SMMU that is not used lets everything pass |
//! | `driver` | [`Smmu`]: streams are assigned and blocked, translations invalidated |
//! | `bringup` | how the driver takes an SMMU from whoever had it before, and how it leaves it |
//! | `control` | registers that acknowledge an update |
//! | `facts` | what an SMMU can do |
//! | `regs` | registers and their fields |
//! | `range` | ranges of streams and addresses as commands |
//! | `command`, `queue`, `ring` | commands, the queue that carries them, with deadlines and errors, and its indices |
//! | `ste`, `stream_table`, `shape` | the entry of a stream, the table of all, and its division into leaves |
//! | `event` | event records: what devices did that they may not |
//! | [`iommu`], `owners` | all SMMUs of the machine; the domain that has each stream |
//! | `faults` | the event queue, and errors of the SMMU itself (GERROR) |
//! | `error` | [`SmmuError`] |
//! | `testing` | tests: an SMMU that executes commands and nothing else |
//! | `property_tests` | random operations on the executable SMMU (`tests/smmu-model`) |
#![deny(
    clippy::panic,
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

mod bringup;
mod bypass;
mod command;
mod control;
mod driver;
mod error;
mod event;
mod facts;
mod faults;
pub mod iommu;
#[cfg(test)]
mod iommu_tests;
mod owners;
#[cfg(test)]
mod property_tests;
mod queue;
mod range;
mod regs;
mod ring;
mod shape;
mod ste;
mod stream_table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use bypass::bypass;
pub use command::Command;
pub use driver::Smmu;
pub use error::{BadView, Reason, SmmuError};
pub use event::{Access, Event, EventKind};
pub use facts::Facts;
pub use faults::Errors;

use crate::ids::VmId;
use crate::mm::stage2::Fwb;

/// The time limit of a register update, and of the commands of an operation. Hardware takes microseconds, emulation by
/// firmware milliseconds.
const LIMIT_US: u64 = 100_000;

/// What a stream reaches: the stage 2 of a domain.
///
/// All streams with one VMID have equal views (5.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The VMID that tags TLB entries. A domain may use the VMID of its vCPUs.
    pub vmid: VmId,
    /// VTTBR_EL2, or the address of the root table alone: the VMID in it is ignored.
    pub vttbr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
    /// Whether the attributes in the tables are those for HCR_EL2.FWB.
    pub fwb: Fwb,
}
