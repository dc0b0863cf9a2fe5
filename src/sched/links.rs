//! How vCPUs are linked into lists that do not allocate.
//!
//! The links are atomic: a list that a vCPU is added to while it is in another panics instead of damaging both. The
//! links themselves are followed only under the lock of the list.

use alloc::sync::Arc;
use intrusive_collections::linked_list::AtomicLinkOps;
use intrusive_collections::{Adapter, DefaultPointerOps, LinkedListAtomicLink};

/// The link by which a vCPU is in a run queue.
pub type QueueLink = LinkedListAtomicLink;

/// The link by which a vCPU is in a list of sleepers.
pub type SleepLink = LinkedListAtomicLink;

/// How a list of vCPUs finds the link in a vCPU. Implemented by what `intrusive_adapter!` defines.
pub trait ListAdapter<V>:
    Adapter<LinkOps = AtomicLinkOps, PointerOps = DefaultPointerOps<Arc<V>>> + Default + Send + Sync
{
}

impl<V, A> ListAdapter<V> for A where
    A: Adapter<LinkOps = AtomicLinkOps, PointerOps = DefaultPointerOps<Arc<V>>> + Default + Send + Sync
{
}
