//! Answers about the machine, its CPUs and its domains.

use super::server::{Outcome, Reply};
use crate::arch::timer;
use crate::build::draft::Draft;
use crate::console::log_ring;
use crate::domain::Domain;
use crate::domain::lifecycle::End;
use crate::domain::table::Domains;
use crate::host::Host;
use crate::host::cmdline::Direct;
use crate::host::cpu_state::Hotplug;
use crate::ids::{CpuId, DOMAINS, DomId};
use crate::mm::{frames, heap};
use crate::sched::{DEFAULT_WEIGHT, State};
use crate::trace::{Event, on, total};
use crate::vcpu::Vcpu;
use arrayvec::ArrayVec;
use doorward_api::{
    ALL, Counter, CounterPage, CountersFrom, Cpu, CpuPage, CpuSet, CpuState, DomainState, Info, List, LogChunk, Name,
    Request, Scope, Status, VcpuPage, VcpuState, VcpusFrom,
};

/// The length of the buffer in which long answers are put together, in bytes. It bounds the log that one answer has.
pub const SCRATCH: usize = 8 << 10;

/// The most vCPUs and CPUs in an answer.
const PAGE: usize = 64;

/// Answers a question.
pub fn answer(
    domains: &Domains,
    draft: Option<&Draft>,
    scratch: &mut [u8],
    request: &Request<'_>,
    reply: Reply<'_>,
) -> Outcome {
    match *request {
        Request::Info => info(domains, reply),
        Request::List(from) => list(domains, draft, from, reply),
        Request::Lookup(name) => match (domains.named(name.as_str()), draft) {
            (Some(domain), _) => one(domains.host, &domain, reply),
            (None, Some(draft)) if draft.wanted().name == *name.as_str() => drafted(draft, reply),
            _ => reply.refused(Status::NoSuchDomain, ""),
        },
        Request::Vcpus(wanted) => vcpus(domains, wanted, reply),
        Request::Cpus(from) => cpus(domains.host, from, reply),
        Request::Log(from) => log(from, scratch, reply),
        Request::Counters(wanted) => counters(domains, wanted, reply),
        _ => reply.refused(Status::NotSupported, ""),
    }
}

fn ns(ticks: u64) -> u64 {
    timer::ticks_to_us(ticks, timer::frequency()).saturating_mul(1000)
}

/// The ticks that a vCPU has run, with those of its present slice.
fn ran(host: &Host, vcpu: &Vcpu) -> u64 {
    let since = host.sched.uncharged(vcpu.cpu(), vcpu, timer::now());
    vcpu.entity.ran().saturating_add(since)
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn info(domains: &Domains, reply: Reply<'_>) -> Outcome {
    let host = domains.host;
    let facts = host.gic.facts();
    let (used, size) = heap::usage();
    let vpes = domains.iter().map(|domain| domain.vcpus().iter().filter(|vcpu| vcpu.vpe.is_some()).count()).sum();
    let direct = host.gic.v4().is_some() && host.options.direct == Direct::On;
    // A command line that does not fit into an answer is cut.
    let cmdline = &host.machine.bootargs;
    let cmdline = cmdline.get(..cmdline.floor_char_boundary(2048)).unwrap_or_default();
    reply.done(&Info {
        uptime_us: timer::now_us(),
        cpus: number(host.cpus.ids().len()),
        cpus_online: number(host.cpus.online()),
        timer_hz: timer::frequency(),
        memory: host.machine.memory_size(),
        memory_free: host.guest_pool.lock().free_bytes(),
        heap_free: (size.saturating_sub(used) as u64).saturating_add(frames::free_bytes()),
        memory_quarantined: host.gic.counters().quarantined_bytes.get(),
        domains: number(domains.count()),
        domains_max: number(DOMAINS),
        vcpus: number(host.vcpus()),
        vpes: number(vpes),
        vpes_max: if host.gic.v4().is_some() { facts.vpes } else { 0 },
        gic: if facts.v41 {
            41
        } else if facts.virtual_lpis {
            40
        } else {
            30
        },
        itss: u8::try_from(facts.itss().count()).unwrap_or(u8::MAX),
        direct,
        vwfi: host.options.vwfi,
        smmus: number(host.iommu.translating_count()),
        scheduler: host.sched.name(),
        machine: "",
        cmdline,
    })
}

/// The domain with the lowest number that is not below `from`.
fn list(domains: &Domains, draft: Option<&Draft>, from: u32, reply: Reply<'_>) -> Outcome {
    let ids = domains.iter().map(|domain| domain.id()).chain(draft.map(Draft::id));
    let Some(id) = ids.filter(|id| u32::from(id.0) >= from).min() else { return reply.refused(Status::End, "") };
    match (domains.get(id), draft) {
        (Some(domain), _) => one(domains.host, &domain, reply),
        (None, Some(draft)) if draft.id() == id => drafted(draft, reply),
        _ => reply.refused(Status::DomainEnded, ""),
    }
}

fn state(domain: &Domain) -> DomainState {
    match domain.end() {
        Some(End::Off) => DomainState::Shutdown,
        Some(End::Reset) => DomainState::Restarting,
        Some(End::Crash) => DomainState::Crashed,
        Some(End::Destroyed) => DomainState::Dying,
        None if domain.rests() => DomainState::Built,
        None if domain.is_paused() => DomainState::Paused,
        None => {
            let is_awake = |vcpu: &Vcpu| matches!(vcpu.run.get(), State::Running | State::Runnable);
            // With sched=null a CPU waits in the guest: the vCPU is running.
            if domain.vcpus().iter().any(|vcpu| is_awake(vcpu)) { DomainState::Running } else { DomainState::Blocked }
        }
    }
}

/// A name that is one by the protocol. All names have been checked when they were reserved.
fn named<'a>(name: &'a str, reply: Reply<'a>) -> Result<(Name<'a>, Reply<'a>), Outcome> {
    match Name::new(name) {
        Ok(name) => Ok((name, reply)),
        Err(_) => Err(reply.refused(Status::Internal, "")),
    }
}

fn one(host: &Host, domain: &Domain, reply: Reply<'_>) -> Outcome {
    let (name, reply) = match named(domain.name(), reply) {
        Ok(named) => named,
        Err(outcome) => return outcome,
    };
    let vcpus = domain.vcpus();
    let first = vcpus.first();
    let ticks = vcpus.iter().map(|vcpu| ran(host, vcpu)).fold(0, u64::saturating_add);
    let begun = domain.begun_us();
    reply.done(&doorward_api::Domain {
        id: domain.id().0.into(),
        state: state(domain),
        vcpus: number(vcpus.len()),
        vcpus_on: number(vcpus.iter().filter(|vcpu| vcpu.run.get() != State::Off).count()),
        memory: domain.ram().size(),
        memory_images: domain.image_bytes(),
        cpu_time_ns: ns(ticks),
        age_us: if begun == 0 { 0 } else { timer::now_us().saturating_sub(begun) },
        exits: vcpus.iter().map(|vcpu| vcpu.exits()).fold(0, u64::saturating_add),
        weight: first.map_or(DEFAULT_WEIGHT, |vcpu| vcpu.entity.weight()),
        cap: first.map_or(0, |vcpu| vcpu.entity.cap()),
        direct: vcpus.iter().all(|vcpu| vcpu.vpe.is_some()),
        console: domain.has_console(),
        on_crash: domain.on_crash(),
        watchdog_s: 0,
        restarts: domain.restarts(),
        functions: number(domain.function_count()),
        name,
    })
}

fn drafted(draft: &Draft, reply: Reply<'_>) -> Outcome {
    let (name, reply) = match named(&draft.wanted().name, reply) {
        Ok(named) => named,
        Err(outcome) => return outcome,
    };
    let wanted = draft.wanted();
    reply.done(&doorward_api::Domain {
        id: draft.id().0.into(),
        state: DomainState::Building,
        vcpus: number(wanted.vcpus),
        vcpus_on: 0,
        memory: wanted.memory,
        memory_images: draft.images_size(),
        cpu_time_ns: 0,
        age_us: 0,
        exits: 0,
        weight: wanted.weight.unwrap_or(DEFAULT_WEIGHT),
        cap: wanted.cap.unwrap_or(0),
        direct: false,
        console: wanted.console,
        on_crash: wanted.on_crash,
        watchdog_s: 0,
        restarts: 0,
        functions: 0,
        name,
    })
}

fn vcpus(domains: &Domains, wanted: VcpusFrom, reply: Reply<'_>) -> Outcome {
    let domain = u16::try_from(wanted.domain).ok().and_then(|id| domains.get(DomId(id)));
    let Some(domain) = domain else { return reply.refused(Status::NoSuchDomain, "") };
    let from = usize::try_from(wanted.from).unwrap_or(usize::MAX);
    let cpus = domains.host.cpus.ids();
    let vwfi = domains.host.options.vwfi;
    let describe = |vcpu: &Vcpu| {
        let mut affinity = CpuSet::EMPTY;
        let may_run = cpus.clone().filter(|&cpu| vcpu.entity.affinity.has(cpu));
        may_run.for_each(|cpu| _ = affinity.insert(cpu.0.into()));
        doorward_api::Vcpu {
            vcpu: vcpu.id.0.into(),
            state: match vcpu.run.get() {
                State::Off => VcpuState::Off,
                _ if domain.is_paused() => VcpuState::Paused,
                State::Running | State::Blocking => VcpuState::Running,
                State::Runnable => VcpuState::Waiting,
                State::Blocked => VcpuState::Blocked,
            },
            cpu: vcpu.cpu().0.into(),
            cpu_time_ns: ns(ran(domains.host, vcpu)),
            exits: vcpu.exits(),
            moves: vcpu.entity.moves(),
            weight: vcpu.entity.weight(),
            cap: vcpu.entity.cap(),
            direct: vcpu.vpe.is_some(),
            vwfi,
            affinity,
        }
    };
    let page: ArrayVec<_, PAGE> = domain.vcpus().iter().skip(from).take(PAGE).map(|vcpu| describe(vcpu)).collect();
    let next = next(from, page.len(), domain.vcpus().len());
    reply.done(&VcpuPage { next, vcpus: List::of(&page) })
}

/// What to ask for after `count` items from `from` on, of `all`.
fn next(from: usize, count: usize, all: usize) -> u32 {
    let next = from.saturating_add(count);
    if next < all { number(next) } else { ALL }
}

fn cpus(host: &Host, from: u32, reply: Reply<'_>) -> Outcome {
    let (from, all) = (usize::try_from(from).unwrap_or(usize::MAX), host.cpus.ids().len());
    let describe = |id: CpuId| {
        let (state, current) = (host.cpu(id), host.sched.current(id));
        let current = current.filter(|vcpu| vcpu.run.get() == State::Running);
        Cpu {
            cpu: id.0.into(),
            state: match state.hotplug() {
                _ if state.is_online() => CpuState::Online,
                Hotplug::InService | Hotplug::Failed => CpuState::Absent,
                _ => CpuState::Offline,
            },
            mpidr: host.mpidr(id).unwrap_or_default().0,
            domain: current.as_ref().map_or(ALL, |vcpu| vcpu.domain.0.into()),
            vcpu: current.as_ref().map_or(ALL, |vcpu| vcpu.id.0.into()),
        }
    };
    let page: ArrayVec<Cpu, PAGE> = host.cpus.ids().skip(from).take(PAGE).map(describe).collect();
    reply.done(&CpuPage { next: next(from, page.len(), all), cpus: List::of(&page) })
}

fn log(from: u64, scratch: &mut [u8], reply: Reply<'_>) -> Outcome {
    let (first, bytes) = log_ring::read(from, scratch);
    reply.done(&LogChunk { first, next: first.saturating_add(bytes.len() as u64), bytes })
}

fn counters(domains: &Domains, wanted: CountersFrom, reply: Reply<'_>) -> Outcome {
    let from = usize::try_from(wanted.from).unwrap_or(usize::MAX);
    let of_events = |value: &dyn Fn(Event) -> u64| -> (ArrayVec<Counter<'static>, PAGE>, usize) {
        let events = Event::ALL.iter().skip(from).take(PAGE);
        let page = events.map(|&event| Counter { value: value(event), name: event.label() });
        (page.collect(), Event::ALL.len())
    };
    let (page, all) = match wanted.scope {
        Scope::Machine => of_events(&total),
        Scope::Cpu => {
            let cpu = u16::try_from(wanted.id).ok().map(CpuId);
            let cpu = cpu.filter(|cpu| cpu.index() < domains.host.cpus.ids().len());
            let Some(cpu) = cpu else { return reply.refused(Status::NoSuchCpu, "") };
            of_events(&|event| on(cpu, event))
        }
        Scope::Domain => {
            let domain = u16::try_from(wanted.id).ok().and_then(|id| domains.get(DomId(id)));
            let Some(domain) = domain else { return reply.refused(Status::NoSuchDomain, "") };
            let vcpus = domain.vcpus();
            let sum = |of: &dyn Fn(&Vcpu) -> u64| vcpus.iter().map(|vcpu| of(vcpu)).fold(0, u64::saturating_add);
            let all = [
                ("exit", sum(&|vcpu| vcpu.exits())),
                ("move", sum(&|vcpu| vcpu.entity.moves())),
                ("recall", domain.recalls()),
                ("restart", domain.restarts().into()),
            ];
            let page = all.iter().skip(from).map(|&(name, value)| Counter { value, name });
            (page.collect(), all.len())
        }
    };
    let next = next(from, page.len(), all);
    reply.done(&CounterPage { next, time_us: timer::now_us(), counters: List::of(&page) })
}
