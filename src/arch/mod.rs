//! AArch64 at EL2, and nothing else.

pub mod esr;
pub mod features;
