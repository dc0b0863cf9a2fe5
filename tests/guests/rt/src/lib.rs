//! What the EL1 test guests share.
//!
//! A guest is a flat arm64 Image, linked by the same `linker.ld` as Doorward itself, which loads it as a domain's
//! kernel. It knows the board it runs on (QEMU's `virt`: PL011 at 0x0900_0000, GICv3, ITS) and needs no device tree,
//! so it also runs without a hypervisor: what a check says there is what the machine itself does.
//!
//! A guest defines `extern "C" fn guest_main() -> !`. It speaks through [`say!`], one line at a time:
//! `GUEST PASS name`, `GUEST FAIL name: why`, and ends with [`off`].
#![cfg_attr(target_os = "none", no_std)]
#![allow(unsafe_code, reason = "a kernel of its own: registers, vectors and page tables")]

#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod exception;
#[cfg(target_os = "none")]
pub mod gic;
#[cfg(target_os = "none")]
mod head;
#[cfg(target_os = "none")]
pub mod its;
#[cfg(target_os = "none")]
pub mod mmio;
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
