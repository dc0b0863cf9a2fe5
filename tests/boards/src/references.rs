//! References by phandle: which nodes of a tree refer to nodes that are not there.
//!
//! The list of properties is that of Linux' `drivers/of/property.c` and of dtc's checks. It knows of each property how many
//! cells follow a phandle: none, or as many as a property of the node that is referred to says.

use std::collections::HashMap;

use dtoolkit::model::{DeviceTree, DeviceTreeNode};
use dtoolkit::{Node, Property};

/// Properties that are lists of phandles, each with the arguments that `cells` of its target counts.
const LISTS: [(&str, &str); 33] = [
    ("clocks", "#clock-cells"),
    ("assigned-clocks", "#clock-cells"),
    ("assigned-clock-parents", "#clock-cells"),
    ("resets", "#reset-cells"),
    ("phys", "#phy-cells"),
    ("power-domains", "#power-domain-cells"),
    ("interconnects", "#interconnect-cells"),
    ("dmas", "#dma-cells"),
    ("mboxes", "#mbox-cells"),
    ("hwlocks", "#hwlock-cells"),
    ("iommus", "#iommu-cells"),
    ("msi-parent", "#msi-cells"),
    ("io-channels", "#io-channel-cells"),
    ("pwms", "#pwm-cells"),
    ("thermal-sensors", "#thermal-sensor-cells"),
    ("cooling-device", "#cooling-cells"),
    ("interrupts-extended", "#interrupt-cells"),
    ("sound-dai", "#sound-dai-cells"),
    ("access-controllers", "#access-controller-cells"),
    ("nvmem-cells", "#nvmem-cell-cells"),
    ("memory-region", ""),
    ("operating-points-v2", ""),
    ("required-opps", ""),
    ("shmem", ""),
    ("cpu", ""),
    ("cpus", ""),
    ("affinity", ""),
    ("cpu-idle-states", ""),
    ("next-level-cache", ""),
    ("remote-endpoint", ""),
    ("trip", ""),
    ("sram", ""),
    ("interrupt-parent", ""),
];
/// Lists of cells of another form: how many cells come before a phandle, and after it.
const MAPS: [(&str, usize, usize); 2] = [("msi-map", 1, 2), ("iommu-map", 1, 2)];

/// A tree with its phandles.
pub struct References<'t> {
    nodes: HashMap<u32, &'t DeviceTreeNode>,
}

fn cells(node: &DeviceTreeNode, name: &str) -> Option<Vec<u32>> {
    let property = node.property(name)?;
    Some(property.value().as_chunks::<4>().0.iter().map(|&cell| u32::from_be_bytes(cell)).collect())
}

fn collect<'t>(node: &'t DeviceTreeNode, nodes: &mut HashMap<u32, &'t DeviceTreeNode>) {
    if let Some(&[phandle]) = cells(node, "phandle").as_deref() {
        nodes.insert(phandle, node);
    }
    node.children().for_each(|child| collect(child, nodes));
}

/// Whether the node is there for a kernel.
pub fn is_available(node: &DeviceTreeNode) -> bool {
    node.property("status").is_none_or(|status| matches!(status.value(), b"okay\0" | b"ok\0"))
}

impl<'t> References<'t> {
    /// Collects the phandles of a tree.
    pub fn of(tree: &'t DeviceTree) -> Self {
        let mut nodes = HashMap::new();
        collect(&tree.root, &mut nodes);
        Self { nodes }
    }

    /// Returns what dangles: path and property. Nodes that are not available count only with `all`.
    pub fn dangling(&self, tree: &DeviceTree, all: bool) -> Vec<String> {
        let mut found = Vec::new();
        self.visit(&tree.root, "", all, &mut found);
        found
    }

    fn visit(&self, node: &DeviceTreeNode, path: &str, all: bool, found: &mut Vec<String>) {
        for property in node.properties() {
            if !self.resolves(node, property.name()) {
                found.push(format!("{}:{}", if path.is_empty() { "/" } else { path }, property.name()));
            }
        }
        for child in node.children().filter(|child| all || is_available(child)) {
            self.visit(child, &format!("{path}/{}", child.name()), all, found);
        }
    }

    fn resolves(&self, node: &DeviceTreeNode, name: &str) -> bool {
        let Some(cells) = cells(node, name) else { return true };
        if let Some(&(_, before, after)) = MAPS.iter().find(|map| map.0 == name) {
            return cells.chunks_exact(before + 1 + after).all(|line| self.nodes.contains_key(&line[before]));
        }
        let is_numbered = |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.parse::<u32>().is_ok());
        let counted = match LISTS.iter().find(|list| list.0 == name) {
            Some(list) => list.1,
            None if name.ends_with("-supply") || is_numbered("pinctrl-") => "",
            // A hog's are pins of its parent.
            None if name == "gpios" && node.property("gpio-hog").is_some() => return true,
            None if name.ends_with("-gpios") || name == "gpios" => "#gpio-cells",
            None => return true,
        };
        let mut rest = &cells[..];
        while let [phandle, after @ ..] = rest {
            // An empty entry.
            if matches!(*phandle, 0 | u32::MAX) {
                rest = after;
                continue;
            }
            let Some(target) = self.nodes.get(phandle) else { return false };
            let count = self::cells(target, counted).and_then(|cells| cells.first().copied()).unwrap_or(0);
            rest = after.get(count as usize..).unwrap_or(&[]);
        }
        true
    }
}
