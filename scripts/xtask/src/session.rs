//! One QEMU in batch: its console as a stream of lines, a deadline, and an end that has one meaning.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::fail::{Doing, Failure, Outcome};
use crate::sh;

/// Three times Ctrl-A: the keyboard goes from dom0 on to the next domain, behind all of them to the debug keys, then back.
pub const NEXT: &str = "\x01\x01\x01";

/// How a machine came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It was switched off (or reset, which ends a batch run, too).
    Off,
    /// The time ran out; QEMU was ended.
    TimedOut,
    /// The hypervisor refused to start or panicked; QEMU was ended. The line that said so.
    Fatal(String),
    /// QEMU itself failed.
    Broken(String),
}

/// What is on the console, and when.
#[derive(Clone, Debug)]
pub enum Event {
    /// A line, without its end.
    Line(String),
    /// No more lines will come.
    Ended(End),
}

/// Who else sees the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// Standard output.
    Stdout,
    /// Nobody.
    Nobody,
}

/// Who types on the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Whoever feeds our own standard input.
    Ours,
    /// [`Session::type_in`].
    Typed,
}

/// A running machine.
pub struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    deadline: Option<Instant>,
    fatal: Option<String>,
    /// When QEMU was started.
    pub started: Instant,
}

/// After its first line a panic record needs a moment to come out whole.
const RECORD: Duration = Duration::from_millis(700);

impl Session {
    /// Starts `qemu`; the console goes to `log`, too.
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
            Input::Ours => Stdio::inherit(),
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

    /// Types on the machine's console.
    pub fn type_in(&mut self, text: &str) -> Outcome {
        let Some(stdin) = &mut self.stdin else {
            return Err(Failure::new("this machine's console is not typed on by us"));
        };
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).doing("typing on the console")
    }

    /// The next line, or the end.
    pub fn next(&mut self) -> Event {
        let wait = self.deadline.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()));
        match self.lines.recv_timeout(wait) {
            Ok(line) => {
                if self.fatal.is_none() && is_fatal(&line) {
                    self.fatal = Some(line.trim().to_owned());
                    let soon = Instant::now() + RECORD;
                    self.deadline = Some(self.deadline.map_or(soon, |at| at.min(soon)));
                }
                Event::Line(line)
            }
            Err(RecvTimeoutError::Timeout) if self.deadline.is_none() => self.next(),
            Err(RecvTimeoutError::Timeout) => {
                self.kill();
                Event::Ended(self.fatal.take().map_or(End::TimedOut, End::Fatal))
            }
            Err(RecvTimeoutError::Disconnected) => Event::Ended(self.ended()),
        }
    }

    /// QEMU's own exit code, if it ended by itself.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().and_then(|status| status.code())
    }

    /// Ends QEMU now.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn ended(&mut self) -> End {
        let status = self.child.wait();
        if let Some(line) = self.fatal.take() {
            return End::Fatal(line);
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

/// Does the hypervisor say that it is over?
fn is_fatal(line: &str) -> bool {
    line.starts_with("doorward: fatal:") || line.starts_with("doorward: panic")
}

/// Splits the console into lines; bytes are passed on as they come, a prompt included.
fn read_console(
    mut console: impl Read,
    echo: Echo,
    mut log: Option<File>,
    mut give: impl FnMut(String) -> bool,
) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    let mut line = Vec::new();
    loop {
        let count = console.read(&mut buffer)?;
        if count == 0 {
            break;
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
        for &byte in bytes {
            match byte {
                b'\n' => {
                    if !give(String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned()) {
                        return Ok(());
                    }
                }
                b'\r' => {}
                _ => line.push(byte),
            }
        }
    }
    if !line.is_empty() {
        give(String::from_utf8_lossy(&line).into_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(script: &str, limit: Option<Duration>) -> Session {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Session::start(command, Echo::Nobody, Input::Typed, None, limit).unwrap()
    }

    fn last(mut session: Session) -> End {
        loop {
            if let Event::Ended(end) = session.next() {
                return end;
            }
        }
    }

    #[test]
    fn a_machine_that_goes_off_ends_well() {
        assert_eq!(last(session("echo hello", None)), End::Off);
    }

    #[test]
    fn a_fatal_line_ends_the_machine_even_if_it_parks() {
        let end = last(session("echo 'doorward: fatal: no FDT'; sleep 60", None));
        assert_eq!(end, End::Fatal("doorward: fatal: no FDT".into()));
    }

    #[test]
    fn a_fatal_line_counts_even_if_the_machine_then_goes_off() {
        assert!(matches!(last(session("echo 'doorward: panic at'", None)), End::Fatal(_)));
    }

    #[test]
    fn a_deadline_ends_a_silent_machine() {
        assert_eq!(last(session("sleep 60", Some(Duration::from_millis(50)))), End::TimedOut);
    }

    #[test]
    fn what_is_typed_arrives() {
        let mut session = session("read x; echo got $x", None);
        session.type_in("42\n").unwrap();
        assert!(matches!(session.next(), Event::Line(line) if line == "got 42"));
    }
}
