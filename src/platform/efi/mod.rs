//! What UEFI firmware and its boot manager say: the configuration file, the load options, the memory map.
//!
//! All of it is text and tables from outside, so all of it is read here, over slices and without a heap, where the
//! host tests it. Calling the firmware is `boot::efi`'s business.

mod config;
mod load_options;
mod memory_map;

pub use config::{Config, ConfigError, File, Problem};
pub use load_options::{LoadOptions, to_utf8};
pub use memory_map::{Descriptor, MemoryMap, OutOfOrder};

use core::fmt;

/// What described the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// A device tree, whoever gave it.
    Fdt,
    /// ACPI tables, under UEFI.
    Acpi,
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Firmware::Fdt => "a device tree",
            Firmware::Acpi => "ACPI tables",
        })
    }
}
