//! Synchronous exits.
//!
//! A synchronous exit is handled in one of three ways: EL2 emulates the instruction, injects an exception that a real
//! machine could have raised, or stops the vCPU. None ends in a panic.
//!
//! A domU has *crashed* when EL2 can see that it cannot continue:
//!
//! * its exception vectors are not in its memory, so that it cannot fetch the handler of an exception;
//! * it faults again and again at one instruction of its own exception handler (for example, on a stack that is not
//!   mapped). EL2 sees this if it answers the fault: an access to an unmapped address, or an instruction that the guest
//!   does not have;
//! * all its vCPUs have switched themselves off;
//! * it reports a crash by SYSTEM_RESET2 with a vendor-specific reset_type.
//!
//! EL2 does not see what stays within EL1: a kernel that panics and spins, stage 1 faults without end, a loop with
//! interrupts masked. Such a domain hangs, in its own time, until it is ended with the debug key `K`.

use super::decode::{aarch32, inject, mmio, sysreg as trapped, walk};
use super::next::Next;
use super::smccc;
use crate::arch::esr::{self, Class, DataAbort, Esr, Fault, SysRegAccess, Wfx};
use crate::arch::features::ids::{Reg, reg};
use crate::arch::sysreg::{self, Readable, SCTLR_EL1, Writeable};
use crate::arch::vcpu::{GuestRegs, RawExit};
use crate::arch::{barrier, timer, tlb};
use crate::dev::vtimer::{CNTP_PPI, VTimer};
use crate::domain::Domain;
use crate::domain::lifecycle::End;
use crate::host::Host;
use crate::ids::Intid;
use crate::trace::{Event, count};
use crate::vcpu::{Again, Context, Vcpu, Work};
use crate::vgic::SgiGroup;
use crate::{log_each_second, log_limited};
use arrayvec::ArrayVec;
use core::fmt;

/// The number of consecutive faults at one instruction of its exception handler after which a domU counts as crashed.
const HANDLER_FAULTS: u32 = 1000;

/// How often in a row an instruction is executed again because EL2 has not found it. It is more than once, since EL2 does
/// not see what the guest does in between: it may have taken an exception and repaired its tables.
const AGAIN: u32 = 16;

/// M[3:0] of SPSR_EL2: exception level and stack pointer selection.
const PSTATE_MODE: u64 = 0xf;
/// M[4:0] of EL0t.
const PSTATE_EL0T: u64 = 0;

/// Whether SP is SP_EL1: M[0], in EL1h (DDI 0487, C5.2.19).
const fn uses_sp_el1(pstate: u64) -> bool {
    pstate & PSTATE_MODE == 0b0101
}

/// What a vCPU has to wait for before it goes on if vCPUs of its domain are recalled.
pub(super) fn recall_to_await(domain: &Domain) -> Option<Work> {
    (!domain.is_settled()).then(|| Work::Recall { load: None, since: timer::now() })
}

/// One synchronous exit.
pub(super) struct Exit<'a> {
    pub(super) host: &'static Host,
    pub(super) domain: &'a Domain,
    pub(super) vcpu: &'a Vcpu,
    pub(super) context: &'a mut Context,
}

impl Exit<'_> {
    fn count(&self, event: Event) {
        count(self.vcpu.cpu(), event);
    }

    fn advance(&mut self, esr: Esr) {
        let regs = &mut self.context.regs;
        regs.pc = regs.pc.wrapping_add(esr.length());
        if aarch32::is_aarch32(regs.pstate) {
            regs.pstate = aarch32::after_instruction(regs.pstate);
        }
    }

    /// Handles the exit.
    pub(super) fn sync(&mut self, exit: &RawExit) -> Next {
        let esr = Esr(exit.esr);
        match esr.class() {
            Class::Wfx => self.wfx(esr),
            Class::Hvc64 => {
                self.count(Event::ExitHvc);
                self.call(esr)
            }
            Class::Smc64 => {
                // An SMC traps before it is executed, unlike an HVC.
                self.count(Event::ExitSmc);
                self.advance(esr);
                self.call(esr)
            }
            Class::SysReg => {
                self.count(Event::ExitSysreg);
                self.system_register(esr)
            }
            Class::DataAbortLower => {
                self.count(Event::ExitDataAbort);
                self.data_abort(exit, false)
            }
            Class::InstrAbortLower => {
                self.count(Event::ExitInstrAbort);
                if !self.domain.is_dom0() && self.has_no_vectors() {
                    let _logged = log_each_second!(Warn, self.domain.id();
                        "{} {}: exception vectors at {:#x} are not in its memory: crashed",
                        self.domain.id(),
                        self.vcpu.id,
                        self.context.regs.pc
                    );
                    let why = format_args!("exception vectors at {:#x} are not in its memory", self.context.regs.pc);
                    return self.crash(why);
                }
                self.count(Event::AbortInjected);
                let entry = inject::instr_abort(&self.at(), exit.far, &esr.instr_abort());
                self.enter_exception(entry)
            }
            _ => {
                self.count(Event::ExitOther);
                self.undef(esr)
            }
        }
    }

    fn wfx(&mut self, esr: Esr) -> Next {
        self.count(Event::ExitWfx);
        self.advance(esr);
        match esr.wfx() {
            Wfx::Wfi => Next::Block,
            // A timed wait may end at any time.
            Wfx::Wfe | Wfx::Wfit | Wfx::Wfet => Next::Yield,
        }
    }

    fn call(&mut self, esr: Esr) -> Next {
        let [x0, x1, x2, x3, ..] = self.context.regs.x;
        let caller = smccc::Caller { host: self.host, domain: self.domain, vcpu: self.vcpu };
        let answer = smccc::call(&caller, esr.imm16(), [x0, x1, x2, x3]);
        if let Some(value) = answer.x0 {
            self.context.regs.set(0, value);
        }
        answer.next
    }

    /// Ends the domain, which cannot go on; the vCPU goes off.
    fn crash(&self, why: fmt::Arguments<'_>) -> Next {
        self.domain.terminate_because(End::Crash, why);
        Next::Off
    }

    /// Whether the instruction that could not be fetched is the first one of an EL1 exception vector. Then the guest
    /// could not fetch the handler of the abort either.
    fn has_no_vectors(&self) -> bool {
        const VECTORS: u64 = 0x800;
        let pc = self.context.regs.pc;
        let offset = pc.wrapping_sub(sysreg::VBAR_EL1.get());
        let el1 = self.context.regs.pstate & PSTATE_MODE != PSTATE_EL0T;
        el1 && offset < VECTORS && offset.is_multiple_of(0x80)
    }

    fn system_register(&mut self, esr: Esr) -> Next {
        let access = esr.sys_reg();
        let written = self.context.regs.get(access.rt);
        let mut port = SysRegs { exit: self };
        match trapped::emulate(access, written, &mut port) {
            trapped::Outcome::Read(value) => {
                self.context.regs.set(access.rt, value);
                self.advance(esr);
            }
            trapped::Outcome::Written => self.advance(esr),
            trapped::Outcome::Undef => {
                self.report_undef(access);
                return self.undef(esr);
            }
        }
        Next::Resume
    }

    fn report_undef(&self, access: SysRegAccess) {
        let SysRegAccess { op0, op1, crn, crm, op2, is_read, .. } = access;
        let verb = if is_read { "read" } else { "write" };
        log_limited!(Debug, self.domain.id();
            "{} {}: S{op0}_{op1}_C{crn}_C{crm}_{op2}: unsupported {verb} at pc {:#x}: injected an UNDEF exception",
            self.domain.id(),
            self.vcpu.id,
            self.context.regs.pc
        );
    }

    /// Performs a load that has recalled vCPUs, after they have left their guests.
    pub(super) fn load_again(&mut self, exit: &RawExit) -> Next {
        self.data_abort(exit, true)
    }

    /// Carries out an access to an emulated device. `again` says that it is a load that has recalled vCPUs before.
    fn data_abort(&mut self, exit: &RawExit, again: bool) -> Next {
        let esr = Esr(exit.esr);
        let abort = esr.data_abort();
        // All memory is readable and writable at stage 2, so the only permission faults are of walks that reach a device
        // (HCR_EL2.PTW). For others HPFAR_EL2 is UNKNOWN.
        let has_ipa = match abort.fault {
            Fault::Translation(_) | Fault::AccessFlag(_) | Fault::AddressSize(_) => true,
            Fault::Permission(_) => abort.s1ptw,
            _ => false,
        };
        if !has_ipa {
            return self.inject_data_abort(exit.far, &abort);
        }
        let ipa = esr::ipa(exit.hpfar, exit.far);
        let Some(_) = self.domain.emulated(ipa) else {
            self.count(Event::UnmappedAccess);
            return self.inject_data_abort(exit.far, &abort);
        };
        let mut insn = None;
        if mmio::needs_instruction(&abort) && !aarch32::is_aarch32(self.context.regs.pstate) {
            insn = self.instruction();
            if insn.is_none() {
                return self.execute_again(exit.far, &abort);
            }
        }
        let plan = match mmio::decode(&abort, exit.far, ipa, insn, &self.context.regs) {
            Ok(plan) => plan,
            Err(mmio::Refused::NotAnAccess) => {
                self.advance(esr);
                return Next::Resume;
            }
            Err(mmio::Refused::Unsupported) => return self.inject_data_abort(exit.far, &abort),
            Err(mmio::Refused::Changed) => return self.execute_again(exit.far, &abort),
        };
        if insn.is_some() {
            self.context.executed_again.times = 0;
        }
        let mut loaded: ArrayVec<(mmio::Load, u64), 2> = ArrayVec::new();
        for access in plan.accesses() {
            // The two registers of a load or store pair may lie in two devices, so each is a separate access.
            let device = self.domain.emulated(access.at);
            match (access.op, device) {
                (mmio::Op::Write(value), Some(device)) => {
                    let work = self.domain.mmio_write(self.vcpu.id, device, access.bytes, value);
                    // A pair of registers lies in one frame, so one store instruction starts one kind of work at most.
                    self.context.work = self.context.work.or(work);
                }
                (mmio::Op::Read(load), device) => {
                    let recalls = self.domain.recalls();
                    let raw = device.map_or(0, |device| self.domain.mmio_read(self.vcpu.id, device, access.bytes));
                    if !again && self.domain.recalls() != recalls {
                        // Even if they have left by now: they may not have when the state was read.
                        self.context.work = Some(Work::Recall { load: Some(*exit), since: timer::now() });
                        return Next::Resume;
                    }
                    let _ = loaded.try_push((load, raw));
                }
                (mmio::Op::Write(_), None) => {}
            }
        }
        for (load, raw) in loaded {
            self.context.regs.set(load.rt(), load.value(raw));
        }
        if let Some((base, value)) = plan.writeback {
            match base {
                mmio::Base::X(n) => self.context.regs.set(n, value),
                mmio::Base::Sp if uses_sp_el1(self.context.regs.pstate) => sysreg::SP_EL1.set(value),
                mmio::Base::Sp => sysreg::SP_EL0.set(value),
            }
        }
        self.advance(esr);
        if self.context.work.is_none() {
            self.context.work = recall_to_await(self.domain);
        }
        Next::Resume
    }

    /// The instruction at PC, read through the guest's stage 1; `None` if that does not lead to the guest's RAM.
    fn instruction(&self) -> Option<u32> {
        let features = self.host.features();
        let id = |reg: Reg| features.guest_id(0, 0, reg.crm, reg.op2).unwrap_or(0);
        let regime = walk::Regime {
            sctlr: SCTLR_EL1.get(),
            tcr: sysreg::TCR_EL1.get(),
            ttbr0: sysreg::TTBR0_EL1.get(),
            ttbr1: sysreg::TTBR1_EL1.get(),
            mmfr0: id(reg::MMFR0),
            mmfr1: id(reg::MMFR1),
            mmfr2: id(reg::MMFR2),
        };
        let el0 = self.context.regs.pstate & PSTATE_MODE == PSTATE_EL0T;
        let ram = self.domain.ram();
        let descriptor = |at| {
            let mut bytes = [0; 8];
            ram.read(at, &mut bytes).ok().map(|()| bytes)
        };
        let ipa = walk::fetch(&regime, self.context.regs.pc, el0, descriptor).ok()?;
        let mut word = [0; 4];
        ram.read(ipa, &mut word).ok()?;
        Some(u32::from_le_bytes(word))
    }

    /// Answers an access whose instruction is not where the guest's tables say, or is not the one that faulted: the guest
    /// has changed the one or the other without maintenance, or while EL2 looked. The guest executes the instruction
    /// again with empty TLB and instruction cache, so that the CPU fetches what EL2 would find, or takes the exception
    /// that the tables are worth.
    ///
    /// If that is of no use again and again (the CPU can walk tables in a device's memory, for example, and EL2 does not),
    /// the guest gets an external abort for the access. It would otherwise exit for ever.
    fn execute_again(&mut self, far: u64, abort: &DataAbort) -> Next {
        let pc = self.context.regs.pc;
        let again = &mut self.context.executed_again;
        let times = if again.pc == pc { again.times.saturating_add(1) } else { 1 };
        *again = Again { pc, times };
        if times > AGAIN {
            again.times = 0;
            return self.inject_data_abort(far, abort);
        }
        tlb::invalidate_stage1_local();
        Next::Resume
    }

    /// The guest state that an exception entry depends on.
    fn at(&self) -> inject::At {
        inject::At {
            pc: self.context.regs.pc,
            pstate: self.context.regs.pstate,
            vbar_el1: sysreg::VBAR_EL1.get(),
            sctlr_el1: sysreg::SCTLR_EL1.get(),
        }
    }

    fn undef(&mut self, esr: Esr) -> Next {
        self.count(Event::UndefInjected);
        let entry = inject::undef(&self.at(), esr);
        self.enter_exception(entry)
    }

    fn inject_data_abort(&mut self, far: u64, abort: &DataAbort) -> Next {
        self.count(Event::AbortInjected);
        log_limited!(Debug, self.domain.id();
            "{} {}: access to {far:#x} at pc {:#x} not allowed: injected a data abort",
            self.domain.id(),
            self.vcpu.id,
            self.context.regs.pc
        );
        let entry = inject::data_abort(&self.at(), far, abort);
        self.enter_exception(entry)
    }

    fn enter_exception(&mut self, entry: inject::Entry) -> Next {
        let faults = &mut self.context.handler_faults;
        *faults = match entry.recurs(sysreg::ELR_EL1.get(), sysreg::SPSR_EL1.get()) {
            true => faults.saturating_add(1),
            false => 0,
        };
        if *faults >= HANDLER_FAULTS && !self.domain.is_dom0() {
            let _logged = log_each_second!(Warn, self.domain.id();
                "{} {}: exception handler faults repeatedly at {:#x}: crashed",
                self.domain.id(),
                self.vcpu.id,
                entry.elr_el1
            );
            return self.crash(format_args!("exception handler faults repeatedly at {:#x}", entry.elr_el1));
        }
        self.context.regs.pc = entry.pc;
        self.context.regs.pstate = entry.pstate;
        sysreg::ELR_EL1.set(entry.elr_el1);
        sysreg::SPSR_EL1.set(entry.spsr_el1);
        sysreg::ESR_EL1.set(entry.esr_el1);
        if let Some(far) = entry.far_el1 {
            sysreg::FAR_EL1.set(far);
        }
        Next::Resume
    }
}

impl mmio::Registers for GuestRegs {
    fn x(&self, n: u8) -> u64 {
        self.get(n)
    }

    fn sp(&self) -> u64 {
        if uses_sp_el1(self.pstate) { sysreg::SP_EL1.get() } else { sysreg::SP_EL0.get() }
    }

    fn big_endian(&self) -> bool {
        if aarch32::is_aarch32(self.pstate) {
            return aarch32::is_big_endian(self.pstate);
        }
        let bit = if self.pstate & PSTATE_MODE == PSTATE_EL0T { SCTLR_EL1::E0E } else { SCTLR_EL1::EE };
        SCTLR_EL1.is_set(bit)
    }
}

/// What the emulation of trapped system registers needs.
struct SysRegs<'a, 'b> {
    exit: &'a mut Exit<'b>,
}

impl trapped::SysRegPort for SysRegs<'_, '_> {
    fn guest_id(&self, op1: u8, crn: u8, crm: u8, op2: u8) -> Option<u64> {
        self.exit.host.features().guest_id(op1, crn, crm, op2)
    }

    fn send_sgi(&mut self, kind: trapped::SgiKind, value: u64) {
        let group = match kind {
            trapped::SgiKind::Group0 => SgiGroup::Zero,
            trapped::SgiKind::Group1 | trapped::SgiKind::OtherGroup1 => SgiGroup::One,
        };
        let domain = self.exit.domain;
        domain.vgic().send_sgi(&domain.port(), self.exit.vcpu.id, value, group);
    }

    fn deactivate(&mut self, intid: Intid) {
        let domain = self.exit.domain;
        domain.vgic().deactivate(&domain.port(), self.exit.vcpu.id, intid);
    }

    fn counter(&self) -> u64 {
        timer::now()
    }

    fn timer(&mut self) -> &mut VTimer {
        &mut self.exit.context.timer
    }

    fn timer_changed(&mut self) {
        let now = timer::now();
        let level = self.exit.context.timer.level(now);
        let domain = self.exit.domain;
        domain.vgic().set_ppi_level(&domain.port(), self.exit.vcpu.id, CNTP_PPI, level);
        let deadline = self.exit.context.timer.deadline(now);
        self.exit.host.cpu(self.exit.vcpu.cpu()).timer.set_guest(deadline);
    }

    fn mdscr(&self) -> u64 {
        sysreg::MDSCR_EL1.get()
    }

    fn set_mdscr(&mut self, value: u64) {
        sysreg::MDSCR_EL1.set(value);
    }

    fn set_way(&mut self) {
        // Set/way operations affect only this CPU's caches, so a guest that may move between CPUs cannot rely on them.
        // EL2 never runs a guest's memory with caches off, so there are no stale lines to clean.
        barrier::dsb_sy();
    }
}
