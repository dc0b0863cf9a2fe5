//! One interrupt translation service: bring-up, and what the rest of the driver asks of it (IHI 0069, chapter 5).
//!
//! | file | what it owns |
//! |---|---|
//! | `regs` | registers |
//! | `command` | the encoding of commands |
//! | `queue` | the ring, completion, stalls |
//! | `tables` | GITS_BASER and what it points at |
//! | `events` | which event is mapped to what; the verbs on events |
//! | `by_device` | where a device is found by its number |
//!
//! Programming an ITS that is not quiescent is UNPREDICTABLE, and on GICv4.1 tables are shared between ITSs:
//! so all of them are made quiet before the first is looked at.

mod by_device;
mod command;
#[cfg(test)]
mod command_tests;
mod events;
#[cfg(test)]
mod events_tests;
mod queue;
#[cfg(test)]
mod queue_tests;
mod regs;
mod tables;
#[cfg(test)]
mod tests;

pub use command::{Kind, SgiConfig};
pub use events::{Batch, Event};

/// Offset of GITS_IIDR.
pub(super) const IIDR: u64 = regs::gits::IIDR;

pub(super) use command::{Command, Target, VmappV40, VmappV41};
pub(super) use events::{Device, collection};
#[cfg(test)]
pub(super) use queue::DEAD_AFTER_US;
pub(super) use queue::{COMMAND_LIMIT_US, Synced, Ticket};
pub(super) use tables::{Table, TableError};

use super::ItsLayout;
use super::counters::Counters;
use super::facts::ItsFacts;
use super::redist::Redist;
use super::regs::{attributes, pa_4k};
use crate::ids::{CollectionId, CpuId, DeviceId, EventId, ItsId, Lpi, Pa, VIntid, VpeId};
use crate::mmio::{Coherence, Hw};
use crate::sync::{Lock, Rank};
use by_device::ByDevice;
use core::fmt;
use queue::{Queue, RING_SIZE};
use regs::{GITS_BASER, GITS_CBASER, GITS_CTLR, GITS_SGIR, GITS_TYPER, gits};
use tables::Content;
use tock_registers::LocalRegisterCopy;

/// How long an ITS may take to become quiescent.
const QUIESCENT_LIMIT_US: u64 = 1_000_000;

/// Why something about an event or a device could not be done. What it names is unchanged unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItsError {
    /// There is no such ITS, or it could not be brought up.
    NoSuchIts(ItsId),
    /// The ITS has been given up.
    Dead,
    /// The commands were posted and will take effect, but their completion was not seen in time; or, when the ring
    /// stayed full, nothing was done.
    Timeout,
    /// The device is not mapped.
    NoSuchDevice(DeviceId),
    /// The device is mapped already.
    DeviceMapped(DeviceId),
    /// The DeviceID is beyond what the ITS has room for, or taken by the driver itself.
    DeviceRange(DeviceId),
    /// The number of EventID bits is 0 or more than the ITS has.
    EventBits(u8),
    /// The EventID is beyond the device's table.
    EventRange(EventId),
    /// The event is not unmapped.
    EventMapped(EventId),
    /// The event is not mapped in the way that this needs.
    EventState(EventId),
    /// No such LPI.
    LpiRange(Lpi),
    /// The vINTID is not a vLPI that the VM has room for.
    VIntidRange(VIntid),
    /// No such vPE.
    NoSuchVpe(VpeId),
    /// The two vPEs belong to different VMs.
    OtherVm(VpeId),
    /// The ITS has no virtual LPIs.
    NotVirtual,
    /// There is no such CPU, or its LPIs are not on.
    CpuOffline(CpuId),
    /// No memory left.
    NoMemory,
    /// The ITS did not keep what was written to a register.
    Register,
    /// It does not become quiescent.
    NotQuiescent,
    /// A table could not be set up.
    Table(TableError),
}

impl fmt::Display for ItsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ItsError::NoSuchIts(its) => write!(f, "there is no {its}"),
            ItsError::Dead => write!(f, "the ITS has been given up"),
            ItsError::Timeout => write!(f, "the ITS did not complete its commands in time"),
            ItsError::NoSuchDevice(d) => write!(f, "{d} is not mapped"),
            ItsError::DeviceMapped(d) => write!(f, "{d} is mapped already"),
            ItsError::DeviceRange(d) => write!(f, "{d} is beyond the device table"),
            ItsError::EventBits(n) => write!(f, "{n} EventID bits are not possible"),
            ItsError::EventRange(e) => write!(f, "{e} is beyond the device's table"),
            ItsError::EventMapped(e) => write!(f, "{e} is mapped already"),
            ItsError::EventState(e) => write!(f, "{e} is not mapped that way"),
            ItsError::LpiRange(l) => write!(f, "there is no {l}"),
            ItsError::VIntidRange(v) => write!(f, "{v} is not a vLPI of the VM"),
            ItsError::NoSuchVpe(v) => write!(f, "there is no {v}"),
            ItsError::OtherVm(v) => write!(f, "{v} belongs to another VM"),
            ItsError::NotVirtual => write!(f, "the ITS has no virtual LPIs"),
            ItsError::CpuOffline(c) => write!(f, "{c} takes no LPIs"),
            ItsError::NoMemory => write!(f, "no memory left"),
            ItsError::Register => write!(f, "the ITS did not keep what was written to a register"),
            ItsError::NotQuiescent => write!(f, "the ITS does not become quiescent"),
            ItsError::Table(e) => write!(f, "an ITS table could not be set up: {e:?}"),
        }
    }
}

impl From<TableError> for ItsError {
    fn from(e: TableError) -> Self {
        match e {
            TableError::Memory => ItsError::NoMemory,
            e => ItsError::Table(e),
        }
    }
}

/// What an ITS keeps about its devices.
pub(super) struct State {
    pub devices: ByDevice<Device>,
    device_table: Option<Table>,
    collection_table: Option<Table>,
    /// Collections below this live in the ITS itself.
    hardware_collections: u64,
}

/// One ITS that has been brought up.
pub(super) struct Its<H> {
    hw: H,
    pub id: ItsId,
    base: Pa,
    pub facts: ItsFacts,
    physical_targets: bool,
    itt_entry: u64,
    coherence: Coherence,
    pub queue: Queue<H>,
    pub state: Lock<State>,
    /// Grown only under the VM-map lock.
    pub vpe_table: Option<Table>,
}

type Typer = LocalRegisterCopy<u64, GITS_TYPER::Register>;

fn typer_at<H: Hw>(hw: &H, base: Pa) -> Typer {
    Typer::new(hw.read64(base.add(gits::TYPER)))
}

/// Stops an ITS that an earlier owner of the machine may have left running, and forgets its tables.
pub(super) fn quiesce<H: Hw>(hw: &H, base: Pa) -> Result<(), ItsError> {
    let at = base.add(gits::CTLR);
    let ctlr = || LocalRegisterCopy::<u32, GITS_CTLR::Register>::new(hw.read32(at));
    let found = ctlr();
    if found.is_set(GITS_CTLR::ENABLED) {
        let mut off = found;
        off.modify(GITS_CTLR::ENABLED::CLEAR);
        hw.write32(at, off.get());
    }
    if !hw.wait(QUIESCENT_LIMIT_US, || ctlr().is_set(GITS_CTLR::QUIESCENT)) {
        return Err(ItsError::NotQuiescent);
    }
    for n in 0..gits::BASERS {
        let at = base.add(gits::baser(n));
        let mut baser = LocalRegisterCopy::<u64, GITS_BASER::Register>::new(hw.read64(at));
        if baser.is_set(GITS_BASER::VALID) {
            baser.modify(GITS_BASER::VALID::CLEAR);
            hw.write64(at, baser.get());
        }
    }
    hw.write64(base.add(gits::CBASER), 0);
    Ok(())
}

/// With whom an ITS has its vPE table in common (GICv4.1): affinity and GITS_TYPER.SVPET; `None` with nobody. The field is
/// RES0 where there is no GICv4.1.
pub(super) fn shares_vpe_table<H: Hw>(hw: &H, base: Pa) -> Option<(u32, u8)> {
    let typer = typer_at(hw, base);
    let svpet = typer.read(GITS_TYPER::SVPET) as u8;
    (svpet != 0).then(|| (hw.read32(base.add(gits::MPIDR)), svpet))
}

/// What bring-up is told about the whole machine.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub cpus: u64,
    /// Virtual LPIs are wanted, and every redistributor has them.
    pub virtual_lpis: bool,
    /// Every redistributor has GICv4.1.
    pub v41: bool,
    pub vpe_bits: u8,
}

/// The highest ITS number of ITSList mode, plus one.
const ITS_NUMBERS: u8 = 16;

impl<H: Hw + Clone> Its<H> {
    /// Brings up a quiet ITS. `shared` is the vPE table that it has in common with an earlier one; `taken` holds the ITS
    /// numbers in use, a bit each.
    pub fn bring_up(
        hw: H,
        id: ItsId,
        layout: &ItsLayout,
        plan: Plan,
        shared: Option<Table>,
        taken: &mut u16,
    ) -> Result<Self, ItsError> {
        let base = layout.base;
        let typer = typer_at(&hw, base);
        let device_bits = typer.read(GITS_TYPER::DEV_BITS) + 1;
        let hardware_collections = typer.read(GITS_TYPER::HCC);
        let mut facts = ItsFacts {
            id,
            event_bits: typer.read(GITS_TYPER::ID_BITS) as u8 + 1,
            device_bits: device_bits as u8,
            virtual_lpis: plan.virtual_lpis
                && typer.is_set(GITS_TYPER::VIRTUAL)
                && typer.is_set(GITS_TYPER::VMAPP) == plan.v41
                && id.0 < ITS_NUMBERS,
            single_vmovp: typer.is_set(GITS_TYPER::VMOVP),
            v41: typer.is_set(GITS_TYPER::VMAPP),
            vsgi: typer.is_set(GITS_TYPER::VSGI),
            svpet: typer.read(GITS_TYPER::SVPET) as u8,
            affinity: 0,
            number: 0,
            coherent: layout.coherent,
        };
        if facts.v41 {
            facts.affinity = hw.read32(base.add(gits::MPIDR));
        }
        let (mut device_table, mut collection_table, mut vpe_table) = (None, None, None);
        for n in 0..gits::BASERS {
            let register = hw.read64(base.add(gits::baser(n)));
            let set_up = |wanted| Table::set_up(&hw, base, n, wanted, layout.coherent);
            match Content::of(register) {
                Some(Content::Devices) => device_table = Some(set_up(1 << device_bits)?),
                Some(Content::Collections) => collection_table = Some(set_up(plan.cpus + hardware_collections)?),
                Some(Content::Vpes) if facts.virtual_lpis => match shared
                    .map_or_else(|| set_up(1 << plan.vpe_bits), |table| table.adopt(&hw, base, n, layout.coherent))
                {
                    Ok(table) => vpe_table = Some(table),
                    Err(e) => {
                        log::warn!("{id}: no vPE table ({e:?}): no virtual LPIs");
                        facts.virtual_lpis = false;
                    }
                },
                _ => {}
            }
        }
        if let Some(table) = &device_table {
            facts.device_bits = facts.device_bits.min(table.capacity().ilog2() as u8);
        }
        facts.virtual_lpis &= vpe_table.is_some();
        // With virtual LPIs off, too: no two ITSs that could meet at a VMOVP have the same number.
        if typer.is_set(GITS_TYPER::VIRTUAL) && !facts.single_vmovp {
            match number(&hw, base, *taken) {
                Some(n) => {
                    *taken |= 1 << n;
                    facts.number = n;
                }
                None if facts.virtual_lpis => {
                    log::warn!("{id}: no ITS number of its own: no virtual LPIs");
                    facts.virtual_lpis = false;
                }
                None => {}
            }
        }
        let (ring, coherence) = start_ring(&hw, base, layout.coherent)?;
        facts.coherent = coherence == Coherence::Coherent;
        enable(&hw, base, typer.is_set(GITS_TYPER::VIRTUAL))?;
        Ok(Its {
            queue: Queue::new(hw.clone(), id, base, ring, coherence),
            hw,
            id,
            base,
            facts,
            physical_targets: typer.is_set(GITS_TYPER::PTA),
            itt_entry: typer.read(GITS_TYPER::ITT_ENTRY_SIZE) + 1,
            coherence,
            state: Lock::new(
                Rank::ItsEvents,
                State {
                    devices: ByDevice::new(facts.device_bits),
                    device_table,
                    collection_table,
                    hardware_collections,
                },
            ),
            vpe_table,
        })
    }
}

/// Allocates the ring and points GITS_CBASER at it.
fn start_ring<H: Hw>(hw: &H, base: Pa, coherent: bool) -> Result<(Pa, Coherence), ItsError> {
    let ring = hw.alloc(RING_SIZE as usize, RING_SIZE as usize).ok_or(ItsError::NoMemory)?;
    hw.publish(ring, RING_SIZE as usize, Coherence::NonCoherent);
    let at = base.add(gits::CBASER);
    let value = |shared: bool| {
        let (share, inner) = if shared {
            (attributes::INNER_SHAREABLE, attributes::WRITE_ALLOCATE)
        } else {
            (0, attributes::NON_CACHEABLE)
        };
        GITS_CBASER::VALID::SET
            + GITS_CBASER::PA_4K.val(pa_4k(ring))
            + GITS_CBASER::SIZE.val(RING_SIZE / 0x1000 - 1)
            + GITS_CBASER::SHAREABILITY.val(share)
            + GITS_CBASER::INNER_CACHE.val(inner)
            + GITS_CBASER::OUTER_CACHE.val(attributes::SAME_AS_INNER)
    };
    let read = || LocalRegisterCopy::<u64, GITS_CBASER::Register>::new(hw.read64(at));
    hw.write64(at, value(coherent).value);
    let mut coherence = Coherence::Coherent;
    if !coherent || read().read(GITS_CBASER::SHAREABILITY) == 0 {
        if coherent {
            hw.write64(at, value(false).value);
        }
        coherence = Coherence::NonCoherent;
    }
    let got = read();
    if !got.is_set(GITS_CBASER::VALID) || got.read(GITS_CBASER::PA_4K) != pa_4k(ring) {
        return Err(ItsError::Register);
    }
    hw.write64(base.add(gits::CWRITER), 0);
    Ok((ring, coherence))
}

/// ITSList mode: takes a number of its own, or the one that is wired in if nobody else has it.
fn number<H: Hw>(hw: &H, base: Pa, taken: u16) -> Option<u8> {
    let at = base.add(gits::CTLR);
    let ctlr = || LocalRegisterCopy::<u32, GITS_CTLR::Register>::new(hw.read32(at));
    let free = taken.trailing_ones();
    if free < u32::from(ITS_NUMBERS) {
        let mut wish = ctlr();
        wish.modify(GITS_CTLR::ITS_NUMBER.val(free));
        hw.write32(at, wish.get());
    }
    let got = ctlr().read(GITS_CTLR::ITS_NUMBER) as u8;
    (taken & 1 << got == 0).then_some(got)
}

fn enable<H: Hw>(hw: &H, base: Pa, v4: bool) -> Result<(), ItsError> {
    let at = base.add(gits::CTLR);
    let mut ctlr = LocalRegisterCopy::<u32, GITS_CTLR::Register>::new(hw.read32(at));
    ctlr.modify(GITS_CTLR::ENABLED::SET);
    if v4 {
        ctlr.modify(GITS_CTLR::IMDE::SET);
    }
    hw.write32(at, ctlr.get());
    let got = LocalRegisterCopy::<u32, GITS_CTLR::Register>::new(hw.read32(at));
    if got.is_set(GITS_CTLR::ENABLED) { Ok(()) } else { Err(ItsError::Register) }
}

impl<H: Hw> Its<H> {
    /// How this ITS names a redistributor.
    pub fn target(&self, redist: &Redist<H>) -> Target {
        if self.physical_targets { Target::address(redist.base) } else { Target::number(redist.processor()) }
    }

    /// Bytes of a translation table of 2^`event_bits` entries.
    fn itt_bytes(&self, event_bits: u8) -> usize {
        ((self.itt_entry << event_bits) as usize).max(ITT_ALIGN)
    }

    /// Posts commands and waits for them.
    pub fn run(&self, counters: &Counters, commands: &[Command]) -> Result<Synced, ItsError> {
        let ticket = self.queue.post(counters, commands)?;
        self.queue.wait(counters, ticket, COMMAND_LIMIT_US)
    }

    /// Maps a CPU's collection and has its LPIs' configuration read.
    pub fn map_collection(&self, counters: &Counters, redist: &Redist<H>) -> Result<(), ItsError> {
        let collection = CollectionId(redist.cpu.0);
        {
            let state = self.state.lock();
            if u64::from(collection.0) >= state.hardware_collections {
                let table = state.collection_table.as_ref().ok_or(ItsError::CpuOffline(redist.cpu))?;
                table.ensure(&self.hw, u64::from(collection.0))?;
            }
        }
        let target = self.target(redist);
        self.run(
            counters,
            &[
                Command::mapc(collection, target),
                Command::sync(target),
                Command::invall(collection),
                Command::sync(target),
            ],
        )
        .map(|_| ())
    }

    /// Makes a virtual SGI pending (GICv4.1).
    pub fn send_vsgi(&self, vpe: VpeId, sgi: u8) {
        let value = GITS_SGIR::VPEID.val(u64::from(vpe.0)) + GITS_SGIR::VINTID.val(u64::from(sgi));
        self.hw.write64(self.base.add(gits::SGIR), value.value);
    }

    /// The last DeviceID that has room.
    pub fn last_device(&self) -> DeviceId {
        DeviceId(u32::MAX.checked_shr(32 - u32::from(self.facts.device_bits)).unwrap_or(0))
    }
}

/// The alignment of a translation table, which is also the least one takes.
const ITT_ALIGN: usize = 256;
