//! All SMMUs of the machine, and what the devices behind them reach.
//!
//! A domain with devices has a device view: stage 2 tables that the SMMUs walk, with the domain's RAM and the doorbells
//! of its virtual ITSs. A stream is assigned to one domain, whose view then translates each of its transactions. A stream
//! that is assigned to none reaches nothing.
//!
//! An SMMU that cannot be used (it has no stage 2, or does not respond) is set to bypass: dom0 keeps the devices behind
//! it, which reach all memory, and none of them can be given to another domain.

use super::owners::{CutOff, Owners};
use super::{Errors, Event, Facts, Smmu, SmmuError, View, bypass};
use crate::ids::{DomId, Intid, Ipa, SmmuId, StreamId, Streams, VmId};
use crate::log_limited;
use crate::mm::stage2::{Fwb, Stage2, Stage2Error, Tlb};
use crate::mmio::{Coherence, Hw};
use crate::platform;
use crate::sync::{Lock, Rank};
use crate::util::PAGE;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The largest number of events that are handled in a row.
const BATCH: usize = 64;

/// What the devices of a domain reach.
pub type DeviceView<H> = Stage2<'static, H, Iommu<H>>;

/// Why streams cannot be assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignError {
    /// There is no such SMMU, or it is in bypass.
    NotTranslating(SmmuId),
    /// Another domain has one of the streams.
    Owned(DomId),
    /// The SMMU failed.
    Smmu(SmmuError),
}

impl fmt::Display for AssignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AssignError::NotTranslating(smmu) => write!(f, "{smmu} does not translate"),
            AssignError::Owned(domain) => write!(f, "{domain} has it"),
            AssignError::Smmu(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for AssignError {}

/// One SMMU.
struct Front<H: Hw + Clone> {
    id: SmmuId,
    event: Option<Intid>,
    gerror: Option<Intid>,
    /// `None`: it is in bypass.
    smmu: Option<Smmu<H>>,
    /// The number of failed transactions.
    events: AtomicU64,
    /// The number of errors of the SMMU itself.
    errors: AtomicU64,
}

/// All SMMUs of the machine.
pub struct Iommu<H: Hw + Clone + 'static> {
    hw: H,
    fronts: Vec<Front<H>>,
    owners: Lock<Owners>,
    /// An invalidation was not confirmed: an SMMU may still use translations that no longer exist.
    stale: AtomicBool,
}

impl<H: Hw + Clone + 'static> Iommu<H> {
    /// Takes over all SMMUs: from here on they pass no transaction, until streams are assigned. With `on` false, sets them
    /// to bypass.
    pub fn start(hw: H, smmus: &[platform::Smmu], on: bool) -> Iommu<H> {
        let ids = (0..).map(SmmuId);
        let fronts = ids.zip(smmus).map(|(id, at)| Front::start(&hw, id, at, on)).collect();
        Iommu { hw, fronts, owners: Lock::new(Rank::Streams, Owners::new()), stale: AtomicBool::new(false) }
    }

    fn front(&self, id: SmmuId) -> Option<&Front<H>> {
        self.fronts.get(id.index())
    }

    fn translating(&self) -> impl Iterator<Item = &Smmu<H>> {
        self.fronts.iter().filter_map(|front| front.smmu.as_ref())
    }

    /// What an SMMU that translates can do.
    #[must_use]
    pub fn facts(&self, id: SmmuId) -> Option<&Facts> {
        Some(self.front(id)?.smmu.as_ref()?.facts())
    }

    /// The number of SMMUs that translate.
    #[must_use]
    pub fn translating_count(&self) -> usize {
        self.translating().count()
    }

    /// Whether all SMMUs translate, and there is one. If not, some devices reach all memory.
    #[must_use]
    pub fn protects_all(&self) -> bool {
        !self.fronts.is_empty() && self.fronts.iter().all(|front| front.smmu.is_some())
    }

    /// Whether any SMMU translates.
    #[must_use]
    pub fn translates(&self) -> bool {
        self.translating().next().is_some()
    }

    /// Whether memory that devices have reached may be used for something else: the SMMUs have confirmed each time that
    /// streams were blocked and translations invalidated.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        !self.stale.load(Ordering::Acquire)
    }

    /// Makes a device view in which nothing is mapped. `address_bits` is that of the CPUs; the SMMUs may have less.
    ///
    /// # Errors
    ///
    /// As [`Stage2::new`].
    pub fn new_view(&'static self, vmid: VmId, address_bits: u8) -> Result<DeviceView<H>, Stage2Error> {
        let bits = self.translating().map(|smmu| smmu.facts().address_bits).fold(address_bits, u8::min);
        // The STE has a bit of its own for forced write-back, so the encoding of the CPUs' descriptors is not used.
        Stage2::new(&self.hw, self, vmid, bits, Fwb::Off)
    }

    /// Assigns streams to a domain: their transactions are translated by `view` when this returns.
    ///
    /// # Errors
    ///
    /// [`AssignError`]; the streams reach nothing, and are not the domain's.
    pub fn assign(&self, domain: DomId, streams: Streams, view: &DeviceView<H>) -> Result<(), AssignError> {
        let smmu = self.front(streams.smmu).and_then(|front| front.smmu.as_ref());
        let smmu = smmu.ok_or(AssignError::NotTranslating(streams.smmu))?;
        // Firmware may map more streams than there can be.
        let most =
            StreamId(1u32.checked_shl(smmu.facts().stream_bits.into()).map_or(u32::MAX, |count| count.wrapping_sub(1)));
        let streams = Streams { last: streams.last.min(most.max(streams.first)), ..streams };
        {
            let mut owners = self.owners.lock();
            match owners.owner_of_any(streams) {
                Some(owner) if owner != domain => return Err(AssignError::Owned(owner)),
                Some(_) => {}
                None => owners.give(domain, streams),
            }
        }
        let view = View { vmid: view.vmid(), vttbr: view.vttbr(), vtcr: view.vtcr(), fwb: Fwb::Off };
        smmu.assign(streams.first..=streams.last, &view).map_err(|error| {
            // An error before the first change leaves them as they were: they reach nothing.
            if !error.leaves_all_as_it_was() {
                self.confirm(streams.smmu, &smmu.block(streams.first..=streams.last));
            }
            self.owners.lock().take_back_streams(domain, streams);
            AssignError::Smmu(error)
        })
    }

    /// Stops the devices of a domain: when this returns, none of its streams reaches anything. They stay the domain's.
    ///
    /// # Errors
    ///
    /// [`SmmuError`]: a device may still reach the domain's memory. [`is_sound`](Self::is_sound) is `false` from now on.
    pub fn block(&self, domain: DomId) -> Result<(), SmmuError> {
        let result = self.block_all(domain);
        self.owners.lock().forget_failures(domain);
        result
    }

    fn block_all(&self, domain: DomId) -> Result<(), SmmuError> {
        let mut result = Ok(());
        for streams in self.streams(domain) {
            let Some(smmu) = self.front(streams.smmu).and_then(|front| front.smmu.as_ref()) else { continue };
            let blocked = smmu.block(streams.first..=streams.last);
            self.confirm(streams.smmu, &blocked);
            result = result.and(blocked);
        }
        result
    }

    /// Blocks streams of a domain for good, because their device cannot be relied upon: they stay the domain's, but
    /// [`resume`](Self::resume) leaves them out, and they are given to no other domain either.
    pub fn quarantine(&self, domain: DomId, streams: Streams) {
        self.owners.lock().quarantine(domain, streams);
        if let Some(smmu) = self.front(streams.smmu).and_then(|front| front.smmu.as_ref()) {
            self.confirm(streams.smmu, &smmu.block(streams.first..=streams.last));
        }
    }

    /// Lets the streams of a domain, which are blocked, use `view` again, but for those in quarantine.
    ///
    /// # Errors
    ///
    /// [`AssignError`]; streams of the domain may reach nothing.
    pub fn resume(&self, domain: DomId, view: &DeviceView<H>) -> Result<(), AssignError> {
        self.streams(domain).try_for_each(|streams| self.assign(domain, streams, view))
    }

    /// The streams of a domain that are not in quarantine. The lock is not held while the caller uses one.
    fn streams(&self, domain: DomId) -> impl Iterator<Item = Streams> {
        (0..).map_while(move |index| self.owners.lock().of(domain).nth(index))
    }

    /// Blocks the streams of a domain, leaves them without an owner (but for those in quarantine), and frees the tables of its view, unless an SMMU may
    /// still use them.
    pub fn remove(&self, domain: DomId, view: DeviceView<H>) {
        let _ = self.block(domain);
        self.owners.lock().take_back(domain);
        // `destroy` does it again, but frees the tables whether it is confirmed or not.
        view.invalidate_tlbs();
        if self.is_sound() {
            view.destroy();
        }
    }

    /// Whether `intid` is the interrupt of an SMMU that translates.
    #[must_use]
    pub fn has_interrupt(&self, intid: Intid) -> bool {
        self.interrupts().any(|line| line == intid)
    }

    /// The interrupts of the SMMUs that translate.
    pub fn interrupts(&self) -> impl Iterator<Item = Intid> {
        let active = self.fronts.iter().filter(|front| front.smmu.is_some());
        active.flat_map(|front| [front.event, front.gerror]).flatten()
    }

    /// Handles what SMMUs have reported. Returns `true` if there may be more: the caller then makes the interrupt pending
    /// again.
    #[must_use]
    pub fn handle_reports(&self) -> bool {
        self.handle_reports_telling(&mut |_, _| ())
    }

    /// [`handle_reports`](Self::handle_reports), and calls `tell` with each domain of which a stream, or all, are cut off.
    /// No lock is held then.
    #[must_use]
    pub fn handle_reports_telling(&self, tell: &mut dyn FnMut(DomId, fmt::Arguments<'_>)) -> bool {
        let mut left = BATCH;
        for front in &self.fronts {
            let Some(smmu) = &front.smmu else { continue };
            front.report_errors(smmu.take_errors());
            while left > 0
                && let Some(event) = smmu.next_event()
            {
                left = left.saturating_sub(1);
                self.handle(front, smmu, &event, tell);
            }
        }
        left == 0
    }

    fn handle(&self, front: &Front<H>, smmu: &Smmu<H>, event: &Event, tell: &mut dyn FnMut(DomId, fmt::Arguments<'_>)) {
        front.events.fetch_add(1, Ordering::Relaxed);
        let id = front.id;
        let Event::Stream { stream, crowded, .. } = *event else {
            log_limited!(Warn; "{id}: {event}");
            return;
        };
        let verdict = self.owners.lock().count(id, stream, crowded, self.hw.now_us());
        match verdict.owner {
            Some(domain) => log_limited!(Warn, domain; "{id}: {domain}: {event}"),
            None => log_limited!(Warn; "{id}: no domain: {event}"),
        }
        let (what, done) = match (verdict.cut_off, verdict.owner) {
            (CutOff::Nothing, _) => return,
            (CutOff::Owner, Some(domain)) => ("all streams of the domain are", self.block_all(domain)),
            _ => ("it is", smmu.block(stream..=stream)),
        };
        let outcome = CutOffOutcome { what, done };
        match verdict.owner {
            Some(domain) => {
                log_limited!(Error, domain; "{id}: {domain}: {stream}: too many faults: {outcome}");
                tell(domain, format_args!("{id}: {stream}: too many faults: {outcome}"));
            }
            None => log_limited!(Error; "{id}: no domain: {stream}: too many faults: {outcome}"),
        }
    }

    /// Calls `show` with a line about each SMMU.
    pub fn for_each_line(&self, show: &mut dyn FnMut(fmt::Arguments<'_>)) {
        for front in &self.fronts {
            let (events, errors) = (front.events.load(Ordering::Relaxed), front.errors.load(Ordering::Relaxed));
            match &front.smmu {
                Some(_) => show(format_args!("{}: {events} failed transactions, {errors} errors", front.id)),
                None => show(format_args!("{}: in bypass", front.id)),
            }
        }
    }

    fn confirm(&self, id: SmmuId, done: &Result<(), SmmuError>) {
        if let Err(error) = done {
            self.stale.store(true, Ordering::Release);
            log_limited!(Error; "{id}: {error}: memory that devices have reached is not used again");
        }
    }
}

/// How the attempt to cut something off has ended, for the log.
struct CutOffOutcome {
    /// What was to be cut off, with its verb.
    what: &'static str,
    done: Result<(), SmmuError>,
}

impl fmt::Display for CutOffOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.what;
        match self.done {
            Ok(()) => write!(f, "{what} cut off until the domain is reset"),
            Err(error) => write!(f, "{what} not cut off: {error}"),
        }
    }
}

impl<H: Hw + Clone + 'static> Tlb for Iommu<H> {
    fn coherence(&self) -> Coherence {
        let snoops = self.translating().all(|smmu| smmu.facts().coherence == Coherence::Coherent);
        if snoops { Coherence::Coherent } else { Coherence::NonCoherent }
    }

    fn invalidate_ipa(&self, vmid: VmId, ipa: Ipa) {
        for front in &self.fronts {
            if let Some(smmu) = &front.smmu {
                self.confirm(front.id, &smmu.invalidate(vmid, ipa, PAGE));
            }
        }
    }

    fn invalidate_all(&self, vmid: VmId) {
        for front in &self.fronts {
            if let Some(smmu) = &front.smmu {
                self.confirm(front.id, &smmu.invalidate_all(vmid));
            }
        }
    }
}

impl<H: Hw + Clone> Front<H> {
    fn start(hw: &H, id: SmmuId, at: &platform::Smmu, on: bool) -> Front<H> {
        let smmu =
            if on { Smmu::start(hw.clone(), at).map_err(|error| log::error!("{id}: {error}")).ok() } else { None };
        match &smmu {
            Some(smmu) => log::info!("{id} at {}: {}", at.regs.base, smmu.facts()),
            None => match bypass(hw, at.regs.base) {
                Ok(()) => log::warn!("{id} at {}: in bypass: DMA is unprotected", at.regs.base),
                Err(error) => log::error!("{id} at {}: not in bypass: {error}: its devices may not work", at.regs.base),
            },
        }
        let (events, errors) = (AtomicU64::new(0), AtomicU64::new(0));
        Front { id, event: at.event, gerror: at.gerror, smmu, events, errors }
    }

    fn report_errors(&self, errors: Errors) {
        if errors.any() {
            self.errors.fetch_add(1, Ordering::Relaxed);
            log_limited!(Error; "{}: {errors}", self.id);
        }
    }
}

#[cfg(test)]
mod on_fake;
#[cfg(test)]
mod on_model;
