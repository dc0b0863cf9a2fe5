//! How a verb ends when it does not succeed: a sentence for the reader and an exit code for the script around us.

/// Exit code of a batch run whose time ran out (the code of `timeout(1)`).
pub const TIMED_OUT: u8 = 124;

/// Why a verb did not succeed.
#[derive(Debug)]
pub struct Failure {
    /// The process's exit code.
    pub code: u8,
    /// A full sentence, or nothing when all has been said already.
    pub text: String,
}

/// What a verb returns.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// Something went wrong.
    pub fn new(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into() }
    }

    /// The command line was wrong.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { code: 2, text: text.into() }
    }

    /// All has been said; only the exit code is left.
    pub fn silent(code: u8) -> Self {
        Self { code, text: String::new() }
    }
}

/// Adds what was being done to an error of the standard library.
pub trait Doing<T> {
    /// Turns an error into a sentence that starts with `what`.
    fn doing(self, what: impl std::fmt::Display) -> Outcome<T>;
}

impl<T, E: std::fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl std::fmt::Display) -> Outcome<T> {
        self.map_err(|error| Failure::new(format!("{what}: {error}")))
    }
}
