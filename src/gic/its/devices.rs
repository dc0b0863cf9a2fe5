//! What an ITS's devices and their events are mapped to, as EL2 has posted it.

use super::by_device::ByDevice;
use crate::gic::error::ItsError;
use crate::gic::table::Table;
use crate::ids::{CpuId, DeviceId, EventId, Lpi, Pa, VIntid, VpeId};
use alloc::vec::Vec;

/// What an event is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Event {
    /// Nothing: its MSIs are dropped.
    #[default]
    Unmapped,
    /// An LPI that EL2 takes.
    Physical {
        /// The LPI.
        lpi: Lpi,
        /// The CPU that takes it.
        cpu: CpuId,
    },
    /// A vLPI that a guest takes.
    Virtual {
        /// The guest's vPE.
        vpe: VpeId,
        /// The vLPI.
        vintid: VIntid,
    },
}

/// A mapped device.
pub struct Device {
    pub itt: Pa,
    pub itt_bytes: usize,
    pub events: Vec<Event>,
    /// The driver's own: callers can neither map events of it nor unmap it.
    pub reserved: bool,
}

/// The devices of an ITS, and the tables that grow with them. Guarded by the ITS's event lock.
pub struct State {
    pub devices: ByDevice<Device>,
    pub device_table: Option<Table>,
    pub collection_table: Option<Table>,
    /// Collections below this are kept in the ITS itself.
    pub hardware_collections: u64,
}

impl State {
    /// No device is mapped. `hardware_collections` is GITS_TYPER.HCC: collections below it need no table.
    pub fn new(
        device_bits: u8,
        device_table: Option<Table>,
        collection_table: Option<Table>,
        hardware_collections: u64,
    ) -> State {
        State { devices: ByDevice::new(device_bits), device_table, collection_table, hardware_collections }
    }

    /// What an event is mapped to.
    pub fn event(&self, dev: DeviceId, ev: EventId) -> Result<Event, ItsError> {
        let device = self.devices.get(dev).ok_or(ItsError::NoSuchDevice(dev))?;
        device.events.get(ev.0 as usize).copied().ok_or(ItsError::EventRange(ev))
    }

    /// The device's first event from `from` on that is mapped.
    pub fn next_mapped(&self, dev: DeviceId, from: EventId) -> Option<EventId> {
        let events = &self.devices.get(dev)?.events;
        let mut mapped =
            events.iter().zip(0u32..).skip(from.0 as usize).filter(|(event, _)| **event != Event::Unmapped);
        mapped.next().map(|(_, number)| EventId(number))
    }

    /// Where an event's state is kept.
    pub fn slot(&mut self, dev: DeviceId, ev: EventId) -> Option<&mut Event> {
        self.devices.get_mut(dev)?.events.get_mut(ev.0 as usize)
    }
}
