//! The guest's mappings in EL2's memory: devices, their events, and collections.
//!
//! The guest's own tables are never read, because the guest could change them at any time. What is stored here was
//! checked when the command was executed. All memory is allocated when the virtual ITS is made, so a guest can neither
//! make EL2 allocate nor exceed its quota.
//!
//! Events are in one pool of [`Quota::itt_entries`] slots. A device has a run of 2^n slots ([`Runs`]), so that the slot
//! of an event is found by addition.

use super::config::{ConfigError, Quota, VitsConfig};
use super::refusal::Refusal;
use crate::arch::nospec;
use crate::ids::{CollectionId, DeviceId, EventId, VIntid, VcpuId};
use crate::util::runs::Runs;
use alloc::vec::Vec;

/// A mapped event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub vintid: VIntid,
    pub collection: CollectionId,
    /// The vCPU that the host has it mapped to, if any.
    pub at: Option<VcpuId>,
}

/// A mapped device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub id: DeviceId,
    /// EventID bits of the guest's MAPD.
    pub guest_bits: u8,
    /// EventID bits that the quota allows: these events have slots here and an ITT on the host.
    pub bits: u8,
    /// Whether it is mapped on the host. Only then its events can be.
    pub at_host: bool,
    /// Its first slot.
    base: u32,
}

impl Device {
    /// Number of events that have a slot.
    pub fn entries(&self) -> u32 {
        entries(self.bits)
    }
}

/// A position in a walk over all events: the index of the device in the order of DeviceIDs, and the event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    device: usize,
    event: u32,
}

/// One step of a walk.
pub(super) struct Step<'a> {
    pub device: Device,
    pub id: EventId,
    pub event: Option<&'a mut Event>,
    pub collections: &'a Collections,
}

/// The vCPU of each collection.
pub(super) struct Collections(Vec<Option<VcpuId>>);

impl Collections {
    /// The vCPU of a collection, if it is mapped.
    pub fn target(&self, id: CollectionId) -> Option<VcpuId> {
        nospec::get(&self.0, usize::from(id.0)).copied().flatten()
    }

    /// Returns an error if there is no such collection.
    pub fn check(&self, id: CollectionId) -> Result<(), Refusal> {
        if usize::from(id.0) < self.0.len() { Ok(()) } else { Err(Refusal::CollectionRange) }
    }

    /// Maps a collection to a vCPU, or unmaps it. The caller updates its events on the host.
    pub fn set(&mut self, id: CollectionId, target: Option<VcpuId>) -> Result<(), Refusal> {
        let slot = nospec::get_mut(&mut self.0, usize::from(id.0)).ok_or(Refusal::CollectionRange)?;
        *slot = target;
        Ok(())
    }

    /// Unmaps all collections.
    pub fn clear(&mut self) {
        self.0.fill(None);
    }
}

/// The mappings of one vITS.
pub(super) struct Shadow {
    quota: Quota,
    /// In the order of DeviceIDs.
    devices: Vec<Device>,
    /// The slots that devices have.
    runs: Runs,
    slots: Vec<Option<Event>>,
    /// Number of mapped events.
    mapped: u32,
    pub collections: Collections,
}

/// 2^`bits`, saturated.
fn entries(bits: u8) -> u32 {
    1u32.checked_shl(u32::from(bits)).unwrap_or(u32::MAX)
}

/// A vector with memory for `length` elements, filled with `value` if there is one.
fn reserve<T: Clone>(length: usize, value: Option<T>) -> Result<Vec<T>, ConfigError> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(length).map_err(|_| ConfigError::NoMemory)?;
    if let Some(value) = value {
        vec.resize(length, value);
    }
    Ok(vec)
}

impl Shadow {
    /// A shadow without mappings, with memory for all that the quota allows.
    pub fn new(config: &VitsConfig) -> Result<Shadow, ConfigError> {
        let too_large = ConfigError::OutOfRange("quota");
        let devices = usize::from(config.quota.devices);
        let slots = usize::try_from(config.quota.itt_entries).map_err(|_| too_large)?;
        let collections = usize::try_from(entries(config.collection_bits)).map_err(|_| too_large)?;
        Ok(Shadow {
            quota: config.quota,
            devices: reserve(devices, None)?,
            runs: Runs::new(config.quota.itt_entries, devices).ok_or(ConfigError::NoMemory)?,
            slots: reserve(slots, Some(None))?,
            mapped: 0,
            collections: Collections(reserve(collections, Some(None))?),
        })
    }

    /// The index of a device in the order of DeviceIDs, or where it would be.
    fn place(&self, id: DeviceId) -> Result<usize, usize> {
        self.devices.binary_search_by_key(&id, |d| d.id)
    }

    /// A mapped device.
    pub fn device(&self, id: DeviceId) -> Option<Device> {
        self.devices.get(self.place(id).ok()?).copied()
    }

    /// The device with the lowest DeviceID.
    pub fn first_device(&self) -> Option<DeviceId> {
        self.devices.first().map(|d| d.id)
    }

    /// Number of mapped devices.
    #[cfg(any(test, fuzzing))]
    pub fn devices(&self) -> usize {
        self.devices.len()
    }

    /// Number of mapped events, over all devices.
    #[cfg(any(test, fuzzing))]
    pub fn mapped(&self) -> u32 {
        self.mapped
    }

    /// Adds a device that is not mapped, with empty slots for as many events as one device may have.
    pub fn add_device(&mut self, id: DeviceId, guest_bits: u8) -> Result<Device, Refusal> {
        let Err(place) = self.place(id) else { return Err(Refusal::DeviceQuota) };
        if self.devices.len() >= usize::from(self.quota.devices) {
            return Err(Refusal::DeviceQuota);
        }
        let bits = guest_bits.min(self.quota.device_event_bits);
        let base = self.runs.take(entries(bits.max(self.quota.min_event_bits))).ok_or(Refusal::IttQuota)?;
        let device = Device { id, guest_bits, bits, at_host: false, base };
        // The list has room for every device of the quota.
        self.devices.insert(place, device);
        Ok(device)
    }

    /// Records whether the device is mapped on the host.
    pub fn set_at_host(&mut self, id: DeviceId, at_host: bool) {
        if let Ok(place) = self.place(id)
            && let Some(device) = self.devices.get_mut(place)
        {
            device.at_host = at_host;
        }
    }

    /// Removes a device whose slots are all empty.
    pub fn remove_device(&mut self, id: DeviceId) {
        let Ok(place) = self.place(id) else { return };
        let device = self.devices.remove(place);
        self.runs.give_back(device.base);
    }

    /// The slot of an event, if it has one.
    fn slot(&mut self, device: &Device, event: EventId) -> Option<&mut Option<Event>> {
        if event.0 >= device.entries() {
            return None;
        }
        let index = usize::try_from(device.base.checked_add(event.0)?).ok()?;
        nospec::get_mut(&mut self.slots, index)
    }

    /// A mapped event.
    pub fn event(&self, device: &Device, event: EventId) -> Option<Event> {
        if event.0 >= device.entries() {
            return None;
        }
        let index = usize::try_from(device.base.checked_add(event.0)?).ok()?;
        nospec::get(&self.slots, index).copied().flatten()
    }

    /// Maps an event, or replaces its mapping.
    pub fn set_event(&mut self, device: &Device, id: EventId, event: Event) -> Result<(), Refusal> {
        let room = self.mapped < self.quota.events;
        let slot = self.slot(device, id).ok_or(Refusal::EventQuota)?;
        let fresh = slot.is_none();
        if fresh && !room {
            return Err(Refusal::EventQuota);
        }
        *slot = Some(event);
        self.mapped = self.mapped.saturating_add(u32::from(fresh));
        Ok(())
    }

    /// Whether the quota allows one more event.
    pub fn has_room(&self) -> bool {
        self.mapped < self.quota.events
    }

    /// Unmaps an event and returns its last state.
    pub fn take_event(&mut self, device: &Device, id: EventId) -> Option<Event> {
        let event = self.slot(device, id)?.take()?;
        self.mapped = self.mapped.saturating_sub(1);
        Some(event)
    }

    /// A cursor at an entry, or at the first one after it if its device is not mapped.
    pub fn cursor(&self, (device, event): (DeviceId, EventId)) -> Cursor {
        match self.place(device) {
            Ok(device) => Cursor { device, event: event.0 },
            Err(device) => Cursor { device, event: 0 },
        }
    }

    /// The entry at a cursor; `None` behind the last device.
    pub fn place_of(&self, cursor: Cursor) -> Option<(DeviceId, EventId)> {
        self.devices.get(cursor.device).map(|device| (device.id, EventId(cursor.event)))
    }

    /// Returns the step at `cursor` and advances the cursor. `None` when the walk is over.
    ///
    /// During a walk, events may be mapped and unmapped, but devices may not.
    pub fn walk(&mut self, cursor: &mut Cursor) -> Option<Step<'_>> {
        let mut device = *self.devices.get(cursor.device)?;
        if cursor.event >= device.entries() {
            *cursor = Cursor { device: cursor.device.saturating_add(1), event: 0 };
            device = *self.devices.get(cursor.device)?;
        }
        let id = EventId(cursor.event);
        cursor.event = cursor.event.saturating_add(1);
        let index = usize::try_from(device.base.checked_add(id.0)?).ok()?;
        let event = self.slots.get_mut(index)?.as_mut();
        Some(Step { device, id, event, collections: &self.collections })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::config;
    use super::*;

    fn shadow(devices: u16, itt_entries: u32, device_event_bits: u8) -> Shadow {
        let quota = Quota { devices, events: 8, itt_entries, min_event_bits: 1, device_event_bits };
        Shadow::new(&VitsConfig { quota, ..config() }).unwrap()
    }

    fn event(vintid: u32) -> Event {
        Event { vintid: VIntid(vintid), collection: CollectionId(0), at: None }
    }

    #[test]
    fn devices_are_kept_in_the_order_of_their_ids_and_share_no_slot() {
        let mut s = shadow(8, 32, 4);
        assert_eq!(s.add_device(DeviceId(9), 3).unwrap().base, 0);
        assert_eq!(s.add_device(DeviceId(1), 1).unwrap().base, 8);
        assert_eq!(s.add_device(DeviceId(5), 4).unwrap().base, 16);
        assert_eq!(s.add_device(DeviceId(6), 2).unwrap().base, 12);
        assert_eq!(s.add_device(DeviceId(7), 2), Err(Refusal::IttQuota));
        s.remove_device(DeviceId(9));
        assert_eq!(s.add_device(DeviceId(7), 2).unwrap().base, 0);
        assert!(s.devices.is_sorted_by_key(|d| d.id));
    }

    #[test]
    fn a_device_takes_as_much_of_the_quota_as_its_table_on_the_host() {
        let mut s = shadow(8, 32, 4);
        s.quota.min_event_bits = 4;
        assert_eq!(s.add_device(DeviceId(1), 1).map(|d| (d.base, d.entries())), Ok((0, 2)));
        assert_eq!(s.add_device(DeviceId(2), 2).map(|d| (d.base, d.entries())), Ok((16, 4)));
        assert_eq!(s.add_device(DeviceId(3), 1), Err(Refusal::IttQuota));
    }

    #[test]
    fn a_device_gets_no_more_events_than_its_quota() {
        let mut s = shadow(2, 64, 4);
        let device = s.add_device(DeviceId(1), 16).unwrap();
        assert_eq!((device.guest_bits, device.entries()), (16, 16));
        assert_eq!(s.set_event(&device, EventId(16), event(8192)), Err(Refusal::EventQuota));
        assert_eq!(s.set_event(&device, EventId(15), event(8192)), Ok(()));
    }

    #[test]
    fn quotas_of_devices_and_events_hold_and_are_released() {
        let mut s = shadow(1, 64, 5);
        let device = s.add_device(DeviceId(1), 5).unwrap();
        assert_eq!(s.add_device(DeviceId(2), 1), Err(Refusal::DeviceQuota));
        for n in 0..8 {
            assert_eq!(s.set_event(&device, EventId(n), event(8192 + n)), Ok(()));
        }
        assert_eq!(s.set_event(&device, EventId(8), event(9000)), Err(Refusal::EventQuota));
        assert_eq!(s.set_event(&device, EventId(7), event(9000)), Ok(()));
        assert_eq!(s.take_event(&device, EventId(0)), Some(event(8192)));
        assert_eq!(s.set_event(&device, EventId(8), event(9000)), Ok(()));
        assert_eq!(s.mapped(), 8);
    }

    #[test]
    fn a_walk_visits_each_slot_of_each_device_once() {
        let mut s = shadow(4, 64, 4);
        let devices = [(3, 2), (1, 1), (2, 3)].map(|(id, bits)| s.add_device(DeviceId(id), bits).unwrap());
        s.set_event(&devices[0], EventId(3), event(8200)).unwrap();
        let mut cursor = Cursor::default();
        let mut seen = Vec::new();
        while let Some(stop) = s.walk(&mut cursor) {
            seen.push((stop.device.id.0, stop.id.0, stop.event.is_some()));
        }
        let expected: Vec<_> = (0..2)
            .map(|e| (1, e, false))
            .chain((0..8).map(|e| (2, e, false)))
            .chain((0..4).map(|e| (3, e, e == 3)))
            .collect();
        assert_eq!(seen, expected);
        assert!(s.walk(&mut cursor).is_none());
    }
}
