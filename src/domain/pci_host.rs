//! The PCI host of a domU, which EL2 emulates, and the resets of the functions on its bus.

use crate::ids::{DomId, Sbdf};
use crate::log_limited;
use crate::pci::Ecam;
use crate::pci::host_bridge::HostBridge;
use crate::pci::reset::{Progress, Reset};
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
    /// The reset of the function in each slot, if one is under way.
    pub(super) resets: Vec<Option<Reset>>,
    /// The name that each function has on the machine.
    names: Vec<Sbdf>,
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
    /// they have on the machine.
    #[must_use]
    pub fn new(ecam: Range, mut bridge: HostBridge, names: Vec<Sbdf>) -> PciHost {
        let slots = bridge.functions().len();
        (0..slots).for_each(|slot| bridge.returns(&Ecam, slot));
        let resets = (0..slots).map(|_| None).collect();
        PciHost { ecam, state: Lock::new(Rank::Domain, State { bridge, resets, names }) }
    }

    /// The number of functions.
    #[must_use]
    pub fn function_count(&self) -> usize {
        self.state.lock().names.len()
    }

    /// The guest addresses of configuration space.
    #[must_use]
    pub fn ecam(&self) -> Range {
        self.ecam
    }
}

impl State {
    /// Goes on with a reset.
    fn step(&mut self, domain: DomId, slot: usize, now_us: u64) -> Resets {
        let Some(state) = self.resets.get_mut(slot) else { return Resets::Done };
        let Some(reset) = state else { return Resets::Done };
        match reset.step(&Ecam, now_us) {
            Progress::Wait(until) => return Resets::Until(until),
            Progress::Done => self.bridge.returns(&Ecam, slot),
            Progress::Quarantined(why) => {
                if let Some(name) = self.names.get(slot) {
                    log_limited!(Error, domain; "{domain}: {name}: not back from a reset: {why}: the guest cannot use it");
                }
            }
        }
        *state = None;
        Resets::Done
    }

    /// Goes on with all resets.
    pub(super) fn step_all(&mut self, domain: DomId, now_us: u64) -> Resets {
        let mut all = Resets::Done;
        for slot in 0..self.resets.len() {
            all = match (all, self.step(domain, slot, now_us)) {
                (Resets::Until(a), Resets::Until(b)) => Resets::Until(a.min(b)),
                (Resets::Done, other) | (other, Resets::Done) => other,
            };
        }
        all
    }
}
