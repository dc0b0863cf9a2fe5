//! An executable GICv3, v4.0 and v4.1, against which the drivers are tested.
//!
//! The model is a machine: memory, CPUs, a Distributor, redistributors and ITSs. It shares no code with the hypervisor
//! and was written from the architecture manual (Arm IHI 0069), so that a misunderstood encoding cannot be in both. It
//! is stricter than any machine: whatever the manual allows hardware to delay, cache or refuse, the model delays,
//! caches and refuses. Whatever the manual forbids or leaves (CONSTRAINED) UNPREDICTABLE is recorded as a
//! [`Violation`].
//!
//! # Usage
//!
//! ```
//! use gic_model::{Config, Machine};
//!
//! let machine = Machine::new(Config::v4_0(4));
//! let config = machine.config();
//! // A driver reads and writes registers by address.
//! let typer = machine.read64(config.its[0].base + 0x8);
//! assert_eq!(typer & 3, 3);
//! // It allocates memory and publishes its stores to it.
//! let table = machine.alloc(0x1_0000, 0x1_0000).unwrap();
//! machine.publish(table, 0x1_0000, false);
//! // It polls. The clock advances with each access and each `relax`.
//! machine.relax();
//! // The test acts as the devices, the CPUs' interrupt handlers and the guests.
//! machine.msi(0x42, 1);
//! assert_eq!(machine.host_ack(0), None);
//! assert_eq!(machine.take_drops().len(), 1);
//! machine.free(table, 0x1_0000, 0x1_0000);
//! machine.assert_clean();
//! ```
//!
//! * [`Config`] describes the machine: [`Config::qemu`], [`Config::graviton3`], [`Config::gicv3`], or the strict
//!   [`Config::v4_0`], [`Config::its_list`], [`Config::v4_1`]. All of it is plain data that a test can change.
//! * [`Machine`] is a cheap handle, `Send` and `Sync`. The first half of its methods is for drivers, the second half
//!   for tests: MSIs, acknowledging interrupts as host or guest, pending bits, deliveries, violations.
//! * [`Fault`]s are armed with [`Machine::inject`].
//!
//! # Where the model is strict
//!
//! * **Memory.** A fresh allocation is zero for the CPU and garbage for a device until it is published. On a machine
//!   that does not snoop ([`Config::noncoherent`]), stores must be published with `noncoherent = true`. Tables and
//!   queues must be allocated, zeroed where the manual says so, and disjoint, and must stay allocated until the GIC has
//!   been told to stop using them.
//! * **Commands.** An ITS consumes commands one by one, each after a delay. MSIs use the old translation until the SYNC
//!   or VSYNC that covers the change. Configuration bytes are cached as early as possible and keep their value until
//!   INV, INVALL, VINVALL or INVLPIR *and* the synchronisation. [`Staleness`] can relax this.
//! * **Residency.** Dirty takes time, and PendingLast reads 0 until it is clear. An interrupt that arrives while a vPE
//!   is made non-resident rings no doorbell and shows in PendingLast only.
//! * **VMOVP with ITSList.** ITSs that reach different VMOVPs wait for each other for ever, as real ones would.
//!
//! # What is not modelled
//!
//! The registers of SPIs, PPIs and SGIs are storage: these interrupts are never delivered. Of the CPU interface, there
//! is only the acknowledgement of interrupts: no running priority, active state or list registers (LPIs have no active
//! state). There is no Security state other than the software's, no MPAM, no UMSI reports of GICv4.1 and no power
//! management beyond GICR_WAKER.

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

pub use config::{Baser, Config, Cpu, Its, ItsNumber, LpisAtReset, Staleness, TableKind, Timing, Version, VpeTable};
pub use faults::{CommandFault, Fault};
pub use its::command::{Command, Dialect, Vmapp41};
pub use machine::{Delivery, Drop, Machine};
pub use memory::Allocation;
pub use redist::Counters;
pub use violation::Violation;
