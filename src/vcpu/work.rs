//! Work of EL2 that a vCPU performs in place of its guest's instructions, at the expense of its domain.
//!
//! A value here is a cursor: what is left to do. The run loop performs one step after the other.

use crate::arch::vcpu::RawExit;
use crate::ids::{EventKey, VcpuId};
use crate::vgic::TableCursor;

/// Work of EL2 that a vCPU performs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Work of the domain's virtual ITSs.
    Its(ItsWork),
    /// Work of dom0's console device, and what was asked for through it.
    Ports,
    /// vCPUs of the domain were recalled. They have to leave their guests, so that what was changed holds for them.
    Recall {
        /// The load that has to be performed then, as its exit was reported. Its registers are not written yet.
        load: Option<RawExit>,
        /// When it began, in ticks.
        since: u64,
    },
    /// The restart of the domain.
    Restart(Restart),
}

/// Work of a domain's virtual ITSs that the vCPU that started it has to finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItsWork {
    /// Commands in a queue, or a change of GITS_CTLR.
    Commands,
    /// GICR_CTLR.EnableLPIs of `vcpu` was set: its tables are read.
    LpiTables {
        /// The vCPU.
        vcpu: VcpuId,
        /// How far they have been read.
        cursor: TableCursor,
    },
    /// The tables of `vcpu` were read: configuration and pending bits of its LPIs are passed to the hardware.
    LpisEnabled {
        /// The vCPU.
        vcpu: VcpuId,
        /// Whether the events of all vCPUs are searched for pending LPIs, not only those of `vcpu`.
        of_all: bool,
        /// The event that is searched next.
        next: EventKey,
    },
}

/// The restart of a domain: what is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Wait until this time, in microseconds.
    Wait {
        /// The time.
        until_us: u64,
    },
    /// Reset the PCI functions; nothing is to be done before this time, in microseconds.
    Functions {
        /// The time.
        until_us: u64,
    },
    /// Unmap the events and devices of the virtual ITSs, which have been reset.
    Events,
    /// Make the vPE of this vCPU as new.
    Vpes {
        /// The vCPU.
        vcpu: VcpuId,
        /// How often that had to wait for a redistributor.
        waits: u16,
    },
    /// Reset the redistributor of this vCPU or, after the last one, all other devices.
    Devices {
        /// The vCPU.
        vcpu: VcpuId,
    },
    /// Zero the RAM.
    Wipe {
        /// The number of bytes that are zeroed already.
        done: u64,
    },
    /// Load the images.
    Load(Loaded),
}

/// How much of a domain's images is in its RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The number of the image that is being loaded. Those before it are loaded.
    pub image: usize,
    /// The number of its bytes that are.
    pub done: u64,
}
