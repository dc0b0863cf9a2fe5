//! Physical commands (IHI 0069, 5.3).
//!
//! A command with an error is recorded as a violation and ignored, as on an ITS that neither stalls nor raises an
//! SError. Of the permitted behaviours it is the one that a driver notices least.

use super::command::Command;
use super::queue::Outcome;
use super::{Device, Ite, Item, Target};
use crate::config::TableKind;
use crate::machine::State;
use crate::memory::Use;
use crate::redist::LPI;

impl State {
    /// Executes a physical command. Returns `None` if the command is a virtual one.
    pub(crate) fn physical(&mut self, its: usize, command: Command) -> Option<Outcome> {
        let section = command.section();
        match command {
            Command::Mapd { device, size, itt, valid } => {
                return Some(self.mapd(its, section, device, size, itt, valid));
            }
            Command::Mapc { collection, target, valid } => {
                return Some(self.mapc(its, section, collection, target, valid));
            }
            Command::Mapti { device, event, intid, collection } => {
                return Some(self.mapti(its, section, device, event, intid, collection));
            }
            Command::Mapi { device, event, collection } => {
                return Some(self.mapti(its, section, device, event, event, collection));
            }
            Command::Movi { device, event, collection } => self.movi(its, section, device, event, collection),
            Command::Movall { from, to } => self.movall(its, section, from, to),
            Command::Discard { device, event } => self.discard(its, section, device, event),
            Command::Int { device, event } => match self.mapped(its, section, device, event) {
                Some(Ite::Physical { intid, collection }) => {
                    if let Some(rd) = self.collection(its, section, collection) {
                        self.set_lpi(rd, intid, "INT");
                    }
                }
                Some(Ite::Virtual { vpe, vintid, doorbell }) => {
                    if let Some(vte) = self.vte(its, section, vpe) {
                        self.set_vlpi(vpe, vte, vintid, doorbell);
                    }
                }
                None => {}
            },
            Command::Clear { device, event } => match self.mapped(its, section, device, event) {
                Some(Ite::Physical { intid, collection }) => {
                    if let Some(rd) = self.collection(its, section, collection) {
                        self.clear_lpi(rd, intid);
                    }
                }
                Some(Ite::Virtual { vpe, vintid, .. }) => {
                    if let Some(vte) = self.vte(its, section, vpe) {
                        self.clear_vlpi(vte.vpt, vintid);
                    }
                }
                None => {}
            },
            Command::Inv { device, event } => match self.mapped(its, section, device, event) {
                Some(Ite::Physical { intid, collection }) => {
                    if let Some(rd) = self.collection(its, section, collection) {
                        self.check_config_published(section, rd, intid);
                        self.defer(its, &[Target::Rd(rd)], Item::InvLpi { rd, intid });
                    }
                }
                Some(Ite::Virtual { vpe, vintid, .. }) => {
                    if let Some(vte) = self.vte(its, section, vpe) {
                        self.check_vconfig_published(section, vte.vpt, vintid);
                        self.defer(its, &[Target::Vpe(vpe)], Item::InvVlpi { vpt: vte.vpt, intid: vintid });
                    }
                }
                None => {}
            },
            Command::Invall { collection } => {
                if let Some(rd) = self.collection(its, section, collection) {
                    self.defer(its, &[Target::Rd(rd)], Item::InvLpis { rd });
                }
            }
            Command::Sync { target } => match self.target(its, target) {
                Some(rd) => self.synchronise(its, Target::Rd(rd)),
                None => self.flag(section, format!("ITS{its}: RDbase {target:#x} names no redistributor")),
            },
            _ => return None,
        }
        Some(Outcome::Done)
    }

    // ---- look-ups, which record a violation if they fail

    pub(crate) fn collection(&mut self, its: usize, section: &'static str, collection: u16) -> Option<usize> {
        let found = self.its[its].collections.get(&collection).copied();
        if found.is_none() {
            self.flag(section, format!("ITS{its}: collection {collection} is not mapped"));
        }
        found
    }

    /// Returns the device if it is mapped and the EventID is in its range.
    fn event_of(&mut self, its: usize, section: &'static str, device: u32, event: u32) -> Option<&mut Device> {
        let Some(bits) = self.its[its].devices.get(&device).map(|d| d.bits) else {
            self.flag(section, format!("ITS{its}: device {device:#x} is not mapped"));
            return None;
        };
        if u64::from(event) >> bits != 0 {
            self.flag(
                section,
                format!("ITS{its}: event {event} is beyond the {bits} EventID bits of device {device:#x}"),
            );
            return None;
        }
        self.its[its].devices.get_mut(&device)
    }

    pub(crate) fn mapped(&mut self, its: usize, section: &'static str, device: u32, event: u32) -> Option<Ite> {
        let found = self.event_of(its, section, device, event)?.events.get(&event).copied();
        if found.is_none() {
            self.flag(section, format!("ITS{its}: event {event} of device {device:#x} is not mapped"));
        }
        found
    }

    /// Writes a translation to the ITT. Records a violation if the event is mapped.
    pub(crate) fn map(&mut self, its: usize, section: &'static str, device: u32, event: u32, ite: Ite) -> bool {
        let entry = u64::from(self.cfg.its[its].itt_entry_size);
        let Some(d) = self.event_of(its, section, device, event) else { return false };
        let itt = d.itt;
        if let Some(old) = d.events.insert(event, ite) {
            self.flag(section, format!("ITS{its}: event {event} of device {device:#x} is already mapped: {old:?}"));
        }
        self.mark_ite(its, itt + u64::from(event) * entry, true);
        true
    }

    /// Replaces a translation, for MOVI and VMOVI.
    pub(crate) fn remap(&mut self, its: usize, device: u32, event: u32, ite: Ite) {
        if let Some(d) = self.its[its].devices.get_mut(&device) {
            d.events.insert(event, ite);
        }
    }

    /// Writes to an ITT entry in memory, as the ITS does when it maps or unmaps the event.
    fn mark_ite(&mut self, its: usize, at: u64, valid: bool) {
        let how = self.its[its].queue_snoop();
        // DISCARD leaves the entry non-zero: software must clear an ITT before it uses it again.
        let mark = [if valid { 0xff } else { 0x0e }];
        let _ = self.mem.device_write(at, &mark, how);
    }

    // ---- the commands

    fn mapd(&mut self, its: usize, section: &'static str, device: u32, size: u8, itt: u64, valid: bool) -> Outcome {
        let cfg = &self.cfg.its[its];
        let (bits, entry) = (u32::from(size) + 1, u64::from(cfg.itt_entry_size));
        if u64::from(device) >> cfg.device_bits != 0 {
            self.flag(section, format!("ITS{its}: DeviceID {device:#x} is beyond GITS_TYPER.Devbits"));
            return Outcome::Done;
        }
        if valid && bits > self.cfg.its[its].event_bits {
            self.flag(
                section,
                format!("ITS{its}: device {device:#x} has {bits} EventID bits, more than GITS_TYPER.ID_bits"),
            );
            return Outcome::Done;
        }
        if std::mem::take(&mut self.its[its].table_write_fails) {
            return Outcome::Stall;
        }
        if let Some(old) = self.its[its].devices.get(&device) {
            let (left, old_itt) = (old.events.len(), old.itt);
            if left != 0 {
                self.flag(
                    section,
                    format!("ITS{its}: device {device:#x} is mapped again or unmapped with {left} events mapped"),
                );
            }
            self.mem.detach(old_itt, Use::Itt(its, device));
            let gone: Vec<u32> =
                self.its[its].devices.remove(&device).map_or(Vec::new(), |d| d.events.into_keys().collect());
            for event in gone {
                self.apply(Item::Event { its, device, event });
            }
        } else if !valid {
            self.flag(section, format!("ITS{its}: device {device:#x} is unmapped (V = 0) but is not mapped"));
            return Outcome::Done;
        }
        if self.write_entry(its, section, TableKind::Device, device.into(), valid).is_err() {
            return Outcome::Done;
        }
        if valid {
            let bytes = entry << bits;
            let how = self.its[its].queue_snoop();
            let trouble = self.mem.device_zero(itt, bytes, how);
            self.flag_memory(section, &format!("ITS{its}: the ITT of device {device:#x}"), itt, trouble);
            if let Some(other) = self.mem.clash(itt, bytes, Use::Itt(its, device)) {
                self.flag(section, format!("ITS{its}: the ITT of device {device:#x} at {itt:#x} overlaps {other}"));
            }
            self.mem.attach(itt, bytes, Use::Itt(its, device));
            self.its[its].devices.insert(device, Device { itt, bits, events: Default::default() });
        }
        Outcome::Done
    }

    fn mapc(&mut self, its: usize, section: &'static str, collection: u16, target: u64, valid: bool) -> Outcome {
        let cfg = &self.cfg.its[its];
        let bits = if cfg.cil { cfg.collection_bits } else { 16 };
        if u32::from(collection) >> bits != 0 {
            self.flag(section, format!("ITS{its}: ICID {collection} is beyond GITS_TYPER.CIDbits"));
            return Outcome::Done;
        }
        let mapped = self.its[its]
            .devices
            .values()
            .flat_map(|d| d.events.values())
            .filter(|e| matches!(e, Ite::Physical { collection: c, .. } if *c == collection))
            .count();
        let old = self.its[its].collections.get(&collection).copied();
        let new = if valid {
            let Some(rd) = self.target(its, target) else {
                self.flag(section, format!("ITS{its}: RDbase {target:#x} names no redistributor"));
                return Outcome::Done;
            };
            if !self.rds[rd].enable_lpis {
                self.flag(
                    section,
                    format!("ITS{its}: collection {collection} mapped to CPU{rd}, where GICR_CTLR.EnableLPIs is 0"),
                );
            }
            Some(rd)
        } else {
            None
        };
        if mapped != 0 && old.is_some() && old != new {
            self.flag(
                section,
                format!("ITS{its}: collection {collection} changed while {mapped} events are mapped to it"),
            );
        }
        if std::mem::take(&mut self.its[its].table_write_fails) {
            return Outcome::Stall;
        }
        if self.write_entry(its, section, TableKind::Collection, collection.into(), valid).is_err() {
            return Outcome::Done;
        }
        match new {
            Some(rd) => self.its[its].collections.insert(collection, rd),
            None => self.its[its].collections.remove(&collection),
        };
        let targets: Vec<Target> = old.into_iter().chain(new).map(Target::Rd).collect();
        self.defer(its, &targets, Item::Collection { its, collection });
        Outcome::Done
    }

    fn mapti(
        &mut self,
        its: usize,
        section: &'static str,
        device: u32,
        event: u32,
        intid: u32,
        collection: u16,
    ) -> Outcome {
        if intid < LPI || u64::from(intid) >> self.cfg.intid_bits != 0 {
            self.flag(section, format!("ITS{its}: pINTID {intid} is not an LPI in the range of GICD_TYPER.IDbits"));
            return Outcome::Done;
        }
        let Some(rd) = self.collection(its, section, collection) else { return Outcome::Done };
        // Several events may be mapped to one LPI, but only on one redistributor.
        if let Some((other, d, e)) = self.event_with_lpi(intid)
            && (other, d, e) != (its, device, event)
            && self.lpi_home(other, d, e) != Some(rd)
        {
            self.flag(
                section,
                format!("ITS{its}: LPI {intid} has another redistributor by event {e} of device {d:#x} on ITS{other}"),
            );
        }
        if !self.map(its, section, device, event, Ite::Physical { intid, collection }) {
            return Outcome::Done;
        }
        self.cache_early(rd, intid);
        self.defer(its, &[Target::Rd(rd)], Item::Event { its, device, event });
        Outcome::Done
    }

    /// Returns the ITS, device and event of a mapping to this LPI.
    pub(crate) fn event_with_lpi(&self, lpi: u32) -> Option<(usize, u32, u32)> {
        self.its.iter().enumerate().find_map(|(n, i)| {
            i.devices.iter().find_map(|(d, dev)| {
                let hit = |ite: &Ite| matches!(ite, Ite::Physical { intid, .. } if *intid == lpi);
                dev.events.iter().find(|(_, ite)| hit(ite)).map(|(e, _)| (n, *d, *e))
            })
        })
    }

    /// Returns the redistributor to which a physical event is mapped.
    fn lpi_home(&self, its: usize, device: u32, event: u32) -> Option<usize> {
        match self.its[its].devices.get(&device)?.events.get(&event)? {
            Ite::Physical { collection, .. } => self.its[its].collections.get(collection).copied(),
            Ite::Virtual { .. } => None,
        }
    }

    /// Caches the configuration of an LPI, which a redistributor may do as soon as the LPI is mapped.
    fn cache_early(&mut self, rd: usize, intid: u32) {
        let r = &self.rds[rd];
        let covered = u64::from(intid) >> ((r.propbaser & 0x1f) + 1) == 0;
        if r.enable_lpis && covered && self.eager_cache() {
            self.lpi_config(rd, intid);
        }
    }

    fn movi(&mut self, its: usize, section: &'static str, device: u32, event: u32, collection: u16) {
        let Some(ite) = self.mapped(its, section, device, event) else { return };
        let Ite::Physical { intid, collection: old } = ite else {
            return self
                .flag(section, format!("ITS{its}: event {event} of device {device:#x} is mapped to a virtual LPI"));
        };
        let (Some(from), Some(to)) = (self.collection(its, section, old), self.collection(its, section, collection))
        else {
            return;
        };
        self.remap(its, device, event, Ite::Physical { intid, collection });
        if from != to && self.clear_lpi(from, intid) {
            self.set_lpi(to, intid, "MOVI");
        }
        self.cache_early(to, intid);
        self.defer(its, &[Target::Rd(from), Target::Rd(to)], Item::Event { its, device, event });
    }

    fn movall(&mut self, its: usize, section: &'static str, from: u64, to: u64) {
        let (Some(from), Some(to)) = (self.target(its, from), self.target(its, to)) else {
            return self.flag(section, format!("ITS{its}: RDbase {from:#x} or {to:#x} names no redistributor"));
        };
        if from == to {
            return;
        }
        for intid in self.rds[from].pending.clone() {
            self.clear_lpi(from, intid);
            self.set_lpi(to, intid, "MOVALL");
        }
    }

    fn discard(&mut self, its: usize, section: &'static str, device: u32, event: u32) {
        let Some(ite) = self.mapped(its, section, device, event) else { return };
        let entry = u64::from(self.cfg.its[its].itt_entry_size);
        let item = Item::Event { its, device, event };
        match ite {
            Ite::Physical { intid, collection } => {
                let Some(rd) = self.collection(its, section, collection) else { return };
                self.clear_lpi(rd, intid);
                self.forget(its, device, event, entry);
                self.defer(its, &[Target::Rd(rd)], item);
                self.defer(its, &[Target::Rd(rd)], Item::Clear { rd, intid });
            }
            Ite::Virtual { vpe, vintid, .. } => {
                let Some(vte) = self.vte(its, section, vpe) else { return };
                self.forget(its, device, event, entry);
                self.defer(its, &[Target::Vpe(vpe)], item);
                if !self.its[its].discard_keeps_pending {
                    self.clear_vlpi(vte.vpt, vintid);
                    self.defer(its, &[Target::Vpe(vpe)], Item::VClear { vpt: vte.vpt, intid: vintid });
                }
            }
        }
    }

    /// Removes a translation from the ITT.
    fn forget(&mut self, its: usize, device: u32, event: u32, entry: u64) {
        if let Some(d) = self.its[its].devices.get_mut(&device) {
            d.events.remove(&event);
            let itt = d.itt;
            self.mark_ite(its, itt + u64::from(event) * entry, false);
        }
    }

    /// Records a violation if stores to a configuration byte are not published when its INV is executed.
    pub(crate) fn check_config_published(&mut self, section: &'static str, rd: usize, intid: u32) {
        let prop = self.rds[rd].propbaser;
        let at = (prop & 0x000f_ffff_ffff_f000) + u64::from(intid - LPI);
        if self.rds[rd].enable_lpis {
            let (_, trouble) = self.mem.device_read8(at, crate::redist::snoop(prop >> 10));
            self.flag_memory(section, &format!("the configuration byte of LPI {intid}"), at, trouble);
        }
    }
}
