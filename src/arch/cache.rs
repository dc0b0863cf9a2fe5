//! Cache maintenance by address (DDI 0487, D7.5).
//!
//! Only lines that lie wholly or partly in the range are touched; a caller that invalidates owns them all.

use super::asm::asm;
use super::barrier;
use super::sysreg::{CTR_EL0, Readable};
use crate::ids::Pa;

/// Bytes in the smallest data cache line of the machine.
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
                // SAFETY: cleaning changes no value that a CPU sees; see the module for invalidation.
                unsafe { asm!($asm, at = in(reg) at, options(nostack, preserves_flags)) };
                at += line;
            }
            barrier::dsb_sy();
        }
    )*};
}

by_address! {
    /// Writes what the caches hold back to the point of coherency, where a CPU or device without caches sees it.
    clean = "dc cvac, {at}";
    /// As [`clean`], and drops the lines, so that the next load sees what a device wrote.
    clean_invalidate = "dc civac, {at}";
}

/// Makes the instruction side forget everything: after code has been written.
pub fn invalidate_instructions() {
    // SAFETY: drops cached copies only.
    unsafe { asm!("ic ialluis", options(nostack, preserves_flags)) };
    barrier::dsb_ish();
    barrier::isb();
}
