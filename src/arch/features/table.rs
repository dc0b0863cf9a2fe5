//! The table of all architectural features that a guest could use, each exposed or hidden.
//!
//! An *exposed* feature keeps its ID fields and does not trap, and its state is part of the vCPU's context. A *hidden*
//! feature has the ID fields of a CPU without it. Where the architecture has a trap for it, the trap is enabled, so
//! that using the feature anyway is UNDEFINED for the guest. An ID field that no row names is hidden: on a CPU that is
//! newer than this table, a guest sees no feature whose state is not switched.

use super::controls::{CPTR_BASE, CPTR_TTA, Controls, HCR_BASE};
use super::ids::{Field, IdRegs, PA_RANGE_48, Reg, Show, reg};
use crate::arch::sysreg::{CNTHCTL_EL2, CPTR_EL2, HCR_EL2, HCRX_EL2, MDCR_EL2, MPAM2_EL2};

/// Whether guests have a feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exposure {
    /// Guests have it if the CPU has it.
    Exposed,
    /// Guests do not have it.
    Hidden,
}
use Exposure::{Exposed, Hidden};

/// A feature, or a group of features that are treated alike.
pub struct Row {
    /// Its name in the architecture.
    pub name: &'static str,
    /// Whether guests have it.
    pub exposure: Exposure,
    /// Its ID fields.
    pub fields: &'static [Field],
    /// Sets the controls that the feature needs. Called only if the CPU has the feature.
    pub control: fn(&IdRegs, &mut Controls),
    /// Why it is exposed or hidden.
    pub why: &'static str,
}

impl Row {
    /// Returns whether the CPU has the feature.
    #[must_use]
    pub fn is_present(&self, host: &IdRegs) -> bool {
        match self.exposure {
            Exposed => self.fields.iter().any(|f| f.visible(host)),
            Hidden => self.fields.iter().any(|f| f.withheld(host)),
        }
    }
}

const fn no_control(_: &IdRegs, _: &mut Controls) {}

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
        control: no_control,
        why: "64-bit kernels; 32-bit programs if the CPU has AArch32 at EL0. DIT, BTI and SSBS are state of PSTATE",
    },
    Row {
        name: "instructions without state",
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
        control: no_control,
        why: "cryptography, atomics (LSE, LSE128), dot products, TLB ranges, RNDR, cache maintenance, barriers, hints",
    },
    Row {
        name: "FP and Advanced SIMD",
        exposure: Exposed,
        fields: &[same(reg::PFR0, 16), same(reg::PFR0, 20)],
        control: no_control,
        why: "V0 to V31, FPCR and FPSR are part of the context; EL2 is built without FP",
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
        control: |_, c| c.hcr |= (HCR_EL2::APK::SET + HCR_EL2::API::SET).value,
        why: "the five keys are part of the context; EL2 does not use pointer authentication",
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
        why: "copy and set instructions keep their state in general-purpose registers; exceptions are taken to EL1",
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
        control: no_control,
        why: "at most the 48 physical address bits that stage 2 maps; hardware access and dirty flags, PAN, UAO, E0PD",
    },
    Row {
        name: "counters and timers",
        exposure: Exposed,
        fields: &[most(reg::MMFR0, 60, 1)],
        control: no_control,
        why: "guests read both counters and use the virtual timer directly; CNTP_* is emulated; CNTPOFF_EL2 is EL2's",
    },
    Row {
        name: "GICv3 CPU interface",
        exposure: Exposed,
        fields: &[is(reg::PFR0, 24, 1)],
        control: no_control,
        why: "guests have a GICv3, whether interrupts are injected by hardware or by software",
    },
    Row {
        name: "self-hosted debug",
        exposure: Exposed,
        fields: &[most(reg::DFR0, 0, 9), is(reg::DFR0, 12, 1), is(reg::DFR0, 20, 1), is(reg::DFR0, 36, 0xf)],
        control: |host, c| {
            c.mdcr |= (MDCR_EL2::TDA::SET + MDCR_EL2::TDOSA::SET + MDCR_EL2::TDRA::SET).value;
            if host.field(reg::MMFR0, 56) >= 1 {
                c.mdcr |= MDCR_EL2::TDCC::SET.value;
            }
        },
        why: "BRK and single step work. The minimum of two breakpoints and two watchpoints is shown; their registers \
              trap and read as zero, because they are not switched",
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
        control: no_control,
        why: "instructions and FP of AArch32; zero on a CPU without AArch32",
    },
    // ---- hidden ----
    Row {
        name: "SVE",
        exposure: Hidden,
        fields: &[no(reg::PFR0, 32)],
        control: no_control,
        why: "Z, P and FFR (up to 8 KiB per vCPU) are not part of the context yet. CPTR_EL2.TZ traps",
    },
    Row {
        name: "SME",
        exposure: Hidden,
        fields: &[no(reg::PFR1, 24)],
        control: no_control,
        why: "ZA and streaming mode are not switched. CPTR_EL2.TSM traps, and HCR_EL2.TID1 traps SMIDR_EL1",
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
        why: "allocation tags would have to be cleared when memory is given to another domain. HCR_EL2.ATA is 0",
    },
    Row {
        name: "PMU",
        exposure: Hidden,
        fields: &[no(reg::DFR0, 8)],
        control: |host, c| {
            c.mdcr |= (MDCR_EL2::TPM::SET + MDCR_EL2::TPMCR::SET).value
                | MDCR_EL2::HPMN.val(host.event_counters.into()).value;
            if host.field(reg::DFR0, 8) >= 4 {
                c.mdcr |= MDCR_EL2::HPMD::SET.value;
            }
        },
        why: "the counters are not switched, and the interrupt of the PMU is not injected",
    },
    Row {
        name: "SPE",
        exposure: Hidden,
        fields: &[no(reg::DFR0, 32)],
        control: |_, c| c.mdcr |= MDCR_EL2::TPMS::SET.value,
        why: "it writes its buffer by virtual address. The buffer belongs to EL2 (MDCR_EL2.E2PB = 0)",
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
        control: no_control,
        why: "it writes its buffer by virtual address. The buffer belongs to EL2 (MDCR_EL2.E2TB = 0)",
    },
    Row {
        name: "BRBE",
        exposure: Hidden,
        fields: &[no(reg::DFR0, 52)],
        control: no_control,
        why: "the branch records are not switched. HDFGRTR_EL2.nBRB* are 0",
    },
    Row {
        name: "AMU",
        exposure: Hidden,
        fields: &[no(reg::PFR0, 44)],
        control: |_, c| c.cptr |= CPTR_EL2::TAM::SET.value,
        why: "its counters disclose the activity of other domains",
    },
    Row {
        name: "MPAM",
        exposure: Hidden,
        fields: &[no(reg::PFR0, 40), no(reg::PFR1, 16)],
        control: |_, c| c.mpam2 = Some((MPAM2_EL2::TRAPMPAM0EL1::SET + MPAM2_EL2::TRAPMPAM1EL1::SET).value),
        why: "partitioning of caches and bandwidth is not left to guests",
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
        why: "error records disclose errors of other domains; HCR_EL2.TERR traps. ESB remains a hint",
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
        why: "the virtual GIC has no NMIs. Writes of ALLINT trap; there is no trap for reads",
    },
    Row {
        name: "SCXTNUM",
        exposure: Hidden,
        fields: &[most(reg::PFR0, 56, 1), most(reg::PFR1, 32, 1)],
        control: no_control,
        why: "not switched. HCR_EL2.EnSCXT is 0; CSV2 itself remains visible",
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
        control: no_control,
        why: "no nested virtualisation: EL2, NV, VHE, VMIDs, stage 2 are hidden. EL2 registers are UNDEFINED at EL1",
    },
    Row {
        name: "EL3 and realms",
        exposure: Hidden,
        fields: &[no(reg::PFR0, 12), no(reg::PFR0, 36), no(reg::PFR0, 52)],
        control: no_control,
        why: "SMC traps and is answered by EL2",
    },
    Row {
        name: "fine-grained traps",
        exposure: Hidden,
        fields: &[no(reg::MMFR0, 56)],
        control: |host, c| {
            c.fine_grained = true;
            c.fine_grained2 = host.field(reg::MMFR0, 56) >= 2;
        },
        why: "used by EL2. All are zero: bits of negative polarity (nTPIDR2, nGCS, nPIR, nACCDATA, nBRB) then trap \
              features that are hidden, and bits of positive polarity trap nothing that is exposed",
    },
    Row {
        name: "HCRX",
        exposure: Hidden,
        fields: &[no(reg::MMFR1, 40)],
        control: no_control,
        why: "used by EL2; its enable bits are set by the rows of the features they belong to",
    },
    Row {
        name: "LORegions",
        exposure: Hidden,
        fields: &[no(reg::MMFR1, 16)],
        control: |_, c| c.hcr |= HCR_EL2::TLOR::SET.value,
        why: "they are defined by physical address",
    },
    Row {
        name: "LS64",
        exposure: Hidden,
        fields: &[no(reg::ISAR1, 60)],
        control: no_control,
        why: "its enable bits in HCRX_EL2 are 0, and ACCDATA_EL1 is not switched",
    },
    Row {
        name: "WFxT",
        exposure: Hidden,
        fields: &[no(reg::ISAR2, 0)],
        control: no_control,
        why: "QEMU before 10.1 reports a trapped WFIT as WFI, which would lose its timeout",
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
        control: no_control,
        why: "the registers are not switched. Their enable bits in HCRX_EL2 and their n-bits in HFGRTR_EL2 are 0",
    },
    Row {
        name: "GCS, THE, TME, FPMR",
        exposure: Hidden,
        fields: &[no(reg::PFR1, 44), no(reg::PFR1, 48), no(reg::ISAR0, 24), no(reg::PFR2, 32)],
        control: no_control,
        why: "the state is not switched",
    },
];

/// Returns the controls of a CPU before any row is applied.
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
