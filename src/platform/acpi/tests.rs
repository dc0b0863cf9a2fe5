//! Tests of the ACPI reader: tables in, description out.

use super::madt::ENTRIES;
use super::testing::{
    self, GICV2, GICV3, GICV4, GRAVITON3_GICR, Memory, bytes, fadt, gicc, gicd, graviton3, gtdt, iort, its, its_group,
    madt, mcfg, rmr, root_complex, smmu_v3, spcr,
};
use super::{AcpiError, Damage, Signature, Tables};
use crate::ids::{DeviceId, Intid, ItsId, Mpidr, Pa, SmmuId};
use crate::platform::{
    Conduit, DmaReserved, IdMap, Its, Machine, MachineError, TimerPpis, Uart, UartKind, fdt, testing as trees,
};
use crate::util::range::Range;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

fn r(base: u64, size: u64) -> Range {
    Range::new(Pa(base), size)
}

/// A small machine's tables, to be varied.
fn small() -> Vec<Vec<u8>> {
    vec![fadt(), madt(5, &[gicd(0x800_0000, 3), gicc(0, 0, 1, 25, 0x80a_0000)]), gtdt(29, 30, 27, 26)]
}

fn with(table: Vec<u8>) -> Result<Box<Machine>, AcpiError> {
    let mut tables = small();
    tables.retain(|other| other[..4] != table[..4]);
    tables.push(table);
    Memory::with(&tables).read()
}

#[test]
fn qemus_acpi_tables_and_device_tree_describe_the_same_machine() {
    for (tables, tree) in [(GICV4, trees::GICV4), (GICV3, trees::GICV3)] {
        let mut acpi = Memory::of(tables).read().unwrap();
        let mut fdt = fdt::read(tree).unwrap();
        assert_eq!(acpi.rsdp, Some(Pa(0x1_3bff_f000)));
        // The fields that are not in the tables, or not in both descriptions.
        acpi.rsdp = None;
        acpi.memory = fdt.memory.clone();
        fdt.pci[0].windows.clear();
        // In the tables only the buses that exist at reset are behind the SMMU, in the tree all of them.
        if let [line] = &mut fdt.pci[0].iommu_map[..] {
            line.length = 0x100;
        }
        assert_eq!(acpi, fdt);
        assert_eq!(acpi.check(), Ok(()));
    }
}

#[test]
fn an_unsupported_gic_version_is_reported() {
    assert_eq!(Memory::of(GICV2).read().unwrap_err(), AcpiError::Machine(MachineError::GicTooOld));
    assert_eq!(with(madt(7, &[gicd(0, 5)])).unwrap_err(), MachineError::GicTooNew.into());
    assert_eq!(with(madt(7, &[testing::bytes(40, &[(0, 0x1c, 1), (1, 40, 1)])])).unwrap_err(), {
        MachineError::GicTooNew.into()
    });
    assert_eq!(with(madt(7, &[])).unwrap_err(), MachineError::NoGic.into());
}

#[test]
fn graviton3s_layout_is_read() {
    let mut machine = Memory::with(&graviton3()).read().unwrap();
    assert_eq!(machine.cpus.len(), 64);
    assert_eq!(machine.enabled_cpus(), 64);
    assert_eq!(machine.cpus[31].mpidr, Mpidr(0x1f_0000));
    assert_eq!(machine.cpus[32].mpidr, Mpidr(0x1_0000_0000));
    let [low, high] = GRAVITON3_GICR;
    machine.gic.size_redists(4);
    assert_eq!(machine.gic.redists[..], [r(low, 32 * 0x4_0000), r(high, 32 * 0x4_0000)]);
    assert_eq!(machine.gic.redist_stride, None);
    assert_eq!(machine.gic.dist, r(0xb8_0000_0000, 0x1_0000));
    assert_eq!(machine.gic.itss[..], [Its { control: r(0xbc_0010_0000, 0x2_0000), non_coherent: false }]);
    assert_eq!(machine.gic.maintenance, Intid(25));
    let timer = TimerPpis { phys_s: None, phys: Intid(30), virt: Intid(27), hyp: Intid(26) };
    assert_eq!(machine.timer, timer);
    assert_eq!(machine.psci, Some(Conduit::Smc));
    let uart =
        Uart { kind: UartKind::Ns16550 { reg_shift: 0, io_width: 1 }, regs: r(0xe2f0_0000, 8), irq: Some(Intid(408)) };
    assert_eq!(machine.uart, Some(uart));
    let [host] = &machine.pci[..] else { panic!("{:?}", machine.pci) };
    assert_eq!((host.segment, host.buses, host.ecam), (1, (0, 255), r(0xe0_1000_0000, 0x1000_0000)));
    assert_eq!(host.device_id(0x2400), Some((ItsId(0), DeviceId(0x2400))));
    assert_eq!(host.stream_id(0x2400), None);
    machine.memory.push(r(0x8000_0000, 1 << 30));
    assert_eq!(machine.check(), Ok(()));
}

#[test]
fn redistributors_are_joined_only_where_they_touch() {
    // Out of order, with a gap where a core is fused off.
    let cpus = |at: &[u64]| -> Vec<Vec<u8>> {
        at.iter().enumerate().map(|(n, &at)| gicc(n as u64, n as u64, 1, 25, at)).collect()
    };
    let regions = |arch_rev, at: &[u64]| {
        let entries: Vec<_> = core::iter::once(gicd(0x800_0000, 0)).chain(cpus(at)).collect();
        let mut gic = with(madt(5, &entries)).unwrap().gic.clone();
        gic.size_redists(arch_rev);
        gic.redists
    };
    let at = [0x1010_0000, 0x1000_0000, 0x1004_0000, 0x1014_0000];
    assert_eq!(regions(4, &at)[..], [r(0x1000_0000, 0x8_0000), r(0x1010_0000, 0x8_0000)]);
    assert_eq!(regions(3, &at)[..2], [r(0x1000_0000, 0x2_0000), r(0x1004_0000, 0x2_0000)]);
    assert_eq!(regions(3, &[0x1000_0000, 0x1002_0000])[..], [r(0x1000_0000, 0x4_0000)]);
    assert_eq!(regions(4, &[0x1000_0000, 0x1008_0000]).len(), 2);
    // Redistributors without virtual LPIs on a GICv4.
    assert_eq!(regions(4, &[0x1000_0000, 0x1002_0000])[..], [r(0x1000_0000, 0x6_0000)]);
}

#[test]
fn the_size_of_redistributors_follows_from_the_distributor_and_not_from_the_version_in_the_table() {
    // Graviton3's tables, whose version byte says something else than the hardware.
    for (said, arch_rev, size) in [(3, 4, 0x4_0000), (4, 3, 0x2_0000), (0, 4, 0x4_0000), (0, 3, 0x2_0000)] {
        let mut tables = Memory::with(&graviton3());
        tables.edit(Signature::MADT, |madt| madt[ENTRIES + 20] = said);
        let mut machine = tables.read().unwrap();
        machine.gic.size_redists(arch_rev);
        machine.memory.push(r(0x8000_0000, 1 << 30));
        assert_eq!(machine.check(), Ok(()));
        let bases: Vec<u64> = (0..64).map(|n| GRAVITON3_GICR[n / 32] + (n as u64 % 32) * 0x4_0000).collect();
        let covered = |at: u64| machine.gic.redists.iter().any(|region| region.contains(Pa(at)));
        for base in bases {
            assert!((base..base + size).step_by(0x1_0000).all(covered), "{said} {arch_rev}: {base:#x}");
            assert!(size == 0x4_0000 || !covered(base + size), "{said} {arch_rev}: {base:#x}");
        }
    }
}

#[test]
fn only_usable_cpus_are_listed_and_only_enabled_ones_have_a_redistributor() {
    let entries = [
        gicd(0x800_0000, 3),
        gicc(0, 0, 1, 25, 0x1000_0000),
        // Neither enabled nor online capable: its other fields may be garbage.
        gicc(1, 0, 0, 0, 0),
        gicc(2, 2, 1 << 3, 25, 0x2000_0000),
        gicc(3, 3, 1, 25, 0x1002_0000),
    ];
    let mut machine = with(madt(6, &entries)).unwrap();
    machine.gic.size_redists(3);
    let cpus: Vec<_> = machine.cpus.iter().map(|cpu| (cpu.mpidr.0, cpu.enabled)).collect();
    assert_eq!(cpus, [(0, true), (2, false), (3, true)]);
    assert_eq!(machine.gic.redists[..], [r(0x1000_0000, 0x4_0000)]);
}

#[test]
fn what_the_madt_names_of_the_gic_and_nobody_uses_is_listed_once() {
    let put = |mut entry: Vec<u8>, fields: &[(usize, u64)]| {
        fields.iter().for_each(|&(at, value)| entry[at..at + 8].copy_from_slice(&value.to_le_bytes()));
        entry
    };
    let interfaces = [(32, 0x2c00_0000), (40, 0x2c02_0000), (48, 0x2c01_0000)];
    let entries = [
        gicd(0x800_0000, 3),
        put(gicc(0, 0, 1, 25, 0x1000_0000), &interfaces),
        // Online capable; then two that do not exist, the second of which has garbage.
        put(gicc(1, 1, 1 << 3, 25, 0x1002_0000), &interfaces),
        gicc(2, 2, 0, 25, 0x1004_0000),
        put(gicc(3, 3, 0, 25, 0x1234_5678), &[(32, u64::MAX)]),
        testing::bytes(24, &[(0, 0x0d, 1), (1, 24, 1), (8, 0x2d00_0000, 8)]),
    ];
    let machine = with(madt(6, &entries)).unwrap();
    assert_eq!(machine.gic.redists[..], [r(0x1000_0000, 0x2_0000)]);
    assert_eq!(
        machine.gic.unused[..],
        [
            r(0x2c00_0000, 0x2000),
            r(0x2c02_0000, 0x2000),
            r(0x2c01_0000, 0x2000),
            r(0x1002_0000, 0x4_0000),
            r(0x1004_0000, 0x4_0000),
            r(0x2d00_0000, 0x1000)
        ]
    );
}

#[test]
fn coherence_flags_are_used_from_revision_7_on() {
    let entries = [gicd(0x800_0000, 3), gicc(0, 0, 1 | 1 << 4, 25, 0x1000_0000), {
        let mut its = its(0, 0x2000_0000);
        its[2] = 1;
        its
    }];
    for (revision, non_coherent) in [(6, false), (7, true)] {
        let machine = with(madt(revision, &entries)).unwrap();
        assert_eq!((machine.gic.non_coherent, machine.gic.itss[0].non_coherent), (non_coherent, non_coherent));
    }
}

#[test]
fn listed_redistributor_regions_are_preferred_to_those_of_gicc_entries() {
    let region = testing::bytes(16, &[(0, 0x0e, 1), (1, 16, 1), (4, 0x3000_0000, 8), (12, 0x10_0000, 4)]);
    let machine = with(madt(5, &[gicd(0x800_0000, 4), gicc(0, 0, 1, 25, 0x1000_0000), region])).unwrap();
    assert_eq!(machine.gic.redists[..], [r(0x3000_0000, 0x10_0000)]);
}

#[test]
fn a_missing_table_or_field_is_reported() {
    let error = |entries: &[Vec<u8>]| with(madt(5, entries)).unwrap_err();
    assert_eq!(error(&[gicd(0x800_0000, 3), gicc(0, 0, 1, 25, 0)]), MachineError::NoRedistributors.into());
    assert_eq!(error(&[gicd(0x800_0000, 3), gicc(0, 0, 1, 0, 0x1000_0000)]), MachineError::NoMaintenance.into());
    assert_eq!(with(gtdt(29, 30, 27, 0)).unwrap_err(), MachineError::NoTimer.into());
    for absent in [Signature::MADT, Signature::FADT, Signature::GTDT] {
        let tables: Vec<_> = small().into_iter().filter(|table| table[..4] != absent.0).collect();
        assert_eq!(Memory::with(&tables).read().unwrap_err(), AcpiError::Missing(absent));
    }
    assert_eq!(Memory::default().read().unwrap_err(), AcpiError::NoRsdp(Pa(0)));
}

#[test]
fn the_psci_conduit_is_that_of_the_fadt() {
    for (flags, conduit) in [(0u16, None), (1, Some(Conduit::Smc)), (3, Some(Conduit::Hvc)), (2, None)] {
        let mut fadt = fadt();
        fadt[129..131].copy_from_slice(&flags.to_le_bytes());
        testing::fix(&mut fadt);
        assert_eq!(with(fadt).unwrap().psci, conduit);
    }
}

#[test]
fn mcfg_entries_may_share_segment_and_address_if_their_buses_differ() {
    // The virtualised Graviton4.
    let base = 0x2000_0000;
    let machine = with(mcfg(&[(base, 0, 0, 0), (base, 0, 1, 0x43), (base, 0, 0x44, 0x56)])).unwrap();
    let hosts: Vec<_> = machine.pci.iter().map(|host| (host.ecam, host.buses)).collect();
    assert_eq!(
        hosts,
        [
            (r(base, 1 << 20), (0, 0)),
            (r(base + (1 << 20), 0x43 << 20), (1, 0x43)),
            (r(base + (0x44 << 20), 0x13 << 20), (0x44, 0x56)),
        ]
    );
    // Entries that cannot be used are skipped.
    let machine = with(mcfg(&[(u64::MAX, 0, 1, 1), (base, 0, 2, 1), (base, 0, 0, 0)])).unwrap();
    assert_eq!(machine.pci.iter().map(|host| host.buses).collect::<Vec<_>>(), [(0, 0)]);
    let problem = "its buses or its address are invalid: this PCI host is not used";
    assert_eq!(
        warnings(&machine),
        [
            format!("ACPI: MCFG: segment 0 at {:#x}: {problem}", u64::MAX),
            format!("ACPI: MCFG: segment 0 at {base:#x}: {problem}")
        ]
    );
}

#[test]
fn requester_ids_are_translated_through_an_smmu_to_the_its() {
    // ITS groups at 48 and 72, the SMMU at 96 (16 + 52 + 3 * 20 bytes long), the root complex behind it.
    let nodes = [
        its_group(7),
        its_group(9),
        smmu_v3(0x905_0000, &[[0x1_0000, 0x7fff, 0x2_0000, 72, 0], [0x1_8000, 0x7fff, 0, 48, 0], [0, 0, 5, 48, 1]]),
        root_complex(0, &[[0, 0xfeff, 0x1_0000, 96, 0], [0xff00, 0xff, 0x42, 72, 0]]),
    ];
    let mut tables = small();
    tables.pop();
    tables[1] =
        madt(5, &[gicd(0x800_0000, 3), gicc(0, 0, 1, 25, 0x80a_0000), its(9, 0x2000_0000), its(7, 0x3000_0000)]);
    tables.extend([gtdt(0, 30, 27, 26), iort(&nodes), mcfg(&[(0x4000_0000, 0, 0, 255)])]);
    let machine = Memory::with(&tables).read().unwrap();
    let smmu = &machine.smmus[0];
    assert_eq!((smmu.regs, smmu.coherent), (r(0x905_0000, 0x2_0000), true));
    assert_eq!((smmu.event, smmu.gerror), (Some(Intid(106)), Some(Intid(109))));
    let host = &machine.pci[0];
    assert_eq!(host.iommu_map[..], [IdMap { rid_base: 0, target: SmmuId(0), out_base: 0x1_0000, length: 0xff00 }]);
    assert_eq!(
        host.msi_map[..],
        [
            IdMap { rid_base: 0, target: ItsId(0), out_base: 0x2_0000, length: 0x8000 },
            IdMap { rid_base: 0x8000, target: ItsId(1), out_base: 0, length: 0x7f00 },
            IdMap { rid_base: 0xff00, target: ItsId(0), out_base: 0x42, length: 0x100 },
        ]
    );
}

#[test]
fn adjacent_mappings_are_joined_and_other_segments_are_unchanged() {
    let lines: Vec<[u32; 5]> = (0..64).map(|n| [n * 0x100, 0xff, 0x1000 + n * 0x100, 48, 0]).collect();
    let mut tables = small();
    tables[1] = madt(5, &[gicd(0x800_0000, 3), gicc(0, 0, 1, 25, 0x80a_0000), its(0, 0x2000_0000)]);
    tables.extend([
        iort(&[its_group(0), root_complex(3, &lines)]),
        mcfg(&[(0x4000_0000, 3, 0x10, 0x1f), (0x6000_0000, 4, 0, 0x1f)]),
    ]);
    let machine = Memory::with(&tables).read().unwrap();
    let line = IdMap { rid_base: 0x1000, target: ItsId(0), out_base: 0x2000, length: 0x1000 };
    assert_eq!(machine.pci[0].msi_map[..], [line]);
    assert!(machine.pci[1].msi_map.is_empty());
}

#[test]
fn devices_that_aml_names_have_the_ids_at_the_end_of_their_path() {
    let component = |mappings: &[[u32; 5]]| (1u8, bytes(24, &[]), mappings.to_vec());
    // The ITS group at 48, an SMMUv2 at 72 (16 + 60 + 20 bytes long), then the devices.
    let nodes = [
        its_group(7),
        (3u8, bytes(60, &[]), vec![[0x100, 0xff, 0x2_0100, 48, 0]]),
        // The input of a single mapping means nothing.
        component(&[[0x1234, 0, 0x1_0005, 48, 1], [0, 1, 0x1_0010, 48, 0]]),
        component(&[[0, 0, 0x180, 72, 1], [0, 0, 0x80, 72, 1]]),
        component(&[[0, 0, 0x1_0005, 48, 1]]),
    ];
    let mut tables = small();
    tables[1] = madt(5, &[gicd(0x800_0000, 3), gicc(0, 0, 1, 25, 0x80a_0000), its(7, 0x2000_0000)]);
    tables.push(iort(&nodes));
    let machine = Memory::with(&tables).read().unwrap();
    let ids: Vec<_> = machine.msi_devices.iter().map(|d| (d.its.0, d.ids.first.0, d.ids.last.0)).collect();
    assert_eq!(ids, [(0, 0x1_0005, 0x1_0005), (0, 0x1_0010, 0x1_0011), (0, 0x2_0180, 0x2_0180)]);
}

#[test]
fn devices_that_aml_names_have_the_streams_at_their_smmu() {
    let component = |mappings: &[[u32; 5]]| (1u8, bytes(24, &[]), mappings.to_vec());
    // The ITS group at 48, two SMMUs at 72 and 160 (16 + 52 + 20 bytes long), then the devices.
    let nodes = [
        its_group(7),
        smmu_v3(0x905_0000, &[[0, 0xffff, 0x2_0000, 48, 0]]),
        smmu_v3(0x906_0000, &[[0, 0xffff, 0x3_0000, 48, 0]]),
        component(&[[0x1234, 0, 0x15, 72, 1], [0, 7, 0x20, 160, 0]]),
        component(&[[0, 0, 0x15, 72, 1], [0, 0, 0x99, 48, 1]]),
        // More streams than any device has.
        component(&[[0, 0x1_ffff, 0x4_0000, 160, 0]]),
    ];
    let mut tables = small();
    tables[1] = madt(5, &[gicd(0x800_0000, 3), gicc(0, 0, 1, 25, 0x80a_0000), its(7, 0x2000_0000)]);
    tables.push(iort(&nodes));
    let machine = Memory::with(&tables).read().unwrap();
    let streams: Vec<_> = machine.stream_devices.iter().map(|s| (s.smmu.0, s.first.0, s.last.0)).collect();
    assert_eq!(streams, [(0, 0x15, 0x15), (1, 0x20, 0x27), (1, 0x4_0000, 0x4_ffff)]);
    let ids: Vec<_> = machine.msi_devices.iter().map(|d| (d.ids.first.0, d.ids.last.0)).collect();
    assert_eq!(ids, [(0x2_0015, 0x2_0015), (0x3_0020, 0x3_0027), (0x99, 0x99)]);
}

#[test]
fn memory_that_devices_access_for_the_firmware_is_kept_for_their_streams() {
    // SMMUs at 48 and 116 (16 + 52 bytes long).
    let nodes = |rmr| [smmu_v3(0x905_0000, &[]), smmu_v3(0x906_0000, &[]), rmr];
    let read = |revision, rmr| {
        let mut table = iort(&nodes(rmr));
        table[8] = revision;
        testing::fix(&mut table);
        let mut tables = small();
        tables.push(table);
        let machine = Memory::with(&tables).read().unwrap();
        let found = |r: &DmaReserved| (r.streams.smmu.0, r.streams.first.0, r.streams.last.0, r.range);
        machine.dma_reserved.iter().map(found).collect::<Vec<_>>()
    };
    let ranges = [(0x8000_0000, 0x2_0000), (0x9000_0010, 0x10), (0, 0), (u64::MAX, 0x1000)];
    let usual = || rmr(&ranges, &[[0, 1, 0x100, 48, 0], [0x55, 0, 7, 116, 1], [0, 0, 9, 184, 0], [0, 0, 9, 3, 0]]);
    let kept = [
        (0, 0x100, 0x101, r(0x8000_0000, 0x2_0000)),
        (0, 0x100, 0x101, r(0x9000_0000, 0x1000)),
        (1, 7, 7, r(0x8000_0000, 0x2_0000)),
        (1, 7, 7, r(0x9000_0000, 0x1000)),
    ];
    assert_eq!(read(3, usual()), kept);
    assert_eq!(read(6, usual()), kept);
    // Before revision E.b, such a node has other fields.
    assert_eq!(read(2, usual()), []);
    // More ranges than the node has room for, and ranges outside of it.
    for (at, value) in [(4, u32::MAX), (8, 0x1000)] {
        let mut node = usual();
        node.1[at..at + 4].copy_from_slice(&value.to_le_bytes());
        read(5, node);
    }
}

#[test]
fn a_cycle_of_iort_nodes_terminates() {
    let nodes = [smmu_v3(0x905_0000, &[[0, 0xffff, 0, 48, 0]]), root_complex(0, &[[0, 0xffff, 0, 48, 0]])];
    let mut tables = small();
    tables.extend([iort(&nodes), mcfg(&[(0x4000_0000, 0, 0, 255)])]);
    let machine = Memory::with(&tables).read().unwrap();
    assert!(machine.pci[0].msi_map.is_empty());
    assert_eq!(machine.pci[0].iommu_map.len(), 3);
}

#[test]
fn the_console_is_read_by_interface_type_and_access_width() {
    let kind = |spcr| with(spcr).unwrap().uart.map(|uart| (uart.kind, uart.regs.size));
    let ns16550 = |reg_shift, io_width| UartKind::Ns16550 { reg_shift, io_width };
    assert_eq!(kind(spcr(3, 32, 3, 0x900_0000, 33)), Some((UartKind::Pl011, 0x1000)));
    assert_eq!(kind(spcr(0x0e, 32, 3, 0x900_0000, 33)), Some((UartKind::Pl011, 0x1000)));
    assert_eq!(kind(spcr(0, 8, 1, 0x900_0000, 33)), Some((ns16550(0, 1), 8)));
    assert_eq!(kind(spcr(0x12, 32, 3, 0x900_0000, 33)), Some((ns16550(2, 4), 32)));
    assert_eq!(kind(spcr(0, 32, 0, 0x900_0000, 33)), Some((ns16550(2, 4), 32)));
    assert_eq!(kind(spcr(5, 32, 3, 0x900_0000, 33)), None);
    assert_eq!(kind(spcr(3, 32, 3, 0, 33)), None);
    assert_eq!(with(spcr(3, 32, 3, 0x900_0000, 0)).unwrap().uart.unwrap().irq, None);
}

#[test]
fn a_damaged_table_is_reported() {
    let mut memory = Memory::of(GICV4);
    let at = memory.find(Signature::MADT).unwrap();
    let tables = memory.parts[1].0;
    memory.parts[1].1[(at.0 - tables.0) as usize + 50] ^= 1;
    let error = memory.read().unwrap_err();
    assert_eq!(error, AcpiError::Damaged { table: Signature::MADT, at, damage: Damage::Checksum });
    assert_eq!(format!("{error}"), format!("ACPI: table APIC at {:#x}: wrong checksum", at.0));
}

fn warnings(machine: &Machine) -> Vec<String> {
    machine.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn an_optional_table_that_is_damaged_is_not_used_and_refuses_nothing() {
    for (signature, name) in [(Signature::MCFG, "MCFG"), (Signature::IORT, "IORT"), (Signature::SPCR, "SPCR")] {
        let mut memory = Memory::of(GICV4);
        let at = memory.find(signature).unwrap();
        let tables = memory.parts[1].0;
        memory.parts[1].1[(at.0 - tables.0) as usize + 40] ^= 1;
        let machine = memory.read().unwrap();
        let text = format!("ACPI: table {name} at {:#x}: wrong checksum: this table is not used", at.0);
        assert_eq!(warnings(&machine), [text]);
        assert_eq!(machine.pci.is_empty(), signature == Signature::MCFG);
        assert_eq!(machine.smmus.is_empty(), signature == Signature::IORT);
        assert_eq!(machine.uart.is_none(), signature == Signature::SPCR);
    }
    // An entry that is damaged.
    let mut memory = Memory::of(GICV4);
    memory.edit(Signature::IORT, |iort| iort[48 + 1..48 + 3].copy_from_slice(&[3, 0]));
    let error = AcpiError::BadEntry(Signature::IORT);
    assert_eq!(warnings(&memory.read().unwrap()), [format!("{error}: the rest of this table is not used")]);
    memory.edit(Signature::IORT, |iort| iort[48 + 1..48 + 3].copy_from_slice(&[0xff, 0xff]));
    let error = AcpiError::Short(Signature::IORT);
    assert_eq!(warnings(&memory.read().unwrap()), [format!("{error}: the rest of this table is not used")]);
    assert!(warnings(&Memory::of(GICV4).read().unwrap()).is_empty());
}

#[test]
fn a_cpu_with_an_affinity_that_is_none_or_anothers_is_not_used() {
    let entries = [
        gicd(0x800_0000, 3),
        gicc(0, 0, 1, 25, 0x1000_0000),
        gicc(1, 1 << 31, 1, 25, 0x1002_0000),
        gicc(2, 0, 1, 25, 0x1004_0000),
        gicc(3, 1, 8, 25, 0x1006_0000),
    ];
    let machine = with(madt(5, &entries)).unwrap();
    let cpus: Vec<_> = machine.cpus.iter().map(|cpu| (cpu.mpidr.0, cpu.enabled)).collect();
    assert_eq!(cpus, [(0, true), (1, false)]);
    assert_eq!(machine.gic.redists[..], [r(0x1000_0000, 0x2_0000)]);
    assert_eq!(
        warnings(&machine),
        [
            "ACPI: CPU with MPIDR 0x80000000: this is no affinity: this CPU is not used",
            "ACPI: CPU with MPIDR 0x0: another CPU has the same affinity: this one is not used",
        ]
    );
    // Nobody else may use their redistributors.
    for base in [0x1002_0000, 0x1004_0000] {
        assert!(machine.gic.unused.iter().any(|range| range.base == Pa(base)), "{base:#x}");
    }
}

#[test]
fn huaweis_numbers_of_ids_are_one_too_large() {
    // Two halves of a segment for two ITSs: where the numbers are one too large, the halves overlap.
    let device_id = |id: &[u8; 6], table: &[u8; 8], revision: u8| {
        let halves = [[0, 0x8000, 0, 48, 0], [0x8000, 0x8000, 0x1000, 72, 0]];
        let mut iort = iort(&[its_group(7), its_group(9), root_complex(0, &halves)]);
        iort[10..16].copy_from_slice(id);
        iort[16..24].copy_from_slice(table);
        iort[24] = revision;
        testing::fix(&mut iort);
        let mut tables = small();
        let itss = [its(7, 0x2000_0000), its(9, 0x3000_0000)];
        tables[1] = madt(5, &[&[gicd(0x800_0000, 3), gicc(0, 0, 1, 25, 0x80a_0000)][..], &itss].concat());
        tables.extend([iort, mcfg(&[(0x4000_0000, 0, 0, 255)])]);
        Memory::with(&tables).read().unwrap().pci[0].device_id(0x8000)
    };
    let right = Some((ItsId(1), DeviceId(0x1000)));
    assert_eq!(device_id(b"HISI  ", b"HIP07   ", 0), right);
    assert_eq!(device_id(b"HISI  ", b"HIP08   ", 0), right);
    // Later revisions, and others, mean what the specification says.
    let as_written = Some((ItsId(0), DeviceId(0x8000)));
    assert_eq!(device_id(b"HISI  ", b"HIP08   ", 1), as_written);
    assert_eq!(device_id(b"HISI  ", b"HIP09   ", 0), as_written);
    assert_eq!(device_id(b"DOORWD", b"HIP08   ", 0), as_written);
}

#[test]
fn an_entry_of_length_zero_ends_the_table_with_an_error() {
    let mut memory = Memory::of(GICV4);
    memory.edit(Signature::MADT, |madt| madt[45] = 0);
    assert_eq!(memory.read().unwrap_err(), AcpiError::BadEntry(Signature::MADT));
    memory.edit(Signature::MADT, |madt| madt[45] = 255);
    assert!(memory.read().is_err());
}

#[test]
fn an_xsdt_that_lists_itself_or_invalid_addresses_is_harmless() {
    let mut tables = small();
    tables.push(testing::table(b"SRAT", 3, &[0xff; 40]));
    let mut memory = Memory::with(&tables);
    let xsdt = Pa(0x8000_1001);
    let list = memory.parts.iter_mut().find(|(at, _)| *at == xsdt).unwrap();
    let mut body = list.1[36..].to_vec();
    body.extend(xsdt.0.to_le_bytes());
    body.extend([0; 8]);
    body.extend(0xffff_ffff_ffff_fffeu64.to_le_bytes());
    body.extend([1, 2, 3]);
    list.1 = testing::table(b"XSDT", 1, &body);
    assert!(memory.read().is_ok());
    let tables = Tables::open(memory.rsdp, &memory).unwrap();
    assert_eq!(tables.addresses().count(), small().len() + 3);
    assert_eq!(tables.require(Signature::FADT).unwrap().oem().id, *b"DOORWD");
}

#[test]
fn no_damage_to_tables_makes_the_reader_panic() {
    // xorshift, so that a failure can be reproduced.
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) as usize % below
    };
    let kinds = [Signature::MADT, Signature::FADT, Signature::GTDT, Signature::MCFG, Signature::IORT, Signature::SPCR];
    let whole = Memory::of(GICV4);
    let graviton3 = Memory::with(&graviton3());
    let (mut good, mut bad) = (0, 0);
    for round in 0..6000 {
        let mut memory = if round % 2 == 0 { whole.clone() } else { graviton3.clone() };
        match round % 4 {
            0 | 1 => {
                // Inside one table, with a correct checksum.
                memory.edit(kinds[random(kinds.len())], |table| {
                    for _ in 0..=random(3) {
                        let at = 36 + random(table.len() - 36);
                        table[at] = [0, 1, 0x7f, 0x80, 0xff, random(256) as u8][random(6)];
                    }
                });
            }
            2 => {
                // Whole words, with values that can overflow.
                memory.edit(kinds[random(kinds.len())], |table| {
                    for _ in 0..=random(3) {
                        let at = 36 + random(table.len() - 40);
                        let value = [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX][random(5)];
                        table[at..at + 4].copy_from_slice(&value.to_le_bytes());
                    }
                });
            }
            _ => {
                // Any bit, or truncation.
                let part = random(memory.parts.len());
                let bytes = &mut memory.parts[part].1;
                let at = random(bytes.len());
                if random(2) == 0 { bytes.truncate(at) } else { bytes[at] ^= 1 << random(8) }
            }
        }
        match memory.read() {
            Ok(mut machine) => {
                good += 1;
                machine.memory.push(r(1 << 30, 1 << 30));
                let _ = machine.check();
            }
            Err(error) => {
                bad += 1;
                assert!(!format!("{error}").is_empty());
            }
        }
    }
    // The test is meaningful only if both outcomes occur.
    assert!(good > 1000 && bad > 1000, "{good} read, {bad} refused");
}
