//! Locks that know their rank, and data that belongs to one CPU.
//!
//! EL2 runs with interrupts masked from entry to ERET: it takes interrupts by leaving a guest, never by being
//! interrupted itself. So a lock need not mask them; what it needs is a place in the order (a rank) and, in
//! debug builds, a check that ranks only rise on a CPU. A guard must not outlive the exit that took it.
#![allow(unsafe_code, reason = "a lock hands out its contents")]

pub mod atomic;
mod exclusive;
mod lock;
mod once;
mod slot;
mod ticket;
pub use exclusive::{Exclusive, ExclusiveGuard};
pub use lock::{Guard, Lock, Rank};
pub use once::Once;
pub use slot::Slot;
