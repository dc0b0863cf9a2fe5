//! The controls of EL2: what a guest may do, by register and bit, and how a CPU is programmed with them.

use super::ids::{IdRegs, reg};
use crate::arch::asm::asm;
use crate::arch::barrier;
use crate::arch::sysreg::{
    CNTHCTL_EL2, CNTPOFF_EL2, CNTVOFF_EL2, CPTR_EL2, HCRX_EL2, HDFGRTR_EL2, HDFGRTR2_EL2, HDFGWTR_EL2, HDFGWTR2_EL2,
    HFGITR_EL2, HFGITR2_EL2, HFGRTR_EL2, HFGRTR2_EL2, HFGWTR_EL2, HFGWTR2_EL2, HSTR_EL2, MDCR_EL2, MDSCR_EL1,
    MPAM2_EL2, MPAMHCR_EL2, MPAMIDR_EL1, OSLAR_EL1, TRFCR_EL2, VDISR_EL2, VPIDR_EL2, VSESR_EL2,
};

/// Bits of HCR_EL2.
///
/// The register is the vCPU's: its value is [`Controls::hcr`], plus [`TWI`](hcr::TWI) and [`TWE`](hcr::TWE) as
/// the scheduler wants them, plus [`VSE`](hcr::VSE) while an SError waits for the guest.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod hcr {
    pub const VM: u64 = 1 << 0;
    pub const SWIO: u64 = 1 << 1;
    pub const PTW: u64 = 1 << 2;
    pub const FMO: u64 = 1 << 3;
    pub const IMO: u64 = 1 << 4;
    pub const AMO: u64 = 1 << 5;
    pub const VF: u64 = 1 << 6;
    pub const VI: u64 = 1 << 7;
    pub const VSE: u64 = 1 << 8;
    pub const FB: u64 = 1 << 9;
    pub const BSU_IS: u64 = 1 << 10;
    pub const TWI: u64 = 1 << 13;
    pub const TWE: u64 = 1 << 14;
    pub const TID1: u64 = 1 << 16;
    pub const TID3: u64 = 1 << 18;
    pub const TSC: u64 = 1 << 19;
    pub const TIDCP: u64 = 1 << 20;
    pub const TACR: u64 = 1 << 21;
    pub const TSW: u64 = 1 << 22;
    pub const RW: u64 = 1 << 31;
    pub const TLOR: u64 = 1 << 35;
    pub const TERR: u64 = 1 << 36;
    pub const APK: u64 = 1 << 40;
    pub const API: u64 = 1 << 41;
    pub const FWB: u64 = 1 << 46;
    pub const TID5: u64 = 1 << 58;

    /// What is switched on for guests; all else is a trap, or the same on every CPU.
    pub(crate) const ENABLES: u64 = APK | API | FWB;

    /// What every guest runs under: stage 2, interrupts and SErrors to EL2, barriers and TLB maintenance
    /// widened to the inner shareable domain, and the traps that need no feature.
    pub const BASE: u64 = VM | SWIO | PTW | FMO | IMO | AMO | FB | BSU_IS | TID1 | TID3 | TSC | TIDCP | TACR | TSW | RW;
}

/// Bits of HCRX_EL2.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod hcrx {
    pub const TALLINT: u64 = 1 << 6;
    pub const MSCEN: u64 = 1 << 11;

    /// What is switched on for guests; all else is a trap.
    pub(crate) const ENABLES: u64 = MSCEN;
}

/// Bits of CPTR_EL2.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod cptr {
    pub const TTA: u64 = 1 << 20;
    pub const TAM: u64 = 1 << 30;
    /// The bits that are RES1, with TZ (8) and TSM (12), which are RES1 on a CPU without SVE or SME. TFP is 0.
    pub const BASE: u64 = 0x33ff;
}

/// Bits of MDCR_EL2. E2PB and E2TB stay 0: the profiling and trace buffers are EL2's and their registers trap.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod mdcr {
    pub const TPMCR: u64 = 1 << 5;
    pub const TPM: u64 = 1 << 6;
    pub const TDA: u64 = 1 << 9;
    pub const TDOSA: u64 = 1 << 10;
    pub const TDRA: u64 = 1 << 11;
    pub const TPMS: u64 = 1 << 14;
    pub const HPMD: u64 = 1 << 17;
    pub const TTRF: u64 = 1 << 19;
    pub const TDCC: u64 = 1 << 27;
}

/// Bits of CNTHCTL_EL2. EL1PCEN stays 0: CNTP_* traps.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod cnthctl {
    pub const EL1PCTEN: u64 = 1 << 0;
}

/// Bits of MPAM2_EL2.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod mpam2 {
    pub const TRAP_EL1: u64 = 1 << 48;
    pub const TRAP_EL0: u64 = 1 << 49;
}

/// The controls of EL2 that keep a guest to what the table says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Controls {
    /// HCR_EL2, without what is the vCPU's own; see [`hcr`].
    pub hcr: u64,
    /// HCRX_EL2, where there is one.
    pub hcrx: Option<u64>,
    /// CPTR_EL2.
    pub cptr: u64,
    /// MDCR_EL2.
    pub mdcr: u64,
    /// HSTR_EL2.
    pub hstr: u64,
    /// CNTHCTL_EL2.
    pub cnthctl: u64,
    /// VPIDR_EL2: a guest sees the CPU's own MIDR.
    pub vpidr: u64,
    /// HFGRTR_EL2 and its kin exist; all are written 0.
    pub fine_grained: bool,
    /// HFGRTR2_EL2 and its kin exist; all are written 0.
    pub fine_grained2: bool,
    /// MPAM2_EL2, where there is one.
    pub mpam2: Option<u64>,
    /// VSESR_EL2 and VDISR_EL2 exist; both are written 0.
    pub ras: bool,
    /// TRFCR_EL2 exists; it is written 0.
    pub trace_filter: bool,
    /// CNTPOFF_EL2 exists; it is written 0.
    pub counter_offset: bool,
}

impl Controls {
    /// Writes the controls on the CPU that calls and whose ID registers are `cpu`: all but HCR_EL2, which is written for
    /// each vCPU, as are VMPIDR_EL2, VTTBR_EL2 and VTCR_EL2. CNTVOFF_EL2 becomes 0.
    pub(super) fn write(&self, cpu: &IdRegs) {
        CPTR_EL2.set(self.cptr);
        MDCR_EL2.set(self.mdcr);
        HSTR_EL2.set(self.hstr);
        CNTHCTL_EL2.set(self.cnthctl);
        CNTVOFF_EL2.set(0);
        VPIDR_EL2.set(self.vpidr);
        if let Some(hcrx) = self.hcrx {
            HCRX_EL2.set(hcrx);
        }
        if self.fine_grained {
            HFGRTR_EL2.set(0);
            HFGWTR_EL2.set(0);
            HFGITR_EL2.set(0);
            HDFGRTR_EL2.set(0);
            HDFGWTR_EL2.set(0);
        }
        if self.fine_grained2 {
            HDFGRTR2_EL2.set(0);
            HDFGWTR2_EL2.set(0);
            HFGRTR2_EL2.set(0);
            HFGWTR2_EL2.set(0);
            HFGITR2_EL2.set(0);
        }
        if let Some(mpam2) = self.mpam2 {
            MPAM2_EL2.set(mpam2);
            const HAS_HCR: u64 = 1 << 17;
            const TRAP_MPAMIDR: u64 = 1 << 31;
            if MPAMIDR_EL1.get() & HAS_HCR != 0 {
                MPAMHCR_EL2.set(TRAP_MPAMIDR);
            }
        }
        if self.ras {
            VSESR_EL2.set(0);
            VDISR_EL2.set(0);
        }
        if self.trace_filter {
            TRFCR_EL2.set(0);
        }
        if self.counter_offset {
            CNTPOFF_EL2.set(0);
        }
        quiet_debug(cpu);
        barrier::isb();
    }
}

/// Opens the OS lock, without which a guest's single step would not step, and switches off every breakpoint and
/// watchpoint: guests cannot reach them, and what a reset or firmware left in them is unknown.
fn quiet_debug(cpu: &IdRegs) {
    macro_rules! zero {
        ($name:expr) => {
            // SAFETY: a breakpoint or watchpoint that this CPU has; EL2 uses none.
            unsafe { asm!(concat!("msr ", $name, ", xzr"), options(nostack, preserves_flags)) }
        };
    }
    macro_rules! off {
        ($count:expr, $op2:literal: $($n:literal)*) => {
            $(if $n <= $count {
                zero!(concat!("s2_0_c0_c", $n, "_", $op2));
            })*
        };
    }
    MDSCR_EL1.set(0);
    OSLAR_EL1.set(0);
    // The lock has to be open before the registers behind it are written.
    barrier::isb();
    let breakpoints = cpu.field(reg::DFR0, 12);
    let watchpoints = cpu.field(reg::DFR0, 20);
    zero!("s2_0_c0_c0_5");
    off!(breakpoints, 5: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    zero!("s2_0_c0_c0_7");
    off!(watchpoints, 7: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}
