//! GICv4.1: vPE configuration tables of the redistributors and the rules for sharing them (GICR_VPROPBASER, 12.11).
//!
//! Redistributors of one CommonLPIAff group have the same table. An ITS whose SVPET affinity covers them has it too, in
//! GITS_BASER2. Z = 1 may only be written for a table that is not in use yet.

use crate::config::{TableKind, affinity_prefix};
use crate::its::{Geometry, Slot, page_code};
use crate::machine::State;
use crate::memory::Use;
use crate::redist::snoop;

const SECTION: &str = "12.11 GICR_VPROPBASER";
const VALID: u64 = 1 << 63;
const ZERO: u64 = 1 << 52;

const ATTRIBUTES: u64 = 7 << 56 | 3 << 10 | 7 << 7;

/// Fields that must be equal in all redistributors that share a table, besides the attributes.
const SHAPE: u64 = 1 << 55 | 3 << 53 | 0x000f_ffff_ffff_f000 | 0x7f;

fn geometry(value: u64) -> Geometry {
    let page = Geometry::page_size(value >> 53 & 3);
    Geometry {
        base: value & 0x000f_ffff_ffff_f000,
        bytes: ((value & 0x7f) + 1) * page,
        page,
        entry: ((value >> 59 & 3) + 1) * 8,
        indirect: value >> 55 & 1 == 1,
        how: snoop(value >> 10),
    }
}

impl State {
    /// Returns the value of GICR_VPROPBASER after `written` was written to it. Entry_Size is read-only, and page size
    /// and Indirect change only to values that are supported.
    pub(crate) fn vpropbaser_readback(&self, written: u64) -> u64 {
        let t = &self.cfg.vpe_table;
        let indirect = if t.indirect { 1 << 55 } else { 0 };
        let keep = VALID | 7 << 56 | indirect | 0x000f_ffff_ffff_f000 | 3 << 10 | 7 << 7 | 0x7f;
        (written & keep) | u64::from(t.entry_size / 8 - 1) << 59 | page_code(&t.pages, written >> 53 & 3) << 53
    }

    pub(crate) fn write_vpropbaser_v4_1(&mut self, rd: usize, value: u64) {
        let old = self.rds[rd].vpropbaser;
        if self.rds[rd].resident.is_some() || self.rds[rd].leaving.is_some() {
            return self.flag(SECTION, format!("GICR_VPROPBASER written on CPU{rd} while a vPE is resident there"));
        }
        if old & value & VALID != 0 {
            return self.flag(SECTION, format!("GICR_VPROPBASER written with Valid = 1 on CPU{rd} while Valid is 1"));
        }
        let stored = self.refuse_sharing(rd, self.vpropbaser_readback(value));
        if old & VALID != 0 {
            let homeless: Vec<u16> = self.vpes.iter().filter(|(_, v)| v.rd == rd).map(|(id, _)| *id).collect();
            if !homeless.is_empty() {
                self.flag(
                    SECTION,
                    format!("the vPE table of CPU{rd} taken away while vPEs {homeless:?} are mapped to it"),
                );
            }
            let base = old & 0x000f_ffff_ffff_f000;
            self.mem.detach(base, Use::VpeTable);
            if !self.vpe_table_in_use_but(base, Some(rd)) {
                self.mem.detach_all(|u| u == Use::VpeLevel2);
            }
        }
        if stored & VALID != 0 {
            self.check_vpe_table(rd, stored, value & ZERO != 0);
            let g = geometry(stored);
            self.mem.attach(g.base, g.bytes, Use::VpeTable);
        }
        self.rds[rd].vpropbaser = stored;
    }

    fn check_vpe_table(&mut self, rd: usize, value: u64, zero: bool) {
        let g = geometry(value);
        if !g.base.is_multiple_of(g.page) {
            self.flag(SECTION, format!("the vPE table of CPU{rd} at {:#x} is not aligned to the page size", g.base));
        }
        let group = self.cfg.cpus[rd].group();
        for other in 0..self.rds.len() {
            let theirs = self.rds[other].vpropbaser;
            let mates = other != rd && self.cfg.cpus[other].rvpeid && self.cfg.cpus[other].group() == group;
            if mates && theirs & VALID != 0 && (theirs ^ value) & (SHAPE | ATTRIBUTES) != 0 {
                self.flag(
                    SECTION,
                    format!("CPU{rd} and CPU{other} are in one CommonLPIAff group but have different vPE tables"),
                );
            }
        }
        for its in 0..self.its.len() {
            if self.covers(its, rd)
                && let Some((_, theirs)) = self.geometry(its, TableKind::Vpe)
                && theirs.shape() != g.shape()
            {
                self.flag(
                    SECTION,
                    format!(
                        "CPU{rd} has its vPE table at {g}, but ITS{its}, which must share it (SVPET), has it at {theirs}"
                    ),
                );
            }
        }
        if self.vpe_table_in_use_but(g.base, Some(rd)) {
            if zero {
                self.flag(
                    SECTION,
                    format!("GICR_VPROPBASER written with Z = 1 on CPU{rd} for the vPE table at {:#x} in use", g.base),
                );
            }
        } else {
            let trouble = self.mem.device_zero(g.base, g.bytes, g.how);
            self.flag_memory(SECTION, &format!("the vPE table of CPU{rd}"), g.base, trouble);
        }
    }

    /// Whether an ITS must share its vPE table with a redistributor.
    fn covers(&self, its: usize, rd: usize) -> bool {
        let (i, c) = (&self.cfg.its[its], &self.cfg.cpus[rd]);
        i.vmapp && i.svpet != 0 && affinity_prefix(i.mpidr, i.svpet) == affinity_prefix(c.affinity, i.svpet)
    }

    /// Whether a redistributor or an enabled ITS has a vPE table at this address.
    pub(crate) fn vpe_table_in_use(&self, base: u64) -> bool {
        self.vpe_table_in_use_but(base, None)
    }

    fn vpe_table_in_use_but(&self, base: u64, except: Option<usize>) -> bool {
        let by_rd = (0..self.rds.len()).any(|n| {
            let v = self.rds[n].vpropbaser;
            Some(n) != except && self.cfg.cpus[n].rvpeid && v & VALID != 0 && v & 0x000f_ffff_ffff_f000 == base
        });
        by_rd
            || (0..self.its.len())
                .any(|i| self.its[i].enabled && self.geometry(i, TableKind::Vpe).is_some_and(|(_, g)| g.base == base))
    }

    /// Checks, when an ITS is enabled, that its vPE table is that of the ITSs and redistributors it must share with.
    pub(crate) fn check_shared_vpe_table(&mut self, its: usize) {
        const BASER: &str = "12.19 GITS_BASER<n>";
        let Some((n, g)) = self.geometry(its, TableKind::Vpe) else { return };
        let mine = &self.cfg.its[its];
        if !mine.vmapp {
            return;
        }
        let (svpet, prefix) = (mine.svpet, affinity_prefix(mine.mpidr, mine.svpet));
        if n != 2 {
            self.flag(
                BASER,
                format!("ITS{its} is GICv4.1 but has its vPE table in GITS_BASER{n} instead of GITS_BASER2"),
            );
        }

        for other in 0..self.its.len() {
            let theirs = &self.cfg.its[other];
            let shares = other != its
                && self.its[other].enabled
                && svpet != 0
                && theirs.svpet == svpet
                && affinity_prefix(theirs.mpidr, svpet) == prefix;
            if shares && self.geometry(other, TableKind::Vpe).is_some_and(|(_, t)| t.shape() != g.shape()) {
                self.flag(
                    BASER,
                    format!("ITS{its} and ITS{other} must share a vPE table (SVPET) but have different ones"),
                );
            }
        }
        for rd in 0..self.rds.len() {
            let v = self.rds[rd].vpropbaser;
            if self.cfg.cpus[rd].rvpeid && self.covers(its, rd) && v & VALID != 0 && geometry(v).shape() != g.shape() {
                self.flag(
                    BASER,
                    format!("ITS{its} and CPU{rd} must share a vPE table (SVPET) but have different ones"),
                );
            }
        }
    }

    /// Whether the vPE table of a redistributor has an entry for a vPEID. Records a violation if not.
    pub(crate) fn reaches_vpe(&mut self, section: &'static str, rd: usize, vpe: u16) -> bool {
        let value = self.rds[rd].vpropbaser;
        if value & VALID == 0 {
            self.flag(section, format!("vPE {vpe}: CPU{rd} has no valid vPE table"));
            return false;
        }
        let g = geometry(value);
        match self.slot(g, vpe.into()) {
            Slot::At { level2: Some(page), .. } => {
                self.use_level2(section, page, g, Use::VpeLevel2);
                true
            }
            Slot::At { level2: None, .. } => true,
            Slot::Beyond => {
                self.flag(section, format!("vPE {vpe} is beyond the vPE table of CPU{rd}"));
                false
            }
            Slot::NoLevel2 { level1 } => {
                self.flag(
                    section,
                    format!(
                        "vPE {vpe} has no second-level page in the first-level entry at {level1:#x} of CPU{rd}'s table"
                    ),
                );
                false
            }
            Slot::Broken { level1, trouble } => {
                self.flag_memory(section, "the first-level entry", level1, Some(trouble));
                false
            }
        }
    }
}
