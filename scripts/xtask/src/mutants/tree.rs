//! The copy of the checkout that is changed. Only files that differ are written, so that cargo rebuilds as little as possible.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fail::{Doing, Outcome};
use crate::{paths, sh};

/// The rooms of the library that the tests of the GIC's and the SMMU's drivers need on the host.
const ROOMS: [&str; 10] = ["arch", "console", "gic", "ids", "mm", "mmio", "platform", "smmu", "sync", "util"];

/// The folder for everything about mutants.
pub fn folder() -> PathBuf {
    paths::target().join("mutants")
}

/// Updates the copy from the checkout.
pub fn prepare() -> Outcome<PathBuf> {
    let tree = folder().join("tree");
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(paths::root());
    let said = sh::quiet(&mut git)?;
    let mut kept = BTreeSet::new();
    for name in said.split_terminator('\0') {
        // A deleted file is listed until its deletion is committed.
        let Ok(mut content) = std::fs::read(paths::root().join(name)) else { continue };
        match name {
            "src/lib.rs" => content = library(&String::from_utf8_lossy(&content)).into_bytes(),
            // The fuzz targets need all rooms.
            "fuzz/host.rs" => content.clear(),
            ".cargo/config.toml" => content.extend(configuration()?.into_bytes()),
            _ => {}
        }
        let at = tree.join(name);
        if std::fs::read(&at).ok().as_ref() != Some(&content) {
            let folder = at.parent().unwrap_or(&tree);
            std::fs::create_dir_all(folder).doing(format_args!("creating {}", folder.display()))?;
            std::fs::write(&at, content).doing(format_args!("writing {}", at.display()))?;
        }
        kept.insert(at);
    }
    forget_others(&tree, &kept)?;
    Ok(tree)
}

/// The library's root with only the rooms that the drivers need.
fn library(root: &str) -> String {
    let room = |line: &str| line.strip_prefix("pub mod ")?.strip_suffix(';').map(str::to_owned);
    let kept = |line: &&str| room(line).is_none_or(|room| ROOMS.contains(&room.as_str()));
    root.lines().filter(kept).map(|line| format!("{line}\n")).collect()
}

/// Cargo's configuration in the copy: it runs tests by this program, and builds dependencies with optimisation.
fn configuration() -> Outcome<String> {
    let us = std::env::current_exe().doing("finding this program")?;
    Ok(format!(
        "\n[target.'cfg(not(target_os = \"none\"))']\nrunner = [{:?}, \"mutants\", \"--run-tests\"]\n\
         \n[profile.test.package.\"*\"]\nopt-level = 2\n",
        us.display().to_string()
    ))
}

/// Removes files that the checkout no longer has.
fn forget_others(folder: &Path, kept: &BTreeSet<PathBuf>) -> Outcome {
    for entry in std::fs::read_dir(folder).doing(folder.display())? {
        let path = entry.doing(folder.display())?.path();
        if path.is_dir() {
            forget_others(&path, kept)?;
        } else if !kept.contains(&path) {
            std::fs::remove_file(&path).doing(path.display())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_of_the_library_has_only_the_rooms_that_the_drivers_need() {
        let root = "//! Text.\nextern crate std;\npub mod gic;\npub mod vm;\npub mod ids;\n";
        assert_eq!(library(root), "//! Text.\nextern crate std;\npub mod gic;\npub mod ids;\n");
    }
}
