//! The signatures of ACPI tables.

use core::fmt;

/// The four-letter signature of a table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature(pub [u8; 4]);

impl Signature {
    /// The multiple APIC description table: CPUs and interrupt controllers.
    pub const MADT: Signature = Signature(*b"APIC");
    /// The fixed ACPI description table: PSCI, and the address of the DSDT.
    pub const FADT: Signature = Signature(*b"FACP");
    /// The generic timer description table.
    pub const GTDT: Signature = Signature(*b"GTDT");
    /// The table of PCI configuration spaces.
    pub const MCFG: Signature = Signature(*b"MCFG");
    /// The I/O remapping table: the translation of requester IDs.
    pub const IORT: Signature = Signature(*b"IORT");
    /// The serial port console redirection table.
    pub const SPCR: Signature = Signature(*b"SPCR");
    /// The differentiated system description table: devices, in AML.
    pub const DSDT: Signature = Signature(*b"DSDT");
    /// A secondary system description table: more devices.
    pub const SSDT: Signature = Signature(*b"SSDT");
    /// The extended system description table: the addresses of the other tables.
    pub const XSDT: Signature = Signature(*b"XSDT");
    /// The status override table: devices in the namespace that the operating system must not use.
    pub const STAO: Signature = Signature(*b"STAO");
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in &self.0 {
            fmt::Write::write_char(f, if byte.is_ascii_graphic() { char::from(byte) } else { '?' })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
