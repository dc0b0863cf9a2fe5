//! What dom0's device tree has, and has not, for host trees of many kinds.

use super::*;
use crate::ids::Pa;
use crate::platform::testing::{DOM0, GICV3, cells, edited, node as node_at, set as set_at};
use crate::platform::{Conduit, Cpu};
use alloc::vec;
use dtoolkit::fdt::Fdt;

const M: u64 = 1 << 20;

fn r(base: u64, size: u64) -> Range {
    Range::new(Pa(base), size)
}

fn plan<'a>(vcpus: &'a [Mpidr], memory: &'a [Range]) -> Dom0Plan<'a> {
    Dom0Plan {
        vcpus,
        memory,
        gicr: r(0x080a_0000, VGICR_SIZE * vcpus.len() as u64),
        absent_itss: &[],
        given_bars: &[],
        given_devices: &[],
        ports: None,
        bootargs: "console=ttyAMA0 quiet",
        initrd: Some(r(0x4c00_0000, 5)),
    }
}

const TWO: [Mpidr; 2] = [Mpidr(0), Mpidr(1)];
const BANKS: [Range; 2] = [r_const(0x4020_0000, 64 * M), r_const(0x1_0000_0000, 2 << 30)];

const fn r_const(base: u64, size: u64) -> Range {
    Range::new(Pa(base), size)
}

fn build(host: &[u8], plan: &Dom0Plan<'_>) -> Vec<u8> {
    build_dom0_fdt(host, &fdt::read(host).unwrap(), plan).unwrap()
}

fn model(blob: &[u8]) -> DeviceTree {
    DeviceTree::from_fdt(&Fdt::new(blob).unwrap())
}

/// Reads dom0's tree with the reader of host trees. The interrupts that only a hypervisor needs, and that the
/// reader insists on, are put back first.
fn read_as_host(blob: &[u8]) -> alloc::boxed::Box<Machine> {
    let whole = edited(blob, |tree| {
        set_at(tree, "/intc@8000000", "interrupts", [1u32, 9, 4]);
        let mut timer = cells(tree, "/timer", "interrupts");
        timer.extend([1, 10, 4]);
        set_at(tree, "/timer", "interrupts", &timer[..]);
    });
    fdt::read(&whole).unwrap()
}

fn every_cell(node: &DeviceTreeNode, seen: &mut Vec<u32>) {
    for property in node.properties() {
        if property.name() != "reg" && property.name() != "rng-seed" && property.name() != "kaslr-seed" {
            seen.extend(property.value().as_chunks::<4>().0.iter().map(|&cell| u32::from_be_bytes(cell)));
        }
    }
    node.children().for_each(|child| every_cell(child, seen));
}

#[test]
fn devices_of_domus_are_disabled() {
    let given = [String::from("/pl031@9010000"), String::from("/nothing")];
    let blob = build(DOM0, &Dom0Plan { given_devices: &given, ..plan(&TWO, &BANKS) });
    let tree = model(&blob);
    let status = |path| string(tree.find_node(path).unwrap(), "status").map(ToString::to_string);
    assert_eq!((status("/pl031@9010000"), status("/pl061@9030000")), (Some("disabled".into()), None));
}

#[test]
fn the_result_describes_the_machine_that_dom0_sees() {
    let host = fdt::read(DOM0).unwrap();
    let blob = build(DOM0, &plan(&TWO, &BANKS));
    let seen = read_as_host(&blob);
    assert_eq!(seen.memory[..], BANKS);
    assert!(seen.reserved.is_empty() && seen.modules.is_empty() && seen.smmus.is_empty());
    assert_eq!(seen.cpus[..], TWO.map(|mpidr| Cpu { mpidr, enabled: true }));
    assert_eq!(seen.psci, Some(Conduit::Hvc));
    assert_eq!(seen.gic.dist, host.gic.dist);
    assert_eq!(seen.gic.redists[..], [r(0x080a_0000, 0x4_0000)]);
    assert_eq!(seen.gic.itss, host.gic.itss);
    assert_eq!((seen.uart, seen.bootargs.as_str()), (host.uart, "console=ttyAMA0 quiet"));
    let mut pci = host.pci.clone();
    pci[0].iommu_map.clear();
    assert_eq!(seen.pci, pci);
    assert_eq!(seen.timer.phys_s, Some(Intid(29)));
}

#[test]
fn an_its_that_could_not_be_brought_up_is_removed_with_every_reference_to_it() {
    let host = fdt::read(DOM0).unwrap();
    let absent = [host.gic.itss[0].control.base];
    let blob = build(DOM0, &Dom0Plan { absent_itss: &absent, ..plan(&TWO, &BANKS) });
    let seen = read_as_host(&blob);
    assert!(!host.pci[0].msi_map.is_empty());
    assert!(seen.gic.itss.is_empty() && seen.pci[0].msi_map.is_empty());
    let tree = fdt::parse(&blob).unwrap();
    let pci = tree.find_node("/pcie@10000000").unwrap();
    assert!(pci.property("msi-map").is_none() && pci.property("msi-map-mask").is_none());
}

#[test]
fn long_names_are_in_dom0s_tree_as_they_are_in_the_hosts() {
    let property = "linux,rs485-enabled-at-boot-time";
    let name = "a-regulator-whose-name-says-all-about-it";
    let host = edited(DOM0, |tree| {
        set_at(tree, "/pl031@9010000", "status", "okay");
        let mut long = node(name);
        set(&mut long, property, [1u32, 2]);
        node_at(tree, "/pl031@9010000").add_child(long);
    });
    let blob = build(&host, &plan(&TWO, &BANKS));
    let tree = DeviceTree::from_fdt(&fdt::parse(&blob).unwrap());
    let long = tree.find_node("/pl031@9010000").unwrap().child(name).unwrap();
    assert_eq!(long.property(property).unwrap().value(), [0, 0, 0, 1, 0, 0, 0, 2]);
}

#[test]
fn dom0_has_every_device_except_the_smmu() {
    let list = |blob: &[u8]| {
        let mut paths = Vec::new();
        fdt::for_each_device(blob, |device| paths.push(device.path.to_string())).unwrap();
        paths.sort();
        paths
    };
    let mut expected = list(DOM0);
    expected.retain(|path| path != "/smmuv3@9050000");
    assert_eq!(list(&build(DOM0, &plan(&TWO, &BANKS))), expected);
}

#[test]
fn the_console_device_with_ports_is_added_with_an_interrupt_of_the_gic() {
    let ports = Some((r(0x1_8001_1000, 0x1000), Intid(288)));
    let found = |blob: &[u8]| {
        let blob = build(blob, &Dom0Plan { ports, ..plan(&TWO, &BANKS) });
        let mut found = Vec::new();
        fdt::for_each_device(&blob, |device| {
            if device.is_compatible("virtio,mmio") && device.path.ends_with("@180011000") {
                found.push((device.regs.to_vec(), device.spis.iter().map(|spi| spi.intid).collect::<Vec<_>>()));
            }
        })
        .unwrap();
        let tree = model(&blob);
        let node = tree.find_node("/virtio@180011000").unwrap();
        assert!(node.property("dma-coherent").is_some());
        (found, node.property("interrupts").unwrap().value().len())
    };
    let expected = vec![(vec![r(0x1_8001_1000, 0x1000)], vec![Intid(288)])];
    assert_eq!(found(DOM0), (expected.clone(), 12));
    // Another controller is the root's, and specifiers of the GIC have four cells.
    let four = edited(DOM0, |tree| {
        set_at(tree, "/intc@8000000", "#interrupt-cells", 4u32);
        set_at(tree, "/intc@8000000", "interrupts", [1u32, 9, 4, 0]);
        set_at(tree, "/timer", "interrupts", [1u32, 13, 4, 0, 1, 14, 4, 0, 1, 11, 4, 0, 1, 10, 4, 0]);
        let others: Vec<String> = tree.root.children().map(|child| child.name().to_string()).collect();
        for name in
            others.iter().filter(|name| !["intc@8000000", "timer", "chosen", "cpus", "psci"].contains(&name.as_str()))
        {
            if !name.starts_with("memory") {
                tree.root.remove_child(name);
            }
        }
        set_at(tree, "/chosen", "stdout-path", "");
    });
    assert_eq!(found(&four), (expected, 16));
}

#[test]
fn no_property_refers_to_a_removed_node() {
    let tree = model(&build(DOM0, &plan(&TWO, &BANKS)));
    for path in ["/pmu", "/smmuv3@9050000", "/memory@40000000", "/cpus/cpu-map", "/cpus/cpu@2"] {
        assert!(tree.find_node(path).is_none(), "{path} is still there");
    }
    let mut seen = Vec::new();
    every_cell(&tree.root, &mut seen);
    // The phandles of the SMMU, of CPU 3 and of CPU 2 are gone; that of the GIC, a check of this test, is not.
    assert!(!seen.iter().any(|cell| [0x8007, 0x8001, 0x8002].contains(cell)));
    assert!(seen.contains(&0x8005));
    assert!(tree.find_node("/pcie@10000000").unwrap().property("iommu-map").is_none());
    assert_eq!(cell(tree.find_node("/cpus/cpu@1").unwrap(), "phandle"), Some(0x8003));
}

#[test]
fn gic_timer_psci_and_chosen_describe_dom0() {
    let blob = edited(DOM0, |tree| {
        set_at(tree, "/intc@8000000", "redistributor-stride", [0u32, 0x4_0000]);
        set_at(tree, "/intc@8000000", "mbi-ranges", [64u32, 32]);
        set_at(tree, "/chosen", "linux,uefi-system-table", [0u32, 1]);
        set_at(tree, "/chosen", "xen,xen-bootargs", "sched=null");
    });
    let mut tree = model(&build(&blob, &plan(&TWO, &BANKS)));
    let gic = tree.find_node("/intc@8000000").unwrap();
    for property in ["interrupts", "#redistributor-regions", "redistributor-stride", "mbi-ranges"] {
        assert!(gic.property(property).is_none(), "{property}");
    }
    assert!(gic.property("interrupt-controller").is_some() && gic.child("its").is_some());
    assert_eq!(cells(&mut tree, "/timer", "interrupts"), [1, 13, 4, 1, 14, 4, 1, 11, 4]);
    let psci = tree.find_node("/psci").unwrap();
    assert_eq!(psci.properties().map(|p| p.name().to_string()).collect::<Vec<_>>(), ["compatible", "method"]);
    let chosen = tree.find_node("/chosen").unwrap();
    assert!(chosen.children().next().is_none());
    let mut names: Vec<_> = chosen.properties().map(|p| p.name().to_string()).collect();
    names.sort_unstable();
    let expected = ["bootargs", "kaslr-seed", "linux,initrd-end", "linux,initrd-start", "rng-seed", "stdout-path"];
    assert_eq!(names, expected);
    assert_eq!(chosen.property("linux,initrd-end").unwrap().value_as::<u64>(), Ok(0x4c00_0005));
}

#[test]
fn a_timer_with_interrupt_names_loses_those_of_el2() {
    let blob = edited(DOM0, |tree| {
        let names = ["sec-phys", "phys", "virt", "hyp-phys", "hyp-virt"];
        set_at(tree, "/timer", "interrupt-names", &names[..]);
    });
    let tree = model(&build(&blob, &plan(&TWO, &BANKS)));
    let timer = tree.find_node("/timer").unwrap();
    let names = timer.property("interrupt-names").unwrap().value_as::<Vec<&str>>().unwrap();
    assert_eq!(names, ["sec-phys", "phys", "virt"]);
    assert_eq!(timer.property("interrupts").unwrap().value().len(), 36);
}

#[test]
fn vcpus_may_have_an_aff3_and_outnumber_the_cpus() {
    let vcpus: Vec<Mpidr> = (0..6).map(|n| Mpidr((n & 1) << 32 | n)).collect();
    let blob = build(DOM0, &plan(&vcpus, &BANKS));
    let seen = read_as_host(&blob);
    assert!(seen.cpus.iter().map(|cpu| cpu.mpidr).eq(vcpus.iter().copied()));
    assert_eq!(seen.gic.redists[..], [r(0x080a_0000, 0xc_0000)]);
    let mut tree = model(&blob);
    assert_eq!(cells(&mut tree, "/cpus/cpu@100000005", "reg"), [1, 5]);
}

#[test]
fn a_fixed_reservation_is_removed_and_its_device_disabled() {
    let blob = edited(DOM0, |tree| {
        tree.memory_reservations.push(dtoolkit::memreserve::MemoryReservation::new(0x4100_0000, 0x1000));
        let mut reserved = DeviceTreeNode::new("reserved-memory").unwrap();
        set(&mut reserved, "#address-cells", 2u32);
        set(&mut reserved, "#size-cells", 2u32);
        set(&mut reserved, "ranges", vec![0u8; 0]);
        let mut fixed = DeviceTreeNode::new("fb@42000000").unwrap();
        set(&mut fixed, "reg", [0u32, 0x4200_0000, 0, 0x10_0000]);
        set(&mut fixed, "phandle", 0x9000u32);
        let mut dynamic = DeviceTreeNode::new("cma").unwrap();
        set(&mut dynamic, "size", [0u32, 0x100_0000]);
        set(&mut dynamic, "phandle", 0x9001u32);
        reserved.add_child(fixed);
        reserved.add_child(dynamic);
        tree.root.add_child(reserved);
        set_at(tree, "/pl031@9010000", "memory-region", 0x9000u32);
        set_at(tree, "/pl061@9030000", "memory-region", 0x9001u32);
        set_at(tree, "/aliases", "smmu0", "/smmuv3@9050000");
    });
    let blob = build(&blob, &plan(&TWO, &BANKS));
    let tree = model(&blob);
    assert!(tree.memory_reservations.is_empty());
    assert!(tree.find_node("/reserved-memory/cma").is_some());
    assert!(tree.find_node("/reserved-memory/fb@42000000").is_none());
    assert_eq!(string(tree.find_node("/pl031@9010000").unwrap(), "status"), Some("disabled"));
    assert!(tree.find_node("/pl061@9030000").unwrap().property("status").is_none());
    let aliases: Vec<_> = tree.find_node("/aliases").unwrap().properties().map(|p| p.name().to_string()).collect();
    assert_eq!(aliases, ["serial0"]);
}

#[test]
fn the_virtual_redistributors_are_in_the_first_region_with_room() {
    // The GIC behind a bus, with a small region before the large one.
    let blob = edited(GICV3, |tree| {
        let gic = tree.root.remove_child("intc@8000000").unwrap();
        let mut bus = DeviceTreeNode::new("soc").unwrap();
        set(&mut bus, "#address-cells", 1u32);
        set(&mut bus, "#size-cells", 1u32);
        set(&mut bus, "ranges", [0u32, 0x10, 0, 0x4000_0000]);
        bus.add_child(gic);
        tree.root.add_child(bus);
        let reg = [0x800_0000u32, 0x1_0000, 0x900_0000, 0x2_0000, 0xa00_0000, 0x20_0000, 0xb00_0000, 0x1000];
        set_at(tree, "/soc/intc@8000000", "reg", reg);
        set_at(tree, "/soc/intc@8000000", "#redistributor-regions", 2u32);
        node_at(tree, "/soc/intc@8000000").remove_child("its@8080000");
        for property in ["msi-map", "msi-map-mask"] {
            node_at(tree, "/pcie@10000000").remove_property(property);
        }
    });
    let machine = fdt::read(&blob).unwrap();
    let gicr = vgicr_region(&machine, 2).unwrap();
    assert_eq!(gicr, r(0x10_0a00_0000, 0x4_0000));
    assert_eq!(vgicr_region(&machine, 1).unwrap().base, Pa(0x10_0900_0000));
    assert_eq!(vgicr_region(&machine, 17), Err(Dom0FdtError::NoRedistributorRoom { vcpus: 17 }));
    let blob = build_dom0_fdt(&blob, &machine, &Dom0Plan { gicr, ..plan(&TWO, &BANKS) }).unwrap();
    let mut tree = model(&blob);
    let reg = cells(&mut tree, "/soc/intc@8000000", "reg");
    assert_eq!(reg, [0x800_0000, 0x1_0000, 0xa00_0000, 0x4_0000]);
}

/// The tree for dom0 of QEMU's board after `edit`, with two vCPUs.
fn tree_after(edit: impl FnOnce(&mut DeviceTree)) -> DeviceTree {
    let host = edited(DOM0, edit);
    DeviceTree::from_fdt(&fdt::parse(&build(&host, &plan(&TWO, &BANKS))).unwrap())
}

fn status(tree: &DeviceTree, path: &str) -> Option<String> {
    string(tree.find_node(path).unwrap_or_else(|| panic!("no {path}")), "status").map(ToString::to_string)
}

/// Adds a node with registers of `size` bytes at `at` to the root.
fn add_device(tree: &mut DeviceTree, name: &str, at: u32, size: u32, properties: &[(&str, &[u32])]) {
    let mut device = node(name);
    set(&mut device, "reg", [0, at, 0, size]);
    properties.iter().for_each(|&(name, value)| set(&mut device, name, value));
    tree.root.add_child(device);
}

#[test]
fn a_16550_is_a_pl011_for_dom0_with_its_clocks() {
    const UART: &str = "/pl011@9000000";
    let console = |edit: &dyn Fn(&mut DeviceTree)| {
        let tree = tree_after(|tree| {
            set_at(tree, UART, "compatible", &["rockchip,rk3588-uart", "snps,dw-apb-uart"][..]);
            set_at(tree, UART, "reg-shift", 2u32);
            set_at(tree, UART, "reg-io-width", 4u32);
            set_at(tree, UART, "dmas", [0x8000u32, 6]);
            edit(tree);
        });
        tree.find_node(UART).unwrap().clone()
    };
    let clocks = |uart: &DeviceTreeNode| {
        let names = uart.property("clock-names").unwrap().value_as::<Vec<&str>>().unwrap();
        let names: Vec<String> = names.into_iter().map(ToString::to_string).collect();
        (uart.property("clocks").unwrap().value_as::<Vec<u32>>().unwrap(), names)
    };
    // Two clocks, whose order in the other binding is the same.
    let two = console(&|tree| {
        set_at(tree, UART, "clocks", [0x8000u32, 0x8000]);
        set_at(tree, UART, "clock-names", &["baudclk", "apb_pclk"][..]);
    });
    assert!(two.is_compatible("arm,pl011") && two.is_compatible("arm,primecell"));
    assert!(!two.is_compatible("snps,dw-apb-uart"));
    assert_eq!(clocks(&two), (vec![0x8000, 0x8000], vec!["uartclk".into(), "apb_pclk".into()]));
    for property in ["reg-shift", "reg-io-width", "dmas"] {
        assert!(two.property(property).is_none(), "{property}");
    }
    // One clock without a name is both.
    let one = console(&|tree| {
        set_at(tree, UART, "clocks", 0x8000u32);
        node_at(tree, UART).remove_property("clock-names");
    });
    assert_eq!(clocks(&one), (vec![0x8000, 0x8000], vec!["uartclk".into(), "apb_pclk".into()]));
    // None: SBSA's subset needs none.
    let none = console(&|tree| {
        node_at(tree, UART).remove_property("clocks");
        node_at(tree, UART).remove_property("clock-names");
    });
    assert!(none.is_compatible("arm,sbsa-uart") && cell(&none, "current-speed") == Some(115_200));
    // Without an interrupt there is no console.
    let silent = console(&|tree| drop(node_at(tree, UART).remove_property("interrupts")));
    assert_eq!(string(&silent, "status"), Some("disabled"));
    // A PL011 stays as it is.
    let own = tree_after(|_| {});
    let host = DeviceTree::from_fdt(&Fdt::new(DOM0).unwrap());
    assert_eq!(own.find_node(UART), host.find_node(UART));
}

#[test]
fn a_device_in_a_page_that_the_hypervisor_keeps_is_disabled() {
    let tree = tree_after(|tree| {
        // Two UARTs in one page, as on LS1028A; one in the next page; and one beside the SMMU's registers.
        add_device(tree, "serial@9000600", 0x900_0600, 0x100, &[]);
        add_device(tree, "serial@9001000", 0x900_1000, 0x100, &[]);
        add_device(tree, "device@906f800", 0x906_f800, 0x1000, &[]);
    });
    assert_eq!(status(&tree, "/serial@9000600").as_deref(), Some("disabled"));
    assert_eq!(status(&tree, "/serial@9001000"), None);
    assert_eq!(status(&tree, "/device@906f800").as_deref(), Some("disabled"));
    for path in ["/pl011@9000000", "/intc@8000000", "/intc@8000000/its@8080000", "/pl031@9010000"] {
        assert_eq!(status(&tree, path), None, "{path}");
    }
}

#[test]
fn an_its_and_a_pci_host_that_are_not_used_are_not_dom0s() {
    let its = "/intc@8000000/its@8080000";
    let tree = tree_after(|tree| {
        // The first of two ITSs is the one that is not used.
        let mut second = node("its@8100000");
        for property in node_at(tree, its).properties_mut() {
            second.add_property(property.clone());
        }
        set(&mut second, "reg", [0u32, 0x7f0_0000, 0, 0x2_0000]);
        set(&mut second, "phandle", 0x9100u32);
        node_at(tree, "/intc@8000000").add_child(second);
        set_at(tree, its, "socionext,synquacer-pre-its", [0x100_0000u32, 0x40_0000]);
        set_at(tree, "/pcie@10000000", "bus-range", [1u32, 0]);
    });
    assert!(tree.find_node(its).is_none() && tree.find_node("/intc@8000000/its@8100000").is_some());
    assert_eq!(status(&tree, "/pcie@10000000").as_deref(), Some("disabled"));
    assert!(tree.find_node("/pcie@10000000").unwrap().property("msi-map").is_none());
}

#[test]
fn references_are_told_from_arguments_of_the_same_value() {
    // The phandles of CPUs 0 and 3 in the recorded tree; dom0 has no CPU 3.
    let (first, last) = (0x8004u32, 0x8001u32);
    let tree = tree_after(|tree| {
        for cpu in 0..4 {
            set_at(tree, &format!("/cpus/cpu@{cpu}"), "#cooling-cells", 2u32);
        }
        assert_eq!((cells(tree, "/cpus/cpu@0", "phandle")[0], cells(tree, "/cpus/cpu@3", "phandle")[0]), (first, last));
        let mut domain = node("power-domain-cpu3");
        set(&mut domain, "phandle", 0x9200u32);
        set(&mut domain, "#power-domain-cells", 0u32);
        node_at(tree, "/psci").add_child(domain);
        add_device(tree, "domains@1", 0x100_0000, 0x1000, &[("phandle", &[0x9201]), ("#power-domain-cells", &[1])]);
        add_device(tree, "stays@2", 0x101_0000, 0x1000, &[("power-domains", &[0x9201, 0x9200])]);
        add_device(tree, "goes@3", 0x102_0000, 0x1000, &[("power-domains", &[0x9201, 1, 0x9200])]);
        let mut zones = node("thermal-zones");
        let mut zone = node("cpu-thermal");
        let mut maps = node("cooling-maps");
        for (name, devices) in [("map0", &[first, last, 3, last, 0, 3][..]), ("map1", &[last, 0, 3])] {
            let mut map = node(name);
            set(&mut map, "trip", 0x8000u32);
            set(&mut map, "cooling-device", devices);
            maps.add_child(map);
        }
        zone.add_child(maps);
        zones.add_child(zone);
        tree.root.add_child(zones);
    });
    let value = |path: &str, name: &str| {
        let property = tree.find_node(path).unwrap_or_else(|| panic!("no {path}")).property(name)?;
        property.value_as::<Vec<u32>>().ok()
    };
    assert_eq!(value("/stays@2", "power-domains"), Some(vec![0x9201, 0x9200]));
    assert_eq!(value("/goes@3", "power-domains"), None);
    let maps = "/thermal-zones/cpu-thermal/cooling-maps";
    assert_eq!(value(&format!("{maps}/map0"), "cooling-device"), Some(vec![first, last, 3]));
    assert!(tree.find_node(&format!("{maps}/map1")).is_none());
    assert_eq!(value("/cpus/cpu@0", "#cooling-cells"), Some(vec![2]));
}

#[test]
fn scmi_without_its_memory_is_disabled_and_endpoints_of_trace_units_are_loose() {
    let tree = tree_after(|tree| {
        let mut reserved = node("reserved-memory");
        set_cells(&mut reserved, 2, 2);
        set(&mut reserved, "ranges", [0u8; 0]);
        let mut shmem = node("shmem@10f000");
        set(&mut shmem, "reg", [0u32, 0x10_f000, 0, 0x100]);
        set(&mut shmem, "phandle", 0x9300u32);
        reserved.add_child(shmem);
        tree.root.add_child(reserved);
        let mut scmi = node("scmi");
        set(&mut scmi, "compatible", "arm,scmi-smc");
        set(&mut scmi, "shmem", 0x9300u32);
        tree.root.add_child(scmi);
        add_device(tree, "etm@7040000", 0x704_0000, 0x1000, &[]);
        set_at(tree, "/etm@7040000", "compatible", "arm,coresight-etm4x");
        let mut endpoint = node("endpoint");
        set(&mut endpoint, "phandle", 0x9301u32);
        node_at(tree, "/etm@7040000").add_child(endpoint);
        add_device(tree, "funnel@7041000", 0x704_1000, 0x1000, &[]);
        let mut endpoint = node("endpoint");
        set(&mut endpoint, "remote-endpoint", 0x9301u32);
        node_at(tree, "/funnel@7041000").add_child(endpoint);
        let mut framebuffer = node("framebuffer@9d400000");
        set(&mut framebuffer, "compatible", "simple-framebuffer");
        node_at(tree, "/chosen").add_child(framebuffer);
    });
    assert_eq!(status(&tree, "/scmi").as_deref(), Some("disabled"));
    assert!(tree.find_node("/scmi").unwrap().property("shmem").is_none());
    assert!(tree.find_node("/funnel@7041000/endpoint").unwrap().property("remote-endpoint").is_none());
    assert!(tree.find_node("/chosen").unwrap().children().next().is_none());
}

#[test]
fn a_vcpu_has_the_node_of_the_cpu_with_its_affinity() {
    let blob = build(DOM0, &plan(&[Mpidr(2), Mpidr(0)], &BANKS));
    let tree = model(&blob);
    assert_eq!(cell(tree.find_node("/cpus/cpu@2").unwrap(), "phandle"), Some(0x8002));
    assert_eq!(cell(tree.find_node("/cpus/cpu@0").unwrap(), "phandle"), Some(0x8004));
}

#[test]
fn redistributors_that_no_region_has_room_for_are_in_the_hypervisors_memory() {
    let one = |cpu: u32| [0x80a_0000 + cpu * 0x2_0000, 0x2_0000];
    let host = |range: u32| {
        edited(GICV3, |tree| {
            let gic = tree.root.remove_child("intc@8000000").unwrap();
            let mut bus = node("soc");
            set_cells(&mut bus, 1, 1);
            set(&mut bus, "ranges", [0u32, 0, 0, range]);
            bus.add_child(gic);
            tree.root.add_child(bus);
            let all: Vec<u32> = [0x800_0000, 0x1_0000].into_iter().chain((0..8).flat_map(one)).collect();
            set_at(tree, "/soc/intc@8000000", "reg", &all[..]);
            set_at(tree, "/soc/intc@8000000", "#redistributor-regions", 8u32);
            node_at(tree, "/soc/intc@8000000").remove_child("its@8080000");
            for property in ["msi-map", "msi-map-mask"] {
                node_at(tree, "/pcie@10000000").remove_property(property);
            }
        })
    };
    let blob = host(0x4000_0000);
    let machine = fdt::read(&blob).unwrap();
    let pool = r(0x7f00_1000, 16 * M);
    assert_eq!(vgicr_place(&machine, 1, pool).unwrap(), r(0x80a_0000, VGICR_SIZE));
    let gicr = vgicr_place(&machine, 2, pool).unwrap();
    assert_eq!(gicr, r(0x7f02_0000, 2 * VGICR_SIZE));
    assert!(vgicr_place(&machine, 2, r(0x7f00_1000, 0x4_0000)).is_err());
    let blob = build_dom0_fdt(&blob, &machine, &Dom0Plan { gicr, ..plan(&TWO, &BANKS) }).unwrap();
    let mut tree = model(&blob);
    let reg = cells(&mut tree, "/soc/intc@8000000", "reg");
    assert_eq!(reg, [0x800_0000, 0x1_0000, 0x7f02_0000, 0x4_0000]);
    // The reader finds them through the bus, whose window ended below.
    let whole = edited(&blob, |tree| {
        set_at(tree, "/soc/intc@8000000", "interrupts", [1u32, 9, 4]);
        let mut timer = cells(tree, "/timer", "interrupts");
        timer.extend([1, 10, 4]);
        set_at(tree, "/timer", "interrupts", &timer[..]);
    });
    assert_eq!(fdt::read(&whole).unwrap().gic.redists[..], [gicr]);
}

#[test]
fn a_wrong_redistributor_region_and_a_damaged_tree_are_errors() {
    let machine = fdt::read(DOM0).unwrap();
    let wrong = Dom0Plan { gicr: r(0x080c_0000, 0x4_0000), ..plan(&TWO, &BANKS) };
    assert_eq!(build_dom0_fdt(DOM0, &machine, &wrong), Err(Dom0FdtError::Gic));
    assert_eq!(
        build_dom0_fdt(&DOM0[..100], &machine, &wrong),
        Err(Dom0FdtError::Host(MachineError::Truncated { promised: DOM0.len() as u32, present: 100 }))
    );
}
