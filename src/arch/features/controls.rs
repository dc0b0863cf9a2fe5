//! The registers of EL2 that determine what a guest may do, and how they are written.

use super::ids::{IdRegs, reg};
use crate::arch::asm::asm;
use crate::arch::barrier;
use crate::arch::sysreg::*;

/// HCR_EL2 of every guest: stage 2 on, interrupts and SErrors routed to EL2, barriers and TLB maintenance extended to
/// the inner shareable domain, and the traps that depend on no feature.
///
/// The register is written for each vCPU. Its value is [`Controls::hcr`], plus TWI and TWE if the scheduler wants WFI
/// and WFE to trap, plus VSE while a virtual SError is pending for the vCPU.
pub const HCR_BASE: u64 = HCR_EL2::VM::Enable.value
    | HCR_EL2::SWIO::SET.value
    | HCR_EL2::PTW::SET.value
    | HCR_EL2::FMO::SET.value
    | HCR_EL2::IMO::SET.value
    | HCR_EL2::AMO::SET.value
    | HCR_EL2::FB::SET.value
    | HCR_EL2::BSU::InnerShareable.value
    | HCR_EL2::TID1::SET.value
    | HCR_EL2::TID3::SET.value
    | HCR_EL2::TSC::SET.value
    | HCR_EL2::TIDCP::SET.value
    | HCR_EL2::TACR::SET.value
    | HCR_EL2::TSW::SET.value
    | HCR_EL2::RW::EL1IsAarch64.value;

const _: () = assert!(HCR_BASE == 0x807d_063f);

/// The bits of HCR_EL2 that enable a feature. The others are traps, or the same on every CPU.
pub const HCR_ENABLES: u64 = HCR_EL2::APK::SET.value | HCR_EL2::API::SET.value | HCR_EL2::FWB::SET.value;

/// The bits of HCRX_EL2 that enable a feature. The others are traps.
pub const HCRX_ENABLES: u64 = HCRX_EL2::MSCEn::SET.value;

/// CPTR_EL2 of every guest: the RES1 bits, and TZ (8) and TSM (12), which are RES1 on a CPU without SVE or SME. TFP is
/// 0.
pub const CPTR_BASE: u64 = 0x33ff;

/// CPTR_EL2.TTA: accesses to trace registers trap. The crate does not define it.
pub const CPTR_TTA: u64 = 1 << 20;

/// The controls of EL2 that restrict guests to the features that the table exposes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Controls {
    /// HCR_EL2, without what is the vCPU's own; see [`HCR_BASE`].
    pub hcr: u64,
    /// HCRX_EL2, if it exists.
    pub hcrx: Option<u64>,
    /// CPTR_EL2.
    pub cptr: u64,
    /// MDCR_EL2. E2PB and E2TB stay 0: the profiling and trace buffers belong to EL2 and their registers trap.
    pub mdcr: u64,
    /// HSTR_EL2.
    pub hstr: u64,
    /// CNTHCTL_EL2. EL1PCEN stays 0: CNTP_* traps.
    pub cnthctl: u64,
    /// VPIDR_EL2: a guest reads the CPU's own MIDR_EL1.
    pub vpidr: u64,
    /// HFGRTR_EL2, HFGWTR_EL2, HFGITR_EL2, HDFGRTR_EL2 and HDFGWTR_EL2 exist. All are written 0.
    pub fine_grained: bool,
    /// HFGRTR2_EL2, HFGWTR2_EL2, HFGITR2_EL2, HDFGRTR2_EL2 and HDFGWTR2_EL2 exist. All are written 0.
    pub fine_grained2: bool,
    /// MPAM2_EL2, if it exists.
    pub mpam2: Option<u64>,
    /// VSESR_EL2 and VDISR_EL2 exist. Both are written 0.
    pub ras: bool,
    /// TRFCR_EL2 exists. It is written 0.
    pub trace_filter: bool,
    /// CNTPOFF_EL2 exists. It is written 0.
    pub counter_offset: bool,
}

impl Controls {
    /// Writes the controls on this CPU, whose ID registers are `cpu`, and sets CNTVOFF_EL2 to 0. HCR_EL2 is not written
    /// here: it is written for each vCPU, as are VMPIDR_EL2, VTTBR_EL2 and VTCR_EL2.
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
            if MPAMIDR_EL1.is_set(MPAMIDR_EL1::HAS_HCR) {
                MPAMHCR_EL2.write(MPAMHCR_EL2::TRAP_MPAMIDR_EL1::SET);
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
        disable_debug(cpu);
        barrier::isb();
    }
}

/// Unlocks the OS lock, without which single step in a guest would not work, and disables all breakpoints and
/// watchpoints: guests cannot access them, and their state after a reset or after firmware is UNKNOWN.
fn disable_debug(cpu: &IdRegs) {
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
    // The lock has to be released before the registers that it protects are written.
    barrier::isb();
    let breakpoints = cpu.field(reg::DFR0, 12);
    let watchpoints = cpu.field(reg::DFR0, 20);
    zero!("s2_0_c0_c0_5");
    off!(breakpoints, 5: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    zero!("s2_0_c0_c0_7");
    off!(watchpoints, 7: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}
