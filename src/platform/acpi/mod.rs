//! The reader of ACPI tables.
//!
//! | table | content that is used |
//! |---|---|
//! | MADT | CPUs, distributor, redistributors, ITSs (`madt`) |
//! | FADT | the PSCI conduit (`fadt`) |
//! | GTDT | the timer's interrupts (`gtdt`) |
//! | MCFG | PCI hosts (`mcfg`); their windows are in AML and stay unknown |
//! | IORT | SMMUs, and each host's `msi_map` and `iommu_map` (`iort`) |
//! | SPCR | the console (`spcr`) |
//!
//! Memory, reservations, modules and command lines are not in these tables: the EFI application fills them in from the
//! firmware's memory map and then calls [`Machine::check`]. SRAT and all other tables are ignored.
//!
//! The firmware is trusted not to lie, but it may have bugs. Every length is checked before it is used, every list ends
//! with its table whatever its lengths say, and no input makes this code panic (`fuzz/fuzz_targets/acpi.rs`). AML is
//! not interpreted; see `build::acpi` for the consequences.

mod error;
pub(crate) mod fadt;
mod gtdt;
pub(crate) mod iort;
pub(crate) mod madt;
mod mcfg;
mod signature;
mod spcr;
mod tables;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use error::{AcpiError, Damage};
pub use fadt::dsdt;
pub use signature::Signature;
pub use tables::{Fields, HEADER, Oem, PhysicalMemory, Tables};

use super::Machine;
use crate::ids::Pa;

/// Reads the tables into `machine`, which is fresh from [`Machine::new`]. Does not call [`Machine::check`], because
/// memory is not in these tables. After an error the contents of `machine` are undefined.
///
/// # Errors
///
/// The first problem that is found in the tables.
pub fn read_into(machine: &mut Machine, rsdp: Pa, memory: &dyn PhysicalMemory) -> Result<(), AcpiError> {
    let tables = Tables::open(rsdp, memory)?;
    // First, since an unsupported GIC is the most likely reason to refuse a machine, and the most useful to report.
    let names = madt::read(tables.require(Signature::MADT)?, machine)?;
    machine.psci = fadt::conduit(tables.require(Signature::FADT)?)?;
    machine.timer = gtdt::read(tables.require(Signature::GTDT)?)?;
    optional(tables, Signature::MCFG, machine, mcfg::read);
    optional(tables, Signature::IORT, machine, |iort, machine| iort::read(iort, &names, machine));
    optional(tables, Signature::SPCR, machine, |spcr, machine| {
        machine.uart = spcr::read(spcr)?;
        Ok(())
    });
    machine.rsdp = Some(rsdp);
    Ok(())
}

/// Reads a table that a machine can start without. What follows an error in it is not used.
fn optional(
    tables: Tables<'_>,
    signature: Signature,
    machine: &mut Machine,
    read: impl FnOnce(Fields<'_>, &mut Machine) -> Result<(), AcpiError>,
) {
    match tables.find(signature) {
        Ok(None) => {}
        Ok(Some(table)) => {
            if let Err(error) = read(table, machine) {
                machine.warn(error, "the rest of this table is not used");
            }
        }
        Err(error) => machine.warn(error, "this table is not used"),
    }
}
