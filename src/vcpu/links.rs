//! How the scheduler's intrusive lists find the links in a vCPU.
#![allow(missing_docs, reason = "the macro writes the items")]

use super::Vcpu;
use crate::sched::{QueueLink, SleepLink};
use alloc::sync::Arc;
use intrusive_collections::intrusive_adapter;

// The adapters of the run queues' and the sleepers' lists.
intrusive_adapter!(pub QueueAdapter = Arc<Vcpu>: Vcpu { entity.queue_link => QueueLink });
intrusive_adapter!(pub SleepAdapter = Arc<Vcpu>: Vcpu { entity.sleep_link => SleepLink });
