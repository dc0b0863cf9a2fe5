//! Device trees for tests: recorded from QEMU, and edited.

use alloc::vec::Vec;
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Property, ToPropertyValue};

/// A GICv4 with an SMMUv3, 4 CPUs, 2 GiB.
pub(crate) const GICV4: &[u8] = include_bytes!("../../tests/data/virt-gicv4-smmuv3.dtb");
/// The same with a kernel and a RAM disk from QEMU's guest-loader.
pub(crate) const DOM0: &[u8] = include_bytes!("../../tests/data/virt-gicv4-dom0.dtb");
/// A GICv3, 8 CPUs, 8 GiB.
pub(crate) const GICV3: &[u8] = include_bytes!("../../tests/data/virt-gicv3.dtb");
/// A GICv2.
pub(crate) const GICV2: &[u8] = include_bytes!("../../tests/data/virt-gicv2.dtb");

/// Returns the device tree `blob` after `edit`.
pub(crate) fn edited(blob: &[u8], edit: impl FnOnce(&mut DeviceTree)) -> Vec<u8> {
    let mut tree = DeviceTree::from_fdt(&Fdt::new(blob).unwrap());
    edit(&mut tree);
    tree.to_dtb()
}

/// Sets a property of the node at `path`.
pub(crate) fn set(tree: &mut DeviceTree, path: &str, name: &str, value: impl ToPropertyValue) {
    node(tree, path).add_property(DeviceTreeProperty::new(name, value).unwrap());
}

/// Removes a property, which must exist.
pub(crate) fn unset(tree: &mut DeviceTree, path: &str, name: &str) {
    assert!(node(tree, path).remove_property(name).is_some(), "{path} has no {name}");
}

/// Returns the node at `path`.
pub(crate) fn node<'t>(tree: &'t mut DeviceTree, path: &str) -> &'t mut DeviceTreeNode {
    tree.find_node_mut(path).unwrap_or_else(|| panic!("no {path}"))
}

/// Returns the cells of a property.
pub(crate) fn cells(tree: &mut DeviceTree, path: &str, name: &str) -> Vec<u32> {
    let property = node(tree, path).property_mut(name).unwrap();
    (&*property).value_as::<Vec<u32>>().unwrap()
}
