//! What the virtual GIC needs from its domain: vCPUs to kick, guest memory to read, physical SPIs and PPIs and virtual SGIs
//! to program.

use super::{Domain, irq};
use crate::arch::percpu;
use crate::gic::v4::{SgiConfig, V4Error};
use crate::gic::{self, V4};
use crate::host::Host;
use crate::ids::{CpuId, Intid, Ipa, VcpuId, VpeId};
use crate::log_limited;
use crate::mm::hw::El2;
use crate::vgic::{Port, Trigger};

/// The [`Port`] of a domain's virtual GIC and virtual ITSs.
pub struct DomainPort<'a> {
    domain: &'a Domain,
    host: &'static Host,
}

impl Domain {
    /// The [`Port`] of this domain.
    #[must_use]
    pub fn port(&self) -> DomainPort<'_> {
        DomainPort { domain: self, host: self.host }
    }
}

/// Whether `cpu` is the CPU that this code runs on.
fn is_here(cpu: CpuId) -> bool {
    cpu == percpu::cpu()
}

impl DomainPort<'_> {
    fn cpu_of(&self, vcpu: VcpuId) -> Option<CpuId> {
        Some(self.domain.vcpu(vcpu)?.cpu())
    }

    /// Performs an operation on the virtual SGIs of a vCPU. `None`: it failed.
    fn on_vpe<R>(&self, vcpu: VcpuId, act: impl FnOnce(V4<'_, El2>, VpeId) -> Result<R, V4Error>) -> Option<R> {
        let (v4, vpe) = (self.host.gic.v4()?, self.domain.vcpu(vcpu)?.vpe?);
        let domain = self.domain.id();
        let failed = |error: &V4Error| {
            log_limited!(Warn, domain; "{domain} {vcpu}: {vpe}: virtual SGIs: {error}");
        };
        act(v4, vpe).inspect_err(failed).ok()
    }
}

impl Port for DomainPort<'_> {
    fn kick(&self, vcpu: VcpuId) {
        if let Some(vcpu) = self.domain.vcpu(vcpu) {
            self.domain.kick(vcpu);
        }
    }

    fn read_guest(&self, ipa: Ipa, buf: &mut [u8]) -> bool {
        self.domain.ram().read(ipa, buf).is_ok()
    }

    fn owns_spi(&self, intid: Intid) -> bool {
        self.host.spis.get(intid) == Some(self.domain.id())
    }

    fn spi_set_enabled(&self, intid: Intid, on: bool) {
        if on { self.host.gic.spi_enable(intid) } else { self.host.gic.spi_disable(intid) }
    }

    fn spi_set_trigger(&self, intid: Intid, trigger: Trigger) {
        let trigger = match trigger {
            Trigger::Level => gic::Trigger::Level,
            Trigger::Edge => gic::Trigger::Edge,
        };
        self.host.gic.spi_set_trigger(intid, trigger);
    }

    fn spi_route(&self, intid: Intid, vcpu: VcpuId) {
        if let Some(cpu) = self.cpu_of(vcpu) {
            self.host.route_spi(intid, cpu);
        }
    }

    fn spi_set_pending(&self, intid: Intid, on: bool) {
        self.host.gic.spi_set_pending(intid, on);
    }

    fn spi_deactivate(&self, intid: Intid) {
        self.host.gic.spi_set_active(intid, false);
    }

    fn ppi_deactivate(&self, vcpu: VcpuId, intid: Intid) {
        let Some(vcpu) = self.domain.vcpu(vcpu) else { return };
        match vcpu.live_on() {
            Some(cpu) if is_here(cpu) || !self.host.sched.shares_cpus() => {
                self.host.gic.ppi_set_active(cpu, intid, false);
            }
            // Another vCPU may run there before a write from here takes effect, so the vCPU's own CPU deactivates the
            // PPI.
            Some(cpu) => {
                vcpu.ask_to_deactivate(intid);
                self.domain.kick(vcpu);
                if vcpu.live_on() != Some(cpu) {
                    // The vCPU may have left before it saw the request. Without this write the PPI could stay active;
                    // one level interrupt more on that CPU is harmless.
                    self.host.gic.ppi_set_active(cpu, intid, false);
                }
            }
            // The vCPU's state is in memory, and no physical PPI is active for it: there is nothing to deactivate.
            None => {}
        }
    }

    fn spi_is_pending(&self, intid: Intid) -> bool {
        self.host.gic.spi_is_pending(intid)
    }

    fn ppi_line(&self, vcpu: VcpuId, intid: Intid) -> bool {
        let runs_here = self.domain.vcpu(vcpu).and_then(|vcpu| vcpu.live_on()).is_some_and(is_here);
        !runs_here || intid != self.host.machine.timer.virt || irq::virtual_timer_line()
    }

    fn group1_enabled(&self, _: bool) {
        // On GICv4.0 residency depends on this bit. Each vCPU reads it before it enters; the one whose store this is does
        // so when this trap returns.
        (0..).map(VcpuId).take(self.domain.vcpus().len()).for_each(|vcpu| self.domain.recall(vcpu));
    }

    fn lpis_enabled(&self, vcpu: VcpuId, _: bool, _: u64, _: u64) {
        self.domain.recall(vcpu);
    }

    fn recall(&self, vcpu: VcpuId) {
        self.domain.recall(vcpu);
    }

    fn is_settled(&self) -> bool {
        self.domain.is_settled()
    }

    fn sgis_configure(&self, vcpu: VcpuId, which: u16, config: &dyn Fn(u8) -> SgiConfig) -> bool {
        self.on_vpe(vcpu, |v4, vpe| v4.configure_sgis(vpe, which, config)).is_some()
    }

    fn sgi_send(&self, vcpu: VcpuId, sgi: u8) -> bool {
        self.on_vpe(vcpu, |v4, vpe| v4.send_sgi(vpe, sgi)).is_some()
    }

    fn sgis_clear(&self, vcpu: VcpuId, which: u16) -> bool {
        self.on_vpe(vcpu, |v4, vpe| v4.clear_sgis(vpe, which)).is_some()
    }

    fn sgis_pending(&self, vcpu: VcpuId) -> Option<u16> {
        self.on_vpe(vcpu, |v4, vpe| v4.pending_sgis(vpe))
    }
}
