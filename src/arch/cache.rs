//! Cache maintenance by address (DDI 0487, D7.5).
//!
//! An operation on a range covers every cache line that overlaps it, so a caller that invalidates has to own the whole
//! of the first and the last line.

use super::asm::asm;
use super::barrier;
use super::sysreg::{CTR_EL0, Readable};
use crate::ids::Pa;

/// Size in bytes of the smallest data cache line of the machine.
#[inline]
fn line() -> u64 {
    4 << CTR_EL0.read(CTR_EL0::DminLine)
}

macro_rules! by_address {
    ($($(#[$doc:meta])* $name:ident = $asm:literal;)*) => {$(
        $(#[$doc])*
        pub fn $name(base: Pa, size: u64) {
            let line = line();
            let mut at = base.0 & !(line - 1);
            while at < base.0 + size {
                // SAFETY: cleaning changes no value that a CPU reads. The caller owns the lines that it invalidates.
                unsafe { asm!($asm, at = in(reg) at, options(nostack, preserves_flags)) };
                at += line;
            }
            barrier::dsb_sy();
        }
    )*};
}

by_address! {
    /// Cleans to the point of coherency: CPUs and devices that bypass the caches then read what this CPU has written.
    clean = "dc cvac, {at}";
    /// Cleans and invalidates to the point of coherency: the next load then reads what a non-coherent device has
    /// written.
    clean_invalidate = "dc civac, {at}";
}

/// Invalidates the instruction caches of all CPUs; called after code has been written.
pub fn invalidate_instructions() {
    // SAFETY: only cached copies are dropped.
    unsafe { asm!("ic ialluis", options(nostack, preserves_flags)) };
    barrier::dsb_ish();
    barrier::isb();
}
