//! What the firmware left in memory, for those who read its tables after boot.
//!
//! EL2's own map has no memory that the firmware has reserved: some of it may be Secure. Tables are mapped as they are
//! asked for, and only where the firmware says that there is memory.

use super::el2_map;
use crate::ids::Pa;
use crate::platform::Machine;
use crate::platform::acpi::PhysicalMemory;
use crate::util::range::Range;

const PAGE: u64 = 4096;

/// A machine's memory, as far as the firmware described it.
pub struct FirmwareMemory(pub &'static Machine);

impl PhysicalMemory for FirmwareMemory {
    fn bytes(&self, at: Pa, length: usize) -> Option<&[u8]> {
        let wanted = Range::new(at, length as u64);
        at.0.checked_add(length as u64)?;
        // Each page by itself: a table may lie across two of the firmware's ranges.
        let mut page = at.0 & !(PAGE - 1);
        while page < wanted.end().0 {
            let known = self.0.memory.iter().chain(&self.0.reserved).any(|range| range.contains(Pa(page)));
            if !known {
                return None;
            }
            if el2_map::look_up(Pa(page)).is_none() {
                el2_map::map_memory(Range::new(Pa(page), PAGE)).ok()?;
            }
            page += PAGE;
        }
        // SAFETY: memory that is mapped, by the above; the firmware's tables change no more.
        Some(unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(at.0 as usize), length) })
    }
}
