//! An EL1 guest for two domains that share a CPU. It is the kernel of both and finds out by GICD_TYPER.LPIS which it is:
//!
//! * dom0 has an ITS. It makes a store again and again that causes EL2 as much work as one can (`flood.rs`).
//! * A domU has none. It computes, and measures how long it has a CPU and how long it is without one (`meter.rs`).
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name")]

#[cfg(target_os = "none")]
mod flood;
#[cfg(target_os = "none")]
mod meter;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and give it to Doorward as a kernel");
}

#[cfg(target_os = "none")]
mod guest {
    use crate::{flood, meter};
    use guest_rt::{cpu, gic, mrs};

    /// Ticks of the counter in `microseconds`.
    pub fn ticks(microseconds: u64) -> u64 {
        mrs!("cntfrq_el0") / 1_000_000 * microseconds
    }

    /// Microseconds since the machine was started.
    pub fn now_us() -> u64 {
        cpu::now() / ticks(1)
    }

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        if gic::has_lpis() { flood::run() } else { meter::run() }
    }
}
