//! The load options of an EFI application: `[-cfg=FILE] [SECTION] [-- HYPERVISOR OPTIONS]`, as in Xen.
//!
//! The shell, and most boot manager entries that it creates, put the application's own name first. GRUB and QEMU's
//! `-kernel` do not. QEMU's firmware adds an `initrd=` option. (UEFI 2.10, 9.1 LoadOptions. The text is UCS-2 only by
//! convention, so it may be anything.)

use arrayvec::ArrayString;

/// The parsed load options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions<'a> {
    /// `-cfg=FILE`: the configuration file.
    pub config: Option<&'a str>,
    /// The section to boot.
    pub section: Option<&'a str>,
    /// The text after `--`: options for the hypervisor.
    pub hypervisor: &'a str,
    /// The first unknown option.
    pub unknown: Option<&'a str>,
}

impl<'a> LoadOptions<'a> {
    /// Parses `text`; `own` is the application's file name.
    #[must_use]
    pub fn parse(text: &'a str, own: &str) -> LoadOptions<'a> {
        let mut options = LoadOptions::default();
        let mut rest = text.trim();
        let mut first = true;
        while !rest.is_empty() {
            let (word, behind) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            rest = behind.trim_start();
            if word == "--" {
                options.hypervisor = rest;
                break;
            }
            let is_own_name = core::mem::take(&mut first) && names(word, own);
            if is_own_name || word.starts_with("initrd=") {
                continue;
            }
            if let Some(file) = word.strip_prefix("-cfg=") {
                options.config = Some(file);
            } else if word.starts_with('-') || options.section.is_some() {
                options.unknown = options.unknown.or(Some(word));
            } else {
                options.section = Some(word);
            }
        }
        options
    }
}

/// Whether `word` is the name of the file `own`, in any case, with or without folder and suffix, or of any `.efi` file.
fn names(word: &str, own: &str) -> bool {
    let base = |path: &'_ str| path.len() - path.rsplit(['\\', '/', ':']).next().map_or(0, str::len);
    let (word, own) = (&word[base(word)..], &own[base(own)..]);
    let has_suffix = |name: &str| name.len() > 4 && name.as_bytes()[name.len() - 4..].eq_ignore_ascii_case(b".efi");
    let stem = |name: &str| name.len() - if has_suffix(name) { 4 } else { 0 };
    has_suffix(word)
        || (!own.is_empty() && word.eq_ignore_ascii_case(&own[..stem(own)]))
        || word.eq_ignore_ascii_case(own)
}

/// Converts UTF-16 text up to its terminator. Returns `None` if it is invalid or does not fit.
#[must_use]
pub fn to_utf8<const N: usize>(units: impl Iterator<Item = u16>) -> Option<ArrayString<N>> {
    let mut text = ArrayString::new();
    for c in char::decode_utf16(units.take_while(|&unit| unit != 0)) {
        text.try_push(c.ok()?).ok()?;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> LoadOptions<'_> {
        LoadOptions::parse(text, "\\EFI\\BOOT\\BOOTAA64.EFI")
    }

    #[test]
    fn the_text_after_two_dashes_is_for_the_hypervisor() {
        let options = parse("-cfg=\\a.cfg safe -- direct=off  onpanic=off ");
        assert_eq!((options.config, options.section), (Some("\\a.cfg"), Some("safe")));
        assert_eq!((options.hypervisor, options.unknown), ("direct=off  onpanic=off", None));
        assert_eq!(parse("-- x --").hypervisor, "x --");
        assert_eq!(parse("").hypervisor, "");
    }

    #[test]
    fn the_name_of_the_application_is_not_taken_for_a_section() {
        for name in ["fs0:\\EFI\\BOOT\\bootaa64.efi", "BootAA64", "other.EFI", "/efi/boot/BOOTAA64.EFI"] {
            let text = std::format!("{name} safe");
            assert_eq!(parse(&text).section, Some("safe"), "{name}");
        }
        assert_eq!(parse("safe").section, Some("safe"));
        assert_eq!(LoadOptions::parse("safe", "").section, Some("safe"));
    }

    #[test]
    fn the_first_unknown_option_is_returned() {
        assert_eq!(parse("a b").unknown, Some("b"));
        assert_eq!(parse("-basevideo a").unknown, Some("-basevideo"));
    }

    #[test]
    fn the_initrd_option_of_the_firmware_is_ignored() {
        assert_eq!(parse(" initrd=initrd"), LoadOptions::default());
        assert_eq!(parse("\u{e9}\u{20ac}x").section, Some("\u{e9}\u{20ac}x"));
    }

    #[test]
    fn text_ends_at_its_terminator_and_must_fit() {
        let units = |text: &str| text.encode_utf16().collect::<std::vec::Vec<_>>();
        assert_eq!(to_utf8::<8>(units("ab\0c").into_iter()).unwrap().as_str(), "ab");
        assert_eq!(to_utf8::<2>(units("abc").into_iter()), None);
        assert_eq!(to_utf8::<8>([0xd800, 0x41].into_iter()), None);
    }
}
