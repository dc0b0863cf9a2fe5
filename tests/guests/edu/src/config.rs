//! Random writes to the PCI bus of a domU: to all of its function's configuration space, and to where it has no function.
//!
//! Whether anything else of the machine has changed is for the harness to see.

use crate::attack::Attack;
use crate::device::Edu;
use crate::memory::Random;
use guest_rt::mmio::{read32, write8, write16, write32, write64};
use guest_rt::pci::{CAP_POWER, CONFIG, Host};
use guest_rt::{fdt, off, say};

/// Bytes of the bus.
const BUS: u64 = 256 * CONFIG;

/// Makes so many writes, then switches the device on again and checks that it works.
pub fn run(host: &Host, edu: &Edu, attack: &mut Attack, writes: u64) {
    let mut random = Random::new(fdt::argument("seed").unwrap_or(1) + 1);
    let own = edu.function.at - host.ecam;
    for n in 0..writes {
        // One in eight goes to another function, which is not there.
        let at = match random.below(8) {
            0 => random.below(BUS),
            _ => own + random.below(CONFIG),
        };
        let at = host.ecam + at;
        let value = random.next();
        match random.below(4) {
            0 => write8(at, value as u8),
            1 => write16(at & !1, value as u16),
            2 => write32(at & !3, value as u32),
            _ => write64(at & !7, value),
        }
        if n.is_multiple_of(64) && !edu.is_there() {
            say!("GUEST FAIL edu: after {n} writes its IDs are {:?}", edu.function.ids());
            off()
        }
    }
    for rid in 0..256 {
        let at = host.ecam + rid * CONFIG;
        if at != edu.function.at && read32(at) != u32::MAX {
            say!("GUEST FAIL edu: there is a function {:#x} at {rid:#x}", read32(at));
            off()
        }
    }
    if let Some(power) = edu.function.capability(CAP_POWER) {
        write16(power + 4, 0);
    }
    edu.switch_on();
    attack.works();
}
