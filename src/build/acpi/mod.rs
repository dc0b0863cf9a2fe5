//! dom0 on a machine that ACPI describes.
//!
//! There is no device tree to edit, so dom0 gets one of two descriptions, as the option `dom0_acpi=` says:
//!
//! * `on`: ACPI tables. Only AML describes the PCI hosts' windows and the platform's devices, so DSDT and SSDTs are
//!   passed through. What describes CPUs, GIC, PSCI and console is written anew ([`tables`]), and the SMMUs are removed
//!   from the IORT (`iort`). A kernel started without firmware finds all this through an EFI system table, which it
//!   finds through the properties that its own EFI stub would have left in a device tree with no other content
//!   ([`efi`]).
//! * `off`: a device tree made from [`Machine`](crate::platform::Machine) alone ([`tree`]): CPUs, memory, GIC, timer,
//!   console, and the PCI hosts with the windows of the option `pci_windows=`. There are no platform devices and no
//!   legacy PCI interrupts.
//!
//! dom0's console is a PL011 on every machine. Where AML or the SPCR describe a PL011 of the machine, it is at that
//! one's address. On other machines its address is a page of EL2's memory, so that it cannot overlap anything of
//! dom0's.

mod aml;
pub mod efi;
mod iort;
mod places;
pub mod tables;
pub mod tree;

pub use places::{Places, places};
