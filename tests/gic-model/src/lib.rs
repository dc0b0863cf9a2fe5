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
//! # Mistakes of GICv4.1 drivers that the model shows
//!
//! "Flagged" is a [`Violation`]. Otherwise the mistake has the worst consequence that the manual allows.
//!
//! | mistake | what the model does |
//! |---|---|
//! | Valid cleared, or another write, while Dirty is 1 | flagged |
//! | fields changed while Valid is 1, also by the write that clears it | flagged; no doorbell rings for a group that this write disables ([`Config::samples_groups_on_leave`]) |
//! | Doorbell or PendingLast written back as read | both read as 1 while Valid is 1 |
//! | Dirty never clears | [`Fault::DirtyStuck`] |
//! | Dirty polled more than once for each residency | counted ([`Counters`]) |
//! | PendingLast read while Dirty is 1 | reads as 0 |
//! | doorbell expected after PendingLast was 1 or written as 1 | none rings |
//! | residency before the VSYNC of a VMAPP or VMOVP, or without a VMAPP | flagged |
//! | residency on two CPUs, without a vPE table, in another CommonLPIAff group | flagged |
//! | residency where the CPU interface is not GICv4, or LPIs are disabled | flagged |
//! | group enables not renewed | interrupts of the group are not signalled |
//! | residency or tables that earlier software has left | [`Cpu::residency_at_reset`], [`Cpu::lpis_at_reset`] |
//! | VMOVP omitted before a CPU goes offline, or doorbell left there | flagged by [`Machine::power_off`], then lost |
//! | VMOVP while resident, or with another doorbell; of a vPE that is not mapped | flagged |
//! | VSYNC of an unmapped vPE; SYNC in place of VSYNC | flagged; nothing is synchronised |
//! | VMAPTI over a valid translation; individual doorbells; fields that are RES0 | flagged |
//! | Alloc not on the first mapping and last unmapping; PTZ without Alloc or on a table that is not zero | flagged |
//! | VMAPP without VINVALL | cached configuration of an earlier mapping stays ([`Config::unmapping_keeps_cache`]) |
//! | GICR_INVLPIR, GICR_INVALLR or GICR_VSGIR while busy, or in another group | flagged |
//! | configuration of a default doorbell changed without INVDB or publication | old value stays; flagged |
//! | vPE tables that differ within a group or from the ITS (SVPET) in address, size or attributes | flagged |
//! | Z for a table in use; table not aligned, zeroed, published; too short for the vPEID; no second level | flagged |
//! | vPE table replaced or taken away while it is used | flagged |
//! | page size assumed instead of read | [`Config::vpe_table`], [`Baser::pages`] |
//! | registers of a CPU that has no power | writes flagged, reads as zero ([`Config::powered`]) |
//! | EnableLPIs that cannot be cleared | [`Cpu::ces`]; freeing its tables is flagged |
//! | ImDe left set while waiting for Quiescent | [`Its::imde_keeps_busy`] |
//! | vPEID beyond GICD_TYPER2, VPT or configuration table not allocated, freed too early | flagged |
//! | virtual SGI where ITS, redistributor or CPU interface does not support it | flagged, or never delivered |
//! | VSGI not synchronised; pending virtual SGIs of an unmapped vPE | old state is used; they are lost |
//! | nASSGIreq changed while a group is enabled | flagged |
//!
//! # What is not modelled
//!
//! The registers of SPIs, PPIs and SGIs are storage: these interrupts are never delivered. Of the CPU interface, there
//! is only the acknowledgement and the count of interrupts that ended outside of list registers: no running priority,
//! active state or list registers (LPIs have no active state). There is no Security state other than the software's, no
//! MPAM, no UMSI reports of GICv4.1 and no GICR_PWRR (only Secure software has it).

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
