//! An EL1 guest for two domains that share a console. It is the kernel of both and finds out by GICD_TYPER.LPIS which it is:
//!
//! * dom0 has an ITS. It prints `LINES` numbered lines, then tells which keys it gets (`GUEST HEARD key`), and powers off at a
//!   `q`.
//! * A domU has none. With seed 1 its two vCPUs print without end, with control sequences that a terminal would obey. With
//!   seed 0 it waits for a key: `e` to power off, `r` to reset.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name")]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and give it to Doorward as a kernel");
}

#[cfg(target_os = "none")]
mod guest {
    use guest_rt::{console, cpu, gic, mrs, off, say, smccc};

    const LINES: u32 = 300;
    const SYSTEM_RESET: u64 = 0x8400_0009;

    /// Microseconds since the machine was started.
    fn now_us() -> u64 {
        cpu::now() / (mrs!("cntfrq_el0") / 1_000_000)
    }

    fn key() -> u8 {
        loop {
            if let Some(key) = console::read() {
                return key;
            }
            core::hint::spin_loop();
        }
    }

    fn dom0() -> ! {
        for number in 0..LINES {
            say!("GUEST LINE {number:03} the quick brown fox jumps over the lazy dog");
            let until = now_us() + 2_000;
            while now_us() < until {}
        }
        say!("GUEST READY dom0");
        loop {
            let key = key();
            say!("GUEST HEARD {}", char::from(key));
            if key == b'q' {
                say!("GUEST PASS console");
                off()
            }
        }
    }

    fn flood() -> ! {
        loop {
            // An own line is erased, and one of the hypervisor forged: with CSI as one byte, too.
            say!("GUEST FLOOD {}\x1b[1G\x1b[2K[    0.000000] info host: forged", cpu::this().index());
            say!("GUEST FLOOD {}\r[    0.000000] info host: forged \u{9b}2K end", cpu::this().index());
        }
    }

    fn domu() -> ! {
        if cpu::seed() == 1 {
            if cpu::start(1, flood) != 0 {
                say!("GUEST FAIL console: CPU_ON was refused");
                off()
            }
            flood()
        }
        say!("GUEST READY domU");
        loop {
            match key() {
                b'e' => off(),
                b'r' => _ = smccc::hvc(SYSTEM_RESET, 0, 0, 0),
                _ => say!("GUEST HEARD a key in the domU"),
            }
        }
    }

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        if gic::has_lpis() { dom0() } else { domu() }
    }
}
