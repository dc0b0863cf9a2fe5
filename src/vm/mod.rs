//! Domains: how one is built, how its vCPUs run, what happens when one leaves the guest, and who gets an
//! interrupt.

pub mod dev;
pub mod dom0_fdt;
pub mod dom0_plan;
pub mod image;
pub mod options;
pub mod trap;
