//! The reset of a virtual GIC whose domain begins anew.

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

    /// Puts the distributor of a domain whose vCPUs are all off into its reset state, with its SPIs and the
    /// configuration of LPIs. The physical SPIs that the domain owns stay as they are.
    pub fn reset_dist(&self, port: &dyn Port) {
        self.release_spis(port);
        let was_on = self.group1_on();
        {
            let mut dist = self.dist.lock();
            dist.reset(self.default_target());
            self.ctlr.store(0, Ordering::SeqCst);
        }
        self.propbaser.store(0, Ordering::SeqCst);
        self.lpis.reset();
        if was_on {
            port.group1_enabled(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{BOOT, Machine};
    use crate::ids::{Intid, Mpidr, VcpuId};
    use crate::vgic::Signal;
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
}
