//! MADT: CPUs, the GIC and the ITSs (ACPI 6.5, 5.2.12.14 to 5.2.12.18).
//!
//! Redistributors are described in one of two ways. Most firmware lists regions. Some (Graviton's) lists no regions but
//! the redistributor of each CPU, without a size. It follows from the GIC's version, which only the distributor's
//! registers tell reliably, so [`Gic::size_redists`](crate::platform::Gic::size_redists) sets it later. Those that touch
//! then become one region: a gap may hold a redistributor that has been fused off and must not be accessed.
//!
//! What the table names and EL2 does not use (redistributors of disabled CPUs, memory-mapped CPU interfaces, message
//! frames) is kept in a list, so that no guest gets it.

use super::{AcpiError, Fields};
use crate::ids::{Intid, Mpidr, Pa};
use crate::platform::machine::GICV3_REDIST;
use crate::platform::{CPUS, Cpu, GicKind, ITSS, Its, Machine, MachineError, Part};
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
/// The size of a redistributor that is not used: the frames of a GICv4 (IHI 0069, 12.10), since its version is not known
/// yet. On a GICv3 that costs dom0 a hole at most.
const UNUSED_REDIST: u64 = 4 * FRAME;
/// The size of a memory-mapped CPU interface (IHI 0048, 1.3 and 5.3): GICC and GICV have 8 KiB, GICH less.
const CPU_INTERFACE: u64 = 0x2000;
/// The size of a message frame (Server Base System Architecture, appendix on GICv2m).
const MSI_FRAME: u64 = 0x1000;

/// The identifiers by which the IORT refers to the ITSs, in the order of [`Gic::itss`](crate::platform::Gic::itss).
pub(crate) type ItsNames = ArrayVec<u32, ITSS>;

/// Fills CPUs, GIC and ITSs.
pub(super) fn read(madt: Fields<'_>, machine: &mut Machine) -> Result<ItsNames, AcpiError> {
    read_distributor(madt, machine)?;
    let flagged = madt.revision() >= HAS_COHERENCE;
    let mut names = ItsNames::new();
    let mut from_cpus: ArrayVec<Range, CPUS> = ArrayVec::new();
    for entry in madt.entries(ENTRIES) {
        match entry? {
            (GICC, entry) => {
                let redist = read_cpu(entry, machine, flagged)?;
                if let Some(base) = redist {
                    // Cannot fail: there are at most as many as CPUs.
                    let _ = from_cpus.try_push(Range::new(base, GICV3_REDIST));
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
                let name = entry.u32(4)?;
                if machine.gic.itss.try_push(its).is_ok() {
                    let _ = names.try_push(name); // as large as the other
                } else {
                    machine.leave_out(Part::Its);
                    // Nor may a domain use it.
                    machine.gic.add_unused(its.control)?;
                }
            }
            _ => {}
        }
    }
    if machine.gic.redists.is_empty() {
        machine.gic.redists = from_cpus;
        machine.gic.redists_listed = true;
    }
    read_unused(madt, machine)?;
    if machine.gic.redists.is_empty() {
        return Err(MachineError::NoRedistributors.into());
    }
    if machine.gic.maintenance == Intid(0) {
        return Err(MachineError::NoMaintenance.into());
    }
    Ok(names)
}

/// Reads the distributor. The GIC version in its entry may be 0, which means that it is not stated.
fn read_distributor(madt: Fields<'_>, machine: &mut Machine) -> Result<(), AcpiError> {
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
        Some(0 | 3 | 4) => {
            machine.gic.version_hint = GicKind::V3;
            Ok(())
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
    let problem = if mpidr.0 != register {
        Some("this is no affinity: this CPU is not used")
    } else if machine.cpus.iter().any(|cpu| cpu.mpidr == mpidr) {
        Some("another CPU has the same affinity: this one is not used")
    } else if machine.cpus.is_full() {
        Some("there are too many CPUs: this one is not used")
    } else {
        None
    };
    if let Some(problem) = problem {
        machine.warn(format_args!("ACPI: CPU with MPIDR {register:#x}"), problem);
        return Ok(None);
    }
    machine.cpus.push(Cpu { mpidr, enabled });
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
fn read_unused(madt: Fields<'_>, machine: &mut Machine) -> Result<(), AcpiError> {
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
                    (redist, UNUSED_REDIST),
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
