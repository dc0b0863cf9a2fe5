//! PCI hosts with an ECAM (bindings `host-generic-pci.yaml`, `pci-msi.txt`, `pci-iommu.txt`).
//!
//! A PCI address has three cells. The first gives the space that the other two are in (IEEE 1275 PCI binding, 2.2.1.1):
//! `npt000ss bbbbbbbb dddddfff rrrrrrrr`.

use super::lists::Phandles;
use super::walk::{Cells, Go, Place, Tree};
use crate::ids::{ItsId, Pa, SmmuId};
use crate::platform::{IdMap, Machine, MachineError, PciHost, PciWindow, PciWindowKind};
use crate::util::range::Range;
use arrayvec::ArrayVec;

/// How often the whole tree is walked for one map.
const WALKS: u32 = 16;
/// The size of the configuration space of a bus (PCI Express 6.0, 7.2.2).
const BUS_SIZE: u64 = 1 << 20;

/// Reads every available host.
pub(super) fn read(tree: Tree<'_>, machine: &mut Machine, known: &Phandles) -> Result<(), MachineError> {
    tree.walk_available(&mut |place| {
        if place.is_compatible("pci-host-ecam-generic") {
            match read_host(tree, place, machine, known) {
                Ok(host) if machine.pci.is_full() => {
                    machine.warn(place.path(), "there are too many PCI hosts: this one is not used");
                    // Nor may anybody else use its functions.
                    let _ = machine.gic.add_unused(host.ecam);
                }
                Ok(host) => machine.pci.push(host),
                Err(problem) => machine.warn(place.path(), problem),
            }
        }
        Ok(Go::In)
    })
}

/// Reads a host.
///
/// # Errors
///
/// Why it is not used.
fn read_host(
    tree: Tree<'_>,
    place: &Place<'_, '_>,
    machine: &mut Machine,
    known: &Phandles,
) -> Result<PciHost, &'static str> {
    let segment = place.u32("linux,pci-domain").unwrap_or(machine.pci.len() as u32);
    let Some(ecam) = place.reg(0) else {
        return Err("property `reg` is missing or invalid: this PCI host is not used");
    };
    let mut host = PciHost {
        ecam,
        segment: u16::try_from(segment)
            .map_err(|_| "property `linux,pci-domain` is invalid: this PCI host is not used")?,
        buses: buses(place, ecam, machine)?,
        windows: ArrayVec::new(),
        msi_map_mask: place.u32("msi-map-mask").unwrap_or(u32::MAX),
        msi_map: ArrayVec::new(),
        iommu_map_mask: place.u32("iommu-map-mask").unwrap_or(u32::MAX),
        iommu_map: ArrayVec::new(),
        coherent: place.has("dma-coherent"),
    };
    read_windows(place, &mut host, machine)?;
    let problem = read_map(tree, place, "msi-map", &known.itss, &mut |line| {
        host.msi_map.try_push(with_target(line, ItsId(line.target))).is_ok()
    });
    let other = read_map(tree, place, "iommu-map", &known.smmus, &mut |line| {
        host.iommu_map.try_push(with_target(line, SmmuId(line.target))).is_ok()
    });
    for problem in problem.into_iter().chain(other) {
        machine.warn(place.path(), problem);
    }
    if !place.has("msi-map")
        && let Some(mut parent) = place.value("msi-parent").map(Cells)
        && let Some(phandle) = parent.one()
        && let Some(its) = known.itss.iter().position(|&its| its == Some(phandle))
    {
        // DeviceIDs are requester IDs, offset by the specifier if there is one.
        let out_base = parent.one().unwrap_or(0);
        let line = IdMap { rid_base: 0, target: ItsId(its as u8), out_base, length: 0x1_0000 };
        host.msi_map.push(line);
    }
    Ok(host)
}

/// Reads the range of buses, as many as the configuration space has room for.
fn buses(place: &Place<'_, '_>, ecam: Range, machine: &mut Machine) -> Result<(u8, u8), &'static str> {
    let read = |mut cells: Cells<'_>| {
        let mut bus = || cells.one().and_then(|bus| u8::try_from(bus).ok());
        let (first, last) = (bus()?, bus()?);
        (first <= last).then_some((first, last))
    };
    let (first, last) = match place.value("bus-range").map(Cells) {
        None => (0, 255),
        Some(cells) => read(cells).ok_or("property `bus-range` is invalid: this PCI host is not used")?,
    };
    let room = ecam.size / BUS_SIZE;
    let Some(more) = room.checked_sub(1) else {
        return Err("its configuration space has no room for a bus: this PCI host is not used");
    };
    let most = u64::from(first).saturating_add(more);
    if most < u64::from(last) {
        machine.warn(place.path(), "its configuration space has room for fewer buses: the others are not used");
        return Ok((first, most as u8)); // less than `last`
    }
    Ok((first, last))
}

fn with_target<T>(line: IdMap<u8>, target: T) -> IdMap<T> {
    IdMap { rid_base: line.rid_base, target, out_base: line.out_base, length: line.length }
}

fn read_windows(place: &Place<'_, '_>, host: &mut PciHost, machine: &mut Machine) -> Result<(), &'static str> {
    const BAD: &str = "property `ranges` is missing or invalid: this PCI host is not used";
    let mut ranges = Cells(place.value("ranges").ok_or(BAD)?);
    let Some(parent) = place.parent else { return Err(BAD) };
    if place.address_cells() != 3 || place.size_cells() != 2 {
        return Err(BAD);
    }
    while !ranges.is_empty() {
        let (Some(space), Some(pci_base), Some(cpu), Some(size)) =
            (ranges.one(), ranges.number(2), ranges.take(parent.address_cells()), ranges.number(2))
        else {
            machine.warn(place.path(), "the last line of `ranges` is cut short: ignored");
            break;
        };
        let kind = match space >> 24 & 0b11 {
            0b01 => PciWindowKind::Io,
            0b10 => PciWindowKind::Mem32,
            0b11 => PciWindowKind::Mem64,
            _ => continue, // configuration space
        };
        if size == 0 {
            machine.warn(place.path(), "a window of `ranges` is empty: ignored");
            continue;
        }
        let Some(cpu) = cpu.value().and_then(|cpu| parent.cpu_address(cpu, size)) else {
            machine.warn(place.path(), "CPUs do not reach a window of `ranges`: ignored");
            continue;
        };
        let window = PciWindow { kind, prefetchable: space >> 30 & 1 == 1, cpu: Range::new(Pa(cpu), size), pci_base };
        if host.windows.try_push(window).is_err() {
            machine.warn(place.path(), "there are too many windows in `ranges`: not all are used");
            break;
        }
    }
    Ok(())
}

/// Reads `msi-map` or `iommu-map`: entries of (requester ID, phandle, output, length). `each` says whether there is room
/// for another one. A target that is not supported (a GICv2m, an SMMUv2) is skipped. Returns what is odd.
fn read_map(
    tree: Tree<'_>,
    place: &Place<'_, '_>,
    property: &str,
    targets: &[Option<u32>],
    each: &mut dyn FnMut(IdMap<u8>) -> bool,
) -> Option<&'static str> {
    let mut map = Cells(place.value(property).unwrap_or(&[]));
    let mut last = None;
    let mut walks = 0;
    let mut problem = None;
    while !map.is_empty() {
        let (Some(rid_base), Some(phandle), Some(out_base), Some(length)) =
            (map.one(), map.one(), map.one(), map.one())
        else {
            return Some("the last line of `msi-map` or `iommu-map` is cut short: ignored");
        };
        match targets.iter().position(|&target| target == Some(phandle)) {
            Some(target) if !each(IdMap { rid_base, target: target as u8, out_base, length }) => {
                return Some("there are too many lines in `msi-map` or `iommu-map`: not all are used");
            }
            Some(_) => {}
            // Finding a node takes a walk of the whole tree. Once something is odd, there is nothing more to find out.
            None if problem.is_none() && last != Some(phandle) && walks < WALKS => {
                walks += 1;
                if tree.by_phandle(phandle).is_none() {
                    problem = Some("`msi-map` or `iommu-map` refers to a node that is not there: ignored");
                }
                last = Some(phandle);
            }
            None => {}
        }
    }
    problem
}
