//! `sched=null`: each CPU has at most one vCPU, which never moves.
//!
//! A vCPU is assigned to its CPU when its domain is built. The CPU runs it whenever it can run.

use super::cpu_set::CpuSet;
use super::policy::{AddError, Scheduled, Scheduler, Verdict};
use crate::ids::CpuId;
use crate::sync::{Lock, Rank};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr;

/// The assignment of vCPUs to CPUs.
pub struct Null<V> {
    slots: Lock<Vec<Option<Arc<V>>>>,
    /// The CPUs that are offline.
    offline: CpuSet,
}

impl<V> Null<V> {
    /// A scheduler for `cpus` CPUs, all without a vCPU.
    #[must_use]
    pub fn new(cpus: usize) -> Null<V> {
        Null { slots: Lock::new(Rank::RunQueue, (0..cpus).map(|_| None).collect()), offline: CpuSet::none() }
    }
}

impl<V: Scheduled + Send + Sync> Scheduler<V> for Null<V> {
    fn name(&self) -> &'static str {
        "null"
    }

    fn shares_cpus(&self) -> bool {
        false
    }

    fn bring_online(&self, cpu: CpuId) {
        self.offline.take(cpu);
    }

    fn take_offline(&self, cpu: CpuId) -> Result<(), Arc<V>> {
        let slots = self.slots.lock();
        match slots.get(cpu.index()).and_then(Option::as_ref) {
            Some(vcpu) => Err(vcpu.clone()),
            None => {
                self.offline.add(cpu);
                Ok(())
            }
        }
    }

    fn add(&self, vcpu: &Arc<V>, home: CpuId) -> Result<(), AddError> {
        let mut slots = self.slots.lock();
        match slots.get_mut(home.index()) {
            None => Err(AddError::NoSuchCpu(home)),
            Some(_) if self.offline.has(home) => Err(AddError::NoSuchCpu(home)),
            Some(Some(_)) => Err(AddError::Taken(home)),
            Some(slot) => {
                vcpu.entity().set_cpu(home);
                *slot = Some(vcpu.clone());
                Ok(())
            }
        }
    }

    fn remove(&self, vcpu: &V) {
        let mut slots = self.slots.lock();
        let is_it = |slot: &Option<Arc<V>>| slot.as_ref().is_some_and(|other| ptr::eq(Arc::as_ptr(other), vcpu));
        if let Some(slot) = slots.iter_mut().find(|slot| is_it(slot)) {
            *slot = None;
        }
    }

    fn place(&self, vcpu: &V) -> CpuId {
        vcpu.entity().cpu()
    }

    fn next(&self, cpu: CpuId, _: u64) -> Option<Arc<V>> {
        self.current(cpu).filter(|vcpu| vcpu.run_state().start_running())
    }

    fn should_resched(&self, _: CpuId, _: u64) -> Verdict {
        Verdict::Continue
    }

    fn stop(&self, cpu: CpuId, _: u64) -> Option<Arc<V>> {
        self.current(cpu)
    }

    fn requeue(&self, _: CpuId, _: Arc<V>, _: u64) {}

    fn current(&self, cpu: CpuId) -> Option<Arc<V>> {
        self.slots.lock().get(cpu.index())?.clone()
    }

    fn needs_resched(&self, _: CpuId) -> bool {
        false
    }

    fn set_need_resched(&self, _: CpuId) {}

    fn is_contended(&self, _: CpuId) -> bool {
        false
    }

    fn next_resched_at(&self, _: CpuId) -> Option<u64> {
        None
    }

    fn record_move_cost(&self, _: u64) {}

    fn for_each_waiting(&self, _: CpuId, _: &mut dyn FnMut(&Arc<V>)) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sched::testing::TestVcpu;

    #[test]
    fn a_cpu_accepts_one_vcpu_only() {
        let null = Null::new(2);
        let [a, b] = [0, 1].map(|cpu| Arc::new(TestVcpu::new(CpuId(cpu))));
        assert_eq!(null.add(&a, CpuId(1)), Ok(()));
        assert_eq!(null.add(&b, CpuId(1)), Err(AddError::Taken(CpuId(1))));
        assert_eq!(null.add(&b, CpuId(2)), Err(AddError::NoSuchCpu(CpuId(2))));
        assert!(Arc::ptr_eq(&null.current(CpuId(1)).unwrap(), &a));
        assert!(null.next(CpuId(1), 0).is_none(), "it is off");
        assert!(a.run.power_on());
        assert_eq!(null.place(&a), CpuId(1));
        assert!(null.next(CpuId(1), 0).is_some());
        assert!(null.next(CpuId(1), 0).is_none(), "it runs");
        assert!(null.take_offline(CpuId(1)).is_err_and(|vcpu| Arc::ptr_eq(&vcpu, &a)), "it cannot run elsewhere");
        null.remove(&a);
        assert!(null.current(CpuId(1)).is_none());
        assert!(null.take_offline(CpuId(1)).is_ok());
        assert_eq!(null.add(&a, CpuId(1)), Err(AddError::NoSuchCpu(CpuId(1))));
        null.bring_online(CpuId(1));
        assert_eq!(null.add(&a, CpuId(1)), Ok(()));
    }
}
