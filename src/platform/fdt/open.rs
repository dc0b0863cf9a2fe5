//! Access to a device tree after checking its header and structure.

use super::walk::{Cells, Go, Tree};
use super::{gic, structure};
use crate::platform::MachineError;
use dtoolkit::fdt::Fdt;

/// Returns the bytes of the tree itself: from its start to the size in its header.
///
/// # Errors
///
/// [`MachineError::NotATree`], [`MachineError::Truncated`].
pub fn trim(blob: &[u8]) -> Result<&[u8], MachineError> {
    let mut header = Cells(blob);
    let (Some(0xd00d_feed), Some(size)) = (header.one(), header.one()) else { return Err(MachineError::NotATree) };
    usize::try_from(size)
        .ok()
        .and_then(|size| blob.get(..size))
        .ok_or(MachineError::Truncated { promised: size, present: blob.len() as u64 })
}

/// Returns the tree for editing, after checking its header, structure and depth.
///
/// # Errors
///
/// Those of [`read`](super::read) for a damaged tree.
pub fn parse(blob: &[u8]) -> Result<Fdt<'_>, MachineError> {
    open(blob).map(|tree| tree.fdt)
}

/// Whether the root node is compatible with `word`.
#[must_use]
pub fn is_compatible(blob: &[u8], word: &str) -> bool {
    let Ok(tree) = open(blob) else { return false };
    let mut found = false;
    let walked = tree.walk(&mut |place| {
        found |= place.depth == 0 && place.is_compatible(word);
        Ok(Go::Over)
    });
    walked.is_ok() && found
}

/// Checks header, structure and depth, and finds the GIC.
pub(super) fn open(blob: &[u8]) -> Result<Tree<'_>, MachineError> {
    let fdt = structure::check(trim(blob)?)?;
    let mut tree = Tree { fdt, gic: None };
    tree.walk(&mut |_| Ok(Go::In))?;
    tree.gic = gic::find(tree)?;
    Ok(tree)
}
