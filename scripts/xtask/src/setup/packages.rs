//! The programs that run inside QEMU, from Debian's arm64 archive: the cloud kernel, a static busybox, fio with its libraries,
//! and UEFI firmware.
//!
//! fio is linked with many storage libraries. The libraries to download are found from the ELF files: each NEEDED name must be in
//! some package. Dependencies of packages are followed only while a name is missing, so that most of them (python, perl, a base
//! system) are not downloaded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::{Dyn as _, FileHeader as _};
use object::{Endianness, StringTable};

use super::{Stamp, apt};
use crate::fail::{Doing, Failure, Outcome};
use crate::{paths, sh};

/// Has to be changed when this file downloads something else.
const RECIPE: &[u8] = b"2";

const FIRMWARE: &str = "qemu-efi-aarch64";

const KERNEL: &str = "linux-image-cloud-arm64";

const FIO: &str = "usr/bin/fio";

/// A shared library that a program needs.
pub struct Library {
    /// The name that the dynamic loader searches for.
    pub soname: String,
    /// The unpacked file.
    pub file: PathBuf,
}

/// The folder with one unpacked package per entry.
fn folder() -> PathBuf {
    paths::cache().join("debian")
}

/// Downloads what is missing.
pub fn ensure() -> Outcome {
    let folder = folder();
    let stamp = Stamp::new(&folder, &[RECIPE]);
    if stamp.fresh() && folder.is_dir() && paths::linux().is_file() && paths::firmware().is_file() {
        return Ok(());
    }
    if !sh::has("apt-get") || !sh::has("dpkg-deb") {
        return Err(Failure::new("the guest's programs come from Debian: install apt and dpkg, then run setup again"));
    }
    std::fs::create_dir_all(&folder).doing(format_args!("creating {}", folder.display()))?;
    let foreign = apt::Archive::arm64()?;
    let kernel = foreign.show(KERNEL)?;
    let image = kernel.depends.iter().find(|name| name.starts_with("linux-image-"));
    let image =
        image.ok_or_else(|| Failure::new(format!("{KERNEL} {} names no kernel package", kernel.version)))?.clone();
    foreign.fetch(&[image.clone(), "busybox-static".into(), "fio".into(), FIRMWARE.into()], &folder)?;
    close_over(&foreign, &folder, "fio", FIO)?;
    place_kernel(&folder.join(&image))?;
    stamp.set()
}

/// Copies the kernel to where `run` expects it.
fn place_kernel(package: &Path) -> Outcome {
    let boot = package.join("boot");
    let mut names = std::fs::read_dir(&boot).doing(format_args!("listing {}", boot.display()))?.flatten();
    let image = names.find(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"));
    let image = image.ok_or_else(|| Failure::new(format!("no kernel in {}", boot.display())))?.path();
    let bytes = std::fs::read(&image).doing(format_args!("reading {}", image.display()))?;
    if bytes.get(56..60) != Some(b"ARM\x64") {
        return Err(Failure::new(format!("{} is not a raw arm64 Image", image.display())));
    }
    let place = paths::linux();
    std::fs::create_dir_all(place.with_file_name("")).doing("creating the kernel's folder")?;
    std::fs::write(&place, bytes).doing(format_args!("writing {}", place.display()))
}

/// Downloads packages until every library that `program` of `package` needs is there.
pub fn close_over(foreign: &apt::Archive, folder: &Path, package: &str, program: &str) -> Outcome {
    let mut listed: VecDeque<String> = VecDeque::from([package.to_owned()]);
    let mut seen: BTreeSet<String> = BTreeSet::from([package.to_owned()]);
    loop {
        let (_, missing) = resolve(folder, &folder.join(package).join(program))?;
        if missing.is_empty() {
            return Ok(());
        }
        let mut wave = Vec::new();
        for _ in 0..listed.len() {
            let Some(name) = listed.pop_front() else { break };
            for depends in foreign.show(&name)?.depends {
                let library = depends.starts_with("lib") || depends.starts_with("zlib");
                if library
                    && !depends.starts_with("libpython")
                    && !depends.starts_with("libperl")
                    && seen.insert(depends.clone())
                {
                    wave.push(depends);
                }
            }
        }
        if wave.is_empty() {
            let names: Vec<_> = missing.into_iter().collect();
            return Err(Failure::new(format!("the packages of {package} lack {}", names.join(", "))));
        }
        foreign.fetch(&wave, folder)?;
        listed.extend(wave);
    }
}

/// The unpacked packages with their versions.
pub fn versions() -> Outcome<String> {
    versions_in(&folder())
}

/// The packages that are unpacked in `folder`, with their versions.
pub fn versions_in(folder: &Path) -> Outcome<String> {
    let entries = std::fs::read_dir(folder).doing(format_args!("listing {}", folder.display()))?;
    let versions = entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path().join(apt::ORIGIN)).ok());
    let mut versions: Vec<String> = versions.collect();
    versions.sort();
    Ok(versions.join("\n"))
}

/// A file in an unpacked package.
pub fn program(package: &str, path: &str) -> Outcome<PathBuf> {
    let file = folder().join(package).join(path);
    if file.is_file() {
        Ok(file)
    } else {
        Err(Failure::new(format!("{} is missing: remove the cache and run setup", file.display())))
    }
}

/// A module of the kernel, by its path below `kernel/`.
pub fn module(path: &str) -> Outcome<PathBuf> {
    let folder = folder();
    let entries = std::fs::read_dir(&folder).doing(format_args!("listing {}", folder.display()))?;
    let mut packages = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let kernel = packages.find(|name| name.starts_with("linux-image-"));
    let kernel =
        kernel.ok_or_else(|| Failure::new("the kernel's package is missing: remove the cache and run setup"))?;
    let release = kernel.trim_start_matches("linux-image-").to_owned();
    program(&kernel, &format!("lib/modules/{release}/kernel/{path}"))
}

/// fio's libraries, with the dynamic loader.
pub fn libraries() -> Outcome<Vec<Library>> {
    libraries_of(&folder(), &folder().join("fio").join(FIO))
}

/// The libraries of `program` in the unpacked packages of `folder`, with the dynamic loader.
pub fn libraries_of(folder: &Path, program: &Path) -> Outcome<Vec<Library>> {
    let (found, missing) = resolve(folder, program)?;
    match missing.first() {
        None => Ok(found.into_iter().map(|(soname, file)| Library { soname, file }).collect()),
        Some(name) => Err(Failure::new(format!("{name} is missing: remove the cache and run setup"))),
    }
}

/// Follows NEEDED names from `program` through all unpacked packages; returns the libraries found and the names missing.
fn resolve(folder: &Path, program: &Path) -> Outcome<(BTreeMap<String, PathBuf>, BTreeSet<String>)> {
    let mut index = BTreeMap::new();
    index_libraries(folder, &mut index);
    let mut found = BTreeMap::new();
    let mut missing = BTreeSet::new();
    let mut open = needed(program)?;
    while let Some(name) = open.pop() {
        if found.contains_key(&name) {
            continue;
        }
        match index.get(&name) {
            Some(file) => {
                open.extend(needed(file)?);
                found.insert(name, file.clone());
            }
            None => {
                missing.insert(name);
            }
        }
    }
    Ok((found, missing))
}

/// Adds every shared library below `folder` by file name, symbolic links included.
fn index_libraries(folder: &Path, index: &mut BTreeMap<String, PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            index_libraries(&path, index);
        } else if name.contains(".so") && path.is_file() {
            index.insert(name, path);
        }
    }
}

/// The NEEDED names of one ELF file.
fn needed(path: &Path) -> Outcome<Vec<String>> {
    let data = std::fs::read(path).doing(format_args!("reading {}", path.display()))?;
    let data = &data[..];
    let what = || format!("reading {} as ELF", path.display());
    let header = FileHeader64::<Endianness>::parse(data).doing(what())?;
    let endian = header.endian().doing(what())?;
    let sections = header.sections(endian, data).doing(what())?;
    let Some((entries, link)) = sections.dynamic(endian, data).doing(what())? else {
        return Ok(Vec::new());
    };
    let strings: StringTable<'_> = sections.strings(endian, data, link).doing(what())?;
    let mut names = Vec::new();
    for entry in entries.iter().filter(|entry| entry.tag32(endian) == Some(DT_NEEDED)) {
        let name = entry.string(endian, strings).doing(what())?;
        names.push(String::from_utf8_lossy(name).into_owned());
    }
    Ok(names)
}
