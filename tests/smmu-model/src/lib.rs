//! An executable SMMUv3, against which the driver is tested.

mod cmdq;
mod command;
mod config;
mod dma;
mod eventq;
mod faults;
mod machine;
mod memory;
mod regs;
mod ste;
mod streams;
mod tlb;
mod violation;
mod walk;

pub use command::{Command, Extent, Signal};
pub use config::{Config, Firmware, Staleness, Timing};
pub use dma::{Aborted, Landing, Why};
pub use faults::{CommandFault, Fault};
pub use machine::{Interrupt, Machine};
pub use memory::Allocation;
pub use violation::Violation;
