//! The name of a domain.

use crate::wire::{Body, Malformed, NoRoom, Reader, Writer};
use core::fmt;

/// The longest name in bytes.
pub const NAME_MAX: usize = 63;

/// The name of a domain: 1 to 63 letters, digits, `.`, `_` and `-` of ASCII, of which the first is a letter or a digit.
/// So a name can be part of a file's name and of a log line, and is never taken for an option. A name that is all digits is
/// none: it would be taken for an id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name<'a>(&'a str);

/// Why a text is no name of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidName {
    /// It is empty or longer than [`NAME_MAX`].
    Length,
    /// It has another character, or does not begin with a letter or a digit.
    Character,
    /// It is a number.
    Number,
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            InvalidName::Length => "a name has 1 to 63 characters",
            InvalidName::Character => "a name has letters, digits, `.`, `_` and `-`, and begins with a letter or digit",
            InvalidName::Number => "a name is not a number, since ids are",
        })
    }
}

impl<'a> Name<'a> {
    /// Checks a name.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn new(text: &'a str) -> Result<Name<'a>, InvalidName> {
        let bytes = text.as_bytes();
        if bytes.is_empty() || bytes.len() > NAME_MAX {
            return Err(InvalidName::Length);
        }
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        if !bytes.iter().all(allowed) || !bytes.first().is_some_and(u8::is_ascii_alphanumeric) {
            return Err(InvalidName::Character);
        }
        if bytes.iter().all(u8::is_ascii_digit) {
            return Err(InvalidName::Number);
        }
        Ok(Name(text))
    }

    /// The name as text.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0)
    }
}

impl<'a> Body<'a> for Name<'a> {
    fn put(&self, out: &mut Writer<'_>) -> Result<(), NoRoom> {
        self.0.put(out)
    }

    fn take(from: &mut Reader<'a>) -> Result<Name<'a>, Malformed> {
        Name::new(<&str>::take(from)?).map_err(|_| Malformed)
    }
}
