//! Where dom0 sees its console device with ports (`domain::ports`), which no machine has.
//!
//! **Registers.** The first page of EL2's own memory that dom0's emulated UART may not take. It is RAM of the machine, so
//! no device and no PCI window is there, and EL2 keeps it for good, so it is no RAM of dom0's. On a machine with ACPI that
//! is the only way: its devices are in AML, which EL2 does not interpret.
//!
//! **Interrupt.** An SPI that the machine's GIC does not have: dom0's has some more. Only if the GIC has all that there
//! can be, one of them that no device has: with a device tree, one that it names nowhere; with ACPI, one of an SMMU,
//! since EL2 keeps the SMMUs for itself.

use crate::ids::{Intid, Pa};
use crate::platform::{Machine, fdt};
use crate::util::PAGE;
use crate::util::range::Range;
use crate::virtio::mmio::REGISTERS;
use alloc::vec::Vec;

/// The first SPI, and the one behind the last (IHI 0069, 2.2.1).
const FIRST: u32 = 32;
const END: u32 = 1020;
/// Virtual GICs have whole groups of SPIs, as others have.
const GROUP: u32 = 32;
/// Alignment of the virtual devices' addresses; the first page is that of a console.
const FRAME: u64 = 0x1_0000;

/// Returns the registers and the interrupt, and the number of SPIs of dom0's virtual GIC. `spis` is that of the machine's,
/// `pool` the memory that EL2 keeps, and `fdt` the machine's device tree, if that describes it. `None`: there is no place.
#[must_use]
pub fn place(machine: &Machine, spis: u32, pool: Range, fdt: Option<&[u8]>) -> Option<((Range, Intid), u32)> {
    let base = Pa(pool.base.0.checked_next_multiple_of(FRAME)?).add(PAGE);
    let regs = Range::new(base, REGISTERS);
    let (irq, spis) = interrupt(machine, spis, fdt)?;
    pool.covers(regs).then_some(((regs, irq), spis))
}

fn interrupt(machine: &Machine, spis: u32, fdt: Option<&[u8]>) -> Option<(Intid, u32)> {
    let more = spis.next_multiple_of(GROUP) + GROUP;
    if FIRST + more <= END {
        return Some((Intid(FIRST + spis), more));
    }
    let irq = match fdt {
        Some(blob) => {
            let mut named: Vec<Intid> = machine.uart.and_then(|uart| uart.irq).into_iter().collect();
            fdt::for_each_device(blob, |device| named.extend(device.spis.iter().map(|spi| spi.intid))).ok()?;
            (FIRST..FIRST + spis).rev().map(Intid).find(|irq| !named.contains(irq))
        }
        None => machine.smmus.iter().find_map(|smmu| smmu.event.or(smmu.gerror)),
    };
    irq.map(|irq| (irq, spis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::acpi::testing::{GICV4, Memory};
    use crate::platform::testing::DOM0;

    const POOL: Range = Range::new(Pa(0x8000_8000), 32 << 20);

    #[test]
    fn the_device_is_in_el2s_memory_with_an_interrupt_that_no_device_can_have() {
        let machine = fdt::read(DOM0).unwrap();
        // The first page of the first frame is left to a console of dom0's (`acpi::places`).
        let regs = Range::new(Pa(0x8001_1000), 0x1000);
        for (spis, irq, more) in [(256, 288, 288), (32, 64, 64), (924, 956, 960), (900, 932, 960)] {
            assert_eq!(place(&machine, spis, POOL, Some(DOM0)), Some(((regs, Intid(irq)), more)), "{spis}");
        }
        assert_eq!(place(&machine, 256, Range::new(Pa(0x8000_8000), 0x9000), None), None, "too small");
    }

    #[test]
    fn on_a_gic_with_all_spis_it_gets_one_that_no_device_has() {
        let machine = fdt::read(DOM0).unwrap();
        let ((_, irq), spis) = place(&machine, 988, POOL, Some(DOM0)).unwrap();
        assert_eq!((irq, spis), (Intid(1019), 988));
        let mut named = Vec::new();
        fdt::for_each_device(DOM0, |device| named.extend(device.spis.iter().map(|spi| spi.intid))).unwrap();
        assert!(named.len() > 10 && !named.contains(&irq));
        let mut with_acpi = Memory::of(GICV4).read().unwrap();
        let of_smmu = with_acpi.smmus[0].event;
        assert_eq!(place(&with_acpi, 988, POOL, None).map(|((_, irq), _)| irq), of_smmu);
        assert!(of_smmu.is_some());
        with_acpi.smmus.clear();
        assert_eq!(place(&with_acpi, 988, POOL, None), None, "nothing is known to be free");
    }
}
