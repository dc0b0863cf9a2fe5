//! Atomics of protocols that are explored interleaving by interleaving.
//!
//! With `--cfg loom` they are loom's, which runs a test under every order of their accesses that the memory model
//! allows; else they are the CPU's. Counters and flags that no protocol hangs on use `core`'s directly.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
