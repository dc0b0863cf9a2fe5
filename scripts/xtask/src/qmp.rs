//! QEMU's control socket (QMP), used to send commands of the human monitor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::fail::{Doing, Failure, Outcome};

/// A connection.
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and negotiates capabilities.
    pub fn connect(socket: &Path) -> Outcome<Self> {
        let stream = UnixStream::connect(socket).doing(format_args!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(120))).doing("setting QMP's time-out")?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        qmp.line()?;
        qmp.execute(r#"{"execute":"qmp_capabilities"}"#)?;
        Ok(qmp)
    }

    /// Runs a command of the human monitor and returns its output.
    pub fn monitor(&mut self, command: &str) -> Outcome<String> {
        let command = command.replace('\\', r"\\").replace('"', r#"\""#);
        let request = format!(r#"{{"execute":"human-monitor-command","arguments":{{"command-line":"{command}"}}}}"#);
        let answer = self.execute(&request)?;
        let said = answer.split_once(r#""return": ""#).and_then(|(_, rest)| rest.rsplit_once('"'));
        Ok(said.map(|(text, _)| text.replace(r"\r\n", "\n")).unwrap_or_default())
    }

    fn execute(&mut self, request: &str) -> Outcome<String> {
        writeln!(self.stream.get_mut(), "{request}").doing("writing to QMP")?;
        loop {
            let line = self.line()?;
            if line.contains(r#""error""#) {
                return Err(Failure::new(format!("QEMU refused {request}: {line}")));
            }
            // Other lines are events.
            if line.contains(r#""return""#) {
                return Ok(line);
            }
        }
    }

    fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line).doing("reading from QMP")?;
        if line.is_empty() { Err(Failure::new("QEMU closed its control socket")) } else { Ok(line) }
    }
}
