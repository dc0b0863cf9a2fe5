//! The protocol between Doorward and the tools of dom0, for both sides: frames over a byte stream, requests, answers and
//! events.
//!
//! | file | contents |
//! |---|---|
//! | `frame` | [`Header`], [`Frame`]; [`Parser`], which finds frames in a stream |
//! | `wire` | how values are written into a body, and read from it |
//! | `request` | [`Request`]: all that can be asked |
//! | `answer` | the bodies of answers |
//! | `event` | [`Event`]: what comes unasked, on a stream of its own |
//! | `status` | [`Status`]: how a request ended, with a sentence for each |
//! | `name` | [`Name`]: the name of a domain |
//! | `values` | states and settings that are one byte |
//!
//! `docs/management.md` describes the same for readers who write a client in another language. What has to hold on both
//! sides:
//!
//! * **All numbers are little-endian**, without padding and without alignment.
//! * **A request that is not understood changes nothing.** A request's body has exactly the fields that its kind has: one
//!   byte more is an error, since a server must not carry out half of what it was asked.
//! * **An answer may grow.** A reader ignores what follows the fields that it knows, so a later server can append some.
//! * **The header never changes**, whatever the version: a server can always say which versions it speaks.
//! * **A client uses a tag once**, and ignores answers with other tags: one that was meant for a client before it, which
//!   was killed, is not taken for its own.
//!
//! Nothing here allocates, and nothing panics, whatever the input.
#![cfg_attr(not(test), no_std)]
#![deny(
    clippy::panic,
    clippy::todo,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    allow(
        clippy::panic,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod answer;
mod event;
mod frame;
mod name;
mod request;
mod status;
mod values;
mod wire;

#[cfg(test)]
mod tests;

pub use answer::{
    Built, Chosen, Counter, CounterPage, Cpu, CpuPage, Created, Detail, Domain, Info, LogChunk, PciFunction, PciPage,
    Vcpu, VcpuPage,
};
pub use event::{EVENT, Event};
pub use frame::{FRAME_MAX, Frame, HEADER_LEN, Header, MAGIC, MAX_BODY, Parser};
pub use name::{InvalidName, NAME_MAX, Name};
pub use request::{Assign, CountersFrom, Set, VcpusFrom};
pub use request::{
    CHUNK_MAX, CMDLINE_MAX, Create, Image, ImageChunk, Kind, Request, Setting, Start, Versions, Watchdog,
};
pub use status::Status;
pub use values::{CpuState, DomainState, EventKind, ImageKind, OnCrash, Sbdf, Scope, VcpuState, Vwfi};
pub use wire::{Body, CpuSet, Empty, List, Malformed, NoRoom};

/// The version of the protocol that this crate describes. Header byte 3 of each request, but that of `version`.
pub const VERSION: u8 = 1;

/// The name of the port for requests and answers; the file is `/dev/virtio-ports/org.doorward.control`.
pub const CONTROL_PORT: &str = "org.doorward.control";

/// The name of the port for events.
pub const EVENTS_PORT: &str = "org.doorward.events";

/// Where the names of ports of domains' consoles begin and end: `domain.NAME.console`.
pub const CONSOLE_PORT: (&str, &str) = ("domain.", ".console");

/// "All vCPUs" where a request names a vCPU; "no more" where an answer names what to ask for next; "none" where it names
/// a CPU or a domain.
pub const ALL: u32 = u32::MAX;
