//! `create`: announces a domain, sends its images, has it built, and starts it.
//!
//! If anything fails on the way, the domain is taken back: by `abort` before it is built, by `destroy` after, and by the
//! hypervisor itself if this program is killed, since that closes the port.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use doorward_api::{
    ALL, Built, CHUNK_MAX, Create as CreateRequest, Image, ImageChunk, ImageKind, Kind, List, Name, Request, Set,
    Setting, Start,
};
use serde_json::json;

use super::{console, passthrough};
use crate::Session;
use crate::cli::Create;
use crate::client::{Client, read};
use crate::config::{Given, Spec};
use crate::fail::{Failure, Outcome};
use crate::port::Port;
use crate::text;

/// How long to wait for the console of a domain that has not been started. It is tried again when the domain runs.
const EARLY: Duration = Duration::from_secs(1);

/// How often the progress is shown.
const PROGRESS: Duration = Duration::from_millis(200);

pub fn create(session: &mut Session, options: &Create) -> Outcome {
    let file = options.file.as_deref().map(Given::read).transpose()?.unwrap_or_default();
    let spec = options.given().or(file).complete()?;
    // Both are opened before anything is asked: a wrong path creates nothing.
    let kernel = Source::open(ImageKind::Kernel, &spec.kernel)?;
    kernel.check_kernel()?;
    let ramdisk = spec.ramdisk.as_deref().map(|path| Source::open(ImageKind::Ramdisk, path)).transpose()?;
    if options.console && !spec.console {
        return Err(Failure::usage(format_args!("{} has no console to connect to", spec.name)));
    }
    if options.dry_run {
        return Ok(());
    }
    let mut client = session.connect()?;
    let mut unbound = Vec::new();
    let made = passthrough::unbind_all(session, &mut client, &spec.pci, &mut unbound)
        .and_then(|()| make(session, &mut client, options, &spec, kernel, ramdisk));
    let Made { id, built, console } = match made {
        Ok(made) => made,
        Err(failure) => {
            // The functions go back before their drivers look at them.
            drop(client);
            unbound.iter().for_each(|function| passthrough::rebind(session, *function));
            return Err(failure);
        }
    };
    drop(client);
    if session.json {
        session.print_json(&json!({
            "name": spec.name,
            "id": id,
            "build_us": built.time_us,
            "longest_step_us": built.longest_step_us,
            "steps": built.steps,
        }))?;
    } else if !options.quiet {
        let how = if options.no_start { "built" } else { "started" };
        eprintln!(
            "{}: {how} as domain {id}; building it took {} us, in {} steps of at most {} us",
            spec.name, built.time_us, built.steps, built.longest_step_us
        );
    }
    if !options.console {
        return Ok(());
    }
    let port = match console {
        Some(port) => port,
        None => console::open(&session.ports, &spec.name, session.patience)?,
    };
    console::attach(session, port, &spec.name)
}

/// A domain that was created.
struct Made {
    id: u32,
    built: Built,
    /// Its console, if it was asked for and was there before the domain was started.
    console: Option<Port>,
}

fn make(
    session: &Session,
    client: &mut Client,
    options: &Create,
    spec: &Spec,
    kernel: Source<'_>,
    ramdisk: Option<Source<'_>>,
) -> Outcome<Made> {
    let request = CreateRequest {
        vcpus: spec.vcpus,
        memory: spec.memory,
        weight: spec.weight,
        cap: spec.cap,
        on_crash: spec.on_crash,
        watchdog_s: spec.watchdog_s,
        console: spec.console,
        direct: spec.direct,
        allow_no_reset: spec.pci_allow_no_reset,
        name: Name::new(&spec.name).map_err(Failure::usage)?,
        cmdline: &spec.cmdline,
        functions: List::of(&spec.pci),
    };
    let domain = client.create(request).map_err(|failure| named(failure, &spec.name))?;
    let show = !options.quiet && std::io::stderr().is_terminal();
    let sent = send(client, domain, kernel, show)
        .and_then(|()| ramdisk.map_or(Ok(()), |ramdisk| send(client, domain, ramdisk, show)));
    if let Err(failure) = sent {
        // If the port is closed, the domain is gone already.
        let _ = client.ask(&Request::Abort(domain));
        return Err(named(failure, &spec.name));
    }
    // If this fails, the hypervisor takes the domain back.
    let body = client.get(&Request::Build(domain)).map_err(|failure| named(failure, &spec.name))?;
    let built = read::<Built>(&body, Kind::Build)?;
    match finish(session, client, options, spec, domain) {
        Ok(console) => Ok(Made { id: domain, built, console }),
        Err(failure) => {
            let _ = client.ask(&Request::Destroy(domain));
            Err(named(failure, &spec.name))
        }
    }
}

/// What is left to do for a domain that is built. Opens its console before it runs, so that its first lines are not lost.
fn finish(session: &Session, client: &mut Client, options: &Create, spec: &Spec, domain: u32) -> Outcome<Option<Port>> {
    for setting in [spec.cpus.map(Setting::Affinity), spec.vwfi.map(Setting::Vwfi)].into_iter().flatten() {
        client.run(&Request::Set(Set { domain, vcpu: ALL, setting }))?;
    }
    let wants_console = options.console.then(|| console::open(&session.ports, &spec.name, EARLY));
    if !options.no_start {
        client.run(&Request::Start(Start { domain, paused: options.paused }))?;
    }
    Ok(wants_console.and_then(Result::ok))
}

fn named(failure: Failure, name: &str) -> Failure {
    Failure { text: format!("{name}: {}", failure.text), ..failure }
}

/// A file that is an image.
struct Source<'a> {
    kind: ImageKind,
    path: &'a Path,
    file: File,
    size: u64,
}

impl<'a> Source<'a> {
    fn open(kind: ImageKind, path: &'a Path) -> Outcome<Source<'a>> {
        let wrong = |why: &dyn std::fmt::Display| {
            Failure::usage(format_args!("the {}, {}: {why}", kind.label(), path.display()))
        };
        let file = File::open(path).map_err(|error| wrong(&error))?;
        let facts = file.metadata().map_err(|error| wrong(&error))?;
        if !facts.is_file() {
            return Err(wrong(&"this is no file"));
        }
        match facts.len() {
            0 => Err(wrong(&"the file is empty")),
            size => Ok(Source { kind, path, file, size }),
        }
    }

    fn failed(&self, why: impl std::fmt::Display) -> Failure {
        Failure::system(format_args!("the {}, {}: {why}", self.kind.label(), self.path.display()))
    }

    /// Finds what is obviously no arm64 Image, before anything is sent. The hypervisor judges what passes.
    fn check_kernel(&self) -> Outcome {
        use std::os::unix::fs::FileExt;
        let mut head = [0; 64];
        let count = self.file.read_at(&mut head, 0).map_err(|error| self.failed(error))?;
        if count == head.len() && head.get(56..60) == Some(b"ARM\x64") {
            return Ok(());
        }
        let failure = |why: &str| Failure::usage(format_args!("the kernel, {}: {why}", self.path.display()));
        let path = self.path.display();
        Err(match &head {
            [0x1f, 0x8b, ..] => {
                failure("it is compressed by gzip").hint(format_args!("unpack it: zcat {path} > Image"))
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                failure("it is compressed by zstd").hint(format_args!("unpack it: zstdcat {path} > Image"))
            }
            [b'M', b'Z', _, _, b'z', b'i', b'm', b'g', ..] => failure("it is an EFI program that unpacks a kernel")
                .hint("take arch/arm64/boot/Image of the kernel's build"),
            [0x7f, b'E', b'L', b'F', ..] => {
                failure("it is an ELF file").hint("take arch/arm64/boot/Image instead of vmlinux")
            }
            _ => failure("it is no arm64 Image")
                .hint("the kernel has to be an uncompressed arm64 Image (arch/arm64/boot/Image)"),
        })
    }
}

/// Sends an image in parts.
fn send(client: &mut Client, domain: u32, mut source: Source<'_>, show: bool) -> Outcome {
    let Source { kind, size, .. } = source;
    client.run(&Request::Image(Image { domain, kind, size }))?;
    let mut buffer = vec![0; CHUNK_MAX];
    let (mut offset, mut shown_at) = (0, Instant::now());
    while offset < size {
        let wanted = usize::try_from(size - offset).unwrap_or(CHUNK_MAX).min(CHUNK_MAX);
        let part = buffer.get_mut(..wanted).unwrap_or_default();
        let count = source.file.read(part).map_err(|error| source.failed(error))?;
        if count == 0 {
            return Err(source.failed("the file has become shorter while it was read"));
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        client.run(&Request::ImageChunk(ImageChunk { domain, kind, offset, bytes }))?;
        offset += count as u64;
        if show && (shown_at.elapsed() >= PROGRESS || offset == size) {
            shown_at = Instant::now();
            let percent = offset.saturating_mul(100) / size;
            eprint!("\r\x1b[K{}: {} of {} ({percent} %)", kind.label(), text::size(offset), text::size(size));
        }
    }
    if show {
        eprintln!();
    }
    Ok(())
}
