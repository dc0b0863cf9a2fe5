use crate::build::acpi::efi;
use crate::build::acpi::places::places;

use super::*;
use crate::ids::{Intid, Pa};
use crate::platform::acpi::PhysicalMemory;
use crate::platform::acpi::testing::{
    GICV3, GICV4, Memory, graviton3, iort as make_iort, its_group, root_complex, smmu_v3,
};
use crate::platform::{Conduit, GicKind, fdt};
use alloc::boxed::Box;
use dtoolkit::Node;
use dtoolkit::Property;

const BANKS: [Range; 2] = [Range::new(Pa(0x4020_0000), 64 << 20), Range::new(Pa(0x1_0000_0000), 2 << 30)];
const ROOM: Range = Range::new(Pa(0x4080_0000), 2 << 20);
const PORTS: Option<(Range, Intid)> = Some((Range::new(Pa(0xb000_1000), 0x1000), Intid(288)));
const POOL: Range = Range::new(Pa(0xb000_0000), 32 << 20);

/// dom0's tables in memory, and what a kernel finds that goes from the device tree by the EFI system table to the root
/// pointer.
struct Dom0 {
    memory: Memory,
    machine: Box<Machine>,
    places: Places,
    map: Vec<u8>,
}

fn dom0(host: &Memory, vcpus: usize) -> Dom0 {
    let mut machine = host.read().unwrap();
    machine.gic.size_redists(4);
    let vcpus: Vec<Mpidr> = machine.cpus.iter().map(|cpu| cpu.mpidr).take(vcpus).collect();
    let places = places(&machine, vcpus.len(), POOL).unwrap();
    let initrd = Some(Range::new(Pa(0x4100_0000), 5));
    let plan = Dom0Plan {
        vcpus: &vcpus,
        memory: &BANKS,
        gicr: places.gicr,
        absent_itss: &[],
        given_bars: &[],
        given_devices: &[],
        ports: PORTS,
        bootargs: "quiet",
        initrd,
    };
    let tables = Tables::open(host.rsdp, host).unwrap();
    let bytes = build(&tables, &machine, &plan, &places, ROOM).unwrap();
    assert!(bytes.len() as u64 <= ROOM.size);

    // Find the tables as a kernel does.
    let tree = fdt::parse(&bytes).unwrap();
    let mut children = tree.root().children();
    let chosen = children.next().unwrap();
    assert_eq!((chosen.name(), children.next().is_none()), ("chosen", true));
    let cells = |name: &str| -> u64 {
        let value = chosen.property(name).unwrap();
        value.value().iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    };
    assert_eq!(chosen.property("bootargs").unwrap().value(), b"quiet\0");
    assert_eq!((cells("linux,initrd-start"), cells("linux,initrd-end")), (0x4100_0000, 0x4100_0005));
    let system_table = Pa(cells("linux,uefi-system-table"));
    let map = Range::new(Pa(cells("linux,uefi-mmap-start")), cells("linux,uefi-mmap-size"));
    assert_eq!(cells("linux,uefi-mmap-desc-size"), u64::from(efi::DESCRIPTOR));
    assert_eq!(chosen.property("linux,uefi-mmap-size").unwrap().value().len(), 4);

    let mut memory = Memory { parts: alloc::vec![(ROOM.base, bytes.clone())], rsdp: Pa(0) };
    let map = memory.bytes(map.base, map.size as usize).unwrap().to_vec();
    let fields = |at: Pa, length| {
        let bytes = memory.bytes(at, length).unwrap();
        Fields { table: Signature(*b"TEST"), bytes }
    };
    let table = fields(system_table, efi::SYSTEM_TABLE);
    assert_eq!(table.u64(0), Ok(efi::SIGNATURE));
    let mut zeroed = table.bytes.to_vec();
    zeroed[16..20].fill(0);
    assert_eq!(table.u32(16), Ok(efi::crc32(&zeroed)));
    assert_eq!((table.u64(88), table.u64(96), table.u64(104)), (Ok(0), Ok(0), Ok(3)), "no services, three tables");
    let vendor = fields(Pa(table.u64(24).unwrap()), 200);
    assert_eq!(vendor.bytes[..4], *b"D\0o\0");
    let configuration = fields(Pa(table.u64(112).unwrap()), 72);
    assert_eq!(configuration.bytes[..16], efi::ACPI_20);
    assert_eq!(configuration.bytes[24..40], efi::RT_PROPERTIES);
    let properties = fields(Pa(configuration.u64(40).unwrap()), 8);
    assert_eq!(properties.bytes, [1, 0, 8, 0, 0, 0, 0, 0]);
    assert_eq!(configuration.bytes[48..64], efi::MEMORY_RESERVE);
    assert_eq!(fields(Pa(configuration.u64(64).unwrap()), 16).bytes, [0; 16]);
    let rsdp = Pa(configuration.u64(16).unwrap());

    // All tables are in memory that the map marks as ACPI's.
    let kept = map.chunks(48).map(|line| Fields { table: Signature(*b"TEST"), bytes: line }).find_map(|line| {
        let kind = line.u32(0).unwrap();
        (kind == efi::ACPI_RECLAIM).then(|| Range::new(Pa(line.u64(8).unwrap()), line.u64(24).unwrap() << 12))
    });
    let kept = kept.unwrap();
    assert!(kept.contains(system_table) && kept.contains(rsdp));
    assert_eq!(kept.end().0.next_multiple_of(0x1_0000), kept.end().0);
    assert!(kept.end().0 >= ROOM.base.0 + bytes.len() as u64);
    memory.rsdp = rsdp;
    Dom0 { memory, machine, places, map }
}

#[test]
fn dom0s_tables_describe_the_host_without_the_devices_that_el2_keeps() {
    for (file, vcpus) in [(GICV4, 4), (GICV3, 8), (GICV4, 2)] {
        let host = Memory::of(file);
        let Dom0 { memory, machine, places, .. } = dom0(&host, vcpus);
        // A guest's MADT has no maintenance interrupt, but the reader requires one.
        let mut patched = memory.clone();
        patched.edit(Signature::MADT, |madt| madt[44 + 56] = 25);
        let seen = patched.read().unwrap();
        assert_eq!(seen.cpus[..], machine.cpus[..vcpus]);
        assert_eq!(seen.psci, Some(Conduit::Hvc));
        assert_eq!(seen.gic.version_hint, GicKind::V3);
        assert_eq!((seen.gic.dist, &seen.gic.redists[..]), (machine.gic.dist, &[places.gicr][..]));
        assert_eq!(seen.gic.itss, machine.gic.itss);
        assert_eq!(seen.timer, machine.timer);
        assert_eq!(seen.uart, machine.uart);
        assert!(seen.smmus.is_empty());
        assert_eq!(seen.pci.len(), machine.pci.len());
        for (seen, host) in seen.pci.iter().zip(&machine.pci) {
            assert_eq!((seen.ecam, seen.segment, seen.buses), (host.ecam, host.segment, host.buses));
            for rid in [0, 8, 0xff, 0x100, 0x2400, 0xffff] {
                assert_eq!(seen.device_id(rid), host.device_id(rid), "{rid:#x}");
                assert_eq!(seen.stream_id(rid), None);
            }
        }
        let tables = Tables::open(memory.rsdp, &memory).unwrap();
        let fadt = tables.require(Signature::FADT).unwrap();
        let host_tables = Tables::open(host.rsdp, &host).unwrap();
        let host_dsdt = host_tables.at(dsdt(host_tables.require(Signature::FADT).unwrap()).unwrap().unwrap()).unwrap();
        assert_eq!(tables.at(dsdt(fadt).unwrap().unwrap()).unwrap().bytes, host_dsdt.bytes);
        for copied in [Signature::GTDT, Signature::MCFG] {
            assert_eq!(tables.require(copied).unwrap().bytes, host_tables.require(copied).unwrap().bytes);
        }
        let aml = tables.require(Signature::SSDT).unwrap().bytes;
        let has = |bytes: &[u8]| aml.windows(bytes.len()).any(|window| window == bytes);
        assert!(has(b"LNRO0005\0") && has(&0xb000_1000u64.to_le_bytes()), "the console device with ports");
        for absent in [Signature::STAO, Signature(*b"PPTT"), Signature(*b"DBG2")] {
            assert_eq!(tables.find(absent), Ok(None));
        }
    }
}

#[test]
fn an_its_that_could_not_be_brought_up_is_not_listed() {
    let host = Memory::of(GICV4);
    let machine = host.read().unwrap();
    let places = places(&machine, 1, POOL).unwrap();
    let absent_itss = [machine.gic.itss[0].control.base];
    let plan = Dom0Plan {
        vcpus: &[Mpidr(0)],
        memory: &BANKS,
        gicr: places.gicr,
        absent_itss: &absent_itss,
        given_bars: &[],
        given_devices: &[],
        ports: PORTS,
        bootargs: "",
        initrd: None,
    };
    let tables = Tables::open(host.rsdp, &host).unwrap();
    let count = |plan: &Dom0Plan<'_>| {
        let bytes = build(&tables, &machine, plan, &places, ROOM).unwrap();
        let base = machine.gic.itss[0].control.base.0.to_le_bytes();
        // An ITS entry has its type and length first, and the address at offset 8.
        bytes.windows(20).filter(|entry| entry[..2] == [0x0f, 20] && entry[8..16] == base).count()
    };
    assert_eq!((count(&plan), count(&Dom0Plan { absent_itss: &[], ..plan })), (0, 1));
}

#[test]
fn dom0_on_a_graviton3_has_one_redistributor_region_the_hosts_uids_and_a_pl011() {
    let host = Memory::with(&graviton3());
    let Dom0 { memory, machine, places, map } = dom0(&host, 64);
    assert!(!map.is_empty());
    let mut patched = memory.clone();
    patched.edit(Signature::MADT, |madt| madt[44 + 56] = 25);
    let seen = patched.read().unwrap();
    assert_eq!(seen.cpus, machine.cpus);
    assert_eq!(seen.gic.redists[..], [places.gicr]);
    assert_eq!(seen.pci[0].device_id(0x2400), machine.pci[0].device_id(0x2400));
    // The SPCR is the host's, and a STAO hides its device. AML describes the PL011, which is at another address.
    assert_eq!(seen.uart, machine.uart);
    let tables = Tables::open(memory.rsdp, &memory).unwrap();
    assert_eq!(tables.require(Signature::STAO).unwrap().u8(36), Ok(1));
    let aml = tables.require(Signature::SSDT).unwrap();
    let (regs, irq) = places.console.unwrap();
    assert_eq!((irq, POOL.covers(regs)), (Intid(408), true));
    let has = |bytes: &[u8]| aml.bytes.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(&regs.base.0.to_le_bytes()) && has(b"ARMH0011"));
    let madt = tables.require(Signature::MADT).unwrap();
    let uids: Vec<u32> = madt
        .entries(44)
        .map(Result::unwrap)
        .filter(|&(kind, _)| kind == madt::GICC)
        .map(|(_, entry)| entry.u32(8).unwrap())
        .collect();
    assert_eq!(uids, (0..64).collect::<Vec<u32>>());
}

#[test]
fn paths_through_smmus_become_direct_with_the_same_ids() {
    // ITS groups at 48 and 72, an SMMU at 96, as in the reader's test.
    let nodes = [
        its_group(7),
        its_group(9),
        smmu_v3(0x905_0000, &[[0x1_0000, 0x7fff, 0x2_0000, 72, 0], [0x1_8000, 0x7fff, 0, 48, 0], [0, 0, 5, 48, 1]]),
        root_complex(0, &[[0, 0xfeff, 0x1_0000, 96, 0], [0xff00, 0xff, 0x42, 72, 0]]),
    ];
    let old = make_iort(&nodes);
    let fields = Fields { table: Signature::IORT, bytes: &old };
    let new = sealed(iort::rewrite(fields).unwrap());
    let direct = [
        its_group(7),
        its_group(9),
        root_complex(0, &[[0, 0x7fff, 0x2_0000, 72, 0], [0x8000, 0x7eff, 0, 48, 0], [0xff00, 0xff, 0x42, 72, 0]]),
    ];
    assert_eq!(new, make_iort(&direct));
    // A table without SMMUs does not change.
    let again = sealed(iort::rewrite(Fields { table: Signature::IORT, bytes: &new }).unwrap());
    assert_eq!(again, new);
}

#[test]
fn the_single_mapping_of_a_named_component_stays_single() {
    let component = (1, alloc::vec![0x41; 24], alloc::vec![[0, 0, 0x77, 72, 1]]);
    let nodes = [its_group(0), smmu_v3(0, &[]), component.clone()];
    let old = make_iort(&nodes);
    // Header, ITS group, SMMU, then the component: its node, its fields and its mapping.
    assert_eq!(old.len(), 48 + 24 + 68 + 16 + 24 + 20);
    let mut nodes = nodes;
    nodes[1].2 = alloc::vec![[0x70, 0xf, 0x1070, 48, 0]];
    let old = make_iort(&nodes);
    let new = sealed(iort::rewrite(Fields { table: Signature::IORT, bytes: &old }).unwrap());
    let mut direct = component;
    direct.2 = alloc::vec![[0, 0, 0x1077, 48, 1]];
    assert_eq!(new, make_iort(&[its_group(0), direct]));
}

#[test]
fn tables_without_room_and_vcpus_without_a_cpu_are_errors() {
    let host = Memory::of(GICV4);
    let machine = host.read().unwrap();
    let places = places(&machine, 1, POOL).unwrap();
    let tables = Tables::open(host.rsdp, &host).unwrap();
    let mut plan = Dom0Plan {
        vcpus: &[Mpidr(0)],
        memory: &BANKS,
        gicr: places.gicr,
        absent_itss: &[],
        given_bars: &[],
        given_devices: &[],
        ports: PORTS,
        bootargs: "",
        initrd: None,
    };
    let small = Range::new(ROOM.base, 0x1_1000);
    assert_eq!(build(&tables, &machine, &plan, &places, small), Err(Dom0AcpiError::TooLarge { size: 0x2_0000 }));
    plan.vcpus = &[Mpidr(0x500)];
    assert_eq!(build(&tables, &machine, &plan, &places, ROOM), Err(Dom0AcpiError::NoSuchCpu(Mpidr(0x500))));
}

#[test]
fn rewriting_a_damaged_iort_does_not_panic() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) as usize % below
    };
    let host = Memory::of(GICV4);
    let whole = Tables::open(host.rsdp, &host).unwrap().require(Signature::IORT).unwrap().bytes.to_vec();
    let (mut good, mut bad) = (0, 0);
    for _ in 0..4000 {
        let mut table = whole.clone();
        for _ in 0..=random(3) {
            let at = 36 + random(table.len() - 36);
            table[at] = [0, 1, 0x7f, 0x80, 0xff, random(256) as u8][random(6)];
        }
        match iort::rewrite(Fields { table: Signature::IORT, bytes: &table }) {
            Ok(_) => good += 1,
            Err(_) => bad += 1,
        }
    }
    assert!(good > 500 && bad > 500, "{good} rewritten, {bad} refused");
}
