//! Atomics of the protocols that loom tests explore.
//!
//! With `--cfg loom` these are loom's, and a loom test runs under every order of their accesses that the memory model
//! allows. Otherwise they are `core`'s. Counters and flags that are not part of such a protocol use `core`'s directly.

#[cfg(not(loom))]
pub use core::hint::spin_loop;
#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::hint::spin_loop;
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
