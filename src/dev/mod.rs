//! The devices that a domain sees and that are not there.
//!
//! Each is a state machine: a guest's access or a call goes in, a value or an action comes out. Where its
//! interrupt line stands is asked after each step; who pends it is the domain's business.
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

pub mod pl011;
pub mod psci;
pub mod vtimer;
