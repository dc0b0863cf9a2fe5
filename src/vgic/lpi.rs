//! LPIs of a guest: configuration, pending state, and who delivers them.
//!
//! IHI 0069, 5.1. An LPI is owned by software, which puts it into a list register, or directly by the hardware, as a vLPI; the
//! owner can change at run time. Configuration is read from the guest's table only when the architecture says that it
//! may have been: at an INV or INVALL (MAPTI too, by the caller's choice) and when LPIs are enabled. Software never looks at the
//! guest's memory to deliver one.
//!
//! Injection takes no lock: a bit in the vCPU's set, a bit in its work word, a kick. Taking one out again takes the vCPU's
//! lock, since it may be in a list register; there it has a [`Fate`], which the next sync carries out if the guest has
//! not acknowledged it by then. The callers of [`clear_lpi`](Vgic::clear_lpi) and [`move_lpi`](Vgic::move_lpi) wait for that
//! sync, so that when a guest's CLEAR, DISCARD or MOVI completes, its effect is there.

use super::lpi_state::{CONFIG_ENABLE, Owner};
use super::port::Port;
use super::private::Fate;
use super::state::Vgic;
use super::vcpu::{Vcpu, Work};
use super::vcpu_set::VcpuSet;
use crate::ids::{Lpi, VIntid, VcpuId};
use core::sync::atomic::Ordering;

/// Words of 64 LPIs that one step of a resumable operation handles.
pub(super) const STEP_WORDS: u32 = 128;

impl Vgic {
    /// The first vINTID that does not exist.
    #[must_use]
    pub fn lpi_limit(&self) -> u32 {
        Lpi::FIRST.saturating_add(self.lpis.count())
    }

    /// GICR_PROPBASER in force for the domain: that of the redistributor which enabled LPIs last.
    #[must_use]
    pub fn propbaser(&self) -> u64 {
        self.propbaser.load(Ordering::SeqCst)
    }

    /// The configuration byte in force; 0 for what is no LPI.
    #[must_use]
    pub fn lpi_config(&self, vintid: VIntid) -> u8 {
        self.lpis.index(vintid).map_or(0, |index| self.lpis.config(index))
    }

    /// Puts a configuration byte into force.
    pub fn set_lpi_config(&self, port: &dyn Port, vintid: VIntid, byte: u8) {
        let Some(index) = self.lpis.index(vintid) else { return };
        let Some(config) = self.lpis.config.get(index as usize) else { return };
        let old = config.swap(byte, Ordering::SeqCst);
        if old == byte {
            return;
        }
        for (cpu, at) in self.vcpus.iter().zip(0u16..) {
            if byte & CONFIG_ENABLE != 0 {
                if cpu.lpis.contains(index) {
                    self.notify_one(port, None, VcpuId(at), Work::LPI);
                }
            } else if cpu.loaded() && cpu.state.lock().has_listed_lpi(index) {
                self.recall_vcpu(port, VcpuId(at));
            }
        }
    }

    fn recall_vcpu(&self, port: &dyn Port, vcpu: VcpuId) {
        let mut set = VcpuSet::new();
        set.insert(vcpu);
        self.recall(port, &set);
    }

    /// One LPI that was found pending while it is the hardware's; its caller makes it pending there.
    #[must_use]
    pub fn take_direct_pending(&self, vcpu: VcpuId) -> Option<VIntid> {
        let cpu = self.vcpu(vcpu)?;
        let _state = cpu.state.lock();
        let mut found = None;
        cpu.lpis.for_each(|index| {
            if self.lpis.is_direct(index) && cpu.lpis.remove(index) {
                found = Some(VIntid(index.saturating_add(Lpi::FIRST)));
            }
            found.is_none()
        });
        found
    }

    /// Who delivers this LPI.
    #[must_use]
    pub fn lpi_owner(&self, vintid: VIntid) -> Owner {
        match self.lpis.index(vintid) {
            Some(index) if self.lpis.is_direct(index) => Owner::Direct,
            _ => Owner::Soft,
        }
    }

    /// Says who delivers this LPI from now on, to `vcpu`. True when it was pending in software and became the hardware's: the
    /// caller makes it pending there.
    #[must_use]
    pub fn set_lpi_owner(&self, port: &dyn Port, vcpu: VcpuId, vintid: VIntid, owner: Owner) -> bool {
        let Some(index) = self.lpis.index(vintid) else { return false };
        let Some(word) = self.lpis.direct.get((index / 64) as usize) else { return false };
        let mask = 1u64.wrapping_shl(index);
        match owner {
            Owner::Soft => {
                word.fetch_and(!mask, Ordering::SeqCst);
                if self.vcpu(vcpu).is_some_and(|cpu| cpu.lpis.contains(index)) {
                    self.notify_one(port, None, vcpu, Work::LPI);
                }
                false
            }
            Owner::Direct => {
                word.fetch_or(mask, Ordering::SeqCst);
                self.clear_lpi(port, vcpu, vintid)
            }
        }
    }

    /// Makes an LPI pending on a vCPU. False when it was not software's to deliver, when LPIs are off there, or when there
    /// is no such LPI.
    pub fn inject_lpi(&self, port: &dyn Port, vcpu: VcpuId, vintid: VIntid) -> bool {
        let (Some(cpu), Some(index)) = (self.vcpu(vcpu), self.lpis.index(vintid)) else { return false };
        if !cpu.lpis_on.load(Ordering::SeqCst) || self.lpis.is_direct(index) {
            return false;
        }
        self.pend_lpi(port, cpu, vcpu, index);
        // It may have become the hardware's since we looked; whoever takes the bit out answers for it.
        !(self.lpis.is_direct(index) && cpu.lpis.remove(index))
    }

    fn pend_lpi(&self, port: &dyn Port, cpu: &Vcpu, vcpu: VcpuId, index: u32) {
        let _ = cpu.lpis.insert(index);
        if self.lpis.deliverable(index).is_some() {
            self.notify_one(port, None, vcpu, Work::LPI);
        }
    }

    /// Takes an LPI's pending state away from a vCPU; whether it had one, as far as is known. When it is in a list
    /// register, waits until that vCPU has left its guest.
    pub fn clear_lpi(&self, port: &dyn Port, vcpu: VcpuId, vintid: VIntid) -> bool {
        self.take_lpi(port, vcpu, vintid, Fate::Drop)
    }

    /// Moves an LPI's pending state, if it has one, to another vCPU.
    pub fn move_lpi(&self, port: &dyn Port, from: VcpuId, to: VcpuId, vintid: VIntid) {
        if from == to || self.vcpu(to).is_none() {
            return;
        }
        let _ = self.take_lpi(port, from, vintid, Fate::Move(to));
    }

    fn take_lpi(&self, port: &dyn Port, vcpu: VcpuId, vintid: VIntid, fate: Fate) -> bool {
        let (Some(cpu), Some(index)) = (self.vcpu(vcpu), self.lpis.index(vintid)) else { return false };
        let (waiting, listed) = {
            let mut state = cpu.state.lock();
            (cpu.lpis.remove(index), state.set_fate(index, fate))
        };
        if let (true, Fate::Move(to)) = (waiting, fate)
            && let Some(target) = self.vcpu(to)
        {
            self.pend_lpi(port, target, to, index);
        }
        if listed {
            self.recall_vcpu(port, vcpu);
        }
        waiting || listed
    }

    /// Moves all pending LPIs that are software's from one vCPU to another, a stretch of them from `cursor` (0) on; gives where to
    /// go on.
    pub fn move_all_lpis(&self, port: &dyn Port, from: VcpuId, to: VcpuId, cursor: u32) -> Option<u32> {
        let (source, target) = (self.vcpu(from)?, self.vcpu(to)?);
        if from == to {
            return None;
        }
        let end = cursor.saturating_add(STEP_WORDS).min(source.lpis.words());
        let listed = {
            let mut state = source.state.lock();
            for word in cursor..end {
                let some = source.lpis.take_word(word);
                if some != 0 {
                    let _ = target.lpis.insert_word(word, some);
                }
            }
            cursor == 0 && state.set_all_fates(Fate::Move(to))
        };
        self.notify_one(port, None, to, Work::LPI);
        if listed {
            self.recall_vcpu(port, from);
        }
        (end < source.lpis.words()).then_some(end)
    }

    /// How many LPIs wait in software for a vCPU, enabled or not.
    #[must_use]
    pub fn pending_lpis(&self, vcpu: VcpuId) -> usize {
        let mut count = 0usize;
        if let Some(cpu) = self.vcpu(vcpu) {
            cpu.lpis.for_each(|_| {
                count = count.saturating_add(1);
                true
            });
        }
        count
    }

    /// Whether an LPI waits in software for a vCPU; one in a list register does not wait.
    #[must_use]
    pub fn is_lpi_pending(&self, vcpu: VcpuId, vintid: VIntid) -> bool {
        self.vcpu(vcpu).zip(self.lpis.index(vintid)).is_some_and(|(cpu, index)| cpu.lpis.contains(index))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{BOOT, Machine};
    use super::*;
    use std::vec::Vec;

    const ONE: VcpuId = VcpuId(1);
    fn pend(machine: &Machine, vcpu: VcpuId, vintid: u32) -> bool {
        machine.vgic.inject_lpi(machine, vcpu, VIntid(vintid))
    }

    #[test]
    fn nothing_is_taken_while_lpis_are_off() {
        let machine = Machine::new(1);
        assert!(!pend(&machine, BOOT, 8192));
        machine.enable_lpis(BOOT, &[(8192, 0xa1)]);
        assert!(pend(&machine, BOOT, 8192));
        assert!(!pend(&machine, BOOT, 8191));
        assert!(!pend(&machine, BOOT, 16384));
    }

    #[test]
    fn a_disabled_lpi_stays_pending_and_is_delivered_when_it_is_enabled() {
        let machine = Machine::new(1);
        machine.enable_lpis(BOOT, &[(8192, 0xa0)]);
        assert!(pend(&machine, BOOT, 8192));
        assert!(machine.kicked().is_empty());
        assert!(!machine.vgic.has_pending(BOOT, Machine::OPEN));
        machine.vgic.set_lpi_config(&machine, VIntid(8192), 0xa1);
        assert_eq!(machine.kicked(), [BOOT]);
        assert!(machine.vgic.has_pending(BOOT, Machine::OPEN));
        assert_eq!(machine.enter(BOOT).len(), 1);
        machine.vgic.set_lpi_config(&machine, VIntid(8192), 0xa0);
        assert_eq!(machine.kicked(), [BOOT], "taken back out of its list register");
        assert!(machine.enter(BOOT).is_empty());
        assert!(machine.vgic.is_lpi_pending(BOOT, VIntid(8192)));
    }

    #[test]
    fn lpis_are_of_group_1() {
        let machine = Machine::new(1);
        machine.enable_lpis(BOOT, &[(8192, 0xa1)]);
        machine.dist_write(0, 1);
        assert!(pend(&machine, BOOT, 8192));
        assert!(machine.enter(BOOT).is_empty());
        assert!(!machine.vgic.has_pending(BOOT, Machine::OPEN));
        machine.dist_write(0, 2);
        assert!(machine.vgic.has_pending(BOOT, Machine::OPEN));
        assert_eq!(machine.enter(BOOT), [(8192, 1, 0xa0)]);
    }

    #[test]
    fn clearing_takes_a_waiting_one_away_at_once_and_a_listed_one_at_the_sync() {
        let machine = Machine::new(1);
        machine.enable_lpis(BOOT, &[(8192, 0xa1)]);
        assert!(!machine.vgic.clear_lpi(&machine, BOOT, VIntid(8192)));
        assert!(pend(&machine, BOOT, 8192));
        assert!(machine.vgic.clear_lpi(&machine, BOOT, VIntid(8192)));
        assert!(machine.enter(BOOT).is_empty());
        assert!(pend(&machine, BOOT, 8192));
        assert_eq!(machine.enter(BOOT).len(), 1);
        assert!(machine.vgic.clear_lpi(&machine, BOOT, VIntid(8192)));
        assert!(machine.enter(BOOT).is_empty());
    }

    #[test]
    fn an_lpi_that_comes_again_after_a_clear_is_not_cleared_with_it() {
        let machine = Machine::new(1);
        machine.enable_lpis(BOOT, &[(8192, 0xa1)]);
        assert!(pend(&machine, BOOT, 8192));
        machine.enter(BOOT);
        machine.obey_kicks.set(false);
        assert!(machine.vgic.clear_lpi(&machine, BOOT, VIntid(8192)));
        assert_eq!(machine.vgic.missed_recalls(), 1);
        assert!(pend(&machine, BOOT, 8192));
        let _ = machine.exit(BOOT);
        assert_eq!(machine.enter(BOOT), [(8192, 1, 0xa0)]);
    }

    #[test]
    fn moving_carries_the_pending_state_from_wherever_it_is() {
        let machine = Machine::new(2);
        machine.enable_lpis(BOOT, &[(8192, 0xa1), (8193, 0xa1)]);
        machine.enable_lpis(ONE, &[(8192, 0xa1), (8193, 0xa1)]);
        assert!(pend(&machine, BOOT, 8192));
        machine.enter(BOOT);
        assert!(pend(&machine, BOOT, 8193));
        machine.forget();
        machine.vgic.move_lpi(&machine, BOOT, ONE, VIntid(8193));
        machine.vgic.move_lpi(&machine, BOOT, ONE, VIntid(8192));
        assert!(machine.kicked().contains(&ONE));
        assert!(machine.enter(BOOT).is_empty());
        assert_eq!(machine.enter(ONE).len(), 2);
    }

    #[test]
    fn moving_an_acknowledged_or_idle_one_moves_nothing() {
        let machine = Machine::new(2);
        machine.enable_lpis(BOOT, &[(8192, 0xa1)]);
        machine.enable_lpis(ONE, &[(8192, 0xa1)]);
        machine.vgic.move_lpi(&machine, BOOT, ONE, VIntid(8192));
        assert!(pend(&machine, BOOT, 8192));
        machine.enter(BOOT);
        machine.acknowledge(BOOT, 8192);
        machine.vgic.move_lpi(&machine, BOOT, ONE, VIntid(8192));
        assert!(machine.enter(ONE).is_empty());
    }

    #[test]
    fn moving_all_takes_waiting_and_listed_ones() {
        let machine = Machine::new(2);
        let some: Vec<(u32, u8)> = (0..20).map(|i| (8192 + 400 * i, 0xa1)).collect();
        machine.enable_lpis(BOOT, &some);
        machine.enable_lpis(ONE, &some);
        some.iter().for_each(|(v, _)| assert!(pend(&machine, BOOT, *v)));
        assert_eq!(machine.enter(BOOT).len(), 4);
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            cursor = machine.vgic.move_all_lpis(&machine, BOOT, ONE, at);
        }
        assert_eq!((machine.vgic.pending_lpis(BOOT), machine.vgic.pending_lpis(ONE)), (0, 20));
        assert!(machine.enter(BOOT).is_empty());
    }

    #[test]
    fn the_hardwares_lpis_are_never_put_into_a_list_register() {
        let machine = Machine::new(1);
        machine.enable_lpis(BOOT, &[(8192, 0xa1)]);
        assert!(!machine.vgic.set_lpi_owner(&machine, BOOT, VIntid(8192), Owner::Direct));
        assert_eq!(machine.vgic.lpi_owner(VIntid(8192)), Owner::Direct);
        assert!(!pend(&machine, BOOT, 8192));
        assert!(machine.enter(BOOT).is_empty());
        assert!(!machine.vgic.set_lpi_owner(&machine, BOOT, VIntid(8192), Owner::Soft));
        assert!(pend(&machine, BOOT, 8192));
        assert_eq!(machine.enter(BOOT).len(), 1);
    }

    #[test]
    fn a_pending_lpi_is_handed_over_when_it_becomes_the_hardwares() {
        let machine = Machine::new(1);
        machine.enable_lpis(BOOT, &[(8192, 0xa1), (8193, 0xa1)]);
        assert!(pend(&machine, BOOT, 8192));
        machine.enter(BOOT);
        assert!(pend(&machine, BOOT, 8193));
        for vintid in [8192, 8193] {
            assert!(machine.vgic.set_lpi_owner(&machine, BOOT, VIntid(vintid), Owner::Direct));
        }
        let _ = machine.exit(BOOT);
        assert!(machine.enter(BOOT).is_empty());
    }

    #[test]
    fn without_lpis_there_are_none() {
        let config = super::super::VgicConfig {
            vcpus: std::vec![crate::ids::Mpidr(0)],
            spis: 32,
            id_bits: 14,
            has_lpis: false,
            list_registers: 4,
            priority_bits: 5,
        };
        let vgic = Vgic::new(config).unwrap();
        let machine = Machine::new(1);
        assert_eq!(vgic.lpi_limit(), 8192);
        vgic.redist_write(&machine, BOOT, BOOT, 0, 4, 1);
        assert_eq!(vgic.redist_read(&machine, BOOT, BOOT, 0, 4), 0);
        assert!(!vgic.inject_lpi(&machine, BOOT, VIntid(8192)));
        assert_eq!(vgic.dist_read(&machine, BOOT, 4, 4) & 1 << 17, 0);
    }
}
