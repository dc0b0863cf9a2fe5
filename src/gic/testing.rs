//! The executable GIC behind [`Hw`], for the driver's tests.

use super::v4::{InterruptGroups, PendingLast, Resident, V4, VmHandle, Why};
use super::{DeviceQuota, Gic, GicError, Interface, ItsLayout, Layout};
use crate::ids::{CpuId, DeviceId, DeviceIds, DomId, EventId, EventKey, ItsId, Lpi, Mpidr, Pa, VIntid, VpeId};
use crate::mm::counting::{count, outside};
use crate::mmio::{Coherence, Hw};
use crate::util::range::Range;
use gic_model::{Config, Machine};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::vec::Vec;

/// Computes what a read of a 64-bit register returns, from its address and the model's value.
type Amendment = Rc<dyn Fn(Pa, u64) -> u64>;

/// A model machine, the 64-bit registers that were written most recently, and a change to what reads return.
#[derive(Clone)]
pub struct ModelHw(pub Machine, Rc<RefCell<VecDeque<Pa>>>, Option<Amendment>);

/// How many register writes are recorded.
const REMEMBERED: usize = 64;

impl ModelHw {
    pub fn new(machine: Machine) -> Self {
        ModelHw(machine, Rc::default(), None)
    }

    /// A machine on which reads of 64-bit registers are changed.
    pub fn amended(machine: Machine, read64: impl Fn(Pa, u64) -> u64 + 'static) -> Self {
        ModelHw(machine, Rc::default(), Some(Rc::new(read64)))
    }

    /// The 64-bit registers that were written most recently, oldest first.
    pub fn writes(&self) -> Vec<Pa> {
        self.1.borrow().iter().copied().collect()
    }
}

impl Hw for ModelHw {
    fn read32(&self, at: Pa) -> u32 {
        outside(|| self.0.read32(at.0))
    }
    fn write32(&self, at: Pa, value: u32) {
        outside(|| self.0.write32(at.0, value));
    }
    fn read64(&self, at: Pa) -> u64 {
        outside(|| {
            let value = self.0.read64(at.0);
            self.2.as_ref().map_or(value, |amend| amend(at, value))
        })
    }
    fn write64(&self, at: Pa, value: u64) {
        outside(|| {
            let mut writes = self.1.borrow_mut();
            if writes.len() == REMEMBERED {
                writes.pop_front();
            }
            writes.push_back(at);
            self.0.write64(at.0, value);
        });
    }
    fn alloc(&self, size: usize, align: usize) -> Option<Pa> {
        count();
        outside(|| self.0.alloc(size, align)).map(Pa)
    }
    fn free(&self, memory: Pa, size: usize, align: usize) {
        outside(|| self.0.free(memory.0, size, align));
    }
    fn claim(&self, memory: Pa, size: usize) -> bool {
        self.0.claim(memory.0, size)
    }
    fn load8(&self, at: Pa) -> u8 {
        outside(|| self.0.load8(at.0))
    }
    fn store8(&self, at: Pa, value: u8) {
        outside(|| self.0.store8(at.0, value));
    }
    fn load64(&self, at: Pa) -> u64 {
        outside(|| self.0.load64(at.0))
    }
    fn store64(&self, at: Pa, value: u64) {
        outside(|| self.0.store64(at.0, value));
    }
    fn publish(&self, memory: Pa, size: usize, coherence: Coherence) {
        outside(|| self.0.publish(memory.0, size, coherence == Coherence::NonCoherent));
    }
    fn acquire(&self, memory: Pa, size: usize, coherence: Coherence) {
        outside(|| self.0.acquire(memory.0, size, coherence == Coherence::NonCoherent));
    }
    fn now_us(&self) -> u64 {
        outside(|| self.0.now_us())
    }
    fn relax(&self) {
        outside(|| self.0.relax());
    }
}

/// The platform description of a model machine, with a region for each redistributor.
pub struct Described {
    redists: Vec<(Pa, u64)>,
    cpus: Vec<Mpidr>,
    itss: Vec<ItsLayout>,
    dist: Pa,
    /// Memory that the firmware has reserved.
    pub reserved: Vec<Range>,
}

impl Described {
    pub fn new(config: &Config) -> Self {
        Described {
            redists: config.cpus.iter().map(|c| (Pa(c.gicr), c.frames_size())).collect(),
            cpus: config.cpus.iter().map(|c| Mpidr::from_packed(c.affinity)).collect(),
            itss: config.its.iter().map(|i| ItsLayout::new(Pa(i.base), true)).collect(),
            dist: Pa(config.gicd),
            reserved: Vec::new(),
        }
    }

    /// Sets whether the platform describes the ITSs as coherent.
    pub fn say_coherent(&mut self, coherent: bool) {
        self.itss.iter_mut().for_each(|its| its.coherent = coherent);
    }

    pub fn layout(&self) -> Layout<'_> {
        Layout {
            dist: self.dist,
            redists: &self.redists,
            redists_listed: true,
            stride: None,
            cpus: &self.cpus,
            reserved: &self.reserved,
            boot_cpu: CpuId(0),
            itss: &self.itss,
            coherent: true,
            virtual_lpis_wanted: true,
        }
    }
}

/// What the interface of a CPU of the model takes.
pub fn interface(cpu: &gic_model::Cpu) -> Interface {
    Interface::new(cpu.id_gic() as u8, cpu.nv4())
}

/// A driver on a model machine.
pub struct Bench {
    pub machine: Machine,
    pub gic: Gic<ModelHw>,
}

impl Bench {
    /// After discovery, before any CPU is brought up.
    pub fn discovered(config: Config) -> Result<Bench, GicError> {
        let described = Described::new(&config);
        let machine = Machine::new(config);
        let gic = Gic::discover(ModelHw::new(machine.clone()), &described.layout())?;
        reserve(&gic);
        Ok(Bench { machine, gic })
    }

    /// With all CPUs brought up.
    pub fn up(config: Config) -> Bench {
        let interfaces: Vec<Interface> = config.cpus.iter().map(interface).collect();
        let bench = Bench::discovered(config).expect("discover");
        for (cpu, interface) in interfaces.into_iter().enumerate() {
            bench.gic.join(CpuId(cpu as u16), interface).expect("join");
            bench.gic.init_cpu(CpuId(cpu as u16)).expect("init_cpu");
        }
        bench.machine.assert_clean();
        bench
    }
}

/// Reserves memory on each ITS for the devices that tests map.
pub fn reserve(gic: &Gic<ModelHw>) {
    let ids = [DeviceIds { first: DeviceId(0), last: DeviceId(0x3ff) }];
    for its in gic.facts().itss() {
        gic.reserve_devices(its.id, DomId(0), &ids, DeviceQuota { devices: 8, events: 2048 }).expect("memory");
    }
}

/// The device that tests use, on each ITS.
pub const DEV: DeviceId = DeviceId(0x10);
/// The first ITS.
pub const ITS0: ItsId = ItsId(0);

/// Event `n` of [`DEV`] on an ITS.
pub const fn key(its: ItsId, n: u32) -> EventKey {
    EventKey::new(its, DEV, EventId(n))
}

/// The n-th vLPI.
pub const fn vlpi(n: u32) -> VIntid {
    VIntid(Lpi::FIRST + n)
}

/// A machine with all CPUs brought up, a VM whose vPEs live at CPUs 0, 1, ..., and [`DEV`] with 32 events on each ITS.
pub struct Guest {
    pub machine: Machine,
    pub gic: Gic<ModelHw>,
    pub vm: VmHandle,
    pub vpes: Vec<VpeId>,
}

impl Guest {
    pub fn new(config: Config, vpes: u16) -> Guest {
        let itss = config.its.len() as u8;
        let Bench { machine, gic } = Bench::up(config);
        let v4 = gic.v4().expect("virtual LPIs");
        let vm = v4.create_vm(14).unwrap();
        let vpes = (0..vpes).map(|n| v4.add_vpe(vm, CpuId(n)).unwrap()).collect();
        (0..itss).for_each(|its| gic.map_device(ItsId(its), DEV, 5).unwrap());
        machine.assert_clean();
        Guest { machine, gic, vm, vpes }
    }

    pub fn v4(&self) -> V4<'_, ModelHw> {
        self.gic.v4().unwrap()
    }

    /// Maps event `ev` of [`DEV`] on an ITS to vLPI `ev` of the n-th vPE, and enables the vLPI.
    pub fn map(&self, its: ItsId, ev: u32, vpe: usize) {
        self.v4().configure(self.vm, vlpi(ev), 0xa1).unwrap();
        self.v4().map_event(key(its, ev), self.vpes[vpe], vlpi(ev)).unwrap();
    }

    pub fn msi(&self, its: ItsId, ev: u32) {
        self.machine.msi_at(its.index(), DEV.0, ev);
    }

    pub fn enter(&self, vpe: usize, cpu: u16) -> Resident {
        self.enter_with(vpe, cpu, InterruptGroups::GROUP1)
    }

    pub fn enter_with(&self, vpe: usize, cpu: u16, groups: InterruptGroups) -> Resident {
        let mut resident = self.v4().enter(self.vpes[vpe], CpuId(cpu), groups).unwrap();
        self.v4().before_eret(&mut resident);
        if !self.gic.facts().dirty {
            // The driver cannot tell when the table has been read, so this waits until the model has read it.
            self.machine.advance_us(10);
        }
        resident
    }

    pub fn leave(&self, resident: Resident, why: Why) -> bool {
        let PendingLast(pending) = self.v4().leave(resident, why);
        pending
    }

    /// The vLPIs that the guest on a CPU acknowledges, in order, counted from 0.
    pub fn guest(&self, cpu: usize) -> Vec<u32> {
        core::iter::from_fn(|| self.machine.guest_ack(cpu)).map(|i| i - Lpi::FIRST).collect()
    }

    /// The vPEs whose doorbells EL2 acknowledges on a CPU.
    pub fn doorbells(&self, cpu: usize) -> Vec<VpeId> {
        core::iter::from_fn(|| self.machine.host_ack(cpu))
            .map(|i| self.gic.doorbell(Lpi(i)).expect("a doorbell"))
            .collect()
    }

    /// The same for all CPUs.
    pub fn all_doorbells(&self) -> Vec<VpeId> {
        (0..self.machine.config().cpus.len()).flat_map(|cpu| self.doorbells(cpu)).collect()
    }

    /// Removes the devices, the vPEs and the VM.
    pub fn take_down(&self) {
        (0..self.machine.config().its.len()).for_each(|its| self.gic.unmap_device(ItsId(its as u8), DEV).unwrap());
        self.vpes.iter().for_each(|vpe| self.v4().remove_vpe(*vpe).unwrap());
        self.v4().destroy_vm(self.vm).unwrap();
    }
}
