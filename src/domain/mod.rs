//! A domain and what belongs to it: its ports to the virtual GIC and ITS, where its MSIs go, and its life cycle.

pub mod lifecycle;
pub mod msi;

#[allow(clippy::module_inception, reason = "the room's main file")]
mod domain;
pub mod input;
pub mod irq;

pub use domain::*;
