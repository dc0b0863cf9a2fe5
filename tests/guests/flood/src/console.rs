//! A driver of dom0's console device (virtio over MMIO), for the transmit queues of two ports. Of the control queues it uses as
//! much as makes the device announce these.

use guest_rt::fdt;
use guest_rt::its::Table;
use guest_rt::mmio::write32;

const QUEUE: u64 = 0x1000;
/// Size of a large buffer in bytes.
const LARGE: usize = 0x1_0000;

/// The control queues, and those of the ports.
static QUEUES: Table<{ ((2 + Console::PORTS) * QUEUE) as usize }> = Table::new();
static BUFFER: Table<LARGE> = Table::new();

/// The device.
pub struct Console {
    base: u64,
}

/// The control queues, to the driver and from it.
const CONTROL: [(u64, u32); 2] = [(0, 2), (1, 3)];

/// The place of a port's transmit queue, and its number.
fn queue(port: u64) -> (u64, u32) {
    // The first two ports that EL2 has are 1 and 2.
    place((2 + port, 2 * port as u32 + 5))
}

fn place((index, number): (u64, u32)) -> (u64, u32) {
    (QUEUES.address() + index * QUEUE, number)
}

fn half(at: u64) -> u16 {
    // SAFETY: in a queue, to which no reference exists.
    unsafe { (at as *const u16).read_volatile() }
}

fn set_half(at: u64, value: u16) {
    // SAFETY: as in `half`.
    unsafe { (at as *mut u16).write_volatile(value) };
}

fn descriptor(at: u64, index: u64, words: [u64; 2]) {
    // SAFETY: as in `half`.
    unsafe { ((at + 16 * index) as *mut [u64; 2]).write_volatile(words) };
}

impl Console {
    /// The ports: EL2's own, from which what nobody reads is dropped.
    pub const PORTS: u64 = 2;
    /// The number of entries of a queue.
    pub const SIZE: u64 = 16;

    /// Finds the device. QEMU has some of the same kind, with other names.
    pub fn find() -> Option<Console> {
        let node = fdt::nodes().find(|node| node.name.starts_with("virtio@"))?;
        Some(Console { base: u64::from_str_radix(node.name.strip_prefix("virtio@")?, 16).ok()? })
    }

    fn set(&self, register: u64, value: u64) {
        write32(self.base + register, value as u32);
    }

    /// Brings the device and the queues up.
    pub fn start(&self) {
        for (register, value) in [(0x70, 0), (0x70, 3), (0x24, 0), (0x20, 2), (0x24, 1), (0x20, 1), (0x70, 11)] {
            self.set(register, value);
        }
        for (at, number) in CONTROL.map(place).into_iter().chain((0..Self::PORTS).map(queue)) {
            self.set(0x30, number.into());
            self.set(0x38, Self::SIZE);
            for (part, register) in [(0, 0x80), (0x100, 0x90), (0x200, 0xa0)] {
                self.set(register, at + part);
                self.set(register + 4, (at + part) >> 32);
            }
            // No interrupts.
            set_half(at + 0x100, 1);
            self.set(0x44, 1);
        }
        self.set(0x70, 15);
        // A buffer for each message that announces a port, and DEVICE_READY with 1.
        const WRITE: u64 = 2;
        let [(rx, _), (tx, _)] = CONTROL.map(place);
        for port in 0..Self::PORTS {
            descriptor(rx, port, [BUFFER.address(), 64 | WRITE << 32]);
            set_half(rx + 0x104 + 2 * port, port as u16);
        }
        set_half(rx + 0x102, Self::PORTS as u16);
        // SAFETY: as in `half`.
        unsafe { ((tx + 0x400) as *mut u64).write_volatile(1 << 48) };
        descriptor(tx, 0, [tx + 0x400, 8]);
        set_half(tx + 0x102, 1);
        self.set(0x50, 3);
    }

    /// Makes as many chains available as the queue has entries: of a large buffer each, or of as many buffers of one byte as
    /// there are descriptors, which is the same chain each time.
    pub fn fill(&self, port: u64, large: bool) {
        let (at, _) = queue(port);
        for index in 0..Self::SIZE {
            let last = large || index == Self::SIZE - 1;
            let size = if large { LARGE as u64 } else { 1 };
            let flags = u64::from(!last) | (index + 1) << 16;
            descriptor(at, index, [BUFFER.address(), size | flags << 32]);
            set_half(at + 0x104 + 2 * index, if large { index as u16 } else { 0 });
        }
        set_half(at + 0x102, half(at + 0x102).wrapping_add(Self::SIZE as u16));
    }

    /// Tells the device.
    pub fn notify(&self, port: u64) {
        self.set(0x50, queue(port).1.into());
    }

    /// Waits until the device has used all chains.
    pub fn wait(&self, port: u64) {
        let (at, _) = queue(port);
        while half(at + 0x202) != half(at + 0x102) {}
    }
}
