//! An EL1 guest for two domains that share a CPU. It is the kernel of both and finds out by GICD_TYPER.LPIS which it is:
//!
//! * dom0 has an ITS. It makes a store again and again that causes EL2 as much work as one can (`flood.rs`).
//! * A domU has none. It computes, and measures how long it has a CPU and how long it is without one (`guest_rt::meter`).
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name")]

#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod flood;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and give it to Doorward as a kernel");
}

#[cfg(target_os = "none")]
mod guest {
    use crate::flood;
    use guest_rt::{gic, meter};

    /// Start of the measurement in milliseconds, when dom0 has begun its first store, and its length.
    const FROM: u64 = 500;
    const WINDOW: u64 = 2_000;

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        if gic::has_lpis() { flood::run() } else { meter::run(FROM, WINDOW) }
    }
}
