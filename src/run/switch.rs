//! The scheduler hook: what is done when a vCPU gets a CPU and when it gives it up.
//!
//! With `sched=null` a vCPU's system registers stay in its CPU; what comes and goes is residency, and with it the
//! doorbell. Where CPUs are shared, everything that a guest can see is moved:
//!
//! | state | out | in |
//! |---|---|---|
//! | general registers | each exit | each entry |
//! | EL1's registers, keys of pointer authentication, FP and SIMD | saved | restored, unless this CPU still has them |
//! | CNTV | taken, and off; a sleeper's deadline is kept by EL2's timer | put back last |
//! | CNTP | emulated: as CNTV, but never in the CPU | |
//! | ICH_VMCR, ICH_AP*R | saved | restored, before residency |
//! | list registers | emptied into software at each exit; zero, where they held something | |
//! | a physical PPI that is active for the guest | deactivated | made active again |
//! | residency | left; the doorbell is armed if it sleeps | entered before the first entry |
//! | TLB, instruction cache | | cleaned if another vCPU of the domain ran here since |
//!
//! FP is moved eagerly: 528 bytes each way, 42 of a switch's 1,600 instructions, are less than the trap that laziness costs
//! a guest which uses FP, and Linux does, in each of its context switches.

use crate::arch::sysreg::{self, Readable, Writeable};
use crate::arch::{barrier, features, timer, tlb};
use crate::domain::irq;
use crate::gic::{cpuif, v4};
use crate::ids::Intid;
use crate::run::Stay;
use crate::sched::{Found, Schedulable, Why};
use crate::trace::{Event, count};
use crate::vcpu::Context;
use crate::vcpu::list_regs;

/// The interrupts in a mask of PPIs.
fn each(mut ppis: u32) -> impl Iterator<Item = Intid> {
    core::iter::from_fn(move || {
        let intid = (ppis != 0).then(|| Intid(ppis.trailing_zeros()));
        ppis &= ppis.wrapping_sub(1);
        intid
    })
}

impl Stay<'_> {
    /// Loads what is not in this CPU.
    fn load(&self, context: &mut Context) {
        let resumes = context.saved_from == Some(self.cpu);
        if !(resumes && self.hv.was_last_on(self.cpu, self.vcpu)) {
            count(self.cpu, Event::Switch);
            context.el1.restore(self.present);
            context.fp.restore();
        }
        if context.saved_from.is_some() && !resumes {
            count(self.cpu, Event::Move);
        }
        context.ich.restore();
        // A level that is taken already stays taken: active before its timer is on, or it would be taken twice.
        for ppi in each(self.domain.vgic.held_ppis(self.vcpu.id)) {
            self.hv.gic.ppi_set_active(self.cpu, ppi, true);
            debug_assert!(self.hv.gic.ppi_is_active(self.cpu, ppi));
        }
        context.vtimer.put();
        barrier::isb();
    }

    /// Takes everything out of this CPU.
    fn unload(&self, context: &mut Context) {
        context.vtimer.take();
        context.el1.save(self.present);
        context.fp.save();
        context.ich.save();
        context.saved_from = Some(self.cpu);
        self.hv.set_last_on(self.cpu, self.vcpu);
        for ppi in each(self.domain.vgic.held_ppis(self.vcpu.id)) {
            cpuif::deactivate(ppi);
        }
        self.hv.timer(self.cpu).set_guest(None);
        self.vcpu.set_live(None);
        for ppi in each(self.vcpu.take_deactivations()) {
            self.hv.gic.ppi_set_active(self.cpu, ppi, false);
        }
    }

    /// Whether its virtual timer would interrupt it, were it in a CPU.
    fn timer_is_due(&self, context: &Context, now: u64) -> bool {
        let intid = self.hv.machine.timer.virt;
        let view = self.domain.vgic.irq_state(self.vcpu.id, intid);
        context.vtimer.level(now) && view.is_some_and(|view| view.enabled && !view.held && !view.active)
    }

    /// Has this CPU's timer wake it when one of its own is due.
    fn keep_time(&self, context: &Context, now: u64) {
        let deadlines = [context.vtimer.deadline().filter(|&at| at > now), context.timer.deadline(now)];
        if let Some(at) = deadlines.into_iter().flatten().min() {
            self.vcpu.set_asleep_on(self.cpu);
            self.hv.timer(self.cpu).sleep(self.vcpu.clone(), at);
        }
    }
}

impl Schedulable for Stay<'_> {
    fn switch_in(&mut self) {
        let Stay { hv, domain, vcpu, cpu, .. } = *self;
        sysreg::VMPIDR_EL2.set(features::vmpidr(vcpu.affinity));
        hv.load_stage2(cpu, domain);
        if let Some(other) = vcpu.take_asleep_on() {
            hv.timer(other).forget(vcpu);
        }
        let mut context = vcpu.own();
        if vcpu.live_on() != Some(cpu) {
            debug_assert_eq!(vcpu.live_on(), None, "{} is in another CPU", vcpu.id);
            // What others wanted deactivated was not active: nothing of it was in a CPU.
            let _ = vcpu.take_deactivations();
            // Before anybody is asked what is to be active here: who changes that later finds it in this CPU.
            vcpu.set_live(Some(cpu));
            self.load(&mut context);
        }
        debug_assert!(list_regs::hold_nothing(), "{cpu} holds list registers of a vCPU that has left");
        drop(context);
        if self.domain.last_ran.changes(cpu, vcpu.id) {
            count(cpu, Event::TlbClean);
            tlb::forget_stage1_here();
        }
        if self.shares {
            // Its timer may have been due for long: taken here, it does not cost an exit.
            irq::take_all(cpu);
        }
    }

    fn switch_out(&mut self, why: Why) -> Found {
        let mut found = Found::Nothing;
        if let (Some(v4), Some(resident)) = (self.hv.gic.v4(), self.resident.take()) {
            let why = match why {
                Why::Preempt => v4::Why::Preempt,
                Why::Block => v4::Why::Block,
            };
            if v4.leave(resident, why).0 {
                found = Found::Pending;
            }
        }
        let mut context = self.vcpu.own();
        list_regs::give_up(&mut context.lrs);
        if self.shares {
            self.unload(&mut context);
        }
        if why == Why::Preempt {
            return found;
        }
        let now = timer::now();
        let vmcr = if self.shares { context.ich.vmcr } else { sysreg::ICH_VMCR_EL2.get() };
        let timer = context.timer.level(now) || (self.shares && self.timer_is_due(&context, now));
        // The domain's end too has to be looked for: who announced it may have found this vCPU awake and outside the guest.
        if timer || self.domain.is_ending() || self.domain.vgic.has_pending(self.vcpu.id, vmcr) {
            found = Found::Pending;
        }
        if self.shares && found == Found::Nothing {
            self.keep_time(&context, now);
        }
        found
    }
}
