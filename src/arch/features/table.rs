//! The table: every architectural feature that a guest could notice, exposed or hidden.
//!
//! An *exposed* feature keeps its ID fields, does not trap, and its state is part of a vCPU's context. A
//! *hidden* one has its ID fields as on a CPU without it, and where the architecture has a trap for it the
//! trap is armed, so that using it anyway is UNDEFINED for the guest. An ID field that no row names is hidden:
//! a CPU newer than this table shows a guest nothing that is not switched.

use super::controls::{CPTR_BASE, CPTR_TTA, Controls, HCR_BASE};
use super::ids::{Field, IdRegs, PA_RANGE_48, Reg, Show, reg};
use crate::arch::sysreg::{CNTHCTL_EL2, CPTR_EL2, HCR_EL2, HCRX_EL2, MDCR_EL2, MPAM2_EL2};

/// Whether guests have a feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exposure {
    /// Guests have it where the CPU has it.
    Exposed,
    /// Guests do not have it.
    Hidden,
}
use Exposure::{Exposed, Hidden};

/// A feature, or a family of features that need the same treatment.
pub struct Row {
    /// The architecture's name for it.
    pub name: &'static str,
    /// Whether guests have it.
    pub exposure: Exposure,
    /// Its ID fields.
    pub fields: &'static [Field],
    /// What it means for the controls, on a CPU that has the feature. Not called on one that has not.
    pub control: fn(&IdRegs, &mut Controls),
    /// Why it is as it is.
    pub why: &'static str,
}

impl Row {
    /// Whether the CPU has it.
    #[must_use]
    pub fn on(&self, host: &IdRegs) -> bool {
        match self.exposure {
            Exposed => self.fields.iter().any(|f| f.visible(host)),
            Hidden => self.fields.iter().any(|f| f.withheld(host)),
        }
    }
}

const fn nothing(_: &IdRegs, _: &mut Controls) {}

const fn same(reg: Reg, lsb: u8) -> Field {
    Field { reg, lsb, show: Show::Same }
}
const fn most(reg: Reg, lsb: u8, limit: u8) -> Field {
    Field { reg, lsb, show: Show::AtMost(limit) }
}
const fn is(reg: Reg, lsb: u8, value: u8) -> Field {
    Field { reg, lsb, show: Show::Is(value) }
}
const fn no(reg: Reg, lsb: u8) -> Field {
    Field { reg, lsb, show: Show::Absent }
}
const fn whole(reg: Reg) -> Field {
    Field { reg, lsb: 0, show: Show::Register }
}

/// The table.
pub static TABLE: &[Row] = &[
    // ---- exposed ----
    Row {
        name: "AArch64",
        exposure: Exposed,
        fields: &[
            most(reg::PFR0, 0, 2),
            is(reg::PFR0, 4, 1),
            same(reg::PFR0, 48),
            same(reg::PFR0, 60),
            same(reg::PFR1, 0),
            same(reg::PFR1, 4),
        ],
        control: nothing,
        why: "64-bit kernels; 32-bit programs where the CPU runs them. DIT, CSV3, BTI and SSBS live in PSTATE",
    },
    Row {
        name: "instructions without state of their own",
        exposure: Exposed,
        fields: &[
            same(reg::ISAR0, 4),
            same(reg::ISAR0, 8),
            same(reg::ISAR0, 12),
            same(reg::ISAR0, 16),
            same(reg::ISAR0, 20),
            same(reg::ISAR0, 28),
            same(reg::ISAR0, 32),
            same(reg::ISAR0, 36),
            same(reg::ISAR0, 40),
            same(reg::ISAR0, 44),
            same(reg::ISAR0, 48),
            same(reg::ISAR0, 52),
            same(reg::ISAR0, 56),
            same(reg::ISAR0, 60),
            same(reg::ISAR1, 0),
            same(reg::ISAR1, 12),
            same(reg::ISAR1, 16),
            same(reg::ISAR1, 20),
            same(reg::ISAR1, 32),
            same(reg::ISAR1, 36),
            same(reg::ISAR1, 40),
            same(reg::ISAR1, 44),
            same(reg::ISAR1, 48),
            same(reg::ISAR1, 52),
            same(reg::ISAR1, 56),
            same(reg::ISAR2, 4),
            same(reg::ISAR2, 20),
            same(reg::ISAR2, 28),
            same(reg::ISAR2, 48),
            same(reg::ISAR2, 52),
        ],
        control: nothing,
        why: "cryptography, atomics (LSE and LSE128), dot products, TLB ranges, RNDR, cache cleaning, barriers, hints",
    },
    Row {
        name: "FP and Advanced SIMD",
        exposure: Exposed,
        fields: &[same(reg::PFR0, 16), same(reg::PFR0, 20)],
        control: nothing,
        why: "V0 to V31, FPCR and FPSR are part of the context; EL2 itself is built without FP",
    },
    Row {
        name: "PAuth",
        exposure: Exposed,
        fields: &[
            same(reg::ISAR1, 4),
            same(reg::ISAR1, 8),
            same(reg::ISAR1, 24),
            same(reg::ISAR1, 28),
            same(reg::ISAR2, 8),
            same(reg::ISAR2, 12),
            same(reg::ISAR2, 24),
        ],
        control: |_, c| c.hcr |= HCR_EL2::APK::SET.value | HCR_EL2::API::SET.value,
        why: "the five keys are part of the context; EL2 does not sign",
    },
    Row {
        name: "MOPS",
        exposure: Exposed,
        fields: &[same(reg::ISAR2, 16)],
        control: |_, c| {
            if let Some(hcrx) = &mut c.hcrx {
                *hcrx |= HCRX_EL2::MSCEn::SET.value;
            }
        },
        why: "copy and set instructions keep their state in general registers; EL1 takes their exceptions",
    },
    Row {
        name: "stage 1 of the guest",
        exposure: Exposed,
        fields: &[
            most(reg::MMFR0, 0, PA_RANGE_48),
            same(reg::MMFR0, 4),
            same(reg::MMFR0, 8),
            same(reg::MMFR0, 12),
            same(reg::MMFR0, 16),
            same(reg::MMFR0, 20),
            same(reg::MMFR0, 24),
            same(reg::MMFR0, 28),
            same(reg::MMFR0, 44),
            most(reg::MMFR1, 0, 2),
            same(reg::MMFR1, 12),
            same(reg::MMFR1, 20),
            same(reg::MMFR1, 36),
            same(reg::MMFR1, 44),
            same(reg::MMFR1, 48),
            same(reg::MMFR1, 52),
            same(reg::MMFR1, 56),
            same(reg::MMFR1, 60),
            same(reg::MMFR2, 0),
            same(reg::MMFR2, 4),
            same(reg::MMFR2, 8),
            same(reg::MMFR2, 16),
            same(reg::MMFR2, 20),
            same(reg::MMFR2, 28),
            same(reg::MMFR2, 32),
            same(reg::MMFR2, 36),
            same(reg::MMFR2, 48),
            same(reg::MMFR2, 52),
            same(reg::MMFR2, 60),
            same(reg::MMFR3, 60),
        ],
        control: nothing,
        why: "no more physical bits than the 48 that stage 2 maps; hardware access and dirty bits, PAN, UAO, E0PD",
    },
    Row {
        name: "counters and timers",
        exposure: Exposed,
        fields: &[most(reg::MMFR0, 60, 1)],
        control: nothing,
        why: "both counters are readable, the virtual timer is the guest's, CNTP_* is emulated; CNTPOFF is EL2's",
    },
    Row {
        name: "GICv3 CPU interface",
        exposure: Exposed,
        fields: &[is(reg::PFR0, 24, 1)],
        control: nothing,
        why: "guests see a GICv3, whatever injects their interrupts",
    },
    Row {
        name: "self-hosted debug",
        exposure: Exposed,
        fields: &[most(reg::DFR0, 0, 9), is(reg::DFR0, 12, 1), is(reg::DFR0, 20, 1), is(reg::DFR0, 36, 0xf)],
        control: |host, c| {
            c.mdcr |= MDCR_EL2::TDA::SET.value | MDCR_EL2::TDOSA::SET.value | MDCR_EL2::TDRA::SET.value;
            if host.field(reg::MMFR0, 56) >= 1 {
                c.mdcr |= MDCR_EL2::TDCC::SET.value;
            }
        },
        why: "BRK and single step work. Of breakpoints and watchpoints the architecture's minimum of two is shown, \
              and read as zero: they are not switched. The registers trap",
    },
    Row {
        name: "AArch32 at EL0",
        exposure: Exposed,
        fields: &[
            same(reg::ID_PFR0, 0),
            same(reg::ID_PFR0, 4),
            same(reg::ID_PFR0, 8),
            same(reg::ID_PFR0, 12),
            most(reg::ID_PFR0, 16, 1),
            same(reg::ID_PFR0, 24),
            same(reg::ID_PFR1, 16),
            same(reg::ID_PFR2, 0),
            same(reg::ID_PFR2, 4),
            most(reg::ID_DFR0, 0, 9),
            whole(reg::ID_ISAR0),
            whole(reg::ID_ISAR1),
            whole(reg::ID_ISAR2),
            whole(reg::ID_ISAR3),
            whole(reg::ID_ISAR4),
            whole(reg::ID_ISAR5),
            whole(reg::ID_ISAR6),
            whole(reg::ID_MMFR0),
            whole(reg::ID_MMFR1),
            whole(reg::ID_MMFR2),
            whole(reg::ID_MMFR3),
            whole(reg::ID_MMFR4),
            whole(reg::ID_MMFR5),
            whole(reg::MVFR0),
            whole(reg::MVFR1),
            whole(reg::MVFR2),
        ],
        control: nothing,
        why: "its instructions and FP; shown as zero where the CPU has no AArch32",
    },
    // ---- hidden ----
    Row {
        name: "SVE",
        exposure: Hidden,
        fields: &[no(reg::PFR0, 32)],
        control: nothing,
        why: "Z, P and FFR (up to 8 KiB per vCPU) are not part of the context yet. CPTR_EL2.TZ is armed",
    },
    Row {
        name: "SME",
        exposure: Hidden,
        fields: &[no(reg::PFR1, 24)],
        control: nothing,
        why: "ZA and streaming mode are not switched. CPTR_EL2.TSM is armed, SMIDR traps by TID1",
    },
    Row {
        name: "MTE",
        exposure: Hidden,
        fields: &[no(reg::PFR1, 8)],
        control: |host, c| {
            if host.field(reg::PFR1, 8) >= 2 {
                c.hcr |= HCR_EL2::TID5::SET.value;
            }
        },
        why: "tags are memory that stage 2 and reuse of frames would have to clear. HCR_EL2.ATA is 0",
    },
    Row {
        name: "PMU",
        exposure: Hidden,
        fields: &[no(reg::DFR0, 8)],
        control: |host, c| {
            c.mdcr |= MDCR_EL2::TPM::SET.value
                | MDCR_EL2::TPMCR::SET.value
                | MDCR_EL2::HPMN.val(host.event_counters.into()).value;
            if host.field(reg::DFR0, 8) >= 4 {
                c.mdcr |= MDCR_EL2::HPMD::SET.value;
            }
        },
        why: "counters are not switched, and its interrupt is not routed",
    },
    Row {
        name: "SPE",
        exposure: Hidden,
        fields: &[no(reg::DFR0, 32)],
        control: |_, c| c.mdcr |= MDCR_EL2::TPMS::SET.value,
        why: "it writes its buffer by virtual address. The buffer stays EL2's (E2PB = 0)",
    },
    Row {
        name: "trace unit registers",
        exposure: Hidden,
        fields: &[no(reg::DFR0, 4)],
        control: |_, c| c.cptr |= CPTR_TTA,
        why: "not switched",
    },
    Row {
        name: "trace filter",
        exposure: Hidden,
        fields: &[no(reg::DFR0, 40)],
        control: |_, c| {
            c.mdcr |= MDCR_EL2::TTRF::SET.value;
            c.trace_filter = true;
        },
        why: "not switched",
    },
    Row {
        name: "TRBE",
        exposure: Hidden,
        fields: &[no(reg::DFR0, 44)],
        control: nothing,
        why: "as SPE: it writes by virtual address. The buffer stays EL2's (E2TB = 0)",
    },
    Row {
        name: "BRBE",
        exposure: Hidden,
        fields: &[no(reg::DFR0, 52)],
        control: nothing,
        why: "a record of branches that is not switched. HDFGRTR_EL2.nBRB* are 0",
    },
    Row {
        name: "AMU",
        exposure: Hidden,
        fields: &[no(reg::PFR0, 44)],
        control: |_, c| c.cptr |= CPTR_EL2::TAM::SET.value,
        why: "its counters tell of other domains",
    },
    Row {
        name: "MPAM",
        exposure: Hidden,
        fields: &[no(reg::PFR0, 40), no(reg::PFR1, 16)],
        control: |_, c| c.mpam2 = Some(MPAM2_EL2::TRAPMPAM0EL1::SET.value | MPAM2_EL2::TRAPMPAM1EL1::SET.value),
        why: "partitions belong to the machine's owner",
    },
    Row {
        name: "RAS",
        exposure: Hidden,
        fields: &[no(reg::PFR0, 28), no(reg::PFR1, 12), no(reg::MMFR2, 12)],
        control: |host, c| {
            if host.field(reg::PFR0, 28) >= 1 {
                c.hcr |= HCR_EL2::TERR::SET.value;
                c.ras = true;
            }
        },
        why: "error records tell of other domains; HCR_EL2.TERR is armed. ESB stays a hint",
    },
    Row {
        name: "NMI",
        exposure: Hidden,
        fields: &[no(reg::PFR1, 36)],
        control: |_, c| {
            if let Some(hcrx) = &mut c.hcrx {
                *hcrx |= HCRX_EL2::TALLINT::SET.value;
            }
        },
        why: "the guest's GIC has no NMI. Reading ALLINT has no trap",
    },
    Row {
        name: "SCXTNUM",
        exposure: Hidden,
        fields: &[most(reg::PFR0, 56, 1), most(reg::PFR1, 32, 1)],
        control: nothing,
        why: "not switched. HCR_EL2.EnSCXT is 0; CSV2 itself stays visible",
    },
    Row {
        name: "virtualisation",
        exposure: Hidden,
        fields: &[
            no(reg::PFR0, 8),
            no(reg::MMFR2, 24),
            no(reg::MMFR1, 4),
            no(reg::MMFR1, 8),
            no(reg::MMFR1, 28),
            no(reg::MMFR1, 32),
            no(reg::MMFR2, 40),
            no(reg::MMFR2, 56),
            no(reg::MMFR0, 32),
            no(reg::MMFR0, 36),
            no(reg::MMFR0, 40),
        ],
        control: nothing,
        why: "no nested guests: EL2, NV, VHE, VMIDs and all of stage 2. Registers of EL2 are UNDEFINED at EL1",
    },
    Row {
        name: "EL3 and realms",
        exposure: Hidden,
        fields: &[no(reg::PFR0, 12), no(reg::PFR0, 36), no(reg::PFR0, 52)],
        control: nothing,
        why: "SMC is trapped and answered by EL2",
    },
    Row {
        name: "fine-grained traps",
        exposure: Hidden,
        fields: &[no(reg::MMFR0, 56)],
        control: |host, c| {
            c.fine_grained = true;
            c.fine_grained2 = host.field(reg::MMFR0, 56) >= 2;
        },
        why: "EL2's own. All zero: the bits of negative sense (nTPIDR2, nGCS, nPIR, nACCDATA, nBRB) then trap what is \
              hidden, those of positive sense trap nothing that is exposed",
    },
    Row {
        name: "HCRX",
        exposure: Hidden,
        fields: &[no(reg::MMFR1, 40)],
        control: nothing,
        why: "EL2's own: its enables are set by the rows they belong to",
    },
    Row {
        name: "LORegions",
        exposure: Hidden,
        fields: &[no(reg::MMFR1, 16)],
        control: |_, c| c.hcr |= HCR_EL2::TLOR::SET.value,
        why: "they order by physical address",
    },
    Row {
        name: "LS64",
        exposure: Hidden,
        fields: &[no(reg::ISAR1, 60)],
        control: nothing,
        why: "its enables are in HCRX_EL2 and its status write needs ACCDATA",
    },
    Row {
        name: "WFxT",
        exposure: Hidden,
        fields: &[no(reg::ISAR2, 0)],
        control: nothing,
        why: "QEMU before 10.1 reports a trapped WFIT as WFI, so its time limit would be lost",
    },
    Row {
        name: "TCR2, SCTLR2, permission indirection and overlay, MAIR2, D128",
        exposure: Hidden,
        fields: &[
            no(reg::MMFR3, 0),
            no(reg::MMFR3, 4),
            no(reg::MMFR3, 8),
            no(reg::MMFR3, 12),
            no(reg::MMFR3, 16),
            no(reg::MMFR3, 20),
            no(reg::MMFR3, 24),
            no(reg::MMFR3, 28),
            no(reg::MMFR3, 32),
            no(reg::ISAR2, 32),
            no(reg::ISAR2, 36),
        ],
        control: nothing,
        why: "registers that are not switched: HCRX_EL2 enables and HFGRTR_EL2 n-bits are 0",
    },
    Row {
        name: "GCS, THE, TME, FPMR",
        exposure: Hidden,
        fields: &[no(reg::PFR1, 44), no(reg::PFR1, 48), no(reg::ISAR0, 24), no(reg::PFR2, 32)],
        control: nothing,
        why: "registers and state that are not switched",
    },
];

/// What holds on every CPU, whatever it has.
pub(super) fn base(host: &IdRegs) -> Controls {
    Controls {
        hcr: HCR_BASE,
        hcrx: (host.field(reg::MMFR1, 40) != 0).then_some(0),
        cptr: CPTR_BASE,
        mdcr: 0,
        hstr: 0,
        cnthctl: CNTHCTL_EL2::EL1PCTEN::SET.value,
        vpidr: host.midr,
        fine_grained: false,
        fine_grained2: false,
        mpam2: None,
        ras: false,
        trace_filter: false,
        counter_offset: host.field(reg::MMFR0, 60) >= 2,
    }
}
