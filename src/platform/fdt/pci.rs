//! PCI hosts with an ECAM (bindings `host-generic-pci.yaml`, `pci-msi.txt`, `pci-iommu.txt`).
//!
//! A PCI address has three cells. The first gives the space that the other two are in (IEEE 1275 PCI binding, 2.2.1.1):
//! `npt000ss bbbbbbbb dddddfff rrrrrrrr`.

use super::lists::{Phandles, push};
use super::walk::{Cells, Go, Place, Tree};
use crate::ids::{ItsId, Pa, SmmuId};
use crate::platform::{IdMap, Machine, MachineError, Part, PciHost, PciWindow, PciWindowKind};
use crate::util::range::Range;
use arrayvec::ArrayVec;

/// Reads every available host.
pub(super) fn read(tree: Tree<'_>, machine: &mut Machine, known: &Phandles) -> Result<(), MachineError> {
    tree.walk_available(&mut |place| {
        if place.is_compatible("pci-host-ecam-generic") {
            let host = read_host(tree, place, machine.pci.len(), known)?;
            push(&mut machine.pci, host, Part::PciHost)?;
        }
        Ok(Go::In)
    })
}

fn read_host(tree: Tree<'_>, place: &Place<'_, '_>, index: usize, known: &Phandles) -> Result<PciHost, MachineError> {
    let bad = |property| MachineError::BadProperty { node: "PCI host", property };
    let segment = place.u32("linux,pci-domain").unwrap_or(index as u32);
    let buses = match place.value("bus-range").map(Cells) {
        None => (0, 255),
        Some(mut cells) => {
            let mut bus = || cells.one().and_then(|bus| u8::try_from(bus).ok()).ok_or(bad("bus-range"));
            (bus()?, bus()?)
        }
    };
    let mut host = PciHost {
        ecam: place.reg(0).ok_or(bad("reg"))?,
        segment: u16::try_from(segment).map_err(|_| bad("linux,pci-domain"))?,
        buses,
        windows: ArrayVec::new(),
        msi_map_mask: place.u32("msi-map-mask").unwrap_or(u32::MAX),
        msi_map: ArrayVec::new(),
        iommu_map_mask: place.u32("iommu-map-mask").unwrap_or(u32::MAX),
        iommu_map: ArrayVec::new(),
        coherent: place.has("dma-coherent"),
    };
    read_windows(place, &mut host)?;
    read_map(tree, place, "msi-map", &known.itss, &mut |line| {
        push(&mut host.msi_map, with_target(line, ItsId(line.target)), Part::IdMap)
    })?;
    read_map(tree, place, "iommu-map", &known.smmus, &mut |line| {
        push(&mut host.iommu_map, with_target(line, SmmuId(line.target)), Part::IdMap)
    })?;
    if !place.has("msi-map")
        && let Some(mut parent) = place.value("msi-parent").map(Cells)
        && let Some(phandle) = parent.one()
        && let Some(its) = known.itss.iter().position(|&its| its == Some(phandle))
    {
        // DeviceIDs are requester IDs, offset by the specifier if there is one.
        let out_base = parent.one().unwrap_or(0);
        let line = IdMap { rid_base: 0, target: ItsId(its as u8), out_base, length: 0x1_0000 };
        push(&mut host.msi_map, line, Part::IdMap)?;
    }
    Ok(host)
}

fn with_target<T>(line: IdMap<u8>, target: T) -> IdMap<T> {
    IdMap { rid_base: line.rid_base, target, out_base: line.out_base, length: line.length }
}

fn read_windows(place: &Place<'_, '_>, host: &mut PciHost) -> Result<(), MachineError> {
    let bad = MachineError::BadProperty { node: "PCI host", property: "ranges" };
    let mut ranges = Cells(place.value("ranges").ok_or(bad)?);
    let Some(parent) = place.parent else { return Err(bad) };
    if place.address_cells() != 3 || place.size_cells() != 2 {
        return Err(bad);
    }
    while !ranges.is_empty() {
        let space = ranges.one().ok_or(bad)?;
        let pci_base = ranges.number(2).ok_or(bad)?;
        let cpu = ranges.number(parent.address_cells()).ok_or(bad)?;
        let size = ranges.number(2).ok_or(bad)?;
        let kind = match space >> 24 & 0b11 {
            0b01 => PciWindowKind::Io,
            0b10 => PciWindowKind::Mem32,
            0b11 => PciWindowKind::Mem64,
            _ => continue, // configuration space
        };
        let cpu = parent.cpu_address(cpu, size).ok_or(bad)?;
        let window = PciWindow { kind, prefetchable: space >> 30 & 1 == 1, cpu: Range::new(Pa(cpu), size), pci_base };
        push(&mut host.windows, window, Part::PciWindow)?;
    }
    Ok(())
}

/// Reads `msi-map` or `iommu-map`: entries of (requester ID, phandle, output, length). A target that is not supported
/// (a GICv2m, an SMMUv2) is skipped; one that does not exist is an error.
fn read_map(
    tree: Tree<'_>,
    place: &Place<'_, '_>,
    property: &'static str,
    targets: &[Option<u32>],
    each: &mut dyn FnMut(IdMap<u8>) -> Result<(), MachineError>,
) -> Result<(), MachineError> {
    let bad = MachineError::BadProperty { node: "PCI host", property };
    let mut map = Cells(place.value(property).unwrap_or(&[]));
    let mut unsupported = 0;
    while !map.is_empty() {
        let mut cell = || map.one().ok_or(bad);
        let (rid_base, phandle, out_base, length) = (cell()?, cell()?, cell()?, cell()?);
        match targets.iter().position(|&target| target == Some(phandle)) {
            Some(target) => each(IdMap { rid_base, target: target as u8, out_base, length })?,
            None if tree.by_phandle(phandle).is_none() => return Err(MachineError::Dangling { property, phandle }),
            None => unsupported += 1,
        }
        // Each of these took a walk of the whole tree, so their number is limited.
        if unsupported > 16 {
            return Err(MachineError::TooMany { part: Part::IdMap, limit: 16 });
        }
    }
    Ok(())
}
