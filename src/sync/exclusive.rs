//! Data that at most one CPU uses at a time, for any length of time.
//!
//! A vCPU's registers belong to the CPU that runs it, from the moment it is switched in until it is switched out, over
//! any number of exits and entries. This is not a critical section, and no CPU may wait for it to end. So
//! [`Exclusive::take`] either succeeds at once or fails; a second `take` of a value in use is a bug in the scheduler,
//! which the caller reports.

use super::atomic::{AtomicBool, Ordering};
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

/// A value with at most one user at a time.
pub struct Exclusive<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `taken` lets one CPU at a time reach `value`.
unsafe impl<T: Send> Sync for Exclusive<T> {}

impl<T> Exclusive<T> {
    /// A value that is not in use.
    pub fn new(value: T) -> Exclusive<T> {
        Exclusive { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Takes the value. Returns `None` if it is in use.
    pub fn take(&self) -> Option<ExclusiveGuard<'_, T>> {
        self.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(ExclusiveGuard(self))
    }

    /// Whether the value is in use at this moment.
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::SeqCst)
    }
}

/// Access to the value of an [`Exclusive`]; dropping it ends the use.
pub struct ExclusiveGuard<'a, T>(&'a Exclusive<T>);

impl<T> Deref for ExclusiveGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: `take` gives out one guard at a time.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for ExclusiveGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`, and the guard is borrowed exclusively.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for ExclusiveGuard<'_, T> {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_value_in_use_cannot_be_taken_until_the_guard_is_dropped() {
        let value = Exclusive::new(1);
        let mut first = value.take().unwrap();
        *first += 1;
        assert!(value.is_taken() && value.take().is_none());
        drop(first);
        assert_eq!(*value.take().unwrap(), 2);
    }
}
