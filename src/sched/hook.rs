//! The scheduler hook: what the run loop does when a vCPU starts to run on a CPU and when it stops.

use super::run_state::Found;

/// Why a vCPU is switched out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is still runnable, or it is being powered off.
    Preempt,
    /// It waits for an interrupt.
    Block,
}

/// A vCPU on the CPU that is about to run it or runs it.
pub trait Schedulable {
    /// The state of the vCPU that belongs to the CPU that runs it, from before `switch_in` until after `switch_out`.
    type Context;
    /// Loads the vCPU's state, as far as a guest can see it, into the current CPU.
    fn switch_in(&mut self, context: &mut Self::Context);
    /// Saves the vCPU's state and takes it off the current CPU. For [`Why::Block`], arms everything that can wake the
    /// vCPU before its state leaves the CPU, and reports whether an interrupt is pending.
    fn switch_out(&mut self, why: Why, context: &mut Self::Context) -> Found;
}
