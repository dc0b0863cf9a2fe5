//! Ports of the virtio console: finding, opening, reading and writing with a deadline.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;

use crate::fail::{Class, Failure, Outcome};

/// Where Linux lists all ports with their names, also without udev.
const SYSFS: &str = "/sys/class/virtio-ports";

/// How long to wait between attempts to open a port that another program has open.
const AGAIN: Duration = Duration::from_millis(20);

/// Where ports are: files in `folder`, or, if that does not exist, the device files of what `sysfs` lists.
#[derive(Clone, Debug)]
pub struct Ports {
    pub folder: PathBuf,
}

/// An open port.
#[derive(Debug)]
pub struct Port {
    file: File,
    name: String,
}

/// How a read ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Came {
    /// So many bytes.
    Bytes(usize),
    /// The other end is closed, or the port is gone.
    Closed,
    /// Nothing came before the deadline.
    Nothing,
}

impl Ports {
    /// The file of the port with this name.
    fn find(&self, name: &str) -> Option<PathBuf> {
        let by_name = self.folder.join(name);
        if by_name.exists() {
            return Some(by_name);
        }
        let listed = fs::read_dir(SYSFS).ok().filter(|_| !self.folder.exists())?;
        let mut ports = listed
            .flatten()
            .filter(|port| fs::read_to_string(port.path().join("name")).is_ok_and(|found| found.trim_end() == name));
        ports.next().map(|port| Path::new("/dev").join(port.file_name()))
    }

    /// Opens a port. Waits until `deadline` while another program has it open, and, if it is to come, for the port.
    pub fn open(&self, name: &str, deadline: Instant, is_to_come: bool) -> Outcome<Port> {
        loop {
            let Some(path) = self.find(name) else {
                if is_to_come && Instant::now() < deadline {
                    std::thread::sleep(AGAIN);
                    continue;
                }
                return Err(self.missing(name));
            };
            match open(&path) {
                Ok(file) => return Ok(Port { file, name: name.to_owned() }),
                Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    std::thread::sleep(AGAIN);
                }
                Err(error) => return Err(cannot_open(&path, name, &error)),
            }
        }
    }

    /// Why there may be no such port.
    fn missing(&self, name: &str) -> Failure {
        let failure = Failure::new(Class::Unreachable, format_args!("there is no port {name}"));
        if !self.folder.exists() && !Path::new(SYSFS).exists() {
            failure.hint("load the driver: modprobe virtio_mmio; modprobe virtio_console").hint(
                "if there is still no /sys/class/virtio-ports, this is not dom0 of Doorward, or it has dom0_control=off",
            )
        } else {
            failure.hint(format_args!("the ports are listed by: cat {SYSFS}/*/name"))
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_socket() {
        let socket = UnixStream::connect(path)?;
        socket.set_nonblocking(true)?;
        return Ok(File::from(OwnedFd::from(socket)));
    }
    OpenOptions::new().read(true).write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

fn cannot_open(path: &Path, name: &str, error: &std::io::Error) -> Failure {
    let failure = Failure::new(Class::Unreachable, format_args!("opening {}: {error}", path.display()));
    match error.kind() {
        ErrorKind::PermissionDenied => failure.hint("run dw as root"),
        ErrorKind::ResourceBusy if name.starts_with("domain.") => {
            failure.hint("another program has this console open: end it first")
        }
        ErrorKind::ResourceBusy => failure.hint(format_args!(
            "another program has {name} open; `fuser {}` says which, if it does not end by itself",
            path.display()
        )),
        _ => failure,
    }
}

impl Port {
    pub fn fd(&self) -> impl AsFd {
        &self.file
    }

    /// Reads what is there, or waits for it until `deadline`.
    pub fn read(&mut self, buffer: &mut [u8], deadline: Instant) -> Outcome<Came> {
        loop {
            match self.file.read(buffer) {
                Ok(0) => return Ok(Came::Closed),
                Ok(count) => return Ok(Came::Bytes(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !wait(&self.file, PollFlags::IN, deadline)? {
                        return Ok(Came::Nothing);
                    }
                }
                Err(error) if is_gone(&error) => return Ok(Came::Closed),
                Err(error) => return Err(self.failed("reading from", &error)),
            }
        }
    }

    /// Writes all bytes. The deadline is for each part that the other side takes.
    pub fn write(&mut self, mut bytes: &[u8], patience: Duration) -> Outcome {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !wait(&self.file, PollFlags::OUT, Instant::now() + patience)? {
                        return Err(Failure::new(
                            Class::NoAnswer,
                            format_args!(
                                "{}: the other side takes nothing for {} s",
                                self.name,
                                patience.as_secs_f64()
                            ),
                        ));
                    }
                }
                Err(error) => return Err(self.failed("writing to", &error)),
            }
        }
        Ok(())
    }

    /// Writes what the other side takes now, and returns how much.
    pub fn write_some(&mut self, bytes: &[u8]) -> Outcome<usize> {
        match self.file.write(bytes) {
            Ok(count) => Ok(count),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => Ok(0),
            // The next read says that the other side is gone.
            Err(error) if is_gone(&error) => Ok(0),
            Err(error) => Err(self.failed("writing to", &error)),
        }
    }

    fn failed(&self, doing: &str, error: &std::io::Error) -> Failure {
        Failure::new(Class::NoAnswer, format_args!("{doing} {}: {error}", self.name))
    }
}

/// Whether the port was taken away while it was open.
fn is_gone(error: &std::io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| {
        let gone =
            [rustix::io::Errno::NODEV, rustix::io::Errno::NXIO, rustix::io::Errno::CONNRESET, rustix::io::Errno::PIPE];
        gone.iter().any(|errno| errno.raw_os_error() == number)
    })
}

/// Waits until there is something to do for one descriptor. Returns false if it is the deadline.
pub fn wait(fd: impl AsFd, flags: PollFlags, deadline: Instant) -> Outcome<bool> {
    let mut fds = [PollFd::new(&fd, flags)];
    wait_any(&mut fds, Some(deadline))
}

/// Waits until there is something to do for one of these. Returns false if it is the deadline.
pub fn wait_any(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> Outcome<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| left.try_into().ok());
        match poll(fds, left.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Failure::system(format_args!("poll: {error}"))),
        }
    }
}
