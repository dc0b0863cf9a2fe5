//! Locks with a rank, and values shared between CPUs.
//!
//! EL2 runs with interrupts masked from exception entry to ERET: an interrupt takes a CPU out of a guest and never
//! interrupts EL2 itself. So a lock need not mask interrupts. What it needs is a place in the lock order (its rank)
//! and, in debug builds, a check that the ranks a CPU takes only rise. A guard must be dropped before the CPU enters a
//! guest.
//!
//! | type | for |
//! |---|---|
//! | [`Lock`] | data that CPUs change in turn: a ticket lock with a [`Rank`] |
//! | [`Exclusive`] | data that one CPU uses for a long time, such as a vCPU's registers; no CPU waits for it |
//! | [`Once`] | a value that is set once, at boot, and then read without a lock |
//! | [`Slot`] | a shared value that is replaced at run time and read without a lock |
#![allow(unsafe_code, reason = "a lock hands out references to its contents")]

pub mod atomic;
mod exclusive;
mod lock;
mod slot;
mod ticket;
pub use exclusive::{Exclusive, ExclusiveGuard};
pub use lock::{Guard, Lock, Rank};
pub use slot::Slot;
pub use spin::Once;

/// Sets a [`Once`] that must not have a value yet. Where a second value may be ignored, use [`Once::call_once`].
///
/// # Errors
///
/// `value` itself, if `once` has a value already.
pub fn set_once<T>(once: &Once<T>, value: T) -> Result<(), T> {
    let mut value = Some(value);
    let _ = once.try_call_once(|| value.take().ok_or(()));
    value.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_a_once_that_has_a_value_returns_the_new_value() {
        let once = Once::new();
        assert_eq!(once.get(), None);
        assert_eq!(set_once(&once, 1), Ok(()));
        assert_eq!(set_once(&once, 2), Err(2));
        assert_eq!(once.get(), Some(&1));
    }
}
