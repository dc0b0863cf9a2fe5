//! The vCPU run loop: entry, exits, the switch from one vCPU to another.

pub mod decode;

mod exit;
#[allow(clippy::module_inception, reason = "the room's main file")]
mod run;
mod switch;

pub use run::*;
