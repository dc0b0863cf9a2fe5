//! The image as an EFI application on EDK2: ways to start it, ways to describe its machine, and errors that return to the
//! firmware.

use crate::domu::DomU;
use crate::qemu::{Boot, Disk, Machine, Tables, Uefi};
use crate::session::End;
use crate::test::cases::guests;
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};
use crate::{disk_image, image};

use super::{domains, refuse};

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case(
            "uefi-one-file",
            "the same file as a raw Image, as BOOTAA64.EFI of a disk, and by -kernel with firmware",
            one_file,
        ),
        case("uefi-shell", "started from the UEFI shell with the name of a section, and options after --", from_shell),
        case("uefi-fio-fdt", "boot from an NVMe disk by device tree, fio on a second disk", |lab| {
            fio(lab, from_disk(lab, "fio", Tables::Fdt), 4)
        }),
        case("uefi-fio-acpi", "the same with ACPI tables, GICv4, 4 CPUs; dom0 has ACPI", |lab| {
            fio(lab, acpi(lab, 4, ""), 4)
        }),
        case("uefi-fio-acpi-8", "the same with 8 CPUs", |lab| fio(lab, acpi(lab, 8, ""), 8)),
        case("uefi-fio-acpi-v3", "the same with a GICv3 and 4 CPUs", |lab| fio(lab, gicv3(acpi(lab, 4, "")), 4)),
        case("uefi-fio-acpi-v3-8", "the same with a GICv3 and 8 CPUs", |lab| fio(lab, gicv3(acpi(lab, 8, "")), 8)),
        case("uefi-fio-acpi-off", "ACPI tables, GICv4; dom0 has a device tree made from them", |lab| {
            fio(lab, acpi(lab, 4, &format!("dom0_acpi=off pci_windows={WINDOWS}")), 4)
        }),
        case(
            "uefi-acpi-same",
            "dom0 has the same functions and interrupts with ACPI and with dom0_acpi=off",
            same_devices,
        ),
        case("uefi-domain", "with ACPI tables, a domU that doorward.cfg describes boots as in domain-linux", |lab| {
            let mut machine = Machine { domus: vec![domains::second_domu()], ..from_disk(lab, "until", Tables::Acpi) };
            machine.hv = domains::HV.into();
            machine.append += " earlycon=pl011,0x9000000";
            machine.make_disk_image().map_err(|failure| failure.text)?;
            let verdict = domains::second_linux(lab, &machine);
            forget(&machine);
            verdict
        }),
        case("uefi-walk", "a guest as dom0's kernel, with ACPI tables, breaks its tables as in walk", |lab| {
            let kernel = lab.dir.join("kernel");
            image::build_guest("guest-walk", &kernel).map_err(|failure| failure.text)?;
            let machine = Machine { kernel: Some(kernel), initrd: None, disk: Disk::None, ..acpi(lab, 1, "") };
            machine.make_disk_image().map_err(|failure| failure.text)?;
            let verdict = guests::walk(lab, machine.clone());
            forget(&machine);
            verdict
        }),
        case("uefi-refuse-el1", "firmware at EL1", |lab| {
            let machine = Machine { properties: "gic-version=3".into(), ..from_disk(lab, "boot", Tables::Fdt) };
            refused(lab, &machine, |_| (), &["EL1"])
        }),
        case("uefi-refuse-no-kernel", "a kernel that is not on the disk", |lab| {
            refused(
                lab,
                &Machine { kernel: None, ..from_disk(lab, "boot", Tables::Fdt) },
                |_| (),
                &["\\EFI\\BOOT\\Image"],
            )
        }),
        case("uefi-refuse-no-image", "a kernel that is compressed", |lab| {
            let kernel = lab.dir.join("vmlinuz");
            std::fs::write(&kernel, [b"\x1f\x8b\x08\0".as_slice(), &[0; 4096]].concat()).map_err(|e| e.to_string())?;
            let machine = Machine { kernel: Some(kernel), ..from_disk(lab, "boot", Tables::Fdt) };
            refused(lab, &machine, |_| (), &["Image", "gzip"])
        }),
        case("uefi-refuse-config", "a configuration with a mistyped key", |lab| {
            let mistype = |text: &mut String| *text = text.replace("ramdisk=", "ramdsik=");
            refused(lab, &from_disk(lab, "boot", Tables::Fdt), mistype, &["doorward.cfg", "line ", "ramdsik="])
        }),
        case("uefi-refuse-domain", "a domU of doorward.cfg with a mistyped PCI function", |lab| {
            let domus = vec![DomU { pci: vec!["0000:01:00.0".into(), "01:00.0".into()], ..domains::second_domu() }];
            let machine = Machine { domus, ..from_disk(lab, "boot", Tables::Acpi) };
            refused(lab, &machine, |_| (), &["doorward.cfg", "line ", "pci=01:00.0", "SSSS:BB:DD.F"])
        }),
        case("uefi-refuse-off", "after the firmware has been left, onpanic=off powers the machine off", |lab| {
            let hv = "onpanic=off sched=none".into();
            let machine = Machine { hv, ..from_disk(lab, "boot", Tables::Fdt) };
            machine.make_disk_image().map_err(|failure| failure.text)?;
            let verdict = refuse::switched_off(lab, machine.clone());
            forget(&machine);
            verdict
        }),
        case("uefi-refuse-gicv2", "an unusable machine is reported before the firmware is left", |lab| {
            let properties = "virtualization=on,gic-version=2".into();
            refused(lab, &Machine { properties, ..from_disk(lab, "boot", Tables::Fdt) }, |_| (), &["GICv2"])
        }),
    ]
}

/// The machine of this case, booting from a disk.
fn from_disk(lab: &Lab, test: &str, tables: Tables) -> Machine {
    let disk = lab.dir.join("boot.raw");
    Machine { boot: Boot::Uefi(Uefi { disk, tables }), cpu: "neoverse-v1".into(), ..lab.linux(test, "") }
}

/// QEMU's PCI windows, which only AML describes (see boards/qemu-uefi).
pub(super) const WINDOWS: &str =
    "0:io:0x3eff0000+0x10000,0:mem32:0x10000000+0x2eff0000,0:mem64:0x8000000000+0x8000000000";

/// A machine that firmware describes by ACPI tables. dom0 runs fio's jobs.
pub(super) fn acpi(lab: &Lab, smp: u32, hv: &str) -> Machine {
    let mut machine = Machine { smp, hv: hv.into(), ..from_disk(lab, "fio", Tables::Acpi) };
    // Without it, a Linux with ACPI prints nothing until the console's driver is loaded.
    machine.append += " earlycon=pl011,0x9000000";
    machine
}

fn gicv3(machine: Machine) -> Machine {
    Machine { properties: machine.properties.replace("gic-version=4", "gic-version=3"), ..machine }
}

/// Compares PCI functions and interrupts of a dom0 with ACPI and one with a device tree. Controller and event of each interrupt,
/// and so the DeviceIDs, must be the same.
fn same_devices(lab: &Lab) -> Verdict {
    let mut seen = Vec::new();
    for hv in [String::new(), format!("dom0_acpi=off pci_windows={WINDOWS}")] {
        let mut machine = acpi(lab, 4, &hv);
        machine.append = machine.append.replace("dw.test=fio", "dw.test=devices");
        let transcript = run(lab, &machine, 180)?;
        let mut said: Vec<String> =
            ["pci", "irq"].iter().flat_map(|kind| transcript.said(kind)).map(String::from).collect();
        // A host bridge and two disks, each with an interrupt for its administration and one for each CPU.
        let disks = transcript.said("pci").filter(|device| device.ends_with("msis 5")).count();
        if disks != 2 || transcript.said("irq").count() != 10 {
            return Err(format!("{disks} disks with 5 MSIs, not 2: {said:?}"));
        }
        // The disks are probed at the same time, in any order.
        said.sort();
        seen.push(said);
    }
    seen[0].iter().for_each(|line| println!("   {line}"));
    if seen[0] == seen[1] { Ok(()) } else { Err(format!("by ACPI {:?}, by a device tree {:?}", seen[0], seen[1])) }
}

/// Checks that five jobs succeed on the second disk, with `cpus` CPUs.
fn fio(lab: &Lab, machine: Machine, cpus: usize) -> Verdict {
    let transcript = run(lab, &machine, 240)?;
    let jobs = transcript.said("job").count();
    if jobs != 5 {
        return Err(format!("{jobs} jobs ended, not 5"));
    }
    says(&transcript, &format!("main: {cpus} CPUs online"))?;
    says(&transcript, &format!("dom0: {cpus} vCPUs"))
}

/// Makes the disk, runs the machine, checks the run and removes the disk.
fn run(lab: &Lab, machine: &Machine, seconds: u64) -> Result<Transcript, String> {
    machine.make_disk_image().map_err(|failure| failure.text)?;
    let transcript = lab.linux_run(machine, seconds);
    forget(machine);
    transcript
}

/// Removes the disk, which is large and quickly made again.
pub(super) fn forget(machine: &Machine) {
    if let Boot::Uefi(uefi) = &machine.boot {
        let _ = std::fs::remove_file(&uefi.disk);
    }
}

/// Starts the same image file in three ways.
fn one_file(lab: &Lab) -> Verdict {
    let raw = lab.linux("boot", "");
    let disk = from_disk(lab, "boot", Tables::Fdt);
    let image = raw.image.clone();
    let before = std::fs::read(&image).map_err(|error| error.to_string())?;
    println!("   as a raw Image");
    four_cpus(&lab.linux_run(&raw, 60)?)?;
    println!("   as BOOTAA64.EFI of a disk");
    four_cpus(&run(lab, &disk, 120)?)?;
    println!("   by -kernel, with firmware");
    by_kernel(lab)?;
    let after = std::fs::read(&image).map_err(|error| error.to_string())?;
    if before == after { Ok(()) } else { Err(format!("{} changed between the boots", image.display())) }
}

fn four_cpus(transcript: &Transcript) -> Verdict {
    match transcript.number("cpus")? {
        4 => Ok(()),
        cpus => Err(format!("dom0 has {cpus} CPUs, not 4")),
    }
}

/// Checks that a line of the console contains `words`.
fn says(transcript: &Transcript, words: &str) -> Verdict {
    if transcript.lines.iter().any(|(_, line)| line.contains(words)) {
        Ok(())
    } else {
        Err(format!("the console has no `{words}`"))
    }
}

/// QEMU passes the file that it would start as a raw Image to the firmware, which starts it as an application. The configuration
/// is on the disk, and the RAM disk comes with `-initrd`.
fn by_kernel(lab: &Lab) -> Verdict {
    let mut machine = from_disk(lab, "boot", Tables::Fdt);
    let initrd = machine.initrd.take().ok_or("no initramfs")?;
    // The disk has no valid application, so that the one from QEMU is started.
    let application = machine.image.clone();
    machine.image = lab.dir.join("nothing");
    std::fs::write(&machine.image, "not this one").map_err(|error| error.to_string())?;
    machine.extra.extend(["-kernel".into(), application.display().to_string()]);
    machine.extra.extend(["-initrd".into(), initrd.display().to_string()]);
    machine.extra.extend(["-append".into(), "linux -- loglvl=debug".into()]);
    let transcript = run(lab, &machine, 120)?;
    says(&transcript, "RAM disk from the boot loader")?;
    four_cpus(&transcript)
}

/// The disk has a `startup.nsh` and no application where firmware searches for one, so the firmware starts its shell, which starts the
/// image.
fn from_shell(lab: &Lab) -> Verdict {
    let machine = from_disk(lab, "boot", Tables::Fdt);
    let Boot::Uefi(uefi) = &machine.boot else { return Err("not by UEFI".into()) };
    disk_image::write_with(&uefi.disk, &machine.contents(), |files| {
        for (name, _) in files.iter_mut().filter(|(name, _)| name == "EFI/BOOT/BOOTAA64.EFI") {
            *name = "doorward/other.efi".into();
        }
        for (name, bytes) in files.iter_mut().filter(|(name, _)| name == "EFI/BOOT/doorward.cfg") {
            *name = "doorward/doorward.cfg".into();
            let text = String::from_utf8_lossy(bytes).replace("[linux]", "[other]");
            let text = text.replace("kernel=", "kernel=/EFI/BOOT/").replace("ramdisk=", "ramdisk=\\EFI\\BOOT\\");
            *bytes = format!("{text}\n[linux]\nkernel=nothing\n").into_bytes();
        }
        files.push(("startup.nsh".into(), b"fs0:\r\ncd doorward\r\nother.efi other -- loglvl=debug\r\n".to_vec()));
    })
    .map_err(|failure| failure.text)?;
    let transcript = lab.linux_run(&machine, 150);
    forget(&machine);
    let transcript = transcript?;
    says(&transcript, "booting [other] of \\doorward\\doorward.cfg")?;
    four_cpus(&transcript)
}

/// Checks that the application prints one error message that contains each of `words`, and returns to the firmware.
fn refused(lab: &Lab, machine: &Machine, edit: impl Fn(&mut String), words: &[&str]) -> Verdict {
    let Boot::Uefi(uefi) = &machine.boot else { return Err("not by UEFI".into()) };
    disk_image::write_with(&uefi.disk, &machine.contents(), |files| {
        for (_, bytes) in files.iter_mut().filter(|(name, _)| name.ends_with("doorward.cfg")) {
            let mut text = String::from_utf8_lossy(bytes).into_owned();
            edit(&mut text);
            *bytes = text.into_bytes();
        }
    })
    .map_err(|failure| failure.text)?;
    let mut message = None;
    let mut last = String::new();
    let transcript = lab.watch(machine, 60, |session, line| {
        if line.contains("doorward: nothing was started; back to the firmware") {
            message = Some(last.clone());
            session.kill();
        }
        last = line.trim().to_owned();
        Ok(())
    });
    forget(machine);
    let end = transcript?.end;
    let Some(message) = message else {
        let how = if end == End::TimedOut { "time-out".into() } else { format!("{end:?}") };
        return Err(format!("{how} without an error message; see {}", lab.dir.join("console.log").display()));
    };
    println!("   {message}");
    match words.iter().find(|word| !message.contains(**word)) {
        None => Ok(()),
        Some(word) => Err(format!("`{message}` does not contain `{word}`")),
    }
}
