//! One QEMU in batch: its console as a stream of complete lines, a deadline, and a classified end.
//!
//! A deadline only bounds how long a hang goes on. No result depends on how fast the host is.

mod lines;

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::fail::{Doing, Failure, Outcome};
use crate::sh;
use lines::Lines;

/// Ctrl-A three times moves the keyboard from dom0 to the next domain, after the last one to the debug keys, then to dom0.
pub const NEXT: &str = "\x01\x01\x01";

/// How a machine came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest powered the machine off or reset it: a batch run starts QEMU with `-no-reboot`.
    Off,
    /// The deadline passed, and QEMU was killed.
    TimedOut,
    /// The hypervisor panicked or refused to start, as this line says. QEMU was killed.
    Fatal(String),
    /// QEMU itself failed, with this message.
    Broken(String),
}

/// What comes from a running machine.
#[derive(Clone, Debug)]
pub enum Event {
    /// A line, without its end.
    Line(String),
    /// The machine has ended. No event follows.
    Ended(End),
}

/// Where else the console's output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// Standard output.
    Stdout,
    /// Nowhere.
    Off,
}

/// Where the console's input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// From xtask's own standard input.
    Stdin,
    /// From [`Session::type_in`].
    Typed,
}

/// A running machine.
pub struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    deadline: Option<Instant>,
    fatal: Option<Fatal>,
    /// When QEMU was started.
    pub started: Instant,
}

/// The hypervisor has stopped, and the rest of its message is awaited.
struct Fatal {
    /// The line that says so.
    line: String,
    /// The message is complete when the console has been quiet for this long: its length is not known.
    quiet: Duration,
}

/// After `doorward: fatal:`, which is one line.
const QUIET_FATAL: Duration = Duration::from_millis(700);
/// After `doorward: panic:`, which registers and a backtrace follow.
const QUIET_PANIC: Duration = Duration::from_secs(3);
/// However much is printed after either, QEMU is killed after this long.
const LONGEST_RECORD: Duration = Duration::from_secs(60);

impl Session {
    /// Starts `qemu`. The console's output is also written to `log`; after `limit` QEMU is killed.
    pub fn start(
        mut qemu: Command,
        echo: Echo,
        input: Input,
        log: Option<&Path>,
        limit: Option<Duration>,
    ) -> Outcome<Self> {
        let log = log.map(File::create).transpose().doing("creating the console log")?;
        qemu.stdout(Stdio::piped());
        qemu.stdin(match input {
            Input::Stdin => Stdio::inherit(),
            Input::Typed => Stdio::piped(),
        });
        let started = Instant::now();
        let mut child = qemu.spawn().doing(sh::shown(&qemu))?;
        let stdin = child.stdin.take();
        let console = child.stdout.take().ok_or_else(|| Failure::new("QEMU has no console"))?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let _ = read_console(console, echo, log, |line| sender.send(line).is_ok());
        });
        Ok(Self { child, stdin, lines, deadline: limit.map(|limit| started + limit), fatal: None, started })
    }

    /// Types `text` on the machine's console.
    pub fn type_in(&mut self, text: &str) -> Outcome {
        let Some(stdin) = &mut self.stdin else {
            return Err(Failure::new("this machine's console reads standard input"));
        };
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).doing("typing on the console")
    }

    /// Waits for the next line or the end.
    pub fn next(&mut self) -> Event {
        let left = self.deadline.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()));
        let wait = self.fatal.as_ref().map_or(left, |fatal| left.min(fatal.quiet));
        match self.lines.recv_timeout(wait) {
            Ok(line) => {
                if self.fatal.is_none()
                    && let Some(quiet) = fatal(&line)
                {
                    self.fatal = Some(Fatal { line: line.trim().to_owned(), quiet });
                    let end = Instant::now() + LONGEST_RECORD;
                    self.deadline = Some(self.deadline.map_or(end, |at| at.min(end)));
                }
                Event::Line(line)
            }
            Err(RecvTimeoutError::Timeout) if self.deadline.is_none() => self.next(),
            Err(RecvTimeoutError::Timeout) => {
                self.kill();
                Event::Ended(self.fatal.take().map_or(End::TimedOut, |fatal| End::Fatal(fatal.line)))
            }
            Err(RecvTimeoutError::Disconnected) => Event::Ended(self.ended()),
        }
    }

    /// QEMU's exit code, if it has ended by itself.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().and_then(|status| status.code())
    }

    /// Kills QEMU.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn ended(&mut self) -> End {
        let status = self.child.wait();
        if let Some(fatal) = self.fatal.take() {
            return End::Fatal(fatal.line);
        }
        match status {
            Ok(status) if status.success() => End::Off,
            Ok(status) => End::Broken(format!("QEMU ended with {status}")),
            Err(error) => End::Broken(format!("waiting for QEMU: {error}")),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether the hypervisor says that it has stopped; then how long the console is quiet once it has said everything.
fn fatal(line: &str) -> Option<Duration> {
    if line.starts_with("doorward: panic") {
        return Some(QUIET_PANIC);
    }
    line.starts_with("doorward: fatal:").then_some(QUIET_FATAL)
}

/// Passes the console's bytes on as they come, a prompt included, and its complete lines to `give`.
///
/// What is on the console when QEMU ends and has no end of line is in the log and no line: nothing tells whether it is whole.
fn read_console(
    mut console: impl Read,
    echo: Echo,
    mut log: Option<File>,
    mut give: impl FnMut(String) -> bool,
) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    let mut lines = Lines::default();
    loop {
        let count = console.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let bytes = &buffer[..count];
        if echo == Echo::Stdout {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()?;
        }
        if let Some(log) = &mut log {
            log.write_all(bytes)?;
        }
        for line in bytes.iter().filter_map(|&byte| lines.push(byte)) {
            if !give(line) {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(script: &str, limit: Option<Duration>) -> Session {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Session::start(command, Echo::Off, Input::Typed, None, limit).unwrap()
    }

    fn last(mut session: Session) -> End {
        loop {
            if let Event::Ended(end) = session.next() {
                return end;
            }
        }
    }

    #[test]
    fn a_machine_that_powers_off_ends_with_off() {
        assert_eq!(last(session("echo hello", None)), End::Off);
    }

    #[test]
    fn a_fatal_line_ends_a_machine_that_parks() {
        let end = last(session("echo 'doorward: fatal: no FDT'; sleep 60", None));
        assert_eq!(end, End::Fatal("doorward: fatal: no FDT".into()));
    }

    #[test]
    fn a_fatal_line_is_reported_even_if_the_machine_then_powers_off() {
        assert!(matches!(last(session("echo 'doorward: panic at'", None)), End::Fatal(_)));
    }

    #[test]
    fn the_deadline_ends_a_silent_machine() {
        assert_eq!(last(session("sleep 60", Some(Duration::from_millis(50)))), End::TimedOut);
    }

    #[test]
    fn typed_text_reaches_the_machine() {
        let mut session = session("read x; echo got $x", None);
        session.type_in("42\n").unwrap();
        assert!(matches!(session.next(), Event::Line(line) if line == "got 42"));
    }

    #[test]
    fn a_line_without_its_end_is_not_delivered() {
        let mut session = session("echo whole; printf part", None);
        assert!(matches!(session.next(), Event::Line(line) if line == "whole"));
        assert!(matches!(session.next(), Event::Ended(End::Off)));
    }
}
