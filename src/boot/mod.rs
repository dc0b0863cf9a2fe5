//! Entry and relocation: from the loader's first instruction to a CPU that runs ordinary Rust.
//!
//! [`head`] is the assembly. [`boot_cpu`] is the first Rust. Until it has switched stage 1 on there are no atomics
//! (beyond plain loads and stores), no locks and no log, and memory is Device: code is built strict-align.
#![allow(unsafe_code, reason = "this room is where there is no ground to stand on yet")]

mod early;
mod head;
mod panic;

use doorward::arch::{barrier, percpu};
use doorward::console::{self, onpanic, uart::Uart};
use doorward::ids::Pa;

unsafe extern "C" {
    static early_uart_kind: u64;
    static early_uart_base: u64;
    static __image_start: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __data_start: u8;
    static __stack_guard: u8;
    static __stack_bottom: u8;
    static __image_end: u8;
}

/// The first Rust on the boot CPU.
///
/// `fdt` is what the loader left in x0, `el` the exception level.
#[unsafe(no_mangle)]
extern "C" fn boot_cpu(fdt: u64, el: u64) -> ! {
    // SAFETY: constants in the image. Volatile, as somebody may have patched them after the compiler looked.
    let uart = unsafe {
        Uart::from_words((&raw const early_uart_kind).read_volatile(), (&raw const early_uart_base).read_volatile())
    };
    console::set_uart(uart);
    if el != 2 {
        console::set_onpanic(early::peek(Pa(fdt)));
        console::fatal(format_args!(
            "entered at EL{el}, but a hypervisor has to be entered at EL2 (on QEMU: -M virt,virtualization=on)"
        ));
    }
    percpu::init_boot();
    early::map_image(uart);
    let Some(fdt) = early::map_fdt(Pa(fdt)) else {
        console::fatal(format_args!("no device tree at {fdt:#x}, where x0 points"));
    };
    console::set_onpanic(onpanic::scan(fdt));
    barrier::isb();
    crate::start(fdt)
}
