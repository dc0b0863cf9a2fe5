//! `dw`: the program with which dom0 manages domains, static for arm64 Linux.
//!
//! It is built by cargo with the linker and the C library of Rust's toolchain (`.cargo/config.toml`), so nothing but the Rust
//! target is needed. The initramfs has it; a stamp of its sources keeps cargo out of set-ups that are complete.

use std::path::PathBuf;
use std::process::Command;

use super::initramfs;
use crate::fail::{Doing, Outcome};
use crate::image::target_folder;
use crate::{paths, sh};

const TRIPLE: &str = "aarch64-unknown-linux-musl";
const PROFILE: &str = "tool";

/// Build dw, the program that manages domains from dom0: target/dw
#[derive(clap::Args)]
#[command(after_help = "\
It is a static program for arm64 Linux, described in docs/management.md. `setup` builds it,
too: in the initramfs of the tests it is /bin/dw. Prints its path and size.")]
pub struct Options {}

/// The verb.
pub fn verb(_: &Options) -> Outcome {
    super::rust_targets()?;
    let program = build()?;
    let size = std::fs::metadata(&program).doing("reading the size of dw")?.len();
    println!("{} ({} KiB)", program.display(), size.div_ceil(1024));
    Ok(())
}

/// All that the program is made from: its sources, and what cargo is told about them and the crates that they use.
pub fn inputs() -> Outcome<Vec<u8>> {
    let root = paths::root();
    let mut all = Vec::new();
    for folder in ["tools/dw/src", "tools/doorward-api/src"] {
        for (name, bytes) in initramfs::files(&root.join(folder))? {
            all.extend([name.as_bytes(), b"\0", &bytes.len().to_le_bytes(), &bytes].concat());
        }
    }
    let settings =
        ["Cargo.toml", "Cargo.lock", ".cargo/config.toml", "tools/dw/Cargo.toml", "tools/doorward-api/Cargo.toml"];
    for name in settings {
        all.extend(initramfs::read(&root.join(name))?);
    }
    Ok(all)
}

/// Builds it and returns its path.
pub fn build() -> Outcome<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "dw", "--bin", "dw", "--target", TRIPLE, "--profile", PROFILE]);
    sh::say("building dw");
    sh::shown_live(cargo.current_dir(paths::root()))?;
    let (built, program) = (target_folder().join(TRIPLE).join(PROFILE).join("dw"), paths::target().join("dw"));
    std::fs::copy(&built, &program).doing(format_args!("copying {}", built.display()))?;
    Ok(program)
}
