//! dom0's ACPI tables.
//!
//! | table | in dom0 |
//! |---|---|
//! | FADT | the host's: PSCI by HVC, no reset register, no FACS, the DSDT's copy |
//! | MADT | new: a GICC for each vCPU, with the UID of the CPU in AML; a GICv3, one redistributor region, the ITSs |
//! | GTDT, MCFG, DSDT, SSDTs | copies |
//! | IORT | without SMMUs (`iort`) |
//! | SPCR | dom0's PL011; on a machine with a 16550 the host's table, with a STAO that hides that device |
//! | SSDT | on a machine with a 16550 one more, which describes dom0's PL011 |
//! | SSDT | one more for dom0's console device with ports |
//! | all others | left out: topology, NUMA, error sources and power management are of hardware that dom0 has in part |
//!
//! The tables, an EFI system table and a memory map are placed together in dom0's memory. The memory map marks that
//! memory as ACPI's, so that kernels keep it.

use crate::build::acpi::efi::{Blob, DESCRIPTOR, add_system_table, memory_map, stub_tree};
use crate::build::acpi::places::Places;
use crate::build::acpi::{aml, iort};
use crate::build::fdt::edit::Dom0Plan;
use crate::ids::{Mpidr, Pa};
use crate::platform::acpi::{AcpiError, Fields, HEADER, Signature, Tables, dsdt, fadt, madt};
use crate::platform::{Machine, UartKind};
use crate::util::range::Range;
use alloc::vec::Vec;
use core::fmt;

/// Distance in bytes from the device tree, which is smaller than this, to the tables.
const TABLES_OFFSET: u64 = 0x1_0000;
/// Granularity in bytes of the memory that is kept: the largest page size of kernels, which keep whole pages.
const GRAIN: u64 = 0x1_0000;

/// Why there are no tables for dom0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dom0AcpiError {
    /// The host's tables are damaged.
    Host(AcpiError),
    /// No CPU of the host has this vCPU's affinity.
    NoSuchCpu(Mpidr),
    /// The tables are larger than the memory for them.
    TooLarge {
        /// The size that is needed, in bytes.
        size: u64,
    },
}

impl From<AcpiError> for Dom0AcpiError {
    fn from(error: AcpiError) -> Dom0AcpiError {
        Dom0AcpiError::Host(error)
    }
}

impl fmt::Display for Dom0AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dom0AcpiError::Host(error) => write!(f, "{error}"),
            Dom0AcpiError::NoSuchCpu(mpidr) => write!(f, "no CPU in the ACPI tables has the affinity {mpidr}"),
            Dom0AcpiError::TooLarge { size } => {
                write!(f, "the tables need {} KiB, more than there is room for", size >> 10)
            }
        }
    }
}

impl core::error::Error for Dom0AcpiError {}

/// Returns the block of memory to copy to `room`: first the device tree that has only `/chosen`, then the tables.
///
/// # Errors
///
/// [`Dom0AcpiError`].
pub fn build(
    host: &Tables<'_>,
    machine: &Machine,
    plan: &Dom0Plan<'_>,
    places: &Places,
    room: Range,
) -> Result<Vec<u8>, Dom0AcpiError> {
    let base = room.base.add(TABLES_OFFSET);
    let mut blob = Blob::new(base);
    let rsdp = add_tables(&mut blob, host, machine, plan, places)?;
    let system_table = add_system_table(&mut blob, rsdp);
    // The map's size does not depend on that of the tables. They split one bank, which adds at most two descriptors.
    let map_size = memory_map(plan.memory, room).len() as u64 + 3 * u64::from(DESCRIPTOR);
    let tables = blob.into_bytes();
    let map_at = base.add(tables.len().next_multiple_of(64) as u64);
    let kept = Range::new(base, (map_at.0 - base.0 + map_size).next_multiple_of(GRAIN));
    if TABLES_OFFSET + kept.size > room.size {
        return Err(Dom0AcpiError::TooLarge { size: TABLES_OFFSET + kept.size });
    }
    let map = memory_map(plan.memory, kept);
    let map_range = Range::new(map_at, map.len() as u64);
    let mut whole = stub_tree(plan, system_table, map_range);
    if whole.len() as u64 > TABLES_OFFSET {
        return Err(Dom0AcpiError::TooLarge { size: whole.len() as u64 });
    }
    whole.resize(TABLES_OFFSET as usize, 0);
    whole.extend(tables);
    whole.resize(usize::try_from(map_at.0 - room.base.0).unwrap_or(0), 0);
    whole.extend(map);
    Ok(whole)
}

/// Appends the tables and their root pointer, and returns the root pointer's address.
fn add_tables(
    blob: &mut Blob,
    host: &Tables<'_>,
    machine: &Machine,
    plan: &Dom0Plan<'_>,
    places: &Places,
) -> Result<crate::ids::Pa, Dom0AcpiError> {
    let mut list = Vec::new();
    let host_fadt = host.require(Signature::FADT)?;
    let dsdt = match dsdt(host_fadt)? {
        Some(at) => blob.add(host.at(at)?.bytes).0,
        None => 0,
    };
    list.push(blob.add(&write_fadt(host_fadt, dsdt)?));
    list.push(blob.add(&write_madt(host.require(Signature::MADT)?, machine, plan)?));
    for copied in [Signature::GTDT, Signature::MCFG, Signature::SSDT] {
        for table in host.all(copied) {
            list.push(blob.add(table?.bytes));
        }
    }
    if let Some(table) = host.find(Signature::IORT)? {
        list.push(blob.add(&sealed(iort::rewrite(table)?)));
    }
    match machine.uart.map(|uart| uart.kind) {
        Some(UartKind::Pl011) => list.extend(places.console.map(|console| blob.add(&write_spcr(host_fadt, console)))),
        Some(UartKind::Ns16550 { .. }) => {
            if let Some(spcr) = host.find(Signature::SPCR)? {
                list.push(blob.add(spcr.bytes));
                list.push(blob.add(&table(host_fadt, Signature::STAO, 1, &[1])));
            }
            list.extend(places.console.map(|console| {
                let aml = aml::device(&aml::PL011, console);
                blob.add(&table(host_fadt, Signature::SSDT, 2, &aml))
            }));
        }
        None => {}
    }
    if let Some(ports) = plan.ports {
        let aml = aml::device(&aml::VIRTIO, ports);
        list.push(blob.add(&table(host_fadt, Signature::SSDT, 2, &aml)));
    }
    let entries: Vec<u8> = list.iter().flat_map(|at| at.0.to_le_bytes()).collect();
    let xsdt = blob.add(&table(host_fadt, Signature::XSDT, 1, &entries));
    let mut root = Vec::from(*b"RSD PTR \0");
    root.extend(host_fadt.oem().id);
    root.extend([2, 0, 0, 0, 0]);
    root.extend((HEADER as u32).to_le_bytes());
    root.extend(xsdt.0.to_le_bytes());
    root.extend([0; 4]);
    let sum = checksum(root.get(..20).unwrap_or(&[]));
    put(&mut root, 8, &[sum]);
    let sum = checksum(&root);
    put(&mut root, 32, &[sum]);
    Ok(blob.add(&root))
}

/// Returns a copy of the host's FADT that points to the copied DSDT and describes PSCI by HVC. It has no FACS and no
/// reset register.
fn write_fadt(host: Fields<'_>, dsdt: u64) -> Result<Vec<u8>, AcpiError> {
    /// Offsets of FIRMWARE_CTRL and X_FIRMWARE_CTRL, the addresses of the FACS.
    const FACS: usize = 36;
    const X_FACS: usize = 132;
    const FLAGS: usize = 112;
    const RESET_REG_SUP: u32 = 1 << 10;
    // Check that the table has every field that is written below.
    host.part(0, fadt::X_DSDT + 8)?;
    let mut table = host.bytes.to_vec();
    let flags = host.u32(FLAGS)? & !RESET_REG_SUP;
    let arm = host.u16(fadt::ARM_BOOT_ARCH)? | fadt::PSCI_COMPLIANT | fadt::PSCI_USE_HVC;
    put(&mut table, FACS, &[0; 4]);
    put(&mut table, X_FACS, &[0; 8]);
    put(&mut table, fadt::DSDT, &[0; 4]);
    put(&mut table, FLAGS, &flags.to_le_bytes());
    put(&mut table, fadt::ARM_BOOT_ARCH, &arm.to_le_bytes());
    put(&mut table, fadt::X_DSDT, &dsdt.to_le_bytes());
    Ok(sealed(table))
}

/// Returns a MADT for dom0's vCPUs and GIC.
fn write_madt(host: Fields<'_>, machine: &Machine, plan: &Dom0Plan<'_>) -> Result<Vec<u8>, Dom0AcpiError> {
    /// Revision of the table, that of ACPI 6.3.
    const REVISION: u8 = 5;
    const GICC_LENGTH: usize = 80;
    // The local interrupt controller address and the flags are 0.
    let mut body = alloc::vec![0; madt::ENTRIES - HEADER];
    let mut entry = |kind: u8, length: usize, fields: &[(usize, &[u8])]| {
        let mut bytes = alloc::vec![0; length];
        put(&mut bytes, 0, &[kind, length as u8]);
        fields.iter().for_each(|(at, field)| put(&mut bytes, *at, field));
        body.extend(bytes);
    };
    for (index, mpidr) in (0u32..).zip(plan.vcpus) {
        let uid = uid_of(host, *mpidr)?.ok_or(Dom0AcpiError::NoSuchCpu(*mpidr))?;
        entry(
            madt::GICC,
            GICC_LENGTH,
            &[
                (4, &index.to_le_bytes()),
                (8, &uid.to_le_bytes()),
                (12, &1u32.to_le_bytes()),
                (68, &mpidr.0.to_le_bytes()),
            ],
        );
    }
    entry(madt::GICD, 24, &[(8, &machine.gic.dist.base.0.to_le_bytes()), (20, &[3])]);
    let length = u32::try_from(plan.gicr.size).unwrap_or(u32::MAX);
    entry(madt::GICR, 16, &[(4, &plan.gicr.base.0.to_le_bytes()), (12, &length.to_le_bytes())]);
    for found in host.entries(madt::ENTRIES) {
        let (kind, its) = found?;
        if kind == madt::ITS {
            let (name, base) = (its.u32(4)?, its.u64(8)?);
            if plan.absent_itss.contains(&Pa(base)) {
                continue;
            }
            entry(madt::ITS, 20, &[(4, &name.to_le_bytes()), (8, &base.to_le_bytes())]);
        }
    }
    Ok(table(host, Signature::MADT, REVISION, &body))
}

/// Returns the UID by which AML and other tables name the CPU with this affinity.
fn uid_of(host: Fields<'_>, mpidr: Mpidr) -> Result<Option<u32>, AcpiError> {
    for entry in host.entries(madt::ENTRIES) {
        let (kind, entry) = entry?;
        if kind == madt::GICC && entry.u32(12)? & 1 != 0 && Mpidr::from_register(entry.u64(68)?) == mpidr {
            return entry.u32(8).map(Some);
        }
    }
    Ok(None)
}

/// Returns an SPCR for a PL011.
fn write_spcr(host: Fields<'_>, (regs, irq): (Range, crate::ids::Intid)) -> Vec<u8> {
    let mut body = alloc::vec![0; 44];
    // Revision 2: a PL011 in memory, 32-bit registers with 32-bit accesses, GIC interrupt, 115200 baud, 1 stop bit,
    // VT-UTF8.
    put(&mut body, 0, &[3]);
    put(&mut body, 4, &[0, 32, 0, 3]);
    put(&mut body, 8, &regs.base.0.to_le_bytes());
    put(&mut body, 16, &[8]);
    put(&mut body, 18, &irq.0.to_le_bytes());
    put(&mut body, 22, &[7, 0, 1, 0, 2]);
    // The port is no PCI device.
    put(&mut body, 28, &[0xff; 4]);
    table(host, Signature::SPCR, 2, &body)
}

/// Returns a table with a new header. The OEM ID in it is the host's, since kernels recognise some machines by it.
fn table(host: Fields<'_>, signature: Signature, revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Vec::from(signature.0);
    table.extend([0, 0, 0, 0, revision, 0]);
    table.extend(host.oem().id);
    table.extend(*b"DOORWARD\x01\0\0\0DRWD\x01\0\0\0");
    table.extend(body);
    sealed(table)
}

/// Returns the table with length and checksum filled in.
fn sealed(mut table: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(table.len()).unwrap_or(0);
    put(&mut table, 4, &length.to_le_bytes());
    put(&mut table, 9, &[0]);
    let sum = checksum(&table);
    put(&mut table, 9, &[sum]);
    table
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)).wrapping_neg()
}

fn put(table: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = table.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
