//! Access to the firmware's tables in memory after boot.
//!
//! EL2's map leaves out memory that the firmware has reserved, because some of it may be Secure. Tables are mapped when
//! they are first read, and only if the firmware describes the addresses as memory.

use super::el2_map;
use crate::ids::Pa;
use crate::platform::Machine;
use crate::platform::acpi::PhysicalMemory;
use crate::util::PAGE;
use crate::util::range::Range;

/// The memory of a machine according to the firmware.
pub struct FirmwareMemory(pub &'static Machine);

impl PhysicalMemory for FirmwareMemory {
    fn bytes(&self, at: Pa, length: usize) -> Option<&[u8]> {
        let wanted = Range::new(at, length as u64);
        at.0.checked_add(length as u64)?;
        // Page by page, since a table may span two of the firmware's ranges.
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
        // SAFETY: the loop has checked or mapped every page; after boot neither the firmware nor EL2 writes to the
        // tables.
        Some(unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(at.0 as usize), length) })
    }
}
