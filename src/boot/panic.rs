//! The panic handler. It prints a record of bounded size directly to the UART, without taking the console's lock.
//!
//! ```text
//! doorward: panic: message at src/file.rs:12
//!   CPU2, image base 0x40201000, ESR 0x96000045, FAR 0x10, ELR 0x40203a10
//!   at 0x4020545c
//! ```
//!
//! `cargo xtask symbolize` turns the addresses into functions and lines.

use super::image;
use core::arch::asm;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};
use doorward::arch::sysreg::{ELR_EL2, ESR_EL2, FAR_EL2, Readable};
use doorward::arch::{barrier, percpu};
use doorward::console;
use doorward::gic::cpuif;

/// The largest number of frames in a backtrace.
const DEPTH: usize = 24;

/// Set by the first CPU that panics. The panics of other CPUs are most likely consequences and are not printed.
static PRINTED: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    super::efi::panicked(info);
    let this = percpu::this();
    if this.panicking.replace(true) || PRINTED.swap(true, Ordering::Relaxed) {
        barrier::park();
    }
    cpuif::stop_others();
    console::seize();
    match info.location() {
        Some(at) => console::line(format_args!("doorward: panic: {} at {}:{}", info.message(), at.file(), at.line())),
        None => console::line(format_args!("doorward: panic: {}", info.message())),
    }
    console::line(format_args!(
        "  {}, image base {:#x}, ESR {:#x}, FAR {:#x}, ELR {:#x}",
        percpu::cpu(),
        image::range().base.0,
        ESR_EL2.get(),
        FAR_EL2.get(),
        ELR_EL2.get(),
    ));
    if let Some(fault) = this.fault.get() {
        for (index, pair) in fault.x.chunks(2).enumerate() {
            let (first, second) = (2 * index, 2 * index + 1);
            match *pair {
                [a, b] => console::line(format_args!("  x{first:<2} {a:#018x}  x{second:<2} {b:#018x}")),
                [a] => console::line(format_args!("  x{first:<2} {a:#018x}  sp  {:#018x}", fault.sp)),
                _ => {}
            }
        }
    }
    backtrace();
    console::stop()
}

/// Prints the return addresses on this CPU's stack. An invalid frame pointer ends the backtrace, or causes an
/// exception, which parks a CPU that is already panicking.
fn backtrace() {
    let mut frame: *const [u64; 2];
    // SAFETY: the instruction only reads a register.
    unsafe { asm!("mov {}, x29", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    for _ in 0..DEPTH {
        if frame.is_null() || !frame.cast::<u128>().is_aligned() {
            break;
        }
        // SAFETY: all of EL2 is built with frame pointers, so this is a frame record. If the stack is corrupted, see
        // above.
        let [next, back] = unsafe { frame.read_volatile() };
        if back == 0 {
            break;
        }
        console::line(format_args!("  at {back:#x}"));
        frame = next as *const [u64; 2];
    }
}
