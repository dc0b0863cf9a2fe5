//! A vCPU as the scheduler knows it, and how the scheduler's intrusive lists find the links in it.
#![allow(missing_docs, reason = "the macro writes the items")]

use super::Vcpu;
use crate::sched::{Entity, QueueLink, RunState, Scheduled, SleepLink};
use alloc::sync::Arc;
use intrusive_collections::intrusive_adapter;

// The adapters of the run queues' and the sleepers' lists.
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
