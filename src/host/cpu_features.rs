//! The CPU features that guests see on a machine whose CPUs differ, and how well guests are protected there.
//!
//! A vCPU may run on any CPU, so guests see only the features that all CPUs have. Each CPU that comes up removes the
//! features that its ID registers lack from the set. Before the first domain is built the set is settled: it does not
//! change afterwards, because guests have read it. A CPU that comes up later and lacks one of these features stays out
//! of service, and so does one that is less protected from attacks on speculation than guests have been told. Values that are not in ID registers (cache geometry, MIDR, errata) remain those of each CPU.

use crate::arch::features::{Features, IdRegs};
use crate::arch::speculation::Protections;
use crate::sync::{Lock, Once, Rank};

/// Why a CPU that came up late stays out of service.
const LACKS: &str = "it lacks a CPU feature that guests already use";

/// Why a CPU that came up late stays out of service.
const LESS_PROTECTED: &str = "it is less protected from attacks on speculation than guests have been told";

/// What guests are told.
#[derive(Clone, Copy)]
struct Told {
    features: Features,
    protections: Protections,
}

/// The features that all CPUs so far have, and how well the worst of them is protected.
pub struct CpuFeatures {
    so_far: Lock<Told>,
    settled: Once<Told>,
}

impl CpuFeatures {
    /// The features of the boot CPU.
    #[must_use]
    pub fn new(boot: &IdRegs) -> CpuFeatures {
        let told = Told { features: Features::decide(boot), protections: Protections::BEST };
        CpuFeatures { so_far: Lock::new(Rank::Domain, told), settled: Once::new() }
    }

    /// Adds a CPU that comes up. Returns `true` if features were removed because of it.
    ///
    /// # Errors
    ///
    /// The reason why it cannot run guests.
    pub fn join(&self, cpu: &IdRegs, protections: Protections) -> Result<bool, &'static str> {
        if let Some(why) = Features::refusal(cpu) {
            return Err(why);
        }
        let mut so_far = self.so_far.lock();
        let mut with = *so_far;
        with.features.restrict(cpu);
        with.protections = with.protections.worst(protections);
        let less = !with.features.offers_same_as(&so_far.features);
        if self.settled.get().is_none() {
            *so_far = with;
            Ok(less)
        } else if less {
            Err(LACKS)
        } else if with.protections != so_far.protections {
            Err(LESS_PROTECTED)
        } else {
            Ok(false)
        }
    }

    /// Settles the set: from now on no feature is removed, because domains are going to be built.
    pub fn settle(&self) {
        let so_far = self.so_far.lock();
        // A second call changes nothing.
        self.settled.call_once(|| *so_far);
    }

    /// The features that guests see, once they are settled.
    #[must_use]
    pub fn settled(&self) -> Option<&Features> {
        self.settled.get().map(|told| &told.features)
    }

    /// How well the worst CPU is protected, once that is settled.
    #[must_use]
    pub fn protections(&self) -> Option<Protections> {
        self.settled.get().map(|told| told.protections)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::features::ids::reg;
    use crate::arch::speculation::Protection;

    /// GICv3, 4 KiB granule; a PA range, and PAuth or not.
    fn cpu(pa_range: u64, pauth: u64) -> IdRegs {
        IdRegs::zero().with(reg::PFR0, 0x0100_0011).with(reg::MMFR0, pa_range).with(reg::ISAR1, pauth << 4)
    }

    #[test]
    fn guests_see_the_features_that_all_cpus_have() {
        let features = CpuFeatures::new(&cpu(5, 1));
        assert_eq!(features.join(&cpu(5, 1), Protections::BEST), Ok(false));
        assert_eq!(features.join(&cpu(4, 1), Protections::BEST), Ok(true));
        assert_eq!(features.join(&cpu(5, 0), Protections::BEST), Ok(true));
        assert_eq!(
            features.join(&cpu(6, 2), Protections::BEST),
            Ok(false),
            "features that earlier CPUs lack stay hidden"
        );
        assert!(features.settled().is_none());
        features.settle();
        let settled = features.settled().unwrap();
        assert_eq!((settled.stage2().pa_bits, settled.pauth()), (44, false));
    }

    #[test]
    fn a_cpu_that_comes_up_after_the_set_is_settled_must_have_all_of_it() {
        let features = CpuFeatures::new(&cpu(4, 1));
        features.settle();
        assert_eq!(features.join(&cpu(5, 1), Protections::BEST), Ok(false));
        assert_eq!(features.join(&cpu(4, 0), Protections::BEST), Err(LACKS));
        assert_eq!(features.join(&cpu(3, 1), Protections::BEST), Err(LACKS));
        assert!(features.settled().unwrap().pauth());
    }

    #[test]
    fn a_cpu_that_cannot_run_guests_removes_no_feature() {
        let features = CpuFeatures::new(&cpu(5, 1));
        assert!(features.join(&cpu(0, 0).with(reg::PFR0, 0x11), Protections::BEST).is_err(), "no GIC system registers");
        features.settle();
        assert_eq!(features.settled().map(|f| f.stage2().pa_bits), Some(48));
    }

    #[test]
    fn guests_are_told_what_holds_on_the_worst_cpu_and_a_worse_one_that_comes_late_is_refused() {
        let mitigated = Protections { v2: Protection::Mitigated, ..Protections::BEST };
        let vulnerable = Protections { v2: Protection::Vulnerable, ..Protections::BEST };
        let features = CpuFeatures::new(&cpu(5, 1));
        assert_eq!(features.join(&cpu(5, 1), mitigated), Ok(false));
        assert_eq!(features.join(&cpu(5, 1), Protections::BEST), Ok(false));
        assert_eq!(features.protections(), None);
        features.settle();
        assert_eq!(features.join(&cpu(5, 1), vulnerable), Err(LESS_PROTECTED));
        assert_eq!(features.join(&cpu(5, 1), Protections::BEST), Ok(false));
        assert_eq!(features.protections(), Some(mitigated));
    }
}
