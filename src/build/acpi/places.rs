//! Addresses of dom0's virtual redistributors and console.

use crate::build::fdt::edit::{Dom0FdtError, FRAME, vgicr_place};
use crate::ids::{Intid, Pa};
use crate::platform::{Machine, UartKind};
use crate::util::range::Range;

/// Size of the console's registers in bytes.
const UART_SIZE: u64 = 0x1000;

/// Where dom0 sees its virtual devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// The redistributors.
    pub gicr: Range,
    /// The console's registers and its interrupt.
    pub console: Option<(Range, Intid)>,
}

/// Chooses addresses for the virtual devices: those of the machine's own redistributors and PL011 or, where these are
/// too small or do not exist, addresses in `own`, which is memory that EL2 keeps for good.
///
/// # Errors
///
/// [`Dom0FdtError::NoRedistributorRoom`] if `own` is too small as well.
pub fn places(machine: &Machine, vcpus: usize, own: Range) -> Result<Places, Dom0FdtError> {
    let start = Pa(own.base.0.next_multiple_of(FRAME));
    let own = Range::between(start, own.end());
    let console = machine.uart.and_then(|uart| {
        let regs = match uart.kind {
            UartKind::Pl011 => uart.regs,
            UartKind::Ns16550 { .. } => Range::new(own.base, UART_SIZE),
        };
        Some((regs, uart.irq?))
    });
    Ok(Places { gicr: vgicr_place(machine, vcpus, own)?, console })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::acpi::testing::{GICV4, Memory, graviton3};

    const POOL: Range = Range::new(Pa(0x8000_8000), 32 << 20);

    #[test]
    fn virtual_devices_are_at_the_addresses_of_the_machines_own() {
        let machine = Memory::of(GICV4).read().unwrap();
        let places = places(&machine, 4, POOL).unwrap();
        assert_eq!(places.gicr, Range::new(Pa(0x80a_0000), 0x8_0000));
        assert_eq!(places.console, Some((Range::new(Pa(0x900_0000), 0x1000), Intid(33))));
    }

    #[test]
    fn virtual_devices_that_the_machine_has_no_room_for_are_in_el2s_memory() {
        let mut machine = Memory::with(&graviton3()).read().unwrap();
        machine.gic.size_redists(4);
        let found = places(&machine, 64, POOL).unwrap();
        // 64 virtual redistributors of 128 KiB fit into a region of 32 physical ones of 256 KiB.
        assert_eq!(found.gicr, Range::new(Pa(0xb8_0014_0000), 0x80_0000));
        assert_eq!(found.console, Some((Range::new(Pa(0x8001_0000), 0x1000), Intid(408))));
        machine.gic.redists[0].size = 0x50_0000;
        machine.gic.redists[1].size = 0x50_0000;
        let found = places(&machine, 64, POOL).unwrap();
        assert_eq!(found.gicr, Range::new(Pa(0x8002_0000), 0x80_0000));
        assert!(!found.gicr.overlaps(found.console.unwrap().0));
        assert!(places(&machine, 64, Range::new(Pa(0), 0x80_0000)).is_err());
    }
}
