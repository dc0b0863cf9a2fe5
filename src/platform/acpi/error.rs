//! What can be wrong with a machine's ACPI tables, each as a sentence for the user.

use super::Signature;
use crate::ids::Pa;
use crate::platform::MachineError;
use core::fmt;

/// How a table is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It is not in memory that can be read.
    Unreachable,
    /// Its header gives a length that no such table has.
    Length(u32),
    /// Its bytes do not add up to zero.
    Checksum,
}

/// Why a machine's ACPI tables were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// No RSDP of ACPI 2.0 or later at this address.
    NoRsdp(Pa),
    /// A table that is needed is absent.
    Missing(Signature),
    /// A table is damaged.
    Damaged {
        /// Which.
        table: Signature,
        /// Where.
        at: Pa,
        /// How.
        damage: Damage,
    },
    /// A table, or an entry of it, ends before its last field.
    Short(Signature),
    /// An entry's length says that the next one is at the same place or behind the table's end.
    BadEntry(Signature),
    /// The tables can be read, but no machine is like that.
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
            AcpiError::NoRsdp(at) => write!(f, "there is no ACPI root pointer of version 2 or later at {at}"),
            AcpiError::Missing(table) => write!(f, "the firmware has no ACPI table {table}"),
            AcpiError::Damaged { table, at, damage: Damage::Unreachable } => {
                write!(f, "the ACPI table {table} at {at} is not in readable memory")
            }
            AcpiError::Damaged { table, at, damage: Damage::Length(length) } => {
                write!(f, "the ACPI table {table} at {at} cannot have {length} bytes")
            }
            AcpiError::Damaged { table, at, damage: Damage::Checksum } => {
                write!(f, "the ACPI table {table} at {at} has a wrong checksum")
            }
            AcpiError::Short(table) => write!(f, "the ACPI table {table} ends in the middle of a field"),
            AcpiError::BadEntry(table) => write!(f, "the ACPI table {table} has an entry of impossible length"),
            AcpiError::Machine(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for AcpiError {}
