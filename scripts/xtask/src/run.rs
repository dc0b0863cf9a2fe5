//! `run`: boots the hypervisor with a Linux on QEMU, on a terminal or as a batch run with an exit code.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::args::Args;
use crate::count::Clock;
use crate::domu::DomU;
use crate::fail::{Doing, Failure, Outcome, TIMED_OUT};
use crate::image::{self, Profile};
use crate::qemu::{self, Boot, Disk, Machine, Tables, Uefi};
use crate::session::{Echo, End, Event, Input, Session};
use crate::{count, paths, setup};

/// The verb.
pub fn verb(mut args: Args) -> Outcome {
    let mut machine = Machine::default();
    let given = |path: String| -> Option<PathBuf> { (path != "none").then(|| path.into()) };
    if let Some(kernel) = args.value("--kernel")? {
        machine.kernel = given(kernel);
    }
    if let Some(initrd) = args.value("--initrd")? {
        machine.initrd = given(initrd);
    }
    if let Some(words) = args.value("--append")? {
        machine.append = format!("{} {words}", machine.append);
    }
    machine.hv = args.value("--hv")?.unwrap_or_default();
    if let Some(disk) = args.value("--disk")? {
        machine.disk = match disk.as_str() {
            "none" => Disk::None,
            "null" => Disk::Null,
            _ => Disk::File(disk.into()),
        };
    }
    while let Some(domain) = args.value("--domu")? {
        machine.domus.push(DomU::parse(&domain)?);
    }
    machine.smp = args.number("--smp")?.unwrap_or(machine.smp);
    machine.mem = args.value("--mem")?.unwrap_or(machine.mem);
    machine.cpu = args.value("--cpu")?.unwrap_or(machine.cpu);
    machine.gdb = args.flag("--gdb");
    if args.flag("--bare") {
        machine.boot = Boot::Bare;
    }
    if let Some(tables) = args.value("--uefi")? {
        let tables = match tables.as_str() {
            "fdt" => Tables::Fdt,
            "acpi" => Tables::Acpi,
            _ => return Err(Failure::usage("--uefi fdt or --uefi acpi")),
        };
        machine.boot = Boot::Uefi(Uefi { disk: paths::target().join("uefi.raw"), tables });
    }
    if let Some(extra) = args.value("--qemu")? {
        machine.extra.extend(qemu::split_words(&extra)?);
    }
    let limit = args.number::<f64>("--timeout")?;
    let limit = limit
        .map(Duration::try_from_secs_f64)
        .transpose()
        .map_err(|why| Failure::usage(format!("--timeout: {why}")))?;
    let log = args.value("--log")?.map(PathBuf::from);
    let counts = args.value("--count-exits")?.map(PathBuf::from);
    let profile = Profile::from_args(&mut args)?;
    let dry = args.flag("--dry-run");
    args.finish("run")?;

    let batch = limit.is_some() || counts.is_some() || !std::io::stdin().is_terminal();
    if let Some(file) = &counts {
        count::prepare(&mut machine, file, Clock::Instructions);
    }
    if dry {
        let command = if batch { machine.batch() } else { machine.interactive() };
        println!("{}", qemu::shown(&command?));
        return Ok(());
    }
    setup::ensure()?;
    if matches!(machine.boot, Boot::Doorward | Boot::Uefi(_)) {
        image::build(profile)?;
    }
    machine.medium()?;
    if !batch {
        return on_terminal(&machine);
    }
    let input = if std::io::stdin().is_terminal() || counts.is_some() { Input::Typed } else { Input::Stdin };
    let mut session = Session::start(machine.batch()?, Echo::Stdout, input, log.as_deref(), limit)?;
    let mut window = counts.as_ref().map(|_| count::Window::new(&machine, Clock::Instructions));
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
        count::report(file)?;
    }
    match end {
        End::Off => Ok(()),
        End::TimedOut => {
            let seconds = limit.unwrap_or_default().as_secs_f64();
            Err(Failure { code: TIMED_OUT, text: format!("the machine was still on after {seconds} s") })
        }
        // The console has said it.
        End::Fatal(_) => Err(Failure::silent(1)),
        End::Broken(why) => Err(Failure::new(why)),
    }
}

/// The console is the terminal.
fn on_terminal(machine: &Machine) -> Outcome {
    println!("Ctrl-A three times: the hypervisor's console and back. Ctrl-] then x: ends QEMU.");
    if machine.gdb {
        println!("waiting for a debugger: gdb {} -ex 'target remote :1234'", paths::elf().display());
    }
    let mut command = machine.interactive()?;
    let status = command.stdin(Stdio::inherit()).status().doing(qemu::shown(&command))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("QEMU ended with {status}"))) }
}
