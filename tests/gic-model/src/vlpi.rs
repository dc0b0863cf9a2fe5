//! Virtual LPIs: configuration, arrival, doorbells, acknowledgement (IHI 0069, chapters 5 and 6).
//!
//! On GICv4.0 the configuration table of a vPE is known only while the vPE is resident, so a doorbell rings for
//! disabled interrupts too. On GICv4.1 a default doorbell rings only for an enabled interrupt, and once for each time
//! that it was requested.

use crate::its::{Ite, Item, Vte};
use crate::machine::{Delivery, State};
use crate::memory::Snoop;
use crate::redist::{LPI, snoop};
use crate::vpe::{GROUP0, GROUP1, GROUPS, Sgi};

/// INTID that means "no doorbell".
pub(crate) const NONE: u32 = 1023;

impl State {
    // ---- configuration

    /// Returns the address of a vPE's configuration table if the GIC knows it at this time.
    fn vconfig_table(&self, vpt: u64) -> Option<(u64, Snoop)> {
        if let Some(vpe) = self.vpes.values().find(|v| v.vpt == vpt) {
            let how = if self.cfg.cpus[vpe.rd].shareable { Snoop::Yes } else { Snoop::No };
            return Some((vpe.vconf, how));
        }
        let holder = self.holder(vpt).filter(|rd| !self.cfg.cpus[*rd].rvpeid)?;
        let r = &self.rds[holder];
        Some((r.vpropbaser & 0x000f_ffff_ffff_f000, snoop(r.vpropbaser >> 10)))
    }

    /// Returns the configuration byte of a vLPI, from the cache or from memory, or 0 if the GIC does not know the
    /// table.
    pub(crate) fn vlpi_config(&mut self, vpt: u64, intid: u32) -> u8 {
        if let Some(byte) = self.vpts.get(&vpt).and_then(|v| v.config.get(&intid)) {
            return *byte;
        }
        let Some((table, how)) = self.vconfig_table(vpt) else { return 0 };
        let at = table + u64::from(intid - LPI);
        let (byte, trouble) = self.mem.device_read8(at, how);
        self.flag_memory("5.1 virtual LPI configuration tables", "the configuration byte", at, trouble);
        self.vpts.entry(vpt).or_default().config.insert(intid, byte);
        byte
    }

    /// Records a violation if stores to a configuration byte are not published when its INV is executed.
    pub(crate) fn check_vconfig_published(&mut self, section: &'static str, vpt: u64, intid: u32) {
        if let Some((table, how)) = self.vconfig_table(vpt) {
            let at = table + u64::from(intid - LPI);
            let (_, trouble) = self.mem.device_read8(at, how);
            self.flag_memory(section, &format!("the configuration byte of vLPI {intid}"), at, trouble);
        }
    }

    /// Invalidates the cached configuration of one vLPI or of all.
    pub(crate) fn invalidate_vlpi(&mut self, vpt: u64, intid: Option<u32>) {
        if let Some(v) = self.vpts.get_mut(&vpt) {
            match intid {
                Some(intid) => {
                    v.config.remove(&intid);
                }
                None => v.config.clear(),
            }
        }
        if self.eager_cache() {
            for mapped in self.vlpis_mapped(vpt) {
                self.vlpi_config(vpt, mapped);
            }
        }
        // The new configuration may enable a pending interrupt, for which a requested doorbell rings.
        if let Some(id) = self.vpes.iter().find(|(_, v)| v.vpt == vpt).map(|(id, _)| *id) {
            self.ring_default(id);
        }
    }

    /// Returns the vINTIDs of the vPE with this VPT to which events are mapped.
    pub(crate) fn vlpis_mapped(&self, vpt: u64) -> Vec<u32> {
        let mut found = Vec::new();
        for i in &self.its {
            let Some(id) = i.vpes.iter().find(|(_, v)| v.vpt == vpt).map(|(n, _)| *n) else { continue };
            found.extend(i.devices.values().flat_map(|d| d.events.values()).filter_map(|e| match e {
                Ite::Virtual { vpe, vintid, .. } if *vpe == id => Some(*vintid),
                _ => None,
            }));
        }
        found
    }

    pub(crate) fn vlpi_mapped(&self, vpt: u64, intid: u32) -> bool {
        self.vlpis_mapped(vpt).contains(&intid)
    }

    // ---- arrival

    pub(crate) fn set_vlpi(&mut self, vpe: u16, vte: Vte, intid: u32, doorbell: u32) {
        let what = || format!("vLPI {intid} for vPE {vpe}");
        if intid < LPI || u64::from(intid) >> vte.bits != 0 {
            return self.drop_interrupt(what(), "beyond the VPT");
        }
        let holder = self.where_resident(vpe, vte);
        if !self.cfg.cpus[vte.rd].rvpeid && (self.cfg.drops_beyond_idbits || holder.is_some()) {
            let bits = (self.rds[vte.rd].vpropbaser & 0x1f) + 1;
            if u64::from(intid) >> bits != 0 {
                return self.drop_interrupt(what(), "beyond GICR_VPROPBASER.IDbits");
            }
        }
        let Some(v) = self.vpts.get_mut(&vte.vpt).filter(|v| v.loaded) else {
            return self.drop_interrupt(what(), "the GIC does not hold its VPT");
        };
        let newly = v.pending.insert(intid);
        self.show_vlpi(vte.vpt, intid);
        if holder.is_none() {
            self.ignore_where_resident(vte.vpt, intid);
        }
        match holder {
            Some(rd) => {
                self.stop_ignoring(rd, intid);
                if !self.eager_cache()
                    && let Some(v) = self.vpts.get_mut(&vte.vpt)
                {
                    // QEMU reads the byte again for each arrival.
                    v.config.remove(&intid);
                }
                self.vlpi_config(vte.vpt, intid);
            }
            // The vPE is being made non-resident: the interrupt shows in PendingLast.
            None if self.rds.iter().any(|r| r.leaving.as_ref().is_some_and(|l| l.vpt == vte.vpt)) => {}
            None if self.vpes.contains_key(&vpe) => self.ring_default(vpe),
            None => {
                if doorbell != NONE && (newly || self.cfg.ring_when_pending) {
                    self.set_lpi(vte.rd, doorbell, "a doorbell");
                }
            }
        }
    }

    /// Returns the redistributor where messages for this vPE find it resident: its home only (GICv4.0), or any
    /// redistributor that shares the vPE table with its home (GICv4.1).
    fn where_resident(&self, vpe: u16, vte: Vte) -> Option<usize> {
        if !self.cfg.cpus[vte.rd].rvpeid {
            return self.rds[vte.rd].resident.as_ref().filter(|s| s.vpt == vte.vpt).map(|_| vte.rd);
        }
        let group = self.cfg.cpus[vte.rd].group();
        (0..self.rds.len()).find(|n| {
            self.cfg.cpus[*n].group() == group && self.rds[*n].resident.as_ref().is_some_and(|s| s.vpe == Some(vpe))
        })
    }

    pub(crate) fn clear_vlpi(&mut self, vpt: u64, intid: u32) -> bool {
        let was = self.vpts.get_mut(&vpt).is_some_and(|v| v.loaded && v.pending.remove(&intid));
        if was {
            self.show_vlpi(vpt, intid);
        }
        was
    }

    /// Writes the pending bit to memory on machines that do so at each change.
    fn show_vlpi(&mut self, vpt: u64, intid: u32) {
        if self.cfg.write_through {
            let set = self.vpts.get(&vpt).is_some_and(|v| v.pending.contains(&intid));
            self.write_pending_bit(vpt, intid, set, Snoop::Yes);
        }
    }

    /// Whether an enabled interrupt is pending. PendingLast shows this, and a default doorbell rings for it.
    pub(crate) fn has_enabled_pending(&mut self, vpt: u64, vpe: Option<u16>) -> bool {
        let pending: Vec<u32> = self.vpts.get(&vpt).map_or(Vec::new(), |v| v.pending.iter().copied().collect());
        let entry = vpe.and_then(|id| self.vpes.get(&id));
        let groups = entry.map_or(GROUPS, |v| v.groups);
        let taken = |s: &Sgi| s.pending && s.enable && groups & if s.group { GROUP1 } else { GROUP0 } != 0;
        let sgi = entry.is_some_and(|v| v.sgis.iter().any(taken));
        sgi || groups & GROUP1 != 0 && pending.into_iter().any(|intid| self.vlpi_config(vpt, intid) & 1 != 0)
    }

    /// GICv4.1: rings the default doorbell if it was requested and an enabled interrupt is pending.
    pub(crate) fn ring_default(&mut self, id: u16) {
        let Some((vpt, rd, doorbell, armed)) = self.vpes.get(&id).map(|v| (v.vpt, v.rd, v.doorbell, v.armed)) else {
            return;
        };
        if armed && doorbell != NONE && self.has_enabled_pending(vpt, Some(id)) {
            if let Some(v) = self.vpes.get_mut(&id) {
                v.armed = false;
            }
            self.set_lpi(rd, doorbell, "a default doorbell");
        }
    }

    pub(crate) fn invalidate_doorbell(&mut self, id: u16) {
        if let Some(doorbell) = self.vpes.get(&id).map(|v| v.doorbell) {
            for r in &mut self.rds {
                r.config.remove(&doorbell);
            }
        }
    }

    // ---- acknowledgement

    /// Returns the virtual interrupt that the guest would acknowledge: the enabled one of highest priority and, among
    /// equals, lowest INTID.
    pub(crate) fn guest_best(&mut self, rd: usize) -> Option<u32> {
        if !self.signalling(rd) {
            return None;
        }
        let (vpt, vpe) = self.rds[rd].resident.as_ref().map(|s| (s.vpt, s.vpe))?;
        let register = self.rds[rd].vpendbaser;
        let group1 = vpe.is_none() || register & 1 << 58 != 0;
        let group0 = vpe.is_some() && register & 1 << 59 != 0;
        let limit = if vpe.is_none() { (self.rds[rd].vpropbaser & 0x1f) + 1 } else { 32 };
        let mut best: Option<(u8, u32)> = None;
        let pending: Vec<u32> = self.vpts.get(&vpt).map_or(Vec::new(), |v| v.pending.iter().copied().collect());
        for intid in pending.into_iter().filter(|n| group1 && u64::from(*n) >> limit == 0) {
            if self.is_ignored(rd, intid) {
                continue;
            }
            let byte = self.vlpi_config(vpt, intid);
            if byte & 1 != 0 {
                let candidate = (byte & 0xfc, intid);
                best = Some(best.map_or(candidate, |b| b.min(candidate)));
            }
        }
        if let Some(v) = vpe.and_then(|id| self.vpes.get(&id)).filter(|_| self.cfg.cpus[rd].id_gic() == 3) {
            for (n, s) in v.sgis.iter().enumerate() {
                if s.pending && s.enable && (if s.group { group1 } else { group0 }) {
                    let candidate = (s.priority, n as u32);
                    best = Some(best.map_or(candidate, |b| b.min(candidate)));
                }
            }
        }
        best.map(|(_, intid)| intid)
    }

    pub(crate) fn guest_ack(&mut self, cpu: usize) -> Option<u32> {
        let intid = self.guest_best(cpu)?;
        let resident = self.rds[cpu].resident.as_ref()?;
        let (vpt, vpe) = (resident.vpt, self.name_vpe(resident));
        if intid < 16 {
            if let Some(v) = vpe.and_then(|id| self.vpes.get_mut(&id)) {
                v.sgis[intid as usize].pending = false;
            }
        } else {
            self.clear_vlpi(vpt, intid);
        }
        self.deliveries.push(Delivery::Guest { cpu, vpe, vpt, intid });
        Some(intid)
    }

    /// Ends an interrupt that is in no list register. LPIs have no active state. An SGI has one, unless it was injected
    /// by the GIC, and even then its end is counted unless software has chosen otherwise.
    pub(crate) fn guest_eoi(&mut self, cpu: usize, intid: u32) {
        let r = &mut self.rds[cpu];
        if intid < LPI && !(intid < 16 && r.vsgi_eoi_ignored) {
            r.eoi_count = (r.eoi_count + 1) & 0x1f;
        }
    }

    // ---- GICR_INVLPIR and GICR_INVALLR with V = 1

    /// Checks an invalidation and returns its effect. `one`: the vINTID, or `None` for all vLPIs of the vPE.
    pub(crate) fn direct_invalidate_virtual(
        &mut self,
        section: &'static str,
        rd: usize,
        vpe: u16,
        one: Option<u32>,
    ) -> Option<Item> {
        let Some((vpt, home)) = self.vpes.get(&vpe).map(|v| (v.vpt, v.rd)) else {
            self.flag(section, format!("vPE {vpe}, whose configuration is invalidated on CPU{rd}, is not mapped"));
            return None;
        };
        if self.cfg.cpus[rd].group() != self.cfg.cpus[home].group() {
            self.flag(
                section,
                format!(
                    "vPE {vpe}, whose configuration is invalidated on CPU{rd}, is on CPU{home} with another vPE table"
                ),
            );
            return None;
        }
        Some(match one {
            Some(intid) if intid < LPI => {
                self.flag(
                    section,
                    format!(
                        "vINTID {intid} of vPE {vpe}, whose configuration is invalidated on CPU{rd}, is not a vLPI"
                    ),
                );
                return None;
            }
            Some(intid) => {
                self.check_vconfig_published(section, vpt, intid);
                Item::InvVlpi { vpt, intid }
            }
            None => Item::InvVlpis { vpt },
        })
    }
}
