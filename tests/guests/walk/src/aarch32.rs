//! Accesses from AArch32 at EL0.

use crate::map::{self, DEVICE, EL0, NORMAL, Table};
use core::arch::global_asm;
use guest_rt::{aarch32, gic, mmio};

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
.section .text.programs, "ax"
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
    static narrow_code: u8;
}

/// Runs one of the programs, 64 bytes apart, with these R0 and R1; returns ESR_EL1, R1 and R2 at its end.
fn program(index: u64, r0: u64, r1: u64) -> (u64, u64, u64) {
    let code = (&raw const narrow_code) as u64;
    aarch32::run(CODE + code % map::BLOCK + 64 * index, aarch32::T32, r0, r1)
}

/// Returns the number of programs that ran.
pub fn run() -> Result<usize, &'static str> {
    if !aarch32::is_there() {
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
