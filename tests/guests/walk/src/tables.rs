//! Accesses by an instruction whose table has just been broken.

use crate::map::{self, NORMAL, TABLE, Table, root_entry};
use core::arch::{asm, global_asm};
use guest_rt::exception::{Outcome, probe};
use guest_rt::{gic, mmio, say};

/// The GiB at which the instruction has its second address.
const GIB: u64 = 64;

const ECAM: u64 = 0x40_1000_0000;
/// The address that the BAR gets if no firmware has assigned it one: the first of the window below 4 GiB.
const BAR: u32 = 0x1000_0000;
const XHCI: u32 = 0x000d_1b36;
const COMMAND: u64 = 0x04;
const MEMORY_SPACE: u32 = 1 << 1;

/// Fault status codes: a translation fault, and an external abort on a walk, at any level.
const TRANSLATION: u8 = 0x04;
const EXTERNAL_ON_WALK: u8 = 0x14;

static MIDDLE: Table = Table::new();

global_asm!(
    r#"
.section .text.walk, "ax"
.balign 64
// x0 = a descriptor's address, x1 = what to write there, x2 = a register of a device.
walk_break_and_load:
    str     x1, [x0]
    dsb     ishst
    ldr     w3, [x2], #4
    ret
"#
);

unsafe extern "C" {
    fn walk_break_and_load();
}

/// Returns the address of the xHCI's registers.
fn xhci() -> Option<u64> {
    let function = (0..32).map(|device| ECAM + (device << 15)).find(|&at| mmio::read32(at) == XHCI)?;
    if mmio::read32(function + 0x10) & !0xf == 0 {
        mmio::write32(function + 0x10, BAR);
        mmio::write32(function + 0x14, 0);
    }
    mmio::write32(function + COMMAND, mmio::read32(function + COMMAND) | MEMORY_SPACE);
    Some(u64::from(mmio::read32(function + 0x10) & !0xf) | u64::from(mmio::read32(function + 0x14)) << 32)
}

/// Breaks the instruction's table and executes the instruction.
fn access_after(entry: u64) -> Outcome {
    let code = walk_break_and_load as *const () as u64;
    MIDDLE.set(0, code, NORMAL);
    map::install(GIB, &MIDDLE);
    let at = (GIB << 30) + code % map::BLOCK;
    let outcome = probe(|| {
        // SAFETY: two stores and a load that are the test; after an abort of the fetch the handler returns to the caller, which
        // another descriptor maps.
        unsafe {
            asm!("blr {at}", at = in(reg) at, in("x0") root_entry(GIB), in("x1") entry, in("x2") gic::GICD,
                 out("x30") _, clobber_abi("C"))
        };
    });
    map::install(GIB, &MIDDLE);
    outcome
}

/// Returns the number of tables that were tried.
pub fn run() -> Result<usize, &'static str> {
    let bar = xhci().ok_or("no qemu-xhci")?;
    let own = walk_break_and_load as *const () as u64;
    let tables = [
        ("a BAR that answers no walk", bar | TABLE, EXTERNAL_ON_WALK),
        ("a hole", 0x0b00_0000 | TABLE, EXTERNAL_ON_WALK),
        ("configuration space", ECAM | TABLE, EXTERNAL_ON_WALK),
        ("an emulated device", gic::GICD | TABLE, EXTERNAL_ON_WALK),
        ("a redistributor", gic::GICD + 0xa_0000 | TABLE, EXTERNAL_ON_WALK),
        ("the console", 0x0900_0000 | TABLE, EXTERNAL_ON_WALK),
        ("above all memory", 0x30_0000_0000 | TABLE, EXTERNAL_ON_WALK),
        ("nowhere", 0, TRANSLATION),
        ("memory that may not be executed", own & !0x3fff_ffff | NORMAL | 1 << 53, 0x0c),
    ];
    for (name, entry, expected) in tables {
        let outcome = access_after(entry);
        say!("GUEST NOTE walk: {name}: {outcome:?}");
        match outcome {
            Outcome::InstructionAbort { status } if status & !3 == expected => {}
            _ => return Err(name),
        }
    }
    // Only the translation was missing: with it, the access is made.
    match access_after(MIDDLE.address() | TABLE) {
        Outcome::Ran => Ok(tables.len()),
        _ => Err("the tables are whole"),
    }
}
