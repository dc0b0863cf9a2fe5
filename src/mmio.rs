//! The interface between drivers and hardware.
//!
//! A driver is generic over [`Hw`] and accesses the machine only through it: registers by physical address, memory that
//! a device reads by physical address, the barriers and cache maintenance between the two, and time. On the target
//! every method is an instruction or two. On the host the executable GIC of `tests/gic-model` implements it, and also
//! detects a missing `publish`.
//!
//! [`Device`] has the only device loads and stores of the image. They are inline assembly because a `write_volatile` in
//! a loop may compile to a store with writeback, which has no valid syndrome if the hypervisor itself runs under
//! another one (rust-lang/rust issue 131894).

pub(crate) mod layout;

use crate::ids::Pa;

/// Whether a device's accesses to memory are coherent with the CPUs' caches.
///
/// This is determined once per table or queue, by reading back the shareability field of the register that has its
/// address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coherence {
    /// Coherent: a barrier is enough.
    Coherent,
    /// Not coherent: cache lines must also be cleaned or invalidated to the point of coherency.
    NonCoherent,
}

/// Registers, shared memory and time, as a driver needs them.
///
/// Device accesses are ordered among themselves (Device-nGnRE). They are not ordered against accesses to memory, for
/// which [`publish`](Hw::publish) and [`acquire`](Hw::acquire) are needed.
pub trait Hw {
    /// Reads a 32-bit device register.
    fn read32(&self, register: Pa) -> u32;
    /// Writes a 32-bit device register.
    fn write32(&self, register: Pa, value: u32);
    /// Reads a 64-bit device register in one access.
    fn read64(&self, register: Pa) -> u64;
    /// Writes a 64-bit device register in one access.
    fn write64(&self, register: Pa, value: u64);

    /// Allocates zeroed memory for sharing with a device. `align` is a power of two. `size` and `align` are in bytes
    /// and are rounded up to 4 KiB. Returns `None` if there is not enough memory.
    fn alloc(&self, size: usize, align: usize) -> Option<Pa>;
    /// Frees memory from [`alloc`](Hw::alloc), with the same `size` and `align`. The caller guarantees that no device
    /// uses it.
    fn free(&self, memory: Pa, size: usize, align: usize);

    /// Makes memory accessible that a device already uses and that the firmware has reserved, in whole pages. `false`: it
    /// cannot be accessed.
    fn claim(&self, _memory: Pa, _size: usize) -> bool {
        false
    }

    /// Loads a byte from shared memory.
    fn load8(&self, at: Pa) -> u8;
    /// Stores a byte to shared memory.
    fn store8(&self, at: Pa, value: u8);
    /// Loads a 64-bit little-endian word from shared memory; `at` is 8-byte aligned.
    fn load64(&self, at: Pa) -> u64;
    /// Stores a 64-bit little-endian word to shared memory; `at` is 8-byte aligned.
    fn store64(&self, at: Pa, value: u64);

    /// Makes stores to this memory visible to the device before any later register write.
    fn publish(&self, memory: Pa, size: usize, coherence: Coherence);
    /// Makes the device's stores to this memory visible to later loads of this CPU.
    fn acquire(&self, memory: Pa, size: usize, coherence: Coherence);

    /// Returns the time in microseconds since a fixed moment. It is monotonic.
    fn now_us(&self) -> u64;
    /// Called in each iteration of a polling loop.
    fn relax(&self);

    /// Polls `done` until it returns `true` or `limit_us` microseconds have passed. Returns `false` on a time-out.
    ///
    /// `done` is polled once more after the deadline, so that a delay between the two reads (by firmware, or by the
    /// host of an emulator) is not taken for a time-out of the device.
    #[must_use]
    fn wait(&self, limit_us: u64, mut done: impl FnMut() -> bool) -> bool
    where
        Self: Sized,
    {
        // In most cases it is done already, and reading the clock costs more than `done`.
        if done() {
            return true;
        }
        let start = self.now_us();
        loop {
            if done() {
                return true;
            }
            if self.now_us().saturating_sub(start) > limit_us {
                return done();
            }
            self.relax();
        }
    }
}

pub use device::Device;

mod device {
    #![allow(unsafe_code, reason = "device accesses are inline assembly")]

    use crate::arch::asm::asm;
    use crate::ids::Pa;

    /// Device loads and stores by physical address (EL2 runs on an identity map).
    ///
    /// Each is a single `ldr` or `str` with a register as the address. The methods are safe because the addresses that
    /// drivers pass are those of device registers, or of memory from [`Hw::alloc`](super::Hw::alloc), in which no Rust
    /// object is. The drivers are responsible for what a register access does to the machine.
    pub struct Device;

    macro_rules! access {
        ($read:ident, $write:ident, $ty:ty, $ldr:literal, $str:literal) => {
            /// Performs a load.
            #[inline(always)]
            #[must_use]
            pub fn $read(at: Pa) -> $ty {
                let value: $ty;
                // SAFETY: the caller passes an address outside of Rust objects; see the documentation of the type.
                unsafe { asm!($ldr, v = out(reg) value, a = in(reg) at.0, options(nostack, preserves_flags)) };
                value
            }

            /// Performs a store.
            #[inline(always)]
            pub fn $write(at: Pa, value: $ty) {
                // SAFETY: as above; the driver is responsible for what the device then does to memory.
                unsafe { asm!($str, v = in(reg) value, a = in(reg) at.0, options(nostack, preserves_flags)) };
            }
        };
    }

    impl Device {
        access!(read8, write8, u8, "ldrb {v:w}, [{a}]", "strb {v:w}, [{a}]");
        access!(read16, write16, u16, "ldrh {v:w}, [{a}]", "strh {v:w}, [{a}]");
        access!(read32, write32, u32, "ldr {v:w}, [{a}]", "str {v:w}, [{a}]");
        access!(read64, write64, u64, "ldr {v:x}, [{a}]", "str {v:x}, [{a}]");
    }
}
