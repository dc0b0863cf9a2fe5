//! PCI functions that are hidden from dom0.
//!
//! dom0 reads and writes configuration space itself, so a hidden function has to look like an empty slot: its page of
//! the ECAM is left out of dom0's address space, and reads of it return all ones. The bridges above it keep their bus
//! numbers and windows ([`Bridge`]), so that it cannot get another place; dom0's accesses to them trap, and EL2 carries
//! them out.
//!
//! The hidden functions are those of the option `dom0_pci_hide=SSSS:BB:DD.F,...` (hexadecimal, as `lspci` writes them)
//! and EL2's own console where that is a PCI function, as on Graviton3: dom0 must neither drive it nor move its BAR.
//! Their numbers are those that the firmware has given.

use super::BuildError;
use crate::host::cmdline::DOM0_PCI_HIDE;
use crate::ids::{Pa, Sbdf};
use crate::pci::ConfigSpace;
use crate::pci::bridge::Bridge;
use crate::pci::topology::{Buses, FUNCTION, Unknown, surroundings};
use crate::platform::{Machine, PciHost};
use crate::util::range::Range;
use alloc::format;
use alloc::vec::Vec;

/// Header Type of a function that is no bridge, in the word that has it.
const HEADER_TYPE: u32 = 0x7f << 16;

/// What dom0 does not see of configuration space as it is.
#[derive(Default)]
pub struct Hidden {
    /// ECAM pages that look like empty slots.
    pub absent: Vec<Range>,
    /// Bridges above hidden functions.
    pub bridges: Vec<Bridge>,
}

impl Hidden {
    /// All ECAM pages that dom0 may not access itself.
    pub fn pages(&self) -> impl Iterator<Item = Range> {
        self.absent.iter().copied().chain(self.bridges.iter().map(Bridge::page))
    }
}

/// Returns the functions that the command line hides.
///
/// # Errors
///
/// The part of the option's value that is malformed or is on no bus of any PCI host.
pub fn hidden_by_option(machine: &Machine) -> Result<Vec<Sbdf>, &str> {
    let line = machine.bootargs.split_ascii_whitespace().filter_map(|word| word.split_once('='));
    let mut functions = Vec::new();
    for (_, value) in line.filter(|&(name, _)| name == DOM0_PCI_HIDE) {
        for text in value.split(',') {
            functions.push(function(machine, text).ok_or(text)?);
        }
    }
    Ok(functions)
}

fn function(machine: &Machine, text: &str) -> Option<Sbdf> {
    let function: Sbdf = text.parse().ok()?;
    machine.pci_host(function).map(|_| function)
}

/// Finds what dom0 may not access of configuration space so that it does not reach these functions.
///
/// # Errors
///
/// A function that cannot be told from others.
pub fn hide(machine: &Machine, functions: &[Sbdf], config: &impl ConfigSpace) -> Result<Hidden, BuildError> {
    let mut hidden = Hidden::default();
    for &function in functions {
        let of_segment = machine.pci.iter().filter(|host| host.segment == function.segment);
        let ecams: Vec<Buses> = of_segment.map(Buses::of).collect();
        let found = surroundings(&ecams, function.rid, config).map_err(|error| match error {
            Unknown::NoBus => BuildError(format!("{function}: no PCI host has its bus")),
            Unknown::NoWay => BuildError(format!(
                "{function}: no bridge leads to its bus: the firmware has not numbered the buses, and dom0 would choose \
                 what the number means"
            )),
        })?;
        log::info!("dom0: {function} is hidden; {} bridges keep their buses and windows", found.bridges.len());
        hidden.absent.extend(found.pages.into_iter().map(|page| Range::new(page, FUNCTION)));
        for page in found.bridges {
            if !hidden.bridges.iter().any(|bridge| bridge.page().base == page) {
                hidden.bridges.push(Bridge::new(page, config));
            }
        }
    }
    Ok(hidden)
}

/// Returns the function that has a BAR in the page of `at`. Follows bridges as the firmware has configured them.
/// Configuration space is only read.
pub fn function_at(host: &PciHost, at: Pa, config: &impl ConfigSpace) -> Option<Sbdf> {
    let mut found = None;
    Buses::of(host).visit(config, |rid, page, header| {
        if header & HEADER_TYPE == 0 && has_bar_at(host, page, at, config) {
            found = Some(Sbdf { segment: host.segment, rid });
        }
        found.is_none()
    });
    found
}

/// Whether a memory BAR starts in the page of `at`. The BAR's size is not known, since reading it would take a write.
fn has_bar_at(host: &PciHost, function: Pa, at: Pa, config: &impl ConfigSpace) -> bool {
    let mut index = 0;
    while index < 6 {
        let bar = |index: u64| config.read32(function.add(0x10 + 4 * index));
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
    use crate::pci::fake::Fake;
    use crate::platform::acpi::testing::{Memory, graviton3};

    /// Configuration space of a root port at 0001:00:02.0 and of a function on bus 3 behind it. The second of the
    /// function's two BARs is the console's.
    fn config(host: &PciHost) -> Fake {
        let fake = Fake::default();
        let function = |rid, fields: &[(u64, u32)]| fake.function(Buses::of(host).page(rid).unwrap(), fields);
        function(0, &[]);
        function(0x10, &[(0x0c, 0x0081_0000), (0x18, 0x0003_0300)]);
        function(0x13, &[(0x0c, 0x0081_0000), (0x18, 0x0000_0000)]);
        function(0x300, &[(0x10, 0x4), (0x14, 0x1e0), (0x18, 0xe2f0_0000)]);
        fake
    }

    const CONSOLE: Sbdf = Sbdf { segment: 1, rid: 0x300 };

    #[test]
    fn the_console_of_a_graviton3_is_found_behind_its_bridge() {
        let machine = Memory::with(&graviton3()).read().unwrap();
        let host = &machine.pci[0];
        let fake = config(host);
        let uart = machine.uart.unwrap().regs.base;
        assert_eq!(function_at(host, uart, &fake), Some(CONSOLE));
        assert_eq!(function_at(host, Pa(0x1e0_0000_0000), &fake), Some(CONSOLE));
        assert_eq!(function_at(host, Pa(0xe2f0_1000), &fake), None);
    }

    #[test]
    fn bars_of_all_ones_are_no_bars() {
        let machine = Memory::with(&graviton3()).read().unwrap();
        let fake = Fake::default();
        let ones: Vec<(u64, u32)> = (0x10..0x28).step_by(4).map(|at| (at, 0xffff_fff4)).collect();
        fake.function(Buses::of(&machine.pci[0]).page(0).unwrap(), &ones);
        assert_eq!(function_at(&machine.pci[0], Pa(0xe2f0_0000), &fake), None);
    }

    #[test]
    fn a_hidden_function_and_the_bridges_above_it_are_kept_from_dom0() {
        let machine = Memory::with(&graviton3()).read().unwrap();
        let fake = config(&machine.pci[0]);
        let hidden = hide(&machine, &[CONSOLE, CONSOLE], &fake).unwrap();
        let pages: Vec<u64> = hidden.pages().map(|page| page.base.0).collect();
        assert_eq!(pages, [0xe0_1030_0000, 0xe0_1030_0000, 0xe0_1001_0000]);
        // The bridge is not moved to another bus.
        let [bridge] = &hidden.bridges[..] else { panic!("one bridge") };
        bridge.write(&fake, 0x18, 4, 0x0007_0700);
        assert_eq!(function_at(&machine.pci[0], Pa(0xe2f0_0000), &fake), Some(CONSOLE));
        let error = hide(&machine, &[Sbdf { segment: 1, rid: 0x900 }], &fake).err().unwrap();
        assert!(format!("{error}").starts_with("0001:09:00.0: no bridge"), "{error}");
    }

    #[test]
    fn the_option_names_functions_as_lspci_does() {
        let mut machine = Memory::with(&graviton3()).read().unwrap();
        assert_eq!(hidden_by_option(&machine), Ok(Vec::new()));
        machine.bootargs.push_str("loglvl=all dom0_pci_hide=0001:03:00.0,0001:ff:1f.7");
        assert_eq!(hidden_by_option(&machine).unwrap(), [CONSOLE, Sbdf { segment: 1, rid: 0xffff }]);
        for bad in ["0000:03:00.0", "0001:03:20.0", "0001:03:00.8", "03:00.0", "", "0001:03:00"] {
            machine.bootargs.clear();
            machine.bootargs.push_str("dom0_pci_hide=");
            machine.bootargs.push_str(bad);
            assert_eq!(hidden_by_option(&machine), Err(bad));
        }
    }
}
