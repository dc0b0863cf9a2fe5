//! vPEs on redistributors: pending tables and residency (IHI 0069, 5.1.3, and the VLPI frame in 12.11).
//!
//! On GICv4.0 a redistributor is given the address of a VPT, on GICv4.1 a vPEID. In both cases the model's unit is the
//! pending table. Its pending bits are held in the GIC while the vPE is mapped on an ITS or resident on a
//! redistributor, and are written to memory when the last of these ends.
//!
//! While a residency begins or ends (Dirty is 1), the model chooses the behaviour that is worst for a driver: it
//! signals no interrupt before the scan is over, and an interrupt that arrives while a residency ends shows in
//! PendingLast but rings no doorbell.

use crate::config::Staleness;
use crate::machine::State;
use crate::memory::{Snoop, Trouble, Use};
use crate::redist::{LPI, pending_bits, snoop};
use std::collections::{BTreeMap, BTreeSet};

const VPENDBASER: &str = "12.11 GICR_VPENDBASER";
const VPROPBASER: &str = "12.11 GICR_VPROPBASER";

const VALID: u64 = 1 << 63;
/// GICv4.0: IDAI. GICv4.1: Doorbell.
const BIT62: u64 = 1 << 62;
const PENDING_LAST: u64 = 1 << 61;
const DIRTY: u64 = 1 << 60;
/// GICv4.1: VGrp0En and VGrp1En.
pub(crate) const GROUPS: u64 = 3 << 58;
pub(crate) const GROUP0: u64 = 1 << 59;
pub(crate) const GROUP1: u64 = 1 << 58;
const VPEID: u64 = 0xffff;
const ADDRESS: u64 = 0x000f_ffff_ffff_0000;
const ATTRIBUTES: u64 = 7 << 56 | 3 << 10 | 7 << 7;

/// A value that the GIC writes to the IMPLEMENTATION DEFINED part of a VPT.
const COARSE_MAP: u8 = 0x1d;

/// One virtual pending table.
#[derive(Default)]
pub(crate) struct Vpt {
    pub(crate) pending: BTreeSet<u32>,
    /// Cached configuration bytes. They stay after an unmapping: only an invalidation removes them.
    pub(crate) config: BTreeMap<u32, u8>,
    /// Whether the pending bits are in the GIC instead of in memory.
    pub(crate) loaded: bool,
    pub(crate) bits: u32,
    how: Option<Snoop>,
    /// The pending bits in the table in memory.
    in_memory: BTreeSet<u32>,
    /// Value of IDAI at the end of the last residency.
    idai: bool,
    /// The pending bits that were written to memory when the GIC's use of the table ended. The table may be used again
    /// with these.
    left: Option<BTreeSet<u32>>,
}

/// GICv4.1: an entry of the vPE configuration table.
pub(crate) struct Vpe {
    pub(crate) vpt: u64,
    pub(crate) bits: u32,
    pub(crate) vconf: u64,
    pub(crate) doorbell: u32,
    pub(crate) rd: usize,
    pub(crate) mapped: BTreeSet<usize>,
    /// Whether a doorbell was requested and has not rung.
    pub(crate) armed: bool,
    /// VGrp0En and VGrp1En at the end of the last residency: interrupts of other groups ring no doorbell.
    pub(crate) groups: u64,
    pub(crate) sgis: [Sgi; 16],
}

/// A virtual SGI.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sgi {
    pub(crate) enable: bool,
    pub(crate) group: bool,
    pub(crate) priority: u8,
    pub(crate) pending: bool,
}

/// A vPE that is resident on a redistributor.
pub(crate) struct Resident {
    pub(crate) vpt: u64,
    /// The vPEID, on GICv4.1 only.
    pub(crate) vpe: Option<u16>,
    ready_at: u64,
    /// Pending interrupts that this redistributor does not signal: they were pending when the vPE was made resident
    /// with PendingLast = 0, or were sent to another redistributor.
    ignored: BTreeSet<u32>,
}

/// A vPE whose residency is ending.
pub(crate) struct Leaving {
    pub(crate) vpt: u64,
    pub(crate) vpe: Option<u16>,
    done_at: u64,
    /// GICv4.1: whether software wrote PendingLast = 1 itself.
    pending_last: bool,
    doorbell: bool,
}

impl State {
    // ---- the VLPI frame

    pub(crate) fn vlpi_read(&mut self, rd: usize, offset: u64, wide: bool) -> u64 {
        match offset & !4 {
            0x70 => State::half(self.rds[rd].vpropbaser, offset),
            0x78 => {
                let value = self.read_vpendbaser(rd);
                let counters = &mut self.rds[rd].counters;
                counters.vpendbaser_reads += 1;
                counters.vpendbaser_settled += u64::from(value & (VALID | DIRTY) == VALID);
                State::half(value, offset)
            }
            _ if offset == 0x88 && self.cfg.cpus[rd].rvpeid => self.read_vsgipendr(rd, wide),
            _ => 0,
        }
    }

    pub(crate) fn vlpi_write(&mut self, rd: usize, offset: u64, value: u64, wide: bool) {
        match offset & !4 {
            0x70 => {
                let merged = State::merge(self.rds[rd].vpropbaser, offset, value, wide);
                if self.cfg.cpus[rd].rvpeid {
                    self.write_vpropbaser_v4_1(rd, merged);
                } else {
                    self.write_vpropbaser(rd, merged);
                }
            }
            0x78 if !wide && offset & 4 == 0 => {
                // The low half has no effect before the half with Valid is written.
                let r = &mut self.rds[rd];
                r.vpendbaser = (r.vpendbaser & !0xffff_ffff) | (value & 0xffff_ffff);
            }
            0x78 => {
                let merged = State::merge(self.rds[rd].vpendbaser, offset, value, wide);
                self.write_vpendbaser(rd, merged);
            }
            0x80 if offset == 0x80 && self.cfg.cpus[rd].rvpeid => self.write_vsgir(rd, value, wide),
            _ => {}
        }
    }

    fn write_vpropbaser(&mut self, rd: usize, value: u64) {
        if self.rds[rd].resident.is_some() || self.rds[rd].leaving.is_some() {
            self.flag(VPROPBASER, format!("GICR_VPROPBASER written on CPU{rd} while a vPE is resident there"));
        }
        if (value & 0x1f) as u32 + 1 > self.cfg.intid_bits {
            self.flag(
                VPROPBASER,
                format!("GICR_VPROPBASER written on CPU{rd} with IDbits {}, more than GICD_TYPER.IDbits", value & 0x1f),
            );
        }
        let writable = 0x1f | 7 << 7 | 3 << 10 | 0x000f_ffff_ffff_f000 | 7 << 56;
        self.rds[rd].vpropbaser = self.refuse_sharing(rd, value & writable);
    }

    /// Whether Dirty reads as 1.
    fn dirty(&self, rd: usize) -> bool {
        let r = &self.rds[rd];
        r.leaving.is_some() || self.cfg.cpus[rd].dirty && self.scanning(rd)
    }

    /// Whether the scan of the resident vPE's VPT has not finished.
    fn scanning(&self, rd: usize) -> bool {
        let r = &self.rds[rd];
        r.resident.as_ref().is_some_and(|s| self.now < s.ready_at || r.dirty_stuck)
    }

    fn read_vpendbaser(&self, rd: usize) -> u64 {
        let r = &self.rds[rd];
        let dirty = if self.dirty(rd) { DIRTY } else { 0 };
        let valid = if r.resident.is_some() { VALID } else { 0 };
        // PendingLast is UNKNOWN until a residency has ended and Dirty is 0. It reads as the value that misleads a
        // driver. On GICv4.1 Doorbell is UNKNOWN while a vPE is resident: a driver that writes back what it read would
        // ask for a doorbell.
        let unknown = match (&r.resident, &r.leaving) {
            (Some(_), _) if self.cfg.cpus[rd].rvpeid => PENDING_LAST | BIT62,
            (Some(_), _) => PENDING_LAST,
            (_, Some(_)) => 0,
            _ => r.vpendbaser & PENDING_LAST,
        };
        (r.vpendbaser & !(VALID | PENDING_LAST | DIRTY)) | valid | unknown | dirty
    }

    fn write_vpendbaser(&mut self, rd: usize, value: u64) {
        self.rds[rd].counters.vpendbaser_writes += 1;
        let (old, new) = (self.rds[rd].resident.is_some(), value & VALID != 0);
        if self.dirty(rd) {
            let what = if old && !new { "GICR_VPENDBASER.Valid cleared" } else { "GICR_VPENDBASER written" };
            return self.flag(VPENDBASER, format!("{what} on CPU{rd} while Dirty is 1"));
        }
        let v4_1 = self.cfg.cpus[rd].rvpeid;
        let writable =
            if v4_1 { BIT62 | PENDING_LAST | GROUPS | 0xffff } else { BIT62 | PENDING_LAST | ADDRESS | ATTRIBUTES };
        let stored = if v4_1 { value & writable } else { self.refuse_sharing(rd, value & writable) };
        match (old, new) {
            (false, false) => self.rds[rd].vpendbaser = stored,
            (true, true) => {
                // While a vPE is resident PendingLast is ignored, and all other fields must keep their values.
                if (stored ^ self.rds[rd].vpendbaser) & !PENDING_LAST != 0 {
                    self.flag(VPENDBASER, format!("GICR_VPENDBASER changed on CPU{rd} while Valid is 1 ({value:#x})"));
                }
            }
            (false, true) if v4_1 => self.enter_v4_1(rd, stored),
            (false, true) => self.enter(rd, stored),
            (true, false) => self.leave(rd, stored),
        }
    }

    // ---- a residency begins

    /// Checks the conditions that both versions have for a residency. If one is violated, returns `false`: the write is
    /// ignored.
    fn may_enter(&mut self, rd: usize, vpt: u64, name: &str) -> bool {
        if !self.rds[rd].enable_lpis {
            self.flag(VPENDBASER, format!("{name} made resident on CPU{rd} while GICR_CTLR.EnableLPIs is 0"));
            return false;
        }
        if self.cfg.cpus[rd].nv4() {
            self.flag(
                VPENDBASER,
                format!("{name} made resident on CPU{rd}, whose CPU interface is not GICv4 (ICH_VTR_EL2.nV4)"),
            );
            return false;
        }
        if let Some(other) = self.holder(vpt) {
            self.flag(VPENDBASER, format!("{name} made resident on CPU{rd} while it is resident on CPU{other}"));
            return false;
        }
        true
    }

    /// Returns the redistributor where this vPE is resident or its residency is ending.
    pub(crate) fn holder(&self, vpt: u64) -> Option<usize> {
        self.rds.iter().position(|r| {
            r.resident.as_ref().is_some_and(|s| s.vpt == vpt) || r.leaving.as_ref().is_some_and(|l| l.vpt == vpt)
        })
    }

    /// Makes a vPE resident on GICv4.0.
    fn enter(&mut self, rd: usize, value: u64) {
        let vpt = value & ADDRESS;
        let name = format!("the vPE with VPT {vpt:#x}");
        if !self.may_enter(rd, vpt, &name) {
            return;
        }
        // A disabled ITS sends no interrupts. Its mappings are checked when it is enabled again.
        for its in (0..self.its.len()).filter(|its| self.its[*its].enabled).collect::<Vec<_>>() {
            let Some((vpe, vte)) = self.its[its].vpes.iter().find(|(_, v)| v.vpt == vpt).map(|(n, v)| (*n, *v)) else {
                continue;
            };
            let live = self.its[its].live_vpes.get(&vpe).map(|v| v.rd);
            if vte.rd != rd {
                self.flag(
                    VPENDBASER,
                    format!("vPE {vpe} made resident on CPU{rd} while ITS{its} has it mapped to CPU{}", vte.rd),
                );
            } else if self.its[its].moving.contains(&vpe) || live != Some(rd) {
                self.flag(
                    VPENDBASER,
                    format!("vPE {vpe} made resident on CPU{rd} before its VMAPP or VMOVP on ITS{its} was complete"),
                );
            }
        }
        let ignored = if value & PENDING_LAST == 0 {
            self.flag(VPENDBASER, format!("{name} made resident on CPU{rd} with PendingLast = 0"));
            self.vpts.get(&vpt).map_or(BTreeSet::new(), |v| v.pending.clone())
        } else {
            BTreeSet::new()
        };
        if self.vpts.get(&vpt).is_some_and(|v| v.idai) && value & BIT62 == 0 {
            self.flag(
                VPENDBASER,
                format!("{name} made resident on CPU{rd} with IDAI = 0, but its last residency ended with IDAI = 1"),
            );
        }
        let prop = self.rds[rd].vpropbaser;
        let bits = (prop & 0x1f) as u32 + 1;
        if bits < 14 {
            self.flag(
                VPROPBASER,
                format!(
                    "{name} made resident on CPU{rd} with {bits} INTID bits in GICR_VPROPBASER, which cover no vLPI"
                ),
            );
            return;
        }
        if let Some(v) = self.vpts.get(&vpt).filter(|v| v.loaded && v.bits < bits) {
            let mapped = v.bits;
            self.flag(
                VPROPBASER,
                format!("{name} made resident on CPU{rd} with {bits} INTID bits, but mapped with {mapped}"),
            );
        }
        let config = prop & 0x000f_ffff_ffff_f000;
        let len = (1u64 << bits.min(self.cfg.intid_bits)) - u64::from(LPI);
        if !self.mem.is_allocated(config, len) {
            self.flag(
                VPROPBASER,
                format!("the configuration table of {name} at {config:#x} is not allocated memory throughout"),
            );
        }
        self.take_vpt(VPENDBASER, vpt, bits, snoop(value >> 10), false);
        self.mem.attach(config, len, Use::VConfig);
        self.rds[rd].vpendbaser = value;
        self.begin_residency(rd, vpt, None, ignored);
    }

    /// Makes a vPE resident on GICv4.1.
    fn enter_v4_1(&mut self, rd: usize, value: u64) {
        let id = value as u16;
        let name = format!("vPE {id}");
        if self.rds[rd].vpropbaser & VALID == 0 {
            return self.flag(VPROPBASER, format!("{name} made resident on CPU{rd}, which has no valid vPE table"));
        }
        let Some(vpe) = self.vpes.get(&id) else {
            return self.flag(VPENDBASER, format!("{name} made resident on CPU{rd}, but it is mapped on no ITS"));
        };
        let (vpt, home) = (vpe.vpt, vpe.rd);
        if !self.may_enter(rd, vpt, &name) {
            return;
        }
        if self.cfg.cpus[home].group() != self.cfg.cpus[rd].group() {
            return self.flag(
                VPENDBASER,
                format!("{name} made resident on CPU{rd}, but it is on CPU{home} with another vPE table"),
            );
        }
        if let Some(its) = (0..self.its.len()).find(|i| self.its[*i].enabled && self.its[*i].moving.contains(&id)) {
            self.flag(
                VPENDBASER,
                format!("{name} made resident on CPU{rd} before its VMAPP or VMOVP on ITS{its} was complete"),
            );
        }
        if !self.reaches_vpe(VPROPBASER, rd, id) {
            return;
        }
        if let Some(vpe) = self.vpes.get_mut(&id) {
            vpe.armed = false;
        }
        self.rds[rd].vpendbaser = value & !(BIT62 | PENDING_LAST);
        self.begin_residency(rd, vpt, Some(id), BTreeSet::new());
    }

    /// Records the residency and caches the configuration of mapped vLPIs.
    fn begin_residency(&mut self, rd: usize, vpt: u64, vpe: Option<u16>, ignored: BTreeSet<u32>) {
        let ready_at = self.now + self.cfg.timing.dirty_in;
        self.rds[rd].resident = Some(Resident { vpt, vpe, ready_at, ignored });
        self.rds[rd].counters.residencies += 1;
        if self.cfg.staleness == Staleness::Immediate {
            // QEMU reads all configuration bytes again.
            let Some(v) = self.vpts.get_mut(&vpt) else { return };
            v.config.clear();
            for intid in v.pending.clone() {
                self.vlpi_config(vpt, intid);
            }
            return;
        }
        for intid in self.vlpis_mapped(vpt) {
            self.vlpi_config(vpt, intid);
        }
    }

    /// Sets the residency that earlier software has left.
    pub(crate) fn reset_residency(&mut self, rd: usize, vpropbaser: u64, vpendbaser: u64) {
        let v4_1 = self.cfg.cpus[rd].rvpeid;
        let r = &mut self.rds[rd];
        r.vpropbaser = vpropbaser;
        r.vpendbaser = vpendbaser & !(VALID | DIRTY);
        if vpendbaser & VALID != 0 {
            let (vpt, vpe) = if v4_1 { (0, Some(vpendbaser as u16)) } else { (vpendbaser & ADDRESS, None) };
            r.resident = Some(Resident { vpt, vpe, ready_at: 0, ignored: BTreeSet::new() });
        }
    }

    // ---- a residency ends

    /// Starts to end a residency.
    fn leave(&mut self, rd: usize, value: u64) {
        let Some(resident) = self.rds[rd].resident.take() else { return };
        let old = self.rds[rd].vpendbaser;
        let v4_1 = self.cfg.cpus[rd].rvpeid;
        if v4_1 {
            // Doorbell and PendingLast say how the residency ends. No other field may have a new value.
            if (value ^ old) & (GROUPS | VPEID) != 0 {
                self.flag(
                    VPENDBASER,
                    format!(
                        "GICR_VPENDBASER: vPEID or group enables changed on CPU{rd} by the write clearing Valid ({old:#x} \
                         to {value:#x})"
                    ),
                );
            }
            let sampled = if self.cfg.samples_groups_on_leave { value & GROUPS } else { GROUPS };
            if let Some(vpe) = resident.vpe.and_then(|id| self.vpes.get_mut(&id)) {
                vpe.groups = sampled;
            }
            self.rds[rd].vpendbaser = old & !(BIT62 | PENDING_LAST);
        } else {
            if (value ^ old) & (ADDRESS | ATTRIBUTES | BIT62) != 0 {
                self.flag(
                    VPENDBASER,
                    format!(
                        "GICR_VPENDBASER: IDAI, address or attributes changed on CPU{rd} by the write clearing Valid \
                         ({old:#x} to {value:#x})"
                    ),
                );
            }
            self.rds[rd].vpendbaser = old & (ADDRESS | ATTRIBUTES);
        }
        self.rds[rd].leaving = Some(Leaving {
            vpt: resident.vpt,
            vpe: resident.vpe,
            done_at: self.now + self.cfg.timing.dirty_out,
            pending_last: v4_1 && value & PENDING_LAST != 0,
            doorbell: v4_1 && value & BIT62 != 0 && value & PENDING_LAST == 0,
        });
        self.occupied.insert(rd);
        self.settle_residency(rd);
    }

    /// Ends a residency if its time is over.
    pub(crate) fn settle_residency(&mut self, rd: usize) {
        let r = &self.rds[rd];
        let Some(leaving) = r.leaving.as_ref().filter(|l| !r.dirty_stuck && self.now >= l.done_at) else { return };
        let (vpt, vpe) = (leaving.vpt, leaving.vpe);
        let enabled_pending = self.has_enabled_pending(vpt, vpe);
        let r = &mut self.rds[rd];
        let Some(leaving) = r.leaving.take() else { return };
        let pending_last = leaving.pending_last || enabled_pending;
        if pending_last {
            r.vpendbaser |= PENDING_LAST;
        }
        match leaving.vpe {
            Some(id) => {
                if let Some(vpe) = self.vpes.get_mut(&id) {
                    vpe.armed = leaving.doorbell && !pending_last;
                }
            }
            None => {
                let config = r.vpropbaser & 0x000f_ffff_ffff_f000;
                self.mem.detach(config, Use::VConfig);
                if let Some(v) = self.vpts.get_mut(&leaving.vpt) {
                    v.idai = self.cfg.idai.unwrap_or(!v.idai);
                    if v.idai {
                        self.rds[rd].vpendbaser |= BIT62;
                    }
                }
                self.release_vpt(leaving.vpt);
            }
        }
    }

    // ---- pending tables

    /// Reads the pending bits of a VPT from memory, unless the GIC holds them already.
    pub(crate) fn take_vpt(&mut self, section: &'static str, vpt: u64, bits: u32, how: Snoop, ptz: bool) {
        if self.vpts.get(&vpt).is_some_and(|v| v.loaded) {
            return;
        }
        let len = 1u64 << (bits - 3);
        if let Some(other) = self.mem.clash(vpt, len, Use::Vpt) {
            self.flag(section, format!("the VPT at {vpt:#x} overlaps {other}"));
        }
        let zero = self.mem.device_zero(vpt, len, how);
        let mut pending = BTreeSet::new();
        match zero {
            None => {}
            Some(Trouble::NotZero) => {
                let mut bytes = vec![0; len as usize];
                let _ = self.mem.device_read(vpt, &mut bytes, how);
                pending = pending_bits(&bytes);
                let as_left = self.vpts.get(&vpt).and_then(|v| v.left.as_ref()) == Some(&pending);
                if ptz || !as_left {
                    let with = if ptz { ", but was mapped with PTZ = 1" } else { " and not as the GIC left it" };
                    self.flag(section, format!("the VPT at {vpt:#x} is not zero{with}"));
                }
                if ptz {
                    pending.clear();
                }
            }
            trouble => {
                self.flag_memory(section, "the VPT", vpt, trouble);
            }
        }
        self.mem.attach_once(vpt, len, Use::Vpt);
        let v = self.vpts.entry(vpt).or_default();
        v.in_memory = pending.clone();
        v.pending = pending;
        v.loaded = true;
        v.bits = bits;
        v.how = Some(how);
        v.left = None;
    }

    /// Writes the pending bits to memory if the VPT is neither mapped nor resident.
    pub(crate) fn release_vpt(&mut self, vpt: u64) {
        let mapped = self.its.iter().any(|i| i.vpes.values().any(|v| v.vpt == vpt));
        if mapped || self.holder(vpt).is_some() {
            return;
        }
        let Some(v) = self.vpts.get_mut(&vpt).filter(|v| v.loaded) else { return };
        v.loaded = false;
        let pending = std::mem::take(&mut v.pending);
        let touched: BTreeSet<u32> = v.in_memory.union(&pending).copied().collect();
        let how = v.how.unwrap_or(Snoop::Yes);
        v.left = Some(pending.clone());
        let _ = self.mem.device_write(vpt, &[COARSE_MAP], how);
        for intid in touched {
            self.write_pending_bit(vpt, intid, pending.contains(&intid), how);
        }
        self.mem.detach(vpt, Use::Vpt);
    }

    /// Forgets the pending bits of VPTs in memory that was freed. Stale cached configuration stays.
    pub(crate) fn forget_vpts(&mut self, at: u64, len: u64) {
        for (_, v) in self.vpts.range_mut(at..at + len) {
            v.left = None;
            v.loaded = false;
            v.pending.clear();
            v.idai = false;
        }
    }

    pub(crate) fn vpt_pending(&mut self, vpt: u64) -> Vec<u32> {
        match self.vpts.get(&vpt) {
            Some(v) if v.loaded => v.pending.iter().copied().collect(),
            Some(v) => v.left.iter().flatten().copied().collect(),
            None => Vec::new(),
        }
    }

    /// Returns the vPEID of a resident vPE if it is mapped.
    pub(crate) fn name_vpe(&self, r: &Resident) -> Option<u16> {
        r.vpe.or_else(|| self.its.iter().find_map(|i| i.vpes.iter().find(|(_, v)| v.vpt == r.vpt).map(|(n, _)| *n)))
    }

    /// Whether this redistributor ignores a pending interrupt of the resident vPE.
    pub(crate) fn is_ignored(&self, rd: usize, intid: u32) -> bool {
        self.rds[rd].resident.as_ref().is_some_and(|s| s.ignored.contains(&intid))
    }

    /// Makes the redistributor where the vPE is resident ignore an interrupt that was sent to another redistributor.
    pub(crate) fn ignore_where_resident(&mut self, vpt: u64, intid: u32) {
        for r in &mut self.rds {
            if let Some(s) = r.resident.as_mut().filter(|s| s.vpt == vpt) {
                s.ignored.insert(intid);
            }
        }
    }

    /// Makes a redistributor signal an interrupt that it ignored, since it has arrived again.
    pub(crate) fn stop_ignoring(&mut self, rd: usize, intid: u32) {
        if let Some(s) = self.rds[rd].resident.as_mut() {
            s.ignored.remove(&intid);
        }
    }

    /// Whether interrupts of the resident vPE are signalled.
    pub(crate) fn signalling(&self, rd: usize) -> bool {
        self.rds[rd].virtual_interface && !self.scanning(rd)
    }
}
