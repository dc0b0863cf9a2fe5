//! Implements the scheduler's trait for [`Vcpu`], with the adapters for the scheduler's intrusive lists.
#![allow(missing_docs, reason = "the macro writes the items")]

use super::Vcpu;
use crate::sched::{Entity, QueueLink, RunState, Scheduled, SleepLink};
use alloc::sync::Arc;
use intrusive_collections::intrusive_adapter;

// The adapters for run queues and for lists of sleepers.
intrusive_adapter!(pub QueueAdapter = Arc<Vcpu>: Vcpu { entity.queue_link => QueueLink });
intrusive_adapter!(pub SleepAdapter = Arc<Vcpu>: Vcpu { entity.sleep_link => SleepLink });

impl Scheduled for Vcpu {
    type QueueAdapter = QueueAdapter;
    type SleepAdapter = SleepAdapter;

    fn entity(&self) -> &Entity {
        &self.entity
    }

    fn run_state(&self) -> &RunState {
        &self.run
    }
}
