//! The two UARTs that machines for this hypervisor have: Arm's PL011 and the 16550 in its several spacings.
//!
//! Transmission polls, with a bound: a UART that is switched off or flow-controlled must not hold a CPU for ever.
//! Reception is by interrupt once [`Uart::listen`] has been called. The firmware has set line and speed.
//!
//! PL011: DDI 0183, 3.3. 16550: the PC16550D data sheet, 8.

use crate::ids::Pa;

/// Which UART, and how its registers lie.
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

/// A UART at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uart {
    /// Which.
    pub kind: Kind,
    /// Its first register.
    pub base: Pa,
}

/// How a UART's registers are reached: by offset in bytes, in the width that the kind asks for.
pub trait Port {
    /// Reads a register.
    fn read(&self, uart: &Uart, offset: u64) -> u32;
    /// Writes a register.
    fn write(&self, uart: &Uart, offset: u64, value: u32);
}

/// Polls before a character is given up: long enough for the slowest line (1200 baud) at any CPU clock.
const PATIENCE: u32 = 1_000_000;

mod pl011 {
    pub const DR: u64 = 0x00;
    pub const FR: u64 = 0x18;
    pub const FR_TXFF: u32 = 1 << 5;
    pub const FR_RXFE: u32 = 1 << 4;
    pub const CR: u64 = 0x30;
    pub const CR_UARTEN_TXE_RXE: u32 = 1 | 1 << 8 | 1 << 9;
    pub const IMSC: u64 = 0x38;
    pub const ICR: u64 = 0x44;
    pub const RX_AND_TIMEOUT: u32 = 1 << 4 | 1 << 6;
}

mod ns16550 {
    pub const DATA: u64 = 0;
    pub const IER: u64 = 1;
    pub const IER_RX: u32 = 1;
    pub const LSR: u64 = 5;
    pub const LSR_DATA: u32 = 1;
    pub const LSR_THRE: u32 = 1 << 5;
}

impl Uart {
    /// The kind that the words in the image header name; `None` for no UART at all.
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

    /// Switches the UART on where the firmware has not: QEMU starts it switched off when it boots a kernel directly.
    /// Line and speed are left alone.
    pub fn enable<P: Port>(&self, port: &P) {
        if self.kind == Kind::Pl011 {
            let control = port.read(self, pl011::CR);
            if control & pl011::CR_UARTEN_TXE_RXE != pl011::CR_UARTEN_TXE_RXE {
                port.write(self, pl011::CR, control | pl011::CR_UARTEN_TXE_RXE);
            }
        }
    }

    /// Sends a byte, or drops it when the line does not move.
    pub fn put<P: Port>(&self, port: &P, byte: u8) {
        for _ in 0..PATIENCE {
            let ready = match self.kind {
                Kind::Pl011 => port.read(self, pl011::FR) & pl011::FR_TXFF == 0,
                _ => port.read(self, ns16550::LSR << self.shift()) & ns16550::LSR_THRE != 0,
            };
            if ready {
                break;
            }
        }
        match self.kind {
            Kind::Pl011 => port.write(self, pl011::DR, byte.into()),
            _ => port.write(self, ns16550::DATA << self.shift(), byte.into()),
        }
    }

    /// Takes a byte that has arrived, if one has.
    #[allow(clippy::cast_possible_truncation, reason = "the data is the low byte; error flags lie above it")]
    pub fn get<P: Port>(&self, port: &P) -> Option<u8> {
        match self.kind {
            Kind::Pl011 => (port.read(self, pl011::FR) & pl011::FR_RXFE == 0).then(|| port.read(self, pl011::DR) as u8),
            _ => (port.read(self, ns16550::LSR << self.shift()) & ns16550::LSR_DATA != 0)
                .then(|| port.read(self, ns16550::DATA << self.shift()) as u8),
        }
    }

    /// Lets the UART interrupt when something has been typed, and for nothing else.
    pub fn listen<P: Port>(&self, port: &P) {
        match self.kind {
            Kind::Pl011 => {
                port.write(self, pl011::ICR, 0x7ff);
                port.write(self, pl011::IMSC, pl011::RX_AND_TIMEOUT);
            }
            _ => port.write(self, ns16550::IER << self.shift(), ns16550::IER_RX),
        }
    }

    /// Tells the UART that its interrupt has been seen; call it before [`get`](Uart::get) runs dry.
    pub fn acknowledge<P: Port>(&self, port: &P) {
        if self.kind == Kind::Pl011 {
            port.write(self, pl011::ICR, pl011::RX_AND_TIMEOUT);
        }
    }
}

/// The real registers.
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

    /// A register file that answers status reads from a script and keeps a list of writes.
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
    fn a_pl011_with_an_empty_receiver_gives_nothing() {
        let uart = Uart { kind: Kind::Pl011, base: Pa(0) };
        assert_eq!(uart.get(&fake(pl011::FR_RXFE)), None);
        assert_eq!(uart.get(&fake(0)), Some(0x41), "error flags above the byte are dropped");
    }

    #[test]
    fn a_16550_is_reached_at_its_spacing() {
        let uart = Uart { kind: Kind::Ns16550Word { shift: 2 }, base: Pa(0) };
        let port = fake(ns16550::LSR_THRE);
        uart.put(&port, b'x');
        uart.listen(&port);
        assert_eq!(*port.written.borrow(), [(0, u32::from(b'x')), (4, 1)]);
        assert_eq!(uart.get(&port), None);
        assert_eq!(uart.get(&fake(ns16550::LSR_DATA)), Some(0x41));
    }

    #[test]
    fn a_transmitter_that_is_stuck_does_not_hold_the_cpu() {
        let uart = Uart { kind: Kind::Pl011, base: Pa(0) };
        uart.put(&fake(pl011::FR_TXFF), b'x');
    }

    #[test]
    fn a_pl011_that_is_off_is_switched_on_and_one_that_is_on_is_left_alone() {
        let uart = Uart { kind: Kind::Pl011, base: Pa(0) };
        let (off, on) = (fake(0x4080), fake(0xb01));
        uart.enable(&off);
        uart.enable(&on);
        assert_eq!(*off.written.borrow(), [(pl011::CR, 0x4080 | 0x301)]);
        assert!(on.written.borrow().is_empty());
    }

    #[test]
    fn the_header_may_name_no_uart() {
        assert_eq!(Uart::from_words(0, 0x900_0000), None);
        assert_eq!(Uart::from_words(1, 0x900_0000), Some(Uart { kind: Kind::Pl011, base: Pa(0x900_0000) }));
    }
}
