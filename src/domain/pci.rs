//! The PCI functions that a domU has: its PCI host, which EL2 emulates, and their resets.
//!
//! Accesses to configuration space come here. What they ask for is carried out at once, except a Function Level Reset: it
//! takes 100 ms and more, and goes on with each later access to configuration space, by which a driver finds out that the
//! function is back (PCI Express 6.0, 6.6.2).

use super::Domain;
use crate::arch::timer;
use crate::ids::DomId;
use crate::log_limited;
use crate::mm::hw::El2;
use crate::mm::stage2::{Attr, Stage2};
use crate::mm::tlb::Tlbs;
use crate::pci::Ecam;
use crate::pci::host_bridge::{Effect, HostBridge};
use crate::pci::reset::{Progress, Reset};
use crate::sync::{Lock, Rank};
use crate::util::range::Range;
use alloc::vec::Vec;

/// The PCI host of a domU.
pub struct PciHost {
    ecam: Range,
    state: Lock<State>,
}

struct State {
    bridge: HostBridge,
    /// The reset of the function in each slot, if one is under way.
    resets: Vec<Option<Reset>>,
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
    /// The host with its configuration space at `ecam`, a guest address. Its functions have been reset.
    #[must_use]
    pub fn new(ecam: Range, mut bridge: HostBridge) -> PciHost {
        let slots = bridge.functions().len();
        (0..slots).for_each(|slot| bridge.returns(&Ecam, slot));
        let resets = (0..slots).map(|_| None).collect();
        PciHost { ecam, state: Lock::new(Rank::Domain, State { bridge, resets }) }
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
                let rid = self.bridge.functions().get(slot).map_or(0, |function| function.facts().rid);
                log_limited!(Error, domain; "{domain}: PCI function {:02x}:{:02x}.{}: not back from a reset: {why}: it is not used again",
                    rid >> 8, rid >> 3 & 0x1f, rid & 7);
            }
        }
        *state = None;
        Resets::Done
    }

    /// Goes on with all resets.
    fn step_all(&mut self, domain: DomId, now_us: u64) -> Resets {
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

impl Domain {
    /// Loads from configuration space, at an offset in the ECAM.
    pub(super) fn pci_read(&self, offset: u64, bytes: u8) -> u64 {
        let Some(host) = &self.pci else { return u64::MAX };
        let mut state = host.state.lock();
        let _ = state.step_all(self.id, timer::now_us());
        state.bridge.read(&Ecam, offset, bytes).into()
    }

    /// Stores to configuration space, at an offset in the ECAM.
    pub(super) fn pci_write(&self, offset: u64, bytes: u8, value: u64) {
        let Some(host) = &self.pci else { return };
        let mut state = host.state.lock();
        let _ = state.step_all(self.id, timer::now_us());
        let effects = state.bridge.write(&Ecam, offset, bytes, value as u32);
        if effects.is_empty() {
            return;
        }
        // The lock of the host is held, so that two vCPUs that move BARs change stage 2 in the same order.
        let mut stage2 = self.stage2.lock();
        for effect in effects {
            match effect {
                Effect::Reset { slot } => {
                    let reset = state.bridge.functions().get(slot).and_then(|function| Reset::new(function.facts()));
                    if let Some(under_way) = state.resets.get_mut(slot) {
                        *under_way = reset;
                    }
                }
                effect => carry_out(self.id, &mut stage2, effect),
            }
        }
    }

    /// Stops the domain's functions: they begin no transaction, and their BARs are unmapped. Begins to reset them.
    pub fn begin_function_resets(&self) {
        let Some(host) = &self.pci else { return };
        let mut state = host.state.lock();
        let mut stage2 = self.stage2.lock();
        state.bridge.leave(&Ecam, |effect| carry_out(self.id, &mut stage2, effect));
        let State { bridge, resets } = &mut *state;
        for (function, reset) in bridge.functions().iter().zip(resets) {
            *reset = Some(Reset::or_silence(function.facts()));
        }
    }

    /// Goes on with resets.
    #[must_use]
    pub fn step_function_resets(&self) -> Resets {
        let Some(host) = &self.pci else { return Resets::Done };
        host.state.lock().step_all(self.id, timer::now_us())
    }
}

/// Maps or unmaps a BAR.
fn carry_out(domain: DomId, stage2: &mut Stage2<'static, El2, Tlbs>, effect: Effect) {
    let done = match effect {
        Effect::Map { at, to, .. } => stage2.map(at, to.base, to.size, Attr::PciWindow),
        Effect::Unmap { at, to } => stage2.unmap(at, to.size),
        Effect::Reset { .. } => Ok(()),
    };
    if let Err(error) = done {
        log_limited!(Error, domain; "{domain}: BAR: {effect:?}: {error}: the guest cannot access it");
    }
}
