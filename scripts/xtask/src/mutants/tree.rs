//! The copy of the checkout that is changed. Only files that differ are written, so that cargo rebuilds as little as possible.
//!
//! The library in it has the rooms that the GIC driver's tests need, which follow from what the files import.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fail::{Doing, Failure, Outcome};
use crate::test::imports;
use crate::{paths, sh};

/// The rooms with the drivers.
const DRIVERS: [&str; 2] = ["gic", "smmu"];
/// The root of the library.
const LIBRARY: &str = "src/lib.rs";
/// The fuzz targets need all rooms. The copy has an empty file in their place.
const FUZZ: &str = "fuzz/host.rs";

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
    // A deleted file is listed until its deletion is committed.
    let content = |name: &str| Some((name.to_owned(), std::fs::read(paths::root().join(name)).ok()?));
    let mut files: BTreeMap<String, Vec<u8>> = said.split_terminator('\0').filter_map(content).collect();
    reduce(&mut files).map_err(Failure::new)?;
    if let Some(content) = files.get_mut(".cargo/config.toml") {
        content.extend(configuration()?.into_bytes());
    }
    let mut kept = BTreeSet::new();
    for (name, content) in files {
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

/// Takes the fuzz targets and the rooms that the driver's tests do not need out of the library.
fn reduce(files: &mut BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    files.entry(FUZZ.to_owned()).and_modify(Vec::clear);
    let is_code = |name: &str| name.ends_with(".rs") && (name.starts_with("src/") || name == FUZZ);
    let text = |content: &[u8]| String::from_utf8_lossy(content).into_owned();
    let code = files.iter().filter(|(name, _)| is_code(name)).map(|(name, content)| (name.clone(), text(content)));
    let rooms = imports::needed_by(&DRIVERS, &code.collect())?;
    if let Some(root) = files.get_mut(LIBRARY) {
        *root = library(&text(root), &rooms).into_bytes();
    }
    Ok(())
}

/// The library's root with only these rooms.
fn library(root: &str, rooms: &BTreeSet<String>) -> String {
    let room = |line: &str| line.strip_prefix("pub mod ")?.strip_suffix(';').map(str::to_owned);
    let kept = |line: &&str| room(line).is_none_or(|room| rooms.contains(&room));
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
    fn the_copy_of_the_library_has_only_the_rooms_that_the_drivers_tests_need() {
        let text = |file: &str| match file {
            "src/lib.rs" => {
                "//! Text.\n#[cfg(test)]\n#[path = \"../fuzz/host.rs\"]\nmod fuzz;\npub mod console;\npub mod gic;\npub mod ids;\npub \
                 mod mm;\npub mod run;\npub mod vits;\n"
            }
            "fuzz/host.rs" => "use crate::vits::V;",
            "src/run.rs" => "use crate::gic::G;",
            "src/gic.rs" => "use crate::ids::I; pub struct G; fn f() { log_limited!() }",
            "src/ids.rs" => "pub struct I; #[cfg(test)] mod tests { use crate::mm::M; }",
            "src/console.rs" => "#[macro_export] macro_rules! log_limited { () => {} }",
            "src/mm.rs" => "pub struct M;",
            _ => "pub struct V;",
        };
        let names = ["lib", "run", "gic", "ids", "console", "mm", "vits"].map(|name| format!("src/{name}.rs"));
        let files = names.into_iter().chain([FUZZ.to_owned()]);
        let mut files = files.map(|name| (name.clone(), text(&name).as_bytes().to_vec())).collect();
        assert_eq!(reduce(&mut files), Ok(()));
        assert_eq!(files[FUZZ], b"");
        let root = String::from_utf8_lossy(&files[LIBRARY]);
        let rooms: Vec<&str> = root.lines().filter_map(|line| line.strip_prefix("pub mod ")).collect();
        assert_eq!(rooms, ["console;", "gic;", "ids;", "mm;"], "{root}");
        assert!(root.starts_with("//! Text.\n"), "{root}");
    }

    #[test]
    fn what_the_drivers_tests_need_of_this_checkout_are_rooms_below_it() {
        let mut files = BTreeMap::new();
        let mut open = vec![paths::root().join("src"), paths::root().join(FUZZ)];
        while let Some(path) = open.pop() {
            match std::fs::read_dir(&path) {
                Ok(entries) => open.extend(entries.map(|entry| entry.expect("it can be read").path())),
                Err(_) => {
                    let name = path.strip_prefix(paths::root()).expect("it is in the checkout").display().to_string();
                    files.insert(name, std::fs::read(&path).expect("it can be read"));
                }
            }
        }
        assert_eq!(reduce(&mut files), Ok(()));
        let root = String::from_utf8_lossy(&files[LIBRARY]).into_owned();
        let has = |room: &str| root.contains(&format!("pub mod {room};\n"));
        // It logs by `log_limited!`, and its tests read ACPI tables.
        assert!(["gic", "ids", "mmio", "console", "platform"].into_iter().all(has), "{root}");
        assert!(!["vgic", "vits", "domain", "run"].into_iter().any(has), "{root}");
    }
}
