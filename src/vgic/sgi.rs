//! ICC_SGI1R_EL1 and its sisters: who is meant.
//!
//! IHI 0069, 12.2.19: Aff3.Aff2.Aff1 name a cluster, RS one of sixteen ranges of Aff0 in it, TargetList the CPUs of that range;
//! or, with IRM, everybody else. All four levels of affinity count.

use super::irq::Irq;
use super::port::Port;
use super::regs::BitReg;
use super::state::Vgic;
use super::vcpu::Work;
use crate::ids::VcpuId;

/// Which register was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SgiGroup {
    /// ICC_SGI0R_EL1: reaches interrupts of group 0 only.
    Zero,
    /// ICC_SGI1R_EL1 or ICC_ASGI1R_EL1: reaches both.
    One,
}

/// The fields of ICC_SGI<n>R_EL1.
struct Request {
    intid: u32,
    everybody_else: bool,
    /// Aff3.Aff2.Aff1, and the range's first Aff0, packed as in GICR_TYPER.
    first: u32,
    targets: u16,
}

impl Request {
    fn decode(value: u64) -> Request {
        let field = |shift: u32, bits: u32| value.wrapping_shr(shift) as u32 & 1u32.wrapping_shl(bits).wrapping_sub(1);
        let (aff3, aff2, aff1, range) = (field(48, 8), field(32, 8), field(16, 8), field(44, 4));
        Request {
            intid: field(24, 4),
            everybody_else: field(40, 1) != 0,
            first: aff3 << 24 | aff2 << 16 | aff1 << 8 | range << 4,
            targets: value as u16,
        }
    }
}

impl Vgic {
    /// A guest sends an SGI: `value` is what it wrote.
    pub fn send_sgi(&self, port: &dyn Port, from: VcpuId, value: u64, group: SgiGroup) {
        let request = Request::decode(value);
        if request.everybody_else {
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

    fn pend_sgi(&self, port: &dyn Port, from: VcpuId, vcpu: VcpuId, intid: u32, group: SgiGroup) {
        let Some(cpu) = self.vcpu(vcpu) else { return };
        let mut state = cpu.state.lock();
        let Some(irq) = state.irq_mut(intid) else { return };
        if group == SgiGroup::Zero && irq.is_group1() {
            return;
        }
        let _ = irq.write(BitReg::SetPending, true);
        let news = irq.is_enabled();
        state.requeue(intid);
        drop(state);
        if news {
            self.notify_one(port, Some(from), vcpu, Work::PRIVATE);
        }
    }

    /// Which SGIs of a vCPU are pending, a bit for each.
    #[must_use]
    pub fn pending_sgis(&self, vcpu: VcpuId) -> u16 {
        let Some(cpu) = self.vcpu(vcpu) else { return 0 };
        let state = cpu.state.lock();
        (0..16u32)
            .filter(|intid| state.irq(*intid).is_some_and(Irq::is_pending))
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
    fn each_level_of_affinity_tells_targets_apart() {
        let cpus = [0x0, 0x1, 0x100, 0x1_0000, 0x1_0000_0000, 0x1_0001_0101];
        let machine = Machine::with_affinities(cpus.iter().map(|a| Mpidr(*a)).collect());
        for (at, affinity) in cpus.iter().enumerate() {
            let intid = at as u32;
            machine.vgic.send_sgi(&machine, VcpuId(0), sgi1r(intid, Mpidr(*affinity)), SgiGroup::One);
            assert_eq!(reached(&machine, intid), [at]);
        }
    }

    #[test]
    fn the_range_selector_reaches_beyond_sixteen() {
        let cpus: Vec<Mpidr> = (0..40).map(Mpidr).collect();
        let machine = Machine::with_affinities(cpus);
        machine.vgic.send_sgi(&machine, VcpuId(0), sgi1r(3, Mpidr(37)), SgiGroup::One);
        assert_eq!(reached(&machine, 3), [37]);
        machine.vgic.send_sgi(&machine, VcpuId(0), 4 << 24 | 1 << 44 | 0xffff, SgiGroup::One);
        assert_eq!(reached(&machine, 4), (16..32).collect::<Vec<_>>());
    }

    #[test]
    fn everybody_else_leaves_the_sender_out() {
        let machine = Machine::new(4);
        machine.vgic.send_sgi(&machine, VcpuId(2), 1 << 40 | 7 << 24, SgiGroup::One);
        assert_eq!(reached(&machine, 7), [0, 1, 3]);
    }

    #[test]
    fn nobody_of_that_affinity_is_nobody() {
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
    fn only_other_vcpus_are_kicked() {
        let machine = Machine::new(2);
        machine.vgic.send_sgi(&machine, VcpuId(0), 2 << 24 | 0b11, SgiGroup::One);
        assert_eq!(machine.kicked(), [VcpuId(1)]);
        assert!(machine.vgic.has_pending(VcpuId(0), Machine::OPEN));
    }
}
