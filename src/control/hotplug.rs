//! CPU hotplug: takes a CPU out of service and back in while guests run.
//!
//! Two debug keys request it. The CPU that handles the key chooses the CPU to take out and tells the scheduler to give
//! it no more vCPUs. The leaving CPU does the rest, in its run loop, when no vCPU is on it:
//!
//! 1. vCPUs that wait there move to other CPUs' run queues. vCPUs that are blocked with a timer on that CPU are woken,
//!    and block again elsewhere.
//! 2. SPIs, events, vPEs and doorbells move to another CPU ([`crate::gic::Gic::take_out`]). If that fails, the CPU
//!    stays in service.
//! 3. Interrupts that arrived meanwhile are handled, and masked LPIs are unmasked. Then the GIC CPU interface is
//!    disabled.
//! 4. PSCI CPU_OFF. Where the firmware does not implement it, the CPU waits at EL2 until it is requested again.
//!
//! A CPU returns by the same path as at boot, with the same stack and the same per-CPU block. It holds no state from
//! before: no vCPU's registers, and its TLB entries are invalidated.
//!
//! The boot CPU cannot be taken out: the firmware has no entry point for it, and it takes the console's interrupts.

use crate::arch::psci::{self, PsciError};
use crate::arch::sysreg::{self, Writeable};
use crate::arch::{barrier, timer};
use crate::console::line;
use crate::domain::irq;
use crate::domain::table::Domains;
use crate::gic::{TakeOutError, cpuif};
use crate::host::Host;
use crate::host::cpu_state::Hotplug;
use crate::ids::{CpuId, DomId, VcpuId};
use crate::mm::hw::El2;
use crate::mmio::Hw;
use core::fmt;
use doorward_api::Status;

/// The time within which a CPU that is about to call CPU_OFF must be off for the firmware, in microseconds.
const OFF_LIMIT_US: u64 = 1_000_000;

/// The states in which a CPU is out of service.
const OUT: [Hotplug; 2] = [Hotplug::Off, Hotplug::Parked];

/// Why a request was refused.
pub(super) enum Refusal {
    /// An earlier request is not finished.
    Busy(CpuId),
    /// The boot CPU cannot be taken out.
    BootCpu(CpuId),
    /// A vCPU on this CPU can run on no other CPU.
    Pinned(CpuId, DomId, VcpuId),
    /// The interrupts of the CPU could not be moved to another one.
    Gic(CpuId, TakeOutError),
    /// The CPU is out of service already.
    IsOut(CpuId),
    /// The CPU is not out of service, or can never be.
    IsIn(CpuId),
    /// No CPU is out of service.
    NoneIsOut,
    /// The firmware cannot start the CPU.
    Firmware(CpuId, PsciError),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Busy(cpu) => write!(f, "{cpu}: an earlier request is not finished"),
            Refusal::BootCpu(cpu) => {
                write!(f, "{cpu}: stays in service: it is the boot CPU, and takes the console's interrupts")
            }
            Refusal::Pinned(cpu, domain, vcpu) => {
                write!(f, "{cpu}: stays in service: {domain} {vcpu} can run on no other CPU")
            }
            Refusal::Gic(cpu, error) => write!(f, "{cpu}: stays in service: {error}"),
            Refusal::IsOut(cpu) => write!(f, "{cpu}: is out of service"),
            Refusal::IsIn(cpu) => write!(f, "{cpu}: is not out of service"),
            Refusal::NoneIsOut => f.write_str("no CPU is out of service"),
            Refusal::Firmware(cpu, error) => write!(f, "{cpu}: stays out of service: {error}"),
        }
    }
}

impl Refusal {
    /// The status by which a request of dom0's tools is answered.
    pub(super) fn status(&self) -> Status {
        match self {
            Refusal::Busy(_) => Status::Busy,
            Refusal::BootCpu(_) | Refusal::Pinned(..) => Status::LastCpu,
            Refusal::IsOut(_) | Refusal::IsIn(_) | Refusal::NoneIsOut => Status::WrongState,
            Refusal::Gic(..) | Refusal::Firmware(..) => Status::HardwareFailed,
        }
    }
}

/// Handles the debug key that takes the online CPU with the highest number out of service.
pub(super) fn take_out(domains: &Domains) {
    let host = domains.host;
    let last = host.cpus.last_online().ok_or(Refusal::NoneIsOut);
    if let Err(refusal) = last.and_then(|cpu| request_out(host, cpu)) {
        line(format_args!("{refusal}"));
    }
}

/// Asks an online CPU to leave service.
pub(super) fn request_out(host: &Host, cpu: CpuId) -> Result<(), Refusal> {
    if let Some(cpu) = host.cpus.first_in(&[Hotplug::Leaving, Hotplug::Returning]) {
        return Err(Refusal::Busy(cpu));
    }
    if !host.cpu(cpu).is_online() {
        return Err(Refusal::IsOut(cpu));
    }
    if host.cpu(cpu).place().is_none() {
        return Err(Refusal::BootCpu(cpu));
    }
    host.sched.take_offline(cpu).map_err(|vcpu| Refusal::Pinned(cpu, vcpu.domain, vcpu.id))?;
    host.cpu(cpu).set_hotplug(Hotplug::Leaving);
    host.send_kick(cpu);
    Ok(())
}

/// Takes this CPU, `cpu`, out of service, as was requested. No vCPU is on it. Returns when the CPU is in service:
/// because it could not leave, or because it was requested again without having been off.
pub fn leave(domains: &Domains, cpu: CpuId) {
    let host = domains.host;
    let state = host.cpu(cpu);
    let next = host.sched.next(cpu, timer::now());
    debug_assert!(next.is_none(), "{cpu}: a vCPU was placed on a CPU that leaves");
    state.set_online(false);
    // Orders the write of the flag before the reads of SPI routes in `take_out`: an SPI that another CPU routes here is
    // found below, or that CPU sees the flag (`Host::route_spi`).
    barrier::dsb_sy();
    let Some(to) = host.cpus.last_online() else { unreachable!("the boot CPU stays online") };
    let moved = match host.gic.take_out(cpu, to) {
        Ok(moved) => moved,
        Err(error) => {
            state.set_online(true);
            host.sched.bring_online(cpu);
            state.set_hotplug(Hotplug::InService);
            line(format_args!("{}", Refusal::Gic(cpu, error)));
            return;
        }
    };
    host.unload_stage2(cpu);
    state.set_registers_of(None);
    sysreg::CNTV_CTL_EL0.set(0);
    host.own_ppis().for_each(|ppi| host.gic.ppi_disable(cpu, ppi));
    // Kicks may be pending, and doorbells that arrived before they were moved.
    irq::take_all(domains, cpu);
    irq::unmask_all(domains, cpu);
    state.timer.shut_down(&mut |vcpu| _ = host.wake(vcpu));
    cpuif::shut();
    host.cpus.count_taken_out(moved.vpes);
    state.set_hotplug(Hotplug::Off);
    line(format_args!("{cpu}: out of service; moved to {to}: {moved}"));
    let error = psci::cpu_off();
    line(format_args!("{cpu}: CPU_OFF failed: {error}; waiting at EL2"));
    if state.change_hotplug(Hotplug::Off, Hotplug::Parked) {
        while state.hotplug() == Hotplug::Parked {
            barrier::wfe();
        }
    }
    if let Err(error) = host.bring_up(cpu) {
        log::error!("{cpu}: bring-up failed: {error}");
        barrier::park()
    }
}

/// Handles the debug key that takes the first CPU that is out back into service.
pub(super) fn take_back(domains: &Domains) {
    let host = domains.host;
    let first = host.cpus.first_in(&OUT).ok_or(Refusal::NoneIsOut);
    if let Err(refusal) = first.and_then(|cpu| request_back(host, cpu)) {
        line(format_args!("{refusal}"));
    }
}

/// Asks a CPU that has left service to return.
pub(super) fn request_back(host: &Host, cpu: CpuId) -> Result<(), Refusal> {
    if let Some(cpu) = host.cpus.first_in(&[Hotplug::Leaving, Hotplug::Returning]) {
        return Err(Refusal::Busy(cpu));
    }
    let state = host.cpu(cpu);
    let place = state.place().filter(|_| OUT.contains(&state.hotplug())).ok_or(Refusal::IsIn(cpu))?;
    state.set_hotplug(Hotplug::Returning);
    // A CPU that waits at EL2 sees the new state, and a CPU that is off is started. A CPU that is just calling CPU_OFF
    // either sees the new state, or can be started within the time limit.
    barrier::dsb_ishst();
    barrier::sev();
    let mut answer = Ok(());
    let _ = El2.wait(OFF_LIMIT_US, || {
        answer = place.start();
        answer != Err(PsciError::AlreadyOn) || state.hotplug() == Hotplug::InService
    });
    match answer {
        Ok(()) | Err(PsciError::OnPending) => Ok(()),
        // Refused, unless the CPU has returned without having been off.
        Err(error) if state.change_hotplug(Hotplug::Returning, Hotplug::Off) => Err(Refusal::Firmware(cpu, error)),
        Err(_) => Ok(()),
    }
}
