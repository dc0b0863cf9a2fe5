//! Physical interrupts: which domain, or which part of EL2, handles each of them.
//!
//! EL2 runs with interrupts masked and acknowledges them here, by reading ICC_IAR1_EL1: after an exit that an interrupt
//! caused, in the idle loop, and between steps of long work. With EOImode = 1, ICC_EOIR1_EL1 only drops the running
//! priority, so that further interrupts can be acknowledged. EL2's own interrupts are deactivated by EL2 after they are
//! handled. A guest's are deactivated by the guest, through a list register with the HW bit (IHI 0069, 4.1.1 and 4.7).

use super::table::Domains;
use crate::arch::sysreg::{CNTV_CTL_EL0, ReadWriteable, Readable};
use crate::arch::timer;
use crate::console;
use crate::gic::cpuif;
use crate::host::routes::move_if_misplaced;
use crate::host::{Host, KICK};
use crate::ids::{CpuId, Intid, Lpi};
use crate::sched::Woken;
use crate::trace::{Event, count};
use crate::vcpu::Vcpu;
use crate::vcpu::meter::Meter;
use core::fmt;
use doorward_api::EventKind;

const KICK_INTID: Intid = Intid(KICK as u32);

/// Whether the virtual timer asserts its interrupt: enabled, not masked, condition met (DDI 0487, CNTV_CTL_EL0).
#[must_use]
pub fn virtual_timer_line() -> bool {
    CNTV_CTL_EL0.matches_all(CNTV_CTL_EL0::ENABLE::SET + CNTV_CTL_EL0::IMASK::CLEAR + CNTV_CTL_EL0::ISTATUS::SET)
}

/// Acknowledges and handles all interrupts that are pending on `cpu`, which is this CPU.
pub fn take_all(domains: &Domains, cpu: CpuId) {
    while let Some(intid) = cpuif::ack() {
        take(domains, cpu, intid);
    }
}

fn take(domains: &Domains, cpu: CpuId, intid: Intid) {
    cpuif::eoi(intid);
    let host = domains.host;
    if let Some(lpi) = intid.lpi() {
        match host.gic.doorbell(lpi) {
            Some(vpe) => {
                count(cpu, Event::IrqDoorbell);
                take_doorbell(host, cpu, lpi, host.vpes.get(vpe).as_deref());
            }
            None => take_lpi(domains, cpu, lpi),
        }
        return;
    }
    match intid.0 {
        _ if intid == KICK_INTID => {
            // The kick has had its effect: the CPU has exited from its guest or woken up.
            count(cpu, Event::IrqKick);
            cpuif::deactivate(intid);
        }
        _ if intid == host.machine.timer.virt => {
            count(cpu, Event::IrqVtimer);
            take_virtual_timer(domains, cpu, intid);
        }
        _ if intid == host.machine.timer.hyp => {
            count(cpu, Event::IrqHtimer);
            take_el2_timer(domains, cpu, intid);
        }
        _ if intid == host.machine.gic.maintenance => {
            count(cpu, Event::IrqMaintenance);
            cpuif::deactivate(intid);
        }
        _ if Some(intid) == host.console_irq => {
            take_console(domains);
            cpuif::deactivate(intid);
        }
        _ if host.iommu.has_interrupt(intid) => {
            let mut tell = |id, why: fmt::Arguments<'_>| {
                if let Some(domain) = domains.get(id) {
                    domain.record_because(EventKind::DeviceCutOff, why);
                }
            };
            if host.iommu.handle_reports_telling(&mut tell) {
                host.gic.spi_set_pending(intid, true);
            }
            cpuif::deactivate(intid);
        }
        32.. => {
            count(cpu, Event::IrqSpi);
            let taken = domains.of_spi(intid).is_some_and(|domain| domain.vgic().inject_hw_spi(&domain.port(), intid));
            if !taken {
                count(cpu, Event::IrqUnknown);
                host.gic.spi_disable(intid);
                cpuif::deactivate(intid);
            }
        }
        _ => {
            count(cpu, Event::IrqUnknown);
            host.gic.ppi_disable(cpu, intid);
            cpuif::deactivate(intid);
        }
    }
}

fn take_virtual_timer(domains: &Domains, cpu: CpuId, intid: Intid) {
    if !virtual_timer_line() {
        // The interrupt is no longer asserted: the vCPU has left this CPU, or the guest has reprogrammed its timer.
        cpuif::deactivate(intid);
        return;
    }
    let taken = domains.host.sched.current(cpu).is_some_and(|vcpu| {
        domains.get(vcpu.domain).is_some_and(|domain| domain.vgic().inject_hw_ppi(&domain.port(), vcpu.id, intid))
    });
    if !taken {
        // No vCPU on this CPU can take it. The timer is masked until the switch to the next vCPU writes its registers.
        CNTV_CTL_EL0.modify(CNTV_CTL_EL0::IMASK::SET);
        cpuif::deactivate(intid);
    }
}

fn take_el2_timer(domains: &Domains, cpu: CpuId, intid: Intid) {
    let host = domains.host;
    let fired = host.cpu(cpu).timer.fired(&mut |vcpu| {
        if was_asleep(host.wake(vcpu)) {
            count(cpu, Event::WakeTimer);
        }
    });
    cpuif::deactivate(intid);
    if fired.chores {
        unmask_due(domains, cpu);
        drain_console(domains);
    }
    if fired.resched {
        host.sched.set_need_resched(cpu);
    }
    // With sched=null a vCPU stays on its CPU while it is blocked. Its emulated CNTP is evaluated before it enters.
    if !host.sched.shares_cpus()
        && let Some(vcpu) = host.sched.current(cpu)
    {
        let _ = host.wake(&vcpu);
    }
}

/// Passes what was typed to the domain that has the keyboard, or to the debug keys, and prints what waits.
fn take_console(domains: &Domains) {
    console::irq(&mut |domain, byte| {
        if let Some(domain) = domains.get(domain) {
            // Bytes that do not fit into the FIFO and the buffer behind it are lost, as on a real UART.
            domain.input(byte);
        }
    });
    drain_console(domains);
}

/// Prints what the domains' rings hold, as far as the UART takes it, and tells domains that wait for room in them.
pub fn drain_console(domains: &Domains) {
    domains.host.drain_console(&mut |slot| {
        if let Some(domain) = domains.at(slot) {
            domain.output_has_room();
        }
        true
    });
}

fn was_asleep(woken: Woken) -> bool {
    matches!(woken, Woken::WasBlocked | Woken::WasBlocking)
}

/// Handles a doorbell: a vLPI is pending for the owner of the vPE.
fn take_doorbell(host: &Host, cpu: CpuId, lpi: Lpi, owner: Option<&Vcpu>) {
    let Some(vcpu) = owner else {
        count(cpu, Event::IrqUnknown);
        return;
    };
    if !was_asleep(host.wake(vcpu)) {
        count(cpu, Event::DoorbellSpurious);
    }
    charge(host, cpu, lpi, &vcpu.meter);
}

/// Handles a physical LPI, which is injected by software.
fn take_lpi(domains: &Domains, cpu: CpuId, lpi: Lpi) {
    let host = domains.host;
    count(cpu, Event::IrqLpi);
    let injected = host.routes.get(lpi).is_some_and(|route| {
        domains.get(route.domain).is_some_and(|domain| {
            let injected = domain.vgic().inject_lpi(&domain.port(), route.vcpu, route.vintid);
            if let Some(vcpu) = domain.vcpu(route.vcpu) {
                charge(host, cpu, lpi, &vcpu.meter);
                if host.sched.shares_cpus() && move_if_misplaced(&host.gic, &host.routes, lpi, cpu, vcpu.cpu()) {
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

/// Charges a vCPU for an LPI or a doorbell, and masks the LPI if the vCPU is above its rate. On the interrupt path,
/// only this function and [`move_if_misplaced`] issue ITS commands.
fn charge(host: &Host, cpu: CpuId, lpi: Lpi, meter: &Meter) {
    if let Some(at) = host.rate_limits.charge(&host.gic, &host.routes, lpi, meter, timer::now()) {
        count(cpu, Event::RateLimitMask);
        host.cpu(cpu).timer.chores_at(at);
    }
}

/// Unmasks the LPIs and doorbells whose vCPUs have credit again, and sets the timer of `cpu` for those that remain
/// masked.
pub fn unmask_due(domains: &Domains, cpu: CpuId) {
    if let Some(at) = unmask_as_of(domains, cpu, timer::now()) {
        domains.host.cpu(cpu).timer.chores_at(at);
    }
}

/// Unmasks all masked LPIs and doorbells, because `cpu` leaves service and its timer cannot do it later.
pub fn unmask_all(domains: &Domains, cpu: CpuId) {
    let _ = unmask_as_of(domains, cpu, u64::MAX);
}

/// Unmasks the LPIs and doorbells that may be unmasked at `now`. Returns the time of the next call; `None` if none is
/// masked.
fn unmask_as_of(domains: &Domains, cpu: CpuId, now: u64) -> Option<u64> {
    let host = domains.host;
    let rate = &host.rate_limits.rate;
    let unmask_at = |lpi: Lpi| match host.routes.get(lpi) {
        Some(route) => Some(domains.get(route.domain)?.vcpu(route.vcpu)?.meter.unmask_at(rate)),
        None => Some(host.vpes.get(host.gic.peek_doorbell(lpi)?)?.meter.unmask_at(rate)),
    };
    let (again, unmasked) = host.rate_limits.unmask_due(&host.gic, &host.routes, now, unmask_at);
    (0..unmasked).for_each(|_| count(cpu, Event::RateLimitUnmask));
    again
}
