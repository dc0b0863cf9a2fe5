//! The last lines that the hypervisor has printed, for dom0's tools: as `xl dmesg` shows Xen's.
//!
//! Whoever prints a line appends it here, with the console's lock, or without it when there is none (early, or after a panic).
//! A reader takes no lock: it copies, and then looks what has been overwritten meanwhile.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

/// The number of bytes that are kept.
const LEN: usize = 64 << 10;

/// A ring of the last bytes. Positions count all bytes that have ever been appended.
struct LogRing<const N: usize> {
    bytes: [AtomicU8; N],
    /// The position behind the last byte that a writer has begun to write.
    begun: AtomicU64,
    /// The position behind the last byte.
    end: AtomicU64,
}

static LOG: LogRing<LEN> = LogRing::new();

/// Appends a text. Called with the console's lock held, if there is one.
pub fn append(text: &[u8]) {
    LOG.append(text);
}

/// Copies what was appended from the position `from` on, as much as fits. Returns the position of the first byte, which is
/// greater than `from` if that has been overwritten, and the bytes.
pub fn read(from: u64, into: &mut [u8]) -> (u64, &[u8]) {
    LOG.read(from, into)
}

impl<const N: usize> LogRing<N> {
    const fn new() -> LogRing<N> {
        LogRing { bytes: [const { AtomicU8::new(0) }; N], begun: AtomicU64::new(0), end: AtomicU64::new(0) }
    }

    fn append(&self, text: &[u8]) {
        let start = self.end.load(Ordering::Relaxed);
        let end = start.wrapping_add(text.len() as u64);
        self.begun.store(end, Ordering::Relaxed);
        // A reader that sees a byte of this text sees that it was begun.
        fence(Ordering::Release);
        for (at, &byte) in (start..).zip(text) {
            if let Some(place) = self.bytes.get((at % N as u64) as usize) {
                place.store(byte, Ordering::Relaxed);
            }
        }
        self.end.store(end, Ordering::Release);
    }

    fn read<'b>(&self, from: u64, into: &'b mut [u8]) -> (u64, &'b [u8]) {
        let end = self.end.load(Ordering::Acquire);
        let first = from.clamp(end.saturating_sub(N as u64), end);
        let count = usize::try_from(end - first).unwrap_or(usize::MAX).min(into.len());
        let (copied, _) = into.split_at_mut(count);
        for (at, byte) in (first..).zip(copied.iter_mut()) {
            *byte = self.bytes.get((at % N as u64) as usize).map_or(0, |place| place.load(Ordering::Relaxed));
        }
        fence(Ordering::Acquire);
        let kept = self.begun.load(Ordering::Relaxed).saturating_sub(N as u64);
        let lost = usize::try_from(kept.saturating_sub(first)).unwrap_or(usize::MAX).min(count);
        (first + lost as u64, copied.get(lost..).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_read_from_any_position() {
        let ring = LogRing::<16>::new();
        let mut buffer = [0; 32];
        assert_eq!(ring.read(0, &mut buffer), (0, &b""[..]));
        ring.append(b"first\n");
        assert_eq!(ring.read(2, &mut buffer), (2, &b"rst\n"[..]));
        assert_eq!(ring.read(99, &mut buffer), (6, &b""[..]), "there is no more yet");
        ring.append(b"0123456789abcdef");
        ring.append(b"XY");
        assert_eq!(ring.read(0, &mut buffer), (8, &b"23456789abcdefXY"[..]));
        assert_eq!(ring.read(9, &mut buffer[..3]), (9, &b"345"[..]));
        ring.append(&[b'z'; 40]);
        assert_eq!(ring.read(0, &mut buffer), (48, &[b'z'; 16][..]));
    }

    /// The bytes are the low ones of their positions, so a reader sees any that it should not.
    #[test]
    fn a_reader_gets_no_byte_that_was_overwritten_while_it_read() {
        let ring = LogRing::<64>::new();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                for at in (0..200_000u32).step_by(8) {
                    ring.append(&core::array::from_fn::<u8, 8, _>(|n| (at as usize + n) as u8));
                }
            });
            let (mut at, mut buffer) = (0, [0; 48]);
            while at < 200_000 {
                let (first, bytes) = ring.read(at, &mut buffer);
                assert!(first >= at);
                assert!(bytes.iter().zip(first..).all(|(&byte, at)| byte == at as u8));
                at = first + bytes.len() as u64;
            }
        });
    }
}
