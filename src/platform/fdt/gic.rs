//! The nodes of the GIC and of its ITSs (bindings `arm,gic-v3.yaml`, `arm,gic.yaml`).

use super::lists::Phandles;
use super::walk::{Cells, Go, Place, Tree};
use crate::platform::{GicKind, Its, Machine, MachineError, Part};
use crate::util::range::Range;

/// The size of a register frame (IHI 0069, 12.8).
const FRAME: u64 = 0x1_0000;
/// The size of the smallest redistributor.
const REDISTRIBUTOR: u64 = 2 * FRAME;

/// Returns the kind of GIC that a node is, from its `compatible`.
fn kind(place: &Place<'_, '_>) -> Option<GicKind> {
    const OLD: [&str; 7] = [
        "arm,gic-400",
        "arm,cortex-a15-gic",
        "arm,cortex-a9-gic",
        "arm,cortex-a7-gic",
        "arm,gic-v2",
        "arm,pl390",
        "arm,arm11mp-gic",
    ];
    if place.is_compatible("arm,gic-v3") || place.is_compatible("arm,gic-v4") {
        Some(GicKind::V3)
    } else if place.is_compatible("arm,gic-v5") {
        Some(GicKind::V5)
    } else if OLD.iter().any(|old| place.is_compatible(old)) {
        Some(GicKind::V2)
    } else {
        None
    }
}

/// Finds the GIC's phandle and `#interrupt-cells`. Older GICs may exist behind a GICv3, as interrupt controllers of
/// devices.
pub(super) fn find(tree: Tree<'_>) -> Result<Option<(u32, u32)>, MachineError> {
    let mut gic = None;
    tree.walk_available(&mut |place| {
        if gic.is_none() && kind(place) == Some(GicKind::V3) {
            // Without a phandle, only implicit interrupt parents lead to the GIC. 0 is not a valid phandle.
            gic = Some((place.phandle().unwrap_or(0), place.u32("#interrupt-cells").unwrap_or(3)));
        }
        Ok(if gic.is_none() { Go::In } else { Go::Over })
    })?;
    Ok(gic)
}

/// Reads distributor, redistributor regions, maintenance interrupt and ITSs of the first GICv3.
pub(super) fn read(tree: Tree<'_>, machine: &mut Machine, known: &mut Phandles) -> Result<(), MachineError> {
    let mut other = None;
    let mut found = false;
    // The number of the next ITS.
    let mut node = 0u32;
    tree.walk_available(&mut |place| {
        match kind(place) {
            Some(GicKind::V3) if !found => {
                found = true;
                read_gic(tree, place, machine)?;
            }
            Some(kind) => other = other.or(Some(kind)),
            None if place.is_compatible("arm,gic-v3-its") => {
                if let Err(problem) = read_its(place, machine, known) {
                    machine.warn(place.path(), problem);
                    machine.gic.skipped_itss |= 1u64.checked_shl(node).unwrap_or(0);
                }
                node = node.saturating_add(1);
            }
            None => {}
        }
        Ok(Go::In)
    })?;
    match (found, other) {
        (true, _) => Ok(()),
        (false, Some(GicKind::V2)) => Err(MachineError::GicTooOld),
        (false, Some(GicKind::V5)) => Err(MachineError::GicTooNew),
        (false, _) => Err(MachineError::NoGic),
    }
}

/// Reads an ITS. One that is not used keeps its registers from all domains.
///
/// # Errors
///
/// Why it is not used.
fn read_its(place: &Place<'_, '_>, machine: &mut Machine, known: &mut Phandles) -> Result<(), &'static str> {
    let Some(regs) = place.reg(0).filter(|regs| !regs.is_empty()) else {
        return Err("property `reg` is missing or invalid: this ITS is not used");
    };
    // Nodes often have the first frame only. The second one, with GITS_TRANSLATER, follows it in any case.
    let control = Range::new(regs.base, regs.size.max(2 * FRAME));
    let problem = if place.has("socionext,synquacer-pre-its") {
        // Devices write to a window of their own, whose place in it is their DeviceID.
        Some("MSIs pass a pre-ITS, which is not supported: this ITS is not used")
    } else if !control.base.0.is_multiple_of(FRAME) {
        Some("its registers are misaligned: this ITS is not used")
    } else if machine.gic.itss.is_full() {
        Some("there are too many ITSs: this one is not used")
    } else {
        None
    };
    if let Some(problem) = problem {
        // The second frame may be another device's.
        let _ = machine.gic.add_unused(regs);
        return Err(problem);
    }
    // As large as each other.
    let _ = machine.gic.itss.try_push(Its { control, non_coherent: place.has("dma-noncoherent") });
    let _ = known.itss.try_push(place.phandle());
    Ok(())
}

/// Cuts redistributor regions that are larger than what they hold where they cover other devices (Exynos 2200), unless the
/// CPUs would have too few redistributors then.
pub(super) fn cut_redists(tree: Tree<'_>, machine: &mut Machine) -> Result<(), MachineError> {
    let least = REDISTRIBUTOR.saturating_mul(machine.cpus.len() as u64);
    tree.walk_available(&mut |place| {
        if kind(place).is_none() && !place.is_compatible("arm,gic-v3-its") && place.depth > 0 {
            for regs in place.regs().flatten().filter(|regs| !regs.is_empty()) {
                let all: u64 = machine.gic.redists.iter().map(|region| region.size).fold(0, u64::saturating_add);
                let Some(region) = machine.gic.redists.iter_mut().find(|region| region.overlaps(regs)) else {
                    continue;
                };
                let size = regs.base.0.saturating_sub(region.base.0) & !(FRAME - 1);
                if size >= REDISTRIBUTOR && all - (region.size - size) >= least {
                    region.size = size;
                    machine.warn(place.path(), "it is in a region of redistributors: the region is cut");
                }
            }
        }
        Ok(Go::In)
    })
}

fn read_gic(tree: Tree<'_>, place: &Place<'_, '_>, machine: &mut Machine) -> Result<(), MachineError> {
    machine.gic.version_hint = GicKind::V3;
    machine.gic.dist = place.reg(0).ok_or_else(|| MachineError::BadProperty { node: place.path(), property: "reg" })?;
    let regions = place.u32("#redistributor-regions").unwrap_or(1) as usize;
    for (index, region) in place.regs().skip(1).enumerate() {
        match region.filter(|region| !region.is_empty()) {
            // The memory-mapped CPU interfaces.
            Some(range) if index >= regions => machine.gic.add_unused(range)?,
            Some(region) if region.size < 2 * FRAME || !region.base.0.is_multiple_of(FRAME) => {
                machine.warn(place.path(), "a redistributor region is too small or misaligned: ignored");
            }
            Some(region) => {
                let added = machine.gic.redists.try_push(region);
                if added.is_err() {
                    machine.leave_out(Part::Redistributors);
                }
            }
            None if index < regions => {
                machine.warn(place.path(), "a redistributor region is empty or invalid: ignored")
            }
            None => {}
        }
    }
    if machine.gic.redists.is_empty() {
        return Err(MachineError::NoRedistributors);
    }
    if let Some(stride) = place.value("redistributor-stride") {
        // Both one and two cells are in use.
        let stride = Cells(stride).value().filter(|&stride| stride >= 2 * FRAME && stride.is_multiple_of(FRAME));
        if stride.is_none() {
            machine.warn(place.path(), "property `redistributor-stride` is invalid: ignored");
        }
        machine.gic.redist_stride = stride;
    }
    machine.gic.non_coherent = place.has("dma-noncoherent");

    // The GIC is its own interrupt parent if neither it nor an ancestor names one.
    let mut maintenance = None;
    let own =
        Tree { gic: place.interrupt_parent().or(tree.gic.map(|gic| gic.0)).zip(tree.gic.map(|gic| gic.1)), ..tree };
    own.interrupts(place, &mut |intid, _| {
        maintenance = maintenance.or(Some(intid));
        Ok(())
    })?;
    machine.gic.maintenance = maintenance.ok_or(MachineError::NoMaintenance)?;
    Ok(())
}
