//! The PCI functions that a domU has: accesses to their configuration space, and their resets.
//!
//! What an access asks for is carried out at once, except a Function Level Reset: it takes 100 ms and more, and goes on with
//! each later access to configuration space, by which a driver finds out that the function is back (PCI Express 6.0,
//! 6.6.2).

use super::Domain;
use super::pci_host::{Resets, State};
use crate::arch::timer;
use crate::ids::DomId;
use crate::log_limited;
use crate::mm::hw::El2;
use crate::mm::stage2::{Attr, Stage2};
use crate::mm::tlb::Tlbs;
use crate::pci::Ecam;
use crate::pci::host_bridge::Effect;

impl Domain {
    /// Loads from configuration space, at an offset in the ECAM.
    pub(super) fn pci_read(&self, offset: u64, bytes: u8) -> u64 {
        let Some(host) = &self.pci else { return u64::MAX };
        let mut state = host.state.lock();
        let _ = self.step_resets(&mut state);
        state.bridge.read(&Ecam, offset, bytes).into()
    }

    /// Stores to configuration space, at an offset in the ECAM.
    pub(super) fn pci_write(&self, offset: u64, bytes: u8, value: u64) {
        let Some(host) = &self.pci else { return };
        let mut state = host.state.lock();
        let _ = self.step_resets(&mut state);
        let effects = state.bridge.write(&Ecam, offset, bytes, value as u32);
        if effects.is_empty() {
            return;
        }
        // The lock of the host is held, so that two vCPUs that move BARs change stage 2 in the same order.
        let mut stage2 = self.stage2.lock();
        for effect in effects {
            match effect {
                Effect::Reset { slot } => state.begin_reset(slot),
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
        state.begin_all_resets();
    }

    /// Goes on with resets.
    #[must_use]
    pub fn step_function_resets(&self) -> Resets {
        let Some(host) = &self.pci else { return Resets::Done };
        self.step_resets(&mut host.state.lock())
    }

    fn step_resets(&self, state: &mut State) -> Resets {
        state.step_all(&Ecam, self.id, timer::now_us(), |stream| self.host.iommu.quarantine(self.id, stream))
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
