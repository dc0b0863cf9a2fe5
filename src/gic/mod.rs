//! The physical GIC.

#[cfg(target_os = "none")]
pub mod cpuif;
