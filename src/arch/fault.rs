//! The state that a CPU saves when EL2 takes an exception from itself. Such an exception is fatal; the panic prints
//! this.

/// Registers at an exception that EL2 took from itself. `doorward_el2_fatal` in [`super::vectors`] fills it.
#[repr(C)]
#[derive(Debug)]
pub struct Fault {
    /// X0 to X30.
    pub x: [u64; 31],
    /// The stack pointer.
    pub sp: u64,
    /// ELR_EL2: the address of the instruction, or of the next one for an interrupt.
    pub elr: u64,
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2; valid for aborts and alignment faults.
    pub far: u64,
    /// The number of the vector, 0 to 7: bits 1:0 give the kind of exception.
    kind: u64,
}

impl Fault {
    /// Returns the name of the kind of exception.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        ["synchronous exception", "IRQ", "FIQ", "SError"][(self.kind & 3) as usize]
    }
}
