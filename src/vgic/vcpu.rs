//! The state of one vCPU.

use super::lpi_set::LpiSet;
use super::private::Private;
use crate::ids::Mpidr;
use crate::sync::{Lock, Rank};
use bitflags::bitflags;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

bitflags! {
    /// What the next flush has to consider.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(super) struct Work: u32 {
        /// SGIs and PPIs.
        const PRIVATE = 1 << 0;
        /// SPIs in the vCPU's queue.
        const SPI = 1 << 1;
        /// LPIs in the vCPU's pending set.
        const LPI = 1 << 2;
    }
}

/// The state of one vCPU, on cache lines of its own. Without its lock, other CPUs write `work` and the pending set
/// only.
#[repr(align(128))]
pub(super) struct Vcpu {
    pub affinity: Mpidr,
    /// Bits of [`Work`].
    pub work: AtomicU32,
    /// Odd while list registers are in use: from a flush that used some to the sync that follows.
    pub epoch: AtomicU32,
    /// GICR_CTLR.EnableLPIs, to be read without the lock.
    pub lpis_on: AtomicBool,
    /// Its SGIs are direct (`direct_sgis`). Changed under the lock.
    pub direct_sgis: AtomicBool,
    /// The LPIs that are pending in software: they wait for a list register or until they are enabled.
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
            direct_sgis: AtomicBool::new(false),
            lpis: LpiSet::new(lpis),
            state: Lock::new(Rank::VgicCpu, Private::new()),
        }
    }

    /// Whether list registers are in use.
    pub fn loaded(&self) -> bool {
        self.epoch.load(Ordering::Acquire) & 1 != 0
    }

    /// Makes the next flush consider more.
    pub fn add_work(&self, work: Work) {
        self.work.fetch_or(work.bits(), Ordering::SeqCst);
    }
}
