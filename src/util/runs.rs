//! Runs of slots: which parts of a fixed number of slots are in use.
//!
//! A run has 2^n slots and is aligned to its length, so the slots do not fragment more than in a buddy allocator. A list
//! of runs takes the place of free lists, because there are hundreds of runs and not millions. All memory is allocated
//! when the list is made.

use alloc::vec::Vec;

/// The runs in use.
pub struct Runs {
    slots: u32,
    /// In rising order: (first slot, length).
    taken: Vec<(u32, u32)>,
}

impl Runs {
    /// A list of at most `most` runs in `slots` slots; `None` if there is no memory for it.
    #[must_use]
    pub fn new(slots: u32, most: usize) -> Option<Runs> {
        let mut taken = Vec::new();
        taken.try_reserve_exact(most).ok()?;
        Some(Runs { slots, taken })
    }

    /// Takes the lowest free run of `length` slots, a power of two. Returns its first slot, or `None` if there is none.
    #[must_use]
    pub fn take(&mut self, length: u32) -> Option<u32> {
        if self.taken.len() == self.taken.capacity() {
            return None;
        }
        let (mut first, mut place) = (0u32, 0usize);
        for &(base, size) in &self.taken {
            if first.checked_add(length)? <= base {
                break;
            }
            first = base.checked_add(size)?.checked_next_multiple_of(length)?;
            place = place.saturating_add(1);
        }
        if first.checked_add(length)? > self.slots {
            return None;
        }
        // There is room: checked above.
        self.taken.insert(place, (first, length));
        Some(first)
    }

    /// Gives a run back. Does nothing if none begins at `first`.
    pub fn give_back(&mut self, first: u32) {
        if let Ok(place) = self.taken.binary_search_by_key(&first, |&(first, _)| first) {
            self.taken.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_aligned_reused_and_never_overlap() {
        let mut runs = Runs::new(32, 8).unwrap();
        assert_eq!([8, 2, 16, 4].map(|length| runs.take(length)), [Some(0), Some(8), Some(16), Some(12)]);
        assert_eq!(runs.take(4), None);
        runs.give_back(0);
        assert_eq!([4, 4].map(|length| runs.take(length)), [Some(0), Some(4)]);
        assert_eq!(runs.taken, [(0, 4), (4, 4), (8, 2), (12, 4), (16, 16)]);
        runs.give_back(1);
        assert_eq!(runs.taken.len(), 5, "no run begins there");
    }

    #[test]
    fn there_are_no_more_runs_than_was_said_so_that_nothing_is_allocated() {
        let mut runs = Runs::new(32, 2).unwrap();
        let room = runs.taken.capacity();
        assert_eq!([1, 1, 1].map(|length| runs.take(length)), [Some(0), Some(1), None]);
        assert_eq!(runs.taken.capacity(), room);
        assert_eq!(runs.take(u32::MAX), None);
    }
}
