//! VMs and vPEs: how they are made and removed, with their tables, vPEIDs and doorbells.
//!
//! If a step cannot be proven complete, the memory, vPEID and doorbell that it concerns are quarantined: never used
//! again.

use super::backend::{self, DOORBELL_PRIORITY};
use super::error::V4Error;
use super::view::{V4, bit};
use super::vpe::{BackendState, ITSS, Vm, VmHandle, Vpe};
use crate::gic::error::ItsError;
use crate::gic::its::{COMMAND_LIMIT_US, Synced};
use crate::gic::lpi::{MIN_ID_BITS, TABLE_ALIGN, config_bytes, config_offset, pending_bytes};
use crate::gic::redist::Redist;
use crate::gic::regs::config;
use crate::ids::{CpuId, VIntid, VpeId};
use crate::log_limited;
use crate::mmio::{Coherence, Hw};

impl<H: Hw + Clone> V4<'_, H> {
    /// Makes a VM whose vINTIDs have `id_bits` bits (14: 8192 vLPIs). All of them are disabled. From the first call on,
    /// CPUs come up only if they take virtual LPIs; if one has come up before that does not, there are no VMs.
    pub fn create_vm(self, id_bits: u8) -> Result<VmHandle, V4Error> {
        if !self.gic.interfaces.settle() {
            return Err(V4Error::Interface);
        }
        if id_bits < MIN_ID_BITS || id_bits > self.gic.facts.lpi_bits {
            return Err(V4Error::IdBits(id_bits));
        }
        let bytes = config_bytes(id_bits);
        let table = self.gic.hw.alloc(bytes, TABLE_ALIGN).ok_or(V4Error::NoMemory)?;
        let vm = Vm { config: table, id_bits, vpes: 0, quarantined: false };
        fill_config(&self.gic.hw, &vm, self.coherence());
        let mut vms = self.state.vms.lock();
        if let Some(n) = vms.iter().position(Option::is_none) {
            vms[n] = Some(vm);
            return Ok(VmHandle(n as u16));
        }
        vms.push(Some(vm));
        Ok(VmHandle((vms.len() - 1) as u16))
    }

    /// Removes a VM. Its vPEs have been removed.
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

    /// Writes the configuration byte of a vLPI: priority in bits 7:2, enable in bit 0. The hardware reads it at the next
    /// `invalidate` of its event, or [`invalidate_all`](Self::invalidate_all) of its vPE.
    pub fn configure(self, vm: VmHandle, vintid: VIntid, byte: u8) -> Result<(), V4Error> {
        let vms = self.state.vms.lock();
        let v = vms.get(usize::from(vm.0)).and_then(Option::as_ref).ok_or(V4Error::NoSuchVm)?;
        let at = v.config.add(config_offset(vintid.0, v.id_bits).ok_or(V4Error::VIntidRange(vintid))?);
        self.gic.hw.store8(at, config::sanitised(byte));
        self.gic.hw.publish(at, 1, self.coherence());
        Ok(())
    }

    /// Adds a vPE to a VM; it lives at `home` at first. After `NoVpeId`, `NoLpi` and `NoMemory` the interrupts of the
    /// vCPU have to be injected by software.
    pub fn add_vpe(self, vm: VmHandle, home: CpuId) -> Result<VpeId, V4Error> {
        let redist = self.gic.in_service(home).map_err(|_| V4Error::CpuOffline(home))?;
        let id_bits = self.id_bits_of(vm)?;
        let vpe = VpeId(self.state.ids.alloc().ok_or(V4Error::NoVpeId)? as u16);
        let result = self.build(vm, id_bits, vpe, redist);
        match result {
            Err((e, true)) => {
                self.state.ids.free(u32::from(vpe.0));
                Err(e)
            }
            // An ITS may still map the vPEID: it stays taken.
            Err((e, false)) => Err(e),
            Ok(()) => Ok(vpe),
        }
    }

    fn id_bits_of(self, vm: VmHandle) -> Result<u8, V4Error> {
        let vms = self.state.vms.lock();
        vms.get(usize::from(vm.0)).and_then(Option::as_ref).map(|v| v.id_bits).ok_or(V4Error::NoSuchVm)
    }

    /// Makes everything that a vPE consists of. An error says whether the vPEID is free again.
    fn build(self, vm: VmHandle, id_bits: u8, vpe: VpeId, home: &Redist<H>) -> Result<(), (V4Error, bool)> {
        let free = |e| (e, true);
        let gic = self.gic;
        let vpt = gic.hw.alloc(pending_bytes(id_bits), TABLE_ALIGN).ok_or(free(V4Error::NoMemory))?;
        gic.hw.publish(vpt, pending_bytes(id_bits), self.coherence());
        let give_back = |e| {
            gic.hw.free(vpt, pending_bytes(id_bits), TABLE_ALIGN);
            free(e)
        };
        let lpis = gic.lpis.as_ref().ok_or_else(|| give_back(V4Error::NoLpi))?;
        let doorbell = lpis.alloc_doorbell().ok_or_else(|| give_back(V4Error::NoLpi))?;

        let mut vms = self.state.vms.lock();
        // Checked again under this lock, which is also taken before a CPU that is taken out is searched for vPEs.
        let room = if self.state.make_room(vpe) { Ok(()) } else { Err(V4Error::NoVpeId) };
        let mut ready = gic.in_service(home.cpu).map_err(|_| V4Error::CpuOffline(home.cpu)).and(room);
        // Second levels in all tables, before any ITS gets the vPEID.
        for its in self.itss() {
            let table = its.vpe_table.as_ref().ok_or(ItsError::NotVirtual);
            let grown = table.and_then(|t| t.ensure(&gic.hw, u64::from(vpe.0)).map_err(ItsError::from));
            ready = ready.and(grown.map_err(V4Error::from));
        }
        let grown = self.state.tables.ensure(&gic.hw, u64::from(vpe.0));
        ready = ready.and(grown.map_err(|e| V4Error::Its(e.into())));
        let slot = self.state.slot(vpe).ok_or(V4Error::NoVpeId);
        let found = vms.get_mut(usize::from(vm.0)).and_then(Option::as_mut).ok_or(V4Error::NoSuchVm);
        let (v, slot) = match ready.and(found).and_then(|v| Ok((v, slot?))) {
            Ok(both) => both,
            Err(e) => {
                drop(vms);
                lpis.free_doorbell(doorbell);
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
            home: home.cpu,
            moving: None,
            is_lost: false,
            resident: None,
            unclean_on: None,
            mapped: 0,
            events: [0; ITSS],
            backend: BackendState::default(),
        };
        backend::set_up(self, &mut new, home);
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

    /// Removes a vPE that is not resident and has no event mapped to it. After an error other than `NoSuchVpe`,
    /// `Resident` and `HasEvents` it is removed all the same, but its vPEID and memory are never used again.
    pub fn remove_vpe(self, vpe: VpeId) -> Result<(), V4Error> {
        let slot = self.state.slot(vpe).ok_or(V4Error::NoSuchVpe(vpe))?;
        let mut vms = self.state.vms.lock();
        let mut guard = slot.vpe.lock();
        self.check_unused(guard.as_mut().ok_or(V4Error::NoSuchVpe(vpe))?)?;
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

    /// Returns an error if a vPE is resident or being written back, or has events.
    pub(super) fn check_unused(self, v: &mut Vpe) -> Result<(), V4Error> {
        if let Some(cpu) = v.unclean_on
            && self.finish_write_back(v).is_err()
        {
            return Err(V4Error::Resident(cpu));
        }
        if let Some(cpu) = v.resident {
            return Err(V4Error::Resident(cpu));
        }
        if v.events.iter().any(|n| *n != 0) {
            return Err(V4Error::HasEvents);
        }
        Ok(())
    }

    /// Unmaps a vPE on every ITS and frees its memory and doorbell, or quarantines them.
    fn take_down(self, vpe: VpeId, v: &mut Vpe) -> Result<(), V4Error> {
        let counters = &self.gic.counters;
        let mut result = self.finish_move(vpe, v).map_err(|_| V4Error::Its(ItsError::Timeout));
        if v.is_lost {
            result = Err(V4Error::Its(ItsError::Timeout));
        }
        result = result.and(backend::before_unmap(self, vpe, v));
        let mut proof = None;
        for its in self.itss() {
            if v.mapped & bit(its) == 0 || v.is_lost && backend::counts_mappings(self) {
                continue;
            }
            let posted = self.unmap_on(its, vpe, v);
            match posted.and_then(|ticket| its.queue.wait(counters, ticket, COMMAND_LIMIT_US)) {
                Ok(synced) => proof = Some(synced),
                Err(e) => {
                    v.is_lost = true;
                    result = result.and(Err(V4Error::Its(e)));
                }
            }
        }
        let result = result.and(backend::disable_doorbell(self, v));
        if let Some(lpis) = &self.gic.lpis {
            lpis.set_doorbell(v.doorbell, None);
        }
        match result {
            Ok(()) => self.free_tables(v, proof.as_ref()),
            Err(e) => {
                counters.quarantined_bytes.add(pending_bytes(v.id_bits) as u64);
                log_limited!(Error; "{vpe}: removal failed: {e}; its pending table and vPEID are never used again");
            }
        }
        result
    }

    /// Frees the pending table and the doorbell. `_complete` proves that the last ITS has completed the unmap; it is
    /// `None` for a vPE that no ITS mapped.
    fn free_tables(self, v: &Vpe, _complete: Option<&Synced>) {
        self.gic.hw.free(v.vpt, pending_bytes(v.id_bits), TABLE_ALIGN);
        if let Some(lpis) = &self.gic.lpis {
            lpis.free_doorbell(v.doorbell);
        }
    }
}

/// Sets the configuration bytes of all vLPIs of a VM to those of a new one: disabled.
pub(super) fn fill_config<H: Hw>(hw: &H, vm: &Vm, coherence: Coherence) {
    let bytes = config_bytes(vm.id_bits);
    let word = u64::from_le_bytes([config::DEFAULT; 8]);
    for at in (0..bytes as u64).step_by(8) {
        hw.store64(vm.config.add(at), word);
    }
    hw.publish(vm.config, bytes, coherence);
}
