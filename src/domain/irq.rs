//! Who gets a physical interrupt.
//!
//! EL2 runs with interrupts masked and takes them here, by asking: after an exit that an interrupt caused, in
//! the idle loop, and between stretches of long work. With EOImode = 1 an acknowledged interrupt is first
//! dropped (ICC_EOIR1_EL1) so that others can come, and deactivated when its owner is done: by EL2 for its own,
//! by the guest through a hardware-linked list register for the guest's (IHI 0069, 4.1.1 and 4.7).

use crate::arch::sysreg::{CNTV_CTL_EL0, ReadWriteable};
use crate::arch::timer;
use crate::domain::msi::follow;
use crate::gic::cpuif;
use crate::host::DomainRef;
use crate::host::hypervisor;
use crate::host::rate_limit::Meter;
use crate::ids::{CpuId, Intid, Lpi, VcpuId};
use crate::run::virtual_timer_line;
use crate::trace::{Event, count};

/// The SGI by which one CPU makes another look again.
pub const KICK: u8 = 0;

const KICK_INTID: Intid = Intid(KICK as u32);

/// Takes every interrupt that is pending on this CPU.
pub fn take_all(cpu: CpuId) {
    while let Some(intid) = cpuif::ack() {
        take(cpu, intid);
    }
}

fn take(cpu: CpuId, intid: Intid) {
    cpuif::eoi(intid);
    let hv = hypervisor();
    if let Some(lpi) = intid.lpi() {
        take_lpi(cpu, lpi);
        return;
    }
    match intid.0 {
        _ if intid == KICK_INTID => {
            // Nothing to do: having left the guest, or having woken up, is the message.
            count(cpu, Event::IrqKick);
            cpuif::deactivate(intid);
        }
        _ if intid == hv.machine.timer.virt => {
            count(cpu, Event::IrqVtimer);
            if !virtual_timer_line() {
                // It has fallen since: the vCPU that it was for has left this CPU, or its guest has set another time.
                cpuif::deactivate(intid);
                return;
            }
            let taken = hv.vcpu_of(cpu).is_some_and(|vcpu| {
                hv.domain(vcpu.domain).is_some_and(|domain| {
                    let port = domain.port();
                    domain.vgic.inject_hw_ppi(&port, vcpu.id, intid)
                })
            });
            if !taken {
                // Nobody runs here who could; a vCPU that starts here sets its timer anew.
                CNTV_CTL_EL0.modify(CNTV_CTL_EL0::IMASK::SET);
                cpuif::deactivate(intid);
            }
        }
        _ if intid == hv.machine.timer.hyp => {
            count(cpu, Event::IrqHtimer);
            let fired = hv.timer(cpu).fired(&mut |vcpu| {
                if hv.wake(vcpu) {
                    count(cpu, Event::WakeTimer);
                }
            });
            cpuif::deactivate(intid);
            if fired.relief {
                relieve(cpu);
            }
            if fired.resched {
                hv.sched.set_need_resched(cpu);
            }
            // One that sleeps in this CPU has its CNTP looked at before it enters.
            if !hv.sched.shares_cpus()
                && let Some(vcpu) = hv.vcpu_of(cpu)
            {
                hv.wake(&vcpu);
            }
        }
        _ if intid == hv.machine.gic.maintenance => {
            count(cpu, Event::IrqMaintenance);
            cpuif::deactivate(intid);
        }
        _ if Some(intid) == hv.console_irq => {
            crate::domain::input::take();
            cpuif::deactivate(intid);
        }
        32.. => {
            count(cpu, Event::IrqSpi);
            let taken = hv.domain_of_spi(intid).is_some_and(|domain| domain.vgic.inject_hw_spi(&domain.port(), intid));
            if !taken {
                count(cpu, Event::IrqUnknown);
                hv.gic.spi_disable(intid);
                cpuif::deactivate(intid);
            }
        }
        _ => {
            count(cpu, Event::IrqUnknown);
            hv.gic.ppi_disable(cpu, intid);
            cpuif::deactivate(intid);
        }
    }
}

fn take_lpi(cpu: CpuId, lpi: Lpi) {
    let hv = hypervisor();
    if let Some(vpe) = hv.gic.doorbell(lpi) {
        count(cpu, Event::IrqDoorbell);
        let owner = hv.vcpu_of_vpe(vpe);
        match owner.as_ref().and_then(|(domain, vcpu)| domain.vcpu(*vcpu)) {
            Some(vcpu) => {
                if !hv.wake(vcpu) {
                    count(cpu, Event::DoorbellSpurious);
                }
                meter(cpu, lpi, &vcpu.meter);
            }
            None => count(cpu, Event::IrqUnknown),
        }
        return;
    }
    count(cpu, Event::IrqLpi);
    let injected = hv.routes.get(lpi).is_some_and(|route| {
        hv.domain(route.domain).is_some_and(|domain| {
            let injected = domain.vgic.inject_lpi(&domain.port(), route.vcpu, route.vintid);
            if let Some(vcpu) = domain.vcpu(route.vcpu) {
                meter(cpu, lpi, &vcpu.meter);
                if hv.sched.shares_cpus() && follow(&hv.gic, &hv.routes, lpi, cpu, vcpu.cpu()) {
                    count(cpu, Event::LpiMove);
                }
            }
            injected
        })
    });
    if !injected {
        count(cpu, Event::IrqUnknown);
    }
}

/// An LPI or a doorbell was taken. Over its rate it is masked: beside that only what has it [`follow`] its vCPU issues an
/// ITS command.
fn meter(cpu: CpuId, lpi: Lpi, meter: &Meter) {
    let hv = hypervisor();
    if let Some(at) = hv.storms.took(&hv.gic, &hv.routes, lpi, meter, timer::now()) {
        count(cpu, Event::StormMask);
        hv.timer(cpu).relieve_at(at);
    }
}

/// Lets masked interrupts come again, those that may.
pub fn relieve(cpu: CpuId) {
    if let Some(at) = relieve_as_of(cpu, timer::now()) {
        hypervisor().timer(cpu).relieve_at(at);
    }
}

/// Lets all masked interrupts come again: this CPU's timer is not going to see to it.
pub fn relieve_all(cpu: CpuId) {
    let _nothing_later = relieve_as_of(cpu, u64::MAX);
}

/// When to come again.
fn relieve_as_of(cpu: CpuId, now: u64) -> Option<u64> {
    let hv = hypervisor();
    let of = |domain: Option<DomainRef<'_>>, vcpu: VcpuId| {
        domain.and_then(|domain| Some(domain.vcpu(vcpu)?.meter.relief_at(&hv.storms.rate)))
    };
    let relief = |lpi: Lpi| match hv.routes.get(lpi) {
        Some(route) => of(hv.domain(route.domain), route.vcpu),
        None => {
            let (domain, vcpu) = hv.vcpu_of_vpe(hv.gic.whose_doorbell(lpi)?)?;
            of(Some(domain), vcpu)
        }
    };
    let (again, unmasked) = hv.storms.relieve(&hv.gic, &hv.routes, now, relief);
    (0..unmasked).for_each(|_| count(cpu, Event::StormRelief));
    again
}
