//! The Distributor (IHI 0069, 12.8 and 12.9): identification, the group enables that LPIs depend on, and storage for
//! everything else.
//!
//! SPIs are not delivered. Their registers hold what is written, and set and clear registers work as such, so that
//! bring-up code runs.

use crate::machine::State;
use std::collections::HashMap;

const SECTION: &str = "12.9 GICD";

/// GICD_CTLR.nASSGIreq.
const NASSGIREQ: u32 = 1 << 8;

#[derive(Default)]
pub(crate) struct Dist {
    ctlr: u32,
    rwp_until: u64,
    words: HashMap<u64, u32>,
}

/// Where a register that only holds what is written is stored, and how a write changes it.
pub(crate) enum Cell {
    /// A write replaces the word at this offset.
    Plain(u64),
    /// A write sets bits of the word at this offset.
    Set(u64),
    /// A write clears bits of the word at this offset.
    Clear(u64),
    /// The register is reserved.
    None,
}

/// Returns the storage of a register at an offset that means the same in the Distributor and in the SGI frame of a
/// redistributor.
pub(crate) fn cell(offset: u64) -> Cell {
    match offset {
        0x080..0x100 | 0x400..0x800 | 0xc00..0xd00 | 0xd00..0xd80 | 0xe00..0xf00 => Cell::Plain(offset),
        0x100..0x180 | 0x200..0x280 | 0x300..0x380 => Cell::Set(offset),
        0x180..0x200 | 0x280..0x300 | 0x380..0x400 => Cell::Clear(offset - 0x80),
        _ => Cell::None,
    }
}

pub(crate) fn cell_write(words: &mut HashMap<u64, u32>, cell: Cell, value: u32) {
    match cell {
        Cell::Plain(at) => {
            words.insert(at, value);
        }
        Cell::Set(at) => *words.entry(at).or_default() |= value,
        Cell::Clear(at) => *words.entry(at).or_default() &= !value,
        Cell::None => {}
    }
}

impl State {
    pub(crate) fn dist_offset(&self, at: u64) -> Option<u64> {
        at.checked_sub(self.cfg.gicd).filter(|o| *o < 0x1_0000)
    }

    /// Whether Group 1 interrupts of the software's Security state are forwarded to the CPU interfaces.
    pub(crate) fn group1_enabled(&self) -> bool {
        self.dist.ctlr & 2 != 0
    }

    /// Whether SGIs without active state can be chosen.
    fn has_nassgi(&self) -> bool {
        self.cfg.nassgicap && self.cfg.ds
    }

    fn typer(&self) -> u32 {
        let c = &self.cfg;
        let virtual_lpis = c.its.iter().any(|i| i.virtual_lpis);
        c.it_lines
            | c.num_lpis << 11
            | 1 << 17
            | u32::from(virtual_lpis) << 18
            | (c.intid_bits - 1) << 19
            | 1 << 24
            | 1 << 25
    }

    pub(crate) fn dist_read(&mut self, offset: u64, wide: bool) -> u64 {
        if (0x6000..0x8000).contains(&offset) {
            let word = |o: u64| u64::from(self.dist.words.get(&o).copied().unwrap_or(0));
            return word(offset) | if wide { word(offset + 4) << 32 } else { 0 };
        }
        if !self.narrow_only(SECTION, offset, wide) {
            return 0;
        }
        let value = match offset {
            0x0 => {
                let rwp = u32::from(self.now < self.dist.rwp_until) << 31;
                self.dist.ctlr | 1 << 4 | u32::from(self.cfg.ds) << 6 | rwp
            }
            0x4 => self.typer(),
            0x8 => self.cfg.iidr,
            0xc => {
                let vpeid = self.cfg.vpeid_bits.map_or(0, |bits| 1 << 7 | (bits - 1));
                u32::from(self.has_nassgi()) << 8 | vpeid
            }
            0xffe8 => self.arch_rev(),
            _ => match cell(offset) {
                Cell::Plain(at) | Cell::Set(at) | Cell::Clear(at) => self.dist.words.get(&at).copied().unwrap_or(0),
                Cell::None => 0,
            },
        };
        value.into()
    }

    /// Value of PIDR2, with ArchRev 3 or 4.
    pub(crate) fn arch_rev(&self) -> u32 {
        if self.cfg.version == crate::config::Version::V3 { 0x3b } else { 0x4b }
    }

    pub(crate) fn dist_write(&mut self, offset: u64, value: u64, wide: bool) {
        if (0x6000..0x8000).contains(&offset) {
            self.dist.words.insert(offset, value as u32);
            if wide {
                self.dist.words.insert(offset + 4, (value >> 32) as u32);
            }
            return;
        }
        if !self.narrow_only(SECTION, offset, wide) {
            return;
        }
        let value = value as u32;
        match offset {
            0x0 => {
                if self.now < self.dist.rwp_until {
                    self.flag("12.9 GICD_CTLR", "GICD_CTLR written while RWP is 1");
                }
                let writable = if self.cfg.ds { 0x3 } else { 0x2 } | u32::from(self.has_nassgi()) << 8;
                let old = self.dist.ctlr;
                self.dist.ctlr = value & writable;
                if (old ^ self.dist.ctlr) & NASSGIREQ != 0 && old & 3 != 0 {
                    self.flag("12.9 GICD_CTLR", "GICD_CTLR.nASSGIreq changed while a group is enabled");
                    self.dist.ctlr ^= NASSGIREQ;
                }
                if old & !self.dist.ctlr & 3 != 0 {
                    self.dist.rwp_until = self.now + self.cfg.timing.rwp;
                }
            }
            _ => cell_write(&mut self.dist.words, cell(offset), value),
        }
    }
}
