//! The executable SMMU for tests.

use crate::ids::Pa;
use crate::mmio::{Coherence, Hw};
use crate::platform::machine;
use crate::util::range::Range;
use smmu_model::{Config, Machine};

/// The model machine behind [`Hw`].
#[derive(Clone)]
pub struct ModelHw(pub Machine);

impl Hw for ModelHw {
    fn read32(&self, at: Pa) -> u32 {
        self.0.read32(at.0)
    }
    fn write32(&self, at: Pa, value: u32) {
        self.0.write32(at.0, value);
    }
    fn read64(&self, at: Pa) -> u64 {
        self.0.read64(at.0)
    }
    fn write64(&self, at: Pa, value: u64) {
        self.0.write64(at.0, value);
    }
    fn alloc(&self, size: usize, align: usize) -> Option<Pa> {
        self.0.alloc(size, align).map(Pa)
    }
    fn free(&self, memory: Pa, size: usize, align: usize) {
        self.0.free(memory.0, size, align);
    }
    fn load8(&self, at: Pa) -> u8 {
        self.0.load8(at.0)
    }
    fn store8(&self, at: Pa, value: u8) {
        self.0.store8(at.0, value);
    }
    fn load64(&self, at: Pa) -> u64 {
        self.0.load64(at.0)
    }
    fn store64(&self, at: Pa, value: u64) {
        self.0.store64(at.0, value);
    }
    fn publish(&self, memory: Pa, size: usize, coherence: Coherence) {
        self.0.publish(memory.0, size, coherence == Coherence::NonCoherent);
    }
    fn acquire(&self, memory: Pa, size: usize, coherence: Coherence) {
        self.0.acquire(memory.0, size, coherence == Coherence::NonCoherent);
    }
    fn now_us(&self) -> u64 {
        self.0.now_us()
    }
    fn relax(&self) {
        self.0.relax();
    }
}

/// The SMMU of a machine in a platform description.
pub fn described(config: &Config) -> machine::Smmu {
    machine::Smmu { regs: Range::new(Pa(config.base), 0x2_0000), coherent: config.coherent, event: None, gerror: None }
}
