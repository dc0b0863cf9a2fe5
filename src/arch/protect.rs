//! Makes this CPU do what [`super::speculation`] has decided for it.

use super::speculation::{Measure, Mitigations, Why};
use super::sysreg::{Readable, SCTLR_EL2, Writeable};
use super::{psci, vectors};

/// SCTLR_EL2.DSSBS: PSTATE.SSBS after an exception to EL2. It is 0 when a CPU comes up.
const SCTLR_DSSBS: u64 = 1 << 44;

/// Installs the vectors for this CPU, and sets whether stores are bypassed. The CPU has not run a guest since it came up.
pub fn apply(mitigations: &Mitigations) {
    vectors::harden(mitigations.entry());
    match mitigations.store_bypass {
        Measure::AlwaysOn => psci::set_workaround_2(true),
        Measure::Vulnerable(Why::Off) if mitigations.ssbs => SCTLR_EL2.set(SCTLR_EL2.get() | SCTLR_DSSBS),
        Measure::Vulnerable(Why::Off) => psci::set_workaround_2(false),
        _ => {}
    }
}
