//! Memory for the devices of one domain, all of it reserved when the domain is built.
//!
//! A guest decides when a device is mapped and how many events it has. If each MAPD allocated, one guest could take the
//! memory that others need, or leave EL2 without any. So a domain's translation tables and the records of its events
//! are one stretch each, of which a device gets a run of slots, and the second levels of the device table exist from
//! the start for all DeviceIDs that the domain may map. MAPD allocates nothing. When the domain is taken down, all but the
//! second levels is freed: these stay for the next domain with the same devices.
//!
//! The unused part of the translation tables is always zero, as MAPD requires it (IHI 0069, 5.3.11).

use super::event::Event;
use crate::arch::nospec;
use crate::gic::error::ItsError;
use crate::ids::{DeviceId, DeviceIds, DomId, EventId, Pa};
use crate::mmio::{Coherence, Hw};
use crate::util::runs::Runs;
use alloc::vec::Vec;

/// The alignment and the smallest size of a translation table.
pub const ITT_ALIGN: u64 = 256;

/// The smallest distance of two entries in a pool's translation tables, in bytes.
const STRIDE: u64 = 8;

/// EventID bits that a device takes of its domain's quota at least: those of the smallest translation table.
pub const MIN_EVENT_BITS: u8 = (ITT_ALIGN / STRIDE).ilog2() as u8;

/// How much a domain may use of one ITS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceQuota {
    /// Number of devices that are mapped at the same time.
    pub devices: u16,
    /// Number of translation table entries over all mapped devices. Each device counts for 2^n, and for at least
    /// 2^[`MIN_EVENT_BITS`].
    pub events: u32,
}

/// A device's part of a pool: `count` events, and the first of the slots that they have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    first: u32,
    pub count: u32,
    /// The events from here on have not been mapped since the device was.
    used: u32,
}

/// DeviceIDs, and where the first of them is in [`Pool::places`].
struct Ids {
    ids: DeviceIds,
    at: usize,
}

/// The entry of a device that is not mapped.
const UNMAPPED: u16 = u16::MAX;

/// The memory of one domain on one ITS.
pub struct Pool {
    pub owner: DomId,
    /// The DeviceIDs that the domain may map, in rising order.
    ids: Vec<Ids>,
    /// For each of these DeviceIDs the index of its share, so that a look-up takes the same time for any number of
    /// devices.
    places: Vec<u16>,
    shares: Vec<Share>,
    /// The indices of shares that no device has.
    free: Vec<u16>,
    /// The translation tables: the one of a device begins at `slot * stride`.
    itts: Pa,
    /// The size of an entry, rounded up to a power of two, so that each run begins at a multiple of [`ITT_ALIGN`].
    stride: u64,
    entry: u64,
    events: Vec<Event>,
    runs: Runs,
    /// Bytes of the translation tables that the ITS may still use, of devices that are no longer mapped.
    lost: u64,
}

/// A list of `length` times `value`.
fn filled<T: Clone>(length: usize, value: T) -> Result<Vec<T>, ItsError> {
    let mut list = Vec::new();
    list.try_reserve_exact(length).map_err(|_| ItsError::NoMemory)?;
    list.resize(length, value);
    Ok(list)
}

impl Pool {
    /// Reserves the memory of `quota` for the devices `ids` of a domain, on an ITS with entries of `entry` bytes. `ids` are
    /// sorted.
    pub fn new<H: Hw>(
        hw: &H,
        owner: DomId,
        ids: &[DeviceIds],
        quota: DeviceQuota,
        entry: u64,
    ) -> Result<Pool, ItsError> {
        let stride = entry.next_power_of_two().max(STRIDE);
        let (mut own, mut count) = (Vec::new(), 0usize);
        own.try_reserve_exact(ids.len()).map_err(|_| ItsError::NoMemory)?;
        for &ids in ids {
            own.push(Ids { ids, at: count });
            let more = (ids.last.0 as usize + 1).saturating_sub(ids.first.0 as usize);
            count = count.checked_add(more).ok_or(ItsError::NoMemory)?;
        }
        let places = filled(count, UNMAPPED)?;
        let shares = filled(usize::from(quota.devices), Share::default())?;
        let mut free = filled(usize::from(quota.devices), 0)?;
        free.iter_mut().zip(0..quota.devices).for_each(|(free, index)| *free = index);
        let events = filled(quota.events as usize, Event::Unmapped)?;
        let runs = Runs::new(quota.events, usize::from(quota.devices)).ok_or(ItsError::NoMemory)?;
        // Last, so that nothing has to be freed if there is no memory for the rest.
        let bytes = (u64::from(quota.events) * stride) as usize;
        let itts = hw.alloc(bytes, ITT_ALIGN as usize).ok_or(ItsError::NoMemory)?;
        hw.publish(itts, bytes, Coherence::NonCoherent);
        Ok(Pool { owner, ids: own, places, shares, free, itts, stride, entry, events, runs, lost: 0 })
    }

    /// Frees the memory of a pool that no device has a part of, and returns 0. If the ITS may still use a part, the
    /// translation tables are not freed; returns how many bytes of them are lost in addition to that part.
    pub fn free<H: Hw>(self, hw: &H) -> u64 {
        let bytes = self.itt_bytes();
        if self.lost != 0 {
            return bytes.saturating_sub(self.lost);
        }
        hw.free(self.itts, bytes as usize, ITT_ALIGN as usize);
        0
    }

    fn itt_bytes(&self) -> u64 {
        self.events.len() as u64 * self.stride
    }

    /// Whether the ITS may still use a part of the memory that no device has any more.
    pub fn has_lost(&self) -> bool {
        self.lost != 0
    }

    /// Notes that the ITS may still use the `bytes` of a device that was removed.
    pub fn lose(&mut self, bytes: u64) {
        self.lost = self.lost.saturating_add(bytes);
    }

    /// A device of `ids` that this domain may map, if there is one.
    pub fn shares(&self, ids: &[DeviceIds]) -> Option<DeviceId> {
        let all = self.ids.iter().flat_map(|own| ids.iter().map(move |ids| (own.ids, ids)));
        let mut both = all.map(|(own, ids)| (own.first.max(ids.first), own.last.min(ids.last)));
        both.find(|(first, last)| first <= last).map(|(first, _)| first)
    }

    /// The bytes that the pool has reserved.
    pub fn bytes(&self) -> u64 {
        let records = size_of_val(&self.events[..]) + size_of_val(&self.places[..]) + size_of_val(&self.shares[..]);
        self.itt_bytes() + records as u64
    }

    /// The index of a DeviceID in `places`; `None` if the domain may not map it.
    fn place(&self, dev: DeviceId) -> Option<usize> {
        let own = self.ids.iter().find(|own| own.ids.contains(dev))?;
        (own.at).checked_add((dev.0 - own.ids.first.0) as usize)
    }

    /// Whether the domain may map a device.
    pub fn has(&self, dev: DeviceId) -> bool {
        self.place(dev).is_some()
    }

    /// The index of a mapped device's share.
    fn index(&self, dev: DeviceId) -> Option<usize> {
        nospec::get(&self.places, self.place(dev)?).filter(|&&index| index != UNMAPPED).map(|&index| usize::from(index))
    }

    /// The share of a mapped device.
    pub fn share(&self, dev: DeviceId) -> Option<Share> {
        self.shares.get(self.index(dev)?).copied()
    }

    /// The first mapped device from `from` on.
    pub fn next(&self, from: u32) -> Option<DeviceId> {
        self.ids.iter().filter(|own| own.ids.last.0 >= from).find_map(|own| {
            let skipped = from.saturating_sub(own.ids.first.0);
            let places = self.places.get(own.at.checked_add(skipped as usize)?..)?;
            let first = own.ids.first.0.max(from);
            let mut all = (first..=own.ids.last.0).zip(places);
            all.find(|&(_, &index)| index != UNMAPPED).map(|(dev, _)| DeviceId(dev))
        })
    }

    /// Takes a part for 2^`event_bits` events. Returns it with the address of its translation table.
    pub fn take(&mut self, event_bits: u8) -> Result<(Share, Pa), ItsError> {
        let length = 1u32.checked_shl(u32::from(event_bits.max(MIN_EVENT_BITS))).ok_or(ItsError::NoMemory)?;
        let first = self.runs.take(length).ok_or(ItsError::NoMemory)?;
        // At most `length`.
        let count = 1 << event_bits;
        Ok((Share { first, count, used: 0 }, self.itt(first)))
    }

    /// Records a device as mapped. There is room, because each share that was taken has a run.
    pub fn insert(&mut self, dev: DeviceId, share: Share) {
        if let Some(place) = self.place(dev)
            && let Some(index) = self.free.pop()
        {
            if let Some(slot) = self.shares.get_mut(usize::from(index)) {
                *slot = share;
            }
            if let Some(place) = self.places.get_mut(place) {
                *place = index;
            }
        }
    }

    /// Forgets a mapped device, and returns its share.
    pub fn remove(&mut self, dev: DeviceId) -> Option<Share> {
        let share = self.share(dev)?;
        let place = self.place(dev)?;
        let index = core::mem::replace(self.places.get_mut(place)?, UNMAPPED);
        // Within the capacity, since it was popped from there.
        self.free.push(index);
        Some(share)
    }

    fn itt(&self, slot: u32) -> Pa {
        self.itts.add(u64::from(slot) * self.stride)
    }

    /// Gives a part back whose events are all unmapped, and which the ITS does not use any more. Its translation table
    /// is zeroed as far as it was used.
    pub fn give_back<H: Hw>(&mut self, hw: &H, share: Share, coherence: Coherence) {
        // In whole words; the table is followed by unused bytes, or has an even number of entries.
        let (itt, used) = (self.itt(share.first), (u64::from(share.used) * self.entry).next_multiple_of(8));
        for at in (0..used).step_by(8) {
            hw.store64(itt.add(at), 0);
        }
        if used != 0 {
            hw.publish(itt, used as usize, coherence);
        }
        self.runs.give_back(share.first);
    }

    /// What the events of a device are mapped to.
    pub fn events(&self, share: Share) -> &[Event] {
        let first = share.first as usize;
        self.events.get(first..first.saturating_add(share.count as usize)).unwrap_or(&[])
    }

    /// Where an event's state is kept. The event counts as used.
    pub fn slot(&mut self, dev: DeviceId, ev: EventId) -> Option<&mut Event> {
        let index = self.index(dev)?;
        let share = self.shares.get_mut(index)?;
        let slot = nospec::below(ev.0.into(), share.count.into())?.checked_add(share.first.into())?;
        share.used = share.used.max(ev.0.saturating_add(1));
        self.events.get_mut(slot as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gic::testing::{Bench, DEV, ITS0, ModelHw, vlpi};
    use crate::gic::{Event, Gic};
    use crate::ids::{CpuId, EventKey, ItsId};
    use crate::mm::counting::held;
    use gic_model::{CommandFault, Config, Fault, Machine};

    const QUOTA: DeviceQuota = DeviceQuota { devices: 4, events: 256 };
    const FIRST: DomId = DomId(1);
    const SECOND: DomId = DomId(2);

    fn ids(first: u32, last: u32) -> DeviceIds {
        DeviceIds { first: DeviceId(first), last: DeviceId(last) }
    }

    fn bench() -> (Machine, Gic<ModelHw>) {
        // A device table of two levels, with 128 devices for each page.
        let config = Config::v4_0(2).each_its(|_, its| {
            let baser = its.basers[0].as_mut().unwrap();
            (baser.pages, baser.indirect, baser.entry_size) = (vec![4], true, 32);
        });
        let Bench { machine, gic } = Bench::up(config);
        (machine, gic)
    }

    #[test]
    fn a_domain_that_sweeps_over_all_devices_allocates_nothing() {
        let (machine, gic) = bench();
        gic.reserve_devices(ITS0, FIRST, &[ids(0x1000, 0x1fff)], QUOTA).unwrap();
        let before = machine.allocations().len();
        let mut mapped = 0;
        for dev in (0x800..0x2800).map(DeviceId) {
            let done = gic.map_device(ITS0, dev, 5);
            match ids(0x1000, 0x1fff).contains(dev) {
                true => assert_eq!(done, Ok(())),
                false => assert_eq!(done, Err(ItsError::DeviceRange(dev))),
            }
            if done.is_ok() {
                mapped += 1;
                gic.unmap_device(ITS0, dev).unwrap();
            }
        }
        assert_eq!((mapped, machine.allocations().len()), (0x1000, before));
        machine.assert_clean();
    }

    #[test]
    fn a_reservation_says_how_many_bytes_it_takes() {
        let (_machine, gic) = bench();
        let bytes = gic.reserve_devices(ITS0, FIRST, &[ids(0x1000, 0x11ff), ids(0x1300, 0x1300)], QUOTA);
        // The translation tables, with entries of 8 bytes, and what is recorded of events, DeviceIDs and devices.
        let records = 256 * size_of::<Event>() + 0x201 * size_of::<u16>() + 4 * size_of::<Share>();
        assert_eq!(bytes, Ok(256 * 8 + records as u64));
    }

    #[test]
    fn what_one_domain_maps_leaves_the_quota_of_another_as_it_is() {
        let (machine, gic) = bench();
        gic.reserve_devices(ITS0, FIRST, &[ids(0x1000, 0x10ff)], QUOTA).unwrap();
        gic.reserve_devices(ITS0, SECOND, &[ids(0x1100, 0x1100), ids(0x1180, 0x11ff)], QUOTA).unwrap();
        // The first takes all it can: by the number of devices, then by the number of events.
        let first = |n: u32, bits| gic.map_device(ITS0, DeviceId(0x1000 + n), bits);
        assert_eq!([0, 1, 2, 3, 4].map(|n| first(n, 1).is_ok()), [true, true, true, true, false]);
        (0..4).for_each(|n| gic.unmap_device(ITS0, DeviceId(0x1000 + n)).unwrap());
        assert_eq!([(0, 7), (1, 7), (2, 1)].map(|(n, bits)| first(n, bits)), [Ok(()), Ok(()), Err(ItsError::NoMemory)]);
        // Nothing else can be allocated either, and still the second has all that it was promised.
        machine.inject(Fault::OutOfMemory { after: 0 });
        for dev in [0x1100, 0x1180, 0x11ff, 0x11fe] {
            assert_eq!(gic.map_device(ITS0, DeviceId(dev), 6), Ok(()));
        }
        assert_eq!(gic.map_device(ITS0, DeviceId(0x1101), 1), Err(ItsError::DeviceRange(DeviceId(0x1101))));
        machine.heal();
        machine.assert_clean();
    }

    #[test]
    fn a_translation_table_is_zeroed_before_another_device_gets_it() {
        for config in [Config::v4_0(2), Config::v4_0(2).noncoherent(), Config::qemu(2)] {
            let Bench { machine, gic } = Bench::up(config);
            let v4 = gic.v4().unwrap();
            let vm = v4.create_vm(14).unwrap();
            let vpe = v4.add_vpe(vm, CpuId(0)).unwrap();
            for dev in [DEV, DeviceId(DEV.0 + 1)] {
                gic.map_device(ITS0, dev, 5).unwrap();
                for n in [0, 6, 31] {
                    v4.map_event(EventKey::new(ITS0, dev, EventId(n)), vpe, vlpi(n)).unwrap();
                }
                assert_eq!(gic.event(EventKey::new(ITS0, dev, EventId(30))), Ok(Event::Unmapped));
                gic.unmap_device(ITS0, dev).unwrap();
            }
            // The model records a MAPD whose table is not zero.
            machine.assert_clean();
        }
    }

    #[test]
    fn memory_that_the_its_may_still_use_is_lost_to_the_domain_that_had_it_and_to_no_other() {
        let (machine, gic) = bench();
        gic.reserve_devices(ITS0, FIRST, &[ids(0x1000, 0x10ff)], QUOTA).unwrap();
        gic.reserve_devices(ITS0, SECOND, &[ids(0x1100, 0x11ff)], QUOTA).unwrap();
        gic.map_device(ITS0, DeviceId(0x1000), 7).unwrap();
        machine.inject(Fault::Command { its: 0, nth: 1, fault: CommandFault::Late { us: 600_000 } });
        gic.unmap_device(ITS0, DeviceId(0x1000)).unwrap_err();
        // The entries have 8 bytes.
        assert_eq!(gic.counters().quarantined_bytes.get(), 128 * 8);
        machine.heal();
        gic.drain(ItsId(0)).unwrap();
        let map = |dev, bits| gic.map_device(ITS0, DeviceId(dev), bits);
        assert_eq!([map(0x1000, 7), map(0x1001, 7)], [Ok(()), Err(ItsError::NoMemory)]);
        assert_eq!([map(0x1100, 7), map(0x1101, 7)], [Ok(()), Ok(())]);
        machine.assert_clean();
    }

    #[test]
    fn a_domain_that_is_taken_down_leaves_memory_and_heap_as_they_were() {
        let (machine, gic) = bench();
        let life = |owner, first: u32| {
            gic.reserve_devices(ITS0, owner, &[ids(first, first + 0xff)], QUOTA).unwrap();
            for dev in [first, first + 0x80] {
                gic.map_device(ITS0, DeviceId(dev), 6).unwrap();
            }
            gic.unmap_device(ITS0, DeviceId(first)).unwrap();
            // One device is left mapped: it is unmapped first.
            assert!(!gic.release_devices(owner));
            assert!(gic.release_devices(owner));
        };
        // What stays is made by the first life: second levels of the device table, and the list of pools.
        life(FIRST, 0x1000);
        life(SECOND, 0x1100);
        gic.reserve_devices(ITS0, SECOND, &[ids(0x1100, 0x11ff)], QUOTA).unwrap();
        let before = machine.allocations().len();
        assert_eq!(held(|| (0..3).for_each(|_| life(FIRST, 0x1000))), 0);
        assert_eq!(machine.allocations().len(), before);
        // The other domain still has its devices, and those of the first are nobody's.
        assert_eq!(gic.map_device(ITS0, DeviceId(0x1100), 6), Ok(()));
        assert_eq!(gic.map_device(ITS0, DeviceId(0x1000), 6), Err(ItsError::DeviceRange(DeviceId(0x1000))));
        machine.assert_clean();
    }

    #[test]
    fn a_device_of_one_domain_is_not_given_to_another() {
        let (machine, gic) = bench();
        gic.reserve_devices(ITS0, FIRST, &[ids(0x1000, 0x10ff), ids(0x1200, 0x1200)], QUOTA).unwrap();
        let before = machine.allocations().len();
        for (all, taken) in [
            (Vec::from([ids(0x10ff, 0x1100)]), 0x10ff),
            (Vec::from([ids(0xf00, 0x1000)]), 0x1000),
            (Vec::from([ids(0x1100, 0x11ff), ids(0x1180, 0x1fff)]), 0x1200),
        ] {
            let refused = gic.reserve_devices(ITS0, SECOND, &all, QUOTA);
            assert_eq!(refused, Err(ItsError::DeviceOwned(DeviceId(taken))));
        }
        assert_eq!(held(|| _ = gic.reserve_devices(ITS0, SECOND, &[ids(0x1000, 0x1000)], QUOTA)), 0);
        assert_eq!(machine.allocations().len(), before);
        gic.reserve_devices(ITS0, SECOND, &[ids(0xf00, 0xfff), ids(0x1100, 0x11ff)], QUOTA).unwrap();
        machine.assert_clean();
    }

    #[test]
    fn memory_that_the_its_may_still_use_is_not_freed_with_the_domain() {
        let (machine, gic) = bench();
        gic.reserve_devices(ITS0, FIRST, &[ids(0x1000, 0x10ff)], QUOTA).unwrap();
        assert_eq!(gic.check_devices(FIRST), Ok(()));
        gic.map_device(ITS0, DeviceId(0x1000), 7).unwrap();
        assert_eq!(gic.check_devices(FIRST), Err((ITS0, ItsError::DeviceMapped(DeviceId(0x1000)))));
        machine.inject(Fault::Command { its: 0, nth: 1, fault: CommandFault::Late { us: 600_000 } });
        gic.unmap_device(ITS0, DeviceId(0x1000)).unwrap_err();
        assert_eq!(gic.check_devices(FIRST), Err((ITS0, ItsError::Timeout)));
        let before = machine.allocations().len();
        assert!(gic.release_devices(FIRST));
        assert_eq!(machine.allocations().len(), before, "the tables stay allocated");
        // The entries have 8 bytes.
        assert_eq!(gic.counters().quarantined_bytes.get(), 256 * 8);
        assert_eq!(gic.check_devices(FIRST), Ok(()), "it has no devices any more");
        machine.heal();
        gic.drain(ItsId(0)).unwrap();
        machine.assert_clean();
    }
}
