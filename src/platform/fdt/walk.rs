//! Traversal of a device tree: nodes with their ancestors, cells, address translation, interrupt specifiers.
//!
//! The tree is untrusted input: a property that is too short, an invalid cell count or an arithmetic overflow is
//! treated as if the property were absent. The nesting depth is bounded, because this runs on a boot stack. Devicetree
//! Specification 0.4, chapters 2.3 (standard properties) and 2.4 (interrupts); the GIC's interrupt specifier is in
//! Linux' binding `arm,gic-v3.yaml`.

use crate::ids::{Intid, Pa};
use crate::platform::error::NodePath;
use crate::platform::{MachineError, Part};
use crate::util::range::Range;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};

/// The largest nesting depth of nodes.
pub(super) const MAX_DEPTH: usize = 24;

/// The trigger mode of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Edge-triggered.
    Edge,
    /// Level-sensitive.
    Level,
}

/// A sequence of big-endian 32-bit cells.
#[derive(Clone, Copy)]
pub(super) struct Cells<'a>(pub &'a [u8]);

impl<'a> Cells<'a> {
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// Removes `count` cells from the front and returns them; `None` if there are fewer.
    pub fn take(&mut self, count: u32) -> Option<Cells<'a>> {
        let bytes = usize::try_from(count).ok()?.checked_mul(4)?;
        let (front, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(Cells(front))
    }

    /// Removes a number of `count` cells; `None` if there are fewer or the number exceeds 64 bits.
    pub fn number(&mut self, count: u32) -> Option<u64> {
        self.take(count)?.value()
    }

    /// Removes one cell.
    pub fn one(&mut self) -> Option<u32> {
        self.number(1).map(|value| value as u32)
    }

    /// Returns all cells as one number; `None` if it exceeds 64 bits.
    pub fn value(self) -> Option<u64> {
        let mut value = 0u64;
        for byte in self.0 {
            if value >> 56 != 0 {
                return None;
            }
            value = value << 8 | u64::from(*byte);
        }
        Some(value)
    }
}

/// Where a traversal continues after a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Go {
    /// With the node's children.
    In,
    /// With the node's next sibling.
    Over,
}

/// A node and its ancestors.
#[derive(Clone, Copy)]
pub(super) struct Place<'p, 'a> {
    pub node: FdtNode<'a>,
    pub parent: Option<&'p Place<'p, 'a>>,
    pub depth: usize,
}

impl<'a> Place<'_, 'a> {
    pub fn name(&self) -> &'a str {
        self.node.name()
    }

    pub fn value(&self, name: &str) -> Option<&'a [u8]> {
        value(self.node, name)
    }

    pub fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    pub fn u32(&self, name: &str) -> Option<u32> {
        u32_value(self.node, name)
    }

    pub fn phandle(&self) -> Option<u32> {
        self.u32("phandle").or_else(|| self.u32("linux,phandle"))
    }

    pub fn is_compatible(&self, with: &str) -> bool {
        strings(self.value("compatible").unwrap_or(&[])).any(|word| word == with)
    }

    /// Whether there is no `status`, or it is "okay".
    pub fn is_available(&self) -> bool {
        match self.value("status") {
            None => true,
            Some(status) => matches!(strings(status).next(), Some("okay" | "ok")),
        }
    }

    /// Returns entry `index` of `reg` as CPU addresses; `None` if there is none or the CPU cannot access it.
    pub fn reg(&self, index: usize) -> Option<Range> {
        self.regs().nth(index).flatten()
    }

    /// Returns all entries of `reg` as CPU addresses; one that the CPU cannot access is `None`.
    pub fn regs(&self) -> impl Iterator<Item = Option<Range>> + use<'_, 'a> {
        let mut reg = Cells(self.value("reg").unwrap_or(&[]));
        let bus = self.parent;
        core::iter::from_fn(move || {
            let bus = bus?;
            if reg.is_empty() {
                return None;
            }
            let before = reg.0.len();
            let (address, size) = (reg.take(bus.address_cells())?, reg.take(bus.size_cells())?);
            if reg.0.len() == before {
                return None; // with zero cells per entry, this would not terminate
            }
            Some(match (address.value(), size.value()) {
                (Some(address), Some(size)) => bus.cpu_address(address, size).map(|base| Range::new(Pa(base), size)),
                _ => None,
            })
        })
    }

    /// Returns all entries of `reg` in cells of the root, untranslated.
    pub fn regs_of_root(&self) -> impl Iterator<Item = Option<Range>> + use<'_, 'a> {
        let mut root = self;
        while let Some(parent) = root.parent {
            root = parent;
        }
        let (address_cells, size_cells) = (root.address_cells(), root.size_cells());
        let mut reg = Cells(self.value("reg").unwrap_or(&[]));
        core::iter::from_fn(move || {
            let before = reg.0.len();
            let (address, size) = (reg.take(address_cells)?, reg.take(size_cells)?);
            let range = || Some(Range::new(Pa(address.value()?), size.value()?));
            (reg.0.len() != before).then(range)
        })
    }

    /// Returns the path for messages: a long one is cut at its start.
    pub fn path(&self) -> NodePath {
        let mut path = NodePath::new();
        match self.parent {
            None => path.push('/'),
            Some(parent) => {
                let name = self.name();
                let above = parent.path();
                let above = if parent.parent.is_some() { above.as_str() } else { "" };
                if path.capacity() <= above.len() + name.len() {
                    path.push_str("...");
                } else {
                    path.push_str(above);
                }
                path.push('/');
                // What does not fit of the longest names is missing at their ends.
                let _ = name.chars().try_for_each(|letter| path.try_push(letter));
            }
        }
        path
    }

    pub fn address_cells(&self) -> u32 {
        cell_count(self.node, "#address-cells", 2)
    }

    pub fn size_cells(&self) -> u32 {
        cell_count(self.node, "#size-cells", 1)
    }

    /// Translates `size` bytes at `address` on this node's bus to a CPU address. The root's bus has CPU addresses;
    /// every other bus needs a `ranges` property with an entry that covers all of the bytes.
    pub fn cpu_address(&self, address: u64, size: u64) -> Option<u64> {
        let mut address = address;
        let mut bus = self;
        while let Some(parent) = bus.parent {
            let mut ranges = Cells(bus.value("ranges")?);
            if !ranges.is_empty() {
                address = loop {
                    let before = ranges.0.len();
                    let child = ranges.take(bus.address_cells())?;
                    let up = ranges.take(parent.address_cells())?;
                    let length = ranges.take(bus.size_cells())?;
                    if ranges.0.len() == before {
                        return None;
                    }
                    // Child addresses of a PCI host have three cells, which `pci` translates.
                    let (Some(child), Some(up), Some(length)) = (child.value(), up.value(), length.value()) else {
                        continue;
                    };
                    let Some(offset) = address.checked_sub(child) else { continue };
                    if offset < length && size <= length - offset {
                        break up.checked_add(offset)?;
                    }
                };
            }
            bus = parent;
        }
        Some(address)
    }

    /// Returns the phandle of the controller of this node's `interrupts` (2.4.1: the nearest `interrupt-parent`, or the
    /// nearest ancestor that is a controller).
    pub fn interrupt_parent(&self) -> Option<u32> {
        let mut place = self;
        loop {
            if let Some(phandle) = place.u32("interrupt-parent") {
                return Some(phandle);
            }
            place = place.parent?;
            if place.has("#interrupt-cells") {
                return place.phandle();
            }
        }
    }
}

/// A device tree, with what is needed to read interrupts.
#[derive(Clone, Copy)]
pub(super) struct Tree<'a> {
    pub fdt: Fdt<'a>,
    /// The GIC's phandle and its `#interrupt-cells`.
    pub gic: Option<(u32, u32)>,
}

impl<'a> Tree<'a> {
    /// Calls `visit` for every node, parents first.
    pub fn walk(self, visit: &mut dyn FnMut(&Place<'_, 'a>) -> Result<Go, MachineError>) -> Result<(), MachineError> {
        descend(&Place { node: self.fdt.root(), parent: None, depth: 0 }, visit)
    }

    /// Calls `visit` for every node that is available and has only available ancestors.
    pub fn walk_available(
        self,
        visit: &mut dyn FnMut(&Place<'_, 'a>) -> Result<Go, MachineError>,
    ) -> Result<(), MachineError> {
        self.walk(&mut |place| if place.is_available() { visit(place) } else { Ok(Go::Over) })
    }

    /// Returns the node with a phandle.
    pub fn by_phandle(self, phandle: u32) -> Option<FdtNode<'a>> {
        let mut found = None;
        self.walk(&mut |place| {
            if found.is_none() && place.phandle() == Some(phandle) {
                found = Some(place.node);
            }
            Ok(if found.is_none() { Go::In } else { Go::Over })
        })
        .ok()?;
        found
    }

    /// Calls `each` with every GIC interrupt in a node's `interrupts`, `interrupts-extended` and `interrupt-map`.
    ///
    /// Interrupts of other controllers are skipped. If such a controller is connected to the GIC, its own node says so.
    pub fn interrupts(
        self,
        place: &Place<'_, 'a>,
        each: &mut dyn FnMut(Intid, Trigger) -> Result<(), MachineError>,
    ) -> Result<(), MachineError> {
        let Some((gic, gic_cells)) = self.gic else { return Ok(()) };
        let mut deliver = |spec: Cells<'a>| match specifier(spec) {
            Some((intid, trigger)) => each(intid, trigger),
            None => Ok(()),
        };
        if let Some(extended) = place.value("interrupts-extended") {
            let mut cells = Cells(extended);
            let mut controller = Controllers::default();
            while let Some(phandle) = cells.one() {
                let Some((width, _)) = controller.of(self, phandle) else { break };
                let Some(spec) = cells.take(width) else { break };
                if phandle == gic {
                    deliver(spec)?;
                }
            }
        } else if place.interrupt_parent() == Some(gic)
            && let Some(interrupts) = place.value("interrupts")
        {
            let mut cells = Cells(interrupts);
            while let Some(spec) = cells.take(gic_cells).filter(|spec| !spec.is_empty()) {
                deliver(spec)?;
            }
        }
        // An interrupt nexus (2.4.3), such as that of a PCI host for INTx.
        if let Some(map) = place.value("interrupt-map") {
            let mut cells = Cells(map);
            let child = place.address_cells().saturating_add(cell_count(place.node, "#interrupt-cells", 1));
            let mut controller = Controllers::default();
            while cells.take(child).is_some() {
                let Some(phandle) = cells.one() else { break };
                let Some((width, address)) = controller.of(self, phandle) else { break };
                let (Some(_), Some(spec)) = (cells.take(address), cells.take(width)) else { break };
                if phandle == gic {
                    deliver(spec)?;
                }
            }
        }
        Ok(())
    }
}

/// A cache of the last controller: nearly all entries name the same one, and finding it takes a walk of the tree.
#[derive(Default)]
struct Controllers {
    last: Option<(u32, Option<(u32, u32)>)>,
    walks: u32,
}

impl Controllers {
    /// The largest number of walks for one property; after that, the rest of the property is ignored.
    const MAX_WALKS: u32 = 64;

    /// Returns a controller's `#interrupt-cells` and `#address-cells` (0 if absent, unlike elsewhere).
    fn of(&mut self, tree: Tree<'_>, phandle: u32) -> Option<(u32, u32)> {
        match self.last {
            Some((last, cells)) if last == phandle => cells,
            _ if self.walks == Self::MAX_WALKS => None,
            _ => {
                self.walks += 1;
                let cells = tree.by_phandle(phandle).and_then(|node| {
                    Some((u32_value(node, "#interrupt-cells")?, cell_count(node, "#address-cells", 0)))
                });
                self.last = Some((phandle, cells));
                cells
            }
        }
    }
}

/// Decodes a GIC interrupt specifier: type, number, flags.
fn specifier(mut spec: Cells<'_>) -> Option<(Intid, Trigger)> {
    let (kind, number, flags) = (spec.one()?, spec.one()?, spec.one()?);
    let (first, count) = match kind {
        0 => (32, 988),
        1 => (16, 16),
        2 => (4096, 1024),
        3 => (1056, 64),
        _ => return None,
    };
    let trigger = if flags & 0b0011 != 0 { Trigger::Edge } else { Trigger::Level };
    (number < count).then(|| (Intid(first + number), trigger))
}

fn descend<'a>(
    place: &Place<'_, 'a>,
    visit: &mut dyn FnMut(&Place<'_, 'a>) -> Result<Go, MachineError>,
) -> Result<(), MachineError> {
    if place.depth > MAX_DEPTH {
        return Err(MachineError::TooMany { part: Part::Depth, limit: MAX_DEPTH });
    }
    if visit(place)? == Go::In {
        for child in place.node.children() {
            descend(&Place { node: child, parent: Some(place), depth: place.depth + 1 }, visit)?;
        }
    }
    Ok(())
}

/// Returns the bytes of a property.
pub(super) fn value<'a>(node: FdtNode<'a>, name: &str) -> Option<&'a [u8]> {
    node.property(name)?.value_as::<&'a [u8]>().ok()
}

/// Returns the value of a property of one cell.
pub(super) fn u32_value(node: FdtNode<'_>, name: &str) -> Option<u32> {
    value(node, name)?.try_into().ok().map(u32::from_be_bytes)
}

/// Returns the value of a `#…-cells` property. More than four cells are invalid; the result then makes reads of such
/// cells fail.
pub(super) fn cell_count(node: FdtNode<'_>, name: &str, default: u32) -> u32 {
    match u32_value(node, name) {
        None => default,
        Some(count) if count <= 4 => count,
        Some(_) => u32::MAX,
    }
}

/// Returns the strings of a string list, up to the first that is not UTF-8.
pub(super) fn strings(list: &[u8]) -> impl Iterator<Item = &str> {
    list.strip_suffix(b"\0")
        .map(|list| list.split(|&byte| byte == 0))
        .into_iter()
        .flatten()
        .map_while(|word| core::str::from_utf8(word).ok())
}

/// Returns the first string of a string list.
pub(super) fn text(bytes: &[u8]) -> Option<&str> {
    strings(bytes).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_big_endian_and_reads_stay_within_the_property() {
        let mut cells = Cells(&[0, 0, 0, 1, 0x23, 0x45, 0x67, 0x89, 0xff]);
        assert_eq!(cells.number(2), Some(0x1_2345_6789));
        assert_eq!(cells.number(1), None);
        assert_eq!(cells.number(0), Some(0));
        assert_eq!(cells.take(u32::MAX).map(|c| c.0.len()), None);
        assert_eq!(Cells(&[0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 1]).value(), Some(0x8000_0000_0000_0001));
        assert_eq!(Cells(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]).value(), None);
    }

    #[test]
    fn a_gic_specifier_can_be_of_four_interrupt_types() {
        let spec =
            |kind: u8, number: u8, flags: u8| specifier(Cells(&[0, 0, 0, kind, 0, 0, 0, number, 0, 0, 0, flags]));
        assert_eq!(spec(0, 1, 4), Some((Intid(33), Trigger::Level)));
        assert_eq!(spec(0, 1, 1), Some((Intid(33), Trigger::Edge)));
        assert_eq!(spec(1, 11, 8), Some((Intid(27), Trigger::Level)));
        assert_eq!(spec(1, 16, 4), None);
        assert_eq!(spec(2, 0, 1), Some((Intid(4096), Trigger::Edge)));
        assert_eq!(spec(3, 63, 1), Some((Intid(1119), Trigger::Edge)));
        assert_eq!(spec(4, 0, 1), None);
        assert_eq!(specifier(Cells(&[0, 0, 0, 0, 0, 0, 0, 1])), None);
    }

    #[test]
    fn a_string_list_without_its_terminator_has_no_strings() {
        assert!(strings(b"abc\0def\0").eq(["abc", "def"]));
        assert_eq!(strings(b"abc").count(), 0);
        assert!(strings(b"a\0\xff\0b\0").eq(["a"]));
    }
}
