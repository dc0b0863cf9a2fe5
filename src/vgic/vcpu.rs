//! The state of one vCPU.

use super::lpi_set::LpiSet;
use super::private::Private;
use crate::ids::Mpidr;
use crate::sync::{Lock, Rank};
use bitflags::bitflags;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

bitflags! {
    /// What a flush has to look at.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(super) struct Work: u32 {
        /// SGIs and PPIs.
        const PRIVATE = 1 << 0;
        /// SPIs in this vCPU's queue.
        const SPI = 1 << 1;
        /// LPIs in this vCPU's pending set.
        const LPI = 1 << 2;
    }
}

/// One vCPU's part. On its own cache lines: other CPUs write `work` and the pending set, and nothing else.
#[repr(align(128))]
pub(super) struct Vcpu {
    pub affinity: Mpidr,
    /// [`Work`].
    pub work: AtomicU32,
    /// Odd while the list registers are loaded: between a flush that used some and the sync that follows.
    pub epoch: AtomicU32,
    /// GICR_CTLR.EnableLPIs, for those who do not hold the lock.
    pub lpis_on: AtomicBool,
    /// LPIs that wait for a list register, or to be enabled.
    pub lpis: LpiSet,
    pub state: Lock<Private>,
}

impl Vcpu {
    /// The state at reset. LPIs are numbered below `lpis`.
    pub fn new(affinity: Mpidr, lpis: u32) -> Vcpu {
        Vcpu {
            affinity,
            work: AtomicU32::new(0),
            epoch: AtomicU32::new(0),
            lpis_on: AtomicBool::new(false),
            lpis: LpiSet::new(lpis),
            state: Lock::new(Rank::VgicCpu, Private::new()),
        }
    }

    pub fn loaded(&self) -> bool {
        self.epoch.load(Ordering::Acquire) & 1 != 0
    }

    pub fn add_work(&self, work: Work) {
        self.work.fetch_or(work.bits(), Ordering::SeqCst);
    }
}
