//! Debug keys: what the hypervisor does when it has the keyboard.

use crate::sync::{Lock, Rank};
use alloc::boxed::Box;
use arrayvec::ArrayVec;

/// A key and what it does.
#[derive(Clone, Copy)]
struct Key {
    key: u8,
    help: &'static str,
    run: &'static (dyn Fn() + Sync),
}

/// As many keys as there can be.
const KEYS: usize = 32;

static TABLE: Lock<ArrayVec<Key, KEYS>> = Lock::new(Rank::Console, ArrayVec::new_const());

/// Makes `key` run `run`; the last registration of a key holds. `false` when the table is full.
pub fn register(key: u8, help: &'static str, run: impl Fn() + Sync + 'static) -> bool {
    let run: &'static (dyn Fn() + Sync) = Box::leak(Box::new(run));
    let mut table = TABLE.lock();
    table.retain(|entry| entry.key != key);
    table.try_push(Key { key, help, run }).is_ok()
}

/// Runs what `key` stands for, with no lock held. `false` when it stands for nothing.
pub fn run(key: u8) -> bool {
    let found = TABLE.lock().iter().find(|entry| entry.key == key).map(|entry| entry.run);
    if let Some(run) = found {
        run();
    }
    found.is_some()
}

/// Calls `each` for every key and its help, in the order of the keys.
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
    fn a_key_runs_what_was_registered_last_and_others_nothing() {
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
