//! Interrupt Translation Services: state, translation of MSIs, and changes that wait for a SYNC or VSYNC.
//!
//! An ITS has each mapping twice. Commands read and write the *architectural* state, in queue order. MSIs use the
//! *live* state. A command changes the architectural state at once and leaves an [`Item`] that will update the live
//! state. The item waits for a SYNC or VSYNC that covers it. If a driver forgets that, its MSIs are translated by the
//! old tables, as they may be on a real ITS.
//!
//! | file | contents |
//! |---|---|
//! | `regs.rs` | the control, translation and virtual frames |
//! | `command.rs` | decoding of the 32 bytes of a command |
//! | `queue.rs` | consumption of the queue: delays, stalls, VMOVPs that several ITSs execute together |
//! | `exec.rs` | physical commands |
//! | `vexec.rs` | virtual commands |
//! | `tables.rs` | device, collection and vPE tables in memory |

pub mod command;
mod exec;
mod queue;
mod regs;
mod tables;
mod vexec;

pub(crate) use regs::page_code;
pub(crate) use tables::{Geometry, Slot};

use crate::config;
use crate::machine::State;
use command::Command;
use std::collections::{BTreeMap, BTreeSet};

/// The translation of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ite {
    Physical { intid: u32, collection: u16 },
    Virtual { vpe: u16, vintid: u32, doorbell: u32 },
}

/// A device that is mapped by MAPD.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) itt: u64,
    /// Number of EventID bits.
    pub(crate) bits: u32,
    pub(crate) events: BTreeMap<u32, Ite>,
}

/// Entry of one ITS's vPE table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vte {
    pub(crate) rd: usize,
    pub(crate) vpt: u64,
    /// Number of vINTID bits.
    pub(crate) bits: u32,
}

/// The redistributor or vPE that a SYNC or VSYNC synchronises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Rd(usize),
    Vpe(u16),
}

/// A change that takes effect with a synchronisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// The translation of an event.
    Event { its: usize, device: u32, event: u32 },
    /// The redistributor of a collection.
    Collection { its: usize, collection: u16 },
    /// The mapping of a vPE, with its redistributor.
    Home { its: usize, vpe: u16 },
    /// Invalidation of the cached configuration of a physical LPI.
    InvLpi { rd: usize, intid: u32 },
    /// Invalidation of the cached configuration of all physical LPIs of a redistributor.
    InvLpis { rd: usize },
    /// Invalidation of the cached configuration of a virtual LPI.
    InvVlpi { vpt: u64, intid: u32 },
    /// Invalidation of the cached configuration of all virtual LPIs of a vPE.
    InvVlpis { vpt: u64 },
    /// Removal of a pending physical LPI.
    Clear { rd: usize, intid: u32 },
    /// Removal of a pending virtual LPI.
    VClear { vpt: u64, intid: u32 },
    /// The end of the GIC's use of a VPT.
    Release { vpt: u64 },
    /// Invalidation of the cached configuration of a vPE's default doorbell.
    InvDoorbell { vpe: u16 },
    /// New configuration of a vSGI.
    Sgi { vpe: u16, sgi: u8, enable: bool, group: bool, priority: u8 },
    /// Removal of a pending vSGI.
    ClearSgi { vpe: u16, sgi: u8 },
}

/// Value of a `GITS_BASER<n>` at the time when GITS_CTLR.Enabled was set, which the ITS uses while it is enabled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latched {
    pub(crate) value: u64,
}

pub(crate) struct Its {
    pub(crate) enabled: bool,
    pub(crate) imde: bool,
    pub(crate) number: u8,
    pub(crate) quiescent_at: u64,
    pub(crate) cbaser: u64,
    pub(crate) cwriter: u64,
    pub(crate) creadr: u64,
    pub(crate) stalled: bool,
    pub(crate) basers: [u64; 8],
    pub(crate) latched: [Option<Latched>; 8],
    /// Time at which the command at CREADR is executed.
    pub(crate) due: Option<u64>,

    pub(crate) devices: BTreeMap<u32, Device>,
    pub(crate) collections: BTreeMap<u16, usize>,
    pub(crate) vpes: BTreeMap<u16, Vte>,

    pub(crate) live_events: BTreeMap<(u32, u32), Ite>,
    pub(crate) live_collections: BTreeMap<u16, usize>,
    pub(crate) live_vpes: BTreeMap<u16, Vte>,

    pub(crate) unsynced: Vec<(Vec<Target>, Item)>,
    /// vPEs with a VMAPP or VMOVP that no VSYNC has followed yet.
    pub(crate) moving: BTreeSet<u16>,
    pub(crate) history: Vec<Command>,
    /// Number of the VMOVP command for which a violation has been recorded already.
    pub(crate) reported: Option<u64>,

    // Faults; see faults.rs.
    pub(crate) plan: BTreeMap<usize, crate::faults::CommandFault>,
    pub(crate) late_until: u64,
    pub(crate) hung: bool,
    pub(crate) hangs_at_vmovp: bool,
    pub(crate) looks_full: bool,
    pub(crate) never_quiescent: bool,
    pub(crate) table_write_fails: bool,
    pub(crate) discard_keeps_pending: bool,
}

impl Its {
    pub(crate) fn new(cfg: &config::Its) -> Its {
        let mut its = Its {
            enabled: false,
            imde: cfg.virtual_lpis && cfg.imde_at_reset,
            number: match cfg.number {
                config::ItsNumber::Fixed(n) => n,
                _ => 0,
            },
            quiescent_at: 0,
            cbaser: 0,
            cwriter: 0,
            creadr: 0,
            stalled: false,
            basers: [0; 8],
            latched: [None; 8],
            due: None,
            devices: BTreeMap::new(),
            collections: BTreeMap::new(),
            vpes: BTreeMap::new(),
            live_events: BTreeMap::new(),
            live_collections: BTreeMap::new(),
            live_vpes: BTreeMap::new(),
            unsynced: Vec::new(),
            moving: BTreeSet::new(),
            history: Vec::new(),
            reported: None,
            plan: BTreeMap::new(),
            late_until: 0,
            hung: false,
            hangs_at_vmovp: false,
            looks_full: false,
            never_quiescent: false,
            table_write_fails: false,
            discard_keeps_pending: false,
        };
        its.enabled = cfg.enabled_at_reset;
        for n in 0..8 {
            // The manual leaves the page size at reset UNKNOWN. This is the largest, as on QEMU.
            its.basers[n] = Its::baser_readback(cfg, n, 3 << 8);
        }
        its
    }
}

impl State {
    pub(crate) fn its_offset(&self, at: u64) -> Option<(usize, u64)> {
        self.cfg.its.iter().enumerate().find_map(|(n, its)| {
            let size = if its.vsgi { 0x3_0000 } else { 0x2_0000 };
            at.checked_sub(its.base).filter(|o| *o < size).map(|o| (n, o))
        })
    }

    /// Defers a change until a synchronisation with any of `targets`.
    pub(crate) fn defer(&mut self, its: usize, targets: &[Target], item: Item) {
        if self.seen_early() {
            self.apply(item);
            if self.cfg.staleness == config::Staleness::Immediate {
                return;
            }
        }
        self.its[its].unsynced.push((targets.to_vec(), item));
    }

    /// Executes a SYNC or VSYNC: all changes that wait for it take effect.
    pub(crate) fn synchronise(&mut self, its: usize, target: Target) {
        let (done, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.its[its].unsynced).into_iter().partition(|(t, _)| t.contains(&target));
        self.its[its].unsynced = waiting;
        for (_, item) in done {
            self.apply(item);
        }
        if let Target::Vpe(vpe) = target {
            self.its[its].moving.remove(&vpe);
            if self.cfg.its[its].vmovp {
                // One VMOVP, and its VSYNC, is for all ITSs.
                for other in 0..self.its.len() {
                    if self.cfg.its[other].vmovp {
                        self.its[other].moving.remove(&vpe);
                    }
                }
            }
        }
    }

    /// Makes a change take effect everywhere.
    pub(crate) fn apply(&mut self, item: Item) {
        match item {
            Item::Event { its, device, event } => {
                let new = self.its[its].devices.get(&device).and_then(|d| d.events.get(&event)).copied();
                match new {
                    Some(ite) => self.its[its].live_events.insert((device, event), ite),
                    None => self.its[its].live_events.remove(&(device, event)),
                };
            }
            Item::Collection { its, collection } => {
                match self.its[its].collections.get(&collection).copied() {
                    Some(rd) => self.its[its].live_collections.insert(collection, rd),
                    None => self.its[its].live_collections.remove(&collection),
                };
            }
            Item::Home { its, vpe } => {
                match self.its[its].vpes.get(&vpe).copied() {
                    Some(vte) => self.its[its].live_vpes.insert(vpe, vte),
                    None => self.its[its].live_vpes.remove(&vpe),
                };
            }
            Item::InvLpi { rd, intid } => {
                self.rds[rd].config.remove(&intid);
                if self.rds[rd].enable_lpis && self.eager_cache() && self.is_table_lpi(rd, intid) {
                    self.lpi_config(rd, intid);
                }
            }
            Item::InvLpis { rd } => {
                let known: Vec<u32> = std::mem::take(&mut self.rds[rd].config).into_keys().collect();
                if self.rds[rd].enable_lpis && self.eager_cache() {
                    known.into_iter().for_each(|intid| {
                        self.lpi_config(rd, intid);
                    });
                }
            }
            Item::InvVlpi { vpt, intid } => self.invalidate_vlpi(vpt, Some(intid)),
            Item::InvVlpis { vpt } => self.invalidate_vlpi(vpt, None),
            // Commands take effect in order: an LPI that a later command has mapped again and made pending stays
            // pending.
            Item::Clear { rd, intid } => {
                if self.event_with_lpi(intid).is_none() {
                    self.clear_lpi(rd, intid);
                }
            }
            Item::VClear { vpt, intid } => {
                if !self.vlpi_mapped(vpt, intid) {
                    self.clear_vlpi(vpt, intid);
                }
            }
            Item::Release { vpt } => self.release_vpt(vpt),
            Item::InvDoorbell { vpe } => self.invalidate_doorbell(vpe),
            Item::ClearSgi { vpe, sgi } => self.clear_sgi(vpe, sgi),
            Item::Sgi { vpe, sgi, enable, group, priority } => self.configure_sgi(vpe, sgi, enable, group, priority),
        }
    }

    fn is_table_lpi(&self, rd: usize, intid: u32) -> bool {
        intid >= crate::redist::LPI && u64::from(intid) >> ((self.rds[rd].propbaser & 0x1f) + 1) == 0
    }

    /// Translates an MSI that has arrived.
    pub(crate) fn translate(&mut self, its: usize, device: u32, event: u32) {
        let what = || format!("MSI of device {device:#x}, event {event}, at ITS{its}");
        if !self.its[its].enabled {
            return self.drop_interrupt(what(), "GITS_CTLR.Enabled is 0");
        }
        match self.its[its].live_events.get(&(device, event)).copied() {
            None => self.drop_interrupt(what(), "no translation"),
            Some(Ite::Physical { intid, collection }) => {
                match self.its[its].live_collections.get(&collection).copied() {
                    None => self.drop_interrupt(what(), "collection not mapped"),
                    Some(rd) => self.set_lpi(rd, intid, "an MSI"),
                }
            }
            Some(Ite::Virtual { vpe, vintid, doorbell }) => match self.its[its].live_vpes.get(&vpe).copied() {
                None => self.drop_interrupt(what(), "vPE not mapped"),
                Some(vte) => self.set_vlpi(vpe, vte, vintid, doorbell),
            },
        }
    }
}
