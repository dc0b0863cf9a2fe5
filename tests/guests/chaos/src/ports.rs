//! dom0's console device (virtio over MMIO): rings and descriptors that no driver would make.
//!
//! The device writes where the driver tells it to, so all addresses are in memory that nothing else uses, or where no memory
//! is.

use crate::guest::{Dice, touch, touch_oddly};
use core::sync::atomic::{AtomicU64, Ordering};
use guest_rt::exception::probe;
use guest_rt::fdt;
use guest_rt::its::Table;
use guest_rt::mmio::write32;

const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
/// The addresses of a queue's three parts, of two registers each.
const QUEUE_ADDRESSES: [u64; 3] = [0x80, 0x90, 0xa0];

/// The queues that are used, of 514.
const QUEUES: u64 = 10;
const SIZE: u64 = 0x4000;

/// Rings, descriptors and buffers.
static MEMORY: Table<{ SIZE as usize }> = Table::new();
/// The device; 0 in a domain that has none.
static BASE: AtomicU64 = AtomicU64::new(0);

/// Finds the device. QEMU has some of the same kind, with other names.
pub fn prepare() {
    let node = fdt::nodes().find(|node| node.name.starts_with("virtio@"));
    let address = node.and_then(|node| u64::from_str_radix(node.name.strip_prefix("virtio@")?, 16).ok());
    BASE.store(address.unwrap_or(0), Ordering::Relaxed);
}

/// Performs one act.
pub fn act(dice: &mut Dice) {
    let base = BASE.load(Ordering::Relaxed);
    if base == 0 {
        return;
    }
    match dice.below(16) {
        0 => start(dice, base),
        1..6 => scribble(dice),
        6..12 => set(base + QUEUE_NOTIFY, if dice.one_in(8) { dice.value() } else { dice.below(QUEUES) }),
        12 => set(base + INTERRUPT_ACK, dice.below(4)),
        13 => message(dice, base),
        _ => {
            // No store to the registers with addresses.
            let offset = if dice.one_in(2) { dice.below(0x80) } else { 0xb0 + dice.below(0xf50) };
            if dice.one_in(4) { touch_oddly(dice, base + (offset & !0x1f)) } else { touch(dice, base + offset) }
        }
    }
}

fn set(register: u64, value: u64) {
    let _ = probe(|| write32(register, value as u32));
}

/// An address in the memory, mostly, or where no memory is.
fn address(dice: &mut Dice) -> u64 {
    match dice.below(16) {
        0 => MEMORY.address() + SIZE - dice.below(16),
        1 => dice.below(0x1000),
        2 => u64::MAX - dice.below(0x1000),
        _ => MEMORY.address() + (dice.below(SIZE / 2) & !0xf),
    }
}

/// Resets the device and gives it queues anywhere.
fn start(dice: &mut Dice, base: u64) {
    set(base + STATUS, 0);
    set(base + STATUS, 3);
    for (half, features) in [(0, 2), (1, 1)] {
        set(base + DRIVER_FEATURES_SEL, half);
        set(base + DRIVER_FEATURES, features);
    }
    set(base + STATUS, 11);
    for queue in 0..QUEUES {
        set(base + QUEUE_SEL, queue);
        set(base + QUEUE_NUM, 1 << dice.below(6));
        for register in QUEUE_ADDRESSES {
            let at = address(dice);
            set(base + register, at);
            set(base + register + 4, at >> 32);
        }
        set(base + QUEUE_READY, 1);
    }
    set(base + STATUS, 15);
}

/// Writes a descriptor, an index of a ring, or anything.
fn scribble(dice: &mut Dice) {
    let at = MEMORY.address() + (dice.below(SIZE - 32) & !1);
    let (low, high) = match dice.below(3) {
        0 => (address(dice), dice.below(0x2000) | dice.below(8) << 32 | dice.below(17) << 48),
        1 => (dice.below(4) << 16 | dice.below(20) << 32, dice.below(20)),
        _ => (dice.value(), dice.value()),
    };
    for (n, word) in [low, high].into_iter().enumerate() {
        // SAFETY: the memory belongs to this module, and no reference to it exists.
        unsafe { ((at + 8 * n as u64) as *mut u64).write_unaligned(word) };
    }
}

/// Gives the control queue one chain that is right, with a message that the device obeys.
fn message(dice: &mut Dice, base: u64) {
    let memory = MEMORY.address() + SIZE / 2;
    set(base + QUEUE_SEL, 3);
    set(base + QUEUE_READY, 0);
    set(base + QUEUE_NUM, 1);
    for (n, register) in (0u64..).zip(QUEUE_ADDRESSES) {
        let at = memory + n * 0x100;
        set(base + register, at);
        set(base + register + 4, at >> 32);
    }
    let text = dice.below(5) | dice.below(8) << 32 | dice.below(2) << 48;
    // SAFETY: as in `scribble`.
    unsafe {
        (memory as *mut [u64; 2]).write_volatile([memory + 0x400, 8]);
        ((memory + 0x100) as *mut [u16; 3]).write_volatile([0, dice.roll() as u16, 0]);
        ((memory + 0x400) as *mut u64).write_volatile(text);
    }
    set(base + QUEUE_READY, 1);
    set(base + QUEUE_NOTIFY, 3);
}
