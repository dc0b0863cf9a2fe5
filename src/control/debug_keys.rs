//! The debug keys that show the state of domains and interrupts, and change it.
//!
//! A handler runs on the CPU that took the UART's interrupt, with no lock held, and prints the state of other CPUs as
//! it is at that moment. Only `K`, `o`, `O` and `R` change anything. To add a key, add a line to [`register`].

use super::hotplug;
use crate::arch::{power, timer};
use crate::console::{self, keys, line};
use crate::domain::Domain;
use crate::domain::table::Domains;
use crate::gic::its::Kind;
use crate::host::Host;
use crate::ids::{DomId, Intid};
use crate::trace::{self, Event, on, total};
use core::sync::atomic::{AtomicU16, Ordering};

/// The domU that `K` ends; 0 for none.
static CHOSEN: AtomicU16 = AtomicU16::new(0);

/// Registers the debug keys.
pub fn register(domains: &'static Domains) {
    let host = domains.host;
    keys::register(b'h', "this list", console::help);
    keys::register(b'd', "domains and vCPUs", move || show_domains(domains));
    keys::register(b'i', "interrupts and DMA", move || show_interrupts(domains));
    keys::register(b'v', "vPEs and residency", move || show_vpes(domains));
    keys::register(b'x', "exits by reason", move || show_exits(host));
    keys::register(b's', "the scheduler", move || show_scheduler(domains));
    keys::register(b'm', "free memory", move || host.log_free_memory());
    keys::register(b'n', "choose the next domU, for K", move || choose(domains));
    keys::register(b'K', "end the chosen domU, as if it had crashed", move || kill(domains));
    keys::register(b'o', "take the last CPU out of service", move || hotplug::take_out(domains));
    keys::register(b'O', "take a CPU back into service", move || hotplug::take_back(domains));
    keys::register(b'R', "reboot the machine", reboot);
}

fn show_domains(domains: &Domains) {
    domains.iter().for_each(|domain| domain_state(&domain));
}

fn domain_state(domain: &Domain) {
    line(format_args!(
        "{}: {} vCPUs, {} MiB in {} banks, `{}`",
        domain.id(),
        domain.vcpus().len(),
        domain.ram().size() >> 20,
        domain.ram().banks().len(),
        domain.name()
    ));
    for vcpu in domain.vcpus() {
        let guest = if vcpu.is_in_guest() { ", in the guest" } else { "" };
        line(format_args!("  {} ({}) on {}: {:?}{guest}", vcpu.id, vcpu.affinity, vcpu.cpu(), vcpu.run.get()));
    }
}

fn show_interrupts(domains: &Domains) {
    line(format_args!("{}", domains.host.gic.counters()));
    domains.host.iommu.for_each_line(&mut |text| line(text));
    domains.iter().for_each(|domain| domain_interrupts(&domain));
}

fn domain_interrupts(domain: &Domain) {
    line(format_args!("{}: {} times a vCPU was recalled", domain.id(), domain.recalls()));
    for vcpu in domain.vcpus() {
        for intid in (0..32).map(Intid) {
            if let Some(view) = domain.vgic().irq_state(vcpu.id, intid).filter(|view| view.pending || view.active) {
                line(format_args!("  {} {intid}: {view:?}", vcpu.id));
            }
        }
    }
    for vits in domain.itss() {
        let (its, mut mapped) = (vits.its(), 0);
        vits.for_each_event(&mut |device, event, vintid, collection, vcpu| {
            mapped += 1;
            match vcpu {
                Some(vcpu) => line(format_args!("  {its} {device} {event}: {vintid} to {vcpu}")),
                None => line(format_args!("  {its} {device} {event}: {vintid} parked in {collection}")),
            }
        });
        line(format_args!("{its}: {mapped} events; {:?}", vits.counters()));
    }
}

fn show_vpes(domains: &Domains) {
    let Some(v4) = domains.host.gic.v4() else {
        line(format_args!("no virtual LPIs: device interrupts are injected by software"));
        return;
    };
    for vcpu in domains.iter().flat_map(|domain| domain.vcpus().to_vec()) {
        match vcpu.vpe {
            None => line(format_args!("  {} {}: no vPE", vcpu.domain, vcpu.id)),
            Some(vpe) => {
                let home = v4.home(vpe);
                let resident = v4.resident_on(vpe);
                line(format_args!("  {} {}: {vpe}, home {home:?}, resident on {resident:?}", vcpu.domain, vcpu.id));
            }
        }
    }
    for event in [Event::IrqDoorbell, Event::DoorbellSpurious, Event::Block, Event::BlockCancelled, Event::Wake] {
        line(format_args!("  {}: {}", event.label(), total(event)));
    }
}

fn show_scheduler(domains: &Domains) {
    let host = domains.host;
    line(format_args!("sched={}: {} vCPUs", host.sched.name(), host.vcpus()));
    for cpu in host.cpus.ids() {
        match host.sched.current(cpu) {
            Some(vcpu) => line(format_args!("  {cpu}: {} {}, {:?}", vcpu.domain, vcpu.id, vcpu.run.get())),
            None => line(format_args!("  {cpu}: idle")),
        }
        host.sched.for_each_waiting(cpu, &mut |vcpu| line(format_args!("    waiting: {} {}", vcpu.domain, vcpu.id)));
    }
    for domain in domains.iter() {
        for vcpu in domain.vcpus() {
            let entity = &vcpu.entity;
            let ms = |ticks| timer::ticks_to_us(ticks, timer::frequency()) / 1000;
            line(format_args!(
                "  {} {}: weight {}, cap {}, has run {} ms, last on {}, moved {} times, waited {} ms at most",
                domain.id(),
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
    let (outs, backs, vpes) = host.cpus.hotplug_counts();
    line(format_args!("  {} CPUs; taken out: {outs}, back: {backs}, vPEs moved for it: {vpes}", host.cpus.online()));
    let counters = host.gic.counters();
    line(format_args!(
        "  residency: entered {}, left to block {}, left preempted {}; doorbells {}, spurious {}",
        counters.enters.get(),
        counters.leaves_block.get(),
        counters.leaves_preempt.get(),
        total(Event::IrqDoorbell),
        total(Event::DoorbellSpurious)
    ));
    // The run loop counts the moves, the ITS driver the commands. They are equal, except for vPEs that were moved
    // because their CPU was taken out of service.
    line(format_args!("  vPE moves: {}, VMOVPs: {}", total(Event::VpeMove), counters.commands(Kind::Vmovp)));
}

fn show_exits(host: &Host) {
    let cpus = host.cpus.ids();
    line(format_args!("in {} ms:", timer::now_us() / 1000));
    let step = timer::ticks_to_us(trace::longest_step(), timer::frequency());
    line(format_args!("  longest step of a vCPU's work: {step} us"));
    for &event in Event::ALL {
        let sum = total(event);
        if sum == 0 {
            continue;
        }
        line(format_args!("  {:>20}: {sum}", event.label()));
        if cpus.len() <= 8 {
            for cpu in cpus.clone() {
                let count = on(cpu, event);
                if count != 0 {
                    line(format_args!("  {:>20}  {cpu}: {count}", ""));
                }
            }
        }
    }
}

fn choose(domains: &Domains) {
    let before = CHOSEN.load(Ordering::Relaxed);
    let ids = || domains.iter().map(|domain| domain.id().0).filter(|&id| id != 0);
    let next = ids().find(|&id| id > before).or_else(|| ids().next()).unwrap_or(0);
    CHOSEN.store(next, Ordering::Relaxed);
    match next {
        0 => line(format_args!("there is no domU")),
        next => line(format_args!("{}: chosen: K ends it", DomId(next))),
    }
}

fn kill(domains: &Domains) {
    let chosen = DomId(CHOSEN.load(Ordering::Relaxed));
    match domains.get(chosen).filter(|_| chosen != DomId(0)) {
        Some(domain) => {
            line(format_args!("{chosen}: ended by hand"));
            domain.terminate_by_hand();
        }
        None => line(format_args!("no domU is chosen: n chooses one")),
    }
}

fn reboot() {
    line(format_args!("rebooting"));
    console::flush();
    power::reset()
}
