//! What dom0's tools ask for, done: domains are created, started, paused and ended, CPUs taken out of service and back.
//!
//! A domain is created in this order: `create` makes a [`Draft`], `image` and `image-chunk` fill it, `build` makes a domain
//! of it step by step ([`Assembly`]), which is in the table of domains then and rests, `start` starts it. A draft or an
//! assembly whose client has gone is given up. There is one of either at a time.

use super::queries::{self, SCRATCH};
use super::server::{Acts, Outcome, Reply};
use crate::arch::{percpu, timer};
use crate::build::assembly::{Assembly, Stage};
use crate::build::domu::{Refused, add};
use crate::build::draft::{Draft, Leftover};
use crate::control::hotplug;
use crate::control::teardown::Teardown;
use crate::domain::lifecycle::End;
use crate::domain::table::{DomainRef, Domains};
use crate::host::Host;
use crate::host::cpu_state::Hotplug;
use crate::host::events::Recorded;
use crate::ids::{CpuId, DomId, VcpuId};
use crate::log_limited;
use crate::util::progress::Progress;
use crate::vcpu::Vcpu;
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use core::mem;
use doorward_api::{ALL, Built, Create, Created, Empty, EventKind, Image, ImageChunk, Request, Set, Setting, Status};

/// The time within which the vCPUs of a domain that is paused have to leave their guests, and a CPU has to leave service
/// or to be back, in microseconds.
const PAUSE_LIMIT_US: u64 = 1_000_000;
const CPU_LIMIT_US: u64 = 3_000_000;

/// The acts on this machine.
pub struct Hypervisor {
    domains: &'static Domains,
    draft: Option<Draft>,
    act: Act,
    /// Where long answers are put together.
    scratch: Box<[u8]>,
}

/// What the request that is under way has to do next.
enum Act {
    /// There is none.
    None,
    /// Build a domain.
    Build { assembly: Box<Assembly>, cost: Cost },
    /// Undo what was built of a domain; then answer why, if anybody waits.
    Undo { assembly: Box<Assembly>, why: Option<(Status, String)> },
    /// Wait until the domain's vCPUs have left their guests.
    Pause { id: DomId, until_us: u64 },
    /// Wait until the domain is gone and its memory is free.
    Destroy(DomId),
    /// Wait until the CPU has left service.
    Offline { cpu: CpuId, until_us: u64 },
    /// Wait until the CPU is in service.
    Online { cpu: CpuId, until_us: u64 },
}

/// What a build has cost EL2, without the copying of images, in ticks.
#[derive(Clone, Copy, Default)]
struct Cost {
    ticks: u64,
    longest: u64,
    steps: u32,
}

impl Cost {
    fn add(&mut self, ticks: u64) {
        self.ticks = self.ticks.saturating_add(ticks);
        self.longest = self.longest.max(ticks);
        self.steps = self.steps.saturating_add(1);
    }
}

/// Why a request is not carried out.
struct Refusal(Status, &'static str);

impl Hypervisor {
    /// Nothing is under way.
    #[must_use]
    pub fn new(domains: &'static Domains) -> Hypervisor {
        Hypervisor { domains, draft: None, act: Act::None, scratch: vec![0; SCRATCH].into_boxed_slice() }
    }

    fn host(&self) -> &'static Host {
        self.domains.host
    }

    /// Passes the RAM of a domain that was not built to those who zero it.
    fn leave(&self, teardown: &Teardown, leftover: Leftover) {
        let Leftover { id, rams } = leftover;
        self.domains.leave(id, rams);
        teardown.announce(percpu::cpu(), id);
    }

    fn find(&self, id: u32) -> Result<DomainRef<'static>, Refusal> {
        let id = u16::try_from(id).map_err(|_| Refusal(Status::NoSuchDomain, ""))?;
        self.domains.get(DomId(id)).ok_or(Refusal(Status::NoSuchDomain, ""))
    }

    fn find_domu(&self, id: u32) -> Result<DomainRef<'static>, Refusal> {
        let domain = self.find(id)?;
        if domain.is_dom0() { Err(Refusal(Status::NotToDom0, "")) } else { Ok(domain) }
    }

    fn create(&mut self, create: &Create<'_>, reply: Reply<'_>) -> Outcome {
        if let Some(draft) = &self.draft {
            return reply.refused(Status::Busy, &alloc::format!("`{}` is not built yet", draft.wanted().name));
        }
        match Draft::new(self.domains, create) {
            Ok(draft) => {
                let domain = draft.id().0.into();
                self.draft = Some(draft);
                reply.done(&Created { domain })
            }
            Err(Refused { status, error }) => reply.refused(status, &error.to_string()),
        }
    }

    fn draft(&mut self, id: u32) -> Result<&mut Draft, Refusal> {
        match &mut self.draft {
            Some(draft) if u32::from(draft.id().0) == id => Ok(draft),
            _ => Err(Refusal(Status::NoSuchDomain, "no domain with this id waits for images")),
        }
    }

    fn image(&mut self, image: Image, reply: Reply<'_>) -> Outcome {
        let host = self.host();
        match self.draft(image.domain).map(|draft| draft.expect(host, image.kind, image.size)) {
            Ok(Ok(())) => reply.done(&Empty),
            Ok(Err(Refused { status, error })) => reply.refused(status, &error.to_string()),
            Err(Refusal(status, text)) => reply.refused(status, text),
        }
    }

    fn chunk(&mut self, chunk: &ImageChunk<'_>) -> Result<(), Refusal> {
        let draft = self.draft(chunk.domain)?;
        draft.append(chunk.kind, chunk.offset, chunk.bytes).map_err(|status| Refusal(status, ""))
    }

    fn build(&mut self, teardown: &Teardown, id: u32, reply: Reply<'_>) -> Outcome {
        let host = self.host();
        if let Err(Refusal(status, text)) = self.draft(id) {
            return reply.refused(status, text);
        }
        let Some(draft) = self.draft.take() else { return reply.refused(Status::Internal, "") };
        let from = timer::now();
        match draft.build(host) {
            Ok(assembly) => {
                let mut cost = Cost::default();
                cost.add(timer::now().saturating_sub(from));
                self.act = Act::Build { assembly, cost };
                Outcome::Working
            }
            Err(failed) => {
                let (Refused { status, error }, leftover) = *failed;
                self.leave(teardown, leftover);
                reply.refused(status, &error.to_string())
            }
        }
    }

    fn step_build(&mut self, mut assembly: Box<Assembly>, mut cost: Cost, reply: Reply<'_>) -> Outcome {
        let (from, stage) = (timer::now(), assembly.stage());
        let result = assembly.step(self.host());
        if !matches!(stage, Stage::Images(_)) {
            cost.add(timer::now().saturating_sub(from));
        }
        match result {
            Ok(Progress::More) => {
                self.act = Act::Build { assembly, cost };
                Outcome::Working
            }
            Ok(Progress::Done) => self.finish_build(assembly, cost, reply),
            Err(error) => {
                let status = match stage {
                    Stage::Images(_) => Status::DoesNotFit,
                    Stage::Vcpu(_) => Status::NoCpu,
                    Stage::Vpe(_) | Stage::Vm => Status::NoVpe,
                    Stage::Stage2 | Stage::Map(..) | Stage::View | Stage::ViewMap(..) => Status::NoHeap,
                    Stage::Streams(_) => Status::NotAssignable,
                    Stage::Vgic | Stage::Finished => Status::Internal,
                };
                self.act = Act::Undo { assembly, why: Some((status, error.to_string())) };
                Outcome::Working
            }
        }
    }

    fn finish_build(&mut self, assembly: Box<Assembly>, cost: Cost, reply: Reply<'_>) -> Outcome {
        let domain = match assembly.finish(self.host()) {
            Ok(domain) => domain,
            Err(unfinished) => {
                let why = Some((Status::Internal, String::from("a part is missing")));
                self.act = Act::Undo { assembly: unfinished, why };
                return Outcome::Working;
            }
        };
        match add(self.domains, domain) {
            Ok(domain) => {
                let (id, vcpus, memory) = (domain.id(), domain.vcpus().len(), domain.ram().size() >> 20);
                log_limited!(Info; "{id} `{}`: created: {vcpus} vCPUs, {memory} MiB", domain.name());
                domain.record(EventKind::Created, "");
                let us = |ticks| timer::ticks_to_us(ticks, timer::frequency());
                reply.done(&Built { time_us: us(cost.ticks), longest_step_us: us(cost.longest), steps: cost.steps })
            }
            Err(error) => reply.refused(Status::Internal, &error.to_string()),
        }
    }

    fn step_undo(
        &mut self,
        teardown: &Teardown,
        mut assembly: Box<Assembly>,
        why: Option<(Status, String)>,
    ) -> Option<(Status, String)> {
        let id = assembly.id();
        if !assembly.undo(self.host()) {
            self.act = Act::Undo { assembly, why };
            return None;
        }
        self.leave(teardown, Leftover { id, rams: assembly.into_rams() });
        Some(why.unwrap_or((Status::DomainEnded, String::new())))
    }

    fn abort(&mut self, teardown: &Teardown, id: u32) -> Result<(), Refusal> {
        self.draft(id)?;
        if let Some(draft) = self.draft.take() {
            self.leave(teardown, draft.give_up());
        }
        Ok(())
    }

    fn start(&self, id: u32, paused: bool) -> Result<(), Refusal> {
        let domain = self.find_domu(id)?;
        if domain.begun_us() != 0 || !domain.rests() {
            return Err(Refusal(Status::WrongState, "it has been started already"));
        }
        if paused {
            let _ = domain.pause();
        }
        if !domain.start() {
            return Err(Refusal(Status::WrongState, "it cannot be started"));
        }
        domain.record(EventKind::Started, "");
        Ok(())
    }

    fn pause(&mut self, id: u32, reply: Reply<'_>) -> Outcome {
        match self.find_domu(id) {
            Err(Refusal(status, text)) => reply.refused(status, text),
            Ok(domain) if domain.begun_us() == 0 => reply.refused(Status::WrongState, "it has not been started"),
            Ok(domain) if domain.end().is_some() => reply.refused(Status::WrongState, "it has ended"),
            Ok(domain) => {
                if domain.pause() {
                    domain.record(EventKind::Paused, "");
                }
                self.act = Act::Pause { id: domain.id(), until_us: timer::now_us() + PAUSE_LIMIT_US };
                Outcome::Working
            }
        }
    }

    fn unpause(&self, id: u32) -> Result<(), Refusal> {
        let domain = self.find_domu(id)?;
        if !domain.unpause() {
            return Err(Refusal(Status::WrongState, "it is not paused"));
        }
        domain.record(EventKind::Unpaused, "");
        Ok(())
    }

    fn reset(&self, id: u32) -> Result<(), Refusal> {
        let domain = self.find_domu(id)?;
        if domain.rests() {
            return Err(Refusal(Status::WrongState, "it is not running"));
        }
        if domain.end().is_some() || !domain.can_restart() {
            return Err(Refusal(Status::WrongState, "it has ended"));
        }
        domain.terminate(End::Reset);
        Ok(())
    }

    fn destroy(&mut self, teardown: &Teardown, id: u32, reply: Reply<'_>) -> Outcome {
        if self.draft(id).is_ok() {
            let _ = self.abort(teardown, id);
        } else {
            match self.find_domu(id) {
                // One that is taken down already cannot be found any more.
                Err(Refusal(Status::NoSuchDomain, _)) if self.is_reserved(id) => {}
                Err(Refusal(status, text)) => return reply.refused(status, text),
                Ok(domain) => {
                    if domain.destroy() {
                        teardown.announce(percpu::cpu(), domain.id());
                    }
                }
            }
        }
        self.act = Act::Destroy(DomId(u16::try_from(id).unwrap_or(u16::MAX)));
        Outcome::Waiting
    }

    fn is_reserved(&self, id: u32) -> bool {
        u16::try_from(id).is_ok_and(|id| self.domains.is_reserved(DomId(id)))
    }

    fn set(&self, set: &Set<'_>) -> Result<(), Refusal> {
        let domain = self.find(set.domain)?;
        let of_all = set.vcpu == ALL;
        let one = u16::try_from(set.vcpu).ok().and_then(|vcpu| domain.vcpu(VcpuId(vcpu)));
        let vcpus: &[Arc<Vcpu>] = match one {
            _ if of_all => domain.vcpus(),
            Some(vcpu) => core::slice::from_ref(vcpu),
            None => return Err(Refusal(Status::NoSuchVcpu, "")),
        };
        let shares = self.host().sched.shares_cpus();
        let no_sched = Refusal(Status::NotSupported, "sched=null gives each vCPU a CPU of its own");
        match set.setting {
            Setting::Weight(_) | Setting::Cap(_) | Setting::Affinity(_) if !shares => return Err(no_sched),
            Setting::Weight(weight) if (1..=0xffff).contains(&weight) => {
                vcpus.iter().for_each(|vcpu| vcpu.entity.set_weight(weight));
            }
            Setting::Weight(_) => return Err(Refusal(Status::InvalidValue, "the weight is not 1 to 65535")),
            Setting::Cap(cap) => vcpus.iter().for_each(|vcpu| vcpu.entity.set_cap(cap)),
            Setting::Affinity(cpus) => self.set_affinity(vcpus, &cpus)?,
            Setting::OnCrash(_) | Setting::Name(_) if !of_all => {
                return Err(Refusal(Status::InvalidValue, "this is a setting of all vCPUs"));
            }
            Setting::OnCrash(_) if domain.is_dom0() => return Err(Refusal(Status::NotToDom0, "")),
            Setting::OnCrash(wanted) => domain.set_on_crash(wanted),
            Setting::Vwfi(_) => return Err(Refusal(Status::NotSupported, "vwfi= is a setting of the machine")),
            Setting::Direct(_) => {
                return Err(Refusal(Status::NotSupported, "it cannot be changed while the domain exists"));
            }
            Setting::Name(_) => return Err(Refusal(Status::NotSupported, "a domain keeps its name")),
        }
        Ok(())
    }

    fn set_affinity(&self, vcpus: &[Arc<Vcpu>], cpus: &doorward_api::CpuSet) -> Result<(), Refusal> {
        let host = self.host();
        let wanted = |cpu: &CpuId| cpus.contains(cpu.0.into());
        if !host.cpus.ids().any(|cpu| wanted(&cpu) && host.cpu(cpu).is_online()) {
            return Err(Refusal(Status::NoSuchCpu, "none of these CPUs is in service"));
        }
        for vcpu in vcpus {
            vcpu.entity.affinity.set(host.cpus.ids().filter(wanted));
            // It leaves a CPU that is not among them at its next decision.
            let cpu = vcpu.cpu();
            if !vcpu.entity.affinity.has(cpu) {
                host.sched.set_need_resched(cpu);
                host.send_kick(cpu);
            }
        }
        Ok(())
    }

    fn offline(&mut self, cpu: u32, reply: Reply<'_>) -> Outcome {
        let host = self.host();
        let found = u16::try_from(cpu).ok().map(CpuId).filter(|cpu| cpu.index() < host.cpus.ids().len());
        let Some(cpu) = found else { return reply.refused(Status::NoSuchCpu, "") };
        match hotplug::request_out(host, cpu) {
            Ok(()) => {
                self.act = Act::Offline { cpu, until_us: timer::now_us() + CPU_LIMIT_US };
                Outcome::Working
            }
            Err(refusal) => reply.refused(refusal.status(), &refusal.to_string()),
        }
    }

    fn online(&mut self, cpu: u32, reply: Reply<'_>) -> Outcome {
        let host = self.host();
        let found = u16::try_from(cpu).ok().map(CpuId).filter(|cpu| cpu.index() < host.cpus.ids().len());
        let Some(cpu) = found else { return reply.refused(Status::NoSuchCpu, "") };
        match hotplug::request_back(host, cpu) {
            Ok(()) => {
                self.act = Act::Online { cpu, until_us: timer::now_us() + CPU_LIMIT_US };
                Outcome::Working
            }
            Err(refusal) => reply.refused(refusal.status(), &refusal.to_string()),
        }
    }

    /// Looks whether a CPU has come to where it was asked to.
    fn await_cpu(&mut self, cpu: CpuId, until_us: u64, is_online: bool, reply: Reply<'_>) -> Outcome {
        let host = self.host();
        let state = host.cpu(cpu).hotplug();
        let is_there = match is_online {
            true => state == Hotplug::InService && host.cpu(cpu).is_online(),
            false => matches!(state, Hotplug::Off | Hotplug::Parked),
        };
        if is_there {
            let kind = if is_online { EventKind::CpuOnline } else { EventKind::CpuOffline };
            host.events.record_machine(kind, &cpu.to_string());
            return reply.done(&Empty);
        }
        let moves = matches!(state, Hotplug::Leaving | Hotplug::Returning);
        if !moves || timer::now_us() > until_us {
            return reply.refused(Status::HardwareFailed, "the log says more");
        }
        self.act = match is_online {
            true => Act::Online { cpu, until_us },
            false => Act::Offline { cpu, until_us },
        };
        Outcome::Working
    }
}

/// Answers a request that is done at once.
fn at_once(result: Result<(), Refusal>, reply: Reply<'_>) -> Outcome {
    match result {
        Ok(()) => reply.done(&Empty),
        Err(Refusal(status, text)) => reply.refused(status, text),
    }
}

impl Acts for Hypervisor {
    type With = Teardown;

    fn begin(&mut self, teardown: &Teardown, request: &Request<'_>, reply: Reply<'_>) -> Outcome {
        match *request {
            Request::Create(create) => self.create(&create, reply),
            Request::Image(image) => self.image(image, reply),
            Request::ImageChunk(chunk) => at_once(self.chunk(&chunk), reply),
            Request::Build(id) => self.build(teardown, id, reply),
            Request::Abort(id) => at_once(self.abort(teardown, id), reply),
            Request::Start(start) => at_once(self.start(start.domain, start.paused), reply),
            Request::Pause(id) => self.pause(id, reply),
            Request::Unpause(id) => at_once(self.unpause(id), reply),
            Request::Reset(id) => at_once(self.reset(id), reply),
            Request::Destroy(id) => self.destroy(teardown, id, reply),
            Request::Set(set) => at_once(self.set(&set), reply),
            Request::CpuOffline(cpu) => self.offline(cpu, reply),
            Request::CpuOnline(cpu) => self.online(cpu, reply),
            Request::Shutdown(_) => {
                let text = "a domain has no power button: use its console, or destroy it";
                reply.refused(Status::NotSupported, text)
            }
            Request::Watchdog(_) => reply.refused(Status::NotSupported, "there are no watchdogs"),
            Request::PciList(_) | Request::PciAssign(_) | Request::PciRelease(_) => {
                reply.refused(Status::NotSupported, "PCI functions are given to domains at boot only")
            }
            _ => queries::answer(self.domains, self.draft.as_ref(), &mut self.scratch, request, reply),
        }
    }

    fn proceed(&mut self, teardown: &Teardown, reply: Reply<'_>) -> Outcome {
        match mem::replace(&mut self.act, Act::None) {
            Act::None => reply.refused(Status::Internal, "nothing is under way"),
            Act::Build { assembly, cost } => self.step_build(assembly, cost, reply),
            Act::Undo { assembly, why } => match self.step_undo(teardown, assembly, why) {
                None => Outcome::Working,
                Some((status, text)) => reply.refused(status, &text),
            },
            Act::Pause { id, until_us } => match self.domains.get(id) {
                None => reply.refused(Status::DomainEnded, ""),
                Some(domain) if domain.is_out() => reply.done(&Empty),
                Some(_) if timer::now_us() > until_us => {
                    reply.refused(Status::NoReaction, "a vCPU does not leave its guest")
                }
                Some(_) => {
                    self.act = Act::Pause { id, until_us };
                    Outcome::Working
                }
            },
            Act::Destroy(id) if self.domains.is_reserved(id) => {
                self.act = Act::Destroy(id);
                Outcome::Waiting
            }
            Act::Destroy(_) => reply.done(&Empty),
            Act::Offline { cpu, until_us } => self.await_cpu(cpu, until_us, false, reply),
            Act::Online { cpu, until_us } => self.await_cpu(cpu, until_us, true, reply),
        }
    }

    fn hang_up(&mut self, teardown: &Teardown) -> Progress {
        if let Some(draft) = self.draft.take() {
            self.leave(teardown, draft.give_up());
        }
        match mem::replace(&mut self.act, Act::None) {
            Act::Build { assembly, .. } => {
                self.act = Act::Undo { assembly, why: None };
                Progress::More
            }
            Act::Undo { assembly, why } => match self.step_undo(teardown, assembly, why) {
                None => Progress::More,
                Some(_) => Progress::Done,
            },
            _ => Progress::Done,
        }
    }

    fn next_event(&self, after: u64) -> Option<Recorded> {
        self.host().events.next(after)
    }

    fn last_event(&self) -> u64 {
        self.host().events.last()
    }
}
