//! `sched=null`: each CPU has one vCPU, for ever.
//!
//! There is nothing to decide, so nothing is decided: a CPU runs its vCPU whenever that can run. What remains
//! of a scheduler is the assignment, made once when a domain is built.

use crate::ids::CpuId;
use crate::sync::{Lock, Rank};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// The assignment of vCPUs to CPUs.
pub struct Null<V> {
    slots: Lock<Vec<Option<Arc<V>>>>,
}

impl<V> Null<V> {
    /// `cpus` CPUs, all free.
    #[must_use]
    pub fn new(cpus: usize) -> Null<V> {
        Null { slots: Lock::new(Rank::RunQueue, (0..cpus).map(|_| None).collect()) }
    }

    /// Gives `vcpu` to `cpu`. Hands it back if the CPU is taken or does not exist.
    pub fn assign(&self, cpu: CpuId, vcpu: Arc<V>) -> Result<(), Arc<V>> {
        match self.slots.lock().get_mut(cpu.index()) {
            Some(slot @ None) => {
                *slot = Some(vcpu);
                Ok(())
            }
            _ => Err(vcpu),
        }
    }

    /// Takes `vcpu`, which is off, away from its CPU.
    pub fn remove(&self, vcpu: &V) {
        for slot in self.slots.lock().iter_mut() {
            if slot.as_deref().is_some_and(|other| core::ptr::eq(other, vcpu)) {
                *slot = None;
            }
        }
    }

    /// The vCPU of `cpu`, if it has one.
    #[must_use]
    pub fn pick(&self, cpu: CpuId) -> Option<Arc<V>> {
        self.slots.lock().get(cpu.index())?.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_takes_one_vcpu_and_no_second() {
        let null = Null::new(2);
        assert_eq!(null.assign(CpuId(1), Arc::new("a")), Ok(()));
        assert_eq!(null.assign(CpuId(1), Arc::new("b")), Err(Arc::new("b")));
        assert_eq!(null.assign(CpuId(2), Arc::new("c")), Err(Arc::new("c")));
        assert_eq!(null.pick(CpuId(1)), Some(Arc::new("a")));
        assert_eq!(null.pick(CpuId(0)), None);
        let own = null.pick(CpuId(1)).unwrap();
        null.remove(&own);
        assert_eq!(null.pick(CpuId(1)), None);
    }
}
