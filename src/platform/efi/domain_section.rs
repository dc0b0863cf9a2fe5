//! Sections of `doorward.cfg` that describe domUs: what a `xen,domain` node says on a machine with a device tree.

use super::config::{File, Problem};
use crate::ids::Sbdf;
use crate::platform::{DomainConfig, FUNCTIONS, Module, ModuleKind};
use crate::util::range::Range;
use crate::util::values::{boolean, size};
use arrayvec::{ArrayString, ArrayVec};

/// The keys, for messages.
pub(super) const KEYS: &str =
    "kernel=, ramdisk=, cpus=, memory=, vpl011=, cpu-weight=, cpu-cap=, pci= or pci-allow-no-reset=";
/// The keys without which a domU cannot be built.
pub(super) const REQUIRED: [&str; 3] = ["kernel", "cpus", "memory"];
/// The longest name of a domU in bytes.
pub(super) const NAME: usize = 32;
/// The longest command line of a kernel in bytes.
const WORDS: usize = 1024;

/// A domU to build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainSection<'a> {
    /// The name in the section's heading.
    pub name: &'a str,
    /// `kernel=`: its kernel and that one's command line.
    pub kernel: File<'a>,
    /// `ramdisk=`: its initial RAM disk.
    pub ramdisk: Option<&'a str>,
    /// `cpus=`: the number of its vCPUs.
    pub cpus: u16,
    /// `memory=`: the size of its RAM in bytes.
    pub memory: u64,
    /// `vpl011=`: whether it has a serial port.
    pub vpl011: bool,
    /// `cpu-weight=`: the weight of each of its vCPUs.
    pub weight: Option<u32>,
    /// `cpu-cap=`: the limit of the CPU time of each of its vCPUs, in percent of a CPU.
    pub cap: Option<u32>,
    /// `pci=`: the PCI functions that it gets.
    pub pci: ArrayVec<Sbdf, FUNCTIONS>,
    /// `pci-allow-no-reset=`: whether it may get a function that cannot be reset.
    pub pci_allow_no_reset: bool,
}

/// Whether a text can be the name of a domU.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME && !text.contains(char::is_whitespace)
}

/// Whether a key is one of a domU's.
pub(super) fn is_key(key: &str) -> bool {
    KEYS.split([' ', ',']).any(|known| known.strip_suffix('=') == Some(key))
}

impl<'a> DomainSection<'a> {
    pub(super) fn new(name: &'a str) -> DomainSection<'a> {
        DomainSection { name, ..DomainSection::default() }
    }

    /// Takes the value of a known key.
    pub(super) fn set(&mut self, key: &'a str, value: &'a str) -> Result<(), Problem<'a>> {
        let bad = |expected| Problem::BadValue { key, value, expected };
        let yes_or_no = || boolean(value).ok_or(bad("yes or no"));
        let number = || value.parse().map(Some).map_err(|_| bad("a number"));
        match key {
            "kernel" => {
                self.kernel = File::parse(value);
                if self.kernel.words.len() > WORDS {
                    return Err(Problem::BadValue {
                        key,
                        value: self.kernel.path,
                        expected: "a command line of at most 1024 bytes",
                    });
                }
            }
            "ramdisk" => self.ramdisk = Some(value),
            "cpus" => {
                let cpus = value.parse().ok().filter(|&cpus| cpus > 0);
                self.cpus = cpus.ok_or(bad("a number from 1 to 65535"))?;
            }
            "memory" => {
                let memory = size(value).filter(|&memory| memory > 0);
                self.memory = memory.ok_or(bad("a size in bytes, or with K, M or G"))?;
            }
            "vpl011" => self.vpl011 = yes_or_no()?,
            "cpu-weight" => self.weight = number()?,
            "cpu-cap" => self.cap = number()?,
            "pci" => {
                for value in value.split([' ', '\t', ',']).filter(|text| !text.is_empty()) {
                    let expected = "PCI functions as SSSS:BB:DD.F, in hexadecimal";
                    let function = value.parse().map_err(|_| Problem::BadValue { key, value, expected })?;
                    if !self.pci.contains(&function) {
                        self.pci.try_push(function).map_err(|_| bad("at most 16 functions"))?;
                    }
                }
            }
            "pci-allow-no-reset" => self.pci_allow_no_reset = yes_or_no()?,
            _ => return Err(Problem::UnknownDomainKey(key)),
        }
        Ok(())
    }

    /// Returns the domU's description, with the memory that its files have been loaded to.
    #[must_use]
    pub fn config(&self, kernel: Range, ramdisk: Option<Range>) -> DomainConfig {
        let bootargs = ArrayString::from(self.kernel.words).unwrap_or_default();
        let kernel = Module { kind: ModuleKind::Kernel, range: kernel, bootargs };
        let ramdisk = ramdisk.map(|range| Module { kind: ModuleKind::Ramdisk, range, bootargs: ArrayString::new() });
        DomainConfig {
            name: ArrayString::from(self.name).unwrap_or_default(),
            cpus: self.cpus,
            memory: self.memory,
            vpl011: self.vpl011,
            weight: self.weight,
            cap: self.cap,
            pci: self.pci.clone(),
            pci_allow_no_reset: self.pci_allow_no_reset,
            problem: None,
            modules: [Some(kernel), ramdisk].into_iter().flatten().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pa;
    use crate::platform::efi::{Config, ConfigError};
    use std::format;
    use std::string::{String, ToString};

    const TWO: &str = "[linux]\nkernel=Image\ndomains=web  db\n[domain web]\nkernel=/K console=ttyAMA0 quiet\n\
        ramdisk=R\ncpus=2\nmemory=512M\nvpl011=yes\ncpu-weight=512\ncpu-cap=50\n\
        pci=0000:01:00.0, 0001:02:1f.7 0000:01:00.0\npci-allow-no-reset=on\n[domain\t db]\nkernel=L\ncpus=1\n\
        [domain db]\nmemory=65536\n[domain other]\nkernel=M\ncpus=1\nmemory=1G\n";

    fn parse(text: &str) -> Result<Config<'_>, ConfigError<'_>> {
        Config::parse(text.as_bytes(), None)
    }

    #[test]
    fn the_domains_that_the_booted_section_lists_are_read() {
        let config = parse(TWO).unwrap();
        let [web, db] = &config.domains[..] else { panic!("two domains") };
        let pci = [Sbdf { segment: 0, rid: 0x100 }, Sbdf { segment: 1, rid: 0x2ff }];
        assert_eq!((web.name, web.cpus, web.memory, web.vpl011), ("web", 2, 512 << 20, true));
        assert_eq!((web.weight, web.cap, &web.pci[..], web.pci_allow_no_reset), (Some(512), Some(50), &pci[..], true));
        assert_eq!((web.kernel, web.ramdisk), (File { path: "/K", words: "console=ttyAMA0 quiet" }, Some("R")));
        let least = DomainSection { kernel: File::parse("L"), cpus: 1, memory: 65536, ..DomainSection::new("db") };
        assert_eq!(*db, least);
        assert!(parse("[a]\nkernel=k\n[domain x]\nkernel=k\ncpus=1\nmemory=1M").unwrap().domains.is_empty());
    }

    #[test]
    fn a_section_becomes_the_description_of_a_domain_with_its_files() {
        let config = parse(TWO).unwrap();
        let (kernel, ramdisk) = (Range::new(Pa(0x5000_0000), 0x1000), Range::new(Pa(0x6000_0000), 0x2000));
        let web = config.domains[0].config(kernel, Some(ramdisk));
        assert_eq!((web.name.as_str(), web.cpus, web.memory, web.vpl011), ("web", 2, 512 << 20, true));
        assert_eq!((web.weight, web.cap, web.pci.len(), web.pci_allow_no_reset), (Some(512), Some(50), 2, true));
        let module = web.module(ModuleKind::Kernel).unwrap();
        assert_eq!((module.range, module.bootargs.as_str()), (kernel, "console=ttyAMA0 quiet"));
        assert_eq!(web.module(ModuleKind::Ramdisk).unwrap().range, ramdisk);
        let db = config.domains[1].config(kernel, None);
        assert_eq!((db.modules.len(), db.vpl011, db.problem), (1, false, None));
    }

    #[test]
    fn a_domain_is_never_what_is_booted() {
        let text = "[domain x]\nkernel=k\ncpus=1\nmemory=1M\n";
        assert_eq!(parse(text).unwrap_err().to_string(), "there is no section to boot");
        let with = format!("{text}[a]\nkernel=l\n");
        assert_eq!(parse(&with).unwrap().section, "a");
        let error = Config::parse(with.as_bytes(), Some("domain x")).unwrap_err();
        assert_eq!(error.to_string(), "there is no section [domain x]");
    }

    #[test]
    fn each_error_in_a_domain_has_its_line() {
        let error = |text: &str| parse(text).unwrap_err().to_string();
        let domain = |line: &str| error(&format!("[a]\nkernel=k\n[domain x]\nkernel=k\n{line}\ncpus=1\nmemory=1M"));
        assert_eq!(domain("cpus=0"), "line 6: duplicate key `cpus=` in one section");
        assert_eq!(domain("vpl011=2"), "line 5: `vpl011=2`: expected yes or no");
        assert_eq!(domain("vpl011="), "line 5: `vpl011=` has no value");
        assert_eq!(domain("cpu-cap=many"), "line 5: `cpu-cap=many`: expected a number");
        assert_eq!(
            domain("pci=0000:01:00.0 01:00.0"),
            "line 5: `pci=01:00.0`: expected PCI functions as SSSS:BB:DD.F, in hexadecimal"
        );
        let many: String = (0..17).map(|bus| format!(" 0:{bus:x}:0.0")).collect();
        assert!(domain(&format!("pci={many}")).ends_with("expected at most 16 functions"));
        assert_eq!(domain("options=x"), format!("line 5: unknown key `options=`: expected {KEYS}"));
        let long = format!("[domain x]\nkernel=K {}", "x".repeat(1025));
        assert_eq!(error(&long), "line 2: `kernel=K`: expected a command line of at most 1024 bytes");

        assert_eq!(error("[domain x]\ncpus=0"), "line 2: `cpus=0`: expected a number from 1 to 65535");
        assert_eq!(error("[domain x]\ncpus=65536"), "line 2: `cpus=65536`: expected a number from 1 to 65535");
        let memory = "expected a size in bytes, or with K, M or G";
        assert_eq!(error("[domain x]\nmemory=0"), format!("line 2: `memory=0`: {memory}"));
        assert_eq!(error("[domain x]\nmemory=lots"), format!("line 2: `memory=lots`: {memory}"));
        assert_eq!(error("[a]\nkernel=k\n[domain x]\nkernel=k\ncpus=1"), "line 3: section [domain x] has no memory=");
        assert_eq!(error("[domain x]\nmemory=1M\ncpus=1"), "line 1: section [domain x] has no kernel=");
        assert!(error("[domain a b]\n").starts_with("line 1: `a b` is no name of a domain"));
        assert!(error(&format!("[domain {}]\n", "x".repeat(33))).starts_with("line 1: "));
        // `[domain ]` is trimmed to a name that anything can have.
        assert_eq!(error("[domain ]"), "section [domain] has no kernel=");

        let list = |names: &str| {
            let sections: String = (0..9).map(|n| format!("\n[domain d{n}]\nkernel=k\ncpus=1\nmemory=1M")).collect();
            error(&format!("[a]\nkernel=k\ndomains={names}{sections}"))
        };
        assert_eq!(list("d1 d9"), "line 3: there is no section [domain d9]");
        assert_eq!(list("d1 d2 d1"), "line 3: domain `d1` is listed twice");
        assert_eq!(list("d0 d1 d2 d3 d4 d5 d6 d7 d8"), "line 3: more than 8 domains are not supported");
        assert_eq!(list(""), "line 3: `domains=` has no value");
        assert!(error("[global]\ndomains=x").starts_with("line 2: unknown key `domains=`"));
    }
}
