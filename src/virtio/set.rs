//! Sets of ports.

use crate::ids::PortId;
use core::sync::atomic::{AtomicU64, Ordering};

/// The number of ports, port 0 included, which is not used: a driver without VIRTIO_CONSOLE_F_MULTIPORT would take it for
/// the guest's console. For each port, Linux allocates two queues of 8 KiB.
pub const PORTS: u16 = 256;

const WORDS: usize = (PORTS as usize).div_ceil(64);

/// The word and the bit of a port.
const fn place(port: PortId) -> (usize, u64) {
    (port.0 as usize / 64, 1 << (port.0 % 64))
}

/// A set of ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortSet([u64; WORDS]);

impl PortSet {
    /// Adds a port. One that no device has is ignored.
    pub fn insert(&mut self, port: PortId) {
        let (word, bit) = place(port);
        if let Some(word) = self.0.get_mut(word) {
            *word |= bit;
        }
    }

    /// Removes a port.
    pub fn remove(&mut self, port: PortId) {
        let (word, bit) = place(port);
        if let Some(word) = self.0.get_mut(word) {
            *word &= !bit;
        }
    }

    /// Adds all ports of `other`.
    pub fn join(&mut self, other: PortSet) {
        self.0.iter_mut().zip(other.0).for_each(|(word, more)| *word |= more);
    }

    /// Whether it has no port.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    /// The first port at or behind `from`; if there is none, the first of all.
    #[must_use]
    pub fn next(&self, from: PortId) -> Option<PortId> {
        let (first, bit) = place(from);
        let behind = self.0.iter().enumerate().skip(first).map(|(index, &word)| {
            // `bit` has no bit below it set in `bit - 1`, so the mask has it and all above.
            (index, if index == first { word & !bit.saturating_sub(1) } else { word })
        });
        let all = self.0.iter().enumerate().map(|(index, &word)| (index, word));
        let (index, word) = behind.chain(all).find(|&(_, word)| word != 0)?;
        Some(PortId((index as u16).saturating_mul(64).saturating_add(word.trailing_zeros() as u16)))
    }
}

/// A set of ports that CPUs change without a lock.
#[derive(Default)]
pub struct AtomicPortSet([AtomicU64; WORDS]);

impl AtomicPortSet {
    /// Adds a port.
    pub fn insert(&self, port: PortId) {
        let (word, bit) = place(port);
        if let Some(word) = self.0.get(word) {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// Empties the set, and returns what was in it.
    #[must_use]
    pub fn take(&self) -> PortSet {
        let mut all = PortSet::default();
        for (word, taken) in self.0.iter().zip(&mut all.0) {
            // Nearly all words are empty, which a load finds out.
            if word.load(Ordering::SeqCst) != 0 {
                *taken = word.swap(0, Ordering::SeqCst);
            }
        }
        all
    }

    /// Whether it has no port.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| word.load(Ordering::SeqCst) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_found_in_turn_and_what_no_device_has_is_ignored() {
        let mut set = PortSet::default();
        assert_eq!(set.next(PortId(0)), None);
        let ports = [0, 1, 63, 64, 130, PORTS - 1];
        ports.iter().for_each(|&port| set.insert(PortId(port)));
        let mut seen = std::vec::Vec::new();
        let mut from = PortId(1);
        for _ in 0..=ports.len() {
            let found = set.next(from).unwrap();
            seen.push(found.0);
            from = PortId(found.0 + 1);
        }
        assert_eq!(seen, [1, 63, 64, 130, PORTS - 1, 0, 1]);
        assert_eq!(set.next(PortId(u16::MAX)), Some(PortId(0)));
        set.insert(PortId(u16::MAX));
        set.remove(PortId(u16::MAX));
        ports.iter().for_each(|&port| set.remove(PortId(port)));
        assert!(set.is_empty());
        let atomic = AtomicPortSet::default();
        [3, 200, u16::MAX].map(PortId).into_iter().for_each(|port| atomic.insert(port));
        assert!(!atomic.is_empty());
        set.join(atomic.take());
        assert_eq!((set.next(PortId(4)), set.next(PortId(201))), (Some(PortId(200)), Some(PortId(3))));
        assert!(atomic.is_empty() && atomic.take().is_empty());
    }
}
