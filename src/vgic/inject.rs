//! Injection of SPIs and PPIs, from emulated devices and from hardware; and the reset of a vCPU.

use super::irq::{Irq, Trigger};
use super::port::Port;
use super::regs::{SPI_END, SPI_FIRST};
use super::state::Vgic;
use super::vcpu::Work;
use super::vcpu_set::VcpuSet;
use crate::ids::{Intid, VcpuId};
use crate::util::bits::set_bits;

/// How an emulated device signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// One edge.
    Edge,
    /// Its line is high (`true`) or low.
    Level(bool),
}

/// The state of an interrupt, for debug output and for the timer code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub struct IrqView {
    pub enabled: bool,
    pub group1: bool,
    pub pending: bool,
    pub active: bool,
    pub trigger: Trigger,
    pub priority: u8,
    /// The physical interrupt is active on behalf of this one.
    pub held: bool,
    /// It is in a list register.
    pub listed: bool,
    /// The vCPU that it is routed to; `None` if no vCPU has that affinity.
    pub target: Option<VcpuId>,
}

fn apply(irq: &mut Irq, signal: Signal) {
    match signal {
        Signal::Edge => irq.pulse(),
        Signal::Level(high) => irq.set_line(high),
    }
}

/// Whether a change has to be made known to the vCPU. The list register of an interrupt that is listed or active may
/// have to be rewritten, so that its end causes an exit.
fn needs_flush(before: &Irq, irq: &Irq) -> bool {
    irq != before && (irq.is_deliverable() || (irq.is_pending() && (irq.is_listed() || irq.is_active())))
}

impl Vgic {
    /// Changes an SPI and notifies the vCPU in whose queue it is. Returns `false` if there is no such SPI.
    fn change_spi(&self, port: &dyn Port, intid: Intid, change: impl FnOnce(&mut Irq)) -> bool {
        let mut dist = self.dist.lock();
        let Some(irq) = dist.irq_mut(intid.0) else { return false };
        let before = *irq;
        change(irq);
        let flush = needs_flush(&before, irq);
        let home = if irq.is_listed() { dist.home(intid.0) } else { dist.place(intid.0) };
        drop(dist);
        if let (true, Some(home)) = (flush, home) {
            self.notify_one(port, None, home, Work::SPI);
        }
        true
    }

    /// Changes an SGI or PPI of a vCPU and notifies the vCPU. Returns `false` if there is no such interrupt.
    fn change_ppi(&self, port: &dyn Port, vcpu: VcpuId, intid: Intid, change: impl FnOnce(&mut Irq)) -> bool {
        let Some(cpu) = self.vcpu(vcpu) else { return false };
        let mut state = cpu.state.lock();
        let Some(irq) = state.irq_mut(intid.0) else { return false };
        let before = *irq;
        change(irq);
        let flush = needs_flush(&before, irq);
        state.requeue(intid.0);
        drop(state);
        if flush {
            self.notify_one(port, None, vcpu, Work::PRIVATE);
        }
        true
    }

    /// Signals an SPI of an emulated device. Numbers that are no SPI of this domain are ignored.
    pub fn inject_spi(&self, port: &dyn Port, intid: Intid, signal: Signal) {
        let _ = self.change_spi(port, intid, |irq| apply(irq, signal));
    }

    /// Sets the level of the line of an emulated PPI. Other interrupts are ignored.
    pub fn set_ppi_level(&self, port: &dyn Port, vcpu: VcpuId, intid: Intid, level: bool) {
        if (16..SPI_FIRST).contains(&intid.0) {
            let _ = self.change_ppi(port, vcpu, intid, |irq| irq.set_line(level));
        }
    }

    /// Makes an SPI pending whose physical SPI EL2 has acknowledged. The physical SPI, whose priority has been dropped,
    /// stays active until the guest deactivates the virtual one. Returns `false` if the domain has no such SPI; the
    /// caller then deactivates the physical one.
    #[must_use]
    pub fn inject_hw_spi(&self, port: &dyn Port, intid: Intid) -> bool {
        self.change_spi(port, intid, Irq::hold)
    }

    /// [`inject_hw_spi`](Self::inject_hw_spi) for a PPI of the CPU that runs `vcpu`.
    #[must_use]
    pub fn inject_hw_ppi(&self, port: &dyn Port, vcpu: VcpuId, intid: Intid) -> bool {
        (16..SPI_FIRST).contains(&intid.0) && self.change_ppi(port, vcpu, intid, Irq::hold)
    }

    /// The PPIs whose physical interrupt is active on behalf of this vCPU, a bit for each. They have to be made active
    /// on the CPU that it moves to.
    #[must_use]
    pub fn held_ppis(&self, vcpu: VcpuId) -> u32 {
        self.vcpu(vcpu).map_or(0, |cpu| cpu.state.lock().held())
    }

    /// Clears all pending and active states of a vCPU that was powered off or is about to be powered on.
    ///
    /// It has been synced. The registers of its redistributor stay, with GICR_CTLR.EnableLPIs and the tables, because
    /// an OS that turns a CPU off and on expects them unchanged. Pending LPIs stay, too.
    pub fn reset_vcpu(&self, port: &dyn Port, vcpu: VcpuId) {
        let Some(cpu) = self.vcpu(vcpu) else { return };
        let mut to_deactivate = 0u32;
        let mut spis_to_deactivate = [0u32; (SPI_END as usize).div_ceil(32)];
        let mut others = VcpuSet::new();
        {
            let mut dist = self.dist.lock();
            let mut state = cpu.state.lock();
            state.asleep = true;
            for intid in 0..SPI_FIRST {
                if state.irq_mut(intid).is_some_and(Irq::quiesce) {
                    to_deactivate |= 1u32.wrapping_shl(intid);
                }
                state.requeue(intid);
            }
            for intid in SPI_FIRST..dist.end() {
                if dist.home(intid) != Some(vcpu) {
                    continue;
                }
                let Some(irq) = dist.irq_mut(intid) else { break };
                let deactivate = irq.is_active() && irq.clear_active();
                if deactivate && let Some(word) = spis_to_deactivate.get_mut((intid / 32) as usize) {
                    *word |= 1u32.wrapping_shl(intid);
                }
                if let Some(home) = dist.place(intid) {
                    others.insert(home);
                }
            }
        }
        {
            let _state = cpu.state.lock();
            let pending = self.direct_pending(port, vcpu, cpu);
            self.clear_direct(port, vcpu, cpu, pending);
        }
        for intid in set_bits(to_deactivate) {
            port.ppi_deactivate(vcpu, Intid(intid));
        }
        for (word, at) in spis_to_deactivate.iter().zip(0u32..) {
            for bit in set_bits(*word) {
                port.spi_deactivate(Intid(at.wrapping_mul(32) | bit));
            }
        }
        self.notify(port, Some(vcpu), &others, Work::SPI);
    }

    /// Deactivates all physical interrupts that are active on behalf of a domain that has ended and whose vCPUs have
    /// been synced.
    pub fn release(&self, port: &dyn Port) {
        for vcpu in 0..self.vcpus.len() {
            self.reset_vcpu(port, VcpuId(vcpu as u16));
        }
        self.release_spis(port);
    }

    /// The state of an SGI or PPI of `vcpu`, or of an SPI.
    #[must_use]
    pub fn irq_state(&self, vcpu: VcpuId, intid: Intid) -> Option<IrqView> {
        let view = |irq: &Irq, target| IrqView {
            enabled: irq.is_enabled(),
            group1: irq.is_group1(),
            pending: irq.is_pending(),
            active: irq.is_active(),
            trigger: irq.trigger(),
            priority: irq.priority,
            held: irq.is_held(),
            listed: irq.is_listed(),
            target,
        };
        if intid.0 < SPI_FIRST {
            let state = self.vcpu(vcpu)?.state.lock();
            return state.irq(intid.0).map(|irq| view(irq, Some(vcpu)));
        }
        let dist = self.dist.lock();
        let target = dist.target(intid.0);
        dist.irq(intid.0).map(|irq| view(irq, target))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Asked, BOOT, Machine};
    use super::*;

    const ONE: VcpuId = VcpuId(1);

    #[test]
    fn an_emulated_interrupt_kicks_only_the_vcpu_that_it_is_routed_to() {
        let machine = Machine::new(3);
        machine.enable_spi(33, 0xa0, 2);
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(true));
        assert_eq!(machine.kicked(), [VcpuId(2)]);
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(true));
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(false));
        assert!(machine.kicked().is_empty(), "nothing new");
    }

    #[test]
    fn a_disabled_interrupt_kicks_its_vcpu_only_when_it_is_enabled() {
        let machine = Machine::new(2);
        machine.enable_spi(33, 0xa0, 1);
        machine.dist_write(0x184, 1 << 1);
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(true));
        assert!(machine.kicked().is_empty());
        machine.dist_write(0x104, 1 << 1);
        assert_eq!(machine.kicked(), [ONE]);
        assert_eq!(machine.enter(ONE).len(), 1);
    }

    #[test]
    fn interrupts_that_do_not_exist_are_refused_or_ignored() {
        let machine = Machine::new(1);
        for intid in [0, 31, 96, 1019, 1020, 1023, 8192, u32::MAX] {
            machine.vgic.inject_spi(&machine, Intid(intid), Signal::Edge);
            assert!(!machine.vgic.inject_hw_spi(&machine, Intid(intid)));
        }
        assert!(!machine.vgic.inject_hw_ppi(&machine, BOOT, Intid(5)), "an SGI has no physical interrupt");
        assert!(!machine.vgic.inject_hw_ppi(&machine, VcpuId(9), Intid(27)));
        machine.vgic.set_ppi_level(&machine, BOOT, Intid(5), true);
        assert!(machine.enter(BOOT).is_empty());
    }

    #[test]
    fn a_line_that_rises_while_its_interrupt_is_active_elsewhere_causes_a_kick() {
        let machine = Machine::new(2);
        machine.enable_spi(33, 0xa0, 1);
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(true));
        machine.enter(ONE);
        machine.acknowledge(ONE, 33);
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(false));
        machine.exit(ONE);
        machine.enter(ONE);
        machine.forget();
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(true));
        assert_eq!(machine.kicked(), [ONE], "its list register does not request maintenance");
    }

    #[test]
    fn an_interrupt_routed_to_no_vcpu_is_delivered_when_it_is_rerouted() {
        let machine = Machine::new(2);
        machine.enable_spi(33, 0xa0, 0x500);
        machine.make_edge(33);
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Edge);
        assert!(machine.kicked().is_empty());
        machine.vgic.dist_write(&machine, BOOT, 0x6000 + 33 * 8, 8, 1);
        assert_eq!(machine.kicked(), [ONE]);
        assert_eq!(machine.enter(ONE), [(33, 1, 0xa0)]);
    }

    #[test]
    fn powering_a_vcpu_off_ends_its_interrupts_and_keeps_its_configuration() {
        let machine = Machine::new(2);
        machine.enable_lpis(ONE, &[(8192, 0xa1)]);
        machine.enable_spi(40, 0xa0, 1);
        assert!(machine.vgic.inject_hw_spi(&machine, Intid(40)));
        assert!(machine.vgic.inject_hw_ppi(&machine, ONE, Intid(27)));
        machine.enter(ONE);
        machine.acknowledge(ONE, 40);
        machine.exit(ONE);
        machine.forget();
        machine.vgic.reset_vcpu(&machine, ONE);
        assert_eq!(machine.asked(), [Asked::PpiDeactivate(1, 27), Asked::Deactivate(40)]);
        assert!(machine.enter(ONE).is_empty());
        assert!(machine.vgic.lpis_on(ONE));
        assert_eq!(machine.redist_read(ONE, 0x1_0100), 0xffff_ffff, "still enabled");
        assert_eq!(machine.redist_read(ONE, 0x14), 6, "asleep until the guest wakes it");
    }

    #[test]
    fn an_spi_that_was_active_on_a_vcpu_that_goes_off_is_delivered_where_it_is_routed_now() {
        let machine = Machine::new(2);
        machine.enable_spi(40, 0xa0, 1);
        machine.make_edge(40);
        machine.vgic.inject_spi(&machine, Intid(40), Signal::Edge);
        machine.enter(ONE);
        machine.acknowledge(ONE, 40);
        machine.exit(ONE);
        machine.vgic.dist_write(&machine, BOOT, 0x6000 + 40 * 8, 8, 0);
        machine.vgic.inject_spi(&machine, Intid(40), Signal::Edge);
        machine.forget();
        machine.vgic.reset_vcpu(&machine, ONE);
        assert_eq!(machine.kicked(), [BOOT]);
        assert_eq!(machine.enter(BOOT), [(40, 1, 0xa0)]);
    }

    #[test]
    fn a_domain_that_ends_leaves_no_physical_interrupt_active() {
        let machine = Machine::new(2);
        machine.enable_spi(40, 0xa0, 1);
        assert!(machine.vgic.inject_hw_spi(&machine, Intid(40)));
        assert!(machine.vgic.inject_hw_spi(&machine, Intid(41)), "held although it is disabled");
        assert!(machine.vgic.inject_hw_ppi(&machine, ONE, Intid(27)));
        machine.forget();
        machine.vgic.release(&machine);
        let expected = [Asked::PpiDeactivate(1, 27), Asked::Deactivate(40), Asked::Deactivate(41)];
        assert_eq!(machine.asked(), expected);
        assert!(machine.enter(ONE).is_empty());
    }

    #[test]
    fn a_pending_spi_waits_for_a_vcpu_that_is_off() {
        let machine = Machine::new(2);
        machine.enable_spi(40, 0xa0, 1);
        machine.make_edge(40);
        machine.vgic.inject_spi(&machine, Intid(40), Signal::Edge);
        machine.vgic.reset_vcpu(&machine, ONE);
        assert_eq!(machine.enter(ONE), [(40, 1, 0xa0)]);
    }
}
