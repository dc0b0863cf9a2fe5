//! Which CPUs can take what redistributors deliver directly.
//!
//! That a redistributor supports virtual LPIs does not mean that its CPU's interface takes them. A vCPU may run on any
//! CPU, so a feature is used only if all CPUs have it. CPUs that come up before the first VM is made take features away
//! from the machine; one that comes up later and lacks a feature that guests may already use stays off. It is the same
//! with other CPU features (`host::cpu_features`).

use core::sync::atomic::{AtomicU8, Ordering};

/// What a CPU's GIC interface takes from its redistributor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Virtual LPIs (GICv4).
    pub virtual_lpis: bool,
    /// Virtual SGIs (GICv4.1).
    pub virtual_sgis: bool,
}

impl Interface {
    /// From ID_AA64PFR0_EL1.GIC and ICH_VTR_EL2.nV4.
    #[must_use]
    pub const fn new(pfr0_gic: u8, nv4: bool) -> Interface {
        Interface { virtual_lpis: !nv4, virtual_sgis: !nv4 && pfr0_gic >= 3 }
    }
}

/// What a CPU lacks, for [`Interfaces::join`].
pub const NO_LPIS: u8 = 1 << 0;
pub const NO_SGIS: u8 = 1 << 1;
const SETTLED: u8 = 1 << 2;

/// What some CPU so far lacks, and whether that is settled.
pub struct Interfaces(AtomicU8);

impl Interfaces {
    pub const fn new() -> Interfaces {
        Interfaces(AtomicU8::new(0))
    }

    /// Adds a CPU that lacks something. `Err` names what guests may already use.
    pub fn join(&self, lacks: u8) -> Result<(), u8> {
        let add = |was: u8| if was & SETTLED != 0 && lacks & !was != 0 { None } else { Some(was | lacks) };
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).map(|_| ()).map_err(|was| lacks & !was)
    }

    /// Settles what is used: from now on nothing is taken away. Returns whether virtual LPIs are.
    pub fn settle(&self) -> bool {
        self.0.fetch_or(SETTLED, Ordering::AcqRel) & NO_LPIS == 0
    }

    #[inline]
    pub fn all_take_sgis(&self) -> bool {
        self.0.load(Ordering::Acquire) & NO_SGIS == 0
    }
}
