//! `run`: boots the hypervisor and a Linux on QEMU, on a terminal or as a batch run with an exit code.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::domu::DomU;
use crate::exit_count::Clock;
use crate::fail::{Doing, Failure, Outcome, TIMED_OUT};
use crate::image::{self, ProfileFlags};
use crate::qemu::{self, Boot, Disk, Machine, Tables, Uefi};
use crate::session::{Echo, End, Event, Input, Session};
use crate::{exit_count, paths, setup};

/// Boot dom0 under the hypervisor on QEMU
#[derive(clap::Args)]
#[command(after_help = "\
On a terminal the console is the terminal: Ctrl-A three times moves the keyboard on to the next domain, after the last
one to the hypervisor's debug keys and then back to dom0; Ctrl-] then x ends QEMU. With --timeout or --count-exits, or
if standard input is no terminal, it is a batch run, which ends when the machine does.

Exit codes of a batch run: 0 the machine powered off, 1 the hypervisor panicked or refused to start, or QEMU failed,
2 wrong usage, 124 the time ran out.")]
pub struct Options {
    /// dom0's kernel, a raw arm64 Image, or `none` [default: the Linux of `setup`]
    #[arg(long, value_name = "FILE|none")]
    kernel: Option<String>,
    /// dom0's initramfs, or `none` [default: the test initramfs of `setup`]
    #[arg(long, value_name = "FILE|none")]
    initrd: Option<String>,
    /// Words to add to dom0's command line. In the test initramfs dw.test=NAME runs
    /// tests/linux/cases/NAME with the argument dw.arg=TEXT, then powers off
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true, verbatim_doc_comment)]
    append: Option<String>,
    /// The hypervisor's command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true, default_value = "", hide_default_value = true)]
    hv: String,
    /// A raw image for the NVMe disk, which the guest may change; `null` for a disk without
    /// content that completes at once, `none` for no disk
    /// [default: the disk of `setup`, whose content is known; writes to it are dropped]
    #[arg(long, value_name = "FILE|null|none", verbatim_doc_comment)]
    disk: Option<String>,
    /// CPUs of the machine [default: 4]
    #[arg(long, value_name = "N")]
    smp: Option<u32>,
    /// Memory of the machine, with a suffix M or G [default: 2G]
    #[arg(long, value_name = "SIZE")]
    mem: Option<String>,
    /// QEMU's CPU model [default: max]
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    #[arg(
        long,
        value_name = "KERNEL[,...]",
        help = "A domU: KERNEL[,initrd=FILE][,dtb=FILE][,cpus=N][,mem=SIZE][,weight=N]\n\
                [,cap=PERCENT][,pci=BDF][,pci-allow-no-reset][,append=WORDS], append= last; pci= is a\n\
                function that it gets, such as 00:03.0, and may be there more than once, as\n\
                --domu may; dtb= is a partial device tree with platform devices that it gets\n\
                [default: cpus=1, mem=256M]"
    )]
    domu: Vec<String>,
    /// An NVMe disk for a domU: an image or `null`, as for --disk, or `known` for a disk of
    /// known content whose writes are dropped; the first is function 00:03.0, the second
    /// 00:04.0, up to 00:07.0
    #[arg(long, value_name = "DISK", verbatim_doc_comment)]
    domu_disk: Vec<String>,
    /// A batch run that is killed after so many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<f64>,
    /// Write the console to this file, too (batch runs only)
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// A batch run on QEMU's clock of instructions that counts exceptions to EL2 while
    /// dw.test=count does its I/O (dw.arg=BLOCKSIZE,IODEPTH,JOBS); the table goes to FILE,
    /// QEMU's log to FILE.raw
    #[arg(long, value_name = "FILE", verbatim_doc_comment)]
    count_exits: Option<PathBuf>,
    /// Boot by UEFI firmware from a second NVMe disk, as `image --board qemu-uefi` makes it; the
    /// firmware describes the machine by a device tree or by ACPI tables alone
    #[arg(long, value_name = "fdt|acpi", verbatim_doc_comment, hide_possible_values = true, conflicts_with = "bare")]
    uefi: Option<Tables>,
    /// On a machine with a GICv4.1 instead of a GICv4.0 (see `setup --gicv41`)
    #[arg(long)]
    gicv41: bool,
    /// Boot the same Linux without the hypervisor
    #[arg(long)]
    bare: bool,
    /// More flags for QEMU, as one argument
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true)]
    qemu: Option<String>,
    /// Wait for a debugger on TCP port 1234
    #[arg(long)]
    gdb: bool,
    /// Print QEMU's command line and exit
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    profile: ProfileFlags,
}

impl Options {
    /// The machine that is asked for.
    fn machine(&self) -> Outcome<Machine> {
        let mut machine = Machine::default();
        let given = |path: &String| -> Option<PathBuf> { (path != "none").then(|| path.into()) };
        if let Some(kernel) = &self.kernel {
            machine.kernel = given(kernel);
        }
        if let Some(initrd) = &self.initrd {
            machine.initrd = given(initrd);
        }
        if let Some(words) = &self.append {
            machine.append = format!("{} {words}", machine.append);
        }
        machine.hv.clone_from(&self.hv);
        machine.disk = match self.disk.as_deref() {
            None => machine.disk,
            Some("none") => Disk::None,
            Some("null") => Disk::Null,
            Some(disk) => Disk::File(disk.into()),
        };
        machine.domus = self.domu.iter().map(|text| DomU::parse(text)).collect::<Outcome<_>>()?;
        let disk = |text: &String| match text.as_str() {
            "null" => Disk::Null,
            "known" => Disk::Scratch(paths::domu_disk()),
            file => Disk::File(file.into()),
        };
        if self.domu_disk.len() > qemu::DOMU_DISKS {
            return Err(Failure::usage(format!("--domu-disk: more than {} disks", qemu::DOMU_DISKS)));
        }
        machine.domu_disks = self.domu_disk.iter().map(disk).collect();
        machine.smp = self.smp.unwrap_or(machine.smp);
        machine.mem = self.mem.clone().unwrap_or(machine.mem);
        machine.cpu = self.cpu.clone().unwrap_or(machine.cpu);
        machine.gdb = self.gdb;
        if self.bare {
            machine.boot = Boot::Bare;
        }
        if let Some(tables) = self.uefi {
            machine.boot = Boot::Uefi(Uefi { disk: paths::target().join("uefi.raw"), tables });
        }
        if let Some(extra) = &self.qemu {
            machine.extra.extend(qemu::split_words(extra)?);
        }
        if self.gicv41 {
            setup::ensure_gicv41()?;
            machine = machine.with_gicv41()?;
        }
        Ok(machine)
    }
}

/// The verb.
pub fn verb(options: Options) -> Outcome {
    let mut machine = options.machine()?;
    let limit = options.timeout.map(Duration::try_from_secs_f64).transpose();
    let limit = limit.map_err(|why| Failure::usage(format!("--timeout: {why}")))?;
    let counts = options.count_exits;

    let batch = limit.is_some() || counts.is_some() || !std::io::stdin().is_terminal();
    if let Some(file) = &counts {
        exit_count::prepare(&mut machine, file, Clock::Instructions);
    }
    if options.dry_run {
        let command = if batch { machine.batch() } else { machine.interactive() };
        println!("{}", qemu::shown(&command?));
        return Ok(());
    }
    setup::ensure()?;
    if matches!(machine.boot, Boot::Doorward | Boot::Uefi(_)) {
        image::build(options.profile.profile())?;
    }
    machine.make_disk_image()?;
    if !batch {
        return on_terminal(&machine);
    }
    let input = if std::io::stdin().is_terminal() || counts.is_some() { Input::Typed } else { Input::Stdin };
    let mut session = Session::start(machine.batch()?, Echo::Stdout, input, options.log.as_deref(), limit)?;
    let mut window = counts.as_ref().map(|_| exit_count::Window::new(&machine, Clock::Instructions));
    let end = loop {
        match session.next() {
            Event::Line(line) => {
                if let Some(window) = &mut window {
                    window.line(&mut session, &line)?;
                }
            }
            Event::Ended(end) => break end,
        }
    };
    if let Some(file) = &counts {
        exit_count::report(file)?;
    }
    match end {
        End::Off => Ok(()),
        End::TimedOut => {
            let seconds = limit.unwrap_or_default().as_secs_f64();
            Err(Failure { code: TIMED_OUT, text: format!("the machine was still on after {seconds} s") })
        }
        // It is on the console.
        End::Fatal(_) => Err(Failure::silent(1)),
        End::Broken(why) => Err(Failure::new(why)),
    }
}

/// Runs the machine with its console on this terminal.
fn on_terminal(machine: &Machine) -> Outcome {
    println!("Ctrl-A three times moves the keyboard on, to the debug keys at last. Ctrl-] then x ends QEMU.");
    if machine.gdb {
        println!("waiting for a debugger: gdb {} -ex 'target remote :1234'", paths::elf().display());
    }
    let mut command = machine.interactive()?;
    let status = command.stdin(Stdio::inherit()).status().doing(qemu::shown(&command))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("QEMU ended with {status}"))) }
}
