//! The seam between drivers and hardware.
//!
//! A driver is generic over [`Hw`] and knows nothing else of the machine: registers by physical address,
//! memory that a device reads by physical address, the barrier (and cache maintenance) between the two,
//! and time. On the target every method is an instruction or two; on the host the executable GIC of
//! `tests/gic-model` stands behind it and also notices a `publish` that was forgotten.
//!
//! [`Device`] holds the only device loads and stores of the image. They are inline assembly because a
//! `write_volatile` in a loop may compile to a store with writeback, which has no valid syndrome when the
//! hypervisor itself runs under another one (rust-lang/rust issue 131894).

pub(crate) mod layout;

use crate::ids::Pa;

/// Whether the memory system keeps a device's view of memory coherent with the CPUs' caches.
///
/// Chosen once per table or queue, from what the hardware let us write into the shareability field of the
/// register that points at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coherence {
    /// A barrier is enough.
    Coherent,
    /// Lines are cleaned (or invalidated) to the point of coherency as well.
    NonCoherent,
}

/// Registers, shared memory and time, as a driver needs them.
///
/// Device accesses are ordered among themselves (Device-nGnRE). They are not ordered against memory:
/// that is what [`publish`](Hw::publish) and [`acquire`](Hw::acquire) are for.
pub trait Hw {
    /// Reads a 32-bit device register.
    fn read32(&self, register: Pa) -> u32;
    /// Writes a 32-bit device register.
    fn write32(&self, register: Pa, value: u32);
    /// Reads a 64-bit device register in one access.
    fn read64(&self, register: Pa) -> u64;
    /// Writes a 64-bit device register in one access.
    fn write64(&self, register: Pa, value: u64);

    /// Takes zeroed memory for sharing with a device. `align` is a power of two; both are in bytes and are
    /// rounded up to 4 KiB. `None` when there is none left.
    fn alloc(&self, size: usize, align: usize) -> Option<Pa>;
    /// Gives memory from [`alloc`](Hw::alloc) back, with the size and alignment it was asked with. The caller
    /// has proof that no device uses it any more.
    fn free(&self, memory: Pa, size: usize, align: usize);

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
    /// Makes the device's stores to this memory visible to later loads.
    fn acquire(&self, memory: Pa, size: usize, coherence: Coherence);

    /// Microseconds since some fixed moment; never goes back.
    fn now_us(&self) -> u64;
    /// Called once a turn in each polling loop.
    fn relax(&self);

    /// Polls `done` until it says so or `limit_us` have passed. `false` on a missed deadline.
    ///
    /// `done` is asked once more after the deadline, so that a CPU that was held up between the two reads
    /// (by firmware, or by the host of an emulator) does not report a device that had long finished.
    #[must_use]
    fn wait(&self, limit_us: u64, mut done: impl FnMut() -> bool) -> bool
    where
        Self: Sized,
    {
        // Most often it is done already, and the clock costs more than the question.
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
    #![allow(unsafe_code, reason = "this is where device accesses are made")]

    use crate::arch::asm::asm;
    use crate::ids::Pa;

    /// Device loads and stores by physical address (EL2 runs on an identity map).
    ///
    /// Each is one `ldr`/`str` with a plain register address. The methods are safe because a device access can
    /// break no Rust memory: EL2's stage 1 maps as Device only what is not RAM, so an address that is no device
    /// faults (or, inside RAM, is refused below in debug builds by the callers' types). Which register does
    /// what to the machine is the drivers' business.
    pub struct Device;

    macro_rules! access {
        ($read:ident, $write:ident, $ty:ty, $ldr:literal, $str:literal) => {
            /// One load.
            #[inline(always)]
            #[must_use]
            pub fn $read(at: Pa) -> $ty {
                let value: $ty;
                // SAFETY: a load from device memory changes no Rust object; see the type's documentation.
                unsafe { asm!($ldr, v = out(reg) value, a = in(reg) at.0, options(nostack, preserves_flags)) };
                value
            }

            /// One store.
            #[inline(always)]
            pub fn $write(at: Pa, value: $ty) {
                // SAFETY: as above; what the device then does to memory is constrained by the driver.
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
