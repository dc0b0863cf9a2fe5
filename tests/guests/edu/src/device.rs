//! QEMU's `edu` device, its interrupts, and the timer.
//!
//! Registers of BAR0: source (0x80), destination (0x88), length (0x90) and command (0x98) of a DMA between memory and a buffer of
//! 4 KiB that the engine sees at 0x4_0000. A DMA begins 100 ms after its command. At its end the device sends an MSI.

use core::sync::atomic::{AtomicU64, Ordering};
use guest_rt::its::{Its, Table};
use guest_rt::mmio::{read32, write32, write64};
use guest_rt::{cpu, gic, mrs, msr, off, pci, say};

/// IDs of the device.
const IDS: u32 = 0x11e8_1234;
/// Where its BAR is put: in the PCI window of a domU, and of QEMU's `virt`.
const BAR: u64 = 0x1010_0000;

const ACKNOWLEDGE: u64 = 0x64;
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const LENGTH: u64 = 0x90;
const COMMAND: u64 = 0x98;
const RUN: u32 = 1 << 0;
const TO_MEMORY: u32 = 1 << 1;
const INTERRUPT: u32 = 1 << 2;
const DMA_DONE: u32 = 0x100;

/// The address of the device's buffer, for its engine.
const BUFFER: u64 = 0x4_0000;
/// Its size.
pub const BUFFER_BYTES: u64 = 4096;

/// PPI of CNTV.
pub const TIMER: u32 = 27;

/// GITS_TRANSLATER on this board.
pub const TRANSLATER: u64 = 0x0809_0040;
/// Events that are mapped. Event 0 says that a DMA is complete.
pub const EVENTS: usize = 8;
const FIRST_LPI: u32 = 8192;

static TAKEN: [AtomicU64; EVENTS] = [const { AtomicU64::new(0) }; EVENTS];
static UNEXPECTED: AtomicU64 = AtomicU64::new(0);

static PROPERTIES: Table<0x1_0000> = Table::new();
static PENDING: Table<0x1_0000> = Table::new();
static ITT: Table<0x1_0000> = Table::new();

/// The handler of interrupts.
pub fn interrupt(intid: u32) {
    let event = intid.wrapping_sub(FIRST_LPI) as usize;
    if intid == TIMER {
        msr!("cntv_ctl_el0", 0);
    } else if let Some(taken) = TAKEN.get(event) {
        taken.fetch_add(1, Ordering::AcqRel);
    } else {
        UNEXPECTED.fetch_add(1, Ordering::AcqRel);
    }
}

/// How often an event was taken.
#[must_use]
pub fn taken(event: usize) -> u64 {
    TAKEN[event].load(Ordering::Acquire)
}

/// How many interrupts came that belong to nothing.
#[must_use]
pub fn unexpected() -> u64 {
    UNEXPECTED.load(Ordering::Acquire)
}

/// Sleeps until an interrupt comes, for at most so many milliseconds. The caller has interrupts masked.
fn sleep_until_interrupt(milliseconds: u64) {
    msr!("cntv_cval_el0", cpu::now() + mrs!("cntfrq_el0") / 1000 * milliseconds);
    msr!("cntv_ctl_el0", 1);
    cpu::sleep();
}

/// Sleeps for so many milliseconds, or until an interrupt comes.
pub fn sleep_for(milliseconds: u64) {
    cpu::mask();
    sleep_until_interrupt(milliseconds);
}

/// Sleeps until `done`, for at most [`cpu::LONG`]; returns whether it is.
pub fn sleep_until(done: impl Fn() -> bool) -> bool {
    let end = cpu::now() + mrs!("cntfrq_el0") / 1000 * cpu::LONG;
    cpu::mask();
    while !done() {
        if cpu::now() > end {
            return false;
        }
        sleep_until_interrupt(1000);
    }
    true
}

/// The device.
#[derive(Clone, Copy)]
pub struct Edu {
    /// Its configuration space.
    pub function: pci::Function,
}

impl Edu {
    /// Finds and switches on the device, and maps its events.
    pub fn find(host: &pci::Host) -> Edu {
        let Some(function) = host.with_ids(IDS) else {
            say!("GUEST FAIL edu: there is no such device");
            off()
        };
        let Some(device) = host.device_id(function.rid) else {
            say!("GUEST FAIL edu: the device tree has no DeviceID for {:#x}", function.rid);
            off()
        };
        let redistributor = gic::mine();
        for lpi in 0..EVENTS as u64 {
            let at = (PROPERTIES.address() + lpi) as *mut u8;
            // SAFETY: inside the table, before the redistributor reads it.
            unsafe { at.write_volatile(0xa0 | 1) };
        }
        gic::lpis_on(redistributor, PROPERTIES.address(), gic::id_bits().min(14), PENDING.address());
        let mut its = Its::on();
        let target = its.target(redistributor);
        its.map_device(device, EVENTS.trailing_zeros(), ITT.address());
        its.map_collection(0, target);
        for event in 0..EVENTS as u32 {
            its.map_event(device, event, FIRST_LPI + event, 0);
            its.invalidate(device, event);
        }
        its.sync(target);
        let edu = Edu { function };
        edu.switch_on();
        edu
    }

    /// Gives the device its BAR and its MSI.
    pub fn switch_on(&self) {
        self.function.switch_on(BAR);
        if !self.function.is_on(BAR) {
            say!("GUEST FAIL edu: it cannot be switched on");
            off()
        }
        if !self.function.msi(TRANSLATER, 0) {
            say!("GUEST FAIL edu: it has no MSI");
            off()
        }
    }

    /// Whether it is what it was.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.function.ids() == Some(IDS)
    }

    /// Copies `bytes` bytes from memory to the buffer.
    pub fn load(&self, from: u64, offset: u64, bytes: u64) {
        self.dma(from, BUFFER + offset, bytes, 0);
    }

    /// Copies `bytes` bytes from the buffer to memory.
    pub fn store(&self, offset: u64, to: u64, bytes: u64) {
        self.dma(BUFFER + offset, to, bytes, TO_MEMORY);
    }

    /// Copies the buffer to memory, waits for a second, and returns whether no interrupt came.
    pub fn is_silent(&self, to: u64) -> bool {
        let before = taken(0);
        self.begin(BUFFER, to, BUFFER_BYTES, TO_MEMORY);
        let end = cpu::now() + mrs!("cntfrq_el0");
        while cpu::now() < end {
            sleep_for(1000);
        }
        write32(BAR + ACKNOWLEDGE, DMA_DONE);
        taken(0) == before
    }

    fn dma(&self, from: u64, to: u64, bytes: u64, direction: u32) {
        let before = taken(0);
        self.begin(from, to, bytes, direction);
        let done = sleep_until(|| taken(0) != before);
        if !done || read32(BAR + COMMAND) & RUN != 0 {
            say!("GUEST FAIL edu: no interrupt after a DMA of {bytes:#x} bytes from {from:#x} to {to:#x}");
            off()
        }
        write32(BAR + ACKNOWLEDGE, DMA_DONE);
    }

    fn begin(&self, from: u64, to: u64, bytes: u64, direction: u32) {
        write64(BAR + SOURCE, from);
        write64(BAR + DESTINATION, to);
        write64(BAR + LENGTH, bytes);
        // SAFETY: a barrier: what the CPU has stored is in memory when the device reads it.
        unsafe { core::arch::asm!("dsb sy", options(nostack)) };
        write32(BAR + COMMAND, RUN | direction | INTERRUPT);
    }
}
