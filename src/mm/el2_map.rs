//! The map that EL2 runs on.

use super::frames::{self, PAGE};
use super::pool::{for_each_gap, pages_around, whole_pages_in};
use super::stage1::{Kind, Map, MapError, Tables};
use crate::arch::barrier;
use crate::ids::Pa;
use crate::platform::Machine;
use crate::sync::{Lock, Rank};
use crate::util::range::Range;
use arrayvec::ArrayVec;

/// Tables that stay for ever.
struct FromFrames;

impl Tables for FromFrames {
    fn take(&mut self) -> Option<Pa> {
        frames::alloc(PAGE, PAGE)
    }
}

static LIVE: Lock<Option<Map<FromFrames>>> = Lock::new(Rank::Stage1, None);

/// One stack for each CPU of the machine, each above a page that is not mapped.
#[derive(Clone, Copy, Debug)]
pub struct Stacks {
    base: Pa,
    count: usize,
}

impl Stacks {
    const STRIDE: u64 = 128 << 10;

    /// Takes memory for `count` stacks.
    #[must_use]
    pub fn new(count: usize) -> Option<Stacks> {
        let base = frames::alloc(count * Self::STRIDE as usize, PAGE)?;
        Some(Stacks { base, count })
    }

    /// Bytes that `count` stacks take.
    #[must_use]
    pub const fn size(count: usize) -> u64 {
        count as u64 * Self::STRIDE
    }

    /// Where the stack of CPU `index` starts (it grows down).
    #[must_use]
    pub fn top(&self, index: usize) -> Option<Pa> {
        (index < self.count).then(|| self.base.add((index as u64 + 1) * Self::STRIDE))
    }

    fn range(&self) -> Range {
        Range::new(self.base, Self::size(self.count))
    }
}

/// Builds the map that stays and returns its root, for `arch::mmu::switch_to`.
///
/// `image` is the image from its first to its last byte, `sections` the parts of it that are mapped, `fdt` the device
/// tree. The frames are up.
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
    // What the firmware reserved may be Secure, or not memory at all: no CPU may even speculate there.
    let mut holes: ArrayVec<Range, 130> = machine.reserved.iter().map(|&range| pages_around(range)).collect();
    holes.extend([image, stacks.range()]);
    for &bank in &machine.memory {
        for_each_gap(whole_pages_in(bank), &holes, |gap| map.map(gap.base, gap.size, Kind::Data))?;
    }
    for index in 0..stacks.count as u64 {
        let guard = stacks.base.add(index * Stacks::STRIDE);
        map.map(guard.add(PAGE as u64), Stacks::STRIDE - PAGE as u64, Kind::Data)?;
    }
    // These may lie in a reservation, and are read all the same.
    for range in machine.all_modules().map(|module| module.range).chain([fdt]).filter(|range| !range.is_empty()) {
        let range = pages_around(range);
        map.map(range.base, range.size, Kind::Data)?;
    }
    for range in devices(machine) {
        let range = pages_around(range);
        map.map(range.base, range.size, Kind::Device)?;
    }
    let root = map.root();
    *LIVE.lock() = Some(map);
    barrier::dsb_sy();
    Ok(root)
}

/// The registers that EL2 drives on every machine.
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
    let mut live = LIVE.lock();
    let Some(map) = live.as_mut() else { return Err(MapError::OutOfTables) };
    let result = map.map(range.base, range.size, kind);
    barrier::dsb_ish();
    barrier::isb();
    result
}

/// Maps registers, for all CPUs. A CPU other than this one needs an ISB before it uses them.
pub fn map_device(range: Range) -> Result<(), MapError> {
    extend(range, Kind::Device)
}

/// Maps memory that is not in [`Machine::memory`], or that is reserved there.
pub fn map_memory(range: Range) -> Result<(), MapError> {
    extend(range, Kind::Data)
}

/// How EL2 sees `at`: the size of the block it lies in and its kind.
#[must_use]
pub fn look_up(at: Pa) -> Option<(u64, Kind)> {
    LIVE.lock().as_ref().and_then(|map| map.look_up(at))
}
