//! The choice of the memory that EL2 takes for itself.

use crate::ids::Pa;
use crate::util::range::Range;

/// The alignment of the pool's ends in bytes, so that the memory left for domains can be mapped in whole blocks, too.
pub const GRAIN: u64 = 2 << 20;

/// Returns the size of the pool for a machine with `memory` bytes of RAM: a 64th, and at least 32 MiB.
#[must_use]
pub fn wanted(memory: u64) -> u64 {
    (memory / 64).max(32 << 20).next_multiple_of(GRAIN)
}

/// Returns the highest range of `size` bytes (a multiple of [`GRAIN`]) in `memory` that overlaps nothing in `avoid`.
///
/// The highest, because kernels and devices with narrow address buses need low memory.
#[must_use]
pub fn choose(memory: &[Range], avoid: &[Range], size: u64) -> Option<Range> {
    let mut best: Option<Range> = None;
    for bank in memory {
        let mut end = bank.end().0 & !(GRAIN - 1);
        while let Some(base) = end.checked_sub(size).filter(|&base| base >= bank.base.0) {
            let candidate = Range::new(Pa(base), size);
            // If something is in the way, try again below the lowest such range.
            match avoid.iter().filter(|range| range.overlaps(candidate)).map(|range| range.base.0).min() {
                Some(obstacle) => end = obstacle & !(GRAIN - 1),
                None => {
                    if best.is_none_or(|other| other.base < candidate.base) {
                        best = Some(candidate);
                    }
                    break;
                }
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1 << 20;

    fn range(base: u64, size: u64) -> Range {
        Range::new(Pa(base), size)
    }

    #[test]
    fn the_pool_is_at_the_top_of_the_highest_bank_with_room() {
        let memory = [range(1024 * M, 512 * M), range(8192 * M, 16 * M)];
        assert_eq!(choose(&memory, &[], 32 * M), Some(range((1536 - 32) * M, 32 * M)));
        assert_eq!(choose(&memory, &[], 16 * M), Some(range(8192 * M, 16 * M)));
    }

    #[test]
    fn the_pool_avoids_memory_in_use() {
        let memory = [range(1024 * M, 128 * M)];
        // The device tree at the top, and a module below it with a gap that is one byte too small.
        let avoid = [range(1151 * M, M), range(1088 * M, 30 * M + 1), range(1024 * M, 3 * M)];
        assert_eq!(choose(&memory, &avoid, 32 * M), Some(range(1056 * M, 32 * M)));
        assert_eq!(choose(&memory, &avoid, 64 * M), None);
    }

    #[test]
    fn the_pool_is_aligned_within_a_misaligned_bank() {
        let memory = [range(1024 * M + 0x1000, 64 * M)];
        assert_eq!(choose(&memory, &[], 62 * M), Some(range(1026 * M, 62 * M)));
        assert_eq!(choose(&memory, &[], 64 * M), None);
    }

    #[test]
    fn the_size_of_the_pool_is_a_64th_of_memory_but_at_least_32_mib() {
        assert_eq!(wanted(512 * M), 32 * M);
        assert_eq!(wanted(8192 * M), 128 * M);
        assert_eq!(wanted(8193 * M) % GRAIN, 0);
    }
}
