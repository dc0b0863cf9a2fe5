//! The GIC as the platform describes it, by device tree or ACPI tables.

use crate::ids::{CpuId, Mpidr, Pa};
use crate::util::range::Range;

/// An ITS as the platform describes it.
#[derive(Clone, Copy, Debug)]
pub struct ItsLayout {
    /// Address of its control frame.
    pub base: Pa,
    /// The ITS snoops the CPUs' caches.
    pub coherent: bool,
    /// The least size in bytes of an entry of a translation table, whatever the ITS says.
    pub least_ite: u64,
    /// Whether it is used. Otherwise it is only stopped.
    pub is_used: bool,
}

impl ItsLayout {
    /// An ITS without errata.
    #[must_use]
    pub const fn new(base: Pa, coherent: bool) -> ItsLayout {
        ItsLayout { base, coherent, least_ite: 0, is_used: true }
    }
}

/// The GIC as the platform describes it. Everything else is read from the hardware.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// Address of the distributor.
    pub dist: Pa,
    /// Redistributor regions: address and size in bytes.
    pub redists: &'a [(Pa, u64)],
    /// The platform lists each redistributor by itself, so that all of a region exists.
    pub redists_listed: bool,
    /// Bytes from one redistributor to the next, if the platform states them.
    pub stride: Option<u64>,
    /// The CPUs to serve; the index is the [`CpuId`](crate::ids::CpuId).
    pub cpus: &'a [Mpidr],
    /// Memory that the firmware has reserved.
    pub reserved: &'a [Range],
    /// The CPU that discovers the GIC. Its redistributor is powered; those of the others need not be.
    pub boot_cpu: CpuId,
    /// The ITSs; the index is the [`ItsId`](crate::ids::ItsId).
    pub itss: &'a [ItsLayout],
    /// The redistributors snoop the CPUs' caches.
    pub coherent: bool,
    /// Virtual LPIs are used if the hardware has them.
    pub virtual_lpis_wanted: bool,
}
