//! The FP and Advanced SIMD registers: V0 to V31, FPSR, FPCR (DDI 0487, B1.2).
//!
//! EL2 is built without FP, so these registers hold the guest's values across exits and are switched only when another
//! vCPU takes the CPU. CPTR_EL2.TFP is always 0 (see [`super::features`]): FP traps neither in a guest nor here.

use super::asm::{extern_asm, global_asm};
use core::mem::offset_of;

/// The FP registers of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct FpContext {
    v: [u128; 32],
    fpsr: u64,
    fpcr: u64,
}

impl FpContext {
    /// Returns the state after a reset. The architecture leaves it UNKNOWN; zero leaks nothing of another vCPU.
    #[must_use]
    pub const fn reset() -> FpContext {
        FpContext { v: [0; 32], fpsr: 0, fpcr: 0 }
    }
}

const _: () = assert!(offset_of!(FpContext, fpsr) == 512 && offset_of!(FpContext, fpcr) == 520);

extern_asm! {
    fn doorward_fp_save(to: *mut FpContext);
    fn doorward_fp_restore(from: *const FpContext);
}

global_asm!(
    r#"
.section .text.doorward_fp, "ax"
.arch_extension fp
.arch_extension simd
.balign 16
.global doorward_fp_save
doorward_fp_save:
    stp     q0, q1, [x0]
    stp     q2, q3, [x0, #32]
    stp     q4, q5, [x0, #64]
    stp     q6, q7, [x0, #96]
    stp     q8, q9, [x0, #128]
    stp     q10, q11, [x0, #160]
    stp     q12, q13, [x0, #192]
    stp     q14, q15, [x0, #224]
    stp     q16, q17, [x0, #256]
    stp     q18, q19, [x0, #288]
    stp     q20, q21, [x0, #320]
    stp     q22, q23, [x0, #352]
    stp     q24, q25, [x0, #384]
    stp     q26, q27, [x0, #416]
    stp     q28, q29, [x0, #448]
    stp     q30, q31, [x0, #480]
    mrs     x1, fpsr
    mrs     x2, fpcr
    str     x1, [x0, #512]
    str     x2, [x0, #520]
    ret

.balign 16
.global doorward_fp_restore
doorward_fp_restore:
    ldp     q0, q1, [x0]
    ldp     q2, q3, [x0, #32]
    ldp     q4, q5, [x0, #64]
    ldp     q6, q7, [x0, #96]
    ldp     q8, q9, [x0, #128]
    ldp     q10, q11, [x0, #160]
    ldp     q12, q13, [x0, #192]
    ldp     q14, q15, [x0, #224]
    ldp     q16, q17, [x0, #256]
    ldp     q18, q19, [x0, #288]
    ldp     q20, q21, [x0, #320]
    ldp     q22, q23, [x0, #352]
    ldp     q24, q25, [x0, #384]
    ldp     q26, q27, [x0, #416]
    ldp     q28, q29, [x0, #448]
    ldp     q30, q31, [x0, #480]
    ldr     x1, [x0, #512]
    ldr     x2, [x0, #520]
    msr     fpsr, x1
    msr     fpcr, x2
    ret
.arch_extension nosimd
.arch_extension nofp
.text
"#
);

impl FpContext {
    /// Saves the registers of this CPU.
    pub fn save(&mut self) {
        // SAFETY: stores the 528 bytes that `self` is, and changes no register that the compiler uses.
        unsafe { doorward_fp_save(self) };
    }

    /// Loads the registers of this CPU.
    pub fn restore(&self) {
        // SAFETY: reads `self`, and changes registers that no code of EL2 uses.
        unsafe { doorward_fp_restore(self) };
    }
}
