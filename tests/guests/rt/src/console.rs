//! The serial port, polled.

use crate::mmio;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

/// The address of the PL011 on this board.
pub const PL011: u64 = 0x0900_0000;

const FR: u64 = 0x18;
const TXFF: u32 = 1 << 5;
const RXFE: u32 = 1 << 4;
const CR: u64 = 0x30;
const UARTEN: u32 = 1 << 0;
const TXE: u32 = 1 << 8;

static BUSY: AtomicBool = AtomicBool::new(false);

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while mmio::read32(PL011 + FR) & TXFF != 0 {}
            mmio::write32(PL011, u32::from(byte));
        }
        Ok(())
    }
}

/// Prints a line. Lines of several vCPUs do not mix. Used through [`say!`](crate::say).
pub fn line(text: fmt::Arguments<'_>) {
    while BUSY.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    if mmio::read32(PL011 + CR) & UARTEN == 0 {
        mmio::write32(PL011 + CR, TXE | UARTEN);
    }
    let _ = Port.write_fmt(text);
    let _ = Port.write_str("\r\n");
    BUSY.store(false, Ordering::Release);
}

/// Prints bytes as they are, and the end of a line. With `patient`, it waits until there is room for each of them.
pub fn line_of(bytes: impl Iterator<Item = u8>, patient: bool) {
    while BUSY.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    for byte in bytes {
        while patient && mmio::read32(PL011 + FR) & TXFF != 0 {}
        mmio::write32(PL011, u32::from(byte));
    }
    let _ = Port.write_str("\r\n");
    BUSY.store(false, Ordering::Release);
}

/// The next byte that was typed, if there is one.
#[must_use]
pub fn read() -> Option<u8> {
    (mmio::read32(PL011 + FR) & RXFE == 0).then(|| mmio::read32(PL011) as u8)
}

/// Prints a line.
#[macro_export]
macro_rules! say {
    ($($words:tt)*) => {
        $crate::console::line(format_args!($($words)*))
    };
}
