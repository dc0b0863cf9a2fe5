//! PCI windows from the command line.
//!
//! With ACPI, a PCI host's windows are described in AML, which is not interpreted. Where they are needed (for a dom0
//! with a device tree, see `build::acpi`), the user gives them by an option:
//!
//! `pci_windows=SEGMENT:KIND:CPU+SIZE[@PCI],...`, where KIND is `io`, `mem32` or `mem64`, followed by `p` if the window
//! is prefetchable, and all other fields are numbers, hexadecimal with `0x`. If the PCI address is not given, it is the
//! CPU address, or 0 for I/O ports. The windows are in the firmware's log, and in the log of Linux on the bare machine
//! ("root bus resource").

use super::{Machine, MachineError, Part, PciWindow, PciWindowKind};
use crate::ids::Pa;
use crate::util::range::Range;

/// The name of the option.
pub const WORD: &str = "pci_windows";

/// Adds the windows in the machine's command line to its PCI hosts, unless one of them has windows already.
///
/// # Errors
///
/// [`MachineError::BadWindows`] if the option is invalid or names a segment without a host; [`MachineError::TooMany`].
pub fn apply(machine: &mut Machine) -> Result<(), MachineError> {
    let line = machine.bootargs;
    let value = line.split_ascii_whitespace().filter_map(|word| word.split_once('=')).find(|&(name, _)| name == WORD);
    let Some((_, value)) = value else { return Ok(()) };
    let known = machine.pci.iter().any(|host| !host.windows.is_empty());
    if known {
        return Ok(());
    }
    for text in value.split(',') {
        let (segment, window) = parse(text).ok_or(MachineError::BadWindows)?;
        let host = machine.pci.iter_mut().find(|host| host.segment == segment).ok_or(MachineError::BadWindows)?;
        let full = MachineError::TooMany { part: Part::PciWindow, limit: host.windows.capacity() };
        host.windows.try_push(window).map_err(|_| full)?;
    }
    Ok(())
}

fn parse(text: &str) -> Option<(u16, PciWindow)> {
    let mut parts = text.split(':');
    let (segment, kind, place) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let (kind, prefetchable) = match kind.strip_suffix('p') {
        Some(kind) => (kind, true),
        None => (kind, false),
    };
    let kind = match kind {
        "io" => PciWindowKind::Io,
        "mem32" => PciWindowKind::Mem32,
        "mem64" => PciWindowKind::Mem64,
        _ => return None,
    };
    let (place, pci) = match place.split_once('@') {
        Some((place, pci)) => (place, Some(number(pci)?)),
        None => (place, None),
    };
    let (base, size) = place.split_once('+')?;
    let (base, size) = (number(base)?, number(size)?);
    let pci_base = pci.unwrap_or(if kind == PciWindowKind::Io { 0 } else { base });
    let segment = u16::try_from(number(segment)?).ok()?;
    Some((segment, PciWindow { kind, prefetchable, cpu: Range::new(Pa(base), size), pci_base }))
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::acpi::testing::{GICV4, Memory};
    use crate::platform::{fdt, testing as trees};

    /// The windows in QEMU's device tree, as an option.
    pub(crate) const QEMU: &str =
        "pci_windows=0:io:0x3eff0000+0x10000,0:mem32:0x10000000+0x2eff0000,0:mem64:0x8000000000+0x8000000000";

    #[test]
    fn windows_from_the_command_line_equal_those_of_the_device_tree() {
        let mut machine = Memory::of(GICV4).read().unwrap();
        machine.bootargs.push_str("loglvl=all ");
        machine.bootargs.push_str(QEMU);
        assert_eq!(apply(&mut machine), Ok(()));
        let tree = fdt::read(trees::GICV4).unwrap();
        assert_eq!(machine.pci[0].windows, tree.pci[0].windows);
        machine.memory = tree.memory.clone();
        assert_eq!(machine.check(), Ok(()));
        // Windows that are known are kept.
        machine.bootargs.clear();
        machine.bootargs.push_str("pci_windows=nonsense");
        assert_eq!(apply(&mut machine), Ok(()));
        assert_eq!(machine.pci[0].windows, tree.pci[0].windows);
    }

    #[test]
    fn an_invalid_option_is_refused() {
        for word in [
            "",
            "0:mem32:0x1000",
            "0:mem:0x1000+1",
            "7:mem32:0x1000+0x1000",
            "0:mem32:0x1000+0x1000:4",
            "0:mem32:1000+0x",
            "0:mem32:0x1000+0x1000,",
            "99999:io:0+1",
            "0:io:0x1000+0x1000@",
        ] {
            let mut machine = Memory::of(GICV4).read().unwrap();
            machine.bootargs.push_str("pci_windows=");
            machine.bootargs.push_str(word);
            assert_eq!(apply(&mut machine), Err(MachineError::BadWindows), "{word}");
        }
        assert_eq!(parse("0x1:mem64p:0x10+0x20@0x30").unwrap(), {
            let cpu = Range::new(Pa(0x10), 0x20);
            (1, PciWindow { kind: PciWindowKind::Mem64, prefetchable: true, cpu, pci_base: 0x30 })
        });
    }
}
