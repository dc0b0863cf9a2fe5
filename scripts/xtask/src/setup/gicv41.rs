//! QEMU with a GICv4.1: Debian's source package with the patches of `scripts/qemu-gicv41`, built here.
//!
//! The source comes from an apt state of its own, which checks it by the signed lists of the release. The program is kept in the
//! cache in a folder named by a hash of all that it is made from, so that checkouts with different patches can share the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::{apt, hex, qemu};
use crate::fail::{Doing, Failure, Outcome};
use crate::{paths, sh};

/// Has to be changed when this file builds something else.
const RECIPE: &str = "1";

/// The release with the source package.
const RELEASE: &str = "trixie";
const PACKAGE: &str = "qemu";
/// The version that the patches are for.
const VERSION: &str = "1:10.0.13+ds-0+deb13u1";

/// What the build needs beside meson, which is too old in bookworm.
const NEEDS: [&str; 10] = [
    "dpkg-dev",
    "gcc",
    "libc6-dev",
    "libfdt-dev",
    "libglib2.0-dev",
    "ninja-build",
    "patch",
    "pkg-config",
    "python3-venv",
    "zlib1g-dev",
];

/// The list of devices, in `scripts/qemu-gicv41` and where QEMU looks for it.
const DEVICES: &str = "doorward.mak";

const FLAGS: [&str; 10] = [
    // A python of the user's own would not find the distribution's meson.
    "--python=/usr/bin/python3",
    "--target-list=aarch64-softmmu",
    "--without-default-features",
    "--without-default-devices",
    "--with-devices-aarch64=doorward",
    "--enable-fdt=system",
    "--disable-install-blobs",
    "--disable-tools",
    "--disable-docs",
    "--disable-debug-info",
];

const PROGRAM: &str = "qemu-system-aarch64";

/// The folder with the patches.
fn folder() -> PathBuf {
    paths::root().join("scripts/qemu-gicv41")
}

/// The patches, in the order in which they are applied.
fn patches() -> Outcome<Vec<PathBuf>> {
    let series = folder().join("series");
    let text = std::fs::read_to_string(&series).doing(format_args!("reading {}", series.display()))?;
    Ok(text.lines().filter(|line| !line.is_empty()).map(|name| folder().join(name)).collect())
}

/// The folder of the cache for what this checkout builds.
fn place() -> Outcome<PathBuf> {
    let mut hash = Sha256::new();
    for words in [&[RECIPE, VERSION][..], &FLAGS] {
        hash.update(words.join("\n"));
    }
    for file in patches()?.into_iter().chain([folder().join(DEVICES)]) {
        let bytes = std::fs::read(&file).doing(format_args!("reading {}", file.display()))?;
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    Ok(paths::cache().join("qemu-gicv41").join(&hex(&hash.finalize())[..16]))
}

/// The program, if it has been built and runs here.
pub fn program() -> Option<PathBuf> {
    let program = place().ok()?.join(PROGRAM);
    let output = Command::new(&program).arg("--version").output().ok()?;
    output.status.success().then_some(program)
}

/// The program, or what to do to get it.
pub fn required() -> Outcome<PathBuf> {
    program().ok_or_else(|| Failure::new("the GICv4.1 machine is not built: run `cargo xtask setup --gicv41`"))
}

/// Builds the program if it is missing. The caller holds the cache's lock.
pub fn ensure() -> Outcome<PathBuf> {
    if let Some(program) = program() {
        return Ok(program);
    }
    if !sh::has("apt-get") {
        return Err(Failure::new("QEMU's source comes from Debian: the GICv4.1 machine needs a system with apt"));
    }
    install_needs()?;
    let place = place()?;
    let work = place.with_extension("build");
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work).doing(format_args!("creating {}", work.display()))?;
    let tree = unpack(&work)?;
    for patch in patches()? {
        let name = patch.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = Command::new("patch");
        command.args(["-p1", "--fuzz=0", "-i"]).arg(&patch).current_dir(&tree);
        sh::quiet(&mut command).map_err(|failure| {
            Failure::new(format!("{name} does not apply to {PACKAGE} {VERSION}: {}", failure.text))
        })?;
    }
    let built = build(&tree)?;
    sh::quiet(Command::new(&built).arg("--version"))?;
    std::fs::create_dir_all(&place).doing(format_args!("creating {}", place.display()))?;
    // By a new name first, so that a program of the final name is complete.
    let (partial, program) = (place.join("partial"), place.join(PROGRAM));
    std::fs::copy(&built, &partial).doing(format_args!("copying {}", built.display()))?;
    std::fs::rename(&partial, &program).doing(format_args!("placing {}", program.display()))?;
    let _ = std::fs::remove_dir_all(&work);
    Ok(program)
}

/// Installs compiler, libraries and build tools, if one is missing.
fn install_needs() -> Outcome {
    let installed = |package: &str| {
        let words = ["-W", "-f", "${db:Status-Abbrev}", package];
        let output = Command::new("dpkg-query").args(words).output();
        output.is_ok_and(|output| output.status.success() && output.stdout.starts_with(b"ii"))
    };
    if NEEDS.iter().all(|package| installed(package)) && meson_version().is_some_and(|version| version >= (1, 5)) {
        return Ok(());
    }
    sh::say("installing what the build of QEMU needs");
    apt::host_get("apt-get update", &["update"])?;
    let words = [&["install", "--no-install-recommends"][..], &NEEDS].concat();
    apt::host_get("installing what the build of QEMU needs", &words)?;
    let mut words = vec!["install", "--no-install-recommends"];
    if qemu::on_bookworm() {
        qemu::backports()?;
        words.extend(["-t", "bookworm-backports"]);
    }
    words.push("meson");
    apt::host_get("installing meson", &words)?;
    match meson_version() {
        Some(version) if version >= (1, 5) => Ok(()),
        _ => Err(Failure::new("QEMU's build needs the distribution's meson 1.5 or later in /usr/bin")),
    }
}

fn meson_version() -> Option<(u32, u32)> {
    let output = Command::new("/usr/bin/meson").arg("--version").output().ok()?;
    qemu::parse(&String::from_utf8_lossy(&output.stdout))
}

/// Downloads the source package into the cache and unpacks it, with Debian's own patches, below `work`.
fn unpack(work: &Path) -> Outcome<PathBuf> {
    let sources = paths::cache().join("qemu-gicv41/source");
    // A colon starts the epoch, which file names do not have.
    let upstream = VERSION.rsplit(':').next().unwrap_or(VERSION);
    let description = sources.join(format!("{PACKAGE}_{upstream}.dsc"));
    if !description.is_file() {
        let archive = apt::Archive::sources(RELEASE)?;
        let known = archive.source_versions(PACKAGE)?;
        if !known.iter().any(|version| version == VERSION) {
            return Err(Failure::new(format!(
                "Debian {RELEASE} has {PACKAGE} {}, not {VERSION}: adapt scripts/qemu-gicv41 and VERSION in {}",
                known.join(" and "),
                file!()
            )));
        }
        sh::say(format_args!("downloading the source of {PACKAGE} {VERSION}"));
        archive.fetch_source(PACKAGE, VERSION, &sources)?;
    }
    sh::say("unpacking QEMU");
    let tree = work.join("tree");
    // apt has checked the files against the release's signature; that of the uploader adds nothing.
    let mut command = Command::new("dpkg-source");
    command.args(["--no-check", "-x"]).arg(&description).arg(&tree);
    sh::quiet(&mut command)?;
    Ok(tree)
}

/// Configures and builds QEMU in `tree`; returns the program.
fn build(tree: &Path) -> Outcome<PathBuf> {
    let devices = tree.join("configs/devices/aarch64-softmmu").join(DEVICES);
    std::fs::copy(folder().join(DEVICES), &devices).doing(format_args!("writing {}", devices.display()))?;
    let build = tree.join("build");
    std::fs::create_dir_all(&build).doing(format_args!("creating {}", build.display()))?;
    sh::say("configuring QEMU");
    sh::quiet(Command::new("../configure").args(FLAGS).current_dir(&build))?;
    sh::say("building QEMU, which takes some minutes");
    // Two jobs: a job takes up to 500 MB, and the machine may have other work.
    let mut command = Command::new("nice");
    command.args(["-n", "5", "ninja", "-j", "2", PROGRAM]).current_dir(&build);
    sh::quiet(&mut command)?;
    let program = build.join(PROGRAM);
    sh::quiet(Command::new("strip").arg(&program))?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_names_every_patch_once_and_the_folder_says_under_which_licence_they_are() {
        let mut listed = patches().unwrap();
        listed.sort();
        let mut there: Vec<PathBuf> =
            std::fs::read_dir(folder()).unwrap().flatten().map(|entry| entry.path()).collect();
        there.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
        there.sort();
        assert_eq!(listed, there);
        let licence = std::fs::read_to_string(folder().join("LICENSE")).unwrap();
        assert!(licence.contains("GNU GENERAL PUBLIC LICENSE"));
    }
}
