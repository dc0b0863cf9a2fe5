//! The nodes of the GIC and of its ITSs (bindings `arm,gic-v3.yaml`, `arm,gic.yaml`).

use super::lists::{Phandles, push};
use super::walk::{Cells, Go, Place, Tree};
use crate::platform::{GicKind, Its, Machine, MachineError, Part};

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
    tree.walk_available(&mut |place| {
        match kind(place) {
            Some(GicKind::V3) if !found => {
                found = true;
                read_gic(tree, place, machine)?;
            }
            Some(kind) => other = other.or(Some(kind)),
            None if place.is_compatible("arm,gic-v3-its") => {
                let control = place.reg(0).ok_or(MachineError::BadProperty { node: "ITS", property: "reg" })?;
                let its = Its { control, non_coherent: place.has("dma-noncoherent") };
                push(&mut machine.gic.itss, its, Part::Its)?;
                push(&mut known.itss, place.phandle(), Part::Its)?;
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

fn read_gic(tree: Tree<'_>, place: &Place<'_, '_>, machine: &mut Machine) -> Result<(), MachineError> {
    let bad = |property| MachineError::BadProperty { node: "GIC", property };
    let gic = &mut machine.gic;
    gic.version_hint = GicKind::V3;
    gic.dist = place.reg(0).ok_or(bad("reg"))?;
    let regions = place.u32("#redistributor-regions").unwrap_or(1) as usize;
    for index in 1..=regions {
        let region = place.reg(index).ok_or(if index == 1 { MachineError::NoRedistributors } else { bad("reg") })?;
        push(&mut gic.redists, region, Part::Redistributors)?;
    }
    // The memory-mapped CPU interfaces.
    for range in place.regs().skip(regions.saturating_add(1)).flatten().filter(|range| !range.is_empty()) {
        gic.add_unused(range)?;
    }
    if let Some(stride) = place.value("redistributor-stride") {
        // Both one and two cells are in use.
        gic.redist_stride = Some(Cells(stride).value().ok_or(bad("redistributor-stride"))?);
    }
    gic.non_coherent = place.has("dma-noncoherent");

    // The GIC is its own interrupt parent if neither it nor an ancestor names one.
    let mut maintenance = None;
    let own =
        Tree { gic: place.interrupt_parent().or(tree.gic.map(|gic| gic.0)).zip(tree.gic.map(|gic| gic.1)), ..tree };
    own.interrupts(place, &mut |intid, _| {
        maintenance = maintenance.or(Some(intid));
        Ok(())
    })?;
    gic.maintenance = maintenance.ok_or(MachineError::NoMaintenance)?;
    Ok(())
}
