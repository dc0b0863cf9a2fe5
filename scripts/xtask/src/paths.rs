//! Paths: the checkout, its `target/`, and the cache of what `setup` downloaded.

use std::path::{Path, PathBuf};

/// The root of the checkout that this binary was built from.
pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.ancestors().nth(2).expect("scripts/xtask is two below the root").to_owned()
}

/// The build folder of the checkout.
pub fn target() -> PathBuf {
    root().join("target")
}

/// The folder where `setup` keeps what it downloaded and made. `DOORWARD_CACHE` overrides it, so that checkouts can share one.
pub fn cache() -> PathBuf {
    match std::env::var_os("DOORWARD_CACHE") {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ => root().join(".cache"),
    }
}

/// The raw arm64 Image that `build` makes.
pub fn image() -> PathBuf {
    target().join("doorward.img")
}

/// The ELF file with symbols that `build` makes.
pub fn elf() -> PathBuf {
    target().join("doorward.elf")
}

/// The Linux kernel that `setup` downloaded.
pub fn linux() -> PathBuf {
    cache().join("linux/Image")
}

/// The UEFI firmware that `setup` downloaded: EDK2 for QEMU's `virt`.
pub fn firmware() -> PathBuf {
    cache().join("debian/qemu-efi-aarch64/usr/share/qemu-efi-aarch64/QEMU_EFI.fd")
}

/// The initramfs that `setup` made.
pub fn initramfs() -> PathBuf {
    target().join("guest/initramfs.cpio")
}

/// The NVMe disk of known content that `setup` made.
pub fn disk() -> PathBuf {
    cache().join("nvme.img")
}

/// The disk of other known content that `setup` made for domUs.
pub fn domu_disk() -> PathBuf {
    cache().join("nvme-domu.img")
}
