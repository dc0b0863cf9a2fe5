//! What goes wrong, and the exit code for it.

use std::fmt;
use std::process::ExitCode;

/// Which exit code an error has. `dw help` and docs/management.md list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The hypervisor refused a request.
    Refused = 1,
    /// The command line or a file is wrong. Clap uses the same code.
    Usage = 2,
    /// There is no way to the hypervisor.
    Unreachable = 3,
    /// The hypervisor did not answer in time, or nothing sensible.
    NoAnswer = 4,
    /// Something of dom0 failed: a file, a driver, the output.
    System = 5,
}

/// An error: a sentence for the user without a full stop, and what to do about it.
#[derive(Debug)]
pub struct Failure {
    pub class: Class,
    pub text: String,
    /// What to do, one a line.
    pub hints: Vec<String>,
    /// Nobody reads the output any more: there is nothing to say.
    pub quiet: bool,
}

pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub fn new(class: Class, text: impl fmt::Display) -> Failure {
        Failure { class, text: text.to_string(), hints: Vec::new(), quiet: false }
    }

    pub fn usage(text: impl fmt::Display) -> Failure {
        Failure::new(Class::Usage, text)
    }

    pub fn system(text: impl fmt::Display) -> Failure {
        Failure::new(Class::System, text)
    }

    pub fn hint(mut self, hint: impl fmt::Display) -> Failure {
        self.hints.push(hint.to_string());
        self
    }

    /// Prints the error, and returns the exit code.
    pub fn report(&self) -> ExitCode {
        if !self.quiet {
            eprintln!("dw: {}", self.text);
            self.hints.iter().for_each(|hint| eprintln!("    {hint}"));
        }
        if self.quiet { ExitCode::SUCCESS } else { ExitCode::from(self.class as u8) }
    }
}

/// An error of the output. A reader that has gone, as `head` does, is no error.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        let quiet = error.kind() == std::io::ErrorKind::BrokenPipe;
        Failure { quiet, ..Failure::system(format_args!("writing the output: {error}")) }
    }
}
