//! Errors of the verbs on VMs and vPEs.

use crate::gic::error::ItsError;
use crate::ids::{CpuId, VIntid, VpeId};
use core::fmt;

/// Why an operation on a VM or a vPE failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum V4Error {
    /// Out of memory.
    NoMemory,
    /// All vPEIDs are in use: the interrupts of this vCPU are injected by software.
    NoVpeId,
    /// All LPIs are in use: there is none for a doorbell.
    NoLpi,
    /// There is no such VM.
    NoSuchVm,
    /// There is no such vPE.
    NoSuchVpe(VpeId),
    /// The VM still has vPEs.
    HasVpes,
    /// The vPE is resident, or the redistributor that it left is still writing it back.
    Resident(CpuId),
    /// Events are mapped to the vPE.
    HasEvents,
    /// There is no such CPU, or its LPIs are not enabled.
    CpuOffline(CpuId),
    /// The number of INTID bits is below 14 or above what the redistributors support.
    IdBits(u8),
    /// The vINTID is not a vLPI within the VM's configuration table.
    VIntidRange(VIntid),
    /// An ITS operation failed. Memory that the ITS may still use is never freed.
    Its(ItsError),
    /// A redistributor did not complete an operation in time.
    Redist(CpuId),
    /// The GIC interface of some CPU takes no virtual LPIs.
    Interface,
    /// There is no such virtual SGI, or the hardware has no virtual SGIs.
    NoSuchSgi(u8),
}

impl fmt::Display for V4Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            V4Error::NoMemory => write!(f, "out of memory"),
            V4Error::NoVpeId => write!(f, "all vPEIDs are in use"),
            V4Error::NoLpi => write!(f, "no LPI is left for a doorbell"),
            V4Error::NoSuchVm => write!(f, "there is no such VM"),
            V4Error::NoSuchVpe(v) => write!(f, "there is no {v}"),
            V4Error::HasVpes => write!(f, "the VM still has vPEs"),
            V4Error::Resident(c) => write!(f, "the vPE is resident on {c}"),
            V4Error::HasEvents => write!(f, "events are mapped to the vPE"),
            V4Error::CpuOffline(c) => write!(f, "LPIs of {c} are not enabled"),
            V4Error::IdBits(n) => write!(f, "{n} INTID bits are not possible"),
            V4Error::VIntidRange(v) => write!(f, "{v} is not a vLPI of the VM"),
            V4Error::Its(e) => write!(f, "{e}"),
            V4Error::Interface => write!(f, "the GIC interface of some CPU takes no virtual LPIs"),
            V4Error::NoSuchSgi(n) => write!(f, "there is no virtual SGI {n}"),
            V4Error::Redist(c) => write!(f, "the redistributor of {c} did not complete the operation in time"),
        }
    }
}

impl From<ItsError> for V4Error {
    fn from(e: ItsError) -> Self {
        V4Error::Its(e)
    }
}

/// Why a vPE could not be made resident. It is not resident, and none of its interrupts is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnterError {
    /// There is no such vPE.
    NoSuchVpe(VpeId),
    /// There is no such CPU, or its LPIs are not enabled.
    CpuOffline(CpuId),
    /// The vPE is resident on that CPU already.
    Elsewhere(CpuId),
    /// This other vPE is resident on the CPU.
    Occupied(VpeId),
    /// The vPE could not be moved, and can be entered at its present home.
    NotMoved {
        /// The vPE's present home.
        home: CpuId,
    },
    /// The vPE is being moved and the completion has not been seen: try again later, on any CPU.
    Moving,
    /// The redistributor is still writing back the previous vPE: try again later.
    Busy,
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnterError::NoSuchVpe(v) => write!(f, "there is no {v}"),
            EnterError::CpuOffline(c) => write!(f, "LPIs of {c} are not enabled"),
            EnterError::Elsewhere(c) => write!(f, "the vPE is resident on {c}"),
            EnterError::Occupied(v) => write!(f, "{v} is resident on the CPU"),
            EnterError::NotMoved { home } => write!(f, "the vPE could not be moved from {home}"),
            EnterError::Moving => write!(f, "the vPE's move is not complete"),
            EnterError::Busy => write!(f, "the redistributor is still writing back the previous vPE"),
        }
    }
}
