//! The controls of the virtual CPU interface: list registers, active priorities and status (IHI 0069, 12.4).
//!
//! Values are raw register words here. `vgic` interprets them, in types of its own.

use super::sysreg::*;

/// Returns the number of list registers that this CPU has.
#[must_use]
pub fn count() -> usize {
    ICH_VTR_EL2.read(ICH_VTR_EL2::ListRegs) as usize + 1
}

/// Whether this CPU takes no virtual interrupts from its redistributor (ICH_VTR_EL2.nV4).
#[must_use]
pub fn nv4() -> bool {
    ICH_VTR_EL2.read(ICH_VTR_EL2_NV4) != 0
}

/// Returns the number of active-priority registers per group: 1, 2 or 4, by the number of preemption bits.
fn apr_count() -> u32 {
    match ICH_VTR_EL2.read(ICH_VTR_EL2::PREbits) {
        0..=4 => 1,
        5 => 2,
        _ => 4,
    }
}

macro_rules! list_registers {
    ($($index:literal $register:ident)*) => {
        /// Reads list register `index`. Returns zero for an index above 15.
        #[inline]
        #[must_use]
        pub fn read_lr(index: usize) -> u64 {
            match index { $($index => $register.get(),)* _ => 0 }
        }

        /// Writes list register `index`, which is less than [`count`].
        #[inline]
        pub fn write_lr(index: usize, value: u64) {
            match index { $($index => $register.set(value),)* _ => {} }
        }
    };
}

list_registers! {
    0 ICH_LR0_EL2 1 ICH_LR1_EL2 2 ICH_LR2_EL2 3 ICH_LR3_EL2 4 ICH_LR4_EL2 5 ICH_LR5_EL2 6 ICH_LR6_EL2 7 ICH_LR7_EL2
    8 ICH_LR8_EL2 9 ICH_LR9_EL2 10 ICH_LR10_EL2 11 ICH_LR11_EL2 12 ICH_LR12_EL2 13 ICH_LR13_EL2 14 ICH_LR14_EL2
    15 ICH_LR15_EL2
}

/// Empties the first `count` list registers.
pub fn clear_lrs(count: usize) {
    (0..count).for_each(|index| write_lr(index, 0));
}

/// The state of a vCPU's CPU interface besides list registers and ICH_HCR_EL2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// ICH_VMCR_EL2.
    pub vmcr: u64,
    /// ICH_AP0R0_EL2 to ICH_AP0R3_EL2.
    pub ap0r: [u64; 4],
    /// ICH_AP1R0_EL2 to ICH_AP1R3_EL2.
    pub ap1r: [u64; 4],
}

impl State {
    /// Saves the registers of this CPU.
    pub fn save(&mut self) {
        let count = apr_count();
        self.vmcr = ICH_VMCR_EL2.get();
        (self.ap0r[0], self.ap1r[0]) = (ICH_AP0R0_EL2.get(), ICH_AP1R0_EL2.get());
        if count > 1 {
            (self.ap0r[1], self.ap1r[1]) = (ICH_AP0R1_EL2.get(), ICH_AP1R1_EL2.get());
        }
        if count > 2 {
            (self.ap0r[2], self.ap1r[2]) = (ICH_AP0R2_EL2.get(), ICH_AP1R2_EL2.get());
            (self.ap0r[3], self.ap1r[3]) = (ICH_AP0R3_EL2.get(), ICH_AP1R3_EL2.get());
        }
    }

    /// Loads the registers of this CPU. The caller executes an ISB afterwards.
    pub fn restore(&self) {
        let count = apr_count();
        ICH_VMCR_EL2.set(self.vmcr);
        ICH_AP0R0_EL2.set(self.ap0r[0]);
        ICH_AP1R0_EL2.set(self.ap1r[0]);
        if count > 1 {
            ICH_AP0R1_EL2.set(self.ap0r[1]);
            ICH_AP1R1_EL2.set(self.ap1r[1]);
        }
        if count > 2 {
            ICH_AP0R2_EL2.set(self.ap0r[2]);
            ICH_AP1R2_EL2.set(self.ap1r[2]);
            ICH_AP0R3_EL2.set(self.ap0r[3]);
            ICH_AP1R3_EL2.set(self.ap1r[3]);
        }
    }
}
