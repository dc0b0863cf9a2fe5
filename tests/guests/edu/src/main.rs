//! An EL1 guest with QEMU's `edu` device, whose DMA engine it points at everything. It is the kernel of a domU or of dom0, or
//! with the word `witness` a domU without any device whose memory must not change meanwhile.
//!
//! It says `GUEST READY` and waits for a key. Then come `dmas=N` DMAs (see `attack.rs`) and `config=N` writes to its PCI bus (see
//! `config.rs`), and `GUEST DONE edu …` with what it has counted. After another key it says `GUEST PASS` and powers off; its memory
//! can be looked at until then. What is wrong it reports at once by `GUEST FAIL`. `seed=N` selects another sequence. With the
//! word `flood` it only has its device cut off, and begins anew.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name, and devices read and write its memory")]

#[cfg(target_os = "none")]
mod attack;
#[cfg(target_os = "none")]
mod config;
#[cfg(target_os = "none")]
mod device;
#[cfg(target_os = "none")]
mod memory;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and boot it as a domain's kernel under Doorward");
}

#[cfg(target_os = "none")]
mod guest {
    use crate::attack::Attack;
    use crate::device::{Edu, sleep_for};
    use crate::memory::{Random, witness};
    use guest_rt::{console, exception, fdt, gic, off, pci, say};

    /// Waits for a key.
    fn key() {
        while console::read().is_none() {
            sleep_for(100);
        }
        // What was typed with it.
        while console::read().is_some() {}
    }

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        exception::on_interrupt(crate::device::interrupt);
        gic::distributor_on();
        gic::cpu_on(1 << crate::device::TIMER);
        let mut random = Random::new(fdt::argument("seed").unwrap_or(1));
        if fdt::has("witness") {
            let memory = witness(&mut random);
            say!("GUEST READY witness");
            key();
            memory.check();
            say!("GUEST PASS witness");
            key();
            off()
        }
        let Some(host) = pci::Host::find() else {
            say!("GUEST FAIL edu: the device tree has no PCI host");
            off()
        };
        let edu = Edu::find(&host);
        let mut attack = Attack::new(edu, random);
        if fdt::has("flood") {
            attack.flood();
        }
        say!("GUEST READY edu");
        key();
        attack.run(fdt::argument("dmas").unwrap_or(1000));
        let writes = fdt::argument("config").unwrap_or(0);
        if writes != 0 {
            crate::config::run(&host, &edu, &mut attack, writes);
        }
        attack.done(writes);
        key();
        say!("GUEST PASS edu");
        off()
    }
}
