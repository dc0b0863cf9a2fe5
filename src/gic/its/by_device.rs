//! A map from DeviceID to a value, with the same number of steps for each look-up.
//!
//! A DeviceID has up to 32 bits and is mostly a PCI requester ID below a segment number. So DeviceIDs come in clusters,
//! and three levels of arrays waste little memory. The arrays of the lower two levels are allocated when they are first
//! needed, and kept.

use crate::ids::DeviceId;
use alloc::boxed::Box;

/// The requester IDs of a PCI bus.
const LEAF_BITS: u32 = 8;
const MIDDLE_BITS: u32 = 10;

type Leaf<T> = Box<[Option<Box<T>>]>;
type Middle<T> = Box<[Option<Leaf<T>>]>;

/// Values by DeviceID.
pub struct ByDevice<T> {
    top: Box<[Option<Middle<T>>]>,
}

/// The index of a DeviceID on each level.
const fn path(dev: DeviceId) -> (usize, usize, usize) {
    let id = dev.0 as usize;
    (id >> (LEAF_BITS + MIDDLE_BITS), id >> LEAF_BITS & ((1 << MIDDLE_BITS) - 1), id & ((1 << LEAF_BITS) - 1))
}

fn empty<T>(bits: u32) -> Box<[Option<T>]> {
    (0..1usize << bits).map(|_| None).collect()
}

impl<T> ByDevice<T> {
    /// An empty map for DeviceIDs of so many bits.
    pub fn new(device_bits: u8) -> Self {
        ByDevice { top: empty(u32::from(device_bits).min(u32::BITS).saturating_sub(LEAF_BITS + MIDDLE_BITS)) }
    }

    pub fn get(&self, dev: DeviceId) -> Option<&T> {
        let (top, middle, leaf) = path(dev);
        self.top.get(top)?.as_ref()?.get(middle)?.as_ref()?.get(leaf)?.as_deref()
    }

    pub fn get_mut(&mut self, dev: DeviceId) -> Option<&mut T> {
        let (top, middle, leaf) = path(dev);
        self.top.get_mut(top)?.as_mut()?.get_mut(middle)?.as_mut()?.get_mut(leaf)?.as_deref_mut()
    }

    pub fn contains(&self, dev: DeviceId) -> bool {
        self.get(dev).is_some()
    }

    /// Inserts a value and returns the previous one, or `value` itself if the DeviceID is beyond the map.
    pub fn insert(&mut self, dev: DeviceId, value: T) -> Option<T> {
        let (top, middle, leaf) = path(dev);
        let Some(middles) = self.top.get_mut(top) else { return Some(value) };
        let Some(leaves) = middles.get_or_insert_with(|| empty(MIDDLE_BITS)).get_mut(middle) else {
            return Some(value);
        };
        let place = leaves.get_or_insert_with(|| empty(LEAF_BITS)).get_mut(leaf)?;
        place.replace(Box::new(value)).map(|old| *old)
    }

    pub fn remove(&mut self, dev: DeviceId) -> Option<T> {
        let (top, middle, leaf) = path(dev);
        self.top.get_mut(top)?.as_mut()?.get_mut(middle)?.as_mut()?.get_mut(leaf)?.take().map(|value| *value)
    }

    /// The entry after `last`, or the first. Unlike an iterator it allows the map to change between the steps.
    pub fn after(&self, last: Option<DeviceId>) -> Option<(DeviceId, &T)> {
        let mut next = last.map_or(0, |last| u64::from(last.0) + 1);
        while let Ok(id) = u32::try_from(next) {
            let (top, middle, leaf) = path(DeviceId(id));
            let skipped = match self.top.get(top)?.as_ref().map(|leaves| leaves.get(middle)) {
                None => LEAF_BITS + MIDDLE_BITS,
                Some(None | Some(None)) => LEAF_BITS,
                Some(Some(Some(values))) => match values.get(leaf).and_then(Option::as_deref) {
                    Some(value) => return Some((DeviceId(id), value)),
                    None => 0,
                },
            };
            next = ((next >> skipped) + 1) << skipped;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn walk(devices: &ByDevice<u32>) -> Vec<(u32, u32)> {
        let next = |last: Option<DeviceId>| devices.after(last).map(|(dev, value)| (dev.0, *value));
        core::iter::successors(next(None), |(dev, _)| next(Some(DeviceId(*dev)))).collect()
    }

    #[test]
    fn values_are_found_in_the_order_of_device_ids_and_removed() {
        let ids = [0, 1, 0xff, 0x100, 0x3_ffff, 0x4_0000, 0x1234_5678, u32::MAX];
        let mut devices = ByDevice::new(32);
        assert!(walk(&devices).is_empty());
        for id in ids.iter().rev() {
            assert_eq!(devices.insert(DeviceId(*id), !id), None);
        }
        assert_eq!(walk(&devices), ids.map(|id| (id, !id)));
        for id in ids {
            assert_eq!(devices.get(DeviceId(id)), Some(&!id));
            assert!(devices.contains(DeviceId(id)) && !devices.contains(DeviceId(id ^ 2)));
        }
        *devices.get_mut(DeviceId(0x100)).unwrap() = 7;
        assert_eq!(devices.insert(DeviceId(0x100), 8), Some(7));
        for id in ids {
            assert!(devices.remove(DeviceId(id)).is_some());
            assert_eq!(devices.remove(DeviceId(id)), None);
        }
        assert!(walk(&devices).is_empty());
    }

    #[test]
    fn a_value_for_a_device_id_beyond_the_map_is_returned() {
        for (bits, last) in [(1, 0x3_ffff), (16, 0x3_ffff), (18, 0x3_ffff), (20, 0xf_ffff)] {
            let mut devices = ByDevice::new(bits);
            assert_eq!(devices.insert(DeviceId(last), 1), None);
            assert_eq!(devices.insert(DeviceId(last + 1), 2), Some(2));
            assert_eq!(devices.get(DeviceId(last + 1)), None);
            assert_eq!(walk(&devices), [(last, 1)]);
        }
    }
}
