//! What a virtual ITS is made from, and what it reports.

use crate::ids::{DomId, ItsId};

/// How much of the host a guest may take through one vITS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Devices mapped at once.
    pub devices: u16,
    /// Events mapped at once, over all devices.
    pub events: u32,
    /// ITT entries, over all mapped devices: each takes a slot in EL2's heap and one in a host ITT.
    pub itt_entries: u32,
    /// EventID bits of one device; what a guest asks for beyond it is mapped but takes no events there. 11 bits are
    /// the 2048 vectors of MSI-X.
    pub device_event_bits: u8,
}

/// What a guest has mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Devices.
    pub devices: usize,
    /// Events, over all devices.
    pub events: u32,
}

/// What a command error does to the queue (IHI 0069, 5.3.1: the implementation chooses).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The command is skipped.
    Skip,
    /// GITS_CREADR.Stalled is set and the queue waits for GITS_CWRITER.Retry.
    Stall,
}

/// The shape of a vITS.
#[derive(Clone, Copy, Debug)]
pub struct VitsConfig {
    /// Whose it is, for log lines.
    pub domain: DomId,
    /// The host ITS behind it.
    pub its: ItsId,
    /// DeviceID bits, 1 to 32.
    pub device_bits: u8,
    /// EventID bits, 1 to 32.
    pub event_bits: u8,
    /// Collection number bits, 1 to 16. Linux uses its CPU numbers.
    pub collection_bits: u8,
    /// INTID bits, 14 to 24: a vINTID is one of 8192..2^id_bits.
    pub id_bits: u8,
    /// What the guest may use up.
    pub quota: Quota,
    /// What a command error does.
    pub on_error: OnError,
}

/// Why a vITS cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// A number is outside what its documentation says; which one.
    OutOfRange(&'static str),
    /// No memory for the shadow state.
    NoMemory,
}

/// Whether all that the guest asked for is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a vCPU may not go on before the work is done"]
pub enum Progress {
    /// Nothing is left to do.
    Done,
    /// [`Vits::run`] is to be called again.
    More,
}
