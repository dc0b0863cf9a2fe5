//! The memory of the machine, and what the GIC uses it for.

use model_memory::Usage;
use std::fmt;

pub use model_memory::Allocation;
pub(crate) use model_memory::{Snoop, Trouble};

/// The memory of the machine.
pub(crate) type Memory = model_memory::Memory<Use>;

/// Use of a range of memory by the GIC. The order of the variants has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Use {
    /// The command queue of an ITS.
    Queue(usize),
    /// A flat table of an ITS (GITS_BASER number).
    Table(usize, usize),
    /// The first level of an indirect table.
    Level1(usize, usize),
    /// A second-level page of an indirect table.
    Level2(usize, usize),
    /// An interrupt translation table (ITS, DeviceID).
    Itt(usize, u32),
    /// A virtual pending table.
    Vpt,
    /// A virtual configuration table.
    VConfig,
    /// The LPI configuration table.
    Config,
    /// An LPI pending table (CPU).
    Pending(usize),
    /// A vPE table of the redistributors (GICv4.1), flat or first level.
    VpeTable,
    /// A second-level page of a vPE table of the redistributors (GICv4.1).
    VpeLevel2,
}

impl Usage for Use {
    const FIRST: Use = Use::Queue(0);

    fn private(self) -> bool {
        matches!(self, Use::Table(..) | Use::Level2(..) | Use::Itt(..) | Use::Vpt | Use::Pending(_) | Use::VpeLevel2)
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::Queue(i) => write!(f, "the command queue of ITS{i}"),
            Use::Table(i, n) => write!(f, "the table of GITS_BASER{n} of ITS{i}"),
            Use::Level1(i, n) => write!(f, "the first-level table of GITS_BASER{n} of ITS{i}"),
            Use::Level2(i, n) => write!(f, "a second-level page of GITS_BASER{n} of ITS{i}"),
            Use::Itt(i, d) => write!(f, "the ITT of device {d:#x} on ITS{i}"),
            Use::Vpt => write!(f, "a virtual pending table"),
            Use::VConfig => write!(f, "a virtual configuration table"),
            Use::Config => write!(f, "the LPI configuration table"),
            Use::Pending(c) => write!(f, "the LPI pending table of CPU{c}"),
            Use::VpeTable => write!(f, "a vPE table of the redistributors"),
            Use::VpeLevel2 => write!(f, "a second-level page of a vPE table of the redistributors"),
        }
    }
}
