//! The debug keys that show what domains and interrupts are doing.
//!
//! Each prints and changes nothing (but `o`, `O`, `K` and `R`). They run on the CPU that took the UART's interrupt and look
//! at others' state as it is at that moment.

use crate::arch::{power, timer};
use crate::console::{self, keys, line};
use crate::control::hotplug;
use crate::domain::Domain;
use crate::domain::lifecycle::End;
use crate::gic::its::Kind;
use crate::host::hypervisor;
use crate::ids::{CpuId, DomId, Intid};
use crate::trace::{Event, on, total};
use core::sync::atomic::{AtomicU16, Ordering};

/// The domain that `K` ends; 0 is none.
static CHOSEN: AtomicU16 = AtomicU16::new(0);

/// Makes the keys known to the console.
pub fn register() {
    keys::register(b'h', "this list", console::help);
    keys::register(b'd', "domains and vCPUs", domains);
    keys::register(b'i', "interrupts", interrupts);
    keys::register(b'v', "vPEs and residency", vpes);
    keys::register(b'x', "exits by reason", exits);
    keys::register(b's', "the scheduler", scheduler);
    keys::register(b'm', "memory", memory);
    keys::register(b'n', "choose the next domain, for K", choose);
    keys::register(b'K', "end the chosen domain, as if it had crashed", kill);
    keys::register(b'o', "take the last CPU out", hotplug::take_out);
    keys::register(b'O', "take a CPU back in", hotplug::take_back);
    keys::register(b'R', "reboot the machine", reboot);
}

fn domains() {
    let hv = hypervisor();
    hv.domains().for_each(|domain| domain_state(&domain));
}

fn domain_state(domain: &Domain) {
    line(format_args!(
        "{}: {} vCPUs, {} MiB in {} banks",
        domain.id,
        domain.vcpus().len(),
        domain.ram.size() >> 20,
        domain.ram.banks().len()
    ));
    for vcpu in domain.vcpus() {
        let guest = if vcpu.is_in_guest() { ", in the guest" } else { "" };
        line(format_args!("  {} ({}) on {}: {:?}{guest}", vcpu.id, vcpu.affinity, vcpu.cpu(), vcpu.run.get()));
    }
}

fn interrupts() {
    let hv = hypervisor();
    line(format_args!("{}", hv.gic.counters()));
    hv.domains().for_each(|domain| domain_interrupts(&domain));
}

fn domain_interrupts(domain: &Domain) {
    line(format_args!("{}", domain.id));
    for vcpu in domain.vcpus() {
        for intid in (0..32).map(Intid) {
            if let Some(view) = domain.vgic.irq_state(vcpu.id, intid).filter(|view| view.pending || view.active) {
                line(format_args!("  {} {intid}: {view:?}", vcpu.id));
            }
        }
    }
    for (place, (_, vits)) in domain.vitss.iter().enumerate() {
        let mut mapped = 0;
        vits.for_each_event(&mut |device, event, vintid, collection, vcpu| {
            mapped += 1;
            match vcpu {
                Some(vcpu) => line(format_args!("  ITS{place} {device} {event}: {vintid} to {vcpu}")),
                None => line(format_args!("  ITS{place} {device} {event}: {vintid} parked in {collection}")),
            }
        });
        line(format_args!("ITS{place}: {mapped} events; {:?}", vits.counters()));
    }
}

fn vpes() {
    let hv = hypervisor();
    let Some(v4) = hv.gic.v4() else {
        line(format_args!("no virtual LPIs: device interrupts are injected by software"));
        return;
    };
    for vcpu in hv.domains().flat_map(|domain| domain.vcpus().to_vec()) {
        match vcpu.vpe {
            None => line(format_args!("  {} {}: no vPE", vcpu.domain, vcpu.id)),
            Some(vpe) => {
                let home = v4.home(vpe);
                let resident = v4.is_resident(vpe);
                line(format_args!("  {} {}: {vpe}, home {home:?}, resident on {resident:?}", vcpu.domain, vcpu.id));
            }
        }
    }
    for event in [Event::IrqDoorbell, Event::DoorbellSpurious, Event::Block, Event::BlockCancelled, Event::Wake] {
        line(format_args!("  {}: {}", event.label(), total(event)));
    }
}

fn scheduler() {
    let hv = hypervisor();
    line(format_args!("sched={}: {} vCPUs", hv.sched.name(), hv.vcpus()));
    for cpu in (0..hv.machine.cpus.len()).filter_map(|cpu| u16::try_from(cpu).ok()).map(CpuId) {
        match hv.sched.current(cpu) {
            Some(vcpu) => line(format_args!("  {cpu}: {} of {}, {:?}", vcpu.id, vcpu.domain, vcpu.run.get())),
            None => line(format_args!("  {cpu}: nobody")),
        }
        hv.sched.for_each_waiting(cpu, &mut |vcpu| line(format_args!("    waits: {} of {}", vcpu.id, vcpu.domain)));
    }
    for domain in hv.domains() {
        for vcpu in domain.vcpus() {
            let entity = &vcpu.entity;
            let ms = |ticks| timer::ticks_to_us(ticks, timer::frequency()) / 1000;
            line(format_args!(
                "  {} {}: weight {}, cap {}, has run {} ms, last on {}, moved {} times, waited {} ms at most",
                domain.id,
                vcpu.id,
                entity.weight(),
                entity.cap(),
                ms(entity.ran()),
                vcpu.cpu(),
                entity.moves(),
                ms(entity.longest_wait())
            ));
        }
    }
    for event in
        [Event::Switch, Event::Move, Event::Steal, Event::Push, Event::Evacuate, Event::WakeTimer, Event::TlbClean]
    {
        line(format_args!("  {}: {}", event.label(), total(event)));
    }
    let (outs, backs, vpes) = hv.hotplug.counts();
    line(format_args!("  {} CPUs; taken out: {outs}, back: {backs}, vPEs moved for it: {vpes}", hv.online()));
    let counters = hv.gic.counters();
    line(format_args!(
        "  residency: entered {}, left to sleep {}, left preempted {}; doorbells {}, for one awake {}",
        counters.enters.get(),
        counters.leaves_block.get(),
        counters.leaves_preempt.get(),
        total(Event::IrqDoorbell),
        total(Event::DoorbellSpurious)
    ));
    // The first is counted where vCPUs run, the second where commands are sent: they say the same, but for what moved
    // because its CPU was taken out.
    line(format_args!("  vPE moves: {}, VMOVPs: {}", total(Event::VpeMove), counters.commands(Kind::Vmovp)));
}

fn exits() {
    let cpus = hypervisor().machine.cpus.len();
    line(format_args!("in {} ms:", timer::now_us() / 1000));
    for &event in Event::ALL {
        let sum = total(event);
        if sum == 0 {
            continue;
        }
        line(format_args!("  {:>20}: {sum}", event.label()));
        if cpus <= 8 {
            for cpu in (0..cpus).filter_map(|cpu| u16::try_from(cpu).ok()).map(CpuId) {
                let count = on(cpu, event);
                if count != 0 {
                    line(format_args!("  {:>20}  {cpu}: {count}", ""));
                }
            }
        }
    }
}

fn memory() {
    crate::control::teardown::report(hypervisor());
}

fn choose() {
    let hv = hypervisor();
    let before = CHOSEN.load(Ordering::Relaxed);
    let ids = || hv.domains().map(|domain| domain.id.0).filter(|&id| id != 0);
    let next = ids().find(|&id| id > before).or_else(|| ids().next()).unwrap_or(0);
    CHOSEN.store(next, Ordering::Relaxed);
    match next {
        0 => line(format_args!("there is no domain beside dom0")),
        next => line(format_args!("{} is chosen: K ends it", DomId(next))),
    }
}

fn kill() {
    let chosen = DomId(CHOSEN.load(Ordering::Relaxed));
    match hypervisor().domain(chosen).filter(|_| chosen != DomId(0)) {
        Some(domain) => {
            line(format_args!("{chosen} is ended by hand"));
            domain.finish(End::Crash);
        }
        None => line(format_args!("no domain is chosen: n chooses")),
    }
}

fn reboot() {
    line(format_args!("rebooting"));
    power::reset()
}
