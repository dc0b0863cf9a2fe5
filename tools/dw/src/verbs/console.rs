//! `console`: the terminal and the console of a domain, byte for byte.

use std::collections::VecDeque;
use std::io::Write;
use std::time::{Duration, Instant};

use doorward_api::CONSOLE_PORT;
use rustix::event::{PollFd, PollFlags};

use super::terminal::{self, Output, Terminal};
use crate::Session;
use crate::cli::One;
use crate::fail::{Failure, Outcome};
use crate::port::{Came, Port, Ports, wait_any};

/// Ctrl-]
const LEAVE: u8 = 0x1d;

/// How much typed input waits for a domain that does not read it; more is not read from the terminal.
const BACKLOG: usize = 64 << 10;

pub fn console(session: &mut Session, one: &One) -> Outcome {
    let domain = session.connect()?.domain(&one.domain)?;
    if domain.facts.id == 0 {
        return Err(Failure::usage("dom0's console is not a port: it is the serial line of the machine"));
    }
    if !domain.facts.console {
        return Err(Failure::usage(format_args!("{} has no console", domain.name)));
    }
    let port = open(&session.ports, &domain.name, session.patience)?;
    attach(session, port, &domain.name)
}

/// Opens the console of a domain that has one. The port comes shortly after its domain.
pub fn open(ports: &Ports, name: &str, patience: Duration) -> Outcome<Port> {
    let (begin, end) = CONSOLE_PORT;
    ports.open(&format!("{begin}{name}{end}"), Instant::now() + patience, true)
}

/// Connects the terminal to the open console of a domain.
pub fn attach(session: &mut Session, mut port: Port, name: &str) -> Outcome {
    let terminal = Terminal::set(Output::Raw)?;
    let at_terminal = terminal.is_some();
    if at_terminal {
        eprint!("connected to {name}; Ctrl-] leaves\r\n");
    }
    let ended = transfer(session, &mut port, terminal.as_ref());
    drop(terminal);
    if at_terminal {
        eprintln!();
    }
    match ended? {
        End::Left => Ok(()),
        End::Closed => {
            eprintln!("dw: {name}: the console was closed: the domain has ended");
            Ok(())
        }
    }
}

enum End {
    /// Ctrl-] was typed.
    Left,
    /// The other side is gone.
    Closed,
}

fn transfer(session: &mut Session, port: &mut Port, terminal: Option<&Terminal>) -> Outcome<End> {
    let stdin = std::io::stdin();
    let mut input: VecDeque<u8> = VecDeque::new();
    let mut buffer = vec![0; 16 << 10];
    let mut at_end = false;
    loop {
        let reads = !at_end && input.len() < BACKLOG;
        let (from_port, signal, from_keyboard) = {
            let direction = if input.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            let fd = port.fd();
            let mut fds = vec![PollFd::new(&fd, direction)];
            fds.extend(terminal.map(Terminal::signals));
            let keyboard = fds.len();
            if reads {
                fds.push(terminal::keyboard(&stdin));
            }
            wait_any(&mut fds, None)?;
            let came = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().difference(PollFlags::OUT).is_empty());
            (came(0), terminal.is_some() && came(1), came(keyboard))
        };
        if signal {
            return Err(terminal::ended());
        }
        if from_keyboard {
            let count = terminal::typed(&mut buffer)?;
            let typed = buffer.get(..count).unwrap_or_default();
            at_end = count == 0;
            match typed.iter().position(|&byte| byte == LEAVE).filter(|_| terminal.is_some()) {
                Some(at) => {
                    input.extend(typed.get(..at).unwrap_or_default());
                    port.write_some(input.make_contiguous())?;
                    return Ok(End::Left);
                }
                None => input.extend(typed),
            }
        }
        if !input.is_empty() {
            let count = port.write_some(input.make_contiguous())?;
            input.drain(..count);
        }
        if from_port {
            match port.read(&mut buffer, Instant::now())? {
                Came::Bytes(count) => {
                    session.out.write_all(buffer.get(..count).unwrap_or_default())?;
                    session.out.flush()?;
                }
                Came::Closed => return Ok(End::Closed),
                Came::Nothing => {}
            }
        }
    }
}
