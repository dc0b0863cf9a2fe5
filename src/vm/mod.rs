//! Domains: how one is built, how its vCPUs run, what happens when one leaves the guest, and who gets an
//! interrupt.

pub mod affinity;
pub mod carve;
pub mod dev;
pub mod dom0_acpi;
pub mod dom0_fdt;
pub mod dom0_plan;
pub mod domu_fdt;
pub mod domu_plan;
pub mod duty;
pub mod hidden;
pub mod image;
pub mod kinds;
pub mod life;
pub mod lpi;
pub mod options;
pub mod owners;
pub mod sleepers;
pub mod storm;
pub mod trap;

#[cfg(target_os = "none")]
pub mod dom0;
#[cfg(target_os = "none")]
pub mod domain;
#[cfg(target_os = "none")]
pub mod domu;
#[cfg(target_os = "none")]
mod ends;
#[cfg(target_os = "none")]
mod exit;
#[cfg(target_os = "none")]
mod hotplug;
#[cfg(target_os = "none")]
mod hypervisor;
#[cfg(target_os = "none")]
mod input;
#[cfg(target_os = "none")]
pub mod irq;
#[cfg(target_os = "none")]
pub mod keys;
#[cfg(target_os = "none")]
mod lrs;
#[cfg(target_os = "none")]
mod module;
#[cfg(target_os = "none")]
pub mod run;
#[cfg(target_os = "none")]
mod soft_timer;
#[cfg(target_os = "none")]
mod switch;
#[cfg(target_os = "none")]
mod vcpu;

#[cfg(target_os = "none")]
pub use hypervisor::{DomainRef, Hypervisor, hypervisor, install};
