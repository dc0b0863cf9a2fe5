//! What a virtual GIC is built from.

use crate::ids::Mpidr;
use alloc::vec::Vec;
use core::fmt;

/// The most vCPUs of one virtual GIC.
pub const MAX_VCPUS: usize = 512;

/// What a virtual GIC is built from.
#[derive(Clone, Debug)]
pub struct VgicConfig {
    /// The affinity of each vCPU, in the order of their numbers.
    pub vcpus: Vec<Mpidr>,
    /// Number of SPIs, at most 988.
    pub spis: u32,
    /// Bits of an INTID if the guest has LPIs: 14 to 16.
    pub id_bits: u8,
    /// Whether the guest has LPIs.
    pub has_lpis: bool,
    /// Number of list registers of the machine: ICH_VTR_EL2.ListRegs + 1.
    pub list_registers: usize,
    /// Bits of a priority that the guest sees: 4 to 8. Every CPU interface has five.
    pub priority_bits: u8,
}

/// Why a virtual GIC cannot be built from a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadConfig {
    /// No vCPU, or more than [`MAX_VCPUS`].
    Vcpus(usize),
    /// More than one vCPU has this affinity.
    SameAffinity(Mpidr),
    /// More than 988 SPIs.
    Spis(u32),
    /// Not 14 to 16 bits of an INTID.
    IdBits(u8),
    /// Not 1 to 16 list registers.
    ListRegisters(usize),
    /// Not 4 to 8 bits of a priority.
    PriorityBits(u8),
}

impl fmt::Display for BadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadConfig::Vcpus(n) => write!(f, "{n} vCPUs, but a virtual GIC has 1 to {MAX_VCPUS}"),
            BadConfig::SameAffinity(a) => write!(f, "two vCPUs have affinity {a}"),
            BadConfig::Spis(n) => write!(f, "{n} SPIs, but a GIC has at most 988"),
            BadConfig::IdBits(n) => write!(f, "INTIDs of {n} bits, but a guest's have 14 to 16"),
            BadConfig::ListRegisters(n) => write!(f, "{n} list registers, but a CPU has 1 to 16"),
            BadConfig::PriorityBits(n) => write!(f, "priorities of {n} bits, but a guest's have 4 to 8"),
        }
    }
}
