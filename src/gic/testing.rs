//! What the driver's tests stand on: the executable GIC behind [`Hw`].

use super::{Gic, GicError, ItsLayout, Layout};
use crate::ids::{CpuId, Mpidr, Pa};
use crate::mmio::{Coherence, Hw};
use gic_model::{Config, Machine};
use std::rc::Rc;
use std::vec::Vec;

/// A model machine.
#[derive(Clone)]
pub struct ModelHw(pub Rc<Machine>);

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

/// What a platform description would say of a model machine: one region for each redistributor.
pub struct Described {
    redists: Vec<(Pa, u64)>,
    cpus: Vec<Mpidr>,
    itss: Vec<ItsLayout>,
    dist: Pa,
}

impl Described {
    pub fn new(config: &Config) -> Self {
        Described {
            redists: config.cpus.iter().map(|c| (Pa(c.gicr), c.frames_size())).collect(),
            cpus: config.cpus.iter().map(|c| Mpidr::from_packed(c.affinity)).collect(),
            itss: config.its.iter().map(|i| ItsLayout { base: Pa(i.base), coherent: true }).collect(),
            dist: Pa(config.gicd),
        }
    }

    pub fn layout(&self) -> Layout<'_> {
        Layout {
            dist: self.dist,
            redists: &self.redists,
            stride: None,
            cpus: &self.cpus,
            itss: &self.itss,
            coherent: true,
            virtual_lpis_wanted: true,
        }
    }
}

/// A driver on a model machine.
pub struct Bench {
    pub machine: Rc<Machine>,
    pub gic: Gic<ModelHw>,
}

impl Bench {
    /// Discovered, no CPU up.
    pub fn discovered(config: Config) -> Result<Bench, GicError> {
        let described = Described::new(&config);
        let machine = Rc::new(Machine::new(config));
        let gic = Gic::discover(ModelHw(machine.clone()), &described.layout())?;
        Ok(Bench { machine, gic })
    }

    /// All CPUs up.
    pub fn up(config: Config) -> Bench {
        let cpus = config.cpus.len();
        let bench = Bench::discovered(config).expect("discover");
        for cpu in 0..cpus {
            bench.gic.init_cpu(CpuId(cpu as u16)).expect("init_cpu");
        }
        bench.machine.assert_clean();
        bench
    }
}
