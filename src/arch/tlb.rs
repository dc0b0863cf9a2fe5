//! TLB maintenance for guests (DDI 0487, D8.14): by VMID on all CPUs of the inner shareable domain, and on this CPU.
//!
//! The instructions act on the VMID in VTTBR_EL2, so VTTBR_EL2 is set for them. Its root is then a table that maps
//! nothing: a speculative walk in between finds no valid descriptor, and invalid descriptors are not cached.

use super::asm::asm;
use super::barrier;
use super::sysreg::{Readable, VTTBR_EL2, Writeable};
use crate::ids::{Ipa, Pa, VmId};

/// Runs `maintain` while VTTBR_EL2 holds `vmid`. If VTTBR_EL2 holds another VMID, it points to the table at `empty`
/// meanwhile.
fn with_vmid(vmid: VmId, empty: Pa, maintain: impl FnOnce()) {
    // Every table walker sees the changed tables before an entry is invalidated.
    barrier::dsb_ishst();
    let before = VTTBR_EL2.get();
    let other = VTTBR_EL2::VMID.read(before) != u64::from(vmid.0);
    if other {
        VTTBR_EL2.set(VTTBR_EL2::VMID.val(vmid.0.into()).value | empty.0);
        barrier::isb();
    }
    maintain();
    barrier::dsb_ish();
    if other {
        VTTBR_EL2.set(before);
    }
    barrier::isb();
}

/// Invalidates, on all CPUs, the stage 2 entries for `ipa`, and all stage 1 and combined entries of the VMID, any of
/// which may depend on them.
///
/// `empty` is 64 KiB of zeroes on a boundary of 64 KiB, which is a valid root that maps nothing for every size in
/// VTCR_EL2.
pub fn invalidate_ipa(vmid: VmId, ipa: Ipa, empty: Pa) {
    with_vmid(vmid, empty, || {
        // SAFETY: invalidating a TLB entry has no effect but a later walk.
        unsafe { asm!("tlbi ipas2e1is, {}", in(reg) (ipa.0 >> 12) & 0xf_ffff_ffff, options(nostack, preserves_flags)) };
        barrier::dsb_ish();
        // SAFETY: as above.
        unsafe { asm!("tlbi vmalle1is", options(nostack, preserves_flags)) };
    });
}

/// Invalidates, on all CPUs, all entries of a VMID, of both stages. `empty` is as for [`invalidate_ipa`].
pub fn invalidate_vmid(vmid: VmId, empty: Pa) {
    with_vmid(vmid, empty, || {
        // SAFETY: invalidating a TLB entry has no effect but a later walk.
        unsafe { asm!("tlbi vmalls12e1is", options(nostack, preserves_flags)) };
    });
}

/// Invalidates, on this CPU, the entries of all guests and the instruction cache. It is called when a CPU comes up: its
/// TLB is UNKNOWN after a reset, and while it was off it did not take part in TLB maintenance.
pub fn invalidate_guests_local() {
    barrier::dsb_nsh();
    // SAFETY: invalidating a TLB entry has no effect but a later walk.
    unsafe { asm!("tlbi alle1", "ic iallu", options(nostack, preserves_flags)) };
    barrier::dsb_nsh();
    barrier::isb();
}

/// Invalidates, on this CPU, the stage 1 entries of the current VMID and the instruction cache. It is called before a
/// vCPU runs where another vCPU of its domain ran before, since the two may map an address differently, and where a
/// guest's instruction is not what its tables and memory say.
pub fn invalidate_stage1_local() {
    barrier::dsb_nsh();
    // SAFETY: invalidating a TLB entry has no effect but a later walk.
    unsafe { asm!("tlbi vmalle1", "ic iallu", options(nostack, preserves_flags)) };
    barrier::dsb_nsh();
    barrier::isb();
}
