//! A virtual CPU.

pub mod list_regs;
#[allow(clippy::module_inception, reason = "the room's main file")]
mod vcpu;

pub use vcpu::{Context, Start, Vcpu};
