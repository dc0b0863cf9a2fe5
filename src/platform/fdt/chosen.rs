//! `/chosen`: the console, the command line and the boot modules.
//!
//! Modules are in Xen's binding (docs/misc/arm/device-tree/booting.txt in Xen's tree). QEMU's guest-loader writes
//! them without `#address-cells` in `/chosen`; then the root's cells hold. Xen's rule for command lines holds too:
//! where `xen,xen-bootargs` exists it is the hypervisor's, and `bootargs` is dom0's unless its module says otherwise.

use super::push;
use super::walk::{Cells, Go, Place, Tree, text};
use crate::ids::Pa;
use crate::platform::{Machine, MachineError, Module, ModuleKind, Range, Uart, UartKind, What};
use arrayvec::ArrayString;

/// Reads all of it; a machine without `/chosen` has no console, no modules and an empty command line.
pub(super) fn read(tree: Tree<'_>, machine: &mut Machine) -> Result<(), MachineError> {
    let mut stdout = None;
    let mut dom0_bootargs: &str = "";
    tree.walk(&mut |place| {
        match place.depth {
            0 => return Ok(Go::In),
            1 if place.name() != "chosen" => return Ok(Go::Over),
            1 => {
                let line = |name| place.value(name).and_then(text);
                stdout = line("stdout-path").or_else(|| line("linux,stdout-path"));
                let (own, plain) = (line("xen,xen-bootargs"), line("bootargs").unwrap_or(""));
                machine.bootargs = copy(own.unwrap_or(plain))?;
                dom0_bootargs = line("xen,dom0-bootargs").unwrap_or(if own.is_some() { plain } else { "" });
                return Ok(Go::In);
            }
            _ => {}
        }
        if ["multiboot,module", "xen,multiboot-module", "boot,module"].iter().any(|word| place.is_compatible(word)) {
            let module = read_module(place, dom0_bootargs)?;
            push(&mut machine.modules, module, What::Module)?;
        }
        Ok(Go::Over)
    })?;
    machine.uart = stdout.and_then(|path| find_uart(tree, path));
    Ok(())
}

fn copy<const N: usize>(line: &str) -> Result<ArrayString<N>, MachineError> {
    ArrayString::from(line).map_err(|_| MachineError::LongBootargs { limit: N })
}

fn read_module(place: &Place<'_, '_>, dom0_bootargs: &str) -> Result<Module, MachineError> {
    let bad = MachineError::BadProperty { node: "boot module", property: "reg" };
    let chosen = place.parent.ok_or(bad)?;
    let root = chosen.parent.ok_or(bad)?;
    let cells = if chosen.has("#address-cells") { chosen } else { root };
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
    let bootargs = copy(place.value("bootargs").and_then(text).unwrap_or(fallback))?;
    Ok(Module { kind, range: Range::new(Pa(base), size), bootargs })
}

/// The UART at `path[:options]`, where the path may start with an alias.
fn find_uart(tree: Tree<'_>, stdout: &str) -> Option<Uart> {
    let path = stdout.split(':').next()?;
    let (head, tail) = match path.strip_prefix('/') {
        Some(_) => ("", path),
        None => {
            let (alias, rest) = path.split_once('/').unwrap_or((path, ""));
            (text(super::walk::value(tree.fdt.find_node("/aliases")?, alias)?)?, rest)
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

/// Whether a node answers to a name that may lack the unit address.
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
