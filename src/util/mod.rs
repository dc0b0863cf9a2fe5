//! Helpers that are not specific to one part of the hypervisor.

pub mod bit_set;
pub mod bits;
pub mod id_ranges;
pub mod progress;
pub mod range;
pub mod runs;
pub mod values;

/// Bytes of a page: the translation granule of both stages, and the unit of many GIC registers.
pub const PAGE: u64 = 4096;
