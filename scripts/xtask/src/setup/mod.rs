//! `setup`: installs what is missing on this machine.
//!
//! Rust targets are installed by rustup and QEMU by apt. Everything that runs inside QEMU (a kernel, busybox, fio with its
//! libraries) is Debian's arm64, downloaded with an apt state in the cache, so that the host's apt needs no foreign architecture.
//! From these, the initramfs and a disk of known content are made, with the same bytes each time. A complete set-up is recognised
//! in well under a second. With `--gicv41` a QEMU with a GICv4.1 is built, too.

mod apt;
mod boards;
mod disk;
pub mod dw;
pub mod gicv41;
pub mod initramfs;
pub mod kvm;
mod packages;
mod qemu;
pub mod tools;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::fail::{Doing, Outcome};
use crate::{paths, sh};

/// Rust targets beside the host: that of the hypervisor, and that of the static tools for the guest.
const TARGETS: [&str; 2] = ["aarch64-unknown-none-softfloat", "aarch64-unknown-linux-musl"];

/// Install what is missing: Rust targets, QEMU, a Linux to run, a disk
#[derive(clap::Args)]
#[command(after_help = "\
Every other verb does this by itself when it needs it.
Prints each step that there is something to do for; a complete set-up is recognised in well under a second.
QEMU is installed by apt as root (or by sudo). Everything else goes to .cache/ or $DOORWARD_CACHE, and target/.
Environment: DOORWARD_DEBIAN_MIRROR names the Debian mirror (default: the one that this host uses).")]
pub struct Options {
    /// Also build QEMU with a GICv4.1 from Debian's source package (scripts/qemu-gicv41)
    #[arg(long)]
    gicv41: bool,
}

/// The verb.
pub fn verb(options: &Options) -> Outcome {
    ensure()?;
    println!("QEMU, Linux, initramfs and disk are ready ({})", paths::cache().display());
    if options.gicv41 {
        println!("QEMU with a GICv4.1 is ready ({})", ensure_gicv41()?.display());
    }
    Ok(())
}

/// Builds QEMU with a GICv4.1 if it is missing.
pub fn ensure_gicv41() -> Outcome<PathBuf> {
    // A lock of its own: the build takes minutes, in which other checkouts can use the cache.
    let _lock = lock("lock-gicv41")?;
    gicv41::ensure()
}

/// Downloads the device trees of Debian's newest kernel; returns their folder.
pub fn ensure_boards() -> Outcome<PathBuf> {
    let _lock = lock("lock-boards")?;
    boards::ensure()
}

/// Makes the initramfs of a Linux that runs a guest under KVM.
pub fn ensure_kvm() -> Outcome<PathBuf> {
    let _lock = lock("lock")?;
    kvm::ensure()
}

/// The same for a guest that does I/O to be counted.
pub fn ensure_kvm_counted() -> Outcome<PathBuf> {
    let _lock = lock("lock")?;
    kvm::ensure_counted()
}

/// Several checkouts may share one cache, and several runs one checkout.
fn lock(name: &str) -> Outcome<File> {
    let cache = paths::cache();
    std::fs::create_dir_all(&cache).doing(format_args!("creating {}", cache.display()))?;
    let lock = File::create(cache.join(name)).doing("creating the cache's lock")?;
    lock.lock().doing("locking the cache")?;
    Ok(lock)
}

/// Does all steps, as every verb that needs them does first. Prints nothing if nothing is missing.
pub fn ensure() -> Outcome {
    let _lock = lock("lock")?;

    rust_targets()?;
    qemu::ensure()?;
    packages::ensure()?;
    disk::ensure()?;
    initramfs::ensure()
}

/// Installs Rust's libraries for the targets. Without rustup the distribution has to provide them; a build reports what is missing.
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

/// A file beside a product with a hash of the inputs that it was made from.
struct Stamp {
    path: PathBuf,
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

    /// Whether the product was made from these inputs.
    fn fresh(&self) -> bool {
        std::fs::read_to_string(&self.path).is_ok_and(|have| have.trim() == self.want)
    }

    /// Records that it now is.
    fn set(&self) -> Outcome {
        std::fs::write(&self.path, &self.want).doing(format_args!("writing {}", self.path.display()))
    }
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
