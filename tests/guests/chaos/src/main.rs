//! An EL1 guest that makes random accesses wherever it can, from all vCPUs at once.
//!
//! It uses the registers of the GIC, the ITS, the serial port and dom0's console device in every size and alignment, with rings
//! and descriptors that no driver would make, ITS commands (half of them plausible), system registers by random encoding, random calls by HVC and SMC, SGIs, loads and stores without a syndrome,
//! some from broken tables or from AArch32 at EL0, and memory that is not its own. It leaves out other devices that access memory by
//! themselves, and, unless it is a domU that is restarted, calls that legally end or stop the guest (SYSTEM_OFF, SYSTEM_RESET,
//! SYSTEM_RESET2, CPU_OFF, CPU_SUSPEND).
//!
//! It prints `GUEST PASS chaos` at its end; whether the hypervisor is unharmed, its log shows. The lower half of
//! `guest_rt::cpu::seed` is the seed; 0 uses the counter. The upper half is the number of accesses of all vCPUs together, in
//! thousands; 0 uses the guest's own number. With bit 63 the guest ends at random moments, and lives again when it is restarted.
//! With one vCPU, the same seed repeats a run.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "random accesses")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and boot it as dom0's kernel under Doorward");
}

#[cfg(target_os = "none")]
mod calls;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod devices;
#[cfg(target_os = "none")]
mod guest;
#[cfg(target_os = "none")]
mod narrow;
#[cfg(target_os = "none")]
mod ports;
#[cfg(target_os = "none")]
mod walk;
