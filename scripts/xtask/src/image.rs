//! `build`: compiles the hypervisor and packs the ELF file into the raw image that boot loaders take.

use std::path::{Path, PathBuf};
use std::process::Command;

use object::Endianness;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

use crate::fail::{Doing, Failure, Outcome};
use crate::{paths, pe, sh};

const TRIPLE: &str = "aarch64-unknown-none-softfloat";

/// One of Cargo's profiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Optimised: what tests and users run.
    Release,
    /// With debug assertions.
    Debug,
}

/// The flags that choose a profile, for every verb that builds the hypervisor.
#[derive(clap::Args, Clone, Copy)]
pub struct ProfileFlags {
    /// Build with optimisations (the default)
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    /// Build with debug assertions, such as the check of lock ranks
    #[arg(long)]
    debug: bool,
}

impl ProfileFlags {
    /// The profile that was chosen.
    pub fn profile(self) -> Profile {
        // Clap refuses both; neither means `--release`.
        if self.debug && !self.release { Profile::Debug } else { Profile::Release }
    }
}

impl Profile {
    fn folder(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Debug => "debug",
        }
    }
}

/// Build the hypervisor: target/doorward.img and target/doorward.elf
#[derive(clap::Args)]
#[command(after_help = "\
doorward.img is a raw arm64 Image and a UEFI application at once; doorward.elf is the same with symbols.
Prints both paths and the size of the image.")]
pub struct Options {
    #[command(flatten)]
    profile: ProfileFlags,
}

/// The verb.
pub fn verb(options: &Options) -> Outcome {
    crate::setup::rust_targets()?;
    build(options.profile.profile())?;
    let size = std::fs::metadata(paths::image()).doing("reading the image's size")?.len();
    println!("{} ({} KiB)", paths::image().display(), size.div_ceil(1024));
    println!("{}", paths::elf().display());
    Ok(())
}

/// Builds and packs the hypervisor.
pub fn build(profile: Profile) -> Outcome {
    std::fs::create_dir_all(paths::target()).doing("creating target/")?;
    pack("doorward", profile, &paths::image(), Some(&paths::elf()))?;
    let bytes = std::fs::read(paths::image()).doing("reading the image")?;
    pe::check(&bytes)
        .map_err(|why| Failure::new(format!("{} is not valid for firmware: {why}", paths::image().display())))
}

/// Builds and packs one of the guests under `tests/guests`.
pub fn build_guest(name: &str, image: &Path) -> Outcome {
    pack(name, Profile::Release, image, None)
}

/// Builds and packs a guest, and writes `seed` into its image.
pub fn build_seeded_guest(name: &str, seed: u64, image: &Path) -> Outcome {
    build_guest(name, image)?;
    let mut bytes = std::fs::read(image).doing(format_args!("reading {}", image.display()))?;
    write_seed(&mut bytes, seed).map_err(|why| Failure::new(format!("{name}: {why}")))?;
    std::fs::write(image, bytes).doing(format_args!("writing {}", image.display()))
}

/// The offset of a guest's tag, which its seed follows.
const TAG: (usize, &[u8]) = (0x800, b"GUEST   ");

fn write_seed(image: &mut [u8], seed: u64) -> Result<(), String> {
    let (at, tag) = TAG;
    let room = image.get_mut(at..at + 16).filter(|room| room.starts_with(tag)).ok_or("it has no tag for a seed")?;
    room[8..].copy_from_slice(&seed.to_le_bytes());
    Ok(())
}

/// Compiles the package `name`, whose program has the same name, and writes its raw image.
pub fn pack(name: &str, profile: Profile, image: &Path, with_symbols: Option<&Path>) -> Outcome {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", name, "--bin", name, "--target", TRIPLE]).current_dir(paths::root());
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    sh::shown_live(&mut cargo)?;
    let built = target_folder().join(TRIPLE).join(profile.folder()).join(name);
    let elf = std::fs::read(&built).doing(format_args!("reading {}", built.display()))?;
    let bytes = flatten(&elf).map_err(|why| Failure::new(format!("packing {}: {why}", built.display())))?;
    if let Some(file) = with_symbols {
        std::fs::write(file, &elf).doing(format_args!("writing {}", file.display()))?;
    }
    std::fs::write(image, bytes).doing(format_args!("writing {}", image.display()))
}

/// The folder that Cargo builds in. `CARGO_TARGET_DIR` overrides it; the packed image stays in the checkout.
pub fn target_folder() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) if !folder.is_empty() => paths::root().join(folder),
        _ => paths::target(),
    }
}

/// The content of the loadable segments from address 0 on, without the zeroes at the end: the arm64 Image header gives the size
/// in memory.
fn flatten(elf: &[u8]) -> Result<Vec<u8>, String> {
    let say = |error: object::Error| error.to_string();
    let header = FileHeader64::<Endianness>::parse(elf).map_err(say)?;
    let endian = header.endian().map_err(say)?;
    let segments = header.program_headers(endian, elf).map_err(say)?;
    let loads = segments.iter().filter(|segment| segment.p_type(endian) == PT_LOAD && segment.p_memsz(endian) > 0);
    let mut image = Vec::new();
    for segment in loads {
        let at = usize::try_from(segment.p_paddr(endian)).map_err(|error| error.to_string())?;
        let bytes = segment.data(endian, elf).map_err(|()| "a segment lies outside the file".to_owned())?;
        let end =
            at.checked_add(bytes.len()).filter(|end| *end < 64 << 20).ok_or("linked beyond 64 MiB: not linked at 0")?;
        if image.len() < end {
            image.resize(end, 0);
        }
        image[at..end].copy_from_slice(bytes);
    }
    if image.get(56..60) != Some(b"ARM\x64") {
        return Err("no arm64 Image header at its start (magic at offset 56)".into());
    }
    let word = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().expect("eight bytes"));
    if word(16) < image.len() as u64 {
        return Err(format!("the header claims {:#x} bytes and the image has {:#x}", word(16), image.len()));
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A little-endian ELF64 with one PT_LOAD at physical address 0.
    fn elf_with(segment: &[u8]) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
        elf[16..20].copy_from_slice(&[3, 0, 183, 0]);
        elf[20] = 1;
        elf[32..40].copy_from_slice(&64u64.to_le_bytes());
        elf[52..60].copy_from_slice(&[64, 0, 56, 0, 1, 0, 64, 0]);
        elf[64] = 1;
        elf[72..80].copy_from_slice(&120u64.to_le_bytes());
        elf[96..104].copy_from_slice(&(segment.len() as u64).to_le_bytes());
        elf[104..112].copy_from_slice(&(segment.len() as u64).to_le_bytes());
        elf.extend_from_slice(segment);
        elf
    }

    fn segment(size: u64) -> Vec<u8> {
        let mut bytes = vec![0x55; 80];
        bytes[16..24].copy_from_slice(&size.to_le_bytes());
        bytes[56..60].copy_from_slice(b"ARM\x64");
        bytes
    }

    #[test]
    fn a_flattened_image_is_the_content_of_its_segments() {
        let bytes = segment(0x1000);
        assert_eq!(flatten(&elf_with(&bytes)).unwrap(), bytes);
    }

    #[test]
    fn a_seed_is_written_after_its_tag_and_nowhere_else() {
        let mut bytes = vec![0; 0x810];
        assert!(write_seed(&mut bytes, 7).is_err());
        bytes[0x800..0x808].copy_from_slice(b"GUEST   ");
        write_seed(&mut bytes, 0x0102).unwrap();
        assert_eq!(bytes[0x808..], [2, 1, 0, 0, 0, 0, 0, 0]);
        assert!(write_seed(&mut bytes[..0x80c], 7).is_err());
    }

    #[test]
    fn an_image_without_its_header_is_refused() {
        assert!(flatten(&elf_with(&[0; 80])).unwrap_err().contains("header"));
    }

    #[test]
    fn a_header_that_claims_less_than_the_file_is_refused() {
        assert!(flatten(&elf_with(&segment(16))).unwrap_err().contains("claims"));
    }
}
