//! The SGIs and PPIs of one vCPU, its listed LPIs, and the registers of its redistributor.

use super::irq::{Irq, Trigger};
use super::lr::MAX_LIST_REGISTERS;
use super::regs::SPI_FIRST;
use crate::ids::VcpuId;
use crate::util::bits::{set_bits, to_bits};
use arrayvec::ArrayVec;

/// What a sync does with an LPI that comes back from a list register unacknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays pending on the vCPU.
    Keep,
    /// It is no longer pending.
    Drop,
    /// It becomes pending on this vCPU.
    Move(VcpuId),
}

/// What the lock of one vCPU guards. Numbers that a guest chooses are clamped before they get here, because most
/// look-ups are for numbers that it does not choose.
pub(super) struct Private {
    irqs: [Irq; SPI_FIRST as usize],
    /// The SGIs and PPIs that a flush has to consider, a bit for each.
    pub queued: u32,
    /// The PPIs whose physical interrupt is active, a bit for each.
    held: u32,
    /// The LPIs in list registers, and what becomes of each if it comes back unacknowledged.
    listed: ArrayVec<(u32, Fate), { MAX_LIST_REGISTERS }>,
    /// GICR_CTLR.EnableLPIs.
    pub lpis_on: bool,
    /// GICR_WAKER.ProcessorSleep.
    pub asleep: bool,
    /// GICR_PROPBASER and GICR_PENDBASER, as last written.
    pub propbaser: u64,
    pub pendbaser: u64,
}

impl Private {
    pub fn new() -> Private {
        let mut irqs = [Irq::new(Trigger::Level); SPI_FIRST as usize];
        for sgi in irqs.iter_mut().take(16) {
            *sgi = Irq::new(Trigger::Edge);
        }
        Private {
            irqs,
            queued: 0,
            held: 0,
            listed: ArrayVec::new(),
            lpis_on: false,
            asleep: true,
            propbaser: 0,
            pendbaser: 0,
        }
    }

    pub fn irq(&self, intid: u32) -> Option<&Irq> {
        self.irqs.get(intid as usize)
    }

    pub fn irq_mut(&mut self, intid: u32) -> Option<&mut Irq> {
        self.irqs.get_mut(intid as usize)
    }

    /// Updates the bits of an interrupt whose state has changed.
    pub fn requeue(&mut self, intid: u32) {
        let Some(irq) = self.irq(intid) else { return };
        let (queued, held) = (irq.is_queued(), irq.is_held());
        let mask = 1u32.wrapping_shl(intid);
        let put = |set: u32, member: bool| if member { set | mask } else { set & !mask };
        (self.queued, self.held) = (put(self.queued, queued), put(self.held, held));
    }

    /// Those of the interrupts `which` for which `what` is true.
    fn these(&self, which: u32, what: impl Fn(&Irq) -> bool) -> u32 {
        let has = |intid: &u32| self.irq(*intid).is_some_and(&what);
        to_bits(set_bits(which).filter(has))
    }

    /// The PPIs whose physical interrupt is active, a bit for each. Called at each switch.
    pub fn held(&self) -> u32 {
        debug_assert_eq!(self.held, self.these(u32::MAX, Irq::is_held));
        self.held
    }

    /// Those of [`held`](Self::held) that are pending as long as their lines are high.
    pub fn following_lines(&self) -> u32 {
        self.these(self.held(), Irq::follows_line)
    }

    /// Whether an SGI or PPI is in a list register.
    pub fn any_listed(&self) -> bool {
        self.irqs.iter().any(Irq::is_listed)
    }

    /// Records that an LPI goes into a list register.
    pub fn list_lpi(&mut self, index: u32) {
        let _ = self.listed.try_push((index, Fate::Keep));
    }

    /// Records that an LPI comes out of a list register, and returns its fate.
    pub fn unlist_lpi(&mut self, index: u32) -> Fate {
        let Some(at) = self.listed.iter().position(|(i, _)| *i == index) else { return Fate::Keep };
        self.listed.swap_pop(at).map_or(Fate::Keep, |(_, fate)| fate)
    }

    /// Sets the fate of an LPI if it is listed; returns whether it is.
    pub fn set_fate(&mut self, index: u32, fate: Fate) -> bool {
        let mut listed = false;
        for (_, old) in self.listed.iter_mut().filter(|(i, _)| *i == index) {
            *old = fate;
            listed = true;
        }
        listed
    }

    /// Sets the fate of all listed LPIs whose fate is `Keep`; returns whether any LPI is listed.
    pub fn set_all_fates(&mut self, fate: Fate) -> bool {
        for (_, old) in self.listed.iter_mut().filter(|(_, f)| *f == Fate::Keep) {
            *old = fate;
        }
        !self.listed.is_empty()
    }

    /// Whether an LPI is in a list register.
    pub fn has_listed_lpi(&self, index: u32) -> bool {
        self.listed.iter().any(|(i, _)| *i == index)
    }
}
