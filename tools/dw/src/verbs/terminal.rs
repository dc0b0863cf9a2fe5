//! The terminal on standard input, while keys go to a program as they are typed.

use std::io::{IsTerminal, Read};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::fail::{Failure, Outcome};

/// What becomes of output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// It goes to the terminal as it is.
    Raw,
    /// A line feed begins a new line, as usual.
    Lines,
}

/// Has keys delivered as they are typed, Ctrl-C too, and not shown. Sets the terminal back when it is dropped. So signals that
/// end the program must not do so by themselves: they make [`Terminal::signals`] readable.
pub struct Terminal {
    before: Termios,
    signals: UnixStream,
}

impl Terminal {
    /// `None` if standard input is no terminal.
    pub fn set(output: Output) -> Outcome<Option<Terminal>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let failed = |error: std::io::Error| Failure::system(format_args!("setting the terminal: {error}"));
        let (signals, wakes) = UnixStream::pair().map_err(failed)?;
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            pipe::register(signal, wakes.try_clone().map_err(failed)?).map_err(failed)?;
        }
        let before = tcgetattr(&stdin).map_err(|error| failed(error.into()))?;
        let mut now = before.clone();
        now.make_raw();
        if output == Output::Lines {
            now.output_modes = before.output_modes;
        }
        tcsetattr(&stdin, OptionalActions::Now, &now).map_err(|error| failed(error.into()))?;
        Ok(Some(Terminal { before, signals }))
    }

    /// Readable once a signal has come that ends the program.
    pub fn signals(&self) -> PollFd<'_> {
        PollFd::new(&self.signals, PollFlags::IN)
    }
}

/// The error of a program that a signal has ended.
pub fn ended() -> Failure {
    Failure::system("ended by a signal")
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // There is nothing else to do if the terminal is gone.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
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
