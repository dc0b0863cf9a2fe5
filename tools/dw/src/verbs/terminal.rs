//! The terminal on standard input, while keys go to a program as they are typed.

use std::io::{IsTerminal, Read};

use rustix::event::{PollFd, PollFlags};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::fail::{Failure, Outcome};

/// What keys mean.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: all bytes are for the other side, Ctrl-C too.
    Raw,
    /// As usual (Ctrl-C ends the program), but they need no Enter and are not shown.
    Keys,
}

/// Sets the mode of the terminal, and sets it back when it is dropped.
pub struct Terminal(Termios);

impl Terminal {
    /// `None` if standard input is no terminal.
    pub fn set(mode: Mode) -> Outcome<Option<Terminal>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let failed = |error| Failure::system(format_args!("setting the terminal: {error}"));
        let before = tcgetattr(&stdin).map_err(failed)?;
        let mut now = before.clone();
        let output = now.output_modes;
        now.make_raw();
        if mode == Mode::Keys {
            now.local_modes |= rustix::termios::LocalModes::ISIG;
            now.output_modes = output;
        }
        tcsetattr(&stdin, OptionalActions::Now, &now).map_err(failed)?;
        Ok(Some(Terminal(before)))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // There is nothing else to do if the terminal is gone.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// The lines of the terminal on standard output, if it is one.
pub fn height() -> Option<usize> {
    let size = tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_row > 0).then(|| size.ws_row.into())
}

/// Reads what has been typed. Empty at the end of the input.
pub fn typed(buffer: &mut [u8]) -> Outcome<usize> {
    loop {
        match std::io::stdin().lock().read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::system(format_args!("reading the input: {error}"))),
            Ok(count) => return Ok(count),
        }
    }
}

/// Standard input, to wait for.
pub fn keyboard(stdin: &std::io::Stdin) -> PollFd<'_> {
    PollFd::new(stdin, PollFlags::IN)
}
