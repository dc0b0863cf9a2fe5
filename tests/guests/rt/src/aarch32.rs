//! Programs in AArch32 at EL0.

use crate::mrs;
use core::arch::{asm, global_asm};

/// PSTATE of a program: User mode, A32, interrupts and SErrors masked.
pub const A32: u64 = 0x1d0;
/// The same for T32.
pub const T32: u64 = 0x1f0;

global_asm!(
    r#"
.section .text.narrow, "ax"
// x0 = where to go on, x1 = PSTATE there, x2 and x3 = R0 and R1. Returns x0 = ESR_EL1, x1 = R1, x2 = R2.
narrow_enter:
    // After AArch32 the upper halves of all of these may be zero (DDI 0487, on the registers of the two states).
    stp     x29, x30, [sp, #-16]!
    stp     x27, x28, [sp, #-16]!
    stp     x25, x26, [sp, #-16]!
    stp     x23, x24, [sp, #-16]!
    stp     x21, x22, [sp, #-16]!
    stp     x19, x20, [sp, #-16]!
    mrs     x9, vbar_el1
    str     x9, [sp, #-16]!
    adr     x9, narrow_vectors
    msr     vbar_el1, x9
    msr     elr_el1, x0
    msr     spsr_el1, x1
    mov     x0, x2
    mov     x1, x3
    mov     x2, #0
    isb
    eret
narrow_back:
    mrs     x0, esr_el1
    ldr     x9, [sp], #16
    msr     vbar_el1, x9
    isb
    ldp     x19, x20, [sp], #16
    ldp     x21, x22, [sp], #16
    ldp     x23, x24, [sp], #16
    ldp     x25, x26, [sp], #16
    ldp     x27, x28, [sp], #16
    ldp     x29, x30, [sp], #16
    ret

.balign 0x800
narrow_vectors:
    .rept 12
    .balign 0x80
    b       .
    .endr
    .balign 0x80
    b       narrow_back                 // from AArch32: a synchronous exception
    .balign 0x80
    b       .
    .balign 0x80
"#
);

unsafe extern "C" {
    fn narrow_enter();
}

/// Whether EL0 can be in AArch32.
#[must_use]
pub fn is_there() -> bool {
    mrs!("s3_0_c0_c4_0") & 0xf == 2
}

/// Runs the program at `at` with these R0 and R1 until it takes an exception; returns ESR_EL1, R1 and R2.
///
/// It has to end in an SVC, be mapped for EL0 and access nothing that Rust uses.
#[must_use]
pub fn run(at: u64, pstate: u64, r0: u64, r1: u64) -> (u64, u64, u64) {
    let (esr, one, two);
    // SAFETY: the program ends in an exception, whose vector restores stack, vectors and what the caller keeps.
    unsafe {
        asm!("blr {enter}", enter = in(reg) narrow_enter as *const () as u64, inout("x0") at => esr,
             inout("x1") pstate => one, inout("x2") r0 => two, inout("x3") r1 => _, out("x30") _, clobber_abi("C"))
    };
    (esr, one, two)
}
