//! FADT: the PSCI conduit and the address of the DSDT (ACPI 6.5, 5.2.9).

use super::{AcpiError, Fields};
use crate::ids::Pa;
use crate::platform::Conduit;

/// Offsets of fields in the table.
pub(crate) const DSDT: usize = 40;
pub(crate) const ARM_BOOT_ARCH: usize = 129;
pub(crate) const X_DSDT: usize = 140;
/// Bits of ARM_BOOT_ARCH (table 5.12).
pub(crate) const PSCI_COMPLIANT: u16 = 1 << 0;
pub(crate) const PSCI_USE_HVC: u16 = 1 << 1;

/// Reads the conduit; `None` if the firmware does not claim to be PSCI compliant.
pub(super) fn conduit(fadt: Fields<'_>) -> Result<Option<Conduit>, AcpiError> {
    let flags = fadt.u16(ARM_BOOT_ARCH)?;
    Ok(match (flags & PSCI_COMPLIANT != 0, flags & PSCI_USE_HVC != 0) {
        (false, _) => None,
        (true, false) => Some(Conduit::Smc),
        (true, true) => Some(Conduit::Hvc),
    })
}

/// Reads the DSDT's address: the 64-bit field, or the 32-bit one if that is zero.
///
/// # Errors
///
/// [`AcpiError::Short`].
pub fn dsdt(fadt: Fields<'_>) -> Result<Option<Pa>, AcpiError> {
    let long = fadt.u64(X_DSDT)?;
    let at = if long != 0 { long } else { u64::from(fadt.u32(DSDT)?) };
    Ok((at != 0).then_some(Pa(at)))
}
