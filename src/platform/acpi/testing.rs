//! ACPI tables for tests: recorded from QEMU, and built by hand.

use super::{PhysicalMemory, Signature, read_into};
use crate::ids::Pa;
use crate::platform::{Machine, acpi::AcpiError};
use crate::util::range::Range;
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

/// A GICv4 with an SMMUv3, 4 CPUs.
pub(crate) const GICV4: &[u8] = include_bytes!("../../../tests/data/virt-gicv4-smmuv3.acpi");
/// A GICv3, 8 CPUs.
pub(crate) const GICV3: &[u8] = include_bytes!("../../../tests/data/virt-gicv3.acpi");
/// A GICv2.
pub(crate) const GICV2: &[u8] = include_bytes!("../../../tests/data/virt-gicv2.acpi");

/// A sparse physical memory.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    /// Byte ranges with their addresses.
    pub parts: Vec<(Pa, Vec<u8>)>,
    /// The address of the root pointer.
    pub rsdp: Pa,
}

impl PhysicalMemory for Memory {
    fn bytes(&self, at: Pa, length: usize) -> Option<&[u8]> {
        self.parts.iter().find_map(|(base, bytes)| {
            let offset = usize::try_from(at.0.checked_sub(base.0)?).ok()?;
            bytes.get(offset..offset.checked_add(length)?)
        })
    }
}

impl Memory {
    /// The memory recorded in a file of `tests/data`.
    pub(crate) fn of(file: &[u8]) -> Memory {
        let address = |at: usize| Pa(u64::from_le_bytes(file[at..at + 8].try_into().unwrap()));
        let (rsdp, tables) = (address(0), address(8));
        Memory { parts: vec![(rsdp, file[16..52].to_vec()), (tables, file[64..].to_vec())], rsdp }
    }

    /// A memory with `tables` at misaligned addresses, and an XSDT and a root pointer for them.
    pub(crate) fn with(tables: &[Vec<u8>]) -> Memory {
        let mut memory = Memory { parts: Vec::new(), rsdp: Pa(0x8000_0010) };
        let mut list = Vec::new();
        for (index, table) in tables.iter().enumerate() {
            let at = 0x8001_0003 + 0x1_0000 * index as u64;
            list.extend(at.to_le_bytes());
            memory.parts.push((Pa(at), table.clone()));
        }
        let xsdt = 0x8000_1001u64;
        memory.parts.push((Pa(xsdt), table(b"XSDT", 1, &list)));
        let mut root = Vec::from(*b"RSD PTR \0DOORWD\x02\0\0\0\0\x24\0\0\0");
        root.extend(xsdt.to_le_bytes());
        root.extend([0; 4]);
        root[8] = checksum(&root[..20]);
        root[32] = checksum(&root);
        memory.parts.push((memory.rsdp, root));
        memory
    }

    /// Returns the address of a table.
    pub(crate) fn find(&self, signature: Signature) -> Option<Pa> {
        let tables = super::Tables::open(self.rsdp, self).unwrap();
        tables.addresses().find(|&at| tables.signature(at) == Some(signature))
    }

    /// Edits a table in place and corrects its checksum. The length must not change.
    pub(crate) fn edit(&mut self, signature: Signature, edit: impl FnOnce(&mut [u8])) {
        let at = self.find(signature).unwrap();
        let (base, bytes) =
            self.parts.iter_mut().find(|(base, bytes)| Range::new(*base, bytes.len() as u64).contains(at)).unwrap();
        let table = &mut bytes[(at.0 - base.0) as usize..];
        let length = u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize;
        let table = &mut table[..length];
        edit(table);
        fix(table);
    }

    /// Reads the machine that these tables describe.
    pub(crate) fn read(&self) -> Result<Box<Machine>, AcpiError> {
        let mut machine = Box::new(Machine::new());
        read_into(&mut machine, self.rsdp, self).map(|()| machine)
    }
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)).wrapping_neg()
}

/// Corrects the checksum of a table.
pub(crate) fn fix(table: &mut [u8]) {
    table[9] = 0;
    table[9] = checksum(table);
}

/// Builds a table with a header.
pub(crate) fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Vec::from(*signature);
    table.extend((36 + body.len() as u32).to_le_bytes());
    table.extend([revision, 0]);
    table.extend(*b"DOORWDTESTTABL\x01\0\0\0DOOR\x01\0\0\0");
    table.extend(body);
    fix(&mut table);
    table
}

/// Builds `length` bytes from fields (offset, value, width); all other bytes are zero.
pub(crate) fn bytes(length: usize, fields: &[(usize, u64, usize)]) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for &(at, value, width) in fields {
        bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }
    bytes
}

/// Builds a MADT entry for a CPU.
pub(crate) fn gicc(uid: u64, mpidr: u64, flags: u64, maintenance: u64, gicr: u64) -> Vec<u8> {
    bytes(
        80,
        &[
            (0, 0x0b, 1),
            (1, 80, 1),
            (4, uid, 4),
            (8, uid, 4),
            (12, flags, 4),
            (56, maintenance, 4),
            (60, gicr, 8),
            (68, mpidr, 8),
        ],
    )
}

/// Builds a MADT entry for the distributor.
pub(crate) fn gicd(base: u64, version: u64) -> Vec<u8> {
    bytes(24, &[(0, 0x0c, 1), (1, 24, 1), (8, base, 8), (20, version, 1)])
}

/// Builds a MADT entry for an ITS.
pub(crate) fn its(name: u64, base: u64) -> Vec<u8> {
    bytes(20, &[(0, 0x0f, 1), (1, 20, 1), (4, name, 4), (8, base, 8)])
}

/// Builds a MADT.
pub(crate) fn madt(revision: u8, entries: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![0; 8];
    entries.iter().for_each(|entry| body.extend(entry));
    table(b"APIC", revision, &body)
}

/// Builds a FADT with PSCI by SMC.
pub(crate) fn fadt() -> Vec<u8> {
    let body = bytes(276 - 36, &[(129 - 36, 1, 2), (131 - 36, 3, 1), (112 - 36, 1 << 20, 4)]);
    table(b"FACP", 6, &body)
}

/// Builds a GTDT with these interrupts: Secure EL1, EL1, virtual, EL2.
pub(crate) fn gtdt(secure: u64, el1: u64, virt: u64, el2: u64) -> Vec<u8> {
    let fields = [(48 - 36, secure, 4), (56 - 36, el1, 4), (64 - 36, virt, 4), (72 - 36, el2, 4)];
    table(b"GTDT", 2, &bytes(96 - 36, &fields))
}

/// Builds an MCFG of entries: base, segment, first and last bus.
pub(crate) fn mcfg(entries: &[(u64, u16, u8, u8)]) -> Vec<u8> {
    let mut body = vec![0; 8];
    for &(base, segment, first, last) in entries {
        body.extend(bytes(16, &[(0, base, 8), (8, segment.into(), 2), (10, first.into(), 1), (11, last.into(), 1)]));
    }
    table(b"MCFG", 1, &body)
}

/// Builds an SPCR: interface type, register width in bits, access size, address, GSIV.
pub(crate) fn spcr(interface: u64, width: u64, access: u64, base: u64, gsiv: u64) -> Vec<u8> {
    let fields = [
        (0, interface, 1),
        (5, width, 1),
        (7, access, 1),
        (8, base, 8),
        (16, 8, 1),
        (18, gsiv, 4),
        (22, 7, 1),
        (28, 0xffff_ffff, 4),
    ];
    table(b"SPCR", 2, &bytes(44, &fields))
}

/// A node of an IORT: type, the bytes between header and mappings, mappings (input, number of IDs minus one, output,
/// offset of the target, flags).
pub(crate) type IortNode = (u8, Vec<u8>, Vec<[u32; 5]>);

/// Builds an IORT. The first node is at offset 48. A node has a header of 16 bytes, its own bytes, and 20 bytes per
/// mapping.
pub(crate) fn iort(nodes: &[IortNode]) -> Vec<u8> {
    let mut body = bytes(12, &[(0, nodes.len() as u64, 4), (4, 48, 4)]);
    for (kind, own, mappings) in nodes {
        let length = 16 + own.len() + 20 * mappings.len();
        let first = if mappings.is_empty() { 0 } else { 16 + own.len() };
        let head =
            [(0, u64::from(*kind), 1), (1, length as u64, 2), (8, mappings.len() as u64, 4), (12, first as u64, 4)];
        body.extend(bytes(16, &head));
        body.extend(own);
        mappings.iter().flatten().for_each(|word| body.extend(word.to_le_bytes()));
    }
    table(b"IORT", 3, &body)
}

/// Builds an ITS group with one ITS.
pub(crate) fn its_group(name: u64) -> IortNode {
    (0, bytes(8, &[(0, 1, 4), (4, name, 4)]), vec![])
}

/// Builds a root complex.
pub(crate) fn root_complex(segment: u64, mappings: &[[u32; 5]]) -> IortNode {
    (2, bytes(20, &[(0, 1, 4), (12, segment, 4), (16, 64, 1)]), mappings.to_vec())
}

/// Builds an SMMUv3 with event and global error interrupts.
pub(crate) fn smmu_v3(base: u64, mappings: &[[u32; 5]]) -> IortNode {
    (4, bytes(52, &[(0, base, 8), (8, 1, 4), (28, 106, 4), (36, 109, 4)]), mappings.to_vec())
}

/// Builds a reserved memory range node: for each memory range, its address and its size.
pub(crate) fn rmr(ranges: &[(u64, u64)], mappings: &[[u32; 5]]) -> IortNode {
    let mut own = bytes(12, &[(4, ranges.len() as u64, 4), (8, 28, 4)]);
    ranges.iter().for_each(|&(base, size)| own.extend(bytes(20, &[(0, base, 8), (8, size, 8)])));
    (6, own, mappings.to_vec())
}

/// Builds tables with the layout of a Graviton3: 64 CPUs, of which the second half has Aff3 = 1 and its redistributors
/// 16 GiB higher, listed per CPU; one ITS next to the second half; PCI segment 1; a 16550 as console; no interrupt of
/// the Secure timer.
pub(crate) fn graviton3() -> Vec<Vec<u8>> {
    let mut entries = vec![gicd(GRAVITON3_GICD, 4)];
    for cpu in 0..64u64 {
        let (half, place) = (cpu / 32, cpu % 32);
        let mpidr = half << 32 | place << 16;
        entries.push(gicc(cpu, mpidr, 1, 25, GRAVITON3_GICR[half as usize] + place * 0x4_0000));
    }
    entries.push(its(0, GRAVITON3_ITS));
    vec![
        fadt(),
        madt(5, &entries),
        gtdt(0, 30, 27, 26),
        mcfg(&[(0xe0_1000_0000, 1, 0, 0xff)]),
        spcr(0, 8, 1, 0xe2f0_0000, 408),
        iort(&[its_group(0), root_complex(1, &[[0, 0xffff, 0, 48, 0]])]),
    ]
}

/// The address of a Graviton3's distributor.
pub(crate) const GRAVITON3_GICD: u64 = 0xb8_0000_0000;
/// The addresses of the two redistributor regions.
pub(crate) const GRAVITON3_GICR: [u64; 2] = [0xb8_0014_0000, 0xbc_0014_0000];
/// The address of the ITS.
pub(crate) const GRAVITON3_ITS: u64 = 0xbc_0010_0000;
