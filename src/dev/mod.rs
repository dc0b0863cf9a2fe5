//! Emulated devices.
//!
//! Each device is a state machine: it takes a guest's access or call and returns a value or an action. After each step
//! the caller reads the level of the device's interrupt line and passes it to the domain's virtual GIC.
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

pub mod arch_calls;
pub mod pl011;
pub mod psci;
pub mod vtimer;
