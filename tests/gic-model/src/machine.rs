//! The machine: the interface of the model for drivers and tests.
//!
//! [`Machine`] is a handle, whose clones refer to the same machine. Every call takes the one lock, advances the clock
//! by the duration of the access, executes everything in the GIC that is due, and then makes the access.

use crate::config::{Config, Staleness};
use crate::dist::Dist;
use crate::faults::Fault;
use crate::its::Its;
use crate::its::command::Command;
use crate::memory::{Allocation, Memory, Trouble};
use crate::redist::{Counters, Redist};
use crate::violation::Violation;
use crate::vpe::{Vpe, Vpt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

/// An interrupt that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The hypervisor acknowledged a physical LPI.
    Host {
        /// Number of the CPU.
        cpu: usize,
        /// INTID of the LPI.
        intid: u32,
    },
    /// A guest acknowledged a virtual LPI or SGI, without any code of the hypervisor.
    Guest {
        /// Number of the CPU.
        cpu: usize,
        /// vPEID of the resident vPE, if it is mapped on an ITS.
        vpe: Option<u16>,
        /// Address of the vPE's VPT.
        vpt: u64,
        /// vINTID of the interrupt.
        intid: u32,
    },
}

/// An interrupt that the hardware dropped, as the architecture allows. A drop is no violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drop {
    /// The interrupt and its target.
    pub what: String,
    /// Why it was dropped.
    pub why: &'static str,
}

/// A machine. See the documentation of the crate.
#[derive(Clone)]
pub struct Machine {
    state: Arc<Mutex<State>>,
}

pub(crate) struct State {
    pub(crate) cfg: Config,
    pub(crate) mem: Memory,
    /// Time since reset in nanoseconds.
    pub(crate) now: u64,
    pub(crate) dist: Dist,
    pub(crate) rds: Vec<Redist>,
    /// Redistributors with an operation that takes time.
    pub(crate) occupied: BTreeSet<usize>,
    pub(crate) its: Vec<Its>,
    pub(crate) vpts: BTreeMap<u64, Vpt>,
    /// GICv4.1: entries of the vPE configuration tables of the redistributors.
    pub(crate) vpes: BTreeMap<u16, Vpe>,
    pub(crate) violations: Vec<Violation>,
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) drops: Vec<Drop>,
    seed: u64,
}

impl State {
    fn new(cfg: Config) -> State {
        let mut state = State {
            mem: Memory::new(cfg.ram.0, cfg.ram.1),
            now: 0,
            dist: Dist::default(),
            rds: cfg.cpus.iter().map(Redist::new).collect(),
            occupied: BTreeSet::new(),
            its: cfg.its.iter().map(Its::new).collect(),
            vpts: BTreeMap::new(),
            vpes: BTreeMap::new(),
            violations: Vec::new(),
            deliveries: Vec::new(),
            drops: Vec::new(),
            seed: match cfg.staleness {
                Staleness::Random(seed) => seed | 1,
                _ => 1,
            },
            cfg,
        };
        for rd in 0..state.rds.len() {
            state.reset_redist(rd);
        }
        state
    }

    /// Records a violation.
    pub(crate) fn flag(&mut self, section: &'static str, what: impl Into<String>) {
        self.violations.push(Violation { section, what: what.into() });
    }

    /// Records a violation if memory is not as the GIC needs it. Returns whether it did.
    pub(crate) fn flag_memory(&mut self, section: &'static str, name: &str, at: u64, trouble: Option<Trouble>) -> bool {
        match trouble {
            Some(t) => {
                self.flag(section, format!("{name} at {at:#x} {t}"));
                true
            }
            None => false,
        }
    }

    /// Records that an interrupt was dropped.
    pub(crate) fn drop_interrupt(&mut self, what: String, why: &'static str) {
        self.drops.push(Drop { what, why });
    }

    /// Whether a change takes effect before its synchronisation.
    pub(crate) fn seen_early(&mut self) -> bool {
        match self.cfg.staleness {
            Staleness::Immediate => true,
            Staleness::Worst => false,
            Staleness::Random(_) => {
                self.seed ^= self.seed << 13;
                self.seed ^= self.seed >> 7;
                self.seed ^= self.seed << 17;
                self.seed & 0x100 != 0
            }
        }
    }

    /// Whether the GIC caches configuration as early as it is allowed to.
    pub(crate) fn eager_cache(&self) -> bool {
        self.cfg.staleness != Staleness::Immediate
    }

    /// Advances the clock.
    fn tick(&mut self, ns: u64) {
        self.now += ns;
        self.settle();
    }

    /// Executes everything that is due.
    pub(crate) fn settle(&mut self) {
        if !self.occupied.is_empty() {
            for rd in self.occupied.clone() {
                self.settle_redist(rd);
                let r = &self.rds[rd];
                if r.in_flight.is_empty() && r.leaving.is_none() {
                    self.occupied.remove(&rd);
                }
            }
        }
        self.pump();
    }

    fn read(&mut self, at: u64, wide: bool) -> u64 {
        self.tick(self.cfg.timing.access);
        let value = if let Some(offset) = self.dist_offset(at) {
            self.dist_read(offset, wide)
        } else if let Some((rd, offset)) = self.redist_offset(at) {
            self.redist_read(rd, offset, wide)
        } else if let Some((its, offset)) = self.its_offset(at) {
            self.its_read(its, offset, wide)
        } else {
            self.flag("memory", format!("register read at {at:#x}, where there is no device (external abort)"));
            0
        };
        if wide { value } else { value & 0xffff_ffff }
    }

    fn write(&mut self, at: u64, value: u64, wide: bool) {
        self.tick(self.cfg.timing.access);
        if let Some(offset) = self.dist_offset(at) {
            self.dist_write(offset, value, wide);
        } else if let Some((rd, offset)) = self.redist_offset(at) {
            self.redist_write(rd, offset, value, wide);
        } else if let Some((its, offset)) = self.its_offset(at) {
            self.its_write(its, offset, value, wide);
        } else {
            self.flag(
                "memory",
                format!("register write of {value:#x} at {at:#x}, where there is no device (external abort)"),
            );
        }
        self.settle();
    }

    /// Returns a 64-bit register after a 64-bit write or a 32-bit write to one of its halves.
    pub(crate) fn merge(old: u64, offset: u64, value: u64, wide: bool) -> u64 {
        match (wide, offset & 4) {
            (true, _) => value,
            (false, 0) => (old & !0xffff_ffff) | (value & 0xffff_ffff),
            (false, _) => (old & 0xffff_ffff) | (value << 32),
        }
    }

    /// Returns a 64-bit register shifted so that the half at `offset` is the low half.
    pub(crate) fn half(value: u64, offset: u64) -> u64 {
        if offset & 4 == 0 { value } else { value >> 32 }
    }

    /// Whether an access to a 32-bit register has 32 bits. Records a violation if not.
    pub(crate) fn narrow_only(&mut self, section: &'static str, offset: u64, wide: bool) -> bool {
        if wide {
            self.flag(section, format!("64-bit access to the 32-bit register at offset {offset:#x}"));
        }
        !wide
    }
}

impl Machine {
    /// Returns a machine in its reset state.
    #[must_use]
    pub fn new(config: Config) -> Machine {
        Machine { state: Arc::new(Mutex::new(State::new(config))) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the lock has failed already, but its violations can still be read.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns the description of the machine.
    #[must_use]
    pub fn config(&self) -> Config {
        self.lock().cfg.clone()
    }

    // ---- for drivers

    /// Reads a 32-bit register.
    #[must_use]
    pub fn read32(&self, at: u64) -> u32 {
        let mut s = self.lock();
        if !at.is_multiple_of(4) {
            s.flag("memory", format!("unaligned 32-bit register read at {at:#x}"));
            return 0;
        }
        s.read(at, false) as u32
    }

    /// Writes a 32-bit register.
    pub fn write32(&self, at: u64, value: u32) {
        let mut s = self.lock();
        if !at.is_multiple_of(4) {
            return s.flag("memory", format!("unaligned 32-bit register write at {at:#x}"));
        }
        s.write(at, value.into(), false);
    }

    /// Reads a 64-bit register in one access.
    #[must_use]
    pub fn read64(&self, at: u64) -> u64 {
        let mut s = self.lock();
        if !at.is_multiple_of(8) {
            s.flag("memory", format!("unaligned 64-bit register read at {at:#x}"));
            return 0;
        }
        s.read(at, true)
    }

    /// Writes a 64-bit register in one access.
    pub fn write64(&self, at: u64, value: u64) {
        let mut s = self.lock();
        if !at.is_multiple_of(8) {
            return s.flag("memory", format!("unaligned 64-bit register write at {at:#x}"));
        }
        s.write(at, value, true);
    }

    /// Allocates memory that is zero for the CPU. The zeros are not published.
    #[must_use]
    pub fn alloc(&self, size: usize, align: usize) -> Option<u64> {
        self.lock().mem.alloc(size as u64, align as u64)
    }

    /// Allocates memory at a given 4 KiB-aligned address. Returns `false` if it is not free.
    #[must_use]
    pub fn claim(&self, at: u64, size: usize) -> bool {
        let mut s = self.lock();
        let free = s.mem.claim(at, size as u64);
        if free {
            s.attach_tables_at_reset(at, size as u64);
        }
        free
    }

    /// Frees memory. Size and alignment must be those of the allocation.
    pub fn free(&self, at: u64, size: usize, align: usize) {
        let mut s = self.lock();
        s.settle();
        if let Err(e) = s.mem.free(at, size as u64, align as u64) {
            s.flag("memory", e);
        }
        s.forget_vpts(at, size as u64);
    }

    /// Loads a byte of shared memory.
    #[must_use]
    pub fn load8(&self, at: u64) -> u8 {
        let mut byte = [0];
        self.load(at, &mut byte);
        byte[0]
    }

    /// Loads an aligned little-endian word of shared memory.
    #[must_use]
    pub fn load64(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.load(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn load(&self, at: u64, out: &mut [u8]) {
        let mut s = self.lock();
        if !at.is_multiple_of(out.len() as u64) {
            s.flag("memory", format!("unaligned load of {} bytes at {at:#x}", out.len()));
        }
        if let Err(e) = s.mem.load(at, out) {
            s.flag("memory", e);
        }
    }

    /// Stores a byte to shared memory.
    pub fn store8(&self, at: u64, value: u8) {
        self.store(at, &[value]);
    }

    /// Stores an aligned little-endian word to shared memory.
    pub fn store64(&self, at: u64, value: u64) {
        self.store(at, &value.to_le_bytes());
    }

    fn store(&self, at: u64, data: &[u8]) {
        let mut s = self.lock();
        if !at.is_multiple_of(data.len() as u64) {
            s.flag("memory", format!("unaligned store of {} bytes at {at:#x}", data.len()));
        }
        if let Err(e) = s.mem.store(at, data) {
            s.flag("memory", e);
        }
        s.check_queue_store(at, data.len() as u64);
    }

    /// Makes stores visible to devices that snoop and, with `noncoherent`, to all devices.
    pub fn publish(&self, at: u64, size: usize, noncoherent: bool) {
        let mut s = self.lock();
        if !s.mem.is_allocated(at, size as u64) {
            s.flag("memory", format!("publish of {size:#x} bytes at {at:#x}, which are not allocated throughout"));
        }
        s.mem.publish(at, size as u64, noncoherent);
    }

    /// Makes writes of devices that snoop visible to loads and, with `noncoherent`, writes of all devices.
    pub fn acquire(&self, at: u64, size: usize, noncoherent: bool) {
        let mut s = self.lock();
        if !s.mem.is_allocated(at, size as u64) {
            s.flag("memory", format!("acquire of {size:#x} bytes at {at:#x}, which are not allocated throughout"));
        }
        s.mem.acquire(at, size as u64, noncoherent);
    }

    /// Returns the time since reset in microseconds. Takes as long as a register access.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        let mut s = self.lock();
        let ns = s.cfg.timing.access;
        s.tick(ns);
        s.now / 1000
    }

    /// Advances the clock by one turn of a polling loop.
    pub fn relax(&self) {
        let mut s = self.lock();
        let ns = s.cfg.timing.relax;
        s.tick(ns);
    }

    // ---- for tests

    /// Advances the clock.
    pub fn advance_us(&self, us: u64) {
        let mut s = self.lock();
        // The first millisecond passes in steps of a microsecond, since something that becomes due may start something
        // else that becomes due in the same time.
        for _ in 0..us.min(1000) {
            s.tick(1000);
        }
        s.tick(us.saturating_sub(1000) * 1000);
    }

    /// A device writes an MSI to ITS 0.
    pub fn msi(&self, device: u32, event: u32) {
        self.msi_at(0, device, event);
    }

    /// A device writes an MSI to an ITS.
    pub fn msi_at(&self, its: usize, device: u32, event: u32) {
        let mut s = self.lock();
        s.settle();
        s.translate(its, device, event);
    }

    /// The hypervisor reads ICC_IAR1_EL1 on this CPU and acknowledges the pending physical LPI of highest priority.
    pub fn host_ack(&self, cpu: usize) -> Option<u32> {
        let mut s = self.lock();
        s.settle();
        s.host_ack(cpu)
    }

    /// Whether a physical LPI would interrupt this CPU now.
    #[must_use]
    pub fn host_irq(&self, cpu: usize) -> bool {
        let mut s = self.lock();
        s.settle();
        s.host_best(cpu).is_some()
    }

    /// The guest on this CPU reads ICC_IAR1_EL1 and acknowledges the pending virtual interrupt of highest priority of
    /// the resident vPE. Interrupts in list registers are not modelled.
    pub fn guest_ack(&self, cpu: usize) -> Option<u32> {
        let mut s = self.lock();
        s.settle();
        s.guest_ack(cpu)
    }

    /// The guest on this CPU writes ICC_EOIR1_EL1 for a virtual interrupt that is in no list register.
    pub fn guest_eoi(&self, cpu: usize, intid: u32) {
        self.lock().guest_eoi(cpu, intid);
    }

    /// Sets ICH_HCR_EL2.vSGIEOICount: the end of a virtual SGI is not counted. It is 0 at reset.
    pub fn set_vsgi_eoi_count(&self, cpu: usize, on: bool) {
        self.lock().rds[cpu].vsgi_eoi_ignored = on;
    }

    /// ICH_HCR_EL2.EOIcount: the number of interrupts that the guest has ended without a list register, modulo 32.
    #[must_use]
    pub fn eoi_count(&self, cpu: usize) -> u8 {
        self.lock().rds[cpu].eoi_count
    }

    /// Whether the GIC signals a virtual interrupt of the resident vPE to this CPU now.
    #[must_use]
    pub fn guest_irq(&self, cpu: usize) -> bool {
        let mut s = self.lock();
        s.settle();
        s.guest_best(cpu).is_some()
    }

    /// Firmware powers a CPU and its redistributor on. See [`Config::powered`].
    pub fn power_on(&self, cpu: usize) {
        let mut s = self.lock();
        s.settle();
        s.power_on(cpu);
    }

    /// Firmware powers a CPU and its redistributor off. It is a violation if an ITS still sends interrupts there.
    pub fn power_off(&self, cpu: usize) {
        let mut s = self.lock();
        s.settle();
        s.power_off(cpu);
    }

    /// Enables or disables the virtual CPU interface (ICH_HCR_EL2.En and ICH_VMCR_EL2.VENG1). It is enabled at reset.
    pub fn set_virtual_interface(&self, cpu: usize, on: bool) {
        self.lock().rds[cpu].virtual_interface = on;
    }

    /// Returns the physical LPIs that are pending on a CPU's redistributor, including disabled ones.
    #[must_use]
    pub fn host_pending(&self, cpu: usize) -> Vec<u32> {
        let mut s = self.lock();
        s.settle();
        s.rds[cpu].pending.iter().copied().collect()
    }

    /// Returns the virtual LPIs that are pending for the vPE with the VPT at this address, whether the pending bits are
    /// in the GIC or in the table.
    #[must_use]
    pub fn vpt_pending(&self, vpt: u64) -> Vec<u32> {
        let mut s = self.lock();
        s.settle();
        s.vpt_pending(vpt)
    }

    /// Returns the address of the VPT of the vPE that is resident on a CPU, and its vPEID if it is mapped.
    #[must_use]
    pub fn resident(&self, cpu: usize) -> Option<(u64, Option<u16>)> {
        let s = self.lock();
        s.rds[cpu].resident.as_ref().map(|r| (r.vpt, s.name_vpe(r)))
    }

    /// Returns how often a CPU's redistributor was used.
    #[must_use]
    pub fn counters(&self, cpu: usize) -> Counters {
        self.lock().rds[cpu].counters
    }

    /// Returns all acknowledged interrupts, in order.
    #[must_use]
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.lock().deliveries.clone()
    }

    /// Returns the interrupts acknowledged since the last call of this function.
    #[must_use]
    pub fn take_deliveries(&self) -> Vec<Delivery> {
        std::mem::take(&mut self.lock().deliveries)
    }

    /// Returns the interrupts dropped since the last call of this function.
    #[must_use]
    pub fn take_drops(&self) -> Vec<Drop> {
        std::mem::take(&mut self.lock().drops)
    }

    /// Returns the violations recorded since the last [`take_violations`](Machine::take_violations).
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.lock().violations.clone()
    }

    /// Returns the recorded violations and clears the record.
    #[must_use]
    pub fn take_violations(&self) -> Vec<Violation> {
        std::mem::take(&mut self.lock().violations)
    }

    /// Fails the test if a violation was recorded since the last `take_violations`.
    ///
    /// # Panics
    ///
    /// If there are violations. The message lists all of them.
    #[track_caller]
    pub fn assert_clean(&self) {
        let found = self.violations();
        assert!(found.is_empty(), "{} violation(s): {found:#?}", found.len());
    }

    /// Returns the commands that an ITS has consumed, in order.
    #[must_use]
    pub fn commands(&self, its: usize) -> Vec<Command> {
        let mut s = self.lock();
        s.settle();
        s.its[its].history.clone()
    }

    /// Returns the allocations that have not been freed.
    #[must_use]
    pub fn allocations(&self) -> Vec<Allocation> {
        self.lock().mem.allocations()
    }

    /// Arms a fault.
    pub fn inject(&self, fault: Fault) {
        self.lock().inject(fault);
    }

    /// Removes all faults. Operations that hang because of one continue.
    pub fn heal(&self) {
        let mut s = self.lock();
        s.heal();
        s.settle();
    }
}

const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Machine>();
};
