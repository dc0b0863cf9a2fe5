//! Sets of numbers as inclusive ranges: DeviceIDs, StreamIDs.

use alloc::vec::Vec;

/// The numbers from the first to the last one.
pub type IdRange = (u32, u32);

/// The numbers in any of the ranges. The result is sorted, and its ranges neither overlap nor touch.
#[must_use]
pub fn merged(mut all: Vec<IdRange>) -> Vec<IdRange> {
    all.sort_unstable();
    let mut merged: Vec<IdRange> = Vec::new();
    for (first, last) in all {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// The numbers in `all` that are in none of `taken`. If `all` is sorted, so is the result.
#[must_use]
pub fn without(all: Vec<IdRange>, taken: impl IntoIterator<Item = IdRange>) -> Vec<IdRange> {
    taken.into_iter().fold(all, |left, (first, last)| {
        let mut cut = Vec::new();
        for range in left {
            if last < range.0 || range.1 < first {
                cut.push(range);
                continue;
            }
            // There is a number below or above, so neither of the two overflows.
            if range.0 < first {
                cut.push((range.0, first - 1));
            }
            if last < range.1 {
                cut.push((last + 1, range.1));
            }
        }
        cut
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn ranges_that_overlap_or_touch_are_one() {
        assert_eq!(
            merged(vec![(8, 9), (0, 3), (4, 4), (2, 5), (u32::MAX, u32::MAX)]),
            [(0, 5), (8, 9), (u32::MAX, u32::MAX)]
        );
        assert_eq!(merged(vec![(0, u32::MAX), (7, 7)]), [(0, u32::MAX)]);
    }

    #[test]
    fn what_is_taken_is_cut_out_wherever_it_is() {
        let left = |taken: &[IdRange]| without(vec![(0, 0xff), (0x200, u32::MAX)], taken.iter().copied());
        assert_eq!(left(&[]), [(0, 0xff), (0x200, u32::MAX)]);
        assert_eq!(left(&[(0x100, 0x1ff)]), [(0, 0xff), (0x200, u32::MAX)]);
        assert_eq!(left(&[(0, 0)]), [(1, 0xff), (0x200, u32::MAX)]);
        assert_eq!(left(&[(0x80, 0x80), (0xff, 0x200)]), [(0, 0x7f), (0x81, 0xfe), (0x201, u32::MAX)]);
        assert_eq!(left(&[(u32::MAX, u32::MAX), (0, 0xff)]), [(0x200, u32::MAX - 1)]);
        assert_eq!(left(&[(0, u32::MAX)]), []);
    }
}
