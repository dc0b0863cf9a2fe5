//! The registers of a virtio device over MMIO, version 2 (virtio 1.2, 4.2.2).

use super::Guest;
use super::console::Console;
use super::queue::{Broken, SIZE};
use super::set::PORTS;
use crate::ids::Ipa;
use crate::util::progress::Progress;

/// Size of the registers and the configuration space in bytes.
pub const REGISTERS: u64 = 0x1000;

// Register offsets (table 4.1).
const MAGIC_VALUE: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_NUM_MAX: u64 = 0x034;
const QUEUE_NUM: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC_LOW: u64 = 0x080;
const QUEUE_DESC_HIGH: u64 = 0x084;
const QUEUE_DRIVER_LOW: u64 = 0x090;
const QUEUE_DRIVER_HIGH: u64 = 0x094;
const QUEUE_DEVICE_LOW: u64 = 0x0a0;
const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
const SHM_LEN_LOW: u64 = 0x0b0;
const SHM_BASE_HIGH: u64 = 0x0bc;
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG: u64 = 0x100;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// The console device (5.3.1).
const CONSOLE: u32 = 3;
/// "DRWD".
const VENDOR: u32 = 0x4457_5244;

/// Bits of the status (2.1).
const DRIVER_OK: u32 = 1 << 2;
const FEATURES_OK: u32 = 1 << 3;
const NEEDS_RESET: u32 = 1 << 6;

/// Bits of the interrupt status: a chain was completed; the configuration has changed, which a device that needs a reset
/// reports (2.1.2).
const USED_BUFFER: u32 = 1 << 0;
const CONFIG_CHANGE: u32 = 1 << 1;

/// VIRTIO_CONSOLE_F_MULTIPORT (5.3.3), VIRTIO_F_VERSION_1 (6).
const MULTIPORT: u64 = 1 << 1;
const VERSION_1: u64 = 1 << 32;
const FEATURES: u64 = MULTIPORT | VERSION_1;

/// A console device with its registers.
pub struct Mmio {
    console: Console,
    status: u32,
    interrupts: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    /// How the driver has broken the device, until somebody asks.
    broken: Option<Broken>,
}

/// Replaces the lower or the upper half of an address.
const fn low(address: Ipa, value: u32) -> Ipa {
    Ipa(address.0 >> 32 << 32 | value as u64)
}
const fn high(address: Ipa, value: u32) -> Ipa {
    Ipa(address.0 & 0xffff_ffff | (value as u64) << 32)
}

impl Mmio {
    /// A device in its reset state, without ports.
    #[must_use]
    pub fn new() -> Mmio {
        Mmio::with(Console::new())
    }

    const fn with(console: Console) -> Mmio {
        Mmio {
            console,
            status: 0,
            interrupts: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            broken: None,
        }
    }

    /// The console itself.
    pub fn console_mut(&mut self) -> &mut Console {
        &mut self.console
    }

    /// The console itself.
    #[must_use]
    pub const fn console(&self) -> &Console {
        &self.console
    }

    /// The level of the interrupt line.
    #[must_use]
    pub const fn line(&self) -> bool {
        self.interrupts != 0
    }

    /// How the driver has broken the device, if it has since the last call.
    pub const fn take_broken(&mut self) -> Option<Broken> {
        self.broken.take()
    }

    /// Emulates a load of `bytes` bytes at `offset`. Registers are read by words; everything else reads as zero.
    #[must_use]
    pub fn read(&mut self, offset: u64, bytes: u8) -> u64 {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return read_config(offset, bytes);
        }
        if offset & 3 != 0 || bytes != 4 {
            return 0;
        }
        let queue_sel = self.queue_sel;
        let value = match offset {
            MAGIC_VALUE => MAGIC,
            VERSION => 2,
            DEVICE_ID => CONSOLE,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => match self.device_features_sel {
                0 => FEATURES as u32,
                1 => (FEATURES >> 32) as u32,
                _ => 0,
            },
            QUEUE_NUM_MAX => self.console.queue_mut(queue_sel).map_or(0, |_| u32::from(SIZE)),
            QUEUE_READY => self.console.queue_mut(queue_sel).map_or(0, |queue| queue.ready.into()),
            INTERRUPT_STATUS => self.interrupts,
            STATUS => self.status,
            // There is no shared memory region.
            SHM_LEN_LOW..=SHM_BASE_HIGH => u32::MAX,
            // The configuration never changes.
            CONFIG_GENERATION => 0,
            _ => 0,
        };
        u64::from(value)
    }

    /// Emulates a store of `bytes` bytes at `offset`. Everything but a word to a register that can be written is ignored.
    pub fn write(&mut self, guest: &dyn Guest, offset: u64, bytes: u8, value: u64) -> Progress {
        if offset & 3 != 0 || bytes != 4 {
            return Progress::Done;
        }
        let value = value as u32;
        match offset {
            DEVICE_FEATURES_SEL => self.device_features_sel = value,
            DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            DRIVER_FEATURES if self.status & FEATURES_OK == 0 => {
                self.driver_features = match self.driver_features_sel {
                    0 => self.driver_features >> 32 << 32 | u64::from(value),
                    1 => self.driver_features & 0xffff_ffff | u64::from(value) << 32,
                    _ => self.driver_features,
                };
            }
            QUEUE_SEL => self.queue_sel = value,
            INTERRUPT_ACK => {
                self.interrupts &= !value;
                // The driver is awake now, so this is the time for what came since the interrupt.
                return self.step(guest);
            }
            STATUS => self.set_status(value),
            QUEUE_NOTIFY => {
                self.console.notify(value);
                return self.step(guest);
            }
            _ => self.write_queue(offset, value),
        }
        Progress::Done
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.console.queue_mut(self.queue_sel) else { return };
        // A queue that is in use may not be changed (4.2.2.2).
        if queue.ready && offset != QUEUE_READY {
            return;
        }
        match offset {
            QUEUE_NUM => queue.set_size(value),
            QUEUE_READY => queue.ready = value & 1 != 0,
            QUEUE_DESC_LOW => queue.descriptors = low(queue.descriptors, value),
            QUEUE_DESC_HIGH => queue.descriptors = high(queue.descriptors, value),
            QUEUE_DRIVER_LOW => queue.available = low(queue.available, value),
            QUEUE_DRIVER_HIGH => queue.available = high(queue.available, value),
            QUEUE_DEVICE_LOW => queue.used = low(queue.used, value),
            QUEUE_DEVICE_HIGH => queue.used = high(queue.used, value),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.console.reset();
            *self = Mmio::with(core::mem::take(&mut self.console));
            return;
        }
        // A driver sets bits only (2.1.1). FEATURES_OK stays clear if the device does not work with what was chosen.
        let mut set = value & 0xff & !NEEDS_RESET;
        if self.driver_features & !FEATURES != 0 || self.driver_features & VERSION_1 == 0 {
            set &= !FEATURES_OK;
        }
        self.status |= set;
    }

    /// Whether the driver uses the device, and with ports.
    const fn is_live(&self) -> bool {
        let live = DRIVER_OK | FEATURES_OK;
        self.status & (live | NEEDS_RESET) == live && self.driver_features & MULTIPORT != 0
    }

    /// Does what there is to do, in a step of bounded length.
    pub fn step(&mut self, guest: &dyn Guest) -> Progress {
        if !self.is_live() {
            return Progress::Done;
        }
        let served = self.console.step(guest);
        if self.console.take_interrupt() {
            self.interrupts |= USED_BUFFER;
        }
        served.unwrap_or_else(|broken| {
            self.status |= NEEDS_RESET;
            self.interrupts |= CONFIG_CHANGE;
            self.broken = Some(broken);
            Progress::Done
        })
    }
}

impl Default for Mmio {
    fn default() -> Self {
        Mmio::new()
    }
}

/// The configuration space (5.3.4): columns and rows, which are not offered; the number of ports; emergency writes, which
/// are not offered.
fn read_config(offset: u64, bytes: u8) -> u64 {
    let space = u128::from(PORTS) << 32;
    match u32::try_from(offset.saturating_mul(8)).ok().and_then(|shift| space.checked_shr(shift)) {
        Some(value) => {
            value as u64 & u64::MAX.checked_shr(64u32.saturating_sub(u32::from(bytes.min(8)) * 8)).unwrap_or(0)
        }
        None => 0,
    }
}
