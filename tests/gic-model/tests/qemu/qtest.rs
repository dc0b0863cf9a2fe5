//! A QEMU that is driven through its qtest socket. The tests of the executable SMMU include this file, too.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The time in which QEMU has to answer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Where a program for EL2 is loaded, if there is one.
const PROGRAM_AT: u64 = 0x4600_0000;

pub struct Qtest {
    child: Child,
    stream: BufReader<UnixStream>,
    files: [PathBuf; 2],
}

impl Qtest {
    /// Starts QEMU with these flags. CPU 0 runs `program`, or all CPUs are stopped. `name` makes the names of files. Prints a
    /// message and returns `None` if QEMU is not installed.
    pub fn start(name: &str, flags: &[&str], program: Option<&[u8]>) -> Option<Qtest> {
        let name = format!("{name}-{}-{:?}", std::process::id(), std::thread::current().id()).replace(['(', ')'], "");
        let files = ["sock", "bin"].map(|kind| std::env::temp_dir().join(format!("{name}.{kind}")));
        let mut qemu = Command::new("qemu-system-aarch64");
        qemu.args(flags)
            .args(["-cpu", "cortex-a57", "-m", "512M", "-nodefaults", "-display", "none", "-accel", "tcg"])
            .args(["-qtest", &format!("unix:{},server=on,wait=off", files[0].display()), "-qtest-log", "none"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(program) = program {
            std::fs::write(&files[1], program).expect("the temporary directory is writable");
            let loader = format!("loader,file={},addr={PROGRAM_AT:#x},cpu-num=0,force-raw=on", files[1].display());
            qemu.args(["-device", &loader]);
        } else {
            qemu.arg("-S");
        }
        let Ok(mut child) = qemu.spawn() else {
            eprintln!("skipped: qemu-system-aarch64 is not in the PATH");
            let _ = std::fs::remove_file(&files[1]);
            return None;
        };
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&files[0]) {
                break stream;
            }
            if let Ok(Some(status)) = child.try_wait() {
                panic!("QEMU exited at its start: {status}");
            }
            assert!(Instant::now() < deadline, "QEMU does not answer");
            std::thread::sleep(Duration::from_millis(20));
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("the socket takes a timeout");
        Some(Qtest { child, stream: BufReader::new(stream), files })
    }

    fn ask(&mut self, command: &str) -> String {
        self.stream.get_mut().write_all(format!("{command}\n").as_bytes()).expect("QEMU listens");
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("QEMU answers");
            assert!(!line.is_empty(), "QEMU exited after {command}");
            if let Some(answer) = line.strip_prefix("OK") {
                return answer.trim().to_string();
            }
            assert!(line.starts_with("IRQ"), "{command}: {line}");
        }
    }

    fn number(&mut self, command: &str) -> u64 {
        let answer = self.ask(command);
        u64::from_str_radix(answer.trim_start_matches("0x"), 16).expect("a number")
    }

    pub fn read32(&mut self, at: u64) -> u32 {
        self.number(&format!("readl {at:#x}")) as u32
    }

    pub fn write32(&mut self, at: u64, value: u32) {
        self.ask(&format!("writel {at:#x} {value:#x}"));
    }

    pub fn read64(&mut self, at: u64) -> u64 {
        self.number(&format!("readq {at:#x}"))
    }

    pub fn write64(&mut self, at: u64, value: u64) {
        self.ask(&format!("writeq {at:#x} {value:#x}"));
    }

    pub fn poke(&mut self, at: u64, bytes: &[u8]) {
        let mut hex = String::new();
        bytes.iter().for_each(|b| write!(hex, "{b:02x}").expect("a string"));
        self.ask(&format!("write {at:#x} {:#x} 0x{hex}", bytes.len()));
    }

    pub fn peek(&mut self, at: u64, len: usize) -> Vec<u8> {
        let answer = self.ask(&format!("read {at:#x} {len:#x}"));
        let hex = answer.trim_start_matches("0x");
        (0..len).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).expect("hex")).collect()
    }
}

impl Drop for Qtest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
    }
}
