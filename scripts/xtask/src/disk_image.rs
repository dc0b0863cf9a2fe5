//! `image`: makes a disk that boots by UEFI.
//!
//! A GUID partition table with two partitions: the EFI system partition (FAT32), which holds the hypervisor as
//! `\EFI\BOOT\BOOTAA64.EFI` with its configuration, the kernel and its initramfs beside it; and one for dom0's root file
//! system, with the content of a file or empty. The same inputs give the same bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition;
use gpt::partition_types;

use crate::domu::DomU;
use crate::fail::{Doing, Failure, Outcome};
use crate::image::{self, ProfileFlags};
use crate::{paths, setup};

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

/// The alignment of every partition.
const ALIGNMENT: u64 = MIB;

/// The size of an empty root partition.
const EMPTY_ROOT: u64 = 64 * MIB;

/// The GUIDs of the disk and its partitions: arbitrary ones of version 4, always the same.
const GUIDS: [u128; 3] = [
    0x646f_6f72_7761_4264_8000_0000_0000_0000,
    0x646f_6f72_7761_4264_8000_0000_0000_0001,
    0x646f_6f72_7761_4264_8000_0000_0000_0002,
];

/// The content of a disk.
pub struct Contents {
    /// The board, a folder of `boards/`.
    pub board: String,
    /// The hypervisor.
    pub image: PathBuf,
    /// dom0's kernel. Without one the configuration still names a kernel, so that the boot fails.
    pub kernel: Option<PathBuf>,
    /// dom0's initramfs. Without one the configuration names none.
    pub initrd: Option<PathBuf>,
    /// Words to add to dom0's command line.
    pub append: String,
    /// Words to add to the hypervisor's command line.
    pub hv: String,
    /// The domUs, in addition to those that the machine's device tree describes.
    pub domus: Vec<DomU>,
    /// The root partition's content.
    pub root: Option<PathBuf>,
}

/// Make a disk that boots on a board by UEFI
#[derive(clap::Args)]
#[command(after_help = "\
The disk has a GUID partition table, an EFI system partition (FAT32) with the hypervisor, its configuration, dom0's
kernel and initramfs, and a partition for dom0's root file system. The same inputs give the same bytes.
boards/BOARD/README.md says how to boot it.")]
pub struct Options {
    /// The board: the name of a folder of boards/
    #[arg(long)]
    board: String,
    /// Where the disk image goes [default: target/BOARD.raw]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// dom0's kernel, a raw arm64 Image, or `none` [default: the Linux of `setup`]
    #[arg(long, value_name = "FILE|none")]
    kernel: Option<String>,
    /// dom0's initramfs, or `none` [default: the test initramfs of `setup`]
    #[arg(long, value_name = "FILE|none")]
    initrd: Option<String>,
    /// Words to add to dom0's command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true, default_value = "", hide_default_value = true)]
    append: String,
    /// Words to add to the hypervisor's command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true, default_value = "", hide_default_value = true)]
    hv: String,
    #[arg(long, value_name = "KERNEL[,...]", help = "A domU, as that of `run`; may be given more than once")]
    domu: Vec<String>,
    /// The content of the root partition, a raw file system [default: 64 MiB of zeroes]
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    #[command(flatten)]
    profile: ProfileFlags,
}

/// The verb.
pub fn verb(options: Options) -> Outcome {
    let given = |path: Option<String>, default: PathBuf| match path.as_deref() {
        None => Some(default),
        Some("none") => None,
        Some(path) => Some(path.into()),
    };
    let contents = Contents {
        image: paths::image(),
        kernel: given(options.kernel, paths::linux()),
        initrd: given(options.initrd, paths::initramfs()),
        append: options.append,
        hv: options.hv,
        domus: options.domu.iter().map(|text| DomU::parse(text)).collect::<Outcome<_>>()?,
        root: options.root,
        board: options.board,
    };
    if contents.domus.iter().any(|domu| domu.dtb.is_some()) {
        return Err(Failure::usage("--domu: dtb= has no key in doorward.cfg"));
    }
    let out = options.out.unwrap_or_else(|| paths::target().join(format!("{}.raw", contents.board)));
    template(&contents.board)?;
    setup::ensure()?;
    image::build(options.profile.profile())?;
    write(&out, &contents)?;
    let size = std::fs::metadata(&out).doing("reading the disk's size")?.len();
    println!("{} ({} MiB): see boards/{}/README.md", out.display(), size / MIB, contents.board);
    Ok(())
}

/// Reads a board's configuration.
fn template(board: &str) -> Outcome<String> {
    let boards = paths::root().join("boards");
    let file = boards.join(board).join("doorward.cfg");
    std::fs::read_to_string(&file).map_err(|_| {
        let mut names: Vec<String> = std::fs::read_dir(&boards)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().join("doorward.cfg").is_file())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        Failure::usage(format!("no file {}; the boards are {}", file.display(), names.join(", ")))
    })
}

/// The board's configuration with the added words, the domUs, and without dom0's RAM disk if there is none.
fn configuration(template: &str, contents: &Contents) -> String {
    let mut text = String::new();
    for line in template.lines() {
        let key = line.split('=').next().unwrap_or_default().trim();
        let more = match key {
            "kernel" => &contents.append,
            "options" => &contents.hv,
            "ramdisk" if contents.initrd.is_none() => continue,
            _ => "",
        };
        text += line.trim_end();
        if !more.is_empty() {
            text += " ";
            text += more;
        }
        text += "\n";
        if key == "kernel" && !contents.domus.is_empty() {
            let names: Vec<String> = (1..=contents.domus.len()).map(|number| format!("domU{number}")).collect();
            text += &format!("domains={}\n", names.join(" "));
        }
    }
    for (domu, number) in contents.domus.iter().zip(1..) {
        text += &section(domu, number);
    }
    text
}

/// The section of a domU.
fn section(domu: &DomU, number: u32) -> String {
    let DomU { cpus, mem, append, .. } = domu;
    let mut text = format!(
        "\n[domain domU{number}]\nkernel=domU{number}-Image {append}\ncpus={cpus}\nmemory={mem}M\nvpl011=yes\n"
    );
    if domu.initrd.is_some() {
        text += &format!("ramdisk=domU{number}-initramfs\n");
    }
    for (key, value) in [("cpu-weight", domu.weight), ("cpu-cap", domu.cap)] {
        text += &value.map_or(String::new(), |value| format!("{key}={value}\n"));
    }
    if !domu.pci.is_empty() {
        text += &format!("pci={}\n", domu.pci.join(" "));
    }
    if domu.pci_allow_no_reset {
        text += "pci-allow-no-reset=yes\n";
    }
    text
}

/// A file of the system partition: path and content.
pub type Entry = (String, Vec<u8>);

/// Makes the disk.
pub fn write(out: &Path, contents: &Contents) -> Outcome {
    write_with(out, contents, |_| ())
}

/// Makes the disk, with changes to the files on its system partition.
pub fn write_with(out: &Path, contents: &Contents, change: impl FnOnce(&mut Vec<Entry>)) -> Outcome {
    let read = |path: &Path| std::fs::read(path).doing(format_args!("reading {}", path.display()));
    let mut files: Vec<Entry> = Vec::new();
    let mut add = |name: &str, bytes| files.push((format!("EFI/BOOT/{name}"), bytes));
    add("BOOTAA64.EFI", read(&contents.image)?);
    add("doorward.cfg", configuration(&template(&contents.board)?, contents).into_bytes());
    if let Some(kernel) = &contents.kernel {
        add("Image", read(kernel)?);
    }
    if let Some(initrd) = &contents.initrd {
        add("initramfs", read(initrd)?);
    }
    for (domu, number) in contents.domus.iter().zip(1..) {
        add(&format!("domU{number}-Image"), read(&domu.kernel)?);
        if let Some(initrd) = &domu.initrd {
            add(&format!("domU{number}-initramfs"), read(initrd)?);
        }
    }
    change(&mut files);
    let esp = system_partition(&files).doing("making the EFI system partition")?;
    let root_size = match &contents.root {
        Some(file) => std::fs::metadata(file).doing(format_args!("reading {}", file.display()))?.len(),
        None => EMPTY_ROOT,
    };
    let what = || format!("writing {}", out.display());
    let mut disk = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(out)
        .doing(format_args!("creating {}", out.display()))?;
    let esp_at = ALIGNMENT;
    let root_at = (esp_at + esp.len() as u64).next_multiple_of(ALIGNMENT);
    let end = (root_at + root_size).next_multiple_of(ALIGNMENT) + ALIGNMENT;
    disk.set_len(end).doing(what())?;
    partition(
        &mut disk,
        &[
            ("EFI system", partition_types::EFI, esp_at, esp.len() as u64),
            ("root", partition_types::LINUX_ROOT_ARM_64, root_at, root_size),
        ],
    )
    .map_err(|why| Failure::new(format!("{}: {why}", what())))?;
    // Zeroes are not written: a disk that is mostly empty takes little room.
    for (index, piece) in esp.chunks(64 << 10).enumerate() {
        if piece.iter().any(|&byte| byte != 0) {
            disk.seek(SeekFrom::Start(esp_at + (index as u64) * (64 << 10))).doing(what())?;
            disk.write_all(piece).doing(what())?;
        }
    }
    if let Some(file) = &contents.root {
        disk.seek(SeekFrom::Start(root_at)).doing(what())?;
        let mut root = File::open(file).doing(format_args!("reading {}", file.display()))?;
        std::io::copy(&mut root, &mut disk).doing(what())?;
    }
    disk.sync_all().doing(what())
}

/// A FAT32 file system with `files`.
fn system_partition(files: &[Entry]) -> std::io::Result<Vec<u8>> {
    let total: u64 = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let size = (total + total / 16 + 32 * MIB).next_multiple_of(32 * MIB).max(64 * MIB);
    // The largest clusters of which there are still at least 65,525, the minimum of FAT32.
    let cluster = (size / 70_000).next_power_of_two() / 2;
    let cluster = u32::try_from(cluster.clamp(512, 32 << 10)).expect("a small number");
    let mut disk = Cursor::new(vec![0; usize::try_from(size).expect("a size in memory")]);
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(cluster)
        .volume_id(0x6477_0001)
        .volume_label(*b"DOORWARD   ");
    fatfs::format_volume(&mut disk, options)?;
    disk.rewind()?;
    {
        let volume = FileSystem::new(&mut disk, FsOptions::new().update_accessed_date(false))?;
        for (path, bytes) in files {
            let mut folder = volume.root_dir();
            let mut parts = path.split('/').peekable();
            let name = loop {
                let part = parts.next().unwrap_or_default();
                if parts.peek().is_none() {
                    break part;
                }
                // Opens a folder that exists already.
                folder = folder.create_dir(part)?;
            };
            let mut file = folder.create_file(name)?;
            file.write_all(bytes)?;
            file.flush()?;
        }
    }
    Ok(disk.into_inner())
}

/// Writes the partition table: name, type, first byte and size of each partition.
fn partition(disk: &mut File, list: &[(&str, partition_types::Type, u64, u64)]) -> Result<(), String> {
    let say = |error: &dyn std::fmt::Display| error.to_string();
    let sectors = disk.metadata().map_err(|error| say(&error))?.len() / SECTOR;
    let sectors = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(disk).map_err(|error| say(&error))?;
    let guid = |index: usize| uuid::Uuid::from_u128(GUIDS[index]);
    let table = gpt::GptConfig::new().writable(true).change_partition_count(true);
    let mut table = table.create_from_device(disk, Some(guid(0))).map_err(|error| say(&error))?;
    let partitions: BTreeMap<u32, Partition> = (1u32..)
        .zip(list)
        .map(|(number, (name, kind, at, size))| {
            let partition = Partition {
                part_type_guid: kind.clone(),
                part_guid: guid(number as usize),
                first_lba: at / SECTOR,
                last_lba: (at + size).div_ceil(SECTOR) - 1,
                flags: 0,
                name: (*name).into(),
            };
            (number, partition)
        })
        .collect();
    table.update_partitions(partitions).map_err(|error| say(&error))?;
    table.write().map_err(|error| say(&error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn contents(dir: &Path, root: bool) -> Contents {
        let file = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.join(name), bytes).unwrap();
            Some(dir.join(name))
        };
        Contents {
            board: "qemu-uefi".into(),
            image: file("app", b"MZ application").unwrap(),
            kernel: file("kernel", &vec![0x5a; 3 << 20]),
            initrd: file("initrd", b"cpio"),
            append: "dw.test=x".into(),
            hv: "onpanic=off".into(),
            domus: Vec::new(),
            root: if root { file("root", b"file system") } else { None },
        }
    }

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("doorward-disk-image-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_disk_reads_back_with_its_partitions_and_files() {
        let dir = folder("reads-back");
        let out = dir.join("disk.raw");
        write(&out, &contents(&dir, true)).unwrap();
        let disk = gpt::GptConfig::new().only_valid_headers(true).open(&out).unwrap();
        let partitions: Vec<_> = disk.partitions().values().cloned().collect();
        assert_eq!(partitions.len(), 2);
        assert_eq!(partitions[0].part_type_guid, partition_types::EFI);
        assert_eq!(partitions[1].part_type_guid, partition_types::LINUX_ROOT_ARM_64);
        let bytes = std::fs::read(&out).unwrap();
        let at = |partition: &Partition| (partition.first_lba * SECTOR) as usize;
        let end = |partition: &Partition| ((partition.last_lba + 1) * SECTOR) as usize;
        assert!(bytes[at(&partitions[1])..].starts_with(b"file system"));
        let esp = Cursor::new(bytes[at(&partitions[0])..end(&partitions[0])].to_vec());
        let volume = FileSystem::new(esp, FsOptions::new()).unwrap();
        assert_eq!(volume.fat_type(), FatType::Fat32);
        let read = |path: &str| {
            let mut content = Vec::new();
            volume.root_dir().open_file(path).unwrap().read_to_end(&mut content).unwrap();
            content
        };
        assert_eq!(read("EFI/BOOT/BOOTAA64.EFI"), b"MZ application");
        assert_eq!(read("EFI/BOOT/Image"), vec![0x5a; 3 << 20]);
        let config = String::from_utf8(read("EFI/BOOT/doorward.cfg")).unwrap();
        assert!(
            config.lines().any(|line| line.starts_with("kernel=Image") && line.ends_with(" dw.test=x")),
            "{config}"
        );
        assert!(config.lines().any(|line| line.starts_with("options=") && line.ends_with(" onpanic=off")), "{config}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes() {
        let dir = folder("same");
        write(&dir.join("a"), &contents(&dir, false)).unwrap();
        write(&dir.join("b"), &contents(&dir, false)).unwrap();
        assert!(std::fs::read(dir.join("a")).unwrap() == std::fs::read(dir.join("b")).unwrap());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn without_an_initramfs_the_configuration_names_none() {
        let dir = folder("no-initrd");
        let contents = Contents { initrd: None, ..contents(&dir, false) };
        assert!(!configuration("[a]\nkernel=Image\nramdisk=initramfs\n", &contents).contains("ramdisk"));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_domu_has_a_section_that_the_booted_one_lists() {
        let dir = folder("domus");
        let domu = DomU { initrd: Some("r".into()), cpus: 2, mem: 512, cap: Some(50), ..DomU::default() };
        let contents = Contents { domus: vec![domu, DomU::default()], ..contents(&dir, false) };
        let text = configuration("[linux]\nkernel=Image\nramdisk=initramfs\n", &contents);
        assert!(
            text.starts_with("[linux]\nkernel=Image dw.test=x\ndomains=domU1 domU2\nramdisk=initramfs\n"),
            "{text}"
        );
        let first = "[domain domU1]\nkernel=domU1-Image console=ttyAMA0\ncpus=2\nmemory=512M\nvpl011=yes\n\
            ramdisk=domU1-initramfs\ncpu-cap=50\n";
        assert!(text.contains(first), "{text}");
        assert!(text.ends_with("cpus=1\nmemory=256M\nvpl011=yes\n"), "{text}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn every_board_has_a_configuration_that_names_what_is_on_the_disk() {
        for board in ["qemu-virt", "qemu-uefi", "graviton2", "graviton3", "graviton4"] {
            let text = template(board).unwrap();
            for line in ["[global]", "options=", "kernel=Image ", "ramdisk=initramfs"] {
                assert!(text.lines().any(|have| have.starts_with(line)), "{board}: {line}");
            }
        }
    }
}
