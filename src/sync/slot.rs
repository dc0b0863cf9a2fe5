//! A place for a shared value that can be emptied and filled again, read without a lock.
//!
//! A reader leaves with a reference of its own (an [`Arc`]), so the value lives for as long as the reader uses it. The
//! critical moment is between loading the pointer and incrementing the reference count. A reader announces itself in
//! [`readers`](Slot::readers) before it loads the pointer; [`Slot::take`] clears the pointer and then waits until no
//! reader is announced. The announced section is a handful of instructions and EL2 is not interrupted, so that wait is
//! bounded by the number of CPUs.
//!
//! Why this is not a `spin::RwLock<Option<Arc<T>>>`: every doorbell and every LPI of a domU reads a slot. On AArch64
//! [`Slot::get`] of a full slot compiles to 18 instructions; `read().clone()` on the lock (spin 0.12.3) compiles to 25,
//! with the same three atomic read-modify-writes and an extra check that the number of readers does not overflow. A
//! reader of the lock also waits while a writer holds it; a reader of a slot never waits.

use alloc::sync::Arc;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// An `Option<Arc<T>>` that CPUs read, fill and empty concurrently.
pub struct Slot<T> {
    value: AtomicPtr<T>,
    /// The number of CPUs between loading `value` and incrementing its reference count.
    readers: AtomicU32,
    owns: PhantomData<Arc<T>>,
}

impl<T> Slot<T> {
    /// An empty slot.
    #[allow(clippy::new_without_default, reason = "used in arrays of constants")]
    #[must_use]
    pub const fn new() -> Slot<T> {
        Slot { value: AtomicPtr::new(ptr::null_mut()), readers: AtomicU32::new(0), owns: PhantomData }
    }

    /// Fills the slot.
    ///
    /// # Errors
    ///
    /// `value` itself, if the slot is full.
    pub fn put(&self, value: Arc<T>) -> Result<(), Arc<T>> {
        let raw = Arc::into_raw(value).cast_mut();
        match self.value.compare_exchange(ptr::null_mut(), raw, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            // SAFETY: `raw` came from `into_raw` above, and the failed exchange has not published it.
            Err(_) => Err(unsafe { Arc::from_raw(raw) }),
        }
    }

    /// Returns a reference to the value, or `None` if the slot is empty.
    #[must_use]
    pub fn get(&self) -> Option<Arc<T>> {
        self.readers.fetch_add(1, Ordering::SeqCst);
        let raw = self.value.load(Ordering::SeqCst);
        let found = (!raw.is_null()).then(|| {
            // SAFETY: the slot's own reference keeps the value alive. `take` gives that reference away only after it
            // has cleared the pointer and then seen no reader, and this reader announced itself before it loaded the
            // pointer.
            unsafe {
                Arc::increment_strong_count(raw);
                Arc::from_raw(raw)
            }
        });
        self.readers.fetch_sub(1, Ordering::SeqCst);
        found
    }

    /// Empties the slot and returns the value it had. Readers that have the value keep it.
    #[must_use]
    pub fn take(&self) -> Option<Arc<T>> {
        let raw = self.value.swap(ptr::null_mut(), Ordering::SeqCst);
        if raw.is_null() {
            return None;
        }
        while self.readers.load(Ordering::SeqCst) != 0 {
            core::hint::spin_loop();
        }
        // SAFETY: `raw` came from `into_raw`, and the swap gave it to this caller alone.
        Some(unsafe { Arc::from_raw(raw) })
    }
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_slot_refuses_a_second_value_until_it_is_emptied() {
        let slot = Slot::new();
        assert!(slot.get().is_none() && slot.take().is_none());
        assert!(slot.put(Arc::new(1)).is_ok());
        assert_eq!(slot.put(Arc::new(2)).unwrap_err(), Arc::new(2).clone());
        assert_eq!(slot.get().as_deref(), Some(&1));
        let taken = slot.take().unwrap();
        assert_eq!((Arc::strong_count(&taken), slot.get()), (1, None));
        assert!(slot.put(Arc::new(3)).is_ok());
        assert_eq!(slot.get().as_deref(), Some(&3));
    }

    #[test]
    fn a_reader_keeps_the_value_when_the_slot_is_emptied() {
        let slot = Slot::new();
        assert!(slot.put(Arc::new(std::string::String::from("kept"))).is_ok());
        let held = slot.get().unwrap();
        drop(slot.take());
        assert_eq!((held.as_str(), Arc::strong_count(&held)), ("kept", 1));
    }

    /// A value sets its number to 0 when it is dropped. The test fails if a reader sees a dropped value or one leaks.
    #[test]
    fn concurrent_readers_and_a_writer_see_only_live_values_and_leak_none() {
        static ALIVE: AtomicU32 = AtomicU32::new(0);
        struct Value(u32);
        impl Drop for Value {
            fn drop(&mut self) {
                self.0 = 0;
                ALIVE.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let slot: Slot<Value> = Slot::new();
        std::thread::scope(|threads| {
            for _ in 0..3 {
                threads.spawn(|| (0..20_000).filter_map(|_| slot.get()).for_each(|value| assert_eq!(value.0, 7)));
            }
            for _ in 0..5_000 {
                ALIVE.fetch_add(1, Ordering::SeqCst);
                assert!(slot.put(Arc::new(Value(7))).is_ok());
                drop(slot.take());
            }
        });
        assert_eq!(ALIVE.load(Ordering::SeqCst), 0);
    }
}
