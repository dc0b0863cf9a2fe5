//! The reset of a virtual GIC whose domain begins anew.

use super::Trigger;
use super::direct_sgis::SGIS;
use super::irq::Irq;
use super::port::Port;
use super::private::Private;
use super::regs::SPI_FIRST;
use super::state::Vgic;
use super::vcpu::Work;
use crate::ids::{Intid, VcpuId};
use core::sync::atomic::Ordering;

impl Vgic {
    /// Deactivates the physical SPIs that are active on behalf of the domain.
    pub(super) fn release_spis(&self, port: &dyn Port) {
        let end = self.dist.lock().end();
        for intid in SPI_FIRST..end {
            let deactivate = self.dist.lock().irq_mut(intid).is_some_and(Irq::quiesce);
            if deactivate {
                port.spi_deactivate(Intid(intid));
            }
            let _ = self.dist.lock().place(intid);
        }
    }

    /// Puts the redistributor of a vCPU that is off into its reset state, with its SGIs, PPIs and pending LPIs. Returns
    /// `false` if there is no such vCPU.
    pub fn reset_redist(&self, port: &dyn Port, vcpu: VcpuId) -> bool {
        self.reset_vcpu(port, vcpu);
        let Some(cpu) = self.vcpu(vcpu) else { return false };
        let mut state = cpu.state.lock();
        *state = Private::new();
        self.configure_sgis(port, vcpu, cpu, &mut state, SGIS);
        cpu.direct_sgis.store(false, Ordering::SeqCst);
        drop(state);
        cpu.lpis_on.store(false, Ordering::SeqCst);
        for word in 0..cpu.lpis.words() {
            let _ = cpu.lpis.take_word(word);
        }
        // The next flush looks at GICD_CTLR anew.
        cpu.work.store(Work::PRIVATE.bits(), Ordering::SeqCst);
        true
    }

    /// Puts the physical SPIs that the domain owns into the state that its distributor has after a reset: not enabled, not
    /// pending, level-sensitive, and routed to the first vCPU.
    pub fn reset_owned_spis(&self, port: &dyn Port) {
        let end = self.dist.lock().end();
        for intid in (SPI_FIRST..end).map(Intid).filter(|&intid| port.owns_spi(intid)) {
            port.spi_set_enabled(intid, false);
            port.spi_set_trigger(intid, Trigger::Level);
            port.spi_route(intid, VcpuId(0));
            port.spi_set_pending(intid, false);
            port.spi_deactivate(intid);
        }
    }

    /// Puts the distributor of a domain whose vCPUs are all off into its reset state, with its SPIs, also the physical ones
    /// that it owns, and the configuration of LPIs.
    pub fn reset_dist(&self, port: &dyn Port) {
        // First, so that a device whose line is asserted does not make its SPI active again.
        let end = self.dist.lock().end();
        for intid in (SPI_FIRST..end).map(Intid).filter(|&intid| port.owns_spi(intid)) {
            port.spi_set_enabled(intid, false);
        }
        self.release_spis(port);
        let was_on = self.group1_on();
        {
            let mut dist = self.dist.lock();
            dist.reset(self.default_target());
            self.ctlr.store(0, Ordering::SeqCst);
        }
        // Another CPU may have taken one before it was disabled, and noted it here before the reset.
        self.reset_owned_spis(port);
        self.propbaser.store(0, Ordering::SeqCst);
        self.lpis.reset();
        if was_on {
            port.group1_enabled(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Asked, BOOT, Machine};
    use crate::ids::{Intid, Mpidr, VcpuId};
    use crate::vgic::{Signal, Trigger};
    use std::vec::Vec;

    const REDIST_FRAMES: u64 = 0x2_0000;

    /// The values of all registers of the distributor and the redistributors, and what is pending in EL2.
    fn state(machine: &Machine) -> Vec<u64> {
        let vcpus = (0..machine.vgic.vcpus() as u16).map(VcpuId);
        let dist = (0..0x1_0000).step_by(4).map(|offset| machine.dist_read(offset));
        let redists = vcpus
            .clone()
            .flat_map(|vcpu| (0..REDIST_FRAMES).step_by(4).map(move |offset| machine.redist_read(vcpu, offset)));
        let pending = vcpus.flat_map(|vcpu| {
            let cpu = machine.vgic.vcpu(vcpu).unwrap();
            let lpis = (0..cpu.lpis.words()).map(|word| cpu.lpis.word(word));
            let listed = machine.vgic.has_pending(vcpu, Machine::OPEN);
            lpis.chain([listed.into(), machine.vgic.held_ppis(vcpu).into()]).collect::<Vec<_>>()
        });
        dist.chain(redists).chain(pending).collect()
    }

    #[test]
    fn a_virtual_gic_after_its_reset_cannot_be_told_from_a_new_one() {
        let affinities: Vec<Mpidr> = (0..3).map(Mpidr).collect();
        let fresh = state(&Machine::blank(affinities.clone()));
        let machine = Machine::with_affinities(affinities);
        // Every register gets a value, in two passes: one with LPIs off, so that the tables can be set.
        for value in [0x1234_5678, 0xffff_ffff] {
            for offset in (0..0x1_0000).step_by(4) {
                machine.dist_write(offset, value);
            }
            for vcpu in (0..3).map(VcpuId) {
                for offset in (4..REDIST_FRAMES).step_by(4).chain([0]) {
                    machine.redist_write(vcpu, offset, value);
                }
            }
        }
        machine.vgic.inject_spi(&machine, Intid(40), Signal::Level(true));
        assert!(machine.vgic.inject_hw_ppi(&machine, BOOT, Intid(27)));
        assert_ne!(state(&machine), fresh);
        assert!((0..3).all(|vcpu| machine.vgic.reset_redist(&machine, VcpuId(vcpu))));
        assert!(!machine.vgic.reset_redist(&machine, VcpuId(3)));
        machine.vgic.reset_dist(&machine);
        assert_eq!(state(&machine), fresh);
        assert!(!machine.vgic.group1_on() && !machine.vgic.lpis_on(BOOT));
    }

    #[test]
    fn physical_spis_of_the_domain_are_disabled_and_not_active_after_a_reset() {
        let mut machine = Machine::new(2);
        machine.owned.push(40);
        // Enabled, edge-triggered, routed to the second vCPU, and active.
        let affinity = machine.vgic.vcpus[1].affinity.0;
        machine.dist_write(0x104, 1 << 8);
        machine.dist_write(0xc08, 2 << 16);
        machine.dist_write(0x6000 + 8 * 40, affinity);
        assert!(machine.vgic.inject_hw_spi(&machine, Intid(40)));
        let _ = machine.asked();
        machine.vgic.reset_dist(&machine);
        let asked = machine.asked();
        assert_eq!(asked.first(), Some(&Asked::Enabled(40, false)), "before it is deactivated");
        for expected in
            [Asked::Trigger(40, Trigger::Level), Asked::Route(40, 0), Asked::Pending(40, false), Asked::Deactivate(40)]
        {
            assert!(asked.contains(&expected), "{expected:?} is not in {asked:?}");
        }
        assert!(!asked.iter().any(|asked| matches!(asked, Asked::Enabled(intid, _) if *intid != 40)));
    }
}
