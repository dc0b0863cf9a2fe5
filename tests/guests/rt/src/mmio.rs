//! Device registers.

use core::arch::asm;

/// One load of 32 bits.
#[must_use]
pub fn read32(at: u64) -> u32 {
    let value: u32;
    // SAFETY: a load from device memory changes no Rust object.
    unsafe { asm!("ldr {0:w}, [{1}]", out(reg) value, in(reg) at, options(nostack)) };
    value
}

/// One load of 16 bits.
#[must_use]
pub fn read16(at: u64) -> u16 {
    let value: u32;
    // SAFETY: as `read32`.
    unsafe { asm!("ldrh {0:w}, [{1}]", out(reg) value, in(reg) at, options(nostack)) };
    value as u16
}

/// One store of 32 bits.
pub fn write32(at: u64, value: u32) {
    // SAFETY: a store to a device that reads only the tables it is given, which are never Rust objects in use.
    unsafe { asm!("str {0:w}, [{1}]", in(reg) value, in(reg) at, options(nostack)) };
}

/// One store of 16 bits.
pub fn write16(at: u64, value: u16) {
    // SAFETY: as `write32`.
    unsafe { asm!("strh {0:w}, [{1}]", in(reg) value, in(reg) at, options(nostack)) };
}

/// One store of 8 bits.
pub fn write8(at: u64, value: u8) {
    // SAFETY: as `write32`.
    unsafe { asm!("strb {0:w}, [{1}]", in(reg) value, in(reg) at, options(nostack)) };
}

/// One load of 64 bits.
#[must_use]
pub fn read64(at: u64) -> u64 {
    let value: u64;
    // SAFETY: as `read32`.
    unsafe { asm!("ldr {0}, [{1}]", out(reg) value, in(reg) at, options(nostack)) };
    value
}

/// One store of 64 bits.
pub fn write64(at: u64, value: u64) {
    // SAFETY: as `write32`.
    unsafe { asm!("str {0}, [{1}]", in(reg) value, in(reg) at, options(nostack)) };
}
