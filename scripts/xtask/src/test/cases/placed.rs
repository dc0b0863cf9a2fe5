//! Machines whose image is at an address that the test chooses, with a device tree that the test edits.
//!
//! QEMU boots an Image at one load address. Here its generic loader loads everything, and six instructions do the last steps of a
//! boot loader: x0 = device tree, x1 to x3 = 0, jump. The same way firmware at EL3 starts EL2.

use std::path::Path;

use super::guests::{self, Expected};
use super::refuse;
use crate::image;
use crate::qemu::{Boot, Disk, Machine};
use crate::session::End;
use crate::sh;
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

/// The address of the six instructions, in the first 4 MiB of RAM, which nothing else uses.
const TRAMPOLINE: u64 = 0x4030_0000;

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("refuse-no-fdt", "x0 = 0: no device tree", |lab| {
            let machine = placed(lab, Machine::default(), 0x4080_0000, 0x6000_0000, |_| None)?;
            refuse::refused(lab, machine, &["device tree"])
        }),
        case("refuse-no-memory", "a device tree without a memory node", |lab| {
            let machine = placed(lab, Machine::default(), 0x4080_0000, 0x6000_0000, |fdt| {
                let removed = remove_nodes(fdt, "memory@");
                (removed == 1).then_some(0x4800_0008)
            })?;
            refuse::refused(lab, machine, &["memory"])
        }),
        case("boot-placed-odd", "image, device tree and modules at unaligned addresses", |lab| {
            boots_at(lab, 0x4a5a_7000, 0x6103_1000, 0x5ff0_1008)
        }),
        case("boot-placed-high", "image at the end of RAM, modules below it", |lab| {
            boots_at(lab, 0xbf12_3000, 0xa000_3000, 0x4fff_f010)
        }),
        case("firmware-workarounds", "EL2 calls the firmware's workarounds at each exit of a guest", |lab| {
            let does = "Cortex-A57; Spectre v2: SMCCC_ARCH_WORKAROUND_1; Spectre-BHB: loop of 8 branches";
            workarounds(lab, "cortex-a57", does, 1)
        }),
        case("firmware-workaround-3", "the same with the workaround that includes the other", |lab| {
            let does = "Spectre v2: SMCCC_ARCH_WORKAROUND_1; Spectre-BHB: SMCCC_ARCH_WORKAROUND_3";
            workarounds(lab, "a64fx", does, 3)
        }),
        case("firmware-serror", "an SError that an ESB of EL2 has deferred goes to the guest, once", |lab| {
            let does = "Neoverse N1; Spectre v2: CSV2; Spectre-BHB: loop of 24 branches";
            on_firmware(lab, "neoverse-n1", &Expected { does, told: "1 -1 0", serrors: "1" }).map(|_| ())
        }),
    ]
}

fn boots_at(lab: &Lab, image: u64, modules: u64, fdt: u64) -> Verdict {
    let machine = placed(lab, lab.linux("boot", ""), image, modules, |_| Some(fdt))?;
    let transcript = lab.watch(&machine, 150, |_, _| Ok(()))?;
    if transcript.end != End::Off {
        return lab.judge(&transcript);
    }
    lab.judge(&transcript)?;
    match transcript.number("cpus")? {
        4 => Ok(()),
        cpus => Err(format!("dom0 has {cpus} CPUs, not 4")),
    }
}

/// The exits that the guest `features` causes at least, each of which is a call.
const EXITS: u64 = 100;

/// Runs the guest `features` on firmware of our own at EL3.
fn on_firmware(lab: &Lab, cpu: &str, expected: &Expected) -> Result<Transcript, String> {
    let firmware = lab.dir.join("firmware");
    image::build_guest("guest-firmware", &firmware).map_err(|failure| failure.text)?;
    let guest = Machine { cpu: cpu.into(), smp: 1, ..guests::machine(lab, "guest-features")? };
    let mut machine = loaded(lab, guest, 0x4080_0000, 0x6000_0000, |_| Some(0x4800_0008))?;
    machine.properties += ",secure=on";
    machine.extra.extend(["-bios".into(), firmware.display().to_string()]);
    guests::features_on(lab, &machine, expected)
}

/// The firmware offers all workarounds and counts their calls: only the one with this number may be called at exits. `does` is what
/// EL2 logs of Spectre v2 and Spectre-BHB.
fn workarounds(lab: &Lab, cpu: &str, does: &str, number: usize) -> Verdict {
    let does = format!("{does}; speculative store bypass: SMCCC_ARCH_WORKAROUND_2, always on");
    let transcript = on_firmware(lab, cpu, &Expected { does: &does, told: "0 -2 0", serrors: "0" })?;
    let counts = transcript.lines.iter().find_map(|(_, line)| line.trim().strip_prefix("FIRMWARE calls "));
    let counts = counts.ok_or("the firmware did not print its counts")?;
    let counts: Vec<u64> =
        counts.split_whitespace().filter_map(|count| u64::from_str_radix(count.split_once('=')?.1, 16).ok()).collect();
    let [one, two, three, last] = counts[..] else { return Err(format!("the firmware printed {counts:x?}")) };
    println!("   calls of workarounds 1 to 3: {one}, {two}, {three}");
    let (called, other) = if number == 1 { (one, three) } else { (three, one) };
    if called < EXITS || other != 0 {
        return Err(format!("workaround {number} was called {called} times, the other {other} times"));
    }
    if (two, last) != (1, 1) {
        return Err(format!("workaround 2 was called {two} times, the last time with {last}, not once with 1"));
    }
    Ok(())
}

/// `machine`, which starts at the last steps of a boot loader; see [`loaded`].
fn placed(
    lab: &Lab,
    machine: Machine,
    image: u64,
    modules: u64,
    edit: impl FnOnce(&mut [u8]) -> Option<u64>,
) -> Result<Machine, String> {
    let mut placed = loaded(lab, machine, image, modules, edit)?;
    placed.extra.extend(["-device".into(), format!("loader,addr={TRAMPOLINE:#x},cpu-num=0")]);
    Ok(placed)
}

/// `machine` with the image at `image`, the modules from `modules` on, and the last steps of a boot loader at [`TRAMPOLINE`].
/// `edit` changes the device tree and returns its address, or `None` for x0 = 0.
fn loaded(
    lab: &Lab,
    machine: Machine,
    image: u64,
    modules: u64,
    edit: impl FnOnce(&mut [u8]) -> Option<u64>,
) -> Result<Machine, String> {
    let say = |error: std::io::Error| error.to_string();
    let mut fdt = device_tree(lab, &machine, modules)?;
    let at = edit(&mut fdt);
    let (fdt_file, code_file) = (lab.dir.join("fdt"), lab.dir.join("trampoline"));
    std::fs::write(&fdt_file, &fdt).map_err(say)?;
    std::fs::write(&code_file, trampoline(at.unwrap_or(0), image)).map_err(say)?;
    let mut loaded = Machine { boot: Boot::Loader, ..machine.clone() };
    let mut load = |file: &Path, at: u64, more: &str| {
        loaded.extra.push("-device".into());
        loaded.extra.push(format!("loader,file={},addr={at:#x},force-raw=on{more}", file.display()));
    };
    load(&machine.image, image, "");
    if let Some(at) = at {
        load(&fdt_file, at, "");
    }
    load(&code_file, TRAMPOLINE, "");
    loaded.extra.extend(machine.modules(modules));
    Ok(loaded)
}

/// The device tree that QEMU would pass to this machine.
fn device_tree(lab: &Lab, machine: &Machine, modules: u64) -> Result<Vec<u8>, String> {
    let file = lab.dir.join("qemu.dtb");
    let mut dump = Machine { boot: Boot::Loader, disk: Disk::None, log: None, ..machine.clone() };
    dump.properties += &format!(",dumpdtb={}", file.display());
    dump.extra = ["-kernel".into(), machine.image.display().to_string(), "-append".into(), machine.hv.clone()].into();
    dump.extra.extend(machine.modules(modules));
    sh::quiet(&mut dump.command().map_err(|failure| failure.text)?).map_err(|failure| failure.text)?;
    std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))
}

/// The last six instructions of a boot loader, and their two constants.
fn trampoline(fdt: u64, image: u64) -> Vec<u8> {
    let code: [u32; 6] = [
        0x5800_00c0, // ldr x0, fdt
        0xd280_0001, // mov x1, #0
        0xd280_0002, // mov x2, #0
        0xd280_0003, // mov x3, #0
        0x5800_0084, // ldr x4, image
        0xd61f_0080, // br x4
    ];
    let code = code.iter().flat_map(|word| word.to_le_bytes());
    code.chain(fdt.to_le_bytes()).chain(image.to_le_bytes()).collect()
}

/// Overwrites each node whose name starts with `prefix` with NOP tokens (Devicetree Specification 0.4, 5.4); returns how many.
fn remove_nodes(fdt: &mut [u8], prefix: &str) -> usize {
    const BEGIN: u32 = 1;
    const END: u32 = 2;
    const PROPERTY: u32 = 3;
    const NOP: u32 = 4;
    let word = |fdt: &[u8], at: usize| u32::from_be_bytes(fdt[at..at + 4].try_into().expect("four bytes"));
    let mut at = word(fdt, 8) as usize;
    let mut removed = 0;
    // Depth within a node that is removed; 0 outside of one.
    let mut depth = 0;
    loop {
        let start = at;
        at += 4;
        let token = word(fdt, start);
        match token {
            BEGIN => {
                let length = fdt[at..].iter().position(|byte| *byte == 0).expect("a name ends");
                let goes = fdt[at..at + length].starts_with(prefix.as_bytes());
                at = (at + length + 1).next_multiple_of(4);
                removed += usize::from(goes && depth == 0);
                depth += usize::from(goes || depth > 0);
            }
            PROPERTY => at = (at + 8 + word(fdt, at) as usize).next_multiple_of(4),
            END | NOP => {}
            _ => return removed,
        }
        if depth > 0 {
            fdt[start..at].chunks_exact_mut(4).for_each(|bytes| bytes.copy_from_slice(&NOP.to_be_bytes()));
        }
        if token == END && depth > 0 {
            depth -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_removed_with_everything_in_it() {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        let mut fdt = words(&[0xd00d_feed, 0, 12]);
        fdt.extend(words(&[1, 0]));
        fdt.extend(words(&[1]));
        fdt.extend(b"mem@0\0\0\0");
        fdt.extend(words(&[3, 4, 0, 7, 1, 0x6100_0000, 2, 2]));
        fdt.extend(words(&[1, 0x6200_0000, 2, 2, 9]));
        let tail = fdt.len() - 20;
        let after = fdt[tail..].to_vec();
        assert_eq!(remove_nodes(&mut fdt, "mem@"), 1);
        assert_eq!(fdt[20..tail], words(&[4; 11]));
        assert_eq!(fdt[tail..], after);
    }
}
