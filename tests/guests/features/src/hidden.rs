//! Features that a guest does not have: UNDEFINED, and absent from its ID registers.

use crate::guest::{check, equal};
use core::arch::asm;
use guest_rt::exception::{Outcome, probe};
use guest_rt::{cpu, mrs, msr};

macro_rules! read {
    ($($name:literal $register:literal;)*) => {
        $({
            let mut value = 0;
            let outcome = probe(|| value = mrs!($register));
            check(concat!("hidden-", $name), absent(outcome),
                  format_args!("result of a read: {outcome:x?}, value {value:#x}"));
        })*
    };
}

macro_rules! run {
    ($($name:literal $word:literal;)*) => {
        $({
            let outcome = probe(|| {
                // SAFETY: an instruction that should be UNDEFINED; if it is not, it touches X0 to X9 or nothing.
                unsafe {
                    asm!(concat!(".inst ", $word), out("x0") _, out("x1") _, out("x2") _, out("x3") _, out("x4") _,
                         out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _)
                };
            });
            check(concat!("hidden-", $name), absent(outcome), format_args!("result {outcome:x?}"));
        })*
    };
}

macro_rules! write {
    ($($name:literal $register:literal;)*) => {
        $({
            let outcome = probe(|| guest_rt::msr!($register, 0));
            check(concat!("hidden-", $name, "-write"), absent(outcome),
                  format_args!("result of a write: {outcome:x?}"));
        })*
    };
}

/// Whether an access was UNDEFINED, or (with FEAT_IDST) the access to a feature ID register trapped to EL1.
fn absent(outcome: Outcome) -> bool {
    const SYSTEM_REGISTER: u64 = 0x18;
    match outcome {
        Outcome::Undefined => true,
        Outcome::Other(esr) => esr >> 26 & 0x3f == SYSTEM_REGISTER,
        _ => false,
    }
}

pub fn run() {
    ids();
    // Enable SVE and SME at EL1, so that only EL2 can trap them.
    const FPEN: u64 = 3 << 20;
    const ZEN: u64 = 3 << 16;
    const SMEN: u64 = 3 << 24;
    msr!("cpacr_el1", FPEN | ZEN | SMEN);
    cpu::isb();
    registers();
    instructions();
    msr!("cpacr_el1", FPEN);
    cpu::isb();
}

fn registers() {
    read! {
        "PMU-PMCR" "s3_3_c9_c12_0";
        "PMU-PMCCNTR" "s3_3_c9_c13_0";
        "PMU-PMUSERENR" "s3_3_c9_c14_0";
        "PMU-PMEVCNTR0" "s3_3_c14_c8_0";
        "PMU-PMMIR" "s3_0_c9_c14_6";
        "SPE-PMSCR" "s3_0_c9_c9_0";
        "SPE-PMBLIMITR" "s3_0_c9_c10_0";
        "SPE-PMBIDR" "s3_0_c9_c10_7";
        "TRBE-TRBLIMITR" "s3_0_c9_c11_0";
        "TRFCR" "s3_0_c1_c2_1";
        "trace-TRCIDR0" "s2_1_c0_c8_7";
        "BRBE-BRBCR" "s2_1_c9_c0_0";
        "SVE-ZCR" "s3_0_c1_c2_0";
        "SME-SMCR" "s3_0_c1_c2_6";
        "SME-TPIDR2" "s3_3_c13_c0_5";
        "SME-SMPRI" "s3_0_c1_c2_4";
        "SME-SVCR" "s3_3_c4_c2_2";
        "SME-SMIDR" "s3_1_c0_c0_6";
        "MTE-GCR" "s3_0_c1_c0_6";
        "MTE-RGSR" "s3_0_c1_c0_5";
        "MTE-TFSR" "s3_0_c5_c6_0";
        "MTE-GMID" "s3_1_c0_c0_4";
        "RAS-ERRIDR" "s3_0_c5_c3_0";
        "RAS-ERRSELR" "s3_0_c5_c3_1";
        "RAS-ERXSTATUS" "s3_0_c5_c4_2";
        "LOR-LORID" "s3_0_c10_c4_7";
        "LOR-LORC" "s3_0_c10_c4_3";
        "SCXTNUM-EL1" "s3_0_c13_c0_7";
        "SCXTNUM-EL0" "s3_3_c13_c0_7";
        "MPAM-MPAM0" "s3_0_c10_c5_1";
        "MPAM-MPAM1" "s3_0_c10_c5_0";
        "MPAM-MPAMIDR" "s3_0_c10_c4_4";
        "AMU-AMCR" "s3_3_c13_c2_0";
        "TCR2" "s3_0_c2_c0_3";
        "SCTLR2" "s3_0_c1_c0_3";
        "PIE-PIR" "s3_0_c10_c2_3";
        "POE-POR" "s3_0_c10_c2_4";
        "GCS-GCSCR" "s3_0_c2_c5_0";
        "LS64-ACCDATA" "s3_0_c13_c0_5";
        "FPMR" "s3_3_c4_c4_2";
        "RNDRRS-with-no-such-op2" "s3_3_c2_c4_7";
        "implementation-defined-c11" "s3_0_c11_c0_0";
        "implementation-defined-c15" "s3_0_c15_c3_2";
        "EL2-HCR" "s3_4_c1_c1_0";
        "EL3-SCR" "s3_6_c1_c1_0";
        "ICC-SGI1R-read" "s3_0_c12_c11_5";
        "breakpoint-2" "s2_0_c0_c2_5";
    }
    write! {
        "ID-AA64PFR0" "s3_0_c0_c4_0";
        "PMU-PMCR" "s3_3_c9_c12_0";
        "SVE-ZCR" "s3_0_c1_c2_0";
        "TRBE-TRBLIMITR" "s3_0_c9_c11_0";
        "implementation-defined-c15" "s3_0_c15_c3_2";
        "MTE-DC-IGSW" "s1_0_c7_c6_4";
    }
}

fn instructions() {
    run! {
        "SVE-rdvl" "0x04bf5020";
        "SVE-ptrue" "0x2518e3e0";
        "SME-smstart" "0xd503477f";
        "LS64-ld64b" "0xf83fd140";
        "TME-tstart" "0xd5233060";
        "unallocated" "0x00000000";
    }
}

fn ids() {
    let field = |value: u64, lsb: u32| value >> lsb & 0xf;
    let pfr0 = mrs!("s3_0_c0_c4_0");
    let pfr1 = mrs!("s3_0_c0_c4_1");
    let dfr0 = mrs!("s3_0_c0_c5_0");
    let isar1 = mrs!("s3_0_c0_c6_1");
    let isar2 = mrs!("s3_0_c0_c6_2");
    let mmfr0 = mrs!("s3_0_c0_c7_0");
    let mmfr1 = mrs!("s3_0_c0_c7_1");
    let mmfr2 = mrs!("s3_0_c0_c7_2");
    for (name, value) in [
        ("id-no-EL2", field(pfr0, 8)),
        ("id-no-EL3", field(pfr0, 12)),
        ("id-no-RAS", field(pfr0, 28)),
        ("id-no-SVE", field(pfr0, 32)),
        ("id-no-MPAM", field(pfr0, 40)),
        ("id-no-AMU", field(pfr0, 44)),
        ("id-no-RME", field(pfr0, 52)),
        ("id-no-MTE", field(pfr1, 8)),
        ("id-no-SME", field(pfr1, 24)),
        ("id-no-NMI", field(pfr1, 36)),
        ("id-no-GCS", field(pfr1, 44)),
        ("id-no-PMU", field(dfr0, 8)),
        ("id-no-trace", field(dfr0, 4)),
        ("id-no-SPE", field(dfr0, 32)),
        ("id-no-TRBE", field(dfr0, 44)),
        ("id-no-BRBE", field(dfr0, 52)),
        ("id-no-LS64", field(isar1, 60)),
        ("id-no-WFxT", field(isar2, 0)),
        ("id-no-FGT", field(mmfr0, 56)),
        ("id-no-VHE", field(mmfr1, 8)),
        ("id-no-LOR", field(mmfr1, 16)),
        ("id-no-HCX", field(mmfr1, 40)),
        ("id-no-NV", field(mmfr2, 24)),
    ] {
        equal(name, value, 0);
    }
    equal("id-no-SVE-details", mrs!("s3_0_c0_c4_4"), 0);
    equal("id-no-SME-details", mrs!("s3_0_c0_c4_5"), 0);
    equal("id-unallocated-is-zero", mrs!("s3_0_c0_c7_7") | mrs!("s3_0_c0_c4_6") | mrs!("s3_0_c0_c5_7"), 0);
}
