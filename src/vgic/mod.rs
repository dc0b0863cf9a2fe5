//! The GIC that a guest sees: a GICv3 with one security state (GICD_CTLR.DS = 1). Of GICv4.1 it has, where the machine has it,
//! SGIs without active state.
//!
//! | file | contents |
//! |---|---|
//! | `state` | [`Vgic`]: all state of one domain's virtual GIC |
//! | `config`, `port` | what a virtual GIC is built from; what it asks of its domain |
//! | `regs` | decodes an offset and a size into a register |
//! | `dist`, `redist` | the registers of the distributor and of the redistributors |
//! | `spi`, `private`, `vcpu` | the SPIs; the SGIs, PPIs and listed LPIs of one vCPU; the state of one vCPU |
//! | `irq` | the state machine of one SGI, PPI or SPI |
//! | `sgi` | writes to ICC_SGI1R_EL1 and the targets that they name |
//! | `direct_sgis` | SGIs that GICv4.1 delivers |
//! | `lr` | images of the list registers |
//! | `flush_lrs`, `sync_lrs` | fill the list registers before an entry and empty them after an exit |
//! | `fallen` | level-sensitive physical interrupts whose lines fall before the guest acknowledges them |
//! | `inject` | interrupts of emulated devices and of hardware that the domain owns |
//! | `reset` | the reset of the whole, when its domain begins anew |
//! | `lpi`, `lpi_state`, `lpi_set`, `lpi_tables` | LPIs: delivery; configuration, owner; pending; tables in memory |
//! | `vcpu_set` | sets of vCPUs |
//! | `random_tests`, `race`, `testing` | tests: a domain that does anything in any order; vCPUs on threads |
//!
//! **Where state lives.** SPIs and GICD_CTLR are guarded by one lock of rank `VgicDist`; a vCPU's SGIs, PPIs and
//! redistributor by one of rank `VgicCpu`. LPIs are in bitmaps of atomics, so that the path of a device interrupt takes
//! no lock. An SPI that a flush has to consider is in the queue of exactly one vCPU. Each vCPU has a word of flags
//! (`Work`) that says what a flush has to consider: if the word is zero and the list registers are empty, a flush is
//! one load and a sync one compare.
//!
//! **The list registers are empty while a vCPU is out of its guest.** A sync moves their contents back into software,
//! and the next flush lists the interrupts again. So a guest reads the exact state of the interrupts of the vCPU that
//! reads. When a vCPU reads or changes interrupts in the list registers of one that runs on another CPU, these are
//! *recalled* ([`Port::recall`]): that vCPU is kicked, and the one that made the access does not enter its guest before
//! the other one has been synced. A write takes effect at that sync. A read returns the state in software; its caller
//! reads again after the sync. No CPU waits for another one in this module, and two vCPUs cannot wait for each other,
//! because one that waits has been synced itself.
//!
//! **The port.** The trait [`Port`] is what the virtual GIC needs from the domain. Except for those on SGIs, none of its
//! functions is called with a lock of this module held: changes are collected under the lock and carried out after it is released. Where a
//! physical SPI follows the virtual one, the virtual state is read again after each change of the physical one, so that
//! two vCPUs that race cannot leave the two different.
//!
//! **Known differences from hardware.** A write to GICD_ISPENDR makes a hardware-linked SPI pending in software only. If the
//! line of a hardware-linked interrupt falls while it is in a list register, it can be acknowledged until the next exit.
//!
//! Not implemented, and advertised as absent: GICv2 compatibility, 1-of-N routing, extended INTID ranges, message-based
//! SPIs, NMIs. GICR_WAKER is storage only: a sleeping redistributor still delivers, as it does for vLPIs in hardware.
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

mod config;
mod direct_sgis;
mod dist;
mod fallen;
mod flush_lrs;
mod inject;
mod irq;
mod lpi;
mod lpi_set;
mod lpi_state;
mod lpi_tables;
mod lr;
mod port;
mod private;
#[cfg(test)]
mod race;
#[cfg(test)]
mod random_tests;
mod redist;
mod regs;
mod reset;
mod sgi;
mod spi;
mod state;
mod sync_lrs;
#[cfg(test)]
pub(crate) mod testing;
mod vcpu;
mod vcpu_set;

pub use config::{BadConfig, MAX_VCPUS, VgicConfig};
pub use inject::{IrqView, Signal};
pub use irq::Trigger;
pub use lpi_state::Owner;
pub use lpi_tables::TableCursor;
pub use lr::LrImage;
pub use port::Port;
pub use regs::VGICR_SIZE;
pub use sgi::SgiGroup;
pub use state::Vgic;

#[cfg(test)]
use crate::ids;
