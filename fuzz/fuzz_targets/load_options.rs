//! The load options of an EFI application: neither their conversion nor their reader panics on any text, and what was
//! understood, written in order, is understood in the same way.
//!
//! The input is UTF-16 in little-endian order, as the firmware passes it.
//!
//! `cargo +nightly fuzz run load_options -- -max_total_time=60`
#![cfg_attr(fuzzing, no_main)]

use doorward::platform::efi::{LoadOptions, to_utf8};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

/// The size of the buffers in `boot::efi`.
const LONGEST: usize = 1024;

/// Converts and reads the text.
pub fn run(bytes: &[u8]) {
    let units = || bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let text: Vec<u16> = units().take_while(|&unit| unit != 0).collect();
    let expected = String::from_utf16(&text).ok().filter(|text| text.len() <= LONGEST);
    let converted = to_utf8::<LONGEST>(units());
    assert_eq!(converted.as_deref(), expected.as_deref());
    let Some(text) = converted else { return };
    // The second name is any, even one of no characters.
    for own in ["\\EFI\\BOOT\\BOOTAA64.EFI", text.split_once(' ').map_or("", |(first, _)| first), ""] {
        read(&text, own);
    }
}

fn read(text: &str, own: &str) {
    let options = LoadOptions::parse(text, own);
    let word = |word: Option<&str>| word.is_none_or(|word| !word.contains(char::is_whitespace) && text.contains(word));
    assert!(word(options.config) && word(options.section) && word(options.unknown));
    assert!(text.trim().ends_with(options.hypervisor));
    assert!(options.section.is_none_or(|section| !section.is_empty() && !section.starts_with('-')));
    let known = LoadOptions { unknown: None, ..options };
    let again = format!(
        "own.efi {} {} -- {}",
        known.config.map(|file| format!("-cfg={file}")).unwrap_or_default(),
        known.section.unwrap_or_default(),
        known.hypervisor
    );
    assert_eq!(LoadOptions::parse(&again, own), known, "{again:?}");
}
