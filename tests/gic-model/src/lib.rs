//! An executable GICv3, v4.0 and v4.1: what the drivers are tested against.
//!
//! The model is a machine: memory, CPUs, a Distributor, redistributors and ITSs. It depends on nothing of the
//! hypervisor and was written from the architecture manual (Arm IHI 0069), so that a wrong idea about an encoding
//! cannot sit in both. It is stricter than any machine: whatever the manual lets hardware delay, cache or refuse,
//! it delays, caches and refuses; and each act that the manual forbids or leaves (CONSTRAINED) UNPREDICTABLE is
//! recorded as a [`Violation`].
//!
//! # How to use it
//!
//! ```
//! use gic_model::{Config, Machine};
//!
//! let machine = Machine::new(Config::v4_0(4));
//! let config = machine.config();
//! // A driver reads and writes registers by address, ...
//! let typer = machine.read64(config.its[0].base + 0x8);
//! assert_eq!(typer & 3, 3);
//! // ... takes memory, publishes what it stored there, ...
//! let table = machine.alloc(0x1_0000, 0x1_0000).unwrap();
//! machine.publish(table, 0x1_0000, false);
//! // ... and polls; the clock goes on with each access and each `relax`.
//! machine.relax();
//! // The test plays the devices, the CPUs' interrupt handlers and the guests.
//! machine.msi(0x42, 1);
//! assert_eq!(machine.host_ack(0), None);
//! assert_eq!(machine.take_drops().len(), 1);
//! machine.free(table, 0x1_0000, 0x1_0000);
//! machine.assert_clean();
//! ```
//!
//! * [`Config`] says which machine: [`Config::qemu`], [`Config::graviton3`], [`Config::gicv3`], or the strict
//!   [`Config::v4_0`], [`Config::its_list`], [`Config::v4_1`]. All of it is plain data to change.
//! * [`Machine`] is a cheap handle, `Send` and `Sync`. Its first half is what a driver needs, its second half what a
//!   test needs: MSIs, acknowledging interrupts as host or guest, pending bits, deliveries, violations.
//! * [`Fault`]s are armed with [`Machine::inject`].
//!
//! # What is strict here
//!
//! * **Memory.** A fresh allocation is zero for the CPU and rubbish for a device until it is published. On a machine
//!   that does not snoop ([`Config::noncoherent`]) publishing means `noncoherent = true`. Tables and queues must be
//!   allocated, zeroed where the manual says so, disjoint, and stay until the GIC has been told to forget them.
//! * **Commands.** An ITS consumes them one by one, in its own time. MSIs meet the old translation until the SYNC or
//!   VSYNC that covers the change; configuration bytes are cached from the first moment on and stay as they were until
//!   INV, INVALL, VINVALL or INVLPIR *and* the synchronisation. [`Staleness`] can relax this.
//! * **Residency.** Dirty takes time; PendingLast reads 0 until it is over; an interrupt that arrives while a vPE leaves
//!   rings no doorbell and shows in PendingLast only.
//! * **VMOVP with ITSList.** ITSs that come to different VMOVPs hang, as they would.
//!
//! # What is not modelled
//!
//! SPIs, PPIs and SGIs are storage, not interrupts. There is no CPU interface but acknowledging: running priority,
//! active state and list registers are not here (LPIs have no active state). Security states other than the one
//! software runs in, MPAM, GICv4.1 UMSI reports and power management beyond GICR_WAKER are not here either.

mod config;
mod dist;
mod faults;
mod its;
mod machine;
mod memory;
mod redist;
mod violation;
mod vlpi;
mod vpe;
mod vsgi;
mod vtable;

pub use config::{Baser, Config, Cpu, Its, ItsNumber, LpisAtReset, Staleness, TableKind, Timing, Version};
pub use faults::{CommandFault, Fault};
pub use its::command::{Command, Dialect, Vmapp41};
pub use machine::{Delivery, Drop, Machine};
pub use memory::Allocation;
pub use violation::Violation;
