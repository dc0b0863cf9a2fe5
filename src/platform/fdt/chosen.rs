//! `/chosen`: the console, the command line and the boot modules.
//!
//! Modules follow Xen's binding (docs/misc/arm/device-tree/booting.txt in Xen's tree). QEMU's guest-loader writes them
//! without `#address-cells` in `/chosen`; then the root's cells apply. Modules may be in a node below `/chosen`. Where a
//! module does not say what it is, the first is the kernel and the second the RAM disk, as Xen assumes; GRUB writes such
//! modules. Without a RAM disk, that of `linux,initrd-start` is taken, as U-Boot and QEMU write it. Command lines follow Xen's rule, too: if
//! `xen,xen-bootargs` exists, it is for the hypervisor, and `bootargs` is for dom0 unless its module has its own.
//!
//! A `xen,domain` node describes a domU (same document, "Creating Multiple Domains directly from Xen"): `cpus`,
//! `memory` in KiB, `vpl011`, and modules. These properties are Doorward's own: `doorward,cpu-weight` and
//! `doorward,cpu-cap`, of one cell each; `doorward,pci`, a list of strings that name PCI functions; and
//! `doorward,pci-allow-no-reset`. (Xen's document has no property for PCI functions. A patch for Xen has
//! `xen,pci-assigned` in the partial device tree of a domU.)

use super::lists::push;
use super::walk::{self, Cells, Go, Place, Tree, text};
use crate::ids::Pa;
use crate::platform::domu::start_of;
use crate::platform::error::NodePath;
use crate::platform::{DomainConfig, Machine, MachineError, Module, ModuleKind, Part, Uart, UartKind};
use crate::util::range::Range;
use arrayvec::ArrayString;

/// Reads `/chosen`. A machine without it has no console, no modules and an empty command line.
pub(super) fn read(tree: Tree<'_>, machine: &mut Machine) -> Result<(), MachineError> {
    let mut stdout = None;
    let mut dom0_bootargs: &str = "";
    let mut initrd = None;
    let mut guesses = [ModuleKind::Kernel, ModuleKind::Ramdisk].into_iter();
    tree.walk(&mut |place| {
        match place.depth {
            0 => return Ok(Go::In),
            1 if place.name() != "chosen" => return Ok(Go::Over),
            1 => {
                let line = |name| place.value(name).and_then(text);
                stdout = line("stdout-path").or_else(|| line("linux,stdout-path"));
                let (own, plain) = (line("xen,xen-bootargs"), line("bootargs").unwrap_or(""));
                machine.bootargs = copy(place, own.unwrap_or(plain))?;
                initrd = read_initrd(place);
                dom0_bootargs = line("xen,dom0-bootargs").unwrap_or(if own.is_some() { plain } else { "" });
                return Ok(Go::In);
            }
            _ => {}
        }
        if !place.is_available() {
            return Ok(Go::Over);
        }
        let is_domain = |place: &Place<'_, '_>| place.depth == 2 && place.is_compatible("xen,domain");
        if is_domain(place) {
            if machine.domains.is_full() {
                machine.warn(place.path(), "there are too many domUs: this one is not built");
                return Ok(Go::Over);
            }
            machine.domains.push(read_domain(place)?);
            return Ok(Go::In);
        }
        let is_module =
            ["multiboot,module", "xen,multiboot-module", "boot,module"].iter().any(|word| place.is_compatible(word));
        if !is_module {
            return Ok(Go::In);
        }
        let mut above = place.parent;
        while let Some(parent) = above.filter(|parent| !is_domain(parent)) {
            above = parent.parent;
        }
        match (above, machine.domains.last_mut()) {
            (Some(_), Some(domain)) => push(&mut domain.modules, read_module(place, "")?, Part::Module)?,
            _ => {
                let mut module = read_module(place, dom0_bootargs)?;
                if module.kind == ModuleKind::Unknown
                    && let Some(guess) = guesses.next()
                {
                    module.kind = guess;
                    if guess == ModuleKind::Kernel && module.bootargs.is_empty() {
                        module.bootargs = copy(place, dom0_bootargs)?;
                    }
                }
                add_module(place, machine, module);
            }
        }
        Ok(Go::Over)
    })?;
    if let Some(range) = initrd.filter(|_| machine.module(ModuleKind::Ramdisk).is_none()) {
        let module = Module { kind: ModuleKind::Ramdisk, range, bootargs: ArrayString::new() };
        if machine.modules.iter().any(|other| other.range.overlaps(range)) {
            machine.warn("/chosen: linux,initrd-start", "a boot module is there: ignored");
        } else if machine.memory.iter().any(|bank| bank.covers(range)) && !machine.modules.is_full() {
            machine.modules.push(module);
        } else {
            machine.warn("/chosen: linux,initrd-start", "not in memory: ignored");
        }
    }
    machine.uart = stdout.and_then(|path| find_uart(tree, path));
    if stdout.is_some() && machine.uart.is_none() {
        machine.warn("/chosen: stdout-path", "not a PL011 or 16550 that a CPU reaches: there is no console");
    }
    let without = machine.domains.iter().find(|domain| domain.module(ModuleKind::Kernel).is_none());
    match without {
        Some(domain) => {
            let mut node = NodePath::from("/chosen/").unwrap_or_default();
            let _ = node.try_push_str(&domain.name);
            Err(MachineError::BadProperty { node, property: "multiboot,kernel" })
        }
        None => Ok(()),
    }
}

/// Reads the RAM disk of a boot loader that knows Linux only.
fn read_initrd(chosen: &Place<'_, '_>) -> Option<Range> {
    let address = |name| Cells(chosen.value(name)?).value();
    let (start, end) = (address("linux,initrd-start")?, address("linux,initrd-end")?);
    (start < end).then(|| Range::between(Pa(start), Pa(end)))
}

/// Adds a module of dom0. One that dom0 can do without is skipped if it cannot be one.
fn add_module(place: &Place<'_, '_>, machine: &mut Machine, module: Module) {
    let is_used = matches!(module.kind, ModuleKind::Kernel | ModuleKind::Ramdisk);
    let is_odd = module.range.is_empty()
        || !machine.memory.iter().any(|bank| bank.covers(module.range))
        || machine.modules.iter().any(|other| other.range.overlaps(module.range));
    if is_odd && !is_used {
        machine.warn(place.path(), "this boot module is empty, not in memory, or overlaps another one: ignored");
    } else if machine.modules.try_push(module).is_err() {
        machine.warn(place.path(), "there are too many boot modules: ignored");
    }
}

/// Reads a domU's properties. Its modules are child nodes, which the caller reads.
fn read_domain(place: &Place<'_, '_>) -> Result<DomainConfig, MachineError> {
    let bad = |property| MachineError::BadProperty { node: place.path(), property };
    let cpus = place.u32("cpus").and_then(|cpus| u16::try_from(cpus).ok()).filter(|&cpus| cpus > 0);
    let memory = place.value("memory").ok_or(bad("memory"))?;
    let kib = Cells(memory).number((memory.len() / 4).min(2) as u32).filter(|&kib| kib > 0);
    let mut config = DomainConfig {
        name: start_of(place.name()),
        cpus: cpus.ok_or(bad("cpus"))?,
        memory: kib.and_then(|kib| kib.checked_mul(1024)).ok_or(bad("memory"))?,
        vpl011: place.has("vpl011"),
        weight: place.u32("doorward,cpu-weight"),
        cap: place.u32("doorward,cpu-cap"),
        pci_allow_no_reset: place.has("doorward,pci-allow-no-reset"),
        ..DomainConfig::default()
    };
    if let Some(list) = place.value("doorward,pci") {
        // Unlike `strings`, this loses no name that is damaged: the domain is not built without a function.
        let names = list.strip_suffix(b"\0").unwrap_or(list);
        for name in names.split(|&byte| byte == 0) {
            config.add_function(core::str::from_utf8(name).unwrap_or("\u{fffd}"));
        }
    }
    Ok(config)
}

fn copy<const N: usize>(place: &Place<'_, '_>, line: &str) -> Result<ArrayString<N>, MachineError> {
    ArrayString::from(line).map_err(|_| MachineError::LongBootargs { node: place.path(), limit: N })
}

fn read_module(place: &Place<'_, '_>, dom0_bootargs: &str) -> Result<Module, MachineError> {
    let bad = MachineError::BadProperty { node: place.path(), property: "reg" };
    let mut cells = place.parent.ok_or(bad)?;
    while let Some(above) = cells.parent.filter(|_| !cells.has("#address-cells")) {
        cells = above;
    }
    let mut reg = Cells(place.value("reg").ok_or(bad)?);
    let base = reg.number(cells.address_cells()).ok_or(bad)?;
    let size = reg.number(cells.size_cells()).ok_or(bad)?;

    let is = |words: &[&str]| words.iter().any(|word| place.is_compatible(word));
    let kind = if is(&["multiboot,kernel", "xen,linux-zimage"]) {
        ModuleKind::Kernel
    } else if is(&["multiboot,ramdisk", "xen,linux-initrd"]) {
        ModuleKind::Ramdisk
    } else if is(&["multiboot,device-tree"]) {
        ModuleKind::DeviceTree
    } else {
        ModuleKind::Unknown
    };
    let fallback = if kind == ModuleKind::Kernel { dom0_bootargs } else { "" };
    let bootargs = copy(place, place.value("bootargs").and_then(text).unwrap_or(fallback))?;
    Ok(Module { kind, range: Range::new(Pa(base), size), bootargs })
}

/// Finds the UART at `path[:options]`, where the path may start with an alias.
fn find_uart(tree: Tree<'_>, stdout: &str) -> Option<Uart> {
    let path = stdout.split(':').next()?;
    let (head, tail) = match path.strip_prefix('/') {
        Some(_) => ("", path),
        None => {
            let (alias, rest) = path.split_once('/').unwrap_or((path, ""));
            (text(walk::value(tree.fdt.find_node("/aliases")?, alias)?)?, rest)
        }
    };
    let mut uart = None;
    tree.walk_available(&mut |place| {
        if place.depth != 0 {
            let mut wanted = head.split('/').chain(tail.split('/')).filter(|word| !word.is_empty());
            let name = wanted.nth(place.depth - 1);
            if !name.is_some_and(|name| matches(place.name(), name)) {
                return Ok(Go::Over);
            }
            if wanted.next().is_none() && uart.is_none() {
                uart = read_uart(tree, place);
                return Ok(Go::Over);
            }
        }
        Ok(Go::In)
    })
    .ok()?;
    uart
}

/// Whether `name`, which may lack the unit address, is that of a node.
fn matches(node: &str, name: &str) -> bool {
    node == name || (!name.contains('@') && node.split('@').next() == Some(name))
}

fn read_uart(tree: Tree<'_>, place: &Place<'_, '_>) -> Option<Uart> {
    let is = |words: &[&str]| words.iter().any(|word| place.is_compatible(word));
    let kind = if is(&["arm,pl011", "arm,sbsa-uart"]) {
        UartKind::Pl011
    } else if is(&["ns16550a", "ns16550", "snps,dw-apb-uart", "nvidia,tegra20-uart"]) {
        UartKind::Ns16550 {
            reg_shift: place.u32("reg-shift").unwrap_or(0),
            io_width: place.u32("reg-io-width").unwrap_or(1),
        }
    } else {
        return None;
    };
    let mut irq = None;
    tree.interrupts(place, &mut |intid, _| {
        irq = irq.or(Some(intid));
        Ok(())
    })
    .ok()?;
    Some(Uart { kind, regs: place.reg(0)?, irq })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Sbdf;
    use crate::platform::ConfigProblem;
    use crate::platform::fdt::read;
    use crate::platform::testing::{DOM0, cells, edited, node, set, unset};
    use alloc::string::{String, ToString};
    use alloc::vec::Vec;
    use dtoolkit::Node;
    use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

    const KERNEL: &str = "/chosen/domU1/module@50000000";

    fn with_domain(edit: impl FnOnce(&mut DeviceTree)) -> Vec<u8> {
        edited(DOM0, |tree| {
            let mut domain = DeviceTreeNode::new("domU1").unwrap();
            domain.add_child(DeviceTreeNode::new("module@50000000").unwrap());
            domain.add_child(DeviceTreeNode::new("module@54000000").unwrap());
            node(tree, "/chosen").add_child(domain);
            let at = "/chosen/domU1";
            set(tree, at, "compatible", "xen,domain");
            set(tree, at, "#address-cells", 2u32);
            set(tree, at, "#size-cells", 1u32);
            set(tree, at, "cpus", 2u32);
            set(tree, at, "memory", [0u32, 131_072]);
            set(tree, at, "vpl011", [0u32; 0]);
            set(tree, KERNEL, "compatible", &["multiboot,kernel", "multiboot,module"][..]);
            set(tree, KERNEL, "reg", [0u32, 0x5000_0000, 0x10_0000]);
            set(tree, KERNEL, "bootargs", "console=ttyAMA0");
            let ramdisk = "/chosen/domU1/module@54000000";
            set(tree, ramdisk, "compatible", &["multiboot,ramdisk", "multiboot,module"][..]);
            set(tree, ramdisk, "reg", [0u32, 0x5400_0000, 0x2000]);
            edit(tree);
        })
    }

    fn refused(edit: impl FnOnce(&mut DeviceTree)) -> MachineError {
        read(&with_domain(edit)).unwrap_err()
    }

    #[test]
    fn a_domu_is_read_with_its_own_modules() {
        let machine = read(&with_domain(|_| {})).unwrap();
        assert_eq!(machine.domains.len(), 1);
        let domain = &machine.domains[0];
        assert_eq!((domain.name.as_str(), domain.cpus, domain.memory, domain.vpl011), ("domU1", 2, 128 << 20, true));
        assert_eq!((domain.weight, domain.cap), (None, None));
        let kernel = domain.module(ModuleKind::Kernel).unwrap();
        assert_eq!(
            (kernel.range, kernel.bootargs.as_str()),
            (Range::new(Pa(0x5000_0000), 0x10_0000), "console=ttyAMA0")
        );
        assert_eq!(domain.module(ModuleKind::Ramdisk).unwrap().range, Range::new(Pa(0x5400_0000), 0x2000));
        // dom0's modules are unchanged.
        assert_eq!((machine.modules.len(), machine.all_modules().count()), (2, 4));
        assert_eq!(machine.kernel().unwrap().range.base, Pa(0x4800_0000));
    }

    #[test]
    fn a_missing_or_invalid_property_of_a_domu_is_reported() {
        let at = "/chosen/domU1";
        let bad = |property| MachineError::BadProperty { node: NodePath::from(at).unwrap(), property };
        assert_eq!(refused(|tree| unset(tree, at, "cpus")), bad("cpus"));
        assert_eq!(refused(|tree| set(tree, at, "cpus", 0u32)), bad("cpus"));
        assert_eq!(refused(|tree| set(tree, at, "cpus", 0x1_0001u32)), bad("cpus"));
        assert_eq!(refused(|tree| unset(tree, at, "memory")), bad("memory"));
        assert_eq!(refused(|tree| set(tree, at, "memory", [0u32, 0])), bad("memory"));
        assert_eq!(refused(|tree| set(tree, at, "memory", [u32::MAX, 0])), bad("memory"));
        assert_eq!(refused(|tree| set(tree, KERNEL, "compatible", "multiboot,module")), bad("multiboot,kernel"));
        let overlap = refused(|tree| set(tree, KERNEL, "reg", [0u32, 0x4800_0000, 0x1000]));
        assert!(matches!(overlap, MachineError::Overlap { a: Part::Module, .. }));
        let nowhere = refused(|tree| set(tree, KERNEL, "reg", [0u32, 0x1000_0000, 0x1000]));
        assert_eq!(nowhere, MachineError::ModuleOutsideMemory(Range::new(Pa(0x1000_0000), 0x1000)));
    }

    #[test]
    fn a_disabled_domu_is_skipped_and_weight_and_cap_are_read() {
        let machine = read(&with_domain(|tree| set(tree, "/chosen/domU1", "status", "disabled"))).unwrap();
        assert!(machine.domains.is_empty());
        assert_eq!(machine.modules.len(), 2);
        let blob = with_domain(|tree| {
            set(tree, "/chosen/domU1", "doorward,cpu-weight", 512u32);
            set(tree, "/chosen/domU1", "doorward,cpu-cap", 50u32);
        });
        let domain = read(&blob).unwrap().domains.remove(0);
        assert_eq!((domain.weight, domain.cap), (Some(512), Some(50)));
    }

    #[test]
    fn the_pci_functions_of_a_domu_are_read_once_each() {
        let domain = |names: &[&str]| {
            let blob = with_domain(|tree| set(tree, "/chosen/domU1", "doorward,pci", names));
            read(&blob).unwrap().domains.remove(0)
        };
        let found = domain(&["0000:01:00.0", "0001:02:1f.7", "0:1:0.0"]);
        assert_eq!(found.pci[..], [Sbdf { segment: 0, rid: 0x100 }, Sbdf { segment: 1, rid: 0x2ff }]);
        assert_eq!((found.problem, found.pci_allow_no_reset), (None, false));
        let allowed =
            read(&with_domain(|tree| set(tree, "/chosen/domU1", "doorward,pci-allow-no-reset", [0u32; 0]))).unwrap();
        assert!(allowed.domains[0].pci_allow_no_reset && allowed.domains[0].pci.is_empty());

        let all: Vec<_> = (0..17).map(|device| alloc::format!("0000:00:{device:02x}.0")).collect();
        let all: Vec<_> = all.iter().map(alloc::string::String::as_str).collect();
        assert_eq!(domain(&all[..16]).problem, None);
        assert_eq!(domain(&all).problem, Some(ConfigProblem::TooManyFunctions));
    }

    #[test]
    fn a_malformed_name_of_a_function_is_a_problem_of_its_domain_alone() {
        let problem = |value: &[u8]| {
            let value = value.to_vec();
            let blob = with_domain(|tree| {
                let property = DeviceTreeProperty::new("doorward,pci", value).unwrap();
                node(tree, "/chosen/domU1").add_property(property);
                let mut other = node(tree, "/chosen/domU1").clone();
                assert!(other.remove_property("doorward,pci").is_some());
                let mut second = DeviceTreeNode::new("domU2").unwrap();
                other.properties().for_each(|property| second.add_property(property.clone()));
                other.children().for_each(|child| second.add_child(child.clone()));
                node(tree, "/chosen").add_child(second);
                for module in ["module@50000000", "module@54000000"] {
                    let path = alloc::format!("/chosen/domU2/{module}");
                    let at = cells(tree, &path, "reg");
                    set(tree, &path, "reg", [at[0], at[1] + 0x200_0000, at[2]]);
                }
            });
            let machine = read(&blob).unwrap();
            assert_eq!((machine.domains.len(), &machine.domains[1].problem), (2, &None));
            machine.domains[0].problem.as_ref().map(alloc::string::ToString::to_string)
        };
        assert_eq!(problem(b"0000:01:00.0\0"), None);
        assert_eq!(problem(b"0000:01:00.0"), None);
        assert_eq!(
            problem(b"0000:01:00.0\x0001:00.0\0"),
            Some("PCI functions: `01:00.0`: not a PCI function; expected SSSS:BB:DD.F in hexadecimal".into())
        );
        for bad in [&b""[..], b"\0", b"0000:01:00.0\0\0", b"\xff0000:01:00.0\0", b"0000:01:00.0\0\xff\0", &[b'x'; 99]] {
            assert!(problem(bad).is_some(), "{bad:x?}");
        }
    }

    fn kinds(machine: &Machine) -> Vec<(ModuleKind, u64)> {
        machine.modules.iter().map(|module| (module.kind, module.range.base.0)).collect()
    }

    fn warnings(machine: &Machine) -> Vec<String> {
        machine.warnings.iter().map(ToString::to_string).collect()
    }

    /// Adds a boot module of 64 KiB below the node at `parent`.
    fn add_module_at(tree: &mut DeviceTree, parent: &str, at: u32, compatible: &[&str]) {
        let mut module = DeviceTreeNode::new(alloc::format!("module@{at:x}")).unwrap();
        module.add_property(DeviceTreeProperty::new("compatible", compatible).unwrap());
        module.add_property(DeviceTreeProperty::new("reg", [0, at, 0, 0x1_0000]).unwrap());
        node(tree, parent).add_child(module);
    }

    fn without_modules(edit: impl FnOnce(&mut DeviceTree)) -> alloc::boxed::Box<Machine> {
        let blob = edited(DOM0, |tree| {
            for name in ["module@0x48000000", "module@0x4c000000"] {
                assert!(node(tree, "/chosen").remove_child(name).is_some());
            }
            edit(tree);
        });
        read(&blob).unwrap()
    }

    #[test]
    fn of_modules_that_do_not_say_what_they_are_the_first_is_the_kernel_and_the_second_the_ram_disk() {
        use ModuleKind::{DeviceTree as Tree, Kernel, Ramdisk, Unknown};
        let plain = &["multiboot,module"][..];
        let machine = without_modules(|tree| {
            set(tree, "/chosen", "xen,xen-bootargs", "loglvl=all");
            set(tree, "/chosen", "bootargs", "quiet");
            for at in [0x4400_0000, 0x4500_0000, 0x4600_0000] {
                add_module_at(tree, "/chosen", at, plain);
            }
        });
        assert_eq!(kinds(&machine), [(Kernel, 0x4400_0000), (Ramdisk, 0x4500_0000), (Unknown, 0x4600_0000)]);
        assert_eq!(machine.kernel().unwrap().bootargs.as_str(), "quiet");
        // Those that say it do not count.
        let machine = without_modules(|tree| {
            add_module_at(tree, "/chosen", 0x4400_0000, &["multiboot,device-tree", "multiboot,module"]);
            add_module_at(tree, "/chosen", 0x4500_0000, plain);
        });
        assert_eq!(kinds(&machine), [(Tree, 0x4400_0000), (Kernel, 0x4500_0000)]);
    }

    #[test]
    fn modules_may_be_in_a_node_below_chosen_and_are_dom0s_there() {
        let machine = read(&with_domain(|tree| {
            let mut group = DeviceTreeNode::new("modules").unwrap();
            group.add_property(DeviceTreeProperty::new("#address-cells", 2u32).unwrap());
            group.add_property(DeviceTreeProperty::new("#size-cells", 2u32).unwrap());
            let old = node(tree, "/chosen").remove_child("module@0x48000000").unwrap();
            group.add_child(old);
            node(tree, "/chosen").add_child(group);
        }))
        .unwrap();
        assert_eq!(machine.kernel().unwrap().range, Range::new(Pa(0x4800_0000), 0x30_0000));
        assert_eq!((machine.modules.len(), machine.domains[0].modules.len()), (2, 2));
    }

    #[test]
    fn the_ram_disk_of_a_boot_loader_that_knows_linux_only_is_used_if_there_is_no_other() {
        use ModuleKind::{Kernel, Ramdisk};
        let read = |start: &[u32], end: &[u32], modules: &[(u32, &str)]| {
            without_modules(|tree| {
                set(tree, "/chosen", "linux,initrd-start", start);
                set(tree, "/chosen", "linux,initrd-end", end);
                for &(at, kind) in modules {
                    add_module_at(tree, "/chosen", at, &[kind, "multiboot,module"]);
                }
            })
        };
        let kernel = (0x4400_0000, "multiboot,kernel");
        for (start, end) in [(&[0u32, 0x4600_0000][..], &[0u32, 0x4600_0123][..]), (&[0x4600_0000], &[0x4600_0123])] {
            let machine = read(start, end, &[kernel]);
            assert_eq!(kinds(&machine), [(Kernel, 0x4400_0000), (Ramdisk, 0x4600_0000)]);
            assert_eq!((machine.modules[1].range.size, warnings(&machine).len()), (0x123, 0));
        }
        let machine = read(&[0x4600_0000], &[0x4600_0123], &[kernel, (0x4500_0000, "multiboot,ramdisk")]);
        assert_eq!(kinds(&machine), [(Kernel, 0x4400_0000), (Ramdisk, 0x4500_0000)]);
        for (start, end, problem) in [
            (0x4600_0000, 0xf000_0000, "not in memory: ignored"),
            (0x4400_1000, 0x4500_0000, "a boot module is there: ignored"),
        ] {
            let machine = read(&[start], &[end], &[kernel]);
            assert_eq!(kinds(&machine), [(Kernel, 0x4400_0000)]);
            assert_eq!(warnings(&machine), [alloc::format!("/chosen: linux,initrd-start: {problem}")]);
        }
        assert_eq!(kinds(&read(&[0x4600_0000], &[0x4600_0000], &[kernel])), [(Kernel, 0x4400_0000)]);
    }

    #[test]
    fn a_module_that_dom0_does_not_need_refuses_nothing() {
        let machine = read(&edited(DOM0, |tree| {
            let device_tree = &["multiboot,device-tree", "multiboot,module"][..];
            add_module_at(tree, "/chosen", 0x1000, device_tree);
            add_module_at(tree, "/chosen", 0x4800_1000, device_tree);
            for at in 0..8 {
                add_module_at(tree, "/chosen", 0x6000_0000 + (at << 16), device_tree);
            }
        }))
        .unwrap();
        assert_eq!(machine.modules.len(), 8);
        let odd = |at: &str| {
            alloc::format!(
                "/chosen/module@{at}: this boot module is empty, not in memory, or overlaps another one: ignored"
            )
        };
        let full = |at: &str| alloc::format!("/chosen/module@{at}: there are too many boot modules: ignored");
        assert_eq!(warnings(&machine), [odd("1000"), odd("48001000"), full("60060000"), full("60070000")]);
    }

    #[test]
    fn a_command_line_of_2048_bytes_fits_as_linux_allows() {
        let line = |count| String::from_utf8(alloc::vec![b'x'; count]).unwrap();
        let read =
            |count| read(&edited(DOM0, |tree| set(tree, "/chosen/module@0x48000000", "bootargs", &*line(count))));
        assert_eq!(read(2047).unwrap().kernel().unwrap().bootargs.as_str(), line(2047));
        let error = read(2049).unwrap_err();
        assert!(error.to_string().starts_with("device tree: /chosen/module@0x48000000: a command line"), "{error}");
    }

    #[test]
    fn a_console_that_cannot_be_used_is_named() {
        let machine =
            read(&edited(DOM0, |tree| set(tree, "/pl011@9000000", "compatible", "fsl,imx7ulp-lpuart"))).unwrap();
        assert_eq!(machine.uart, None);
        let text = "/chosen: stdout-path: not a PL011 or 16550 that a CPU reaches: there is no console";
        assert_eq!(warnings(&machine), [text]);
    }

    #[test]
    fn more_domus_than_the_capacity_are_not_built() {
        let machine = read(&with_domain(|tree| {
            for number in 2..10 {
                let copy = node(tree, "/chosen/domU1").clone();
                let mut other = DeviceTreeNode::new(alloc::format!("domU{number}")).unwrap();
                copy.properties().for_each(|property| other.add_property(property.clone()));
                copy.children().for_each(|child| other.add_child(child.clone()));
                node(tree, "/chosen").add_child(other);
            }
        }))
        .unwrap();
        assert_eq!(machine.domains.len(), crate::platform::DOMAINS);
        let warnings: Vec<_> = machine.warnings.iter().map(alloc::string::ToString::to_string).collect();
        assert_eq!(warnings, ["/chosen/domU9: there are too many domUs: this one is not built"]);
    }
}
