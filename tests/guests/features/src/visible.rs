//! Features that a guest has: the instructions run and give the right results.

use crate::guest::{check, equal};
use core::arch::asm;
use guest_rt::exception::{self, Outcome, probe};
use guest_rt::{mrs, msr, smccc};

fn field(value: u64, lsb: u32) -> u64 {
    value >> lsb & 0xf
}

fn ran(name: &str, code: impl FnOnce()) {
    let outcome = probe(code);
    check(name, outcome == Outcome::Ran, format_args!("result {outcome:x?}"));
}

/// Checks a feature that not every CPU has.
fn if_there(name: &str, there: bool, code: impl FnOnce()) {
    if there {
        ran(name, code);
    } else {
        guest_rt::say!("GUEST SKIP {name}");
    }
}

macro_rules! read {
    ($($name:literal $register:literal;)*) => {
        $(ran(concat!("visible-", $name), || {
            let _ = mrs!($register);
        });)*
    };
}

pub fn run() {
    serrors();
    ids();
    registers();
    instructions();
    calls();
    workarounds();
    exits();
}

fn ids() {
    let pfr0 = mrs!("s3_0_c0_c4_0");
    equal("id-AArch64-at-EL1", field(pfr0, 4), 1);
    equal("id-GICv3", field(pfr0, 24), 1);
    check("id-FP", field(pfr0, 16) != 0xf, format_args!("{pfr0:#x}"));
    let range = field(mrs!("s3_0_c0_c7_0"), 0);
    check("id-PARange", (1..=5).contains(&range), format_args!("{range}"));
    let dfr0 = mrs!("s3_0_c0_c5_0");
    check("id-debug", field(dfr0, 0) >= 6, format_args!("{dfr0:#x}"));
    equal("id-two-breakpoints", field(dfr0, 12), 1);
    equal("id-MPIDR-affinity", mrs!("mpidr_el1") & 0xff_80ff_ffff, 0x8000_0000);
}

fn registers() {
    read! {
        "REVIDR" "s3_0_c0_c0_6";
        "AIDR" "s3_1_c0_c0_7";
        "CTR" "ctr_el0";
        "CLIDR" "clidr_el1";
        "CCSIDR" "ccsidr_el1";
        "CNTPCT" "cntpct_el0";
        "CNTVCT" "cntvct_el0";
        "CNTKCTL" "cntkctl_el1";
        "OSLSR" "oslsr_el1";
        "DBGBVR0" "dbgbvr0_el1";
        "DBGBCR1" "dbgbcr1_el1";
        "DBGWCR0" "dbgwcr0_el1";
        "MDCCSR" "mdccsr_el0";
        "PAR" "par_el1";
        "TPIDRRO" "tpidrro_el0";
        "ICC-SRE" "s3_0_c12_c12_5";
        "ICC-CTLR" "s3_0_c12_c12_4";
    }
    ran("visible-OSLAR", || msr!("oslar_el1", 0));
    ran("visible-OSDLR", || msr!("osdlr_el1", 0));
    ran("visible-ACTLR", || msr!("actlr_el1", u64::MAX));
    equal("ACTLR-is-zero", mrs!("actlr_el1"), 0);
    msr!("mdscr_el1", 1 << 12);
    equal("MDSCR-keeps-TDCC", mrs!("mdscr_el1"), 1 << 12);
    msr!("mdscr_el1", 0);
    let (physical, virtual_count) = (mrs!("cntpct_el0"), mrs!("cntvct_el0"));
    let apart = virtual_count.wrapping_sub(physical);
    check("counters-agree", apart < mrs!("cntfrq_el0"), format_args!("{physical:#x} and {virtual_count:#x}"));
    msr!("vbar_el1", mrs!("vbar_el1"));
    msr!("contextidr_el1", 0x1234);
    equal("CONTEXTIDR-keeps", mrs!("contextidr_el1"), 0x1234);
}

fn instructions() {
    let isar0 = mrs!("s3_0_c0_c6_0");
    let isar1 = mrs!("s3_0_c0_c6_1");
    let isar2 = mrs!("s3_0_c0_c6_2");
    let mmfr0 = mrs!("s3_0_c0_c7_0");
    let mut word = 0x1234_5678u64;
    let at = &raw mut word as u64;

    let mut moved: u64 = 0;
    ran("FP", || {
        // SAFETY: the guest is built without FP, so D0 is unused.
        unsafe { asm!(".inst 0x9e670000", ".inst 0x9e660001", in("x0") 0x4045_0000u64, out("x1") moved) }; // fmov d0, x0; x1, d0
    });
    equal("FP-keeps", moved, 0x4045_0000);
    ran("DC-CIVAC", || {
        // SAFETY: cache maintenance of a local variable.
        unsafe { asm!("dc civac, {0}", "dc cvau, {0}", "dsb sy", "ic iallu", "isb", in(reg) at) };
    });
    ran("DC-CISW", || {
        // SAFETY: level 1, set 0, way 0: clean and invalidate loses nothing.
        unsafe { asm!("dc cisw, xzr", "dc csw, xzr", "dsb sy") };
    });
    ran("TLBI", || {
        // SAFETY: the tables do not change.
        unsafe { asm!("tlbi vmalle1is", "tlbi vmalle1", "dsb sy", "isb") };
    });
    ran("AT-S1E1R", || {
        // SAFETY: writes PAR_EL1 only.
        unsafe { asm!("at s1e1r, {}", "isb", in(reg) at) };
    });
    let par = mrs!("par_el1");
    equal("AT-S1E1R-finds", par & 0xffff_ffff_f001, at & !0xfff);
    if_there("CRC32", field(isar0, 16) != 0, || {
        // SAFETY: registers only.
        unsafe { asm!(".inst 0x1ac04800", inout("x0") 1u64 => _) }; // crc32w w0, w0, w0
    });
    if_there("LSE", field(isar0, 20) != 0, || {
        // SAFETY: adds to a local variable.
        unsafe { asm!(".inst 0xf8200021", in("x0") 1u64, inout("x1") at => _) }; // ldadd x0, x1, [x1]
    });
    let there = field(isar1, 4) | field(isar1, 8) | field(isar2, 12) != 0;
    if_there("PAuth-keys", there, || {
        msr!("s3_0_c2_c1_0", 0x0123_4567_89ab_cdef); // APIAKeyLo_EL1
        msr!("s3_0_c2_c1_1", 0xfedc_ba98_7654_3210);
        let _ = mrs!("s3_0_c2_c1_0");
    });
    if_there("PAuth-pacga", field(isar1, 24) | field(isar1, 28) | field(isar2, 8) != 0, || {
        // SAFETY: registers only.
        unsafe { asm!(".inst 0x9ac03002", in("x0") 1u64, out("x2") _) }; // pacga x2, x0, x0
    });
    let mut to = [0u8; 32];
    let from = [0x5au8; 32];
    if_there("MOPS", field(isar2, 16) != 0, || {
        // cpyfp, cpyfm, cpyfe [x0]!, [x1]!, x2!
        // SAFETY: copies 32 bytes between two local arrays of that size.
        unsafe {
            asm!(".inst 0x19010440", ".inst 0x19410440", ".inst 0x19810440",
                 inout("x0") to.as_mut_ptr() => _, inout("x1") from.as_ptr() => _, inout("x2") 32u64 => _)
        };
    });
    if field(isar2, 16) != 0 {
        equal("MOPS-copies", to, from);
    }
    if_there("ECV-CNTVCTSS", field(mmfr0, 60) != 0, || {
        let _ = (mrs!("s3_3_c14_c0_6"), mrs!("s3_3_c14_c0_5"));
    });
    if_there("RNDR", field(isar0, 60) != 0, || {
        let _ = mrs!("s3_3_c2_c4_0");
    });
    if_there("DIT", field(mrs!("s3_0_c0_c4_0"), 48) != 0, || {
        msr!("s3_3_c4_c2_5", 1 << 24);
        msr!("s3_3_c4_c2_5", 0);
    });
    if_there("DC-CVAP", field(isar1, 0) != 0, || {
        // SAFETY: cache maintenance of a local variable.
        unsafe { asm!(".inst 0xd50b7c20", in("x0") at) }; // dc cvap, x0
    });
    ran("ESB-is-a-hint", || {
        // SAFETY: a hint.
        unsafe { asm!("hint #16") };
    });
    ran("WFE-SEV", || {
        // SAFETY: hints; the event is set before WFE waits for it.
        unsafe { asm!("sev", "wfe") };
    });
}

/// Makes a call by SMC; `i64::MIN` if SMC takes an exception.
fn smc(function: u64, a1: u64, a2: u64, a3: u64) -> i64 {
    let mut answer = i64::MIN;
    probe(|| answer = smccc::smc(function, a1, a2, a3));
    answer
}

fn calls() {
    equal("PSCI-version", smccc::hvc(0x8400_0000, 0, 0, 0), 0x1_0001);
    equal("SMC-PSCI-version", smc(0x8400_0000, 0, 0, 0), 0x1_0001);
    equal("SMCCC-version", smccc::hvc(0x8000_0000, 0, 0, 0), 0x1_0001);
    for function in [0u64, 0x8400_0005, 0x8400_001f, 0xc400_0014, 0x8600_ff01, 0x8200_0000, 0xb200_0000, 0xffff_ffff] {
        equal("SMCCC-unknown-by-HVC", smccc::hvc(function, 1, 2, 3), -1);
        equal("SMCCC-unknown-by-SMC", smc(function, 1, 2, 3), -1);
    }
    equal("PSCI-features-CPU_ON", smccc::hvc(0x8400_000a, 0xc400_0003, 0, 0), 0);
    equal("PSCI-features-unknown", smccc::hvc(0x8400_000a, 0x8400_001f, 0, 0), -1);
    equal("PSCI-affinity-self-is-on", smccc::hvc(0xc400_0004, 0, 0, 0), 0);
    equal("PSCI-affinity-of-no-vCPU", smccc::hvc(0xc400_0004, 0x00ff_ff00, 0, 0), -2);
    let here = calls as *const () as u64;
    equal("PSCI-CPU_ON-of-no-vCPU", smccc::hvc(0xc400_0003, 0x00ff_ff00, here, 0), -2);
    equal("PSCI-CPU_ON-self", smccc::hvc(0xc400_0003, 0, here, 0), -4);
    let mut answer = 0x8400_0000u64;
    // SAFETY: the call keeps all registers but X0 to X3.
    unsafe { asm!("hvc #0x123", inout("x0") answer, out("x1") _, out("x2") _, out("x3") _) };
    equal("HVC-other-immediate-is-no-PSCI", answer as i64, -1);
}

/// What the hypervisor says of each workaround holds when it is called. Which answers are right depends on the machine: the test's
/// host knows.
fn workarounds() {
    const ARCH_FEATURES: u64 = 0x8000_0001;
    let [told_1, told_2, told_3] =
        [0x8000_8000, 0x8000_7fff, 0x8000_3fff].map(|function| smccc::hvc(ARCH_FEATURES, function, 0, 0));
    guest_rt::say!("GUEST TOLD workarounds {told_1} {told_2} {told_3}");
    equal("SMCCC-features-of-version", smccc::hvc(ARCH_FEATURES, 0x8000_0000, 0, 0), 0);
    equal("SMCCC-features-unknown", smccc::hvc(ARCH_FEATURES, 0x8000_0002, 0, 0), -1);
    for (name, function, told) in [("workaround-1", 0x8000_8000, told_1), ("workaround-3", 0x8000_3fff, told_3)] {
        check(name, matches!(told, -1..=1), format_args!("{told}"));
        let answer = if told < 0 { -1 } else { 0 };
        equal(name, smccc::hvc(function, 0, 0, 0), answer);
        equal(name, smc(function, 0, 0, 0), answer);
    }
    // Whether stores are bypassed is PSTATE's, or cannot be changed.
    check("workaround-2", matches!(told_2, -1 | -2), format_args!("{told_2}"));
    equal("workaround-2-changes-nothing", smccc::hvc(0x8000_7fff, 1, 0, 0), -1);
    if_there("SSBS", field(mrs!("s3_0_c0_c4_1"), 4) != 0, || {
        msr!("s3_3_c4_c2_6", 1 << 12);
        msr!("s3_3_c4_c2_6", 0);
    });
}

/// The registers that EL2's vectors use first have their values after an exit, and so have the flags.
fn exits() {
    let mut x = [0x1111u64, 0x2222, 0x3333, 0x4444];
    let flags: u64;
    // SAFETY: the instruction only reads an ID register, which traps.
    unsafe {
        asm!("cmp x0, x0", "mrs {f}, s3_0_c0_c4_0", "mrs {f}, nzcv", f = out(reg) flags,
            inout("x0") x[0], inout("x1") x[1], inout("x2") x[2], inout("x3") x[3])
    };
    equal("registers-after-an-exit", x, [0x1111, 0x2222, 0x3333, 0x4444]);
    equal("flags-after-an-exit", flags, 6 << 28);
    let mut x = [0x8000_8000u64, 0x2222, 0x3333, 0x4444];
    // SAFETY: SMCCC_ARCH_WORKAROUND_1 keeps all but x0 to x3; from 1.1 on it keeps those that are no result, too.
    unsafe { asm!("hvc #0", inout("x0") x[0], inout("x1") x[1], inout("x2") x[2], inout("x3") x[3]) };
    equal("registers-after-a-workaround", [x[1], x[2], x[3]], [0x2222, 0x3333, 0x4444]);
}

/// An SError comes once. How many there are, the test's host knows. This comes before the ESB in [`instructions`], which would defer
/// it.
fn serrors() {
    let first = exception::serrors();
    let _ = mrs!("s3_0_c0_c4_0");
    guest_rt::say!("GUEST TOOK serrors {first}");
    equal("serrors-after-another-exit", exception::serrors(), first);
}
