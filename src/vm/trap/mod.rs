//! What a guest's exits mean: system registers, faulting loads and stores, and exceptions given back to it.
//!
//! Everything here is a function of the syndrome and of what a small port answers; the run loop of `vm` owns
//! the vCPU and does what comes out.

pub mod inject;
pub mod mmio;
pub mod sysreg;
