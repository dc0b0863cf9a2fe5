//! GTDT: the generic timer's interrupts (ACPI 6.5, 5.2.25).
//!
//! The Secure timer's interrupt is read but not required: EL2 does not use it, and firmware that reserves it for itself
//! gives it as 0 (Graviton2 and 3 do).

use super::{AcpiError, Fields};
use crate::ids::Intid;
use crate::platform::{MachineError, TimerPpis};

/// Offsets of the interrupt fields; each is followed by four bytes of flags.
pub(super) const SECURE_EL1: usize = 48;
pub(super) const EL1: usize = 56;
pub(super) const VIRTUAL: usize = 64;
pub(super) const EL2: usize = 72;

/// Reads the timer's PPIs.
pub(super) fn read(gtdt: Fields<'_>) -> Result<TimerPpis, AcpiError> {
    let at = |offset| gtdt.u32(offset).map(|intid| (intid != 0).then_some(Intid(intid)));
    let (Some(phys), Some(virt), Some(hyp)) = (at(EL1)?, at(VIRTUAL)?, at(EL2)?) else {
        return Err(MachineError::NoTimer.into());
    };
    let phys_s = at(SECURE_EL1)?.filter(|intid| (16..32).contains(&intid.0));
    Ok(TimerPpis { phys_s, phys, virt, hyp })
}
