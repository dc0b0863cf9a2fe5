//! An exception that EL2 took at EL2. It is fatal; this is what the last words say of it.

/// What the CPU held when EL2 took an exception of its own.
#[repr(C)]
#[derive(Debug)]
pub struct Fault {
    /// X0 to X30.
    pub x: [u64; 31],
    /// The stack pointer.
    pub sp: u64,
    /// Where it happened.
    pub elr: u64,
    /// The syndrome.
    pub esr: u64,
    /// The address, if there is one to it.
    pub far: u64,
    kind: u64,
}

impl Fault {
    /// What kind of exception.
    #[must_use]
    pub fn what(&self) -> &'static str {
        ["synchronous exception", "IRQ", "FIQ", "SError"][(self.kind & 3) as usize]
    }
}
