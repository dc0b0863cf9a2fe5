//! Event records: what a device did that it may not, or why its transaction could not be carried out (IHI 0070, 7.3).

use crate::ids::{Ipa, StreamId};
use core::fmt;

/// Bytes of an event record.
pub const SIZE: u64 = 32;

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A transaction of a stream was aborted.
    Stream {
        /// The stream.
        stream: StreamId,
        /// Why.
        kind: EventKind,
        /// What it accessed, where the kind of event tells.
        access: Option<Access>,
        /// Whether the queue had no room for further events while this one was in it.
        crowded: bool,
    },
    /// At least one event before this was lost.
    Lost,
}

/// What a device accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The address that the device sent: of a stream with a view, a guest address of its domain.
    pub address: Ipa,
    /// Whether it was a write.
    pub write: bool,
}

/// Why a transaction was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// F_UUT: the transaction is of a kind that the SMMU does not support.
    Unsupported,
    /// C_BAD_STREAMID: the stream is beyond the stream table.
    BadStream,
    /// F_STE_FETCH: reading the stream's entry was aborted.
    SteFetch,
    /// C_BAD_STE: the SMMU finds the stream's entry invalid.
    BadSte,
    /// F_BAD_ATS_TREQ: a request for a translation by ATS, which no stream may make.
    AtsRequest,
    /// F_TRANSL_FORBIDDEN: an access to an address that the device claims to have translated by ATS.
    AtsTranslated,
    /// C_BAD_SUBSTREAMID: an access with a substream (PASID), which no stream may use.
    BadSubstream,
    /// F_WALK_EABT: reading a stage 2 table was aborted.
    WalkAbort,
    /// F_TRANSLATION: the view does not map the address.
    Translation,
    /// F_ADDR_SIZE: a table has an address that is too large.
    AddressSize,
    /// F_ACCESS: the access flag is clear.
    AccessFlag,
    /// F_PERMISSION: the view does not permit the access.
    Permission,
    /// F_TLB_CONFLICT, F_CFG_CONFLICT: the SMMU has cached contradictory entries.
    Conflict,
    /// Another event, by its number.
    Other(u8),
}

impl Event {
    /// Decodes a record. One that the SMMU has not written, and that is still zero, is [`Event::Lost`].
    #[must_use]
    pub(super) fn decode(record: [u64; 4], crowded: bool) -> Event {
        let [first, second, address, _] = record;
        if first as u8 == 0 {
            return Event::Lost;
        }
        let (kind, has_access) = EventKind::decode(first as u8);
        let write = second & RNW == 0;
        Event::Stream {
            stream: StreamId((first >> 32) as u32),
            kind,
            access: has_access.then_some(Access { address: Ipa(address), write }),
            crowded,
        }
    }
}

/// Bit 99: the access was a read.
const RNW: u64 = 1 << 35;

impl EventKind {
    /// The kind, and whether the record has an address.
    const fn decode(number: u8) -> (EventKind, bool) {
        match number {
            0x01 => (EventKind::Unsupported, true),
            0x02 => (EventKind::BadStream, false),
            0x03 => (EventKind::SteFetch, false),
            0x04 => (EventKind::BadSte, false),
            0x05 => (EventKind::AtsRequest, true),
            0x07 => (EventKind::AtsTranslated, true),
            0x08 => (EventKind::BadSubstream, false),
            0x0b => (EventKind::WalkAbort, true),
            0x10 => (EventKind::Translation, true),
            0x11 => (EventKind::AddressSize, true),
            0x12 => (EventKind::AccessFlag, true),
            0x13 => (EventKind::Permission, true),
            0x20 | 0x21 => (EventKind::Conflict, false),
            other => (EventKind::Other(other), false),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Event::Stream { stream, kind, access: Some(Access { address, write }), .. } => {
                write!(f, "{stream}: {} of {address}: {kind}", if write { "write" } else { "read" })
            }
            Event::Stream { stream, kind, access: None, .. } => write!(f, "{stream}: {kind}"),
            Event::Lost => f.write_str("events were lost"),
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            EventKind::Unsupported => "unsupported transaction",
            EventKind::BadStream => "beyond the stream table",
            EventKind::SteFetch => "reading its entry was aborted",
            EventKind::BadSte => "its entry is invalid",
            EventKind::AtsRequest => "ATS is not enabled",
            EventKind::AtsTranslated => "translated addresses are not accepted",
            EventKind::BadSubstream => "substreams are not enabled",
            EventKind::WalkAbort => "reading a table was aborted",
            EventKind::Translation => "not mapped",
            EventKind::AddressSize => "mapped to an address that is too large",
            EventKind::AccessFlag => "access flag clear",
            EventKind::Permission => "not permitted",
            EventKind::Conflict => "contradictory cached entries",
            EventKind::Other(number) => return write!(f, "event {number:#x}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn records_are_decoded_as_the_manual_has_them() {
        // F_PERMISSION of stage 2 (bit 103), CLASS = IN (bits 105:104), a write: RnW, bit 99, is 0.
        let record = [0x0001_2345_0000_0013, 0x0000_0280_0000_0000, 0x4_5678_9abc, 0x4_5678_9000];
        let write = Event::decode(record, false);
        let access = Some(Access { address: Ipa(0x4_5678_9abc), write: true });
        let kind = EventKind::Permission;
        assert_eq!(write, Event::Stream { stream: StreamId(0x1_2345), kind, access, crowded: false });
        assert_eq!(write.to_string(), "stream 0x12345: write of 0x456789abc: not permitted");
        // A read, with a substream that is ignored.
        let read = Event::decode([0x18_0004_5810, 0x288_0000_0000, 0x1000, 0x1000], false);
        assert_eq!(read.to_string(), "stream 0x18: read of 0x1000: not mapped");
        // C_BAD_STREAMID has no address.
        let bad = Event::decode([0xffff_ffff_0000_0002, 0, 0x55, 0], true);
        let (stream, kind) = (StreamId(u32::MAX), EventKind::BadStream);
        assert_eq!(bad, Event::Stream { stream, kind, access: None, crowded: true });
        assert_eq!(Event::decode([0xe0, 0, 0, 0], false).to_string(), "stream 0x0: event 0xe0");
        assert_eq!(Event::decode([0; 4], true), Event::Lost);
    }
}
