//! Enabling stage 1 of EL2, and switching to another set of tables.

use super::asm::{extern_asm, global_asm};
use super::barrier;
use super::sysreg::{ID_AA64MMFR0_EL1, MAIR_EL2, Readable, SCTLR_EL2, TCR_EL2, TTBR0_EL2, Writeable};
use crate::ids::Pa;

/// MAIR_EL2: index 0 is Device-nGnRE, 1 Normal write-back, 2 Normal non-cacheable (see `mm::stage1::Kind`).
pub const MAIR: u64 = MAIR_EL2::Attr0_Device::nonGathering_nonReordering_EarlyWriteAck.value
    | MAIR_EL2::Attr1_Normal_Outer::WriteBack_NonTransient_ReadWriteAlloc.value
    | MAIR_EL2::Attr1_Normal_Inner::WriteBack_NonTransient_ReadWriteAlloc.value
    | MAIR_EL2::Attr2_Normal_Outer::NonCacheable.value
    | MAIR_EL2::Attr2_Normal_Inner::NonCacheable.value;

const _: () = assert!(MAIR == 0x0044_ff04);

/// SCTLR_EL2 with stage 1 on: caches on, SP alignment checked (SA), writable memory never executable (WXN). A is clear,
/// so unaligned accesses to Normal memory are allowed.
pub const SCTLR: u64 = SCTLR_RES1
    | SCTLR_EL2::WXN::Enable.value
    | SCTLR_EL2::I::Cacheable.value
    | SCTLR_EL2::SA::Enable.value
    | SCTLR_EL2::C::Cacheable.value
    | SCTLR_EL2::M::Enable.value;

/// The bits of SCTLR_EL2 that are RES1, or were before an extension gave them a meaning.
const SCTLR_RES1: u64 = 0x30c5_0830;

/// The bits of TCR_EL2 that are RES1.
const TCR_RES1: u64 = 1 << 31 | 1 << 23;

/// Returns TCR_EL2: 48-bit addresses, 4 KiB pages, cacheable and inner shareable walks, this CPU's physical address
/// size.
#[must_use]
pub fn tcr() -> u64 {
    // 48 bits at most, because more need the descriptor format of LPA2.
    let size = ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange).min(TCR_EL2::PS::Bits_48.read(TCR_EL2::PS));
    let fields = TCR_EL2::PS.val(size)
        + TCR_EL2::TG0::KiB_4
        + TCR_EL2::SH0::Inner
        + TCR_EL2::ORGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable
        + TCR_EL2::IRGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable
        + TCR_EL2::T0SZ.val(64 - 48);
    TCR_RES1 | fields.value
}

extern_asm! {
    fn doorward_switch_stage1(root: u64, sctlr: u64);
}

global_asm!(
    r#"
.section .text.doorward_switch_stage1, "ax"
.global doorward_switch_stage1
doorward_switch_stage1:
    // There must be no memory access up to the ISB after the last write of SCTLR_EL2: stage 1 is off in between.
    mrs     x2, sctlr_el2
    bic     x3, x2, #1
    dsb     sy
    msr     sctlr_el2, x3
    isb
    msr     ttbr0_el2, x0
    isb
    tlbi    alle2
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el2, x1
    isb
    ret
"#
);

/// Enables stage 1 on this CPU with the tables at `root`, or switches to them.
///
/// # Safety
///
/// The tables map the running code, its stack and all memory in use at their physical addresses, this CPU's table
/// walker sees them, and they are never freed.
pub unsafe fn switch_to(root: Pa) {
    // The compiler may move memory accesses across these two writes. While stage 1 is off they have no effect on an
    // access, and while it is on they change nothing, since every map has the same attributes and geometry.
    MAIR_EL2.set(MAIR);
    TCR_EL2.set(tcr());
    barrier::isb();
    // SAFETY: by the contract of this function. On an identity map the code continues while stage 1 is off.
    unsafe { doorward_switch_stage1(root.0, SCTLR) };
}

/// Returns the physical address of the root table in use.
#[must_use]
pub fn root() -> Pa {
    Pa(TTBR0_EL2.get_baddr())
}
