//! What a CPU does all day: run its vCPU, see why it came back, sleep when there is nothing.

use crate::arch::el1::{El1Context, Present, VirtualTimer};
use crate::arch::fp::FpContext;
use crate::arch::sysreg::{self, CNTV_CTL_EL0, HCR_EL2, Readable, Writeable};
use crate::arch::vcpu::{GuestRegs, RawExit, Reason};
use crate::arch::vectors::enter;
use crate::arch::{features, ich, timer};
use crate::control::hotplug;
use crate::control::teardown;
use crate::domain::Domain;
use crate::domain::irq;
use crate::gic::v4::{self, EnterError};
use crate::host::Hypervisor;
use crate::host::cmdline::Vwfi;
use crate::host::hypervisor;
use crate::ids::{CpuId, Intid, VpeId};
use crate::run::exit;
use crate::sched::{Schedulable, Verdict, Why};
use crate::sync::ExclusiveGuard;
use crate::trace::{Event, count};
use crate::vcpu::list_regs;
use crate::vcpu::{Context, Vcpu};
use alloc::sync::Arc;

/// PPI of the physical timer that a guest programs through CNTP_*; emulated.
pub(crate) const CNTP_PPI: Intid = Intid(30);

/// CNTP_CTL_EL0.ENABLE.
const CNTP_ENABLE: u64 = 1;

/// A vCPU's way to a CPU that takes longer than this is not counted as its time.
const LONG_WAY_US: u64 = 200;

/// What to do after an exit has been handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Resume,
    /// Go on, unless another vCPU wants the CPU.
    Yield,
    /// Make way, and come back later.
    Preempt,
    /// Wait for an interrupt.
    Block,
    /// It is powered off.
    Off,
}

/// Runs whatever there is to run on `cpu`, for ever.
pub fn cpu_loop(cpu: CpuId) -> ! {
    let hv = hypervisor();
    let (present, long_way) = (Present::here(), timer::us_to_ticks(LONG_WAY_US));
    // The first vCPU comes when it is settled what guests have.
    let mut hcr = None;
    loop {
        if hv.hotplug.is_asked(cpu) {
            hotplug::leave(hv, cpu);
        }
        let next = hv.sched.next(cpu, timer::now());
        hv.timer(cpu).set_resched(hv.sched.next_resched_at(cpu));
        match next {
            Some(vcpu) => {
                teardown::pass_on(hv);
                let Some(domain) = hv.domain(vcpu.domain) else { unreachable!("a vCPU without a domain") };
                let hcr = *hcr.get_or_insert_with(|| features::program(hv.features()));
                let shares = hv.sched.shares_cpus();
                let late = Some(timer::now() + long_way);
                Stay { hv, domain: &domain, vcpu: &vcpu, cpu, present: &present, hcr, shares, resident: None, late }
                    .run();
            }
            None => {
                teardown::rest(hv, cpu);
                irq::take_all(cpu);
            }
        }
    }
}

/// Whether the virtual timer asserts its interrupt: enabled, not masked, condition met (DDI 0487, CNTV_CTL_EL0).
pub(crate) fn virtual_timer_line() -> bool {
    let ctl = CNTV_CTL_EL0::ENABLE::SET + CNTV_CTL_EL0::IMASK::CLEAR + CNTV_CTL_EL0::ISTATUS::SET;
    CNTV_CTL_EL0.matches_all(ctl)
}

/// One vCPU on this CPU, from switch-in to switch-out.
pub(crate) struct Stay<'a> {
    pub(crate) hv: &'static Hypervisor,
    pub(crate) domain: &'a Domain,
    pub(crate) vcpu: &'a Arc<Vcpu>,
    pub(crate) cpu: CpuId,
    /// What of EL1 this CPU has.
    pub(crate) present: &'a Present,
    /// HCR_EL2 on this CPU, without what is the vCPU's own.
    hcr: u64,
    /// Other vCPUs may come to this CPU: what this one has in it is saved when it goes.
    pub(crate) shares: bool,
    /// The right to be resident is this CPU's, not the vCPU's: it cannot leave this stack.
    pub(crate) resident: Option<v4::Resident>,
    /// From when on its way to this CPU has been long; `None` once it has been in the guest.
    pub(crate) late: Option<u64>,
}

impl Stay<'_> {
    fn run(&mut self) {
        if let Some(start) = self.vcpu.take_start() {
            self.power_on(start);
        }
        self.switch_in();
        let mut context = self.vcpu.own();
        let next = loop {
            if self.makes_way() {
                break Next::Preempt;
            }
            match self.once(&mut context) {
                Next::Resume => {}
                Next::Yield => self.hv.sched.set_need_resched(self.cpu),
                Next::Block if self.has_news(&context) => {}
                stop => break stop,
            }
        };
        drop(context);
        match next {
            Next::Off => self.off(),
            Next::Block => self.block(),
            Next::Preempt | Next::Resume | Next::Yield => self.preempt(),
        }
    }

    /// Tells the scheduler if it has taken long to come here. What stands behind that (a VMOVP, a lock) is short on a real
    /// machine; where CPUs are emulated it may be longer than a slice.
    fn note_delay(&mut self) {
        let now = timer::now();
        if self.shares && self.late.is_some_and(|late| now > late) {
            self.late = Some(now + timer::us_to_ticks(LONG_WAY_US));
            self.hv.sched.restart_slice(self.cpu, now);
            self.hv.timer(self.cpu).set_resched(self.hv.sched.next_resched_at(self.cpu));
        }
    }

    /// The state that PSCI promises at an entry point (DEN0022, 6.4): MMU off, interrupts masked, EL1h.
    fn power_on(&self, start: crate::vcpu::Start) {
        let mut context = self.vcpu.own();
        context.regs = GuestRegs { pc: start.entry.0, pstate: GuestRegs::PSTATE_EL1H_MASKED, ..GuestRegs::default() };
        context.regs.set(0, start.context);
        context.el1 = El1Context::reset();
        context.fp = FpContext::reset();
        context.vtimer = VirtualTimer::default();
        context.ich = ich::State::default();
        context.saved_from = None;
        context.timer = Default::default();
        context.serror = false;
        context.handler_faults = 0;
        self.vcpu.set_live(None);
        self.domain.vgic.reset_vcpu(&self.domain.port(), self.vcpu.id);
    }

    /// Whether the scheduler has somebody else for this CPU. It is asked when something has happened.
    fn makes_way(&mut self) -> bool {
        let sched = &self.hv.sched;
        if !self.shares || !sched.needs_resched(self.cpu) {
            return false;
        }
        self.note_delay();
        if sched.should_resched(self.cpu, timer::now()) == Verdict::Switch {
            // The time of the next look comes with the next vCPU. Until then it would be one that has passed: an interrupt
            // for nothing.
            return true;
        }
        self.hv.timer(self.cpu).set_resched(sched.next_resched_at(self.cpu));
        false
    }

    /// Whether it would be called back from its sleep at once, by something that is no vLPI. Not worth a look where
    /// sleeping costs next to nothing.
    fn has_news(&self, context: &Context) -> bool {
        if !self.shares {
            return false;
        }
        // The virtual timer may have fired just now.
        irq::take_all(self.cpu);
        context.timer.level(timer::now()) || self.domain.vgic.has_pending(self.vcpu.id, sysreg::ICH_VMCR_EL2.get())
    }

    fn preempt(&mut self) {
        let stopped = self.hv.sched.stop(self.cpu, timer::now());
        let _ = self.switch_out(Why::Preempt);
        self.vcpu.run.preempted();
        if let Some(vcpu) = stopped {
            self.hv.sched.requeue(self.cpu, vcpu, timer::now());
        }
    }

    fn block(&mut self) {
        let stopped = self.hv.sched.stop(self.cpu, timer::now());
        let vcpu = self.vcpu;
        // Once it has blocked, it may be on another CPU before the next instruction.
        if vcpu.run.block(|| self.switch_out(Why::Block)) {
            count(self.cpu, Event::Block);
            return;
        }
        count(self.cpu, Event::BlockCancelled);
        if let Some(vcpu) = stopped {
            self.hv.sched.requeue(self.cpu, vcpu, timer::now());
        }
    }

    fn off(&mut self) {
        let _stopped = self.hv.sched.stop(self.cpu, timer::now());
        let _ = self.switch_out(Why::Preempt);
        if !self.shares {
            CNTV_CTL_EL0.set(0);
            self.hv.timer(self.cpu).set_guest(None);
        }
        self.domain.vgic.reset_vcpu(&self.domain.port(), self.vcpu.id);
        self.vcpu.run.power_off();
        self.domain.vcpu_went_off();
    }

    /// One stay in the guest and what came of it.
    fn once(&mut self, context: &mut ExclusiveGuard<'_, Context>) -> Next {
        let (vcpu, vgic) = (self.vcpu, &self.domain.vgic);
        self.update_physical_timer(context);
        // From here on, whoever has something for this vCPU sends an SGI, which ends the stay before it begins.
        vcpu.entering();
        if self.domain.is_ending() {
            vcpu.left();
            return Next::Off;
        }
        self.deactivate_ppis();
        if !self.update_residency(context) {
            vcpu.left();
            return Next::Preempt;
        }
        if self.late.is_some() {
            self.note_delay();
            self.late = None;
        }
        vgic.flush(vcpu.id, &mut context.lrs);
        list_regs::load(&context.lrs);
        HCR_EL2.set(self.hcr(context));
        if let (Some(v4), Some(resident)) = (self.hv.gic.v4(), &self.resident) {
            v4.before_eret(resident);
        }
        let exit = enter(&mut context.regs);
        list_regs::store(&mut context.lrs);
        vcpu.left();
        if context.serror {
            // The CPU clears VSE when the guest takes the SError; until then it stays pending.
            context.serror = HCR_EL2.is_set(HCR_EL2::VSE);
        }
        let port = self.domain.port();
        let synced = vgic.sync(&port, vcpu.id, &mut context.lrs);
        let vtimer = self.hv.machine.timer.virt;
        if synced.hw_ppis_pending & 1 << vtimer.0 != 0 && !virtual_timer_line() {
            vgic.retract_hw_ppi(&port, vcpu.id, vtimer);
        }
        self.handle(context, &exit)
    }

    fn handle(&self, context: &mut Context, exit: &RawExit) -> Next {
        match exit.reason {
            Reason::Irq | Reason::Fiq => {
                count(self.cpu, Event::ExitIrq);
                irq::take_all(self.cpu);
                teardown::lend_a_hand(self.hv, self.cpu);
                Next::Resume
            }
            Reason::Sync => exit::Exit { hv: self.hv, domain: self.domain, vcpu: self.vcpu, context }.sync(exit),
            Reason::SError => {
                // The guest's access caused it: the guest gets it.
                count(self.cpu, Event::ExitSerror);
                context.serror = true;
                Next::Resume
            }
        }
    }

    fn hcr(&self, context: &Context) -> u64 {
        let mut hcr = self.hcr;
        let traps_waits = match self.hv.options.vwfi {
            Vwfi::Native => false,
            Vwfi::Trap => true,
            Vwfi::Auto => self.shares && self.hv.sched.is_contended(self.cpu),
        };
        if traps_waits {
            hcr |= (HCR_EL2::TWI::SET + HCR_EL2::TWE::SET).value;
        }
        if context.serror {
            hcr |= HCR_EL2::VSE::SET.value;
        }
        hcr
    }

    /// Sets PPI 30 and the soft timer after the guest's CNTP.
    fn update_physical_timer(&self, context: &mut Context) {
        if context.timer.ctl(0) & CNTP_ENABLE == 0 {
            return;
        }
        let now = timer::now();
        let level = context.timer.level(now);
        self.domain.vgic.set_ppi_level(&self.domain.port(), self.vcpu.id, CNTP_PPI, level);
        self.hv.timer(self.cpu).set_guest(context.timer.deadline(now));
    }

    /// What others have taken from this vCPU's physical PPIs since it was here last.
    fn deactivate_ppis(&self) {
        let mut ppis = self.vcpu.take_deactivations();
        while ppis != 0 {
            self.hv.gic.ppi_set_active(self.cpu, Intid(ppis.trailing_zeros()), false);
            ppis &= ppis - 1;
        }
    }

    /// Residency follows what the guest said about its LPIs (and, on GICv4.0, about group 1 at all). `false`: it cannot
    /// be entered here now.
    fn update_residency(&mut self, context: &mut Context) -> bool {
        let Some(v4) = self.hv.gic.v4() else { return true };
        let Some(vpe) = self.vcpu.vpe else { return true };
        let vgic = &self.domain.vgic;
        let wanted = vgic.lpis_on(self.vcpu.id) && (self.hv.gic.facts().v41 || vgic.group1_on());
        if wanted == self.resident.is_some() {
            return true;
        }
        match self.resident.take() {
            None => self.enter_residency(vpe, context),
            Some(resident) => {
                let _ = v4.leave(resident, v4::Why::Preempt);
                true
            }
        }
    }

    fn enter_residency(&mut self, vpe: VpeId, context: &mut Context) -> bool {
        let Some(v4) = self.hv.gic.v4() else { return true };
        let before = context.resident_on.replace(self.cpu);
        let moves = before.is_some_and(|before| before != self.cpu);
        let started = if moves { timer::now() } else { 0 };
        match v4.enter(vpe, self.cpu) {
            Ok(resident) => {
                self.resident = Some(resident);
                debug_assert_eq!((v4.is_resident(vpe), v4.home(vpe)), (Some(self.cpu), Some(self.cpu)), "{vpe}");
                if moves {
                    count(self.cpu, Event::VpeMove);
                    self.hv.sched.record_move_cost(timer::now() - started);
                }
                true
            }
            Err(error) => {
                context.resident_on = before;
                self.hv.complain(format_args!("{} runs without its {}: {}", self.vcpu.id, vpe, error));
                debug_assert!(
                    !matches!(error, EnterError::Elsewhere(_) | EnterError::Occupied(_)),
                    "{vpe} on {}: {error}",
                    self.cpu
                );
                if let EnterError::NotMoved { home } = error {
                    // It may run there and nowhere else (its interrupts go there).
                    self.vcpu.entity.affinity.set([home].into_iter());
                }
                !self.shares
            }
        }
    }
}
