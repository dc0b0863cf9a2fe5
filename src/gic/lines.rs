//! The verbs on SPIs, PPIs and SGIs.

use super::dist::{Bank, Trigger};
use super::driver::Gic;
use crate::ids::{CpuId, Intid, Mpidr};
use crate::mmio::Hw;

impl<H: Hw + Clone> Gic<H> {
    // ---- SPIs: INTIDs from 32. Numbers that do not exist are ignored. ----------------------------------------

    /// Enables an SPI.
    pub fn spi_enable(&self, i: Intid) {
        self.spi(i, |b| b.enable(i));
    }

    /// Disables an SPI and waits for completion.
    pub fn spi_disable(&self, i: Intid) {
        self.dist.disable(i);
    }

    /// Makes an SPI level-sensitive or edge-triggered. The caller has disabled it.
    pub fn spi_set_trigger(&self, i: Intid, trigger: Trigger) {
        self.spi(i, |b| b.set_trigger(i, trigger));
    }

    /// Routes an SPI to one CPU.
    pub fn spi_route(&self, i: Intid, to: Mpidr) {
        self.dist.route(i, to);
    }

    /// Sets or clears the pending state of an SPI.
    pub fn spi_set_pending(&self, i: Intid, pending: bool) {
        self.spi(i, |b| b.set_pending(i, pending));
    }

    /// Whether an SPI is pending. If it is level-sensitive and active, that is the level of its line (IHI 0069, 4.1.2).
    pub fn spi_is_pending(&self, i: Intid) -> bool {
        self.dist.spi(i).is_some_and(|bank| bank.is_pending(i))
    }

    /// Sets or clears the active state of an SPI.
    pub fn spi_set_active(&self, i: Intid, active: bool) {
        self.spi(i, |b| b.set_active(i, active));
    }

    fn spi(&self, i: Intid, act: impl FnOnce(&Bank<H>)) {
        if let Some(bank) = self.dist.spi(i) {
            act(bank);
        }
    }

    // ---- SGIs and PPIs: INTIDs 0 to 31 of one CPU -------------------------------------------------------------

    /// Enables a CPU's SGI or PPI.
    pub fn ppi_enable(&self, cpu: CpuId, i: Intid) {
        self.ppi(cpu, i, |b| b.enable(i));
    }

    /// Disables a CPU's SGI or PPI and waits for completion.
    pub fn ppi_disable(&self, cpu: CpuId, i: Intid) {
        if let Some(redist) = self.redist(cpu) {
            redist.disable(i);
        }
    }

    /// Sets or clears the active state of a CPU's SGI or PPI.
    pub fn ppi_set_active(&self, cpu: CpuId, i: Intid, active: bool) {
        self.ppi(cpu, i, |b| b.set_active(i, active));
    }

    /// Whether a CPU's SGI or PPI is active.
    pub fn ppi_is_active(&self, cpu: CpuId, i: Intid) -> bool {
        self.bank(cpu, i).is_some_and(|b| b.is_active(i))
    }

    fn bank(&self, cpu: CpuId, i: Intid) -> Option<&Bank<H>> {
        self.redist(cpu)?.private(i)
    }

    fn ppi(&self, cpu: CpuId, i: Intid, act: impl FnOnce(&Bank<H>)) {
        if let Some(bank) = self.bank(cpu, i) {
            act(bank);
        }
    }
}
