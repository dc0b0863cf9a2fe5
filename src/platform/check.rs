//! Consistency checks of a machine's description.
//!
//! Firmware tables are written by hand, patched by boot loaders and truncated by small buffers. A mistake that is found
//! here is reported as an error message; one that is not found here becomes a fault later in boot. What only the
//! hardware can tell (the number of redistributors, whether a PPI is wired) is checked by the drivers.

use super::machine::TOP;
use super::{Machine, MachineError, Part, PciHost};
use crate::ids::Intid;
use crate::util::range::Range;

/// The size of a GIC register frame (IHI 0069, 12.8 and 12.10).
const FRAME: u64 = 0x1_0000;
/// The size of the smallest redistributor: the RD_base and SGI_base frames.
const REDISTRIBUTOR: u64 = 2 * FRAME;

impl Machine {
    /// Checks everything that can be checked without accessing the hardware.
    ///
    /// # Errors
    ///
    /// The first problem that is found.
    pub fn check(&self) -> Result<(), MachineError> {
        self.check_ranges()?;
        self.check_memory()?;
        self.check_cpus()?;
        self.check_gic()?;
        self.check_frames()?;
        self.check_pci()?;
        self.check_modules()
    }

    /// Every range in the description, with the part it describes.
    fn ranges(&self) -> impl Iterator<Item = (Part, Range)> {
        let gic = core::iter::once((Part::Distributor, self.gic.dist));
        self.memory
            .iter()
            .map(|&range| (Part::Memory, range))
            .chain(self.reserved.iter().map(|&range| (Part::Reserved, range)))
            .chain(gic)
            .chain(self.gic.redists.iter().map(|&range| (Part::Redistributors, range)))
            .chain(self.gic.itss.iter().map(|its| (Part::Its, its.control)))
            .chain(self.smmus.iter().map(|smmu| (Part::Smmu, smmu.regs)))
            .chain(self.uart.iter().map(|uart| (Part::Uart, uart.regs)))
            .chain(self.pci.iter().map(|host| (Part::Ecam, host.ecam)))
            .chain(self.pci.iter().flat_map(|host| host.windows.iter().map(|window| (Part::PciWindow, window.cpu))))
            .chain(self.all_modules().map(|module| (Part::Module, module.range)))
    }

    fn check_ranges(&self) -> Result<(), MachineError> {
        for (part, range) in self.ranges() {
            if range.is_empty() {
                return Err(MachineError::Empty { part, range });
            }
            if range.base.0.checked_add(range.size).is_none_or(|end| end > TOP) {
                return Err(MachineError::Unreachable { part, range });
            }
        }
        Ok(())
    }

    fn check_memory(&self) -> Result<(), MachineError> {
        if self.memory.is_empty() {
            return Err(MachineError::NoMemory);
        }
        disjoint(|| self.memory.iter().map(|&bank| (Part::Memory, bank)))
    }

    fn check_cpus(&self) -> Result<(), MachineError> {
        if self.enabled_cpus() == 0 {
            return Err(MachineError::NoCpu);
        }
        for (index, cpu) in self.cpus.iter().enumerate() {
            if self.cpus.iter().take(index).any(|other| other.mpidr == cpu.mpidr) {
                return Err(MachineError::DuplicateMpidr(cpu.mpidr));
            }
        }
        for (name, intid) in [
            ("EL1 physical timer", self.timer.phys),
            ("EL1 virtual timer", self.timer.virt),
            ("EL2 physical timer", self.timer.hyp),
        ] {
            is_ppi(name, intid)?;
        }
        Ok(())
    }

    fn check_gic(&self) -> Result<(), MachineError> {
        let gic = &self.gic;
        is_ppi("GIC maintenance", gic.maintenance)?;
        frame(Part::Distributor, gic.dist, FRAME)?;
        if gic.redists.is_empty() {
            return Err(MachineError::NoRedistributors);
        }
        if let Some(stride) = gic.redist_stride
            && (stride < REDISTRIBUTOR || !stride.is_multiple_of(FRAME))
        {
            return Err(MachineError::BadStride(stride));
        }
        // There may be fewer redistributors than CPUs: a CPU without one stays off.
        for &region in &gic.redists {
            frame(Part::Redistributors, region, REDISTRIBUTOR)?;
        }
        for its in &gic.itss {
            frame(Part::Its, its.control, 2 * FRAME)?;
        }
        for smmu in &self.smmus {
            frame(Part::Smmu, smmu.regs, FRAME)?;
        }
        Ok(())
    }

    /// Device frames must not overlap RAM or each other. The console may be a PCI function (Graviton3's is), so it may
    /// lie in a PCI window; several hosts may share an ECAM (see [`check_pci`](Self::check_pci)).
    fn check_frames(&self) -> Result<(), MachineError> {
        let not_memory =
            || self.ranges().filter(|(part, _)| !matches!(part, Part::Memory | Part::Reserved | Part::Module));
        disjoint(|| not_memory().filter(|(part, _)| !matches!(part, Part::Ecam | Part::Uart)))?;
        disjoint(|| not_memory().filter(|(part, _)| !matches!(part, Part::Ecam | Part::PciWindow)))?;
        for (a, at) in not_memory() {
            if let Some(&and) = self.memory.iter().find(|bank| bank.overlaps(at)) {
                return Err(MachineError::Overlap { a, at, b: Part::Memory, and });
            }
        }
        Ok(())
    }

    fn check_pci(&self) -> Result<(), MachineError> {
        for host in &self.pci {
            let PciHost { ecam, buses: (first, last), .. } = *host;
            let buses = u64::from(last.saturating_sub(first)) + 1;
            if first > last || ecam.size < buses << 20 {
                return Err(MachineError::BadBuses { ecam, first, last });
            }
            // Several hosts may share an ECAM if their buses differ.
            for other in &self.pci {
                if !core::ptr::eq(host, other) && used(host).overlaps(used(other)) {
                    return Err(MachineError::Overlap { a: Part::Ecam, at: ecam, b: Part::Ecam, and: other.ecam });
                }
            }
        }
        Ok(())
    }

    fn check_modules(&self) -> Result<(), MachineError> {
        for module in self.all_modules() {
            if !self.memory.iter().any(|bank| bank.covers(module.range)) {
                return Err(MachineError::ModuleOutsideMemory(module.range));
            }
        }
        disjoint(|| self.modules.iter().map(|module| (Part::Module, module.range)))?;
        // Domains may share a kernel, since modules are only read.
        for config in &self.domains {
            for module in &config.modules {
                if let Some(own) = self.modules.iter().find(|own| own.range.overlaps(module.range)) {
                    return Err(MachineError::Overlap {
                        a: Part::Module,
                        at: own.range,
                        b: Part::Module,
                        and: module.range,
                    });
                }
            }
        }
        Ok(())
    }
}

/// The part of a host's configuration space that its buses use.
fn used(host: &PciHost) -> Range {
    let buses = u64::from(host.buses.1.saturating_sub(host.buses.0)) + 1;
    Range::new(host.ecam.base, (buses << 20).min(host.ecam.size))
}

fn is_ppi(name: &'static str, intid: Intid) -> Result<(), MachineError> {
    if matches!(intid.0, 16..32 | 1056..1120) { Ok(()) } else { Err(MachineError::NotAPpi { name, intid }) }
}

fn frame(part: Part, range: Range, least: u64) -> Result<(), MachineError> {
    if range.size < least || !range.base.0.is_multiple_of(FRAME) {
        return Err(MachineError::BadFrame { part, range });
    }
    Ok(())
}

fn disjoint<I: Iterator<Item = (Part, Range)>>(list: impl Fn() -> I) -> Result<(), MachineError> {
    for (index, (b, and)) in list().enumerate() {
        if let Some((a, at)) = list().take(index).find(|(_, at)| at.overlaps(and)) {
            return Err(MachineError::Overlap { a, at, b, and });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pa;
    use crate::platform::fdt;
    use crate::platform::testing::GICV4;

    #[test]
    fn a_console_may_be_a_pci_function_but_not_in_the_gic() {
        let mut machine = fdt::read(GICV4).unwrap();
        let mut uart = machine.uart.unwrap();
        uart.regs.base = machine.pci[0].windows[1].cpu.base;
        machine.uart = Some(uart);
        assert_eq!(machine.check(), Ok(()));
        uart.regs.base = Pa(0x080b_0000);
        machine.uart = Some(uart);
        assert!(matches!(machine.check(), Err(MachineError::Overlap { b: Part::Uart, .. })));
    }

    #[test]
    fn two_hosts_may_share_an_ecam_but_not_a_bus() {
        let mut machine = fdt::read(GICV4).unwrap();
        let mut second = machine.pci[0].clone();
        second.windows.clear();
        machine.pci[0].buses = (0, 0x7f);
        second.buses = (0x80, 0xff);
        second.ecam = Range::new(Pa(second.ecam.base.0 + (0x80 << 20)), 0x80 << 20);
        machine.pci.push(second);
        assert_eq!(machine.check(), Ok(()));
        machine.pci[0].buses = (0, 0x80);
        assert!(matches!(machine.check(), Err(MachineError::Overlap { a: Part::Ecam, .. })));
    }
}
