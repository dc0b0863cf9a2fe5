//! PCI functions, and configuration space that EL2 shows to a domain other than it is.
//!
//! | file | contents |
//! |---|---|
//! | this file | [`ConfigSpace`]: loads and stores of configuration space |
//! | `regs` | the registers that this room knows |
//! | [`topology`] | which bridges are above a function, and by which other numbers it answers |
//! | [`bridge`] | a bridge above a hidden function: which of its registers a domain cannot change |
//! | [`function`] | what a physical function is |
//! | [`groups`] | which functions cannot be kept apart, and so go to one domain |
//! | [`assign`] | where the BARs of functions are that are given to domains |
//! | [`reset`] | the reset of a function before and after a domain has it |
//! | [`virt`] | a function as a domU sees it |
//! | [`host_bridge`] | the PCI host that a domU sees: its ECAM, and where BARs are mapped |
//! | `fake` | tests: a machine's configuration space in memory |
//!
//! The way of a function to a domU: [`Facts::read`](function::Facts::read) and
//! [`size_bars`](function::Facts::size_bars), [`Groups`](groups::Groups), [`assign::place`],
//! [`Reset`](reset::Reset), [`VirtualFunction::new`](virt::VirtualFunction::new),
//! [`HostBridge::new`](host_bridge::HostBridge::new), and, when the reset is done,
//! [`HostBridge::returns`](host_bridge::HostBridge::returns). The way back: [`HostBridge::leave`](host_bridge::HostBridge::leave)
//! and a reset.
//!
//! Section numbers are those of PCI Express Base 6.0, if nothing else is said.
#![deny(
    clippy::panic,
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

pub mod assign;
pub mod bridge;
#[cfg(test)]
pub(crate) mod fake;
pub mod function;
pub mod groups;
pub mod host_bridge;
mod regs;
pub mod reset;
pub mod topology;
pub mod virt;

pub use regs::BAR_COUNT;

use crate::ids::Pa;
use crate::mmio::Device;

/// Loads and stores of configuration space, by the physical address in an ECAM (7.2.2). `bytes` is 1, 2 or 4, and the
/// address is a multiple of it.
pub trait ConfigSpace {
    /// Loads a value. A function that does not exist reads as ones.
    fn read(&self, at: Pa, bytes: u8) -> u32;
    /// Stores a value.
    fn write(&self, at: Pa, bytes: u8, value: u32);

    /// Loads 32 bits.
    fn read32(&self, at: Pa) -> u32 {
        self.read(at, 4)
    }
}

/// The configuration space of the machine. EL2's stage 1 maps what is accessed.
pub struct Ecam;

impl ConfigSpace for Ecam {
    fn read(&self, at: Pa, bytes: u8) -> u32 {
        match bytes {
            1 => Device::read8(at).into(),
            2 => Device::read16(at).into(),
            _ => Device::read32(at),
        }
    }

    fn write(&self, at: Pa, bytes: u8, value: u32) {
        match bytes {
            1 => Device::write8(at, value as u8),
            2 => Device::write16(at, value as u16),
            _ => Device::write32(at, value),
        }
    }
}
