//! An EL1 guest that checks which features it has and which it does not have.
//!
//! Hidden features must be absent from the ID registers and UNDEFINED; exposed ones must work. The guest also checks emulated
//! system registers, calls to the firmware, loads and stores to an emulated device in forms without a syndrome, timers and
//! SGIs.
//!
//! It prints `GUEST PASS name` or `GUEST FAIL name: why` for each check, then `GUEST DONE features pass=P fail=F`, and powers
//! off.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "instructions under test")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and boot it as dom0's kernel under Doorward");
}

#[cfg(target_os = "none")]
mod hidden;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod visible;

#[cfg(target_os = "none")]
mod guest {
    use core::fmt;
    use core::sync::atomic::{AtomicU32, Ordering};
    use guest_rt::{mrs, off, say};

    static PASS: AtomicU32 = AtomicU32::new(0);
    static FAIL: AtomicU32 = AtomicU32::new(0);

    /// Reports one check.
    pub fn check(name: &str, good: bool, why: fmt::Arguments<'_>) {
        if good {
            PASS.fetch_add(1, Ordering::Relaxed);
            say!("GUEST PASS {name}");
        } else {
            FAIL.fetch_add(1, Ordering::Relaxed);
            say!("GUEST FAIL {name}: {why}");
        }
    }

    /// Reports whether two values are equal.
    pub fn equal<T: PartialEq + fmt::Debug>(name: &str, is: T, should: T) {
        check(name, is == should, format_args!("is {is:x?}, should be {should:x?}"));
    }

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        say!("GUEST START features midr={:#x}", mrs!("midr_el1"));
        crate::visible::run();
        crate::hidden::run();
        crate::memory::run();
        crate::interrupts::run();
        say!("GUEST DONE features pass={} fail={}", PASS.load(Ordering::Relaxed), FAIL.load(Ordering::Relaxed));
        off()
    }
}
