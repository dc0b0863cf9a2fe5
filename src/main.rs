//! The image.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("doorward runs at EL2: build it with `cargo xtask build`");
}
