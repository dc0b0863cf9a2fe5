//! One interrupt below the LPIs: SGI, PPI or SPI.
//!
//! The state machine of IHI 0069, 4.1.2 (inactive, pending, active, active and pending), with what a list register
//! adds to it. While an interrupt is *listed*, the CPU interface owns its state: what software knows is what it put
//! there, and the truth comes back at the next fold. A guest's write to a listed interrupt therefore leaves a note
//! (the pending state is disowned, the active state is overruled) that the fold obeys.
//!
//! A *held* interrupt is a hardware-linked one whose physical twin is active: taken at EL2, priority dropped, not
//! deactivated. The list register links the two, so that the guest's deactivation ends both. Whoever ends the
//! virtual one by other means has to deactivate the physical one as well.
//!
//! Nothing here locks, and nothing knows which vCPU the interrupt is for.

use super::lr;
use super::regs::BitReg;
use bitflags::bitflags;

/// How an interrupt signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// While the line is high.
    Level,
    /// On a rising edge.
    Edge,
}

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(super) struct Flags: u16 {
        const ENABLED = 1 << 0;
        const GROUP1 = 1 << 1;
        const EDGE = 1 << 2;
        /// Pending by an edge, by a write, or by a physical interrupt.
        const LATCH = 1 << 3;
        /// The line of an emulated device is high.
        const LINE = 1 << 4;
        const ACTIVE = 1 << 5;
        /// The physical interrupt is active on this one's behalf.
        const HELD = 1 << 6;
        /// In a list register of a vCPU that may be running.
        const LISTED = 1 << 7;
        /// Was pending when it was listed, and nobody has said otherwise since.
        const LISTED_PENDING = 1 << 8;
        /// The latch went into the list register, and comes back if it was not acknowledged.
        const LISTED_LATCH = 1 << 9;
        /// Overruled while listed: it is not active.
        const DROP_ACTIVE = 1 << 10;
        /// Overruled while listed: it is active.
        const FORCE_ACTIVE = 1 << 11;
        /// Taken again while listed: the guest has ended the listed one, and its link is not this one's.
        const HELD_AGAIN = 1 << 12;
        /// Its list register is linked to the physical interrupt.
        const LINKED = 1 << 13;
        /// All that the fold ends.
        const WHILE_LISTED = Self::LISTED.bits()
            | Self::LISTED_PENDING.bits()
            | Self::LISTED_LATCH.bits()
            | Self::DROP_ACTIVE.bits()
            | Self::FORCE_ACTIVE.bits()
            | Self::HELD_AGAIN.bits()
            | Self::LINKED.bits();
    }
}

/// What a change asks of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[must_use]
pub(super) struct Change {
    /// The state is another one now.
    pub changed: bool,
    /// The physical interrupt has to be deactivated: nothing links it to the guest any more.
    pub deactivate: bool,
}

/// One SGI, PPI or SPI.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Irq {
    flags: Flags,
    /// Only implemented bits are ever set.
    pub priority: u8,
}

impl Irq {
    /// At reset: disabled, group 0, priority 0.
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

    /// Held, and the guest has not acknowledged it.
    pub fn is_held_pending(&self) -> bool {
        let others = self.has(Flags::LINKED) && !self.has(Flags::HELD_AGAIN);
        self.has(Flags::HELD | Flags::LATCH) && !others
    }

    /// Pending, as far as software knows without the list register.
    fn waits(&self) -> bool {
        self.has(Flags::LATCH) || (self.has(Flags::LINE) && !self.has(Flags::EDGE))
    }

    /// Pending, as a guest reads it.
    pub fn is_pending(&self) -> bool {
        self.waits() || self.has(Flags::LISTED_PENDING)
    }

    /// To be delivered once its group and its priority let it.
    pub fn is_deliverable(&self) -> bool {
        self.is_enabled() && !self.is_listed() && !self.is_active() && self.waits()
    }

    /// Must be looked at when list registers are filled.
    pub fn is_queued(&self) -> bool {
        !self.is_listed() && (self.is_active() || self.is_deliverable())
    }

    /// What a guest reads in one bit of a bit-per-interrupt register.
    pub fn read(&self, register: BitReg) -> bool {
        match register {
            BitReg::Group => self.is_group1(),
            BitReg::SetEnable | BitReg::ClearEnable => self.is_enabled(),
            BitReg::SetPending | BitReg::ClearPending => self.is_pending(),
            BitReg::SetActive | BitReg::ClearActive => self.is_active(),
        }
    }

    /// A guest writes `bit` to one bit of a bit-per-interrupt register.
    pub fn write(&mut self, register: BitReg, bit: bool) -> Change {
        let before = self.flags;
        let mut deactivate = false;
        match register {
            BitReg::Group => self.flags.set(Flags::GROUP1, bit),
            _ if !bit => {}
            BitReg::SetEnable => self.flags.insert(Flags::ENABLED),
            BitReg::ClearEnable => self.flags.remove(Flags::ENABLED),
            BitReg::SetPending => self.flags.insert(Flags::LATCH),
            BitReg::ClearPending => deactivate = self.clear_pending(),
            BitReg::SetActive => self.set_active(),
            BitReg::ClearActive => deactivate = self.clear_active(),
        }
        Change { changed: self.flags != before, deactivate }
    }

    /// Forgets a pending state; true when that leaves a physical interrupt active for nobody.
    pub fn clear_pending(&mut self) -> bool {
        let orphan = self.is_held_pending();
        if orphan {
            self.flags.remove(Flags::HELD | Flags::HELD_AGAIN);
        }
        self.flags.remove(Flags::LATCH | Flags::LISTED_PENDING | Flags::LISTED_LATCH);
        orphan
    }

    fn set_active(&mut self) {
        self.flags.insert(Flags::ACTIVE);
        if self.is_listed() {
            self.flags.insert(Flags::FORCE_ACTIVE);
            self.flags.remove(Flags::DROP_ACTIVE);
        }
    }

    /// Deactivates; true when the physical interrupt has to follow.
    pub fn clear_active(&mut self) -> bool {
        let was_active = self.is_active();
        self.flags.remove(Flags::ACTIVE);
        if self.is_listed() {
            self.flags.insert(Flags::DROP_ACTIVE);
            self.flags.remove(Flags::FORCE_ACTIVE);
            return false;
        }
        // A latch beside the active state means that the physical interrupt is the pending one's.
        let orphan = was_active && self.is_held() && !self.has(Flags::LATCH);
        if orphan {
            self.flags.remove(Flags::HELD);
        }
        orphan
    }

    /// Sets how it signals. A line that is high stays pending under level, and is forgotten under edge.
    pub fn set_trigger(&mut self, trigger: Trigger) -> bool {
        let before = self.flags;
        self.flags.set(Flags::EDGE, trigger == Trigger::Edge);
        self.flags != before
    }

    /// The line of an emulated device.
    pub fn set_line(&mut self, high: bool) {
        let rising = high && !self.has(Flags::LINE);
        self.flags.set(Flags::LINE, high);
        if rising && self.has(Flags::EDGE) {
            self.flags.insert(Flags::LATCH);
        }
    }

    /// One edge.
    pub fn pulse(&mut self) {
        self.flags.insert(Flags::LATCH);
    }

    /// The physical interrupt was taken at EL2 and stays active until the guest is done.
    ///
    /// It may come while the previous one is listed: the guest has ended that one in hardware, the interrupt was taken
    /// on another CPU, and the sync has not been yet.
    pub fn hold(&mut self) {
        if self.has(Flags::LISTED | Flags::HELD) {
            self.flags.insert(Flags::HELD_AGAIN);
        }
        self.flags.insert(Flags::HELD | Flags::LATCH);
    }

    /// Nothing pending, nothing active; the configuration and the level of the line stay. True when the physical
    /// interrupt has to be deactivated.
    pub fn quiesce(&mut self) -> bool {
        let orphan = self.is_held();
        self.flags &= Flags::ENABLED | Flags::GROUP1 | Flags::EDGE | Flags::LINE;
        orphan
    }

    /// Goes into a list register; `deliver` is false when its group is off and only the active state is to be seen.
    pub fn list(&mut self, intid: u32, deliver: bool) -> u64 {
        let active = self.is_active();
        let pending = deliver && self.is_enabled() && self.waits();
        // Pending beside active only where nothing is lost by it: a level is sampled again after the deactivation,
        // and a list register linked to hardware must not hold both (IHI 0069, ICH_LR<n>_EL2.HW).
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
            // A line that is high and may still be so when the guest is done, or a pending state that had to stay
            // behind: come back and look.
            value |= lr::EOI;
        }
        self.flags.insert(Flags::LISTED);
        value
    }

    /// Comes back out of a list register; true when the physical interrupt has to be deactivated.
    pub fn fold(&mut self, value: u64) -> bool {
        let (pending, active) = (value & lr::PENDING != 0, value & lr::ACTIVE != 0);
        let mut orphan = false;
        if pending && self.has(Flags::LISTED_LATCH) {
            self.flags.insert(Flags::LATCH);
        }
        if value & lr::HW != 0 && self.is_held() {
            let disowned = pending && !self.has(Flags::LISTED_LATCH);
            let overruled = active && self.has(Flags::DROP_ACTIVE);
            orphan = disowned || overruled;
            if orphan || (!pending && !active) {
                self.flags.set(Flags::HELD, self.has(Flags::HELD_AGAIN));
            }
        }
        let active = (active && !self.has(Flags::DROP_ACTIVE)) || self.has(Flags::FORCE_ACTIVE);
        self.flags.set(Flags::ACTIVE, active);
        self.flags.remove(Flags::WHILE_LISTED);
        orphan
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
        assert!(!irq.fold(value ^ lr::STATE), "acknowledged: pending becomes active");
        irq.pulse();
        let value = irq.list(40, true);
        assert_eq!(value & lr::STATE, lr::PENDING | lr::ACTIVE);
        assert!(!irq.fold(value & !lr::ACTIVE), "deactivated, not acknowledged again");
        assert!(irq.is_deliverable());
    }

    #[test]
    fn an_edge_that_comes_while_listed_is_delivered_again() {
        let mut irq = enabled(Trigger::Edge);
        irq.pulse();
        let value = irq.list(40, true);
        irq.pulse();
        let _ = irq.fold(value & !lr::STATE);
        assert!(irq.is_deliverable());
    }

    #[test]
    fn an_unacknowledged_edge_comes_back_out_of_the_list_register_once() {
        let mut irq = enabled(Trigger::Edge);
        irq.pulse();
        let value = irq.list(40, true);
        irq.pulse();
        let _ = irq.fold(value);
        assert!(irq.is_deliverable());
        let value = irq.list(40, true);
        let _ = irq.fold(value & !lr::STATE);
        assert!(!irq.is_pending(), "two edges before the acknowledge are one interrupt");
    }

    #[test]
    fn a_level_that_fell_before_the_acknowledge_is_no_longer_pending() {
        let mut irq = enabled(Trigger::Level);
        irq.set_line(true);
        let value = irq.list(33, true);
        assert_ne!(value & lr::EOI, 0, "resampled at the end of the interrupt");
        irq.set_line(false);
        let _ = irq.fold(value);
        assert!(!irq.is_pending());
    }

    #[test]
    fn a_level_that_is_still_high_after_the_end_is_pending_again() {
        let mut irq = enabled(Trigger::Level);
        irq.set_line(true);
        let value = irq.list(33, true);
        let _ = irq.fold(value & !lr::STATE);
        assert!(irq.is_deliverable());
    }

    #[test]
    fn a_level_is_never_listed_pending_and_active() {
        let mut irq = enabled(Trigger::Level);
        irq.set_line(true);
        let value = irq.list(33, true);
        let _ = irq.fold(value ^ lr::STATE);
        assert_eq!(irq.list(33, true) & lr::STATE, lr::ACTIVE);
    }

    #[test]
    fn a_line_that_is_taken_for_edges_counts_only_when_it_rises() {
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
    fn a_write_that_pends_an_active_level_is_seen_at_its_end() {
        let mut irq = enabled(Trigger::Level);
        irq.set_line(true);
        let value = irq.list(33, true);
        irq.set_line(false);
        let _ = irq.fold(value ^ lr::STATE);
        let _ = irq.write(BitReg::SetPending, true);
        let value = irq.list(33, true);
        assert_eq!(value & (lr::STATE | lr::EOI), lr::ACTIVE | lr::EOI);
        let _ = irq.fold(value & !lr::STATE);
        assert!(irq.is_deliverable());
    }

    #[test]
    fn a_level_that_fell_while_active_costs_no_maintenance_interrupt() {
        let mut irq = enabled(Trigger::Level);
        irq.set_line(true);
        let value = irq.list(33, true);
        irq.set_line(false);
        let _ = irq.fold(value ^ lr::STATE);
        assert_eq!(irq.list(33, true) & (lr::STATE | lr::EOI), lr::ACTIVE);
    }

    #[test]
    fn a_write_to_the_pending_register_pends_a_level_until_it_is_acknowledged() {
        let mut irq = enabled(Trigger::Level);
        let _ = irq.write(BitReg::SetPending, true);
        let value = irq.list(33, true);
        assert!(irq.read(BitReg::SetPending));
        let _ = irq.fold(value ^ lr::STATE);
        assert!(!irq.is_pending() && irq.is_active());
    }

    #[test]
    fn a_held_interrupt_is_linked_until_the_guest_deactivates_it() {
        let mut irq = enabled(Trigger::Level);
        irq.hold();
        let value = irq.list(27, true);
        assert_eq!(value & (lr::HW | lr::STATE), lr::HW | lr::PENDING);
        assert!(!irq.fold(value ^ lr::STATE));
        let value = irq.list(27, true);
        assert_eq!(value & (lr::HW | lr::STATE), lr::HW | lr::ACTIVE);
        assert!(!irq.fold(value & !lr::STATE), "the hardware has deactivated it");
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
    fn clearing_a_held_interrupt_that_is_listed_deactivates_it_at_the_fold() {
        let mut irq = enabled(Trigger::Level);
        irq.hold();
        let value = irq.list(27, true);
        assert!(!irq.write(BitReg::ClearPending, true).deactivate);
        assert!(!irq.is_pending());
        assert!(irq.fold(value), "still pending in the list register: nobody will deactivate it");
        assert!(!irq.is_held() && !irq.is_pending());
    }

    #[test]
    fn clearing_what_a_write_made_pending_leaves_a_linked_interrupt_alone() {
        let mut irq = enabled(Trigger::Level);
        irq.hold();
        let value = irq.list(40, true);
        let _ = irq.write(BitReg::SetPending, true);
        assert!(!irq.write(BitReg::ClearPending, true).deactivate, "the guest may be about to end it itself");
        assert!(!irq.fold(value & !lr::STATE));
        assert!(!irq.is_held() && !irq.is_pending());
    }

    #[test]
    fn clearing_comes_too_late_for_an_interrupt_that_was_acknowledged() {
        let mut irq = enabled(Trigger::Level);
        irq.hold();
        let value = irq.list(27, true);
        let _ = irq.write(BitReg::ClearPending, true);
        assert!(!irq.fold(value ^ lr::STATE));
        assert!(irq.is_active() && irq.is_held());
    }

    #[test]
    fn deactivating_a_held_active_interrupt_by_a_write_deactivates_the_physical_one() {
        let mut irq = enabled(Trigger::Level);
        irq.hold();
        let value = irq.list(27, true);
        let _ = irq.fold(value ^ lr::STATE);
        assert!(irq.write(BitReg::ClearActive, true).deactivate);
        assert!(!irq.is_held() && !irq.is_active());
    }

    #[test]
    fn deactivating_a_listed_interrupt_by_a_write_holds_over_the_fold() {
        let mut irq = enabled(Trigger::Edge);
        irq.pulse();
        let value = irq.list(40, true);
        let _ = irq.fold(value ^ lr::STATE);
        let value = irq.list(40, true);
        let _ = irq.write(BitReg::ClearActive, true);
        let _ = irq.fold(value);
        assert!(!irq.is_active());
    }

    #[test]
    fn activating_a_listed_interrupt_by_a_write_holds_over_the_fold() {
        let mut irq = enabled(Trigger::Edge);
        irq.pulse();
        let value = irq.list(40, true);
        let _ = irq.write(BitReg::SetActive, true);
        let _ = irq.fold(value & !lr::STATE);
        assert!(irq.is_active());
    }

    #[test]
    fn a_physical_interrupt_behind_a_software_active_one_is_linked_only_when_its_turn_comes() {
        let mut irq = enabled(Trigger::Level);
        let _ = irq.write(BitReg::SetActive, true);
        irq.hold();
        let value = irq.list(50, true);
        assert_eq!(value & (lr::HW | lr::STATE), lr::ACTIVE, "this activation is not the hardware's");
        assert!(!irq.fold(value & !lr::STATE));
        assert!(irq.is_held());
        assert_eq!(irq.list(50, true) & (lr::HW | lr::STATE), lr::HW | lr::PENDING);
    }

    #[test]
    fn a_physical_interrupt_taken_again_before_the_sync_of_the_last_is_still_linked() {
        let mut irq = enabled(Trigger::Edge);
        irq.hold();
        let value = irq.list(50, true);
        irq.hold();
        assert!(!irq.fold(value & !lr::STATE), "the guest has ended the first");
        assert!(irq.is_held_pending());
        assert_eq!(irq.list(50, true) & (lr::HW | lr::STATE), lr::HW | lr::PENDING);
    }

    #[test]
    fn a_disabled_interrupt_that_is_active_is_listed_for_its_deactivation_only() {
        let mut irq = enabled(Trigger::Edge);
        irq.pulse();
        let value = irq.list(40, true);
        let _ = irq.fold(value ^ lr::STATE);
        irq.pulse();
        let _ = irq.write(BitReg::ClearEnable, true);
        assert_eq!(irq.list(40, true) & lr::STATE, lr::ACTIVE);
    }
}
