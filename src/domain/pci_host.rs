//! The PCI host of a domU, which EL2 emulates, and the resets of the functions on its bus.

use crate::ids::{DomId, Sbdf, Streams};
use crate::log_limited;
use crate::pci::host_bridge::HostBridge;
use crate::pci::reset::{Progress, Reset};
use crate::pci::{ConfigSpace, Ecam};
use crate::sync::{Lock, Rank};
use crate::util::range::Range;
use alloc::vec::Vec;

/// The PCI host of a domU.
pub struct PciHost {
    ecam: Range,
    pub(super) state: Lock<State>,
}

/// The part of a PCI host that changes.
pub(super) struct State {
    pub(super) bridge: HostBridge,
    slots: Vec<Slot>,
}

/// What is known of the function in a slot, besides what the guest sees of it.
struct Slot {
    /// Its name on the machine.
    name: Sbdf,
    /// The stream of its DMA.
    stream: Streams,
    /// Its reset, if one is under way.
    reset: Option<Reset>,
    /// It has not come back from a reset: it is not reset again, and its stream reaches nothing for good.
    is_quarantined: bool,
}

/// How far the resets of a domain's functions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resets {
    /// They go on at this time, in microseconds, and not before.
    Until(u64),
    /// All functions have been reset, or do not come back.
    Done,
}

impl PciHost {
    /// The host with its configuration space at `ecam`, a guest address. Its functions have been reset; `names` are those that
    /// they have on the machine, with the streams of their DMA.
    #[must_use]
    pub fn new(ecam: Range, bridge: HostBridge, names: &[(Sbdf, Streams)]) -> PciHost {
        let mut state = State::new(bridge, names);
        (0..names.len()).for_each(|slot| state.bridge.returns(&Ecam, slot));
        PciHost { ecam, state: Lock::new(Rank::Domain, state) }
    }

    /// The number of functions.
    #[must_use]
    pub fn function_count(&self) -> usize {
        self.state.lock().slots.len()
    }

    /// The guest addresses of configuration space.
    #[must_use]
    pub fn ecam(&self) -> Range {
        self.ecam
    }
}

impl State {
    fn new(bridge: HostBridge, names: &[(Sbdf, Streams)]) -> State {
        let slot = |&(name, stream)| Slot { name, stream, reset: None, is_quarantined: false };
        State { bridge, slots: names.iter().map(slot).collect() }
    }

    /// The guest has asked for a reset of the function in a slot.
    pub(super) fn begin_reset(&mut self, index: usize) {
        let reset = self.bridge.functions().get(index).and_then(|function| Reset::new(function.facts()));
        if let Some(slot) = self.slots.get_mut(index) {
            slot.reset = reset;
        }
    }

    /// The domain has ended or begins anew: all functions that can be reset are silenced already, and are reset now.
    pub(super) fn begin_all_resets(&mut self) {
        let State { bridge, slots } = self;
        for (function, slot) in bridge.functions().iter().zip(slots) {
            slot.reset = (!slot.is_quarantined).then(|| Reset::or_silence(function.facts()));
        }
    }

    /// Goes on with a reset.
    fn step(
        &mut self,
        config: &impl ConfigSpace,
        domain: DomId,
        index: usize,
        now_us: u64,
        quarantine: &mut dyn FnMut(Streams),
    ) -> Resets {
        let Some(slot) = self.slots.get_mut(index) else { return Resets::Done };
        let Some(reset) = &mut slot.reset else { return Resets::Done };
        match reset.step(config, now_us) {
            Progress::Wait(until) => return Resets::Until(until),
            Progress::Done => self.bridge.returns(config, index),
            Progress::Quarantined(why) => {
                slot.is_quarantined = true;
                quarantine(slot.stream);
                let name = slot.name;
                log_limited!(Error, domain; "{domain}: {name}: not back from a reset: {why}: the guest cannot use it");
            }
        }
        slot.reset = None;
        Resets::Done
    }

    /// Goes on with all resets. Calls `quarantine` with the stream of each function that does not come back: it must
    /// reach nothing any more.
    pub(super) fn step_all(
        &mut self,
        config: &impl ConfigSpace,
        domain: DomId,
        now_us: u64,
        mut quarantine: impl FnMut(Streams),
    ) -> Resets {
        let mut all = Resets::Done;
        for index in 0..self.slots.len() {
            all = match (all, self.step(config, domain, index, now_us, &mut quarantine)) {
                (Resets::Until(a), Resets::Until(b)) => Resets::Until(a.min(b)),
                (Resets::Done, other) | (other, Resets::Done) => other,
            };
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Pa, SmmuId, StreamId};
    use crate::pci::BAR_COUNT;
    use crate::pci::fake::{self, Fake};
    use crate::pci::function::Facts;
    use crate::pci::virt::VirtualFunction;
    use crate::util::PAGE;

    /// Two of QEMU's NVMe controllers, of which the second does not come back from a reset.
    fn two_functions(fake: &Fake) -> State {
        let mut names = Vec::new();
        let mut functions = Vec::new();
        for (index, takes_us) in [50_000, u64::MAX].into_iter().enumerate() {
            let rid = (index as u16 + 1) << 3;
            let page = Pa(0x40_1000_0000 + u64::from(rid) * PAGE);
            fake.qemu(page, "nvme");
            let express = Some(0x80);
            fake.can_reset(page, fake::Resets { express, power: None, takes_us, quiet_us: 0, answer: u32::MAX });
            let mut facts = Facts::read(rid, page, fake).unwrap();
            facts.size_bars(fake).unwrap();
            let mut places = [None; BAR_COUNT];
            for (at, bar) in facts.bars.iter().enumerate() {
                places[at] = bar.map(|bar| Range::new(Pa(0x1000_0000 * (index as u64 + 1)), bar.size.max(PAGE)));
            }
            functions.push(VirtualFunction::new(facts, &places, true).unwrap());
            let stream = StreamId(rid.into());
            names.push((Sbdf { segment: 0, rid }, Streams { smmu: SmmuId(0), first: stream, last: stream }));
        }
        let window = Range::new(Pa(0x1000_0000), 0x2f00_0000);
        let mut state = State::new(HostBridge::new(&[window], functions), &names);
        (0..2).for_each(|slot| state.bridge.returns(fake, slot));
        state
    }

    /// Resets all functions, as when the domain begins anew. Returns the streams that are put into quarantine.
    fn reset_all(state: &mut State, fake: &Fake) -> Vec<u32> {
        let mut quarantined = Vec::new();
        state.bridge.leave(fake, |_| {});
        state.begin_all_resets();
        while let Resets::Until(until) =
            state.step_all(fake, DomId(1), fake.now.get(), |stream| quarantined.push(stream.first.0))
        {
            fake.now.set(until);
        }
        quarantined
    }

    #[test]
    fn a_function_that_is_not_back_from_a_reset_is_quarantined_and_not_reset_again() {
        let fake = Fake::default();
        let mut state = two_functions(&fake);
        let away = |state: &State| [0, 1].map(|slot: usize| state.bridge.functions()[slot].is_away());
        assert_eq!((reset_all(&mut state, &fake), away(&state)), (std::vec![0x10], [false, true]));
        assert_eq!(fake.resets.get(), 2);
        // The next restart: the first one is reset, and nothing is awaited of the second.
        let before = fake.now.get();
        assert_eq!((reset_all(&mut state, &fake), away(&state)), (Vec::new(), [false, true]));
        assert_eq!(fake.resets.get(), 3);
        assert!(fake.now.get() - before < 1_000_000, "the limit for one that does not come back is a minute");
    }
}
