//! Files that describe a domain, as `dw create` reads them: TOML with the keys of [`File`], which are xl's where xl has them.
//!
//! Whatever is wrong is said with its line.

use std::fmt;
use std::path::{Path, PathBuf};

use doorward_api::{CMDLINE_MAX, CpuSet, Name, OnCrash, Sbdf, Vwfi};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use toml::Spanned;

use crate::fail::{Failure, Outcome};
use crate::text;

/// A domain that is to be created.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    pub name: String,
    pub vcpus: u32,
    /// In bytes, a multiple of 2 MiB.
    pub memory: u64,
    pub kernel: PathBuf,
    pub ramdisk: Option<PathBuf>,
    pub cmdline: String,
    /// 0 for the default.
    pub weight: u32,
    pub cap: u32,
    pub cpus: Option<CpuSet>,
    pub vwfi: Option<Vwfi>,
    pub direct: bool,
    pub console: bool,
    pub on_crash: OnCrash,
    pub watchdog_s: u32,
    pub pci: Vec<Sbdf>,
    pub pci_allow_no_reset: bool,
}

/// What a file or the options say; what is missing has its default.
#[derive(Clone, Default)]
pub struct Given {
    pub name: Option<String>,
    pub vcpus: Option<u32>,
    pub memory: Option<u64>,
    pub kernel: Option<PathBuf>,
    pub ramdisk: Option<PathBuf>,
    pub cmdline: Option<String>,
    pub weight: Option<u32>,
    pub cap: Option<u32>,
    pub cpus: Option<CpuSet>,
    pub vwfi: Option<Vwfi>,
    pub direct: Option<bool>,
    pub console: Option<bool>,
    pub on_crash: Option<OnCrash>,
    pub watchdog_s: Option<u32>,
    pub pci: Option<Vec<Sbdf>>,
    pub pci_allow_no_reset: Option<bool>,
}

/// The keys of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<Spanned<String>>,
    vcpus: Option<Spanned<u32>>,
    memory: Option<Spanned<Size>>,
    kernel: Option<Spanned<PathBuf>>,
    ramdisk: Option<Spanned<PathBuf>>,
    cmdline: Option<Spanned<String>>,
    cpu_weight: Option<Spanned<u32>>,
    cap: Option<Spanned<u32>>,
    cpus: Option<Spanned<String>>,
    vwfi: Option<Spanned<String>>,
    direct: Option<bool>,
    console: Option<bool>,
    on_crash: Option<Spanned<String>>,
    watchdog: Option<u32>,
    pci: Option<Vec<Spanned<String>>>,
    pci_allow_no_reset: Option<bool>,
}

/// A size in bytes: a number of MiB, or a text with a unit.
struct Size(u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Size, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of MiB, or a size such as \"512M\" or \"2G\"")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Size, E> {
                let bytes = u64::try_from(value).ok().and_then(|mib| mib.checked_mul(1 << 20));
                bytes.map(Size).ok_or_else(|| E::invalid_value(de::Unexpected::Signed(value), &self))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Size, E> {
                text::parse_size(value).map(Size).ok_or_else(|| E::invalid_value(de::Unexpected::Str(value), &self))
            }
        }
        from.deserialize_any(Either)
    }
}

/// The value that has this word, among all.
pub fn word<T: Copy>(all: &[T], label: impl Fn(T) -> &'static str, text: &str) -> Result<T, String> {
    let words = || all.iter().map(|&value| label(value)).collect::<Vec<_>>().join(", ");
    all.iter().copied().find(|&value| label(value) == text).ok_or_else(|| format!("`{text}` is none of: {}", words()))
}

pub fn check_vcpus(vcpus: u32) -> Result<u32, String> {
    if vcpus > 0 { Ok(vcpus) } else { Err("a domain has at least one vCPU".to_owned()) }
}

pub fn check_weight(weight: u32) -> Result<u32, String> {
    if (1..=65535).contains(&weight) { Ok(weight) } else { Err("a weight is 1 to 65535".to_owned()) }
}

pub fn check_memory(bytes: u64) -> Result<u64, String> {
    match bytes.checked_next_multiple_of(2 << 20) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err("a domain needs memory, and not that much".to_owned()),
    }
}

pub fn check_name(name: &str) -> Result<String, String> {
    Name::new(name).map(|name| name.as_str().to_owned()).map_err(|why| format!("`{}`: {why}", text::shown(name)))
}

pub fn check_cmdline(cmdline: &str) -> Result<String, String> {
    if cmdline.len() > CMDLINE_MAX {
        Err(format!("the command line has {} bytes, and at most {CMDLINE_MAX} are allowed", cmdline.len()))
    } else if cmdline.contains('\0') {
        Err("the command line has a byte of zero in it".to_owned())
    } else {
        Ok(cmdline.to_owned())
    }
}

pub fn check_pci(text: &str) -> Result<Sbdf, String> {
    text.parse().map_err(|_| format!("`{}` is no PCI function, such as 0000:00:03.0", text::shown(text)))
}

impl Given {
    /// Reads a file. Paths in it are relative to its folder.
    pub fn read(path: &Path) -> Outcome<Given> {
        let shown = path.display();
        let content = std::fs::read(path).map_err(|error| Failure::usage(format_args!("{shown}: {error}")))?;
        let content = String::from_utf8(content).map_err(|error| {
            let before = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
            Failure::usage(format_args!("{shown}:{}: this is no text in UTF-8", 1 + newlines(before)))
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Given::parse(&content, folder).map_err(|(line, text)| Failure::usage(format_args!("{shown}:{line}: {text}")))
    }

    /// Reads the content of a file. An error has its line.
    pub fn parse(content: &str, folder: &Path) -> Result<Given, (usize, String)> {
        let line = |at: usize| 1 + newlines(content.as_bytes().get(..at).unwrap_or_default());
        let file: File = toml::from_str(content).map_err(|error| {
            let text: Vec<&str> = error.message().lines().map(str::trim).collect();
            (error.span().map_or(1, |span| line(span.start)), text::shown(&text.join(": ")))
        })?;
        /// A value that has to pass a check.
        fn checked<T, U>(
            value: Option<Spanned<T>>,
            line: &dyn Fn(usize) -> usize,
            check: impl Fn(T) -> Result<U, String>,
        ) -> Result<Option<U>, (usize, String)> {
            let Some(value) = value else { return Ok(None) };
            let at = value.span().start;
            check(value.into_inner()).map(Some).map_err(|why| (line(at), why))
        }
        let functions = file.pci.map(|all| {
            let one = |text: Spanned<String>| check_pci(text.as_ref()).map_err(|why| (line(text.span().start), why));
            all.into_iter().map(one).collect::<Result<Vec<_>, _>>()
        });
        let path = |path: PathBuf| {
            if path.as_os_str().is_empty() { Err("a path is missing".to_owned()) } else { Ok(folder.join(path)) }
        };
        Ok(Given {
            name: checked(file.name, &line, |name| check_name(&name))?,
            vcpus: checked(file.vcpus, &line, check_vcpus)?,
            memory: checked(file.memory, &line, |size| check_memory(size.0))?,
            kernel: checked(file.kernel, &line, path)?,
            ramdisk: checked(file.ramdisk, &line, path)?,
            cmdline: checked(file.cmdline, &line, |text| check_cmdline(&text))?,
            weight: checked(file.cpu_weight, &line, check_weight)?,
            cap: checked(file.cap, &line, Ok)?,
            cpus: checked(file.cpus, &line, |text| text::parse_cpus(&text))?,
            vwfi: checked(file.vwfi, &line, |text| word(Vwfi::EVERY, Vwfi::label, &text))?,
            direct: file.direct,
            console: file.console,
            on_crash: checked(file.on_crash, &line, |text| word(OnCrash::EVERY, OnCrash::label, &text))?,
            watchdog_s: file.watchdog,
            pci: functions.transpose()?,
            pci_allow_no_reset: file.pci_allow_no_reset,
        })
    }

    /// What `self` says, and else what `other` says.
    pub fn or(self, other: Given) -> Given {
        Given {
            name: self.name.or(other.name),
            vcpus: self.vcpus.or(other.vcpus),
            memory: self.memory.or(other.memory),
            kernel: self.kernel.or(other.kernel),
            ramdisk: self.ramdisk.or(other.ramdisk),
            cmdline: self.cmdline.or(other.cmdline),
            weight: self.weight.or(other.weight),
            cap: self.cap.or(other.cap),
            cpus: self.cpus.or(other.cpus),
            vwfi: self.vwfi.or(other.vwfi),
            direct: self.direct.or(other.direct),
            console: self.console.or(other.console),
            on_crash: self.on_crash.or(other.on_crash),
            watchdog_s: self.watchdog_s.or(other.watchdog_s),
            pci: self.pci.or(other.pci),
            pci_allow_no_reset: self.pci_allow_no_reset.or(other.pci_allow_no_reset),
        }
    }

    /// The domain, with defaults for what is missing.
    pub fn complete(self) -> Outcome<Spec> {
        let missing = |what: &str, option: &str| {
            Failure::usage(format_args!("the domain has no {what}"))
                .hint(format_args!("add `{what} = …` to the file, or give {option}"))
        };
        Ok(Spec {
            name: self.name.ok_or_else(|| missing("name", "--name NAME"))?,
            memory: self.memory.ok_or_else(|| missing("memory", "--memory SIZE"))?,
            kernel: self.kernel.ok_or_else(|| missing("kernel", "--kernel FILE"))?,
            vcpus: self.vcpus.unwrap_or(1),
            ramdisk: self.ramdisk,
            cmdline: self.cmdline.unwrap_or_default(),
            weight: self.weight.unwrap_or(0),
            cap: self.cap.unwrap_or(0),
            cpus: self.cpus,
            vwfi: self.vwfi,
            direct: self.direct.unwrap_or(true),
            console: self.console.unwrap_or(true),
            on_crash: self.on_crash.unwrap_or(OnCrash::Destroy),
            watchdog_s: self.watchdog_s.unwrap_or(0),
            pci: self.pci.unwrap_or_default(),
            pci_allow_no_reset: self.pci_allow_no_reset.unwrap_or(false),
        })
    }
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "\
# A web server.
name = \"web\"
vcpus = 2
memory = \"511M\"
kernel = \"Image\"
ramdisk = \"/boot/initrd\"
cmdline = \"console=ttyAMA0 quiet\"
cpu_weight = 512
cap = 150
cpus = \"0-1,3\"
vwfi = \"trap\"
direct = false
console = false
on_crash = \"restart\"
watchdog = 30
pci = [\"0000:01:00.0\", \"02:00.1\"]
pci_allow_no_reset = true
";

    #[test]
    fn a_file_with_all_keys_is_read() {
        let spec = Given::parse(WEB, Path::new("/etc/dw")).ok().unwrap().complete().unwrap();
        let expected = Spec {
            name: "web".into(),
            vcpus: 2,
            memory: 512 << 20,
            kernel: "/etc/dw/Image".into(),
            ramdisk: Some("/boot/initrd".into()),
            cmdline: "console=ttyAMA0 quiet".into(),
            weight: 512,
            cap: 150,
            cpus: Some(text::parse_cpus("0,1,3").unwrap()),
            vwfi: Some(Vwfi::Trap),
            direct: false,
            console: false,
            on_crash: OnCrash::Restart,
            watchdog_s: 30,
            pci: vec![Sbdf(0x100), Sbdf(0x201)],
            pci_allow_no_reset: true,
        };
        assert_eq!(spec, expected);
    }

    #[test]
    fn a_number_is_mib_and_the_rest_has_defaults() {
        let spec = Given::parse("name='a1'\nmemory=32\nkernel='K'", Path::new("")).ok().unwrap().complete().unwrap();
        assert_eq!((spec.memory, spec.vcpus, spec.direct, spec.console), (32 << 20, 1, true, true));
        assert_eq!((spec.kernel, spec.on_crash, spec.weight), ("K".into(), OnCrash::Destroy, 0));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (content, line, part) in [
            ("name = \"web\"\n\nmemroy = 1\n", 3, "unknown field `memroy`, expected one of `name`, `vcpus`, `memory`"),
            ("name = \"web\"\nname = \"db\"\n", 2, "duplicate key"),
            ("\n\nname = 7\n", 3, "invalid type: integer `7`, expected a string"),
            ("vcpus = -1", 1, "invalid value: integer `-1`, expected u32"),
            ("\nvcpus = 0", 2, "at least one vCPU"),
            ("\nmemory = \"1 lot\"", 2, "invalid value: string \"1 lot\", expected a number of MiB, or a size such as"),
            ("\nmemory = true", 2, "invalid type: boolean `true`, expected a number of MiB"),
            ("memory = -1", 1, "invalid value: integer `-1`"),
            ("memory = 0", 1, "a domain needs memory"),
            ("memory = \"16777216T\"", 1, "invalid value"),
            ("\ncpu_weight = 65536", 2, "a weight is 1 to 65535"),
            ("name = \"a/b\"", 1, "`a/b`: a name has letters, digits"),
            ("name = \"a\\u001b[2J\"", 1, "`a^[[2J`: a name has"),
            ("name = \"17\"", 1, "a name is not a number"),
            ("on_crash = \"reboot\"", 1, "`reboot` is none of: destroy, restart, preserve"),
            ("vwfi = \"no\"", 1, "`no` is none of: auto, native, trap"),
            ("cpus = \"3-1\"", 1, "`3-1`: CPUs are 0 to 1023"),
            ("pci = [\n  \"0000:01:00.0\",\n  \"eth0\",\n]", 3, "`eth0` is no PCI function, such as 0000:00:03.0"),
            ("kernel = \"\"", 1, "a path is missing"),
            ("name = \"web\nmemory = 1", 1, "invalid basic string"),
            ("cmdline = \"a\\u0000b\"", 1, "a byte of zero"),
            ("[domain]\nname = \"a\"", 1, "unknown field `domain`"),
        ] {
            let Err((at, text)) = Given::parse(content, Path::new("")) else { panic!("{content:?} was taken") };
            assert!(at == line && text.contains(part), "{content:?}: line {at}: {text}");
            assert!(!text.contains('\n'), "{text}");
        }
        let long = format!("cmdline = \"{}\"", "x".repeat(1025));
        assert!(Given::parse(&long, Path::new("")).err().unwrap().1.contains("has 1025 bytes, and at most 1024"));
    }

    #[test]
    fn options_come_before_the_file_and_what_must_be_there_is_named() {
        let file = Given::parse(WEB, Path::new("")).ok().unwrap();
        let given = Given { vcpus: Some(4), ..Given::default() }.or(file);
        assert_eq!(given.complete().unwrap().vcpus, 4);
        let failure = Given { name: Some("a".into()), ..Given::default() }.complete().unwrap_err();
        assert_eq!(failure.text, "the domain has no memory");
    }

    /// The example and the table of docs/management.md, and that each key is in the table.
    #[test]
    fn the_documentation_has_each_key_and_an_example_that_is_read() {
        let page = include_str!("../../../docs/management.md");
        let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let spec = Given::parse(example, Path::new("")).ok().unwrap().complete().unwrap();
        assert_eq!((spec.name.as_str(), spec.pci.len()), ("web", 1));
        let keys = WEB.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key);
        assert_eq!(keys.clone().count(), 16);
        for key in keys {
            assert!(page.contains(&format!("\n| `{key}` | ")), "{key}");
        }
    }
}
