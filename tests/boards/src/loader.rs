//! What a boot loader adds to a tree that a kernel ships: the memory that there is, kernel and RAM disk.
//!
//! A board's tree often has a memory node whose size is zero, or none at all. U-Boot writes the whole `reg`. What the board has
//! is not known here, so a bank goes to where the tree has no registers and no window: at the address of the memory node, below
//! the reservations, or at one of the usual addresses.

use dtoolkit::fdt::Fdt;
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, Property, ToPropertyValue};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const KERNEL: u64 = 32 * MIB;
const RAM_DISK: u64 = 16 * MIB;
/// The least memory that a board is tried with.
const LEAST: u64 = 256 * MIB;
/// Where boards have memory.
const USUAL: [u64; 9] = [
    0x8000_0000,
    0x4000_0000,
    0,
    0x2000_0000,
    0x1_0000_0000,
    0x8_0000_0000,
    0x20_0000_0000,
    0x80_0000_0000,
    0x40_0000_0000,
];

/// A range of addresses: start and end.
type Span = (u64, u64);

/// Returns the tree as it is after the boot loader, or what kept it from adding its part.
pub fn load(blob: &[u8]) -> Result<Vec<u8>, String> {
    // Made by dtc: without the check of the library that is under test.
    let mut tree = DeviceTree::from_fdt(&Fdt::new_unchecked(blob));
    let reserved = reservations(&tree);
    let banks = add_memory(&mut tree, &reserved)?;
    let mut used = reserved;
    let mut take = |size: u64| {
        let at = room(&banks, &used, size).ok_or("no room for the modules")?;
        used.push((at, at + size));
        Ok::<_, String>(at)
    };
    let (kernel, ram_disk) = (take(KERNEL)?, take(RAM_DISK)?);
    let mut chosen = tree.root.remove_child("chosen").unwrap_or_else(|| DeviceTreeNode::new_unchecked("chosen"));
    set(&mut chosen, "#address-cells", 2u32);
    set(&mut chosen, "#size-cells", 2u32);
    set(&mut chosen, "ranges", [0u8; 0]);
    for (at, size, kind) in [(kernel, KERNEL, "multiboot,kernel"), (ram_disk, RAM_DISK, "multiboot,ramdisk")] {
        let mut module = DeviceTreeNode::new_unchecked(format!("module@{at:x}"));
        set(&mut module, "compatible", &[kind, "multiboot,module"][..]);
        set(&mut module, "reg", [(at >> 32) as u32, at as u32, (size >> 32) as u32, size as u32]);
        chosen.add_child(module);
    }
    tree.root.add_child(chosen);
    Ok(tree.to_dtb())
}

fn set(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

fn cells(node: &DeviceTreeNode, name: &str) -> Vec<u32> {
    let Some(property) = node.property(name) else { return Vec::new() };
    property.value().as_chunks::<4>().0.iter().map(|&cell| u32::from_be_bytes(cell)).collect()
}

fn cell(node: &DeviceTreeNode, name: &str, default: usize) -> usize {
    cells(node, name).first().map_or(default, |&cell| cell as usize)
}

fn number(cells: &[u32]) -> u64 {
    cells.iter().fold(0, |number, &cell| number << 32 | u64::from(cell))
}

fn is_memory(node: &DeviceTreeNode) -> bool {
    node.property("device_type").is_some_and(|kind| kind.value() == b"memory\0")
}

/// The entries of `name` in cells, each of these numbers of cells.
fn entries(node: &DeviceTreeNode, name: &str, widths: &[usize]) -> Vec<Vec<u64>> {
    let all = cells(node, name);
    let width: usize = widths.iter().sum();
    let numbers = |entry: &[u32]| {
        let mut rest = entry;
        let mut take = |width: usize| {
            let (number, after) = rest.split_at(width);
            rest = after;
            self::number(number)
        };
        widths.iter().map(|&width| take(width)).collect()
    };
    if width == 0 { Vec::new() } else { all.chunks_exact(width).map(numbers).collect() }
}

fn reservations(tree: &DeviceTree) -> Vec<Span> {
    let span = |entry: &MemoryReservation| (entry.address(), entry.address() + entry.size());
    let mut all: Vec<Span> = tree.memory_reservations.iter().map(span).collect();
    if let Some(reserved) = tree.root.child("reserved-memory") {
        let widths = [cell(reserved, "#address-cells", 2), cell(reserved, "#size-cells", 1)];
        for child in reserved.children() {
            all.extend(entries(child, "reg", &widths).iter().map(|entry| (entry[0], entry[0] + entry[1])));
        }
    }
    all
}

/// Adds memory, unless the tree has enough, and returns its banks.
fn add_memory(tree: &mut DeviceTree, reserved: &[Span]) -> Result<Vec<Span>, String> {
    let widths = [cell(&tree.root, "#address-cells", 2), cell(&tree.root, "#size-cells", 1)];
    let nodes = tree.root.children().filter(|node| is_memory(node));
    let known: Vec<Span> =
        nodes.flat_map(|node| entries(node, "reg", &widths)).map(|entry| (entry[0], entry[0] + entry[1])).collect();
    let banks: Vec<Span> = known.iter().copied().filter(|bank| bank.1 > bank.0).collect();
    if banks.iter().map(|bank| bank.1 - bank.0).sum::<u64>() >= LEAST {
        return Ok(banks);
    }
    let mut taken = Vec::new();
    registers(&tree.root, &|address| Some(address), &mut taken);
    let hint = known.iter().map(|bank| bank.0).filter(|&at| at != 0);
    let below = reserved.iter().filter(|span| span.1 > span.0).map(|span| span.0 & !(GIB - 1)).min();
    let places = hint.chain(below).chain(USUAL);
    let size_of = |at: u64| {
        let end = taken.iter().filter(|span| span.1 > at).map(|span| span.0.max(at)).min().unwrap_or(u64::MAX);
        (end - at).min(GIB) & !(2 * MIB - 1)
    };
    let fits = |at: u64| widths[0] > 1 || at + GIB <= 1 << 32;
    let bank = places.filter(|&at| fits(at)).map(|at| (at, at + size_of(at))).find(|bank| bank.1 - bank.0 >= LEAST);
    let bank = bank.ok_or("no room for memory")?;
    let old: Vec<String> =
        tree.root.children().filter(|node| is_memory(node)).map(|node| node.name().to_owned()).collect();
    for name in old {
        tree.root.remove_child(&name);
    }
    let mut memory = DeviceTreeNode::new_unchecked(format!("memory@{:x}", bank.0));
    set(&mut memory, "device_type", "memory");
    let mut reg: Vec<u8> = Vec::new();
    for (number, width) in [(bank.0, widths[0]), (bank.1 - bank.0, widths[1])] {
        reg.extend(&u128::from(number).to_be_bytes()[16 - 4 * width..]);
    }
    set(&mut memory, "reg", reg);
    tree.root.add_child(memory);
    Ok(vec![bank])
}

/// Adds the registers and the windows of all nodes below `bus`, which `up` translates to the addresses of CPUs.
fn registers(bus: &DeviceTreeNode, up: &dyn Fn(u64) -> Option<u64>, taken: &mut Vec<Span>) {
    let widths = [cell(bus, "#address-cells", 2), cell(bus, "#size-cells", 1)];
    for child in bus.children() {
        if is_memory(child) || ["reserved-memory", "cpus", "chosen", "firmware"].contains(&child.name()) {
            continue;
        }
        for entry in entries(child, "reg", &widths) {
            taken.extend(up(entry[0]).map(|at| (at, at.saturating_add(entry[1]))));
        }
        let own = [cell(child, "#address-cells", 2), widths[0], cell(child, "#size-cells", 1)];
        let Some(ranges) = child.property("ranges") else { continue };
        let windows = entries(child, "ranges", &own);
        if own[0] == 3 {
            taken.extend(windows.iter().filter_map(|line| up(line[1]).map(|at| (at, at.saturating_add(line[2])))));
            continue;
        }
        let is_same = ranges.value().is_empty();
        registers(
            child,
            &|address| {
                let line = windows.iter().find(|line| address >= line[0] && address - line[0] < line[2]);
                if is_same { up(address) } else { line.and_then(|line| up(line[1] + (address - line[0]))) }
            },
            taken,
        );
    }
}

/// Returns an address with room in `banks` beside what is used.
fn room(banks: &[Span], used: &[Span], size: u64) -> Option<u64> {
    for bank in banks {
        let mut at = bank.0.next_multiple_of(2 * MIB);
        while at + size <= bank.1 {
            match used.iter().find(|span| span.0 < at + size && at < span.1) {
                Some(span) => at = span.1.next_multiple_of(2 * MIB),
                None => return Some(at),
            }
        }
    }
    None
}
