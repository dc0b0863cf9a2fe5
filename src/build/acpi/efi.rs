//! The EFI system table and memory map for a dom0 kernel that was started without firmware.
//!
//! Linux finds ACPI tables through EFI only. Its EFI stub passes five properties to the kernel in a device tree with no
//! node except `/chosen` (Linux, Documentation/arch/arm/uefi.rst). They give the addresses of the EFI system table and
//! of the memory map. Both are made here (UEFI 2.10, 4.3 and 7.2). The system table has no runtime services, and an
//! EFI_RT_PROPERTIES_TABLE (4.6) says so: time and variables belong to the firmware, which only EL2 may call.

use crate::build::fdt::edit::Dom0Plan;
use crate::build::fdt::node::{node, set, set_boot_args, set_cells};
use crate::ids::Pa;
use crate::util::PAGE;
use crate::util::range::Range;
use alloc::vec::Vec;
use dtoolkit::model::DeviceTree;

/// Distance in bytes from one descriptor of the memory map to the next.
pub const DESCRIPTOR: u32 = 48;
/// Version of the descriptors of the memory map.
pub const DESCRIPTOR_VERSION: u32 = 1;
/// EfiConventionalMemory: free memory.
pub const CONVENTIONAL: u32 = 7;
/// EfiACPIReclaimMemory: memory that holds ACPI tables.
pub const ACPI_RECLAIM: u32 = 9;
/// EFI_MEMORY_WB.
pub const WRITE_BACK: u64 = 1 << 3;

/// Value of Linux' `efi_secureboot_mode`: dom0's kernel was started without a check of its signature.
const SECURE_BOOT_DISABLED: u32 = 2;

/// Signature of the system table, "IBI SYST".
pub const SIGNATURE: u64 = 0x5453_5953_2049_4249;
/// Revision of the system table, UEFI 2.80: the first with EFI_RT_PROPERTIES_TABLE.
pub const REVISION: u32 = 2 << 16 | 80;
/// Size of the system table in bytes.
pub const SYSTEM_TABLE: usize = 120;
/// EFI_ACPI_20_TABLE_GUID, 8868e871-e4f1-11d3-bc22-0080c73c8881.
pub const ACPI_20: [u8; 16] =
    [0x71, 0xe8, 0x68, 0x88, 0xf1, 0xe4, 0xd3, 0x11, 0xbc, 0x22, 0x00, 0x80, 0xc7, 0x3c, 0x88, 0x81];
/// EFI_RT_PROPERTIES_TABLE_GUID, eb66918a-7eef-402a-842e-931d21c38ae9.
pub const RT_PROPERTIES: [u8; 16] =
    [0x8a, 0x91, 0x66, 0xeb, 0xef, 0x7e, 0x2a, 0x40, 0x84, 0x2e, 0x93, 0x1d, 0x21, 0xc3, 0x8a, 0xe9];
/// LINUX_EFI_MEMRESERVE_TABLE_GUID, 888eb0c6-8ede-4ff5-a8f0-9aee5cb977c2. Linux' EFI stub adds this table, and the
/// kernel records in it the memory that a kernel started by kexec must leave to the GIC.
pub const MEMORY_RESERVE: [u8; 16] =
    [0xc6, 0xb0, 0x8e, 0x88, 0xde, 0x8e, 0xf5, 0x4f, 0xa8, 0xf0, 0x9a, 0xee, 0x5c, 0xb9, 0x77, 0xc2];
/// The firmware's vendor. The table holds it in UCS-2.
const VENDOR: &str = "Doorward";

/// A growing block of bytes at a known address.
pub struct Blob {
    base: Pa,
    bytes: Vec<u8>,
}

impl Blob {
    /// Returns an empty block that will be copied to `base`.
    #[must_use]
    pub fn new(base: Pa) -> Blob {
        Blob { base, bytes: Vec::new() }
    }

    /// Appends bytes at the next multiple of 64 and returns their address.
    pub fn add(&mut self, bytes: &[u8]) -> Pa {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let at = self.base.add(self.bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
        at
    }

    /// Returns the whole block.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Appends a system table and returns its address. It has no services and three configuration tables: the ACPI root
/// pointer, a table which says that there are no runtime services, and an empty list of reservations.
pub fn add_system_table(blob: &mut Blob, rsdp: Pa) -> Pa {
    let mut vendor: Vec<u8> = VENDOR.encode_utf16().flat_map(u16::to_le_bytes).collect();
    // Kernels read 100 characters even if the string is shorter.
    vendor.resize(200, 0);
    let vendor = blob.add(&vendor);
    // Version 1, 8 bytes, no supported services.
    let properties = blob.add(&[1, 0, 8, 0, 0, 0, 0, 0]);
    // No entries, none used, no next list.
    let reserve = blob.add(&[0; 16]);
    let mut tables = Vec::new();
    for (guid, at) in [(ACPI_20, rsdp), (RT_PROPERTIES, properties), (MEMORY_RESERVE, reserve)] {
        tables.extend(guid);
        tables.extend(at.0.to_le_bytes());
    }
    let tables = blob.add(&tables);
    let mut table = Vec::new();
    table.extend(SIGNATURE.to_le_bytes());
    table.extend(REVISION.to_le_bytes());
    table.extend((SYSTEM_TABLE as u32).to_le_bytes());
    table.extend([0; 8]);
    table.extend(vendor.0.to_le_bytes());
    table.resize(SYSTEM_TABLE - 16, 0);
    table.extend(3u64.to_le_bytes());
    table.extend(tables.0.to_le_bytes());
    let crc = crc32(&table);
    if let Some(place) = table.get_mut(16..20) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
    blob.add(&table)
}

/// Returns the memory map: dom0's banks as free memory, except for `tables`, which a kernel must keep.
#[must_use]
pub fn memory_map(banks: &[Range], tables: Range) -> Vec<u8> {
    let mut map = Vec::new();
    let mut add = |kind: u32, range: Range| {
        if range.is_empty() {
            return;
        }
        map.extend(u64::from(kind).to_le_bytes());
        for word in [range.base.0, 0, range.size / PAGE, WRITE_BACK, 0] {
            map.extend(word.to_le_bytes());
        }
    };
    for &bank in banks {
        if bank.covers(tables) {
            add(CONVENTIONAL, Range::between(bank.base, tables.base));
            add(ACPI_RECLAIM, tables);
            add(CONVENTIONAL, Range::between(tables.end(), bank.end()));
        } else {
            add(CONVENTIONAL, bank);
        }
    }
    map
}

/// Returns the device tree that Linux' EFI stub would pass on, which has no node except `/chosen`.
#[must_use]
pub fn stub_tree(plan: &Dom0Plan<'_>, system_table: Pa, map: Range) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    set_cells(&mut tree.root, 2, 2);
    let mut chosen = node("chosen");
    set_boot_args(&mut chosen, plan.bootargs, plan.initrd);
    set(&mut chosen, "linux,uefi-system-table", system_table.0.to_be_bytes());
    set(&mut chosen, "linux,uefi-mmap-start", map.base.0.to_be_bytes());
    set(&mut chosen, "linux,uefi-mmap-size", u32::try_from(map.size).unwrap_or(0));
    set(&mut chosen, "linux,uefi-mmap-desc-size", DESCRIPTOR);
    set(&mut chosen, "linux,uefi-mmap-desc-ver", DESCRIPTOR_VERSION);
    // Kernels of distributions require a sixth property.
    set(&mut chosen, "linux,uefi-secure-boot", SECURE_BOOT_DISABLED);
    tree.root.add_child(chosen);
    tree.to_dtb()
}

/// Returns the checksum that EFI's table headers use (CRC-32, IEEE 802.3).
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |mut crc, &byte| {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 };
        }
        crc
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_common_crc_32() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn the_memory_map_has_each_page_of_each_bank_once() {
        let r = |base, size| Range::new(Pa(base), size);
        let words = |map: &[u8]| -> Vec<[u64; 3]> {
            map.chunks(DESCRIPTOR as usize)
                .map(|line| {
                    let word = |at: usize| u64::from_le_bytes(line[at..at + 8].try_into().unwrap());
                    assert_eq!(word(32), WRITE_BACK);
                    [word(0), word(8), word(24)]
                })
                .collect()
        };
        let banks = [r(0x4020_0000, 0x40_0000), r(0x1_0000_0000, 0x20_0000)];
        assert_eq!(
            words(&memory_map(&banks, r(0x4040_0000, 0x1_0000))),
            [[7, 0x4020_0000, 0x200], [9, 0x4040_0000, 0x10], [7, 0x4041_0000, 0x1f0], [7, 0x1_0000_0000, 0x200]]
        );
        assert_eq!(
            words(&memory_map(&banks, r(0x4020_0000, 0x1_0000)))[..2],
            [[9, 0x4020_0000, 0x10], [7, 0x4021_0000, 0x3f0]]
        );
    }
}
