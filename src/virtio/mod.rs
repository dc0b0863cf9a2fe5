//! virtio devices that guests see: the split virtqueue, the registers of virtio over MMIO, and the console with several
//! ports.
//!
//! | file | contents |
//! |---|---|
//! | `mod.rs` | [`Guest`]: what a device asks of its domain |
//! | [`queue`] | a split virtqueue over guest memory |
//! | [`port`] | a port: a named stream of bytes in each direction |
//! | `slot`, [`console`] | how ports are announced to the driver; the console device: control messages, and the bytes of ports |
//! | [`mmio`] | the registers |
//! | [`device`] | a console device behind its lock |
//! | [`set`] | sets of ports |
//!
//! Everything that a driver can write is checked when it is used: addresses against the domain's RAM, numbers against the
//! size of the queue, the length of chains against the number of descriptors. A driver that breaks a rule has broken its
//! device: it sets DEVICE_NEEDS_RESET and does nothing more until the driver resets it (virtio 1.2, 2.1.2). What one
//! access causes is done in steps of bounded length ([`console::BUDGET`]).
//!
//! Nothing here knows what a port is for.
//!
//! Virtual I/O Device (VIRTIO) Version 1.2: chapters 2 (queues, status), 4.2 (MMIO) and 5.3 (console).
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

pub mod console;
pub mod device;
pub mod mmio;
pub mod port;
pub mod queue;
pub mod set;
mod slot;

#[cfg(test)]
mod behaviour;
#[cfg(any(test, fuzzing))]
pub mod fake;

use crate::ids::Ipa;

/// What a device asks of its domain.
///
/// Called with the lock of the device held: an implementation takes locks of higher ranks only and does not call back.
pub trait Guest {
    /// Copies from the guest's memory. Returns `false` unless all of it is memory of the domain.
    #[must_use]
    fn read(&self, at: Ipa, into: &mut [u8]) -> bool;
    /// Copies to the guest's memory. Returns `false`, and copies nothing, unless all of it is memory of the domain.
    #[must_use]
    fn write(&self, at: Ipa, from: &[u8]) -> bool;
    /// Loads a little-endian number of 16 bits in one access. `None` unless it is memory of the domain, and `at` is even.
    fn load16(&self, at: Ipa) -> Option<u16>;
    /// Stores a little-endian number of 16 bits in one access. Returns `false` as [`load16`](Guest::load16) returns
    /// `None`.
    #[must_use]
    fn store16(&self, at: Ipa, value: u16) -> bool;
    /// Sets the level of the device's interrupt line.
    fn set_line(&self, high: bool);
}
