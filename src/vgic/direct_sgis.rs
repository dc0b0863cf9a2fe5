//! SGIs that GICv4.1 delivers as virtual SGIs of a vPE: a guest's IPIs cost no exit on the receiving side.
//!
//! Virtual SGIs have no active state (IHI 0069, 6.5). So they are used once the guest has set GICD_CTLR.nASSGIreq,
//! which it may do if GICD_TYPER2.nASSGIcap says so. From then on no SGI of the guest has an active state, whoever
//! delivers it. The SGIs of a vCPU are *direct* while, in addition, its vPE is resident at each entry.
//!
//! | | software | direct |
//! |---|---|---|
//! | enable, group, priority | here | here, and in the GIC (VSGI) |
//! | pending state | here, or in a list register | in the GIC (GICR_VSGIPENDR) |
//! | another vCPU sends one | pending bit, kick | GITS_SGIR; the doorbell wakes a vCPU that sleeps |
//!
//! **Changes between the two.** A vCPU changes by itself, out of its guest, when its list registers are empty
//! ([`Vgic::update_sgis`]). Until then other vCPUs send it SGIs in the old way, which wakes it. Everything that concerns
//! the SGIs of a vCPU happens under its lock, the port's calls included: an SGI is sent either before the change, which
//! then carries it over, or after it.
//!
//! Virtual SGIs have four bits of priority; a fifth, which the registers have, takes effect in list registers only.

use super::port::Port;
use super::private::Private;
use super::regs::{BitReg, NASSGI_REQ};
use super::state::Vgic;
use super::vcpu::{Vcpu, Work};
use super::vcpu_set::VcpuSet;
use crate::gic::v4::SgiConfig;
use crate::ids::VcpuId;
use crate::util::bits::set_bits;
use core::sync::atomic::Ordering;

/// The SGIs in a register with one bit for each SGI and PPI.
pub(super) const SGIS: u32 = 0xffff;

/// How the GIC is to deliver an SGI.
fn config(state: &Private, sgi: u8) -> SgiConfig {
    let irq = state.irq(sgi.into());
    SgiConfig {
        enabled: irq.is_some_and(|irq| irq.is_enabled()),
        group1: irq.is_some_and(|irq| irq.is_group1()),
        priority: irq.map_or(0, |irq| irq.priority),
    }
}

impl Vgic {
    /// Offers SGIs without active state to the guest, because each of its vCPUs has a vPE with virtual SGIs.
    pub fn offer_direct_sgis(&self) {
        self.sgis_offered.store(true, Ordering::Relaxed);
        self.direct_sgis.store(true, Ordering::SeqCst);
    }

    /// Whether they were offered. It does not change after the guest has started.
    #[inline]
    #[must_use]
    pub fn offers_direct_sgis(&self) -> bool {
        self.sgis_offered.load(Ordering::Relaxed)
    }

    /// GICD_CTLR.nASSGIreq: SGIs have no active state.
    pub(super) fn sgis_are_never_active(&self) -> bool {
        self.ctlr.load(Ordering::SeqCst) & NASSGI_REQ != 0
    }

    /// Whether the SGIs of a vCPU are direct.
    #[must_use]
    pub fn has_direct_sgis(&self, vcpu: VcpuId) -> bool {
        self.offers_direct_sgis() && self.vcpu(vcpu).is_some_and(|cpu| cpu.direct_sgis.load(Ordering::SeqCst))
    }

    /// Makes the SGIs of a vCPU direct or not, as it has to be for the next entry. `resident`: its vPE is resident.
    /// Called by the CPU that runs the vCPU, after the sync.
    #[inline]
    pub fn update_sgis(&self, port: &dyn Port, vcpu: VcpuId, resident: bool) {
        let Some(cpu) = self.vcpus.get(vcpu.index()) else { return };
        let wanted = resident && self.sgis_are_never_active() && self.direct_sgis.load(Ordering::SeqCst);
        if cpu.direct_sgis.load(Ordering::SeqCst) != wanted {
            self.change_sgis(port, vcpu, cpu, wanted);
        }
    }

    #[cold]
    fn change_sgis(&self, port: &dyn Port, vcpu: VcpuId, cpu: &Vcpu, direct: bool) {
        let mut state = cpu.state.lock();
        if !direct {
            let _ = self.take_sgis_back(port, vcpu, cpu, &mut state);
            return;
        }
        cpu.direct_sgis.store(true, Ordering::SeqCst);
        self.configure_sgis(port, vcpu, cpu, &mut state, SGIS);
        for sgi in 0..16u8 {
            let Some(irq) = state.irq_mut(sgi.into()) else { continue };
            // If it cannot be sent, it stays pending here.
            if irq.is_pending() && self.send_direct(port, vcpu, cpu, &mut state, sgi) {
                let _ = state.irq_mut(sgi.into()).map(|irq| irq.write(BitReg::ClearPending, true));
                state.requeue(sgi.into());
            }
        }
    }

    /// Makes the SGIs of a vCPU pending in software that are pending in the GIC. Returns `false`, and leaves them there,
    /// if the GIC does not say which they are.
    fn take_sgis_back(&self, port: &dyn Port, vcpu: VcpuId, cpu: &Vcpu, state: &mut Private) -> bool {
        // What arrives from here on stays in the GIC until the SGIs are direct again.
        let off = SgiConfig { enabled: false, group1: false, priority: 0 };
        let _ = port.sgis_configure(vcpu, SGIS as u16, &|_| off);
        let Some(pending) = port.sgis_pending(vcpu) else {
            let _ = port.sgis_configure(vcpu, SGIS as u16, &|sgi| config(state, sgi));
            return false;
        };
        cpu.direct_sgis.store(false, Ordering::SeqCst);
        if pending != 0 {
            // Cleared first: one that is sent by another vCPU meanwhile is then followed by a delivery.
            let _ = port.sgis_clear(vcpu, pending);
        }
        for sgi in set_bits(pending) {
            let _ = state.irq_mut(sgi).map(|irq| irq.write(BitReg::SetPending, true));
            state.requeue(sgi);
        }
        cpu.add_work(Work::PRIVATE);
        true
    }

    /// Delivers the SGIs of a vCPU by software because the ITSs have failed, and offers direct SGIs no more. The other
    /// vCPUs follow before they enter next.
    #[cold]
    fn give_direct_sgis_up(&self, port: &dyn Port, vcpu: VcpuId, cpu: &Vcpu, state: &mut Private) {
        self.direct_sgis.store(false, Ordering::SeqCst);
        if !self.take_sgis_back(port, vcpu, cpu, state) {
            cpu.direct_sgis.store(false, Ordering::SeqCst);
        }
    }

    /// Makes the GIC deliver the SGIs `which` of a vCPU as the registers say, if they are direct.
    pub(super) fn configure_sgis(&self, port: &dyn Port, vcpu: VcpuId, cpu: &Vcpu, state: &mut Private, which: u32) {
        let which = (which & SGIS) as u16;
        if which != 0
            && cpu.direct_sgis.load(Ordering::SeqCst)
            && !port.sgis_configure(vcpu, which, &|sgi| config(state, sgi))
        {
            self.give_direct_sgis_up(port, vcpu, cpu, state);
        }
    }

    /// Makes a direct SGI of a vCPU pending in the GIC. `false`: the SGIs are not direct (any more), so it has to become
    /// pending in software.
    pub(super) fn send_direct(&self, port: &dyn Port, vcpu: VcpuId, cpu: &Vcpu, state: &mut Private, sgi: u8) -> bool {
        if !cpu.direct_sgis.load(Ordering::SeqCst) {
            return false;
        }
        let sent = port.sgi_send(vcpu, sgi);
        if !sent {
            self.give_direct_sgis_up(port, vcpu, cpu, state);
        }
        sent
    }

    /// The SGIs of a vCPU that are pending in the GIC, one bit each. Called under the vCPU's lock.
    pub(super) fn direct_pending(&self, port: &dyn Port, vcpu: VcpuId, cpu: &Vcpu) -> u32 {
        if cpu.direct_sgis.load(Ordering::SeqCst) { port.sgis_pending(vcpu).unwrap_or(0).into() } else { 0 }
    }

    /// Clears the pending state that the SGIs `which` of a vCPU have in the GIC. Called under the vCPU's lock.
    pub(super) fn clear_direct(&self, port: &dyn Port, vcpu: VcpuId, cpu: &Vcpu, which: u32) {
        let which = (which & SGIS) as u16;
        if which != 0 && cpu.direct_sgis.load(Ordering::SeqCst) {
            let _ = port.sgis_clear(vcpu, which);
        }
    }

    /// Carries out a change of GICD_CTLR.nASSGIreq: without an active state, no SGI is active.
    pub(super) fn nassgi_changed(&self, port: &dyn Port, from: VcpuId) {
        if self.sgis_are_never_active() {
            for cpu in &self.vcpus {
                let mut state = cpu.state.lock();
                for sgi in set_bits(SGIS) {
                    let _ = state.irq_mut(sgi).map(|irq| irq.write(BitReg::ClearActive, true));
                    state.requeue(sgi);
                }
            }
        }
        // Each vCPU looks at the bit before it enters.
        self.notify(port, Some(from), &VcpuSet::first(self.vcpus.len()), Work::PRIVATE);
    }
}

#[cfg(test)]
mod on_model;
#[cfg(test)]
mod tests;
