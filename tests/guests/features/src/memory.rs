//! Loads and stores to an emulated device in forms that have no syndrome, and to addresses without memory.
//!
//! The device is the PL011, whose baud rate divisors (IBRD at 0x24, FBRD at 0x28) keep what is written.

use crate::guest::{check, equal};
use core::arch::asm;
use guest_rt::console::PL011;
use guest_rt::exception::{Outcome, probe};
use guest_rt::mmio::{read32, write32};

const IBRD: u64 = PL011 + 0x24;
const FBRD: u64 = PL011 + 0x28;
/// An address at which the board has nothing.
const NOWHERE: u64 = 0x3f80_0000;
/// DFSC: a synchronous external abort.
const EXTERNAL: u8 = 0x10;

macro_rules! access {
    ($($code:literal),*; $($operands:tt)*) => {
        // SAFETY: IBRD and FBRD keep what is written; nothing is printed meanwhile.
        unsafe { asm!($($code),*, $($operands)*, options(nostack)) }
    };
}

pub fn run() {
    let was = (read32(IBRD), read32(FBRD));
    pairs();
    writeback();
    sizes();
    refused();
    write32(IBRD, was.0);
    write32(FBRD, was.1);
    nowhere();
}

fn set(ibrd: u32, fbrd: u32) {
    write32(IBRD, ibrd);
    write32(FBRD, fbrd);
}

fn pairs() {
    set(0, 0);
    access!("stp {a:w}, {b:w}, [{at}]"; a = in(reg) 0x1234, b = in(reg) 0x15, at = in(reg) IBRD);
    equal("mmio-stp", (read32(IBRD), read32(FBRD)), (0x1234, 0x15));
    let (a, b): (u64, u64);
    access!("ldp {a:w}, {b:w}, [{at}]"; a = lateout(reg) a, b = lateout(reg) b, at = in(reg) IBRD);
    equal("mmio-ldp", (a, b), (0x1234, 0x15));
    let (a, b): (u64, u64);
    let mut at = IBRD - 8;
    access!("ldp {a:w}, {b:w}, [{at}, #8]!"; a = out(reg) a, b = out(reg) b, at = inout(reg) at);
    equal("mmio-ldp-pre", (a, b, at), (0x1234, 0x15, IBRD));
    access!("stp {a:w}, {b:w}, [{at}], #-16"; a = in(reg) 0x4321, b = in(reg) 0x2a, at = inout(reg) at);
    equal("mmio-stp-post", (read32(IBRD), read32(FBRD), at), (0x4321, 0x2a, IBRD - 16));
    let (a, b): (u64, u64);
    access!("ldpsw {a}, {b}, [{at}]"; a = lateout(reg) a, b = lateout(reg) b, at = in(reg) IBRD);
    equal("mmio-ldpsw", (a, b), (0x4321, 0x2a));
}

fn writeback() {
    set(0x1111, 0x11);
    let value: u64;
    let mut at = IBRD - 4;
    access!("ldr {v:w}, [{at}, #4]!"; v = out(reg) value, at = inout(reg) at);
    equal("mmio-ldr-pre", (value, at), (0x1111, IBRD));
    let value: u64;
    access!("ldr {v:w}, [{at}], #4"; v = out(reg) value, at = inout(reg) at);
    equal("mmio-ldr-post", (value, at), (0x1111, FBRD));
    access!("str {v:w}, [{at}], #-4"; v = in(reg) 0x3f, at = inout(reg) at);
    equal("mmio-str-post", (read32(FBRD), at), (0x3f, IBRD));
    access!("str {v:w}, [{at}, #4]!"; v = in(reg) 0x05, at = inout(reg) at);
    equal("mmio-str-pre", (read32(FBRD), at), (0x05, FBRD));
    let value: u64;
    let mut at = IBRD;
    access!("ldrb {v:w}, [{at}], #1"; v = out(reg) value, at = inout(reg) at);
    equal("mmio-ldrb-post", (value, at), (0x11, IBRD + 1));
    // With the stack pointer as base, which assembly code may use.
    let value: u64;
    access!("mov {s}, sp", "mov sp, {at}", "ldr {v:w}, [sp], #16", "mov {e}, sp", "mov sp, {s}";
            s = out(reg) _, e = out(reg) at, v = out(reg) value, at = inout(reg) (PL011 + 0x20) => _);
    equal("mmio-ldr-sp-post", (value, at), (0, PL011 + 0x30));
}

fn sizes() {
    set(0x9234, 0x15);
    let value: u64;
    access!("ldrsh {v}, [{at}]"; v = lateout(reg) value, at = in(reg) IBRD);
    equal("mmio-ldrsh", value, 0xffff_ffff_ffff_9234);
    let value: u64;
    access!("ldrsh {v:w}, [{at}]"; v = lateout(reg) value, at = in(reg) IBRD);
    equal("mmio-ldrsh-w", value, 0xffff_9234);
    let value: u64;
    access!("ldrh {v:w}, [{at}]"; v = lateout(reg) value, at = in(reg) IBRD);
    equal("mmio-ldrh", value, 0x9234);
    let value: u64;
    access!("ldur {v:w}, [{at}, #-3]"; v = lateout(reg) value, at = in(reg) IBRD + 3);
    equal("mmio-ldur", value, 0x9234);
    let value: u64;
    access!("ldar {v:w}, [{at}]"; v = lateout(reg) value, at = in(reg) IBRD);
    equal("mmio-ldar", value, 0x9234);
    access!("stlr {v:w}, [{at}]"; v = in(reg) 0x77, at = in(reg) IBRD);
    equal("mmio-stlr", read32(IBRD), 0x77);
    access!("str wzr, [{at}]"; at = in(reg) IBRD);
    equal("mmio-str-wzr", read32(IBRD), 0);
    access!("str {v:w}, [{at}, {i:w}, uxtw #2]"; v = in(reg) 0x88, at = in(reg) PL011, i = in(reg) 9);
    equal("mmio-str-index", read32(IBRD), 0x88);
}

/// Forms that EL2 does not emulate give the guest a data abort with the address.
fn refused() {
    let abort = Outcome::DataAbort { status: EXTERNAL, far: IBRD };
    // Aligned, as Device memory requires.
    let at = PL011 + 0x20;
    let aligned = Outcome::DataAbort { status: EXTERNAL, far: at };
    // ldr q0, [x0]
    equal("mmio-simd-aborts", probe(|| access!(".inst 0x3dc00000"; in("x0") at)), aligned);
    // ldp d0, d1, [x0]
    equal("mmio-simd-pair-aborts", probe(|| access!(".inst 0x6d400400"; in("x0") at)), aligned);
    // ldxr w1, [x0]
    equal("mmio-exclusive-aborts", probe(|| access!(".inst 0x885f7c01"; in("x0") IBRD, out("x1") _)), abort);
    if guest_rt::mrs!("s3_0_c0_c6_0") >> 20 & 0xf != 0 {
        // ldadd w1, w2, [x0]
        let atomic = probe(|| access!(".inst 0xb8210002"; in("x0") IBRD, in("x1") 1, out("x2") _));
        equal("mmio-atomic-aborts", atomic, abort);
    }
}

fn nowhere() {
    let abort = |far| Outcome::DataAbort { status: EXTERNAL, far };
    equal("nowhere-load-aborts", probe(|| _ = read32(NOWHERE + 0x124)), abort(NOWHERE + 0x124));
    equal("nowhere-store-aborts", probe(|| write32(NOWHERE + 0xffc, 1)), abort(NOWHERE + 0xffc));
    let pair = probe(|| access!("ldp {a}, {b}, [{at}]"; a = out(reg) _, b = out(reg) _, at = in(reg) NOWHERE));
    equal("nowhere-pair-aborts", pair, abort(NOWHERE));
    let far_away = 0x3f_ffff_f000u64;
    equal("far-away-load-aborts", probe(|| _ = read32(far_away)), abort(far_away));
    // An instruction fetch from there aborts, too.
    let fetch = probe(|| {
        // SAFETY: the handler returns to the link register.
        unsafe { asm!("blr {}", in(reg) NOWHERE, out("x30") _, clobber_abi("C")) };
    });
    let good = matches!(fetch, Outcome::InstructionAbort { .. });
    check("nowhere-fetch-aborts", good, format_args!("result {fetch:x?}"));
}
