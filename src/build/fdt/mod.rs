//! Device trees for guests: dom0's is the host's tree, edited; a domU's is made from nothing.

pub mod edit;
pub mod make;
mod removal;
