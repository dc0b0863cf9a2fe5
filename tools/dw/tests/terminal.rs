//! `console` and `top` on a terminal.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::process::Child;

use common::{Fake, port};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// A terminal and the program on it.
struct Terminal {
    master: File,
    slave: File,
    child: Child,
    seen: String,
}

impl Terminal {
    fn new(fake: &Fake, words: &[&str]) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let end = || slave.try_clone().unwrap();
        let child = fake.dw(words).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Terminal { master: File::from(master), slave, child, seen: String::new() }
    }

    fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    fn read_until(&mut self, text: &str) {
        let mut bytes = [0; 256];
        while !self.seen.contains(text) {
            let count = self.master.read(&mut bytes).unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }

    fn echoes(&self) -> bool {
        tcgetattr(&self.slave).unwrap().local_modes.contains(LocalModes::ECHO | LocalModes::ICANON)
    }

    fn end(mut self) -> Option<i32> {
        let code = self.child.wait().unwrap().code();
        assert!(self.echoes(), "the terminal is as before");
        code
    }
}

#[test]
fn keys_go_to_the_console_as_they_are_and_one_leaves() {
    let fake = Fake::new();
    let server = port(&fake.folder, "domain.web.console", |mut port| {
        port.write_all(b"login: ").unwrap();
        let mut keys = [0; 5];
        port.read_exact(&mut keys).unwrap();
        assert_eq!(&keys, b"ab\x03\x04\r", "Ctrl-C and Ctrl-D are the guest's");
        port.write_all(b"\r\nwelcome\r\n").unwrap();
        assert_eq!(port.read(&mut keys).unwrap(), 0, "what leaves is not sent");
    });
    let mut terminal = Terminal::new(&fake, &["console", "web"]);
    terminal.read_until("connected to web; Ctrl-] leaves\r\nlogin: ");
    assert!(!terminal.echoes());
    terminal.type_in("ab\x03\x04\r");
    terminal.read_until("welcome");
    terminal.type_in("\x1d");
    assert_eq!(terminal.end(), Some(0));
    server.join().unwrap();
}

#[test]
fn the_console_of_a_new_domain_is_connected_at_once() {
    let fake = Fake::new();
    let kernel = fake.kernel(64);
    let server = port(&fake.folder, "domain.new.console", |mut port| {
        port.write_all(b"hello\r\n").unwrap();
        assert_eq!(port.read(&mut [0]).unwrap(), 0);
    });
    let words = ["create", "-c", "-q", "--name", "new", "--memory", "32", "--kernel", &kernel];
    let mut terminal = Terminal::new(&fake, &words);
    terminal.read_until("Ctrl-] leaves\r\nhello\r\n");
    terminal.type_in("\x1d");
    assert_eq!(terminal.end(), Some(0));
    server.join().unwrap();
}

#[test]
fn a_console_that_takes_nothing_can_be_left() {
    let fake = Fake::new();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let server = port(&fake.folder, "domain.web.console", move |_port| wait.recv().unwrap_or(()));
    let mut terminal = Terminal::new(&fake, &["console", "web"]);
    terminal.read_until("Ctrl-] leaves");
    // More than the socket holds.
    for _ in 0..80 {
        terminal.type_in(&"x".repeat(3000));
    }
    terminal.type_in("\x1d");
    assert_eq!(terminal.end(), Some(0));
    drop(done);
    server.join().unwrap();
}

#[test]
fn top_is_ended_by_a_key_and_sets_the_terminal_back() {
    for key in ["q", "\x03"] {
        let fake = Fake::new();
        let mut terminal = Terminal::new(&fake, &["top", "-d", "60"]);
        terminal.read_until("exit irq");
        assert!(terminal.seen.contains("\x1b[H") && terminal.seen.contains("dw top: up"));
        assert!(!terminal.echoes());
        terminal.type_in(key);
        assert_eq!(terminal.end(), Some(0));
    }
}

#[test]
fn a_signal_ends_it_and_the_terminal_is_set_back() {
    let fake = Fake::new();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let server = port(&fake.folder, "domain.web.console", move |_port| wait.recv().unwrap_or(()));
    for (words, sign) in [(&["console", "web"][..], "Ctrl-] leaves"), (&["top", "-d", "60"], "exit irq")] {
        let mut terminal = Terminal::new(&fake, words);
        terminal.read_until(sign);
        assert!(!terminal.echoes());
        let child = Pid::from_raw(terminal.child.id().try_into().unwrap()).unwrap();
        kill_process(child, Signal::TERM).unwrap();
        terminal.read_until("dw: ended by a signal");
        assert_eq!(terminal.end(), Some(5));
    }
    drop(done);
    server.join().unwrap();
}
