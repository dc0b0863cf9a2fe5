//! The result of handling an exit.

/// What a vCPU does after an exit has been handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It continues.
    Resume,
    /// It continues, unless another vCPU waits for the CPU.
    Yield,
    /// It gives up the CPU and stays runnable.
    Preempt,
    /// It waits for an interrupt.
    Block,
    /// It waits until its domain is no longer paused.
    Pause,
    /// It waits until its work goes on or until it is woken, whatever interrupts are pending.
    Sleep,
    /// It is powered off.
    Off,
    /// It is powered off: it has performed the restart of its domain.
    Restarted,
}
