//! Small tools without a domain of their own.

pub mod bits;
pub mod range;
