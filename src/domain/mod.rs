//! A domain and what belongs to it: its ports to the virtual GIC and ITS, where its MSIs go, and its life cycle.

pub mod lifecycle;
pub mod msi;

#[cfg(target_os = "none")]
#[allow(clippy::module_inception, reason = "the room's main file")]
mod domain;
#[cfg(target_os = "none")]
pub mod input;
#[cfg(target_os = "none")]
pub mod irq;

#[cfg(target_os = "none")]
pub use domain::*;
