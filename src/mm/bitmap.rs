//! A first-fit allocator of runs of pages, with one bit per page.
//!
//! EL2 allocates rarely (when a domain is built or a vPE table is made) and frees whole objects. So speed matters less
//! than that any size and alignment that hardware requires is possible without waste: a run of 5 pages takes 5 pages.

/// A bitmap with one bit per page, which is set while the page is allocated.
pub struct Bitmap<'a> {
    words: &'a mut [u64],
    pages: usize,
    free: usize,
    /// No page below this one is free.
    hint: usize,
}

impl<'a> Bitmap<'a> {
    /// Returns the number of words that a bitmap of `pages` pages needs.
    #[must_use]
    pub const fn words_for(pages: usize) -> usize {
        pages.div_ceil(64)
    }

    /// A bitmap of `pages` free pages. `words` has at least [`words_for`](Bitmap::words_for)`(pages)` words.
    pub fn new(words: &'a mut [u64], pages: usize) -> Bitmap<'a> {
        words.fill(0);
        let pages = pages.min(words.len() * 64);
        Bitmap { words, pages, free: pages, hint: 0 }
    }

    /// Returns the number of free pages.
    #[must_use]
    pub fn free_pages(&self) -> usize {
        self.free
    }

    fn taken(&self, page: usize) -> bool {
        self.words[page / 64] & (1 << (page % 64)) != 0
    }

    fn set(&mut self, first: usize, count: usize, taken: bool) {
        for page in first..first + count {
            debug_assert!(self.taken(page) != taken, "page {page} allocated or freed twice");
            self.words[page / 64] ^= 1 << (page % 64);
        }
    }

    /// Returns the first free page at or after `from`. Words without a free page are skipped as a whole.
    fn next_free(&self, from: usize) -> Option<usize> {
        let mut page = from;
        while page < self.pages {
            let rest = !self.words[page / 64] >> (page % 64);
            if rest != 0 {
                page += rest.trailing_zeros() as usize;
                return (page < self.pages).then_some(page);
            }
            page = (page / 64 + 1) * 64;
        }
        None
    }

    /// Allocates `count` contiguous pages, the first of them at `offset` plus a multiple of `align` pages.
    ///
    /// `align` is a power of two and `offset` less than `align`. `offset` is not zero if the pool itself is not aligned
    /// so.
    pub fn take(&mut self, count: usize, align: usize, offset: usize) -> Option<usize> {
        if count == 0 || count > self.free || !align.is_power_of_two() {
            return None;
        }
        let mut at = self.next_free(self.hint)?;
        self.hint = at;
        loop {
            let first = at + (offset.wrapping_sub(at) & (align - 1));
            if first.checked_add(count)? > self.pages {
                return None;
            }
            match (first..first + count).rev().find(|&page| self.taken(page)) {
                None => {
                    self.set(first, count, true);
                    self.free -= count;
                    return Some(first);
                }
                Some(obstacle) => at = self.next_free(obstacle + 1)?,
            }
        }
    }

    /// Frees pages.
    pub fn give(&mut self, first: usize, count: usize) {
        assert!(first.checked_add(count).is_some_and(|end| end <= self.pages), "freeing pages outside the pool");
        self.set(first, count, false);
        self.free += count;
        self.hint = self.hint.min(first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_aligned_by_address_and_not_by_page_number() {
        let mut words = [0; 4];
        let mut map = Bitmap::new(&mut words, 200);
        // The pool starts 3 pages after a multiple of 16, so page 13 is the first aligned one.
        assert_eq!(map.take(16, 16, 13), Some(13));
        assert_eq!(map.take(1, 1, 0), Some(0));
        assert_eq!(map.take(13, 1, 0), Some(29), "the gap of 12 pages before the aligned run is too small");
        assert_eq!(map.take(12, 1, 0), Some(1));
        assert_eq!(map.free_pages(), 200 - 16 - 1 - 13 - 12);
    }

    #[test]
    fn all_of_the_pool_can_be_allocated_and_no_more() {
        let mut words = [0; 2];
        let mut map = Bitmap::new(&mut words, 100);
        assert_eq!(map.take(101, 1, 0), None);
        assert_eq!(map.take(100, 1, 0), Some(0));
        assert_eq!(map.take(1, 1, 0), None);
        map.give(40, 20);
        assert_eq!(map.take(21, 1, 0), None);
        assert_eq!(map.take(20, 1, 0), Some(40));
        assert_eq!(map.free_pages(), 0);
    }

    #[test]
    fn adjacent_freed_runs_can_be_allocated_as_one() {
        let mut words = [0; 2];
        let mut map = Bitmap::new(&mut words, 128);
        let runs: std::vec::Vec<_> = (0..32).map(|_| map.take(4, 1, 0).unwrap()).collect();
        for run in runs.iter().rev() {
            map.give(*run, 4);
        }
        assert_eq!(map.take(128, 1, 0), Some(0));
    }

    #[test]
    fn random_runs_never_overlap() {
        let mut words = [0; 8];
        let mut map = Bitmap::new(&mut words, 500);
        let mut held: std::vec::Vec<(usize, usize)> = std::vec::Vec::new();
        let mut seed = 1u64;
        let mut random = move |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        for _ in 0..5_000 {
            if random(2) == 0 && !held.is_empty() {
                let (first, count) = held.swap_remove(random(held.len()));
                map.give(first, count);
            } else {
                let (count, align) = (1 + random(20), 1 << random(5));
                let offset = 5 % align;
                if let Some(first) = map.take(count, align, offset) {
                    assert_eq!(first % align, offset);
                    assert!(held.iter().all(|&(f, c)| first + count <= f || f + c <= first));
                    held.push((first, count));
                }
            }
            assert_eq!(map.free_pages(), 500 - held.iter().map(|h| h.1).sum::<usize>());
        }
    }

    #[test]
    #[should_panic(expected = "outside the pool")]
    fn freeing_pages_outside_the_pool_panics() {
        let mut words = [0; 1];
        Bitmap::new(&mut words, 10).give(9, 2);
    }
}
