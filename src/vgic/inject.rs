//! Interrupts on their way in: emulated devices, hardware-linked SPIs and PPIs; and a vCPU's way out.

use super::irq::{Irq, Trigger};
use super::port::Port;
use super::regs::{SPI_END, SPI_FIRST};
use super::state::Vgic;
use super::vcpu::Work;
use super::vcpu_set::VcpuSet;
use crate::ids::{Intid, VcpuId};
use crate::util::bits::set_bits;

/// What an emulated device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// One edge.
    Edge,
    /// Its line is high, or low.
    Level(bool),
}

/// An interrupt's state, for people to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub struct IrqView {
    pub enabled: bool,
    pub group1: bool,
    pub pending: bool,
    pub active: bool,
    pub trigger: Trigger,
    pub priority: u8,
    /// The physical interrupt is active on its behalf.
    pub held: bool,
    /// In a list register right now.
    pub listed: bool,
    /// Whom it is routed to; `None` when nobody has that affinity.
    pub target: Option<VcpuId>,
}

fn apply(irq: &mut Irq, signal: Signal) {
    match signal {
        Signal::Edge => irq.pulse(),
        Signal::Level(high) => irq.set_line(high),
    }
}

/// Whether the vCPU has to hear of a change. An interrupt that is listed or active may need its list register rewritten,
/// so that the new state is seen at its end.
fn is_news(before: &Irq, irq: &Irq) -> bool {
    irq != before && (irq.is_deliverable() || (irq.is_pending() && (irq.is_listed() || irq.is_active())))
}

impl Vgic {
    /// Changes an SPI and has the vCPU that it is for look at it. False when there is no such SPI.
    fn change_spi(&self, port: &dyn Port, intid: Intid, change: impl FnOnce(&mut Irq)) -> bool {
        let mut dist = self.dist.lock();
        let Some(irq) = dist.irq_mut(intid.0) else { return false };
        let before = *irq;
        change(irq);
        let news = is_news(&before, irq);
        let home = if irq.is_listed() { dist.home(intid.0) } else { dist.place(intid.0) };
        drop(dist);
        if let (true, Some(home)) = (news, home) {
            self.notify_one(port, None, home, Work::SPI);
        }
        true
    }

    /// The same for a vCPU's own interrupt.
    fn change_ppi(&self, port: &dyn Port, vcpu: VcpuId, intid: Intid, change: impl FnOnce(&mut Irq)) -> bool {
        let Some(cpu) = self.vcpu(vcpu) else { return false };
        let mut state = cpu.state.lock();
        let Some(irq) = state.irq_mut(intid.0) else { return false };
        let before = *irq;
        change(irq);
        let news = is_news(&before, irq);
        state.requeue(intid.0);
        drop(state);
        if news {
            self.notify_one(port, None, vcpu, Work::PRIVATE);
        }
        true
    }

    /// An emulated device signals an SPI. Numbers that are no SPI of this domain are ignored.
    pub fn inject_spi(&self, port: &dyn Port, intid: Intid, signal: Signal) {
        let _ = self.change_spi(port, intid, |irq| apply(irq, signal));
    }

    /// The line of an emulated PPI is high, or low.
    pub fn set_ppi_level(&self, port: &dyn Port, vcpu: VcpuId, intid: Intid, level: bool) {
        if (16..SPI_FIRST).contains(&intid.0) {
            let _ = self.change_ppi(port, vcpu, intid, |irq| irq.set_line(level));
        }
    }

    /// A physical SPI was taken, its priority is dropped, and it stays active until the guest deactivates the virtual one
    /// of the same number. False when there is none: the caller deactivates it.
    #[must_use]
    pub fn inject_hw_spi(&self, port: &dyn Port, intid: Intid) -> bool {
        self.change_spi(port, intid, Irq::hold)
    }

    /// The same for a PPI of the CPU that `vcpu` runs on.
    #[must_use]
    pub fn inject_hw_ppi(&self, port: &dyn Port, vcpu: VcpuId, intid: Intid) -> bool {
        (16..SPI_FIRST).contains(&intid.0) && self.change_ppi(port, vcpu, intid, Irq::hold)
    }

    /// The line of a hardware-linked PPI has fallen before the guest acknowledged it: it is not pending any more, and
    /// the physical one is deactivated so that it can rise again. Does nothing when the guest has acknowledged it.
    pub fn retract_hw_ppi(&self, port: &dyn Port, vcpu: VcpuId, intid: Intid) {
        let Some(cpu) = self.vcpu(vcpu) else { return };
        let mut state = cpu.state.lock();
        let orphan = state.irq_mut(intid.0).is_some_and(|irq| irq.is_held_pending() && irq.clear_pending());
        state.requeue(intid.0);
        drop(state);
        if orphan {
            port.ppi_deactivate(vcpu, intid);
        }
    }

    /// The PPIs whose physical twin is active on behalf of this vCPU, a bit for each: what has to be active on the CPU
    /// that it moves to.
    #[must_use]
    pub fn held_ppis(&self, vcpu: VcpuId) -> u32 {
        self.vcpu(vcpu).map_or(0, |cpu| cpu.state.lock().held())
    }

    /// The vCPU was switched off, or is about to be switched on: nothing is pending or active in it any more.
    ///
    /// It has been synced. The redistributor's registers stay, GICR_CTLR.EnableLPIs and its tables among them: an OS that
    /// takes a CPU off and on again finds them as it left them. Pending LPIs stay too.
    pub fn reset_vcpu(&self, port: &dyn Port, vcpu: VcpuId) {
        let Some(cpu) = self.vcpu(vcpu) else { return };
        let mut orphans = 0u32;
        let mut spi_orphans = [0u32; (SPI_END as usize).div_ceil(32)];
        let mut others = VcpuSet::new();
        {
            let mut dist = self.dist.lock();
            let mut state = cpu.state.lock();
            state.asleep = true;
            for intid in 0..SPI_FIRST {
                if state.irq_mut(intid).is_some_and(Irq::quiesce) {
                    orphans |= 1u32.wrapping_shl(intid);
                }
                state.requeue(intid);
            }
            for intid in SPI_FIRST..SPI_END {
                if dist.home(intid) != Some(vcpu) {
                    continue;
                }
                let Some(irq) = dist.irq_mut(intid) else { break };
                let orphan = irq.is_active() && irq.clear_active();
                if orphan && let Some(word) = spi_orphans.get_mut((intid / 32) as usize) {
                    *word |= 1u32.wrapping_shl(intid);
                }
                if let Some(home) = dist.place(intid) {
                    others.insert(home);
                }
            }
        }
        for intid in set_bits(orphans) {
            port.ppi_deactivate(vcpu, Intid(intid));
        }
        for (word, at) in spi_orphans.iter().zip(0u32..) {
            for bit in set_bits(*word) {
                port.spi_deactivate(Intid(at.wrapping_mul(32) | bit));
            }
        }
        self.notify(port, Some(vcpu), &others, Work::SPI);
    }

    /// The domain is gone, and its vCPUs have been synced: no physical interrupt stays active on its behalf.
    pub fn release(&self, port: &dyn Port) {
        for vcpu in 0..self.vcpus.len() {
            self.reset_vcpu(port, VcpuId(vcpu as u16));
        }
        for intid in SPI_FIRST..SPI_END {
            let orphan = self.dist.lock().irq_mut(intid).is_some_and(Irq::quiesce);
            if orphan {
                port.spi_deactivate(Intid(intid));
            }
            let _ = self.dist.lock().place(intid);
        }
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
    fn an_emulated_interrupt_kicks_the_vcpu_it_is_routed_to_and_no_other() {
        let machine = Machine::new(3);
        machine.enable_spi(33, 0xa0, 2);
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(true));
        assert_eq!(machine.kicked(), [VcpuId(2)]);
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(true));
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(false));
        assert!(machine.kicked().is_empty(), "nothing new");
    }

    #[test]
    fn a_disabled_interrupt_kicks_nobody_until_it_is_enabled() {
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
    fn numbers_that_do_not_exist_are_refused_or_ignored() {
        let machine = Machine::new(1);
        for intid in [0, 31, 96, 1019, 1020, 1023, 8192, u32::MAX] {
            machine.vgic.inject_spi(&machine, Intid(intid), Signal::Edge);
            assert!(!machine.vgic.inject_hw_spi(&machine, Intid(intid)));
        }
        assert!(!machine.vgic.inject_hw_ppi(&machine, BOOT, Intid(5)), "an SGI has no physical twin");
        assert!(!machine.vgic.inject_hw_ppi(&machine, VcpuId(9), Intid(27)));
        machine.vgic.set_ppi_level(&machine, BOOT, Intid(5), true);
        assert!(machine.enter(BOOT).is_empty());
    }

    #[test]
    fn a_line_that_rises_while_its_interrupt_is_being_handled_elsewhere_is_seen_at_its_end() {
        let machine = Machine::new(2);
        machine.enable_spi(33, 0xa0, 1);
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(true));
        machine.enter(ONE);
        machine.acknowledge(ONE, 33);
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(false));
        let _ = machine.exit(ONE);
        machine.enter(ONE);
        machine.forget();
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(true));
        assert_eq!(machine.kicked(), [ONE], "its list register asks for no maintenance yet");
    }

    #[test]
    fn an_interrupt_routed_to_nobody_waits_for_a_route() {
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
    fn switching_a_vcpu_off_ends_what_it_was_at_and_keeps_what_it_was_told() {
        let machine = Machine::new(2);
        machine.enable_lpis(ONE, &[(8192, 0xa1)]);
        machine.enable_spi(40, 0xa0, 1);
        assert!(machine.vgic.inject_hw_spi(&machine, Intid(40)));
        assert!(machine.vgic.inject_hw_ppi(&machine, ONE, Intid(27)));
        machine.enter(ONE);
        machine.acknowledge(ONE, 40);
        let _ = machine.exit(ONE);
        machine.forget();
        machine.vgic.reset_vcpu(&machine, ONE);
        assert_eq!(machine.asked(), [Asked::PpiDeactivate(1, 27), Asked::Deactivate(40)]);
        assert!(machine.enter(ONE).is_empty());
        assert!(machine.vgic.lpis_on(ONE));
        assert_eq!(machine.redist_read(ONE, 0x1_0100), 0xffff_ffff, "still enabled");
        assert_eq!(machine.redist_read(ONE, 0x14), 6, "asleep until the guest wakes it");
    }

    #[test]
    fn an_spi_that_a_vcpu_was_at_when_it_went_off_goes_where_it_is_routed_now() {
        let machine = Machine::new(2);
        machine.enable_spi(40, 0xa0, 1);
        machine.make_edge(40);
        machine.vgic.inject_spi(&machine, Intid(40), Signal::Edge);
        machine.enter(ONE);
        machine.acknowledge(ONE, 40);
        let _ = machine.exit(ONE);
        machine.vgic.dist_write(&machine, BOOT, 0x6000 + 40 * 8, 8, 0);
        machine.vgic.inject_spi(&machine, Intid(40), Signal::Edge);
        machine.forget();
        machine.vgic.reset_vcpu(&machine, ONE);
        assert_eq!(machine.kicked(), [BOOT]);
        assert_eq!(machine.enter(BOOT), [(40, 1, 0xa0)]);
    }

    #[test]
    fn a_domain_that_goes_leaves_no_physical_interrupt_active() {
        let machine = Machine::new(2);
        machine.enable_spi(40, 0xa0, 1);
        assert!(machine.vgic.inject_hw_spi(&machine, Intid(40)));
        assert!(machine.vgic.inject_hw_spi(&machine, Intid(41)), "disabled, and held all the same");
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
