//! An executable GICv3, v4.0 and v4.1.
//!
//! So far: physical LPIs. The VLPI frame and the virtual commands follow.

#![allow(dead_code, reason = "fields of the VLPI frame wait for their file")]

mod config;
mod dist;
mod faults;
mod its;
mod machine;
mod memory;
mod redist;
mod violation;
mod vpe;

pub use config::{Baser, Config, Cpu, Its, ItsNumber, LpisAtReset, Staleness, TableKind, Timing, Version};
pub use faults::{CommandFault, Fault};
pub use its::command::{Command, Dialect, Vmapp41};
pub use machine::{Delivery, Drop, Machine};
pub use memory::Allocation;
pub use violation::Violation;
