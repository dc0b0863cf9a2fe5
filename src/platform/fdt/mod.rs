//! The reader of flattened device trees.
//!
//! The header and the structure are checked once; after that the iterators of `dtoolkit` cannot fail. The properties are
//! interpreted here and checked by [`Machine::check`].
//!
//! | file | content |
//! |---|---|
//! | `structure` | the check of the header and the structure |
//! | `open` | access to a tree after that check |
//! | `walk` | nodes, cells, address translation, interrupt specifiers |
//! | `gic`, `pci` | the bindings of the GIC and of PCI hosts |
//! | `msi` | the other devices that send MSIs |
//! | `iommu` | the other devices behind SMMUs, and the memory that they access for the firmware |
//! | `chosen` | console, command lines, boot modules, domUs |
//! | `devices` | the list of all devices, from which dom0 is built |
//! | this file | memory, CPUs, timer, PSCI, SMMUs |
//!
//! The boot loader is trusted not to lie, but it may have bugs: no input makes this code panic, loop or recurse without
//! bound (`fuzz/fuzz_targets/fdt.rs`), and everything that is refused is reported.

mod chosen;
mod devices;
mod gic;
mod iommu;
mod lists;
mod msi;
mod open;
mod pci;
mod structure;
mod walk;

pub use devices::{DeviceNode, Spi, for_each_device};
pub use open::{is_compatible, parse, trim};
pub use walk::Trigger;

use super::{Conduit, Cpu, Machine, MachineError, Part, Smmu, TimerPpis};
use crate::ids::{Intid, Mpidr, Pa};
use crate::util::range::Range;
use arrayvec::ArrayVec;
use lists::{Phandles, push};
use open::open;
#[cfg(test)]
use walk::MAX_DEPTH;
use walk::{Cells, Go, Place, Tree, strings};

/// Reads and checks a machine. `blob` may be longer than the tree in it.
///
/// The result is large; where the stack is small, use [`read_into`] on a static.
///
/// # Errors
///
/// The first problem that is found.
pub fn read(blob: &[u8]) -> Result<Machine, MachineError> {
    let mut machine = Machine::new();
    read_into(&mut machine, blob)?;
    Ok(machine)
}

/// Like [`read`], but into `machine`, which is fresh from [`Machine::new`]. After an error its contents are undefined.
///
/// # Errors
///
/// The first problem that is found.
pub fn read_into(machine: &mut Machine, blob: &[u8]) -> Result<(), MachineError> {
    let tree = open(blob)?;
    let mut known = Phandles::default();

    // First, since an unsupported GIC is the most likely reason to refuse a machine, and the most useful to report.
    gic::read(tree, machine, &mut known)?;
    read_memory(tree, machine)?;
    read_cpus(tree, machine)?;
    tree.walk_available(&mut |place| {
        if place.is_compatible("arm,armv8-timer") {
            read_timer(tree, place, machine)?;
        } else if place.is_compatible("arm,psci-1.0") || place.is_compatible("arm,psci-0.2") {
            machine.psci = Some(read_psci(place)?);
        } else if place.is_compatible("arm,smmu-v3") {
            read_smmu(tree, place, machine, &mut known)?;
        }
        Ok(Go::In)
    })?;
    pci::read(tree, machine, &known)?;
    msi::read(tree, machine, &known)?;
    iommu::read(tree, machine, &known)?;
    chosen::read(tree, machine)?;
    machine.check()
}

/// Reads `/memory` nodes, `/memreserve/`, and the fixed part of `/reserved-memory`.
fn read_memory(tree: Tree<'_>, machine: &mut Machine) -> Result<(), MachineError> {
    for entry in tree.fdt.memory_reservations() {
        if entry.size() != 0 {
            let range = Range::new(Pa(entry.address()), entry.size());
            push(&mut machine.reserved, range, Part::Reserved)?;
        }
    }
    tree.walk_available(&mut |place| {
        let kind = place.value("device_type").and_then(|kind| strings(kind).next());
        let is_memory = place.depth == 1 && kind == Some("memory");
        let is_reserved = place.parent.is_some_and(|parent| parent.depth == 1 && parent.name() == "reserved-memory");
        if is_memory || is_reserved {
            for range in place.regs() {
                let node = if is_memory { "memory" } else { "reserved-memory" };
                let range = range.ok_or(MachineError::BadProperty { node, property: "reg" })?;
                if is_memory {
                    push(&mut machine.memory, range, Part::Memory)?;
                } else {
                    push(&mut machine.reserved, range, Part::Reserved)?;
                }
            }
        }
        Ok(if place.depth < 2 { Go::In } else { Go::Over })
    })
}

/// Reads `/cpus/cpu@…`. An unavailable CPU is listed as disabled, so that the `CpuId`s do not depend on it.
fn read_cpus(tree: Tree<'_>, machine: &mut Machine) -> Result<(), MachineError> {
    tree.walk(&mut |place| {
        match place.depth {
            0 => return Ok(Go::In),
            1 => return Ok(if place.name() == "cpus" { Go::In } else { Go::Over }),
            _ => {}
        }
        let is_cpu = place.value("device_type").is_some_and(|kind| strings(kind).next() == Some("cpu"));
        if is_cpu {
            let bad = MachineError::BadProperty { node: "cpu", property: "reg" };
            let cells = place.parent.map_or(0, Place::address_cells);
            let reg = Cells(place.value("reg").ok_or(bad)?).number(cells).ok_or(bad)?;
            let mpidr = Mpidr::from_register(reg);
            if mpidr.0 != reg || cells == 0 {
                return Err(MachineError::BadMpidr(reg));
            }
            push(&mut machine.cpus, Cpu { mpidr, enabled: place.is_available() }, Part::Cpu)?;
        }
        Ok(Go::Over)
    })
}

/// Reads the timer's interrupts: by `interrupt-names` if there are any, by position otherwise.
fn read_timer(tree: Tree<'_>, place: &Place<'_, '_>, machine: &mut Machine) -> Result<(), MachineError> {
    let mut intids: ArrayVec<Intid, 8> = ArrayVec::new();
    tree.interrupts(place, &mut |intid, _| {
        let _ = intids.try_push(intid);
        Ok(())
    })?;
    let names = place.value("interrupt-names");
    let find = |name: &str, index: usize| {
        let index = match names {
            Some(names) => strings(names).position(|word| word == name)?,
            None => index,
        };
        intids.get(index).copied()
    };
    let (Some(phys), Some(virt), Some(hyp)) = (find("phys", 1), find("virt", 2), find("hyp-phys", 3)) else {
        return Err(MachineError::NoTimer);
    };
    machine.timer = TimerPpis { phys_s: find("sec-phys", 0), phys, virt, hyp };
    Ok(())
}

/// Reads the PSCI conduit. PSCI 0.1, with function numbers in the tree, is older than any CPU with a GICv3.
fn read_psci(place: &Place<'_, '_>) -> Result<Conduit, MachineError> {
    match place.value("method").and_then(walk::text) {
        Some("smc") => Ok(Conduit::Smc),
        Some("hvc") => Ok(Conduit::Hvc),
        _ => Err(MachineError::BadProperty { node: "psci", property: "method" }),
    }
}

/// Reads an SMMUv3: registers and, by name, the wired interrupts.
fn read_smmu(
    tree: Tree<'_>,
    place: &Place<'_, '_>,
    machine: &mut Machine,
    known: &mut Phandles,
) -> Result<(), MachineError> {
    let regs = place.reg(0).ok_or(MachineError::BadProperty { node: "SMMU", property: "reg" })?;
    let mut intids: ArrayVec<Intid, 4> = ArrayVec::new();
    tree.interrupts(place, &mut |intid, _| {
        let _ = intids.try_push(intid);
        Ok(())
    })?;
    let names = place.value("interrupt-names").unwrap_or(&[]);
    let find = |name: &str| strings(names).position(|word| word == name).and_then(|index| intids.get(index).copied());
    let smmu = Smmu { regs, coherent: place.has("dma-coherent"), event: find("eventq"), gerror: find("gerror") };
    push(&mut machine.smmus, smmu, Part::Smmu)?;
    push(&mut known.smmus, place.phandle(), Part::Smmu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DeviceId, ItsId, SmmuId};
    use crate::platform::testing::{DOM0, GICV2, GICV3, GICV4, cells, edited, node, set, unset};
    use crate::platform::{GicKind, IdMap, Its, ModuleKind, PciWindowKind, Uart, UartKind};
    use alloc::vec::Vec;
    use dtoolkit::model::{DeviceTree, DeviceTreeNode};

    fn r(base: u64, size: u64) -> Range {
        Range::new(Pa(base), size)
    }

    fn refused(edit: impl FnOnce(&mut DeviceTree)) -> MachineError {
        read(&edited(DOM0, edit)).unwrap_err()
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
        assert_eq!(
            refused(|tree| unset(tree, "/pcie@10000000", "ranges")),
            MachineError::BadProperty { node: "PCI host", property: "ranges" }
        );
        let without = |name: &str| read(&edited(DOM0, |tree| drop(tree.root.remove_child(name)))).unwrap();
        assert_eq!(without("psci").psci, None);
        assert_eq!(without("chosen").uart, None);
        assert!(without("aliases").uart.is_some());
    }

    #[test]
    fn invalid_values_are_reported() {
        let memory = |reg: [u32; 4]| refused(move |tree| set(tree, "/memory@40000000", "reg", reg));
        assert_eq!(memory([0, 0, 0, 0]), MachineError::Empty { part: Part::Memory, range: r(0, 0) });
        let wraps = r(0x4000_0000, u64::MAX);
        assert_eq!(
            memory([0, 0x4000_0000, u32::MAX, u32::MAX]),
            MachineError::Unreachable { part: Part::Memory, range: wraps }
        );
        assert!(matches!(memory([0x10_0000, 0, 0, 0x1000]), MachineError::Unreachable { part: Part::Memory, .. }));
        assert_eq!(
            refused(|tree| set(tree, "/memory@40000000", "reg", [0u32, 0x4000_0000, 0, 0x2000, 0, 0x4000_1000, 1, 0])),
            MachineError::Overlap {
                a: Part::Memory,
                at: r(0x4000_0000, 0x2000),
                b: Part::Memory,
                and: r(0x4000_1000, 1 << 32)
            }
        );
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
        assert_eq!(refused(|tree| set(tree, "/cpus/cpu@3", "reg", 2u32)), MachineError::DuplicateMpidr(Mpidr(2)));
        assert_eq!(
            refused(|tree| set(tree, "/cpus/cpu@3", "reg", 0x8000_0003u32)),
            MachineError::BadMpidr(0x8000_0003)
        );
        assert_eq!(
            refused(|tree| set(tree, "/intc@8000000", "redistributor-stride", [0u32, 0x1_0000])),
            MachineError::BadStride(0x1_0000)
        );
        assert_eq!(
            refused(|tree| set(tree, "/pcie@10000000", "msi-map", [0u32, 0xdead, 0, 0x1_0000])),
            MachineError::Dangling { property: "msi-map", phandle: 0xdead }
        );
        assert!(matches!(
            refused(|tree| set(tree, "/pcie@10000000", "bus-range", [1u32, 0])),
            MachineError::BadBuses { first: 1, last: 0, .. }
        ));
        assert!(matches!(
            refused(|tree| set(
                tree,
                "/chosen",
                "bootargs",
                alloc::string::String::from_utf8([b'x'; 2049].into()).unwrap()
            )),
            MachineError::LongBootargs { limit: 2048 }
        ));
    }

    #[test]
    fn a_description_beyond_the_capacities_is_refused_and_not_truncated() {
        let many: Vec<u32> = (0..65).flat_map(|bank| [1, bank * 0x1000, 0, 0x1000]).collect();
        assert_eq!(
            refused(|tree| set(tree, "/memory@40000000", "reg", &many[..])),
            MachineError::TooMany { part: Part::Memory, limit: 64 }
        );
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
            fixed.add_property(
                dtoolkit::model::DeviceTreeProperty::new("reg", [0u32, 0x4200_0000, 0, 0x20_0000]).unwrap(),
            );
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
}
