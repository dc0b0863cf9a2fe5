//! The initramfs of a Linux that runs one guest under KVM, with the NVMe controller passed through: Debian's arm64 QEMU as the
//! virtual machine monitor, with its libraries, the modules of VFIO, and the guest's kernel and initramfs.
//!
//! Needed by one test alone, so its packages are not those of `setup`.

use std::path::PathBuf;

use super::initramfs::{Tree, read};
use super::{Stamp, apt, packages};
use crate::fail::{Doing, Outcome};
use crate::{paths, sh};

/// Has to be changed when this file makes something else.
const RECIPE: &[u8] = b"1";

const PACKAGE: &str = "qemu-system-arm";
const PROGRAM: &str = "usr/bin/qemu-system-aarch64";

const MODULES: [&str; 5] = ["vfio", "vfio_virqfd", "vfio_iommu_type1", "pci/vfio-pci-core", "pci/vfio-pci"];

/// Makes the initramfs if an input has changed. `setup` has been done, and the caller holds the cache's lock.
pub fn ensure() -> Outcome<PathBuf> {
    let folder = paths::cache().join("kvm");
    let stamp = Stamp::new(&folder, &[RECIPE]);
    if !stamp.fresh() || !folder.is_dir() {
        std::fs::create_dir_all(&folder).doing(format_args!("creating {}", folder.display()))?;
        let archive = apt::Archive::arm64()?;
        archive.fetch(&[PACKAGE.into()], &folder)?;
        packages::close_over(&archive, &folder, PACKAGE, PROGRAM)?;
        stamp.set()?;
    }

    let archive = paths::target().join("guest/kvm.cpio");
    let script = |name: &str| read(&paths::root().join("tests/kvm").join(name));
    let (host, guest) = (script("host")?, script("guest")?);
    let versions = [packages::versions()?, packages::versions_in(&folder)?].concat();
    let stamp = Stamp::new(&archive, &[RECIPE, &host, &guest, versions.as_bytes()]);
    if stamp.fresh() && archive.is_file() {
        return Ok(archive);
    }
    sh::say("making the initramfs of a KVM host");
    let mut tree = base(host)?;
    let program = folder.join(PACKAGE).join(PROGRAM);
    tree.libraries(packages::libraries_of(&folder, &program)?)?;
    tree.program("bin/qemu-system-aarch64", read(&program)?);
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        tree.file(&format!("modules/{name}.ko"), read(&packages::module(&format!("drivers/vfio/{module}.ko"))?)?);
    }
    tree.file("guest/Image", read(&paths::linux())?);
    tree.file("guest/initramfs.cpio", base(guest)?.pack());
    tree.write(&archive)?;
    stamp.set()?;
    Ok(archive)
}

/// The same with the tests' initramfs for the guest, which then does what `dw.test=` on the host's command line says.
pub fn ensure_counted() -> Outcome<PathBuf> {
    let host = read(&ensure()?)?;
    let archive = paths::target().join("guest/kvm-counted.cpio");
    let guest = read(&paths::initramfs())?;
    let stamp = Stamp::new(&archive, &[RECIPE, &host, &guest]);
    if stamp.fresh() && archive.is_file() {
        return Ok(archive);
    }
    sh::say("making the initramfs of a KVM host that is counted");
    let mut tree = Tree::default();
    tree.file("guest/test.cpio", guest);
    // Linux unpacks archives that follow each other.
    let bytes = [host, tree.pack()].concat();
    std::fs::write(&archive, bytes).doing(format_args!("writing {}", archive.display()))?;
    stamp.set()?;
    Ok(archive)
}

/// An initramfs with busybox and this `init`.
fn base(init: Vec<u8>) -> Outcome<Tree> {
    let mut tree = Tree::default();
    for name in ["proc", "sys", "dev", "tmp", "usr/sbin", "usr/bin", "sbin"] {
        tree.folder(name);
    }
    tree.device("dev/console", 5, 1);
    tree.program("bin/busybox", read(&packages::program("busybox-static", "bin/busybox")?)?);
    tree.program("init", init);
    Ok(tree)
}
