//! Filling the list registers before an entry, emptying them after an exit.
//!
//! IHI 0069, 6.2 (list registers) and 12.4 (ICH_HCR_EL2). When all fits, all is listed. When not, in this order:
//!
//! 1. the best of what is pending, so that nothing of a higher priority ever waits for software;
//! 2. what is active, the highest priority first, since that is what the guest ends next;
//! 3. more of what is pending.
//!
//! Pending ones that did not fit are announced by NPIE: as soon as the guest has acknowledged all that were listed, it comes back
//! for more. (UIE would do too, but raises the interrupt while a listed one still waits.) Active ones that did not fit are
//! ended by the guest all the same: ICH_HCR_EL2.EOIcount counts, LRENPIE brings the vCPU out, and since ends come in the order of
//! priorities, the count names the interrupts. ICC_DIR_EL1 names its interrupt itself and is trapped (TDIR) for as long.
//!
//! An LPI has no active state (IHI 0069, 4.1.2), so a list register that comes back active is simply free.

use super::irq::Irq;
use super::lpi::Fate;
use super::lr::{self, LrImage};
use super::redist::Private;
use super::regs::{SPI_END, SPI_FIRST};
use super::vcpu_set::VcpuSet;
use super::{Dist, Port, Vcpu, Vgic, Work, bits, dist};
use crate::ids::{Intid, Lpi, VcpuId};
use arrayvec::ArrayVec;
use core::sync::atomic::Ordering;

/// What the caller learns from a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[must_use]
pub struct Synced {
    /// Hardware-linked PPIs that are pending and not acknowledged, a bit for each. Where the line of one is low by now,
    /// call [`Vgic::retract_hw_ppi`], or the guest gets it without a cause.
    pub hw_ppis_pending: u32,
}

/// The best few of many, by priority and then by number.
struct Best {
    /// Priority in [31:24], INTID below.
    keys: ArrayVec<u32, { lr::MAX_LIST_REGISTERS }>,
    limit: usize,
    total: usize,
}

const INTID_MASK: u32 = 0x00ff_ffff;

impl Best {
    fn new(limit: usize) -> Best {
        Best { keys: ArrayVec::new(), limit, total: 0 }
    }

    fn offer(&mut self, priority: u8, intid: u32) {
        self.total = self.total.saturating_add(1);
        let key = u32::from(priority) << 24 | intid & INTID_MASK;
        let at = self.keys.iter().position(|k| *k > key).unwrap_or(self.keys.len());
        if self.keys.len() >= self.limit {
            if at >= self.keys.len() {
                return;
            }
            let _ = self.keys.pop();
        }
        let _ = self.keys.try_insert(at, key);
    }
}

impl Vgic {
    /// Whether the distributor forwards this group.
    fn group_on(ctlr: u32, group1: bool) -> bool {
        ctlr & if group1 { dist::ENABLE_GROUP1 } else { dist::ENABLE_GROUP0 } != 0
    }

    /// Fills the list registers of a vCPU that is about to enter its guest.
    ///
    /// Each flush is followed by a [`sync`](Vgic::sync) of the same image, also when the entry does not happen. A second
    /// flush before that changes nothing.
    #[inline]
    pub fn flush(&self, vcpu: VcpuId, image: &mut LrImage) {
        let Some(cpu) = self.vcpus.get(vcpu.index()) else { return };
        if cpu.work.load(Ordering::SeqCst) == 0 && image.stale == 0 {
            image.write = if image.used == 0 { 0 } else { image.write };
            return;
        }
        self.refill(cpu, vcpu, image);
    }

    #[cold]
    fn refill(&self, cpu: &Vcpu, vcpu: VcpuId, image: &mut LrImage) {
        if image.used != 0 {
            return;
        }
        image.clear();
        // Taken before anything is looked at: what comes later sets it again, and kicks.
        let work = Work::from_bits_truncate(cpu.work.swap(0, Ordering::SeqCst));
        if !work.is_empty() {
            self.fill(cpu, vcpu, work, image);
        }
        image.seal();
    }

    fn fill(&self, cpu: &Vcpu, vcpu: VcpuId, work: Work, image: &mut LrImage) {
        let mut dist = work.contains(Work::SPI).then(|| self.dist.lock());
        let mut state = cpu.state.lock();
        let ctlr = self.ctlr.load(Ordering::SeqCst);
        let mut waiting = Best::new(self.list_registers);
        let mut active = Best::new(self.list_registers);

        let mut offer = |irq: &Irq, intid: u32| {
            if irq.is_active() {
                active.offer(irq.priority, intid);
            } else if irq.is_deliverable() && Self::group_on(ctlr, irq.is_group1()) {
                waiting.offer(irq.priority, intid);
            }
        };
        for intid in bits(u64::from(state.queued)) {
            if let Some(irq) = state.irq(intid) {
                offer(irq, intid);
            }
        }
        if let Some(dist) = &dist {
            dist.for_each_queued(vcpu, |intid, irq| offer(irq, intid));
        }
        if work.contains(Work::LPI) && state.lpis_on && Self::group_on(ctlr, true) {
            cpu.lpis.for_each(|index| {
                if let Some(priority) = self.lpis.deliverable(index) {
                    waiting.offer(priority & self.priority_mask, index.wrapping_add(Lpi::FIRST));
                }
                true
            });
        }

        // The order of the file's preface.
        let room = self.list_registers;
        let first = waiting.keys.len().min(1);
        let actives = active.keys.len().min(room.saturating_sub(first));
        let left = room.saturating_sub(first.saturating_add(actives));
        let pendings = waiting.keys.len().min(first.saturating_add(left));
        for key in waiting.keys.iter().take(pendings).chain(active.keys.iter().take(actives)) {
            if let Some(value) = self.list(cpu, ctlr, &mut state, dist.as_deref_mut(), *key) {
                image.push(value);
            }
        }
        if waiting.total > pendings {
            image.hcr |= lr::HCR_NPIE;
            cpu.add_work(work);
        }
        if active.total > actives {
            image.hcr |= lr::HCR_LRENPIE | lr::HCR_TDIR;
            cpu.add_work(work);
        }
        if image.used != 0 {
            // Under the locks: whoever finds an interrupt listed also finds the registers loaded.
            cpu.epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Moves one interrupt into a list register.
    fn list(&self, cpu: &Vcpu, ctlr: u32, state: &mut Private, dist: Option<&mut Dist>, key: u32) -> Option<u64> {
        let intid = key & INTID_MASK;
        if let Some(index) = intid.checked_sub(Lpi::FIRST) {
            if !cpu.lpis.remove(index) {
                return None;
            }
            state.list_lpi(index);
            return Some(lr::encode(intid, (key >> 24) as u8, true) | lr::PENDING);
        }
        let irq = if intid < SPI_FIRST { state.irq_mut(intid)? } else { dist?.irq_mut(intid)? };
        let deliver = Self::group_on(ctlr, irq.is_group1());
        Some(irq.list(intid, deliver))
    }

    /// Takes back what the list registers of a vCPU hold, right after it has left its guest.
    #[inline]
    pub fn sync(&self, port: &dyn Port, vcpu: VcpuId, image: &mut LrImage) -> Synced {
        if image.used == 0 {
            return Synced::default();
        }
        self.fold(port, vcpu, image)
    }

    #[cold]
    fn fold(&self, port: &dyn Port, vcpu: VcpuId, image: &mut LrImage) -> Synced {
        let (values, used, ends) = image.take();
        let Some(cpu) = self.vcpus.get(vcpu.index()) else { return Synced::default() };
        let values = values.get(..usize::from(used)).unwrap_or_default();
        let is_spi = |value: &u64| (SPI_FIRST..SPI_END).contains(&lr::intid(*value));
        let mut dist = (ends != 0 || values.iter().any(is_spi)).then(|| self.dist.lock());
        let mut state = cpu.state.lock();

        let mut orphans: ArrayVec<u32, 64> = ArrayVec::new();
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
            let orphan = if intid < SPI_FIRST {
                let orphan = state.irq_mut(intid).is_some_and(|irq| irq.fold(*value));
                state.requeue(intid);
                orphan
            } else if let Some(dist) = dist.as_deref_mut() {
                let orphan = dist.irq_mut(intid).is_some_and(|irq| irq.fold(*value));
                match dist.place(intid) {
                    Some(home) if home == vcpu => cpu.add_work(Work::SPI),
                    Some(home) => others.insert(home),
                    None => {}
                }
                orphan
            } else {
                false
            };
            if orphan {
                let _ = orphans.try_push(intid);
            }
        }
        if let Some(dist) = dist.as_deref_mut() {
            for _ in 0..ends {
                let Some(intid) = best_active(&state, dist, vcpu, values) else { break };
                if end(&mut state, dist, intid) {
                    let _ = orphans.try_push(intid);
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
        let hw_ppis_pending = state.held_pending();
        for (to, index) in &moved {
            if let Some(to) = self.vcpu(*to) {
                let _ = to.lpis.insert(*index);
            }
        }
        cpu.epoch.fetch_add(1, Ordering::AcqRel);
        drop(state);
        drop(dist);

        for intid in orphans {
            self.deactivate_physical(port, vcpu, intid);
        }
        self.notify(port, Some(vcpu), &others, Work::SPI);
        for (to, _) in moved {
            self.notify_one(port, Some(vcpu), to, Work::LPI);
        }
        Synced { hw_ppis_pending }
    }

    /// The physical interrupt behind `intid` has nobody left who would deactivate it.
    pub(super) fn deactivate_physical(&self, port: &dyn Port, vcpu: VcpuId, intid: u32) {
        if intid < SPI_FIRST {
            port.ppi_deactivate(vcpu, Intid(intid));
        } else {
            port.spi_deactivate(Intid(intid));
        }
    }

    /// A write to ICC_DIR_EL1 that trapped. Anything but an active interrupt of this vCPU is ignored, LPIs too.
    pub fn deactivate(&self, port: &dyn Port, vcpu: VcpuId, intid: Intid) {
        let Some(cpu) = self.vcpu(vcpu) else { return };
        let intid = intid.0;
        let mut dist = self.dist.lock();
        let mut state = cpu.state.lock();
        if intid >= SPI_FIRST && dist.home(intid) != Some(vcpu) {
            return;
        }
        let orphan = end(&mut state, &mut dist, intid);
        if state.queued != 0 {
            cpu.add_work(Work::PRIVATE);
        }
        let next = dist.place(intid);
        drop(state);
        drop(dist);
        if orphan {
            self.deactivate_physical(port, vcpu, intid);
        }
        if let Some(next) = next {
            self.notify_one(port, Some(vcpu), next, Work::SPI);
        }
    }

    /// Whether an interrupt of this vCPU would be signalled to it now, for a vCPU that is about to sleep or sleeps.
    ///
    /// `vmcr` is its ICH_VMCR_EL2: priority mask and group enables. Running priorities are not looked at: a vCPU that waits
    /// inside an interrupt handler may be woken by one that it cannot take yet, which the architecture allows.
    #[must_use]
    pub fn has_pending(&self, vcpu: VcpuId, vmcr: u64) -> bool {
        let Some(cpu) = self.vcpu(vcpu) else { return false };
        let work = Work::from_bits_truncate(cpu.work.load(Ordering::SeqCst));
        if work.is_empty() {
            return false;
        }
        let ctlr = self.ctlr.load(Ordering::SeqCst);
        let mask = (vmcr >> 24) as u8;
        let groups = [vmcr & 1 != 0, vmcr & 2 != 0];
        let taken = |priority: u8, group1: bool| {
            let [group0_on, group1_on] = groups;
            let interface_on = if group1 { group1_on } else { group0_on };
            priority < mask && interface_on && Self::group_on(ctlr, group1)
        };
        let signalled = |irq: &Irq| irq.is_deliverable() && taken(irq.priority, irq.is_group1());

        let dist = work.contains(Work::SPI).then(|| self.dist.lock());
        let state = cpu.state.lock();
        if bits(u64::from(state.queued)).any(|i| state.irq(i).is_some_and(signalled)) {
            return true;
        }
        let mut found = false;
        if let Some(dist) = &dist {
            dist.for_each_queued(vcpu, |_, irq| found |= signalled(irq));
        }
        if !found && state.lpis_on {
            cpu.lpis.for_each(|index| {
                let priority = self.lpis.deliverable(index);
                found |= priority.is_some_and(|p| taken(p & self.priority_mask, true));
                !found
            });
        }
        found
    }
}

/// The active interrupt of the highest priority that was in no list register.
fn best_active(state: &Private, dist: &Dist, vcpu: VcpuId, listed: &[u64]) -> Option<u32> {
    let mut best = Best::new(1);
    let mut offer = |intid: u32, irq: &Irq| {
        if irq.is_active() && !listed.iter().any(|value| lr::intid(*value) == intid) {
            best.offer(irq.priority, intid);
        }
    };
    for intid in bits(u64::from(state.queued)) {
        if let Some(irq) = state.irq(intid) {
            offer(intid, irq);
        }
    }
    dist.for_each_queued(vcpu, offer);
    best.keys.first().map(|key| key & INTID_MASK)
}

/// Deactivates an interrupt that is in no list register; true when the physical one has to follow.
fn end(state: &mut Private, dist: &mut Dist, intid: u32) -> bool {
    if intid < SPI_FIRST {
        let orphan = state.irq_mut(intid).is_some_and(Irq::clear_active);
        state.requeue(intid);
        orphan
    } else {
        dist.irq_mut(intid).is_some_and(Irq::clear_active)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Asked, BOOT, Machine, sgi1r};
    use super::super::{SgiGroup, Signal, Trigger};
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
    fn nothing_to_do_writes_no_list_register() {
        let machine = Machine::new(1);
        machine.enter(BOOT);
        let _ = machine.exit(BOOT);
        assert!(machine.enter(BOOT).is_empty());
        assert_eq!(machine.images[0].borrow().write, 0);
        assert_eq!(machine.hcr(BOOT), lr::HCR_EN);
    }

    #[test]
    fn an_sgi_is_delivered_once_and_is_gone_after_its_end() {
        let machine = Machine::new(2);
        send(&machine, 5, ONE);
        assert_eq!(machine.enter(ONE), [(5, 1, 0)]);
        machine.acknowledge(ONE, 5);
        let _ = machine.exit(ONE);
        assert_eq!(machine.enter(ONE), [(5, 2, 0)], "active until its end");
        machine.end(ONE, 5);
        let _ = machine.exit(ONE);
        assert!(machine.enter(ONE).is_empty());
    }

    #[test]
    fn more_than_fit_come_in_the_order_of_their_priorities() {
        let machine = Machine::new(2);
        for (intid, priority) in [(1, 0x80), (2, 0x40), (3, 0xc0), (4, 0x20), (5, 0x60), (6, 0x00)] {
            set_private_priority(&machine, ONE, intid, priority);
            send(&machine, intid, ONE);
        }
        assert_eq!(numbers(&machine.enter(ONE)), [6, 4, 2, 5]);
        assert_eq!(machine.hcr(ONE), lr::HCR_EN | lr::HCR_NPIE, "comes back when none is pending");
        for intid in [6, 4, 2, 5] {
            machine.acknowledge(ONE, intid);
            machine.end(ONE, intid);
        }
        let _ = machine.exit(ONE);
        assert_eq!(numbers(&machine.enter(ONE)), [1, 3]);
        assert_eq!(machine.hcr(ONE), lr::HCR_EN);
    }

    #[test]
    fn priorities_have_five_bits() {
        let machine = Machine::new(1);
        set_private_priority(&machine, BOOT, 1, 0xff);
        assert_eq!(machine.redist_read(BOOT, 0x1_0400), 0xf800);
    }

    #[test]
    fn a_pending_one_is_listed_even_when_all_registers_are_full_of_active_ones() {
        let machine = Machine::new(2);
        for (intid, priority) in [(1, 0xa0), (2, 0x90), (3, 0x80), (4, 0x70)] {
            set_private_priority(&machine, ONE, intid, priority);
            send(&machine, intid, ONE);
        }
        machine.enter(ONE);
        [1, 2, 3, 4].iter().for_each(|i| machine.acknowledge(ONE, *i));
        let _ = machine.exit(ONE);
        set_private_priority(&machine, ONE, 5, 0x10);
        send(&machine, 5, ONE);
        let listed = machine.enter(ONE);
        assert_eq!(numbers(&listed), [5, 4, 3, 2], "the lowest active one waits outside");
        assert_eq!(machine.hcr(ONE), lr::HCR_EN | lr::HCR_LRENPIE | lr::HCR_TDIR);
    }

    #[test]
    fn ends_of_unlisted_active_ones_are_counted_down_by_priority() {
        let machine = Machine::new(2);
        for (intid, priority) in [(1, 0xa0), (2, 0x90), (3, 0x80), (4, 0x70), (5, 0x60), (6, 0x50)] {
            set_private_priority(&machine, ONE, intid, priority);
        }
        for intid in 1..=6 {
            send(&machine, intid, ONE);
            machine.enter(ONE);
            machine.acknowledge(ONE, intid);
            let _ = machine.exit(ONE);
        }
        assert_eq!(numbers(&machine.enter(ONE)), [6, 5, 4, 3]);
        // The guest ends them all but the first; two of the ends match no list register.
        [6, 5, 4, 3].iter().for_each(|i| machine.end(ONE, *i));
        machine.set_hcr(ONE, machine.hcr(ONE) | 1 << 27);
        let _ = machine.exit(ONE);
        assert_eq!(machine.enter(ONE), [(1, 2, 0xa0)], "2 was ended by the count, 1 was not");
    }

    #[test]
    fn a_count_never_ends_what_was_listed() {
        let machine = Machine::new(2);
        for intid in 1..=5 {
            set_private_priority(&machine, ONE, intid, 0xf8 - 8 * intid as u8);
            send(&machine, intid, ONE);
            machine.enter(ONE);
            machine.acknowledge(ONE, intid);
            let _ = machine.exit(ONE);
        }
        assert_eq!(numbers(&machine.enter(ONE)), [5, 4, 3, 2]);
        machine.set_hcr(ONE, machine.hcr(ONE) | 3 << 27);
        let _ = machine.exit(ONE);
        assert_eq!(numbers(&machine.enter(ONE)), [5, 4, 3, 2]);
    }

    #[test]
    fn a_trapped_deactivation_ends_an_interrupt_and_its_physical_twin() {
        let mut machine = Machine::new(2);
        machine.owned = std::vec![40];
        machine.enable_spi(40, 0xa0, 1);
        assert!(machine.vgic.inject_hw_spi(&machine, Intid(40)));
        machine.enter(ONE);
        machine.acknowledge(ONE, 40);
        let _ = machine.exit(ONE);
        machine.vgic.deactivate(&machine, BOOT, Intid(40));
        assert!(machine.view(40).active, "only where it is active");
        machine.vgic.deactivate(&machine, ONE, Intid(40));
        assert_eq!(machine.asked(), [Asked::Deactivate(40)]);
        assert!(machine.enter(ONE).is_empty());
        machine.vgic.deactivate(&machine, ONE, Intid(8192));
        machine.vgic.deactivate(&machine, ONE, Intid(1023));
    }

    #[test]
    fn group_enables_of_the_distributor_hold_interrupts_back() {
        let machine = Machine::new(2);
        machine.dist_write(0, 1);
        send(&machine, 5, ONE);
        assert!(machine.enter(ONE).is_empty());
        assert!(!machine.vgic.has_pending(ONE, Machine::OPEN));
        let _ = machine.exit(ONE);
        machine.dist_write(0, 2);
        assert_eq!(numbers(&machine.enter(ONE)), [5]);
    }

    #[test]
    fn a_group_0_interrupt_is_listed_as_such() {
        let machine = Machine::new(1);
        machine.set_group(BOOT, 9, false);
        machine.redist_write(BOOT, 0x1_0200, 1 << 9);
        machine.enter(BOOT);
        assert_eq!(machine.images[0].borrow().lr[0], lr::PENDING | 9);
    }

    #[test]
    fn a_sleeper_is_woken_only_by_what_its_interface_lets_through() {
        let machine = Machine::new(1);
        set_private_priority(&machine, BOOT, 9, 0xa0);
        machine.redist_write(BOOT, 0x1_0200, 1 << 9);
        assert!(machine.vgic.has_pending(BOOT, Machine::OPEN));
        assert!(machine.vgic.has_pending(BOOT, 0xa800_0002));
        assert!(!machine.vgic.has_pending(BOOT, 0xa000_0002), "masked by priority");
        assert!(!machine.vgic.has_pending(BOOT, 0xff00_0001), "its group is off");
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
            let _ = machine.exit(BOOT);
        }
        machine.vgic.inject_spi(&machine, Intid(33), Signal::Level(false));
        assert!(machine.enter(BOOT).is_empty());
    }

    #[test]
    fn a_timer_that_fell_silent_is_reported_and_taken_back() {
        let machine = Machine::new(1);
        assert!(machine.vgic.inject_hw_ppi(&machine, BOOT, Intid(27)));
        machine.enter(BOOT);
        assert_eq!(machine.images[0].borrow().lr[0] & (lr::HW | 0x1fff << 32), lr::HW | 27 << 32);
        assert_eq!(machine.exit(BOOT).hw_ppis_pending, 1 << 27);
        assert_eq!(machine.vgic.held_ppis(BOOT), 1 << 27);
        machine.vgic.retract_hw_ppi(&machine, BOOT, Intid(27));
        assert_eq!(machine.asked(), [Asked::PpiDeactivate(0, 27)]);
        assert!(machine.enter(BOOT).is_empty());
        assert_eq!(machine.vgic.held_ppis(BOOT), 0);
    }

    #[test]
    fn a_timer_that_was_acknowledged_is_not_taken_back() {
        let machine = Machine::new(1);
        assert!(machine.vgic.inject_hw_ppi(&machine, BOOT, Intid(27)));
        machine.enter(BOOT);
        machine.acknowledge(BOOT, 27);
        assert_eq!(machine.exit(BOOT).hw_ppis_pending, 0);
        machine.vgic.retract_hw_ppi(&machine, BOOT, Intid(27));
        assert!(machine.asked().is_empty());
        assert_eq!(machine.enter(BOOT), [(27, 2, 0)]);
    }

    #[test]
    fn an_lpi_leaves_its_list_register_when_it_is_acknowledged() {
        let machine = Machine::new(1);
        machine.enable_lpis(BOOT, &[(8200, 0xa1)]);
        assert!(machine.vgic.inject_lpi(&machine, BOOT, VIntid(8200)));
        assert_eq!(machine.enter(BOOT), [(8200, 1, 0xa0)]);
        machine.acknowledge(BOOT, 8200);
        assert!(machine.vgic.inject_lpi(&machine, BOOT, VIntid(8200)));
        let _ = machine.exit(BOOT);
        assert_eq!(machine.enter(BOOT), [(8200, 1, 0xa0)], "again, and only once");
    }

    #[test]
    fn all_kinds_compete_by_priority() {
        let machine = Machine::new(1);
        machine.enable_lpis(BOOT, &[(8192, 0x81), (8193, 0x41), (16383, 0xc1)]);
        machine.enable_spi(32, 0x60, 0);
        machine.enable_spi(95, 0x20, 0);
        machine.make_edge(32);
        machine.make_edge(95);
        set_private_priority(&machine, BOOT, 30, 0xe0);
        for vintid in [8192, 8193, 16383] {
            assert!(machine.vgic.inject_lpi(&machine, BOOT, VIntid(vintid)));
        }
        machine.vgic.inject_spi(&machine, Intid(32), Signal::Edge);
        machine.vgic.inject_spi(&machine, Intid(95), Signal::Edge);
        machine.vgic.set_ppi_level(&machine, BOOT, Intid(30), true);
        let mut order = Vec::new();
        loop {
            let listed = numbers(&machine.enter(BOOT));
            let Some(first) = listed.first().copied() else { break };
            order.push(first);
            machine.acknowledge(BOOT, first);
            machine.end(BOOT, first);
            machine.vgic.set_ppi_level(&machine, BOOT, Intid(30), first != 30 && !order.contains(&30));
            let _ = machine.exit(BOOT);
        }
        assert_eq!(order, [95, 8193, 32, 8192, 16383, 30]);
    }

    #[test]
    fn a_second_flush_without_a_sync_changes_nothing() {
        let machine = Machine::new(2);
        send(&machine, 5, ONE);
        let first = machine.enter(ONE);
        send(&machine, 6, VcpuId(1));
        machine.kicked();
        machine.obey_kicks.set(false);
        assert_eq!(numbers(&first), [5]);
        let _ = machine.exit(ONE);
        let listed = machine.enter(ONE);
        assert_eq!(machine.enter(ONE), listed);
    }

    #[test]
    fn an_spi_that_was_rerouted_while_listed_goes_to_its_new_vcpu() {
        let machine = Machine::new(2);
        machine.enable_spi(50, 0xa0, 1);
        machine.make_edge(50);
        machine.vgic.inject_spi(&machine, Intid(50), Signal::Edge);
        assert_eq!(numbers(&machine.enter(ONE)), [50]);
        machine.forget();
        // The recall makes vCPU 1 sync, which hands the interrupt on to vCPU 0.
        machine.vgic.dist_write(&machine, ONE, 0x6000 + 50 * 8, 8, 0);
        let _ = machine.exit(ONE);
        assert!(machine.kicked().contains(&BOOT));
        assert!(machine.enter(ONE).is_empty());
        assert_eq!(numbers(&machine.enter(BOOT)), [50]);
    }

    #[test]
    fn an_active_spi_stays_where_it_was_taken_when_it_is_rerouted() {
        let machine = Machine::new(2);
        machine.enable_spi(50, 0xa0, 1);
        machine.make_edge(50);
        machine.vgic.inject_spi(&machine, Intid(50), Signal::Edge);
        machine.enter(ONE);
        machine.acknowledge(ONE, 50);
        let _ = machine.exit(ONE);
        machine.vgic.dist_write(&machine, BOOT, 0x6000 + 50 * 8, 8, 0);
        assert_eq!(machine.enter(ONE), [(50, 2, 0xa0)]);
        machine.vgic.inject_spi(&machine, Intid(50), Signal::Edge);
        let _ = machine.exit(ONE);
        assert_eq!(machine.enter(ONE), [(50, 3, 0xa0)], "active and pending, where it is active");
        machine.end(ONE, 50);
        let _ = machine.exit(ONE);
        assert!(machine.enter(ONE).is_empty());
        assert_eq!(machine.enter(BOOT), [(50, 1, 0xa0)]);
    }

    #[test]
    fn no_interrupt_is_lost_between_injecting_cpus_and_a_running_one() {
        use std::sync::atomic::AtomicU32;
        struct Quiet;
        impl Port for Quiet {
            fn kick(&self, _: VcpuId) {}
            fn read_guest(&self, _: crate::ids::Ipa, _: &mut [u8]) -> bool {
                false
            }
            fn owns_spi(&self, _: Intid) -> bool {
                false
            }
            fn spi_set_enabled(&self, _: Intid, _: bool) {}
            fn spi_set_trigger(&self, _: Intid, _: Trigger) {}
            fn spi_route(&self, _: Intid, _: VcpuId) {}
            fn spi_set_pending(&self, _: Intid, _: bool) {}
            fn spi_deactivate(&self, _: Intid) {}
            fn ppi_deactivate(&self, _: VcpuId, _: Intid) {}
            fn group1_enabled(&self, _: bool) {}
            fn lpis_enabled(&self, _: VcpuId, _: bool, _: u64, _: u64) {}
        }
        let machine = Machine::new(2);
        machine.enable_spi(40, 0x80, 0);
        machine.make_edge(40);
        machine.enable_lpis(BOOT, &[(8192, 0xa1), (8193, 0xa1)]);
        let mut image = machine.images[0].borrow().clone();
        let vgic = &machine.vgic;
        // Each sender waits until its interrupt was taken before it sends the next: a lost one is a hang.
        let taken: [AtomicU32; 4] = Default::default();
        let sent = 2_000u32;
        std::thread::scope(|s| {
            for (at, taken) in taken.iter().enumerate() {
                s.spawn(move || {
                    for round in 0..sent {
                        match at {
                            0 => vgic.inject_spi(&Quiet, Intid(40), Signal::Edge),
                            1 => vgic.send_sgi(&Quiet, ONE, sgi1r(3, Mpidr(0)), SgiGroup::One),
                            _ => assert!(vgic.inject_lpi(&Quiet, BOOT, VIntid(8190 + at as u32))),
                        }
                        while taken.load(Ordering::Acquire) == round {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
            while taken.iter().any(|t| t.load(Ordering::Acquire) < sent) {
                assert!(std::time::Instant::now() < deadline, "an interrupt was lost");
                vgic.flush(BOOT, &mut image);
                let used = usize::from(image.used);
                let mut seen = Vec::new();
                for value in image.lr[..used].iter_mut().filter(|v| **v & lr::PENDING != 0) {
                    *value &= !lr::STATE;
                    seen.push(lr::intid(*value));
                }
                let _ = vgic.sync(&Quiet, BOOT, &mut image);
                for intid in seen {
                    let at = match intid {
                        40 => 0,
                        3 => 1,
                        lpi => lpi - 8190,
                    };
                    taken[at as usize].fetch_add(1, Ordering::Release);
                }
                std::thread::yield_now();
            }
        });
    }
}
