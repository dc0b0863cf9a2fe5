//! The configuration file of an EFI application: the reader does not panic on any input. What it accepts names a section
//! of the file, and that section read by its name says the same.
//!
//! `cargo +nightly fuzz run efi_config -- -max_total_time=60`
#![cfg_attr(fuzzing, no_main)]

use doorward::platform::efi::{Config, ConfigError};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|file: &[u8]| run(file));

/// Reads a file, with any of the names in it as the section that is asked for.
pub fn run(file: &[u8]) {
    let found = Config::parse(file, None);
    check(file, &found);
    if let Ok(config) = found {
        assert_eq!(Config::parse(file, Some(config.section)), found);
    }
    let names = file.split(|&byte| byte == b'\n').filter_map(|line| core::str::from_utf8(line).ok());
    for name in names.map(|line| line.trim().trim_matches(['[', ']']).trim()) {
        let named = Config::parse(file, Some(name));
        check(file, &named);
        assert!(named.is_err() || named.is_ok_and(|config| config.section == name));
        // An error of the file is one whatever is asked for.
        assert_eq!(in_file(&found), in_file(&named));
    }
}

fn in_file<'a>(found: &Result<Config<'a>, ConfigError<'a>>) -> Option<ConfigError<'a>> {
    found.err().filter(|error| error.line != 0)
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
        }
        Err(error) => {
            assert!(error.line <= 1 + file.iter().filter(|&&byte| byte == b'\n').count());
            assert!(!error.to_string().is_empty());
        }
    }
}
