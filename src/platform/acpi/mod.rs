//! Reading a [`Machine`] out of ACPI tables.
//!
//! | table | what is taken from it |
//! |---|---|
//! | MADT | CPUs, distributor, redistributors, ITSs (`madt`) |
//! | FADT | how PSCI is reached (`fadt`) |
//! | GTDT | the timer's interrupts (`gtdt`) |
//! | MCFG | PCI hosts (`mcfg`); their windows are in AML and stay unknown |
//! | IORT | SMMUs, and each host's `msi_map` and `iommu_map` (`iort`) |
//! | SPCR | the console (`spcr`) |
//!
//! Memory, reservations, modules and command lines are no business of these tables: whoever took the firmware's memory
//! map fills them in, and asks [`Machine::check`] afterwards. SRAT and all other tables are passed over.
//!
//! The firmware is trusted to tell the truth but not to make no mistakes. Every length is checked before it is used,
//! every list ends with its table whatever its lengths say, and no bytes make this code panic
//! (`fuzz/fuzz_targets/acpi.rs`). AML is not interpreted: see `build::acpi` for who does.

mod error;
pub(crate) mod fadt;
mod gtdt;
pub(crate) mod iort;
pub(crate) mod madt;
mod mcfg;
mod spcr;
mod tables;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use error::{AcpiError, Damage};
pub use fadt::dsdt;
pub use tables::{Fields, HEADER, Oem, PhysicalMemory, Signature, Tables};

use super::Machine;
use crate::ids::Pa;

/// Reads the tables into a [`Machine::new`] where it lies. Does not call [`Machine::check`]: memory is not in these
/// tables. After an error the machine's contents are of no use.
///
/// # Errors
///
/// Whatever is wrong with the tables first.
pub fn read_into(machine: &mut Machine, rsdp: Pa, memory: &dyn PhysicalMemory) -> Result<(), AcpiError> {
    let tables = Tables::open(rsdp, memory)?;
    // Before anything that could fail on a machine that is refused anyway: a wrong GIC is the likely reason.
    let names = madt::read(tables.require(Signature::MADT)?, machine)?;
    machine.psci = fadt::conduit(tables.require(Signature::FADT)?)?;
    machine.timer = gtdt::read(tables.require(Signature::GTDT)?)?;
    if let Some(mcfg) = tables.find(Signature::MCFG)? {
        mcfg::read(mcfg, machine)?;
    }
    if let Some(iort) = tables.find(Signature::IORT)? {
        iort::read(iort, &names, machine)?;
    }
    if let Some(spcr) = tables.find(Signature::SPCR)? {
        machine.uart = spcr::read(spcr)?;
    }
    machine.rsdp = Some(rsdp);
    Ok(())
}
