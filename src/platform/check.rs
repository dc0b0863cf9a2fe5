//! Whether a machine's description makes sense.
//!
//! Firmware tables are written by hand, patched by boot loaders and truncated by small buffers. A mistake that is
//! named here is a sentence on the console; one that is not is a fault in the middle of boot. What can only be known
//! from the hardware (how many redistributors there are, whether a PPI is wired) is checked by the drivers.

use super::{Machine, MachineError, PciHost, What};
use crate::ids::Intid;
use crate::util::range::Range;

/// Physical addresses have at most 52 bits (FEAT_LPA); the CPU may have fewer, which stage 1 finds out.
const TOP: u64 = 1 << 52;
/// A GIC register frame (IHI 0069, 12.8 and 12.10: 64 KiB each).
const FRAME: u64 = 0x1_0000;
/// The smallest redistributor: RD_base and SGI_base.
const REDISTRIBUTOR: u64 = 2 * FRAME;

impl Machine {
    /// Checks everything that can be checked without touching hardware.
    ///
    /// # Errors
    ///
    /// The first thing that is absent, overlaps or makes no sense.
    pub fn check(&self) -> Result<(), MachineError> {
        self.check_ranges()?;
        self.check_memory()?;
        self.check_cpus()?;
        self.check_gic()?;
        self.check_frames()?;
        self.check_pci()?;
        self.check_modules()
    }

    /// Every range in the description, with what it is.
    fn ranges(&self) -> impl Iterator<Item = (What, Range)> {
        let gic = core::iter::once((What::Distributor, self.gic.dist));
        self.memory
            .iter()
            .map(|&range| (What::Memory, range))
            .chain(self.reserved.iter().map(|&range| (What::Reserved, range)))
            .chain(gic)
            .chain(self.gic.redists.iter().map(|&range| (What::Redistributors, range)))
            .chain(self.gic.itss.iter().map(|its| (What::Its, its.control)))
            .chain(self.smmus.iter().map(|smmu| (What::Smmu, smmu.regs)))
            .chain(self.uart.iter().map(|uart| (What::Uart, uart.regs)))
            .chain(self.pci.iter().map(|host| (What::Ecam, host.ecam)))
            .chain(self.pci.iter().flat_map(|host| host.windows.iter().map(|window| (What::PciWindow, window.cpu))))
            .chain(self.all_modules().map(|module| (What::Module, module.range)))
    }

    fn check_ranges(&self) -> Result<(), MachineError> {
        for (what, range) in self.ranges() {
            if range.is_empty() {
                return Err(MachineError::Empty { what, range });
            }
            if range.base.0.checked_add(range.size).is_none_or(|end| end > TOP) {
                return Err(MachineError::Unreachable { what, range });
            }
        }
        Ok(())
    }

    fn check_memory(&self) -> Result<(), MachineError> {
        if self.memory.is_empty() {
            return Err(MachineError::NoMemory);
        }
        disjoint(|| self.memory.iter().map(|&bank| (What::Memory, bank)))
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
        for (whose, intid) in [
            ("timer's EL1 physical", self.timer.phys),
            ("timer's EL1 virtual", self.timer.virt),
            ("timer's EL2 physical", self.timer.hyp),
        ] {
            is_ppi(whose, intid)?;
        }
        Ok(())
    }

    fn check_gic(&self) -> Result<(), MachineError> {
        let gic = &self.gic;
        is_ppi("GIC's maintenance", gic.maintenance)?;
        frame(What::Distributor, gic.dist, FRAME)?;
        if gic.redists.is_empty() {
            return Err(MachineError::NoRedistributors);
        }
        if let Some(stride) = gic.redist_stride
            && (stride == 0 || !stride.is_multiple_of(REDISTRIBUTOR))
        {
            return Err(MachineError::BadStride(stride));
        }
        let stride = gic.redist_stride.unwrap_or(REDISTRIBUTOR);
        let mut room = 0u64;
        for &region in &gic.redists {
            frame(What::Redistributors, region, REDISTRIBUTOR)?;
            // The last one of a region need not fill its stride.
            room = room.saturating_add((region.size - REDISTRIBUTOR) / stride + 1);
        }
        // A GICv4 redistributor takes twice as much, but which ones are is only known from their GICR_TYPER.
        if room < self.enabled_cpus() as u64 {
            return Err(MachineError::TooFewRedistributors { room, cpus: self.enabled_cpus() });
        }
        for its in &gic.itss {
            frame(What::Its, its.control, 2 * FRAME)?;
        }
        for smmu in &self.smmus {
            frame(What::Smmu, smmu.regs, FRAME)?;
        }
        Ok(())
    }

    /// Device frames are neither in RAM nor in each other. The console may be a PCI function (Graviton3's is), so it may
    /// be in a PCI window; an ECAM may be shared by several hosts (see [`check_pci`](Self::check_pci)).
    fn check_frames(&self) -> Result<(), MachineError> {
        let not_memory =
            || self.ranges().filter(|(what, _)| !matches!(what, What::Memory | What::Reserved | What::Module));
        disjoint(|| not_memory().filter(|(what, _)| !matches!(what, What::Ecam | What::Uart)))?;
        disjoint(|| not_memory().filter(|(what, _)| !matches!(what, What::Ecam | What::PciWindow)))?;
        for (a, at) in not_memory() {
            if let Some(&and) = self.memory.iter().find(|bank| bank.overlaps(at)) {
                return Err(MachineError::Overlap { a, at, b: What::Memory, and });
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
            // Several hosts may share an ECAM, each with buses of its own.
            for other in &self.pci {
                if !core::ptr::eq(host, other) && used(host).overlaps(used(other)) {
                    return Err(MachineError::Overlap { a: What::Ecam, at: ecam, b: What::Ecam, and: other.ecam });
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
        disjoint(|| self.modules.iter().map(|module| (What::Module, module.range)))?;
        // Domains may share a kernel: files are only read.
        for config in &self.domains {
            for module in &config.modules {
                if let Some(own) = self.modules.iter().find(|own| own.range.overlaps(module.range)) {
                    return Err(MachineError::Overlap {
                        a: What::Module,
                        at: own.range,
                        b: What::Module,
                        and: module.range,
                    });
                }
            }
        }
        Ok(())
    }
}

/// The part of a host's configuration space that its buses take.
fn used(host: &PciHost) -> Range {
    let buses = u64::from(host.buses.1.saturating_sub(host.buses.0)) + 1;
    Range::new(host.ecam.base, (buses << 20).min(host.ecam.size))
}

fn is_ppi(whose: &'static str, intid: Intid) -> Result<(), MachineError> {
    if matches!(intid.0, 16..32 | 1056..1120) { Ok(()) } else { Err(MachineError::NotAPpi { whose, intid }) }
}

fn frame(what: What, range: Range, least: u64) -> Result<(), MachineError> {
    if range.size < least || !range.base.0.is_multiple_of(FRAME) {
        return Err(MachineError::BadFrame { what, range });
    }
    Ok(())
}

fn disjoint<I: Iterator<Item = (What, Range)>>(list: impl Fn() -> I) -> Result<(), MachineError> {
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
        assert!(matches!(machine.check(), Err(MachineError::Overlap { b: What::Uart, .. })));
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
        assert!(matches!(machine.check(), Err(MachineError::Overlap { a: What::Ecam, .. })));
    }
}
