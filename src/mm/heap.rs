//! The heap, in chunks that are allocated from [`frames`] when they are needed.
//!
//! A chunk is never freed: domains' quotas bound what EL2 holds, so the size of the heap settles.

use super::frames;
use crate::ids::Pa;
use crate::sync::{Lock, Rank};
use buddy_system_allocator::Heap;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};

/// The smallest chunk in bytes.
const CHUNK: usize = 1 << 20;

struct Allocator {
    heap: Lock<Heap<32>>,
    /// Where chunks come from: size and alignment in bytes.
    chunks: fn(usize, usize) -> Option<Pa>,
}

impl Allocator {
    /// An empty heap. What `chunks` returns must be memory that nobody else uses.
    const fn new(chunks: fn(usize, usize) -> Option<Pa>) -> Allocator {
        Allocator { heap: Lock::new(Rank::Memory, Heap::empty()), chunks }
    }

    fn has_room(&self, bytes: usize) -> bool {
        let layout = bytes.max(1).checked_next_power_of_two().map(|size| Layout::from_size_align(size, 1));
        let Some(Ok(layout)) = layout else { return false };
        // SAFETY: the size is not 0; the block is not accessed, and freed with the layout that it was allocated with.
        unsafe {
            let block = self.alloc(layout);
            self.dealloc(block, layout);
            !block.is_null()
        }
    }
}

#[cfg_attr(target_os = "none", global_allocator)]
static HEAP: Allocator = Allocator::new(frames::alloc_dirty);

// SAFETY: the buddy allocator hands out each block once, and the lock keeps it consistent. The frames' lock is taken
// only while this one is not held.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        for _ in 0..2 {
            if let Ok(block) = self.heap.lock().alloc(layout) {
                return block.as_ptr();
            }
            // A buddy block has a size that is a power of two, and that alignment.
            let size = layout.size().max(layout.align()).next_power_of_two().max(CHUNK);
            // Objects are initialized by their owners. To zero a chunk would take 65,000 instructions at one moment.
            let Some(chunk) = (self.chunks)(size, size) else { break };
            let start = chunk.0 as usize;
            // SAFETY: the chunk was just allocated, and is never freed.
            unsafe { self.heap.lock().add_to_heap(start, start + size) };
        }
        ptr::null_mut()
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller of `GlobalAlloc::dealloc` guarantees that the block came from `alloc` with this
            // layout.
            unsafe { self.heap.lock().dealloc(block, layout) };
        }
    }
}

/// Whether objects of `bytes` bytes in all, each rounded up to a power of two, can be allocated now. If there is no such
/// block, the heap grows by one.
#[must_use]
pub fn has_room(bytes: usize) -> bool {
    HEAP.has_room(bytes)
}

/// Returns the number of bytes in use by objects, and the size of the heap in bytes.
#[must_use]
pub fn usage() -> (usize, usize) {
    let heap = HEAP.heap.lock();
    (heap.stats_alloc_actual(), heap.stats_total_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A heap that can get `MOST` chunks of [`CHUNK`] bytes, and none that is larger.
    fn heap<const MOST: usize>() -> Allocator {
        static GIVEN: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];
        Allocator::new(|size, align| {
            if size > CHUNK || GIVEN[MOST].fetch_add(1, Ordering::Relaxed) >= MOST {
                return None;
            }
            let memory = std::vec![0u8; size + align].leak();
            Some(Pa((memory.as_ptr() as u64).next_multiple_of(align as u64)))
        })
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 8).unwrap()
    }

    fn size(heap: &Allocator) -> usize {
        heap.heap.lock().stats_total_bytes()
    }

    #[test]
    fn there_is_room_for_what_the_heap_can_grow_by_and_no_object_is_left_of_the_question() {
        let heap = heap::<1>();
        assert!(heap.has_room(CHUNK / 2 + 1), "by a chunk");
        assert_eq!((size(&heap), heap.heap.lock().stats_alloc_actual()), (CHUNK, 0));
        assert!(heap.has_room(CHUNK) && heap.has_room(0));
        assert_eq!(size(&heap), CHUNK, "free blocks are used before the heap grows");
        assert!(!heap.has_room(CHUNK + 1), "this would take two chunks in one");
        assert!(!heap.has_room(usize::MAX));
    }

    #[test]
    fn there_is_no_room_while_objects_fill_all_that_the_heap_can_get() {
        let heap = heap::<2>();
        let full = layout(CHUNK);
        // SAFETY: blocks of a heap of leaked memory, each freed once with its layout.
        unsafe {
            let blocks = [heap.alloc(full), heap.alloc(full)];
            assert!(blocks.iter().all(|block| !block.is_null()) && heap.alloc(full).is_null());
            assert!(!heap.has_room(1));
            heap.dealloc(blocks[0], full);
            assert!(heap.has_room(CHUNK));
            // One small object splits the chunk: a block of half of it is left.
            let small = heap.alloc(layout(8));
            assert!(!heap.has_room(CHUNK / 2 + 1) && heap.has_room(CHUNK / 2));
            heap.dealloc(small, layout(8));
            assert!(heap.has_room(CHUNK));
        }
    }
}
