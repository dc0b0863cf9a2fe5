//! The image as an EFI application, on EDK2: the ways it is started, the ways its machine is described, and what sends it
//! back to the firmware.

use crate::medium;
use crate::qemu::{Boot, Machine, Tables, Uefi};
use crate::session::End;
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case(
            "uefi-one-file",
            "one file as a raw Image, as BOOTAA64.EFI of a disk, and by -kernel with firmware",
            one_file,
        ),
        case("uefi-shell", "started from the UEFI shell, another section by name, words behind --", from_shell),
        case("uefi-fio", "five fio jobs after a boot by UEFI", |lab| {
            let transcript = run(lab, &from_disk(lab, "fio", Tables::Fdt), 180)?;
            let jobs = transcript.said("job").count();
            if jobs == 5 { Ok(()) } else { Err(format!("{jobs} jobs ended, not 5")) }
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
        case("uefi-refuse-gicv2", "a machine that cannot be used is named before the firmware is left", |lab| {
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

/// Makes the disk, runs the machine and judges what it says; the disk is not kept.
fn run(lab: &Lab, machine: &Machine, seconds: u64) -> Result<Transcript, String> {
    machine.medium().map_err(|failure| failure.text)?;
    let transcript = lab.linux_run(machine, seconds);
    forget(machine);
    transcript
}

/// Disks are large, and made again in a second.
fn forget(machine: &Machine) {
    if let Boot::Uefi(uefi) = &machine.boot {
        let _ = std::fs::remove_file(&uefi.disk);
    }
}

/// The three ways to start the image that was built: one file, byte for byte.
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

/// A line of the console, whatever stands before it.
fn says(transcript: &Transcript, words: &str) -> Verdict {
    if transcript.lines.iter().any(|(_, line)| line.contains(words)) {
        Ok(())
    } else {
        Err(format!("the console does not say `{words}`"))
    }
}

/// QEMU gives the very file that it would start as a raw Image to the firmware, which starts it as an application. The
/// configuration is on the disk, the RAM disk comes with `-initrd`.
fn by_kernel(lab: &Lab) -> Verdict {
    let mut machine = from_disk(lab, "boot", Tables::Fdt);
    let initrd = machine.initrd.take().ok_or("no initramfs")?;
    // The disk has no application of its own: what starts is what QEMU brings.
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

/// The disk has a `startup.nsh` and no application where firmware looks for one, so the shell starts, and then us.
fn from_shell(lab: &Lab) -> Verdict {
    let machine = from_disk(lab, "boot", Tables::Fdt);
    let Boot::Uefi(uefi) = &machine.boot else { return Err("not by UEFI".into()) };
    medium::write_with(&uefi.disk, &machine.contents(), |files| {
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

/// The application says why in one line that holds each of `words`, and the firmware has the machine back.
fn refused(lab: &Lab, machine: &Machine, edit: impl Fn(&mut String), words: &[&str]) -> Verdict {
    let Boot::Uefi(uefi) = &machine.boot else { return Err("not by UEFI".into()) };
    medium::write_with(&uefi.disk, &machine.contents(), |files| {
        for (_, bytes) in files.iter_mut().filter(|(name, _)| name.ends_with("doorward.cfg")) {
            let mut text = String::from_utf8_lossy(bytes).into_owned();
            edit(&mut text);
            *bytes = text.into_bytes();
        }
    })
    .map_err(|failure| failure.text)?;
    let mut sentence = None;
    let mut last = String::new();
    let transcript = lab.watch(machine, 60, |session, line| {
        if line.contains("doorward: nothing was started; back to the firmware") {
            sentence = Some(last.clone());
            session.kill();
        }
        last = line.trim().to_owned();
        Ok(())
    });
    forget(machine);
    let end = transcript?.end;
    let Some(sentence) = sentence else {
        let how = if end == End::TimedOut { "time-out".into() } else { format!("{end:?}") };
        return Err(format!("{how}, and no refusal; see {}", lab.dir.join("console.log").display()));
    };
    println!("   {sentence}");
    match words.iter().find(|word| !sentence.contains(**word)) {
        None => Ok(()),
        Some(word) => Err(format!("`{sentence}` does not say `{word}`")),
    }
}
