//! `doorward.cfg`: what to boot, in the syntax of Xen's `xen.cfg` (docs/misc/efi.pandoc in Xen's tree).
//!
//! ```text
//! [global]
//! default=linux
//!
//! [linux]
//! options=loglvl=debug
//! kernel=Image console=ttyAMA0 root=/dev/nvme0n1p2
//! ramdisk=initramfs.cpio
//! ```
//!
//! A line is empty, a comment (`#` or `;`), a `[section]` or `key=value`. The hypervisor's words are the global
//! `options=` followed by the section's. A key that nobody knows, or one given twice, is an error with its line's
//! number: whoever mistypes `ramdisk=` should not have to find out from a kernel panic.

use core::fmt;

/// What one section says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config<'a> {
    /// The section's name.
    pub section: &'a str,
    /// `kernel=`: dom0's kernel and its command line.
    pub kernel: File<'a>,
    /// `ramdisk=`.
    pub ramdisk: Option<&'a str>,
    /// `dtb=`: a device tree to use instead of what the firmware describes.
    pub dtb: Option<&'a str>,
    /// `options=` of `[global]` and of the section: the hypervisor's words.
    pub options: [&'a str; 2],
}

/// A file and the words that go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File<'a> {
    /// Its path, relative to the configuration file unless it starts with a separator.
    pub path: &'a str,
    /// What follows the path.
    pub words: &'a str,
}

/// What is wrong, and in which line (from 1 on; 0 where it is no line in particular).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigError<'a> {
    /// The line's number.
    pub line: usize,
    /// What is wrong with it.
    pub problem: Problem<'a>,
}

/// What can be wrong with a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem<'a> {
    /// Not UTF-8.
    NotText,
    /// `[` without `]`, or nothing between them.
    BadHeading(&'a str),
    /// Neither a comment nor a heading, and no `=` in it.
    NoValue(&'a str),
    /// A key before any section.
    NoSection(&'a str),
    /// A key that nobody knows.
    UnknownKey(&'a str),
    /// A key that Xen knows and that means nothing here.
    ForeignKey(&'a str),
    /// A key without a value.
    Empty(&'a str),
    /// A key given twice in one section.
    Twice(&'a str),
    /// There is no section to boot.
    NoSections,
    /// The section that was asked for does not exist.
    MissingSection(&'a str),
    /// The section has no `kernel=`.
    NoKernel(&'a str),
}

impl fmt::Display for ConfigError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line != 0 {
            write!(f, "line {}: ", self.line)?;
        }
        match self.problem {
            Problem::NotText => f.write_str("it is not UTF-8 text"),
            Problem::BadHeading(text) => write!(f, "`{text}` is no section: write [NAME]"),
            Problem::NoValue(text) => write!(f, "`{text}` is neither [SECTION] nor KEY=VALUE"),
            Problem::NoSection(key) => write!(f, "`{key}=` stands before the first [SECTION]"),
            Problem::UnknownKey(key) => {
                write!(f, "nobody knows `{key}=`: there are default= (in [global]), options=, kernel=, ramdisk=, dtb=")
            }
            Problem::ForeignKey(key) => write!(f, "`{key}=` is not supported"),
            Problem::Empty(key) => write!(f, "`{key}=` has no value"),
            Problem::Twice(key) => write!(f, "`{key}=` is given twice in one section"),
            Problem::NoSections => f.write_str("it has no section to boot"),
            Problem::MissingSection(name) => write!(f, "it has no section [{name}]"),
            Problem::NoKernel(name) => write!(f, "section [{name}] has no kernel="),
        }
    }
}

/// One line that means something.
enum Item<'a> {
    Section(&'a str),
    Pair(&'a str, &'a str),
}

impl<'a> Config<'a> {
    /// Reads section `wanted` of the file; without one, the section that `[global]` names by `default=`, or else the
    /// first one that is not `[global]`.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, in any section: a typo in another section is still a typo.
    pub fn parse(file: &'a [u8], wanted: Option<&'a str>) -> Result<Config<'a>, ConfigError<'a>> {
        let text = match core::str::from_utf8(file) {
            Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
            Err(error) => {
                let line = 1 + file.get(..error.valid_up_to()).map_or(0, newlines);
                return Err(ConfigError { line, problem: Problem::NotText });
            }
        };
        check(text)?;
        let nowhere = |problem| ConfigError { line: 0, problem };
        let first = || sections(text).find(|name| *name != "global");
        let section =
            wanted.or_else(|| value(text, "global", "default")).or_else(first).ok_or(nowhere(Problem::NoSections))?;
        if section == "global" || !sections(text).any(|name| name == section) {
            return Err(nowhere(Problem::MissingSection(section)));
        }
        let kernel = value(text, section, "kernel").ok_or(nowhere(Problem::NoKernel(section)))?;
        let (path, words) = kernel.split_once([' ', '\t']).unwrap_or((kernel, ""));
        let options = |section| value(text, section, "options").unwrap_or("");
        Ok(Config {
            section,
            kernel: File { path, words: words.trim() },
            ramdisk: value(text, section, "ramdisk"),
            dtb: value(text, section, "dtb"),
            options: [options("global"), options(section)],
        })
    }
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

/// The lines that mean something, with their numbers.
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

/// Every line of the file has to make sense.
fn check(text: &str) -> Result<(), ConfigError<'_>> {
    let mut section = None;
    for (line, item) in items(text) {
        let problem = match item {
            Err(problem) => problem,
            Ok(Item::Section(name)) => {
                section = Some((name, line));
                continue;
            }
            Ok(Item::Pair(key, value)) => match (section, key) {
                (None, _) => Problem::NoSection(key),
                (Some(("global", _)), "default" | "options") => match trouble(text, "global", key, value, line) {
                    Some(problem) => problem,
                    None => continue,
                },
                (Some(_), "ucode" | "xsm" | "chain" | "video" | "xen") => Problem::ForeignKey(key),
                (Some((name, _)), "options" | "kernel" | "ramdisk" | "dtb") if name != "global" => {
                    match trouble(text, name, key, value, line) {
                        Some(problem) => problem,
                        None => continue,
                    }
                }
                (Some(_), _) => Problem::UnknownKey(key),
            },
        };
        return Err(ConfigError { line, problem });
    }
    Ok(())
}

/// What is wrong with a key that is known.
fn trouble<'a>(text: &'a str, section: &str, key: &'a str, value: &str, line: usize) -> Option<Problem<'a>> {
    if value.is_empty() && key != "options" {
        return Some(Problem::Empty(key));
    }
    pairs(text, section).any(|(other, name, _)| other < line && name == key).then_some(Problem::Twice(key))
}

fn sections(text: &str) -> impl Iterator<Item = &str> {
    items(text).filter_map(|(_, item)| if let Ok(Item::Section(name)) = item { Some(name) } else { None })
}

/// The pairs of a section, which may be split over the file.
fn pairs<'a>(text: &'a str, section: &str) -> impl Iterator<Item = (usize, &'a str, &'a str)> {
    let mut inside = false;
    items(text).filter_map(move |(line, item)| match item {
        Ok(Item::Section(name)) => {
            inside = name == section;
            None
        }
        Ok(Item::Pair(key, value)) => inside.then_some((line, key, value)),
        Err(_) => None,
    })
}

fn value<'a>(text: &'a str, section: &str, key: &str) -> Option<&'a str> {
    pairs(text, section).find(|&(_, name, _)| name == key).map(|(_, _, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const TWO: &str = "# comment\r\n[global]\r\ndefault = b\r\noptions=loglvl=debug\r\n\r\n\
        [a]\r\nkernel=one\r\n; comment\r\n[b]\r\nkernel=\\boot\\Image console=ttyAMA0  quiet \r\n\
        ramdisk=initrd.img\r\noptions=dom0_mem=1G\r\ndtb=board.dtb";

    #[test]
    fn the_default_section_is_read_whole() {
        let config = Config::parse(TWO.as_bytes(), None).unwrap();
        assert_eq!(config.section, "b");
        assert_eq!(config.kernel, File { path: "\\boot\\Image", words: "console=ttyAMA0  quiet" });
        assert_eq!((config.ramdisk, config.dtb), (Some("initrd.img"), Some("board.dtb")));
        assert_eq!(config.options, ["loglvl=debug", "dom0_mem=1G"]);
    }

    #[test]
    fn a_section_may_be_asked_for_by_name() {
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
    fn each_mistake_is_named_with_its_line() {
        let told = |text: &str| Config::parse(text.as_bytes(), None).unwrap_err().to_string();
        assert_eq!(told("[a]\n\nkernel"), "line 3: `kernel` is neither [SECTION] nor KEY=VALUE");
        assert!(told("[a]\nkernal=x").starts_with("line 2: nobody knows `kernal=`"));
        assert!(told("[a]\ndefault=a\nkernel=x").starts_with("line 2: nobody knows `default=`"));
        assert!(told("[global]\nkernel=x").starts_with("line 2: nobody knows `kernel=`"));
        assert_eq!(told("[a]\nxsm=policy"), "line 2: `xsm=` is not supported");
        assert_eq!(told("[a"), "line 1: `[a` is no section: write [NAME]");
        assert_eq!(told("[ ]"), "line 1: `[ ]` is no section: write [NAME]");
        assert_eq!(told("kernel=x"), "line 1: `kernel=` stands before the first [SECTION]");
        assert_eq!(told("[a]\nkernel="), "line 2: `kernel=` has no value");
        assert_eq!(
            told("[a]\nkernel=x\n[b]\nkernel=x\n[a]\nkernel=x"),
            "line 6: `kernel=` is given twice in one section"
        );
        assert_eq!(told("[global]\ndefault=z\n[a]\nkernel=x"), "it has no section [z]");
        assert_eq!(told("[global]\ndefault=global\n[a]\nkernel=x"), "it has no section [global]");
        assert_eq!(told(""), "it has no section to boot");
        assert_eq!(told("[a]\nramdisk=x"), "section [a] has no kernel=");
        assert_eq!(Config::parse(b"[a]\n\xff", None).unwrap_err().to_string(), "line 2: it is not UTF-8 text");
    }

    #[test]
    fn no_bytes_make_the_reader_panic() {
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
