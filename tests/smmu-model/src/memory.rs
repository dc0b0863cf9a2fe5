//! The memory of the machine, and what the SMMU uses it for.

use model_memory::Usage;
use std::fmt;

pub use model_memory::Allocation;
pub(crate) use model_memory::{Snoop, Trouble};

/// The memory of the machine.
pub(crate) type Memory = model_memory::Memory<Use>;

/// Use of a range of memory by the SMMU. The order of the variants has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Use {
    /// The command queue.
    Commands,
    /// The event queue.
    Events,
    /// The linear stream table, or the first level of a two-level one.
    StreamTable,
    /// A second-level array of the stream table (index of its descriptor).
    StreamArray(u32),
    /// A stage 2 table (VMID).
    Stage2(u16),
}

impl Usage for Use {
    const FIRST: Use = Use::Commands;

    fn private(self) -> bool {
        self == Use::Events
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::Commands => write!(f, "the command queue"),
            Use::Events => write!(f, "the event queue"),
            Use::StreamTable => write!(f, "the stream table"),
            Use::StreamArray(n) => write!(f, "the second-level stream table of descriptor {n:#x}"),
            Use::Stage2(vmid) => write!(f, "a stage 2 table of VMID {vmid:#x}"),
        }
    }
}
