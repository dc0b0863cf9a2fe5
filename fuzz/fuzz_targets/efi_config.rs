//! The configuration file of an EFI application: the reader does not panic on any input. What it accepts names a section
//! of the file, and that section read by its name says the same. The domUs that it lists are complete, and each can become
//! a domain's description.
//!
//! `cargo +nightly fuzz run efi_config -- -max_total_time=60`
#![cfg_attr(fuzzing, no_main)]

use doorward::ids::Pa;
use doorward::platform::ModuleKind;
use doorward::platform::efi::{Config, ConfigError, DomainSection};
use doorward::util::range::Range;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|file: &[u8]| run(file));

/// Reads a file, with any of the names in it as the section that is asked for.
pub fn run(file: &[u8]) {
    let found = Config::parse(file, None);
    check(file, &found);
    if let Ok(config) = &found {
        assert_eq!(Config::parse(file, Some(config.section)), found);
    }
    let names = file.split(|&byte| byte == b'\n').filter_map(|line| core::str::from_utf8(line).ok());
    for name in names.map(|line| line.trim().trim_matches(['[', ']']).trim()) {
        let named = Config::parse(file, Some(name));
        check(file, &named);
        assert!(named.is_err() || named.as_ref().is_ok_and(|config| config.section == name));
        // An error of the file is one whatever is asked for.
        assert_eq!(in_file(&found), in_file(&named));
    }
}

fn in_file<'a>(found: &Result<Config<'_>, ConfigError<'a>>) -> Option<ConfigError<'a>> {
    found.as_ref().err().copied().filter(|error| error.line != 0)
}

fn check(file: &[u8], found: &Result<Config<'_>, ConfigError<'_>>) {
    match found {
        Ok(config) => {
            assert!(!config.section.is_empty() && config.section != "global");
            assert!(!config.kernel.path.is_empty() && !config.kernel.path.contains([' ', '\t', '\n']));
            let values = [Some(config.kernel.words), config.ramdisk, config.dtb];
            for value in values.into_iter().flatten().chain(config.options) {
                assert!(!value.contains('\n') && value.trim() == value);
            }
            assert!([config.ramdisk, config.dtb].into_iter().flatten().all(|path| !path.is_empty()));
            for (index, domain) in config.domains.iter().enumerate() {
                check_domain(domain);
                assert!(config.domains.iter().take(index).all(|other| other.name != domain.name));
            }
        }
        Err(error) => {
            assert!(error.line <= 1 + file.iter().filter(|&&byte| byte == b'\n').count());
            assert!(!error.to_string().is_empty());
        }
    }
}

fn check_domain(domain: &DomainSection<'_>) {
    assert!(!domain.name.is_empty() && !domain.name.contains(char::is_whitespace));
    assert!(!domain.kernel.path.is_empty() && !domain.kernel.path.contains([' ', '\t', '\n']));
    assert!(domain.cpus > 0 && domain.memory > 0);
    assert!(domain.ramdisk.is_none_or(|path| !path.is_empty() && !path.contains('\n')));
    let config = domain.config(Range::new(Pa(1 << 30), 4096), domain.ramdisk.map(|_| Range::new(Pa(2 << 30), 4096)));
    // Nothing is cut.
    assert_eq!((config.name.as_str(), config.problem), (domain.name, None));
    let kernel = config.modules.iter().find(|module| module.kind == ModuleKind::Kernel).expect("a kernel");
    assert_eq!(kernel.bootargs.as_str(), domain.kernel.words);
    assert_eq!(config.modules.len(), 1 + usize::from(domain.ramdisk.is_some()));
    assert_eq!((config.cpus, config.memory, config.pci), (domain.cpus, domain.memory, domain.pci.clone()));
}
