//! The system registers of EL1 and EL0 that make up a vCPU, beyond what each exit saves.
//!
//! With one vCPU to a pCPU they stay in the hardware, and are written when a vCPU is switched on. Where vCPUs share
//! a CPU they are moved when another takes it. Not here: the virtual timer ([`VirtualTimer`]), which goes by rules of
//! its own; FP ([`super::fp`]); the GIC's (`arch::ich`, `vgic`); stage 2's. What no guest sees (SVE, SME, the PMU, break-
//! and watchpoints) is not switched.

use super::barrier;
use super::features::ids::{IdRegs, reg};
use super::sysreg::*;

macro_rules! context {
    (always: $([$($field:ident $register:ident),+])+
     if it differs: $($calm:ident $calm_register:ident),+;
     where there is: $($present:ident [$($opt:ident $opt_register:ident),+])+) => {
        /// EL1's and EL0's registers.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[repr(C)]
        pub struct El1Context {
            $($(#[doc = concat!(stringify!($register), ".")] pub $field: u64,)+)+
            $(#[doc = concat!(stringify!($calm_register), ".")] pub $calm: u64,)+
            $($(#[doc = concat!(stringify!($opt_register), ", where the CPU has it.")] pub $opt: u64,)+)+
        }

        impl El1Context {
            const ZERO: El1Context = El1Context { $($($field: 0,)+)+ $($calm: 0,)+ $($($opt: 0,)+)+ };
        }

        impl El1Context {
            /// Reads what this CPU holds.
            pub fn save(&mut self, present: &Present) {
                $(context!(@save self $($field $register),+);)+
                $(self.$calm = $calm_register.get();)+
                $(if present.$present { context!(@save self $($opt $opt_register),+); })+
            }

            /// Makes this CPU hold it. Registers that hardly ever differ are written if they do: an emulator forgets all of
            /// its translations at a write of TCR_EL1, which costs the guest its TLB and hides where we forget too little.
            /// An ISB is to follow.
            pub fn restore(&self, present: &Present) {
                $(context!(@restore self $($field $register),+);)+
                $(if $calm_register.get() != self.$calm { $calm_register.set(self.$calm); })+
                $(if present.$present { context!(@restore self $($opt $opt_register),+); })+
            }
        }
    };
    // By groups: what is next to each other in memory goes there, and comes from there, two at a time.
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
    [sctlr SCTLR_EL1, actlr ACTLR_EL1, cpacr CPACR_EL1, ttbr0 TTBR0_EL1, ttbr1 TTBR1_EL1, mair MAIR_EL1, amair AMAIR_EL1,
     vbar VBAR_EL1]
    [esr ESR_EL1, far FAR_EL1, afsr0 AFSR0_EL1, afsr1 AFSR1_EL1, elr ELR_EL1, spsr SPSR_EL1, sp_el0 SP_EL0, sp_el1 SP_EL1]
    [tpidr_el0 TPIDR_EL0, tpidrro_el0 TPIDRRO_EL0, tpidr_el1 TPIDR_EL1, contextidr CONTEXTIDR_EL1, csselr CSSELR_EL1,
     par PAR_EL1, mdscr MDSCR_EL1, cntkctl CNTKCTL_EL1]
    if it differs: tcr TCR_EL1;
    where there is:
    pauth [apia_lo APIAKEYLO_EL1, apia_hi APIAKEYHI_EL1, apib_lo APIBKEYLO_EL1, apib_hi APIBKEYHI_EL1,
           apda_lo APDAKEYLO_EL1, apda_hi APDAKEYHI_EL1, apdb_lo APDBKEYLO_EL1, apdb_hi APDBKEYHI_EL1,
           apga_lo APGAKEYLO_EL1, apga_hi APGAKEYHI_EL1]
    scxtnum [scxtnum_el0 SCXTNUM_EL0, scxtnum_el1 SCXTNUM_EL1]
    tcr2 [tcr2 TCR2_EL1]
    sctlr2 [sctlr2 SCTLR2_EL1]
    s1pie [pir PIR_EL1, pire0 PIRE0_EL1]
    s1poe [por_el1 POR_EL1, por_el0 POR_EL0]
    ras [disr DISR_EL1, vdisr VDISR_EL2, vsesr VSESR_EL2]
}

impl El1Context {
    /// As architected after a reset, with zero for what is then unknown.
    #[must_use]
    pub const fn reset() -> El1Context {
        // The RES1 bits; MMU and caches off, little-endian.
        El1Context { sctlr: 0x30d0_0800, ..El1Context::ZERO }
    }
}

/// Which of the registers that come with a feature a CPU has.
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
    /// This CPU.
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

/// The virtual timer of a vCPU that is not in a CPU. The count goes on (CNTVOFF_EL2 is 0), so it can expire there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtualTimer {
    /// CNTV_CTL_EL0.
    pub ctl: u64,
    /// CNTV_CVAL_EL0.
    pub cval: u64,
}

impl VirtualTimer {
    /// When it asserts its interrupt; `None` if it is off or masked.
    #[must_use]
    pub const fn deadline(&self) -> Option<u64> {
        if self.ctl & (TIMER_ENABLE | TIMER_MASK) == TIMER_ENABLE { Some(self.cval) } else { None }
    }

    /// Whether it asserts its interrupt at `now`.
    #[must_use]
    pub const fn level(&self, now: u64) -> bool {
        match self.deadline() {
            Some(at) => now >= at,
            None => false,
        }
    }
}

impl VirtualTimer {
    /// Takes it out of this CPU, where it is then off.
    pub fn take(&mut self) {
        self.ctl = CNTV_CTL_EL0.get();
        self.cval = CNTV_CVAL_EL0.get();
        CNTV_CTL_EL0.set(0);
        barrier::isb();
    }

    /// Puts it into this CPU. The time comes first, or the timer would fire at the last one's.
    pub fn put(&self) {
        CNTV_CVAL_EL0.set(self.cval);
        CNTV_CTL_EL0.set(self.ctl);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_starts_with_its_mmu_off_and_its_timer_silent() {
        let reset = El1Context::reset();
        assert_eq!(reset.sctlr & 0x1005, 0, "M, C, I");
        assert_eq!((reset.vbar, reset.apia_lo), (0, 0));
        assert_eq!(VirtualTimer::default().deadline(), None);
    }

    #[test]
    fn a_timer_out_of_its_cpu_expires_unless_off_or_masked() {
        let timer = |ctl| VirtualTimer { ctl, cval: 100 };
        assert_eq!([0, 1, 2, 3, 5].map(|ctl| timer(ctl).deadline()), [None, Some(100), None, None, Some(100)]);
        assert!(timer(1).level(100) && !timer(1).level(99) && !timer(3).level(100));
    }
}
