//! Programs that a single verb needs. That verb installs them, not `setup`.
//!
//! Programs built by cargo go into the cache in a fixed version, independent of those that the user has installed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use super::apt;
use crate::fail::{Failure, Outcome};
use crate::{paths, sh};

/// Installs valgrind from the distribution. Its counts do not depend on its version.
pub fn valgrind() -> Outcome {
    if sh::has("valgrind") {
        return Ok(());
    }
    if !sh::has("apt-get") {
        return Err(Failure::new("this system has no apt: install valgrind by its package manager"));
    }
    sh::say("installing valgrind");
    apt::host_get("apt-get update", &["update"])?;
    // Of the recommended packages only the C library's symbols, which some of its tools need.
    apt::host_get("installing valgrind", &["install", "--no-install-recommends", "valgrind", "libc6-dbg"])
}

/// Installs the program of `package` by cargo in exactly this version, and returns its path.
pub fn cargo(package: &str, version: &str) -> Outcome<PathBuf> {
    let program = bin().join(package);
    let installed = std::fs::read_to_string(folder().join(".crates.toml")).unwrap_or_default();
    if !program.is_file() || !installed.contains(&format!("\"{package} {version} ")) {
        sh::say(format_args!("building {package} {version}, which takes some minutes"));
        sh::retried(&format!("installing {package}"), || {
            let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            command.args(["install", "--locked", "--root"]).arg(folder());
            command.args(["--version", &format!("={version}"), package]).current_dir(paths::root());
            command
        })?;
    }
    Ok(program)
}

/// Installs Rust's nightly toolchain unless there is one.
pub fn nightly() -> Outcome {
    if has_nightly() {
        return Ok(());
    }
    if !sh::has("rustup") {
        return Err(Failure::new("this needs a nightly toolchain, and there is no rustup to get one"));
    }
    sh::say("installing Rust's nightly toolchain");
    sh::retried("rustup toolchain install nightly", || {
        let mut command = Command::new("rustup");
        command.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
        command
    })
    .map(drop)
}

/// Whether there is a nightly toolchain.
pub fn has_nightly() -> bool {
    let mut command = with_nightly();
    command.arg("--version").output().is_ok_and(|output| output.status.success())
}

/// `cargo +nightly`, with the programs of the cache on the PATH.
pub fn with_nightly() -> Command {
    let mut command = Command::new("cargo");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: OsString =
        std::env::join_paths([bin()].into_iter().chain(std::env::split_paths(&path))).unwrap_or(path.clone());
    command.arg("+nightly").current_dir(paths::root()).env("PATH", path);
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
    command
}

fn folder() -> PathBuf {
    paths::cache().join("tools")
}

fn bin() -> PathBuf {
    folder().join("bin")
}
