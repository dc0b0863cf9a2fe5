//! AArch64 at EL2, and nothing else: vectors, the world switch, system registers, barriers, timers, CPUs.
//!
//! What is plain data ([`vcpu::GuestRegs`], [`el1::El1Context`]) compiles everywhere; what executes an instruction of
//! EL2 exists on the target only.
#![allow(unsafe_code, reason = "this room is the instructions that Rust has no words for")]

#[cfg(target_os = "none")]
pub mod barrier;
#[cfg(target_os = "none")]
pub mod cache;
pub mod esr;
pub mod features;
#[cfg(target_os = "none")]
pub mod mmu;
#[cfg(target_os = "none")]
pub mod percpu;
#[cfg(target_os = "none")]
pub mod psci;
#[cfg(target_os = "none")]
pub mod sysreg;
