//! Dispatch of a guest's HVC and SMC calls by the SMC Calling Convention (Arm DEN 0028).
//!
//! A function identifier names its owner in bits 29 to 24. `SERVICES` maps owners to handlers; a call to an owner that
//! is not in the table is answered NOT_SUPPORTED. To add a service, add a row.

use super::next::Next;
use crate::arch::power;
use crate::console;
use crate::dev::arch_calls;
use crate::dev::psci::{self, PsciAction, affinity, status};
use crate::domain::Domain;
use crate::domain::lifecycle::End;
use crate::host::Host;
use crate::ids::{Ipa, Mpidr};
use crate::log_each_second;
use crate::sched::State;
use crate::vcpu::{Start, Vcpu};

/// The vCPU that makes the call.
pub(super) struct Caller<'a> {
    pub(super) host: &'static Host,
    pub(super) domain: &'a Domain,
    pub(super) vcpu: &'a Vcpu,
}

/// How a call is answered.
pub(super) struct Answer {
    /// The value of X0; `None` leaves it unchanged.
    pub(super) x0: Option<u64>,
    /// What the vCPU does next.
    pub(super) next: Next,
}

impl Answer {
    const fn value(x0: u64) -> Answer {
        Answer { x0: Some(x0), next: Next::Resume }
    }

    const fn stop(next: Next) -> Answer {
        Answer { x0: None, next }
    }
}

/// A handler takes X0 to X3.
type Handler = fn(&Caller<'_>, [u64; 4]) -> Answer;

/// Owners of function identifiers (DEN 0028, table 6-1) and their handlers. PSCI is a Standard Secure Service.
const SERVICES: [(u64, Handler); 2] = [(OWNER_ARCH, architecture), (OWNER_STANDARD, psci)];

const OWNER_ARCH: u64 = 0;
const OWNER_STANDARD: u64 = 4;

/// The owner field of a function identifier, W0.
const fn owner(function: u64) -> u64 {
    function >> 24 & 0x3f
}

/// Answers a call, given X0 to X3 and the immediate of the HVC or SMC instruction.
pub(super) fn call(caller: &Caller<'_>, immediate: u16, x: [u64; 4]) -> Answer {
    match handler(immediate, x[0]) {
        Some(handler) => handler(caller, x),
        None => Answer::value(status::NOT_SUPPORTED),
    }
}

/// The handler of a function. The convention defines only the immediate 0.
fn handler(immediate: u16, function: u64) -> Option<Handler> {
    if immediate != 0 {
        return None;
    }
    SERVICES.iter().find(|&&(service, _)| service == owner(function)).map(|&(_, handler)| handler)
}

/// Whether a call is dispatched to a handler, given the immediate and X0.
#[cfg(any(test, fuzzing))]
#[must_use]
pub fn is_served(immediate: u16, function: u64) -> bool {
    handler(immediate, function).is_some()
}

fn architecture(caller: &Caller<'_>, x: [u64; 4]) -> Answer {
    let host = caller.host;
    let cpus = arch_calls::Cpus { protections: host.protections(), ssbs: host.features().ssbs() };
    Answer::value(arch_calls::call(x, cpus))
}

fn psci(caller: &Caller<'_>, x: [u64; 4]) -> Answer {
    let Caller { domain, vcpu, .. } = *caller;
    match psci::call(x) {
        PsciAction::Return(value) => Answer::value(value),
        PsciAction::CpuOn { target, entry, context } => Answer::value(cpu_on(domain, target, Start { entry, context })),
        PsciAction::AffinityInfo { target, level } => Answer::value(affinity_info(domain, target, level)),
        PsciAction::CpuOff => Answer::stop(Next::Off),
        // CPU_SUSPEND is handled as WFI: a request for a power-down state may be answered with a standby state (DEN
        // 0022, 5.4.2).
        PsciAction::Suspend => Answer { x0: Some(status::SUCCESS), next: Next::Block },
        PsciAction::SystemOff if !domain.is_dom0() => end(domain, End::Off),
        PsciAction::SystemReset if !domain.is_dom0() => end(domain, End::Reset),
        PsciAction::SystemCrash { cookie } if !domain.is_dom0() => {
            let _logged = log_each_second!(Warn, domain.id(); "{} {}: reported a crash by SYSTEM_RESET2: cookie {cookie:#x}", domain.id(), vcpu.id);
            domain.terminate_because(End::Crash, format_args!("reported by SYSTEM_RESET2, cookie {cookie:#x}"));
            Answer::stop(Next::Off)
        }
        PsciAction::SystemOff => {
            log::info!("{}: powered off: powering off the machine", domain.id());
            console::flush();
            power::off()
        }
        PsciAction::SystemReset => {
            log::info!("{}: reset: resetting the machine", domain.id());
            reset()
        }
        PsciAction::SystemCrash { cookie } => {
            log::error!(
                "{}: reported a crash by SYSTEM_RESET2: cookie {cookie:#x}: resetting the machine",
                domain.id()
            );
            reset()
        }
    }
}

fn reset() -> ! {
    console::flush();
    power::reset()
}

/// Ends the domain. The calling vCPU goes off.
pub(super) fn end(domain: &Domain, how: End) -> Answer {
    domain.terminate(how);
    Answer::stop(Next::Off)
}

fn cpu_on(domain: &Domain, target: Mpidr, start: Start) -> u64 {
    let Some(vcpu) = domain.vcpu_at(target) else { return status::INVALID_PARAMETERS };
    if !is_ram(domain, start.entry) {
        return status::INVALID_ADDRESS;
    }
    if domain.power_on(vcpu, start) {
        return status::SUCCESS;
    }
    if vcpu.is_starting() { status::ON_PENDING } else { status::ALREADY_ON }
}

fn is_ram(domain: &Domain, entry: Ipa) -> bool {
    domain.ram().translate(entry, 4).is_ok()
}

/// An affinity instance is on if any vCPU of it is (DEN 0022, 5.7).
fn affinity_info(domain: &Domain, target: Mpidr, level: u8) -> u64 {
    let matching = domain.vcpus().iter().filter(|vcpu| psci::matches(target, level, vcpu.affinity));
    let states = matching.map(|vcpu| match vcpu.run.get() {
        _ if vcpu.is_starting() => affinity::ON_PENDING,
        State::Off => affinity::OFF,
        _ => affinity::ON,
    });
    let by_rank = |state: &u64| [affinity::OFF, affinity::ON_PENDING, affinity::ON].iter().position(|s| s == state);
    states.max_by_key(by_rank).unwrap_or(status::INVALID_PARAMETERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psci_and_architecture_calls_have_a_handler_and_other_owners_have_none() {
        for function in [0x8400_0000, 0xc400_0003, 0x8000_0000, 0xffff_ffff_8400_0008] {
            assert!(handler(0, function).is_some(), "{function:#x}");
        }
        for function in [0x8600_0000, 0xc200_0000, 0xb200_0000] {
            assert!(handler(0, function).is_none(), "{function:#x}");
        }
    }

    #[test]
    fn an_immediate_other_than_0_is_another_convention() {
        assert!(handler(0x4a48, 0x8400_0008).is_none());
    }
}
