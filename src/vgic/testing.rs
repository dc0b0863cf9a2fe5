//! A machine for the tests of the virtual GIC: a port that records its calls, and vCPUs that handle what is listed.

use super::*;
use crate::gic::v4::SgiConfig;
use crate::ids::{Intid, Ipa, Mpidr, VIntid, VcpuId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::vec::Vec;

/// A call of the port that a virtual GIC made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Enabled(u32, bool),
    Trigger(u32, Trigger),
    Route(u32, u16),
    Pending(u32, bool),
    Deactivate(u32),
    PpiDeactivate(u16, u32),
    Group1(bool),
    Lpis(u16, bool, u64, u64),
}

/// A virtual GIC with both groups and all private interrupts enabled, and its vCPUs.
pub struct Machine {
    pub vgic: Vgic,
    pub owned: Vec<u32>,
    kicks: RefCell<Vec<VcpuId>>,
    asked: RefCell<Vec<Asked>>,
    pub images: Vec<RefCell<LrImage>>,
    memory: RefCell<BTreeMap<u64, u8>>,
    /// The virtual SGIs of each vCPU's vPE: how they are delivered, and which are pending.
    pub vsgis: RefCell<Vec<([SgiConfig; 16], u16)>>,
    /// Whether the ITS executes commands; whether redistributors say which virtual SGIs are pending.
    pub its_works: Cell<bool>,
    pub vpes_answer: Cell<bool>,
    /// Whether a vCPU that is in its guest leaves it when it is kicked.
    pub obey_kicks: Cell<bool>,
    /// The physical interrupts whose lines are low; those of all others are high.
    pub low: RefCell<Vec<u32>>,
    /// How many recalls were not obeyed.
    pub unsettled: Cell<u32>,
}

pub const BOOT: VcpuId = VcpuId(0);
pub const REDIST: u64 = 0x1_0000;

/// A value of ICC_SGI1R_EL1 that targets one CPU.
pub fn sgi1r(intid: u32, to: Mpidr) -> u64 {
    let aff = |level: u32| u64::from(to.aff(level));
    let range = aff(0) >> 4;
    u64::from(intid) << 24 | aff(3) << 48 | aff(2) << 32 | aff(1) << 16 | range << 44 | 1 << (aff(0) & 15)
}

impl Machine {
    /// ICH_VMCR_EL2 with both groups enabled and no priority masked.
    pub const OPEN: u64 = 0xff00_0003;

    pub fn new(vcpus: u64) -> Machine {
        Machine::with_affinities((0..vcpus).map(Mpidr).collect())
    }

    pub fn with_affinities(vcpus: Vec<Mpidr>) -> Machine {
        let machine = Machine::blank(vcpus);
        machine.boot();
        machine
    }

    /// A guest that boots enables both groups and all private interrupts.
    pub fn boot(&self) {
        self.dist_write(0, 3);
        for word in 1..3 {
            self.dist_write(0x80 + word * 4, 0xffff_ffff);
        }
        for vcpu in 0..self.vgic.vcpus() as u16 {
            self.redist_write(VcpuId(vcpu), REDIST + 0x80, 0xffff_ffff);
            self.redist_write(VcpuId(vcpu), REDIST + 0x100, 0xffff_ffff);
        }
        self.forget();
    }

    /// Resets the virtual GIC and zeroes the memory, as the restart of a domain does.
    pub fn restart(&self) {
        (0..self.vgic.vcpus() as u16).for_each(|vcpu| assert!(self.vgic.reset_redist(self, VcpuId(vcpu))));
        self.vgic.reset_dist(self);
        self.memory.borrow_mut().clear();
        self.forget();
    }

    /// A machine at reset.
    pub fn blank(vcpus: Vec<Mpidr>) -> Machine {
        let images = vcpus.iter().map(|_| RefCell::new(LrImage::new(4))).collect();
        let off = SgiConfig { enabled: false, group1: false, priority: 0 };
        let vsgis = vcpus.iter().map(|_| ([off; 16], 0)).collect();
        let config = VgicConfig { vcpus, spis: 64, id_bits: 14, has_lpis: true, list_registers: 4, priority_bits: 5 };
        Machine {
            vsgis: RefCell::new(vsgis),
            its_works: Cell::new(true),
            vpes_answer: Cell::new(true),
            vgic: Vgic::new(config).unwrap(),
            owned: Vec::new(),
            kicks: RefCell::default(),
            asked: RefCell::default(),
            images,
            memory: RefCell::default(),
            obey_kicks: Cell::new(true),
            low: RefCell::default(),
            unsettled: Cell::new(0),
        }
    }

    pub fn forget(&self) {
        self.kicks.borrow_mut().clear();
        self.asked.borrow_mut().clear();
    }

    pub fn kicked(&self) -> Vec<VcpuId> {
        self.kicks.take()
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.take()
    }

    pub fn poke(&self, at: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            self.memory.borrow_mut().insert(at + i as u64, *byte);
        }
    }

    pub fn dist_write(&self, offset: u64, value: u64) {
        self.vgic.dist_write(self, BOOT, offset, 4, value);
    }

    pub fn dist_read(&self, offset: u64) -> u64 {
        self.vgic.dist_read(self, BOOT, offset, 4)
    }

    /// Writes a register, and reads the LPI tables if it enables LPIs.
    pub fn redist_write(&self, vcpu: VcpuId, offset: u64, value: u64) {
        let mut cursor = self.vgic.redist_write(self, vcpu, vcpu, offset, 4, value);
        while let Some(at) = cursor {
            cursor = self.vgic.read_tables(self, vcpu, at);
        }
    }

    pub fn redist_read(&self, vcpu: VcpuId, offset: u64) -> u64 {
        self.vgic.redist_read(self, vcpu, vcpu, offset, 4)
    }

    pub fn set_group(&self, vcpu: VcpuId, intid: u32, group1: bool) {
        let old = self.redist_read(vcpu, REDIST + 0x80);
        let mask = 1 << intid;
        self.redist_write(vcpu, REDIST + 0x80, if group1 { old | mask } else { old & !mask });
    }

    /// Sets the priority of an SPI, routes it and enables it.
    pub fn enable_spi(&self, intid: u32, priority: u8, to: u64) {
        self.vgic.dist_write(self, BOOT, 0x400 + u64::from(intid), 1, priority.into());
        self.vgic.dist_write(self, BOOT, 0x6000 + u64::from(intid) * 8, 8, to);
        self.dist_write(0x100 + u64::from(intid / 32) * 4, 1 << (intid % 32));
        self.forget();
    }

    pub fn make_edge(&self, intid: u32) {
        let at = 0xc00 + u64::from(intid / 16) * 4;
        self.dist_write(at, self.dist_read(at) | 2 << (intid % 16 * 2));
    }

    /// Enables LPIs on a vCPU with a pending table of zeros, and configures `lpis`.
    pub fn enable_lpis(&self, vcpu: VcpuId, lpis: &[(u32, u8)]) {
        self.vgic.redist_write(self, vcpu, vcpu, 0x70, 8, 0x1_0000 | 13);
        self.vgic.redist_write(self, vcpu, vcpu, 0x78, 8, 0x2_0000 | 1 << 62);
        self.redist_write(vcpu, 0, 1);
        for (vintid, config) in lpis {
            self.vgic.set_lpi_config(self, VIntid(*vintid), *config);
        }
        self.forget();
    }

    /// Flushes the list registers of a vCPU. Returns what is listed, as (INTID, state, priority).
    pub fn enter(&self, vcpu: VcpuId) -> Vec<(u32, u64, u8)> {
        let mut image = self.images[vcpu.index()].borrow_mut();
        self.vgic.flush(self, vcpu, &mut image);
        image.lr[..image.used.into()].iter().map(|v| (lr::intid(*v), (v & lr::STATE) >> 62, (v >> 48) as u8)).collect()
    }

    /// Syncs the list registers of a vCPU.
    pub fn exit(&self, vcpu: VcpuId) {
        let mut image = self.images[vcpu.index()].borrow_mut();
        self.vgic.sync(self, vcpu, &mut image);
    }

    fn change(&self, vcpu: VcpuId, intid: u32, change: impl Fn(&mut u64)) {
        let mut image = self.images[vcpu.index()].borrow_mut();
        let used = usize::from(image.used);
        let found = image.lr[..used].iter_mut().find(|v| lr::intid(**v) == intid);
        change(found.expect("the interrupt is in a list register"));
    }

    /// The guest acknowledges a listed interrupt.
    pub fn acknowledge(&self, vcpu: VcpuId, intid: u32) {
        self.change(vcpu, intid, |value| *value = *value & !lr::PENDING | lr::ACTIVE);
    }

    /// The guest ends a listed interrupt.
    pub fn end(&self, vcpu: VcpuId, intid: u32) {
        self.change(vcpu, intid, |value| *value &= !lr::ACTIVE);
    }

    pub fn hcr(&self, vcpu: VcpuId) -> u64 {
        self.images[vcpu.index()].borrow().hcr
    }

    pub fn set_hcr(&self, vcpu: VcpuId, hcr: u64) {
        self.images[vcpu.index()].borrow_mut().hcr = hcr;
    }

    pub fn view(&self, intid: u32) -> IrqView {
        self.vgic.irq_state(BOOT, Intid(intid)).unwrap()
    }
}

impl Port for Machine {
    fn kick(&self, vcpu: VcpuId) {
        self.kicks.borrow_mut().push(vcpu);
        if self.obey_kicks.get()
            && let Ok(mut image) = self.images[vcpu.index()].try_borrow_mut()
        {
            self.vgic.sync(self, vcpu, &mut image);
        }
    }
    fn read_guest(&self, ipa: Ipa, buf: &mut [u8]) -> bool {
        let memory = self.memory.borrow();
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = memory.get(&(ipa.0 + i as u64)).copied().unwrap_or(0);
        }
        ipa.0 < 1 << 40
    }
    fn owns_spi(&self, intid: Intid) -> bool {
        self.owned.contains(&intid.0)
    }
    fn spi_set_enabled(&self, intid: Intid, on: bool) {
        self.asked.borrow_mut().push(Asked::Enabled(intid.0, on));
    }
    fn spi_set_trigger(&self, intid: Intid, trigger: Trigger) {
        self.asked.borrow_mut().push(Asked::Trigger(intid.0, trigger));
    }
    fn spi_route(&self, intid: Intid, vcpu: VcpuId) {
        self.asked.borrow_mut().push(Asked::Route(intid.0, vcpu.0));
    }
    fn spi_set_pending(&self, intid: Intid, on: bool) {
        self.asked.borrow_mut().push(Asked::Pending(intid.0, on));
    }
    fn spi_is_pending(&self, intid: Intid) -> bool {
        !self.low.borrow().contains(&intid.0)
    }
    fn ppi_line(&self, _: VcpuId, intid: Intid) -> bool {
        !self.low.borrow().contains(&intid.0)
    }
    fn spi_deactivate(&self, intid: Intid) {
        self.asked.borrow_mut().push(Asked::Deactivate(intid.0));
    }
    fn ppi_deactivate(&self, vcpu: VcpuId, intid: Intid) {
        self.asked.borrow_mut().push(Asked::PpiDeactivate(vcpu.0, intid.0));
    }
    fn group1_enabled(&self, on: bool) {
        self.asked.borrow_mut().push(Asked::Group1(on));
    }
    fn lpis_enabled(&self, vcpu: VcpuId, on: bool, pendbaser: u64, propbaser: u64) {
        self.asked.borrow_mut().push(Asked::Lpis(vcpu.0, on, pendbaser, propbaser));
    }
    fn sgis_configure(&self, vcpu: VcpuId, which: u16, config: &dyn Fn(u8) -> SgiConfig) -> bool {
        let mut vsgis = self.vsgis.borrow_mut();
        for sgi in (0..16).filter(|sgi| which & 1 << sgi != 0) {
            vsgis[vcpu.index()].0[usize::from(sgi)] = config(sgi);
        }
        self.its_works.get()
    }
    fn sgi_send(&self, vcpu: VcpuId, sgi: u8) -> bool {
        if self.its_works.get() {
            self.vsgis.borrow_mut()[vcpu.index()].1 |= 1 << sgi;
        }
        self.its_works.get()
    }
    fn sgis_clear(&self, vcpu: VcpuId, which: u16) -> bool {
        self.vsgis.borrow_mut()[vcpu.index()].1 &= !which;
        self.its_works.get()
    }
    fn sgis_pending(&self, vcpu: VcpuId) -> Option<u16> {
        self.vpes_answer.get().then(|| self.vsgis.borrow()[vcpu.index()].1)
    }
    fn recall(&self, vcpu: VcpuId) {
        self.kick(vcpu);
        if !self.obey_kicks.get() {
            self.unsettled.set(self.unsettled.get() + 1);
        }
    }
    fn is_settled(&self) -> bool {
        self.unsettled.get() == 0
    }
}
