//! GICv4: interrupts that reach a guest without the hypervisor (IHI 0069, chapter 6).
//!
//! The ITS maps an event to a *vPE* and a *vINTID* instead of to an LPI. A vPE is the hardware's representation of a
//! vCPU: it lives at one redistributor (its *home*), has a pending table in memory (the VPT), and shares a
//! configuration table with the other vPEs of its VM. While it is *resident* at its home, the redistributor presents
//! its pending vLPIs to the CPU, and the guest acknowledges them like any interrupt; EL2 runs no instruction. While it
//! is not resident, they are set pending in the VPT, and a *doorbell* (a physical LPI) tells EL2 that the vCPU has an
//! interrupt pending.
//!
//! The rest of the hypervisor uses the verbs of [`V4`]; which commands and register accesses they become is decided
//! below them. A file uses only files above it in this table, and of the driver's other files all but `events`, which
//! `vmovp_recovery` and what is below it may use:
//!
//! | file | contents |
//! |---|---|
//! | `error`, `vpe` | errors; VMs, vPEs and the types that the verbs share |
//! | `vpe_tables` | GICv4.1: which redistributors and ITSs share a vPE table |
//! | `proxy` | control of doorbells where redistributors cannot do it |
//! | `state` | the state of the verbs |
//! | `view` | [`V4`] itself, and look-ups |
//! | `backend` | what differs between GICv4.0 and GICv4.1: one file each, with the same functions |
//! | `vmovp` | VMOVP: one ITS for all, or the ITSs of a list in one global order |
//! | `mapping` | VMAPP: on which ITSs a vPE is mapped |
//! | `doorbell` | masking doorbells |
//! | `sgi` | GICv4.1: virtual SGIs |
//! | `vmovp_recovery` | what to do when one ITS of a list no longer arrives at its VMOVPs |
//! | `residency` | enter and leave |
//! | `evacuate` | moving all vPEs away from a CPU |
//! | `vm` | making and removing VMs and vPEs |
//! | `renew` | making them as new, for a guest that begins anew |
//!
//! Invariants: a vPE is resident on at most one redistributor and a redistributor holds at most one vPE; a vPE becomes
//! resident only where every ITS that maps it knows it to be (the VMOVP *completed*); nothing in GICR_VPENDBASER
//! changes while Valid is 1, nor is Valid cleared while Dirty is 1; memory that the hardware may still use is never
//! freed. Locks are taken in this order: VM map, vPE, VMOVP, ITS queue, redistributor.

mod backend;
mod doorbell;
mod error;
mod evacuate;
#[cfg(test)]
mod fault_tests;
mod mapping;
#[cfg(test)]
mod property_tests;
mod proxy;
mod renew;
#[cfg(test)]
mod renew_tests;
mod residency;
mod sgi;
mod state;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod v41_tests;
mod view;
mod vm;
#[cfg(test)]
mod vm_tests;
mod vmovp;
mod vmovp_recovery;
#[cfg(test)]
mod vmovp_tests;
mod vpe;
mod vpe_tables;

pub use crate::gic::its::SgiConfig;
pub use error::{EnterError, V4Error};
pub use residency::{PendingLast, Resident};
pub use view::V4;
pub use vpe::{InterruptGroups, VmHandle, Why};

pub(super) use backend::{init_redist, vpe_tables};
pub(super) use proxy::Proxy;
pub(super) use state::{Generation, State};
pub(super) use vpe_tables::{Sharing, VpeTables};
