//! Data that one CPU at a time may hold, for as long as it likes.
//!
//! A vCPU's registers belong to the CPU that runs it, from the moment it is switched in to the moment it is
//! switched out, across any number of stays in the guest. That is no critical section: nobody may wait for
//! it. [`Owned`] is taken or it is not; taking it twice is a defect of the scheduler and is reported as such.

use super::atomic::{AtomicBool, Ordering};
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

/// A value with at most one owner at a time.
pub struct Owned<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `taken` lets one CPU at a time reach `value`.
unsafe impl<T: Send> Sync for Owned<T> {}

impl<T> Owned<T> {
    /// A value that nobody owns yet.
    pub fn new(value: T) -> Owned<T> {
        Owned { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Becomes the owner, unless there is one.
    pub fn take(&self) -> Option<Ownership<'_, T>> {
        self.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(Ownership(self))
    }

    /// Whether there is an owner, at this moment.
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::SeqCst)
    }
}

/// The value, until this is dropped.
pub struct Ownership<'a, T>(&'a Owned<T>);

impl<T> Deref for Ownership<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: `take` gave out this one ownership.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Ownership<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`, and borrowed exclusively.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Ownership<'_, T> {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_owner_at_a_time() {
        let owned = Owned::new(1);
        let mut first = owned.take().unwrap();
        *first += 1;
        assert!(owned.is_taken() && owned.take().is_none());
        drop(first);
        assert_eq!(*owned.take().unwrap(), 2);
    }
}
