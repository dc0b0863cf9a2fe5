//! Empties the list registers after an exit.
//!
//! IHI 0069, 12.4 (ICH_HCR_EL2.EOIcount). An interrupt whose list register is still pending is pending in software
//! again; one whose list register is active stays active; if it is neither, the guest has deactivated the interrupt,
//! and the hardware the physical one. So a level is sampled again at each exit, and the end of an interrupt whose line
//! was high when it was listed causes an exit.
//!
//! The guest can also end active interrupts that are in no list register. With EOImode 0, the CPU interface counts
//! these ends; as they come in the order of priorities, the count identifies the interrupts. With EOImode 1, the guest
//! writes the INTID to ICC_DIR_EL1, which traps as long as there are such interrupts.
//!
//! An LPI has no active state (IHI 0069, 4.1.2), so a list register with an active LPI is free.

use super::flush_lrs::{Best, INTID_MASK};
use super::irq::Irq;
use super::lr::{self, LrImage};
use super::port::Port;
use super::private::{Fate, Private};
use super::regs::{SPI_END, SPI_FIRST, private};
use super::spi::Dist;
use super::state::Vgic;
use super::vcpu::Work;
use super::vcpu_set::VcpuSet;
use crate::ids::{Intid, Lpi, VcpuId};
use crate::util::bits::set_bits;
use arrayvec::ArrayVec;
use core::sync::atomic::Ordering;

impl Vgic {
    /// Moves the interrupts in the list registers of a vCPU back into software, right after it has left its guest.
    #[inline]
    pub fn sync(&self, port: &dyn Port, vcpu: VcpuId, image: &mut LrImage) {
        if image.used != 0 {
            self.sync_lrs(port, vcpu, image);
        }
    }

    #[cold]
    fn sync_lrs(&self, port: &dyn Port, vcpu: VcpuId, image: &mut LrImage) {
        let (values, ends) = image.take();
        let Some(cpu) = self.vcpus.get(vcpu.index()) else { return };
        let is_spi = |value: &u64| (SPI_FIRST..SPI_END).contains(&lr::intid(*value));
        let mut dist = (ends != 0 || values.iter().any(is_spi)).then(|| self.dist.lock());
        let mut state = cpu.state.lock();

        let mut to_deactivate: ArrayVec<u32, 64> = ArrayVec::new();
        let mut waiting: ArrayVec<u32, { lr::MAX_LIST_REGISTERS }> = ArrayVec::new();
        let mut moved: ArrayVec<(VcpuId, u32), { lr::MAX_LIST_REGISTERS }> = ArrayVec::new();
        let mut others = VcpuSet::new();
        for value in values {
            let intid = lr::intid(*value);
            if let Some(index) = intid.checked_sub(Lpi::FIRST) {
                let fate = state.unlist_lpi(index);
                if value & lr::PENDING == 0 {
                    continue;
                }
                match fate {
                    Fate::Keep => {
                        let _ = cpu.lpis.insert(index);
                        cpu.add_work(Work::LPI);
                    }
                    Fate::Drop => {}
                    Fate::Move(to) => {
                        let _ = moved.try_push((to, index));
                    }
                }
                continue;
            }
            let deactivate = if intid < SPI_FIRST {
                let mut deactivate = state.irq_mut(intid).is_some_and(|irq| irq.unlist(*value));
                if intid < 16 && self.sgis_are_never_active() {
                    deactivate |= state.irq_mut(intid).is_some_and(Irq::clear_active);
                }
                state.requeue(intid);
                deactivate
            } else if let Some(dist) = dist.as_deref_mut() {
                let deactivate = dist.irq_mut(intid).is_some_and(|irq| irq.unlist(*value));
                if dist.irq(intid).is_some_and(Irq::follows_line) {
                    let _ = waiting.try_push(intid);
                }
                match dist.place(intid) {
                    Some(home) if home == vcpu => cpu.add_work(Work::SPI),
                    Some(home) => others.insert(home),
                    None => {}
                }
                deactivate
            } else {
                false
            };
            if deactivate {
                let _ = to_deactivate.try_push(intid);
            }
        }
        if let Some(dist) = dist.as_deref_mut() {
            for _ in 0..ends {
                let Some(intid) = best_active(&state, dist, vcpu, values) else { break };
                if end(&mut state, dist, intid) {
                    let _ = to_deactivate.try_push(intid);
                }
                match dist.place(intid) {
                    Some(home) if home == vcpu => cpu.add_work(Work::SPI),
                    Some(home) => others.insert(home),
                    None => {}
                }
            }
        }
        if state.queued != 0 {
            cpu.add_work(Work::PRIVATE);
        }
        let ppis_wait = state.held() != 0 && state.following_lines() != 0;
        for (to, index) in &moved {
            if let Some(to) = self.vcpu(*to) {
                let _ = to.lpis.insert(*index);
            }
        }
        cpu.epoch.fetch_add(1, Ordering::AcqRel);
        drop(state);
        drop(dist);

        // Iterated by reference: by value, the arrays would be copied.
        for intid in &to_deactivate {
            self.deactivate_physical(port, vcpu, *intid);
        }
        self.notify(port, Some(vcpu), &others, Work::SPI);
        for (to, _) in &moved {
            self.notify_one(port, Some(vcpu), *to, Work::LPI);
        }
        if ppis_wait {
            self.drop_fallen_ppis(port, vcpu);
        }
        for intid in &waiting {
            self.drop_fallen_spis(port, *intid, 1);
        }
    }

    /// Deactivates the physical interrupt of `intid`, which the guest will not deactivate any more.
    pub(super) fn deactivate_physical(&self, port: &dyn Port, vcpu: VcpuId, intid: u32) {
        if intid < SPI_FIRST {
            port.ppi_deactivate(vcpu, Intid(intid));
        } else {
            port.spi_deactivate(Intid(intid));
        }
    }

    /// Handles a trapped write to ICC_DIR_EL1. It is ignored unless `intid` is an active interrupt of this vCPU; so are
    /// LPIs.
    pub fn deactivate(&self, port: &dyn Port, vcpu: VcpuId, intid: Intid) {
        let Some(cpu) = self.vcpu(vcpu) else { return };
        let intid = intid.0;
        let mut dist = self.dist.lock();
        let mut state = cpu.state.lock();
        if intid >= SPI_FIRST && dist.home(intid) != Some(vcpu) {
            return;
        }
        let deactivate = end(&mut state, &mut dist, intid);
        let next = dist.place(intid);
        drop(state);
        drop(dist);
        if deactivate {
            self.deactivate_physical(port, vcpu, intid);
        }
        if let Some(next) = next {
            self.notify_one(port, Some(vcpu), next, Work::SPI);
        }
    }
}

/// The active interrupt of the highest priority that is in none of the list registers `listed`.
fn best_active(state: &Private, dist: &Dist, vcpu: VcpuId, listed: &[u64]) -> Option<u32> {
    let mut best = Best::new(1);
    let mut offer = |intid: u32, irq: &Irq| {
        if irq.is_active() && !listed.iter().any(|value| lr::intid(*value) == intid) {
            best.offer(irq.priority, intid);
        }
    };
    for intid in set_bits(state.queued) {
        if let Some(irq) = state.irq(intid) {
            offer(intid, irq);
        }
    }
    dist.for_each_queued(vcpu, offer);
    best.keys.first().map(|key| key & INTID_MASK)
}

/// Deactivates an interrupt that is in no list register. Returns whether the physical one has to be deactivated.
fn end(state: &mut Private, dist: &mut Dist, intid: u32) -> bool {
    if let Some(intid) = private(intid) {
        let deactivate = state.irq_mut(intid).is_some_and(Irq::clear_active);
        state.requeue(intid);
        deactivate
    } else {
        dist.irq_mut(intid).is_some_and(Irq::clear_active)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Asked, BOOT, Machine, sgi1r};
    use super::super::{SgiGroup, Signal};
    use super::*;
    use crate::ids::{Mpidr, VIntid};
    use std::vec::Vec;

    const ONE: VcpuId = VcpuId(1);

    fn numbers(listed: &[(u32, u64, u8)]) -> Vec<u32> {
        listed.iter().map(|(intid, ..)| *intid).collect()
    }

    fn send(machine: &Machine, intid: u32, to: VcpuId) {
        machine.vgic.send_sgi(machine, BOOT, sgi1r(intid, Mpidr(to.0.into())), SgiGroup::One);
    }

    fn set_private_priority(machine: &Machine, vcpu: VcpuId, intid: u32, priority: u8) {
        let at = 0x1_0400 + u64::from(intid);
        machine.vgic.redist_write(machine, vcpu, vcpu, at, 1, priority.into());
    }

    #[test]
    fn counted_ends_deactivate_unlisted_interrupts_by_priority() {
        let machine = Machine::new(2);
        for (intid, priority) in [(1, 0xa0), (2, 0x90), (3, 0x80), (4, 0x70), (5, 0x60), (6, 0x50)] {
            set_private_priority(&machine, ONE, intid, priority);
        }
        for intid in 1..=6 {
            send(&machine, intid, ONE);
            machine.enter(ONE);
            machine.acknowledge(ONE, intid);
            machine.exit(ONE);
        }
        assert_eq!(numbers(&machine.enter(ONE)), [6, 5, 4, 3]);
        // The guest ends all but the first; the end of 2 matches no list register.
        [6, 5, 4, 3].iter().for_each(|i| machine.end(ONE, *i));
        machine.set_hcr(ONE, machine.hcr(ONE) | 1 << 27);
        machine.exit(ONE);
        assert_eq!(machine.enter(ONE), [(1, 2, 0xa0)], "2 was ended by the count, 1 was not");
    }

    #[test]
    fn counted_ends_never_deactivate_listed_interrupts() {
        let machine = Machine::new(2);
        for intid in 1..=5 {
            set_private_priority(&machine, ONE, intid, 0xf8 - 8 * intid as u8);
            send(&machine, intid, ONE);
            machine.enter(ONE);
            machine.acknowledge(ONE, intid);
            machine.exit(ONE);
        }
        assert_eq!(numbers(&machine.enter(ONE)), [5, 4, 3, 2]);
        machine.set_hcr(ONE, machine.hcr(ONE) | 3 << 27);
        machine.exit(ONE);
        assert_eq!(numbers(&machine.enter(ONE)), [5, 4, 3, 2]);
    }

    #[test]
    fn a_trapped_deactivation_deactivates_the_physical_interrupt_too() {
        let mut machine = Machine::new(2);
        machine.owned = std::vec![32];
        machine.enable_spi(32, 0xa0, 1);
        assert!(machine.vgic.inject_hw_spi(&machine, Intid(32)));
        machine.enter(ONE);
        machine.acknowledge(ONE, 32);
        machine.exit(ONE);
        machine.vgic.deactivate(&machine, BOOT, Intid(32));
        assert!(machine.view(32).active, "only the vCPU where it is active can deactivate it");
        machine.vgic.deactivate(&machine, ONE, Intid(32));
        assert_eq!(machine.asked(), [Asked::Deactivate(32)]);
        assert!(machine.enter(ONE).is_empty());
        machine.vgic.deactivate(&machine, ONE, Intid(8192));
        machine.vgic.deactivate(&machine, ONE, Intid(1023));
    }

    #[test]
    fn a_level_that_stays_high_is_delivered_again_after_each_end() {
        let machine = Machine::new(1);
        machine.enable_spi(33, 0xa0, 0);
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(true));
        for _ in 0..3 {
            assert_eq!(machine.enter(BOOT), [(33, 1, 0xa0)]);
            assert_ne!(machine.images[0].borrow().lr[0] & lr::EOI, 0);
            machine.acknowledge(BOOT, 33);
            machine.end(BOOT, 33);
            machine.exit(BOOT);
        }
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(false));
        assert!(machine.enter(BOOT).is_empty());
    }

    #[test]
    fn a_timer_interrupt_whose_line_falls_before_it_is_acknowledged_is_retracted() {
        let machine = Machine::new(1);
        assert!(machine.vgic.inject_hw_ppi(&machine, BOOT, Intid(27)));
        machine.enter(BOOT);
        assert_eq!(machine.images[0].borrow().lr[0] & (lr::HW | 0x1fff << 32), lr::HW | 27 << 32);
        machine.exit(BOOT);
        assert_eq!(machine.vgic.held_ppis(BOOT), 1 << 27);
        machine.enter(BOOT);
        machine.low.borrow_mut().push(27);
        machine.exit(BOOT);
        assert_eq!(machine.asked(), [Asked::PpiDeactivate(0, 27)]);
        assert!(machine.enter(BOOT).is_empty());
        assert_eq!(machine.vgic.held_ppis(BOOT), 0);
    }

    #[test]
    fn a_timer_interrupt_that_was_acknowledged_is_not_retracted() {
        let machine = Machine::new(1);
        assert!(machine.vgic.inject_hw_ppi(&machine, BOOT, Intid(27)));
        machine.enter(BOOT);
        machine.acknowledge(BOOT, 27);
        machine.low.borrow_mut().push(27);
        machine.exit(BOOT);
        assert!(machine.asked().is_empty());
        assert_eq!(machine.enter(BOOT), [(27, 2, 0)]);
    }

    #[test]
    fn an_lpi_leaves_its_list_register_when_it_is_acknowledged() {
        let machine = Machine::new(1);
        machine.enable_lpis(BOOT, &[(8200, 0xa1)]);
        assert!(machine.vgic.inject_lpi(&machine, BOOT, VIntid(8200)));
        assert_eq!(machine.enter(BOOT), [(8200, 1, 0xa0)]);
        assert_eq!(machine.images[0].borrow().lr[0], 0x50a0_0000_0000_2008, "group 1, no link, no maintenance");
        machine.acknowledge(BOOT, 8200);
        assert!(machine.vgic.inject_lpi(&machine, BOOT, VIntid(8200)));
        machine.exit(BOOT);
        assert_eq!(machine.enter(BOOT), [(8200, 1, 0xa0)], "again, and only once");
    }

    #[test]
    fn an_spi_that_was_rerouted_while_listed_is_delivered_to_its_new_vcpu() {
        let machine = Machine::new(2);
        machine.enable_spi(50, 0xa0, 1);
        machine.make_edge(50);
        machine.vgic.inject_spi(&machine, Intid(50), Signal::Edge);
        assert_eq!(numbers(&machine.enter(ONE)), [50]);
        machine.forget();
        // The recall makes vCPU 1 sync, which moves the interrupt to the queue of vCPU 0.
        machine.vgic.dist_write(&machine, ONE, 0x6000 + 50 * 8, 8, 0);
        machine.exit(ONE);
        assert!(machine.kicked().contains(&BOOT));
        assert!(machine.enter(ONE).is_empty());
        assert_eq!(numbers(&machine.enter(BOOT)), [50]);
    }

    #[test]
    fn a_rerouted_spi_stays_on_the_vcpu_where_it_is_active() {
        let machine = Machine::new(2);
        machine.enable_spi(50, 0xa0, 1);
        machine.make_edge(50);
        machine.vgic.inject_spi(&machine, Intid(50), Signal::Edge);
        machine.enter(ONE);
        machine.acknowledge(ONE, 50);
        machine.exit(ONE);
        machine.vgic.dist_write(&machine, BOOT, 0x6000 + 50 * 8, 8, 0);
        assert_eq!(machine.enter(ONE), [(50, 2, 0xa0)]);
        machine.vgic.inject_spi(&machine, Intid(50), Signal::Edge);
        machine.exit(ONE);
        assert_eq!(machine.enter(ONE), [(50, 3, 0xa0)], "active and pending on the vCPU where it is active");
        machine.end(ONE, 50);
        machine.exit(ONE);
        assert!(machine.enter(ONE).is_empty());
        assert_eq!(machine.enter(BOOT), [(50, 1, 0xa0)]);
    }
}
