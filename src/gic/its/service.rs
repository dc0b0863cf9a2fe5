//! One interrupt translation service: bring-up, and what the rest of the driver asks of it (IHI 0069, chapter 5).
//!
//! Programming an ITS that is not quiescent is UNPREDICTABLE, and on GICv4.1 several ITSs may share a vPE table. So
//! every ITS is made quiescent before the first one is brought up.

use super::command::{Command, Target};
use super::control;
use super::devices::{Device, State};
use super::pool::{DeviceQuota, ITT_ALIGN, Pool};
use super::queue::{COMMAND_LIMIT_US, Queue, RING_SIZE, Synced};
use super::regs::{GITS_BASER, GITS_CBASER, GITS_CTLR, GITS_SGIR, GITS_TYPER, gits};
use super::tables::Content;
use crate::gic::counters::Counters;
use crate::gic::error::ItsError;
use crate::gic::facts::ItsFacts;
use crate::gic::layout::ItsLayout;
use crate::gic::redist::Redist;
use crate::gic::regs::{attributes, pa_4k};
use crate::gic::table::Table;
use crate::ids::{CollectionId, CpuId, DeviceId, DeviceIds, DomId, ItsId, Pa, VpeId};
use crate::mmio::{Coherence, Hw};
use crate::sync::{Lock, Rank};
use crate::util::PAGE;
use crate::util::range::Range;
use tock_registers::LocalRegisterCopy;

/// How long an ITS may take to become quiescent.
const QUIESCENT_LIMIT_US: u64 = 1_000_000;

/// One ITS that has been brought up.
pub struct Its<H> {
    hw: H,
    pub id: ItsId,
    base: Pa,
    pub facts: ItsFacts,
    physical_targets: bool,
    itt_entry: u64,
    coherence: Coherence,
    pub queue: Queue<H>,
    pub state: Lock<State>,
    /// Extended only under the VM-map lock.
    pub vpe_table: Option<Table>,
}

type Typer = LocalRegisterCopy<u64, GITS_TYPER::Register>;

fn typer_at<H: Hw>(hw: &H, base: Pa) -> Typer {
    Typer::new(hw.read64(base.add(gits::TYPER)))
}

/// Disables an ITS that an earlier owner of the machine may have left enabled, waits until it is quiescent, and clears
/// its table registers.
pub fn quiesce<H: Hw>(hw: &H, base: Pa) -> Result<(), ItsError> {
    if !control::stop(hw, base, QUIESCENT_LIMIT_US) {
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

/// Which redistributors and ITSs share the vPE table of an ITS (GICv4.1): its affinity and GITS_TYPER.SVPET; `None` if
/// it shares with none. The field is RES0 without GICv4.1.
pub fn shares_vpe_table<H: Hw>(hw: &H, base: Pa) -> Option<(u32, u8)> {
    let typer = typer_at(hw, base);
    let svpet = typer.read(GITS_TYPER::SVPET) as u8;
    (svpet != 0).then(|| (hw.read32(base.add(gits::MPIDR)), svpet))
}

/// What the bring-up of an ITS has to know about the machine.
#[derive(Clone, Copy)]
pub struct Plan {
    pub cpus: u64,
    /// Virtual LPIs are wanted, and every redistributor supports them.
    pub virtual_lpis: bool,
    /// Every redistributor implements GICv4.1.
    pub v41: bool,
    pub vpe_bits: u8,
}

/// ITS numbers in ITSList mode are below this.
const ITS_NUMBERS: u8 = 16;

impl<H: Hw + Clone> Its<H> {
    /// Brings up an ITS that is quiescent. `shared` is the vPE table that it shares with an ITS brought up before;
    /// `taken` is the set of ITS numbers in use, one bit each.
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
                        log::warn!("{id}: no vPE table: {e}: no virtual LPIs");
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
        // Even if virtual LPIs are not used: no two ITSs may have the same number.
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
        if !control::start(&hw, base, typer.is_set(GITS_TYPER::VIRTUAL)) {
            return Err(ItsError::Register);
        }
        Ok(Its {
            queue: Queue::new(hw.clone(), id, base, ring, coherence),
            hw,
            id,
            base,
            facts,
            physical_targets: typer.is_set(GITS_TYPER::PTA),
            itt_entry: (typer.read(GITS_TYPER::ITT_ENTRY_SIZE) + 1).max(layout.least_ite),
            coherence,
            state: Lock::new(Rank::ItsEvents, State::new(device_table, collection_table, hardware_collections)),
            vpe_table,
        })
    }
}

/// Allocates the command queue and points GITS_CBASER at it.
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
            + GITS_CBASER::SIZE.val(RING_SIZE / PAGE - 1)
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

/// Gives an ITS a number for ITSList mode: a free one, or the fixed one that the ITS has if it is not taken.
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

impl<H: Hw> Its<H> {
    /// How commands of this ITS name a redistributor.
    pub fn target(&self, redist: &Redist<H>) -> Target {
        if self.physical_targets { Target::address(redist.base) } else { Target::number(redist.processor()) }
    }

    /// Posts commands and waits for them.
    pub fn run(&self, counters: &Counters, commands: &[Command]) -> Result<Synced, ItsError> {
        let ticket = self.queue.post(counters, commands)?;
        self.queue.wait(counters, ticket, COMMAND_LIMIT_US)
    }

    /// Maps a CPU's collection to its redistributor, which reloads the configuration of its LPIs.
    pub fn map_collection(&self, counters: &Counters, redist: &Redist<H>) -> Result<(), ItsError> {
        let collection = collection(redist.cpu);
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

    /// Reserves the memory for a domain's devices, which no other domain has. Returns the number of bytes.
    pub fn reserve(&self, owner: DomId, ids: &[DeviceIds], quota: DeviceQuota) -> Result<u64, ItsError> {
        let mut state = self.state.lock();
        state.check_unowned(ids)?;
        state.make_room()?;
        if let Some(table) = &state.device_table {
            for ids in ids {
                table.ensure_all(&self.hw, u64::from(ids.first.0), u64::from(ids.last.0))?;
            }
        }
        let pool = Pool::new(&self.hw, owner, ids, quota, self.itt_entry)?;
        let bytes = pool.bytes();
        state.add_pool(pool);
        Ok(bytes)
    }

    /// Frees the memory that is reserved for a domain, none of whose devices is mapped. Returns the number of bytes that
    /// are lost, because the ITS may still use them, and that have not been counted as lost yet.
    pub fn release(&self, owner: DomId) -> u64 {
        let mut lost = 0;
        loop {
            let Some(pool) = self.state.lock().take_pool(owner) else { return lost };
            lost += pool.free(&self.hw);
        }
    }

    fn check_device(&self, dev: DeviceId, event_bits: u8) -> Result<(), ItsError> {
        if dev > self.last_device() {
            return Err(ItsError::DeviceRange(dev));
        }
        if event_bits == 0 || event_bits > self.facts.event_bits {
            return Err(ItsError::EventBits(event_bits));
        }
        Ok(())
    }

    /// Maps a device of a domain with room for 2^`event_bits` events, none of them mapped. Allocates nothing.
    pub fn map_device(&self, counters: &Counters, dev: DeviceId, event_bits: u8) -> Result<(), ItsError> {
        self.check_device(dev, event_bits)?;
        let mut state = self.state.lock();
        let (device, itt) = state.take(dev, event_bits)?;
        let table = state.device_table.as_ref().ok_or(ItsError::DeviceRange(dev));
        let ready = table.and_then(|table| table.check(&self.hw, u64::from(dev.0)).map_err(ItsError::from));
        match ready.and_then(|()| self.queue.post(counters, &[Command::mapd(dev, itt, event_bits)])) {
            Ok(ticket) => {
                state.insert(device);
                self.queue.wait(counters, ticket, COMMAND_LIMIT_US).map(|_| ())
            }
            Err(e) => {
                // The ITS never got the command.
                state.give_back(&self.hw, device, self.coherence());
                Err(e)
            }
        }
    }

    /// Maps the driver's own device. Its events are not recorded, and its memory is kept.
    pub fn map_reserved_device(&self, counters: &Counters, dev: DeviceId, event_bits: u8) -> Result<(), ItsError> {
        self.check_device(dev, event_bits)?;
        let mut state = self.state.lock();
        let table = state.device_table.as_ref().ok_or(ItsError::DeviceRange(dev))?;
        table.ensure(&self.hw, u64::from(dev.0))?;
        let bytes = (self.itt_entry << event_bits) as usize;
        let itt = self.hw.alloc(bytes, ITT_ALIGN as usize).ok_or(ItsError::NoMemory)?;
        self.hw.publish(itt, bytes, Coherence::NonCoherent);
        state.insert_reserved(dev)?;
        self.run(counters, &[Command::mapd(dev, itt, event_bits)]).map(|_| ())
    }

    /// Gives the memory of a device back that has been unmapped; `_complete` proves that the ITS is done with it.
    pub fn free_device(&self, state: &mut State, device: Device, _complete: &Synced) {
        state.give_back(&self.hw, device, self.coherence());
    }

    /// Bytes of an entry of a translation table.
    #[cfg(test)]
    pub fn itt_entry(&self) -> u64 {
        self.itt_entry
    }

    /// Whether the ITS snoops the caches when it reads translation tables.
    fn coherence(&self) -> Coherence {
        if self.facts.coherent { self.coherence } else { Coherence::NonCoherent }
    }

    /// Bytes of a device's translation table, as far as it can be used.
    pub fn itt_bytes(&self, device: &Device) -> u64 {
        u64::from(device.events()) * self.itt_entry
    }

    /// The frame that contains GITS_SGIR (GICv4.1).
    pub fn sgi_frame(&self) -> Range {
        Range::new(self.base.add(gits::SGI_FRAME), gits::FRAME)
    }

    /// Makes a virtual SGI pending (GICv4.1).
    pub fn send_vsgi(&self, vpe: VpeId, sgi: u8) {
        let value = GITS_SGIR::VPEID.val(u64::from(vpe.0)) + GITS_SGIR::VINTID.val(u64::from(sgi));
        self.hw.write64(self.base.add(gits::SGIR), value.value);
    }

    /// The last DeviceID that the device table has room for.
    pub fn last_device(&self) -> DeviceId {
        DeviceId(u32::MAX.checked_shr(32 - u32::from(self.facts.device_bits)).unwrap_or(0))
    }
}

/// The collection of a CPU has the CPU's number.
pub const fn collection(cpu: CpuId) -> CollectionId {
    CollectionId(cpu.0)
}
