//! The table of debug keys, which are run while the hypervisor has the input focus.

use crate::sync::{Lock, Rank};
use alloc::boxed::Box;
use arrayvec::ArrayVec;

/// A debug key.
#[derive(Clone, Copy)]
struct Key {
    key: u8,
    help: &'static str,
    run: &'static (dyn Fn() + Sync),
}

/// The capacity of the table.
const KEYS: usize = 32;

static TABLE: Lock<ArrayVec<Key, KEYS>> = Lock::new(Rank::Console, ArrayVec::new_const());

/// Registers `run` for `key`, in place of an earlier registration. Returns `false` if the table is full.
pub fn register(key: u8, help: &'static str, run: impl Fn() + Sync + 'static) -> bool {
    let run: &'static (dyn Fn() + Sync) = Box::leak(Box::new(run));
    let mut table = TABLE.lock();
    table.retain(|entry| entry.key != key);
    table.try_push(Key { key, help, run }).is_ok()
}

/// Runs the function of `key`, without holding a lock. Returns `false` if the key is not registered.
pub fn run(key: u8) -> bool {
    let found = TABLE.lock().iter().find(|entry| entry.key == key).map(|entry| entry.run);
    if let Some(run) = found {
        run();
    }
    found.is_some()
}

/// Calls `each` for every key and its help text, sorted by key.
pub fn for_each(mut each: impl FnMut(char, &'static str)) {
    let mut table = TABLE.lock().clone();
    table.sort_unstable_by_key(|entry| entry.key);
    for entry in &table {
        each(char::from(entry.key), entry.help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU32, Ordering};

    static RUNS: AtomicU32 = AtomicU32::new(0);

    #[test]
    fn a_key_runs_its_last_registration_and_an_unknown_key_nothing() {
        assert!(register(b'q', "old", || unreachable!()));
        assert!(register(b'q', "count", || {
            RUNS.fetch_add(1, Ordering::Relaxed);
        }));
        assert!(run(b'q'));
        assert!(!run(b'?'));
        assert_eq!(RUNS.load(Ordering::Relaxed), 1);
        let mut seen = std::vec::Vec::new();
        for_each(|key, help| seen.push((key, help)));
        assert_eq!(seen, [('q', "count")]);
    }
}
