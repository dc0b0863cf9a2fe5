//! Reading the ID registers and writing the controls.
#![allow(unsafe_code, reason = "system registers")]

use super::Features;
use super::ids::{COUNT, IdRegs, reg};
use crate::arch::asm::asm;

macro_rules! read {
    ($name:expr) => {{
        let value: u64;
        // SAFETY: an MRS of a register that exists on every CPU, or that the caller has checked for; it has no
        // side effect.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

macro_rules! write {
    ($name:expr, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the register says what a guest may do and has no effect on EL2 itself. It exists: either on
        // every CPU with EL2, or the ID registers of this CPU were asked.
        unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
    }};
}

impl IdRegs {
    /// Of the CPU that calls.
    #[must_use]
    pub fn read() -> IdRegs {
        let mut host = IdRegs::zero();
        host.midr = read!("midr_el1");
        host.revidr = read!("revidr_el1");
        host.aidr = read!("aidr_el1");
        let mut space = [0u64; COUNT];
        macro_rules! row {
            ($crm:literal) => {
                row!(@ $crm "0" "1" "2" "3" "4" "5" "6" "7")
            };
            (@ $crm:literal $($op2:literal)*) => {
                [$(read!(concat!("s3_0_c0_c", $crm, "_", $op2))),*]
            };
        }
        // The whole space may be read: what is not allocated reads as zero.
        let rows = [row!("1"), row!("2"), row!("3"), row!("4"), row!("5"), row!("6"), row!("7")];
        for (to, from) in space.iter_mut().zip(rows.iter().flatten()) {
            *to = *from;
        }
        host.space = space;
        // 0xf is a PMU of another kind, without PMCR_EL0.
        if !matches!(host.field(reg::DFR0, 8), 0 | 0xf) {
            host.event_counters = (read!("pmcr_el0") >> 11 & 0x1f) as u8;
        }
        host
    }
}

/// Writes the controls on the CPU that calls, before its first guest: all of [`Controls`](super::Controls) but HCR_EL2, which
/// goes with each vCPU and is handed back, as do VMPIDR_EL2, VTTBR_EL2 and VTCR_EL2. CNTVOFF_EL2 becomes 0.
pub fn program(features: &Features) -> u64 {
    let host = IdRegs::read();
    let c = features.controls_on(&host);
    write!("cptr_el2", c.cptr);
    write!("mdcr_el2", c.mdcr);
    write!("hstr_el2", c.hstr);
    write!("cnthctl_el2", c.cnthctl);
    write!("cntvoff_el2", 0);
    write!("vpidr_el2", c.vpidr);
    if let Some(hcrx) = c.hcrx {
        write!("s3_4_c1_c2_2", hcrx);
    }
    if c.fine_grained {
        write!("s3_4_c1_c1_4", 0); // HFGRTR_EL2
        write!("s3_4_c1_c1_5", 0); // HFGWTR_EL2
        write!("s3_4_c1_c1_6", 0); // HFGITR_EL2
        write!("s3_4_c3_c1_4", 0); // HDFGRTR_EL2
        write!("s3_4_c3_c1_5", 0); // HDFGWTR_EL2
    }
    if c.fine_grained2 {
        write!("s3_4_c3_c1_0", 0); // HDFGRTR2_EL2
        write!("s3_4_c3_c1_1", 0); // HDFGWTR2_EL2
        write!("s3_4_c3_c1_2", 0); // HFGRTR2_EL2
        write!("s3_4_c3_c1_3", 0); // HFGWTR2_EL2
        write!("s3_4_c3_c1_7", 0); // HFGITR2_EL2
    }
    if let Some(mpam2) = c.mpam2 {
        write!("s3_4_c10_c5_0", mpam2); // MPAM2_EL2
        const HAS_HCR: u64 = 1 << 17;
        const TRAP_MPAMIDR: u64 = 1 << 31;
        // MPAMIDR_EL1 says whether MPAMHCR_EL2 exists.
        if read!("s3_0_c10_c4_4") & HAS_HCR != 0 {
            write!("s3_4_c10_c4_0", TRAP_MPAMIDR);
        }
    }
    if c.ras {
        write!("s3_4_c5_c2_3", 0); // VSESR_EL2
        write!("s3_4_c12_c1_1", 0); // VDISR_EL2
    }
    if c.trace_filter {
        write!("s3_4_c1_c2_1", 0); // TRFCR_EL2
    }
    if c.counter_offset {
        write!("s3_4_c14_c0_6", 0); // CNTPOFF_EL2
    }
    quiet_debug(&host);
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
    c.hcr
}

/// Opens the OS lock, without which a guest's single step would not step, and switches off every breakpoint and
/// watchpoint: guests cannot reach them, and what a reset or firmware left in them is unknown.
fn quiet_debug(host: &IdRegs) {
    macro_rules! off {
        ($count:expr, $op2:literal: $($n:literal)*) => {
            $(if $n <= $count {
                write!(concat!("s2_0_c0_c", $n, "_", $op2), 0);
            })*
        };
    }
    write!("mdscr_el1", 0);
    write!("oslar_el1", 0);
    // SAFETY: a barrier, so that the lock is open before the registers behind it are written.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
    let breakpoints = host.field(reg::DFR0, 12);
    let watchpoints = host.field(reg::DFR0, 20);
    write!("s2_0_c0_c0_5", 0);
    off!(breakpoints, 5: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    write!("s2_0_c0_c0_7", 0);
    off!(watchpoints, 7: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}
