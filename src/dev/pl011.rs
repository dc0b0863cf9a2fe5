//! The emulated PL011: a domain's serial port.
//!
//! The transmit FIFO is the domain's ring in the console, which is larger than a guest expects: it is full (TXFF) when the
//! ring is. A byte that is in the ring counts as sent, so the FIFO is empty (TXFE) and the port idle (BUSY) while the ring
//! has room for a FIFO of the usual size. TXRIS is raised when a byte is sent, and, after the ring has been more than half
//! full, when half of it is empty again. A byte that is sent while the FIFO is full is lost, as on a real port.
//!
//! Input waits in a receive FIFO of 32 bytes and, when that is full, in a backlog of [`BACKLOG_LEN`] bytes: pasted text arrives faster than a guest reads,
//! since no baud rate limits it here. The receive timeout is immediate: a byte in the FIFO raises RTRIS, which a real
//! port does 32 bit periods later, and raises it again if the guest clears it while bytes are left. Baud rate, parity,
//! modem lines, DMA and loopback have no effect: their fields are stored or read as zero.
//!
//! Arm DDI 0183 (PrimeCell UART PL011, r1p5), chapter 3.

use crate::console::ring::Ring;
use alloc::collections::VecDeque;
use alloc::sync::Arc;

/// Size in bytes of the receive FIFO, and of the transmit FIFO that a guest expects, that of a port of revision 3.
pub const FIFO_LEN: usize = 32;
/// Number of bytes of input that can wait for room in the FIFO.
pub const BACKLOG_LEN: usize = 1024;

// Register offsets (table 3-1).
const DR: u64 = 0x00;
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
const FR_BUSY: u32 = 1 << 3;
const FR_RXFE: u32 = 1 << 4;
const FR_TXFF: u32 = 1 << 5;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;

const LCR_H_FEN: u32 = 1 << 4;

const INT_RX: u32 = 1 << 4;
const INT_TX: u32 = 1 << 5;
const INT_RT: u32 = 1 << 6;
const INT_ALL: u32 = 0x7ff;

/// Where an emulated PL011 sends to.
pub trait Output: Clone {
    /// Takes a byte. Returns `false` if there is no room: then the byte is lost.
    fn push(&self, byte: u8) -> bool;
    /// The number of bytes for which there is room.
    fn room(&self) -> usize;
    /// Whether there is room for many bytes.
    fn is_low(&self) -> bool;
    /// Requests a call of [`Vpl011::update_transmit`] when there is room for many bytes. Returns `false` if there is already:
    /// then there is no request.
    #[must_use]
    fn request_room(&self) -> bool;
}

impl Output for Arc<Ring> {
    fn push(&self, byte: u8) -> bool {
        Ring::push(self, byte)
    }

    fn room(&self) -> usize {
        Ring::room(self)
    }

    fn is_low(&self) -> bool {
        Ring::is_low(self)
    }

    fn request_room(&self) -> bool {
        Ring::request_room(self)
    }
}

/// An emulated PL011.
pub struct Vpl011<O = Arc<Ring>> {
    /// What the guest sends.
    output: O,
    /// Whether the ring has been more than half full since TXRIS was raised.
    output_was_high: bool,
    fifo: [u8; FIFO_LEN],
    head: usize,
    len: usize,
    /// Input that arrived while the FIFO was full. Its memory is allocated once, with room for [`BACKLOG_LEN`] bytes.
    backlog: VecDeque<u8>,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    /// Interrupts that stay raised until they are cleared: TX since the last byte sent or since there is room again, RT
    /// since the last byte received.
    latched: u32,
    dmacr: u32,
}

impl<O: Output> Vpl011<O> {
    /// Returns a port in its reset state (table 3-1), which sends into `output`.
    #[must_use]
    pub fn new(output: O) -> Vpl011<O> {
        Vpl011::with(output, VecDeque::with_capacity(BACKLOG_LEN))
    }

    /// Puts the port into its reset state. Input that waits is lost; what was sent is not.
    pub fn reset(&mut self) {
        let mut backlog = core::mem::take(&mut self.backlog);
        backlog.clear();
        *self = Vpl011::with(self.output.clone(), backlog);
    }

    /// A port in its reset state, with an empty backlog that has room.
    const fn with(output: O, backlog: VecDeque<u8>) -> Vpl011<O> {
        Vpl011 {
            output,
            output_was_high: false,
            fifo: [0; FIFO_LEN],
            head: 0,
            len: 0,
            backlog,
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

    /// Size of the receive FIFO in bytes. With FIFOs disabled there is one holding register.
    const fn depth(&self) -> usize {
        if self.lcr_h & LCR_H_FEN != 0 { FIFO_LEN } else { 1 }
    }

    /// Number of received bytes from which RXRIS is raised: IFLS.RXIFLSEL, from an eighth to seven eighths.
    const fn trigger(&self) -> usize {
        if self.lcr_h & LCR_H_FEN == 0 {
            return 1;
        }
        match self.ifls >> 3 & 7 {
            0 => FIFO_LEN / 8,
            1 => FIFO_LEN / 4,
            2 => FIFO_LEN / 2,
            3 => FIFO_LEN / 4 * 3,
            _ => FIFO_LEN / 8 * 7,
        }
    }

    const fn raw_status(&self) -> u32 {
        let receive = if self.len >= self.trigger() { INT_RX } else { 0 };
        self.latched | receive
    }

    /// Whether the interrupt line is asserted. It can change with every access and every
    /// [`push_input`](Self::push_input).
    #[must_use]
    pub const fn irq_level(&self) -> bool {
        self.raw_status() & self.imsc != 0
    }

    /// Number of bytes that still fit into the receive FIFO.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.depth().saturating_sub(self.len)
    }

    /// Number of bytes of input for which there is room, in FIFO and backlog.
    #[must_use]
    pub fn input_room(&self) -> usize {
        self.room().saturating_add(BACKLOG_LEN.saturating_sub(self.backlog.len()))
    }

    /// Adds a byte of input for the guest. Returns `false` if FIFO and backlog are full: then the byte is lost.
    #[must_use]
    pub fn push_input(&mut self, byte: u8) -> bool {
        if self.backlog.is_empty() && self.room() > 0 {
            return self.receive(byte);
        }
        let has_room = self.backlog.len() < BACKLOG_LEN;
        if has_room {
            self.backlog.push_back(byte);
        }
        has_room
    }

    fn receive(&mut self, byte: u8) -> bool {
        let at = self.head.wrapping_add(self.len) % FIFO_LEN;
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
        self.head = self.head.wrapping_add(1) % FIFO_LEN;
        self.len = self.len.saturating_sub(1);
        if self.len == 0 {
            self.latched &= !INT_RT;
        }
        self.refill();
        byte
    }

    /// Moves bytes from the backlog to the FIFO while there is room.
    fn refill(&mut self) {
        while self.room() > 0
            && let Some(next) = self.backlog.pop_front()
        {
            self.receive(next);
        }
    }

    /// Raises the receive timeout if the FIFO is not empty.
    const fn raise_timeout(&mut self) {
        if self.len > 0 {
            self.latched |= INT_RT;
        }
    }

    /// Emulates a load of `bytes` bytes at `offset`. Unaligned loads and reserved offsets read as zero.
    pub fn read(&mut self, offset: u64, bytes: u8) -> u64 {
        self.raise_timeout();
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
            RIS => self.raw_status(),
            MIS => self.raw_status() & self.imsc,
            DMACR => self.dmacr,
            // RSR reads as zero, since there are no errors. All other offsets are identification registers or reserved.
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

    fn flags(&self) -> u32 {
        let mut flags = FR_CTS | FR_DSR | FR_DCD;
        match self.output.room() {
            0 => flags |= FR_TXFF | FR_BUSY,
            room if room < FIFO_LEN => flags |= FR_BUSY,
            _ => flags |= FR_TXFE,
        }
        if self.len == 0 {
            flags |= FR_RXFE;
        }
        if self.room() == 0 {
            flags |= FR_RXFF;
        }
        flags
    }

    /// Adds a byte to the transmit FIFO. If that is full, the byte is lost.
    fn send(&mut self, byte: u8) {
        let _ = self.output.push(byte);
        if self.output.is_low() {
            self.latched |= INT_TX;
        } else {
            self.latched &= !INT_TX;
            self.output_was_high = true;
        }
        self.update_transmit();
    }

    /// Raises TXRIS if the ring has become half empty, or else requests that this is called again when it has.
    pub fn update_transmit(&mut self) {
        if self.output_was_high && !self.output.request_room() {
            self.output_was_high = false;
            self.latched |= INT_TX;
        }
    }

    /// Emulates a store of `bytes` bytes at `offset`.
    ///
    /// Bytes are sent even while the port is disabled, since an early console writes before a driver has enabled it.
    pub fn write(&mut self, offset: u64, bytes: u8, value: u64) {
        self.raise_timeout();
        if offset & 3 != 0 || bytes == 0 {
            return;
        }
        let word = match bytes {
            1 => value as u32 & 0xff,
            2 => value as u32 & 0xffff,
            _ => value as u32,
        };
        match offset {
            DR => self.send(word as u8),
            IBRD => self.ibrd = word & 0xffff,
            FBRD => self.fbrd = word & 0x3f,
            LCR_H => {
                // Enabling or disabling the FIFOs empties them (3.3.7).
                if (self.lcr_h ^ word) & LCR_H_FEN != 0 {
                    self.len = 0;
                    self.latched &= !INT_RT;
                }
                self.lcr_h = word & 0xff;
                self.refill();
            }
            CR => self.cr = word & 0xff87,
            IFLS => self.ifls = word & 0x3f,
            IMSC => self.imsc = word & INT_ALL,
            ICR => self.latched &= !word,
            DMACR => self.dmacr = word & 0x7,
            // A write to RSR clears errors, of which there are none. All other offsets are read-only or reserved.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::console::ring::RING_LEN;

    fn port() -> Vpl011 {
        Vpl011::new(Arc::new(Ring::new(RING_LEN)))
    }

    /// Takes what the guest has sent, at most `limit` bytes.
    fn taken(port: &Vpl011, limit: usize) -> Vec<u8> {
        (0..limit).map_while(|_| port.output.pop()).collect()
    }

    fn enabled(fifo: bool, interrupts: u32) -> Vpl011 {
        let mut port = port();
        port.write(LCR_H, 4, if fifo { 0x70 } else { 0x60 });
        port.write(CR, 4, 0x301);
        port.write(IMSC, 4, u64::from(interrupts));
        port
    }

    #[test]
    fn the_port_identifies_as_a_pl011_of_revision_3() {
        let mut port = port();
        let ids: Vec<u64> = (0..8).map(|n| port.read(0xfe0 + 4 * n, 4)).collect();
        assert_eq!(ids, [0x11, 0x10, 0x34, 0, 0x0d, 0xf0, 0x05, 0xb1]);
        assert_eq!((port.read(CR, 4), port.read(IFLS, 4), port.read(FR, 4)), (0x300, 0x12, 0x97));
        assert_eq!((port.read(0x1000, 4), port.read(0xfdc, 4), port.read(!3, 4)), (0, 0, 0));
    }

    #[test]
    fn a_port_after_its_reset_cannot_be_told_from_a_new_one() {
        let mut port = enabled(true, INT_ALL);
        (0..FIFO_LEN + 100).for_each(|_| assert!(port.push_input(b'x')));
        for register in [IBRD, FBRD, IFLS, DMACR, DR] {
            port.write(register, 4, 0x15);
        }
        let room = port.backlog.capacity();
        port.reset();
        assert!(!port.irq_level() && port.backlog.is_empty());
        let mut fresh = Vpl011::new(port.output.clone());
        for offset in (0..0x1000).step_by(4) {
            assert_eq!(port.read(offset, 4), fresh.read(offset, 4), "{offset:#x}");
        }
        assert_eq!(port.backlog.capacity(), room, "the memory of the backlog is kept");
    }

    #[test]
    fn a_byte_of_input_asserts_the_line_until_it_is_read() {
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
    fn a_timeout_that_is_cleared_with_bytes_left_is_raised_again() {
        let mut port = enabled(true, INT_RT);
        assert!(port.push_input(b'a') && port.push_input(b'b'));
        port.write(ICR, 4, u64::from(INT_RT));
        assert!(!port.irq_level());
        assert_eq!(port.read(DR, 1), u64::from(b'a'));
        assert!(port.irq_level(), "a byte is left");
        assert_eq!(port.read(DR, 1), u64::from(b'b'));
        assert!(!port.irq_level());
    }

    #[test]
    fn the_receive_interrupt_follows_the_trigger_level() {
        let mut port = enabled(true, INT_RX);
        for n in 0..16 {
            assert!(!port.irq_level(), "{n}");
            assert!(port.push_input(n));
        }
        assert!(port.irq_level(), "half full");
        port.write(IFLS, 4, 0 << 3);
        for n in 0..16 {
            assert_eq!(port.irq_level(), 16 - n >= 4, "{n}");
            assert_eq!(port.read(DR, 4), n);
        }
    }

    #[test]
    fn pasted_input_waits_in_the_backlog_and_is_read_in_order() {
        let mut port = enabled(true, INT_RX);
        let pasted = |n: usize| (n % 251) as u8;
        for round in 0..3 {
            for n in 0..FIFO_LEN + BACKLOG_LEN {
                assert!(port.push_input(pasted(n)), "{round}: {n}");
            }
            assert_eq!(port.room(), 0);
            assert!(!port.push_input(0xff), "the backlog is full");
            assert_eq!(port.read(FR, 4) as u32 & FR_RXFF, FR_RXFF);
            for n in 0..FIFO_LEN + BACKLOG_LEN {
                assert!(n + FIFO_LEN / 2 > FIFO_LEN + BACKLOG_LEN || port.irq_level(), "{n}");
                assert_eq!(port.read(DR, 4), u64::from(pasted(n)), "{round}: {n}");
            }
            assert_eq!(port.read(FR, 4) as u32 & FR_RXFE, FR_RXFE);
            assert!(!port.irq_level());
        }
    }

    #[test]
    fn with_fifos_disabled_one_byte_is_held_and_the_next_waits() {
        let mut port = enabled(false, INT_RX);
        assert!(port.push_input(b'x') && port.push_input(b'y') && port.push_input(b'z'));
        assert_eq!(port.read(FR, 4) as u32 & FR_RXFF, FR_RXFF);
        assert_eq!(port.read(DR, 4), u64::from(b'x'));
        assert!(port.irq_level());
        port.write(LCR_H, 4, 0x70);
        assert_eq!(port.read(DR, 4), u64::from(b'z'), "enabling the FIFOs empties them");
        assert!(!port.irq_level());
    }

    #[test]
    fn a_byte_is_sent_and_raises_the_transmit_interrupt() {
        let mut port = port();
        port.write(DR, 1, 0x141);
        assert_eq!(taken(&port, 9), b"A", "before a driver has enabled the port");
        port.write(IMSC, 4, u64::from(INT_TX));
        assert!(port.irq_level());
        port.write(ICR, 4, 0x7ff);
        assert!(!port.irq_level());
        port.write(DR, 4, 0x0a);
        assert!(port.irq_level(), "there is room for more");
        port.write(IMSC, 4, 0);
        assert!(!port.irq_level());
        assert_eq!(port.read(RIS, 4), u64::from(INT_TX));
    }

    #[test]
    fn the_transmit_fifo_is_full_when_the_ring_is_and_what_is_sent_then_is_lost() {
        let mut port = port();
        let transmit = |port: &mut Vpl011| port.read(FR, 4) as u32 & (FR_TXFF | FR_TXFE | FR_BUSY);
        for n in 0..RING_LEN {
            let busy = if n > RING_LEN - FIFO_LEN { FR_BUSY } else { FR_TXFE };
            assert_eq!(transmit(&mut port), busy, "{n}");
            port.write(DR, 1, n as u64);
        }
        assert_eq!(transmit(&mut port), FR_TXFF | FR_BUSY);
        port.write(DR, 1, 0xee);
        let sent: Vec<u8> = (0..RING_LEN).map(|n| n as u8).collect();
        assert_eq!(taken(&port, 2 * RING_LEN), sent, "without the last byte");
        assert_eq!(transmit(&mut port), FR_TXFE);
    }

    /// Linux sends 16 bytes on a transmit interrupt without a look at TXFF.
    #[test]
    fn the_transmit_interrupt_waits_until_half_of_a_full_ring_is_empty() {
        let mut port = enabled(true, INT_TX);
        (0..RING_LEN).for_each(|_| port.write(DR, 1, 0x41));
        assert!(!port.irq_level());
        taken(&port, RING_LEN / 2 - 1);
        assert!(!port.output.take_request());
        taken(&port, 1);
        assert!(port.output.take_request(), "whoever empties the ring has to say so");
        port.update_transmit();
        assert!(port.irq_level());
        port.write(ICR, 4, u64::from(INT_TX));
        port.update_transmit();
        assert!(!port.irq_level(), "raised once");
    }

    #[test]
    fn unaligned_and_reserved_accesses_have_no_effect() {
        let mut port = port();
        for (offset, bytes) in [(1u64, 1u8), (2, 2), (0x3a, 4), (u64::MAX, 8), (0x1004, 4), (0, 0)] {
            port.write(offset, bytes, u64::MAX);
            assert_eq!(port.read(offset, bytes), 0, "{offset:#x}");
        }
        port.write(CR, 8, u64::MAX);
        assert_eq!(port.read(CR, 8), 0xff87);
        assert_eq!(port.read(IMSC, 4), 0);
    }
}
