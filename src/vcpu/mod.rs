//! A virtual CPU.

#[cfg(target_os = "none")]
pub mod list_regs;
#[cfg(target_os = "none")]
#[allow(clippy::module_inception, reason = "the room's main file")]
mod vcpu;

#[cfg(target_os = "none")]
pub use vcpu::{Context, Start, Vcpu};
