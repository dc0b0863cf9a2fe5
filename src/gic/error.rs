//! Errors of bring-up and of the verbs on devices and events.
//!
//! They stand below every other file of the driver: the redistributors report [`GicError`], and the ITSs, which use the
//! redistributors, report [`ItsError`].

use super::table::TableError;
use crate::ids::{CpuId, DeviceId, EventId, ItsId, Lpi, VIntid, VpeId};
use core::fmt;

/// Why the GIC, or one CPU's part of it, cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicError {
    /// The distributor's architecture revision is neither 3 nor 4.
    NotGicV3(u32),
    /// The distributor did not complete a register write in time, or does not support affinity routing.
    Distributor,
    /// No redistributor has this CPU's affinity.
    NoRedistributor(CpuId),
    /// There is no such CPU.
    NoSuchCpu(CpuId),
    /// The CPU's redistributor did not leave its low-power state in time.
    Asleep(CpuId),
    /// The CPU's redistributor did not complete a register write in time, or did not keep the value.
    RegisterWrite(CpuId),
    /// An earlier owner of the machine left GICR_CTLR.EnableLPIs set and it cannot be cleared: the redistributor uses
    /// tables that are neither ours nor in reserved memory, or another configuration table than the others.
    LpisStuckOn(CpuId),
    /// The CPU's GIC interface does not take virtual LPIs or SGIs, which guests may already use.
    Interface(CpuId, &'static str),
    /// There is no vPE table for the CPU's redistributor (GICv4.1).
    VpeTable(CpuId, TableError),
    /// Out of memory.
    NoMemory,
    /// An ITS could not map the CPU's collection.
    Collection(ItsId, ItsError),
}

impl fmt::Display for GicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GicError::NotGicV3(rev) => write!(f, "the interrupt controller is not a GICv3 or GICv4 (ArchRev {rev})"),
            GicError::Distributor => write!(f, "the GIC distributor does not complete register writes"),
            GicError::NoRedistributor(c) => write!(f, "no GIC redistributor has the affinity of {c}"),
            GicError::NoSuchCpu(c) => write!(f, "the GIC has no {c}"),
            GicError::Asleep(c) => write!(f, "the GIC redistributor of {c} does not wake up"),
            GicError::RegisterWrite(c) => write!(f, "the GIC redistributor of {c} does not complete register writes"),
            GicError::LpisStuckOn(c) => {
                write!(
                    f,
                    "LPIs of {c} were left enabled and cannot be disabled: its redistributor keeps foreign tables, and other \
                     CPUs use LPIs"
                )
            }
            GicError::Interface(c, what) => {
                write!(f, "the GIC interface of {c} takes no virtual {what}, which guests may already use")
            }
            GicError::VpeTable(c, e) => write!(f, "no vPE table for the GIC redistributor of {c}: {e}"),
            GicError::NoMemory => write!(f, "out of memory for GIC tables"),
            GicError::Collection(its, e) => write!(f, "{its} did not map a CPU's collection: {e}"),
        }
    }
}

/// Why an operation on an event or a device failed. What it names is unchanged unless the variant says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItsError {
    /// There is no such ITS, or it could not be brought up.
    NoSuchIts(ItsId),
    /// The ITS has been declared dead.
    Dead,
    /// The commands were posted and will take effect, but their completion was not seen in time; or, if the command
    /// queue stayed full, nothing was posted.
    Timeout,
    /// The device is not mapped.
    NoSuchDevice(DeviceId),
    /// The device is mapped already.
    DeviceMapped(DeviceId),
    /// The DeviceID is beyond the ITS's device table, or reserved by the driver.
    DeviceRange(DeviceId),
    /// The device has been given to a domain already.
    DeviceOwned(DeviceId),
    /// The number of EventID bits is 0 or more than the ITS supports.
    EventBits(u8),
    /// The EventID is beyond the device's translation table.
    EventRange(EventId),
    /// The event is mapped already.
    EventMapped(EventId),
    /// The event is unmapped, or is physical where a virtual one is needed, or the other way round.
    EventState(EventId),
    /// There is no such LPI.
    LpiRange(Lpi),
    /// The vINTID is not a vLPI within the VM's configuration table.
    VIntidRange(VIntid),
    /// There is no such vPE.
    NoSuchVpe(VpeId),
    /// The vPE belongs to another VM than the event's present one.
    OtherVm(VpeId),
    /// The ITS does not support virtual LPIs.
    NotVirtual,
    /// There is no such CPU, or its LPIs are not enabled.
    CpuOffline(CpuId),
    /// Out of memory.
    NoMemory,
    /// An ITS register did not keep the value that was written to it.
    Register,
    /// The ITS did not become quiescent in time.
    NotQuiescent,
    /// A table could not be set up.
    Table(TableError),
}

impl fmt::Display for ItsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ItsError::NoSuchIts(its) => write!(f, "there is no {its}"),
            ItsError::Dead => write!(f, "the ITS is dead"),
            ItsError::Timeout => write!(f, "the ITS did not complete its commands in time"),
            ItsError::NoSuchDevice(d) => write!(f, "{d} is not mapped"),
            ItsError::DeviceMapped(d) => write!(f, "{d} is mapped already"),
            ItsError::DeviceOwned(d) => write!(f, "{d} has been given to another domain"),
            ItsError::DeviceRange(d) => write!(f, "{d} is beyond the device table"),
            ItsError::EventBits(n) => write!(f, "{n} EventID bits are not possible"),
            ItsError::EventRange(e) => write!(f, "{e} is beyond the device's translation table"),
            ItsError::EventMapped(e) => write!(f, "{e} is mapped already"),
            ItsError::EventState(e) => write!(f, "{e} is not mapped that way"),
            ItsError::LpiRange(l) => write!(f, "there is no {l}"),
            ItsError::VIntidRange(v) => write!(f, "{v} is not a vLPI of the VM"),
            ItsError::NoSuchVpe(v) => write!(f, "there is no {v}"),
            ItsError::OtherVm(v) => write!(f, "{v} belongs to another VM"),
            ItsError::NotVirtual => write!(f, "the ITS does not support virtual LPIs"),
            ItsError::CpuOffline(c) => write!(f, "LPIs of {c} are not enabled"),
            ItsError::NoMemory => write!(f, "out of memory"),
            ItsError::Register => write!(f, "an ITS register did not keep the value written to it"),
            ItsError::NotQuiescent => write!(f, "the ITS does not become quiescent"),
            ItsError::Table(e) => write!(f, "an ITS table could not be set up: {e}"),
        }
    }
}

impl From<TableError> for ItsError {
    fn from(e: TableError) -> Self {
        match e {
            TableError::Memory => ItsError::NoMemory,
            e => ItsError::Table(e),
        }
    }
}
