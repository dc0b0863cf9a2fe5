//! The system registers of EL1 and EL0 that make up a vCPU, beyond what each exit saves.
//!
//! With one vCPU to a pCPU they stay in the hardware; they are written when a vCPU is switched on and move when it
//! moves. Not here: the GIC's (`arch::ich`, `vgic`), stage 2's, the FP, SVE and SME registers, debug break- and
//! watchpoints, the PMU. A scheduler that shares a CPU among vCPUs needs those that are exposed as well.

macro_rules! context {
    ($($field:ident $register:ident $reset:expr, $doc:literal;)* ; $($present:ident: $($opt:ident $opt_register:ident),+;)*) => {
        /// EL1's and EL0's registers.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct El1Context {
            $(#[doc = $doc] pub $field: u64,)*
            $($(#[doc = concat!(stringify!($opt_register), ", where the CPU has it.")] pub $opt: u64,)*)*
        }

        impl El1Context {
            /// As architected after a reset, with zero for what is then unknown.
            #[must_use]
            pub const fn reset() -> El1Context {
                El1Context { $($field: $reset,)* $($($opt: 0,)*)* }
            }
        }

        #[cfg(target_os = "none")]
        impl El1Context {
            /// Reads what this CPU holds.
            pub fn save(&mut self) {
                use crate::arch::sysreg::*;
                let present = target::Present::here();
                $(self.$field = $register.get();)*
                $(if present.$present { $(self.$opt = $opt_register.get();)* })*
            }

            /// Makes this CPU hold it.
            pub fn restore(&self) {
                use crate::arch::{barrier, sysreg::*};
                let present = target::Present::here();
                $($register.set(self.$field);)*
                $(if present.$present { $($opt_register.set(self.$opt);)* })*
                barrier::isb();
            }
        }
    };
}

context! {
    sctlr SCTLR_EL1 0x30d0_0800, "SCTLR_EL1: the RES1 bits; MMU and caches off, little-endian.";
    actlr ACTLR_EL1 0, "ACTLR_EL1.";
    cpacr CPACR_EL1 0, "CPACR_EL1.";
    ttbr0 TTBR0_EL1 0, "TTBR0_EL1.";
    ttbr1 TTBR1_EL1 0, "TTBR1_EL1.";
    tcr TCR_EL1 0, "TCR_EL1.";
    mair MAIR_EL1 0, "MAIR_EL1.";
    amair AMAIR_EL1 0, "AMAIR_EL1.";
    vbar VBAR_EL1 0, "VBAR_EL1.";
    esr ESR_EL1 0, "ESR_EL1.";
    far FAR_EL1 0, "FAR_EL1.";
    afsr0 AFSR0_EL1 0, "AFSR0_EL1.";
    afsr1 AFSR1_EL1 0, "AFSR1_EL1.";
    elr ELR_EL1 0, "ELR_EL1.";
    spsr SPSR_EL1 0, "SPSR_EL1.";
    sp_el0 SP_EL0 0, "SP_EL0.";
    sp_el1 SP_EL1 0, "SP_EL1.";
    tpidr_el0 TPIDR_EL0 0, "TPIDR_EL0.";
    tpidrro_el0 TPIDRRO_EL0 0, "TPIDRRO_EL0.";
    tpidr_el1 TPIDR_EL1 0, "TPIDR_EL1.";
    contextidr CONTEXTIDR_EL1 0, "CONTEXTIDR_EL1.";
    csselr CSSELR_EL1 0, "CSSELR_EL1.";
    par PAR_EL1 0, "PAR_EL1.";
    mdscr MDSCR_EL1 0, "MDSCR_EL1.";
    cntkctl CNTKCTL_EL1 0, "CNTKCTL_EL1.";
    cntv_ctl CNTV_CTL_EL0 0, "CNTV_CTL_EL0: the virtual timer off.";
    cntv_cval CNTV_CVAL_EL0 0, "CNTV_CVAL_EL0.";
    ;
    pauth: apia_lo APIAKEYLO_EL1, apia_hi APIAKEYHI_EL1, apib_lo APIBKEYLO_EL1, apib_hi APIBKEYHI_EL1,
           apda_lo APDAKEYLO_EL1, apda_hi APDAKEYHI_EL1, apdb_lo APDBKEYLO_EL1, apdb_hi APDBKEYHI_EL1,
           apga_lo APGAKEYLO_EL1, apga_hi APGAKEYHI_EL1;
    scxtnum: scxtnum_el0 SCXTNUM_EL0, scxtnum_el1 SCXTNUM_EL1;
    tcr2: tcr2 TCR2_EL1;
    sctlr2: sctlr2 SCTLR2_EL1;
    s1pie: pir PIR_EL1, pire0 PIRE0_EL1;
    s1poe: por_el1 POR_EL1, por_el0 POR_EL0;
    ras: disr DISR_EL1, vdisr VDISR_EL2, vsesr VSESR_EL2;
}

#[cfg(target_os = "none")]
mod target {
    use crate::arch::sysreg::{ID_AA64ISAR1_EL1, ID_AA64ISAR2_EL1, ID_AA64MMFR3_EL1, ID_AA64PFR0_EL1, ID_AA64PFR1_EL1};

    /// Which of the registers that come with a feature this CPU has.
    pub struct Present {
        pub pauth: bool,
        pub scxtnum: bool,
        pub tcr2: bool,
        pub sctlr2: bool,
        pub s1pie: bool,
        pub s1poe: bool,
        pub ras: bool,
    }

    impl Present {
        pub fn here() -> Present {
            let field = |register: u64, shift: u32| (register >> shift) & 0xf;
            let (isar1, isar2) = (ID_AA64ISAR1_EL1.get(), ID_AA64ISAR2_EL1.get());
            let (pfr0, pfr1, mmfr3) = (ID_AA64PFR0_EL1.get(), ID_AA64PFR1_EL1.get(), ID_AA64MMFR3_EL1.get());
            let csv2 = field(pfr0, 56);
            Present {
                // API, APA, GPI, GPA; APA3, GPA3.
                pauth: isar1 & 0xff00_0ff0 != 0 || isar2 & 0x0000_ff00 != 0,
                // FEAT_CSV2_2, or FEAT_CSV2_1p2 by CSV2_frac.
                scxtnum: csv2 >= 2 || (csv2 == 1 && field(pfr1, 32) >= 2),
                tcr2: field(mmfr3, 0) != 0,
                sctlr2: field(mmfr3, 4) != 0,
                s1pie: field(mmfr3, 8) != 0,
                s1poe: field(mmfr3, 16) != 0,
                ras: field(pfr0, 28) != 0,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_starts_with_its_mmu_off_and_its_timer_silent() {
        let reset = El1Context::reset();
        assert_eq!(reset.sctlr & 0x1005, 0, "M, C, I");
        assert_eq!((reset.cntv_ctl, reset.vbar, reset.apia_lo), (0, 0, 0));
    }
}
