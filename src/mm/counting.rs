//! Counts the allocations of tests: code that a guest can make EL2 run allocates nothing, and what is taken down leaves
//! nothing behind.

use core::cell::Cell;
use std::alloc::{GlobalAlloc, Layout, System};

std::thread_local! {
    /// The allocations of this thread so far; `None` while they are not counted.
    static COUNT: Cell<Option<usize>> = const { Cell::new(None) };
    /// The bytes that this thread has allocated and not freed, while its allocations are counted.
    static HELD: Cell<isize> = const { Cell::new(0) };
}

struct Counted;

#[global_allocator]
static HEAP: Counted = Counted;

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends has no counter any more.
        let _ = COUNT.try_with(|count| count.set(count.get().map(|n| n + 1)));
        hold(layout.size() as isize);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        hold(-(layout.size() as isize));
        // SAFETY: as above; the block came from `System`.
        unsafe { System.dealloc(block, layout) };
    }
}

fn hold(bytes: isize) {
    if COUNT.try_with(Cell::get).is_ok_and(|count| count.is_some()) {
        let _ = HELD.try_with(|held| held.set(held.get() + bytes));
    }
}

/// Counts an allocation that is not made here.
pub fn count() {
    COUNT.set(COUNT.get().map(|n| n + 1));
}

/// Runs `code` and returns how many more bytes of the heap this thread holds afterwards, without what runs in
/// [`outside`].
pub fn held(code: impl FnOnce()) -> isize {
    let before = HELD.replace(0);
    let _ = allocations(code);
    HELD.replace(before)
}

/// Runs `code` and returns how often this thread allocated, without what runs in [`outside`].
pub fn allocations(code: impl FnOnce()) -> usize {
    let before = COUNT.replace(Some(0));
    code();
    COUNT.replace(before).unwrap_or(0)
}

/// Runs a part of a test that stands for the hardware or for the guest. Its allocations are not counted.
pub fn outside<R>(code: impl FnOnce() -> R) -> R {
    let before = COUNT.replace(None);
    let result = code();
    COUNT.set(before);
    result
}

#[test]
fn allocations_are_counted_but_those_outside_are_not() {
    let make = || _ = core::hint::black_box(std::vec![0u8; 100]);
    assert_eq!(allocations(make), 1);
    assert_eq!(allocations(|| outside(make)), 0);
    make();
    assert_eq!(allocations(|| ()), 0);
    let mut kept = None;
    assert_eq!(held(|| kept = Some(std::vec![0u8; 100])), 100);
    assert_eq!((held(make), held(|| kept = None)), (0, -100));
}
