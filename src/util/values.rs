//! Values of options, as users write them.

/// A boolean, in the words that Xen takes.
#[must_use]
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "yes" | "on" | "true" | "enable" | "1" => Some(true),
        "no" | "off" | "false" | "disable" | "0" => Some(false),
        _ => None,
    }
}

/// A size in bytes, or with one of the suffixes K, M and G.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().next_back()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_suffix_or_is_in_bytes() {
        assert_eq!(
            [size("4096"), size("3k"), size("2M"), size("1G")],
            [Some(4096), Some(3072), Some(2 << 20), Some(1 << 30)]
        );
        for bad in ["", "M", "1T", "1.5G", "-1", "1 M", "17179869184G"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_boolean_has_five_words_for_each_value() {
        assert!(["yes", "on", "true", "enable", "1"].iter().all(|word| boolean(word) == Some(true)));
        assert!(["no", "off", "false", "disable", "0"].iter().all(|word| boolean(word) == Some(false)));
        assert_eq!([boolean(""), boolean("Yes"), boolean("2")], [None; 3]);
    }
}
