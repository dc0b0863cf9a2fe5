//! VMs and vPEs: their tables, numbers and doorbells, and VMAPP.
//!
//! A vPE is mapped on every ITS that has virtual LPIs where one VMOVP reaches all of them. In ITSList mode each
//! mapped ITS has to be told of each move, so there a vPE is mapped on an ITS with its first event and unmapped with
//! its last.
//!
//! A step that cannot be proven complete leaves its memory, vPEID and doorbell in quarantine: never used again.

use super::doorbell::{Control, DOORBELL_PRIORITY};
use super::residency::{Groups, vpendbaser, vpropbaser};
use super::vmovp::Moving;
use super::{CHUNK, Chunk, V4};
use crate::gic::its::{COMMAND_LIMIT_US, Command, Its, ItsError, Synced, Ticket, VmappV40, VmappV41};
use crate::gic::lpi::{Lpis, pending_bytes};
use crate::gic::redist::Redist;
use crate::gic::regs::config;
use crate::ids::{CpuId, Lpi, Pa, VIntid, VpeId};
use crate::mmio::{Coherence, Hw};
use crate::sync::{Lock, Rank};
use core::fmt;

/// VCONF_addr and VPT_addr are PA[51:16].
const TABLE_ALIGN: usize = 0x1_0000;
/// The least a VM's INTIDs can have: LPIs start at 2^13.
pub const MIN_ID_BITS: u8 = 14;
/// The ITSs that can be in an ITSList.
const ITSS: usize = 16;

/// A VM, as the GIC sees it: vPEs that share a configuration table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VmHandle(u16);

/// Why something about a VM or a vPE could not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum V4Error {
    /// No memory left.
    NoMemory,
    /// All vPEIDs are in use: this virtual CPU takes the software path.
    NoVpeId,
    /// All LPIs are in use: there is none for a doorbell.
    NoLpi,
    /// There is no such VM.
    NoSuchVm,
    /// There is no such vPE.
    NoSuchVpe(VpeId),
    /// The VM has vPEs.
    HasVpes,
    /// The vPE is resident, or its last redistributor is still writing it back.
    Resident(CpuId),
    /// Events are mapped to the vPE.
    HasEvents,
    /// There is no such CPU, or its LPIs are not on.
    CpuOffline(CpuId),
    /// The number of INTID bits is below 14 or above what the redistributors have.
    IdBits(u8),
    /// The vINTID is not a vLPI that the VM has room for.
    VIntidRange(VIntid),
    /// An ITS did not do its part; what it may still use stays with it.
    Its(ItsError),
    /// A redistributor did not do its part in time.
    Redist(CpuId),
    /// There is no such virtual SGI, or none at all.
    NoSuchSgi(u8),
}

impl fmt::Display for V4Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            V4Error::NoMemory => write!(f, "no memory left"),
            V4Error::NoVpeId => write!(f, "all vPEIDs are in use"),
            V4Error::NoLpi => write!(f, "no LPI is left for a doorbell"),
            V4Error::NoSuchVm => write!(f, "there is no such VM"),
            V4Error::NoSuchVpe(v) => write!(f, "there is no {v}"),
            V4Error::HasVpes => write!(f, "the VM has vPEs"),
            V4Error::Resident(c) => write!(f, "the vPE is resident on {c}"),
            V4Error::HasEvents => write!(f, "events are mapped to the vPE"),
            V4Error::CpuOffline(c) => write!(f, "{c} takes no LPIs"),
            V4Error::IdBits(n) => write!(f, "{n} INTID bits are not possible"),
            V4Error::VIntidRange(v) => write!(f, "{v} is not a vLPI of the VM"),
            V4Error::Its(e) => write!(f, "{e}"),
            V4Error::NoSuchSgi(n) => write!(f, "there is no virtual SGI {n}"),
            V4Error::Redist(c) => write!(f, "the redistributor of {c} did not answer in time"),
        }
    }
}

impl From<ItsError> for V4Error {
    fn from(e: ItsError) -> Self {
        V4Error::Its(e)
    }
}

/// A VM's part.
pub(super) struct Vm {
    config: Pa,
    id_bits: u8,
    vpes: u32,
    /// A vPE of it could not be unmapped: its tables stay.
    quarantined: bool,
}

/// A vPE. Guarded by its lock.
pub(super) struct Vpe {
    vm: VmHandle,
    id_bits: u8,
    config: Pa,
    vpt: Pa,
    pub doorbell: Lpi,
    pub control: Control,
    /// Where it lives: every ITS that maps it says so, unless `moving`.
    pub home: CpuId,
    pub moving: Option<Moving>,
    pub resident: Option<CpuId>,
    /// Whose write-back was not seen to end.
    pub unclean_on: Option<CpuId>,
    pub idai: bool,
    pub groups: Groups,
    /// Register values for residency, made once (GICv4.0).
    pub vpropbaser: u64,
    pub vpendbaser: u64,
    /// The ITSs it is mapped on, a bit each by ItsId.
    pub mapped: u16,
    /// How many events of each ITS are mapped to it.
    events: [u32; ITSS],
}

/// Where a vPE is kept.
pub(super) struct Slot {
    pub vpe: Lock<Option<Vpe>>,
}

/// What an event needs to know of the vPE it is mapped to.
pub(in crate::gic) struct Held {
    /// The doorbell that the event rings (GICv4.0).
    pub doorbell: Option<Lpi>,
}

fn config_bytes(id_bits: u8) -> usize {
    (1usize << id_bits) - Lpi::FIRST as usize
}

fn vpt_bytes(id_bits: u8) -> usize {
    pending_bytes(u32::from(id_bits))
}

/// The offset of a vLPI's byte in a configuration table.
fn config_offset(vintid: VIntid, id_bits: u8) -> Option<u64> {
    let end = 1u32 << id_bits;
    (Lpi::FIRST..end).contains(&vintid.0).then(|| u64::from(vintid.0 - Lpi::FIRST))
}

impl<'a, H: Hw + Clone> V4<'a, H> {
    /// What the redistributors that are up let us write into their shareability fields: they read these tables too.
    fn coherence(self) -> Coherence {
        self.gic.lpis.as_ref().map_or(Coherence::NonCoherent, Lpis::coherence)
    }

    /// The ITSs whose events can be virtual.
    pub(super) fn itss(self) -> impl Iterator<Item = &'a Its<H>> {
        self.gic.itss.iter().flatten().filter(|its| its.facts.virtual_lpis)
    }

    /// Makes a VM whose vINTIDs have `id_bits` bits (14: 8192 vLPIs). All of them are disabled.
    pub fn create_vm(self, id_bits: u8) -> Result<VmHandle, V4Error> {
        if id_bits < MIN_ID_BITS || id_bits > self.gic.facts.lpi_bits {
            return Err(V4Error::IdBits(id_bits));
        }
        let bytes = config_bytes(id_bits);
        let table = self.gic.hw.alloc(bytes, TABLE_ALIGN).ok_or(V4Error::NoMemory)?;
        let word = u64::from_le_bytes([config::DEFAULT; 8]);
        for at in (0..bytes as u64).step_by(8) {
            self.gic.hw.store64(table.add(at), word);
        }
        self.gic.hw.publish(table, bytes, self.coherence());
        let vm = Vm { config: table, id_bits, vpes: 0, quarantined: false };
        let mut vms = self.state.vms.lock();
        if let Some(n) = vms.iter().position(Option::is_none) {
            vms[n] = Some(vm);
            return Ok(VmHandle(n as u16));
        }
        vms.push(Some(vm));
        Ok(VmHandle((vms.len() - 1) as u16))
    }

    /// Takes a VM down; it has no vPEs any more.
    pub fn destroy_vm(self, vm: VmHandle) -> Result<(), V4Error> {
        let mut vms = self.state.vms.lock();
        let place = vms.get_mut(usize::from(vm.0)).ok_or(V4Error::NoSuchVm)?;
        let bytes = match place {
            None => return Err(V4Error::NoSuchVm),
            Some(v) if v.vpes != 0 => return Err(V4Error::HasVpes),
            Some(v) => config_bytes(v.id_bits),
        };
        let gone = place.take();
        drop(vms);
        match gone {
            Some(v) if v.quarantined => self.gic.counters.quarantined_bytes.add(bytes as u64),
            Some(v) => self.gic.hw.free(v.config, bytes, TABLE_ALIGN),
            None => {}
        }
        Ok(())
    }

    /// Writes the configuration byte of a vLPI: priority in [7:2], enable in bit 0. The hardware reads it at the next
    /// `invalidate` of its event, or [`invalidate_all`](Self::invalidate_all) of its vPE.
    pub fn configure(self, vm: VmHandle, vintid: VIntid, byte: u8) -> Result<(), V4Error> {
        let vms = self.state.vms.lock();
        let v = vms.get(usize::from(vm.0)).and_then(Option::as_ref).ok_or(V4Error::NoSuchVm)?;
        let at = v.config.add(config_offset(vintid, v.id_bits).ok_or(V4Error::VIntidRange(vintid))?);
        self.gic.hw.store8(at, config::sanitised(byte));
        self.gic.hw.publish(at, 1, self.coherence());
        Ok(())
    }

    /// Adds a vPE to a VM, living on `home` at first. `NoVpeId`, `NoLpi` and `NoMemory` mean: this virtual CPU has to
    /// take the software path.
    pub fn add_vpe(self, vm: VmHandle, home: CpuId) -> Result<VpeId, V4Error> {
        let redist = self.gic.open(home).map_err(|_| V4Error::CpuOffline(home))?;
        let id_bits = self.vm_of_handle(vm)?;
        let vpe = VpeId(self.state.ids.alloc().ok_or(V4Error::NoVpeId)? as u16);
        let result = self.build(vm, id_bits, vpe, redist);
        match result {
            // Not in use anywhere, or nobody can say: then it stays taken.
            Err((e, true)) => {
                self.state.ids.free(u32::from(vpe.0));
                Err(e)
            }
            Err((e, false)) => Err(e),
            Ok(()) => Ok(vpe),
        }
    }

    fn vm_of_handle(self, vm: VmHandle) -> Result<u8, V4Error> {
        let vms = self.state.vms.lock();
        vms.get(usize::from(vm.0)).and_then(Option::as_ref).map(|v| v.id_bits).ok_or(V4Error::NoSuchVm)
    }

    /// Everything that a vPE has. An error says whether the vPEID is free again.
    fn build(self, vm: VmHandle, id_bits: u8, vpe: VpeId, home: &Redist<H>) -> Result<(), (V4Error, bool)> {
        let free = |e| (e, true);
        let gic = self.gic;
        let vpt = gic.hw.alloc(vpt_bytes(id_bits), TABLE_ALIGN).ok_or(free(V4Error::NoMemory))?;
        gic.hw.publish(vpt, vpt_bytes(id_bits), self.coherence());
        let give_back = |e| {
            gic.hw.free(vpt, vpt_bytes(id_bits), TABLE_ALIGN);
            free(e)
        };
        let lpis = gic.lpis.as_ref().ok_or_else(|| give_back(V4Error::NoLpi))?;
        let doorbell = lpis.alloc().ok_or_else(|| give_back(V4Error::NoLpi))?;

        let mut vms = self.state.vms.lock();
        // Whoever takes the CPU out passes this lock before looking for vPEs there.
        let mut ready = gic.open(home.cpu).map_err(|_| V4Error::CpuOffline(home.cpu)).and(self.make_room(vpe));
        // Second levels everywhere, before any ITS is told the number.
        for its in self.itss() {
            let table = its.vpe_table.as_ref().ok_or(ItsError::NotVirtual);
            let grown = table.and_then(|t| t.ensure(&gic.hw, u64::from(vpe.0)).map_err(ItsError::from));
            ready = ready.and(grown.map_err(V4Error::from));
        }
        let grown = self.state.groups.ensure(&gic.hw, u64::from(vpe.0));
        ready = ready.and(grown.map_err(|e| V4Error::Its(e.into())));
        let slot = self.state.slot(vpe).ok_or(V4Error::NoVpeId);
        let found = vms.get_mut(usize::from(vm.0)).and_then(Option::as_mut).ok_or(V4Error::NoSuchVm);
        let (v, slot) = match ready.and(found).and_then(|v| Ok((v, slot?))) {
            Ok(both) => both,
            Err(e) => {
                drop(vms);
                lpis.free(doorbell);
                return Err(give_back(e));
            }
        };
        lpis.configure(doorbell, DOORBELL_PRIORITY, true);
        lpis.set_doorbell(doorbell, Some(vpe));
        let mut new = Vpe {
            vm,
            id_bits,
            config: v.config,
            vpt,
            doorbell,
            control: self.introduce(doorbell, home),
            home: home.cpu,
            moving: None,
            resident: None,
            unclean_on: None,
            idai: false,
            groups: Groups { group0: false, group1: true },
            vpropbaser: vpropbaser(v.config, id_bits, self.coherence()),
            vpendbaser: vpendbaser(vpt, self.coherence()),
            mapped: 0,
            events: [0; ITSS],
        };
        v.vpes += 1;
        let mut guard = slot.vpe.lock();
        let mapped = self.map_everywhere(vpe, &mut new);
        match mapped {
            Ok(()) => {
                *guard = Some(new);
                Ok(())
            }
            Err(e) => {
                v.vpes -= 1;
                let gone = self.take_down(vpe, &mut new);
                v.quarantined |= gone.is_err();
                Err((e, gone.is_ok()))
            }
        }
    }

    /// Makes a place for a vPE to be kept in. Under the VM-map lock.
    fn make_room(self, vpe: VpeId) -> Result<(), V4Error> {
        let chunk = self.state.chunks.get(vpe.index() / CHUNK).ok_or(V4Error::NoVpeId)?;
        chunk.call_once(new_chunk);
        Ok(())
    }

    /// Where one VMOVP reaches every ITS, a vPE is mapped on all of them from the start.
    fn map_everywhere(self, vpe: VpeId, v: &mut Vpe) -> Result<(), V4Error> {
        if !self.is_eager() {
            return Ok(());
        }
        for its in self.itss().filter(|its| !its.queue.is_dead()) {
            let ticket = self.map_on(its, vpe, v)?;
            its.queue.wait(&self.gic.counters, ticket, COMMAND_LIMIT_US)?;
        }
        if v.mapped == 0 {
            return Err(V4Error::Its(ItsError::Dead));
        }
        self.invalidate_default_doorbell(vpe, v)
    }

    fn is_eager(self) -> bool {
        self.gic.facts.single_vmovp || self.gic.facts.v41
    }

    /// Posts VMAPP and what belongs to it.
    fn map_on(self, its: &Its<H>, vpe: VpeId, v: &mut Vpe) -> Result<Ticket, ItsError> {
        let home = self.gic.online(v.home)?;
        let base = VmappV40 { vpe, target: its.target(home), vpt: v.vpt, id_bits: v.id_bits };
        let map = if self.gic.facts.v41 {
            let first = v.mapped == 0;
            Command::vmapp_v41(VmappV41 {
                base,
                config: v.config,
                doorbell: v.doorbell,
                alloc: first,
                // An all-zero table was published when the vPE was made, and nothing was mapped before.
                pending_zero: first,
            })
        } else {
            Command::vmapp(base)
        };
        let commands = [map, Command::vsync(vpe), Command::vinvall(vpe), Command::vsync(vpe)];
        let ticket = its.queue.post(&self.gic.counters, &commands)?;
        v.mapped |= bit(its);
        Ok(ticket)
    }

    /// Posts the unmap. On GICv4.1 it is complete when consumed, and VSYNC would name an unmapped vPE.
    fn unmap_on(self, its: &Its<H>, vpe: VpeId, v: &mut Vpe) -> Result<Ticket, ItsError> {
        let last = v.mapped == bit(its);
        let ticket = if self.gic.facts.v41 {
            its.queue.post(&self.gic.counters, &[Command::vmapp_unmap_v41(vpe, last)])?
        } else {
            its.queue.post(&self.gic.counters, &[Command::vmapp_unmap(vpe), Command::vsync(vpe)])?
        };
        v.mapped &= !bit(its);
        Ok(ticket)
    }

    /// Removes a vPE: it is not resident, and no event is mapped to it. After an error other than `NoSuchVpe`,
    /// `Resident` and `HasEvents` it is gone all the same, but its number and memory are never used again.
    pub fn remove_vpe(self, vpe: VpeId) -> Result<(), V4Error> {
        let slot = self.state.slot(vpe).ok_or(V4Error::NoSuchVpe(vpe))?;
        let mut vms = self.state.vms.lock();
        let mut guard = slot.vpe.lock();
        let v = guard.as_mut().ok_or(V4Error::NoSuchVpe(vpe))?;
        if let Some(cpu) = v.unclean_on
            && self.settle(v).is_err()
        {
            return Err(V4Error::Resident(cpu));
        }
        if let Some(cpu) = v.resident {
            return Err(V4Error::Resident(cpu));
        }
        if v.events.iter().any(|n| *n != 0) {
            return Err(V4Error::HasEvents);
        }
        let Some(mut v) = guard.take() else { return Err(V4Error::NoSuchVpe(vpe)) };
        let gone = self.take_down(vpe, &mut v);
        if let Some(vm) = vms.get_mut(usize::from(v.vm.0)).and_then(Option::as_mut) {
            vm.vpes -= 1;
            vm.quarantined |= gone.is_err();
        }
        if gone.is_ok() {
            self.state.ids.free(u32::from(vpe.0));
        }
        gone
    }

    /// Unmaps a vPE everywhere and frees what it had, or quarantines it.
    fn take_down(self, vpe: VpeId, v: &mut Vpe) -> Result<(), V4Error> {
        let counters = &self.gic.counters;
        let mut result = self.finish_move(vpe, v).map_err(|_| V4Error::Its(ItsError::Timeout));
        if let (Control::Default, Some(lpis)) = (v.control, &self.gic.lpis) {
            lpis.configure(v.doorbell, DOORBELL_PRIORITY, false);
            result = result.and(self.invalidate_default_doorbell(vpe, v));
        }
        let mut proof = None;
        for its in self.itss() {
            if v.mapped & bit(its) == 0 {
                continue;
            }
            let posted = self.unmap_on(its, vpe, v);
            match posted.and_then(|ticket| its.queue.wait(counters, ticket, COMMAND_LIMIT_US)) {
                Ok(synced) => proof = Some(synced),
                Err(e) => result = result.and(Err(V4Error::Its(e))),
            }
        }
        let result = result.and(self.dismiss(v));
        if let Some(lpis) = &self.gic.lpis {
            lpis.set_doorbell(v.doorbell, None);
        }
        match result {
            Ok(()) => self.free_tables(v, proof.as_ref()),
            Err(e) => {
                counters.quarantined_bytes.add(vpt_bytes(v.id_bits) as u64);
                log::error!("{vpe} could not be taken down cleanly ({e}): its memory stays with the hardware");
            }
        }
        result
    }

    /// `_complete` is `None` for a vPE that was mapped nowhere.
    fn free_tables(self, v: &Vpe, _complete: Option<&Synced>) {
        self.gic.hw.free(v.vpt, vpt_bytes(v.id_bits), TABLE_ALIGN);
        if let Some(lpis) = &self.gic.lpis {
            lpis.free(v.doorbell);
        }
    }

    /// An event of `its` is going to be mapped to this vPE: maps the vPE there if it is the first.
    pub(in crate::gic) fn hold(self, its: &Its<H>, vpe: VpeId, vintid: Option<VIntid>) -> Result<Held, ItsError> {
        let slot = self.state.slot(vpe).ok_or(ItsError::NoSuchVpe(vpe))?;
        let mut guard = slot.vpe.lock();
        let v = guard.as_mut().ok_or(ItsError::NoSuchVpe(vpe))?;
        if let Some(vintid) = vintid {
            config_offset(vintid, v.id_bits).ok_or(ItsError::VIntidRange(vintid))?;
        }
        if v.mapped & bit(its) == 0 {
            if v.moving.is_some() {
                self.finish_move(vpe, v).map_err(|_| ItsError::Timeout)?;
            }
            let ticket = self.map_on(its, vpe, v)?;
            v.moving.get_or_insert(Moving::new(v.home)).add(its.id, ticket);
        }
        let count = v.events.get_mut(its.id.index()).ok_or(ItsError::NotVirtual)?;
        *count += 1;
        Ok(Held { doorbell: (!self.gic.facts.v41).then_some(v.doorbell) })
    }

    /// An event of `its` is no longer mapped to this vPE, and the VSYNC that ends it is posted.
    pub(in crate::gic) fn let_go(self, its: &Its<H>, vpe: VpeId) {
        let Some(slot) = self.state.slot(vpe) else { return };
        let mut guard = slot.vpe.lock();
        let Some(v) = guard.as_mut() else { return };
        let Some(count) = v.events.get_mut(its.id.index()) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 && !self.is_eager() && !its.queue.is_dead() {
            match self.unmap_on(its, vpe, v) {
                // It may run elsewhere only when that ITS no longer knows it.
                Ok(ticket) => v.moving.get_or_insert(Moving::new(v.home)).add(its.id, ticket),
                // Still mapped there, and counted as such: it is moved along, and unmapped when the vPE goes.
                Err(_) => self.gic.counters.batch_errors.bump(),
            }
        }
    }

    pub(in crate::gic) fn vm_of(self, vpe: VpeId) -> Option<VmHandle> {
        self.state.slot(vpe)?.vpe.lock().as_ref().map(|v| v.vm)
    }

    /// Where a vPE lives.
    pub fn home(self, vpe: VpeId) -> Option<CpuId> {
        self.state.slot(vpe)?.vpe.lock().as_ref().map(|v| v.home)
    }

    /// Where a vPE is resident.
    pub fn is_resident(self, vpe: VpeId) -> Option<CpuId> {
        self.state.slot(vpe)?.vpe.lock().as_ref().and_then(|v| v.resident)
    }

    /// Has the configuration of all vLPIs of a vPE read anew.
    pub fn invalidate_all(self, vpe: VpeId) -> Result<(), V4Error> {
        let slot = self.state.slot(vpe).ok_or(V4Error::NoSuchVpe(vpe))?;
        let mut guard = slot.vpe.lock();
        let v = guard.as_mut().ok_or(V4Error::NoSuchVpe(vpe))?;
        if self.gic.facts.v41 {
            // Which redistributor to tell is only known when a move is complete.
            self.finish_move(vpe, v).map_err(|_| V4Error::Its(ItsError::Timeout))?;
            let home = self.gic.online(v.home).map_err(|_| V4Error::CpuOffline(v.home))?;
            if home.invalidate_vpe(vpe) {
                return Ok(());
            }
            self.gic.counters.redist_timeouts.bump();
        }
        for its in self.itss().filter(|its| v.mapped & bit(its) != 0 && !its.queue.is_dead()) {
            its.run(&self.gic.counters, &[Command::vinvall(vpe), Command::vsync(vpe)])?;
        }
        Ok(())
    }

    /// Has the configuration of one vLPI read anew by the vPE's redistributor (GICv4.1). `false`: not possible.
    pub(in crate::gic) fn invalidate_directly(self, vpe: VpeId, vintid: VIntid) -> bool {
        if !self.gic.facts.v41 {
            return false;
        }
        let Some(slot) = self.state.slot(vpe) else { return false };
        // The vPE's lock keeps it from moving to another redistributor meanwhile.
        let guard = slot.vpe.lock();
        let Some(v) = guard.as_ref().filter(|v| v.moving.is_none()) else { return false };
        self.gic.online(v.home).is_ok_and(|home| home.invalidate_vlpi(vpe, vintid.0))
    }
}

/// An ITS in a set of them.
pub(super) fn bit<H>(its: &Its<H>) -> u16 {
    1u16.checked_shl(u32::from(its.id.0)).unwrap_or(0)
}

fn new_chunk() -> Chunk {
    (0..CHUNK).map(|_| Slot { vpe: Lock::new(Rank::Vpe, None) }).collect()
}
