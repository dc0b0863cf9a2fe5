//! `setup`: what is missing on this machine, and nothing else.
//!
//! Rust targets come by rustup and QEMU by apt, as a person would install them. Everything that runs inside QEMU (a kernel,
//! busybox, fio with its libraries) is Debian's arm64, fetched with an apt state of our own, so that the host never learns a
//! foreign architecture. From these the initramfs and a disk of known content are made here, byte for byte the same each time.
//! A complete set-up is recognised in well under a second.

mod apt;
mod disk;
mod initramfs;
mod packages;
mod qemu;
pub mod tools;

use std::fs::File;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::fail::{Doing, Outcome};
use crate::{paths, sh};

/// What `rustup` must have beside the host: the hypervisor's target, and static tools for the guest.
const TARGETS: [&str; 2] = ["aarch64-unknown-none-softfloat", "aarch64-unknown-linux-musl"];

/// Install what is missing: Rust targets, QEMU, a Linux to run, a disk
#[derive(clap::Args)]
#[command(after_help = "\
Every other verb does this by itself when it needs it.
Prints each step that there is something to do for; a complete set-up is recognised in well under a second.
QEMU is installed by apt as root (or by sudo). Everything else goes to .cache/ or $DOORWARD_CACHE, and target/.
Environment: DOORWARD_DEBIAN_MIRROR names the Debian mirror (default: the one that this host uses).")]
pub struct Options {}

/// The verb.
pub fn verb(_: &Options) -> Outcome {
    ensure()?;
    println!("QEMU, Linux, initramfs and disk are ready ({})", paths::cache().display());
    Ok(())
}

/// What `run` and `test` call first: the same steps, silent when all is there.
pub fn ensure() -> Outcome {
    let cache = paths::cache();
    std::fs::create_dir_all(&cache).doing(format_args!("creating {}", cache.display()))?;
    // Several checkouts may share one cache, and several runs one checkout.
    let lock = File::create(cache.join("lock")).doing("creating the cache's lock")?;
    lock.lock().doing("locking the cache")?;

    rust_targets()?;
    qemu::ensure()?;
    packages::ensure()?;
    disk::ensure()?;
    initramfs::ensure()
}

/// Rust's target libraries. Without rustup they are the distribution's business, and the build will name what is missing.
pub fn rust_targets() -> Outcome {
    if !sh::has("rustup") {
        return Ok(());
    }
    let sysroot = sh::quiet(Command::new("rustc").args(["--print", "sysroot"]).current_dir(paths::root()))?;
    let have = |target: &str| Path::new(sysroot.trim()).join("lib/rustlib").join(target).join("lib").is_dir();
    for target in TARGETS.into_iter().filter(|target| !have(target)) {
        sh::say(format_args!("adding the Rust target {target}"));
        sh::retried(&format!("rustup target add {target}"), || {
            let mut command = Command::new("rustup");
            command.args(["target", "add", target]).current_dir(paths::root());
            command
        })?;
    }
    Ok(())
}

/// A stamp file says which inputs a product was made from.
struct Stamp {
    path: std::path::PathBuf,
    want: String,
}

impl Stamp {
    /// The stamp beside `product`, for a product made from `inputs`.
    fn new(product: &Path, inputs: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for input in inputs {
            hash.update((input.len() as u64).to_le_bytes());
            hash.update(input);
        }
        let name = format!("{}.stamp", product.file_name().unwrap_or_default().to_string_lossy());
        Self { path: product.with_file_name(name), want: hex(&hash.finalize()) }
    }

    /// Was the product made from these inputs?
    fn fresh(&self) -> bool {
        std::fs::read_to_string(&self.path).is_ok_and(|have| have.trim() == self.want)
    }

    /// Says that it now is.
    fn set(&self) -> Outcome {
        std::fs::write(&self.path, &self.want).doing(format_args!("writing {}", self.path.display()))
    }
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
