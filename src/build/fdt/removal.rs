//! Removal of nodes from the host's tree, and of the properties that refer to them.

use crate::build::fdt::node::{cell, set, string};
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use dtoolkit::model::{DeviceTree, DeviceTreeNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

/// The phandles of nodes that were removed.
#[derive(Default)]
pub(crate) struct Removed {
    pub phandles: Vec<u32>,
    /// How many cells follow the phandle of a node in the properties that are lists with arguments.
    arguments: BTreeMap<u32, Arguments>,
}

/// The properties that are lists of phandles, each followed by arguments, and what counts these in the node that is
/// referred to.
const LISTS: [(&str, &str); 3] =
    [("msi-parent", "#msi-cells"), ("power-domains", "#power-domain-cells"), ("cooling-device", "#cooling-cells")];
type Arguments = [u32; LISTS.len()];

impl Removed {
    /// None yet, of the tree below `root`.
    pub fn none_of(root: &DeviceTreeNode) -> Removed {
        let mut removed = Removed::default();
        removed.count(root);
        removed
    }

    fn count(&mut self, node: &DeviceTreeNode) {
        if let Some(phandle) = cell(node, "phandle") {
            self.arguments.insert(phandle, LISTS.map(|(_, cells)| cell(node, cells).unwrap_or(0)));
        }
        node.children().for_each(|child| self.count(child));
    }

    /// Returns the entries of a property in [`LISTS`], each with whether it refers to a removed node. Arguments may have
    /// the values of phandles, so that they have to be told from each other.
    fn entries<'v>(&self, list: usize, value: &'v [u8]) -> Vec<(bool, &'v [u8])> {
        let mut rest = value;
        let mut entries = Vec::new();
        while let Some(&phandle) = rest.first_chunk::<4>() {
            let phandle = u32::from_be_bytes(phandle);
            let count = self.arguments.get(&phandle).and_then(|counts| counts.get(list)).copied().unwrap_or(0);
            let size = (count as usize).saturating_mul(4).saturating_add(4).min(rest.len());
            let (entry, after) = rest.split_at(size);
            entries.push((self.phandles.contains(&phandle), entry));
            rest = after;
        }
        entries
    }

    /// Records the phandles of a node and of everything below it.
    pub fn add(&mut self, node: &DeviceTreeNode) {
        self.phandles.extend(cell(node, "phandle"));
        for child in node.children() {
            self.add(child);
        }
    }

    fn is_named_in(&self, value: &[u8]) -> bool {
        value.as_chunks::<4>().0.iter().any(|&cell| self.phandles.contains(&u32::from_be_bytes(cell)))
    }
}

/// Whether a device is EL2's own, or belongs to a feature that dom0's CPUs do not have.
fn is_hidden(node: &DeviceTreeNode) -> bool {
    const EXACT: [&str; 7] = [
        "arm,smmu-v3",
        "arm,smmu-v3-pmcg",
        "arm,statistical-profiling-extension-v1",
        "arm,trace-buffer-extension",
        "arm,embedded-trace-extension",
        "linaro,optee-tz",
        "numa-distance-map-v1",
    ];
    node.compatible().is_some_and(|mut words| {
        words.any(|word| {
            EXACT.contains(&word)
                || word == "arm,armv8-pmuv3"
                || (word.starts_with("arm,") || word.starts_with("apple,") || word.starts_with("nvidia,"))
                    && word.ends_with("-pmu")
                || word.starts_with("arm,coresight-etm")
        })
    })
}

/// Removes hidden devices everywhere below `node`, and memory nodes if `node` is the root.
pub(crate) fn remove_hidden(node: &mut DeviceTreeNode, is_root: bool, removed: &mut Removed) {
    let leaving: Vec<String> = node
        .children()
        .filter(|child| is_hidden(child) || (is_root && string(child, "device_type") == Some("memory")))
        .map(|child| child.name().to_string())
        .collect();
    for name in leaving {
        if let Some(child) = node.remove_child(&name) {
            removed.add(&child);
        }
    }
    for child in node.children_mut() {
        remove_hidden(child, false, removed);
    }
}

/// Removes the ITSs that dom0 does not get. `is_absent` gets the number of each available ITS in the order of the tree,
/// which is that of the machine's description; `next` is the first number.
pub(crate) fn remove_itss(
    node: &mut DeviceTreeNode,
    next: &mut usize,
    is_absent: &dyn Fn(usize) -> bool,
    removed: &mut Removed,
) {
    let mut leaving: Vec<String> = Vec::new();
    for child in node.children_mut() {
        if !matches!(string(child, "status"), None | Some("okay" | "ok")) {
            continue;
        }
        if child.is_compatible("arm,gic-v3-its") {
            if is_absent(*next) {
                leaving.push(child.name().to_string());
            }
            *next += 1;
        }
        remove_itss(child, next, is_absent, removed);
    }
    for name in leaving {
        if let Some(child) = node.remove_child(&name) {
            removed.add(&child);
        }
    }
}

/// Removes the lines of `msi-map` that lead to removed ITSs.
fn remove_msis(node: &mut DeviceTreeNode, removed: &Removed) {
    let Some(map) = node.property("msi-map").map(|map| map.value().to_vec()) else { return };
    // A line is requester ID, ITS, DeviceID, length.
    let stays = |line: &&[u8]| line.get(4..8).is_some_and(|its| !removed.is_named_in(its));
    let kept: Vec<u8> = map.chunks(16).filter(stays).flatten().copied().collect();
    if kept.is_empty() {
        node.remove_property("msi-map");
        node.remove_property("msi-map-mask");
    } else if kept.len() != map.len() {
        set(node, "msi-map", kept);
    }
}

/// Removes fixed reservations, since their memory is not dom0's. Dynamic ones, whose place dom0 chooses itself, stay.
pub(crate) fn remove_fixed_reservations(tree: &mut DeviceTree, removed: &mut Removed) {
    let Some(reserved) = tree.root.child_mut("reserved-memory") else { return };
    let fixed: Vec<String> = reserved
        .children()
        .filter(|child| child.property("reg").is_some())
        .map(|child| child.name().to_string())
        .collect();
    for name in fixed {
        if let Some(child) = reserved.remove_child(&name) {
            removed.add(&child);
        }
    }
    if reserved.children().next().is_none() {
        tree.root.remove_child("reserved-memory");
    }
}

/// Removes from one node the properties that refer to removed nodes. A device whose reserved memory was removed is
/// disabled.
pub(crate) fn remove_references(node: &mut DeviceTreeNode, removed: &Removed) {
    for property in ["iommus", "iommu-map", "iommu-map-mask", "numa-node-id"] {
        node.remove_property(property);
    }
    let refers =
        |node: &DeviceTreeNode, property| node.property(property).is_some_and(|p| removed.is_named_in(p.value()));
    if refers(node, "memory-region") {
        node.remove_property("memory-region");
        set(node, "status", "disabled");
    }
    // SCMI's messages are in memory that dom0 does not have; and its calls to the firmware lead nowhere.
    if refers(node, "shmem") {
        node.remove_property("shmem");
        set(node, "status", "disabled");
    }
    remove_msis(node, removed);
    for property in ["affinity", "interrupt-affinity", "cpus", "cpu", "cpu-idle-states", "remote-endpoint"] {
        if refers(node, property) {
            node.remove_property(property);
        }
    }
    for (list, (property, _)) in LISTS.into_iter().enumerate() {
        let Some(value) = node.property(property).map(|property| property.value().to_vec()) else { continue };
        let entries = removed.entries(list, &value);
        if !entries.iter().any(|(is_removed, _)| *is_removed) {
            continue;
        }
        // Which of several power domains is which is their order, or their names.
        let kept: Vec<u8> = match property {
            "power-domains" => Vec::new(),
            _ => entries.iter().filter(|(is_removed, _)| !is_removed).flat_map(|(_, entry)| entry.to_vec()).collect(),
        };
        if kept.is_empty() {
            node.remove_property(property);
        } else {
            set(node, property, kept);
        }
        if property == "power-domains" {
            node.remove_property("power-domain-names");
        }
    }
    if node.is_compatible("arm,armv8-timer") {
        remove_el2_timers(node);
    }
}

/// Removes the cooling maps of a thermal zone whose devices were all removed: with one of them Linux refuses the zone.
pub(crate) fn remove_maps_without_devices(zone: &mut DeviceTreeNode) {
    let Some(maps) = zone.child_mut("cooling-maps") else { return };
    let is_empty = |map: &&DeviceTreeNode| map.property("trip").is_some() && map.property("cooling-device").is_none();
    let leaving: Vec<String> = maps.children().filter(is_empty).map(|map| map.name().to_string()).collect();
    for name in leaving {
        maps.remove_child(&name);
    }
}

/// Removes the interrupts of the EL2 timers: those whose names start with `hyp-`, or, without names, all after the
/// first three.
fn remove_el2_timers(node: &mut DeviceTreeNode) {
    let Some(interrupts) = node.property("interrupts").map(|property| property.value().to_vec()) else { return };
    let names: Vec<String> = node
        .property("interrupt-names")
        .and_then(|names| names.value_as::<Vec<&str>>().ok())
        .map(|names| names.iter().map(|name| name.to_string()).collect())
        .unwrap_or_default();
    // All specifiers have the same length. With names, there is one specifier per name. Without names there are four
    // or five, of three cells each, or of four where the fourth is the partition of a PPI.
    let count = match names.len() {
        0 if interrupts.len() == 5 * 12 || interrupts.len() == 5 * 16 => 5,
        0 => 4,
        count => count,
    };
    if !interrupts.len().is_multiple_of(count * 4) {
        return;
    }
    let specifiers = interrupts.chunks_exact(interrupts.len() / count);
    let stays = |index: usize| match names.get(index) {
        Some(name) => !name.starts_with("hyp-"),
        None => index < 3,
    };
    let kept: Vec<u8> =
        specifiers.enumerate().filter(|(index, _)| stays(*index)).flat_map(|(_, spec)| spec.to_vec()).collect();
    set(node, "interrupts", kept);
    if !names.is_empty() {
        let kept: Vec<&str> = names.iter().map(String::as_str).filter(|name| !name.starts_with("hyp-")).collect();
        set(node, "interrupt-names", kept);
    }
}

/// Removes aliases and symbols whose paths lead to nodes that do not exist.
pub(crate) fn remove_broken_paths(tree: &mut DeviceTree) {
    for list in ["aliases", "__symbols__"] {
        let Some(node) = tree.root.child(list) else { continue };
        let broken: Vec<String> = node
            .properties()
            .filter(|property| {
                property.value_as::<&str>().is_ok_and(|path| path.starts_with('/') && tree.find_node(path).is_none())
            })
            .map(|property| property.name().to_string())
            .collect();
        if let Some(node) = tree.root.child_mut(list) {
            for name in broken {
                node.remove_property(&name);
            }
        }
    }
}
