//! Writes to ICC_SGI1R_EL1, ICC_SGI0R_EL1 and ICC_ASGI1R_EL1, and the targets that they name.
//!
//! IHI 0069, 12.2.19: Aff3.Aff2.Aff1 is a cluster, RS one of sixteen ranges of Aff0 in it, TargetList the CPUs of that
//! range. With IRM = 1, the targets are all CPUs but the sender. All four levels of affinity are compared.

use super::port::Port;
use super::regs::BitReg;
use super::state::Vgic;
use super::vcpu::Work;
use crate::ids::VcpuId;

/// The register that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SgiGroup {
    /// ICC_SGI0R_EL1: makes interrupts of group 0 pending only.
    Zero,
    /// ICC_SGI1R_EL1 or ICC_ASGI1R_EL1: makes interrupts of both groups pending.
    One,
}

/// The fields of ICC_SGI<n>R_EL1.
struct Request {
    intid: u32,
    all_but_self: bool,
    /// The first affinity of the range, packed as in GICR_TYPER.
    first: u32,
    targets: u16,
}

impl Request {
    fn decode(value: u64) -> Request {
        let field = |shift: u32, bits: u32| value.wrapping_shr(shift) as u32 & 1u32.wrapping_shl(bits).wrapping_sub(1);
        let (aff3, aff2, aff1, range) = (field(48, 8), field(32, 8), field(16, 8), field(44, 4));
        Request {
            intid: field(24, 4),
            all_but_self: field(40, 1) != 0,
            first: aff3 << 24 | aff2 << 16 | aff1 << 8 | range << 4,
            targets: value as u16,
        }
    }
}

impl Vgic {
    /// Handles a guest's write of `value` to a register that sends SGIs.
    pub fn send_sgi(&self, port: &dyn Port, from: VcpuId, value: u64, group: SgiGroup) {
        let request = Request::decode(value);
        if request.all_but_self {
            for vcpu in (0..self.vcpus.len()).map(|v| VcpuId(v as u16)).filter(|v| *v != from) {
                self.pend_sgi(port, from, vcpu, request.intid, group);
            }
            return;
        }
        let start = self.by_affinity.partition_point(|(packed, _)| *packed < request.first);
        let range = self.by_affinity.get(start..).unwrap_or_default();
        for (packed, vcpu) in range {
            let bit = packed.wrapping_sub(request.first);
            if bit > 15 {
                break;
            }
            if request.targets & 1u16.wrapping_shl(bit) != 0 {
                self.pend_sgi(port, from, *vcpu, request.intid, group);
            }
        }
    }

    /// Makes an SGI pending on one target.
    fn pend_sgi(&self, port: &dyn Port, from: VcpuId, vcpu: VcpuId, intid: u32, group: SgiGroup) {
        let Some(cpu) = self.vcpu(vcpu) else { return };
        let mut state = cpu.state.lock();
        let Some(irq) = state.irq(intid) else { return };
        if (group == SgiGroup::Zero && irq.is_group1()) || self.send_direct(port, vcpu, cpu, &mut state, intid as u8) {
            return;
        }
        let Some(irq) = state.irq_mut(intid) else { return };
        let _ = irq.write(BitReg::SetPending, true);
        let notify = irq.is_enabled();
        state.requeue(intid);
        drop(state);
        if notify {
            self.notify_one(port, Some(from), vcpu, Work::PRIVATE);
        }
    }

    /// The SGIs of a vCPU that are pending, a bit for each.
    #[cfg(test)]
    pub fn pending_sgis(&self, vcpu: VcpuId) -> u16 {
        let Some(cpu) = self.vcpu(vcpu) else { return 0 };
        let state = cpu.state.lock();
        (0..16u32)
            .filter(|intid| state.irq(*intid).is_some_and(super::irq::Irq::is_pending))
            .fold(0, |mask, intid| mask | 1u16.wrapping_shl(intid))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Machine, sgi1r};
    use super::*;
    use crate::ids::Mpidr;
    use std::vec::Vec;

    fn reached(machine: &Machine, intid: u32) -> Vec<usize> {
        (0..machine.vgic.vcpus()).filter(|v| machine.vgic.pending_sgis(VcpuId(*v as u16)) & 1 << intid != 0).collect()
    }

    #[test]
    fn targets_are_told_apart_by_each_level_of_affinity() {
        let cpus = [0x0, 0x1, 0x100, 0x1_0000, 0x1_0000_0000, 0x1_0001_0101];
        let machine = Machine::with_affinities(cpus.iter().map(|a| Mpidr(*a)).collect());
        for (at, affinity) in cpus.iter().enumerate() {
            let intid = at as u32;
            machine.vgic.send_sgi(&machine, VcpuId(0), sgi1r(intid, Mpidr(*affinity)), SgiGroup::One);
            assert_eq!(reached(&machine, intid), [at]);
        }
    }

    #[test]
    fn the_range_selector_names_cpus_beyond_the_first_sixteen() {
        let cpus: Vec<Mpidr> = (0..40).map(Mpidr).collect();
        let machine = Machine::with_affinities(cpus);
        machine.vgic.send_sgi(&machine, VcpuId(0), sgi1r(3, Mpidr(37)), SgiGroup::One);
        assert_eq!(reached(&machine, 3), [37]);
        machine.vgic.send_sgi(&machine, VcpuId(0), 4 << 24 | 1 << 44 | 0xffff, SgiGroup::One);
        assert_eq!(reached(&machine, 4), (16..32).collect::<Vec<_>>());
    }

    #[test]
    fn irm_targets_all_vcpus_but_the_sender() {
        let machine = Machine::new(4);
        machine.vgic.send_sgi(&machine, VcpuId(2), 1 << 40 | 7 << 24, SgiGroup::One);
        assert_eq!(reached(&machine, 7), [0, 1, 3]);
    }

    #[test]
    fn an_sgi_to_an_affinity_without_a_vcpu_is_ignored() {
        let machine = Machine::new(4);
        machine.vgic.send_sgi(&machine, VcpuId(0), sgi1r(5, Mpidr(0x200)), SgiGroup::One);
        machine.vgic.send_sgi(&machine, VcpuId(0), 5 << 24 | 0xfff0, SgiGroup::One);
        assert!(reached(&machine, 5).is_empty());
    }

    #[test]
    fn a_group_0_request_does_not_reach_a_group_1_interrupt() {
        let machine = Machine::new(2);
        machine.vgic.send_sgi(&machine, VcpuId(0), sgi1r(1, Mpidr(1)), SgiGroup::Zero);
        assert!(reached(&machine, 1).is_empty());
        machine.set_group(VcpuId(1), 1, false);
        machine.vgic.send_sgi(&machine, VcpuId(0), sgi1r(1, Mpidr(1)), SgiGroup::Zero);
        assert_eq!(reached(&machine, 1), [1]);
    }

    #[test]
    fn the_sender_is_not_kicked_for_its_own_sgi() {
        let machine = Machine::new(2);
        machine.vgic.send_sgi(&machine, VcpuId(0), 2 << 24 | 0b11, SgiGroup::One);
        assert_eq!(machine.kicked(), [VcpuId(1)]);
        assert!(machine.vgic.has_pending(VcpuId(0), Machine::OPEN));
    }
}
