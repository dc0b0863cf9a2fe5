//! The Arm Architecture Calls of the SMC calling convention, as a guest sees them (DEN 0028, 7): the version, which
//! workarounds its CPUs need, and the workarounds.
//!
//! A guest is told what holds on the worst CPU that it may run on. A workaround that it calls has been carried out
//! before [`call`] sees it: the vectors do at each entry to EL2 what the CPU needs ([`crate::arch::speculation`]),
//! whatever the reason of the entry.

use crate::arch::speculation::{Protection, Protections};
use crate::dev::psci::status;
use smccc::arch::{
    SMCCC_ARCH_FEATURES, SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_2, SMCCC_ARCH_WORKAROUND_3, SMCCC_VERSION,
};

/// SMCCC 1.1: the major number in bits 31 to 16, the minor number in bits 15 to 0.
const VERSION_1_1: u64 = 0x0001_0001;
/// SMCCC_ARCH_FEATURES of a workaround that may be called and that the CPU does not need.
const NOT_NEEDED: u64 = 1;
/// SMCCC_ARCH_FEATURES of SMCCC_ARCH_WORKAROUND_2: no CPU needs it, or it is always on. It must not be called.
const NOT_REQUIRED: u64 = smccc::arch::error::NOT_REQUIRED as i64 as u64;

/// What a guest is told of its CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// How well the worst of them is protected.
    pub protections: Protections,
    /// The guest sees PSTATE.SSBS.
    pub ssbs: bool,
}

impl Cpus {
    fn features(self, function: u32) -> u64 {
        let workaround = |protection| match protection {
            Protection::NotAffected => NOT_NEEDED,
            Protection::Mitigated => status::SUCCESS,
            Protection::Vulnerable => status::NOT_SUPPORTED,
        };
        match function {
            SMCCC_VERSION | SMCCC_ARCH_FEATURES => status::SUCCESS,
            SMCCC_ARCH_WORKAROUND_1 => workaround(self.protections.v2),
            SMCCC_ARCH_WORKAROUND_3 => workaround(self.protections.history),
            SMCCC_ARCH_WORKAROUND_2 => match self.protections.store_bypass {
                Protection::NotAffected => NOT_REQUIRED,
                // The guest protects itself by PSTATE.SSBS. Without it, it is protected at all times.
                Protection::Mitigated if !self.ssbs => NOT_REQUIRED,
                Protection::Mitigated | Protection::Vulnerable => status::NOT_SUPPORTED,
            },
            _ => status::NOT_SUPPORTED,
        }
    }
}

/// Returns X0 of a call, given X0 to X3.
#[must_use]
pub fn call(x: [u64; 4], cpus: Cpus) -> u64 {
    let [function, argument, ..] = x;
    // All are 32-bit functions.
    match function as u32 {
        SMCCC_VERSION => VERSION_1_1,
        SMCCC_ARCH_FEATURES => cpus.features(argument as u32),
        SMCCC_ARCH_WORKAROUND_1 if cpus.protections.v2 != Protection::Vulnerable => status::SUCCESS,
        SMCCC_ARCH_WORKAROUND_3 if cpus.protections.history != Protection::Vulnerable => status::SUCCESS,
        _ => status::NOT_SUPPORTED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Protection::{Mitigated, NotAffected, Vulnerable};

    const WORKAROUNDS: [u64; 3] = [0x8000_8000, 0x8000_7fff, 0x8000_3fff];

    fn cpus(all: Protection, ssbs: bool) -> Cpus {
        Cpus { protections: Protections { v2: all, history: all, store_bypass: all }, ssbs }
    }

    fn features(cpus: Cpus) -> [i64; 3] {
        WORKAROUNDS.map(|function| call([0x8000_0001, function, 0, 0], cpus) as i64)
    }

    #[test]
    fn the_version_is_1_1_and_what_is_unknown_is_not_supported() {
        for cpus in [cpus(NotAffected, true), cpus(Vulnerable, false)] {
            let answer = |function, argument| call([function, argument, 0, 0], cpus) as i64;
            assert_eq!(answer(0x8000_0000, 0), 0x1_0001);
            assert_eq!(answer(0xffff_ffff_8000_0000, 0), 0x1_0001, "the function is in W0");
            assert_eq!([0x8000_0000, 0x8000_0001, 0xffff_ffff_8000_0000].map(|f| answer(0x8000_0001, f)), [0, 0, 0]);
            for unknown in [0, 0x8000_0002, 0x8000_0003, 0x8000_7ffe, 0xc000_8000, 0x8400_0000] {
                assert_eq!((answer(0x8000_0001, unknown), answer(unknown, 0)), (-1, -1), "{unknown:#x}");
            }
        }
    }

    #[test]
    fn a_guest_is_told_what_holds_on_its_cpus() {
        assert_eq!(features(cpus(NotAffected, false)), [1, -2, 1]);
        assert_eq!(features(cpus(NotAffected, true)), [1, -2, 1]);
        assert_eq!(features(cpus(Mitigated, false)), [0, -2, 0]);
        assert_eq!(features(cpus(Mitigated, true)), [0, -1, 0]);
        assert_eq!(features(cpus(Vulnerable, true)), [-1, -1, -1]);
        assert_eq!(features(cpus(Vulnerable, false)), [-1, -1, -1]);
    }

    #[test]
    fn each_workaround_has_its_own_answer() {
        let protections = Protections { v2: NotAffected, history: Mitigated, store_bypass: Vulnerable };
        assert_eq!(features(Cpus { protections, ssbs: false }), [1, -1, 0]);
        let protections = Protections { v2: Vulnerable, history: NotAffected, store_bypass: Mitigated };
        assert_eq!(features(Cpus { protections, ssbs: false }), [-1, -2, 1]);
    }

    #[test]
    fn a_workaround_that_is_offered_succeeds_and_the_state_of_store_bypass_cannot_be_changed() {
        let answers = |cpus| WORKAROUNDS.map(|function| call([function, 0, 0, 0], cpus) as i64);
        assert_eq!(answers(cpus(NotAffected, false)), [0, -1, 0]);
        assert_eq!(answers(cpus(Mitigated, false)), [0, -1, 0]);
        assert_eq!(answers(cpus(Vulnerable, true)), [-1, -1, -1]);
    }
}
