//! Pages of EL2's pool: runs of any length and alignment, zeroed.

use super::bitmap::Bitmap;
use crate::ids::Pa;
use crate::sync::{Lock, Rank};
use core::slice;

/// Bytes in a page.
pub const PAGE: usize = 0x1000;

struct Pool {
    base: u64,
    map: Bitmap<'static>,
}

static POOL: Lock<Option<Pool>> = Lock::new(Rank::Memory, None);

/// Makes `size` bytes from `base` the pool. Both are whole pages; the memory is mapped, and nobody else's. Once.
///
/// # Safety
///
/// As said: from now on frames alone decides who uses this memory.
pub unsafe fn init(base: Pa, size: u64) {
    let pages = size as usize / PAGE;
    let words = Bitmap::words_for(pages);
    let own = (words * 8).div_ceil(PAGE);
    // SAFETY: the start of the pool, which the caller has given up.
    let words = unsafe { slice::from_raw_parts_mut(base.0 as *mut u64, words) };
    let mut map = Bitmap::new(words, pages);
    map.take(own, 1, 0);
    *POOL.lock() = Some(Pool { base: base.0, map });
}

/// Takes `size` bytes, rounded up to pages, on a boundary of `align` bytes (a power of two, at least a page's), zeroed.
/// `None` when there is no such run.
#[must_use]
pub fn alloc(size: usize, align: usize) -> Option<Pa> {
    let (count, align) = (size.div_ceil(PAGE).max(1), align.max(PAGE) / PAGE);
    let base = {
        let mut pool = POOL.lock();
        let pool = pool.as_mut()?;
        let offset = (pool.base as usize / PAGE).wrapping_neg() & (align - 1);
        pool.base + (pool.map.take(count, align, offset)? * PAGE) as u64
    };
    // SAFETY: the pages were free and are now the caller's alone.
    unsafe { slice::from_raw_parts_mut(base as *mut u64, count * PAGE / 8).fill(0) };
    Some(Pa(base))
}

/// Gives back what [`alloc`] gave, with the size it was asked with.
pub fn free(base: Pa, size: usize) {
    let count = size.div_ceil(PAGE).max(1);
    let mut pool = POOL.lock();
    if let Some(pool) = pool.as_mut() {
        pool.map.give((base.0 - pool.base) as usize / PAGE, count);
    }
}

/// Bytes that are free.
#[must_use]
pub fn free_bytes() -> u64 {
    POOL.lock().as_ref().map_or(0, |pool| (pool.map.free_pages() * PAGE) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_zeroed_aligned_and_returned() {
        let size = 64 * PAGE;
        let memory = std::vec![0xa5a5_a5a5_a5a5_a5a5u64; size / 8 + 2 * PAGE].leak();
        let base = (memory.as_ptr() as u64).next_multiple_of(PAGE as u64);
        // SAFETY: leaked above, whole pages.
        unsafe { init(Pa(base), size as u64) };
        assert_eq!(free_bytes(), 63 * PAGE as u64, "one page holds the bitmap");
        let run = alloc(3 * PAGE + 1, 8 * PAGE).unwrap();
        assert_eq!(run.0 % (8 * PAGE as u64), 0);
        // SAFETY: just allocated.
        let words = unsafe { slice::from_raw_parts(run.0 as *const u64, 4 * PAGE / 8) };
        assert!(words.iter().all(|&word| word == 0));
        assert_eq!(free_bytes(), 59 * PAGE as u64);
        free(run, 3 * PAGE + 1);
        assert_eq!(free_bytes(), 63 * PAGE as u64);
        assert_eq!(alloc(64 * PAGE, PAGE), None);
    }
}
