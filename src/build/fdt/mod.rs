//! Device trees for guests. dom0 gets the host's tree, edited; a domU gets one that is made from nothing.

pub mod edit;
mod kept;
pub mod make;
pub(crate) mod node;
pub(crate) mod pci;
mod removal;
