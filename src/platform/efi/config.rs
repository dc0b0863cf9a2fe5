//! The configuration file `doorward.cfg`, in the syntax of Xen's `xen.cfg` (docs/misc/efi.pandoc in Xen's tree).
//!
//! ```text
//! [global]
//! default=linux
//!
//! [linux]
//! options=loglvl=debug
//! kernel=Image console=ttyAMA0 root=/dev/nvme0n1p2
//! ramdisk=initramfs.cpio
//! domains=web
//!
//! [domain web]
//! kernel=Image console=ttyAMA0
//! cpus=2
//! memory=512M
//! ```
//!
//! Sections whose name begins with `domain` are Doorward's own: each describes a domU ([`DomainSection`]), and the section
//! to boot lists those to build.
//!
//! A line is empty, a comment (`#` or `;`), a `[section]` or `key=value`. The hypervisor's command line is the global
//! `options=` followed by the section's. An unknown or duplicate key is an error with a line number, so that a mistyped
//! `ramdisk=` is reported here and not by a kernel panic.

use super::domain_section::{self, DomainSection};
use crate::platform::DOMAINS;
use arrayvec::ArrayVec;
use core::fmt;

/// The contents of the section to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config<'a> {
    /// The section's name.
    pub section: &'a str,
    /// `kernel=`: dom0's kernel and its command line.
    pub kernel: File<'a>,
    /// `ramdisk=`: dom0's initial RAM disk.
    pub ramdisk: Option<&'a str>,
    /// `dtb=`: a device tree to use instead of the firmware's description.
    pub dtb: Option<&'a str>,
    /// `options=` of `[global]` and of the section: the hypervisor's command line.
    pub options: [&'a str; 2],
    /// `domains=`: the domUs to build.
    pub domains: ArrayVec<DomainSection<'a>, DOMAINS>,
}

/// A file and its command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct File<'a> {
    /// The path, relative to the configuration file unless it starts with a separator.
    pub path: &'a str,
    /// The rest of the line after the path.
    pub words: &'a str,
}

impl<'a> File<'a> {
    /// Parses the value of `kernel=`.
    pub(super) fn parse(value: &'a str) -> File<'a> {
        let (path, words) = value.split_once([' ', '\t']).unwrap_or((value, ""));
        File { path, words: words.trim() }
    }
}

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
    UnknownKey(&'a str),
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
    /// A key of a domU is unknown.
    UnknownDomainKey(&'a str),
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
            Problem::UnknownKey(key) => {
                write!(
                    f,
                    "unknown key `{key}=`: expected default= (in [global]), options=, kernel=, ramdisk=, dtb= or \
                     domains="
                )
            }
            Problem::ForeignKey(key) => write!(f, "`{key}=` is not supported"),
            Problem::Empty(key) => write!(f, "`{key}=` has no value"),
            Problem::Twice(key) => write!(f, "duplicate key `{key}=` in one section"),
            Problem::NoSections => f.write_str("there is no section to boot"),
            Problem::MissingSection(name) => write!(f, "there is no section [{name}]"),
            Problem::Lacks { section, key } => write!(f, "section [{section}] has no {key}="),
            Problem::UnknownDomainKey(key) => {
                write!(f, "unknown key `{key}=`: expected {}", domain_section::KEYS)
            }
            Problem::BadDomainName(name) => {
                write!(
                    f,
                    "`{name}` is no name of a domain: expected at most {} bytes without blanks",
                    domain_section::NAME
                )
            }
            Problem::MissingDomain(name) => write!(f, "there is no section [domain {name}]"),
            Problem::DomainTwice(name) => write!(f, "domain `{name}` is listed twice"),
            Problem::TooManyDomains => write!(f, "more than {DOMAINS} domains are not supported"),
            Problem::BadValue { key, value, expected } => write!(f, "`{key}={value}`: expected {expected}"),
        }
    }
}

/// The contents of a line that is not empty or a comment.
enum Item<'a> {
    Section(&'a str),
    Pair(&'a str, &'a str),
}

impl<'a> Config<'a> {
    /// Parses the file and returns the section `wanted`; if that is `None`, the section that `default=` in `[global]`
    /// names, or else the first one that is not `[global]`.
    ///
    /// # Errors
    ///
    /// The first error in the file, including those in sections that are not used.
    pub fn parse<'w>(file: &'a [u8], wanted: Option<&'w str>) -> Result<Config<'a>, ConfigError<'w>>
    where
        'a: 'w,
    {
        let text = match core::str::from_utf8(file) {
            Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
            Err(error) => {
                let line = 1 + file.get(..error.valid_up_to()).map_or(0, newlines);
                return Err(ConfigError { line, problem: Problem::NotText });
            }
        };
        check(text)?;
        let nowhere = |problem| ConfigError { line: 0, problem };
        let bootable = |name: &&str| *name != "global" && domain_name(name).is_none();
        let first = || sections(text).find(bootable);
        let wanted =
            wanted.or_else(|| value(text, "global", "default")).or_else(first).ok_or(nowhere(Problem::NoSections))?;
        let section = sections(text).find(|name| *name == wanted && bootable(name));
        let section = section.ok_or(nowhere(Problem::MissingSection(wanted)))?;
        let kernel = value(text, section, "kernel").ok_or(nowhere(Problem::Lacks { section, key: "kernel" }))?;
        let listed = value(text, section, "domains").unwrap_or("").split_whitespace();
        let domains = listed.map(|name| domain(text, name)).collect::<Result<_, _>>()?;
        let options = |section| value(text, section, "options").unwrap_or("");
        Ok(Config {
            section,
            kernel: File::parse(kernel),
            ramdisk: value(text, section, "ramdisk"),
            dtb: value(text, section, "dtb"),
            options: [options("global"), options(section)],
            domains,
        })
    }
}

/// Returns the name of the domU that a section describes.
fn domain_name(section: &str) -> Option<&str> {
    let rest = section.strip_prefix("domain")?;
    rest.starts_with(char::is_whitespace).then(|| rest.trim_start())
}

/// Reads the section of a domU, or finds the first error in it.
fn domain<'a>(text: &'a str, name: &'a str) -> Result<DomainSection<'a>, ConfigError<'a>> {
    let mut domain = DomainSection::new(name);
    let is_own = |section: &str| domain_name(section) == Some(name);
    let heading = headings(text).find(|&(_, section)| is_own(section));
    let (start, section) = heading.unwrap_or((0, name));
    for (line, key, value) in pairs(text, is_own) {
        domain.set(key, value).map_err(|problem| ConfigError { line, problem })?;
    }
    let has = |wanted| pairs(text, is_own).any(|(_, key, _)| key == wanted);
    match domain_section::REQUIRED.into_iter().find(|&key| !has(key)) {
        Some(key) => Err(ConfigError { line: start, problem: Problem::Lacks { section, key } }),
        None => Ok(domain),
    }
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

/// Returns the lines that are not empty or comments, with their numbers.
fn items<'a>(text: &'a str) -> impl Iterator<Item = (usize, Result<Item<'a>, Problem<'a>>)> {
    text.lines().zip(1..).filter_map(|(line, number)| {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            return None;
        }
        let item = if line.starts_with('[') {
            let name = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).map(str::trim);
            name.filter(|name| !name.is_empty()).map(Item::Section).ok_or(Problem::BadHeading(line))
        } else {
            let pair = line.split_once('=').map(|(key, value)| Item::Pair(key.trim(), value.trim()));
            pair.ok_or(Problem::NoValue(line))
        };
        Some((number, item))
    })
}

/// Checks every line of the file, and every section of a domU.
fn check(text: &str) -> Result<(), ConfigError<'_>> {
    let mut section = None;
    for (line, item) in items(text) {
        let problem = match item {
            Err(problem) => Some(problem),
            Ok(Item::Section(name)) => {
                section = Some(name);
                domain_name(name).filter(|name| !domain_section::is_name(name)).map(Problem::BadDomainName)
            }
            Ok(Item::Pair(key, value)) => match section {
                None => Some(Problem::NoSection(key)),
                Some(name) => check_key(text, name, key, value, line),
            },
        };
        if let Some(problem) = problem {
            return Err(ConfigError { line, problem });
        }
    }
    sections(text).filter_map(domain_name).try_for_each(|name| domain(text, name).map(drop))
}

fn check_key<'a>(text: &'a str, section: &str, key: &'a str, value: &'a str, line: usize) -> Option<Problem<'a>> {
    let known = match key {
        _ if domain_name(section).is_some() => domain_section::is_key(key),
        "options" => true,
        "default" => section == "global",
        "kernel" | "ramdisk" | "dtb" | "domains" => section != "global",
        _ => false,
    };
    match key {
        _ if known => check_value(text, section, key, value, line)
            .or_else(|| if key == "domains" { check_domains(text, value) } else { None }),
        "ucode" | "xsm" | "chain" | "video" | "xen" => Some(Problem::ForeignKey(key)),
        _ if domain_name(section).is_some() => Some(Problem::UnknownDomainKey(key)),
        _ => Some(Problem::UnknownKey(key)),
    }
}

/// Checks the value of `domains=`.
fn check_domains<'a>(text: &'a str, value: &'a str) -> Option<Problem<'a>> {
    let names = || value.split_whitespace();
    for (index, name) in names().enumerate() {
        if names().take(index).any(|other| other == name) {
            return Some(Problem::DomainTwice(name));
        }
        if !sections(text).any(|section| domain_name(section) == Some(name)) {
            return Some(Problem::MissingDomain(name));
        }
    }
    (names().count() > DOMAINS).then_some(Problem::TooManyDomains)
}

/// Checks the value of a known key.
fn check_value<'a>(text: &'a str, section: &str, key: &'a str, value: &str, line: usize) -> Option<Problem<'a>> {
    if value.is_empty() && key != "options" {
        return Some(Problem::Empty(key));
    }
    // Blanks in the heading of a domU do not count.
    let is_same =
        |other: &str| other == section || domain_name(section).is_some_and(|name| domain_name(other) == Some(name));
    pairs(text, is_same).any(|(other, name, _)| other < line && name == key).then_some(Problem::Twice(key))
}

fn sections(text: &str) -> impl Iterator<Item = &str> {
    headings(text).map(|(_, name)| name)
}

/// Returns the headings of sections with their line numbers.
fn headings(text: &str) -> impl Iterator<Item = (usize, &str)> {
    items(text).filter_map(|(line, item)| if let Ok(Item::Section(name)) = item { Some((line, name)) } else { None })
}

/// Returns the pairs of a section with their line numbers. A section may be in several parts of the file.
fn pairs(text: &str, is_section: impl Fn(&str) -> bool) -> impl Iterator<Item = (usize, &str, &str)> {
    let mut inside = false;
    items(text).filter_map(move |(line, item)| match item {
        Ok(Item::Section(name)) => {
            inside = is_section(name);
            None
        }
        Ok(Item::Pair(key, value)) => inside.then_some((line, key, value)),
        Err(_) => None,
    })
}

fn value<'a>(text: &'a str, section: &str, key: &str) -> Option<&'a str> {
    pairs(text, |name| name == section).find(|&(_, name, _)| name == key).map(|(_, _, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const TWO: &str = "# comment\r\n[global]\r\ndefault = b\r\noptions=loglvl=debug\r\n\r\n\
        [a]\r\nkernel=one\r\n; comment\r\n[b]\r\nkernel=\\boot\\Image console=ttyAMA0  quiet \r\n\
        ramdisk=initrd.img\r\noptions=dom0_mem=1G\r\ndtb=board.dtb";

    #[test]
    fn every_key_of_the_default_section_is_read() {
        let config = Config::parse(TWO.as_bytes(), None).unwrap();
        assert_eq!(config.section, "b");
        assert_eq!(config.kernel, File { path: "\\boot\\Image", words: "console=ttyAMA0  quiet" });
        assert_eq!((config.ramdisk, config.dtb), (Some("initrd.img"), Some("board.dtb")));
        assert_eq!(config.options, ["loglvl=debug", "dom0_mem=1G"]);
    }

    #[test]
    fn a_section_can_be_requested_by_name() {
        let config = Config::parse(TWO.as_bytes(), Some("a")).unwrap();
        assert_eq!((config.kernel, config.ramdisk), (File { path: "one", words: "" }, None));
        assert_eq!(config.options, ["loglvl=debug", ""]);
    }

    #[test]
    fn without_a_default_the_first_section_that_is_not_global_is_booted() {
        let text = b"\xef\xbb\xbf[global]\n[x]\nkernel=k\n[y]\nkernel=l\n";
        assert_eq!(Config::parse(text, None).unwrap().section, "x");
    }

    #[test]
    fn each_error_is_reported_with_its_line_number() {
        let error = |text: &str| Config::parse(text.as_bytes(), None).unwrap_err().to_string();
        assert_eq!(error("[a]\n\nkernel"), "line 3: `kernel` is neither [SECTION] nor KEY=VALUE");
        assert!(error("[a]\nkernal=x").starts_with("line 2: unknown key `kernal=`"));
        assert!(error("[a]\ndefault=a\nkernel=x").starts_with("line 2: unknown key `default=`"));
        assert!(error("[global]\nkernel=x").starts_with("line 2: unknown key `kernel=`"));
        assert_eq!(error("[a]\nxsm=policy"), "line 2: `xsm=` is not supported");
        assert_eq!(error("[a"), "line 1: `[a` is not a section heading; expected [NAME]");
        assert_eq!(error("[ ]"), "line 1: `[ ]` is not a section heading; expected [NAME]");
        assert_eq!(error("kernel=x"), "line 1: `kernel=` precedes the first [SECTION]");
        assert_eq!(error("[a]\nkernel="), "line 2: `kernel=` has no value");
        assert_eq!(
            error("[a]\nkernel=x\n[b]\nkernel=x\n[a]\nkernel=x"),
            "line 6: duplicate key `kernel=` in one section"
        );
        assert_eq!(error("[global]\ndefault=z\n[a]\nkernel=x"), "there is no section [z]");
        assert_eq!(error("[global]\ndefault=global\n[a]\nkernel=x"), "there is no section [global]");
        assert_eq!(error(""), "there is no section to boot");
        assert_eq!(error("[a]\nramdisk=x"), "section [a] has no kernel=");
        assert_eq!(Config::parse(b"[a]\n\xff", None).unwrap_err().to_string(), "line 2: not UTF-8 text");
    }

    #[test]
    fn no_input_makes_the_parser_panic() {
        let mut file = TWO.as_bytes().to_vec();
        for at in 0..file.len() {
            for byte in [0, b'\n', b'[', b'=', b' ', 0xff] {
                let before = core::mem::replace(&mut file[at], byte);
                let _ = Config::parse(&file, None);
                let _ = Config::parse(&file[..at], Some("b"));
                file[at] = before;
            }
        }
    }
}
