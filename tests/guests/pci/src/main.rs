//! An EL1 guest that tries to reach a PCI function that the hypervisor hides, behind a bridge on bus 0: it gives the bridge
//! other bus numbers by stores of every size, moves and closes its windows, resets what is behind it, and puts it to sleep.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and boot it as a domain's kernel under Doorward");
}

#[cfg(target_os = "none")]
mod guest {
    use guest_rt::mmio::{read32, write8, write16, write32};
    use guest_rt::{off, say};

    /// The ECAM of QEMU's `virt`.
    const ECAM: u64 = 0x40_1000_0000;
    const NOTHING: u32 = u32::MAX;
    const BUSES: u64 = 0x18;
    const WRITES: u32 = 5000;

    fn function(bus: u8, device: u8) -> u64 {
        ECAM + (u64::from(bus) << 20) + (u64::from(device) << 15)
    }

    /// The bridge on bus 0 that leads to another bus, and that bus.
    fn bridge() -> Option<(u64, u8)> {
        (0..32).map(|device| function(0, device)).find_map(|at| {
            let is_bridge = read32(at) != NOTHING && read32(at + 0xc) >> 16 & 0x7f == 1;
            let secondary = (read32(at + BUSES) >> 8) as u8;
            (is_bridge && secondary != 0).then_some((at, secondary))
        })
    }

    /// The bus on which something answers that should not.
    fn reached(bus: u8) -> Option<u8> {
        [bus, bus + 1, bus + 2, 0x80].into_iter().find(|&bus| (0..32).any(|n| read32(function(bus, n)) != NOTHING))
    }

    fn fail(what: &str, bus: u8) -> ! {
        say!("GUEST FAIL pci: {what}: a function answers on bus {bus}");
        off()
    }

    /// The offset of a capability.
    fn capability(at: u64, id: u8) -> Option<u64> {
        let mut next = read32(at + 0x34) as u8;
        while next >= 0x40 {
            let head = read32(at + u64::from(next));
            if head as u8 == id {
                return Some(u64::from(next));
            }
            next = (head >> 8) as u8;
        }
        None
    }

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        let Some((at, bus)) = bridge() else {
            say!("GUEST FAIL pci: there is no bridge with a bus");
            off()
        };
        say!("GUEST START pci bus={bus}");
        if let Some(bus) = reached(bus) {
            fail("at first", bus);
        }
        for other in [bus + 1, bus + 2, 0x80] {
            write32(at + BUSES, u32::from(other) << 16 | u32::from(other) << 8);
            if let Some(bus) = reached(bus) {
                fail("by 32 bits", bus);
            }
            write16(at + BUSES + 2, u16::from(other));
            write16(at + BUSES, u16::from(other) << 8);
            if let Some(bus) = reached(bus) {
                fail("by 16 bits", bus);
            }
            write8(at + BUSES + 2, other);
            write8(at + BUSES + 1, other);
            if let Some(bus) = reached(bus) {
                fail("by 8 bits", bus);
            }
        }
        let watched = [BUSES, 0x20, 0x24, 0x28, 0x2c];
        // The latency timer beside the bus numbers may be written.
        let read = |offset| read32(at + offset) & if offset == BUSES { 0x00ff_ffff } else { u32::MAX };
        let before = watched.map(read);
        for value in [0, 0x0000_fff0, 0x5550_4440] {
            (0x1c..0x30).step_by(4).for_each(|offset| write32(at + offset, value));
            // Bridge Control: Secondary Bus Reset.
            write16(at + 0x3e, 0x40);
            write16(at + 0x3e, 0);
            if let Some(power) = capability(at, 1) {
                write16(at + power + 4, 3);
                write16(at + power + 4, 0);
            }
        }
        // Writes of any value and size to what decides where accesses go, and to the rest of the header.
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..WRITES {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let (offset, value) = (0x18 + (random >> 8) % 0x28, (random >> 32) as u32);
            // The address of its ROM is the guest's to change.
            match random % 3 {
                _ if offset & !3 == 0x38 => {}
                0 => write8(at + offset, value as u8),
                1 => write16(at + (offset & !1), value as u16),
                _ => write32(at + (offset & !3), value),
            }
        }
        if let Some(bus) = reached(bus) {
            fail("by random writes", bus);
        }
        let after = watched.map(read);
        if before != after {
            say!("GUEST FAIL pci: buses and windows were {before:x?} and are {after:x?}");
            off()
        }
        // The rest of the bridge is the guest's.
        write8(at + 0x3c, 0x5a);
        if read32(at + 0x3c) as u8 != 0x5a {
            say!("GUEST FAIL pci: the interrupt line of the bridge is not kept");
            off()
        }
        say!("GUEST PASS pci");
        off()
    }
}
