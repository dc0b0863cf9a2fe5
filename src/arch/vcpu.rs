//! The world switch: a guest's general registers, and entering it.

/// What every exit saves and every entry restores. The FP registers are not here: EL2 does not use them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GuestRegs {
    /// X0 to X30.
    pub x: [u64; 31],
    /// Where it goes on.
    pub pc: u64,
    /// Its PSTATE, as in SPSR_EL2.
    pub pstate: u64,
}

impl GuestRegs {
    /// PSTATE at a CPU's reset and at PSCI CPU_ON: EL1 with SP_EL1, all interrupts masked.
    pub const PSTATE_EL1H_MASKED: u64 = 0x3c5;

    /// Register `index` as an instruction names it: 31 reads as zero.
    #[inline]
    #[must_use]
    pub fn get(&self, index: u8) -> u64 {
        self.x.get(usize::from(index)).copied().unwrap_or(0)
    }

    /// Sets register `index`; writes to 31 are dropped.
    #[inline]
    pub fn set(&mut self, index: u8, value: u64) {
        if let Some(register) = self.x.get_mut(usize::from(index)) {
            *register = value;
        }
    }
}

/// Why a guest was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It trapped, called or faulted: the syndrome says which.
    Sync,
    /// A physical IRQ is pending.
    Irq,
    /// A physical FIQ is pending.
    Fiq,
    /// An SError.
    SError,
}

/// What the hardware says about an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawExit {
    /// Why.
    pub reason: Reason,
    /// The guest was in AArch32 state, which no domain is allowed: EL1 of another width cannot be.
    pub aarch32: bool,
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
    fn register_31_is_zero() {
        let mut regs = GuestRegs::default();
        regs.set(31, 7);
        regs.set(30, 9);
        assert_eq!((regs.get(31), regs.get(30)), (0, 9));
        assert_eq!(regs.pc, 0);
    }
}
