//! Places for the BARs of functions that are given to domains.
//!
//! Where the firmware has placed BARs, they stay. Where nobody has (QEMU starts a kernel without firmware), those of
//! functions on the root bus are placed here, from the end of the host's windows downwards, so that what is left to dom0
//! is in one piece. dom0 then numbers the buses and places its own functions, so a function behind a bridge that has no
//! windows yet cannot be given away: nothing would lead to its BARs.
//!
//! Stage 2 maps pages, so a BAR takes whole pages from the beginning of one, and a page with a BAR of a function that is
//! given away holds nothing of another. A BAR that the firmware has placed otherwise is moved if it is on the root bus, and
//! refused behind a bridge.

use super::ConfigSpace;
use super::function::{Bar, Facts, Kind, Space, bar_at};
use super::regs::*;
use super::topology::{Buses, bridges_above};
use crate::ids::Pa;
use crate::platform::{PciHost, PciWindow, PciWindowKind};
use crate::util::PAGE;
use crate::util::range::{Range, pages_around};
use alloc::vec::Vec;
use core::fmt;

/// Where the BARs of a function are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// The function's requester ID.
    pub rid: u16,
    /// The CPU addresses of its memory BARs: whole pages.
    pub bars: [Option<Range>; BAR_COUNT],
}

/// Why a BAR has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It is behind a bridge that does not lead to it: the firmware has given the bridge no window for it.
    NoWindow,
    /// It is behind a bridge, and the firmware has put it into a page with something else, or not at the beginning of one.
    Shared,
    /// There is no room for it in the host's windows.
    NoRoom,
}

/// A BAR that has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unplaced {
    /// The function's requester ID.
    pub rid: u16,
    /// The index of the BAR.
    pub bar: u8,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problem = match self.problem {
            Problem::NoWindow => "is behind a bridge whose windows do not lead to it",
            Problem::Shared => "has no pages of its own, and is behind a bridge",
            Problem::NoRoom => "finds no room in the windows of the PCI host",
        };
        write!(f, "BAR {} {problem}", self.bar)
    }
}

/// The CPU addresses that belong to other functions than `except` by what the firmware has set: their memory BARs and the
/// windows of bridges. It sizes BARs ([`Facts::size_bars`]), so nobody may use these functions; what EL2 uses itself is
/// to be in `except`. A function whose BARs cannot be sized is left out.
pub fn occupied(host: &PciHost, except: &[u16], config: &impl ConfigSpace) -> Vec<Range> {
    let mut found = Vec::new();
    let mut add = |pci: u64, size: u64| found.extend(cpu_range(&host.windows, pci, size));
    Buses::of(host).visit(config, |rid, page, _| {
        if !except.contains(&rid)
            && let Ok(mut facts) = Facts::read(rid, page, config)
        {
            if facts.kind != Kind::Endpoint {
                forwarded(page, config).into_iter().flatten().for_each(|(base, size)| add(base, size));
            } else if facts.size_bars(config) != Err(super::function::Broken::Absent) {
                facts.memory_bars().filter(|(_, bar)| bar.base != 0).for_each(|(_, bar)| add(bar.base, bar.size));
            }
        }
        true
    });
    found
}

/// Finds places for the memory BARs of `functions`, all of this host, and writes those that are new to the functions and
/// to [`Bar::base`]. The BARs have been sized, and the functions are not in use. `occupied` is what belongs to others.
///
/// The places of all functions together are what dom0 may not use of the windows.
///
/// # Errors
///
/// The first BAR that has no place. BARs may have been written before.
pub fn place(
    host: &PciHost,
    functions: &mut [Facts],
    occupied: &[Range],
    config: &impl ConfigSpace,
) -> Result<Vec<Places>, Unplaced> {
    let mut taken: Vec<Range> = occupied.iter().map(|&range| pages_around(range)).collect();
    let mut places: Vec<Places> =
        functions.iter().map(|facts| Places { rid: facts.rid, bars: [None; BAR_COUNT] }).collect();
    let mut wanted: Vec<(usize, usize, Bar)> = Vec::new();
    for (number, facts) in functions.iter().enumerate() {
        let is_on_root = (facts.rid >> 8) as u8 == host.buses.0;
        for (index, bar) in facts.memory_bars() {
            let unplaced = |problem| Unplaced { rid: facts.rid, bar: index as u8, problem };
            let there = placed(host, bar);
            if !is_on_root && (there.is_none() || !is_reached(host, facts.rid, bar, config)) {
                return Err(unplaced(Problem::NoWindow));
            }
            let begins_page = |range: &Range| range.base.0.is_multiple_of(PAGE);
            let is_own = |range: &Range| !taken.iter().any(|other| other.overlaps(*range));
            match there.filter(begins_page).map(pages_around).filter(is_own) {
                Some(range) => {
                    taken.push(range);
                    set(&mut places, number, index, range);
                }
                None if is_on_root => wanted.push((number, index, bar)),
                None => return Err(unplaced(Problem::Shared)),
            }
        }
    }
    // The largest first: then the alignment leaves no gaps between those of one window.
    wanted.sort_by_key(|(_, _, bar)| core::cmp::Reverse(bar.size));
    for (number, index, bar) in wanted {
        let Some(facts) = functions.get_mut(number) else { continue };
        let unplaced = Unplaced { rid: facts.rid, bar: index as u8, problem: Problem::NoRoom };
        let (range, pci) = room(&host.windows, bar, &taken).ok_or(unplaced)?;
        write_bar(facts, index, pci, config);
        taken.push(range);
        set(&mut places, number, index, range);
    }
    Ok(places)
}

fn set(places: &mut [Places], number: usize, index: usize, range: Range) {
    if let Some(place) = places.get_mut(number).and_then(|places| places.bars.get_mut(index)) {
        *place = Some(range);
    }
}

/// The CPU addresses at which the firmware has placed a BAR, if it has.
fn placed(host: &PciHost, bar: Bar) -> Option<Range> {
    if bar.base == 0 { None } else { cpu_range(&host.windows, bar.base, bar.size) }
}

/// Whether all bridges above a function forward accesses to its BAR.
fn is_reached(host: &PciHost, rid: u16, bar: Bar, config: &impl ConfigSpace) -> bool {
    let leads = |page: &Pa| {
        let is_within =
            |(base, size): (u64, u64)| Range::new(Pa(base), size).covers(Range::new(Pa(bar.base), bar.size));
        forwarded(*page, config).into_iter().flatten().any(is_within)
    };
    let above = bridges_above(&[Buses::of(host)], (rid >> 8) as u8, config);
    !above.is_empty() && above.iter().all(leads)
}

/// The PCI addresses that a bridge forwards: base and size of its memory window and of its prefetchable window (7.5.1.3.8,
/// 7.5.1.3.9).
fn forwarded(bridge: Pa, config: &impl ConfigSpace) -> [Option<(u64, u64)>; 2] {
    if config.read(bridge.add(COMMAND), 2) & MEMORY_SPACE == 0 {
        return [None; 2];
    }
    let [memory, prefetchable, base_high, limit_high, _] = WINDOWS.map(|at| config.read32(bridge.add(at)));
    let window = |low: u32, base_high: u32, limit_high: u32| {
        let base = u64::from(base_high) << 32 | u64::from(low & 0xfff0) << 16;
        let limit = u64::from(limit_high) << 32 | u64::from(low & 0xfff0_0000) | 0xf_ffff;
        Some((base, limit.checked_sub(base)?.checked_add(1)?))
    };
    let is_wide = prefetchable & 0xf == 1;
    let high = |word: u32| if is_wide { word } else { 0 };
    [window(memory, 0, 0), window(prefetchable, high(base_high), high(limit_high))]
}

/// The CPU addresses for PCI memory addresses, if one window has them all.
fn cpu_range(windows: &[PciWindow], pci: u64, size: u64) -> Option<Range> {
    windows.iter().filter(|window| window.kind != PciWindowKind::Io).find_map(|window| {
        let offset = pci.checked_sub(window.pci_base)?;
        let is_within = offset.checked_add(size)? <= window.cpu.size;
        is_within.then(|| Range::new(window.cpu.base.add(offset), size))
    })
}

/// The highest free place for a BAR: its CPU addresses, and its PCI address. A BAR that decodes 64 bits goes above 4 GiB
/// where it can, since others cannot.
fn room(windows: &[PciWindow], bar: Bar, taken: &[Range]) -> Option<(Range, u64)> {
    let may_use = |window: &&PciWindow, kind| window.kind == kind && (bar.prefetchable || !window.prefetchable);
    let in_kind = |kind| {
        windows.iter().filter(move |window| may_use(window, kind)).find_map(|window| room_in(window, bar, taken))
    };
    let wide = if bar.space == Space::Memory64 { in_kind(PciWindowKind::Mem64) } else { None };
    wide.or_else(|| in_kind(PciWindowKind::Mem32))
}

fn room_in(window: &PciWindow, bar: Bar, taken: &[Range]) -> Option<(Range, u64)> {
    let size = bar.size.max(PAGE);
    let limit = if bar.space == Space::Memory64 { u64::MAX } else { 1 << 32 };
    let mut end = window.pci_base.checked_add(window.cpu.size)?.min(limit);
    // Each turn ends below a range of `taken` that it was above or in before.
    for _ in 0..=taken.len() {
        let pci = end.checked_sub(size)? & size.wrapping_neg();
        let offset = pci.checked_sub(window.pci_base)?;
        let range = Range::new(window.cpu.base.add(offset), size);
        // 0 stands for a BAR that has no place.
        if pci == 0 || !range.base.0.is_multiple_of(PAGE) {
            return None;
        }
        let Some(blocks) = taken.iter().filter(|other| other.overlaps(range)).min_by_key(|other| other.base) else {
            return Some((range, pci));
        };
        end = window.pci_base.checked_add(blocks.base.0.checked_sub(window.cpu.base.0)?)?;
    }
    None
}

/// Writes a BAR, with decoding off: it passes through addresses that are another's.
fn write_bar(facts: &mut Facts, index: usize, pci: u64, config: &impl ConfigSpace) {
    let at = facts.page.add(bar_at(index));
    let command = config.read(facts.page.add(COMMAND), 2);
    config.write(facts.page.add(COMMAND), 2, command & !DECODES);
    config.write(at, 4, pci as u32);
    if let Some(bar) = facts.bars.get_mut(index).and_then(Option::as_mut) {
        if bar.space == Space::Memory64 {
            config.write(at.add(4), 4, (pci >> 32) as u32);
        }
        bar.base = pci;
    }
    config.write(facts.page.add(COMMAND), 2, command);
}

#[cfg(test)]
mod tests;
