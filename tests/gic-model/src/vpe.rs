//! vPEs as redistributors see them: pending tables and residency (IHI 0069, 5.1.3, and the VLPI frame of 12.11).
//!
//! In GICv4.0 a redistributor is told the address of a VPT, in GICv4.1 a vPEID. Either way the model's unit is the
//! pending table: pending bits are the GIC's while any ITS maps it or any redistributor has it resident, and go
//! back to memory when the last of these ends.
//!
//! While a residency begins or ends (Dirty), the model does what leaves a driver least: no interrupt is found
//! before the scan is over, and what arrives during the end is shown in PendingLast and rings no doorbell.

use crate::config::Staleness;
use crate::machine::State;
use crate::memory::{Snoop, Trouble, Use};
use crate::redist::{LPI, pending_bits, snoop};
use std::collections::{BTreeMap, BTreeSet};

const VPENDBASER: &str = "12.11 GICR_VPENDBASER";
const VPROPBASER: &str = "12.11 GICR_VPROPBASER";

const VALID: u64 = 1 << 63;
/// 4.0: IDAI. 4.1: Doorbell.
const BIT62: u64 = 1 << 62;
const PENDING_LAST: u64 = 1 << 61;
const DIRTY: u64 = 1 << 60;
const GROUPS: u64 = 3 << 58;
const ADDRESS: u64 = 0x000f_ffff_ffff_0000;
const ATTRIBUTES: u64 = 7 << 56 | 3 << 10 | 7 << 7;

/// What the GIC leaves in the IMPLEMENTATION DEFINED part of a VPT.
const COARSE_MAP: u8 = 0x1d;

/// One virtual pending table.
#[derive(Default)]
pub(crate) struct Vpt {
    pub(crate) pending: BTreeSet<u32>,
    /// Configuration bytes that were looked up. They outlive mappings: only an invalidation removes them.
    pub(crate) config: BTreeMap<u32, u8>,
    /// The pending bits are here, not in memory.
    pub(crate) loaded: bool,
    pub(crate) bits: u32,
    how: Option<Snoop>,
    /// The bits that the table in memory has.
    in_memory: BTreeSet<u32>,
    /// IDAI as the end of the last residency left it.
    idai: bool,
    /// What was written back when the GIC lost interest; the same memory may come again.
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
    /// A doorbell was asked for and has not rung.
    pub(crate) armed: bool,
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

/// A vPE on a redistributor.
pub(crate) struct Resident {
    pub(crate) vpt: u64,
    /// GICv4.1 only.
    pub(crate) vpe: Option<u16>,
    ready_at: u64,
    /// What this redistributor does not know of: pending when it was told PendingLast = 0, or sent elsewhere.
    ignored: BTreeSet<u32>,
}

/// A vPE that is being taken off a redistributor.
pub(crate) struct Leaving {
    pub(crate) vpt: u64,
    pub(crate) vpe: Option<u16>,
    done_at: u64,
    /// 4.1: software said PendingLast = 1 itself.
    pending_last: bool,
    doorbell: bool,
}

impl State {
    // ---- the VLPI frame

    pub(crate) fn vlpi_read(&mut self, rd: usize, offset: u64, wide: bool) -> u64 {
        match offset & !4 {
            0x70 => State::half(self.rds[rd].vpropbaser, offset),
            0x78 => State::half(self.read_vpendbaser(rd), offset),
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
                // Nothing happens before the half with Valid is written.
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
            self.flag(VPROPBASER, format!("written on CPU{rd} while a vPE is resident there"));
        }
        if (value & 0x1f) as u32 + 1 > self.cfg.intid_bits {
            self.flag(VPROPBASER, format!("IDbits {} on CPU{rd} exceed GICD_TYPER.IDbits", value & 0x1f));
        }
        let writable = 0x1f | 7 << 7 | 3 << 10 | 0x000f_ffff_ffff_f000 | 7 << 56;
        self.rds[rd].vpropbaser = self.refuse_sharing(rd, value & writable);
    }

    /// Whether Dirty reads as 1.
    fn dirty(&self, rd: usize) -> bool {
        let r = &self.rds[rd];
        r.leaving.is_some() || self.cfg.cpus[rd].dirty && self.scanning(rd)
    }

    /// Whether the VPT of the resident vPE is still being looked through.
    fn scanning(&self, rd: usize) -> bool {
        let r = &self.rds[rd];
        r.resident.as_ref().is_some_and(|s| self.now < s.ready_at || r.dirty_stuck)
    }

    fn read_vpendbaser(&self, rd: usize) -> u64 {
        let r = &self.rds[rd];
        let dirty = if self.dirty(rd) { DIRTY } else { 0 };
        let valid = if r.resident.is_some() { VALID } else { 0 };
        // PendingLast means nothing before Dirty is 0 again; it reads as the value that misleads.
        let pending_last = match (&r.resident, &r.leaving) {
            (Some(_), _) if !self.cfg.cpus[rd].rvpeid => PENDING_LAST,
            (_, Some(_)) => 0,
            _ => r.vpendbaser & PENDING_LAST,
        };
        (r.vpendbaser & !(VALID | PENDING_LAST | DIRTY)) | valid | pending_last | dirty
    }

    fn write_vpendbaser(&mut self, rd: usize, value: u64) {
        let (old, new) = (self.rds[rd].resident.is_some(), value & VALID != 0);
        if self.dirty(rd) {
            let what = if old && !new { "Valid cleared" } else { "written" };
            return self.flag(VPENDBASER, format!("{what} on CPU{rd} while Dirty is 1"));
        }
        let v4_1 = self.cfg.cpus[rd].rvpeid;
        let writable =
            if v4_1 { BIT62 | PENDING_LAST | GROUPS | 0xffff } else { BIT62 | PENDING_LAST | ADDRESS | ATTRIBUTES };
        let stored = if v4_1 { value & writable } else { self.refuse_sharing(rd, value & writable) };
        match (old, new) {
            (false, false) => self.rds[rd].vpendbaser = stored,
            (true, true) => {
                // PendingLast means nothing while a vPE is resident; all else must stay as it is.
                if (stored ^ self.rds[rd].vpendbaser) & !PENDING_LAST != 0 {
                    self.flag(VPENDBASER, format!("changed on CPU{rd} while Valid is 1 ({value:#x})"));
                }
            }
            (false, true) if v4_1 => self.enter_v4_1(rd, stored),
            (false, true) => self.enter(rd, stored),
            (true, false) => self.leave(rd, stored),
        }
    }

    // ---- a residency begins

    /// What both versions ask for. `false`: the write is ignored.
    fn may_enter(&mut self, rd: usize, vpt: u64, name: &str) -> bool {
        if !self.rds[rd].enable_lpis {
            self.flag(VPENDBASER, format!("{name} made resident on CPU{rd} while GICR_CTLR.EnableLPIs is 0"));
            return false;
        }
        if let Some(other) = self.holder(vpt) {
            self.flag(VPENDBASER, format!("{name} made resident on CPU{rd} while it is resident on CPU{other}"));
            return false;
        }
        true
    }

    /// The redistributor where this vPE is resident, or has not quite left.
    pub(crate) fn holder(&self, vpt: u64) -> Option<usize> {
        self.rds.iter().position(|r| {
            r.resident.as_ref().is_some_and(|s| s.vpt == vpt) || r.leaving.as_ref().is_some_and(|l| l.vpt == vpt)
        })
    }

    fn enter(&mut self, rd: usize, value: u64) {
        let vpt = value & ADDRESS;
        let name = format!("the vPE with VPT {vpt:#x}");
        if !self.may_enter(rd, vpt, &name) {
            return;
        }
        // What a disabled ITS holds leads nowhere; it is looked at when it is enabled again.
        for its in (0..self.its.len()).filter(|its| self.its[*its].enabled).collect::<Vec<_>>() {
            let Some((vpe, vte)) = self.its[its].vpes.iter().find(|(_, v)| v.vpt == vpt).map(|(n, v)| (*n, *v)) else {
                continue;
            };
            let live = self.its[its].live_vpes.get(&vpe).map(|v| v.rd);
            if vte.rd != rd {
                self.flag(
                    VPENDBASER,
                    format!("vPE {vpe} made resident on CPU{rd}, but ITS{its} has it on CPU{}", vte.rd),
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
            self.flag(VPENDBASER, format!("{name} made resident on CPU{rd} without the IDAI it was left with"));
        }
        let prop = self.rds[rd].vpropbaser;
        let bits = (prop & 0x1f) as u32 + 1;
        if bits < 14 {
            self.flag(VPROPBASER, format!("{name} made resident on CPU{rd} with IDbits {}: no vLPI", bits - 1));
            return;
        }
        if let Some(v) = self.vpts.get(&vpt).filter(|v| v.loaded && v.bits < bits) {
            let mapped = v.bits;
            self.flag(VPROPBASER, format!("{bits} INTID bits on CPU{rd}, but the VPT was mapped with {mapped}"));
        }
        let config = prop & 0x000f_ffff_ffff_f000;
        let len = (1u64 << bits.min(self.cfg.intid_bits)) - u64::from(LPI);
        if !self.mem.is_allocated(config, len) {
            self.flag(VPROPBASER, format!("the configuration table at {config:#x} is not (all) allocated memory"));
        }
        self.take_vpt(VPENDBASER, vpt, bits, snoop(value >> 10), false);
        self.mem.attach(config, len, Use::VConfig);
        self.rds[rd].vpendbaser = value;
        self.settle_in(rd, vpt, None, ignored);
    }

    fn enter_v4_1(&mut self, rd: usize, value: u64) {
        let id = value as u16;
        let name = format!("vPE {id}");
        if self.rds[rd].vpropbaser & VALID == 0 {
            return self.flag(VPROPBASER, format!("{name} made resident on CPU{rd}, which has no valid vPE table"));
        }
        let Some(vpe) = self.vpes.get(&id) else {
            return self.flag(VPENDBASER, format!("{name} made resident on CPU{rd}, but no ITS has mapped it"));
        };
        let (vpt, home) = (vpe.vpt, vpe.rd);
        if !self.may_enter(rd, vpt, &name) {
            return;
        }
        if self.cfg.cpus[home].group() != self.cfg.cpus[rd].group() {
            return self.flag(
                VPENDBASER,
                format!("{name} made resident on CPU{rd}; it is on CPU{home}, which shares no vPE table with it"),
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
        self.settle_in(rd, vpt, Some(id), BTreeSet::new());
    }

    fn settle_in(&mut self, rd: usize, vpt: u64, vpe: Option<u16>, ignored: BTreeSet<u32>) {
        let ready_at = self.now + self.cfg.timing.dirty_in;
        self.rds[rd].resident = Some(Resident { vpt, vpe, ready_at, ignored });
        if self.cfg.staleness == Staleness::Immediate {
            // QEMU looks everything up again.
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

    /// What an earlier stage left behind.
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

    fn leave(&mut self, rd: usize, value: u64) {
        let Some(resident) = self.rds[rd].resident.take() else { return };
        let old = self.rds[rd].vpendbaser;
        let v4_1 = self.cfg.cpus[rd].rvpeid;
        if v4_1 {
            if value as u16 != 0 && value as u16 != old as u16 {
                self.flag(
                    VPENDBASER,
                    format!(
                        "vPEID changed from {} to {} on CPU{rd} with the write that clears Valid",
                        old as u16, value as u16
                    ),
                );
            }
            self.rds[rd].vpendbaser = old & !(BIT62 | PENDING_LAST);
        } else {
            if (value ^ old) & (ADDRESS | ATTRIBUTES | BIT62) != 0 {
                self.flag(
                    VPENDBASER,
                    format!("IDAI, address or attributes changed on CPU{rd} with the write that clears Valid ({old:#x} to {value:#x})"),
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

    pub(crate) fn settle_residency(&mut self, rd: usize) {
        let r = &self.rds[rd];
        let Some(leaving) = r.leaving.as_ref().filter(|l| !r.dirty_stuck && self.now >= l.done_at) else { return };
        let (vpt, vpe) = (leaving.vpt, leaving.vpe);
        let attention = self.wants_attention(vpt, vpe);
        let r = &mut self.rds[rd];
        let Some(leaving) = r.leaving.take() else { return };
        let pending_last = leaving.pending_last || attention;
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

    /// Takes the pending bits of a VPT out of memory, unless they are here already.
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
                    let with = if ptz { " (given with PTZ = 1)" } else { ", nor as the GIC left it" };
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

    /// Gives the pending bits back to memory if nobody has an interest in the VPT any more.
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

    /// Memory was given back: what was left in it means nothing any more. Cached configuration stays stale.
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

    pub(crate) fn name_vpe(&self, r: &Resident) -> Option<u16> {
        r.vpe.or_else(|| self.its.iter().find_map(|i| i.vpes.iter().find(|(_, v)| v.vpt == r.vpt).map(|(n, _)| *n)))
    }

    /// Whether an interrupt of the resident vPE is one that this redistributor does not know of.
    pub(crate) fn overlooked(&self, rd: usize, intid: u32) -> bool {
        self.rds[rd].resident.as_ref().is_some_and(|s| s.ignored.contains(&intid))
    }

    /// An interrupt was sent to another redistributor than the one where the vPE is.
    pub(crate) fn overlook(&mut self, vpt: u64, intid: u32) {
        for r in &mut self.rds {
            if let Some(s) = r.resident.as_mut().filter(|s| s.vpt == vpt) {
                s.ignored.insert(intid);
            }
        }
    }

    /// The interrupt came again; now it is noticed.
    pub(crate) fn noticed(&mut self, rd: usize, intid: u32) {
        if let Some(s) = self.rds[rd].resident.as_mut() {
            s.ignored.remove(&intid);
        }
    }

    /// Whether the resident vPE's interrupts can be signalled.
    pub(crate) fn signalling(&self, rd: usize) -> bool {
        self.rds[rd].virtual_interface && !self.scanning(rd)
    }
}
