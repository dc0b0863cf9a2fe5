//! Lists of fixed capacity.

use crate::platform::{ITSS, MachineError, Part, SMMUS};
use arrayvec::ArrayVec;

/// The phandles that `msi-map` and `iommu-map` may refer to, in the order of the machine's lists.
#[derive(Default)]
pub(super) struct Phandles {
    pub itss: ArrayVec<Option<u32>, ITSS>,
    pub smmus: ArrayVec<Option<u32>, SMMUS>,
}

/// Appends an item.
///
/// # Errors
///
/// [`MachineError::TooMany`], which names the part.
pub(super) fn push<T, const N: usize>(list: &mut ArrayVec<T, N>, item: T, part: Part) -> Result<(), MachineError> {
    list.try_push(item).map_err(|_| MachineError::TooMany { part, limit: N })
}
