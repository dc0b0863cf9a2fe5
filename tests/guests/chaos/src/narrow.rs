//! Accesses from AArch32 at EL0: A32 and T32, with and without a syndrome, in IT blocks, and big-endian.

use crate::guest::Dice;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};
use guest_rt::aarch32::{self, A32, T32};
use guest_rt::{cpu, mrs};

/// The GiB with the windows to the code and to the devices: its addresses have 32 bits.
const GIB: u64 = 3;
const BLOCK: u64 = 2 << 20;
const CODE: u64 = GIB << 30;
const DEVICES: u64 = CODE + BLOCK;
/// Descriptors: a block of Normal memory and of devices, both for EL0, and a table.
const NORMAL: u64 = 0x741;
const DEVICE: u64 = 0x745;
const TABLE: u64 = 3;
/// The block with the distributor, the ITS and the redistributors.
const GIC: u64 = 0x0800_0000;

/// The bytes of a program.
const LENGTH: usize = 64;

#[repr(C, align(4096))]
struct Window(UnsafeCell<[u64; 512]>);
// SAFETY: written by the first vCPU alone, before the others are started.
unsafe impl Sync for Window {}
static WINDOW: Window = Window(UnsafeCell::new([0; 512]));

#[repr(C, align(64))]
struct Programs(UnsafeCell<[[u8; LENGTH]; cpu::MAX]>);
// SAFETY: each vCPU uses its own element.
unsafe impl Sync for Programs {}
static PROGRAMS: Programs = Programs(UnsafeCell::new([[0; LENGTH]; cpu::MAX]));

static READY: AtomicBool = AtomicBool::new(false);

/// Maps the windows.
pub fn prepare() {
    if !aarch32::is_there() {
        return;
    }
    let window = WINDOW.0.get().cast::<u64>();
    // SAFETY: the first two descriptors of the window, and that of a GiB that nothing uses.
    unsafe {
        window.write_volatile(PROGRAMS.0.get() as u64 & !(BLOCK - 1) | NORMAL);
        window.add(1).write_volatile(GIC | DEVICE);
        let root = (mrs!("ttbr0_el1") & 0xffff_ffff_f000) as *mut u64;
        root.add(GIB as usize).write_volatile(0);
        asm!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb");
        root.add(GIB as usize).write_volatile(window as u64 | TABLE);
        asm!("dsb ishst", "isb");
    }
    READY.store(true, Ordering::Release);
}

/// A load or store of A32 from R0 or R1. It neither loads nor stores PC.
fn wide(dice: &mut Dice) -> u32 {
    let base = dice.below(2) << 16;
    let (register, offset) = (dice.below(15) << 12, dice.below(64));
    let word = match dice.below(6) {
        // LDR, LDRB, STR, STRB with an immediate, in each form.
        0 => 0x0400_0000 | dice.below(32) << 20 | base | register | offset << 2,
        // LDRH, STRH, LDRSB, LDRSH, LDRD, STRD.
        1 => {
            0x0040_0090
                | (dice.below(32) << 20 & !(1 << 22))
                | base
                | register & 0xe000
                | dice.below(4) << 5
                | offset & 0xf
        }
        // LDM, STM.
        2 | 3 => 0x0800_0000 | (dice.below(32) << 20 & !(1 << 22)) | base | dice.below(0x7fff),
        // LDREX, STREX.
        4 => 0x0180_0f90 | dice.below(2) << 20 | base | register | dice.below(8),
        // VLDR, VSTR, VLDM, VSTM.
        _ => 0x0c00_0a00 | (dice.below(32) << 20 & !(1 << 22)) | base | register | dice.below(2) << 8 | offset & 0xf,
    };
    // Now and then with another condition than AL.
    let condition = if dice.one_in(4) { dice.below(15) } else { 14 };
    word as u32 | (condition as u32) << 28
}

/// The same for T32, as one or two halfwords.
fn thumb(dice: &mut Dice) -> [u16; 2] {
    const NOP: u16 = 0xbf00;
    let (base, low, register) = (dice.below(2), dice.below(8), dice.below(13));
    let pair = match dice.below(6) {
        0 => [0x6000 | dice.below(0x2000 >> 6) << 6 | base << 3 | low, NOP.into()],
        1 => [0x8000 | dice.below(0x1000 >> 6) << 6 | base << 3 | low, NOP.into()],
        2 => [0xc000 | dice.below(2) << 11 | base << 8 | dice.below(0x100), NOP.into()],
        // LDM and STM, IA or DB.
        3 => [dice.of(&[0xe880, 0xe900]) | dice.below(4) << 4 | base, 3 | dice.below(0x2000)],
        // LDRD and STRD, with an index.
        4 => [0xe940 | dice.below(2) << 7 | dice.below(4) << 4 | base, register << 12 | 2 << 8 | dice.below(16)],
        // LDR and STR of all sizes, in each form.
        _ => [0xf800 | dice.below(8) << 4 & 0x70 | base, register << 12 | 0x800 | dice.below(8) << 8 | dice.below(64)],
    };
    pair.map(|half| half as u16)
}

/// Runs one such program.
pub fn act(dice: &mut Dice) {
    if !READY.load(Ordering::Acquire) {
        return;
    }
    let at = PROGRAMS.0.get() as u64 + (cpu::this().index() * LENGTH) as u64;
    let t32 = dice.one_in(2);
    let big_endian = dice.one_in(8);
    let mut halves = [0u16; LENGTH / 2];
    if t32 {
        halves.fill(0xdf00); // svc #0
        let before = match dice.below(8) {
            0 => 0xb658, // setend be
            // it; with a mask of 0 it would be a hint, such as WFI.
            1 => 0xbf00 | (dice.below(14) << 4 | dice.of(&[1, 2, 4, 8, 12])) as u16,
            _ => 0xbf00, // nop
        };
        halves[0] = before;
        [halves[1], halves[2]] = thumb(dice);
    } else {
        let mut words = [0xef00_0000u32; LENGTH / 4]; // svc #0
        words[0] = if big_endian { 0xf101_0200 } else { 0xe320_f000 }; // setend be, or nop
        words[1] = wide(dice);
        for (pair, word) in halves.chunks_exact_mut(2).zip(words) {
            pair.copy_from_slice(&[word as u16, (word >> 16) as u16]);
        }
    }
    // SAFETY: the vCPU's own program. It accesses devices alone, from R0 and R1, and all that follows the access ends it.
    unsafe {
        (at as *mut [u16; LENGTH / 2]).write_volatile(halves);
        asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", "dsb ish", "isb", in(reg) at);
    }
    // Off the ends of the window, which offsets reach.
    let mut register = || {
        let limit = if dice.one_in(2) { 0x1_0000 } else { BLOCK - 0x1000 };
        DEVICES + 0x400 + (dice.below(limit - 0x400) & !7)
    };
    let (r0, r1) = (register(), register());
    let _ = aarch32::run(CODE + at % BLOCK, if t32 { T32 } else { A32 }, r0, r1);
}
