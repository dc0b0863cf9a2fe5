//! Sweeps over the DeviceIDs of the ITS: every device is mapped, and some of them are unmapped again.

use crate::guest::{Dice, write_command};
use guest_rt::exception::probe;
use guest_rt::its::{self, is_ring, map_device};
use guest_rt::mmio::{read64, write64};

/// One sweep is so many commands.
const COMMANDS: u64 = 64;

/// Maps and unmaps devices at a distance that reaches every bus, every page of a device table, or every device.
pub fn sweep(dice: &mut Dice) {
    let _ = probe(|| {
        let ring = read64(its::base() + 0x80);
        let at = ring & 0x000f_ffff_ffff_f000;
        let size = ((ring & 0xff) + 1) * 0x1000;
        let mut write = read64(its::base() + 0x88) & 0xf_ffe0;
        // Only into this guest's queue: another address may be the stack.
        if !is_ring(at) || size > 0x1_0000 || write >= size {
            return;
        }
        let step = [1, 0x100, 0x2000, 0x1_0001][dice.below(4) as usize];
        let first = dice.below(1 << 24) as u32;
        let keep = dice.one_in(2);
        for n in 0..COMMANDS as u32 / 2 {
            let device = first.wrapping_add(n * step) & if dice.one_in(8) { u32::MAX } else { 0xffff };
            let table = dice.below(1 << 40) & !0xff;
            let second = if keep { map_device(device ^ 1, 1, Some(table)) } else { map_device(device, 1, None) };
            for words in [map_device(device, 1, Some(table)), second] {
                write_command(at + write, words);
                write = (write + 32) % size;
            }
        }
        write64(its::base() + 0x88, write);
    });
}
