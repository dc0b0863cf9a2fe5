//! Why an operation on an SMMU failed.

use super::command::Command;
use crate::ids::{Pa, StreamId, VmId};
use core::fmt;

/// Why an SMMU cannot be used, or why an operation on it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmmuError {
    /// SMMU_CR0ACK did not follow SMMU_CR0 when it was disabled.
    DisableTimeout,
    /// SMMU_CR0ACK did not follow SMMU_CR0 when it, or a queue, was enabled.
    EnableTimeout,
    /// SMMU_IRQ_CTRLACK did not follow SMMU_IRQ_CTRL.
    IrqTimeout,
    /// SMMU_GBPA.Update did not clear.
    GbpaTimeout,
    /// SMMU_GBPA.ABORT does not keep what was written.
    AbortStuck,
    /// The firmware describes fewer registers than an SMMUv3 has.
    RegistersTooShort,
    /// Stage 2 is not implemented (IDR0.S2P), or not with the tables that CPUs use: VMSAv8-64 (IDR0.TTF),
    /// little-endian (IDR0.TTENDIAN), with a granule of 4 KiB (IDR5.GRAN4K).
    NoStage2,
    /// Each fault stalls the transaction (IDR0.STALL_MODEL), so a device could hold up others.
    StallsForced,
    /// Tables or queues are at fixed addresses (IDR1.TABLES_PRESET, QUEUES_PRESET).
    Preset,
    /// No memory for a queue or a table.
    OutOfMemory,
    /// The SMMU cannot address this memory, which is EL2's.
    Unreachable(Pa),
    /// The StreamID is beyond the stream table.
    BadStream(StreamId),
    /// The VMID has more bits than the SMMU has (IDR0.VMID16).
    BadVmid(VmId),
    /// The stage 2 cannot be used by the SMMU.
    BadView(BadView),
    /// The SMMU refused a command.
    Refused(Command, Reason),
    /// Commands were not executed within 100 ms.
    Timeout,
    /// It has made no progress with commands for a second, and was disabled.
    Dead,
}

impl SmmuError {
    /// Whether an assignment that failed so has changed nothing.
    #[must_use]
    pub const fn leaves_all_as_it_was(self) -> bool {
        use SmmuError::{BadStream, BadView, BadVmid, OutOfMemory, Unreachable};
        matches!(self, BadStream(_) | BadVmid(_) | BadView(_) | OutOfMemory | Unreachable(_))
    }
}

/// What of a stage 2 an SMMU does not support.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadView {
    /// Addresses have more bits than the SMMU outputs.
    AddressBits {
        /// The bits of the view: the larger of its input and its output address size.
        view: u8,
        /// The bits of the SMMU.
        smmu: u8,
    },
    /// The root table is beyond the output address size, or not aligned to its size.
    Root(Pa),
    /// VTCR_EL2 has a granule other than 4 KiB or a reserved value.
    Vtcr(u64),
    /// The tables have attributes as with HCR_EL2.FWB, which the SMMU lacks (IDR3.FWB).
    Fwb,
}

/// Why an SMMU refused a command (CMDQ_CONS.ERR; 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// CERROR_ILL: the command, or a field of it, is invalid.
    Illegal,
    /// CERROR_ABT: reading the command was aborted.
    Abort,
    /// Another one.
    Other(u8),
}

impl Reason {
    /// The reason with this number.
    #[must_use]
    pub const fn new(err: u8) -> Reason {
        match err {
            1 => Reason::Illegal,
            2 => Reason::Abort,
            other => Reason::Other(other),
        }
    }
}

impl fmt::Display for SmmuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            SmmuError::DisableTimeout | SmmuError::EnableTimeout => {
                f.write_str("CR0ACK did not follow CR0 within 100 ms")
            }
            SmmuError::IrqTimeout => f.write_str("IRQ_CTRLACK did not follow IRQ_CTRL within 100 ms"),
            SmmuError::GbpaTimeout => f.write_str("GBPA.Update did not clear within 100 ms"),
            SmmuError::AbortStuck => f.write_str("GBPA.ABORT cannot be changed"),
            SmmuError::RegistersTooShort => f.write_str("the firmware describes fewer registers than an SMMUv3 has"),
            SmmuError::NoStage2 => f.write_str("it has no stage 2 with 64-bit tables of 4 KiB"),
            SmmuError::StallsForced => f.write_str("it stalls each faulting transaction"),
            SmmuError::Preset => f.write_str("its tables or queues are at fixed addresses"),
            SmmuError::OutOfMemory => f.write_str("no memory for a queue or a table"),
            SmmuError::Unreachable(pa) => write!(f, "it cannot address EL2's memory at {pa}"),
            SmmuError::BadStream(stream) => write!(f, "{stream} is beyond the stream table"),
            SmmuError::BadVmid(vmid) => write!(f, "{vmid} has too many bits"),
            SmmuError::BadView(view) => view.fmt(f),
            SmmuError::Refused(command, reason) => write!(f, "it refused {command}: {reason}"),
            SmmuError::Timeout => f.write_str("commands were not executed within 100 ms"),
            SmmuError::Dead => f.write_str("it has stopped and was disabled"),
        }
    }
}

impl fmt::Display for BadView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            BadView::AddressBits { view, smmu } => {
                write!(f, "the stage 2 has addresses of {view} bits, the SMMU of {smmu} bits")
            }
            BadView::Root(pa) => write!(f, "the stage 2 tables at {pa} are misaligned, or out of reach of the SMMU"),
            BadView::Vtcr(vtcr) => {
                write!(f, "the SMMU does not support stage 2 tables as VTCR_EL2 = {vtcr:#x} has them")
            }
            BadView::Fwb => f.write_str("the stage 2 tables are for FEAT_S2FWB, which the SMMU lacks"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Reason::Illegal => f.write_str("illegal"),
            Reason::Abort => f.write_str("aborted while it was read"),
            Reason::Other(err) => write!(f, "error {err}"),
        }
    }
}

impl core::error::Error for SmmuError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_what_is_wrong() {
        use std::string::ToString;
        let refused = SmmuError::Refused(crate::smmu::command::Command::sync(), Reason::Abort).to_string();
        assert_eq!(refused, "it refused SYNC (0x46, 0x0): aborted while it was read");
        assert_eq!(SmmuError::BadView(BadView::Fwb).to_string(), BadView::Fwb.to_string());
        assert!(BadView::Fwb.to_string().contains("FEAT_S2FWB"));
        assert_eq!(Reason::Other(9).to_string(), "error 9");
    }

    #[test]
    fn only_what_is_found_before_the_first_change_leaves_all_as_it_was() {
        let before = [
            SmmuError::OutOfMemory,
            SmmuError::Unreachable(Pa(0)),
            SmmuError::BadStream(StreamId(0)),
            SmmuError::BadVmid(VmId(0)),
            SmmuError::BadView(BadView::Fwb),
        ];
        let later = [SmmuError::Timeout, SmmuError::Dead, SmmuError::Refused(Command::sync(), Reason::Illegal)];
        assert!(before.iter().all(|error| error.leaves_all_as_it_was()));
        assert!(!later.iter().any(|error| error.leaves_all_as_it_was()));
    }
}
