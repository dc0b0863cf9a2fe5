//! A PL011 that is not there: the serial port that a domain sees.
//!
//! What the guest sends leaves at once, so the transmit FIFO is always empty. What is typed waits in a receive
//! FIFO of 32 bytes, and behind it in a line of [`AHEAD`]: a paste comes faster than a guest reads, and no cable
//! limits its speed here. The receive timeout is immediate: a byte in
//! the FIFO raises RTRIS, as a real port does 32 bit periods later, and again after the guest has cleared it
//! with bytes left. Baud rate, parity, modem lines, DMA and loopback are stored or read as zero.
//!
//! Arm DDI 0183 (PrimeCell UART PL011, r1p5), chapter 3.

use alloc::collections::VecDeque;

/// Bytes that the receive FIFO holds, as a revision 3 port has them.
pub const FIFO: usize = 32;
/// Bytes that wait for room in it.
pub const AHEAD: usize = 1024;

/// Where DR is.
const DR: u64 = 0x00;
const RSR: u64 = 0x04;
const FR: u64 = 0x18;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
const DMACR: u64 = 0x48;
const PERIPH_ID0: u64 = 0xfe0;

/// PeriphID0 to 3: part 0x011, designer Arm (0x41), revision 3. CellID0 to 3: a PrimeCell.
const IDS: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

const FR_CTS: u32 = 1 << 0;
const FR_DSR: u32 = 1 << 1;
const FR_DCD: u32 = 1 << 2;
const FR_RXFE: u32 = 1 << 4;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;

const LCR_H_FEN: u32 = 1 << 4;

const INT_RX: u32 = 1 << 4;
const INT_TX: u32 = 1 << 5;
const INT_RT: u32 = 1 << 6;
const INT_ALL: u32 = 0x7ff;

/// The port.
#[derive(Clone, Debug)]
pub struct Vpl011 {
    fifo: [u8; FIFO],
    head: usize,
    len: usize,
    /// What was typed while the FIFO was full. Its memory is taken once.
    ahead: VecDeque<u8>,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    /// Latched: TX since the last byte went out, RT since the last byte came in.
    latched: u32,
    dmacr: u32,
}

impl Default for Vpl011 {
    fn default() -> Self {
        Vpl011::new()
    }
}

impl Vpl011 {
    /// As after reset (table 3-1).
    #[must_use]
    pub fn new() -> Vpl011 {
        Vpl011 {
            fifo: [0; FIFO],
            head: 0,
            len: 0,
            ahead: VecDeque::with_capacity(AHEAD),
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: 0x300,
            ifls: 0x12,
            imsc: 0,
            latched: 0,
            dmacr: 0,
        }
    }

    /// Without FIFOs there is one holding register.
    const fn depth(&self) -> usize {
        if self.lcr_h & LCR_H_FEN != 0 { FIFO } else { 1 }
    }

    /// The fill from which RXRIS is up: IFLS.RXIFLSEL, from an eighth to seven eighths.
    const fn trigger(&self) -> usize {
        if self.lcr_h & LCR_H_FEN == 0 {
            return 1;
        }
        match self.ifls >> 3 & 7 {
            0 => FIFO / 8,
            1 => FIFO / 4,
            2 => FIFO / 2,
            3 => FIFO / 4 * 3,
            _ => FIFO / 8 * 7,
        }
    }

    const fn raw(&self) -> u32 {
        let receive = if self.len >= self.trigger() { INT_RX } else { 0 };
        self.latched | receive
    }

    /// Whether the interrupt line is up. To be asked after every access and every [`push_input`](Self::push_input).
    #[must_use]
    pub const fn irq_level(&self) -> bool {
        self.raw() & self.imsc != 0
    }

    /// How many bytes [`push_input`](Self::push_input) would take now.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.depth().saturating_sub(self.len)
    }

    /// A byte for the guest. `false`: the FIFO and the line behind it are full, and the byte is lost.
    #[must_use]
    pub fn push_input(&mut self, byte: u8) -> bool {
        if self.ahead.is_empty() && self.room() > 0 {
            return self.receive(byte);
        }
        let waits = self.ahead.len() < AHEAD;
        if waits {
            self.ahead.push_back(byte);
        }
        waits
    }

    fn receive(&mut self, byte: u8) -> bool {
        let at = self.head.wrapping_add(self.len) % FIFO;
        match self.fifo.get_mut(at) {
            Some(slot) => *slot = byte,
            None => return false,
        }
        self.len = self.len.saturating_add(1);
        self.latched |= INT_RT;
        true
    }

    fn pop(&mut self) -> u8 {
        if self.len == 0 {
            return 0;
        }
        let byte = self.fifo.get(self.head).copied().unwrap_or(0);
        self.head = self.head.wrapping_add(1) % FIFO;
        self.len = self.len.saturating_sub(1);
        if self.len == 0 {
            self.latched &= !INT_RT;
        }
        self.advance();
        byte
    }

    /// Lets those move up that wait, as far as there is room.
    fn advance(&mut self) {
        while self.room() > 0
            && let Some(next) = self.ahead.pop_front()
        {
            self.receive(next);
        }
    }

    /// The timeout of a receiver that still holds bytes.
    const fn refresh(&mut self) {
        if self.len > 0 {
            self.latched |= INT_RT;
        }
    }

    /// A load of `bytes` at `offset`. Unaligned ones and those of other registers read as zero.
    pub fn read(&mut self, offset: u64, bytes: u8) -> u64 {
        self.refresh();
        if offset & 3 != 0 || bytes == 0 {
            return 0;
        }
        let value = match offset {
            DR => u32::from(self.pop()),
            FR => self.flags(),
            IBRD => self.ibrd,
            FBRD => self.fbrd,
            LCR_H => self.lcr_h,
            CR => self.cr,
            IFLS => self.ifls,
            IMSC => self.imsc,
            RIS => self.raw(),
            MIS => self.raw() & self.imsc,
            DMACR => self.dmacr,
            // RSR: no errors. All else: reserved.
            _ => offset
                .checked_sub(PERIPH_ID0)
                .and_then(|at| IDS.get(usize::try_from(at >> 2).ok()?))
                .map_or(0, |&id| u32::from(id)),
        };
        match bytes {
            1 => u64::from(value & 0xff),
            2 => u64::from(value & 0xffff),
            _ => u64::from(value),
        }
    }

    const fn flags(&self) -> u32 {
        let mut flags = FR_TXFE | FR_CTS | FR_DSR | FR_DCD;
        if self.len == 0 {
            flags |= FR_RXFE;
        }
        if self.room() == 0 {
            flags |= FR_RXFF;
        }
        flags
    }

    /// A store of `bytes` at `offset`. Returns a byte that the guest sends.
    ///
    /// It is sent whether or not the port is enabled: an early console writes before any driver has come up.
    #[must_use]
    pub fn write(&mut self, offset: u64, bytes: u8, value: u64) -> Option<u8> {
        self.refresh();
        if offset & 3 != 0 || bytes == 0 {
            return None;
        }
        let word = match bytes {
            1 => value as u32 & 0xff,
            2 => value as u32 & 0xffff,
            _ => value as u32,
        };
        match offset {
            DR => {
                self.latched |= INT_TX;
                return Some(word as u8);
            }
            IBRD => self.ibrd = word & 0xffff,
            FBRD => self.fbrd = word & 0x3f,
            LCR_H => {
                // Switching the FIFOs on or off empties them (3.3.7).
                if (self.lcr_h ^ word) & LCR_H_FEN != 0 {
                    self.len = 0;
                    self.latched &= !INT_RT;
                }
                self.lcr_h = word & 0xff;
                self.advance();
            }
            CR => self.cr = word & 0xff87,
            IFLS => self.ifls = word & 0x3f,
            IMSC => self.imsc = word & INT_ALL,
            ICR => self.latched &= !word,
            DMACR => self.dmacr = word & 0x7,
            // RSR as ECR: there are no errors to clear. All else: reserved or read-only.
            RSR => {}
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled(fifo: bool, interrupts: u32) -> Vpl011 {
        let mut port = Vpl011::new();
        assert_eq!(port.write(LCR_H, 4, if fifo { 0x70 } else { 0x60 }), None);
        assert_eq!(port.write(CR, 4, 0x301), None);
        assert_eq!(port.write(IMSC, 4, u64::from(interrupts)), None);
        port
    }

    #[test]
    fn it_identifies_as_a_pl011_of_revision_3() {
        let mut port = Vpl011::new();
        let ids: Vec<u64> = (0..8).map(|n| port.read(0xfe0 + 4 * n, 4)).collect();
        assert_eq!(ids, [0x11, 0x10, 0x34, 0, 0x0d, 0xf0, 0x05, 0xb1]);
        assert_eq!((port.read(CR, 4), port.read(IFLS, 4), port.read(FR, 4)), (0x300, 0x12, 0x97));
        assert_eq!((port.read(0x1000, 4), port.read(0xfdc, 4), port.read(!3, 4)), (0, 0, 0));
    }

    #[test]
    fn a_byte_typed_raises_the_line_until_it_is_read() {
        let mut port = enabled(true, INT_RX | INT_RT);
        assert!(!port.irq_level());
        assert!(port.push_input(b'a'));
        assert!(port.irq_level());
        assert_eq!(port.read(MIS, 4), u64::from(INT_RT));
        assert_eq!(port.read(FR, 2) as u32 & FR_RXFE, 0);
        assert_eq!(port.read(DR, 4), u64::from(b'a'));
        assert!(!port.irq_level());
        assert_eq!(port.read(FR, 2) as u32 & FR_RXFE, FR_RXFE);
        assert_eq!(port.read(DR, 4), 0, "nothing left");
    }

    #[test]
    fn a_timeout_that_is_cleared_with_bytes_left_comes_again() {
        let mut port = enabled(true, INT_RT);
        assert!(port.push_input(b'a') && port.push_input(b'b'));
        assert_eq!(port.write(ICR, 4, u64::from(INT_RT)), None);
        assert!(!port.irq_level());
        assert_eq!(port.read(DR, 1), u64::from(b'a'));
        assert!(port.irq_level(), "a byte is left");
        assert_eq!(port.read(DR, 1), u64::from(b'b'));
        assert!(!port.irq_level());
    }

    #[test]
    fn the_receive_interrupt_follows_the_trigger() {
        let mut port = enabled(true, INT_RX);
        for n in 0..16 {
            assert!(!port.irq_level(), "{n}");
            assert!(port.push_input(n));
        }
        assert!(port.irq_level(), "half full");
        assert_eq!(port.write(IFLS, 4, 0 << 3), None);
        for n in 0..16 {
            assert_eq!(port.irq_level(), 16 - n >= 4, "{n}");
            assert_eq!(port.read(DR, 4), n);
        }
    }

    #[test]
    fn a_paste_waits_in_line_behind_the_fifo_and_comes_out_in_order() {
        let mut port = enabled(true, INT_RX);
        let pasted = |n: usize| (n % 251) as u8;
        for round in 0..3 {
            for n in 0..FIFO + AHEAD {
                assert!(port.push_input(pasted(n)), "{round}: {n}");
            }
            assert_eq!(port.room(), 0);
            assert!(!port.push_input(0xff), "the line is full");
            assert_eq!(port.read(FR, 4) as u32 & FR_RXFF, FR_RXFF);
            for n in 0..FIFO + AHEAD {
                assert!(n + FIFO / 2 > FIFO + AHEAD || port.irq_level(), "{n}");
                assert_eq!(port.read(DR, 4), u64::from(pasted(n)), "{round}: {n}");
            }
            assert_eq!(port.read(FR, 4) as u32 & FR_RXFE, FR_RXFE);
            assert!(!port.irq_level());
        }
    }

    #[test]
    fn without_fifos_one_byte_is_held_and_the_next_waits() {
        let mut port = enabled(false, INT_RX);
        assert!(port.push_input(b'x') && port.push_input(b'y') && port.push_input(b'z'));
        assert_eq!(port.read(FR, 4) as u32 & FR_RXFF, FR_RXFF);
        assert_eq!(port.read(DR, 4), u64::from(b'x'));
        assert!(port.irq_level());
        assert_eq!(port.write(LCR_H, 4, 0x70), None);
        assert_eq!(port.read(DR, 4), u64::from(b'z'), "switching FIFOs on empties them");
        assert!(!port.irq_level());
    }

    #[test]
    fn a_byte_sent_leaves_at_once_and_reports_room() {
        let mut port = Vpl011::new();
        assert_eq!(port.write(DR, 1, 0x141), Some(b'A'), "before any driver came up");
        assert_eq!(port.write(IMSC, 4, u64::from(INT_TX)), None);
        assert!(port.irq_level());
        assert_eq!(port.write(ICR, 4, 0x7ff), None);
        assert!(!port.irq_level());
        assert_eq!(port.write(DR, 4, 0x0a), Some(b'\n'));
        assert!(port.irq_level(), "the FIFO has drained");
        assert_eq!(port.write(IMSC, 4, 0), None);
        assert!(!port.irq_level());
        assert_eq!(port.read(RIS, 4), u64::from(INT_TX));
    }

    #[test]
    fn odd_accesses_do_nothing() {
        let mut port = Vpl011::new();
        for (offset, bytes) in [(1u64, 1u8), (2, 2), (0x3a, 4), (u64::MAX, 8), (0x1004, 4), (0, 0)] {
            assert_eq!(port.write(offset, bytes, u64::MAX), None, "{offset:#x}");
            assert_eq!(port.read(offset, bytes), 0, "{offset:#x}");
        }
        assert_eq!(port.write(CR, 8, u64::MAX), None);
        assert_eq!(port.read(CR, 8), 0xff87);
        assert_eq!(port.read(IMSC, 4), 0);
    }
}
