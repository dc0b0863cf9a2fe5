//! What a guest's exits mean: system registers, faulting loads and stores, and exceptions given back to it.
//!
//! Everything here is a function of the syndrome and of what a small port answers; the run loop of `vm` owns
//! the vCPU and does what comes out.
#![deny(
    clippy::panic,
    clippy::todo,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    allow(
        clippy::panic,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod inject;
pub mod mmio;
pub mod sysreg;
