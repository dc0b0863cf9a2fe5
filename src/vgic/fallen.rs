//! Level-sensitive physical interrupts whose lines fall before the guest acknowledges them.
//!
//! A level-sensitive interrupt is pending while its line is high (IHI 0069, 4.1.2). EL2 acknowledges the physical interrupt and
//! makes the virtual one pending, which says nothing about the line from then on. So the line is looked at again where the
//! guest can tell: before the interrupt is listed or read, when it is enabled or its group is, and when it comes back from a
//! list register. If the line has fallen, the virtual interrupt is no longer pending, and the physical one is deactivated,
//! so that it becomes pending again when the line rises.

use super::dist::intids;
use super::irq::Irq;
use super::port::Port;
use super::private::Private;
use super::state::Vgic;
use crate::ids::{Intid, VcpuId};
use crate::util::bits::set_bits;

impl Private {
    /// Makes those PPIs of `vcpu`, which runs on this CPU, not pending whose lines have fallen. Returns them, a bit for each:
    /// the caller has the physical ones deactivated, without a lock held.
    #[must_use]
    pub(super) fn take_fallen(&mut self, port: &dyn Port, vcpu: VcpuId) -> u32 {
        let mut fallen = 0u32;
        if self.held() == 0 {
            return fallen;
        }
        for ppi in set_bits(self.following_lines()) {
            if !port.ppi_line(vcpu, Intid(ppi)) && self.irq_mut(ppi).is_some_and(Irq::clear_pending) {
                fallen |= 1u32.wrapping_shl(ppi);
                self.requeue(ppi);
            }
        }
        fallen
    }
}

impl Vgic {
    /// Makes those PPIs of `vcpu`, which runs on this CPU, not pending whose lines have fallen.
    pub(super) fn drop_fallen_ppis(&self, port: &dyn Port, vcpu: VcpuId) {
        let Some(cpu) = self.vcpu(vcpu) else { return };
        let fallen = cpu.state.lock().take_fallen(port, vcpu);
        set_bits(fallen).for_each(|ppi| port.ppi_deactivate(vcpu, Intid(ppi)));
    }

    /// Makes those SPIs not pending whose lines have fallen, among those from `first` on that `which` has a bit for.
    pub(super) fn drop_fallen_spis(&self, port: &dyn Port, first: u32, which: u32) {
        let follows = |intid: &Intid| self.dist.lock().irq(intid.0).is_some_and(Irq::follows_line);
        for intid in intids(first, which).filter(follows) {
            if port.spi_is_pending(intid) {
                continue;
            }
            let mut dist = self.dist.lock();
            let fallen = dist.irq_mut(intid.0).is_some_and(|irq| irq.follows_line() && irq.clear_pending());
            // No vCPU has to know: there is less to do.
            let _home = dist.place(intid.0);
            drop(dist);
            if fallen {
                port.spi_deactivate(intid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Asked, BOOT, Machine};
    use crate::ids::Intid;

    const RTC: u32 = 34;
    /// Offsets of GICD_ICENABLER, GICD_ISENABLER, GICD_ISPENDR and GICD_ICPENDR for SPIs 32 to 63.
    const DISABLE: u64 = 0x184;
    const ENABLE: u64 = 0x104;
    const SET_PENDING: u64 = 0x204;
    const CLEAR_PENDING: u64 = 0x284;

    /// A machine whose domain owns SPI 34, which is enabled and signals by level.
    fn machine() -> Machine {
        let mut machine = Machine::new(1);
        machine.owned = std::vec![RTC];
        machine.enable_spi(RTC, 0xa0, 0);
        machine
    }

    fn rise(machine: &Machine) {
        machine.low.borrow_mut().clear();
        assert!(machine.vgic.inject_hw_spi(machine, Intid(RTC)));
    }

    fn fall(machine: &Machine, intid: u32) {
        machine.low.borrow_mut().push(intid);
    }

    #[test]
    fn a_timer_interrupt_whose_line_falls_before_it_is_enabled_is_not_listed() {
        let machine = Machine::new(1);
        machine.redist_write(BOOT, 0x1_0180, 1 << 27);
        assert!(machine.vgic.inject_hw_ppi(&machine, BOOT, Intid(27)));
        assert_eq!(machine.redist_read(BOOT, 0x1_0200), 1 << 27);
        fall(&machine, 27);
        machine.redist_write(BOOT, 0x1_0100, 1 << 27);
        assert!(machine.enter(BOOT).is_empty());
        assert_eq!(machine.asked(), [Asked::PpiDeactivate(0, 27)]);
        assert_eq!(machine.vgic.held_ppis(BOOT), 0);
    }

    #[test]
    fn a_timer_interrupt_whose_line_has_fallen_does_not_read_as_pending() {
        let machine = Machine::new(1);
        machine.redist_write(BOOT, 0x1_0180, 1 << 27);
        assert!(machine.vgic.inject_hw_ppi(&machine, BOOT, Intid(27)));
        fall(&machine, 27);
        assert_eq!(machine.redist_read(BOOT, 0x1_0200), 0);
        assert_eq!(machine.asked(), [Asked::PpiDeactivate(0, 27)]);
    }

    #[test]
    fn an_active_timer_interrupt_reads_as_pending_while_its_line_is_high() {
        let machine = Machine::new(1);
        assert!(machine.vgic.inject_hw_ppi(&machine, BOOT, Intid(27)));
        machine.enter(BOOT);
        machine.acknowledge(BOOT, 27);
        machine.exit(BOOT);
        assert_eq!(machine.redist_read(BOOT, 0x1_0200), 1 << 27);
        fall(&machine, 27);
        assert_eq!(machine.redist_read(BOOT, 0x1_0200), 0);
        assert_eq!(machine.redist_read(BOOT, 0x1_0300), 1 << 27);
    }

    #[test]
    fn an_spi_whose_line_falls_before_it_is_enabled_is_not_listed() {
        let machine = machine();
        machine.dist_write(DISABLE, 1 << 2);
        rise(&machine);
        fall(&machine, RTC);
        machine.forget();
        machine.dist_write(ENABLE, 1 << 2);
        assert!(machine.enter(BOOT).is_empty());
        assert!(machine.asked().contains(&Asked::Deactivate(RTC)));
        rise(&machine);
        machine.exit(BOOT);
        assert_eq!(machine.enter(BOOT), [(RTC, 1, 0xa0)]);
    }

    #[test]
    fn an_spi_whose_line_falls_before_its_group_is_enabled_is_not_listed() {
        let machine = machine();
        machine.dist_write(0, 1);
        rise(&machine);
        fall(&machine, RTC);
        machine.dist_write(0, 3);
        assert!(machine.enter(BOOT).is_empty());
    }

    #[test]
    fn an_spi_whose_line_falls_while_it_is_listed_is_not_listed_again() {
        let machine = machine();
        rise(&machine);
        assert_eq!(machine.enter(BOOT), [(RTC, 1, 0xa0)]);
        fall(&machine, RTC);
        machine.exit(BOOT);
        assert_eq!(machine.asked(), [Asked::Deactivate(RTC)]);
        assert!(machine.enter(BOOT).is_empty());
    }

    #[test]
    fn an_edge_that_the_guest_has_not_acknowledged_does_not_depend_on_the_line() {
        let machine = machine();
        machine.make_edge(RTC);
        rise(&machine);
        fall(&machine, RTC);
        assert_eq!(machine.enter(BOOT), [(RTC, 1, 0xa0)]);
        machine.exit(BOOT);
        assert_eq!(machine.enter(BOOT), [(RTC, 1, 0xa0)]);
    }

    #[test]
    fn an_spi_that_a_write_has_made_pending_stays_pending_when_its_line_falls() {
        let machine = machine();
        rise(&machine);
        machine.dist_write(SET_PENDING, 1 << 2);
        fall(&machine, RTC);
        assert_eq!(machine.enter(BOOT), [(RTC, 1, 0xa0)]);
        machine.exit(BOOT);
        assert_eq!(machine.enter(BOOT), [(RTC, 1, 0xa0)]);
        // The acknowledge ends what the write has begun.
        machine.acknowledge(BOOT, RTC);
        machine.end(BOOT, RTC);
        machine.exit(BOOT);
        rise(&machine);
        fall(&machine, RTC);
        assert_eq!(machine.dist_read(SET_PENDING), 0);
        assert!(machine.enter(BOOT).is_empty());
    }

    #[test]
    fn a_write_that_clears_what_a_write_made_pending_has_the_line_count_again() {
        let machine = machine();
        machine.dist_write(SET_PENDING, 1 << 2);
        machine.dist_write(CLEAR_PENDING, 1 << 2);
        rise(&machine);
        fall(&machine, RTC);
        assert_eq!(machine.dist_read(SET_PENDING), 0);
    }

    #[test]
    fn an_spi_that_el2_has_not_acknowledged_reads_as_pending_if_the_physical_one_is() {
        let machine = machine();
        machine.dist_write(DISABLE, 1 << 2);
        assert_eq!(machine.dist_read(SET_PENDING), 1 << 2);
        fall(&machine, RTC);
        assert_eq!(machine.dist_read(SET_PENDING), 0);
    }
}
