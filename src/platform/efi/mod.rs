//! Parsers of the input of an EFI application: configuration file, load options, memory map.
//!
//! All of it is untrusted input. It is parsed here, from slices and without a heap, so that it can be tested on the
//! host. The calls of the firmware are in `boot::efi`.

mod config;
mod domain_section;
mod load_options;
mod memory_map;

pub use config::{Config, ConfigError, File, Problem};
pub use domain_section::DomainSection;
pub use load_options::{LoadOptions, to_utf8};
pub use memory_map::{BadDescriptorSize, Descriptor, MemoryMap};

use core::fmt;

/// The source of the machine's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// A device tree, from the firmware or from a file.
    Fdt,
    /// ACPI tables of UEFI firmware.
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
