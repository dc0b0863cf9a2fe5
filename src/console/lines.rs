//! Line buffers for the output of domains without the input focus, which is printed in whole lines.

use arrayvec::ArrayVec;

/// The capacity of a line in bytes; a longer line is split.
const LENGTH: usize = 160;

/// The incomplete line of a domain.
#[derive(Debug, Default)]
pub struct Line(ArrayVec<u8, LENGTH>);

impl Line {
    /// An empty line.
    #[must_use]
    pub const fn new() -> Line {
        Line(ArrayVec::new_const())
    }

    /// Appends a byte. Returns `true` if the line is complete or full; the caller then prints it, with
    /// [`take`](Line::take), before it appends another byte.
    #[must_use]
    pub fn push(&mut self, byte: u8) -> bool {
        match byte {
            b'\n' => true,
            b'\r' | 0 => false,
            _ => {
                // If the line is full, the caller has not taken it, and the byte is dropped.
                let _ = self.0.try_push(byte);
                self.0.is_full()
            }
        }
    }

    /// Returns the line without its line feed, and starts a new one.
    pub fn take(&mut self) -> ArrayVec<u8, LENGTH> {
        core::mem::take(&mut self.0)
    }

    /// Whether the line is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complete_line_is_returned_without_its_line_feed() {
        let mut line = Line::new();
        let ready: std::vec::Vec<bool> = b"hello\r\n".iter().map(|&byte| line.push(byte)).collect();
        assert_eq!(ready, [false, false, false, false, false, false, true]);
        assert_eq!(&line.take()[..], b"hello");
        assert!(line.is_empty());
    }

    #[test]
    fn a_line_that_is_too_long_is_split() {
        let mut line = Line::new();
        assert_eq!((0..LENGTH).filter(|_| line.push(b'x')).count(), 1);
        assert_eq!(line.take().len(), LENGTH);
        assert!(!line.push(b'y'));
    }

    #[test]
    fn a_full_line_that_is_not_taken_drops_further_bytes() {
        let mut line = Line::new();
        for _ in 0..2 * LENGTH {
            let _ = line.push(b'x');
        }
        assert_eq!(line.take().len(), LENGTH);
    }
}
