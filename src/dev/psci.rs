//! The power interface of a guest, PSCI, by HVC or SMC.
//!
//! [`call`] decodes the registers of a call into a result or an action for the domain. It keeps no state, since the
//! domain knows which vCPUs are on. All unknown functions return NOT_SUPPORTED, including those of other service
//! owners.
//!
//! Arm DEN 0022 (PSCI 1.1).

use crate::ids::{Ipa, Mpidr};
use smccc::arch::SMCCC_VERSION;
use smccc::psci::{
    MigrateType, PSCI_AFFINITY_INFO_32, PSCI_AFFINITY_INFO_64, PSCI_CPU_OFF, PSCI_CPU_ON_32, PSCI_CPU_ON_64,
    PSCI_CPU_SUSPEND_32, PSCI_CPU_SUSPEND_64, PSCI_FEATURES, PSCI_MIGRATE_INFO_TYPE, PSCI_SYSTEM_OFF,
    PSCI_SYSTEM_RESET, PSCI_SYSTEM_RESET2_32, PSCI_SYSTEM_RESET2_64, PSCI_VERSION,
};

/// Return codes of PSCI functions (DEN 0022, 5.2.2), sign-extended as X0 holds them.
pub mod status {
    use smccc::psci::error;

    /// The call succeeded.
    pub const SUCCESS: u64 = x0(error::SUCCESS);
    /// There is no such function.
    pub const NOT_SUPPORTED: u64 = x0(error::NOT_SUPPORTED);
    /// An argument is invalid, for example the affinity of a vCPU that does not exist.
    pub const INVALID_PARAMETERS: u64 = x0(error::INVALID_PARAMETERS);
    /// CPU_ON of a vCPU that is on already.
    pub const ALREADY_ON: u64 = x0(error::ALREADY_ON);
    /// CPU_ON of a vCPU that is being switched on.
    pub const ON_PENDING: u64 = x0(error::ON_PENDING);
    /// CPU_ON with an entry point outside the guest's memory.
    pub const INVALID_ADDRESS: u64 = x0(error::INVALID_ADDRESS);

    const fn x0(code: i32) -> u64 {
        code as i64 as u64
    }
}

/// Results of AFFINITY_INFO (DEN 0022, 5.7.2).
pub mod affinity {
    use smccc::psci::AffinityState;

    /// At least one vCPU of the affinity instance is on.
    pub const ON: u64 = AffinityState::On as u64;
    /// All vCPUs are off.
    pub const OFF: u64 = AffinityState::Off as u64;
    /// No vCPU is on, and at least one is being switched on.
    pub const ON_PENDING: u64 = AffinityState::OnPending as u64;
}

/// What the caller of [`call`] has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciAction {
    /// Return this value in X0.
    Return(u64),
    /// Start a vCPU at EL1 with the MMU off. Return SUCCESS, INVALID_PARAMETERS, INVALID_ADDRESS, ALREADY_ON or
    /// ON_PENDING in X0.
    CpuOn {
        /// Affinity of the vCPU to start.
        target: Mpidr,
        /// Address of its first instruction.
        entry: Ipa,
        /// The value of its X0.
        context: u64,
    },
    /// Switch the calling vCPU off. The call does not return.
    CpuOff,
    /// Wait for an interrupt as WFI does, then return SUCCESS in X0. This answers requests to power down as well, since
    /// a suspended CPU may wake at any time (DEN 0022, 5.1.2).
    Suspend,
    /// Return a value of [`affinity`] for the vCPUs that [`matches()`] selects, or INVALID_PARAMETERS if there are
    /// none.
    AffinityInfo {
        /// The affinity. Fields below `level` are ignored.
        target: Mpidr,
        /// The lowest affinity level to compare, 0 to 3.
        level: u8,
    },
    /// Power the domain off. The call does not return.
    SystemOff,
    /// Restart the domain. The call does not return.
    SystemReset,
    /// The domain reports that it has crashed. The call does not return.
    SystemCrash {
        /// A value that the domain reports with it.
        cookie: u64,
    },
}

/// Bit of a function id that is set if the arguments have 64 bits (DEN 0028, 2.5).
const SMC64: u32 = 1 << 30;

/// PSCI 1.1: the major number in bits 31 to 16, the minor number in bits 15 to 0.
const VERSION_1_1: u64 = 0x0001_0001;
/// reset_type of SYSTEM_RESET2 (DEN 0022, 5.20): SYSTEM_WARM_RESET.
const WARM_RESET: u64 = 0;
/// reset_type of SYSTEM_RESET2: a vendor-specific one (bit 31) of Doorward, by which a domain reports a crash.
const CRASH: u64 = 0x8000_0001;
/// The affinity fields of MPIDR_EL1. All other bits of an affinity argument must be zero.
const AFFINITY_BITS: u64 = 0xff_00ff_ffff;

/// Decodes a call, given X0 to X3.
#[must_use]
pub fn call(x: [u64; 4]) -> PsciAction {
    use PsciAction::Return;
    let [function, a1, a2, a3] = x;
    // The function is in W0. The arguments of a 32-bit function are in W1 to W3.
    let function = function as u32;
    let wide = function & SMC64 != 0;
    let [a1, a2, a3] = [a1, a2, a3].map(|a| if wide { a } else { a & 0xffff_ffff });
    match function {
        PSCI_VERSION => Return(VERSION_1_1),
        PSCI_FEATURES => Return(match a1 as u32 {
            SMCCC_VERSION
            | PSCI_VERSION
            | PSCI_CPU_OFF
            | PSCI_CPU_ON_32
            | PSCI_CPU_ON_64
            | PSCI_AFFINITY_INFO_32
            | PSCI_AFFINITY_INFO_64
            | PSCI_MIGRATE_INFO_TYPE
            | PSCI_SYSTEM_OFF
            | PSCI_SYSTEM_RESET
            | PSCI_SYSTEM_RESET2_32
            | PSCI_SYSTEM_RESET2_64
            | PSCI_FEATURES => status::SUCCESS,
            // Feature flags: original format of power_state, no OS-initiated mode.
            PSCI_CPU_SUSPEND_32 | PSCI_CPU_SUSPEND_64 => 0,
            _ => status::NOT_SUPPORTED,
        }),
        PSCI_CPU_SUSPEND_32 | PSCI_CPU_SUSPEND_64 => PsciAction::Suspend,
        PSCI_CPU_OFF => PsciAction::CpuOff,
        PSCI_CPU_ON_32 | PSCI_CPU_ON_64 => {
            if a1 & !AFFINITY_BITS != 0 {
                return Return(status::INVALID_PARAMETERS);
            }
            PsciAction::CpuOn { target: Mpidr(a1), entry: Ipa(a2), context: a3 }
        }
        PSCI_AFFINITY_INFO_32 | PSCI_AFFINITY_INFO_64 => match u8::try_from(a2) {
            Ok(level) if level <= 3 && a1 & !AFFINITY_BITS == 0 => {
                PsciAction::AffinityInfo { target: Mpidr(a1), level }
            }
            _ => Return(status::INVALID_PARAMETERS),
        },
        // There is no trusted OS.
        PSCI_MIGRATE_INFO_TYPE => Return(MigrateType::MigrationNotRequired as u64),
        PSCI_SYSTEM_OFF => PsciAction::SystemOff,
        PSCI_SYSTEM_RESET => PsciAction::SystemReset,
        PSCI_SYSTEM_RESET2_32 | PSCI_SYSTEM_RESET2_64 => match a1 & 0xffff_ffff {
            WARM_RESET => PsciAction::SystemReset,
            CRASH => PsciAction::SystemCrash { cookie: a2 },
            _ => Return(status::INVALID_PARAMETERS),
        },
        _ => Return(status::NOT_SUPPORTED),
    }
}

/// Whether AFFINITY_INFO for `target` covers a vCPU: its affinity fields from `level` up equal the target's.
#[must_use]
pub fn matches(target: Mpidr, level: u8, vcpu: Mpidr) -> bool {
    (u32::from(level)..4).all(|field| target.aff(field) == vcpu.aff(field))
}

#[cfg(test)]
mod tests {
    use super::PsciAction::Return;
    use super::*;

    fn hvc(x: [u64; 4]) -> PsciAction {
        call(x)
    }

    #[test]
    fn psci_has_version_1_1() {
        assert_eq!(hvc([0x8400_0000, 0, 0, 0]), Return(0x1_0001));
        assert_eq!(hvc([0xdead_beef_8400_0000, 0, 0, 0]), Return(0x1_0001), "the upper half of X0 is ignored");
    }

    #[test]
    fn unknown_functions_of_all_service_owners_are_not_supported() {
        for function in
            [0u64, 1, 0x8400_0005, 0x8400_000e, 0xc400_0014, 0x8600_0000, 0xc600_ff01, 0xbf00_0001, 0xffff_ffff]
        {
            assert_eq!(hvc([function, 1, 2, 3]), Return(u64::MAX), "{function:#x}");
        }
    }

    #[test]
    fn psci_features_reports_exactly_the_functions_that_call_implements() {
        for low in 0..0x40u64 {
            for function in [0x8400_0000 | low, 0xc400_0000 | low] {
                let answered = hvc([function, 0x8400_0000, 0, 0]) != Return(status::NOT_SUPPORTED);
                let named = hvc([0x8400_000a, function, 0, 0]) == Return(0);
                assert_eq!(answered, named, "{function:#x}");
            }
        }
        assert_eq!(hvc([0x8400_000a, 0x8000_0000, 0, 0]), Return(0), "SMCCC_VERSION");
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
    fn affinity_info_checks_the_level_and_compares_the_fields_from_it_up() {
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
    fn power_calls_become_actions_of_the_domain() {
        assert_eq!(hvc([0x8400_0002, 0, 0, 0]), PsciAction::CpuOff);
        assert_eq!(hvc([0x8400_0001, 0x1_0000, 1, 2]), PsciAction::Suspend);
        assert_eq!(hvc([0xc400_0001, 0, 0, 0]), PsciAction::Suspend);
        assert_eq!(hvc([0x8400_0008, 0, 0, 0]), PsciAction::SystemOff);
        assert_eq!(hvc([0x8400_0009, 0, 0, 0]), PsciAction::SystemReset);
        assert_eq!(hvc([0x8400_0006, 0, 0, 0]), Return(2));
    }

    #[test]
    fn system_reset2_is_a_warm_reset_or_the_report_of_a_crash() {
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
