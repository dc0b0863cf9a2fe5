//! Drivers of Arm's PL011 and of the 16550 with its various register layouts.
//!
//! [`Uart::put`] polls a bounded number of times, so that a UART that is disabled or flow-controlled does not block a
//! CPU; [`Uart::fill`] does not wait. Reception is by interrupt after [`Uart::listen`], and so is transmission while
//! [`Uart::set_transmit_interrupt`] has enabled it. The line settings are left as the firmware has made them.
//!
//! PL011: DDI 0183, 3.3. 16550: the PC16550D data sheet, 8.

use crate::ids::Pa;

/// The kind of a UART, and its register layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Arm PL011.
    Pl011,
    /// 16550 with 8-bit registers `1 << shift` bytes apart.
    Ns16550Byte {
        /// log2 of the distance between registers.
        shift: u8,
    },
    /// 16550 with 32-bit registers `1 << shift` bytes apart.
    Ns16550Word {
        /// log2 of the distance between registers.
        shift: u8,
    },
}

/// A UART.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uart {
    /// The kind.
    pub kind: Kind,
    /// The address of its first register.
    pub base: Pa,
}

/// Access to a UART's registers by offset in bytes, with the access size of its kind.
pub trait Port {
    /// Reads a register.
    fn read(&self, uart: &Uart, offset: u64) -> u32;
    /// Writes a register.
    fn write(&self, uart: &Uart, offset: u64, value: u32);
}

/// The number of polls before a character is dropped: enough for the slowest line (1200 baud) at any CPU clock.
pub const POLLS: u32 = 1_000_000;

/// Why [`Uart::fill`] has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// There are no more bytes.
    Finished,
    /// The UART has no room now.
    Full,
    /// As many bytes as allowed were sent. There may be more.
    Limit,
}

mod pl011 {
    pub const DR: u64 = 0x00;
    pub const FR: u64 = 0x18;
    pub const FR_BUSY: u32 = 1 << 3;
    pub const FR_TXFF: u32 = 1 << 5;
    pub const FR_RXFE: u32 = 1 << 4;
    pub const CR: u64 = 0x30;
    pub const CR_UARTEN_TXE_RXE: u32 = 1 | 1 << 8 | 1 << 9;
    pub const IMSC: u64 = 0x38;
    pub const ICR: u64 = 0x44;
    pub const RX_AND_TIMEOUT: u32 = 1 << 4 | 1 << 6;
    pub const TX: u32 = 1 << 5;
}

mod ns16550 {
    pub const DATA: u64 = 0;
    pub const IER: u64 = 1;
    pub const IER_RX: u32 = 1;
    pub const IER_TX: u32 = 1 << 1;
    pub const IIR: u64 = 2;
    /// Both bits are set if the FIFOs are enabled.
    pub const IIR_FIFOS: u32 = 3 << 6;
    /// Size of the transmit FIFO.
    pub const FIFO: usize = 16;
    pub const LSR: u64 = 5;
    pub const LSR_DATA: u32 = 1;
    pub const LSR_THRE: u32 = 1 << 5;
    pub const LSR_TEMT: u32 = 1 << 6;
}

impl Uart {
    /// Decodes the early UART in the image's header; `None` if there is none.
    #[must_use]
    pub fn from_words(kind: u64, base: u64) -> Option<Uart> {
        let kind = match kind {
            1 => Kind::Pl011,
            2 => Kind::Ns16550Byte { shift: 0 },
            3 => Kind::Ns16550Word { shift: 2 },
            _ => return None,
        };
        Some(Uart { kind, base: Pa(base) })
    }

    fn shift(self) -> u8 {
        match self.kind {
            Kind::Pl011 => 0,
            Kind::Ns16550Byte { shift } | Kind::Ns16550Word { shift } => shift,
        }
    }

    /// Enables the UART if the firmware has not: when QEMU boots a kernel directly, the UART is disabled. The line
    /// settings are unchanged.
    pub fn enable<P: Port>(&self, port: &P) {
        if self.kind == Kind::Pl011 {
            let control = port.read(self, pl011::CR);
            if control & pl011::CR_UARTEN_TXE_RXE != pl011::CR_UARTEN_TXE_RXE {
                port.write(self, pl011::CR, control | pl011::CR_UARTEN_TXE_RXE);
            }
        }
    }

    fn has_room<P: Port>(&self, port: &P) -> bool {
        match self.kind {
            Kind::Pl011 => port.read(self, pl011::FR) & pl011::FR_TXFF == 0,
            _ => port.read(self, ns16550::LSR << self.shift()) & ns16550::LSR_THRE != 0,
        }
    }

    fn send<P: Port>(&self, port: &P, byte: u8) {
        match self.kind {
            Kind::Pl011 => port.write(self, pl011::DR, byte.into()),
            _ => port.write(self, ns16550::DATA << self.shift(), byte.into()),
        }
    }

    /// Sends a byte once there is room for it. After `polls` polls it is sent regardless, and may be lost. Returns whether
    /// there was room.
    pub fn put<P: Port>(&self, port: &P, byte: u8, polls: u32) -> bool {
        let ready = (0..polls).any(|_| self.has_room(port));
        self.send(port, byte);
        ready
    }

    /// Sends what `next` returns while there is room for it, at most `limit` bytes. Does not wait.
    pub fn fill<P: Port>(&self, port: &P, limit: usize, mut next: impl FnMut() -> Option<u8>) -> Filled {
        let mut sent = 0;
        while sent < limit {
            if !self.has_room(port) {
                return Filled::Full;
            }
            // A PL011 shows after each byte whether there is room for one more. A 16550 shows only that its FIFO is empty.
            let room = match self.kind {
                Kind::Pl011 => 1,
                _ if port.read(self, ns16550::IIR << self.shift()) & ns16550::IIR_FIFOS == ns16550::IIR_FIFOS => {
                    ns16550::FIFO
                }
                _ => 1,
            };
            for _ in 0..room.min(limit - sent) {
                let Some(byte) = next() else { return Filled::Finished };
                self.send(port, byte);
                sent += 1;
            }
        }
        Filled::Limit
    }

    /// Whether all bytes have left the UART.
    pub fn is_drained<P: Port>(&self, port: &P) -> bool {
        match self.kind {
            Kind::Pl011 => port.read(self, pl011::FR) & pl011::FR_BUSY == 0,
            _ => port.read(self, ns16550::LSR << self.shift()) & ns16550::LSR_TEMT != 0,
        }
    }

    /// Reads a received byte, if there is one.
    #[allow(clippy::cast_possible_truncation, reason = "the data is the low byte; error flags lie above it")]
    pub fn get<P: Port>(&self, port: &P) -> Option<u8> {
        match self.kind {
            Kind::Pl011 => (port.read(self, pl011::FR) & pl011::FR_RXFE == 0).then(|| port.read(self, pl011::DR) as u8),
            _ => (port.read(self, ns16550::LSR << self.shift()) & ns16550::LSR_DATA != 0)
                .then(|| port.read(self, ns16550::DATA << self.shift()) as u8),
        }
    }

    /// Enables the receive interrupt, and no other.
    pub fn listen<P: Port>(&self, port: &P) {
        match self.kind {
            Kind::Pl011 => {
                port.write(self, pl011::ICR, 0x7ff);
                port.write(self, pl011::IMSC, pl011::RX_AND_TIMEOUT);
            }
            _ => port.write(self, ns16550::IER << self.shift(), ns16550::IER_RX),
        }
    }

    /// Enables or disables the transmit interrupt, after [`listen`](Uart::listen).
    ///
    /// A PL011 raises it when its FIFO has emptied to the trigger level. So it is enabled after [`fill`](Uart::fill) has
    /// filled the FIFO, and is never cleared: the level may have been reached meanwhile. A 16550 raises it while the FIFO
    /// is empty.
    pub fn set_transmit_interrupt<P: Port>(&self, port: &P, on: bool) {
        match self.kind {
            Kind::Pl011 => {
                let transmit = if on { pl011::TX } else { 0 };
                port.write(self, pl011::IMSC, pl011::RX_AND_TIMEOUT | transmit);
            }
            _ => {
                let transmit = if on { ns16550::IER_TX } else { 0 };
                port.write(self, ns16550::IER << self.shift(), ns16550::IER_RX | transmit);
            }
        }
    }

    /// Clears the receive interrupt. Call this before [`get`](Uart::get) returns `None`, so that no interrupt is lost.
    pub fn acknowledge<P: Port>(&self, port: &P) {
        if self.kind == Kind::Pl011 {
            port.write(self, pl011::ICR, pl011::RX_AND_TIMEOUT);
        }
    }
}

/// The registers of the hardware.
pub struct Registers;

impl Port for Registers {
    fn read(&self, uart: &Uart, offset: u64) -> u32 {
        use crate::mmio::Device;
        let at = uart.base.add(offset);
        match uart.kind {
            Kind::Ns16550Byte { .. } => Device::read8(at).into(),
            _ => Device::read32(at),
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "registers of the byte kind are bytes")]
    fn write(&self, uart: &Uart, offset: u64, value: u32) {
        use crate::mmio::Device;
        let at = uart.base.add(offset);
        match uart.kind {
            Kind::Ns16550Byte { .. } => Device::write8(at, value as u8),
            _ => Device::write32(at, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::vec::Vec;

    /// Registers with fixed status and data, and a list of writes.
    struct Fake {
        status: u32,
        data: u32,
        written: RefCell<Vec<(u64, u32)>>,
    }

    impl Port for Fake {
        fn read(&self, _: &Uart, offset: u64) -> u32 {
            if offset == 0 { self.data } else { self.status }
        }
        fn write(&self, _: &Uart, offset: u64, value: u32) {
            self.written.borrow_mut().push((offset, value));
        }
    }

    fn fake(status: u32) -> Fake {
        Fake { status, data: 0xf41, written: RefCell::default() }
    }

    #[test]
    fn a_pl011_with_an_empty_receive_fifo_returns_no_byte() {
        let uart = Uart { kind: Kind::Pl011, base: Pa(0) };
        assert_eq!(uart.get(&fake(pl011::FR_RXFE)), None);
        assert_eq!(uart.get(&fake(0)), Some(0x41), "error flags above the byte are dropped");
    }

    #[test]
    fn a_16550_is_accessed_with_its_register_spacing() {
        let uart = Uart { kind: Kind::Ns16550Word { shift: 2 }, base: Pa(0) };
        let port = fake(ns16550::LSR_THRE);
        assert!(uart.put(&port, b'x', POLLS));
        uart.listen(&port);
        uart.set_transmit_interrupt(&port, true);
        assert_eq!(*port.written.borrow(), [(0, u32::from(b'x')), (4, 1), (4, 3)]);
        assert_eq!(uart.get(&port), None);
        assert_eq!(uart.get(&fake(ns16550::LSR_DATA)), Some(0x41));
    }

    #[test]
    fn a_transmitter_that_is_stuck_does_not_block_the_cpu() {
        let uart = Uart { kind: Kind::Pl011, base: Pa(0) };
        assert!(!uart.put(&fake(pl011::FR_TXFF), b'x', POLLS));
    }

    #[test]
    fn filling_ends_when_the_uart_is_full_when_nothing_is_left_or_at_the_limit() {
        let uart = Uart { kind: Kind::Pl011, base: Pa(0) };
        let endless = || Some(b'x');
        assert_eq!(uart.fill(&fake(pl011::FR_TXFF), 9, endless), Filled::Full);
        let port = fake(0);
        let mut text = b"ab".iter().copied();
        assert_eq!((uart.fill(&port, 9, || text.next()), port.written.borrow().len()), (Filled::Finished, 2));
        assert_eq!((uart.fill(&port, 9, endless), port.written.borrow().len()), (Filled::Limit, 11));
    }

    #[test]
    fn an_empty_16550_takes_as_many_bytes_as_its_fifo_has() {
        let uart = Uart { kind: Kind::Ns16550Byte { shift: 0 }, base: Pa(0) };
        let sent_at_once = |fifos| {
            let port = Pc16550 { fifos, held: RefCell::default() };
            assert_eq!(uart.fill(&port, 99, || Some(b'x')), Filled::Full);
            port.held.take()
        };
        assert_eq!((sent_at_once(true), sent_at_once(false)), (ns16550::FIFO, 1));
    }

    /// A 16550 that keeps what it gets.
    struct Pc16550 {
        fifos: bool,
        held: RefCell<usize>,
    }

    impl Port for Pc16550 {
        fn read(&self, _: &Uart, offset: u64) -> u32 {
            match offset {
                ns16550::LSR if *self.held.borrow() == 0 => ns16550::LSR_THRE,
                ns16550::IIR if self.fifos => ns16550::IIR_FIFOS | 1,
                _ => 0,
            }
        }
        fn write(&self, _: &Uart, _: u64, _: u32) {
            *self.held.borrow_mut() += 1;
        }
    }

    #[test]
    fn a_disabled_pl011_is_enabled_and_an_enabled_one_is_unchanged() {
        let uart = Uart { kind: Kind::Pl011, base: Pa(0) };
        let (off, on) = (fake(0x4080), fake(0xb01));
        uart.enable(&off);
        uart.enable(&on);
        assert_eq!(*off.written.borrow(), [(pl011::CR, 0x4080 | 0x301)]);
        assert!(on.written.borrow().is_empty());
    }

    #[test]
    fn the_image_header_may_have_no_uart() {
        assert_eq!(Uart::from_words(0, 0x900_0000), None);
        assert_eq!(Uart::from_words(1, 0x900_0000), Some(Uart { kind: Kind::Pl011, base: Pa(0x900_0000) }));
    }
}
