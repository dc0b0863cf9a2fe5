//! The scheduler hook: what is done when a vCPU gets a CPU and when it gives it up.
//!
//! With `sched=null` a vCPU's system registers stay in its CPU; only its vPE's residency, and with it the doorbell,
//! changes. Where vCPUs share CPUs, all state that a guest can see is switched:
//!
//! | state | switch-out | switch-in |
//! |---|---|---|
//! | general registers | saved at each exit | restored at each entry |
//! | EL1 registers, pointer authentication keys, FP and SIMD | saved | restored, unless this CPU still holds them |
//! | CNTV | saved and disabled; EL2's timer keeps the deadline of a vCPU that blocks | restored last |
//! | CNTP | emulated: the same, but never in the CPU | |
//! | ICH_VMCR, ICH_AP*R | saved | restored, before residency |
//! | list registers | read back at each exit; cleared if used | |
//! | a physical PPI that is active for the guest | deactivated | made active again |
//! | residency | ended; the doorbell is armed if the vCPU blocks | begun before the first entry |
//! | TLB, instruction cache | | stage 1 entries invalidated if another vCPU of the domain ran here since |
//!
//! FP registers are switched eagerly. The 528 bytes take 42 of about 1,520 instructions in each direction, less than
//! the trap that lazy switching costs a guest that uses FP; Linux does in each of its own context switches.

use super::vcpu_run::VcpuRun;
use crate::arch::sysreg::{self, Readable, Writeable};
use crate::arch::{barrier, features, timer, tlb};
use crate::domain::irq;
use crate::gic::{cpuif, v4};
use crate::ids::Intid;
use crate::sched::{Found, Schedulable, Why};
use crate::trace::{Event, count};
use crate::util::bits::set_bits;
use crate::vcpu::{Context, list_regs};

impl VcpuRun<'_> {
    /// Restores the state that this CPU does not hold.
    fn load(&self, context: &mut Context) {
        let resumes = context.saved_from == Some(self.cpu);
        if !(resumes && self.state.holds_registers_of(self.vcpu)) {
            count(self.cpu, Event::Switch);
            context.el1.restore(self.present);
            context.fp.restore();
        }
        if context.saved_from.is_some() && !resumes {
            count(self.cpu, Event::Move);
        }
        context.ich.restore();
        // A level-sensitive PPI that the guest has not deactivated yet is made active before the timer is restored.
        // Otherwise EL2 would take the interrupt a second time.
        for ppi in set_bits(self.domain.vgic().held_ppis(self.vcpu.id)).map(Intid) {
            self.host.gic.ppi_set_active(self.cpu, ppi, true);
            debug_assert!(self.host.gic.ppi_is_active(self.cpu, ppi));
        }
        context.vtimer.load();
        barrier::isb();
    }

    /// Saves the state that this CPU holds.
    fn unload(&self, context: &mut Context) {
        context.vtimer.unload();
        context.el1.save(self.present);
        context.fp.save();
        context.ich.save();
        context.saved_from = Some(self.cpu);
        self.state.set_registers_of(Some(self.vcpu));
        for ppi in set_bits(self.domain.vgic().held_ppis(self.vcpu.id)).map(Intid) {
            cpuif::deactivate(ppi);
        }
        self.state.timer.set_guest(None);
        self.vcpu.set_live(None);
        for ppi in set_bits(self.vcpu.take_deactivations()).map(Intid) {
            self.host.gic.ppi_set_active(self.cpu, ppi, false);
        }
    }

    /// Whether the vCPU's virtual timer would interrupt it now, if it were in a CPU.
    fn timer_is_due(&self, context: &Context, now: u64) -> bool {
        // The level first: to look at the interrupt takes the vCPU's lock.
        context.vtimer.level(now) && {
            let view = self.domain.vgic().irq_state(self.vcpu.id, self.host.machine.timer.virt);
            view.is_some_and(|view| view.enabled && !view.held && !view.active)
        }
    }

    /// Sets this CPU's EL2 timer to wake the vCPU when one of its own timers is due.
    fn arm_wakeup(&self, context: &Context, now: u64) {
        let deadlines = [context.vtimer.deadline().filter(|&at| at > now), context.timer.deadline(now)];
        if let Some(at) = deadlines.into_iter().flatten().min() {
            self.vcpu.set_timer_cpu(self.cpu);
            self.state.timer.sleep(self.vcpu.clone(), at);
        }
    }
}

impl Schedulable for VcpuRun<'_> {
    type Context = Context;

    fn switch_in(&mut self, context: &mut Context) {
        let VcpuRun { host, domain, vcpu, cpu, .. } = *self;
        sysreg::VMPIDR_EL2.set(features::vmpidr(vcpu.affinity));
        domain.load_stage2(cpu);
        if let Some(other) = vcpu.take_timer_cpu() {
            host.cpu(other).timer.remove_sleeper(vcpu);
        }
        if vcpu.live_on() != Some(cpu) {
            debug_assert_eq!(vcpu.live_on(), None, "{} {}: its registers are in another CPU", domain.id(), vcpu.id);
            // No PPI is active for a vCPU whose state is in memory, so earlier requests to deactivate have no effect.
            let _ = vcpu.take_deactivations();
            // This is set before `load` reads which PPIs have to be active. A CPU that changes them later sees that the
            // vCPU is live on this CPU.
            vcpu.set_live(Some(cpu));
            self.load(context);
        }
        debug_assert!(list_regs::are_clear(), "{cpu}: list registers of the previous vCPU are not clear");
        if self.domain.ran_another_vcpu(cpu, vcpu.id) {
            count(cpu, Event::TlbClean);
            tlb::invalidate_stage1_local();
        }
        if self.shares {
            // The vCPU's timer may be due. If its interrupt is taken here, it does not cost an exit.
            irq::take_all(self.control.domains, cpu);
        }
    }

    fn switch_out(&mut self, why: Why, context: &mut Context) -> Found {
        // An SGI that is sent to a vPE that was not resident rings no doorbell.
        let deaf = self.resident.is_none() && self.domain.vgic().has_direct_sgis(self.vcpu.id);
        let mut found = if deaf { Found::Pending } else { Found::Nothing };
        if let (Some(v4), Some(resident)) = (self.host.gic.v4(), self.resident.take()) {
            let why = match why {
                Why::Preempt => v4::Why::Preempt,
                Why::Block => v4::Why::Block,
            };
            if v4.leave(resident, why).0 {
                found = Found::Pending;
            }
        }
        list_regs::clear_used(&mut context.lrs);
        if self.shares {
            self.unload(context);
        }
        if why == Why::Preempt {
            return found;
        }
        let now = timer::now();
        let vmcr = if self.shares { context.ich.vmcr } else { sysreg::ICH_VMCR_EL2.get() };
        let timer = context.timer.level(now) || (self.shares && self.timer_is_due(context, now));
        // The end of the domain counts as pending: the CPU that ended it may have found this vCPU running and not in
        // the guest, and then has not kicked it.
        if timer || self.domain.is_ending() || self.domain.vgic().has_pending(self.vcpu.id, vmcr) {
            found = Found::Pending;
        }
        if self.shares && found == Found::Nothing {
            self.arm_wakeup(context, now);
        }
        found
    }
}
