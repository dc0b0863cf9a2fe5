//! The initramfs: busybox, fio with its libraries, a few kernel modules, small tools and the test scripts, as an uncompressed newc archive.
//!
//! The same inputs give the same bytes: entries are sorted; times, owners and inode numbers are fixed. The file is in `target/`,
//! as it depends on this checkout's `tests/linux`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Stamp, disk, dw, packages};
use crate::fail::{Doing, Outcome};
use crate::{paths, sh};

/// Has to be changed when this file makes a different archive.
const RECIPE: &[u8] = b"4";

/// Kernel modules: the drivers of dom0's console device.
const MODULES: [&str; 4] = [
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio_mmio",
    "drivers/char/virtio_console",
];

const LIBRARIES: &str = "lib/aarch64-linux-gnu";
const LOADER: &str = "ld-linux-aarch64.so.1";

/// Makes the initramfs if an input has changed.
pub fn ensure() -> Outcome {
    let archive = paths::initramfs();
    let sources = sources()?;
    let mut inputs: Vec<&[u8]> = vec![RECIPE];
    for (name, bytes) in &sources {
        inputs.push(name.as_bytes());
        inputs.push(bytes);
    }
    let checksums = [paths::disk(), paths::domu_disk()].map(|disk| disk::manifest(&disk));
    let checksums = checksums.iter().map(|file| Ok((file, read(file)?))).collect::<Outcome<Vec<_>>>()?;
    inputs.extend(checksums.iter().map(|(_, bytes)| bytes.as_slice()));
    let rustc = sh::quiet(Command::new("rustc").arg("--version").current_dir(paths::root()))?;
    inputs.push(rustc.as_bytes());
    let packages = packages::versions()?;
    inputs.push(packages.as_bytes());
    let dw_inputs = dw::inputs()?;
    inputs.push(&dw_inputs);
    let stamp = Stamp::new(&archive, &inputs);
    if stamp.fresh() && archive.is_file() {
        return Ok(());
    }

    sh::say("making the initramfs");
    let folder = archive.with_file_name("");
    std::fs::create_dir_all(&folder).doing(format_args!("creating {}", folder.display()))?;
    let mut tree = Tree::default();
    for name in ["proc", "sys", "dev", "tmp", "root", "usr/sbin", "sbin", "etc"] {
        tree.folder(name);
    }
    tree.device("dev/console", 5, 1);
    tree.program("bin/busybox", read(&packages::program("busybox-static", "bin/busybox")?)?);
    tree.program("usr/bin/fio", read(&packages::program("fio", "usr/bin/fio")?)?);
    tree.libraries(packages::libraries()?)?;
    tree.program("bin/dw", read(&dw::build()?)?);
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        tree.file(&format!("modules/{name}.ko"), read(&packages::module(&format!("{module}.ko"))?)?);
    }
    for (file, bytes) in &checksums {
        tree.file(&format!("etc/{}", file.file_name().unwrap_or_default().to_string_lossy()), bytes.clone());
    }
    for (name, bytes) in &sources {
        match name.strip_suffix(".rs") {
            Some(tool) => {
                let tool = tool.rsplit('/').next().unwrap_or(tool);
                tree.program(
                    &format!("bin/{tool}"),
                    compile(&paths::root().join("tests/linux").join(name), &folder, tool)?,
                );
            }
            None => tree.program(name, bytes.clone()),
        }
    }
    tree.write(&archive)?;
    stamp.set()
}

/// All files under `tests/linux`, by path.
fn sources() -> Outcome<BTreeMap<String, Vec<u8>>> {
    files(&paths::root().join("tests/linux"))
}

/// All files under a folder, by their path in it.
pub fn files(root: &Path) -> Outcome<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).doing(format_args!("listing {}", folder.display()))?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if let Ok(name) = path.strip_prefix(root) {
                found.insert(name.to_string_lossy().into_owned(), read(&path)?);
            }
        }
    }
    Ok(found)
}

/// Compiles a small static program for the guest's Linux.
fn compile(source: &Path, folder: &Path, name: &str) -> Outcome<Vec<u8>> {
    let output = folder.join(name);
    let mut command = Command::new("rustc");
    command.args([
        "--edition=2024",
        "--target=aarch64-unknown-linux-musl",
        "-Copt-level=s",
        "-Cpanic=abort",
        "-Cstrip=symbols",
    ]);
    command
        .args(["-Clinker=rust-lld", "-Clink-self-contained=yes", "--crate-name", name, "-o"])
        .arg(&output)
        .arg(source);
    command.arg(format!("--remap-path-prefix={}=.", paths::root().display())).current_dir(paths::root());
    sh::quiet(&mut command)?;
    read(&output)
}

pub fn read(path: &Path) -> Outcome<Vec<u8>> {
    std::fs::read(path).doing(format_args!("reading {}", path.display()))
}

/// The files of an archive.
#[derive(Default)]
pub struct Tree {
    entries: BTreeMap<PathBuf, Entry>,
}

/// A file: its mode with type, device numbers of a character device, content.
struct Entry {
    mode: u32,
    device: (u32, u32),
    bytes: Vec<u8>,
}

impl Tree {
    pub fn folder(&mut self, name: &str) {
        for folder in Path::new(name).ancestors().filter(|folder| !folder.as_os_str().is_empty()) {
            self.entries.insert(folder.to_owned(), Entry { mode: 0o040_755, device: (0, 0), bytes: Vec::new() });
        }
    }

    fn add(&mut self, name: &str, entry: Entry) {
        if let Some(parent) = Path::new(name).parent().and_then(Path::to_str).filter(|parent| !parent.is_empty()) {
            self.folder(parent);
        }
        self.entries.insert(name.into(), entry);
    }

    pub fn file(&mut self, name: &str, bytes: Vec<u8>) {
        self.add(name, Entry { mode: 0o100_644, device: (0, 0), bytes });
    }

    pub fn program(&mut self, name: &str, bytes: Vec<u8>) {
        self.add(name, Entry { mode: 0o100_755, device: (0, 0), bytes });
    }

    pub fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.add(name, Entry { mode: 0o020_600, device: (major, minor), bytes: Vec::new() });
    }

    /// Adds shared libraries where their loader looks for them.
    pub fn libraries(&mut self, libraries: Vec<packages::Library>) -> Outcome {
        for library in libraries {
            let folder = if library.soname == LOADER { "lib" } else { LIBRARIES };
            self.program(&format!("{folder}/{}", library.soname), read(&library.file)?);
        }
        Ok(())
    }

    /// Writes the archive.
    pub fn write(&self, archive: &Path) -> Outcome {
        let partial = archive.with_extension("partial");
        std::fs::write(&partial, self.pack()).doing(format_args!("writing {}", partial.display()))?;
        std::fs::rename(&partial, archive).doing(format_args!("placing {}", archive.display()))
    }

    /// The archive in the format `newc` (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
    pub fn pack(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (inode, (name, entry)) in (1..).zip(&self.entries) {
            pack_entry(&mut out, inode, &name.to_string_lossy(), entry);
        }
        let end = Entry { mode: 0, device: (0, 0), bytes: Vec::new() };
        pack_entry(&mut out, 0, "TRAILER!!!", &end);
        out
    }
}

fn pack_entry(out: &mut Vec<u8>, inode: u32, name: &str, entry: &Entry) {
    let links = if entry.mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
    let size = u32::try_from(entry.bytes.len()).expect("no file of the guest reaches 4 GiB");
    let name_size = name.len() as u32 + 1;
    let (major, minor) = entry.device;
    out.extend_from_slice(b"070701");
    for field in [inode, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0] {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(&entry.bytes);
    pad(out);
}

/// Aligns to 4 bytes, as headers and contents are.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_entry_has_the_fields_of_newc_in_order() {
        let mut tree = Tree::default();
        tree.file("a", b"hi".to_vec());
        let bytes = tree.pack();
        let header = std::str::from_utf8(&bytes[..110]).unwrap();
        assert_eq!(&header[..6], "070701");
        assert_eq!(&header[14..22], "000081a4", "regular file, 644");
        assert_eq!(&header[54..62], "00000002", "two bytes of content");
        assert_eq!(&header[94..102], "00000002", "name with its NUL");
        assert_eq!(&bytes[110..116], b"a\0hi\0\0");
    }

    #[test]
    fn folders_come_before_their_files() {
        let mut tree = Tree::default();
        tree.program("usr/bin/x", Vec::new());
        let names: Vec<_> = tree.entries.keys().map(|name| name.to_str().unwrap()).collect();
        assert_eq!(names, ["usr", "usr/bin", "usr/bin/x"]);
    }
}
