//! Executes the commands of the guest's queue, one after the other.
//!
//! The command errors are those that the manual lists for each command (IHI 0069, 5.3 and its pseudocode); a command
//! with an error does not change the shadow. Work that may take long is a [`Task`], of which there is at most one. The
//! order of precedence is: the current task, a reset, the walk after a change of GITS_CTLR.Enabled, a reload of
//! configuration bytes, the next command.

use super::command::Command;
#[cfg(any(test, fuzzing))]
use super::config::Usage;
use super::config::{ConfigError, OnError, VitsConfig};
use super::refusal::{Counters, Refusal};
use super::regs::{self, Effect, Registers};
use super::shadow::{Collections, Cursor, Device, Event, Shadow, Step};
use super::{Backend, BackendError};
use crate::ids::{CollectionId, DeviceId, EventId, EventKey, Lpi, VIntid, VcpuId};
use crate::log_limited;
use crate::util::progress::Progress;

/// How much work may still be done before the interpreter returns.
pub(super) struct Budget(usize);

impl Budget {
    /// Number of entries of the shadow, without an operation on the host, that cost as much as one such operation.
    const ENTRIES: usize = 64;

    /// A budget for `operations` on the host and at least one.
    pub fn new(operations: usize) -> Budget {
        Budget(operations.max(1).saturating_mul(Self::ENTRIES))
    }

    /// Charges one operation on the host.
    fn operation(&mut self) {
        self.0 = self.0.saturating_sub(Self::ENTRIES);
    }

    /// Charges one entry of the shadow.
    fn entry(&mut self) {
        self.entries(1);
    }

    /// Charges entries of the shadow.
    fn entries(&mut self, count: u32) {
        self.0 = self.0.saturating_sub(count as usize);
    }

    fn spent(&self) -> bool {
        self.0 == 0
    }

    /// Ends the run.
    fn end(&mut self) {
        self.0 = 0;
    }
}

/// Work that can be interrupted, with its position.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// Unmap a device's events from `next` on, then the device. Then map it again with `remap` EventID bits, if any.
    UnmapDevice { device: DeviceId, next: u32, remap: Option<u8> },
    /// Re-establish the rule of `mod.rs` for the events of one collection, or of all collections.
    Reconcile { only: Option<CollectionId>, cursor: Cursor },
    /// Reload the configuration bytes of the events of one vCPU, or of all vCPUs.
    Reload { only: Option<VcpuId>, cursor: Cursor },
    /// Invalidate the cached configuration of the vCPUs from `next` on.
    Invalidate { next: u16 },
    /// Move interrupts that are pending in software.
    MovePending { from: VcpuId, to: VcpuId, resume: u32 },
    /// Wait until what was changed is in effect on all vCPUs.
    Settle,
}

/// The work at hand.
#[derive(Clone, Copy, Debug)]
struct Task {
    work: Work,
    /// Whether it is for the command at GITS_CREADR, which is complete when the work is.
    of_command: bool,
}

/// The vCPUs whose configuration bytes have to be reloaded because their LPIs were enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reload {
    No,
    Of(VcpuId),
    All,
}

/// The state of a virtual ITS.
pub(super) struct State {
    config: VitsConfig,
    regs: Registers,
    shadow: Shadow,
    task: Option<Task>,
    /// A reset is requested.
    reset: bool,
    /// GITS_CTLR.Enabled has changed.
    reconcile: bool,
    reload: Reload,
    counters: Counters,
}

/// The vCPU that the host must have an event mapped to, by the rule of `mod.rs`.
fn wanted(enabled: bool, device: &Device, event: &Event, collections: &Collections) -> Option<VcpuId> {
    if enabled && device.at_host { collections.target(event.collection) } else { None }
}

/// Maps, moves or unmaps an event on the host so that it is mapped to `wanted`. `None` if it is already.
fn reconcile(
    backend: &dyn Backend,
    name: EventKey,
    event: &mut Event,
    wanted: Option<VcpuId>,
) -> Option<Result<(), (Refusal, BackendError)>> {
    let result = match (event.at, wanted) {
        (None, None) => return None,
        (Some(at), Some(to)) if at == to => return None,
        (None, Some(to)) => {
            backend.reload_config_byte_only(event.vintid, to);
            backend.map_event(name, to, event.vintid).map_err(|e| (Refusal::HostMap, e))
        }
        (Some(from), Some(to)) => backend.move_event(name, event.vintid, from, to).map_err(|e| (Refusal::HostMap, e)),
        (Some(at), None) => backend.park_event(name, event.vintid, at).map_err(|e| (Refusal::HostUnmap, e)),
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
            reconcile: false,
            reload: Reload::No,
            counters: Counters::default(),
        })
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    #[cfg(any(test, fuzzing))]
    pub fn usage(&self) -> Usage {
        Usage { devices: self.shadow.devices(), events: self.shadow.mapped() }
    }

    /// Whether there is no work except commands in the queue.
    fn idle(&self) -> bool {
        self.task.is_none() && !self.reset && !self.reconcile && self.reload == Reload::No
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
            Effect::EnableChanged => self.reconcile = true,
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
            task.of_command = false;
            if let Work::UnmapDevice { remap, .. } = &mut task.work {
                *remap = None;
            }
        }
        self.reset = true;
        self.progress()
    }

    #[cfg(test)]
    pub fn lookup(&self, device: DeviceId, event: EventId) -> Option<(VIntid, Option<VcpuId>)> {
        let device = self.shadow.device(device)?;
        self.shadow.event(&device, event).map(|e| (e.vintid, e.at))
    }

    pub fn visit_events(
        &mut self,
        from: (DeviceId, EventId),
        entries: usize,
        visit: &mut dyn FnMut(DeviceId, EventId, VIntid, Option<VcpuId>) -> bool,
    ) -> Option<(DeviceId, EventId)> {
        let mut cursor = self.shadow.cursor(from);
        for _ in 0..entries {
            let stop = self.shadow.walk(&mut cursor)?;
            if let Some(event) = stop.event
                && !visit(stop.device.id, stop.id, event.vintid, event.at)
            {
                break;
            }
        }
        self.shadow.place_of(cursor)
    }

    pub fn for_each_event(&mut self, visit: &mut dyn FnMut(DeviceId, EventId, VIntid, CollectionId, Option<VcpuId>)) {
        let mut cursor = Cursor::default();
        while let Some(stop) = self.shadow.walk(&mut cursor) {
            if let Some(event) = stop.event {
                visit(stop.device.id, stop.id, event.vintid, event.collection, event.at);
            }
        }
    }

    /// Counts a request that was refused, and logs the first one of each reason.
    fn refuse(&mut self, why: Refusal) {
        if self.counters.count(why) {
            let (domain, its) = (self.config.domain, self.config.its);
            log_limited!(Warn, domain; "{domain} {its}: request refused: {}; further ones are only counted", why.text());
        }
    }

    fn host_failed(&mut self, name: EventKey, why: Refusal, error: BackendError) {
        if self.counters.count(why) {
            let (domain, EventKey { its, device, event }) = (self.config.domain, name);
            log_limited!(Warn, domain;
                "{domain} {its}: {device} {event}: {}: {error:?}; further failures are only counted",
                why.text()
            );
        }
    }

    /// An event as the host identifies it.
    fn name(&self, device: DeviceId, event: EventId) -> EventKey {
        EventKey { its: self.config.its, device, event }
    }

    pub fn run(&mut self, backend: &dyn Backend, budget: &mut Budget) -> Progress {
        while !budget.spent() && !backend.is_late() {
            if let Some(task) = self.task.take() {
                match self.work(backend, task.work, budget) {
                    Some(work) => self.task = Some(Task { work, ..task }),
                    None if task.of_command => self.complete(backend, budget),
                    None => {}
                }
            } else if self.reset {
                match self.shadow.first_device() {
                    Some(device) => {
                        self.task = Some(Task::background(Work::UnmapDevice { device, next: 0, remap: None }))
                    }
                    None => self.reset = false,
                }
            } else if self.reconcile {
                self.reconcile = false;
                self.task = Some(Task::background(Work::Reconcile { only: None, cursor: Cursor::default() }));
            } else if self.reload != Reload::No {
                let only = if let Reload::Of(vcpu) = self.reload { Some(vcpu) } else { None };
                self.reload = Reload::No;
                self.task = Some(Task::background(Work::Reload { only, cursor: Cursor::default() }));
            } else if !self.fetch(backend, budget) {
                return Progress::Done;
            }
        }
        self.progress()
    }

    /// Executes the next command of the queue. Returns `false` if there is none.
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
            Ok(None) => self.complete(backend, budget),
            Ok(Some(work)) => self.task = Some(Task { work, of_command: true }),
            Err(why) => {
                self.refuse(why);
                match self.config.on_error {
                    OnError::Skip => self.complete(backend, budget),
                    OnError::Stall => self.regs.stall(),
                }
            }
        }
        true
    }

    /// Completes the command at GITS_CREADR, once its work is in effect on all vCPUs.
    fn complete(&mut self, backend: &dyn Backend, budget: &mut Budget) {
        if !backend.is_settled() {
            self.task = Some(Task { work: Work::Settle, of_command: true });
            budget.end();
            return;
        }
        self.counters.commands = self.counters.commands.saturating_add(1);
        self.regs.advance();
    }

    /// Checks a command and executes it, or returns the work that it causes.
    fn execute(
        &mut self,
        backend: &dyn Backend,
        command: Command,
        budget: &mut Budget,
    ) -> Result<Option<Work>, Refusal> {
        match command {
            Command::Mapd { device, event_bits } => return self.mapd(backend, device, event_bits, budget),
            Command::Mapc { collection, target } => {
                let target = match target {
                    Some(rdbase) => Some(backend.vcpu_by_target(rdbase).ok_or(Refusal::UnknownTarget)?),
                    None => None,
                };
                self.shadow.collections.set(collection, target)?;
                return Ok(Some(Work::Reconcile { only: Some(collection), cursor: Cursor::default() }));
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
                    backend.set_pending(name, vintid, vcpu);
                }
            }
            Command::Clear { device, event } => {
                if let Some((name, vintid, vcpu)) = self.delivered_event(device, event, budget)? {
                    backend.clear_pending(name, vintid, vcpu);
                }
            }
            Command::Inv { device, event } => {
                if let Some((name, vintid, vcpu)) = self.delivered_event(device, event, budget)? {
                    backend.reload_config(name, vintid, vcpu);
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

    /// The mapped device, if the event is in the range of its MAPD.
    fn mapped_device(&self, device: DeviceId, event: EventId) -> Result<Device, Refusal> {
        self.check_device(device)?;
        let device = self.shadow.device(device).ok_or(Refusal::DeviceUnmapped)?;
        let limit = 1u64.checked_shl(u32::from(device.guest_bits)).unwrap_or(u64::MAX);
        if u64::from(event.0) < limit { Ok(device) } else { Err(Refusal::EventRange) }
    }

    /// The mapped device and the mapped event.
    fn mapped_event(&self, device: DeviceId, event: EventId) -> Result<(Device, Event), Refusal> {
        let device = self.mapped_device(device, event)?;
        let event = self.shadow.event(&device, event).ok_or(Refusal::EventUnmapped)?;
        Ok((device, event))
    }

    /// The event on the host, for INT, CLEAR and INV. `None`, which is counted, if it is not mapped there because the
    /// host has failed before.
    fn delivered_event(
        &mut self,
        device: DeviceId,
        id: EventId,
        budget: &mut Budget,
    ) -> Result<Option<(EventKey, VIntid, VcpuId)>, Refusal> {
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
        budget: &mut Budget,
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
            return Ok(Some(Work::UnmapDevice { device, next: 0, remap: event_bits }));
        }
        match event_bits {
            Some(bits) => self.map_device(backend, device, bits, budget).map(|()| None),
            // Unmapping a device that is not mapped is no error: drivers do so before they map it.
            None => Ok(None),
        }
    }

    fn map_device(
        &mut self,
        backend: &dyn Backend,
        id: DeviceId,
        event_bits: u8,
        budget: &mut Budget,
    ) -> Result<(), Refusal> {
        budget.operation();
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
        // The manual leaves open what MAPTI of a mapped event does. Here it is DISCARD followed by MAPTI.
        self.unmap(backend, &device, id, budget);
        if !self.shadow.has_room() {
            return Err(Refusal::EventQuota);
        }
        self.update(backend, &device, id, Event { vintid, collection, at: None }, budget)
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
        // The collection that the event is in and the new one must both be mapped.
        self.shadow.collections.target(event.collection).ok_or(Refusal::CollectionUnmapped)?;
        self.shadow.collections.target(collection).ok_or(Refusal::CollectionUnmapped)?;
        self.update(backend, &device, id, Event { collection, ..event }, budget)
    }

    /// Brings an event on the host up to date and records it.
    fn update(
        &mut self,
        backend: &dyn Backend,
        device: &Device,
        id: EventId,
        mut event: Event,
        budget: &mut Budget,
    ) -> Result<(), Refusal> {
        let name = self.name(device.id, id);
        let wanted = wanted(self.regs.enabled(), device, &event, &self.shadow.collections);
        if let Some(result) = reconcile(backend, name, &mut event, wanted) {
            budget.operation();
            if let Err((why, error)) = result {
                self.host_failed(name, why, error);
            }
        }
        self.shadow.set_event(device, id, event)
    }

    /// Unmaps an event on the host and in the shadow, if it is mapped.
    fn unmap(&mut self, backend: &dyn Backend, device: &Device, id: EventId, budget: &mut Budget) {
        let Some(event) = self.shadow.take_event(device, id) else { return };
        let Some(vcpu) = event.at else { return };
        budget.operation();
        let name = self.name(device.id, id);
        if let Err(error) = backend.unmap_event(name, event.vintid, vcpu) {
            self.host_failed(name, Refusal::HostUnmap, error);
        }
    }

    /// Does work until the budget is spent. Returns the work that is left, or `None` when it is done.
    fn work(&mut self, backend: &dyn Backend, work: Work, budget: &mut Budget) -> Option<Work> {
        match work {
            Work::UnmapDevice { device, next, remap } => self.unmap_device(backend, device, next, remap, budget),
            Work::Reconcile { only, mut cursor } => {
                let (enabled, its) = (self.regs.enabled(), self.config.its);
                while !budget.spent() && !backend.is_late() {
                    let Step { device, id, event, collections } = self.shadow.walk(&mut cursor)?;
                    budget.entry();
                    let Some(event) = event else { continue };
                    if only.is_some_and(|only| only != event.collection) {
                        continue;
                    }
                    let name = EventKey { its, device: device.id, event: id };
                    let wanted = wanted(enabled, &device, event, collections);
                    if let Some(result) = reconcile(backend, name, event, wanted) {
                        budget.operation();
                        if let Err((why, error)) = result {
                            self.host_failed(name, why, error);
                        }
                    }
                }
                Some(Work::Reconcile { only, cursor })
            }
            Work::Reload { only, mut cursor } => {
                while !budget.spent() && !backend.is_late() {
                    let Some(Step { event, .. }) = self.shadow.walk(&mut cursor) else {
                        budget.operation();
                        let Some(vcpu) = only else { return Some(Work::Invalidate { next: 0 }) };
                        backend.invalidate_all(vcpu);
                        return None;
                    };
                    budget.entry();
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
            // `complete` looks.
            Work::Settle => None,
            Work::MovePending { from, to, resume } => {
                budget.operation();
                backend.move_all_pending(from, to, resume).map(|resume| Work::MovePending { from, to, resume })
            }
        }
    }

    fn unmap_device(
        &mut self,
        backend: &dyn Backend,
        id: DeviceId,
        mut next: u32,
        remap: Option<u8>,
        budget: &mut Budget,
    ) -> Option<Work> {
        let device = self.shadow.device(id)?;
        while next < device.entries() {
            if budget.spent() || backend.is_late() {
                return Some(Work::UnmapDevice { device: id, next, remap });
            }
            budget.entry();
            self.unmap(backend, &device, EventId(next), budget);
            next = next.saturating_add(1);
        }
        budget.operation();
        // The host clears as many entries of its translation table.
        budget.entries(device.entries());
        if device.at_host
            && let Err(error) = backend.unmap_device(self.config.its, id)
        {
            self.host_failed(self.name(id, EventId(0)), Refusal::HostUnmap, error);
        }
        self.shadow.remove_device(id);
        if let Some(bits) = remap
            && let Err(why) = self.map_device(backend, id, bits, budget)
        {
            // The device stays unmapped. The command is complete, because unmapping cannot be undone.
            self.refuse(why);
        }
        None
    }
}

impl Task {
    /// Work that is not for a command.
    fn background(work: Work) -> Task {
        Task { work, of_command: false }
    }
}
