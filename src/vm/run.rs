//! What a CPU does all day: run its vCPU, see why it came back, sleep when there is nothing.

use super::domain::Domain;
use super::vcpu::{Context, Vcpu};
use super::{Hypervisor, ends, exit, hypervisor, irq, lrs};
use crate::arch::el1::El1Context;
use crate::arch::vcpu::{GuestRegs, RawExit, Reason, enter};
use crate::arch::{barrier, features, sysreg, timer};
use crate::gic::v4;
use crate::ids::{CpuId, Intid};
use crate::sched::{Found, RunState, Schedulable, Why};
use crate::sync::Ownership;
use crate::trace::{Event, count};
use crate::vm::options::Vwfi;

/// PPI of the physical timer that a guest programs through CNTP_*; emulated.
pub(super) const CNTP_PPI: Intid = Intid(30);

/// CNTP_CTL_EL0.ENABLE.
const CNTP_ENABLE: u64 = 1;

/// What to do after an exit has been handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Resume,
    /// Wait for an interrupt.
    Block,
    /// It is powered off.
    Off,
}

/// Runs whatever there is to run on `cpu`, for ever.
pub fn cpu_loop(cpu: CpuId) -> ! {
    let hv = hypervisor();
    loop {
        irq::take_all(cpu);
        match hv.vcpu_of(cpu) {
            Some(vcpu) if vcpu.run.start_running() => {
                let Some(domain) = hv.domain(vcpu.domain) else { unreachable!("a vCPU without a domain") };
                Stay { hv, domain: &domain, vcpu: &vcpu, resident: None }.run();
            }
            _ if ends::chore(cpu) => {}
            _ => {
                hv.unload_stage2(cpu);
                barrier::wfi();
            }
        }
    }
}

/// Whether the virtual timer asserts its interrupt: enabled, not masked, condition met (DDI 0487, CNTV_CTL_EL0).
fn virtual_timer_line() -> bool {
    sysreg::CNTV_CTL_EL0.get() & 0b111 == 0b101
}

/// One vCPU on this CPU, from switch-in to switch-out.
struct Stay<'a> {
    hv: &'static Hypervisor,
    domain: &'a Domain,
    vcpu: &'a Vcpu,
    /// The right to be resident is this CPU's, not the vCPU's: it cannot leave this stack.
    resident: Option<v4::Resident>,
}

impl Stay<'_> {
    fn run(&mut self) {
        if let Some(start) = self.vcpu.take_start() {
            self.power_on(start);
        }
        self.switch_in();
        let mut context = self.vcpu.own();
        let next = loop {
            match self.once(&mut context) {
                Next::Resume => {}
                stop => break stop,
            }
        };
        drop(context);
        match next {
            Next::Off => {
                let _ = self.switch_out(Why::Preempt);
                sysreg::CNTV_CTL_EL0.set(0);
                timer::disarm();
                self.domain.vgic.reset_vcpu(&self.domain.port(), self.vcpu.id);
                self.vcpu.run.power_off();
                self.domain.vcpu_went_off();
            }
            _ => self.block(),
        }
    }

    /// The state that PSCI promises at an entry point (DEN0022, 6.4): MMU off, interrupts masked, EL1h.
    fn power_on(&self, start: super::vcpu::Start) {
        let mut context = self.vcpu.own();
        context.regs = GuestRegs { pc: start.entry.0, pstate: GuestRegs::PSTATE_EL1H_MASKED, ..GuestRegs::default() };
        context.regs.set(0, start.context);
        context.el1 = El1Context::reset();
        context.timer = Default::default();
        context.serror = false;
        self.domain.vgic.reset_vcpu(&self.domain.port(), self.vcpu.id);
        context.el1.restore();
        lrs::reset();
    }

    fn block(&mut self) {
        let cpu = self.vcpu.cpu;
        let run = &self.vcpu.run;
        let sleeps = run.block(|| self.switch_out(Why::Block));
        count(cpu, if sleeps { Event::Block } else { Event::BlockCancelled });
    }

    /// One stay in the guest and what came of it.
    fn once(&mut self, context: &mut Ownership<'_, Context>) -> Next {
        let (vcpu, vgic) = (self.vcpu, &self.domain.vgic);
        self.update_physical_timer(context);
        // From here on, whoever has something for this vCPU sends an SGI, which ends the stay before it begins.
        vcpu.entering();
        if self.domain.is_ending() {
            vcpu.left();
            return Next::Off;
        }
        self.update_residency();
        vgic.flush(vcpu.id, &mut context.lrs);
        lrs::load(&context.lrs);
        sysreg::HCR_EL2.set(self.hcr(context));
        if let (Some(v4), Some(resident)) = (self.hv.gic.v4(), &self.resident) {
            v4.before_eret(resident);
        }
        let exit = enter(&mut context.regs);
        lrs::store(&mut context.lrs);
        vcpu.left();
        if context.serror {
            // The CPU clears VSE when the guest takes the SError; until then it stays pending.
            context.serror = sysreg::HCR_EL2.get() & features::hcr::VSE != 0;
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
                count(self.vcpu.cpu, Event::ExitIrq);
                irq::take_all(self.vcpu.cpu);
                ends::chore(self.vcpu.cpu);
                Next::Resume
            }
            Reason::Sync => exit::Exit { hv: self.hv, domain: self.domain, vcpu: self.vcpu, context }.sync(exit),
            Reason::SError => {
                // The guest's access caused it: the guest gets it.
                count(self.vcpu.cpu, Event::ExitSerror);
                context.serror = true;
                Next::Resume
            }
        }
    }

    fn hcr(&self, context: &Context) -> u64 {
        let mut hcr = self.hv.features.controls().hcr;
        if self.hv.options.vwfi == Vwfi::Trap {
            hcr |= features::hcr::TWI | features::hcr::TWE;
        }
        if context.serror {
            hcr |= features::hcr::VSE;
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
        match context.timer.deadline(now) {
            Some(at) => timer::arm(at),
            None => timer::disarm(),
        }
    }

    /// Residency follows what the guest said about its LPIs (and, on GICv4.0, about group 1 at all).
    fn update_residency(&mut self) {
        let Some(v4) = self.hv.gic.v4() else { return };
        let Some(vpe) = self.vcpu.vpe else { return };
        let vgic = &self.domain.vgic;
        let wanted = vgic.lpis_on(self.vcpu.id) && (self.hv.gic.facts().v41 || vgic.group1_on());
        if wanted == self.resident.is_some() {
            return;
        }
        match self.resident.take() {
            None => match v4.enter(vpe, self.vcpu.cpu) {
                Ok(resident) => self.resident = Some(resident),
                Err(error) => self.hv.complain(format_args!("{} runs without its {}: {}", self.vcpu.id, vpe, error)),
            },
            Some(resident) => {
                let _ = v4.leave(resident, v4::Why::Preempt);
            }
        }
    }
}

/// The scheduler hook. With one vCPU for each CPU its system registers stay where they are; what comes and goes is
/// residency, and with it the doorbell.
impl Schedulable for Stay<'_> {
    fn switch_in(&mut self) {
        sysreg::VMPIDR_EL2.set(features::vmpidr(self.vcpu.affinity));
        self.hv.load_stage2(self.vcpu.cpu, self.domain);
        self.vcpu.own().lrs.forget();
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
        let timer = self.vcpu.own().timer.level(timer::now());
        if timer || self.domain.vgic.has_pending(self.vcpu.id, sysreg::ICH_VMCR_EL2.get()) {
            found = Found::Pending;
        }
        found
    }

    fn run_state(&self) -> &RunState {
        &self.vcpu.run
    }
}
