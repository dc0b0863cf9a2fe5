//! Acts that make EL2 work, or recall other vCPUs: GICD_CTLR.EnableGrp1 and GICR_CTLR.EnableLPIs off and on, floods of MAPD and
//! MAPC, and moves of GITS_CWRITER while another vCPU's commands are executed.

use super::{Dice, HAS_ITS, REDISTRIBUTORS, VCPUS, write_command};
use core::sync::atomic::Ordering;
use guest_rt::exception::probe;
use guest_rt::gic;
use guest_rt::its::{self, GITS};
use guest_rt::mmio::{read32, read64, write32, write64};

const CTLR: u64 = 0;
const ENABLE_GRP1: u32 = 1 << 1;
const ENABLE_LPIS: u32 = 1;
const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
/// Commands in one flood.
const FLOOD: u64 = 16;
const EVENT_BITS: u32 = 11;

/// Performs one of the acts.
pub fn act(dice: &mut Dice) {
    let _ = probe(|| match dice.below(if HAS_ITS.load(Ordering::Relaxed) { 5 } else { 2 }) {
        0 => toggle(gic::GICD + CTLR, ENABLE_GRP1),
        1 => {
            let n = dice.below(u64::from(VCPUS.load(Ordering::Relaxed))) as usize;
            toggle(REDISTRIBUTORS[n].load(Ordering::Relaxed) + CTLR, ENABLE_LPIS);
        }
        2 => flood(|n| its::map_device(n as u32 / 2 % 8, EVENT_BITS, (n % 2 == 0).then_some(0x4000_0000))),
        3 => flood(|n| its::map_collection(n as u16 % 4, (n % 2) << 16)),
        _ => {
            // Mostly within the queue, which may be short.
            let size = ((read64(GITS + CBASER) & 0xff) + 1) * 0x1000;
            let limit = if dice.one_in(8) { 0x1_0000 } else { size };
            write64(GITS + CWRITER, dice.below(limit) & !0x1f);
        }
    });
}

fn toggle(register: u64, bit: u32) {
    let before = read32(register);
    write32(register, before ^ bit);
    write32(register, before | bit);
}

/// Writes commands behind those that are in the queue, and passes them on by one store.
fn flood(command: impl Fn(u64) -> [u64; 4]) {
    let ring = read64(GITS + CBASER);
    let at = ring & 0x000f_ffff_ffff_f000;
    let size = ((ring & 0xff) + 1) * 0x1000;
    let mut write = read64(GITS + CWRITER) & 0xf_ffe0;
    if !its::is_ring(at) || size > 0x1_0000 || write >= size {
        return;
    }
    for n in 0..FLOOD {
        write_command(at + write, command(n));
        write = (write + 32) % size;
    }
    write64(GITS + CWRITER, write);
}
