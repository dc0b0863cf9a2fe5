//! An EL1 guest that writes nonsense wherever it can: every vCPU at once, for a number of rounds.
//!
//! What it reaches: the registers of the GIC, of the ITS and of the serial port in every size and alignment, ITS commands
//! (half of them plausible), system registers by random encoding, random calls by HVC and SMC, SGIs, instructions that
//! have no syndrome, and memory that is not its own. What it spares: whatever ends the guest by right (SYSTEM_OFF,
//! SYSTEM_RESET, SYSTEM_RESET2, CPU_OFF, CPU_SUSPEND), and devices that reach memory by themselves.
//!
//! `GUEST PASS chaos` says that it came through; that the hypervisor did, its log says. The seed is a word of the image
//! (the lower half of `guest_rt::cpu::seed`); 0 takes the time of day. The upper half is how many thousand acts all vCPUs
//! do together; 0 leaves it to the guest. A run is repeated by its seed on one vCPU.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "nonsense")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and give it to Doorward as dom0's kernel");
}

#[cfg(target_os = "none")]
mod guest;
