//! One vCPU on this CPU, from switch-in to switch-out.

use super::exit::{Exit, recall_to_await};
use super::next::Next;
use crate::arch::el1::{El1Context, Present, VirtualTimer};
use crate::arch::fp::FpContext;
use crate::arch::sysreg::{self, CNTV_CTL_EL0, HCR_EL2, Readable, Writeable};
use crate::arch::vcpu::{GuestRegs, RawExit, Reason};
use crate::arch::vectors::enter;
use crate::arch::{ich, timer};
use crate::control::Control;
use crate::dev::vtimer::{CNTP_PPI, VTimer};
use crate::domain::Domain;
use crate::domain::irq;
use crate::domain::ports;
use crate::domain::restart::Stepped;
use crate::gic::v4::{self, EnterError};
use crate::host::Host;
use crate::host::cmdline::Vwfi;
use crate::host::cpu_state::CpuState;
use crate::ids::{CpuId, Intid, VpeId};
use crate::log_limited;
use crate::mm::hw::El2;
use crate::mmio::Hw;
use crate::sched::{Found, Schedulable, Verdict, Why};
use crate::sync::ExclusiveGuard;
use crate::trace::{self, Event, count};
use crate::util::bits::set_bits;
use crate::util::progress::Progress;
use crate::vcpu::{Again, Context, Restart, Start, Vcpu, Work, list_regs};
use alloc::sync::Arc;

/// CNTP_CTL_EL0.ENABLE.
const CNTP_ENABLE: u64 = 1;

/// A switch to a vCPU that takes longer than this, in microseconds, is not counted as the vCPU's time.
pub(super) const LONG_SWITCH_US: u64 = 200;

/// A vCPU that takes longer than this to leave its guest after a recall, in microseconds, is reported.
const LONG_RECALL_US: u64 = 1_000_000;

/// A vCPU on this CPU, from switch-in to switch-out.
pub(super) struct VcpuRun<'a> {
    pub(super) control: &'static Control,
    pub(super) host: &'static Host,
    /// This CPU's state.
    pub(super) state: &'static CpuState,
    pub(super) domain: &'a Domain,
    pub(super) vcpu: &'a Arc<Vcpu>,
    pub(super) cpu: CpuId,
    /// The optional EL1 registers that this CPU has.
    pub(super) present: &'a Present,
    /// The value of HCR_EL2 on this CPU, without the bits that depend on the vCPU's state.
    pub(super) hcr: u64,
    /// Whether other vCPUs may run on this CPU: then this vCPU's state is saved when it is switched out.
    pub(super) shares: bool,
    /// The proof that the vPE is resident on this CPU. It is bound to the CPU and cannot leave this stack.
    pub(super) resident: Option<v4::Resident>,
    /// The time from which on the switch to this vCPU counts as long; `None` once the vCPU has been in the guest or has
    /// worked for its virtual ITSs.
    pub(super) late: Option<u64>,
}

impl VcpuRun<'_> {
    /// Runs the vCPU until it gives up the CPU.
    pub(super) fn run(&mut self) {
        let mut context = self.vcpu.own();
        if let Some(start) = self.vcpu.take_start() {
            self.power_on(start, &mut context);
        }
        self.switch_in(&mut context);
        let next = loop {
            if self.has_to_yield() {
                break Next::Preempt;
            }
            let next = match context.work {
                Some(work) => self.step(&mut context, work),
                None => self.enter_once(&mut context),
            };
            match next {
                Next::Resume => {}
                Next::Yield => self.host.sched.set_need_resched(self.cpu),
                Next::Block if self.has_pending(&context) => {}
                stop => break stop,
            }
        };
        match next {
            Next::Off => self.off(context),
            Next::Restarted => self.restarted(context),
            Next::Block => self.block(context),
            Next::Sleep => self.sleep(context),
            Next::Pause => self.pause(context),
            Next::Preempt | Next::Resume | Next::Yield => self.preempt(context),
        }
    }

    /// Restarts the slice if the switch to this vCPU took longer than [`LONG_SWITCH_US`]. The causes (a VMOVP, a lock)
    /// are short on real hardware, but may take longer than a slice where CPUs are emulated.
    fn report_long_switch(&mut self) {
        let now = timer::now();
        if self.shares && self.late.is_some_and(|late| now > late) {
            self.late = Some(now + timer::us_to_ticks(LONG_SWITCH_US));
            self.host.sched.restart_slice(self.cpu, now);
            self.state.timer.set_resched(self.host.sched.next_resched_at(self.cpu));
        }
    }

    /// Ends the switch to this vCPU: time from now on is the vCPU's.
    fn end_switch(&mut self) {
        if self.late.is_some() {
            self.report_long_switch();
            self.late = None;
        }
    }

    /// Sets the state that PSCI defines at an entry point (DEN0022, 6.4): MMU off, interrupts masked, EL1h.
    fn power_on(&self, start: Start, context: &mut Context) {
        context.regs = GuestRegs { pc: start.entry.0, pstate: GuestRegs::PSTATE_EL1H_MASKED, ..GuestRegs::default() };
        context.regs.set(0, start.context);
        context.el1 = El1Context::reset();
        context.fp = FpContext::reset();
        context.vtimer = VirtualTimer::default();
        context.ich = ich::State::default();
        context.saved_from = None;
        context.timer = VTimer::default();
        context.serror = false;
        context.handler_faults = 0;
        context.work = None;
        context.executed_again = Again::default();
        self.vcpu.set_live(None);
        self.domain.vgic().reset_vcpu(&self.domain.port(), self.vcpu.id);
    }

    /// Whether the scheduler has another vCPU for this CPU. The scheduler is asked only after something has changed.
    fn has_to_yield(&mut self) -> bool {
        let sched = &self.host.sched;
        if !self.shares || !sched.needs_resched(self.cpu) {
            return false;
        }
        self.report_long_switch();
        if sched.should_resched(self.cpu, timer::now()) == Verdict::Switch {
            // `cpu_loop` sets the time of the next decision with the next vCPU. Set here, it would be in the past and
            // cause a useless timer interrupt.
            return true;
        }
        self.state.timer.set_resched(sched.next_resched_at(self.cpu));
        false
    }

    /// Performs a step of what this vCPU has started, and takes physical interrupts after it, so that the scheduler's
    /// timer is handled. Like an exit because of an interrupt, a step also advances the teardown of other domains.
    fn step(&mut self, context: &mut Context, work: Work) -> Next {
        // The time of the work is not part of the switch: it is charged, and slices end during it.
        self.end_switch();
        let from = timer::now();
        let next = match work {
            Work::Its(work) => {
                context.work = match self.domain.step_its_work(work) {
                    Some(work) => Some(Work::Its(work)),
                    None => recall_to_await(self.domain),
                };
                Next::Resume
            }
            Work::Ports => {
                context.work = match ports::step(self.control.domains, self.domain) {
                    Progress::More => Some(Work::Ports),
                    Progress::Done => recall_to_await(self.domain),
                };
                Next::Resume
            }
            Work::Recall { load, since } => self.await_recall(context, load, since),
            Work::Restart(restart) => {
                let (left, next) = match self.domain.step_restart(restart) {
                    Stepped::More(left) => (Some(left), Next::Resume),
                    Stepped::Later(left) => (Some(left), Next::Sleep),
                    Stepped::Finished => (None, Next::Restarted),
                };
                context.work = left.map(Work::Restart);
                next
            }
        };
        trace::record_step(self.cpu, timer::now().saturating_sub(from));
        irq::take_all(self.control.domains, self.cpu);
        self.control.teardown.assist(self.cpu);
        self.control.poll_manage();
        // A domain that restarts has ended.
        if self.domain.is_ending() && !matches!(work, Work::Restart(_)) { Next::Off } else { next }
    }

    /// Looks whether the vCPUs that were recalled have left their guests, and if so, performs the load that waits for
    /// them. There is no deadline: the vCPU may not go on, and it keeps no CPU from other work. If a vCPU never leaves,
    /// the domain hangs until it is ended.
    fn await_recall(&self, context: &mut Context, load: Option<RawExit>, since: u64) -> Next {
        if !self.domain.is_settled() {
            El2.relax();
            if timer::now().saturating_sub(since) > timer::us_to_ticks(LONG_RECALL_US) {
                context.work = Some(Work::Recall { load, since: timer::now() });
                let (domain, vcpu) = (self.domain.id(), self.vcpu.id);
                log_limited!(Warn, domain; "{domain} {vcpu}: waits for another vCPU to leave its guest");
            }
            return Next::Resume;
        }
        context.work = None;
        match load {
            Some(exit) => self.exit(context).load_again(&exit),
            None => Next::Resume,
        }
    }

    fn exit<'a>(&'a self, context: &'a mut Context) -> Exit<'a> {
        Exit { host: self.host, domain: self.domain, vcpu: self.vcpu, context }
    }

    /// Whether an interrupt other than a vLPI is pending, so that blocking would end at once. If the CPU is not shared,
    /// blocking is cheap and this is not checked.
    fn has_pending(&self, context: &Context) -> bool {
        if !self.shares {
            return false;
        }
        // The virtual timer may have fired just now.
        irq::take_all(self.control.domains, self.cpu);
        context.timer.level(timer::now()) || self.domain.vgic().has_pending(self.vcpu.id, sysreg::ICH_VMCR_EL2.get())
    }

    /// Takes the vCPU off this CPU. It stays runnable.
    fn preempt(&mut self, mut context: ExclusiveGuard<'_, Context>) {
        let stopped = self.host.sched.stop(self.cpu, timer::now());
        let _ = self.switch_out(Why::Preempt, &mut context);
        drop(context);
        self.vcpu.run.preempted();
        if let Some(vcpu) = stopped {
            self.host.sched.requeue(self.cpu, vcpu, timer::now());
        }
    }

    /// Takes the vCPU off this CPU until an interrupt wakes it. If one is pending already, the vCPU stays runnable.
    fn block(&mut self, mut context: ExclusiveGuard<'_, Context>) {
        let stopped = self.host.sched.stop(self.cpu, timer::now());
        let vcpu = self.vcpu;
        let asleep = vcpu.run.block(|| {
            let found = self.switch_out(Why::Block, &mut context);
            // Once it is blocked, another CPU may run it before this CPU's next instruction.
            drop(context);
            found
        });
        if asleep {
            count(self.cpu, Event::Block);
            return;
        }
        count(self.cpu, Event::BlockCancelled);
        if let Some(vcpu) = stopped {
            self.host.sched.requeue(self.cpu, vcpu, timer::now());
        }
    }

    /// Takes the vCPU, whose domain is paused, off this CPU until it is woken. An interrupt wakes it, too: it then finds the
    /// pause again.
    fn pause(&mut self, mut context: ExclusiveGuard<'_, Context>) {
        let stopped = self.host.sched.stop(self.cpu, timer::now());
        let asleep = self.vcpu.run.block(|| {
            let _ = self.switch_out(Why::Preempt, &mut context);
            drop(context);
            // Who has ended the pause, or the domain, may have found this vCPU running, and has then not woken it.
            if self.domain.is_paused() && !self.domain.is_ending() { Found::Nothing } else { Found::Pending }
        });
        if !asleep && let Some(vcpu) = stopped {
            self.host.sched.requeue(self.cpu, vcpu, timer::now());
        }
    }

    /// Takes the vCPU, which performs the restart of its domain, off this CPU until the restart goes on or the vCPU is
    /// woken.
    fn sleep(&mut self, mut context: ExclusiveGuard<'_, Context>) {
        let until_us = match context.work {
            Some(Work::Restart(Restart::Wait { until_us } | Restart::Functions { until_us })) => until_us,
            _ => 0,
        };
        let stopped = self.host.sched.stop(self.cpu, timer::now());
        let vcpu = self.vcpu;
        let asleep = vcpu.run.block(|| {
            let _ = self.switch_out(Why::Preempt, &mut context);
            drop(context);
            vcpu.set_timer_cpu(self.cpu);
            self.state.timer.sleep(vcpu.clone(), timer::us_to_ticks(until_us));
            // The CPU that has ended the domain may have found this vCPU running, and has then not woken it.
            if self.domain.gives_up_restart() { Found::Pending } else { Found::Nothing }
        });
        if !asleep && let Some(vcpu) = stopped {
            self.host.sched.requeue(self.cpu, vcpu, timer::now());
        }
    }

    /// Powers the vCPU off. If this was its domain's last vCPU, it begins the domain's restart, or announces the domain
    /// to the teardown.
    fn off(&mut self, context: ExclusiveGuard<'_, Context>) {
        self.leave(context);
        if self.domain.count_power_off() && !self.domain.begin_restart(self.vcpu) && !self.domain.is_kept() {
            self.control.teardown.announce(self.cpu, self.domain.id());
        }
    }

    /// Powers the vCPU off, which has performed the restart of its domain, and starts the domain. Announces it to the
    /// teardown if it has been ended meanwhile.
    fn restarted(&mut self, context: ExclusiveGuard<'_, Context>) {
        self.leave(context);
        if !self.domain.finish_restart() {
            self.control.teardown.announce(self.cpu, self.domain.id());
        }
    }

    /// Takes the vCPU off this CPU and makes it `Off`.
    fn leave(&mut self, mut context: ExclusiveGuard<'_, Context>) {
        let _stopped = self.host.sched.stop(self.cpu, timer::now());
        let _ = self.switch_out(Why::Preempt, &mut context);
        drop(context);
        if !self.shares {
            CNTV_CTL_EL0.set(0);
            self.state.timer.set_guest(None);
        }
        self.domain.vgic().reset_vcpu(&self.domain.port(), self.vcpu.id);
        self.vcpu.run.power_off();
    }

    /// Enters the guest once, and handles the exit.
    fn enter_once(&mut self, context: &mut ExclusiveGuard<'_, Context>) -> Next {
        let (vcpu, vgic) = (self.vcpu, self.domain.vgic());
        self.update_physical_timer(context);
        // From here on, a CPU that makes an interrupt pending for this vCPU also sends an SGI. If it arrives before the
        // ERET, the vCPU exits from the guest at the first instruction.
        vcpu.entering();
        if self.domain.is_ending() {
            vcpu.left();
            return Next::Off;
        }
        if self.domain.is_paused() {
            vcpu.left();
            return Next::Pause;
        }
        self.deactivate_ppis();
        if !self.update_residency(context) {
            vcpu.left();
            return Next::Preempt;
        }
        if vgic.offers_direct_sgis() {
            vgic.update_sgis(&self.domain.port(), vcpu.id, self.resident.is_some());
        }
        self.end_switch();
        let port = self.domain.port();
        vgic.flush(&port, vcpu.id, &mut context.lrs);
        list_regs::load(&context.lrs);
        HCR_EL2.set(self.hcr(context));
        if let (Some(v4), Some(resident)) = (self.host.gic.v4(), &mut self.resident) {
            v4.before_eret(resident);
        }
        let exit = enter(&mut context.regs, self.present.ras());
        vcpu.count_exit();
        list_regs::store(&mut context.lrs);
        if context.serror {
            // The CPU clears VSE when the guest takes the virtual SError; until then it stays pending.
            context.serror = HCR_EL2.is_set(HCR_EL2::VSE);
        }
        if exit.serror {
            count(self.cpu, Event::ExitSerror);
            context.serror = true;
        }
        vgic.sync(&port, vcpu.id, &mut context.lrs);
        // A vCPU that has recalled this one goes on from here.
        vcpu.left();
        self.handle(context, &exit)
    }

    fn handle(&self, context: &mut Context, exit: &RawExit) -> Next {
        match exit.reason {
            Reason::Irq | Reason::Fiq => {
                count(self.cpu, Event::ExitIrq);
                irq::take_all(self.control.domains, self.cpu);
                self.control.teardown.assist(self.cpu);
                self.control.poll_manage();
                Next::Resume
            }
            Reason::Sync => self.exit(context).sync(exit),
            Reason::SError => {
                // An access of the guest caused the SError, so the guest gets it.
                count(self.cpu, Event::ExitSerror);
                context.serror = true;
                Next::Resume
            }
            Reason::OwnSError => {
                log_limited!(Warn; "{}: SError of EL2: ignored", self.cpu);
                Next::Resume
            }
        }
    }

    fn hcr(&self, context: &Context) -> u64 {
        let mut hcr = self.hcr;
        let traps_waits = match self.host.options.vwfi {
            Vwfi::Native => false,
            Vwfi::Trap => true,
            Vwfi::Auto => self.shares && self.host.sched.is_contended(self.cpu),
        };
        if traps_waits {
            hcr |= (HCR_EL2::TWI::SET + HCR_EL2::TWE::SET).value;
        }
        if context.serror {
            hcr |= HCR_EL2::VSE::SET.value;
        }
        hcr
    }

    /// Sets the level of PPI 30, and EL2's timer, from the guest's CNTP.
    fn update_physical_timer(&self, context: &mut Context) {
        if context.timer.ctl(0) & CNTP_ENABLE == 0 {
            return;
        }
        let now = timer::now();
        let level = context.timer.level(now);
        self.domain.vgic().set_ppi_level(&self.domain.port(), self.vcpu.id, CNTP_PPI, level);
        self.state.timer.set_guest(context.timer.deadline(now));
    }

    /// Deactivates the physical PPIs that other vCPUs have requested to deactivate since the last entry.
    fn deactivate_ppis(&self) {
        for ppi in set_bits(self.vcpu.take_deactivations()).map(Intid) {
            self.host.gic.ppi_set_active(self.cpu, ppi, false);
        }
    }

    /// Makes the vPE resident if the guest has enabled LPIs (and group 1, on GICv4.0), and ends its residency if not.
    /// On GICv4.1 it is made resident anew if the guest has enabled other interrupt groups than before. Returns `false`
    /// if the vCPU cannot enter the guest on this CPU now.
    fn update_residency(&mut self, context: &mut Context) -> bool {
        let Some(v4) = self.host.gic.v4() else { return true };
        let Some(vpe) = self.vcpu.vpe else { return true };
        let vgic = self.domain.vgic();
        let [group0, group1] = vgic.groups_on();
        let groups = v4::InterruptGroups { group0, group1 };
        let wanted = vgic.lpis_on(self.vcpu.id) && (group1 || !v4.needs_group1());
        match &self.resident {
            Some(resident) if wanted && (v4.needs_group1() || resident.groups() == groups) => return true,
            None if !wanted => return true,
            _ => {}
        }
        if let Some(resident) = self.resident.take() {
            let _ = v4.leave(resident, v4::Why::Preempt);
        }
        !wanted || self.enter_residency(vpe, groups, context)
    }

    fn enter_residency(&mut self, vpe: VpeId, groups: v4::InterruptGroups, context: &mut Context) -> bool {
        let Some(v4) = self.host.gic.v4() else { return true };
        let before = context.resident_on.replace(self.cpu);
        let moves = before.is_some_and(|before| before != self.cpu);
        let started = if moves { timer::now() } else { 0 };
        match v4.enter(vpe, self.cpu, groups) {
            Ok(resident) => {
                self.resident = Some(resident);
                debug_assert_eq!((v4.resident_on(vpe), v4.home(vpe)), (Some(self.cpu), Some(self.cpu)), "{vpe}");
                if moves {
                    count(self.cpu, Event::VpeMove);
                    self.host.sched.record_move_cost(timer::now() - started);
                }
                true
            }
            Err(error) => {
                context.resident_on = before;
                let (domain, vcpu) = (self.domain.id(), self.vcpu.id);
                let cpu = self.cpu;
                log_limited!(Warn, domain; "{domain} {vcpu}: {vpe}: cannot be made resident on {cpu}: {error}");
                debug_assert!(
                    !matches!(error, EnterError::Elsewhere(_) | EnterError::Occupied(_)),
                    "{vpe} on {}: {error}",
                    self.cpu
                );
                if let EnterError::NotMoved { home } = error {
                    // The vPE's interrupts still go to its home, so the vCPU may run only there.
                    self.vcpu.entity.affinity.set([home].into_iter());
                }
                !self.shares
            }
        }
    }
}
