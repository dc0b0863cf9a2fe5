//! Scheduling: which vCPU runs on which CPU, and how a vCPU goes to sleep without missing its wake-up.
//!
//! | file | contents |
//! |---|---|
//! | `policy` | [`Scheduler`]: what every scheduler offers; [`Scheduled`]: a vCPU as schedulers see it |
//! | `credit`, `null` | the two schedulers: `sched=credit` and `sched=null` |
//! | `queue` | the run queue of one CPU, for `credit` |
//! | `inbox` | vCPUs that other CPUs hand to a CPU, without a lock |
//! | `entity`, `cpu_set` | a scheduler's data in each vCPU: weight, cap, affinity, accounts; sets of CPUs |
//! | `run_state` | [`RunState`]: off, runnable, running, blocking or blocked |
//! | `links` | how vCPUs are linked into run queues and lists of sleepers |
//! | `hook` | [`Schedulable`]: what happens when a vCPU is switched in and out |
//! | `random`, `race_point` | random numbers; points at which a test lets other threads run |
//! | `interleavings`, `simulation`, `stress_tests`, `testing` | tests |
//!
//! A scheduler knows a vCPU by [`Scheduled`] and by its [`RunState`]. It does not know the GIC: what has to happen to
//! interrupts when a vCPU is switched is done by `switch_in` and `switch_out` of [`Schedulable`], which the run loop
//! implements (`src/run/switch.rs`).
//!
//! # No lost wake-up
//!
//! A vCPU that blocks takes three steps in this order:
//!
//! 1. Its state becomes `Blocking`.
//! 2. `switch_out` arms its doorbell, then makes its vPE non-resident, then reports whether an interrupt is pending.
//! 3. If none is pending, its state changes from `Blocking` to `Blocked`.
//!
//! A CPU that has an interrupt for the vCPU first makes the interrupt visible and then calls [`RunState::wake`], which
//! changes `Blocking` or `Blocked` to `Runnable`. So each interrupt is either found in step 2, or its `wake` comes
//! after step 1 and makes step 3 fail or wakes the vCPU.

mod cpu_set;
mod credit;
mod entity;
mod hook;
mod inbox;
#[cfg(all(test, loom))]
mod interleavings;
mod links;
mod null;
mod policy;
mod queue;
mod race_point;
mod random;
mod run_state;
#[cfg(test)]
mod simulation;
#[cfg(all(test, not(loom)))]
mod stress_tests;
#[cfg(test)]
pub(crate) mod testing;
pub use cpu_set::{CpuSet, MAX_CPUS};
pub use credit::{Credit, Settings};
pub use entity::{DEFAULT_WEIGHT, Entity};
pub use hook::{Schedulable, Why};
pub use links::{ListAdapter, QueueLink, SleepLink};
pub use null::Null;
pub use policy::{AddError, Scheduled, Scheduler, Verdict};
pub use queue::Slices;
pub use run_state::{Found, RunState, State, Woken};
