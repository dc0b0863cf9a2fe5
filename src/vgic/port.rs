//! What a virtual GIC asks of its domain.

use super::irq::Trigger;
use crate::gic::v4::SgiConfig;
use crate::ids::{Intid, Ipa, VcpuId};

/// What a virtual GIC asks of its domain. Called with no lock of the virtual GIC held, except where it is said.
pub trait Port {
    /// Makes a vCPU flush its list registers anew: it leaves its guest if it is in it, and wakes if it sleeps. The
    /// request must not get lost between a flush and the entry that follows it.
    fn kick(&self, vcpu: VcpuId);
    /// Copies from the domain's memory. Returns `false` if not all of it is the domain's RAM.
    fn read_guest(&self, ipa: Ipa, buf: &mut [u8]) -> bool;
    /// Whether the domain owns the physical SPI of this number.
    fn owns_spi(&self, intid: Intid) -> bool;
    /// The guest has enabled or disabled an SPI that the domain owns.
    fn spi_set_enabled(&self, intid: Intid, on: bool);
    /// The guest has configured how an SPI that the domain owns signals.
    fn spi_set_trigger(&self, intid: Intid, trigger: Trigger);
    /// The guest has routed an SPI that the domain owns to this vCPU.
    fn spi_route(&self, intid: Intid, vcpu: VcpuId);
    /// The guest has changed the pending state of an SPI that the domain owns.
    fn spi_set_pending(&self, intid: Intid, on: bool);
    /// A physical SPI that is active on behalf of the guest has to be deactivated.
    fn spi_deactivate(&self, intid: Intid);
    /// A physical PPI that is active on behalf of `vcpu` has to be deactivated, on the CPU where `vcpu` runs or will
    /// run next.
    fn ppi_deactivate(&self, vcpu: VcpuId, intid: Intid);
    /// Whether the physical SPI of this number, which the domain owns, is pending. If it is level-sensitive and active,
    /// that is the level of its line.
    fn spi_is_pending(&self, intid: Intid) -> bool;
    /// The level of the line of a physical PPI that is active on behalf of `vcpu`. `true` if `vcpu` does not run on this
    /// CPU: the line cannot be read then.
    ///
    /// This may be called with the vCPU's lock held.
    fn ppi_line(&self, vcpu: VcpuId, intid: Intid) -> bool;
    /// The guest has set GICD_CTLR.EnableGrp1 to `on`. On GICv4.0, residency depends on it. May recall vCPUs.
    fn group1_enabled(&self, on: bool);
    /// The guest has set GICR_CTLR.EnableLPIs of this vCPU to `on`. When it is on, the guest's configuration and
    /// pending tables have been read. May recall the vCPU.
    fn lpis_enabled(&self, vcpu: VcpuId, on: bool, pendbaser: u64, propbaser: u64);
    /// Sets how the GIC delivers the virtual SGIs `which` (one bit each) of a vCPU. Returns `false` if that has failed.
    ///
    /// This and the next three are called with the vCPU's lock held, and only for a domain that is offered
    /// [direct SGIs](super::Vgic::offer_direct_sgis).
    fn sgis_configure(&self, _vcpu: VcpuId, _which: u16, _config: &dyn Fn(u8) -> SgiConfig) -> bool {
        false
    }
    /// Makes a virtual SGI of a vCPU pending. If the vCPU sleeps, it is woken. Returns `false` if that has failed.
    fn sgi_send(&self, _vcpu: VcpuId, _sgi: u8) -> bool {
        false
    }
    /// Clears the pending state of the virtual SGIs `which` (one bit each) of a vCPU. Returns `false` if that has failed.
    fn sgis_clear(&self, _vcpu: VcpuId, _which: u16) -> bool {
        false
    }
    /// The pending virtual SGIs of a vCPU, one bit each; `None` if they cannot be read.
    fn sgis_pending(&self, _vcpu: VcpuId) -> Option<u16> {
        None
    }
    /// Makes a vCPU leave its guest if it is in it, so that what has just changed holds for it when it enters again. Does
    /// not wait for that: the vCPU on whose behalf the call is made may not enter its guest before
    /// [`is_settled`](Port::is_settled).
    fn recall(&self, vcpu: VcpuId);
    /// Whether each vCPU that was recalled has left its guest since.
    fn is_settled(&self) -> bool;
}
