//! The test machine, as a QEMU command line: `virt` with GICv4, an SMMU and one NVMe disk, or more of them for domUs.
//!
//! Disks are in fixed slots of the PCI bus. What a test adds by itself gets other ones.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::disk_image::{self, Contents};
use crate::domu::{self, DomU, Extras, TreeEdit};
use crate::fail::{Failure, Outcome};
use crate::setup::gicv41;
use crate::{paths, sh};

/// The distribution's QEMU.
const PROGRAM: &str = "qemu-system-aarch64";

/// Where RAM starts on `virt`.
pub const RAM: u64 = 0x4000_0000;

/// Address of the boot modules. QEMU loads the image 2 MiB into RAM and the device tree at 128 MiB.
const MODULES: u64 = RAM + (160 << 20);

/// Offset of the initramfs from the kernel. The kernel may clear memory behind its file, but is moved before it runs.
const KERNEL_ROOM: u64 = 64 << 20;

/// Address of the files of domUs, after those of dom0.
const DOMUS: u64 = MODULES + (192 << 20);

/// The start of dom0's command line.
const CONSOLE: &str = "console=ttyAMA0";

/// The slot of the NVMe disk, and that of the disk that firmware boots from.
const DISK_SLOT: usize = 1;
const BOOT_SLOT: usize = 2;
/// The slot of the first disk for a domU. Those of the others follow.
const DOMU_SLOT: usize = 3;
/// The most disks for domUs. From slot 8 on the bus is free.
pub const DOMU_DISKS: usize = 5;

/// The PCI function that is disk `index` for a domU.
pub fn domu_disk(index: usize) -> String {
    format!("0000:00:{:02x}.0", DOMU_SLOT + index)
}

/// What QEMU starts.
#[derive(Clone, Debug)]
pub enum Boot {
    /// The hypervisor's image, with dom0's kernel and initramfs in memory as boot modules.
    Doorward,
    /// The guest's kernel without the hypervisor, to compare with.
    Bare,
    /// UEFI firmware, which finds the hypervisor's image on a disk.
    Uefi(Uefi),
    /// Whatever the flags in `extra` load.
    Loader,
}

/// How the firmware describes the machine.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// By a device tree.
    Fdt,
    /// By ACPI tables alone.
    Acpi,
}

/// A boot by UEFI firmware.
#[derive(Clone, Debug)]
pub struct Uefi {
    /// The disk to boot from: [`Machine::make_disk_image`] makes it.
    pub disk: PathBuf,
    /// How the firmware describes the machine.
    pub tables: Tables,
}

/// The content of the NVMe disk.
#[derive(Clone, Debug)]
pub enum Disk {
    /// A file that the guest may change.
    File(PathBuf),
    /// A file that is not changed: writes go to a temporary file.
    Scratch(PathBuf),
    /// Like [`Disk::Scratch`], limited to 100 I/Os a second, so that a vCPU that waits for one goes to sleep. From the host's
    /// page cache a read may be complete before the guest's CPU is idle.
    Slow(PathBuf),
    /// A disk without content that completes at once, for counting.
    Null,
    /// No controller.
    None,
}

impl Disk {
    /// The flags of a controller with this disk in a slot of the PCI bus: `-drive`, the drive, `-device`, the controller.
    fn flags(&self, id: &str, serial: &str, slot: usize) -> Vec<String> {
        let drive = match self {
            Disk::File(path) => format!("file={},format=raw", escaped(path)),
            Disk::Scratch(path) => format!("file={},format=raw,snapshot=on", escaped(path)),
            Disk::Slow(path) => format!("file={},format=raw,snapshot=on,throttling.iops-total=100", escaped(path)),
            Disk::Null => "driver=null-co,size=256M,read-zeroes=on".to_owned(),
            Disk::None => return Vec::new(),
        };
        let (drive, device) =
            (format!("if=none,id={id},{drive}"), format!("nvme,serial={serial},drive={id},addr={slot:#x}"));
        vec!["-drive".to_owned(), drive, "-device".to_owned(), device]
    }
}

/// One machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// QEMU's program.
    pub program: PathBuf,
    /// What QEMU starts.
    pub boot: Boot,
    /// The hypervisor's image.
    pub image: PathBuf,
    /// The guest's kernel.
    pub kernel: Option<PathBuf>,
    /// The guest's initramfs.
    pub initrd: Option<PathBuf>,
    /// The guest's command line.
    pub append: String,
    /// The hypervisor's command line.
    pub hv: String,
    /// `/chosen/xen,xen-bootargs`: the hypervisor's command line instead of `hv`, which is then dom0's.
    pub own_words: Option<String>,
    /// The NVMe disk.
    pub disk: Disk,
    /// Number of CPUs.
    pub smp: u32,
    /// RAM, in the format of QEMU's `-m`.
    pub mem: String,
    /// CPU model.
    pub cpu: String,
    /// Properties of the machine after `virt`.
    pub properties: String,
    /// QEMU's log, with guest errors.
    pub log: Option<PathBuf>,
    /// The domUs.
    pub domus: Vec<DomU>,
    /// Disks for domUs, each an NVMe controller of its own: see [`domu_disk`].
    pub domu_disks: Vec<Disk>,
    /// Changes of QEMU's device tree.
    pub edits: Vec<TreeEdit>,
    /// Path of a QMP socket.
    pub qmp: Option<PathBuf>,
    /// Whether to wait for a debugger on port 1234.
    pub gdb: bool,
    /// More flags for QEMU.
    pub extra: Vec<String>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            program: PROGRAM.into(),
            boot: Boot::Doorward,
            image: paths::image(),
            kernel: Some(paths::linux()),
            initrd: Some(paths::initramfs()),
            append: CONSOLE.into(),
            hv: String::new(),
            own_words: None,
            disk: Disk::Scratch(paths::disk()),
            smp: 4,
            mem: "2G".into(),
            cpu: "max".into(),
            properties: "virtualization=on,gic-version=4,iommu=smmuv3,dtb-randomness=off".into(),
            log: None,
            domus: Vec::new(),
            domu_disks: Vec::new(),
            edits: Vec::new(),
            qmp: None,
            gdb: false,
            extra: Vec::new(),
        }
    }
}

/// A GICv4.1 and what makes it unkind: see `scripts/qemu-gicv41/README.md`.
#[derive(Clone)]
pub struct Gicv41 {
    /// The QEMU of `setup --gicv41`.
    pub program: PathBuf,
    /// Properties of the machine, each after a comma.
    pub properties: &'static str,
    /// Properties of devices.
    pub globals: &'static [&'static str],
}

/// GITS_TRANSLATER on `virt`, without and with a GICv4.1, whose ITS is elsewhere.
const TRANSLATER: u64 = 0x0809_0040;
const TRANSLATER_V41: u64 = 0x0b01_0040;

impl Machine {
    /// GITS_TRANSLATER of the machine's first ITS: a store to it is an MSI.
    pub fn translater(&self) -> u64 {
        if self.has_gicv41() { TRANSLATER_V41 } else { TRANSLATER }
    }

    /// Whether the machine's GIC is a GICv4.1.
    pub fn has_gicv41(&self) -> bool {
        self.properties.contains("gic-version=4.1")
    }

    /// This machine with a GICv4.1, which the QEMU of `setup --gicv41` has.
    pub fn with_gicv41(self) -> Outcome<Self> {
        Ok(self.on_gicv41(&Gicv41 { program: gicv41::required()?, properties: "", globals: &[] }))
    }

    /// This machine with this GICv4.1.
    pub fn on_gicv41(mut self, gic: &Gicv41) -> Self {
        self.program.clone_from(&gic.program);
        self.properties = self.properties.replace("gic-version=4", "gic-version=4.1") + gic.properties;
        self.extra.extend(gic.globals.iter().flat_map(|global| ["-global".to_owned(), (*global).to_owned()]));
        self
    }

    /// The command, without a console: see [`Machine::batch`] and [`Machine::interactive`].
    pub fn command(&self) -> Outcome<Command> {
        let mut qemu = Command::new(&self.program);
        let tables = match &self.boot {
            Boot::Uefi(Uefi { tables: Tables::Fdt, .. }) => ",acpi=off",
            _ => "",
        };
        qemu.args(["-M", &format!("virt,{}{tables}", self.properties), "-cpu", &self.cpu]);
        qemu.args(["-smp", &self.smp.to_string(), "-m", &self.mem, "-nodefaults", "-display", "none"]);
        match self.boot {
            Boot::Doorward => {
                qemu.arg("-kernel").arg(&self.image).args(["-append", &self.hv]);
                qemu.args(self.modules(MODULES));
            }
            Boot::Bare => {
                let kernel = self.kernel.as_ref().ok_or_else(|| Failure::usage("--bare needs a kernel"))?;
                qemu.arg("-kernel").arg(kernel).args(["-append", &self.append]);
                if let Some(initrd) = &self.initrd {
                    qemu.arg("-initrd").arg(initrd);
                }
            }
            Boot::Uefi(_) => {
                qemu.arg("-bios").arg(paths::firmware());
            }
            Boot::Loader => {}
        }
        qemu.args(self.disk.flags("nvm", "doorward", DISK_SLOT));
        for (index, disk) in self.domu_disks.iter().enumerate() {
            qemu.args(disk.flags(&format!("domu{index}"), &format!("doorward-domu-{index}"), DOMU_SLOT + index));
        }
        if let Boot::Uefi(uefi) = &self.boot {
            let [drive, disk, device, controller] = Disk::Scratch(uefi.disk.clone())
                .flags("boot", "doorward-boot", BOOT_SLOT)
                .try_into()
                .expect("a disk has two devices");
            qemu.args([drive, disk, device, format!("{controller},bootindex=0")]);
        }
        if let Some(log) = &self.log {
            qemu.args(["-d", "guest_errors,unimp", "-D"]).arg(log);
        }
        if let Some(socket) = &self.qmp {
            qemu.args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        }
        if self.gdb {
            qemu.args(["-s", "-S"]);
        }
        qemu.args(&self.extra);
        // By UEFI, they are on the disk.
        let domains = if matches!(self.boot, Boot::Uefi(_)) { &[] } else { &self.domus[..] };
        let extras = Extras { domains, own_words: self.own_words.as_deref(), edits: &self.edits };
        if extras.any() {
            let tree = self
                .log
                .as_ref()
                .map_or_else(|| paths::target().join("domu.dtb"), |log| log.with_file_name("domu.dtb"));
            domu::equip(&mut qemu, &extras, DOMUS, &tree)?;
        }
        Ok(qemu)
    }

    /// The content of the disk that firmware boots from.
    pub fn contents(&self) -> Contents {
        Contents {
            board: "qemu-uefi".into(),
            image: self.image.clone(),
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            // The board's configuration names the console already.
            append: self.append.replacen(CONSOLE, "", 1).trim().into(),
            hv: self.hv.clone(),
            domus: self.domus.clone(),
            root: None,
        }
    }

    /// Makes the disk that firmware boots from, if the machine boots by firmware.
    pub fn make_disk_image(&self) -> Outcome {
        match &self.boot {
            Boot::Uefi(uefi) => disk_image::write(&uefi.disk, &self.contents()),
            _ => Ok(()),
        }
    }

    /// The command of a batch run: the console is on the standard streams, and QEMU ends when the machine is reset.
    pub fn batch(&self) -> Outcome<Command> {
        let mut qemu = self.command()?;
        qemu.args(["-serial", "stdio", "-no-reboot"]);
        Ok(qemu)
    }

    /// The command of a run on a terminal. QEMU's escape character is Ctrl-], as the hypervisor uses Ctrl-A.
    pub fn interactive(&self) -> Outcome<Command> {
        let mut qemu = self.command()?;
        qemu.args(["-serial", "mon:stdio", "-echr", "0x1d"]);
        Ok(qemu)
    }

    /// The flags that load kernel and initramfs at `start` and describe them under `/chosen`.
    pub fn modules(&self, start: u64) -> Vec<String> {
        let mut flags = Vec::new();
        if let Some(kernel) = &self.kernel {
            let words = self.append.replace(',', ",,");
            flags.push("-device".to_owned());
            flags.push(format!("guest-loader,addr={start:#x},kernel={},bootargs={words}", escaped(kernel)));
        }
        if let Some(initrd) = &self.initrd {
            flags.push("-device".to_owned());
            flags.push(format!("guest-loader,addr={:#x},initrd={}", start + KERNEL_ROOM, escaped(initrd)));
        }
        flags
    }
}

/// A path as part of one of QEMU's comma-separated values.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// Splits text into words as a shell does: at blanks outside quotes.
pub fn split_words(text: &str) -> Outcome<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in text.chars() {
        match quote {
            Some(end) if c == end => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            None => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(Failure::usage(format!("a quote is not closed in `{text}`")));
    }
    words.extend(word);
    Ok(words)
}

/// The command as one line to paste into a shell.
pub fn shown(command: &Command) -> String {
    sh::shown(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_split_at_blanks_outside_quotes() {
        assert_eq!(split_words("-d int  -D 'a b.log' \"\"").unwrap(), ["-d", "int", "-D", "a b.log", ""]);
        assert!(split_words("'open").is_err());
    }

    #[test]
    fn commas_in_the_command_line_reach_the_guest() {
        let machine = Machine {
            append: "console=ttyAMA0,115200".into(),
            kernel: Some("/dev/null".into()),
            initrd: None,
            ..Machine::default()
        };
        assert!(machine.modules(0)[1].ends_with("bootargs=console=ttyAMA0,,115200"));
    }
}
