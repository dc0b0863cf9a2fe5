//! An executable SMMUv3 for stage 2, against which the driver is tested.
//!
//! The model is a machine: memory, an SMMU, and devices whose transactions pass through it. It shares no code with the
//! hypervisor and was written from the architecture manual (Arm IHI 0070), so that a misunderstood encoding cannot be in
//! both. It is stricter than any machine: whatever the manual allows hardware to delay, cache or refuse, the model
//! delays, caches and refuses. Whatever the manual forbids or leaves (CONSTRAINED) UNPREDICTABLE is recorded as a
//! [`Violation`].
//!
//! # Usage
//!
//! ```
//! use smmu_model::{Config, Machine, Why};
//!
//! let machine = Machine::new(Config::server());
//! let base = machine.config().base;
//! // A driver reads and writes registers by address.
//! assert_eq!(machine.read32(base) & 1, 1, "SMMU_IDR0.S2P");
//! // It allocates memory and publishes its stores to it.
//! let queue = machine.alloc(0x1000, 0x1000).unwrap();
//! machine.publish(queue, 0x1000, false);
//! // It polls. The clock advances with each access and each `relax`.
//! machine.write32(base + 0x44, 1 << 31 | 1 << 20);
//! while machine.read32(base + 0x44) >> 31 != 0 {
//!     machine.relax();
//! }
//! // The test acts as the devices, and sees where their transactions went.
//! assert_eq!(machine.dma_write(0x18, 0x8000, &[1]).unwrap_err().why, Why::Disabled);
//! assert!(machine.take_landings().is_empty());
//! machine.free(queue, 0x1000, 0x1000);
//! machine.assert_clean();
//! ```
//!
//! * [`Config`] describes the machine: the strict [`Config::server`] and [`Config::small`], or [`Config::qemu`]. All of it
//!   is plain data that a test can change.
//! * [`Machine`] is a cheap handle, `Send` and `Sync`. The first half of its methods is for drivers, the second half for
//!   tests: transactions and where they landed, events, interrupts, commands, violations.
//! * [`Fault`]s are armed with [`Machine::inject`].
//!
//! # Where the model is strict
//!
//! * **Memory.** A fresh allocation is zero for the CPU and garbage for the SMMU until it is published. An access of the
//!   SMMU snoops only if SMMU_IDR0.COHACC is 1 and its attributes (SMMU_CR1, or S2SH0, S2IR0 and S2OR0 of the STE) are
//!   shareable and cacheable. All else must be published with `noncoherent = true`. Between a store and its `publish`
//!   the SMMU reads the old value, which is no violation until an invalidation relies on the store. Queues and tables must
//!   stay allocated until the SMMU can no longer reach them.
//! * **Caches.** The SMMU may read whatever is reachable at any time. So STEs, valid or not, first-level descriptors,
//!   translations and pointers to stage 2 tables are cached from the moment when they become reachable, without any
//!   transaction. They keep their oldest value until their invalidation *and* the SYNC after it. With
//!   [`Staleness::Random`] each transaction sees the old or the new value.
//! * **Commands** are consumed one by one, each after a delay. Invalidations before one SYNC are not ordered among
//!   themselves: a TLB may be filled again through an STE whose CMD_CFGI_STE precedes the TLBI without a SYNC between
//!   them.
//! * **Transactions** that have started ([`Machine::dma_write_later`]) land as late as the SYNC allows.
//! * **Acknowledgements** of SMMU_CR0, SMMU_IRQ_CTRL and SMMU_GBPA take time, and the new value takes effect with them.
//!   A register that SMMU_CR0 guards can be written only while the field is 0 and known to be 0.
//!
//! # Mistakes of drivers that the model shows
//!
//! "Flagged" is a [`Violation`]. Otherwise the mistake has the worst consequence that the manual allows.
//!
//! | mistake | what the model does |
//! |---|---|
//! | a guarded register or CR1 attribute written while its guard is set or not acknowledged | flagged, write ignored |
//! | a field of CR0 or IRQ_CTRL changed again before its acknowledgement; GBPA written without Update, or while it is 1 | flagged, write ignored |
//! | access of a wrong size; read-only or reserved register or field; EVENTQ indexes in page 0 | flagged |
//! | GERRORN toggled for an error that is not active | flagged |
//! | queue or stream table not aligned, allocated, published; too large; reserved attributes; indexes not initialized | flagged when it is enabled |
//! | PROD moved back or too far | flagged, nothing is consumed any more |
//! | a command not published, or changed before its consumption | flagged |
//! | illegal opcode, reserved field or value | flagged, CERROR_ILL: the queue stops until GERRORN acknowledges it |
//! | StreamID, VMID or range out of range or not aligned | flagged, no effect |
//! | SMMUEN set with caches that were not invalidated since reset or since SMMUEN was 0 | flagged; STEs of the earlier table are used |
//! | an STE changed in several words without an invalidated step with V = 0, or made valid without an invalidation after it was filled in | flagged |
//! | an STE changed without CFGI and SYNC | the old one is used |
//! | a first-level descriptor changed and invalidated with Leaf = 1 | the old one is used |
//! | an ILLEGAL STE, reserved fields, S2TTB not aligned | flagged, C_BAD_STE |
//! | two STEs of one VMID with different stage 2; a VMID used again without TLBI | flagged, translations are mixed up |
//! | a table reachable before it is published | flagged |
//! | an unmapped page without TLBI and SYNC | it stays reachable |
//! | an unlinked table invalidated with Leaf = 1 | walks go on from the cached pointer; freeing it is flagged |
//! | wrong VMID, address, range or TTL | entries stay cached |
//! | no break-before-make | flagged ([`Config::bbml`]) |
//! | stage 2 tables freed before STE *and* VMID were invalidated, with a SYNC after each | flagged |
//! | an invalidation of something that is stored but not published | flagged |
//! | event queue stored to, read without acquire, CONS moved too far, OVACKFLG set to another value than OVFLG | flagged |
//! | a device that writes to the SMMU's own structures | flagged |
//!
//! # What is not modelled
//!
//! Stage 1, granules of 16 and 64 KiB, stalls, hardware update of flags, ATS, PRI, broadcast TLB maintenance, MPAM, the
//! Secure and Realm interfaces, ECMDQ and ATOS. STEs that ask for the first three are violations; commands and registers
//! of the others are those of an SMMU without them. Attributes of transactions are not modelled; a [`Landing`] has the
//! descriptor from which they follow.

mod cmdq;
mod command;
mod config;
mod dma;
mod eventq;
mod faults;
mod machine;
mod memory;
mod regs;
mod ste;
mod streams;
mod tlb;
mod violation;
mod walk;

pub use command::{Command, Extent, Signal};
pub use config::{Config, Firmware, Staleness, Timing};
pub use dma::{Aborted, Landing, Why};
pub use faults::{CommandFault, Fault};
pub use machine::{Interrupt, Machine};
pub use memory::Allocation;
pub use violation::Violation;
