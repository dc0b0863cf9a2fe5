//! Virtual commands of GICv4.0 and GICv4.1 (IHI 0069, 5.3).

use super::command::{Command, Dialect, Vmapp41};
use super::queue::Outcome;
use super::{Ite, Item, Target, Vte};
use crate::config::TableKind;
use crate::machine::State;
use crate::memory::{Snoop, Use};
use crate::redist::LPI;
use crate::vlpi::NONE;
use crate::vpe::{GROUPS, Sgi, Vpe};
use std::collections::BTreeSet;

/// Fields of a VMAPP with V = 1.
struct Mapping {
    vpe: u16,
    target: u64,
    vpt: u64,
    size: u8,
    v4_1: Option<Vmapp41>,
}

impl State {
    /// Executes a virtual command.
    pub(crate) fn virtual_command(&mut self, its: usize, command: Command) -> Outcome {
        let section = command.section();
        let v4_1 = self.dialect(its) == Dialect::V4_1;
        match command {
            Command::Vmapp { vpe, target, valid: true, vpt, size, v4_1 } => {
                return self.vmapp(its, section, Mapping { vpe, target, vpt, size, v4_1 });
            }
            Command::Vmapp { vpe, v4_1, .. } => return self.vunmapp(its, section, vpe, v4_1),
            Command::Vmapti { device, event, vpe, vintid, doorbell } => {
                self.vmapti(its, section, device, event, Ite::Virtual { vpe, vintid, doorbell });
            }
            Command::Vmapi { device, event, vpe, doorbell } => {
                self.vmapti(its, section, device, event, Ite::Virtual { vpe, vintid: event, doorbell });
            }
            Command::Vmovi { device, event, vpe, doorbell } => self.vmovi(its, section, device, event, vpe, doorbell),
            Command::Vmovp { .. } => self.vmovp(its, section, command),
            Command::Vsync { vpe } => {
                if v4_1 && !self.its[its].vpes.contains_key(&vpe) {
                    self.flag(
                        section,
                        format!("ITS{its}: vPE {vpe} is not mapped, which may raise an SError on GICv4.1"),
                    );
                } else {
                    self.synchronise(its, Target::Vpe(vpe));
                }
            }
            Command::Vinvall { vpe } => {
                if let Some(vte) = self.vte(its, section, vpe) {
                    self.defer(its, &[Target::Vpe(vpe)], Item::InvVlpis { vpt: vte.vpt });
                }
            }
            Command::Vsgi { vpe, sgi, enable, clear, group, priority } => {
                if !self.cfg.its[its].vsgi {
                    self.flag(section, format!("ITS{its}: VSGI, but GITS_TYPER.VSGI is 0"));
                } else if self.vte(its, section, vpe).is_none() {
                } else if clear {
                    self.defer(its, &[Target::Vpe(vpe)], Item::ClearSgi { vpe, sgi });
                } else {
                    self.defer(its, &[Target::Vpe(vpe)], Item::Sgi { vpe, sgi, enable, group, priority });
                }
            }
            Command::Invdb { vpe } => {
                if self.vte(its, section, vpe).is_some() {
                    if let Some((rd, doorbell)) = self
                        .vpes
                        .get(&vpe)
                        .map(|v| (v.rd, v.doorbell))
                        .filter(|(_, d)| *d != NONE && !self.bad_doorbell(*d))
                    {
                        self.check_config_published(section, rd, doorbell);
                    }
                    self.defer(its, &[Target::Vpe(vpe)], Item::InvDoorbell { vpe });
                }
            }
            _ => self.flag(section, format!("ITS{its}: the ITS does not implement {command:?}")),
        }
        Outcome::Done
    }

    /// Returns the vPE table entry of a vPE, or records a violation.
    pub(crate) fn vte(&mut self, its: usize, section: &'static str, vpe: u16) -> Option<Vte> {
        let found = self.its[its].vpes.get(&vpe).copied();
        if found.is_none() {
            self.flag(section, format!("ITS{its}: vPE {vpe} is not mapped"));
        }
        found
    }

    /// Returns the redistributor that RDbase names if it supports virtual LPIs, or records a violation.
    fn vtarget(&mut self, its: usize, section: &'static str, target: u64) -> Option<usize> {
        let found = self.target(its, target).filter(|rd| self.cfg.cpus[*rd].vlpis);
        if found.is_none() {
            self.flag(section, format!("ITS{its}: RDbase {target:#x} names no redistributor with virtual LPIs"));
        }
        found
    }

    /// Whether a doorbell is neither 1023 nor an LPI.
    fn bad_doorbell(&self, doorbell: u32) -> bool {
        doorbell != NONE && (doorbell < LPI || u64::from(doorbell) >> self.cfg.intid_bits != 0)
    }

    // ---- VMAPP

    fn vmapp(&mut self, its: usize, section: &'static str, m: Mapping) -> Outcome {
        let (vpe, vpt, bits) = (m.vpe, m.vpt, u32::from(m.size) + 1);
        if self.cfg.vpeid_bits.is_some_and(|b| u32::from(vpe) >> b != 0) {
            self.flag(section, format!("ITS{its}: vPEID {vpe} is beyond GICD_TYPER2.VID"));
            return Outcome::Done;
        }
        let Some(rd) = self.vtarget(its, section, m.target) else { return Outcome::Done };
        if self.its[its].vpes.contains_key(&vpe) {
            self.flag(section, format!("ITS{its}: vPE {vpe} is already mapped"));
            return Outcome::Done;
        }
        if !(14..=self.cfg.intid_bits).contains(&bits) {
            self.flag(section, format!("ITS{its}: vPE {vpe} has {bits} vINTID bits, not 14 to GICD_TYPER.IDbits"));
            return Outcome::Done;
        }
        for other in 0..self.its.len() {
            for (id, v) in self.its[other].vpes.clone() {
                if id == vpe && v != (Vte { rd, vpt, bits }) {
                    self.flag(
                        section,
                        format!(
                            "ITS{its}: vPE {vpe} is mapped with another redistributor, VPT or size than on ITS{other}"
                        ),
                    );
                } else if id != vpe && v.vpt == vpt {
                    self.flag(section, format!("ITS{its}: vPE {vpe} is mapped with the VPT at {vpt:#x} of vPE {id}"));
                }
            }
        }
        if let Some(holder) = self.holder(vpt).filter(|holder| *holder != rd) {
            self.flag(section, format!("ITS{its}: vPE {vpe} mapped to CPU{rd} while it is resident on CPU{holder}"));
        }
        if std::mem::take(&mut self.its[its].table_write_fails) {
            return Outcome::Stall;
        }
        if self.write_entry(its, section, TableKind::Vpe, vpe.into(), true).is_err() {
            return Outcome::Done;
        }
        let how = if self.cfg.cpus[rd].shareable { Snoop::Yes } else { Snoop::No };
        if let Some(extra) = m.v4_1 {
            if !self.reaches_vpe(section, rd, vpe) {
                return Outcome::Done;
            }
            self.vmapp_v4_1(its, section, vpe, Vte { rd, vpt, bits }, extra);
        }
        let ptz = m.v4_1.is_some_and(|extra| extra.ptz && extra.alloc);
        self.take_vpt(section, vpt, bits, how, ptz);
        self.its[its].vpes.insert(vpe, Vte { rd, vpt, bits });
        self.its[its].moving.insert(vpe);
        self.defer(its, &[Target::Vpe(vpe)], Item::Home { its, vpe });
        Outcome::Done
    }

    fn vmapp_v4_1(&mut self, its: usize, section: &'static str, vpe: u16, vte: Vte, extra: Vmapp41) {
        let first = !self.vpes.contains_key(&vpe);
        if extra.alloc != first {
            let which = if first { "the first" } else { "not the first" };
            self.flag(section, format!("ITS{its}: Alloc = {} on {which} mapping of vPE {vpe}", u8::from(extra.alloc)));
        }
        if self.bad_doorbell(extra.doorbell) {
            self.flag(
                section,
                format!("ITS{its}: default doorbell {} of vPE {vpe} is neither 1023 nor an LPI", extra.doorbell),
            );
        }
        if extra.ptz && !extra.alloc {
            self.flag(section, format!("ITS{its}: PTZ = 1 with Alloc = 0 for vPE {vpe}"));
        }
        let len = (1u64 << vte.bits) - u64::from(LPI);
        if !self.mem.is_allocated(extra.vconf, len) {
            self.flag(
                section,
                format!(
                    "ITS{its}: the configuration table of vPE {vpe} at {:#x} is not allocated memory throughout",
                    extra.vconf
                ),
            );
        }
        if first {
            self.mem.attach(extra.vconf, len, Use::VConfig);
            // Of an earlier use of this VPT only the cached configuration is left, which VINVALL removes.
            self.vpes.insert(
                vpe,
                Vpe {
                    vpt: vte.vpt,
                    bits: vte.bits,
                    vconf: extra.vconf,
                    doorbell: extra.doorbell,
                    rd: vte.rd,
                    mapped: BTreeSet::new(),
                    armed: false,
                    groups: GROUPS,
                    sgis: [Sgi::default(); 16],
                },
            );
        }
        if let Some(v) = self.vpes.get_mut(&vpe) {
            let same = (v.vconf, v.doorbell, v.bits) == (extra.vconf, extra.doorbell, vte.bits);
            v.mapped.insert(its);
            if !same {
                self.flag(
                    section,
                    format!(
                        "ITS{its}: vPE {vpe} is mapped with another configuration table, size or doorbell than before"
                    ),
                );
            }
        }
        if self.eager_cache()
            && self.rds[vte.rd].enable_lpis
            && extra.doorbell != NONE
            && !self.bad_doorbell(extra.doorbell)
        {
            self.lpi_config(vte.rd, extra.doorbell);
        }
    }

    fn vunmapp(&mut self, its: usize, section: &'static str, vpe: u16, v4_1: Option<Vmapp41>) -> Outcome {
        let Some(vte) = self.vte(its, section, vpe) else { return Outcome::Done };
        // Where vPEs are mapped only on the ITSs that need them, a vPE may be resident while it is unmapped on one ITS.
        let lazily = !self.cfg.its[its].vmovp && v4_1.is_none();
        if !lazily && let Some(rd) = self.holder(vte.vpt) {
            self.flag(section, format!("ITS{its}: vPE {vpe} unmapped while it is resident on CPU{rd}"));
        }
        let left = self.its[its]
            .devices
            .values()
            .flat_map(|d| d.events.values())
            .filter(|e| matches!(e, Ite::Virtual { vpe: v, .. } if *v == vpe))
            .count();
        if left != 0 && v4_1.is_none() {
            self.flag(section, format!("ITS{its}: vPE {vpe} unmapped while {left} events are mapped to it"));
        }
        if std::mem::take(&mut self.its[its].table_write_fails) {
            return Outcome::Stall;
        }
        if self.write_entry(its, section, TableKind::Vpe, vpe.into(), false).is_err() {
            return Outcome::Done;
        }
        self.its[its].vpes.remove(&vpe);
        self.its[its].moving.remove(&vpe);
        let Some(extra) = v4_1 else {
            self.defer(its, &[Target::Vpe(vpe)], Item::Home { its, vpe });
            self.defer(its, &[Target::Vpe(vpe)], Item::Release { vpt: vte.vpt });
            return Outcome::Done;
        };
        // On GICv4.1 the effects of the command are complete when it is consumed.
        self.synchronise(its, Target::Vpe(vpe));
        self.apply(Item::Home { its, vpe });
        let last = match self.vpes.get_mut(&vpe) {
            Some(v) => {
                v.mapped.remove(&its);
                v.mapped.is_empty()
            }
            None => true,
        };
        if extra.alloc != last {
            let which = if last { "the last" } else { "not the last" };
            self.flag(
                section,
                format!("ITS{its}: Alloc = {} on {which} unmapping of vPE {vpe}", u8::from(extra.alloc)),
            );
        }
        if last && let Some(v) = self.vpes.remove(&vpe) {
            self.mem.detach(v.vconf, Use::VConfig);
            if let Some(t) = self.vpts.get_mut(&v.vpt).filter(|_| !self.cfg.unmapping_keeps_cache) {
                t.config.clear();
            }
            self.release_vpt(v.vpt);
        }
        Outcome::Done
    }

    // ---- events

    fn vmapti(&mut self, its: usize, section: &'static str, device: u32, event: u32, ite: Ite) {
        let Ite::Virtual { vpe, vintid, doorbell } = ite else { return };
        let Some(vte) = self.vte(its, section, vpe) else { return };
        if vintid < LPI || u64::from(vintid) >> vte.bits != 0 {
            return self.flag(
                section,
                format!("ITS{its}: vINTID {vintid} is not a vLPI in the {} vINTID bits of vPE {vpe}", vte.bits),
            );
        }
        if self.bad_doorbell(doorbell) {
            return self.flag(section, format!("ITS{its}: doorbell {doorbell} is neither 1023 nor an LPI"));
        }
        if doorbell != NONE && self.dialect(its) == Dialect::V4_1 {
            return self.flag(
                section,
                format!("ITS{its}: individual doorbell {doorbell} on GICv4.1, which has only default doorbells"),
            );
        }
        if self.map(its, section, device, event, ite) {
            self.vcache_early(vte.vpt, vintid);
            self.defer(its, &[Target::Vpe(vpe)], Item::Event { its, device, event });
        }
    }

    /// Caches the configuration of a vLPI, which a redistributor may do as soon as the vLPI is mapped.
    fn vcache_early(&mut self, vpt: u64, vintid: u32) {
        if self.eager_cache() {
            self.vlpi_config(vpt, vintid);
        }
    }

    fn vmovi(&mut self, its: usize, section: &'static str, device: u32, event: u32, vpe: u16, doorbell: Option<u32>) {
        let Some(ite) = self.mapped(its, section, device, event) else { return };
        let Ite::Virtual { vpe: old, vintid, doorbell: old_doorbell } = ite else {
            return self
                .flag(section, format!("ITS{its}: event {event} of device {device:#x} is mapped to a physical LPI"));
        };
        let (Some(from), Some(to)) = (self.vte(its, section, old), self.vte(its, section, vpe)) else { return };
        if doorbell.is_some() && self.dialect(its) == Dialect::V4_1 {
            return self.flag(section, format!("ITS{its}: D = 1 on GICv4.1, which has only default doorbells"));
        }
        let new_doorbell = doorbell.unwrap_or(old_doorbell);
        if self.bad_doorbell(new_doorbell) {
            return self.flag(section, format!("ITS{its}: doorbell {new_doorbell} is neither 1023 nor an LPI"));
        }
        if u64::from(vintid) >> to.bits != 0 {
            return self.flag(
                section,
                format!("ITS{its}: vINTID {vintid} is beyond the {} vINTID bits of vPE {vpe}", to.bits),
            );
        }
        self.remap(its, device, event, Ite::Virtual { vpe, vintid, doorbell: new_doorbell });
        if vpe != old && self.clear_vlpi(from.vpt, vintid) {
            self.set_vlpi(vpe, to, vintid, new_doorbell);
        }
        self.vcache_early(to.vpt, vintid);
        self.defer(its, &[Target::Vpe(old), Target::Vpe(vpe)], Item::Event { its, device, event });
    }

    // ---- VMOVP

    /// Moves a vPE for this ITS or, where GITS_TYPER.VMOVP is 1, for all ITSs.
    fn vmovp(&mut self, its: usize, section: &'static str, command: Command) {
        let Command::Vmovp { sequence, list, vpe, target, doorbell } = command else { return };
        let single = self.cfg.its[its].vmovp;
        if single && (sequence, list) != (0, 0) {
            self.flag(
                section,
                format!(
                    "ITS{its}: SequenceNumber {sequence} and ITSList {list:#x}, which are RES0 if GITS_TYPER.VMOVP is 1"
                ),
            );
        }
        let Some(vte) = self.vte(its, section, vpe) else { return };
        let Some(rd) = self.vtarget(its, section, target) else { return };
        if let Some(holder) = self.holder(vte.vpt) {
            self.flag(section, format!("ITS{its}: vPE {vpe} moved while it is resident on CPU{holder}"));
        }
        let peers: Vec<usize> = (0..self.its.len()).filter(|o| self.its[*o].vpes.contains_key(&vpe)).collect();
        if !single {
            // Each ITS in the list gets the command. Only one of them records what is wrong with the list.
            let reports = peers.iter().find(|o| self.its[**o].enabled) == Some(&its);
            for other in (0..self.its.len()).filter(|_| reports) {
                let listed = list >> self.its[other].number & 1 == 1;
                let has = peers.contains(&other);
                // A disabled ITS executes no commands and translates no MSIs, so it need not be listed while it is.
                let must_have = has && self.its[other].enabled;
                if listed && !has {
                    self.flag(
                        section,
                        format!("ITS{its}: ITSList {list:#x} lists ITS{other}, where vPE {vpe} is not mapped"),
                    );
                } else if !listed && must_have {
                    self.flag(
                        section,
                        format!("ITS{its}: ITSList {list:#x} does not list ITS{other}, where vPE {vpe} is mapped"),
                    );
                }
            }
        }
        if self.dialect(its) == Dialect::V4_1 && !self.vmovp_v4_1(its, section, vpe, rd, doorbell) {
            return;
        }
        let moved = if single { peers } else { vec![its] };
        for other in moved {
            if let Some(v) = self.its[other].vpes.get_mut(&vpe) {
                v.rd = rd;
            }
            self.its[other].moving.insert(vpe);
            self.defer(its, &[Target::Vpe(vpe)], Item::Home { its: other, vpe });
        }
    }

    fn vmovp_v4_1(&mut self, its: usize, section: &'static str, vpe: u16, rd: usize, doorbell: Option<u32>) -> bool {
        if !self.reaches_vpe(section, rd, vpe) {
            return false;
        }
        let Some((old, known)) = self.vpes.get(&vpe).map(|v| (v.rd, v.doorbell)) else { return true };
        if let Some(v) = self.vpes.get_mut(&vpe) {
            v.rd = rd;
        }
        if let Some(doorbell) = doorbell {
            if doorbell != known {
                self.flag(
                    section,
                    format!("ITS{its}: default doorbell {doorbell} for vPE {vpe}, which is mapped with {known}"),
                );
            } else if old != rd && known != NONE && self.clear_lpi(old, known) {
                self.set_lpi(rd, known, "VMOVP");
            }
        }
        true
    }
}
