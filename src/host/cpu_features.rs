//! The kinds of CPU that a machine has, and what guests therefore have.
//!
//! A vCPU may run on any CPU, so guests have what all of them have. Each CPU says what it is when it comes up, and takes away
//! what it lacks. When the first domain is built, that is over: guests have looked. A CPU that comes later and lacks
//! something stays out. What is not in ID registers (cache geometry, MIDR, errata) is each CPU's own.

use crate::arch::features::{Features, IdRegs};
use crate::sync::{Lock, Once, Rank};

/// Why a CPU that came late stays out.
const LACKS: &str = "it came late, and lacks what guests have been shown";

/// What all CPUs have.
pub struct Kinds {
    so_far: Lock<Features>,
    settled: Once<Features>,
}

impl Kinds {
    /// Those of the boot CPU.
    #[must_use]
    pub fn new(boot: &IdRegs) -> Kinds {
        Kinds { so_far: Lock::new(Rank::Domain, Features::decide(boot)), settled: Once::new() }
    }

    /// A CPU comes up. `true`: guests have less because of it.
    ///
    /// # Errors
    ///
    /// Why it cannot run guests, as a sentence.
    pub fn join(&self, cpu: &IdRegs) -> Result<bool, &'static str> {
        if let Some(why) = Features::refusal(cpu) {
            return Err(why);
        }
        let mut so_far = self.so_far.lock();
        let mut with = *so_far;
        with.restrict(cpu);
        let less = !with.offers_what(&so_far);
        if self.settled.get().is_none() {
            *so_far = with;
            Ok(less)
        } else if less {
            Err(LACKS)
        } else {
            Ok(false)
        }
    }

    /// From now on nothing is taken away: domains are going to be built.
    pub fn settle(&self) {
        let so_far = self.so_far.lock();
        // The second time changes nothing.
        self.settled.call_once(|| *so_far);
    }

    /// What guests have, once it is settled.
    #[must_use]
    pub fn features(&self) -> Option<&Features> {
        self.settled.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::features::ids::reg;

    /// GICv3, 4 KiB granule; a PA range, and PAuth or not.
    fn cpu(pa_range: u64, pauth: u64) -> IdRegs {
        IdRegs::zero().with(reg::PFR0, 0x0100_0011).with(reg::MMFR0, pa_range).with(reg::ISAR1, pauth << 4)
    }

    #[test]
    fn guests_have_what_all_cpus_have() {
        let kinds = Kinds::new(&cpu(5, 1));
        assert_eq!(kinds.join(&cpu(5, 1)), Ok(false));
        assert_eq!(kinds.join(&cpu(4, 1)), Ok(true));
        assert_eq!(kinds.join(&cpu(5, 0)), Ok(true));
        assert_eq!(kinds.join(&cpu(6, 2)), Ok(false), "it has more, which nobody sees");
        assert!(kinds.features().is_none());
        kinds.settle();
        let features = kinds.features().unwrap();
        assert_eq!((features.stage2().pa_bits, features.pauth()), (44, false));
    }

    #[test]
    fn a_cpu_that_comes_when_guests_have_looked_must_have_what_they_saw() {
        let kinds = Kinds::new(&cpu(4, 1));
        kinds.settle();
        assert_eq!(kinds.join(&cpu(5, 1)), Ok(false));
        assert_eq!(kinds.join(&cpu(4, 0)), Err(LACKS));
        assert_eq!(kinds.join(&cpu(3, 1)), Err(LACKS));
        assert!(kinds.features().unwrap().pauth());
    }

    #[test]
    fn a_cpu_that_cannot_run_doorward_takes_nothing_away() {
        let kinds = Kinds::new(&cpu(5, 1));
        assert!(kinds.join(&cpu(0, 0).with(reg::PFR0, 0x11)).is_err(), "no GIC system registers");
        kinds.settle();
        assert_eq!(kinds.features().map(|f| f.stage2().pa_bits), Some(48));
    }
}
