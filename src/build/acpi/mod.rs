//! dom0 on a machine that ACPI describes.
//!
//! There is no device tree to edit, so dom0 gets one of two things, by `dom0_acpi=`:
//!
//! * `on`: ACPI tables. Only AML knows the PCI hosts' windows and the platform's devices, so DSDT and SSDTs are passed
//!   through; what describes CPUs, GIC, PSCI and console is written anew ([`tables`]), and the SMMUs are taken out of
//!   the IORT (`iort`). A kernel started without firmware looks for all this behind an EFI system table, which it
//!   finds by the properties that its own EFI stub would have left in a device tree with nothing else in it ([`efi`]).
//! * `off`: a device tree made from [`Machine`] alone ([`tree`]): CPUs, memory, GIC, timer, console, and the PCI hosts
//!   with the windows of the word `pci_windows=`. No platform devices, and no legacy PCI interrupts.
//!
//! The console that dom0 sees is a PL011 whatever the machine has. It is at the machine's own PL011, where AML or the
//! SPCR say that there is one. On other machines it has a page of EL2's memory as its address: nothing else of dom0's
//! can be there.

mod aml;
pub mod efi;
mod iort;
pub mod tables;
pub mod tree;

use crate::build::fdt::edit::{Dom0FdtError, vgicr_region};
use crate::ids::{Intid, Pa};
use crate::platform::{Machine, UartKind};
use crate::util::range::Range;
use crate::vgic::VGICR_SIZE;

/// Size of the console's registers.
const UART_SIZE: u64 = 0x1000;
/// What addresses of virtual devices are aligned to.
const FRAME: u64 = 0x1_0000;

/// Where dom0 sees its virtual devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Its redistributors.
    pub gicr: Range,
    /// Its console and that one's interrupt.
    pub console: Option<(Range, Intid)>,
}

/// Chooses places for the virtual devices. `own` is memory that EL2 has for good: what does not fit where the machine
/// has the like goes to its addresses.
///
/// # Errors
///
/// [`Dom0FdtError::NoRedistributorRoom`] where not even that is large enough.
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
    let gicr = match vgicr_region(machine, vcpus) {
        Ok(region) => region,
        Err(error) => {
            let region = Range::new(own.base.add(FRAME), VGICR_SIZE.saturating_mul(vcpus as u64));
            if own.covers(region) { region } else { return Err(error) }
        }
    };
    Ok(Places { gicr, console })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::acpi::testing::{GICV4, Memory, graviton3};

    const POOL: Range = Range::new(Pa(0x8000_8000), 32 << 20);

    #[test]
    fn virtual_devices_are_where_the_machine_has_the_like() {
        let machine = Memory::of(GICV4).read().unwrap();
        let places = places(&machine, 4, POOL).unwrap();
        assert_eq!(places.gicr, Range::new(Pa(0x80a_0000), 0x8_0000));
        assert_eq!(places.console, Some((Range::new(Pa(0x900_0000), 0x1000), Intid(33))));
    }

    #[test]
    fn what_the_machine_has_no_place_for_is_at_addresses_of_el2s_memory() {
        let mut machine = Memory::with(&graviton3()).read().unwrap();
        let found = places(&machine, 64, POOL).unwrap();
        // 64 of 128 KiB fit into one run of 32 of 256 KiB.
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
