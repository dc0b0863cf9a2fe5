//! Interrupt translation services (IHI 0069, chapter 5).
//!
//! | file | contents |
//! |---|---|
//! | `regs` | register layouts |
//! | `command` | the encoding of commands |
//! | `control` | GITS_CTLR: enabled, or disabled and quiescent |
//! | `queue` | the command queue: posting, completion, stalls |
//! | `tables` | GITS_BASER |
//! | `event` | what an event is mapped to |
//! | `devices` | the devices that are mapped, and their events |
//! | `pool` | the memory that is reserved for a domain's devices |
//! | `service` | one ITS: bring-up, collections, devices |
//!
//! The verbs on events are above this: `gic/events`.

mod command;
#[cfg(test)]
mod command_tests;
mod control;
mod devices;
mod event;
mod pool;
mod queue;
#[cfg(test)]
mod queue_tests;
mod regs;
mod service;
mod tables;
#[cfg(test)]
mod tests;

pub use super::command_kind::Kind;
pub use command::SgiConfig;
pub use event::Event;
pub use pool::{DeviceQuota, MIN_EVENT_BITS};

pub(super) use command::{Command, VmappV40, VmappV41};
pub(super) use devices::State;
pub(super) use queue::{COMMAND_LIMIT_US, Synced, Ticket};
#[cfg(test)]
pub(super) use queue::{DEAD_AFTER_US, RING_SIZE};
pub use regs::gits::BYTES_V41 as ITS_BYTES_V41;

pub(super) use regs::gits::IIDR;
pub(super) use service::{Its, Plan, collection, quiesce, shares_vpe_table};
