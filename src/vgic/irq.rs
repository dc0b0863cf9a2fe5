//! One interrupt that is not an LPI: an SGI, PPI or SPI.
//!
//! The state machine of IHI 0069, 4.1.2 (inactive, pending, active, active and pending), extended by list registers.
//! While an interrupt is *listed*, it is in a list register, and the CPU interface owns its state: software knows the
//! state that it listed, and learns the new state when it unlists the interrupt in the next sync. A guest's write to a
//! listed interrupt is therefore recorded in flags, which the sync applies.
//!
//! A *held* interrupt is a hardware-linked one whose physical interrupt is active: EL2 has acknowledged it and dropped
//! its priority, but has not deactivated it. The list register links the two, so that the guest's deactivation
//! deactivates both. Where the virtual interrupt is deactivated by other means, the caller has to deactivate the
//! physical one.
//!
//! This file takes no lock and does not know which vCPU an interrupt is for.

use super::lr;
use super::regs::BitReg;
use bitflags::bitflags;

/// How an interrupt signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// It is pending while its line is high.
    Level,
    /// It becomes pending at a rising edge.
    Edge,
}

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(super) struct Flags: u16 {
        const ENABLED = 1 << 0;
        const GROUP1 = 1 << 1;
        const EDGE = 1 << 2;
        /// Pending because of an edge, a write, or a physical interrupt.
        const LATCH = 1 << 3;
        /// The line of an emulated device is high.
        const LINE = 1 << 4;
        const ACTIVE = 1 << 5;
        /// The physical interrupt is active on behalf of this one.
        const HELD = 1 << 6;
        /// It is in a list register of a vCPU that may be running.
        const LISTED = 1 << 7;
        /// It was pending when it was listed, and the guest has not cleared that since.
        const LISTED_PENDING = 1 << 8;
        /// LATCH was moved into the list register, and comes back if the guest does not acknowledge the interrupt.
        const LISTED_LATCH = 1 << 9;
        /// A write has made it inactive while it was listed.
        const DROP_ACTIVE = 1 << 10;
        /// A write has made it active while it was listed.
        const FORCE_ACTIVE = 1 << 11;
        /// The physical interrupt was acknowledged again while this one was listed: the guest has deactivated the
        /// listed one, whose link is not for the new one.
        const HELD_AGAIN = 1 << 12;
        /// Its list register is linked to the physical interrupt.
        const LINKED = 1 << 13;
        /// A write has made it pending, so it stays pending whatever its line does, until it is acknowledged.
        const WRITTEN = 1 << 14;
        /// The flags that are cleared when it is unlisted.
        const WHILE_LISTED = Self::LISTED.bits()
            | Self::LISTED_PENDING.bits()
            | Self::LISTED_LATCH.bits()
            | Self::DROP_ACTIVE.bits()
            | Self::FORCE_ACTIVE.bits()
            | Self::HELD_AGAIN.bits()
            | Self::LINKED.bits();
    }
}

/// What the caller of a change has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[must_use]
pub(super) struct Change {
    /// The state has changed.
    pub changed: bool,
    /// The physical interrupt has to be deactivated, because no list register links it to the guest any more.
    pub deactivate: bool,
}

/// One SGI, PPI or SPI.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Irq {
    flags: Flags,
    /// Bits that are not implemented are zero.
    pub priority: u8,
}

impl Irq {
    /// An interrupt at reset: disabled, group 0, priority 0.
    pub const fn new(trigger: Trigger) -> Irq {
        let flags = match trigger {
            Trigger::Edge => Flags::EDGE,
            Trigger::Level => Flags::empty(),
        };
        Irq { flags, priority: 0 }
    }

    pub fn has(&self, flags: Flags) -> bool {
        self.flags.contains(flags)
    }

    pub fn is_enabled(&self) -> bool {
        self.has(Flags::ENABLED)
    }

    pub fn is_group1(&self) -> bool {
        self.has(Flags::GROUP1)
    }

    pub fn is_active(&self) -> bool {
        self.has(Flags::ACTIVE)
    }

    pub fn is_listed(&self) -> bool {
        self.has(Flags::LISTED)
    }

    pub fn is_held(&self) -> bool {
        self.has(Flags::HELD)
    }

    pub fn trigger(&self) -> Trigger {
        if self.has(Flags::EDGE) { Trigger::Edge } else { Trigger::Level }
    }

    /// Whether it is held and the guest has not acknowledged it.
    pub fn is_held_pending(&self) -> bool {
        let of_an_earlier_one = self.has(Flags::LINKED) && !self.has(Flags::HELD_AGAIN);
        self.has(Flags::HELD | Flags::LATCH) && !of_an_earlier_one
    }

    /// Whether it is pending because of a physical interrupt that signals by level, and which the guest has not
    /// acknowledged: it is pending as long as the line is high.
    pub fn follows_line(&self) -> bool {
        self.is_held_pending() && !self.flags.intersects(Flags::EDGE | Flags::WRITTEN)
    }

    /// Whether it is pending, without regard to the list register.
    fn waits(&self) -> bool {
        self.has(Flags::LATCH) || (self.has(Flags::LINE) && !self.has(Flags::EDGE))
    }

    /// Whether it is pending, as a guest reads it.
    pub fn is_pending(&self) -> bool {
        self.waits() || self.has(Flags::LISTED_PENDING)
    }

    /// Whether it is delivered as soon as its group and priority allow it.
    pub fn is_deliverable(&self) -> bool {
        self.is_enabled() && !self.is_listed() && !self.is_active() && self.waits()
    }

    /// Whether a flush has to consider it.
    pub fn is_queued(&self) -> bool {
        !self.is_listed() && (self.is_active() || self.is_deliverable())
    }

    /// The bit of this interrupt that a guest reads in a register with one bit per interrupt.
    pub fn read(&self, register: BitReg) -> bool {
        match register {
            BitReg::Group => self.is_group1(),
            BitReg::SetEnable | BitReg::ClearEnable => self.is_enabled(),
            BitReg::SetPending | BitReg::ClearPending => self.is_pending(),
            BitReg::SetActive | BitReg::ClearActive => self.is_active(),
        }
    }

    /// Applies a guest's write of `bit` to a register with one bit per interrupt.
    pub fn write(&mut self, register: BitReg, bit: bool) -> Change {
        let before = self.flags;
        let mut deactivate = false;
        match register {
            BitReg::Group => self.flags.set(Flags::GROUP1, bit),
            _ if !bit => {}
            BitReg::SetEnable => self.flags.insert(Flags::ENABLED),
            BitReg::ClearEnable => self.flags.remove(Flags::ENABLED),
            BitReg::SetPending => self.flags.insert(Flags::LATCH | Flags::WRITTEN),
            BitReg::ClearPending => deactivate = self.clear_pending(),
            BitReg::SetActive => self.set_active(),
            BitReg::ClearActive => deactivate = self.clear_active(),
        }
        Change { changed: self.flags != before, deactivate }
    }

    /// Makes it not pending. Returns whether the caller has to deactivate the physical interrupt.
    pub fn clear_pending(&mut self) -> bool {
        let deactivate = self.is_held_pending();
        if deactivate {
            self.flags.remove(Flags::HELD | Flags::HELD_AGAIN);
        }
        self.flags.remove(Flags::LATCH | Flags::WRITTEN | Flags::LISTED_PENDING | Flags::LISTED_LATCH);
        deactivate
    }

    fn set_active(&mut self) {
        self.flags.insert(Flags::ACTIVE);
        if self.is_listed() {
            self.flags.insert(Flags::FORCE_ACTIVE);
            self.flags.remove(Flags::DROP_ACTIVE);
        }
    }

    /// Makes it inactive. Returns whether the caller has to deactivate the physical interrupt.
    pub fn clear_active(&mut self) -> bool {
        let was_active = self.is_active();
        self.flags.remove(Flags::ACTIVE);
        if self.is_listed() {
            self.flags.insert(Flags::DROP_ACTIVE);
            self.flags.remove(Flags::FORCE_ACTIVE);
            return false;
        }
        // If it is both active and latched, the physical interrupt belongs to the pending state.
        let deactivate = was_active && self.is_held() && !self.has(Flags::LATCH);
        if deactivate {
            self.flags.remove(Flags::HELD);
        }
        deactivate
    }

    /// Sets how it signals. Returns whether that is a change. A line that is high makes a level interrupt pending, but
    /// not an edge interrupt.
    pub fn set_trigger(&mut self, trigger: Trigger) -> bool {
        let before = self.flags;
        self.flags.set(Flags::EDGE, trigger == Trigger::Edge);
        self.flags != before
    }

    /// Sets the level of the line of an emulated device.
    pub fn set_line(&mut self, high: bool) {
        let rising = high && !self.has(Flags::LINE);
        self.flags.set(Flags::LINE, high);
        if rising && self.has(Flags::EDGE) {
            self.flags.insert(Flags::LATCH);
        }
    }

    /// Signals one edge.
    pub fn pulse(&mut self) {
        self.flags.insert(Flags::LATCH);
    }

    /// Makes it pending and held: EL2 has acknowledged the physical interrupt, which stays active until the guest
    /// deactivates the virtual one.
    ///
    /// That may happen while the previous one is listed: the guest has deactivated that one in hardware, another CPU
    /// has acknowledged the next, and the first CPU has not synced yet.
    pub fn hold(&mut self) {
        if self.has(Flags::LISTED | Flags::HELD) {
            self.flags.insert(Flags::HELD_AGAIN);
        }
        self.flags.insert(Flags::HELD | Flags::LATCH);
    }

    /// Makes it inactive; configuration and line stay. Returns whether the caller has to deactivate the physical
    /// interrupt.
    pub fn quiesce(&mut self) -> bool {
        let deactivate = self.is_held();
        self.flags &= Flags::ENABLED | Flags::GROUP1 | Flags::EDGE | Flags::LINE;
        deactivate
    }

    /// Moves it into a list register and returns that register's value. `deliver` is `false` if its group is disabled,
    /// so that only its active state is listed.
    pub fn list(&mut self, intid: u32, deliver: bool) -> u64 {
        let active = self.is_active();
        let pending = deliver && self.is_enabled() && self.waits();
        // Only an edge interrupt without a link is listed as pending and active: a level is sampled again after the
        // deactivation, and a list register linked to hardware must not hold both (IHI 0069, ICH_LR<n>_EL2.HW).
        let edge = self.has(Flags::EDGE) && !self.is_held();
        let pending = pending && (!active || edge);
        let linked = self.is_held() && !(active && self.has(Flags::LATCH));

        let mut value = lr::encode(intid, self.priority, self.is_group1());
        if active {
            value |= lr::ACTIVE;
        }
        if pending {
            value |= lr::PENDING;
            self.flags.insert(Flags::LISTED_PENDING);
            if self.has(Flags::LATCH) {
                self.flags.insert(Flags::LISTED_LATCH);
                self.flags.remove(Flags::LATCH);
            }
        }
        if linked {
            self.flags.insert(Flags::LINKED);
            value |= lr::linked_to(intid);
        } else if self.waits() {
            // The line may still be high when the guest deactivates the interrupt, or a pending state was not listed:
            // the end of the interrupt has to cause an exit.
            value |= lr::EOI;
        }
        self.flags.insert(Flags::LISTED);
        value
    }

    /// Takes it out of a list register, whose value is now `value`. Returns whether the caller has to deactivate the
    /// physical interrupt.
    pub fn unlist(&mut self, value: u64) -> bool {
        let (pending, active) = (value & lr::PENDING != 0, value & lr::ACTIVE != 0);
        let mut deactivate = false;
        if pending && self.has(Flags::LISTED_LATCH) {
            self.flags.insert(Flags::LATCH);
        } else if self.has(Flags::LISTED_LATCH) && !self.has(Flags::LATCH) {
            self.flags.remove(Flags::WRITTEN);
        }
        if value & lr::HW != 0 && self.is_held() {
            let pending_was_cleared = pending && !self.has(Flags::LISTED_LATCH);
            let was_deactivated = active && self.has(Flags::DROP_ACTIVE);
            deactivate = pending_was_cleared || was_deactivated;
            if deactivate || (!pending && !active) {
                self.flags.set(Flags::HELD, self.has(Flags::HELD_AGAIN));
            }
        }
        let active = (active && !self.has(Flags::DROP_ACTIVE)) || self.has(Flags::FORCE_ACTIVE);
        self.flags.set(Flags::ACTIVE, active);
        self.flags.remove(Flags::WHILE_LISTED);
        deactivate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled(trigger: Trigger) -> Irq {
        let mut irq = Irq::new(trigger);
        let _ = irq.write(BitReg::SetEnable, true);
        let _ = irq.write(BitReg::Group, true);
        irq
    }

    #[test]
    fn an_edge_while_active_is_kept_as_active_and_pending() {
        let mut irq = enabled(Trigger::Edge);
        irq.pulse();
        let value = irq.list(40, true);
        assert_eq!(value & lr::STATE, lr::PENDING);
        assert!(!irq.unlist(value ^ lr::STATE), "acknowledged: pending becomes active");
        irq.pulse();
        let value = irq.list(40, true);
        assert_eq!(value & lr::STATE, lr::PENDING | lr::ACTIVE);
        assert!(!irq.unlist(value & !lr::ACTIVE), "deactivated, not acknowledged again");
        assert!(irq.is_deliverable());
    }

    #[test]
    fn an_edge_that_comes_while_listed_is_delivered_again() {
        let mut irq = enabled(Trigger::Edge);
        irq.pulse();
        let value = irq.list(40, true);
        irq.pulse();
        let _ = irq.unlist(value & !lr::STATE);
        assert!(irq.is_deliverable());
    }

    #[test]
    fn an_unacknowledged_edge_comes_back_out_of_the_list_register_once() {
        let mut irq = enabled(Trigger::Edge);
        irq.pulse();
        let value = irq.list(40, true);
        irq.pulse();
        let _ = irq.unlist(value);
        assert!(irq.is_deliverable());
        let value = irq.list(40, true);
        let _ = irq.unlist(value & !lr::STATE);
        assert!(!irq.is_pending(), "two edges before the acknowledge are one interrupt");
    }

    #[test]
    fn a_level_that_fell_before_the_acknowledge_is_no_longer_pending() {
        let mut irq = enabled(Trigger::Level);
        irq.set_line(true);
        let value = irq.list(33, true);
        assert_ne!(value & lr::EOI, 0, "resampled at the end of the interrupt");
        irq.set_line(false);
        let _ = irq.unlist(value);
        assert!(!irq.is_pending());
    }

    #[test]
    fn a_level_that_is_still_high_after_the_end_is_pending_again() {
        let mut irq = enabled(Trigger::Level);
        irq.set_line(true);
        let value = irq.list(33, true);
        let _ = irq.unlist(value & !lr::STATE);
        assert!(irq.is_deliverable());
    }

    #[test]
    fn a_level_is_never_listed_pending_and_active() {
        let mut irq = enabled(Trigger::Level);
        irq.set_line(true);
        let value = irq.list(33, true);
        let _ = irq.unlist(value ^ lr::STATE);
        assert_eq!(irq.list(33, true) & lr::STATE, lr::ACTIVE);
    }

    #[test]
    fn a_line_of_an_edge_interrupt_counts_only_when_it_rises() {
        let mut irq = enabled(Trigger::Edge);
        let taken = |irq: &mut Irq| {
            let pending = irq.is_pending();
            let _ = irq.clear_pending();
            pending
        };
        let seen = [false, true, true, false, true].map(|high| {
            irq.set_line(high);
            taken(&mut irq)
        });
        assert_eq!(seen, [false, true, false, false, true]);
    }

    #[test]
    fn a_write_that_makes_an_active_level_pending_takes_effect_at_its_end() {
        let mut irq = enabled(Trigger::Level);
        irq.set_line(true);
        let value = irq.list(33, true);
        irq.set_line(false);
        let _ = irq.unlist(value ^ lr::STATE);
        let _ = irq.write(BitReg::SetPending, true);
        let value = irq.list(33, true);
        assert_eq!(value & (lr::STATE | lr::EOI), lr::ACTIVE | lr::EOI);
        let _ = irq.unlist(value & !lr::STATE);
        assert!(irq.is_deliverable());
    }

    #[test]
    fn a_level_that_fell_while_active_causes_no_maintenance_interrupt() {
        let mut irq = enabled(Trigger::Level);
        irq.set_line(true);
        let value = irq.list(33, true);
        irq.set_line(false);
        let _ = irq.unlist(value ^ lr::STATE);
        assert_eq!(irq.list(33, true) & (lr::STATE | lr::EOI), lr::ACTIVE);
    }

    #[test]
    fn a_level_made_pending_by_a_write_stays_pending_until_it_is_acknowledged() {
        let mut irq = enabled(Trigger::Level);
        let _ = irq.write(BitReg::SetPending, true);
        let value = irq.list(33, true);
        assert!(irq.read(BitReg::SetPending));
        let _ = irq.unlist(value ^ lr::STATE);
        assert!(!irq.is_pending() && irq.is_active());
    }

    #[test]
    fn a_held_interrupt_is_linked_until_the_guest_deactivates_it() {
        let mut irq = enabled(Trigger::Level);
        irq.hold();
        let value = irq.list(27, true);
        assert_eq!(value & (lr::HW | lr::STATE), lr::HW | lr::PENDING);
        assert!(!irq.unlist(value ^ lr::STATE));
        let value = irq.list(27, true);
        assert_eq!(value & (lr::HW | lr::STATE), lr::HW | lr::ACTIVE);
        assert!(!irq.unlist(value & !lr::STATE), "the hardware has deactivated it");
        assert!(!irq.is_held());
    }

    #[test]
    fn clearing_a_held_pending_interrupt_deactivates_the_physical_one() {
        let mut irq = enabled(Trigger::Level);
        irq.hold();
        let change = irq.write(BitReg::ClearPending, true);
        assert_eq!(change, Change { changed: true, deactivate: true });
        assert!(!irq.is_held());
    }

    #[test]
    fn clearing_a_held_interrupt_that_is_listed_deactivates_it_when_it_is_unlisted() {
        let mut irq = enabled(Trigger::Level);
        irq.hold();
        let value = irq.list(27, true);
        assert!(!irq.write(BitReg::ClearPending, true).deactivate);
        assert!(!irq.is_pending());
        assert!(irq.unlist(value), "still pending in the list register, so the guest will not deactivate it");
        assert!(!irq.is_held() && !irq.is_pending());
    }

    #[test]
    fn clearing_a_pending_state_set_by_a_write_does_not_affect_a_linked_interrupt() {
        let mut irq = enabled(Trigger::Level);
        irq.hold();
        let value = irq.list(40, true);
        let _ = irq.write(BitReg::SetPending, true);
        assert!(!irq.write(BitReg::ClearPending, true).deactivate, "the guest may be about to deactivate it itself");
        assert!(!irq.unlist(value & !lr::STATE));
        assert!(!irq.is_held() && !irq.is_pending());
    }

    #[test]
    fn clearing_does_not_affect_an_interrupt_that_was_acknowledged() {
        let mut irq = enabled(Trigger::Level);
        irq.hold();
        let value = irq.list(27, true);
        let _ = irq.write(BitReg::ClearPending, true);
        assert!(!irq.unlist(value ^ lr::STATE));
        assert!(irq.is_active() && irq.is_held());
    }

    #[test]
    fn deactivating_a_held_active_interrupt_by_a_write_deactivates_the_physical_one() {
        let mut irq = enabled(Trigger::Level);
        irq.hold();
        let value = irq.list(27, true);
        let _ = irq.unlist(value ^ lr::STATE);
        assert!(irq.write(BitReg::ClearActive, true).deactivate);
        assert!(!irq.is_held() && !irq.is_active());
    }

    #[test]
    fn a_write_that_deactivates_a_listed_interrupt_takes_effect_when_it_is_unlisted() {
        let mut irq = enabled(Trigger::Edge);
        irq.pulse();
        let value = irq.list(40, true);
        let _ = irq.unlist(value ^ lr::STATE);
        let value = irq.list(40, true);
        let _ = irq.write(BitReg::ClearActive, true);
        let _ = irq.unlist(value);
        assert!(!irq.is_active());
    }

    #[test]
    fn a_write_that_activates_a_listed_interrupt_takes_effect_when_it_is_unlisted() {
        let mut irq = enabled(Trigger::Edge);
        irq.pulse();
        let value = irq.list(40, true);
        let _ = irq.write(BitReg::SetActive, true);
        let _ = irq.unlist(value & !lr::STATE);
        assert!(irq.is_active());
    }

    #[test]
    fn a_held_interrupt_that_a_write_made_active_is_linked_only_after_it_is_deactivated() {
        let mut irq = enabled(Trigger::Level);
        let _ = irq.write(BitReg::SetActive, true);
        irq.hold();
        let value = irq.list(50, true);
        assert_eq!(value & (lr::HW | lr::STATE), lr::ACTIVE, "this activation is not of the physical interrupt");
        assert!(!irq.unlist(value & !lr::STATE));
        assert!(irq.is_held());
        assert_eq!(irq.list(50, true) & (lr::HW | lr::STATE), lr::HW | lr::PENDING);
    }

    #[test]
    fn a_physical_interrupt_acknowledged_again_before_the_sync_is_linked_in_the_next_flush() {
        let mut irq = enabled(Trigger::Edge);
        irq.hold();
        let value = irq.list(50, true);
        irq.hold();
        assert!(!irq.unlist(value & !lr::STATE), "the guest has deactivated the first");
        assert!(irq.is_held_pending());
        assert_eq!(irq.list(50, true) & (lr::HW | lr::STATE), lr::HW | lr::PENDING);
    }

    #[test]
    fn a_disabled_interrupt_that_is_active_is_listed_as_active_only() {
        let mut irq = enabled(Trigger::Edge);
        irq.pulse();
        let value = irq.list(40, true);
        let _ = irq.unlist(value ^ lr::STATE);
        irq.pulse();
        let _ = irq.write(BitReg::ClearEnable, true);
        assert_eq!(irq.list(40, true) & lr::STATE, lr::ACTIVE);
    }
}
