//! The verbs on devices and their events.
//!
//! EL2 records what every event is mapped to, and posts no command that would be an error for that state: a VMAPTI over
//! a valid entry is UNPREDICTABLE, and hardware need not report errors at all. A mapping is never overwritten, but
//! discarded first.
//!
//! Every move is followed by INV: the redistributor that an interrupt moves to may have its configuration byte cached
//! from the last time that it was there, and later INVs went to other redistributors.
//!
//! The recorded state is the one after every command that was *posted*. Commands are executed in order, so the record
//! is right even if a caller gave up waiting for completion; only memory and residency need proof of completion. If
//! posting itself fails, the changes of that flush are undone.
//!
//! A [`Batch`] gathers commands and ends them with one SYNC for each redistributor and one VSYNC for each vPE that they
//! concern. DISCARD clears the pending state, and the hardware drops an MSI that arrives between DISCARD and the new
//! mapping. So a change between physical and virtual ends with an INT on the new mapping (at most one extra edge).

use super::driver::Gic;
use super::error::ItsError;
use super::its::{COMMAND_LIMIT_US, Command, DeviceQuota, Event, Its, State, Synced, Ticket, collection};
use super::v4::V4;
use crate::ids::{CpuId, DeviceId, DeviceIds, DomId, EventId, EventKey, ItsId, Lpi, VIntid, VpeId};
use crate::mmio::Hw;
use crate::sync::Guard;
use arrayvec::ArrayVec;

/// The most commands of one operation.
const OPERATION: usize = 6;
/// The most commands of all operations of one flush.
const GATHERED: usize = 36;
/// The most redistributors, and the most vPEs, that one flush synchronises.
const TARGETS: usize = 8;
const FLUSH: usize = GATHERED + 2 * TARGETS;
/// The most events that one flush changes.
const CHANGES: usize = 16;

/// The change of one event, undone if its commands cannot be posted.
#[derive(Clone, Copy)]
struct Change {
    dev: DeviceId,
    ev: EventId,
    old: Event,
    new: Event,
}

/// Operations on events of one ITS that share their SYNCs. None of them waits for completion before
/// [`finish`](Batch::finish).
///
/// It holds the ITS's event lock: finish it soon, and call no other verb on events of the same ITS meanwhile.
#[must_use = "a batch takes effect when it is finished"]
pub struct Batch<'a, H: Hw + Clone> {
    gic: &'a Gic<H>,
    its: &'a Its<H>,
    state: Guard<'a, State>,
    commands: ArrayVec<Command, FLUSH>,
    cpus: ArrayVec<CpuId, TARGETS>,
    vpes: ArrayVec<VpeId, TARGETS>,
    changes: ArrayVec<Change, CHANGES>,
    last: Option<Ticket>,
    open: bool,
}

impl<'a, H: Hw + Clone> Batch<'a, H> {
    fn new(gic: &'a Gic<H>, its: &'a Its<H>) -> Self {
        Batch {
            gic,
            its,
            state: its.state.lock(),
            commands: ArrayVec::new(),
            cpus: ArrayVec::new(),
            vpes: ArrayVec::new(),
            changes: ArrayVec::new(),
            last: None,
            open: true,
        }
    }

    /// What an event is mapped to.
    pub fn event(&self, dev: DeviceId, ev: EventId) -> Result<Event, ItsError> {
        self.state.event(dev, ev)
    }

    /// Maps an unmapped event to a physical LPI on a CPU. The redistributor reloads the LPI's configuration.
    pub fn map_physical(&mut self, dev: DeviceId, ev: EventId, lpi: Lpi, cpu: CpuId) -> Result<(), ItsError> {
        if self.event(dev, ev)? != Event::Unmapped {
            return Err(ItsError::EventMapped(ev));
        }
        self.check_physical(lpi, cpu)?;
        self.room()?;
        self.push(Command::mapti(dev, ev, lpi, collection(cpu)));
        self.push(Command::inv(dev, ev));
        self.sync(cpu);
        self.change(dev, ev, Event::Physical { lpi, cpu });
        Ok(())
    }

    fn check_physical(&self, lpi: Lpi, cpu: CpuId) -> Result<(), ItsError> {
        if !self.gic.lpis.as_ref().is_some_and(|l| l.contains(lpi)) {
            return Err(ItsError::LpiRange(lpi));
        }
        self.gic.in_service(cpu).map(|_| ())
    }

    /// Moves a physical event with its pending state to another CPU.
    pub fn move_physical(&mut self, dev: DeviceId, ev: EventId, cpu: CpuId) -> Result<(), ItsError> {
        let Event::Physical { lpi, cpu: old } = self.event(dev, ev)? else { return Err(ItsError::EventState(ev)) };
        self.gic.in_service(cpu)?;
        if old == cpu {
            return Ok(());
        }
        self.room()?;
        self.push(Command::movi(dev, ev, collection(cpu)));
        self.push(Command::inv(dev, ev));
        self.sync(old);
        self.sync(cpu);
        self.change(dev, ev, Event::Physical { lpi, cpu });
        Ok(())
    }

    /// Unmaps an event, physical or virtual, and returns what it was mapped to. Its pending state is lost.
    pub fn unmap_event(&mut self, dev: DeviceId, ev: EventId) -> Result<Event, ItsError> {
        let old = self.event(dev, ev)?;
        if old == Event::Unmapped {
            return Ok(old);
        }
        self.room()?;
        self.push(Command::discard(dev, ev));
        self.sync_event(old);
        self.change(dev, ev, Event::Unmapped);
        Ok(old)
    }

    /// Makes an event pending, as an MSI of its device does.
    pub fn set_pending(&mut self, dev: DeviceId, ev: EventId) -> Result<(), ItsError> {
        self.on_event(dev, ev, Command::int(dev, ev))
    }

    /// Clears an event's pending state.
    pub fn clear_pending(&mut self, dev: DeviceId, ev: EventId) -> Result<(), ItsError> {
        self.on_event(dev, ev, Command::clear(dev, ev))
    }

    /// Makes the hardware reload an event's configuration byte.
    pub fn invalidate(&mut self, dev: DeviceId, ev: EventId) -> Result<(), ItsError> {
        self.on_event(dev, ev, Command::inv(dev, ev))
    }

    fn on_event(&mut self, dev: DeviceId, ev: EventId, command: Command) -> Result<(), ItsError> {
        let event = self.event(dev, ev)?;
        if event == Event::Unmapped {
            return Err(ItsError::EventState(ev));
        }
        self.room()?;
        self.push(command);
        self.sync_event(event);
        Ok(())
    }

    /// Maps an event to a vLPI of a vPE. If it was physical, one INT makes up for an interrupt that was pending or
    /// arrives meanwhile; the LPI stays allocated to the caller.
    pub fn map_virtual(&mut self, dev: DeviceId, ev: EventId, vpe: VpeId, vintid: VIntid) -> Result<(), ItsError> {
        let old = self.event(dev, ev)?;
        if let Event::Virtual { .. } = old {
            return Err(ItsError::EventMapped(ev));
        }
        let v4 = self.gic.v4_on(self.its)?;
        self.room()?;
        let doorbell = v4.pin(self.its, vpe, vintid)?;
        if let Event::Physical { cpu, .. } = old {
            self.push(Command::discard(dev, ev));
            self.sync(cpu);
        }
        self.push(Command::vmapti(dev, ev, vpe, vintid, doorbell));
        self.push(Command::inv(dev, ev));
        if old != Event::Unmapped {
            self.push(Command::int(dev, ev));
        }
        self.vsync(vpe);
        self.change(dev, ev, Event::Virtual { vpe, vintid });
        Ok(())
    }

    /// Moves a virtual event with its pending state to another vPE of the same VM.
    pub fn move_virtual(&mut self, dev: DeviceId, ev: EventId, vpe: VpeId) -> Result<(), ItsError> {
        let Event::Virtual { vpe: old, vintid } = self.event(dev, ev)? else { return Err(ItsError::EventState(ev)) };
        if old == vpe {
            return Ok(());
        }
        let v4 = self.gic.v4_on(self.its)?;
        if v4.vm_of(old).ok_or(ItsError::NoSuchVpe(old))? != v4.vm_of(vpe).ok_or(ItsError::NoSuchVpe(vpe))? {
            return Err(ItsError::OtherVm(vpe));
        }
        self.room()?;
        let doorbell = v4.pin(self.its, vpe, vintid)?;
        self.push(Command::vmovi(dev, ev, vpe, doorbell));
        self.push(Command::inv(dev, ev));
        self.vsync(old);
        self.vsync(vpe);
        self.change(dev, ev, Event::Virtual { vpe, vintid });
        Ok(())
    }

    /// Maps a virtual event to a physical LPI. One INT follows, because the pending state in the vPE cannot be read.
    pub fn to_software(&mut self, dev: DeviceId, ev: EventId, lpi: Lpi, cpu: CpuId) -> Result<(), ItsError> {
        let Event::Virtual { vpe, .. } = self.event(dev, ev)? else { return Err(ItsError::EventState(ev)) };
        self.check_physical(lpi, cpu)?;
        self.room()?;
        self.push(Command::discard(dev, ev));
        self.push(Command::vsync(vpe));
        self.push(Command::mapti(dev, ev, lpi, collection(cpu)));
        self.push(Command::inv(dev, ev));
        self.push(Command::int(dev, ev));
        self.sync(cpu);
        self.change(dev, ev, Event::Physical { lpi, cpu });
        Ok(())
    }

    /// Makes every event of every device pending: MSIs may have been lost while the ITS was disabled.
    pub(super) fn set_all_pending(&mut self) -> Result<(), ItsError> {
        self.for_each(|batch, dev, ev, event| match event {
            Event::Unmapped => Ok(()),
            _ => batch.set_pending(dev, ev),
        })
    }

    /// Moves every physical event of a CPU to another, and returns how many.
    pub(super) fn move_all_physical(&mut self, from: CpuId, to: CpuId) -> Result<u32, ItsError> {
        let mut moved = 0;
        self.for_each(|batch, dev, ev, event| match event {
            Event::Physical { cpu, .. } if cpu == from => {
                moved += 1;
                batch.move_physical(dev, ev, to)
            }
            _ => Ok(()),
        })?;
        Ok(moved)
    }

    fn for_each(
        &mut self,
        mut act: impl FnMut(&mut Self, DeviceId, EventId, Event) -> Result<(), ItsError>,
    ) -> Result<(), ItsError> {
        let mut last = None;
        while let Some((dev, count)) = self.state.after(last).map(|device| (device.id, device.events())) {
            for ev in (0..count).map(EventId) {
                let event = self.event(dev, ev)?;
                act(self, dev, ev, event)?;
            }
            last = Some(dev);
        }
        Ok(())
    }

    /// Posts the remaining commands and waits until the whole batch has taken effect.
    pub fn finish(mut self) -> Result<(), ItsError> {
        self.complete().map(|_| ())
    }

    fn complete(&mut self) -> Result<Option<Synced>, ItsError> {
        self.open = false;
        self.flush()?;
        match self.last {
            Some(ticket) => self.gic.wait(self.its, ticket, COMMAND_LIMIT_US).map(Some),
            None => Ok(None),
        }
    }

    /// Flushes if there is no room for another operation.
    fn room(&mut self) -> Result<(), ItsError> {
        let full = self.commands.len() + OPERATION > GATHERED
            || self.changes.is_full()
            || self.cpus.remaining_capacity() < 2
            || self.vpes.remaining_capacity() < 2;
        if full { self.flush() } else { Ok(()) }
    }

    fn push(&mut self, command: Command) {
        self.commands.push(command);
    }

    fn sync(&mut self, cpu: CpuId) {
        if !self.cpus.contains(&cpu) {
            self.cpus.push(cpu);
        }
    }

    fn vsync(&mut self, vpe: VpeId) {
        if !self.vpes.contains(&vpe) {
            self.vpes.push(vpe);
        }
    }

    fn sync_event(&mut self, event: Event) {
        match event {
            Event::Unmapped => {}
            Event::Physical { cpu, .. } => self.sync(cpu),
            Event::Virtual { vpe, .. } => self.vsync(vpe),
        }
    }

    fn change(&mut self, dev: DeviceId, ev: EventId, new: Event) {
        if let Some(slot) = self.state.slot(dev, ev) {
            let old = core::mem::replace(slot, new);
            self.changes.push(Change { dev, ev, old, new });
        }
    }

    /// Posts the gathered commands. A vPE that an event was mapped to is unpinned only after the VSYNC has been posted.
    fn flush(&mut self) -> Result<(), ItsError> {
        if self.commands.is_empty() {
            return Ok(());
        }
        for cpu in self.cpus.take() {
            if let Some(redist) = self.gic.redist(cpu) {
                self.commands.push(Command::sync(self.its.target(redist)));
            }
        }
        for vpe in self.vpes.take() {
            self.commands.push(Command::vsync(vpe));
        }
        let posted = self.its.queue.post(&self.gic.counters, &self.commands);
        self.commands.clear();
        let changes = self.changes.take();
        match posted {
            Ok(ticket) => {
                self.last = Some(ticket);
                changes.iter().for_each(|c| self.unpin(c.old));
                Ok(())
            }
            Err(e) => {
                for c in changes.iter().rev() {
                    if let Some(slot) = self.state.slot(c.dev, c.ev) {
                        *slot = c.old;
                    }
                    self.unpin(c.new);
                }
                Err(e)
            }
        }
    }

    fn unpin(&self, event: Event) {
        if let Event::Virtual { vpe, .. } = event
            && let Ok(v4) = self.gic.v4_on(self.its)
        {
            v4.unpin(self.its, vpe);
        }
    }
}

impl<H: Hw + Clone> Drop for Batch<'_, H> {
    fn drop(&mut self) {
        if self.open && self.complete().is_err() {
            self.gic.counters.batch_errors.bump();
        }
    }
}

/// Verbs on devices and events. Each call waits for completion; use a [`Batch`] for many.
impl<H: Hw + Clone> Gic<H> {
    /// Starts a batch on one ITS.
    pub fn batch(&self, its: ItsId) -> Result<Batch<'_, H>, ItsError> {
        Ok(Batch::new(self, self.its(its)?))
    }

    fn one<R>(&self, its: ItsId, op: impl FnOnce(&mut Batch<'_, H>) -> Result<R, ItsError>) -> Result<R, ItsError> {
        let mut batch = self.batch(its)?;
        let answer = op(&mut batch)?;
        batch.finish()?;
        Ok(answer)
    }

    /// Reserves all the memory that a domain's devices and events take on an ITS, for the devices `ids`, which no other
    /// domain has. Other devices cannot be mapped. Returns the number of bytes. Called when a domain is built;
    /// [`release_devices`](Gic::release_devices) frees the memory.
    pub fn reserve_devices(
        &self,
        its: ItsId,
        owner: DomId,
        ids: &[DeviceIds],
        quota: DeviceQuota,
    ) -> Result<u64, ItsError> {
        self.its(its)?.reserve(owner, ids, quota)
    }

    /// Frees the memory that is reserved for a domain's devices on all ITSs, except what an ITS may still use. No CPU uses
    /// the devices any more. If one is still mapped, because the domain's virtual ITS could not unmap it, it is unmapped
    /// instead; returns `false`, and has to be called again.
    #[must_use]
    pub fn release_devices(&self, owner: DomId) -> bool {
        for its in self.itss.iter().flatten() {
            let mapped = its.state.lock().first_of(owner);
            if let Some(dev) = mapped {
                // The ITS may not answer. EL2 forgets the device in any case.
                let _ = self.unmap_device(its.id, dev);
                return false;
            }
            self.counters.quarantined_bytes.add(its.release(owner));
        }
        true
    }

    /// Whether a domain's memory for devices is as it was reserved.
    ///
    /// # Errors
    ///
    /// Of the first ITS on which it is not: `DeviceMapped` if a device is mapped, `NoMemory` if the ITS may still use a
    /// part of the memory, `Dead` if it translates no more.
    pub fn check_devices(&self, owner: DomId) -> Result<(), (ItsId, ItsError)> {
        for its in self.itss.iter().flatten() {
            let state = its.state.lock();
            let found = match state.first_of(owner) {
                Some(dev) => ItsError::DeviceMapped(dev),
                None if state.has_lost(owner) => ItsError::NoMemory,
                None if state.serves(owner) && its.queue.is_dead() => ItsError::Dead,
                None => continue,
            };
            return Err((its.id, found));
        }
        Ok(())
    }

    /// Maps a device with a translation table for 2^`event_bits` events, none of them mapped. The table is in the
    /// memory that [`reserve_devices`](Gic::reserve_devices) has reserved for the device; nothing is allocated.
    pub fn map_device(&self, its: ItsId, dev: DeviceId, event_bits: u8) -> Result<(), ItsError> {
        self.its(its)?.map_device(&self.counters, dev, event_bits)
    }

    /// Unmaps a device and its events. After an error the device is unmapped all the same, but its part of its domain's
    /// memory is never used again.
    pub fn unmap_device(&self, its: ItsId, dev: DeviceId) -> Result<(), ItsError> {
        let its = self.its(its)?;
        let mut batch = Batch::new(self, its);
        let device = batch.state.device(dev).ok_or(ItsError::NoSuchDevice(dev))?;
        if device.is_reserved() {
            return Err(ItsError::DeviceRange(dev));
        }
        // Usually few events are mapped, if any.
        let mut discarded = Ok(());
        let mut next = batch.state.next_mapped(dev, EventId(0));
        while let (Ok(()), Some(event)) = (discarded, next) {
            discarded = batch.unmap_event(dev, event).map(|_| ());
            next = batch.state.next_mapped(dev, event);
        }
        let gone = discarded.and_then(|()| batch.flush()).and_then(|()| {
            let ticket = its.queue.post(&self.counters, &[Command::mapd_unmap(dev)])?;
            its.queue.wait(&self.counters, ticket, COMMAND_LIMIT_US)
        });
        // EL2 forgets the device in any case, so events that could not be discarded pin their vPEs no longer.
        while let Some(event) = batch.state.next_mapped(dev, EventId(0)) {
            let left = batch.state.slot(dev, event).map(core::mem::take);
            batch.unpin(left.unwrap_or_default());
        }
        if let Some(device) = batch.state.remove(dev) {
            match &gone {
                Ok(proof) => its.free_device(&mut batch.state, device, proof),
                Err(_) => {
                    let bytes = its.itt_bytes(&device);
                    batch.state.lose(device, bytes);
                    self.counters.quarantined_bytes.add(bytes);
                }
            }
        }
        batch.open = false;
        gone.map(|_| ())
    }

    /// What an event is mapped to.
    pub fn event(&self, event: EventKey) -> Result<Event, ItsError> {
        self.its(event.its)?.state.lock().event(event.device, event.event)
    }

    /// [`Batch::map_physical`] as a batch of one.
    pub fn map_physical(&self, event: EventKey, lpi: Lpi, cpu: CpuId) -> Result<(), ItsError> {
        self.one(event.its, |b| b.map_physical(event.device, event.event, lpi, cpu))
    }

    /// [`Batch::move_physical`] as a batch of one.
    pub fn move_physical(&self, event: EventKey, cpu: CpuId) -> Result<(), ItsError> {
        self.one(event.its, |b| b.move_physical(event.device, event.event, cpu))
    }

    /// [`Batch::unmap_event`] as a batch of one.
    pub fn unmap_event(&self, event: EventKey) -> Result<Event, ItsError> {
        self.one(event.its, |b| b.unmap_event(event.device, event.event))
    }

    /// [`Batch::set_pending`] as a batch of one.
    pub fn set_pending(&self, event: EventKey) -> Result<(), ItsError> {
        self.one(event.its, |b| b.set_pending(event.device, event.event))
    }

    /// [`Batch::clear_pending`] as a batch of one.
    pub fn clear_pending(&self, event: EventKey) -> Result<(), ItsError> {
        self.one(event.its, |b| b.clear_pending(event.device, event.event))
    }

    /// Makes the hardware reload an event's configuration byte: by INV, or for a virtual event on GICv4.1 by a register
    /// of the redistributor.
    pub fn invalidate(&self, event: EventKey) -> Result<(), ItsError> {
        if let Event::Virtual { vpe, vintid } = self.event(event)?
            && let Some(v4) = self.v4()
            && v4.invalidate_directly(vpe, vintid)
        {
            return Ok(());
        }
        self.one(event.its, |b| b.invalidate(event.device, event.event))
    }
}

impl<H: Hw + Clone> V4<'_, H> {
    /// Maps an event to a vLPI. If it was physical, its LPI stays allocated to the caller, and one INT makes up for
    /// what was pending or arrives meanwhile.
    pub fn map_event(self, event: EventKey, vpe: VpeId, vintid: VIntid) -> Result<(), ItsError> {
        let mut batch = self.gic.batch(event.its)?;
        batch.map_virtual(event.device, event.event, vpe, vintid)?;
        batch.finish()
    }

    /// Moves a virtual event, with its pending state, to another vPE of the same VM.
    pub fn move_event(self, event: EventKey, vpe: VpeId) -> Result<(), ItsError> {
        let mut batch = self.gic.batch(event.its)?;
        batch.move_virtual(event.device, event.event, vpe)?;
        batch.finish()
    }

    /// Maps a virtual event to a physical LPI, which is made pending once.
    pub fn to_software(self, event: EventKey, lpi: Lpi, cpu: CpuId) -> Result<(), ItsError> {
        let mut batch = self.gic.batch(event.its)?;
        batch.to_software(event.device, event.event, lpi, cpu)?;
        batch.finish()
    }
}
