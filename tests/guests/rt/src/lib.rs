//! The runtime that the EL1 test guests share.
//!
//! A guest is a flat arm64 Image, linked by the same `linker.ld` as Doorward, which loads it as a domain's kernel. It assumes
//! QEMU's `virt` board (PL011 at 0x0900_0000, GICv3, ITS) and most need no device tree, so they also run without a hypervisor
//! and then show how the machine itself behaves.
//!
//! A guest defines `extern "C" fn guest_main() -> !`. It prints lines with `say!`, such as `GUEST PASS name` and
//! `GUEST FAIL name: why`, and powers off with `off`.
#![cfg_attr(target_os = "none", no_std)]
#![allow(unsafe_code, reason = "a small kernel: registers, vectors and page tables")]

#[cfg(target_os = "none")]
pub mod aarch32;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod exception;
#[cfg(target_os = "none")]
pub mod fdt;
#[cfg(target_os = "none")]
pub mod gic;
#[cfg(target_os = "none")]
mod head;
#[cfg(target_os = "none")]
pub mod its;
#[cfg(target_os = "none")]
pub mod meter;
#[cfg(target_os = "none")]
pub mod mmio;
#[cfg(target_os = "none")]
pub mod pci;
#[cfg(target_os = "none")]
pub mod smccc;

#[cfg(target_os = "none")]
pub use smccc::off;

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("GUEST FAIL panic: {info}");
    off()
}
