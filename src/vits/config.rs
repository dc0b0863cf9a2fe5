//! What a virtual ITS is made from, and what it reports.

use crate::ids::{DomId, ItsId};

/// Limits of the host's resources that a guest may use through one virtual ITS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Number of devices that are mapped at the same time.
    pub devices: u16,
    /// Number of events that are mapped at the same time, over all devices.
    pub events: u32,
    /// Number of ITT entries, over all mapped devices. Each takes a slot in EL2's heap and one in a physical ITT.
    pub itt_entries: u32,
    /// EventID bits that a device takes at least, whatever the guest asks for: those of the smallest ITT on the host.
    pub min_event_bits: u8,
    /// EventID bits of one device. A guest may map a device with more, but cannot map the events beyond. The 2048
    /// vectors of MSI-X need 11 bits.
    pub device_event_bits: u8,
}

/// How much of its quota a guest uses.
#[cfg(any(test, fuzzing))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Number of mapped devices.
    pub devices: usize,
    /// Number of mapped events, over all devices.
    pub events: u32,
}

/// What a command error does to the queue. IHI 0069, 5.3.1 leaves that to the implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The command is skipped.
    Skip,
    /// GITS_CREADR.Stalled is set and the queue waits for GITS_CWRITER.Retry.
    Stall,
}

/// What a virtual ITS is made from.
#[derive(Clone, Copy, Debug)]
pub struct VitsConfig {
    /// Its domain, for log lines.
    pub domain: DomId,
    /// The physical ITS behind it.
    pub its: ItsId,
    /// DeviceID bits, 1 to 32.
    pub device_bits: u8,
    /// EventID bits, 1 to 32.
    pub event_bits: u8,
    /// Collection number bits, 1 to 16. Linux uses its CPU numbers.
    pub collection_bits: u8,
    /// INTID bits, 14 to 24: a vINTID is one of 8192..2^id_bits.
    pub id_bits: u8,
    /// What the guest may use.
    pub quota: Quota,
    /// What a command error does.
    pub on_error: OnError,
}

/// Why a virtual ITS cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The field of this name is out of its documented range.
    OutOfRange(&'static str),
    /// There is no memory for the shadow state.
    NoMemory,
}
