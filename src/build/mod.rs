//! Building domains: what a guest is given, and where it is put.

pub mod acpi;
pub mod affinity;
pub mod domu_layout;
pub mod fdt;
pub mod image;
pub mod layout;
pub mod pci_hide;

#[cfg(target_os = "none")]
pub mod dom0;
#[cfg(target_os = "none")]
pub mod domu;
#[cfg(target_os = "none")]
mod module;
