//! TLB maintenance for stage 2, on all CPUs of the inner shareable domain (DDI 0487, D8.14).
//!
//! The instructions act on the VMID in VTTBR_EL2, so that register is set for them. Its root is then one that maps
//! nothing: a walk that is speculated meanwhile finds no entry, and what is not there is not cached.

use super::asm::asm;
use super::barrier;
use super::sysreg::{Readable, VTTBR_EL2, Writeable};
use crate::ids::{Ipa, Pa, VmId};

/// Runs `maintain` with VTTBR_EL2 naming `vmid`, over the empty tables at `empty` where it names another now.
fn with_vmid(vmid: VmId, empty: Pa, maintain: impl FnOnce()) {
    // What changed the tables is seen by every walker before anything is forgotten.
    barrier::dsb_ishst();
    let before = VTTBR_EL2.get();
    let foreign = VTTBR_EL2::VMID.read(before) != u64::from(vmid.0);
    if foreign {
        VTTBR_EL2.set(VTTBR_EL2::VMID.val(vmid.0.into()).value | empty.0);
        barrier::isb();
    }
    maintain();
    barrier::dsb_ish();
    if foreign {
        VTTBR_EL2.set(before);
    }
    barrier::isb();
}

/// Forgets what is known about the page or block at `ipa`, and all of the VMID's stage 1 that may rest on it.
///
/// `empty` is 64 KiB of zeroes on a boundary of 64 KiB, which is an empty root of whatever size VTCR_EL2 says.
pub fn forget_ipa(vmid: VmId, ipa: Ipa, empty: Pa) {
    with_vmid(vmid, empty, || {
        // SAFETY: forgetting costs time and nothing else.
        unsafe { asm!("tlbi ipas2e1is, {}", in(reg) (ipa.0 >> 12) & 0xf_ffff_ffff, options(nostack, preserves_flags)) };
        barrier::dsb_ish();
        // SAFETY: as above.
        unsafe { asm!("tlbi vmalle1is", options(nostack, preserves_flags)) };
    });
}

/// Forgets everything of a VMID, both stages. `empty` as for [`forget_ipa`].
pub fn forget_all(vmid: VmId, empty: Pa) {
    with_vmid(vmid, empty, || {
        // SAFETY: forgetting costs time and nothing else.
        unsafe { asm!("tlbi vmalls12e1is", options(nostack, preserves_flags)) };
    });
}

/// Forgets, on this CPU alone, all that it holds of guests: it comes from a reset, or from where nobody told it what to
/// forget.
pub fn forget_guests_here() {
    barrier::dsb_nsh();
    // SAFETY: forgetting costs time and nothing else.
    unsafe { asm!("tlbi alle1", "ic iallu", options(nostack, preserves_flags)) };
    barrier::dsb_nsh();
    barrier::isb();
}

/// Forgets, on this CPU alone, all that a guest's stage 1 has left for this VMID, and what was fetched as
/// instructions: before a vCPU where another of its domain ran. The two may have differed about an address.
pub fn forget_stage1_here() {
    barrier::dsb_nsh();
    // SAFETY: forgetting costs time and nothing else.
    unsafe { asm!("tlbi vmalle1", "ic iallu", options(nostack, preserves_flags)) };
    barrier::dsb_nsh();
    barrier::isb();
}
