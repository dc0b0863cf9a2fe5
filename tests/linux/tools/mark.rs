//! `mark begin` and `mark end` make a supervisor call with an immediate that Linux ignores and that QEMU's exception log shows
//! (ESR 0x56004d01 and 0x56004d02). The marks bound the part of a run that `run --count-exits` counts.

use std::arch::asm;

fn main() {
    match std::env::args().nth(1).as_deref() {
        // SAFETY: Linux reads only x8; getpid (172) takes no arguments and changes only x0.
        Some("begin") => unsafe { asm!("svc #0x4d01", in("x8") 172, out("x0") _) },
        // SAFETY: as above.
        Some("end") => unsafe { asm!("svc #0x4d02", in("x8") 172, out("x0") _) },
        _ => {
            eprintln!("usage: mark begin|end");
            std::process::exit(2);
        }
    }
}
