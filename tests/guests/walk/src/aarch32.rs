//! Accesses from AArch32 at EL0.

use crate::map::{self, DEVICE, EL0, NORMAL, Table};
use core::arch::{asm, global_asm};
use guest_rt::{gic, mmio, mrs};

/// The GiB with the windows to the code and to the devices. Its addresses have 32 bits.
const GIB: u64 = 3;
const CODE: u64 = GIB << 30;
const DEVICES: u64 = CODE + map::BLOCK;

const GICD_TYPER: u64 = 0x4;
const SVC: u64 = 0x11;
const DATA_ABORT: u64 = 0x24;
const EXTERNAL: u64 = 0x10;

static MIDDLE: Table = Table::new();

global_asm!(
    r#"
.section .text.narrow, "ax"
// x0 = where to go on, x1 = PSTATE there, x2 and x3 = R0 and R1. Returns x0 = ESR_EL1, x1 = R1, x2 = R2.
narrow_enter:
    stp     x29, x30, [sp, #-16]!
    mrs     x9, vbar_el1
    stp     x9, x19, [sp, #-16]!
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
    ldp     x9, x19, [sp], #16
    msr     vbar_el1, x9
    isb
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

// T32. The four bytes of the first are `ldtr w2, [x1, #12]` in A64.
.balign 64
narrow_code:
    .hword  0xc822                      // ldmia r0!, {{r1, r5}}
    .hword  0xb840
    .hword  0xdf00                      // svc #0
.balign 64
    .hword  0x4280                      // cmp r0, r0
    .hword  0xbf0c                      // ite eq
    .hword  0x6801                      // ldreq r1, [r0]
    .hword  0x3201                      // addne r2, #1
    .hword  0xdf00                      // svc #0
.balign 64
    .hword  0xb658                      // setend be
    .hword  0x6801                      // ldr r1, [r0]
    .hword  0xdf00                      // svc #0
"#
);

unsafe extern "C" {
    fn narrow_enter();
    static narrow_code: u8;
}

/// Runs one of the programs, 64 bytes apart, with these R0 and R1; returns ESR_EL1, R1 and R2 at its end.
fn program(index: u64, r0: u64, r1: u64) -> (u64, u64, u64) {
    // User mode, T32, interrupts masked.
    const PSTATE: u64 = 0x1f0;
    let code = (&raw const narrow_code) as u64;
    let at = CODE + code % map::BLOCK + 64 * index;
    let (esr, one, two);
    // SAFETY: the program ends in an exception, whose vector restores stack and vectors. AArch32 has X0 to X14 alone.
    unsafe {
        asm!("blr {enter}", enter = in(reg) narrow_enter as *const () as u64, inout("x0") at => esr,
             inout("x1") PSTATE => one, inout("x2") r0 => two, inout("x3") r1 => _, out("x30") _, clobber_abi("C"))
    };
    (esr, one, two)
}

/// Returns the number of programs that ran.
pub fn run() -> Result<usize, &'static str> {
    if mrs!("s3_0_c0_c4_0") & 0xf != 2 {
        return Ok(0);
    }
    MIDDLE.set(0, (&raw const narrow_code) as u64, NORMAL | EL0);
    MIDDLE.set(1, gic::GICD, DEVICE | EL0);
    map::install(GIB, &MIDDLE);
    let (esr, r1, r2) = program(0, DEVICES, DEVICES - 12);
    if (esr >> 26 & 0x3f, esr & 0x3f) != (DATA_ABORT, EXTERNAL) || (r1, r2) != (DEVICES - 12, 0) {
        guest_rt::say!("GUEST NOTE walk: esr {esr:#x} r1 {r1:#x} r2 {r2:#x}");
        return Err("a multiple load from AArch32 is no data abort");
    }
    let typer = mmio::read32(gic::GICD + GICD_TYPER);
    let (esr, r1, r2) = program(1, DEVICES + GICD_TYPER, 0);
    if esr >> 26 != SVC || (r1, r2) != (u64::from(typer), 0) {
        guest_rt::say!("GUEST NOTE walk: esr {esr:#x} r1 {r1:#x} r2 {r2:#x} typer {typer:#x}");
        return Err("a load in an IT block");
    }
    let (esr, r1, _) = program(2, DEVICES + GICD_TYPER, 0);
    if esr >> 26 != SVC || r1 != u64::from(typer.swap_bytes()) {
        guest_rt::say!("GUEST NOTE walk: esr {esr:#x} r1 {r1:#x} typer {typer:#x}");
        return Err("a big-endian load from AArch32");
    }
    Ok(3)
}
