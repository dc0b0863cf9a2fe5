//! An EL1 guest that makes accesses to devices which no syndrome describes, so that the hypervisor has to find the instruction.
//!
//! `tables.rs` breaks the stage 1 table of the instruction first, without TLB maintenance, so that the CPU still executes it and
//! the hypervisor cannot translate its address: the table is at an address that does not answer, is a device, or is not the
//! guest's. `aarch32.rs` makes them from AArch32 at EL0, with an instruction whose word is a load of A64, too.
//!
//! It prints `GUEST PASS walk` at its end. It needs a `qemu-xhci`, whose BAR does not answer reads of eight bytes.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "page tables, and a change of the execution state")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and boot it as dom0's kernel under Doorward");
}

#[cfg(target_os = "none")]
mod aarch32;
#[cfg(target_os = "none")]
mod map;
#[cfg(target_os = "none")]
mod tables;

#[cfg(target_os = "none")]
mod guest {
    use guest_rt::{off, say};

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        say!("GUEST START walk");
        let broken = crate::tables::run();
        let narrow = crate::aarch32::run();
        match (broken, narrow) {
            (Ok(tables), Ok(narrow)) => say!("GUEST PASS walk tables={tables} aarch32={narrow}"),
            (Err(why), _) | (_, Err(why)) => say!("GUEST FAIL walk: {why}"),
        }
        off()
    }
}
