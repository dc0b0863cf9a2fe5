//! The heap, in chunks that are allocated from [`frames`] when they are needed.
//!
//! A chunk is never freed: domains' quotas bound what EL2 holds, so the size of the heap settles.

use super::frames;
use crate::sync::{Lock, Rank};
use buddy_system_allocator::Heap;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};

/// The smallest chunk in bytes.
const CHUNK: usize = 1 << 20;

struct Allocator(Lock<Heap<32>>);

#[cfg_attr(target_os = "none", global_allocator)]
static HEAP: Allocator = Allocator(Lock::new(Rank::Memory, Heap::empty()));

// SAFETY: the buddy allocator hands out each block once, and the lock keeps it consistent. The frames' lock is taken
// only while this one is not held.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        for _ in 0..2 {
            if let Ok(block) = self.0.lock().alloc(layout) {
                return block.as_ptr();
            }
            // A buddy block has a size that is a power of two, and that alignment.
            let size = layout.size().max(layout.align()).next_power_of_two().max(CHUNK);
            // Objects are initialized by their owners. To zero a chunk would take 65,000 instructions at one moment.
            let Some(chunk) = frames::alloc_dirty(size, size) else { break };
            let start = chunk.0 as usize;
            // SAFETY: the chunk was just allocated, and is never freed.
            unsafe { self.0.lock().add_to_heap(start, start + size) };
        }
        ptr::null_mut()
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller of `GlobalAlloc::dealloc` guarantees that the block came from `alloc` with this
            // layout.
            unsafe { self.0.lock().dealloc(block, layout) };
        }
    }
}

/// Whether objects of `bytes` bytes in all, each rounded up to a power of two, can be allocated now. If there is no such
/// block, the heap grows by one.
#[must_use]
pub fn has_room(bytes: usize) -> bool {
    let Ok(layout) = Layout::from_size_align(bytes.max(1).next_power_of_two(), 1) else { return false };
    // SAFETY: the size is not 0; the block is not accessed, and freed with the layout that it was allocated with.
    unsafe {
        let block = HEAP.alloc(layout);
        HEAP.dealloc(block, layout);
        !block.is_null()
    }
}

/// Returns the number of bytes in use by objects, and the size of the heap in bytes.
#[must_use]
pub fn usage() -> (usize, usize) {
    let heap = HEAP.0.lock();
    (heap.stats_alloc_actual(), heap.stats_total_bytes())
}
