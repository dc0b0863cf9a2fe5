//! A place for a shared value that can be emptied and filled again, read without a lock.
//!
//! Readers leave with a count of their own on the value, so that it lives as long as they look at it. What has to
//! be guarded is the moment between finding the value and counting: a reader announces itself before it looks, and
//! who takes the value out waits until nobody is in that moment any more. It is a handful of instructions and EL2 is
//! not interrupted, so the wait is bounded by the number of CPUs.

use alloc::sync::Arc;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Nothing, or a counted value.
pub struct Slot<T> {
    value: AtomicPtr<T>,
    /// How many are between finding the value and counting it.
    readers: AtomicU32,
    owns: PhantomData<Arc<T>>,
}

impl<T> Slot<T> {
    /// Nothing.
    #[allow(clippy::new_without_default, reason = "used in arrays of constants")]
    #[must_use]
    pub const fn new() -> Slot<T> {
        Slot { value: AtomicPtr::new(ptr::null_mut()), readers: AtomicU32::new(0), owns: PhantomData }
    }

    /// Puts a value in. Hands it back if there is one already.
    pub fn put(&self, value: Arc<T>) -> Result<(), Arc<T>> {
        let raw = Arc::into_raw(value).cast_mut();
        match self.value.compare_exchange(ptr::null_mut(), raw, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            // SAFETY: it came from `into_raw` above and nobody else has seen it.
            Err(_) => Err(unsafe { Arc::from_raw(raw) }),
        }
    }

    /// The value, if there is one now.
    #[must_use]
    pub fn get(&self) -> Option<Arc<T>> {
        self.readers.fetch_add(1, Ordering::SeqCst);
        let raw = self.value.load(Ordering::SeqCst);
        let found = (!raw.is_null()).then(|| {
            // SAFETY: the slot's own count keeps it alive: `take` gives that count away only after it has emptied the
            // slot and then seen no reader, and this one announced itself before it found the slot full.
            unsafe {
                Arc::increment_strong_count(raw);
                Arc::from_raw(raw)
            }
        });
        self.readers.fetch_sub(1, Ordering::SeqCst);
        found
    }

    /// Empties the slot. Others may go on looking at the value for as long as they have it.
    #[must_use]
    pub fn take(&self) -> Option<Arc<T>> {
        let raw = self.value.swap(ptr::null_mut(), Ordering::SeqCst);
        if raw.is_null() {
            return None;
        }
        while self.readers.load(Ordering::SeqCst) != 0 {
            core::hint::spin_loop();
        }
        // SAFETY: it came from `into_raw`, and the swap gave it to this caller alone.
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
    fn a_slot_is_filled_once_until_it_is_emptied() {
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
    fn who_has_the_value_keeps_it_when_the_slot_is_emptied() {
        let slot = Slot::new();
        assert!(slot.put(Arc::new(std::string::String::from("kept"))).is_ok());
        let held = slot.get().unwrap();
        drop(slot.take());
        assert_eq!((held.as_str(), Arc::strong_count(&held)), ("kept", 1));
    }

    /// Each value knows whether it is alive; a reader that gets a dead one, or a leak, fails.
    #[test]
    fn readers_and_takers_on_many_threads_see_live_values_and_leak_none() {
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
