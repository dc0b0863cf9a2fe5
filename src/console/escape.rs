//! The visible form of what a domain without the keyboard prints.
//!
//! A terminal obeys control characters: a domain could erase or overwrite lines of others, or hide them. So they are
//! shown instead of obeyed: C0 and DEL as `^[`, C1 and invisible characters (such as those that change the direction of
//! writing) as `\u{9b}`, bytes that are not UTF-8 as `\x9b`. A tab stays. The terminal is taken to expect UTF-8.

use arrayvec::ArrayString;
use core::fmt::Write;

/// The length of the longest character in bytes.
pub const CHAR_LEN: usize = 4;

/// The visible form of a character.
pub type Form = ArrayString<12>;

/// Returns the number of bytes of the first character of `bytes`, and its visible form. `bytes` may end after
/// [`CHAR_LEN`] bytes.
#[must_use]
pub fn visible(bytes: &[u8]) -> (usize, Form) {
    let mut form = Form::new();
    let Some(&first) = bytes.first() else { return (0, form) };
    let length = match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    let char = bytes.get(..length).and_then(|bytes| core::str::from_utf8(bytes).ok()?.chars().next());
    // The longest form, `\u{10ffff}`, fits.
    let _ = match char {
        None => write!(form, "\\x{first:02x}"),
        Some('\t') => form.write_char('\t'),
        Some(c @ ('\0'..'\x20' | '\x7f')) => write!(form, "^{}", char::from(c as u8 ^ 0x40)),
        Some(c) if is_hidden(c) => write!(form, "\\u{{{:x}}}", u32::from(c)),
        Some(c) => form.write_char(c),
    };
    (if char.is_some() { length } else { 1 }, form)
}

/// Whether a character outside ASCII has no glyph of its own.
const fn is_hidden(c: char) -> bool {
    matches!(c,
        '\u{80}'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    fn shown(mut bytes: &[u8]) -> String {
        let mut all = String::new();
        while !bytes.is_empty() {
            let (length, form) = visible(&bytes[..bytes.len().min(CHAR_LEN)]);
            all.push_str(&form);
            bytes = &bytes[length..];
        }
        all
    }

    #[test]
    fn controls_are_shown_and_text_stays() {
        assert_eq!(shown("a\tb ~ é … \u{1f980}".as_bytes()), "a\tb ~ é … \u{1f980}");
        assert_eq!(shown(b"\x1b[1G\x1b[2Kx\x08\r\x07\x7f\0"), "^[[1G^[[2Kx^H^M^G^?^@");
        assert_eq!(shown("\u{9b}2K \u{202e}\u{200b}".as_bytes()), "\\u{9b}2K \\u{202e}\\u{200b}");
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_shown_by_their_value() {
        assert_eq!(shown(b"\x9b2K"), "\\x9b2K", "CSI as one byte");
        assert_eq!(shown(b"\xc3("), "\\xc3(", "a byte is missing");
        assert_eq!(shown(b"\xc0\x9b\xed\xa0\x80\xff"), "\\xc0\\x9b\\xed\\xa0\\x80\\xff", "overlong, surrogate");
        assert_eq!(shown(b"\xe2\x80"), "\\xe2\\x80", "cut off");
    }

    #[test]
    fn no_sequence_of_bytes_yields_a_control_character() {
        for first in 0..=255u8 {
            for second in 0..=255u8 {
                let text = shown(&[first, second, b'\x1b', first]);
                assert!(text.chars().all(|c| c == '\t' || !c.is_control()), "{first:#x} {second:#x}: {text:?}");
            }
        }
    }
}
