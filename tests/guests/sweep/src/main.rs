//! An EL1 guest that maps and unmaps devices on its ITS, one after the other, over all DeviceIDs, as often as a byte is typed.
//! Whoever watches compares the hypervisor's free memory between two sweeps.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and boot it as a domain's kernel under Doorward");
}

#[cfg(target_os = "none")]
mod guest {
    use guest_rt::its::{Its, Table, map_device};
    use guest_rt::{console, off, say};

    /// The distance of two DeviceIDs: less than those of a PCI bus, and than the entries of any page of a device table.
    const STEP: u32 = 64;
    /// The DeviceIDs of QEMU's ITS.
    const DEVICES: u32 = 0x1_0000;
    const SWEEPS: u32 = 2;

    const RING: usize = 0x1_0000;
    /// Commands in a full ring.
    const COMMANDS: u32 = RING as u32 / 32 - 1;
    static QUEUE: Table<RING> = Table::new();
    static EVENTS: Table<0x1_0000> = Table::new();

    /// Maps and unmaps each device, as many by each store to GITS_CWRITER as the ring has room for.
    fn sweep(its: &mut Its) {
        let commands = 2 * DEVICES / STEP;
        let mut first = 0;
        while first < commands {
            its.fill_from_here(|slot| {
                let n = first + slot as u32;
                let device = n / 2 * STEP % DEVICES;
                map_device(device, 1, (n % 2 == 0).then_some(EVENTS.address()))
            });
            let _ = its.execute_full_ring();
            first += COMMANDS;
        }
    }

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        let mut its = Its::with_ring(&QUEUE);
        for n in 0..=SWEEPS {
            say!("GUEST NOTE sweep: {n} done");
            while console::read().is_none() {}
            if n < SWEEPS {
                sweep(&mut its);
            }
        }
        say!("GUEST PASS sweep");
        off()
    }
}
