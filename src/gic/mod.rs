//! The physical GIC: GICv3 and GICv4, from the distributor to the interrupts that bypass the hypervisor.
//!
//! A file uses only files above it in this table:
//!
//! | file | contents |
//! |---|---|
//! | `layout` | the GIC as the platform describes it |
//! | `regs`, `its/regs` | register layouts; no other file contains a mask, a shift or an offset |
//! | `table`, `error`, `facts`, `command_kind`, `counters` | types that several files share |
//! | `dist` | the distributor |
//! | `lpi` | LPI numbers and their configuration table |
//! | `inherited` | LPI tables that an earlier owner of the machine has left in use |
//! | `interface` | which CPUs take what redistributors deliver directly |
//! | `redist` | each CPU's redistributor |
//! | `its` | interrupt translation services: bring-up, commands, devices |
//! | `v4` | virtual LPIs: VMs, vPEs, residency, doorbells; `driver` uses its `state`, its verbs use `driver` |
//! | `driver` | the driver's state and look-ups; the verbs on LPIs |
//! | `lines` | the verbs on SPIs, PPIs and SGIs |
//! | `events` | the verbs on devices and their events |
//! | `reserve` | what is reserved for a domain: memory for devices, and LPIs |
//! | `hotplug` | taking a CPU out of service; [`Gic::init_cpu`] takes it back |
//! | `bringup` | [`Gic::discover`] and [`Gic::init_cpu`] |
//! | `errata` | GICs that do not work as documented |
//! | `cpuif` | the CPU interface, by system registers |
//!
//! The driver is reached through `&self` and is generic over [`Hw`](crate::mmio::Hw), so that the same code runs on the
//! executable GIC of `tests/gic-model`. Manual: IHI 0069.

#[cfg(test)]
mod acpi_tests;
mod bringup;
mod command_kind;
pub mod counters;
pub mod cpuif;
mod dist;
mod driver;
pub mod errata;
mod error;
mod events;
#[cfg(test)]
mod events_tests;
mod facts;
mod hotplug;
mod inherited;
#[cfg(test)]
mod inherited_tests;
mod interface;
#[cfg(test)]
mod interface_tests;
pub mod its;
mod layout;
mod lines;
mod lpi;
#[cfg(test)]
mod presence_tests;
mod redist;
mod regs;
mod reserve;
mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod v4;

pub use counters::Counters;
pub use dist::{Trigger, arch_rev};
pub use driver::Gic;
pub use error::{GicError, ItsError};
pub use events::Batch;
pub use facts::{Facts, ItsFacts};
pub use hotplug::{Moved, TakeOutError};
pub use interface::Interface;
pub use its::{DeviceQuota, Event, ITS_BYTES_V41, MIN_EVENT_BITS};
pub use layout::{ItsLayout, Layout};
pub use v4::V4;
