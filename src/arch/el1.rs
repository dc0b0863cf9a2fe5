//! The system registers of EL1 and EL0 that belong to a vCPU, apart from those that each exit saves.
//!
//! Where a vCPU has a CPU to itself, they stay in the hardware and are loaded when the vCPU is powered on. Where vCPUs
//! share a CPU, they are switched when another vCPU takes it. [`El1Context`] does not contain the virtual timer
//! ([`VirtualTimer`]), FP ([`super::fp`]), the virtual CPU interface ([`super::ich`]) and stage 2. It has VDISR_EL2 and not
//! DISR_EL1: guests have the one in place of the other (HCR_EL2.AMO), and DISR_EL1 is EL2's. State of features
//! that are hidden from guests (SVE, SME, PMU, breakpoints and watchpoints) is not switched.

use super::barrier;
use super::features::ids::{IdRegs, reg};
use super::sysreg::*;

macro_rules! context {
    (always: $([$($field:ident $register:ident),+])+
     if changed: $($rare:ident $rare_register:ident),+;
     if present: $($present:ident [$($opt:ident $opt_register:ident),+])+) => {
        /// The registers of EL1 and EL0. The alignment keeps its neighbours in `vcpu::Context` where the shortest code
        /// reaches them: without it, saving takes 17 instructions more.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[repr(C, align(16))]
        pub struct El1Context {
            $($(#[doc = concat!(stringify!($register), ".")] pub $field: u64,)+)+
            $(#[doc = concat!(stringify!($rare_register), ".")] pub $rare: u64,)+
            $($(#[doc = concat!(stringify!($opt_register), ", where the CPU has it.")] pub $opt: u64,)+)+
        }

        impl El1Context {
            const ZERO: El1Context = El1Context { $($($field: 0,)+)+ $($rare: 0,)+ $($($opt: 0,)+)+ };
        }

        impl El1Context {
            /// Saves the registers of this CPU.
            pub fn save(&mut self, present: &Present) {
                $(context!(@save self $($field $register),+);)+
                $(self.$rare = $rare_register.get();)+
                $(if present.$present { context!(@save self $($opt $opt_register),+); })+
            }

            /// Loads the registers of this CPU. A register that is the same in nearly all vCPUs is written only if its
            /// value changes: QEMU drops all translations at a write of TCR_EL1, which slows the guest down and would
            /// hide missing TLB maintenance. The caller executes an ISB afterwards.
            pub fn restore(&self, present: &Present) {
                $(context!(@restore self $($field $register),+);)+
                $(if $rare_register.get() != self.$rare { $rare_register.set(self.$rare); })+
                $(if present.$present { context!(@restore self $($opt $opt_register),+); })+
            }
        }
    };
    // Registers are moved in groups, so that neighbours in memory are loaded and stored in pairs.
    (@save $self:ident $($field:ident $register:ident),+) => {
        $(let $field = $register.get();)+
        $($self.$field = $field;)+
    };
    (@restore $self:ident $($field:ident $register:ident),+) => {
        $(let $field = $self.$field;)+
        $($register.set($field);)+
    };
}

context! {
    always:
    [sctlr SCTLR_EL1, actlr ACTLR_EL1, cpacr CPACR_EL1, ttbr0 TTBR0_EL1, ttbr1 TTBR1_EL1, mair MAIR_EL1,
     amair AMAIR_EL1, vbar VBAR_EL1]
    [esr ESR_EL1, far FAR_EL1, afsr0 AFSR0_EL1, afsr1 AFSR1_EL1, elr ELR_EL1, spsr SPSR_EL1, sp_el0 SP_EL0,
     sp_el1 SP_EL1]
    [tpidr_el0 TPIDR_EL0, tpidrro_el0 TPIDRRO_EL0, tpidr_el1 TPIDR_EL1, contextidr CONTEXTIDR_EL1, csselr CSSELR_EL1,
     par PAR_EL1, mdscr MDSCR_EL1, cntkctl CNTKCTL_EL1]
    if changed: tcr TCR_EL1;
    if present:
    pauth [apia_lo APIAKEYLO_EL1, apia_hi APIAKEYHI_EL1, apib_lo APIBKEYLO_EL1, apib_hi APIBKEYHI_EL1,
           apda_lo APDAKEYLO_EL1, apda_hi APDAKEYHI_EL1, apdb_lo APDBKEYLO_EL1, apdb_hi APDBKEYHI_EL1,
           apga_lo APGAKEYLO_EL1, apga_hi APGAKEYHI_EL1]
    scxtnum [scxtnum_el0 SCXTNUM_EL0, scxtnum_el1 SCXTNUM_EL1]
    tcr2 [tcr2 TCR2_EL1]
    sctlr2 [sctlr2 SCTLR2_EL1]
    s1pie [pir PIR_EL1, pire0 PIRE0_EL1]
    s1poe [por_el1 POR_EL1, por_el0 POR_EL0]
    ras [vdisr VDISR_EL2, vsesr VSESR_EL2]
}

impl El1Context {
    /// Returns the state after a reset, with zero for what the architecture leaves UNKNOWN.
    #[must_use]
    pub const fn reset() -> El1Context {
        // SCTLR_EL1 has only its RES1 bits: MMU and caches off, little-endian.
        El1Context { sctlr: 0x30d0_0800, ..El1Context::ZERO }
    }
}

/// Which of the registers that belong to optional features a CPU has.
pub struct Present {
    pauth: bool,
    scxtnum: bool,
    tcr2: bool,
    sctlr2: bool,
    s1pie: bool,
    s1poe: bool,
    ras: bool,
}

impl Present {
    /// Whether the CPU has FEAT_RAS.
    #[must_use]
    pub const fn ras(&self) -> bool {
        self.ras
    }

    /// Reads the ID registers of this CPU.
    #[must_use]
    pub fn here() -> Present {
        let cpu = IdRegs::read();
        let has = |register, lsb| cpu.field(register, lsb) != 0;
        let csv2 = cpu.field(reg::PFR0, 56);
        Present {
            // APA, API, GPA, GPI; GPA3, APA3.
            pauth: [4, 8, 24, 28].iter().any(|&lsb| has(reg::ISAR1, lsb)) || has(reg::ISAR2, 8) || has(reg::ISAR2, 12),
            // FEAT_CSV2_2, or FEAT_CSV2_1p2 by CSV2_frac.
            scxtnum: csv2 >= 2 || (csv2 == 1 && cpu.field(reg::PFR1, 32) >= 2),
            tcr2: has(reg::MMFR3, 0),
            sctlr2: has(reg::MMFR3, 4),
            s1pie: has(reg::MMFR3, 8),
            s1poe: has(reg::MMFR3, 16),
            ras: has(reg::PFR0, 28),
        }
    }
}

/// CNTV_CTL_EL0.ENABLE.
const TIMER_ENABLE: u64 = CNTV_CTL_EL0::ENABLE::SET.value;
/// CNTV_CTL_EL0.IMASK.
const TIMER_MASK: u64 = CNTV_CTL_EL0::IMASK::SET.value;

/// The virtual timer of a vCPU that is not loaded on a CPU. It can expire meanwhile, since the count continues
/// (CNTVOFF_EL2 is always 0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtualTimer {
    /// CNTV_CTL_EL0.
    pub ctl: u64,
    /// CNTV_CVAL_EL0.
    pub cval: u64,
}

impl VirtualTimer {
    /// Returns the count at which it asserts its interrupt; `None` if it is disabled or masked.
    #[must_use]
    pub const fn deadline(&self) -> Option<u64> {
        if self.ctl & (TIMER_ENABLE | TIMER_MASK) == TIMER_ENABLE { Some(self.cval) } else { None }
    }

    /// Returns whether it asserts its interrupt when the count is `now`.
    #[must_use]
    pub const fn level(&self, now: u64) -> bool {
        match self.deadline() {
            Some(at) => now >= at,
            None => false,
        }
    }
}

impl VirtualTimer {
    /// Saves the timer of this CPU and disables it there.
    pub fn unload(&mut self) {
        self.ctl = CNTV_CTL_EL0.get();
        self.cval = CNTV_CVAL_EL0.get();
        CNTV_CTL_EL0.set(0);
        barrier::isb();
    }

    /// Loads the timer of this CPU. CVAL is written first, or the timer could fire at the deadline of the previous
    /// vCPU.
    pub fn load(&self) {
        CNTV_CVAL_EL0.set(self.cval);
        CNTV_CTL_EL0.set(self.ctl);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_reset_the_mmu_is_off_and_the_timer_is_disabled() {
        let reset = El1Context::reset();
        assert_eq!(reset.sctlr & 0x1005, 0, "M, C, I");
        assert_eq!((reset.vbar, reset.apia_lo), (0, 0));
        assert_eq!(VirtualTimer::default().deadline(), None);
    }

    #[test]
    fn an_unloaded_timer_expires_unless_it_is_disabled_or_masked() {
        let timer = |ctl| VirtualTimer { ctl, cval: 100 };
        assert_eq!([0, 1, 2, 3, 5].map(|ctl| timer(ctl).deadline()), [None, Some(100), None, None, Some(100)]);
        assert!(timer(1).level(100) && !timer(1).level(99) && !timer(3).level(100));
    }
}
