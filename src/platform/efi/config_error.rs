//! The errors that `doorward.cfg` can have.

use crate::platform::DOMAINS;
use core::fmt;

/// The longest name of a domU in bytes.
pub(super) const DOMAIN_NAME: usize = 32;

/// An error in a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigError<'a> {
    /// The line number from 1 on; 0 if the error is not in a particular line.
    pub line: usize,
    /// The error.
    pub problem: Problem<'a>,
}

/// The errors that a configuration file can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem<'a> {
    /// The file is not UTF-8.
    NotText,
    /// A section heading lacks `]` or a name.
    BadHeading(&'a str),
    /// A line is neither a comment nor a heading nor `KEY=VALUE`.
    NoValue(&'a str),
    /// A key precedes the first section.
    NoSection(&'a str),
    /// A key is unknown.
    UnknownKey {
        /// The key.
        key: &'a str,
        /// The keys of the section.
        expected: &'static str,
    },
    /// A key of Xen's that is not supported.
    ForeignKey(&'a str),
    /// A key has no value.
    Empty(&'a str),
    /// A key occurs twice in a section.
    Twice(&'a str),
    /// There is no section to boot.
    NoSections,
    /// The requested section does not exist.
    MissingSection(&'a str),
    /// A section lacks a key.
    Lacks {
        /// The section.
        section: &'a str,
        /// The key.
        key: &'static str,
    },
    /// A name of a domU is too long or has a blank.
    BadDomainName(&'a str),
    /// `domains=` lists a domU without a section.
    MissingDomain(&'a str),
    /// `domains=` lists a domU twice.
    DomainTwice(&'a str),
    /// `domains=` lists too many domUs.
    TooManyDomains,
    /// A value is not one of those that its key has.
    BadValue {
        /// The key.
        key: &'a str,
        /// The value, or the part of it that is wrong.
        value: &'a str,
        /// What the key takes.
        expected: &'static str,
    },
}

impl fmt::Display for ConfigError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line != 0 {
            write!(f, "line {}: ", self.line)?;
        }
        match self.problem {
            Problem::NotText => f.write_str("not UTF-8 text"),
            Problem::BadHeading(text) => write!(f, "`{text}` is not a section heading; expected [NAME]"),
            Problem::NoValue(text) => write!(f, "`{text}` is neither [SECTION] nor KEY=VALUE"),
            Problem::NoSection(key) => write!(f, "`{key}=` precedes the first [SECTION]"),
            Problem::UnknownKey { key, expected } => write!(f, "unknown key `{key}=`: expected {expected}"),
            Problem::ForeignKey(key) => write!(f, "`{key}=` is not supported"),
            Problem::Empty(key) => write!(f, "`{key}=` has no value"),
            Problem::Twice(key) => write!(f, "duplicate key `{key}=` in one section"),
            Problem::NoSections => f.write_str("there is no section to boot"),
            Problem::MissingSection(name) => write!(f, "there is no section [{name}]"),
            Problem::Lacks { section, key } => write!(f, "section [{section}] has no {key}="),
            Problem::BadDomainName(name) => {
                write!(f, "`{name}` is no name of a domain: expected at most {DOMAIN_NAME} bytes without blanks")
            }
            Problem::MissingDomain(name) => write!(f, "there is no section [domain {name}]"),
            Problem::DomainTwice(name) => write!(f, "domain `{name}` is listed twice"),
            Problem::TooManyDomains => write!(f, "more than {DOMAINS} domains are not supported"),
            Problem::BadValue { key, value, expected } => write!(f, "`{key}={value}`: expected {expected}"),
        }
    }
}
