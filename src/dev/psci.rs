//! The firmware that a guest calls: PSCI and the SMC calling convention, by HVC or by SMC.
//!
//! [`call`] turns the registers of a call into an answer or into what the domain has to do. It keeps no state:
//! which vCPU is on is the domain's knowledge. An unknown function is answered NOT_SUPPORTED, whoever owns its
//! number.
//!
//! Arm DEN 0022 (PSCI 1.1) and DEN 0028 (SMCCC 1.1).

use crate::ids::{Ipa, Mpidr};

/// What PSCI functions return (DEN 0022, 5.2.2), as X0 holds it.
pub mod status {
    /// Done.
    pub const SUCCESS: u64 = 0;
    /// No such function.
    pub const NOT_SUPPORTED: u64 = error(1);
    /// An argument makes no sense: no such vCPU, for one.
    pub const INVALID_PARAMETERS: u64 = error(2);
    /// Refused.
    pub const DENIED: u64 = error(3);
    /// CPU_ON of a vCPU that is on.
    pub const ALREADY_ON: u64 = error(4);
    /// CPU_ON of a vCPU that is about to be on.
    pub const ON_PENDING: u64 = error(5);
    /// Something went wrong inside.
    pub const INTERNAL_FAILURE: u64 = error(6);
    /// CPU_ON at an address outside the guest's memory.
    pub const INVALID_ADDRESS: u64 = error(9);

    const fn error(number: u64) -> u64 {
        0u64.wrapping_sub(number)
    }
}

/// What AFFINITY_INFO returns (DEN 0022, 5.7.2).
pub mod affinity {
    /// At least one vCPU there is on.
    pub const ON: u64 = 0;
    /// All are off.
    pub const OFF: u64 = 1;
    /// At least one is about to be on, none is.
    pub const ON_PENDING: u64 = 2;
}

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciAction {
    /// Nothing but this in X0.
    Return(u64),
    /// Start a vCPU at EL1 with the MMU off. X0 is SUCCESS, INVALID_PARAMETERS, INVALID_ADDRESS, ALREADY_ON or
    /// ON_PENDING.
    CpuOn {
        /// Which.
        target: Mpidr,
        /// Its first instruction.
        entry: Ipa,
        /// Its X0.
        context: u64,
    },
    /// Switch the calling vCPU off; there is no return.
    CpuOff,
    /// Wait for an interrupt as WFI does, then return SUCCESS in X0. A request to power down is answered so
    /// too: a suspended CPU may wake at any time (DEN 0022, 5.1.2).
    Suspend,
    /// Say whether vCPUs are on: a value of [`affinity`], or INVALID_PARAMETERS when none
    /// [`matches`].
    AffinityInfo {
        /// Affinity fields from `level` up count.
        target: Mpidr,
        /// 0 to 3.
        level: u8,
    },
    /// End the domain; there is no return.
    SystemOff,
    /// Restart the domain; there is no return.
    SystemReset,
    /// The domain says that it cannot go on; there is no return.
    SystemCrash {
        /// Whatever it says beside that.
        cookie: u64,
    },
}

/// Functions that a 64-bit caller may call with 32-bit or 64-bit arguments differ in this bit.
const SMC64: u64 = 1 << 30;

const SMCCC_VERSION: u64 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u64 = 0x8000_0001;
const PSCI_VERSION: u64 = 0x8400_0000;
const CPU_SUSPEND: u64 = 0x8400_0001;
const CPU_OFF: u64 = 0x8400_0002;
const CPU_ON: u64 = 0x8400_0003;
const AFFINITY_INFO: u64 = 0x8400_0004;
const MIGRATE_INFO_TYPE: u64 = 0x8400_0006;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const PSCI_FEATURES: u64 = 0x8400_000a;
const SYSTEM_RESET2: u64 = 0x8400_0012;
const CPU_SUSPEND_64: u64 = CPU_SUSPEND | SMC64;
const CPU_ON_64: u64 = CPU_ON | SMC64;
const AFFINITY_INFO_64: u64 = AFFINITY_INFO | SMC64;
const SYSTEM_RESET2_64: u64 = SYSTEM_RESET2 | SMC64;

/// PSCI 1.1 and SMCCC 1.1: major in [31:16], minor in [15:0].
const VERSION_1_1: u64 = 0x0001_0001;
/// MIGRATE_INFO_TYPE: no trusted OS that would have to be migrated.
const NO_TRUSTED_OS: u64 = 2;
/// SYSTEM_RESET2 (DEN 0022, 5.20), reset_type: SYSTEM_WARM_RESET, and the one that is ours. Bit 31 says whose.
const WARM_RESET: u64 = 0;
const CRASH: u64 = 0x8000_0001;
const AFFINITY_BITS: u64 = 0xff_00ff_ffff;

/// Answers a call. `immediate` is that of the HVC or SMC: the convention has only 0. `x` is X0 to X3.
///
/// For an HVC ELR_EL2 already points behind the instruction; a trapped SMC has to be stepped over.
#[must_use]
pub fn call(immediate: u16, x: [u64; 4]) -> PsciAction {
    use PsciAction::Return;
    if immediate != 0 {
        return Return(status::NOT_SUPPORTED);
    }
    let [function, a1, a2, a3] = x;
    // The function is W0; a 32-bit function's arguments are W1 to W3.
    let function = function & 0xffff_ffff;
    let wide = function & SMC64 != 0;
    let [a1, a2, a3] = [a1, a2, a3].map(|a| if wide { a } else { a & 0xffff_ffff });
    match function {
        SMCCC_VERSION | PSCI_VERSION => Return(VERSION_1_1),
        SMCCC_ARCH_FEATURES => Return(match a1 & 0xffff_ffff {
            SMCCC_VERSION | SMCCC_ARCH_FEATURES => status::SUCCESS,
            _ => status::NOT_SUPPORTED,
        }),
        PSCI_FEATURES => Return(match a1 & 0xffff_ffff {
            SMCCC_VERSION | PSCI_VERSION | CPU_OFF | CPU_ON | CPU_ON_64 | AFFINITY_INFO | AFFINITY_INFO_64
            | MIGRATE_INFO_TYPE | SYSTEM_OFF | SYSTEM_RESET | SYSTEM_RESET2 | SYSTEM_RESET2_64 | PSCI_FEATURES => {
                status::SUCCESS
            }
            // Original format of power_state, no OS-initiated mode.
            CPU_SUSPEND | CPU_SUSPEND_64 => 0,
            _ => status::NOT_SUPPORTED,
        }),
        CPU_SUSPEND | CPU_SUSPEND_64 => PsciAction::Suspend,
        CPU_OFF => PsciAction::CpuOff,
        CPU_ON | CPU_ON_64 => {
            if a1 & !AFFINITY_BITS != 0 {
                return Return(status::INVALID_PARAMETERS);
            }
            PsciAction::CpuOn { target: Mpidr(a1), entry: Ipa(a2), context: a3 }
        }
        AFFINITY_INFO | AFFINITY_INFO_64 => match u8::try_from(a2) {
            Ok(level) if level <= 3 && a1 & !AFFINITY_BITS == 0 => {
                PsciAction::AffinityInfo { target: Mpidr(a1), level }
            }
            _ => Return(status::INVALID_PARAMETERS),
        },
        MIGRATE_INFO_TYPE => Return(NO_TRUSTED_OS),
        SYSTEM_OFF => PsciAction::SystemOff,
        SYSTEM_RESET => PsciAction::SystemReset,
        SYSTEM_RESET2 | SYSTEM_RESET2_64 => match a1 & 0xffff_ffff {
            WARM_RESET => PsciAction::SystemReset,
            CRASH => PsciAction::SystemCrash { cookie: a2 },
            _ => Return(status::INVALID_PARAMETERS),
        },
        _ => Return(status::NOT_SUPPORTED),
    }
}

/// Whether a vCPU is among those that AFFINITY_INFO asks about: its affinity fields from `level` up are the
/// target's.
#[must_use]
pub fn matches(target: Mpidr, level: u8, vcpu: Mpidr) -> bool {
    (u32::from(level)..4).all(|field| target.aff(field) == vcpu.aff(field))
}

#[cfg(test)]
mod tests {
    use super::PsciAction::Return;
    use super::*;

    fn hvc(x: [u64; 4]) -> PsciAction {
        call(0, x)
    }

    #[test]
    fn versions_are_one_point_one() {
        assert_eq!(hvc([0x8400_0000, 0, 0, 0]), Return(0x1_0001));
        assert_eq!(hvc([0x8000_0000, 0, 0, 0]), Return(0x1_0001));
        assert_eq!(hvc([0xdead_beef_8400_0000, 0, 0, 0]), Return(0x1_0001), "the upper half of X0 means nothing");
    }

    #[test]
    fn an_unknown_function_is_not_supported_whoever_owns_it() {
        for function in
            [0u64, 1, 0x8400_0005, 0x8400_000e, 0xc400_0014, 0x8600_0000, 0xc600_ff01, 0xbf00_0001, 0xffff_ffff]
        {
            assert_eq!(hvc([function, 1, 2, 3]), Return(u64::MAX), "{function:#x}");
        }
        assert_eq!(call(0x4a48, [0x8400_0008, 0, 0, 0]), Return(u64::MAX), "another immediate is another protocol");
    }

    #[test]
    fn features_names_exactly_what_call_answers() {
        for low in 0..0x40u64 {
            for function in [0x8400_0000 | low, 0xc400_0000 | low] {
                let answered = hvc([function, 0x8400_0000, 0, 0]) != Return(status::NOT_SUPPORTED);
                let named = hvc([0x8400_000a, function, 0, 0]) == Return(0);
                assert_eq!(answered, named, "{function:#x}");
            }
        }
        assert_eq!(hvc([0x8400_000a, 0x8000_0000, 0, 0]), Return(0), "SMCCC_VERSION");
        assert_eq!(hvc([0x8000_0001, 0x8000_8000, 0, 0]), Return(u64::MAX), "ARCH_WORKAROUND_1");
        assert_eq!(hvc([0x8000_0001, 0x8000_0001, 0, 0]), Return(0));
    }

    #[test]
    fn cpu_on_takes_64_bit_and_32_bit_arguments() {
        let on = hvc([0xc400_0003, 0x1_0002_0003, 0x1_4020_0000, 0xffff_0000_0000_0001]);
        let expected = PsciAction::CpuOn {
            target: Mpidr(0x1_0002_0003),
            entry: Ipa(0x1_4020_0000),
            context: 0xffff_0000_0000_0001,
        };
        assert_eq!(on, expected);
        let on = hvc([0x8400_0003, 0xffff_ffff_0000_0003, 0xffff_ffff_4020_0000, 0xffff_ffff_0000_0001]);
        let expected = PsciAction::CpuOn { target: Mpidr(3), entry: Ipa(0x4020_0000), context: 1 };
        assert_eq!(on, expected);
        assert_eq!(
            hvc([0xc400_0003, 0x8000_0003, 0x4020_0000, 0]),
            Return(status::INVALID_PARAMETERS),
            "MPIDR's RES1 bit"
        );
    }

    #[test]
    fn affinity_info_checks_its_level_and_compares_the_upper_fields() {
        let info = |level| hvc([0xc400_0004, 0x0102, level, 0]);
        assert_eq!(info(1), PsciAction::AffinityInfo { target: Mpidr(0x0102), level: 1 });
        for level in [4, 256, u64::MAX] {
            assert_eq!(info(level), Return(status::INVALID_PARAMETERS));
        }
        assert!(matches(Mpidr(0x0102), 0, Mpidr(0x0102)) && !matches(Mpidr(0x0102), 0, Mpidr(0x0103)));
        assert!(matches(Mpidr(0x0102), 1, Mpidr(0x0103)) && !matches(Mpidr(0x0102), 1, Mpidr(0x0202)));
        assert!(!matches(Mpidr(0x1_0000_0000), 3, Mpidr(0)) && matches(Mpidr(0), 3, Mpidr(0xff_ffff)));
    }

    #[test]
    fn the_rest_is_for_the_domain() {
        assert_eq!(hvc([0x8400_0002, 0, 0, 0]), PsciAction::CpuOff);
        assert_eq!(hvc([0x8400_0001, 0x1_0000, 1, 2]), PsciAction::Suspend);
        assert_eq!(hvc([0xc400_0001, 0, 0, 0]), PsciAction::Suspend);
        assert_eq!(hvc([0x8400_0008, 0, 0, 0]), PsciAction::SystemOff);
        assert_eq!(hvc([0x8400_0009, 0, 0, 0]), PsciAction::SystemReset);
        assert_eq!(hvc([0x8400_0006, 0, 0, 0]), Return(2));
    }

    #[test]
    fn reset2_resets_warmly_or_says_that_the_domain_has_crashed() {
        assert_eq!(hvc([0x8400_0012, 0xffff_ffff_0000_0000, 7, 0]), PsciAction::SystemReset);
        let crash = |function| hvc([function, 0x8000_0001, 0x1_dead_beef, 0]);
        assert_eq!(crash(0xc400_0012), PsciAction::SystemCrash { cookie: 0x1_dead_beef });
        assert_eq!(crash(0x8400_0012), PsciAction::SystemCrash { cookie: 0xdead_beef }, "W2");
        for unknown in [1, 0x8000_0000, 0x8000_0002] {
            assert_eq!(hvc([0xc400_0012, unknown, 0, 0]), Return(status::INVALID_PARAMETERS), "{unknown:#x}");
        }
    }

    #[test]
    fn errors_are_small_negative_numbers() {
        assert_eq!(status::NOT_SUPPORTED as i64, -1);
        assert_eq!(status::INVALID_ADDRESS as i64, -9);
    }
}
