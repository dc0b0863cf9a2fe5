//! The device trees of Debian's newest arm64 kernel, for `cargo xtask boards`.
//!
//! The package that has them follows from the dependencies of `linux-image-arm64`: first that of the image itself, and in newer
//! releases one that the image depends on.

use std::path::{Path, PathBuf};

use super::apt;
use crate::fail::{Doing, Failure, Outcome};
use crate::{paths, sh};

/// The package that depends on the newest kernel.
const NEWEST: &str = "linux-image-arm64";

/// Downloads the newest package with device trees, unless it is there, and returns the folder with the trees.
pub fn ensure() -> Outcome<PathBuf> {
    if !sh::has("apt-get") || !sh::has("dpkg-deb") {
        return Err(Failure::new(
            "the device trees come from Debian: install apt and dpkg, or name a folder by --folder",
        ));
    }
    let archive = apt::Archive::newest()?;
    let image = archive.show(NEWEST)?.depends.into_iter().find(|name| name.starts_with("linux-image-"));
    let image = image.ok_or_else(|| Failure::new(format!("{NEWEST} names no kernel package")))?;
    let parts = archive.show(&image)?.depends;
    let base = parts.into_iter().find(|name| name.starts_with("linux-base-"));
    let package = base.unwrap_or(image);
    let place = paths::cache().join("boards");
    std::fs::create_dir_all(&place).doing(format_args!("creating {}", place.display()))?;
    archive.fetch(std::slice::from_ref(&package), &place)?;
    let folder = place.join(&package);
    let trees = [folder.join("usr/lib/modules"), folder.join("usr/lib")].into_iter().find_map(|at| first_trees(&at));
    trees.ok_or_else(|| Failure::new(format!("{package} has no device trees: adapt {}", file!())))
}

/// The folder with the trees of a kernel: `VERSION/dtb`, or in older packages `linux-image-VERSION`.
fn first_trees(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let is_image =
        |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("linux-image-"));
    entries.into_iter().find_map(|path| {
        let trees = path.join("dtb");
        if trees.is_dir() { Some(trees) } else { is_image(&path).then_some(path) }
    })
}
