//! QEMU's qtest socket: loads and stores to the physical memory of a running machine, and so an MSI at any time.
//!
//! A store to GITS_TRANSLATER through this socket comes from device 0.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::fail::{Doing, Failure, Outcome};

/// QEMU creates the socket within this time, on a busy host, too.
const CONNECT: Duration = Duration::from_secs(60);
/// QEMU answers a command within this time.
const ANSWER: Duration = Duration::from_secs(120);

/// A connection.
pub struct Qtest {
    stream: BufReader<UnixStream>,
}

impl Qtest {
    /// The flags that give a machine this socket.
    pub fn flags(socket: &Path) -> [String; 4] {
        let socket = format!("unix:{},server=on,wait=off", socket.display());
        ["-qtest".into(), socket, "-qtest-log".into(), "/dev/null".into()]
    }

    /// Connects; QEMU may still be starting.
    pub fn connect(socket: &Path) -> Outcome<Self> {
        let until = Instant::now() + CONNECT;
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(ANSWER)).doing("setting qtest's time-out")?;
                    return Ok(Self { stream: BufReader::new(stream) });
                }
                Err(error) if Instant::now() > until => {
                    return Err(Failure::new(format!("connecting to {}: {error}", socket.display())));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// A 32-bit store.
    pub fn write32(&mut self, address: u64, value: u32) -> Outcome {
        self.ask(&format!("writel {address:#x} {value:#x}")).map(drop)
    }

    /// 32-bit stores to one address, as fast as QEMU takes them.
    pub fn flood(&mut self, address: u64, values: &[u32]) -> Outcome {
        let commands: String = values.iter().map(|value| format!("writel {address:#x} {value:#x}\n")).collect();
        self.stream.get_mut().write_all(commands.as_bytes()).doing("writing to qtest")?;
        values.iter().try_for_each(|_| self.answer("writel").map(drop))
    }

    /// A 64-bit store.
    pub fn write64(&mut self, address: u64, value: u64) -> Outcome {
        self.ask(&format!("writeq {address:#x} {value:#x}")).map(drop)
    }

    /// A 64-bit load.
    pub fn read64(&mut self, address: u64) -> Outcome<u64> {
        let answer = self.ask(&format!("readq {address:#x}"))?;
        let hex = answer.trim().trim_start_matches("0x");
        u64::from_str_radix(hex, 16).doing(format_args!("qtest answered `{answer}` to a load"))
    }

    /// Reads `count` 64-bit words from `address` on.
    pub fn read_words(&mut self, address: u64, count: usize) -> Outcome<Vec<u64>> {
        let answer = self.ask(&format!("read {address:#x} {:#x}", count * 8))?;
        let hex = answer.trim().trim_start_matches("0x").as_bytes();
        let byte = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let bytes: Option<Vec<u8>> = hex.chunks(2).map(byte).collect();
        let bytes = bytes.filter(|bytes| bytes.len() == count * 8);
        let bytes =
            bytes.ok_or_else(|| Failure::new(format!("qtest answered `{answer}` to a read of {count} words")))?;
        Ok(bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect())
    }

    fn ask(&mut self, command: &str) -> Outcome<String> {
        writeln!(self.stream.get_mut(), "{command}").doing("writing to qtest")?;
        self.answer(command)
    }

    fn answer(&mut self, command: &str) -> Outcome<String> {
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).doing(format_args!("waiting for qtest's answer to `{command}`"))?;
            match line.trim_end().strip_prefix("OK") {
                Some(answer) => return Ok(answer.trim().to_owned()),
                // An interrupt line has changed.
                None if line.starts_with("IRQ") => {}
                None if line.is_empty() => return Err(Failure::new("QEMU closed its qtest socket")),
                None => return Err(Failure::new(format!("qtest answered `{}` to `{command}`", line.trim_end()))),
            }
        }
    }
}
