//! Fills the list registers before an entry.
//!
//! IHI 0069, 6.2 (list registers) and 12.4 (ICH_HCR_EL2). If all interrupts of a vCPU fit, all are listed. If not, they
//! are listed in this order:
//!
//! 1. the pending interrupt of the highest priority, so that a pending interrupt never waits for software behind one of
//!    a lower priority;
//! 2. active interrupts, the highest priority first, because the guest ends them in this order;
//! 3. more pending interrupts.
//!
//! If pending interrupts did not fit, NPIE is set: once the guest has acknowledged all that are listed, an exit lets
//! the next flush list more. (UIE would raise the maintenance interrupt while a listed one is still pending.) If active
//! interrupts did not fit, LRENPIE and TDIR are set; `sync_lrs` says how their ends are handled.

use super::irq::Irq;
use super::lr::{self, LrImage};
use super::port::Port;
use super::private::Private;
use super::regs::{ENABLE_GROUP0, ENABLE_GROUP1, SPI_FIRST};
use super::spi::Dist;
use super::state::Vgic;
use super::vcpu::{Vcpu, Work};
use crate::ids::{Intid, Lpi, VcpuId};
use crate::util::bits::set_bits;
use arrayvec::ArrayVec;
use core::sync::atomic::Ordering;

/// Selects the best interrupts: those of the highest priorities and, among equals, of the lowest numbers.
pub(super) struct Best {
    /// Priority in [31:24], INTID below.
    pub keys: ArrayVec<u32, { lr::MAX_LIST_REGISTERS }>,
    limit: usize,
    /// How many were offered.
    total: usize,
}

/// The most LPIs that one flush selects from. A guest can make all of its LPIs pending at once in its pending table; then
/// those of the lowest numbers go first.
const MOST_LPIS: u32 = 1024;

/// The INTID in a key of [`Best`].
pub(super) const INTID_MASK: u32 = 0x00ff_ffff;

impl Best {
    pub fn new(limit: usize) -> Best {
        Best { keys: ArrayVec::new(), limit, total: 0 }
    }

    /// Adds an interrupt to those to select from.
    pub fn offer(&mut self, priority: u8, intid: u32) {
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
        ctlr & if group1 { ENABLE_GROUP1 } else { ENABLE_GROUP0 } != 0
    }

    /// Fills the list registers of a vCPU that is about to enter its guest.
    ///
    /// Each flush has to be followed by a [`sync`](Vgic::sync) of the same image, even if the vCPU does not enter. A
    /// second flush before the sync changes nothing.
    #[inline]
    pub fn flush(&self, port: &dyn Port, vcpu: VcpuId, image: &mut LrImage) {
        let Some(cpu) = self.vcpus.get(vcpu.index()) else { return };
        if cpu.work.load(Ordering::SeqCst) == 0 && image.stale == 0 {
            image.write = if image.used == 0 { 0 } else { image.write };
            return;
        }
        self.flush_lrs(port, cpu, vcpu, image);
    }

    #[cold]
    fn flush_lrs(&self, port: &dyn Port, cpu: &Vcpu, vcpu: VcpuId, image: &mut LrImage) {
        if image.used != 0 {
            return;
        }
        // Cleared before the state is read: what changes later sets it again, and kicks the vCPU.
        let work = Work::from_bits_truncate(cpu.work.swap(0, Ordering::SeqCst));
        if self.offers_direct_sgis() {
            image.count_sgi_ends(!self.sgis_are_never_active());
        }
        image.clear();
        if !work.is_empty() {
            let fallen = self.fill(port, cpu, vcpu, work, image);
            set_bits(fallen).for_each(|ppi| port.ppi_deactivate(vcpu, Intid(ppi)));
        }
        image.seal();
    }

    /// Lists what there is. Returns the PPIs that have to be deactivated, a bit for each, because their lines have fallen.
    fn fill(&self, port: &dyn Port, cpu: &Vcpu, vcpu: VcpuId, work: Work, image: &mut LrImage) -> u32 {
        let mut dist = work.contains(Work::SPI).then(|| self.dist.lock());
        let mut state = cpu.state.lock();
        let fallen = state.take_fallen(port, vcpu);
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
        for intid in set_bits(state.queued) {
            if let Some(irq) = state.irq(intid) {
                offer(irq, intid);
            }
        }
        if let Some(dist) = &dist {
            dist.for_each_queued(vcpu, |intid, irq| offer(irq, intid));
        }
        if work.contains(Work::LPI) && cpu.lpis_on.load(Ordering::SeqCst) && Self::group_on(ctlr, true) {
            let mut left = MOST_LPIS;
            cpu.lpis.for_each(|index| {
                if let Some(priority) = self.lpis.deliverable(index) {
                    waiting.offer(priority & self.priority_mask, index.wrapping_add(Lpi::FIRST));
                    left = left.saturating_sub(1);
                }
                left > 0
            });
        }

        // The order at the top of this file.
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
            // Under the locks, so that a CPU that finds an interrupt listed also sees that the list registers are in
            // use.
            cpu.epoch.fetch_add(1, Ordering::AcqRel);
        }
        fallen
    }

    /// Moves the interrupt of `key` into a list register and returns the value of that register.
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

    /// Whether a pending interrupt would be signalled to a vCPU that sleeps or is about to sleep.
    ///
    /// `vmcr` is its ICH_VMCR_EL2: priority mask and group enables. The running priority is ignored: a vCPU that
    /// executes WFI in an interrupt handler may be woken by an interrupt that it cannot take yet, which the
    /// architecture allows.
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
        if set_bits(state.queued).any(|i| state.irq(i).is_some_and(signalled)) {
            return true;
        }
        let mut found = false;
        if let Some(dist) = &dist {
            dist.for_each_queued(vcpu, |_, irq| found |= signalled(irq));
        }
        if !found && cpu.lpis_on.load(Ordering::SeqCst) {
            cpu.lpis.for_each(|index| {
                let priority = self.lpis.deliverable(index);
                found |= priority.is_some_and(|p| taken(p & self.priority_mask, true));
                !found
            });
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{BOOT, Machine, sgi1r};
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
    fn a_flush_without_interrupts_writes_no_list_register() {
        let machine = Machine::new(1);
        machine.enter(BOOT);
        machine.exit(BOOT);
        assert!(machine.enter(BOOT).is_empty());
        assert_eq!(machine.images[0].borrow().write, 0);
        assert_eq!(machine.hcr(BOOT), lr::HCR_EN);
    }

    #[test]
    fn an_sgi_is_delivered_once_and_is_inactive_after_its_end() {
        let machine = Machine::new(2);
        send(&machine, 5, ONE);
        assert_eq!(machine.enter(ONE), [(5, 1, 0)]);
        machine.acknowledge(ONE, 5);
        machine.exit(ONE);
        assert_eq!(machine.enter(ONE), [(5, 2, 0)], "active until its end");
        machine.end(ONE, 5);
        machine.exit(ONE);
        assert!(machine.enter(ONE).is_empty());
    }

    #[test]
    fn interrupts_that_do_not_fit_are_listed_later_by_priority() {
        let machine = Machine::new(2);
        for (intid, priority) in [(1, 0x80), (2, 0x40), (3, 0xc0), (4, 0x20), (5, 0x60), (6, 0x00)] {
            set_private_priority(&machine, ONE, intid, priority);
            send(&machine, intid, ONE);
        }
        assert_eq!(numbers(&machine.enter(ONE)), [6, 4, 2, 5]);
        assert_eq!(machine.hcr(ONE), lr::HCR_EN | lr::HCR_NPIE, "an exit when none is pending");
        for intid in [6, 4, 2, 5] {
            machine.acknowledge(ONE, intid);
            machine.end(ONE, intid);
        }
        machine.exit(ONE);
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
    fn a_pending_interrupt_is_listed_even_if_active_ones_would_fill_all_registers() {
        let machine = Machine::new(2);
        for (intid, priority) in [(1, 0xa0), (2, 0x90), (3, 0x80), (4, 0x70)] {
            set_private_priority(&machine, ONE, intid, priority);
            send(&machine, intid, ONE);
        }
        machine.enter(ONE);
        [1, 2, 3, 4].iter().for_each(|i| machine.acknowledge(ONE, *i));
        machine.exit(ONE);
        set_private_priority(&machine, ONE, 5, 0x10);
        send(&machine, 5, ONE);
        let listed = machine.enter(ONE);
        assert_eq!(numbers(&listed), [5, 4, 3, 2], "the active one of the lowest priority is not listed");
        assert_eq!(machine.hcr(ONE), lr::HCR_EN | lr::HCR_LRENPIE | lr::HCR_TDIR);
    }

    #[test]
    fn an_interrupt_waits_until_the_distributor_enables_its_group() {
        let machine = Machine::new(2);
        machine.dist_write(0, 1);
        send(&machine, 5, ONE);
        assert!(machine.enter(ONE).is_empty());
        assert!(!machine.vgic.has_pending(ONE, Machine::OPEN));
        machine.exit(ONE);
        machine.dist_write(0, 2);
        assert_eq!(numbers(&machine.enter(ONE)), [5]);
    }

    #[test]
    fn a_group_0_interrupt_is_listed_in_group_0() {
        let machine = Machine::new(1);
        machine.set_group(BOOT, 9, false);
        machine.redist_write(BOOT, 0x1_0200, 1 << 9);
        machine.enter(BOOT);
        assert_eq!(machine.images[0].borrow().lr[0], lr::PENDING | 9);
    }

    #[test]
    fn a_sleeping_vcpu_is_woken_only_by_interrupts_that_its_cpu_interface_would_signal() {
        let machine = Machine::new(1);
        set_private_priority(&machine, BOOT, 9, 0xa0);
        machine.redist_write(BOOT, 0x1_0200, 1 << 9);
        assert!(machine.vgic.has_pending(BOOT, Machine::OPEN));
        assert!(machine.vgic.has_pending(BOOT, 0xa800_0002));
        assert!(!machine.vgic.has_pending(BOOT, 0xa000_0002), "masked by priority");
        assert!(!machine.vgic.has_pending(BOOT, 0xff00_0001), "its group is disabled");
        machine.set_group(BOOT, 9, false);
        assert!(machine.vgic.has_pending(BOOT, 0xff00_0001));
        assert!(!machine.vgic.has_pending(BOOT, 0xff00_0002));
    }

    #[test]
    fn ppis_spis_and_lpis_are_listed_by_priority() {
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
            machine.exit(BOOT);
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
        machine.exit(ONE);
        let listed = machine.enter(ONE);
        assert_eq!(machine.enter(ONE), listed);
    }

    #[test]
    fn a_flush_selects_from_a_limited_number_of_lpis_and_later_ones_from_the_rest() {
        let machine = Machine::new(1);
        let all: Vec<(u32, u8)> = (8192..8192 + MOST_LPIS + 8).map(|v| (v, 0xa1)).collect();
        machine.enable_lpis(BOOT, &all);
        // The last one has the highest priority, and is not looked at first.
        machine.vgic.set_lpi_config(&machine, VIntid(8192 + MOST_LPIS + 7), 0x01);
        all.iter().for_each(|(v, _)| assert!(machine.vgic.inject_lpi(&machine, BOOT, VIntid(*v))));
        let mut taken = 0;
        let mut first = None;
        loop {
            let listed = machine.enter(BOOT);
            first = first.or(listed.first().map(|lr| lr.0));
            taken += listed.len();
            for (intid, ..) in &listed {
                machine.acknowledge(BOOT, *intid);
                machine.end(BOOT, *intid);
            }
            machine.exit(BOOT);
            if listed.is_empty() {
                break;
            }
        }
        assert_eq!((first, taken), (Some(8192), all.len()));
    }
}
