//! What a virtual GIC is built from.

use crate::ids::Mpidr;
use alloc::vec::Vec;
use core::fmt;

/// The most vCPUs one virtual GIC serves.
pub const MAX_VCPUS: usize = 512;

/// What a virtual GIC is built for.
#[derive(Clone, Debug)]
pub struct VgicConfig {
    /// The affinity of each vCPU, in order.
    pub vcpus: Vec<Mpidr>,
    /// How many SPIs: at most 988.
    pub spis: u32,
    /// Bits of an INTID when there are LPIs: 14 to 16.
    pub id_bits: u8,
    /// Whether the guest sees LPIs.
    pub has_lpis: bool,
    /// How many list registers the machine has: ICH_VTR_EL2.ListRegs + 1.
    pub list_registers: usize,
    /// Bits of a priority that the guest sees: 4 to 8. Five is what every CPU interface has.
    pub priority_bits: u8,
}

/// Why a virtual GIC cannot be built as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadConfig {
    /// No vCPU, or more than [`MAX_VCPUS`].
    Vcpus(usize),
    /// Two vCPUs have this affinity.
    SameAffinity(Mpidr),
    /// More than 988 SPIs.
    Spis(u32),
    /// Not 14 to 16 bits.
    IdBits(u8),
    /// Not 1 to 16 list registers.
    ListRegisters(usize),
    /// Not 4 to 8 bits.
    PriorityBits(u8),
}

impl fmt::Display for BadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadConfig::Vcpus(n) => write!(f, "a virtual GIC serves 1 to {MAX_VCPUS} vCPUs, not {n}"),
            BadConfig::SameAffinity(a) => write!(f, "two vCPUs have affinity {a}"),
            BadConfig::Spis(n) => write!(f, "a GIC has at most 988 SPIs, not {n}"),
            BadConfig::IdBits(n) => write!(f, "INTIDs of a guest have 14 to 16 bits, not {n}"),
            BadConfig::ListRegisters(n) => write!(f, "a CPU has 1 to 16 list registers, not {n}"),
            BadConfig::PriorityBits(n) => write!(f, "priorities have 4 to 8 bits, not {n}"),
        }
    }
}
