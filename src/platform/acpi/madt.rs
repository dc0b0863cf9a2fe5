//! MADT: CPUs, the GIC and the ITSs (ACPI 6.5, 5.2.12.14 to 5.2.12.18).
//!
//! Redistributors are described in one of two ways. Most firmware lists regions. Some (Graviton's) lists no regions but
//! the redistributor of each CPU. Those are collected here and joined to regions where one ends exactly where the next
//! begins: a gap may hold a redistributor that has been fused off and must not be accessed. The size of a redistributor
//! follows from the GIC's version.
//!
//! What the table names and EL2 does not use (redistributors of disabled CPUs, memory-mapped CPU interfaces, message
//! frames) is kept in a list, so that no guest gets it.

use super::{AcpiError, Fields};
use crate::ids::{Intid, Mpidr, Pa};
use crate::platform::{CPUS, Cpu, GicKind, Its, Machine, MachineError, Part};
use crate::util::range::Range;
use arrayvec::ArrayVec;

/// The offset of the first entry.
pub(crate) const ENTRIES: usize = 44;

/// Entry types.
pub(crate) const GICC: u8 = 0x0b;
pub(crate) const GICD: u8 = 0x0c;
const GIC_MSI_FRAME: u8 = 0x0d;
pub(crate) const GICR: u8 = 0x0e;
pub(crate) const ITS: u8 = 0x0f;
/// The interrupt routing service of a GICv5.
const GICV5_IRS: u8 = 0x1c;

/// Flags of a GICC entry.
const ENABLED: u32 = 1 << 0;
const ONLINE_CAPABLE: u32 = 1 << 3;
const GICC_NON_COHERENT: u32 = 1 << 4;
/// Flag of GICR and ITS entries.
const NON_COHERENT: u8 = 1 << 0;
/// The first MADT revision that defines the three non-coherent flags.
const HAS_COHERENCE: u8 = 7;

const FRAME: u64 = 0x1_0000;
const ITS_SIZE: u64 = 2 * FRAME;
/// The sizes of a redistributor without and with the frames for virtual LPIs (IHI 0069, 12.10).
const GICV3_REDIST: u64 = 2 * FRAME;
const GICV4_REDIST: u64 = 4 * FRAME;
/// The size of a memory-mapped CPU interface (IHI 0048, 1.3 and 5.3): GICC and GICV have 8 KiB, GICH less.
const CPU_INTERFACE: u64 = 0x2000;
/// The size of a message frame (Server Base System Architecture, appendix on GICv2m).
const MSI_FRAME: u64 = 0x1000;

/// The identifiers by which the IORT refers to the ITSs, in the order of [`Gic::itss`](crate::platform::Gic::itss).
pub(crate) type ItsNames = ArrayVec<u32, 16>;

/// Fills CPUs, GIC and ITSs.
pub(super) fn read(madt: Fields<'_>, machine: &mut Machine) -> Result<ItsNames, AcpiError> {
    let version = read_distributor(madt, machine)?;
    let flagged = madt.revision() >= HAS_COHERENCE;
    let mut names = ItsNames::new();
    let mut from_cpus: ArrayVec<Range, CPUS> = ArrayVec::new();
    for entry in madt.entries(ENTRIES) {
        match entry? {
            (GICC, entry) => {
                let redist = read_cpu(entry, machine, flagged)?;
                if let Some(base) = redist {
                    // Cannot fail: there are at most as many as CPUs.
                    let _ = from_cpus.try_push(Range::new(base, 0));
                }
            }
            (GICR, entry) => {
                machine.gic.non_coherent |= flagged && entry.u8(2)? & NON_COHERENT != 0;
                let region = Range::new(Pa(entry.u64(4)?), u64::from(entry.u32(12)?));
                let full = MachineError::TooMany { part: Part::Redistributors, limit: machine.gic.redists.capacity() };
                machine.gic.redists.try_push(region).map_err(|_| full)?;
            }
            (ITS, entry) => {
                let its = Its {
                    control: Range::new(Pa(entry.u64(8)?), ITS_SIZE),
                    non_coherent: flagged && entry.u8(2)? & NON_COHERENT != 0,
                };
                let full = MachineError::TooMany { part: Part::Its, limit: machine.gic.itss.capacity() };
                machine.gic.itss.try_push(its).map_err(|_| full)?;
                names.try_push(entry.u32(4)?).map_err(|_| full)?;
            }
            _ => {}
        }
    }
    let size = redist_size(&mut from_cpus, version);
    if machine.gic.redists.is_empty() {
        join(&from_cpus, size, machine);
    }
    read_unused(madt, size, machine)?;
    if machine.gic.redists.is_empty() {
        return Err(MachineError::NoRedistributors.into());
    }
    if machine.gic.maintenance == Intid(0) {
        return Err(MachineError::NoMaintenance.into());
    }
    Ok(names)
}

/// Reads the distributor. Returns the GIC version in its entry; 0 means that it is not stated.
fn read_distributor(madt: Fields<'_>, machine: &mut Machine) -> Result<u8, AcpiError> {
    let mut version = None;
    let mut newer = false;
    for entry in madt.entries(ENTRIES) {
        match entry? {
            (GICD, entry) if version.is_none() => {
                machine.gic.dist = Range::new(Pa(entry.u64(8)?), FRAME);
                version = Some(entry.u8(20)?);
            }
            (GICV5_IRS, _) => newer = true,
            _ => {}
        }
    }
    match version {
        Some(1 | 2) => Err(MachineError::GicTooOld.into()),
        Some(version @ (0 | 3 | 4)) => {
            machine.gic.version_hint = GicKind::V3;
            Ok(version)
        }
        None if !newer => Err(MachineError::NoGic.into()),
        Some(_) | None => Err(MachineError::GicTooNew.into()),
    }
}

/// Reads a CPU. Returns the address of its redistributor if the entry has it. A CPU that is neither enabled nor online
/// capable is not listed. One that is online capable is listed as disabled, and its redistributor is not used.
fn read_cpu(entry: Fields<'_>, machine: &mut Machine, flagged: bool) -> Result<Option<Pa>, AcpiError> {
    let flags = entry.u32(12)?;
    let enabled = flags & ENABLED != 0;
    if !enabled && flags & ONLINE_CAPABLE == 0 {
        return Ok(None);
    }
    let register = entry.u64(68)?;
    let mpidr = Mpidr::from_register(register);
    if mpidr.0 != register {
        return Err(MachineError::BadMpidr(register).into());
    }
    let full = MachineError::TooMany { part: Part::Cpu, limit: machine.cpus.capacity() };
    machine.cpus.try_push(Cpu { mpidr, enabled }).map_err(|_| full)?;
    if !enabled {
        return Ok(None);
    }
    if machine.gic.maintenance == Intid(0) {
        machine.gic.maintenance = Intid(entry.u32(56)?);
    }
    let redist = entry.u64(60)?;
    machine.gic.non_coherent |= flagged && redist != 0 && flags & GICC_NON_COHERENT != 0;
    Ok((redist != 0).then_some(Pa(redist)))
}

/// Adds the frames that are not used.
fn read_unused(madt: Fields<'_>, redist_size: u64, machine: &mut Machine) -> Result<(), AcpiError> {
    for entry in madt.entries(ENTRIES) {
        let frames = match entry? {
            (GICC, entry) => {
                let exists = entry.u32(12)? & (ENABLED | ONLINE_CAPABLE) != 0;
                let interface = |at| if exists { entry.u64(at) } else { Ok(0) };
                // The entry of a CPU that does not exist may be garbage but for its flags. If that could be the address
                // of a redistributor, it is taken for one: that costs dom0 a hole at most.
                let redist = entry.u64(60).unwrap_or(0);
                let used = machine.gic.redists.iter().any(|region| region.contains(Pa(redist)));
                let redist = if redist.is_multiple_of(FRAME) && !used { redist } else { 0 };
                // GICC, GICV and GICH.
                [
                    (interface(32)?, CPU_INTERFACE),
                    (interface(40)?, CPU_INTERFACE),
                    (interface(48)?, CPU_INTERFACE),
                    (redist, redist_size),
                ]
            }
            (GIC_MSI_FRAME, entry) => [(entry.u64(8)?, MSI_FRAME), (0, 0), (0, 0), (0, 0)],
            _ => continue,
        };
        for (base, size) in frames {
            if base != 0 {
                machine.gic.add_unused(Range::new(Pa(base), size))?;
            }
        }
    }
    Ok(())
}

/// Sorts the CPUs' redistributors and returns the size of one.
fn redist_size(redists: &mut [Range], version: u8) -> u64 {
    redists.sort_unstable();
    match version {
        3 => GICV3_REDIST,
        4 => GICV4_REDIST,
        _ => {
            // Only the GIC's registers tell; but so does the distance between two neighbours.
            let gap = redists.array_windows().map(|[a, b]| b.base.0 - a.base.0).min();
            if gap.is_some_and(|gap| gap >= GICV4_REDIST) { GICV4_REDIST } else { GICV3_REDIST }
        }
    }
}

/// Joins adjacent redistributors to regions.
fn join(redists: &[Range], size: u64, machine: &mut Machine) {
    for redist in redists {
        match machine.gic.redists.last_mut() {
            Some(last) if last.end() == redist.base => last.size += size,
            // Cannot fail: there is room for one region per CPU.
            _ => machine.gic.redists.extend([Range::new(redist.base, size)]),
        }
    }
}
