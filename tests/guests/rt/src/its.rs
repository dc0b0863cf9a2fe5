//! The ITS: tables, command queue, and the commands that map a device's events.

use crate::mmio::{read32, read64, write32, write64};
use core::arch::asm;
use core::cell::UnsafeCell;

/// The ITS on this board.
pub const GITS: u64 = 0x0808_0000;

const CTLR: u64 = 0x0;
const TYPER: u64 = 0x8;
const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
const CREADR: u64 = 0x90;
const BASER: u64 = 0x100;
const VALID: u64 = 1 << 63;
const INNER_WB: u64 = 7 << 59;
const INNER_SHAREABLE: u64 = 1 << 10;
const PTA: u64 = 1 << 19;

const PAGE: usize = 0x1_0000;

/// Bytes of the largest ring: 256 pages of 4 KiB (GITS_CBASER.Size).
pub const LARGEST_RING: usize = 256 * 4096;

/// Bytes of a command.
const COMMAND: u64 = 32;

/// Memory that the ITS owns.
#[repr(C, align(65536))]
pub struct Table<const BYTES: usize>(UnsafeCell<[u8; BYTES]>);
// SAFETY: it is only accessed by address, by the ITS or by the one function that writes commands.
unsafe impl<const BYTES: usize> Sync for Table<BYTES> {}

impl<const BYTES: usize> Table<BYTES> {
    /// A table of zeroes.
    #[must_use]
    pub const fn new() -> Table<BYTES> {
        Table(UnsafeCell::new([0; BYTES]))
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }
}

impl<const BYTES: usize> Default for Table<BYTES> {
    fn default() -> Self {
        Table::new()
    }
}

static DEVICES: Table<PAGE> = Table::new();
static COLLECTIONS: Table<PAGE> = Table::new();
static RING: Table<PAGE> = Table::new();

/// The enabled ITS.
pub struct Its {
    typer: u64,
    ring: u64,
    ring_bytes: u64,
    write: u64,
}

impl Its {
    /// Sets the tables and a command queue of 64 KiB of the ITS, and enables it.
    #[must_use]
    pub fn on() -> Its {
        Its::with_ring(&RING)
    }

    /// The same, with the first 4 KiB of that command queue.
    #[must_use]
    pub fn on_with_short_ring() -> Its {
        Its::enable(RING.address(), 4096)
    }

    /// Sets the tables and the command queue of the ITS, and enables it. A queue has from 4 KiB up to [`LARGEST_RING`].
    #[must_use]
    pub fn with_ring<const BYTES: usize>(ring: &'static Table<BYTES>) -> Its {
        Its::enable(ring.address(), BYTES as u64)
    }

    fn enable(ring: u64, ring_bytes: u64) -> Its {
        write32(GITS + CTLR, 0);
        // Bounded, as another vCPU may have enabled it again.
        let _ = crate::cpu::wait(10, || read32(GITS + CTLR) >> 31 == 1);
        for n in 0..8 {
            let at = GITS + BASER + 8 * n;
            let baser = read64(at);
            let table = match baser >> 56 & 7 {
                1 => DEVICES.address(),
                4 => COLLECTIONS.address(),
                _ => continue,
            };
            // One page of 64 KiB.
            write64(at, VALID | INNER_WB | (baser & 0x071f << 48) | table | INNER_SHAREABLE | 2 << 8);
        }
        write64(GITS + CBASER, VALID | INNER_WB | ring | INNER_SHAREABLE | (ring_bytes / 4096 - 1));
        write64(GITS + CWRITER, 0);
        write32(GITS + CTLR, 1);
        Its { typer: read64(GITS + TYPER), ring, ring_bytes, write: 0 }
    }

    /// RDbase of a redistributor, in the format of this ITS.
    #[must_use]
    pub fn target(&self, r: crate::gic::Redistributor) -> u64 {
        if self.typer & PTA != 0 { r.base & !0xffff } else { (r.typer >> 8 & 0xffff) << 16 }
    }

    fn put(&mut self, offset: u64, words: [u64; 4]) {
        for (n, word) in words.iter().enumerate() {
            let at = (self.ring + offset + 8 * n as u64) as *mut u64;
            // SAFETY: inside the ring, which nothing else in the guest reaches.
            unsafe { at.write_volatile(*word) };
        }
    }

    /// Passes the commands in the next `bytes` bytes to the ITS, and waits until they are executed.
    fn execute(&mut self, bytes: u64) {
        self.write = (self.write + bytes) % self.ring_bytes;
        // SAFETY: a barrier.
        unsafe { asm!("dsb sy", options(nostack)) };
        write64(GITS + CWRITER, self.write);
        while read64(GITS + CREADR) & 0xf_ffe0 != self.write {}
    }

    fn command(&mut self, words: [u64; 4]) {
        self.put(self.write, words);
        self.execute(COMMAND);
    }

    /// Writes the command `command(n)` to each slot `n` of the ring, and tells the ITS nothing about it.
    pub fn fill(&mut self, command: impl Fn(usize) -> [u64; 4]) {
        for slot in 0..self.ring_bytes / COMMAND {
            self.put(slot * COMMAND, command(slot as usize));
        }
    }

    /// Writes the command `command(n)` to the slot that is executed `n`-th from now, for each slot of the ring, and tells
    /// the ITS nothing about it.
    pub fn fill_from_here(&mut self, command: impl Fn(usize) -> [u64; 4]) {
        for n in 0..self.ring_bytes / COMMAND {
            self.put((self.write + n * COMMAND) % self.ring_bytes, command(n as usize));
        }
    }

    /// Executes what is in the ring, except for the slot that stays free in a full ring, by one store to GITS_CWRITER.
    /// Returns the number of commands.
    pub fn execute_full_ring(&mut self) -> u64 {
        let bytes = self.ring_bytes - COMMAND;
        self.execute(bytes);
        bytes / COMMAND
    }

    /// MAPD: a device with `2^event_bits` events and its table.
    pub fn map_device(&mut self, device: u32, event_bits: u32, table: u64) {
        self.command(map_device(device, event_bits, Some(table)));
    }

    /// MAPC.
    pub fn map_collection(&mut self, collection: u16, target: u64) {
        self.command(map_collection(collection, target));
    }

    /// MAPTI.
    pub fn map_event(&mut self, device: u32, event: u32, lpi: u32, collection: u16) {
        self.command(map_event(device, event, lpi, collection));
    }

    /// INV.
    pub fn invalidate(&mut self, device: u32, event: u32) {
        self.command([0x0c | u64::from(device) << 32, u64::from(event), 0, 0]);
    }

    /// INT.
    pub fn raise(&mut self, device: u32, event: u32) {
        self.command([0x03 | u64::from(device) << 32, u64::from(event), 0, 0]);
    }

    /// MOVI.
    pub fn move_event(&mut self, device: u32, event: u32, collection: u16) {
        self.command([0x01 | u64::from(device) << 32, u64::from(event), u64::from(collection), 0]);
    }

    /// SYNC.
    pub fn sync(&mut self, target: u64) {
        self.command([0x05, 0, target, 0]);
    }
}

/// MOVALL, for [`Its::fill`].
#[must_use]
pub fn move_all(from: u64, to: u64) -> [u64; 4] {
    [0x0e, 0, from, to]
}

/// MAPC, for [`Its::fill`].
#[must_use]
pub fn map_collection(collection: u16, target: u64) -> [u64; 4] {
    [0x09, 0, VALID | target | u64::from(collection), 0]
}

/// MAPD, for [`Its::fill`]; without a table, the device is unmapped.
#[must_use]
pub fn map_device(device: u32, event_bits: u32, table: Option<u64>) -> [u64; 4] {
    [0x08 | u64::from(device) << 32, u64::from(event_bits - 1), table.map_or(0, |table| VALID | table), 0]
}

/// MAPTI, for [`Its::fill`].
#[must_use]
pub fn map_event(device: u32, event: u32, lpi: u32, collection: u16) -> [u64; 4] {
    [0x0a | u64::from(device) << 32, u64::from(event) | u64::from(lpi) << 32, u64::from(collection), 0]
}

/// INVALL, for [`Its::fill`].
#[must_use]
pub fn invalidate_all(collection: u16) -> [u64; 4] {
    [0x0d, 0, u64::from(collection), 0]
}

/// Whether this is the address of the ring of [`Its::on`] and [`Its::on_with_short_ring`].
#[must_use]
pub fn is_ring(address: u64) -> bool {
    address == RING.address()
}
