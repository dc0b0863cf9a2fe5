//! A set of small numbers.

use super::bits::set_bits;

/// A set of the numbers below 64 * `WORDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitSet<const WORDS: usize>([u64; WORDS]);

impl<const WORDS: usize> BitSet<WORDS> {
    /// The empty set.
    #[must_use]
    pub const fn new() -> BitSet<WORDS> {
        BitSet([0; WORDS])
    }

    /// Whether `number` is in the set.
    #[must_use]
    pub fn has(&self, number: usize) -> bool {
        self.0.get(number / 64).is_some_and(|word| word & 1 << (number % 64) != 0)
    }

    /// Adds `number`. One that is too large is not added.
    pub fn add(&mut self, number: usize) {
        if let Some(word) = self.0.get_mut(number / 64) {
            *word |= 1 << (number % 64);
        }
    }

    /// Removes `number`.
    pub fn remove(&mut self, number: usize) {
        if let Some(word) = self.0.get_mut(number / 64) {
            *word &= !(1 << (number % 64));
        }
    }

    /// The set whose words these are, with the lowest numbers first.
    #[must_use]
    pub const fn from_words(words: [u64; WORDS]) -> BitSet<WORDS> {
        BitSet(words)
    }

    /// Adds all numbers of `other`.
    pub fn join(&mut self, other: &BitSet<WORDS>) {
        self.0.iter_mut().zip(other.0).for_each(|(word, more)| *word |= more);
    }

    /// Whether it has no number.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    /// The words, with the lowest numbers first.
    #[must_use]
    pub fn words(&self) -> &[u64; WORDS] {
        &self.0
    }

    /// The numbers in the set in rising order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + Clone + '_ {
        self.0.iter().enumerate().flat_map(|(index, &word)| set_bits(word).map(move |bit| index * 64 + bit as usize))
    }

    /// The numbers in the set in rising order, from `start` on; then those below it.
    pub fn iter_from(&self, start: usize) -> impl Iterator<Item = usize> + '_ {
        let first = (start / 64).min(WORDS);
        let above = !0u64 << (start % 64);
        let words = (first..WORDS).chain(0..first).chain((first < WORDS).then_some(first));
        words.enumerate().flat_map(move |(turn, index)| {
            let mask = match turn {
                0 if first < WORDS => above,
                _ if turn == WORDS => !above,
                _ => !0,
            };
            let word = self.0.get(index).copied().unwrap_or(0) & mask;
            set_bits(word).map(move |bit| index * 64 + bit as usize)
        })
    }
}

impl<const WORDS: usize> Default for BitSet<WORDS> {
    fn default() -> Self {
        BitSet::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn set(numbers: &[usize]) -> BitSet<3> {
        let mut set = BitSet::new();
        numbers.iter().for_each(|&number| set.add(number));
        set
    }

    #[test]
    fn numbers_are_added_and_removed_and_those_that_are_too_large_are_never_there() {
        let mut set = set(&[0, 63, 64, 191, 192, usize::MAX]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 191]);
        set.remove(63);
        set.remove(500);
        assert!(!set.has(63) && set.has(64) && !set.has(192));
        assert_eq!(set.words(), &[1, 1, 1 << 63]);
    }

    #[test]
    fn the_numbers_from_any_start_come_once_each_in_a_circle() {
        let numbers = [0, 1, 63, 64, 70, 130, 191];
        let set = set(&numbers);
        for start in 0..192 {
            let (below, above): (Vec<usize>, Vec<usize>) = numbers.iter().partition(|&&number| number < start);
            let expected: Vec<usize> = above.into_iter().chain(below).collect();
            assert_eq!(set.iter_from(start).collect::<Vec<_>>(), expected, "{start}");
        }
        assert_eq!(set.iter_from(192).collect::<Vec<_>>(), numbers);
    }
}
