//! MCFG: PCI configuration spaces (PCI Firmware Specification 3.3, 4.1.2).
//!
//! The address of an entry is that of bus 0 of its segment, even if the entry starts at another bus: on some machines
//! (the virtualised Graviton4) several entries have the same address and differ only in their buses. The ECAM of a
//! [`PciHost`] starts at its first bus.

use super::{AcpiError, Fields};
use crate::ids::Pa;
use crate::platform::{Machine, Part, PciHost};
use crate::util::range::Range;
use arrayvec::ArrayVec;

/// The offset of the first entry, after the header and eight reserved bytes.
const ENTRIES: usize = 44;
const ENTRY: usize = 16;

/// Adds a host for each entry. The hosts have no windows, because those are only in AML.
pub(super) fn read(mcfg: Fields<'_>, machine: &mut Machine) -> Result<(), AcpiError> {
    let entries = mcfg.rest(ENTRIES);
    for at in (0..entries.bytes.len()).step_by(ENTRY) {
        let entry = entries.part(at, ENTRY)?;
        let (base, segment) = (entry.u64(0)?, entry.u16(8)?);
        let (first, last) = (entry.u8(10)?, entry.u8(11)?);
        let ecam = base.checked_add(u64::from(first) << 20).map(|base| {
            let buses = u64::from(last.saturating_sub(first)) + 1;
            Range::new(Pa(base), buses << 20)
        });
        let Some(ecam) = ecam.filter(|ecam| first <= last && ecam.base.0.checked_add(ecam.size).is_some()) else {
            let object = format_args!("ACPI: MCFG: segment {segment} at {base:#x}");
            machine.warn(object, "its buses or its address are invalid: this PCI host is not used");
            continue;
        };
        let host = PciHost {
            ecam,
            segment,
            buses: (first, last),
            windows: ArrayVec::new(),
            msi_map_mask: u32::MAX,
            msi_map: ArrayVec::new(),
            iommu_map_mask: u32::MAX,
            iommu_map: ArrayVec::new(),
            // DMA on servers snoops caches (SBSA).
            coherent: true,
        };
        if machine.pci.try_push(host).is_err() {
            machine.leave_out(Part::PciHost);
        }
    }
    Ok(())
}
