//! `mark begin` and `mark end`: a supervisor call with an immediate that Linux ignores and QEMU's exception log shows
//! (ESR 0x56004d01 and 0x56004d02), so that a counted stretch can be found from outside without a cost inside.

use std::arch::asm;

fn main() {
    match std::env::args().nth(1).as_deref() {
        // SAFETY: Linux looks at x8 only, and getpid (172) takes nothing and changes nothing but x0.
        Some("begin") => unsafe { asm!("svc #0x4d01", in("x8") 172, out("x0") _) },
        // SAFETY: as above.
        Some("end") => unsafe { asm!("svc #0x4d02", in("x8") 172, out("x0") _) },
        _ => {
            eprintln!("usage: mark begin|end");
            std::process::exit(2);
        }
    }
}
