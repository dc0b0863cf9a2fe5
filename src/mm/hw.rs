//! The implementation of [`Hw`] on hardware.

use super::{el2_map, frames};
use crate::arch::{barrier, cache, timer};
use crate::ids::Pa;
use crate::mmio::{Coherence, Device, Hw};
use crate::util::range::Range;

/// The hardware that EL2 runs on. All copies are equivalent.
#[derive(Clone, Copy, Debug, Default)]
pub struct El2;

impl Hw for El2 {
    #[inline(always)]
    fn read32(&self, register: Pa) -> u32 {
        Device::read32(register)
    }

    #[inline(always)]
    fn write32(&self, register: Pa, value: u32) {
        Device::write32(register, value);
    }

    #[inline(always)]
    fn read64(&self, register: Pa) -> u64 {
        Device::read64(register)
    }

    #[inline(always)]
    fn write64(&self, register: Pa, value: u64) {
        Device::write64(register, value);
    }

    fn alloc(&self, size: usize, align: usize) -> Option<Pa> {
        let memory = frames::alloc(size, align)?;
        // A non-coherent device must see the zeroes, and no dirty line may be written back over its own stores later.
        cache::clean_invalidate(memory, size as u64);
        Some(memory)
    }

    fn free(&self, memory: Pa, size: usize, _align: usize) {
        frames::free(memory, size);
    }

    fn claim(&self, memory: Pa, size: usize) -> bool {
        el2_map::map_memory(Range::new(memory, size as u64)).is_ok()
    }

    // Shared memory is accessed like registers: each call is exactly one access, which is not torn.

    #[inline(always)]
    fn load8(&self, at: Pa) -> u8 {
        Device::read8(at)
    }

    #[inline(always)]
    fn store8(&self, at: Pa, value: u8) {
        Device::write8(at, value);
    }

    #[inline(always)]
    fn load64(&self, at: Pa) -> u64 {
        Device::read64(at)
    }

    #[inline(always)]
    fn store64(&self, at: Pa, value: u64) {
        Device::write64(at, value);
    }

    #[inline]
    fn publish(&self, memory: Pa, size: usize, coherence: Coherence) {
        match coherence {
            // Full system, because the device need not be in the CPUs' inner shareable domain.
            Coherence::Coherent => barrier::dsb_st(),
            Coherence::NonCoherent => cache::clean(memory, size as u64),
        }
    }

    #[inline]
    fn acquire(&self, memory: Pa, size: usize, coherence: Coherence) {
        match coherence {
            Coherence::Coherent => barrier::dmb_ld(),
            Coherence::NonCoherent => cache::clean_invalidate(memory, size as u64),
        }
    }

    fn now_us(&self) -> u64 {
        timer::now_us()
    }

    #[inline]
    fn relax(&self) {
        barrier::yield_cpu();
    }
}
