//! Accesses by an instruction whose own tables have just been broken, without TLB maintenance.
//!
//! With a `qemu-xhci`, one of the devices does not answer a walk: its BAR refuses reads of eight bytes.
//!
//! Each vCPU has a GiB of the address space with a second address for the instruction. A broken table leads to a device, to a
//! hole or to the hypervisor's memory, or holds what translates nothing; none of them maps anything that could be executed.

use crate::guest::Dice;
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use guest_rt::exception::probe;
use guest_rt::{cpu, gic, mmio, mrs};

/// The first of the GiBs.
const GIB: u64 = 128;
/// A block of 2 MiB: Normal memory, accessed, inner shareable.
const BLOCK: u64 = 0x701;
const BLOCK_SIZE: u64 = 2 << 20;
const TABLE: u64 = 3;

#[repr(C, align(4096))]
struct Tables(UnsafeCell<[[u64; 512]; cpu::MAX]>);
// SAFETY: each vCPU has its own table.
unsafe impl Sync for Tables {}
static TABLES: Tables = Tables(UnsafeCell::new([[0; 512]; cpu::MAX]));

global_asm!(
    r#"
.macro walk_form load:vararg
    str     x1, [x0]
    dsb     ishst
    \load
    ret
.endm
.section .text.walk, "ax"
.balign 64
// x0 = a descriptor's address, x1 = what to write there, x2 = a register. 16 bytes for each form.
walk_forms:
    walk_form ldr w3, [x2], #4
    walk_form ldp w3, w4, [x2]
    walk_form str wzr, [x2, #4]!
    walk_form ldr w3, [x2]
"#
);
const FORMS: u64 = 4;

unsafe extern "C" {
    static walk_forms: u8;
}

const ECAM: u64 = 0x40_1000_0000;
/// The first address of the PCI window below 4 GiB.
const WINDOW: u64 = 0x1000_0000;
const XHCI: u32 = 0x000d_1b36;

/// Gives the BAR of a `qemu-xhci` an address, if there is one. It cannot access memory by itself.
pub(crate) fn prepare() {
    const MEMORY_SPACE: u32 = 1 << 1;
    for function in (0..32).map(|device| ECAM + (device << 15)) {
        let mut found = 0;
        // A domU has no PCI.
        probe(|| found = mmio::read32(function));
        if found == XHCI {
            mmio::write32(function + 0x10, WINDOW as u32);
            mmio::write32(function + 0x14, 0);
            mmio::write32(function + 0x04, MEMORY_SPACE);
        }
    }
}

/// A descriptor that does not lead to the instruction.
fn broken(dice: &mut Dice) -> u64 {
    match dice.below(8) {
        0 => dice.value() & !1,
        1 => gic::GICD + (dice.below(0x200) << 12) | TABLE,
        2 => WINDOW | TABLE,
        3 => ECAM + (dice.below(0x1_0000) << 12) | TABLE,
        4 => 0x0b00_0000 + (dice.below(0x100) << 12) | TABLE,
        // The hypervisor's image.
        5 => 0x4020_0000 + (dice.below(0x40) << 12) | TABLE,
        6 => 0x30_0000_0000 + (dice.below(0x1_0000) << 12) | TABLE,
        // Memory that may not be executed.
        _ => (dice.below(2) << 30) | BLOCK | 3 << 53,
    }
}

/// Breaks a table of one of the two levels and makes an access.
pub(crate) fn walk(dice: &mut Dice) {
    let index = cpu::this().index();
    let gib = GIB + index as u64;
    let code = (&raw const walk_forms) as u64;
    // SAFETY: the root has 512 descriptors, and this one is the vCPU's own.
    let root = unsafe { ((mrs!("ttbr0_el1") & 0xffff_ffff_f000) as *mut u64).add(gib as usize) };
    // SAFETY: as above.
    let middle = unsafe { TABLES.0.get().cast::<u64>().add(index * 512) };
    // SAFETY: both are the vCPU's own, and nothing is accessed through them.
    let whole = || unsafe {
        root.write_volatile(0);
        asm!("dsb ishst", "tlbi vmalle1", "dsb ish", "isb");
        middle.write_volatile(code & !(BLOCK_SIZE - 1) | BLOCK);
        root.write_volatile(middle as u64 | TABLE);
        asm!("dsb ishst", "isb");
    };
    whole();
    let victim = if dice.one_in(2) { root } else { middle };
    let entry = if dice.one_in(8) {
        if victim == root { middle as u64 | TABLE } else { code & !(BLOCK_SIZE - 1) | BLOCK }
    } else {
        broken(dice)
    };
    let at = (gib << 30) + code % BLOCK_SIZE + 16 * dice.below(FORMS);
    let register = gic::GICD + dice.of(&[0x4, 0x8, 0x80, 0x400, 0xffe8]);
    probe(|| {
        // SAFETY: the accesses are the test. After an abort of the fetch the handler returns to the caller.
        unsafe {
            asm!("blr {at}", at = in(reg) at, in("x0") victim, in("x1") entry, in("x2") register,
                 out("x30") _, clobber_abi("C"))
        };
    });
    whole();
}
