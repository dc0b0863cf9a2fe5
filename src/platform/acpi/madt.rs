//! MADT: CPUs, the GIC and the ITSs (ACPI 6.5, 5.2.12.14 to 5.2.12.18).
//!
//! Redistributors come in two ways. Most firmware lists regions; some (Graviton's) lists none and gives each CPU's own
//! redistributor instead, in as many runs as the machine has parts. Those are collected here and neighbours are joined
//! where one ends exactly where the next begins: a gap may hold a redistributor that has been fused off, and must not
//! be touched. Their size follows from the GIC's version.

use super::{AcpiError, Fields};
use crate::ids::{Intid, Mpidr, Pa};
use crate::platform::{Cpu, GicKind, Its, Machine, MachineError, What};
use crate::util::range::Range;
use arrayvec::ArrayVec;

/// Where the entries start.
pub(crate) const ENTRIES: usize = 44;

/// Types of entries.
pub(crate) const GICC: u8 = 0x0b;
pub(crate) const GICD: u8 = 0x0c;
pub(crate) const GICR: u8 = 0x0e;
pub(crate) const ITS: u8 = 0x0f;
/// A GICv5's interrupt routing service.
const GICV5_IRS: u8 = 0x1c;

/// GICC flags.
const ENABLED: u32 = 1 << 0;
const ONLINE_CAPABLE: u32 = 1 << 3;
const GICC_NON_COHERENT: u32 = 1 << 4;
/// GICR and ITS flags.
const NON_COHERENT: u8 = 1 << 0;
/// The first revision in which those three flags mean something.
const HAS_COHERENCE: u8 = 7;

const FRAME: u64 = 0x1_0000;
const ITS_SIZE: u64 = 2 * FRAME;
/// A redistributor without and with the frames of virtual LPIs (IHI 0069, 12.10).
const GICV3_REDIST: u64 = 2 * FRAME;
const GICV4_REDIST: u64 = 4 * FRAME;

/// What IORT calls each ITS, in the order of [`Gic::itss`](crate::platform::Gic::itss).
pub(crate) type ItsNames = ArrayVec<u32, 16>;

/// Fills CPUs, GIC and ITSs.
pub(super) fn read(madt: Fields<'_>, machine: &mut Machine) -> Result<ItsNames, AcpiError> {
    let version = read_distributor(madt, machine)?;
    let flagged = madt.revision() >= HAS_COHERENCE;
    let mut names = ItsNames::new();
    let mut from_cpus: ArrayVec<Range, { super::super::CPUS }> = ArrayVec::new();
    for entry in madt.entries(ENTRIES) {
        match entry? {
            (GICC, entry) => {
                let redist = read_cpu(entry, machine, flagged)?;
                if let Some(base) = redist {
                    // As many as there are CPUs at most, so there is room.
                    let _ = from_cpus.try_push(Range::new(base, 0));
                }
            }
            (GICR, entry) => {
                machine.gic.non_coherent |= flagged && entry.u8(2)? & NON_COHERENT != 0;
                let region = Range::new(Pa(entry.u64(4)?), u64::from(entry.u32(12)?));
                let full = MachineError::TooMany { what: What::Redistributors, limit: machine.gic.redists.capacity() };
                machine.gic.redists.try_push(region).map_err(|_| full)?;
            }
            (ITS, entry) => {
                let its = Its {
                    control: Range::new(Pa(entry.u64(8)?), ITS_SIZE),
                    non_coherent: flagged && entry.u8(2)? & NON_COHERENT != 0,
                };
                let full = MachineError::TooMany { what: What::Its, limit: machine.gic.itss.capacity() };
                machine.gic.itss.try_push(its).map_err(|_| full)?;
                names.try_push(entry.u32(4)?).map_err(|_| full)?;
            }
            _ => {}
        }
    }
    if machine.gic.redists.is_empty() {
        join(&mut from_cpus, version, machine);
    }
    if machine.gic.redists.is_empty() {
        return Err(MachineError::NoRedistributors.into());
    }
    if machine.gic.maintenance == Intid(0) {
        return Err(MachineError::NoMaintenance.into());
    }
    Ok(names)
}

/// The distributor and the version that it is said to have, 0 where that is not said.
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

/// A CPU, and where its redistributor is if that is said. CPUs that are neither enabled nor can become so are no CPUs;
/// one that can is listed as disabled, and its redistributor is left alone.
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
    let full = MachineError::TooMany { what: What::Cpu, limit: machine.cpus.capacity() };
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

/// Gives the CPUs' redistributors their size and joins those that touch.
fn join(redists: &mut [Range], version: u8, machine: &mut Machine) {
    redists.sort_unstable();
    let size = match version {
        3 => GICV3_REDIST,
        4 => GICV4_REDIST,
        _ => {
            // The GIC would have to be asked. Two neighbours say it as well.
            let gap = redists.array_windows().map(|[a, b]| b.base.0 - a.base.0).min();
            if gap.is_some_and(|gap| gap >= GICV4_REDIST) { GICV4_REDIST } else { GICV3_REDIST }
        }
    };
    for redist in redists {
        match machine.gic.redists.last_mut() {
            Some(last) if last.end() == redist.base => last.size += size,
            // There is a region for each CPU.
            _ => machine.gic.redists.extend([Range::new(redist.base, size)]),
        }
    }
}
