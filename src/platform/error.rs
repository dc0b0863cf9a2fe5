//! The errors that a machine's description can have.
//!
//! A message has the form `object: problem`, since each of them ends the boot and is the only thing that a user sees.

use crate::ids::{Intid, Mpidr, Pa};
use crate::util::range::Range;
use arrayvec::ArrayString;
use core::fmt;

/// The path of a node of the device tree. A long one is cut at its start.
pub type NodePath = ArrayString<80>;

/// A part of a machine's description, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A bank of RAM.
    Memory,
    /// A memory reservation.
    Reserved,
    /// The GIC distributor.
    Distributor,
    /// A redistributor region.
    Redistributors,
    /// A frame of the GIC that is not used.
    GicFrame,
    /// An ITS.
    Its,
    /// An SMMU.
    Smmu,
    /// A PCI host's configuration space.
    Ecam,
    /// A PCI host's window.
    PciWindow,
    /// The console UART.
    Uart,
    /// A boot module.
    Module,
    /// A domU.
    Domain,
    /// A CPU.
    Cpu,
    /// A PCI host.
    PciHost,
    /// An entry of `msi-map` or `iommu-map`.
    IdMap,
    /// A device on no PCI bus that sends MSIs.
    MsiDevices,
    /// A device on no PCI bus behind an SMMU.
    StreamDevices,
    /// Memory that devices access for the firmware.
    DmaReserved,
    /// A nesting level of the device tree.
    Depth,
    /// A device's register range.
    DeviceRegs,
    /// A device's interrupt.
    DeviceInterrupts,
}

impl Part {
    /// Returns the plural for messages.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Part::Memory => "memory banks",
            Part::Reserved => "memory reservations",
            Part::Distributor => "GIC distributors",
            Part::Redistributors => "GIC redistributor regions",
            Part::GicFrame => "GIC frames that are not used",
            Part::Its => "ITSs",
            Part::Smmu => "SMMUs",
            Part::Ecam => "PCI configuration spaces",
            Part::PciWindow => "PCI windows",
            Part::Uart => "console UARTs",
            Part::Module => "boot modules",
            Part::Domain => "domUs",
            Part::Cpu => "CPUs",
            Part::PciHost => "PCI hosts",
            Part::IdMap => "entries in one msi-map or iommu-map",
            Part::MsiDevices => "devices that send MSIs",
            Part::StreamDevices => "devices behind SMMUs",
            Part::DmaReserved => "ranges that devices access for the firmware",
            Part::Depth => "levels of nested nodes",
            Part::DeviceRegs => "register ranges in one device",
            Part::DeviceInterrupts => "interrupts in one device",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Memory => "memory bank",
            Part::Reserved => "memory reservation",
            Part::Distributor => "GIC distributor",
            Part::Redistributors => "GIC redistributor region",
            Part::GicFrame => "GIC frame that is not used",
            Part::Its => "ITS",
            Part::Smmu => "SMMU",
            Part::Ecam => "PCI configuration space",
            Part::PciWindow => "PCI window",
            Part::Uart => "console UART",
            Part::Module => "boot module",
            Part::Domain => "domU",
            Part::Cpu => "CPU",
            Part::PciHost => "PCI host",
            Part::IdMap => "msi-map or iommu-map entry",
            Part::MsiDevices => "device that sends MSIs",
            Part::StreamDevices => "device behind an SMMU",
            Part::DmaReserved => "range that devices access for the firmware",
            Part::Depth => "level of nested nodes",
            Part::DeviceRegs => "register range in one device",
            Part::DeviceInterrupts => "interrupt in one device",
        })
    }
}

/// Why a machine's description is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineError {
    /// There is no device tree at the given address.
    NotATree,
    /// The device tree is shorter than its header says.
    Truncated {
        /// The header's `totalsize`.
        promised: u32,
        /// The number of bytes present.
        present: u64,
    },
    /// The device tree has a version that is not compatible with version 17.
    Version(u32),
    /// The header or the structure of the device tree is damaged.
    Malformed,
    /// A required property is missing or invalid.
    BadProperty {
        /// The path of the node.
        node: NodePath,
        /// The name of the property.
        property: &'static str,
    },
    /// A fixed capacity is exceeded.
    TooMany {
        /// The part.
        part: Part,
        /// The capacity.
        limit: usize,
    },
    /// A list of reservations that a Linux has left is damaged.
    BadReservations {
        /// The address of the list.
        at: Pa,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The firmware describes no RAM.
    NoMemory,
    /// The firmware describes no CPU that may be used.
    NoCpu,
    /// The firmware describes no GIC.
    NoGic,
    /// The GIC is a GICv2.
    GicTooOld,
    /// The GIC is a GICv5.
    GicTooNew,
    /// The firmware describes no redistributors.
    NoRedistributors,
    /// The redistributor stride is not a multiple of a frame's size, or too small for a redistributor.
    BadStride(u64),
    /// The firmware describes no maintenance interrupt.
    NoMaintenance,
    /// The firmware does not describe the generic timer, or not all of its interrupts.
    NoTimer,
    /// The number of a per-CPU interrupt is not that of a PPI.
    NotAPpi {
        /// The interrupt's name.
        name: &'static str,
        /// The interrupt's number.
        intid: Intid,
    },
    /// A range is empty.
    Empty {
        /// The part it describes.
        part: Part,
        /// The range.
        range: Range,
    },
    /// A range exceeds 52 bits of physical address.
    Unreachable {
        /// The part it describes.
        part: Part,
        /// The range.
        range: Range,
    },
    /// A register frame is too small or misaligned.
    BadFrame {
        /// The part it describes.
        part: Part,
        /// The range.
        range: Range,
    },
    /// Two ranges overlap that must not.
    Overlap {
        /// The first part.
        a: Part,
        /// The range of the first part.
        at: Range,
        /// The second part.
        b: Part,
        /// The range of the second part.
        and: Range,
    },
    /// The `reg` of a CPU has bits outside the affinity fields.
    BadMpidr(u64),
    /// Two CPUs have the same affinity.
    DuplicateMpidr(Mpidr),
    /// A PCI bus range is reversed, or larger than the configuration space.
    BadBuses {
        /// The host's configuration space.
        ecam: Range,
        /// The first bus.
        first: u8,
        /// The last bus.
        last: u8,
    },
    /// `msi-map` or `iommu-map` refers to a phandle that no node has.
    Dangling {
        /// The property.
        property: &'static str,
        /// The phandle.
        phandle: u32,
    },
    /// A boot module is not in RAM.
    ModuleOutsideMemory(Range),
    /// A command line in `/chosen` is too long.
    LongBootargs {
        /// The path of the node.
        node: NodePath,
        /// The capacity in bytes.
        limit: usize,
    },
    /// There is no kernel among the boot modules.
    NoKernel,
    /// The option `pci_windows=` is invalid, or names a segment without a PCI host.
    BadWindows,
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use MachineError as E;
        match *self {
            E::NotATree => f.write_str("device tree: not found: there is no device tree header"),
            E::Truncated { promised, present } => {
                write!(f, "device tree: truncated: its header says {promised} bytes, {present} are present")
            }
            E::Version(version) => write!(f, "device tree: version {version} is not compatible with version 17"),
            E::Malformed => f.write_str("device tree: the header or the structure is damaged"),
            E::BadProperty { node, property } => {
                write!(f, "device tree: {node}: property `{property}` is missing or invalid")
            }
            E::TooMany { part, limit } => {
                write!(f, "machine description: more than {limit} {} are not supported", part.plural())
            }
            E::BadReservations { at, problem } => {
                write!(f, "UEFI: LINUX_EFI_MEMRESERVE_TABLE: the list at {at}: {problem}")
            }
            E::NoMemory => f.write_str("memory: the firmware describes none"),
            E::NoCpu => f.write_str("CPUs: the firmware describes none that is enabled"),
            E::NoGic => f.write_str("GIC: the firmware describes none"),
            E::GicTooOld => f.write_str("GIC: a GICv2 is not supported; a GICv3 or GICv4 is required"),
            E::GicTooNew => f.write_str("GIC: a GICv5 is not supported; a GICv3 or GICv4 is required"),
            E::NoRedistributors => f.write_str("GIC: the firmware describes no redistributor region"),
            E::BadStride(stride) => {
                write!(f, "GIC: the redistributor stride {stride:#x} is not a multiple of 64 KiB, or less than 128 KiB")
            }
            E::NoMaintenance => f.write_str("GIC: the firmware describes no maintenance interrupt"),
            E::NoTimer => f.write_str(
                "generic timer: the firmware does not describe its EL1 physical, EL1 virtual and EL2 interrupts",
            ),
            E::NotAPpi { name, intid } => write!(f, "{name} interrupt: {intid} is not a PPI"),
            E::Empty { part, range } => write!(f, "{part} at {:#x}: its size is zero", range.base.0),
            E::Unreachable { part, range } => {
                write!(f, "{part} at {:#x}: {:#x} bytes exceed 52 bits of address", range.base.0, range.size)
            }
            E::BadFrame { part, range } => write!(f, "{part} at {range}: too small or misaligned"),
            E::Overlap { a, at, b, and } => write!(f, "{a} at {at}: overlaps the {b} at {and}"),
            E::BadMpidr(reg) => write!(f, "CPU: {reg:#x} is not a valid affinity"),
            E::DuplicateMpidr(mpidr) => write!(f, "CPU: two CPUs have the affinity {mpidr}"),
            E::BadBuses { ecam, first, last } => {
                write!(f, "PCI host at {ecam}: the bus range {first} to {last} is reversed or exceeds this range")
            }
            E::Dangling { property, phandle } => {
                write!(f, "device tree: `{property}` refers to phandle {phandle:#x}, which no node has")
            }
            E::ModuleOutsideMemory(range) => write!(f, "boot module at {range}: not in memory"),
            E::LongBootargs { node, limit } => {
                write!(f, "device tree: {node}: a command line of more than {limit} bytes is not supported")
            }
            E::BadWindows => f.write_str(
                "cmdline: pci_windows: invalid value: expected SEGMENT:KIND:BASE+SIZE[@PCI_BASE],... where SEGMENT has \
                 a PCI host and KIND is io, mem32 or mem64",
            ),
            E::NoKernel => f.write_str(
                "dom0: no kernel: the boot loader must add a /chosen node that is compatible with \
                 \"multiboot,module\" and \"multiboot,kernel\"",
            ),
        }
    }
}

impl core::error::Error for MachineError {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_message_names_the_object_and_the_problem() {
        assert_eq!(MachineError::NoMemory.to_string(), "memory: the firmware describes none");
        let overlap = |a, b| MachineError::Overlap {
            a,
            at: Range::new(Pa(0x4000_0000), 0x1000),
            b,
            and: Range::new(Pa(0x4000_0800), 0x1000),
        };
        assert_eq!(
            overlap(Part::Memory, Part::Memory).to_string(),
            "memory bank at [0x40000000, 0x40001000): overlaps the memory bank at [0x40000800, 0x40001800)"
        );
        assert_eq!(
            overlap(Part::Its, Part::Memory).to_string(),
            "ITS at [0x40000000, 0x40001000): overlaps the memory bank at [0x40000800, 0x40001800)"
        );
        assert_eq!(
            MachineError::TooMany { part: Part::Cpu, limit: 512 }.to_string(),
            "machine description: more than 512 CPUs are not supported"
        );
    }
}
