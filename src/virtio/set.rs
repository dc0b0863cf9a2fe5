//! Sets of ports.

use crate::ids::PortId;
use crate::util::bit_set::BitSet;
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
pub struct PortSet(BitSet<WORDS>);

impl PortSet {
    /// Adds a port. One that no device has is ignored.
    pub fn insert(&mut self, port: PortId) {
        self.0.add(port.0.into());
    }

    /// Removes a port.
    pub fn remove(&mut self, port: PortId) {
        self.0.remove(port.0.into());
    }

    /// Adds all ports of `other`.
    pub fn join(&mut self, other: PortSet) {
        self.0.join(&other.0);
    }

    /// Whether it has no port.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first port at or behind `from`; if there is none, the first of all.
    #[must_use]
    pub fn next(&self, from: PortId) -> Option<PortId> {
        self.0.iter_from(from.0.into()).next().map(|port| PortId(port as u16))
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
        let mut all = [0; WORDS];
        for (word, taken) in self.0.iter().zip(&mut all) {
            // Nearly all words are empty, which a load finds out.
            if word.load(Ordering::SeqCst) != 0 {
                *taken = word.swap(0, Ordering::SeqCst);
            }
        }
        PortSet(BitSet::from_words(all))
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
