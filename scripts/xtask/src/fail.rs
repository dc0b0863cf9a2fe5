//! How a verb fails: a message for the user and an exit code for the calling script.

/// Exit code of a batch run whose time ran out, as of `timeout(1)`.
pub const TIMED_OUT: u8 = 124;

/// Why a verb failed.
#[derive(Debug)]
pub struct Failure {
    /// The process's exit code.
    pub code: u8,
    /// The message, or empty if it has been printed already.
    pub text: String,
}

/// The result of a verb.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure with exit code 1.
    pub fn new(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into() }
    }

    /// Wrong usage: exit code 2.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { code: 2, text: text.into() }
    }

    /// A failure whose message has been printed already.
    pub fn silent(code: u8) -> Self {
        Self { code, text: String::new() }
    }
}

/// Adds to an error what was being done.
pub trait Doing<T> {
    /// Turns an error into a failure whose message starts with `what`.
    fn doing(self, what: impl std::fmt::Display) -> Outcome<T>;
}

impl<T, E: std::fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl std::fmt::Display) -> Outcome<T> {
        self.map_err(|error| Failure::new(format!("{what}: {error}")))
    }
}
