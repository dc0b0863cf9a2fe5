//! What passes between EL2 and [`super::vectors`] at each entry to a guest and each exit from it.

/// The registers that every exit saves and every entry restores. EL2 does not use the FP registers, so they are not
/// here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GuestRegs {
    /// X0 to X30.
    pub x: [u64; 31],
    /// The address at which the guest continues (ELR_EL2).
    pub pc: u64,
    /// The PSTATE with which it continues (SPSR_EL2).
    pub pstate: u64,
}

impl GuestRegs {
    /// PSTATE of a vCPU after a reset and after PSCI CPU_ON: EL1 with SP_EL1, all interrupts masked.
    pub const PSTATE_EL1H_MASKED: u64 = 0x3c5;

    /// Returns register `index` as an instruction names it: 31 is XZR and reads as zero.
    #[inline]
    #[must_use]
    pub fn get(&self, index: u8) -> u64 {
        self.x.get(usize::from(index)).copied().unwrap_or(0)
    }

    /// Sets register `index`. 31 is XZR, and a write to it is ignored.
    #[inline]
    pub fn set(&mut self, index: u8, value: u64) {
        if let Some(register) = self.x.get_mut(usize::from(index)) {
            *register = value;
        }
    }
}

/// The kind of exception by which a guest exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A trap, a call or a fault, as the syndrome says.
    Sync,
    /// A physical IRQ is pending.
    Irq,
    /// A physical FIQ is pending.
    Fiq,
    /// A physical SError.
    SError,
    /// The guest was not entered, because an SError that EL2 has caused was pending. It has been taken.
    OwnSError,
}

/// What the hardware reports about an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawExit {
    /// The kind of exception.
    pub reason: Reason,
    /// Another access of the guest has caused an SError, which has been taken.
    pub serror: bool,
    /// ESR_EL2; zero for an interrupt.
    pub esr: u64,
    /// FAR_EL2; zero unless synchronous.
    pub far: u64,
    /// HPFAR_EL2; zero unless synchronous.
    pub hpfar: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn register_31_reads_as_zero_and_ignores_writes() {
        let mut regs = GuestRegs::default();
        regs.set(31, 7);
        regs.set(30, 9);
        assert_eq!((regs.get(31), regs.get(30)), (0, 9));
        assert_eq!(regs.pc, 0);
    }
}
