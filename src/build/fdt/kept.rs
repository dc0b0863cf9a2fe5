//! What EL2 keeps for itself, and what this means for dom0's other devices.
//!
//! EL2's console is a PL011 for dom0, whatever it is on the machine. A device whose registers share a page with what EL2
//! keeps is disabled, since stage 2 maps whole pages: an access to it would be an external abort.

use crate::build::fdt::node::{cell, for_each, set};
use crate::ids::Pa;
use crate::platform::{Machine, MachineError, Uart, UartKind, fdt};
use crate::util::range::{Range, pages_around};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use dtoolkit::model::{DeviceTree, DeviceTreeNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

/// The identification of a PL011 r1p5 (DDI 0183, 3.3.13), which the emulated one has, too.
const PL011_ID: u32 = 0x0034_1011;

/// The registers of EL2's own and emulated devices, and those that nobody may use, in whole pages.
fn kept_pages(machine: &Machine) -> Vec<Range> {
    let gic = &machine.gic;
    let mut kept = alloc::vec![gic.dist];
    kept.extend(gic.redists.iter().chain(&gic.unused));
    kept.extend(gic.itss.iter().map(|its| its.control));
    kept.extend(machine.smmus.iter().map(|smmu| smmu.regs));
    kept.extend(machine.uart.map(|uart| uart.regs));
    kept.into_iter().map(pages_around).collect()
}

/// Makes the console a PL011, and disables the devices that share a page with what EL2 keeps.
///
/// # Errors
///
/// Those of [`fdt::for_each_device`].
pub(crate) fn disable_neighbours(tree: &mut DeviceTree, host: &[u8], machine: &Machine) -> Result<(), MachineError> {
    let kept = kept_pages(machine);
    let (mut neighbours, mut console): (Vec<String>, Option<String>) = (Vec::new(), None);
    fdt::for_each_device(host, |device| {
        // The nodes of the GIC and of ITSs are edited or removed, those of SMMUs removed.
        let own = ["arm,gic-v3", "arm,gic-v4", "arm,gic-v3-its", "arm,smmu-v3"];
        if own.iter().any(|word| device.is_compatible(word)) {
            return;
        }
        let at = |regs: &Range| machine.uart.is_some_and(|uart| uart.regs.base == regs.base);
        if console.is_none() && device.regs.first().is_some_and(at) {
            console = Some(device.path.to_string());
        } else if device.regs.iter().any(|regs| kept.iter().any(|kept| kept.overlaps(*regs))) {
            neighbours.push(device.path.to_string());
        }
    })?;
    for path in neighbours {
        log::warn!("dom0: {path}: disabled: its registers share a page with registers that the hypervisor keeps");
        if let Some(node) = tree.find_node_mut(&path) {
            set(node, "status", "disabled");
        }
    }
    if let (Some(path), Some(uart)) = (console, machine.uart)
        && let Some(node) = tree.find_node_mut(&path)
    {
        write_console(node, uart);
    }
    Ok(())
}

/// Makes the node of EL2's console that of the PL011 that EL2 emulates in its place. Without an interrupt there is none.
fn write_console(node: &mut DeviceTreeNode, uart: Uart) {
    if uart.irq.is_none() {
        set(node, "status", "disabled");
        return;
    }
    if uart.kind == UartKind::Pl011 {
        return;
    }
    // Its driver keeps the clocks on, as the other one's would have. EL2 prints through them. A PL011 has two, of which one
    // is often the only one there is here. SBSA's subset has none.
    let clocks = node.property("clocks").map(|clocks| clocks.value().to_vec());
    match clocks {
        Some(clocks) if !clocks.is_empty() => {
            let named = node.property("clock-names").and_then(|names| names.value_as::<Vec<&str>>().ok());
            let (clocks, names) = match named.map(|names| names.len()) {
                // By name or by place, the first is the one for the baud rate.
                Some(count @ 2..) => {
                    let mut names = alloc::vec!["uartclk", "apb_pclk"];
                    names.resize(count, "other");
                    (clocks, names)
                }
                _ => ([&clocks[..], &clocks[..]].concat(), alloc::vec!["uartclk", "apb_pclk"]),
            };
            set(node, "clocks", clocks);
            set(node, "clock-names", names);
            set(node, "compatible", &["arm,pl011", "arm,primecell"][..]);
            // Where a UART is smaller than a page, its identification is at another place.
            set(node, "arm,primecell-periphid", PL011_ID);
        }
        _ => {
            set(node, "compatible", "arm,sbsa-uart");
            if cell(node, "current-speed").is_none() {
                set(node, "current-speed", 115_200u32);
            }
        }
    }
    for property in ["reg-shift", "reg-io-width", "reg-offset", "dmas", "dma-names", "fifo-size", "tx-threshold"] {
        node.remove_property(property);
    }
}

/// Disables the PCI hosts with an ECAM that the machine's description does not have: their windows are not mapped.
///
/// # Errors
///
/// Those of [`fdt::for_each_device`].
pub(crate) fn disable_unused_pci_hosts(
    tree: &mut DeviceTree,
    host: &[u8],
    machine: &Machine,
) -> Result<(), MachineError> {
    let is_used = |at: Pa| machine.pci.iter().any(|host| host.ecam.base == at);
    let mut used: Vec<String> = Vec::new();
    fdt::for_each_device(host, |device| {
        if device.regs.first().is_some_and(|regs| is_used(regs.base)) {
            used.push(device.path.to_string());
        }
    })?;
    let used: Vec<String> = used.iter().filter_map(|path| path.rsplit('/').next().map(ToString::to_string)).collect();
    for_each(&mut tree.root, &mut |node| {
        if node.is_compatible("pci-host-ecam-generic") && !used.iter().any(|name| name == node.name()) {
            set(node, "status", "disabled");
        }
    });
    Ok(())
}
