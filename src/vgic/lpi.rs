//! The LPIs of a guest: how they become pending, move and are cleared, and whether software or hardware delivers them.
//!
//! IHI 0069, 5.1. An LPI is delivered by software in a list register, or by the hardware as a vLPI; that can change at
//! run time. Its configuration is read from the guest's table only when the architecture allows it to have been cached
//! until then: at INV and INVALL (and at MAPTI, as the caller chooses) and when LPIs are enabled. Delivering an LPI
//! never reads the guest's memory.
//!
//! Injecting an LPI takes no lock: it sets a bit in the vCPU's pending set and one in its word of flags, and kicks the
//! vCPU. Clearing or moving an LPI takes the vCPU's lock, because the LPI may be in a list register; there it gets a
//! [`Fate`], which the next sync carries out unless the guest has acknowledged the LPI by then. [`clear_lpi`] and
//! [`move_lpi`] recall the vCPU; a guest's CLEAR, DISCARD or MOVI is complete after that sync.
//!
//! [`clear_lpi`]: Vgic::clear_lpi
//! [`move_lpi`]: Vgic::move_lpi

use super::lpi_state::{CONFIG_ENABLE, Owner};
use super::port::Port;
use super::private::Fate;
use super::state::Vgic;
use super::vcpu::{Vcpu, Work};
use super::vcpu_set::VcpuSet;
use crate::ids::{VIntid, VcpuId};
use core::sync::atomic::Ordering;

/// Number of words of 64 LPIs that one call of a resumable operation handles.
pub(super) const STEP_WORDS: u32 = 128;

impl Vgic {
    /// The first INTID above the domain's LPIs.
    #[cfg(test)]
    pub fn lpi_limit(&self) -> u32 {
        crate::ids::Lpi::FIRST.saturating_add(self.lpis.count())
    }

    /// GICR_PROPBASER of the domain: that of the redistributor that enabled LPIs last.
    #[must_use]
    pub(super) fn propbaser(&self) -> u64 {
        self.propbaser.load(Ordering::SeqCst)
    }

    /// The configuration byte of an LPI, as last read from the guest's table; 0 if it is no LPI of the domain.
    #[must_use]
    pub fn lpi_config(&self, vintid: VIntid) -> u8 {
        self.lpis.index(vintid).map_or(0, |index| self.lpis.config(index))
    }

    /// Applies a configuration byte to an LPI.
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

    /// Recalls what is in the list registers of one vCPU.
    fn recall_vcpu(&self, port: &dyn Port, vcpu: VcpuId) {
        let mut set = VcpuSet::new();
        set.insert(vcpu);
        self.recall(port, &set);
    }

    /// Removes an LPI that is delivered by the hardware from a vCPU's pending set. Returns whether it was there; the
    /// caller then makes it pending in hardware.
    #[must_use]
    pub fn take_direct_pending(&self, vcpu: VcpuId, vintid: VIntid) -> bool {
        let (Some(cpu), Some(index)) = (self.vcpu(vcpu), self.lpis.index(vintid)) else { return false };
        if !self.lpis.is_direct(index) || !cpu.lpis.contains(index) {
            return false;
        }
        let _state = cpu.state.lock();
        cpu.lpis.remove(index)
    }

    /// Whether a vCPU's pending set has an LPI that is delivered by the hardware.
    #[must_use]
    pub fn has_direct_pending(&self, vcpu: VcpuId) -> bool {
        let Some(cpu) = self.vcpu(vcpu) else { return false };
        let mut words = (0..).zip(&self.lpis.direct);
        words.any(|(word, direct)| cpu.lpis.word(word) & direct.load(Ordering::SeqCst) != 0)
    }

    /// Removes all LPIs that are delivered by the hardware from a vCPU's pending set.
    pub fn drop_direct_pending(&self, vcpu: VcpuId) {
        let Some(cpu) = self.vcpu(vcpu) else { return };
        let _state = cpu.state.lock();
        for (word, direct) in (0..).zip(&self.lpis.direct) {
            cpu.lpis.remove_from_word(word, direct.load(Ordering::SeqCst));
        }
    }

    /// Who delivers this LPI.
    #[cfg(test)]
    pub fn lpi_owner(&self, vintid: VIntid) -> Owner {
        match self.lpis.index(vintid) {
            Some(index) if self.lpis.is_direct(index) => Owner::Direct,
            _ => Owner::Soft,
        }
    }

    /// Sets who delivers this LPI to `vcpu` from now on. Returns `true` if it was pending in software and is now
    /// delivered by the hardware; the caller then makes it pending there.
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

    /// Makes an LPI pending on a vCPU. Returns `false` if it is delivered by the hardware, if LPIs are disabled on the
    /// vCPU, or if there is no such LPI.
    pub fn inject_lpi(&self, port: &dyn Port, vcpu: VcpuId, vintid: VIntid) -> bool {
        let (Some(cpu), Some(index)) = (self.vcpu(vcpu), self.lpis.index(vintid)) else { return false };
        if !cpu.lpis_on.load(Ordering::SeqCst) || self.lpis.is_direct(index) {
            return false;
        }
        self.pend_lpi(port, cpu, vcpu, index);
        // Its owner may have changed to the hardware since the check above. The CPU that removes it from the set
        // delivers it.
        !(self.lpis.is_direct(index) && cpu.lpis.remove(index))
    }

    /// Adds an LPI to the pending set of a vCPU and notifies the vCPU if the LPI can be delivered.
    fn pend_lpi(&self, port: &dyn Port, cpu: &Vcpu, vcpu: VcpuId, index: u32) {
        let _ = cpu.lpis.insert(index);
        if self.lpis.deliverable(index).is_some() {
            self.notify_one(port, None, vcpu, Work::LPI);
        }
    }

    /// Makes an LPI not pending on a vCPU. Returns whether it was pending, as far as is known. If it is in a list
    /// register, recalls that vCPU.
    pub fn clear_lpi(&self, port: &dyn Port, vcpu: VcpuId, vintid: VIntid) -> bool {
        self.take_lpi(port, vcpu, vintid, Fate::Drop)
    }

    /// Moves an LPI from one vCPU to another, if it is pending.
    pub fn move_lpi(&self, port: &dyn Port, from: VcpuId, to: VcpuId, vintid: VIntid) {
        if from == to || self.vcpu(to).is_none() {
            return;
        }
        let _ = self.take_lpi(port, from, vintid, Fate::Move(to));
    }

    /// Removes an LPI from the pending set of a vCPU and sets its fate if it is listed. Returns whether it was pending.
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

    /// Moves the LPIs that are pending in software from one vCPU to another: a bounded number of them, from `cursor`
    /// on, which is 0 at first. Returns the cursor for the next call, or `None` when all are moved.
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

    /// Number of LPIs in the pending set of a vCPU, enabled or not.
    #[cfg(test)]
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

    /// Whether an LPI is in the pending set of a vCPU. One in a list register is not.
    #[cfg(any(test, fuzzing))]
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
    fn no_lpi_becomes_pending_while_lpis_are_disabled() {
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
        assert_eq!(machine.kicked(), [BOOT], "recalled from its list register");
        assert!(machine.enter(BOOT).is_empty());
        assert!(machine.vgic.is_lpi_pending(BOOT, VIntid(8192)));
    }

    #[test]
    fn lpis_are_in_group_1() {
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
    fn clearing_takes_effect_at_once_for_a_waiting_lpi_and_at_the_sync_for_a_listed_one() {
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
    fn an_lpi_that_becomes_pending_again_after_a_clear_stays_pending() {
        let machine = Machine::new(1);
        machine.enable_lpis(BOOT, &[(8192, 0xa1)]);
        assert!(pend(&machine, BOOT, 8192));
        machine.enter(BOOT);
        machine.obey_kicks.set(false);
        assert!(machine.vgic.clear_lpi(&machine, BOOT, VIntid(8192)));
        assert!(!machine.is_settled());
        assert!(pend(&machine, BOOT, 8192));
        machine.exit(BOOT);
        assert_eq!(machine.enter(BOOT), [(8192, 1, 0xa0)]);
    }

    #[test]
    fn waiting_and_listed_lpis_move_with_their_pending_state() {
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
    fn an_lpi_that_is_acknowledged_or_not_pending_does_not_move() {
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
    fn move_all_moves_waiting_and_listed_lpis() {
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
    fn an_lpi_that_the_hardware_delivers_is_never_listed() {
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
    fn a_pending_lpi_is_reported_when_the_hardware_is_to_deliver_it() {
        let machine = Machine::new(1);
        machine.enable_lpis(BOOT, &[(8192, 0xa1), (8193, 0xa1)]);
        assert!(pend(&machine, BOOT, 8192));
        machine.enter(BOOT);
        assert!(pend(&machine, BOOT, 8193));
        for vintid in [8192, 8193] {
            assert!(machine.vgic.set_lpi_owner(&machine, BOOT, VIntid(vintid), Owner::Direct));
        }
        machine.exit(BOOT);
        assert!(machine.enter(BOOT).is_empty());
    }

    #[test]
    fn a_domain_without_lpis_has_none() {
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
