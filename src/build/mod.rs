//! Building domains: what a guest is given, and where it is put.

pub mod acpi;
pub mod affinity;
pub mod domu_layout;
pub mod fdt;
pub mod image;
pub mod layout;
pub mod pci_hide;

pub mod dom0;
pub mod domu;
mod module;
