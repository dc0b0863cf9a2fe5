//! AArch64 at EL2, and nothing else: vectors, the world switch, system registers, barriers, timers, CPUs.
//!
//! What is plain data ([`vcpu::GuestRegs`], [`el1::El1Context`]) compiles everywhere; what executes an instruction of
//! EL2 exists on the target only.
#![allow(unsafe_code, reason = "this room is the instructions that Rust has no words for")]

pub mod el1;
pub mod esr;
pub mod features;
pub mod fp;
pub mod vcpu;

#[cfg(target_os = "none")]
pub mod at;
#[cfg(target_os = "none")]
pub mod barrier;
#[cfg(target_os = "none")]
pub mod cache;
#[cfg(target_os = "none")]
pub mod ich;
#[cfg(target_os = "none")]
pub mod mmu;
#[cfg(target_os = "none")]
pub mod percpu;
#[cfg(target_os = "none")]
pub mod power;
#[cfg(target_os = "none")]
pub mod psci;
#[cfg(target_os = "none")]
pub mod smp;
#[cfg(target_os = "none")]
pub mod sysreg;
#[cfg(target_os = "none")]
pub mod timer;
#[cfg(target_os = "none")]
pub mod tlb;
#[cfg(target_os = "none")]
pub mod vectors;
