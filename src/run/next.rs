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
    /// It is powered off.
    Off,
}
