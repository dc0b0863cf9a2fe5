//! Device, collection and vPE tables in memory (IHI 0069, 5.2).
//!
//! The contents of entries are in the model's own structures, since their format is IMPLEMENTATION DEFINED. The memory
//! is still read and written as an ITS does: a first level must refer to an allocated, zeroed and published second
//! level, and an entry in use is not zero, so that a table which is given to the GIC twice or not cleared is noticed.

use super::Latched;
use crate::config::TableKind;
use crate::machine::State;
use crate::memory::{Snoop, Trouble, Use};
use crate::redist::snoop;
use std::fmt;

/// Layout of a table of one or two levels, from its base register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    pub(crate) page: u64,
    pub(crate) entry: u64,
    pub(crate) indirect: bool,
    pub(crate) how: Snoop,
}

/// Result of looking up an entry.
pub(crate) enum Slot {
    At { address: u64, level2: Option<u64> },
    Beyond,
    NoLevel2 { level1: u64 },
    Broken { level1: u64, trouble: Trouble },
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.indirect { "indirect" } else { "flat" };
        write!(f, "{:#x} ({kind}, {} pages of {} KiB)", self.base, self.bytes / self.page, self.page / 1024)
    }
}

impl Geometry {
    /// What must be equal in the registers of all that share a table.
    pub(crate) fn shape(&self) -> (u64, u64, u64, bool) {
        (self.base, self.bytes, self.page, self.indirect)
    }

    pub(crate) fn page_size(code: u64) -> u64 {
        4096 << (2 * code.min(2))
    }

    pub(crate) fn of_baser(latched: Latched, entry: u32) -> Geometry {
        let v = latched.value;
        let page = Geometry::page_size((v >> 8) & 3);
        let base = if page == 0x1_0000 {
            (v & 0x0000_ffff_ffff_0000) | ((v >> 12) & 0xf) << 48
        } else {
            v & 0x0000_ffff_ffff_f000
        };
        Geometry {
            base,
            bytes: ((v & 0xff) + 1) * page,
            page,
            entry: entry.into(),
            indirect: v >> 62 & 1 == 1,
            how: snoop(v >> 10),
        }
    }
}

impl State {
    /// Looks up an entry of a table. Reads the first level as the GIC does.
    pub(crate) fn slot(&self, g: Geometry, index: u64) -> Slot {
        if !g.indirect {
            let address = g.base + index * g.entry;
            return if (index + 1) * g.entry <= g.bytes { Slot::At { address, level2: None } } else { Slot::Beyond };
        }
        let per_page = g.page / g.entry;
        let level1 = g.base + index / per_page * 8;
        if level1 + 8 > g.base + g.bytes {
            return Slot::Beyond;
        }
        let (entry, trouble) = self.mem.device_read64(level1, g.how);
        if let Some(trouble) = trouble {
            return Slot::Broken { level1, trouble };
        }
        if entry >> 63 == 0 {
            return Slot::NoLevel2 { level1 };
        }
        let level2 = entry & 0x000f_ffff_ffff_f000 & !(g.page - 1);
        Slot::At { address: level2 + index % per_page * g.entry, level2: Some(level2) }
    }

    pub(crate) fn geometry(&self, its: usize, kind: TableKind) -> Option<(usize, Geometry)> {
        (0..8).find_map(|n| {
            let b = self.cfg.its[its].basers.get(n)?.as_ref()?;
            let latched = self.its[its].latched[n]?;
            (b.kind == kind).then(|| (n, Geometry::of_baser(latched, b.entry_size)))
        })
    }

    /// Removes all mappings that were in a table, since the ITS was enabled with another one.
    pub(crate) fn forget_table(&mut self, its: usize, n: usize) {
        let hcc = u16::from(self.cfg.its[its].hcc);
        let i = &mut self.its[its];
        match self.cfg.its[its].basers.get(n).and_then(|b| b.as_ref()).map(|b| b.kind) {
            Some(TableKind::Device) => {
                i.devices.clear();
                i.live_events.clear();
                self.mem.detach_all(|u| matches!(u, Use::Itt(of, _) if of == its));
            }
            Some(TableKind::Collection) => {
                i.collections.retain(|c, _| *c < hcc);
                i.live_collections.retain(|c, _| *c < hcc);
            }
            Some(TableKind::Vpe) => {
                i.live_vpes.clear();
                for (vpe, vte) in std::mem::take(&mut i.vpes) {
                    if let Some(v) = self.vpes.get_mut(&vpe) {
                        v.mapped.remove(&its);
                    }
                    self.release_vpt(vte.vpt);
                }
            }
            None => {}
        }
    }

    /// Checks a table when the ITS is enabled. `same`: the ITS had this table before it was disabled.
    pub(crate) fn check_table(&mut self, its: usize, n: usize, same: bool) {
        const SECTION: &str = "12.19 GITS_BASER<n>";
        let (Some(Some(b)), Some(latched)) = (self.cfg.its[its].basers.get(n), self.its[its].latched[n]) else {
            return;
        };
        let kind = b.kind;
        let g = Geometry::of_baser(latched, b.entry_size);
        if !g.base.is_multiple_of(g.page) {
            self.flag(
                SECTION,
                format!("GITS_BASER{n} of ITS{its}: table {:#x} is not aligned to the page size", g.base),
            );
        }
        // GICv4.1 vPE tables may be shared. A table in use was checked for its first user and has entries now.
        let shared = kind == TableKind::Vpe && self.vpe_table_in_use(g.base);
        if !shared && !same {
            let trouble = self.mem.device_zero(g.base, g.bytes, g.how);
            self.flag_memory(SECTION, &format!("the table of GITS_BASER{n} of ITS{its}"), g.base, trouble);
        }
        let usage = if g.indirect { Use::Level1(its, n) } else { Use::Table(its, n) };
        if !shared && let Some(other) = self.mem.clash(g.base, g.bytes, usage) {
            self.flag(SECTION, format!("the table of GITS_BASER{n} of ITS{its} at {:#x} overlaps {other}", g.base));
        }
        self.mem.attach_once(g.base, g.bytes, usage);
    }

    /// Writes an entry. On `Err(())` the violation is recorded and the command must be ignored.
    pub(crate) fn write_entry(
        &mut self,
        its: usize,
        section: &'static str,
        kind: TableKind,
        index: u64,
        valid: bool,
    ) -> Result<(), ()> {
        let name = match kind {
            TableKind::Device => "DeviceID",
            TableKind::Vpe => "vPEID",
            TableKind::Collection => "ICID",
        };
        if kind == TableKind::Collection && index < self.cfg.its[its].hcc.into() {
            return Ok(());
        }
        let Some((n, g)) = self.geometry(its, kind) else {
            self.flag(section, format!("ITS{its}: no valid GITS_BASER<n> for the table entry of {name} {index:#x}"));
            return Err(());
        };
        // The first collections are held in the ITS. The table has the others.
        let at = if kind == TableKind::Collection { index - u64::from(self.cfg.its[its].hcc) } else { index };
        match self.slot(g, at) {
            Slot::At { address, level2 } => {
                if let Some(page) = level2 {
                    self.use_level2(section, page, g, Use::Level2(its, n));
                }
                let mark = [if valid { 0xff } else { 0 }; 1];
                if let Some(trouble) = self.mem.device_write(address, &mark, g.how) {
                    self.flag_memory(section, &format!("the table entry of {name} {index:#x}"), address, Some(trouble));
                    return Err(());
                }
                Ok(())
            }
            Slot::Beyond => {
                self.flag(section, format!("ITS{its}: {name} {index:#x} is beyond the table of GITS_BASER{n}"));
                Err(())
            }
            Slot::NoLevel2 { level1 } => {
                self.flag(
                    section,
                    format!(
                        "ITS{its}: {name} {index:#x} has no second-level page in the first-level entry at {level1:#x}"
                    ),
                );
                Err(())
            }
            Slot::Broken { level1, trouble } => {
                self.flag_memory(section, "the first-level entry", level1, Some(trouble));
                Err(())
            }
        }
    }

    /// Checks a second-level page at its first use.
    pub(crate) fn use_level2(&mut self, section: &'static str, page: u64, g: Geometry, usage: Use) {
        if self.mem.used_by(page, g.page).is_none() {
            let trouble = self.mem.device_zero(page, g.page, g.how);
            self.flag_memory(section, "the second-level page", page, trouble);
        }
        self.mem.attach_once(page, g.page, usage);
    }
}
