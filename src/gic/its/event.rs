//! What an event is mapped to.

use crate::ids::{CpuId, Lpi, VIntid, VpeId};

/// What an event is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Event {
    /// Nothing: its MSIs are dropped.
    #[default]
    Unmapped,
    /// An LPI that EL2 takes.
    Physical {
        /// The LPI.
        lpi: Lpi,
        /// The CPU that takes it.
        cpu: CpuId,
    },
    /// A vLPI that a guest takes.
    Virtual {
        /// The guest's vPE.
        vpe: VpeId,
        /// The vLPI.
        vintid: VIntid,
    },
}
