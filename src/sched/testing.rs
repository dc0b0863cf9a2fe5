//! A vCPU for tests.

use super::entity::Entity;
use super::links::{QueueLink, SleepLink};
use super::policy::Scheduled;
use super::run_state::RunState;
use crate::ids::CpuId;
use alloc::sync::Arc;
use intrusive_collections::intrusive_adapter;

/// A vCPU without registers.
pub struct TestVcpu {
    /// For failure messages and comparisons.
    pub name: &'static str,
    /// Its data for the scheduler.
    pub entity: Entity,
    /// Its state.
    pub run: RunState,
}

intrusive_adapter!(pub QueueAdapter = Arc<TestVcpu>: TestVcpu { entity.queue_link => QueueLink });
intrusive_adapter!(pub SleepAdapter = Arc<TestVcpu>: TestVcpu { entity.sleep_link => SleepLink });

impl TestVcpu {
    /// A vCPU that is off, on `home`.
    pub fn new(home: CpuId) -> TestVcpu {
        TestVcpu { name: "", entity: Entity::new(home), run: RunState::new() }
    }

    /// A vCPU with a name, on CPU 0.
    pub fn named(name: &'static str) -> TestVcpu {
        TestVcpu { name, ..TestVcpu::new(CpuId(0)) }
    }
}

impl Scheduled for TestVcpu {
    type QueueAdapter = QueueAdapter;
    type SleepAdapter = SleepAdapter;

    fn entity(&self) -> &Entity {
        &self.entity
    }

    fn run_state(&self) -> &RunState {
        &self.run
    }
}
