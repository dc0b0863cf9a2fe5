//! PCI functions that are hidden from dom0.
//!
//! dom0 reads and writes configuration space itself, so a hidden function has to look like an empty slot: its page of
//! the ECAM is left out of dom0's address space, and reads of it return all ones.
//!
//! The hidden functions are those of the option `dom0_pci_hide=SSSS:BB:DD.F,...` (hexadecimal, as `lspci` writes them)
//! and EL2's own console where that is a PCI function, as on Graviton3: dom0 must neither drive it nor move its BAR.

use crate::host::cmdline::DOM0_PCI_HIDE;
use crate::ids::Pa;
use crate::platform::{Machine, PciHost};
use crate::util::range::Range;
use alloc::vec::Vec;

/// Size of one function's configuration space in bytes (PCI Express 6.0, 7.2.2).
const FUNCTION: u64 = 4096;
/// The value that a read of an empty slot returns.
const EMPTY_SLOT: u32 = u32::MAX;

/// Returns the ECAM pages of the functions that the command line hides.
///
/// # Errors
///
/// The part of the option's value that is malformed or is on no bus of any PCI host.
pub fn hidden_by_option(machine: &Machine) -> Result<Vec<Range>, &str> {
    let line = machine.bootargs.split_ascii_whitespace().filter_map(|word| word.split_once('='));
    let mut pages = Vec::new();
    for (_, value) in line.filter(|&(name, _)| name == DOM0_PCI_HIDE) {
        for text in value.split(',') {
            pages.push(page_of(machine, text).ok_or(text)?);
        }
    }
    Ok(pages)
}

fn page_of(machine: &Machine, text: &str) -> Option<Range> {
    let number = |text: &str| u16::from_str_radix(text, 16).ok();
    let (segment, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let (segment, bus) = (number(segment)?, u8::try_from(number(bus)?).ok()?);
    let (device, function) = (number(device).filter(|&n| n < 32)?, number(function).filter(|&n| n < 8)?);
    let host =
        machine.pci.iter().find(|host| host.segment == segment && (host.buses.0..=host.buses.1).contains(&bus))?;
    Some(page(host, bus, u64::from(device), u64::from(function)))
}

/// Returns a function's page of the ECAM.
fn page(host: &PciHost, bus: u8, device: u64, function: u64) -> Range {
    let bus = u64::from(bus.saturating_sub(host.buses.0));
    Range::new(host.ecam.base.add(bus << 20 | device << 15 | function << 12), FUNCTION)
}

/// Returns the ECAM page of the function that has a BAR in the page of `at`. Follows bridges as the firmware has
/// configured them. Configuration space is only read.
pub fn function_at(host: &PciHost, at: Pa, read: impl Fn(Pa) -> u32) -> Option<Range> {
    let mut seen = [false; 256];
    let mut buses = alloc::vec![host.buses.0];
    while let Some(bus) = buses.pop() {
        if core::mem::replace(&mut seen[usize::from(bus)], true) {
            continue;
        }
        for device in 0..32 {
            let header = |function| read(page(host, bus, device, function).base.add(0x0c)) >> 16;
            for function in 0..8 {
                let page = page(host, bus, device, function);
                if read(page.base) == EMPTY_SLOT {
                    if function == 0 { break } else { continue }
                }
                match header(function) & 0x7f {
                    0 if has_bar_at(host, page.base, at, &read) => return Some(page),
                    1 => {
                        let secondary = (read(page.base.add(0x18)) >> 8) as u8;
                        if (host.buses.0..=host.buses.1).contains(&secondary) {
                            buses.push(secondary);
                        }
                    }
                    _ => {}
                }
                let is_single = function == 0 && header(0) & 0x80 == 0;
                if is_single {
                    break;
                }
            }
        }
    }
    None
}

/// Whether a memory BAR starts in the page of `at`. The BAR's size is not known, since reading it would take a write.
fn has_bar_at(host: &PciHost, function: Pa, at: Pa, read: &impl Fn(Pa) -> u32) -> bool {
    let mut index = 0;
    while index < 6 {
        let bar = |index: u64| read(function.add(0x10 + 4 * index));
        let low = bar(index);
        index += 1;
        if low & 1 != 0 {
            continue;
        }
        let mut base = u64::from(low & !0xf);
        if low >> 1 & 0b11 == 0b10 {
            base |= u64::from(bar(index)) << 32;
            index += 1;
        }
        if base != 0 && cpu_address(host, base) & !(FUNCTION - 1) == at.0 & !(FUNCTION - 1) {
            return true;
        }
    }
    false
}

/// Returns the CPU's address for a PCI address: through the window that contains it, or unchanged if none does.
fn cpu_address(host: &PciHost, pci: u64) -> u64 {
    let through = host.windows.iter().find_map(|window| {
        let offset = pci.checked_sub(window.pci_base)?;
        (offset < window.cpu.size).then(|| window.cpu.base.0 + offset)
    });
    through.unwrap_or(pci)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::acpi::testing::{Memory, graviton3};
    use alloc::collections::BTreeMap;

    /// Configuration space of a root port at 0001:00:02.0 and of a function on bus 3 behind it. The second of the
    /// function's two BARs is the console's.
    fn config(host: &PciHost) -> BTreeMap<u64, u32> {
        let mut words = BTreeMap::new();
        let mut function = |bus, device, number, fields: &[(u64, u32)]| {
            let base = page(host, bus, device, number).base.0;
            (0..16).for_each(|word| {
                words.insert(base + 4 * word, 0);
            });
            words.extend(fields.iter().map(|&(at, value)| (base + at, value)));
        };
        function(0, 0, 0, &[(0, 0x0200_1d0f)]);
        function(0, 2, 0, &[(0, 0x0200_1d0f), (0x0c, 0x0081_0000), (0x18, 0x0003_0300)]);
        function(0, 2, 3, &[(0, 0x0200_1d0f), (0x0c, 0x0081_0000), (0x18, 0x0000_0000)]);
        function(3, 0, 0, &[(0, 0x8250_1d0f), (0x10, 0x4), (0x14, 0x1e0), (0x18, 0xe2f0_0000)]);
        words
    }

    #[test]
    fn the_console_of_a_graviton3_is_found_behind_its_bridge() {
        let machine = Memory::with(&graviton3()).read().unwrap();
        let host = &machine.pci[0];
        let words = config(host);
        let read = |at: Pa| words.get(&at.0).copied().unwrap_or(EMPTY_SLOT);
        let uart = machine.uart.unwrap().regs.base;
        assert_eq!(function_at(host, uart, read), Some(Range::new(Pa(0xe0_1030_0000), 0x1000)));
        assert_eq!(function_at(host, Pa(0x1e0_0000_0000), read), Some(Range::new(Pa(0xe0_1030_0000), 0x1000)));
        assert_eq!(function_at(host, Pa(0xe2f0_1000), read), None);
    }

    #[test]
    fn the_search_ends_on_circular_bridges_and_on_bars_of_all_ones() {
        let machine = Memory::with(&graviton3()).read().unwrap();
        let host = &machine.pci[0];
        // Every function is a bridge back to bus 1.
        let read = |at: Pa| match at.0 & 0xfff {
            0x0c => 0x0081_0000,
            0x18 => 0x0001_0100,
            _ => 0,
        };
        assert_eq!(function_at(host, Pa(0xe2f0_0000), read), None);
        let ones = |at: Pa| if at.0 & 0xfff == 0x0c { 0 } else { 0xffff_fff4 };
        assert_eq!(function_at(host, Pa(0xe2f0_0000), ones), None);
    }

    #[test]
    fn the_option_names_functions_as_lspci_does() {
        let mut machine = Memory::with(&graviton3()).read().unwrap();
        assert_eq!(hidden_by_option(&machine), Ok(Vec::new()));
        machine.bootargs.push_str("loglvl=all dom0_pci_hide=0001:03:00.0,0001:ff:1f.7");
        let pages = [Range::new(Pa(0xe0_1030_0000), 0x1000), Range::new(Pa(0xe0_1fff_f000), 0x1000)];
        assert_eq!(hidden_by_option(&machine).unwrap(), pages);
        for bad in ["0000:03:00.0", "0001:03:20.0", "0001:03:00.8", "03:00.0", "", "0001:03:00"] {
            machine.bootargs.clear();
            machine.bootargs.push_str("dom0_pci_hide=");
            machine.bootargs.push_str(bad);
            assert_eq!(hidden_by_option(&machine), Err(bad));
        }
    }
}
