//! The errors that ACPI tables can have.

use super::Signature;
use crate::ids::Pa;
use crate::platform::MachineError;
use core::fmt;

/// How a table is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The table is not in readable memory.
    Unreachable,
    /// The length in the header is shorter than a header, or too large.
    Length(u32),
    /// The checksum is wrong.
    Checksum,
}

/// Why the ACPI tables are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// There is no root pointer of ACPI 2.0 or later at this address.
    NoRsdp(Pa),
    /// A required table is absent.
    Missing(Signature),
    /// A table is damaged.
    Damaged {
        /// The table's signature.
        table: Signature,
        /// The table's address.
        at: Pa,
        /// The kind of damage.
        damage: Damage,
    },
    /// A table or an entry ends before its last field.
    Short(Signature),
    /// The length of an entry is zero, or extends beyond the table.
    BadEntry(Signature),
    /// The tables are intact, but the machine they describe is not supported.
    Machine(MachineError),
}

impl From<MachineError> for AcpiError {
    fn from(error: MachineError) -> AcpiError {
        AcpiError::Machine(error)
    }
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            AcpiError::NoRsdp(at) => write!(f, "ACPI: there is no root pointer of ACPI 2.0 or later at {at}"),
            AcpiError::Missing(table) => write!(f, "ACPI: table {table}: not found"),
            AcpiError::Damaged { table, at, damage: Damage::Unreachable } => {
                write!(f, "ACPI: table {table} at {at}: not in readable memory")
            }
            AcpiError::Damaged { table, at, damage: Damage::Length(length) } => {
                write!(f, "ACPI: table {table} at {at}: invalid length of {length} bytes")
            }
            AcpiError::Damaged { table, at, damage: Damage::Checksum } => {
                write!(f, "ACPI: table {table} at {at}: wrong checksum")
            }
            AcpiError::Short(table) => write!(f, "ACPI: table {table}: it ends within a field"),
            AcpiError::BadEntry(table) => write!(f, "ACPI: table {table}: an entry has an invalid length"),
            AcpiError::Machine(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for AcpiError {}
