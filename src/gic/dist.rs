//! The distributor, and the registers per interrupt that it has in common with each redistributor's SGI frame (IHI
//! 0069, 12.9 and 12.11).
//!
//! Extended SPIs and PPIs (GICv3.1) are not used: they stay disabled, as after reset.

use super::regs::{GICD_CTLR, GICD_TYPER, PIDR2, PIDR2_FIELDS, gicd};
use crate::ids::{Intid, Mpidr, Pa};
use crate::mmio::Hw;
use crate::sync::{Lock, Rank};
use tock_registers::LocalRegisterCopy;

/// The first SPI. SGIs are 0 to 15, PPIs 16 to 31.
pub const FIRST_SPI: u32 = 32;
/// One above the last SPI of the architecture.
const SPI_END: u32 = 1020;
/// The priority of every interrupt after bring-up, in each byte; LPIs have the same.
const DEFAULT_PRIORITY: u32 = 0xa0a0_a0a0;
/// How long the hardware may take to complete a register write.
pub const RWP_LIMIT_US: u64 = 100_000;

/// The architecture revision of a distributor, GICD_PIDR2.ArchRev: 3 is a GICv3, 4 a GICv4.
pub fn arch_rev<H: Hw>(hw: &H, dist: Pa) -> u32 {
    LocalRegisterCopy::<u32, PIDR2_FIELDS::Register>::new(hw.read32(dist.add(PIDR2))).read(PIDR2_FIELDS::ARCH_REV)
}

/// How an interrupt line is interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Pending while the line is high.
    Level,
    /// Pending from a rising edge until it is acknowledged.
    Edge,
}

/// The registers with a bit, two bits or a byte for each interrupt, in the frame of the distributor or the SGI frame of
/// a redistributor.
pub struct Bank<H> {
    hw: H,
    base: Pa,
    /// A word of ICFGR is shared by sixteen interrupts: held while one is read, modified and written.
    words: Lock<()>,
}

impl<H: Hw> Bank<H> {
    pub fn new(hw: H, base: Pa) -> Self {
        Bank { hw, base, words: Lock::new(Rank::Redist, ()) }
    }

    fn bit(&self, register: u64, i: Intid) -> (Pa, u32) {
        (self.base.add(register + 4 * u64::from(i.0 / 32)), 1 << (i.0 % 32))
    }

    fn write_bit(&self, register: u64, i: Intid) {
        let (at, bit) = self.bit(register, i);
        self.hw.write32(at, bit);
    }

    fn read_bit(&self, register: u64, i: Intid) -> bool {
        let (at, bit) = self.bit(register, i);
        self.hw.read32(at) & bit != 0
    }

    pub fn enable(&self, i: Intid) {
        self.write_bit(gicd::ISENABLER, i);
    }

    pub fn disable(&self, i: Intid) {
        self.write_bit(gicd::ICENABLER, i);
    }

    pub fn set_pending(&self, i: Intid, pending: bool) {
        self.write_bit(if pending { gicd::ISPENDR } else { gicd::ICPENDR }, i);
    }

    pub fn is_pending(&self, i: Intid) -> bool {
        self.read_bit(gicd::ISPENDR, i)
    }

    pub fn set_active(&self, i: Intid, active: bool) {
        self.write_bit(if active { gicd::ISACTIVER } else { gicd::ICACTIVER }, i);
    }

    pub fn is_active(&self, i: Intid) -> bool {
        self.read_bit(gicd::ISACTIVER, i)
    }

    pub fn set_trigger(&self, i: Intid, trigger: Trigger) {
        let at = self.base.add(gicd::ICFGR + 4 * u64::from(i.0 / 16));
        let edge = 2 << (2 * (i.0 % 16));
        self.modify(at, edge, if trigger == Trigger::Edge { edge } else { 0 });
    }

    fn modify(&self, at: Pa, clear: u32, set: u32) {
        let _words = self.words.lock();
        self.hw.write32(at, self.hw.read32(at) & !clear | set);
    }

    /// Resets interrupts `first..end` (multiples of 32): disabled, inactive, not pending, non-secure group 1, default
    /// priority.
    pub fn reset(&self, first: u32, end: u32) {
        for n in first / 32..end / 32 {
            let at = |register: u64| self.base.add(register + 4 * u64::from(n));
            self.hw.write32(at(gicd::ICENABLER), !0);
            self.hw.write32(at(gicd::ICPENDR), !0);
            self.hw.write32(at(gicd::ICACTIVER), !0);
            self.hw.write32(at(gicd::IGROUPR), !0);
        }
        for n in first / 4..end / 4 {
            self.hw.write32(self.base.add(gicd::IPRIORITYR + 4 * u64::from(n)), DEFAULT_PRIORITY);
        }
    }
}

/// The distributor.
pub struct Dist<H> {
    hw: H,
    base: Pa,
    bank: Bank<H>,
    /// One above the last INTID that it implements.
    end: u32,
}

type Ctlr = LocalRegisterCopy<u32, GICD_CTLR::Register>;

impl<H: Hw + Clone> Dist<H> {
    pub fn new(hw: H, base: Pa) -> Self {
        let typer = Self::typer_at(&hw, base);
        let end = ((typer.read(GICD_TYPER::IT_LINES) + 1) * 32).min(SPI_END);
        Dist { bank: Bank::new(hw.clone(), base), hw, base, end }
    }

    fn typer_at(hw: &H, base: Pa) -> LocalRegisterCopy<u32, GICD_TYPER::Register> {
        LocalRegisterCopy::new(hw.read32(base.add(gicd::TYPER)))
    }

    pub fn typer(&self) -> LocalRegisterCopy<u32, GICD_TYPER::Register> {
        Self::typer_at(&self.hw, self.base)
    }

    /// The number of SPIs.
    pub fn spis(&self) -> u32 {
        self.end.saturating_sub(FIRST_SPI)
    }

    /// Resets every SPI, and enables affinity routing and non-secure group 1. `false` if the distributor missed a
    /// deadline or does not support affinity routing.
    ///
    /// Affinity routing may change only while all groups are disabled (IHI 0069, 12.9.4).
    pub fn init(&self) -> bool {
        let ctlr = self.base.add(gicd::CTLR);
        self.hw.write32(ctlr, 0);
        let off = self.settled();
        self.bank.reset(FIRST_SPI, self.end.next_multiple_of(32));
        self.hw.write32(ctlr, GICD_CTLR::ARE::SET.value);
        let routed = self.settled();
        self.hw.write32(ctlr, (GICD_CTLR::ARE::SET + GICD_CTLR::ENABLE_GRP1::SET).value);
        off && routed && self.settled() && Ctlr::new(self.hw.read32(ctlr)).is_set(GICD_CTLR::ARE)
    }

    fn settled(&self) -> bool {
        self.hw.wait(RWP_LIMIT_US, || !Ctlr::new(self.hw.read32(self.base.add(gicd::CTLR))).is_set(GICD_CTLR::RWP))
    }

    /// The registers of an SPI; `None` if there is no such SPI.
    pub fn spi(&self, i: Intid) -> Option<&Bank<H>> {
        (FIRST_SPI..self.end).contains(&i.0).then_some(&self.bank)
    }

    /// Disables an SPI and waits for completion.
    pub fn disable(&self, i: Intid) {
        if let Some(bank) = self.spi(i) {
            bank.disable(i);
            let _ = self.settled();
        }
    }

    pub fn route(&self, i: Intid, to: Mpidr) {
        if self.spi(i).is_some() {
            self.hw.write64(self.base.add(gicd::IROUTER + 8 * u64::from(i.0)), to.0);
        }
    }

    /// Routes all SPIs of one CPU to another, and returns how many. A pending SPI becomes pending there; an active one
    /// stays active and can be deactivated on any CPU.
    pub fn reroute(&self, from: Mpidr, to: Mpidr) -> u32 {
        let at = |i: u32| self.base.add(gicd::IROUTER + 8 * u64::from(i));
        let routed = |i: &u32| self.hw.read64(at(*i)) == from.0;
        let moved = (FIRST_SPI..self.end).filter(routed).map(|i| self.hw.write64(at(i), to.0));
        moved.count() as u32
    }

    /// GICD_TYPER2. It is read only on GICv4.1: some other distributors abort the access, and QEMU logs it.
    pub fn typer2(&self) -> LocalRegisterCopy<u32, super::regs::GICD_TYPER2::Register> {
        LocalRegisterCopy::new(self.hw.read32(self.base.add(gicd::TYPER2)))
    }
}
