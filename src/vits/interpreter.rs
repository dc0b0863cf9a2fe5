//! The interpreter: one command at a time from the guest's queue, each to its end before the next.
//!
//! What a command error is, and that it leaves no trace in the shadow, follows the manual's list for each command
//! (IHI 0069, 5.3 and its pseudocode). Work that may be long is a [`Task`]; there is at most one. In the order of
//! precedence: the task at hand, a reset, the walk after GITS_CTLR.Enabled changed, a reload of configuration bytes,
//! the next command.

use super::command::Command;
use super::config::{ConfigError, OnError, Progress, Usage, VitsConfig};
use super::refusal::{Counters, Refusal};
use super::regs::{self, Effect, Registers};
use super::shadow::{Collections, Cursor, Device, Event, Shadow, Stop};
use super::{Backend, BackendError};
use crate::ids::{CollectionId, DeviceId, EventId, ItsId, Lpi, VIntid, VcpuId};

/// How much work is left to do before a breath.
pub(super) struct Budget(usize);

impl Budget {
    /// A look at an entry of the shadow that asks for nothing is cheap: so many cost one host operation.
    const LOOKS: usize = 64;

    /// For `operations` on the host.
    pub fn new(operations: usize) -> Budget {
        Budget(operations.max(1).saturating_mul(Self::LOOKS))
    }

    fn operation(&mut self) {
        self.0 = self.0.saturating_sub(Self::LOOKS);
    }

    fn look(&mut self) {
        self.0 = self.0.saturating_sub(1);
    }

    fn spent(&self) -> bool {
        self.0 == 0
    }
}

/// Work with a cursor.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// Unmap a device's events from `next` on, then the device; then map it anew with `remap` EventID bits.
    TakeDown { device: DeviceId, next: u32, remap: Option<u8> },
    /// Re-establish the rule of `mod.rs` for the events of one collection, or of all.
    Settle { only: Option<CollectionId>, cursor: Cursor },
    /// Reload the configuration bytes of the events at one vCPU, or at any.
    Reload { only: Option<VcpuId>, cursor: Cursor },
    /// Invalidate what is cached for the vCPUs from `next` on.
    Invalidate { next: u16 },
    /// Move what is software-pending.
    MovePending { from: VcpuId, to: VcpuId, resume: u32 },
}

#[derive(Clone, Copy, Debug)]
struct Task {
    work: Work,
    /// Whether it is the command at GITS_CREADR, which is complete when this is.
    of_queue: bool,
}

/// Whose configuration bytes are to be reloaded because LPIs were enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reload {
    No,
    Of(VcpuId),
    All,
}

/// Everything behind the lock.
pub(super) struct State {
    config: VitsConfig,
    regs: Registers,
    shadow: Shadow,
    task: Option<Task>,
    reset: bool,
    settle: bool,
    reload: Reload,
    counters: Counters,
}

/// The names of an event on the host.
#[derive(Clone, Copy)]
struct Name {
    its: ItsId,
    device: DeviceId,
    event: EventId,
}

/// Where the host must have an event: the rule of `mod.rs`.
fn wanted(enabled: bool, device: &Device, event: &Event, collections: &Collections) -> Option<VcpuId> {
    if enabled && device.at_host { collections.target(event.collection) } else { None }
}

/// Brings the host to where it should have an event. `None` if it is there already.
fn settle(
    backend: &dyn Backend,
    name: Name,
    event: &mut Event,
    wanted: Option<VcpuId>,
) -> Option<Result<(), (Refusal, BackendError)>> {
    let Name { its, device, event: id } = name;
    let result = match (event.at, wanted) {
        (None, None) => return None,
        (Some(at), Some(to)) if at == to => return None,
        (None, Some(to)) => {
            backend.reload_config_byte_only(event.vintid, to);
            backend.map_event(its, device, id, to, event.vintid).map_err(|e| (Refusal::HostMap, e))
        }
        (Some(from), Some(to)) => {
            backend.move_event(its, device, id, event.vintid, from, to).map_err(|e| (Refusal::HostMap, e))
        }
        (Some(at), None) => backend.park_event(its, device, id, event.vintid, at).map_err(|e| (Refusal::HostUnmap, e)),
    };
    event.at = if result.is_ok() { wanted } else { None };
    Some(result)
}

impl State {
    pub fn new(config: VitsConfig) -> Result<State, ConfigError> {
        Ok(State {
            config,
            regs: Registers::new(&config),
            shadow: Shadow::new(&config)?,
            task: None,
            reset: false,
            settle: false,
            reload: Reload::No,
            counters: Counters::default(),
        })
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub fn usage(&self) -> Usage {
        Usage { devices: self.shadow.devices(), events: self.shadow.mapped() }
    }

    /// No work beside the queue.
    fn idle(&self) -> bool {
        self.task.is_none() && !self.reset && !self.settle && self.reload == Reload::No
    }

    fn progress(&self) -> Progress {
        if self.idle() && self.regs.next_command().is_none() { Progress::Done } else { Progress::More }
    }

    pub fn read(&self, offset: u64, size: u8) -> u64 {
        if offset < regs::FRAME { self.regs.read(offset, size, self.idle()) } else { 0 }
    }

    pub fn write(&mut self, offset: u64, size: u8, value: u64) {
        if offset >= regs::FRAME {
            self.refuse(Refusal::TranslaterWrite);
            return;
        }
        let idle = self.idle();
        match self.regs.write(offset, size, value, idle) {
            Effect::Stored => {}
            Effect::EnableChanged => self.settle = true,
            Effect::Refused(why) => self.refuse(why),
        }
    }

    pub fn lpis_enabled(&mut self, vcpu: VcpuId) -> Progress {
        self.reload = match self.reload {
            Reload::No => Reload::Of(vcpu),
            Reload::Of(other) if other == vcpu => Reload::Of(vcpu),
            Reload::Of(_) | Reload::All => Reload::All,
        };
        self.progress()
    }

    pub fn reset(&mut self) -> Progress {
        self.regs = Registers::new(&self.config);
        self.shadow.collections.clear();
        if let Some(task) = &mut self.task {
            task.of_queue = false;
            if let Work::TakeDown { remap, .. } = &mut task.work {
                *remap = None;
            }
        }
        self.reset = true;
        self.progress()
    }

    pub fn lookup(&self, device: DeviceId, event: EventId) -> Option<(VIntid, Option<VcpuId>)> {
        let device = self.shadow.device(device)?;
        self.shadow.event(&device, event).map(|e| (e.vintid, e.at))
    }

    pub fn for_each_event(&mut self, visit: &mut dyn FnMut(DeviceId, EventId, VIntid, CollectionId, Option<VcpuId>)) {
        let mut cursor = Cursor::default();
        while let Some(stop) = self.shadow.walk(&mut cursor) {
            if let Some(event) = stop.event {
                visit(stop.device.id, stop.id, event.vintid, event.collection, event.at);
            }
        }
    }

    /// Counts what was not done, and says so once per reason.
    fn refuse(&mut self, why: Refusal) {
        if self.counters.count(why) {
            let (domain, its) = (self.config.domain, self.config.its);
            log::warn!("{domain}: virtual {its}: skipped: {} (said once; counted from now on)", why.text());
        }
    }

    fn host_failed(&mut self, name: Name, why: Refusal, error: BackendError) {
        if self.counters.count(why) {
            let (domain, its, device, event) = (self.config.domain, name.its, name.device, name.event);
            log::warn!("{domain}: virtual {its}: {device} {event}: {}: {error:?} (said once)", why.text());
        }
    }

    fn name(&self, device: DeviceId, event: EventId) -> Name {
        Name { its: self.config.its, device, event }
    }

    pub fn run(&mut self, backend: &dyn Backend, budget: &mut Budget) -> Progress {
        while !budget.spent() {
            if let Some(task) = self.task.take() {
                match self.work(backend, task.work, budget) {
                    Some(work) => self.task = Some(Task { work, ..task }),
                    None if task.of_queue => self.complete(),
                    None => {}
                }
            } else if self.reset {
                match self.shadow.first_device() {
                    Some(device) => self.task = Some(Task::beside(Work::TakeDown { device, next: 0, remap: None })),
                    None => self.reset = false,
                }
            } else if self.settle {
                self.settle = false;
                self.task = Some(Task::beside(Work::Settle { only: None, cursor: Cursor::default() }));
            } else if self.reload != Reload::No {
                let only = if let Reload::Of(vcpu) = self.reload { Some(vcpu) } else { None };
                self.reload = Reload::No;
                self.task = Some(Task::beside(Work::Reload { only, cursor: Cursor::default() }));
            } else if !self.fetch(backend, budget) {
                return Progress::Done;
            }
        }
        self.progress()
    }

    /// Executes the next command of the queue. `false` if there is none.
    fn fetch(&mut self, backend: &dyn Backend, budget: &mut Budget) -> bool {
        let Some(head) = self.regs.next_command() else { return false };
        budget.operation();
        let mut bytes = [0; 32];
        if !backend.read_guest(head.0, &mut bytes) {
            self.refuse(Refusal::QueueUnreadable);
            self.regs.stall();
            return true;
        }
        let outcome = match Command::decode(&bytes) {
            Ok(command) => self.execute(backend, command, budget),
            Err(_) => Err(Refusal::UnknownCommand),
        };
        match outcome {
            Ok(None) => self.complete(),
            Ok(Some(work)) => self.task = Some(Task { work, of_queue: true }),
            Err(why) => {
                self.refuse(why);
                match self.config.on_error {
                    OnError::Skip => self.complete(),
                    OnError::Stall => self.regs.stall(),
                }
            }
        }
        true
    }

    fn complete(&mut self) {
        self.counters.commands = self.counters.commands.saturating_add(1);
        self.regs.advance();
    }

    /// Checks and executes a command, up to work that takes a cursor.
    fn execute(
        &mut self,
        backend: &dyn Backend,
        command: Command,
        budget: &mut Budget,
    ) -> Result<Option<Work>, Refusal> {
        match command {
            Command::Mapd { device, event_bits } => return self.mapd(backend, device, event_bits),
            Command::Mapc { collection, target } => {
                let target = match target {
                    Some(rdbase) => Some(backend.vcpu_by_target(rdbase).ok_or(Refusal::UnknownTarget)?),
                    None => None,
                };
                self.shadow.collections.set(collection, target)?;
                return Ok(Some(Work::Settle { only: Some(collection), cursor: Cursor::default() }));
            }
            Command::Invall { collection } => {
                self.shadow.collections.check(collection)?;
                let vcpu = self.shadow.collections.target(collection).ok_or(Refusal::CollectionUnmapped)?;
                return Ok(Some(Work::Reload { only: Some(vcpu), cursor: Cursor::default() }));
            }
            Command::Movall { from, to } => {
                let from = backend.vcpu_by_target(from).ok_or(Refusal::UnknownTarget)?;
                let to = backend.vcpu_by_target(to).ok_or(Refusal::UnknownTarget)?;
                return Ok((from != to).then_some(Work::MovePending { from, to, resume: 0 }));
            }
            Command::Mapti { device, event, vintid, collection } => {
                self.mapti(backend, device, event, vintid, collection, budget)?;
            }
            Command::Movi { device, event, collection } => self.movi(backend, device, event, collection, budget)?,
            Command::Discard { device, event } => {
                let (device, _) = self.mapped_event(device, event)?;
                self.unmap(backend, &device, event, budget);
            }
            Command::Int { device, event } => {
                if let Some((name, vintid, vcpu)) = self.delivered_event(device, event, budget)? {
                    backend.set_pending(name.its, name.device, name.event, vintid, vcpu);
                }
            }
            Command::Clear { device, event } => {
                if let Some((name, vintid, vcpu)) = self.delivered_event(device, event, budget)? {
                    backend.clear_pending(name.its, name.device, name.event, vintid, vcpu);
                }
            }
            Command::Inv { device, event } => {
                if let Some((name, vintid, vcpu)) = self.delivered_event(device, event, budget)? {
                    backend.reload_config(name.its, name.device, name.event, vintid, vcpu);
                }
            }
            Command::Sync => {}
        }
        Ok(None)
    }

    fn check_device(&self, device: DeviceId) -> Result<(), Refusal> {
        let limit = 1u64.checked_shl(u32::from(self.config.device_bits)).unwrap_or(u64::MAX);
        if u64::from(device.0) < limit { Ok(()) } else { Err(Refusal::DeviceRange) }
    }

    /// The device, and that the event is within what its MAPD said.
    fn mapped_device(&self, device: DeviceId, event: EventId) -> Result<Device, Refusal> {
        self.check_device(device)?;
        let device = self.shadow.device(device).ok_or(Refusal::DeviceUnmapped)?;
        let limit = 1u64.checked_shl(u32::from(device.guest_bits)).unwrap_or(u64::MAX);
        if u64::from(event.0) < limit { Ok(device) } else { Err(Refusal::EventRange) }
    }

    fn mapped_event(&self, device: DeviceId, event: EventId) -> Result<(Device, Event), Refusal> {
        let device = self.mapped_device(device, event)?;
        let event = self.shadow.event(&device, event).ok_or(Refusal::EventUnmapped)?;
        Ok((device, event))
    }

    /// The event on the host, for INT, CLEAR and INV. `None`, and counted, if a failure of the host keeps it off.
    fn delivered_event(
        &mut self,
        device: DeviceId,
        id: EventId,
        budget: &mut Budget,
    ) -> Result<Option<(Name, VIntid, VcpuId)>, Refusal> {
        let (_, event) = self.mapped_event(device, id)?;
        self.shadow.collections.target(event.collection).ok_or(Refusal::CollectionUnmapped)?;
        budget.operation();
        let found = event.at.map(|vcpu| (self.name(device, id), event.vintid, vcpu));
        if found.is_none() {
            self.refuse(Refusal::NotAtHost);
        }
        Ok(found)
    }

    fn mapd(
        &mut self,
        backend: &dyn Backend,
        device: DeviceId,
        event_bits: Option<u8>,
    ) -> Result<Option<Work>, Refusal> {
        self.check_device(device)?;
        if let Some(bits) = event_bits {
            if bits > self.config.event_bits {
                return Err(Refusal::SizeRange);
            }
            if !backend.owns_device(self.config.its, device) {
                return Err(Refusal::DeviceNotOwned);
            }
        }
        if self.shadow.device(device).is_some() {
            return Ok(Some(Work::TakeDown { device, next: 0, remap: event_bits }));
        }
        match event_bits {
            Some(bits) => self.map_device(backend, device, bits).map(|()| None),
            // Unmapping what is not mapped is no error: drivers do it before they map.
            None => Ok(None),
        }
    }

    fn map_device(&mut self, backend: &dyn Backend, id: DeviceId, event_bits: u8) -> Result<(), Refusal> {
        let device = self.shadow.add_device(id, event_bits)?;
        match backend.map_device(self.config.its, id, device.bits) {
            Ok(()) => self.shadow.set_at_host(id, true),
            Err(error) => self.host_failed(self.name(id, EventId(0)), Refusal::HostMap, error),
        }
        Ok(())
    }

    fn mapti(
        &mut self,
        backend: &dyn Backend,
        device: DeviceId,
        id: EventId,
        vintid: VIntid,
        collection: CollectionId,
        budget: &mut Budget,
    ) -> Result<(), Refusal> {
        let device = self.mapped_device(device, id)?;
        self.shadow.collections.check(collection)?;
        let limit = 1u32.checked_shl(u32::from(self.config.id_bits)).unwrap_or(u32::MAX);
        if !(Lpi::FIRST..limit).contains(&vintid.0) {
            return Err(Refusal::VintidRange);
        }
        if id.0 >= device.entries() {
            return Err(Refusal::EventQuota);
        }
        // Over a mapping the manual leaves the result open; here it is DISCARD, then MAPTI.
        self.unmap(backend, &device, id, budget);
        if !self.shadow.has_room() {
            return Err(Refusal::EventQuota);
        }
        self.place(backend, &device, id, Event { vintid, collection, at: None }, budget)
    }

    fn movi(
        &mut self,
        backend: &dyn Backend,
        device: DeviceId,
        id: EventId,
        collection: CollectionId,
        budget: &mut Budget,
    ) -> Result<(), Refusal> {
        let (device, event) = self.mapped_event(device, id)?;
        self.shadow.collections.check(collection)?;
        // Both collections must be mapped: an event is never moved out of, or into, nowhere.
        self.shadow.collections.target(event.collection).ok_or(Refusal::CollectionUnmapped)?;
        self.shadow.collections.target(collection).ok_or(Refusal::CollectionUnmapped)?;
        self.place(backend, &device, id, Event { collection, ..event }, budget)
    }

    /// Settles an event on the host and records it.
    fn place(
        &mut self,
        backend: &dyn Backend,
        device: &Device,
        id: EventId,
        mut event: Event,
        budget: &mut Budget,
    ) -> Result<(), Refusal> {
        let name = self.name(device.id, id);
        let wanted = wanted(self.regs.enabled(), device, &event, &self.shadow.collections);
        if let Some(result) = settle(backend, name, &mut event, wanted) {
            budget.operation();
            if let Err((why, error)) = result {
                self.host_failed(name, why, error);
            }
        }
        self.shadow.set_event(device, id, event)
    }

    /// Unmaps an event, on the host and in the shadow, if it is mapped.
    fn unmap(&mut self, backend: &dyn Backend, device: &Device, id: EventId, budget: &mut Budget) {
        let Some(event) = self.shadow.take_event(device, id) else { return };
        let Some(vcpu) = event.at else { return };
        budget.operation();
        let name = self.name(device.id, id);
        if let Err(error) = backend.unmap_event(name.its, name.device, name.event, event.vintid, vcpu) {
            self.host_failed(name, Refusal::HostUnmap, error);
        }
    }

    /// One stretch of a task. What is left of it, or `None` when it is done.
    fn work(&mut self, backend: &dyn Backend, work: Work, budget: &mut Budget) -> Option<Work> {
        match work {
            Work::TakeDown { device, next, remap } => self.take_down(backend, device, next, remap, budget),
            Work::Settle { only, mut cursor } => {
                let (enabled, its) = (self.regs.enabled(), self.config.its);
                while !budget.spent() {
                    let Stop { device, id, event, collections } = self.shadow.walk(&mut cursor)?;
                    budget.look();
                    let Some(event) = event else { continue };
                    if only.is_some_and(|only| only != event.collection) {
                        continue;
                    }
                    let name = Name { its, device: device.id, event: id };
                    let wanted = wanted(enabled, &device, event, collections);
                    if let Some(result) = settle(backend, name, event, wanted) {
                        budget.operation();
                        if let Err((why, error)) = result {
                            self.host_failed(name, why, error);
                        }
                    }
                }
                Some(Work::Settle { only, cursor })
            }
            Work::Reload { only, mut cursor } => {
                while !budget.spent() {
                    let Some(Stop { event, .. }) = self.shadow.walk(&mut cursor) else {
                        budget.operation();
                        let Some(vcpu) = only else { return Some(Work::Invalidate { next: 0 }) };
                        backend.invalidate_all(vcpu);
                        return None;
                    };
                    budget.look();
                    let Some(event) = event else { continue };
                    if let Some(at) = event.at.filter(|&at| only.is_none_or(|only| only == at)) {
                        backend.reload_config_byte_only(event.vintid, at);
                        budget.operation();
                    }
                }
                Some(Work::Reload { only, cursor })
            }
            Work::Invalidate { next } => {
                if next >= backend.vcpus() {
                    return None;
                }
                backend.invalidate_all(VcpuId(next));
                budget.operation();
                next.checked_add(1).map(|next| Work::Invalidate { next })
            }
            Work::MovePending { from, to, resume } => {
                budget.operation();
                backend.move_all_pending(from, to, resume).map(|resume| Work::MovePending { from, to, resume })
            }
        }
    }

    fn take_down(
        &mut self,
        backend: &dyn Backend,
        id: DeviceId,
        mut next: u32,
        remap: Option<u8>,
        budget: &mut Budget,
    ) -> Option<Work> {
        let device = self.shadow.device(id)?;
        while next < device.entries() {
            if budget.spent() {
                return Some(Work::TakeDown { device: id, next, remap });
            }
            budget.look();
            self.unmap(backend, &device, EventId(next), budget);
            next = next.saturating_add(1);
        }
        budget.operation();
        if device.at_host
            && let Err(error) = backend.unmap_device(self.config.its, id)
        {
            self.host_failed(self.name(id, EventId(0)), Refusal::HostUnmap, error);
        }
        self.shadow.remove_device(id);
        if let Some(bits) = remap
            && let Err(why) = self.map_device(backend, id, bits)
        {
            // The device stays unmapped; the command is complete all the same, its first half cannot be undone.
            self.refuse(why);
        }
        None
    }
}

impl Task {
    fn beside(work: Work) -> Task {
        Task { work, of_queue: false }
    }
}
