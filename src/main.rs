//! The image: says the order in which the machine comes up, and fills the tables that join rooms.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod boot;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("doorward runs at EL2: build it with `cargo xtask build`");
}

/// The boot CPU, with stage 1 on and the device tree mapped.
#[cfg(target_os = "none")]
fn start(fdt: &'static [u8]) -> ! {
    use doorward::console;
    console::line(format_args!("Doorward {}; device tree of {} bytes", env!("CARGO_PKG_VERSION"), fdt.len()));
    doorward::arch::barrier::park()
}
