//! Barriers and hints (DDI 0487, B2.3 and C6.2).
//!
//! Each one is also a compiler barrier, since none is `nomem`. On a host a barrier is a fence, so that code which
//! contains one can be tested there.

use super::asm::asm;

macro_rules! barrier {
    ($($(#[$doc:meta])* $name:ident = $asm:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() {
            if cfg!(target_os = "none") {
                // SAFETY: a barrier changes no state.
                unsafe { asm!($asm, options(nostack, preserves_flags)) };
            } else {
                core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
            }
        }
    )*};
}

macro_rules! hint {
    ($($(#[$doc:meta])* $name:ident = $asm:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() {
            // SAFETY: a hint changes no state.
            unsafe { asm!($asm, options(nostack, preserves_flags)) };
        }
    )*};
}

barrier! {
    /// Later instructions see every earlier change of context: system registers, and translation tables after a DSB.
    isb = "isb";
    /// Waits until every earlier memory access, cache and TLB operation has completed, for all observers.
    dsb_sy = "dsb sy";
    /// As [`dsb_sy`], for the observers in the inner shareable domain.
    dsb_ish = "dsb ish";
    /// Waits until every earlier store has completed, for the observers in the inner shareable domain.
    dsb_ishst = "dsb ishst";
    /// Waits until every earlier store has completed, for all observers.
    dsb_st = "dsb st";
    /// As [`dsb_sy`], for this CPU only.
    dsb_nsh = "dsb nsh";
    /// Orders earlier memory accesses before later ones, for the observers in the inner shareable domain.
    dmb_ish = "dmb ish";
    /// Orders earlier loads before later memory accesses, for all observers, devices included.
    dmb_ld = "dmb ld";
}

hint! {
    /// Waits until an interrupt is pending, masked or not.
    wfi = "wfi";
    /// Waits for an event, such as a [`sev`] of another CPU.
    wfe = "wfe";
    /// Sends an event to all CPUs, which ends their [`wfe`].
    sev = "sev";
    /// Tells a CPU that shares its resources between threads that this thread is polling.
    yield_cpu = "yield";
}

/// Stops this CPU for ever.
pub fn park() -> ! {
    loop {
        wfi();
    }
}
