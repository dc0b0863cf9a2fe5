//! The vCPU run loop: entry, exits, the switch from one vCPU to another.

pub mod decode;

#[cfg(target_os = "none")]
mod exit;
#[cfg(target_os = "none")]
#[allow(clippy::module_inception, reason = "the room's main file")]
mod run;
#[cfg(target_os = "none")]
mod switch;

#[cfg(target_os = "none")]
pub use run::*;
