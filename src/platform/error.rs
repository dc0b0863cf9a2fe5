//! What can be wrong with a machine's description, each as a sentence for the user.

use crate::ids::{Intid, Mpidr};
use crate::util::range::Range;
use core::fmt;

/// A piece of the machine, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A bank of RAM.
    Memory,
    /// A reservation.
    Reserved,
    /// The distributor.
    Distributor,
    /// A redistributor region.
    Redistributors,
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
    /// A domain beside dom0.
    Domain,
    /// A CPU.
    Cpu,
    /// A PCI host.
    PciHost,
    /// A line of `msi-map` or `iommu-map`.
    IdMap,
    /// A level of the device tree.
    Depth,
    /// A device's register range.
    DeviceRegs,
    /// A device's interrupt.
    DeviceInterrupts,
}

impl What {
    /// The word for several of them.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            What::Memory => "memory banks",
            What::Reserved => "memory reservations",
            What::Distributor => "GIC distributors",
            What::Redistributors => "GIC redistributor regions",
            What::Its => "ITSs",
            What::Smmu => "SMMUs",
            What::Ecam => "PCI configuration spaces",
            What::PciWindow => "PCI windows",
            What::Uart => "console UARTs",
            What::Module => "boot modules",
            What::Domain => "domains beside dom0",
            What::Cpu => "CPUs",
            What::PciHost => "PCI hosts",
            What::IdMap => "entries in one msi-map or iommu-map",
            What::Depth => "levels of nested nodes",
            What::DeviceRegs => "register ranges in one device",
            What::DeviceInterrupts => "interrupts in one device",
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            What::Memory => "memory bank",
            What::Reserved => "memory reservation",
            What::Distributor => "GIC distributor",
            What::Redistributors => "GIC redistributor region",
            What::Its => "ITS",
            What::Smmu => "SMMU",
            What::Ecam => "PCI configuration space",
            What::PciWindow => "PCI window",
            What::Uart => "console UART",
            What::Module => "boot module",
            What::Domain => "domain beside dom0",
            What::Cpu => "CPU",
            What::PciHost => "PCI host",
            What::IdMap => "msi-map or iommu-map entry",
            What::Depth => "level of nested nodes",
            What::DeviceRegs => "register range in one device",
            What::DeviceInterrupts => "interrupt in one device",
        })
    }
}

/// Why a machine's description was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineError {
    /// No device tree where one was promised.
    NotATree,
    /// The tree's header promises more bytes than there are.
    Truncated {
        /// The header's `totalsize`.
        promised: u32,
        /// The bytes at hand.
        present: u64,
    },
    /// A version that is not compatible with 17.
    Version(u32),
    /// The header or the structure is damaged.
    Malformed,
    /// A property that has to be there is not, or is not of the form it has to have.
    BadProperty {
        /// The node, by what it describes.
        node: &'static str,
        /// The property.
        property: &'static str,
    },
    /// A fixed capacity is exceeded.
    TooMany {
        /// Of what.
        what: What,
        /// How many there may be.
        limit: usize,
    },
    /// No RAM.
    NoMemory,
    /// No CPU that may be used.
    NoCpu,
    /// No interrupt controller of a known kind.
    NoGic,
    /// A GICv2.
    GicTooOld,
    /// A GICv5.
    GicTooNew,
    /// No redistributors.
    NoRedistributors,
    /// The redistributor regions have no room for so many CPUs.
    TooFewRedistributors {
        /// How many redistributors fit at most.
        room: u64,
        /// How many CPUs are enabled.
        cpus: usize,
    },
    /// A redistributor stride that no redistributor has.
    BadStride(u64),
    /// The GIC has no maintenance interrupt.
    NoMaintenance,
    /// No generic timer, or not all of its interrupts.
    NoTimer,
    /// A per-CPU interrupt has a number that is none.
    NotAPpi {
        /// Whose interrupt.
        whose: &'static str,
        /// Its number.
        intid: Intid,
    },
    /// A range of zero bytes.
    Empty {
        /// What it describes.
        what: What,
        /// The range.
        range: Range,
    },
    /// A range beyond the 52 bits of a physical address.
    Unreachable {
        /// What it describes.
        what: What,
        /// The range.
        range: Range,
    },
    /// A frame that is too small, or not aligned, for what it is.
    BadFrame {
        /// What it describes.
        what: What,
        /// The range.
        range: Range,
    },
    /// Two ranges that must not meet do.
    Overlap {
        /// One thing.
        a: What,
        /// Where it is.
        at: Range,
        /// The other thing.
        b: What,
        /// Where that is.
        and: Range,
    },
    /// A CPU's `reg` has bits that are no affinity.
    BadMpidr(u64),
    /// Two CPUs with one affinity.
    DuplicateMpidr(Mpidr),
    /// A bus range that ends before it starts, or needs more configuration space than there is.
    BadBuses {
        /// The host's configuration space.
        ecam: Range,
        /// First bus.
        first: u8,
        /// Last bus.
        last: u8,
    },
    /// `msi-map`, `iommu-map` or `interrupt-parent` names a phandle that no node has.
    Dangling {
        /// The property.
        property: &'static str,
        /// The phandle.
        phandle: u32,
    },
    /// A boot module that is not in RAM.
    ModuleOutsideMemory(Range),
    /// A command line that is too long.
    LongBootargs {
        /// The longest possible.
        limit: usize,
    },
    /// No kernel among the boot modules.
    NoKernel,
    /// The word `pci_windows=` cannot be read, or names a segment without a host.
    BadWindows,
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use MachineError as E;
        match *self {
            E::NotATree => f.write_str("there is no device tree at the address in x0"),
            E::Truncated { promised, present } => {
                write!(f, "the device tree is cut short: its header says {promised} bytes, {present} are there")
            }
            E::Version(version) => write!(f, "the device tree has version {version}, which is not compatible with 17"),
            E::Malformed => f.write_str("the device tree is damaged"),
            E::BadProperty { node, property } => {
                write!(f, "the device tree's {node} node has no usable `{property}` property")
            }
            E::TooMany { what, limit } => write!(f, "the machine has more than {limit} {}", what.plural()),
            E::NoMemory => f.write_str("the firmware describes no memory"),
            E::NoCpu => f.write_str("the firmware describes no CPU that may be used"),
            E::NoGic => f.write_str("the firmware describes no interrupt controller that is a GIC"),
            E::GicTooOld => f.write_str("the interrupt controller is a GICv2; a GICv3 or later is needed"),
            E::GicTooNew => f.write_str("the interrupt controller is a GICv5; a GICv3 or GICv4 is needed"),
            E::NoRedistributors => f.write_str("the GIC has no redistributor region"),
            E::TooFewRedistributors { room, cpus } => {
                write!(f, "the GIC has room for {room} redistributors, but there are {cpus} CPUs")
            }
            E::BadStride(stride) => {
                write!(f, "the GIC's redistributor stride {stride:#x} is no multiple of 128 KiB")
            }
            E::NoMaintenance => f.write_str("the GIC has no maintenance interrupt, which a hypervisor needs"),
            E::NoTimer => {
                f.write_str("the generic timer, or its EL1 physical, virtual or EL2 interrupt, is not described")
            }
            E::NotAPpi { whose, intid } => write!(f, "the {whose} interrupt is {intid}, which is not a PPI"),
            E::Empty { what, range } => write!(f, "the {what} at {:#x} is empty", range.base.0),
            E::Unreachable { what, range } => {
                write!(
                    f,
                    "the {what} of {:#x} bytes at {:#x} does not fit into 52 bits of address",
                    range.size, range.base.0
                )
            }
            E::BadFrame { what, range } => write!(f, "the {what} at {range} is too small or not aligned"),
            E::Overlap { a, at, b, and } if a == b => write!(f, "{} overlap: {at} and {and}", a.plural()),
            E::Overlap { a, at, b, and } => write!(f, "the {a} at {at} overlaps the {b} at {and}"),
            E::BadMpidr(reg) => write!(f, "a CPU's reg {reg:#x} is no affinity"),
            E::DuplicateMpidr(mpidr) => write!(f, "two CPUs have the affinity {mpidr}"),
            E::BadBuses { ecam, first, last } => {
                write!(f, "the PCI host with configuration space at {ecam} cannot have buses {first} to {last}")
            }
            E::Dangling { property, phandle } => {
                write!(f, "the device tree's `{property}` names phandle {phandle:#x}, which no node has")
            }
            E::ModuleOutsideMemory(range) => write!(f, "a boot module at {range} is not in memory"),
            E::LongBootargs { limit } => write!(f, "a command line in /chosen is longer than {limit} bytes"),
            E::BadWindows => f.write_str(
                "the command line word `pci_windows=` takes SEGMENT:KIND:BASE+SIZE[@PCI_BASE],... with a segment that \
                 has a PCI host and the kind io, mem32 or mem64",
            ),
            E::NoKernel => f.write_str(
                "there is no kernel for dom0: the boot loader has to add a /chosen node compatible with \
                 \"multiboot,module\", \"multiboot,kernel\"",
            ),
        }
    }
}

impl core::error::Error for MachineError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pa;
    use alloc::string::ToString;

    #[test]
    fn an_error_reads_as_a_sentence() {
        assert_eq!(MachineError::NoMemory.to_string(), "the firmware describes no memory");
        let overlap = |a, b| MachineError::Overlap {
            a,
            at: Range::new(Pa(0x4000_0000), 0x1000),
            b,
            and: Range::new(Pa(0x4000_0800), 0x1000),
        };
        assert_eq!(
            overlap(What::Memory, What::Memory).to_string(),
            "memory banks overlap: [0x40000000, 0x40001000) and [0x40000800, 0x40001800)"
        );
        assert_eq!(
            overlap(What::Its, What::Memory).to_string(),
            "the ITS at [0x40000000, 0x40001000) overlaps the memory bank at [0x40000800, 0x40001800)"
        );
        assert_eq!(
            MachineError::TooMany { what: What::Cpu, limit: 512 }.to_string(),
            "the machine has more than 512 CPUs"
        );
    }
}
