//! What is read from device trees.

use super::*;
use crate::ids::{DeviceId, ItsId, SmmuId};
use crate::platform::testing::{DOM0, GICV2, GICV3, GICV4, cells, edited, node, set, unset};
use crate::platform::{GicKind, IdMap, Its, ModuleKind, PciWindowKind, Uart, UartKind};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use dtoolkit::model::{DeviceTree, DeviceTreeNode};
use dtoolkit::{Node, Property};

fn r(base: u64, size: u64) -> Range {
    Range::new(Pa(base), size)
}

fn refused(edit: impl FnOnce(&mut DeviceTree)) -> MachineError {
    read(&edited(DOM0, edit)).unwrap_err()
}

/// Reads a machine that is accepted with these warnings.
fn warned(edit: impl FnOnce(&mut DeviceTree), warnings: &[&str]) -> Box<Machine> {
    let machine = read(&edited(DOM0, edit)).unwrap();
    let found: Vec<String> = machine.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(found, warnings);
    machine
}

#[test]
fn a_sound_tree_has_no_warnings() {
    warned(|_| {}, &[]);
    for blob in [GICV4, GICV3] {
        let machine = read(blob).unwrap();
        assert!(machine.warnings.is_empty() && machine.left_out.is_empty(), "{:?}", machine.warnings);
    }
}

#[test]
fn odd_banks_of_memory_are_ignored_joined_or_trimmed() {
    const AT: &str = "/memory@40000000";
    let banks = |reg: &[u32], warnings: &[&str]| {
        warned(|tree| set(tree, AT, "reg", reg), warnings).memory.iter().copied().collect::<Vec<_>>()
    };
    let (good, whole) = ([0u32, 0x4000_0000, 0, 0x8000_0000], [r(0x4000_0000, 0x8000_0000)]);
    let with = |more: &[u32]| [&good[..], more].concat();
    let (empty, far) =
        ("/memory@40000000: it is empty: ignored", "/memory@40000000: it exceeds 52 bits of address: ignored");
    let joined = "/memory@40000000: it overlaps another one: joined with it";
    assert_eq!(banks(&with(&[8, 0, 0, 0]), &[empty]), whole);
    assert_eq!(banks(&with(&[0, 0, 0, 0, 8, 0, 0, 0]), &[empty, empty]), whole);
    assert_eq!(banks(&with(&[0x10_0000, 0, 0, 0x1000]), &[far]), whole);
    assert_eq!(banks(&with(&[u32::MAX, u32::MAX, u32::MAX, u32::MAX]), &[far]), whole);
    assert_eq!(banks(&with(&[0, 0x5000_0000, 0, 0x1000]), &[joined]), whole);
    assert_eq!(banks(&with(&[0, 0x5000_0000, 1, 0]), &[joined]), [r(0x4000_0000, 0x1_1000_0000)]);
    // One that joins two.
    let three = with(&[2, 0, 1, 0, 0, 0x9000_0000, 2, 0]);
    assert_eq!(banks(&three, &[joined]), [r(0x4000_0000, 0x2_c000_0000)]);
    // In units of less than a page: as much as is whole.
    assert_eq!(banks(&with(&[4, 1, 0, 0x2ffe]), &[]), [whole[0], r(0x4_0000_1000, 0x1000)]);
    let less = "/memory@40000000: it has no whole page: ignored";
    assert_eq!(banks(&with(&[4, 1, 0, 0x1ffe]), &[less]), whole);
    // More than there is room for.
    let many: Vec<u32> = (0..70).flat_map(|bank| [1, bank * 0x2000, 0, 0x1000]).collect();
    let machine = read(&edited(DOM0, |tree| set(tree, AT, "reg", &with(&many)[..]))).unwrap();
    assert_eq!((machine.memory.len(), &machine.left_out[..]), (64, &[Part::Memory][..]));
    assert_eq!(machine.memory[0], whole[0]);
    assert_eq!(refused(|tree| set(tree, AT, "reg", [0u32, 0x4000_0000, 0, 0])), MachineError::NoMemory);
}

#[test]
fn odd_reservations_are_ignored_and_those_without_ranges_kept() {
    let build = |tree: &mut DeviceTree, ranges: bool, reg: &[u32]| {
        let mut all = DeviceTreeNode::new("reserved-memory").unwrap();
        if ranges {
            for (name, value) in
                [("#address-cells", &2u32.to_be_bytes()[..]), ("#size-cells", &[0, 0, 0, 2]), ("ranges", &[])]
            {
                all.add_property(dtoolkit::model::DeviceTreeProperty::new(name, value).unwrap());
            }
        }
        let mut one = DeviceTreeNode::new("tz@42000000").unwrap();
        one.add_property(dtoolkit::model::DeviceTreeProperty::new("reg", reg).unwrap());
        all.add_child(one);
        tree.root.add_child(all);
    };
    const AT: &str = "/reserved-memory/tz@42000000";
    let good = [0u32, 0x4200_0000, 0, 0x20_0000];
    let reserved = [r(0x4200_0000, 0x20_0000)];
    assert_eq!(warned(|tree| build(tree, true, &good), &[]).reserved[..], reserved);
    let empty = [&good[..], &[0, 0x4300_0000, 0, 0]].concat();
    let text = std::format!("{AT}: it is empty: ignored");
    assert_eq!(warned(|tree| build(tree, true, &empty), &[&text]).reserved[..], reserved);
    let far = [&good[..], &[0x20_0000, 0, 0, 0x1000]].concat();
    let text = std::format!("{AT}: it exceeds 52 bits of address: ignored");
    assert_eq!(warned(|tree| build(tree, true, &far), &[&text]).reserved[..], reserved);
    let text = std::format!("{AT}: /reserved-memory has no `ranges`: the addresses are taken for the root's");
    assert_eq!(warned(|tree| build(tree, false, &good), &[&text]).reserved[..], reserved);
}

#[test]
fn a_cpu_that_cannot_be_one_is_not_used() {
    let cpus = |reg: &[u32], problem: &str| {
        let text = std::format!("/cpus/cpu@3: {problem}: this one is not used");
        let text = text.replace(": this one", if problem.starts_with("prop") { ": this CPU" } else { ": this one" });
        warned(|tree| set(tree, "/cpus/cpu@3", "reg", reg), &[&text]).cpus.len()
    };
    assert_eq!(cpus(&[2], "another CPU has the same affinity"), 3);
    assert_eq!(cpus(&[0x8000_0003], "property `reg` is missing or no affinity"), 3);
    assert_eq!(cpus(&[], "property `reg` is missing or no affinity"), 3);
}

#[test]
fn redistributors_may_be_described_by_cpu_and_with_any_stride_of_whole_frames() {
    let at = "/intc@8000000";
    let dist = [0u32, 0x800_0000, 0, 0x1_0000];
    let one = |cpu: u32| [0, 0x80a_0000 + cpu * 0x2_0000, 0, 0x2_0000];
    let machine = warned(
        |tree| {
            let all: Vec<u32> = dist.into_iter().chain((0..4).flat_map(one)).collect();
            set(tree, at, "reg", &all[..]);
            set(tree, at, "#redistributor-regions", 4u32);
            set(tree, at, "redistributor-stride", [0u32, 0x3_0000]);
        },
        &[],
    );
    assert_eq!((machine.gic.redists.len(), machine.gic.redist_stride), (4, Some(0x3_0000)));
    for stride in [0u32, 0x1_0000, 0x2_8000, u32::MAX] {
        let text = "/intc@8000000: property `redistributor-stride` is invalid: ignored";
        let machine = warned(|tree| set(tree, at, "redistributor-stride", [0, stride]), &[text]);
        assert_eq!(machine.gic.redist_stride, None);
    }
    // Regions that are not there, empty, or misaligned.
    let odd = [one(0), [0, 0, 0, 0], [0, 0x80d_0800, 0, 0x2_0000]].concat();
    let machine = warned(
        |tree| {
            set(tree, at, "reg", &[&dist[..], &odd].concat()[..]);
            set(tree, at, "#redistributor-regions", 5u32);
        },
        &[
            "/intc@8000000: a redistributor region is empty or invalid: ignored",
            "/intc@8000000: a redistributor region is too small or misaligned: ignored",
        ],
    );
    assert_eq!(machine.gic.redists[..], [r(0x80a_0000, 0x2_0000)]);
}

#[test]
fn a_region_of_redistributors_ends_where_a_device_begins_if_all_cpus_have_one() {
    let add = |tree: &mut DeviceTree, at: u32| {
        let mut device = DeviceTreeNode::new("clock@1").unwrap();
        device.add_property(dtoolkit::model::DeviceTreeProperty::new("reg", [0, at, 0, 0x1000]).unwrap());
        tree.root.add_child(device);
    };
    let text = "/clock@1: it is in a region of redistributors: the region is cut";
    let machine = warned(|tree| add(tree, 0x812_3000), &[text]);
    assert_eq!(machine.gic.redists[..], [r(0x80a_0000, 0x8_0000)]);
    // For four CPUs there have to be four.
    assert_eq!(warned(|tree| add(tree, 0x811_f000), &[]).gic.redists[0].size, 0xf6_0000);
}

#[test]
fn an_its_may_have_its_first_frame_only_and_one_behind_a_pre_its_is_not_used() {
    let its = "/intc@8000000/its@8080000";
    let machine = warned(|tree| set(tree, its, "reg", [0u32, 0x808_0000, 0, 0x1_0000]), &[]);
    assert_eq!(machine.gic.itss[..], [Its { control: r(0x808_0000, 0x2_0000), non_coherent: false }]);
    assert_eq!(machine.pci[0].msi_map.len(), 1);
    let machine = warned(
        |tree| set(tree, its, "socionext,synquacer-pre-its", [0x100_0000u32, 0x40_0000]),
        &["/intc@8000000/its@8080000: MSIs pass a pre-ITS, which is not supported: this ITS is not used"],
    );
    assert!(machine.gic.itss.is_empty() && machine.pci[0].msi_map.is_empty());
    assert_eq!((machine.gic.skipped_itss, &machine.gic.unused[..]), (1, &[r(0x808_0000, 0x2_0000)][..]));
    let machine = warned(
        |tree| set(tree, its, "reg", [0u32, 0x808_0800, 0, 0x1_0000]),
        &["/intc@8000000/its@8080000: its registers are misaligned: this ITS is not used"],
    );
    assert!(machine.gic.itss.is_empty());
}

#[test]
fn an_odd_pci_host_is_clamped_or_not_used() {
    let at = "/pcie@10000000";
    let ecam = |size: u32| [0x40, 0x1000_0000, 0, size];
    let fewer = "/pcie@10000000: its configuration space has room for fewer buses: the others are not used";
    let machine = warned(|tree| set(tree, at, "reg", ecam(0x800_0000)), &[fewer]);
    assert_eq!(machine.pci[0].buses, (0, 127));
    let machine = warned(
        |tree| {
            set(tree, at, "reg", ecam(0x20_0000));
            set(tree, at, "bus-range", [0xf0u32, 0xff]);
        },
        &[fewer],
    );
    assert_eq!(machine.pci[0].buses, (0xf0, 0xf1));
    let unused = |edit: &dyn Fn(&mut DeviceTree), problem: &str| {
        let text = std::format!("{at}: {problem}: this PCI host is not used");
        assert!(warned(edit, &[&text]).pci.is_empty());
    };
    unused(&|tree| set(tree, at, "reg", ecam(0xf_ffff)), "its configuration space has no room for a bus");
    unused(&|tree| set(tree, at, "bus-range", [1u32, 0]), "property `bus-range` is invalid");
    unused(&|tree| unset(tree, at, "ranges"), "property `ranges` is missing or invalid");
    unused(&|tree| unset(tree, at, "reg"), "property `reg` is missing or invalid");
    // Windows: an empty one, one that CPUs do not reach, more than there is room for, and a line that is cut short.
    let line = |cpu: u32, size: u32| [0x200_0000u32, 0, cpu, 0, cpu, 0, size];
    let windows = |lines: &[u32], problem: &str| {
        let text = std::format!("{at}: {problem}");
        let all = [&line(0x1000_0000, 0x100_0000)[..], lines].concat();
        warned(|tree| set(tree, at, "ranges", &all[..]), &[&text]).pci[0].windows.len()
    };
    assert_eq!(windows(&line(0x2000_0000, 0), "a window of `ranges` is empty: ignored"), 1);
    assert_eq!(windows(&[0x200_0000, 0], "the last line of `ranges` is cut short: ignored"), 1);
    let many: Vec<u32> = (0..8).flat_map(|n| line(0x2000_0000 + n * 0x1000, 0x1000)).collect();
    assert_eq!(windows(&many, "there are too many windows in `ranges`: not all are used"), 8);
}

#[test]
fn a_map_with_many_lines_is_read_and_an_odd_line_is_skipped() {
    let at = "/pcie@10000000";
    let read_map = |lines: &dyn Fn(u32) -> Vec<u32>, warnings: &[&str]| {
        warned(
            |tree| {
                let its = cells(tree, "/intc@8000000/its@8080000", "phandle")[0];
                set(tree, at, "msi-map", &lines(its)[..]);
            },
            warnings,
        )
    };
    let many = |its: u32, count: u32| (0..count).flat_map(|n| [n << 8, its, n << 16, 0x100]).collect::<Vec<u32>>();
    let machine = read_map(&|its| many(its, 32), &[]);
    assert_eq!(
        (machine.pci[0].msi_map.len(), machine.pci[0].device_id(0x1f01)),
        (32, Some((ItsId(0), DeviceId(0x1f_0001))))
    );
    let text = "/pcie@10000000: there are too many lines in `msi-map` or `iommu-map`: not all are used";
    assert_eq!(read_map(&|its| many(its, 33), &[text]).pci[0].msi_map.len(), 32);
    let text = "/pcie@10000000: `msi-map` or `iommu-map` refers to a node that is not there: ignored";
    let odd = |its| vec![0, 0xdead, 0, 0x100, 0x100, its, 0x100, 0x100, 0x200, 0xbeef, 0, 0x100];
    assert_eq!(read_map(&odd, &[text]).pci[0].device_id(0x101), Some((ItsId(0), DeviceId(0x101))));
    let text = "/pcie@10000000: the last line of `msi-map` or `iommu-map` is cut short: ignored";
    assert_eq!(read_map(&|its| vec![0, its, 0, 0x100, 0x100, its], &[text]).pci[0].msi_map.len(), 1);
}

#[test]
fn more_hosts_itss_and_smmus_than_there_is_room_for_are_named() {
    let machine = read(&edited(DOM0, |tree| {
        for n in 0..70u32 {
            for (like, parent, name, at) in [
                ("/pcie@10000000", "/", "pcie", 0x60_0000_0000 + (u64::from(n) << 28)),
                ("/smmuv3@9050000", "/", "smmuv3", 0x50_0000_0000 + (u64::from(n) << 20)),
                ("/intc@8000000/its@8080000", "/intc@8000000", "its", 0x40_0000_0000 + (u64::from(n) << 20)),
            ] {
                let mut copy = DeviceTreeNode::new(std::format!("{name}@{at:x}")).unwrap();
                let old = node(tree, like);
                let size = if name == "pcie" { 0x1000_0000 } else { 0x2_0000 };
                for property in
                    old.properties().filter(|p| !["phandle", "ranges", "linux,pci-domain"].contains(&p.name()))
                {
                    copy.add_property(property.clone());
                }
                let reg = [(at >> 32) as u32, at as u32, 0, size];
                copy.add_property(dtoolkit::model::DeviceTreeProperty::new("reg", reg).unwrap());
                if name == "pcie" {
                    copy.add_property(dtoolkit::model::DeviceTreeProperty::new("ranges", [0u8; 0]).unwrap());
                }
                if parent == "/" { tree.root.add_child(copy) } else { node(tree, parent).add_child(copy) }
            }
        }
    }))
    .unwrap();
    assert_eq!((machine.pci.len(), machine.gic.itss.len(), machine.smmus.len()), (48, 32, 64));
    let count = |word: &str| machine.warnings.iter().filter(|warning| warning.to_string().contains(word)).count();
    assert!(count("ITS") > 0 && machine.warnings.is_full());
    // 71 - 48, 71 - 32, 71 - 64.
    assert_eq!(machine.warnings.len() + machine.more_warnings as usize, 23 + 39 + 7);
}

#[test]
fn every_field_of_a_gicv4_machine_is_read() {
    let machine = read(GICV4).unwrap();
    assert_eq!(machine.memory[..], [r(0x4000_0000, 0x8000_0000)]);
    assert!(machine.reserved.is_empty());
    let cpus: Vec<_> = machine.cpus.iter().map(|cpu| (cpu.mpidr.0, cpu.enabled)).collect();
    assert_eq!(cpus, [(0, true), (1, true), (2, true), (3, true)]);
    assert_eq!(machine.psci, Some(Conduit::Smc));
    let gic = &machine.gic;
    assert_eq!(gic.version_hint, GicKind::V3);
    assert_eq!(gic.dist, r(0x0800_0000, 0x1_0000));
    assert_eq!(gic.redists[..], [r(0x080a_0000, 0xf6_0000)]);
    assert_eq!(gic.redist_stride, None);
    assert_eq!(gic.maintenance, Intid(25));
    assert_eq!(gic.itss[..], [Its { control: r(0x0808_0000, 0x2_0000), non_coherent: false }]);
    let timer = TimerPpis { phys_s: Some(Intid(29)), phys: Intid(30), virt: Intid(27), hyp: Intid(26) };
    assert_eq!(machine.timer, timer);
    let smmu =
        Smmu { regs: r(0x0905_0000, 0x2_0000), coherent: true, event: Some(Intid(106)), gerror: Some(Intid(109)) };
    assert_eq!(machine.smmus[..], [smmu]);
    let uart = Uart { kind: UartKind::Pl011, regs: r(0x0900_0000, 0x1000), irq: Some(Intid(33)) };
    assert_eq!(machine.uart, Some(uart));
    assert!(machine.modules.is_empty());
    assert_eq!(machine.kernel(), Err(MachineError::NoKernel));

    assert_eq!(machine.pci.len(), 1);
    let host = &machine.pci[0];
    assert_eq!((host.ecam, host.segment, host.buses), (r(0x40_1000_0000, 0x1000_0000), 0, (0, 255)));
    let windows: Vec<_> = host.windows.iter().map(|w| (w.kind, w.cpu, w.pci_base)).collect();
    assert_eq!(
        windows,
        [
            (PciWindowKind::Io, r(0x3eff_0000, 0x1_0000), 0),
            (PciWindowKind::Mem32, r(0x1000_0000, 0x2eff_0000), 0x1000_0000),
            (PciWindowKind::Mem64, r(0x80_0000_0000, 0x80_0000_0000), 0x80_0000_0000),
        ]
    );
    assert_eq!(host.msi_map[..], [IdMap { rid_base: 0, target: ItsId(0), out_base: 0, length: 0x1_0000 }]);
    assert_eq!(host.iommu_map[..], [IdMap { rid_base: 0, target: SmmuId(0), out_base: 0, length: 0x1_0000 }]);
    assert_eq!(host.device_id(0x18), Some((ItsId(0), DeviceId(0x18))));
}

#[test]
fn compatible_words_are_those_of_the_root_node() {
    assert!(is_compatible(GICV4, "linux,dummy-virt"));
    assert!(!is_compatible(GICV4, "arm,gic-v3"));
    assert!(!is_compatible(&[], ""));
}

#[test]
fn a_machine_without_smmu_has_an_msi_map_and_no_iommu_map() {
    let machine = read(GICV3).unwrap();
    assert_eq!(machine.cpus.len(), 8);
    assert_eq!(machine.memory_size(), 8 << 30);
    assert!(machine.smmus.is_empty() && machine.pci[0].iommu_map.is_empty());
    assert_eq!(machine.pci[0].msi_map.len(), 1);
}

#[test]
fn guest_loader_modules_are_read_with_the_cells_of_the_root() {
    let machine = read(DOM0).unwrap();
    assert_eq!(machine.bootargs.as_str(), "console=dtuart loglvl=all");
    let kernel = machine.kernel().unwrap();
    assert_eq!(kernel.range, r(0x4800_0000, 0x30_0000));
    assert_eq!(kernel.bootargs.as_str(), "console=ttyAMA0 root=/dev/ram");
    assert_eq!(machine.module(ModuleKind::Ramdisk).unwrap().range, r(0x4c00_0000, 0x10_0000));
}

#[test]
fn modules_are_read_with_the_cells_of_chosen_and_xens_rule_for_command_lines() {
    let blob = edited(DOM0, |tree| {
        set(tree, "/chosen", "#address-cells", 1u32);
        set(tree, "/chosen", "#size-cells", 1u32);
        set(tree, "/chosen", "xen,xen-bootargs", "sched=null");
        set(tree, "/chosen", "bootargs", "quiet");
        set(tree, "/chosen/module@0x4c000000", "reg", [0x4c00_0000u32, 0x1000]);
        set(tree, "/chosen/module@0x48000000", "reg", [0x4800_0000u32, 0x2000]);
        set(tree, "/chosen/module@0x48000000", "compatible", &["xen,linux-zimage", "xen,multiboot-module"][..]);
        unset(tree, "/chosen/module@0x48000000", "bootargs");
    });
    let machine = read(&blob).unwrap();
    assert_eq!(machine.bootargs.as_str(), "sched=null");
    assert_eq!(machine.kernel().unwrap().bootargs.as_str(), "quiet");
    assert_eq!(machine.kernel().unwrap().range, r(0x4800_0000, 0x2000));
    assert_eq!(machine.module(ModuleKind::Ramdisk).unwrap().range, r(0x4c00_0000, 0x1000));
    assert!(machine.module(ModuleKind::Ramdisk).unwrap().bootargs.is_empty());
}

#[test]
fn an_unsupported_interrupt_controller_is_reported() {
    assert_eq!(read(GICV2), Err(MachineError::GicTooOld));
    assert_eq!(refused(|tree| set(tree, "/intc@8000000", "compatible", "arm,gic-v5")), MachineError::GicTooNew);
    assert_eq!(refused(|tree| set(tree, "/intc@8000000", "compatible", "brcm,l2-intc")), MachineError::NoGic);
}

#[test]
fn missing_nodes_and_properties_are_reported() {
    assert_eq!(refused(|tree| unset(tree, "/memory@40000000", "device_type")), MachineError::NoMemory);
    assert_eq!(refused(|tree| unset(tree, "/intc@8000000", "interrupts")), MachineError::NoMaintenance);
    assert_eq!(refused(|tree| unset(tree, "/timer", "interrupts")), MachineError::NoTimer);
    assert_eq!(refused(|tree| set(tree, "/timer", "status", "disabled")), {
        MachineError::NotAPpi { name: "EL1 physical timer", intid: Intid(0) }
    });
    assert_eq!(refused(|tree| drop(tree.root.remove_child("cpus"))), MachineError::NoCpu);
    assert_eq!(
        refused(|tree| set(tree, "/intc@8000000", "reg", [0u32, 0x800_0000, 0, 0x1_0000])),
        MachineError::NoRedistributors
    );
    let dist = refused(|tree| unset(tree, "/intc@8000000", "reg"));
    assert_eq!(dist.to_string(), "device tree: /intc@8000000: property `reg` is missing or invalid");
    let without = |name: &str| read(&edited(DOM0, |tree| drop(tree.root.remove_child(name)))).unwrap();
    assert_eq!(without("psci").psci, None);
    assert_eq!(without("chosen").uart, None);
    assert!(without("aliases").uart.is_some());
}

#[test]
fn invalid_values_are_reported() {
    assert_eq!(
        refused(|tree| set(tree, "/memory@40000000", "reg", [0u32, 0x900_0000, 0, 0x8000_0000])),
        MachineError::Overlap {
            a: Part::Smmu,
            at: r(0x905_0000, 0x2_0000),
            b: Part::Memory,
            and: r(0x900_0000, 0x8000_0000)
        }
    );
    assert_eq!(
        refused(|tree| set(tree, "/chosen/module@0x48000000", "reg", [0u32, 0xbfff_f000, 0, 0x2000])),
        MachineError::ModuleOutsideMemory(r(0xbfff_f000, 0x2000))
    );
    assert!(matches!(
        refused(|tree| set(tree, "/chosen/module@0x48000000", "reg", [0u32, 0x4c00_0000, 0, 0x2000])),
        MachineError::Overlap { a: Part::Module, .. }
    ));
    assert!(matches!(
        refused(|tree| set(
            tree,
            "/chosen",
            "bootargs",
            alloc::string::String::from_utf8([b'x'; 2049].into()).unwrap()
        )),
        MachineError::LongBootargs { limit: 2048, .. }
    ));
}

#[test]
fn reservations_beyond_the_capacity_and_deep_trees_are_refused() {
    let many = |tree: &mut DeviceTree, count: u64| {
        let all = (0..count).map(|n| dtoolkit::memreserve::MemoryReservation::new(0x5000_0000 + n * 0x2000, 0x1000));
        tree.memory_reservations.extend(all);
    };
    let limit = super::super::RESERVATIONS;
    assert!(read(&edited(DOM0, |tree| many(tree, limit as u64))).is_ok());
    assert_eq!(refused(|tree| many(tree, limit as u64 + 1)), MachineError::TooMany { part: Part::Reserved, limit });
    let deep = |tree: &mut DeviceTree| {
        let mut node = DeviceTreeNode::new("n").unwrap();
        for _ in 0..MAX_DEPTH {
            let mut parent = DeviceTreeNode::new("n").unwrap();
            parent.add_child(node);
            node = parent;
        }
        tree.root.add_child(node);
    };
    assert_eq!(refused(deep), MachineError::TooMany { part: Part::Depth, limit: MAX_DEPTH });
}

#[test]
fn a_cpu_with_aff3_needs_two_cells_and_a_disabled_one_keeps_its_index() {
    let blob = edited(DOM0, |tree| {
        set(tree, "/cpus", "#address-cells", 2u32);
        for cpu in 0..4u32 {
            let path = alloc::format!("/cpus/cpu@{cpu}");
            set(tree, &path, "reg", [cpu & 1, cpu << 16]);
        }
        set(tree, "/cpus/cpu@1", "status", "fail");
    });
    let machine = read(&blob).unwrap();
    assert_eq!(machine.cpus[1], Cpu { mpidr: Mpidr(0x1_0001_0000), enabled: false });
    assert_eq!((machine.cpus.len(), machine.enabled_cpus()), (4, 3));
}

#[test]
fn reservations_are_read_from_memreserve_and_reserved_memory() {
    let blob = edited(DOM0, |tree| {
        tree.memory_reservations.push(dtoolkit::memreserve::MemoryReservation::new(0x4100_0000, 0x1000));
        let mut fixed = DeviceTreeNode::new("tz@42000000").unwrap();
        fixed.add_property(dtoolkit::model::DeviceTreeProperty::new("reg", [0u32, 0x4200_0000, 0, 0x20_0000]).unwrap());
        let mut dynamic = DeviceTreeNode::new("cma").unwrap();
        dynamic.add_property(dtoolkit::model::DeviceTreeProperty::new("size", [0u32, 0x100_0000]).unwrap());
        tree.root.add_child(DeviceTreeNode::new("reserved-memory").unwrap());
        set(tree, "/reserved-memory", "#address-cells", 2u32);
        set(tree, "/reserved-memory", "#size-cells", 2u32);
        set(tree, "/reserved-memory", "ranges", [0u8; 0]);
        node(tree, "/reserved-memory").add_child(fixed);
        node(tree, "/reserved-memory").add_child(dynamic);
    });
    assert_eq!(read(&blob).unwrap().reserved[..], [r(0x4100_0000, 0x1000), r(0x4200_0000, 0x20_0000)]);
}

#[test]
fn a_timer_with_interrupt_names_is_read_by_name() {
    let blob = edited(DOM0, |tree| {
        let cells = cells(tree, "/timer", "interrupts");
        set(tree, "/timer", "interrupts", &cells[3..]);
        set(tree, "/timer", "interrupt-names", &["phys", "virt", "hyp-phys", "hyp-virt"][..]);
    });
    let timer = read(&blob).unwrap().timer;
    assert_eq!(timer, TimerPpis { phys_s: None, phys: Intid(30), virt: Intid(27), hyp: Intid(26) });
}

#[test]
fn stdout_path_may_be_an_alias_with_options_and_the_console_a_16550() {
    let blob = edited(DOM0, |tree| {
        set(tree, "/chosen", "stdout-path", "serial0:115200n8");
        set(tree, "/aliases", "serial0", "/pl011");
        set(tree, "/pl011@9000000", "compatible", &["snps,dw-apb-uart", "x"][..]);
        set(tree, "/pl011@9000000", "reg-shift", 2u32);
        set(tree, "/pl011@9000000", "reg-io-width", 4u32);
    });
    let uart = read(&blob).unwrap().uart.unwrap();
    assert_eq!(uart.kind, UartKind::Ns16550 { reg_shift: 2, io_width: 4 });
    let elsewhere = edited(DOM0, |tree| set(tree, "/chosen", "stdout-path", "/pl011@9000000/x"));
    assert_eq!(read(&elsewhere).unwrap().uart, None);
}

#[test]
fn a_tree_may_be_followed_by_other_bytes_but_not_truncated() {
    let mut longer = GICV4.to_vec();
    longer.extend_from_slice(&[0xa5; 100]);
    assert_eq!(read(&longer).unwrap(), read(GICV4).unwrap());
    let short = &GICV4[..GICV4.len() - 1];
    let (promised, present) = (GICV4.len() as u32, short.len() as u64);
    assert_eq!(read(short), Err(MachineError::Truncated { promised, present }));
    assert_eq!(read(&[]), Err(MachineError::NotATree));
    assert_eq!(read(&[0; 64]), Err(MachineError::NotATree));
}

#[test]
fn no_damage_to_a_tree_makes_the_reader_panic() {
    // xorshift, so that a failure can be reproduced.
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) as usize % below
    };
    let (mut good, mut bad) = (0, 0);
    for round in 0..6000 {
        let mut blob = DOM0.to_vec();
        match round % 3 {
            0 => {
                for _ in 0..=random(4) {
                    let at = random(blob.len());
                    blob[at] ^= 1 << random(8);
                }
            }
            1 => {
                // Whole cells after the header, with values that can overflow.
                for _ in 0..=random(6) {
                    let at = 0x38 + 4 * random((blob.len() - 0x40) / 4);
                    let value = [0, 1, 3, 0x7fff_ffff, 0x8000_0000, u32::MAX][random(6)];
                    blob[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
                }
            }
            _ => {
                let keep = random(blob.len());
                blob.truncate(keep);
                if keep >= 8 {
                    blob[4..8].copy_from_slice(&(keep as u32).to_be_bytes());
                }
            }
        }
        match read(&blob) {
            Ok(_) => good += 1,
            Err(error) => {
                bad += 1;
                assert!(!alloc::format!("{error}").is_empty());
            }
        }
        let _ = for_each_device(&blob, |device| assert!(!device.path.is_empty()));
    }
    // The test is meaningful only if both outcomes occur.
    assert!(good > 300 && bad > 1000, "{good} read, {bad} refused");
}
