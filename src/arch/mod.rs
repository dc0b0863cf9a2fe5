//! AArch64 at EL2: vectors, world switch, system registers, barriers, timers, CPU bring-up, calls of the firmware.
//!
//! Every module compiles on every target, so that the rooms above can be checked and tested on a host. Executing an EL2
//! instruction on a host panics (see `asm`).
#![allow(unsafe_code, reason = "inline assembly, and registers that change what memory EL2 sees")]

pub(crate) mod asm;
pub mod el1;
pub mod esr;
pub mod fault;
pub mod features;
pub mod fp;
pub mod nospec;
pub mod speculation;
pub mod vcpu;

pub mod barrier;
pub mod cache;
pub mod ich;
pub mod mmu;
pub mod percpu;
pub mod power;
pub mod protect;
pub mod psci;
pub mod smp;
pub mod sysreg;
pub mod timer;
pub mod tlb;
pub mod vectors;
