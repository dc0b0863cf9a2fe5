//! Decoding of traps: accesses to system registers, loads and stores that fault at stage 2, and the exceptions that a
//! guest gets in return.
//!
//! All results are functions of the syndrome, of the guest's registers and of the answers of a small port. The run loop
//! owns the vCPU and carries the results out.
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

pub mod aarch32;
pub mod inject;
pub mod mmio;
pub mod sysreg;
pub mod walk;
