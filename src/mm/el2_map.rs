//! The stage 1 map that EL2 runs on after early boot.

use super::frames;
use super::stage1::{Kind, Map, MapError, Tables};
use crate::arch::barrier;
use crate::ids::Pa;
use crate::platform::{Machine, RESERVATIONS};
use crate::sync::{Lock, Rank};
use crate::util::PAGE;
use crate::util::range::{Range, gaps, pages_around, whole_pages_in};
use arrayvec::ArrayVec;

/// Tables from the frame allocator, which are never freed.
struct FromFrames;

impl Tables for FromFrames {
    fn take(&mut self) -> Option<Pa> {
        frames::alloc(PAGE as usize, PAGE as usize)
    }
}

static MAP: Lock<Option<Map<FromFrames>>> = Lock::new(Rank::Stage1, None);

/// The stacks of all CPUs, each above a guard page that is not mapped.
#[derive(Clone, Copy, Debug)]
pub struct Stacks {
    base: Pa,
    count: usize,
}

impl Stacks {
    const STRIDE: u64 = 128 << 10;

    /// Allocates memory for `count` stacks. Returns `None` if there is not enough.
    #[must_use]
    pub fn new(count: usize) -> Option<Stacks> {
        let base = frames::alloc(count * Self::STRIDE as usize, PAGE as usize)?;
        Some(Stacks { base, count })
    }

    /// Returns the size of `count` stacks in bytes.
    #[must_use]
    pub const fn size(count: usize) -> u64 {
        count as u64 * Self::STRIDE
    }

    /// Returns the initial stack pointer of CPU `index` (a stack grows down).
    #[must_use]
    pub fn top(&self, index: usize) -> Option<Pa> {
        (index < self.count).then(|| self.base.add((index as u64 + 1) * Self::STRIDE))
    }

    fn range(&self) -> Range {
        Range::new(self.base, Self::size(self.count))
    }
}

/// Builds the map and returns its root, for `arch::mmu::switch_to`. The frame allocator must have been initialized.
///
/// `image` is the image from its first to its last byte, `sections` the parts of it to map, `fdt` the device tree.
pub fn build(
    machine: &Machine,
    image: Range,
    sections: &[(Pa, Pa, Kind)],
    fdt: Range,
    stacks: &Stacks,
) -> Result<Pa, MapError> {
    let mut map = Map::new(FromFrames)?;
    for &(start, end, kind) in sections {
        map.map(start, end.0 - start.0, kind)?;
    }
    // Memory that the firmware has reserved may be Secure, or not memory at all: no CPU may even speculate there.
    let mut holes: ArrayVec<Range, { RESERVATIONS + 2 }> =
        machine.reserved.iter().map(|&range| pages_around(range)).collect();
    holes.extend([image, stacks.range()]);
    for &bank in &machine.memory {
        for gap in gaps(whole_pages_in(bank), &holes) {
            map.map(gap.base, gap.size, Kind::Data)?;
        }
    }
    for index in 0..stacks.count as u64 {
        let guard = stacks.base.add(index * Stacks::STRIDE);
        map.map(guard.add(PAGE), Stacks::STRIDE - PAGE, Kind::Data)?;
    }
    // Modules and the device tree may lie in a reservation; EL2 reads them nevertheless.
    for range in machine.all_modules().map(|module| module.range).chain([fdt]).filter(|range| !range.is_empty()) {
        let range = pages_around(range);
        map.map(range.base, range.size, Kind::Data)?;
    }
    for range in devices(machine) {
        let range = pages_around(range);
        map.map(range.base, range.size, Kind::Device)?;
    }
    let root = map.root();
    *MAP.lock() = Some(map);
    barrier::dsb_sy();
    Ok(root)
}

/// Returns the registers that EL2 uses on every machine.
fn devices(machine: &Machine) -> impl Iterator<Item = Range> + '_ {
    let gic = &machine.gic;
    [gic.dist]
        .into_iter()
        .chain(gic.redists.iter().copied())
        .chain(gic.itss.iter().map(|its| its.control))
        .chain(machine.smmus.iter().map(|smmu| smmu.regs))
        .chain(machine.uart.iter().map(|uart| uart.regs))
        .filter(|range| !range.is_empty())
}

fn extend(range: Range, kind: Kind) -> Result<(), MapError> {
    let range = pages_around(range);
    let mut map = MAP.lock();
    let Some(map) = map.as_mut() else { return Err(MapError::OutOfTables) };
    let result = map.map(range.base, range.size, kind);
    barrier::dsb_ish();
    barrier::isb();
    result
}

/// Maps registers for all CPUs. Each CPU other than this one needs an ISB before it accesses them.
pub fn map_device(range: Range) -> Result<(), MapError> {
    extend(range, Kind::Device)
}

/// Maps memory that is not in [`Machine::memory`] or that is reserved. ISBs are needed as for [`map_device`].
pub fn map_memory(range: Range) -> Result<(), MapError> {
    extend(range, Kind::Data)
}

/// Returns how `at` is mapped: the size of its block or page, and the kind of the mapping.
#[must_use]
pub fn look_up(at: Pa) -> Option<(u64, Kind)> {
    MAP.lock().as_ref().and_then(|map| map.look_up(at))
}
