//! Output of domains that do not have the console to themselves: collected, and printed by the line.

use arrayvec::ArrayVec;

/// The longest line that is kept together.
const LENGTH: usize = 160;

/// One domain's unfinished line.
#[derive(Debug, Default)]
pub struct Line(ArrayVec<u8, LENGTH>);

impl Line {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Line {
        Line(ArrayVec::new_const())
    }

    /// Takes a byte; true when the line is to be printed, with [`take`](Line::take), before the next one comes.
    #[must_use]
    pub fn push(&mut self, byte: u8) -> bool {
        match byte {
            b'\n' => true,
            b'\r' | 0 => false,
            _ => {
                // Cannot fail: a full line has been announced, and taken if the caller listened.
                let _ = self.0.try_push(byte);
                self.0.is_full()
            }
        }
    }

    /// The line, without its end; the next one starts empty.
    pub fn take(&mut self) -> ArrayVec<u8, LENGTH> {
        core::mem::take(&mut self.0)
    }

    /// Whether nothing is waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_out_whole_and_without_its_end() {
        let mut line = Line::new();
        let ready: std::vec::Vec<bool> = b"hello\r\n".iter().map(|&byte| line.push(byte)).collect();
        assert_eq!(ready, [false, false, false, false, false, false, true]);
        assert_eq!(&line.take()[..], b"hello");
        assert!(line.is_empty());
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut line = Line::new();
        assert_eq!((0..LENGTH).filter(|_| line.push(b'x')).count(), 1);
        assert_eq!(line.take().len(), LENGTH);
        assert!(!line.push(b'y'));
    }

    #[test]
    fn a_full_line_that_nobody_took_drops_the_rest() {
        let mut line = Line::new();
        for _ in 0..2 * LENGTH {
            let _ = line.push(b'x');
        }
        assert_eq!(line.take().len(), LENGTH);
    }
}
