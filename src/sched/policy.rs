//! The interface of a scheduler.

use super::entity::Entity;
use super::links::ListAdapter;
use super::run_state::RunState;
use crate::ids::CpuId;
use alloc::sync::Arc;
use core::fmt;

/// A vCPU as schedulers see it.
pub trait Scheduled: Sized {
    /// Finds [`Entity::queue_link`].
    type QueueAdapter: ListAdapter<Self>;
    /// Finds [`Entity::sleep_link`].
    type SleepAdapter: ListAdapter<Self>;
    /// Its weight, its affinity and the time that it has run.
    fn entity(&self) -> &Entity;
    /// Whether it is off, runnable, running, or asleep.
    fn run_state(&self) -> &RunState;
}

/// Why a vCPU cannot be added to a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddError {
    /// The scheduler's table is full.
    Full,
    /// This CPU already has a vCPU and can have only one.
    Taken(CpuId),
    /// This CPU does not exist or is offline.
    NoSuchCpu(CpuId),
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddError::Full => f.write_str("the scheduler has no room for another vCPU"),
            AddError::Taken(cpu) => write!(f, "{cpu} already has a vCPU, and sched=null allows one per CPU"),
            AddError::NoSuchCpu(cpu) => write!(f, "{cpu} does not exist or is offline"),
        }
    }
}

/// A scheduler's decision on the vCPU that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It goes on running.
    Continue,
    /// Another vCPU is to run.
    Switch,
}

/// Decides which vCPU runs on which CPU. Times are in ticks of the counter. No function allocates.
pub trait Scheduler<V>: Send + Sync {
    /// The value of the `sched=` option that selects this scheduler.
    fn name(&self) -> &'static str;

    /// Whether a CPU may run several vCPUs in turn. If not, a vCPU's state stays in its CPU.
    fn shares_cpus(&self) -> bool;

    /// Lets a CPU run vCPUs from now on.
    fn bring_online(&self, cpu: CpuId);

    /// Lets a CPU run no more vCPUs. The vCPU that runs there stops at its next [`should_resched`]; those that wait
    /// there are moved to other CPUs when the CPU calls [`next`], which then returns `None`. After that call no vCPU is
    /// placed on this CPU. [`bring_online`] undoes this.
    ///
    /// [`should_resched`]: Scheduler::should_resched
    /// [`next`]: Scheduler::next
    /// [`bring_online`]: Scheduler::bring_online
    ///
    /// # Errors
    ///
    /// A vCPU that could run on no other CPU. Nothing has changed then.
    fn take_offline(&self, cpu: CpuId) -> Result<(), Arc<V>>;

    /// Adds a vCPU, which is off.
    ///
    /// # Errors
    ///
    /// [`AddError`].
    fn add(&self, vcpu: &Arc<V>, home: CpuId) -> Result<(), AddError>;

    /// Removes a vCPU, which is off and has been stopped.
    fn remove(&self, vcpu: &V);

    /// Chooses a CPU for a vCPU that has just become runnable (woken, or powered on) and hands the vCPU to it. Returns
    /// that CPU, which the caller has to interrupt. Takes no lock, so it may be called with any lock held. The caller
    /// has called [`Entity::begin_wait`].
    fn place(&self, vcpu: &V) -> CpuId;

    /// Chooses the vCPU that this CPU runs next and makes it `Running`. `None`: there is none, and the CPU should wait
    /// for an interrupt.
    fn next(&self, cpu: CpuId, now: u64) -> Option<Arc<V>>;

    /// Starts the slice of this CPU's vCPU anew at `now`: switching to it took long, and that time is not charged to
    /// it. Without this, a vCPU whose switch takes longer than its slice would be preempted before its first
    /// instruction.
    fn restart_slice(&self, _cpu: CpuId, _now: u64) {}

    /// Does not charge the vCPU of this CPU for the last `ticks`, which have passed since it was charged: they went into
    /// work of another domain. Its slice ends when it would have ended.
    fn exclude(&self, _cpu: CpuId, _ticks: u64) {}

    /// Decides whether the vCPU of this CPU goes on running. Call it when [`Scheduler::needs_resched`] is true.
    fn should_resched(&self, cpu: CpuId, now: u64) -> Verdict;

    /// Stops the vCPU of this CPU. The caller owns it until the vCPU sleeps, is off, or is passed to
    /// [`Scheduler::requeue`].
    fn stop(&self, cpu: CpuId, now: u64) -> Option<Arc<V>>;

    /// Queues a vCPU that was stopped on this CPU and is `Runnable`. All its state has left this CPU.
    fn requeue(&self, cpu: CpuId, vcpu: Arc<V>, now: u64);

    /// The vCPU that runs on a CPU.
    fn current(&self, cpu: CpuId) -> Option<Arc<V>>;

    /// Ticks that a vCPU runs on this CPU by now and has not been charged for: [`Entity::ran`] does not have them yet. 0 if
    /// it does not run there, or if nothing is charged.
    fn uncharged(&self, _cpu: CpuId, _vcpu: &V, _now: u64) -> u64 {
        0
    }

    /// Whether [`Scheduler::should_resched`] has to be called. Cheap: the run loop asks after each exit.
    fn needs_resched(&self, cpu: CpuId) -> bool;

    /// Makes [`Scheduler::needs_resched`] true for a CPU.
    fn set_need_resched(&self, cpu: CpuId);

    /// Whether another vCPU waits that could run on this CPU. Cheap: the run loop asks before each entry.
    fn is_contended(&self, cpu: CpuId) -> bool;

    /// The time at which this CPU has to call [`Scheduler::should_resched`] even if nothing else happens.
    fn next_resched_at(&self, cpu: CpuId) -> Option<u64>;

    /// Records that moving a vCPU to another CPU took this many ticks.
    fn record_move_cost(&self, ticks: u64);

    /// Visits the vCPUs that wait for a CPU, the next to run first. For a debug key; `visit` is called with the lock of
    /// the run queue held.
    fn for_each_waiting(&self, cpu: CpuId, visit: &mut dyn FnMut(&Arc<V>));
}
