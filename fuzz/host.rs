//! The fuzz targets as tests of the library: each gets a bounded number of inputs, the same in every run.
//!
//! There is no coverage to guide them, so inputs are made from samples of what the target reads, with a few changes. A
//! target without samples gets random bytes. The input of a failure is written to `fuzz/artifacts/TARGET/`, where
//! `cargo fuzz` puts its own; what is there is run first.
//!
//! `vgic_mmio` is not here: it is the unit test `vgic::random_tests`.

use std::path::PathBuf;
use std::vec::Vec;
use std::{format, fs, println, thread};

#[path = "fuzz_targets/acpi.rs"]
mod acpi;
#[path = "fuzz_targets/api_frames.rs"]
mod api_frames;
#[path = "fuzz_targets/efi_config.rs"]
mod efi_config;
#[path = "fuzz_targets/efi_memreserve.rs"]
mod efi_memreserve;
#[path = "fuzz_targets/fdt.rs"]
mod fdt;
#[path = "fuzz_targets/kernel_image.rs"]
mod kernel_image;
#[path = "fuzz_targets/load_options.rs"]
mod load_options;
#[path = "fuzz_targets/management.rs"]
mod management;
#[path = "fuzz_targets/mmio_decode.rs"]
mod mmio_decode;
#[path = "fuzz_targets/pci_config.rs"]
mod pci_config;
#[path = "fuzz_targets/pl011.rs"]
mod pl011;
#[path = "fuzz_targets/smccc.rs"]
mod smccc;
#[path = "fuzz_targets/virtio.rs"]
mod virtio;
#[path = "fuzz_targets/vits.rs"]
mod vits;

/// The longest input in bytes that is not a sample.
const LONGEST: u64 = 1024;

struct Dice(u64);

impl Dice {
    /// The next number of SplitMix64.
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.roll() % limit.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// What targets are given.
struct Source {
    /// Valid inputs, or none.
    samples: Vec<Vec<u8>>,
    /// Words that mean something to the target.
    words: &'static [&'static [u8]],
}

const RANDOM: Source = Source { samples: Vec::new(), words: &[] };

impl Source {
    /// The files in `tests/data` with this suffix.
    fn files(suffix: &str) -> Source {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|found| found == suffix));
        paths.sort();
        assert!(!paths.is_empty());
        Source { samples: paths.iter().map(|path| fs::read(path).unwrap()).collect(), words: &[] }
    }

    fn input(&self, dice: &mut Dice) -> Vec<u8> {
        if self.samples.is_empty() {
            let length = dice.below(LONGEST as usize);
            // Small values are more often valid.
            let mask = *dice.of(&[0xff, 0xff, 0x3f, 0x0f]);
            return (0..length).map(|_| dice.roll() as u8 & mask).collect();
        }
        let mut bytes = dice.of(&self.samples).clone();
        for _ in 0..dice.below(8) {
            self.change(dice, &mut bytes);
        }
        bytes
    }

    fn change(&self, dice: &mut Dice, bytes: &mut Vec<u8>) {
        let at = dice.below(bytes.len() + 1);
        let end = (at + 1 + dice.below(16)).min(bytes.len());
        match dice.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at.min(end)..end)),
            2 => {
                // A piece of the input, again.
                let from = dice.below(bytes.len() + 1);
                let piece = bytes[from..(from + dice.below(32)).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            3 | 4 if !self.words.is_empty() => {
                let word = *dice.of(self.words);
                bytes.splice(at..at, word.iter().copied());
            }
            5 => {
                let boundary =
                    *dice.of(&[0u64, 1, 0x7f, 0xff, 0x8000_0000, 1 << 32, i64::MAX as u64, u64::MAX - 7, u64::MAX]);
                let boundary = if dice.below(2) == 0 { boundary.to_le_bytes() } else { boundary.to_be_bytes() };
                let size = *dice.of(&[1, 2, 4, 8]);
                bytes.iter_mut().skip(at & !3).zip(&boundary[..size]).for_each(|(byte, new)| *byte = *new);
            }
            6 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << dice.below(8)),
            _ => bytes.iter_mut().skip(at).take(1 + dice.below(4)).for_each(|byte| *byte = dice.roll() as u8),
        }
    }
}

/// Keeps the input if the target panics.
struct Kept<'a> {
    name: &'a str,
    number: u32,
    input: &'a [u8],
}

fn artifacts(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/artifacts").join(name)
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let file = artifacts(self.name).join(format!("host-{}", self.number));
            let _ = fs::create_dir_all(artifacts(self.name));
            let kept = fs::write(&file, self.input);
            println!("{}: {kept:?}: `cargo xtask fuzz {}` runs it, too", file.display(), self.name);
        }
    }
}

fn run(name: &str, inputs: u32, source: &Source, target: fn(&[u8])) {
    for entry in fs::read_dir(artifacts(name)).into_iter().flatten() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        target(&fs::read(path).unwrap());
    }
    let mut dice = Dice(1);
    for number in 0..inputs {
        let input = source.input(&mut dice);
        let _kept = Kept { name, number, input: &input };
        target(&input);
    }
}

#[test]
fn acpi_tables() {
    run("acpi", 1_000, &Source::files("acpi"), acpi::run);
}

#[test]
fn device_trees() {
    run("fdt", 300, &Source::files("dtb"), fdt::run);
}

#[test]
fn frames_of_the_control_channel() {
    const fn header(kind: u8, tag: u8, length: u8) -> [u8; 16] {
        [0xd7, b'D', b'W', 1, kind, 0, 0, 0, tag, 0, 0, 0, length, 0, 0, 0]
    }
    const INFO: [u8; 16] = header(2, 0, 0);
    const SET: [u8; 16] = header(38, 0, 13);
    const VERSION: [u8; 16] = header(1, 0, 2);
    // A request and two answers: `create`, the second page of `counters`, a part of the log.
    let create = [
        &header(16, 1, 46)[..],
        &[2, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 2, 0, 0, 50, 0, 0, 0, 1, 9, 0, 0, 0, 1, 1, 0],
        b"\x03\0web\x05\0quiet\x01\0\x18\x03\x01\0",
    ];
    let counters = [&header(81, 9, 37)[..], &[2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0], b"\x02\0\x01\0\0\0\0\0\0\0\x01\0a"];
    let second = [&[3u8, 0, 0, 0, 0, 0, 0, 0, 2, 0][..], b"bc"].concat();
    let log = [&header(80, 8, 21)[..], &[1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0], b"\x03\0abc"];
    let (create, log, counters) = (create.concat(), log.concat(), [counters.concat(), second].concat());
    let samples = [[&[9, 0], &create[..], &log].concat(), [&[255, 0], &counters[..], &create].concat()];
    let words: &[&[u8]] = &[&[0xd7], b"\xd7DW", &INFO, &SET, &VERSION, &[0, 64]];
    run("api_frames", 20_000, &Source { samples: samples.into(), words }, api_frames::run);
}

#[test]
fn efi_configuration() {
    let samples = [
        &b"[global]\r\ndefault=b\r\noptions=loglvl=debug\r\n[a]\r\nkernel=one\r\n; comment\r\n[b]\r\nkernel=\\boot\\Image console=ttyAMA0  quiet \r\nramdisk=initrd\r\noptions=direct=off\r\n"[..],
        b"\xef\xbb\xbf# \xc3\xa4\n[linux]\nkernel=Image\ndtb=board.dtb\n",
        b"[a]\nkernel=K\n[a b]\nkernel=L x=y\nramdisk=R\n",
        b"[a]\nkernel=K\ndomains=web db\n[domain web]\nkernel=L quiet\nramdisk=R\ncpus=2\nmemory=512M\nvpl011=yes\npci=0000:01:00.0\n[domain db]\nkernel=K\ncpus=1\nmemory=1G\n",
    ];
    let words: &[&[u8]] = &[
        b"\n",
        b"\r\n",
        b"=",
        b"[",
        b"]",
        b"[global]\n",
        b"default=",
        b"kernel=",
        b"ramdisk=",
        b"dtb=",
        b"options=",
        b"[domain web]\n",
        b"[domain  db]\n",
        b"domains=",
        b"web ",
        b"cpus=1\n",
        b"memory=1G\n",
        b"pci=0:1:0.0,1:2:3.4\n",
        b"pci-allow-no-reset=on\n",
        b"cpu-weight=",
        b"cpu-cap=",
        b"vpl011=",
        b"xsm=",
        b"#",
        b";",
        b" ",
        b"\t",
        b"\xe2\x80\xa8",
        b"\xc2\xa0",
        b"\xff",
        b"\0",
    ];
    let source = Source { samples: samples.map(<[u8]>::to_vec).to_vec(), words };
    run("efi_config", 10_000, &source, efi_config::run);
}

#[test]
fn efi_reservations() {
    // A list without entries, and one at the address 0x1010 with room for four and three entries.
    let mut chain = Vec::new();
    for (low, high) in [(0, 0x1010), (3 << 32 | 4, 0), (0x10_0000, 0x1_0000), (0x11_0000, 0x1_0000), (0x8000, 0x800)] {
        chain.extend([u64::to_le_bytes(low), u64::to_le_bytes(high)].concat());
    }
    let words: &[&[u8]] =
        &[&[0, 0x10, 0, 0, 0, 0, 0, 0], &[0x10, 0x10, 0, 0, 0, 0, 0, 0], &[2, 0, 0, 0, 1, 0, 0, 0], &[0; 16]];
    run("efi_memreserve", 20_000, &Source { samples: [chain].into(), words }, efi_memreserve::run);
}

#[test]
fn efi_load_options() {
    let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let samples = [
        "\\EFI\\BOOT\\BOOTAA64.EFI -cfg=doorward.cfg linux -- loglvl=debug direct=off",
        "safe initrd=initrd -- sched=credit",
        "bootaa64 -cfg=\\x.cfg",
        "fs0:doorward.efi  second --",
    ];
    let words: &[&[u8]] = &[
        b" \0",
        b"-\0-\0",
        b" \0-\0-\0 \0",
        b"-\0c\0f\0g\0=\0",
        b".\0e\0f\0i\0",
        b"\0\xd8",
        b"\0\xdc",
        b"\x28\x20",
        b"\0\0",
    ];
    let source = Source { samples: samples.map(wide).to_vec(), words };
    run("load_options", 10_000, &source, load_options::run);
}

#[test]
fn kernel_images() {
    let mut image = std::vec![0; 160];
    image[96..98].copy_from_slice(b"MZ");
    image[96 + 16..][..8].copy_from_slice(&(30u64 << 20).to_le_bytes());
    image[96 + 24] = 0xa;
    image[96 + 56..][..4].copy_from_slice(b"ARM\x64");
    // Two banks, a kernel of 20 MiB behind them, and a RAM disk.
    for (at, value) in
        [(0, 0x4000_0000u64), (8, 64 << 20), (16, 0x8000_0000), (24, 1 << 30), (32, 0x6000_0000), (40, 20 << 20)]
    {
        image[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let words: &[&[u8]] = &[b"\x1f\x8b", b"zimg", b"MZ", b"\x7fELF"];
    run("kernel_image", 10_000, &Source { samples: [image].into(), words }, kernel_image::run);
}

#[test]
fn serial_port() {
    run("pl011", 2_000, &RANDOM, pl011::run);
}

#[test]
fn configuration_space() {
    run("pci_config", 1_500, &RANDOM, pci_config::run);
}

#[test]
fn firmware_calls() {
    run("smccc", 20_000, &RANDOM, smccc::run);
}

#[test]
fn decoding_of_accesses() {
    run("mmio_decode", 20_000, &RANDOM, mmio_decode::run);
}

#[test]
fn its_commands() {
    run("vits", 500, &RANDOM, vits::run);
}

#[test]
fn requests_of_dom0() {
    run("management", 500, &RANDOM, management::run);
}

#[test]
fn console_device() {
    run("virtio", 1_000, &RANDOM, virtio::run);
}
