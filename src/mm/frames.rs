//! The allocator of EL2's pool: zeroed runs of pages, of any length and alignment.

use super::bitmap::Bitmap;
use crate::ids::Pa;
use crate::sync::{Lock, Rank};
use crate::util;
use core::slice;

const PAGE: usize = util::PAGE as usize;

struct Pool {
    base: u64,
    map: Bitmap<'static>,
}

static POOL: Lock<Option<Pool>> = Lock::new(Rank::Memory, None);

/// Makes `size` bytes from `base` the pool. `base` and `size` are multiples of the page size.
///
/// # Safety
///
/// The memory is mapped, and from now on only the owners of allocations use it. Called once.
pub unsafe fn init(base: Pa, size: u64) {
    let pages = size as usize / PAGE;
    let words = Bitmap::words_for(pages);
    let own = (words * 8).div_ceil(PAGE);
    // SAFETY: this is the start of the pool, which the caller has given to this allocator.
    let words = unsafe { slice::from_raw_parts_mut(base.0 as *mut u64, words) };
    let mut map = Bitmap::new(words, pages);
    map.take(own, 1, 0);
    *POOL.lock() = Some(Pool { base: base.0, map });
}

/// Allocates `size` bytes, rounded up to pages, zeroed, and aligned to `align` bytes (a power of two; at least page
/// alignment is given). Returns `None` if there is no such run of pages.
#[must_use]
pub fn alloc(size: usize, align: usize) -> Option<Pa> {
    let base = alloc_dirty(size, align)?;
    // SAFETY: the pages were free, and `alloc_dirty` has given them to this call alone.
    unsafe { slice::from_raw_parts_mut(base.0 as *mut u64, size.div_ceil(PAGE).max(1) * PAGE / 8).fill(0) };
    Some(base)
}

/// [`alloc()`] without zeroes: the memory holds what its last owner in EL2 left there.
#[must_use]
pub fn alloc_dirty(size: usize, align: usize) -> Option<Pa> {
    let (count, align) = (size.div_ceil(PAGE).max(1), align.max(PAGE) / PAGE);
    let mut pool = POOL.lock();
    let pool = pool.as_mut()?;
    let offset = (pool.base as usize / PAGE).wrapping_neg() & (align - 1);
    Some(Pa(pool.base + (pool.map.take(count, align, offset)? * PAGE) as u64))
}

/// Frees an allocation of [`alloc()`] with the same `size`.
pub fn free(base: Pa, size: usize) {
    let count = size.div_ceil(PAGE).max(1);
    let mut pool = POOL.lock();
    if let Some(pool) = pool.as_mut() {
        pool.map.give((base.0 - pool.base) as usize / PAGE, count);
    }
}

/// Returns the number of free bytes.
#[must_use]
pub fn free_bytes() -> u64 {
    POOL.lock().as_ref().map_or(0, |pool| (pool.map.free_pages() * PAGE) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_zeroed_and_aligned_and_can_be_freed() {
        let size = 64 * PAGE;
        let memory = std::vec![0xa5a5_a5a5_a5a5_a5a5u64; size / 8 + 2 * PAGE].leak();
        let base = (memory.as_ptr() as u64).next_multiple_of(PAGE as u64);
        // SAFETY: the memory was leaked above, and only this test uses it.
        unsafe { init(Pa(base), size as u64) };
        assert_eq!(free_bytes(), 63 * PAGE as u64, "one page holds the bitmap");
        let run = alloc(3 * PAGE + 1, 8 * PAGE).unwrap();
        assert_eq!(run.0 % (8 * PAGE as u64), 0);
        // SAFETY: the run was just allocated.
        let words = unsafe { slice::from_raw_parts(run.0 as *const u64, 4 * PAGE / 8) };
        assert!(words.iter().all(|&word| word == 0));
        assert_eq!(free_bytes(), 59 * PAGE as u64);
        free(run, 3 * PAGE + 1);
        assert_eq!(free_bytes(), 63 * PAGE as u64);
        assert_eq!(alloc(64 * PAGE, PAGE), None);
    }
}
