//! Helpers that are not specific to one part of the hypervisor.

pub mod bits;
pub mod range;
