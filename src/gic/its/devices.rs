//! What an ITS's devices and their events are mapped to, as EL2 has posted it.

use super::event::Event;
use super::pool::{Pool, Share};
use crate::arch::nospec;
use crate::gic::error::ItsError;
use crate::gic::table::Table;
use crate::ids::{DeviceId, DeviceIds, DomId, EventId, Pa};
use crate::mmio::{Coherence, Hw};
use alloc::vec::Vec;

/// A mapped device.
#[derive(Clone, Copy)]
pub struct Device {
    pub id: DeviceId,
    /// Its part of a domain's pool, by the pool's index. `None` for the driver's own device: callers can neither map
    /// events of it nor unmap it.
    share: Option<(usize, Share)>,
}

impl Device {
    /// Number of events that callers can map.
    pub fn events(&self) -> u32 {
        self.share.map_or(0, |(_, share)| share.count)
    }

    /// Whether this is the driver's own device.
    pub fn is_reserved(&self) -> bool {
        self.share.is_none()
    }
}

/// The devices of an ITS, with the memory that is reserved for them, and the tables of the ITS. Guarded by the ITS's
/// event lock.
pub struct State {
    pools: Vec<Pool>,
    /// The driver's own device, if it is mapped.
    reserved: Option<DeviceId>,
    pub device_table: Option<Table>,
    pub collection_table: Option<Table>,
    /// Collections below this are kept in the ITS itself.
    pub hardware_collections: u64,
}

impl State {
    /// No device is mapped. `hardware_collections` is GITS_TYPER.HCC: collections below it need no table.
    pub fn new(device_table: Option<Table>, collection_table: Option<Table>, hardware_collections: u64) -> State {
        State { pools: Vec::new(), reserved: None, device_table, collection_table, hardware_collections }
    }

    /// Returns an error if one of these devices has been given to a domain.
    pub fn check_unowned(&self, ids: &[DeviceIds]) -> Result<(), ItsError> {
        let mut taken = self.pools.iter().filter_map(|pool| pool.shares(ids));
        taken.next().map_or(Ok(()), |dev| Err(ItsError::DeviceOwned(dev)))
    }

    /// Adds a domain's pool; returns it if there is no memory for that.
    pub fn add_pool(&mut self, pool: Pool) -> Result<(), Pool> {
        match self.pools.try_reserve(1) {
            Ok(()) => self.pools.push(pool),
            Err(_) => return Err(pool),
        }
        Ok(())
    }

    /// Takes out a pool of a domain, none of whose devices is mapped.
    pub fn take_pool(&mut self, owner: DomId) -> Option<Pool> {
        let place = self.pools.iter().position(|pool| pool.owner == owner)?;
        Some(self.pools.swap_remove(place))
    }

    /// The first mapped device of a domain.
    pub fn first_of(&self, owner: DomId) -> Option<DeviceId> {
        self.pools.iter().filter(|pool| pool.owner == owner).find_map(|pool| pool.next(0))
    }

    /// Whether a domain has devices here, mapped or not.
    pub fn serves(&self, owner: DomId) -> bool {
        self.pools.iter().any(|pool| pool.owner == owner)
    }

    /// Whether the ITS may still use memory of a domain that no device has any more.
    pub fn has_lost(&self, owner: DomId) -> bool {
        self.pools.iter().any(|pool| pool.owner == owner && pool.has_lost())
    }

    /// A mapped device.
    pub fn device(&self, dev: DeviceId) -> Option<Device> {
        let found = self.pools.iter().zip(0..).find_map(|(pool, index)| Some((index, pool.share(dev)?)));
        (found.is_some() || self.reserved == Some(dev)).then_some(Device { id: dev, share: found })
    }

    /// The device after `last`, or the first. Unlike an iterator it allows devices to change between the steps.
    pub fn after(&self, last: Option<DeviceId>) -> Option<Device> {
        let from = last.map_or(Some(0), |last| last.0.checked_add(1))?;
        let reserved = self.reserved.filter(|dev| dev.0 >= from);
        let next = self.pools.iter().filter_map(|pool| pool.next(from)).chain(reserved).min()?;
        self.device(next)
    }

    /// Takes memory for a device that is not mapped. Returns what [`insert`](State::insert) needs once the command is
    /// posted, and the address of the translation table.
    pub fn take(&mut self, dev: DeviceId, event_bits: u8) -> Result<(Device, Pa), ItsError> {
        if self.device(dev).is_some() {
            return Err(ItsError::DeviceMapped(dev));
        }
        let found = self.pools.iter_mut().enumerate().find(|(_, pool)| pool.has(dev));
        let (index, pool) = found.ok_or(ItsError::DeviceRange(dev))?;
        let (share, itt) = pool.take(event_bits)?;
        Ok((Device { id: dev, share: Some((index, share)) }, itt))
    }

    /// Records a device as mapped.
    pub fn insert(&mut self, device: Device) {
        if let Some((pool, share)) = device.share
            && let Some(pool) = self.pools.get_mut(pool)
        {
            pool.insert(device.id, share);
        }
    }

    /// Records the driver's own device as mapped, at bring-up. There is one at most.
    pub fn insert_reserved(&mut self, dev: DeviceId) -> Result<(), ItsError> {
        match self.reserved.replace(dev) {
            None => Ok(()),
            Some(other) => Err(ItsError::DeviceMapped(other)),
        }
    }

    /// Forgets a device of a domain, and returns it.
    pub fn remove(&mut self, dev: DeviceId) -> Option<Device> {
        let mut pools = self.pools.iter_mut().enumerate();
        let found = pools.find_map(|(index, pool)| Some((index, pool.remove(dev)?)))?;
        Some(Device { id: dev, share: Some(found) })
    }

    /// Gives the memory of a device back that has no mapped event and that the ITS does not use any more.
    pub fn give_back<H: Hw>(&mut self, hw: &H, device: Device, coherence: Coherence) {
        if let Some((pool, share)) = device.share
            && let Some(pool) = self.pools.get_mut(pool)
        {
            pool.give_back(hw, share, coherence);
        }
    }

    /// Notes that the ITS may still use the `bytes` of a device that was removed.
    pub fn lose(&mut self, device: Device, bytes: u64) {
        if let Some((pool, _)) = device.share
            && let Some(pool) = self.pools.get_mut(pool)
        {
            pool.lose(bytes);
        }
    }

    /// What the events of a device are mapped to.
    fn events(&self, device: Device) -> &[Event] {
        device.share.and_then(|(pool, share)| Some(self.pools.get(pool)?.events(share))).unwrap_or(&[])
    }

    /// What an event is mapped to.
    pub fn event(&self, dev: DeviceId, ev: EventId) -> Result<Event, ItsError> {
        let device = self.device(dev).ok_or(ItsError::NoSuchDevice(dev))?;
        nospec::get(self.events(device), ev.0 as usize).copied().ok_or(ItsError::EventRange(ev))
    }

    /// The device's first event from `from` on that is mapped.
    pub fn next_mapped(&self, dev: DeviceId, from: EventId) -> Option<EventId> {
        let events = self.events(self.device(dev)?);
        let mut mapped =
            events.iter().zip(0u32..).skip(from.0 as usize).filter(|(event, _)| **event != Event::Unmapped);
        mapped.next().map(|(_, number)| EventId(number))
    }

    /// Where an event's state is kept.
    pub fn slot(&mut self, dev: DeviceId, ev: EventId) -> Option<&mut Event> {
        self.pools.iter_mut().find(|pool| pool.has(dev))?.slot(dev, ev)
    }
}
