//! Barriers, by what they wait for (DDI 0487, B2.3).
//!
//! Each is also a compiler barrier: none is `nomem`. On a host a barrier is a fence, so that code which contains one can be
//! tested there.

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
    /// The instructions that follow see every earlier change of context (system registers, tables after a DSB).
    isb = "isb";
    /// Every earlier access, cache and TLB operation has completed, for all observers.
    dsb_sy = "dsb sy";
    /// As [`dsb_sy`], for the CPUs and devices of the inner shareable domain.
    dsb_ish = "dsb ish";
    /// Earlier stores have completed, in the inner shareable domain.
    dsb_ishst = "dsb ishst";
    /// Earlier stores have completed, for all observers.
    dsb_st = "dsb st";
    /// As [`dsb_sy`], for this CPU alone.
    dsb_nsh = "dsb nsh";
    /// Earlier accesses are observed before later ones, in the inner shareable domain.
    dmb_ish = "dmb ish";
    /// Earlier loads are observed before later accesses, for all observers (devices included).
    dmb_ld = "dmb ld";
}

hint! {
    /// Sleeps until an interrupt is pending (masked or not).
    wfi = "wfi";
    /// Sleeps until an event.
    wfe = "wfe";
    /// Wakes all CPUs that sleep in [`wfe`].
    sev = "sev";
    /// A hint to a sibling thread that this one is polling.
    yield_cpu = "yield";
}

/// Stops this CPU for good.
pub fn park() -> ! {
    loop {
        wfi();
    }
}
