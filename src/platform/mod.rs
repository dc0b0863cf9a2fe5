//! What machine this is.
//!
//! [`Machine`] is the one description that the rest of the tree reads: where memory is, which CPUs there are, where
//! the GIC's frames lie, which PCI hosts and SMMUs stand in front of devices, and what the boot loader brought along.
//! It is filled once, early in boot, by [`fdt::read`] from a device tree or by [`acpi::read_into`] from ACPI tables,
//! and checked by [`Machine::check`] before anyone sees it. After that it never changes.
//!
//! It is heap-free on purpose: it is needed to find the memory that the heap is made of. Capacities are fixed and a
//! machine that exceeds one is refused by name, never truncated. It is also some 50 KiB large, so it belongs in a
//! static (see [`Machine::new`]) and not on a boot stack; [`fdt::read_into`] fills it where it lies.

pub mod acpi;
pub mod check;
pub mod efi;
pub mod error;
pub mod fdt;
pub mod windows;

#[cfg(test)]
pub(crate) mod testing;

pub use error::{MachineError, What};

use crate::ids::{Intid, ItsId, Mpidr, Pa};
use crate::util::range::Range;
use arrayvec::{ArrayString, ArrayVec};

/// CPUs at most, and redistributor regions: firmware may give each CPU's own.
pub const CPUS: usize = 512;

/// A CPU that the firmware describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its affinity.
    pub mpidr: Mpidr,
    /// Whether it may be used; one that is not keeps its place, and with it its `CpuId`.
    pub enabled: bool,
}

/// The instruction that reaches PSCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `SMC #0`, to EL3.
    Smc,
    /// `HVC #0`, to a hypervisor below this one.
    Hvc,
}

/// Which GIC the firmware says this is. Whether it is a GICv4 is for its registers to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GicKind {
    /// A GICv2, which has neither redistributors nor LPIs.
    V2,
    /// A GICv3 or GICv4.
    V3,
    /// A GICv5.
    V5,
    /// Nothing known.
    #[default]
    Other,
}

/// An ITS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Its {
    /// Its frames, from the control frame on; GITS_TRANSLATER is in the second 64 KiB.
    pub control: Range,
    /// The firmware says that its table walks do not snoop the CPUs' caches.
    pub non_coherent: bool,
}

/// The interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gic {
    /// What the firmware calls it.
    pub version_hint: GicKind,
    /// The distributor's frame.
    pub dist: Range,
    /// The regions in which redistributors lie one after the other.
    pub redists: ArrayVec<Range, CPUS>,
    /// The distance between two redistributors where it is not what GICR_TYPER says.
    pub redist_stride: Option<u64>,
    /// The PPI that a CPU interface raises for list register maintenance.
    pub maintenance: Intid,
    /// The firmware says that redistributors' table walks do not snoop the CPUs' caches.
    pub non_coherent: bool,
    /// The ITSs; an `ItsId` is a place in this list.
    pub itss: ArrayVec<Its, 16>,
}

/// The generic timer's PPIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TimerPpis {
    /// EL1 physical, Secure.
    pub phys_s: Option<Intid>,
    /// EL1 physical, Non-secure.
    pub phys: Intid,
    /// EL1 virtual.
    pub virt: Intid,
    /// EL2 physical.
    pub hyp: Intid,
}

/// What goes through a PCI window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PciWindowKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB on the PCI side.
    Mem32,
    /// Memory anywhere.
    Mem64,
}

/// Where a PCI host lets the CPU reach its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciWindow {
    /// What it carries.
    pub kind: PciWindowKind,
    /// Whether reads behind it have no side effects.
    pub prefetchable: bool,
    /// The CPU's side.
    pub cpu: Range,
    /// What `cpu.base` is on the PCI side.
    pub pci_base: u64,
}

/// An SMMU, by its place in [`Machine::smmus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SmmuId(pub u8);

/// One line of `msi-map` or `iommu-map`: requester IDs `rid_base .. rid_base + length` become `out_base ..` at `target`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap<T> {
    /// The first requester ID.
    pub rid_base: u32,
    /// Who receives the mapped number.
    pub target: T,
    /// What `rid_base` becomes.
    pub out_base: u32,
    /// How many.
    pub length: u32,
}

impl<T: Copy> IdMap<T> {
    /// What a requester ID becomes, if this line is about it.
    #[must_use]
    pub fn map(&self, rid: u32) -> Option<(T, u32)> {
        let offset = rid.checked_sub(self.rid_base)?;
        (offset < self.length).then(|| self.out_base.checked_add(offset)).flatten().map(|out| (self.target, out))
    }
}

/// A PCI host whose configuration space is a plain ECAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciHost {
    /// Configuration space; `ecam.base` belongs to bus `buses.0`.
    pub ecam: Range,
    /// The segment (Linux calls it domain).
    pub segment: u16,
    /// The first and the last bus.
    pub buses: (u8, u8),
    /// Where the CPU reaches BARs and I/O ports.
    pub windows: ArrayVec<PciWindow, 8>,
    /// `msi-map-mask`: applied to a requester ID before `msi_map` is searched.
    pub msi_map_mask: u32,
    /// Requester IDs to DeviceIDs.
    pub msi_map: ArrayVec<IdMap<ItsId>, 16>,
    /// `iommu-map-mask`: applied to a requester ID before `iommu_map` is searched.
    pub iommu_map_mask: u32,
    /// Requester IDs to StreamIDs.
    pub iommu_map: ArrayVec<IdMap<SmmuId>, 16>,
}

impl PciHost {
    /// The ITS that takes a function's MSIs, and the DeviceID they carry.
    #[must_use]
    pub fn device_id(&self, rid: u16) -> Option<(ItsId, u32)> {
        self.msi_map.iter().find_map(|line| line.map(u32::from(rid) & self.msi_map_mask))
    }

    /// The SMMU in front of a function, and the StreamID there.
    #[must_use]
    pub fn stream_id(&self, rid: u16) -> Option<(SmmuId, u32)> {
        self.iommu_map.iter().find_map(|line| line.map(u32::from(rid) & self.iommu_map_mask))
    }
}

/// An SMMUv3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smmu {
    /// Its registers, 128 KiB.
    pub regs: Range,
    /// The firmware says that its walks snoop the CPUs' caches.
    pub coherent: bool,
    /// The wired event queue interrupt.
    pub event: Option<Intid>,
    /// The wired global error interrupt.
    pub gerror: Option<Intid>,
}

/// A UART's programming interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UartKind {
    /// Arm's PL011, or its SBSA subset.
    Pl011,
    /// A 16550.
    Ns16550 {
        /// Registers are `1 << reg_shift` bytes apart.
        reg_shift: u32,
        /// Registers are accessed with this many bytes.
        io_width: u32,
    },
}

/// The console that `/chosen` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uart {
    /// How to talk to it.
    pub kind: UartKind,
    /// Its registers.
    pub regs: Range,
    /// Its interrupt.
    pub irq: Option<Intid>,
}

/// What a boot module is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// A kernel image.
    Kernel,
    /// An initial RAM disk.
    Ramdisk,
    /// A (partial) device tree.
    DeviceTree,
    /// Not said.
    Unknown,
}

/// A file that the boot loader put into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// What it is for.
    pub kind: ModuleKind,
    /// Where it is.
    pub range: Range,
    /// The command line that goes with it.
    pub bootargs: ArrayString<1024>,
}

/// A domain that is to run beside dom0, as `/chosen` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainConfig {
    /// What the boot loader calls it.
    pub name: ArrayString<32>,
    /// How many vCPUs it has.
    pub cpus: u16,
    /// Its RAM, in bytes.
    pub memory: u64,
    /// Whether it has a serial port.
    pub vpl011: bool,
    /// Each vCPU's share of CPU time relative to others', where the scheduler has such a thing.
    pub weight: Option<u32>,
    /// The most CPU time that each of its vCPUs gets, in percent of a CPU.
    pub cap: Option<u32>,
    /// Its kernel, and what goes with it.
    pub modules: ArrayVec<Module, 4>,
}

impl DomainConfig {
    /// The first module of a kind.
    #[must_use]
    pub fn module(&self, kind: ModuleKind) -> Option<&Module> {
        self.modules.iter().find(|module| module.kind == kind)
    }
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// RAM, as the firmware lists it.
    pub memory: ArrayVec<Range, 64>,
    /// What must be left alone, inside RAM or not: `/memreserve/` and fixed `/reserved-memory`.
    pub reserved: ArrayVec<Range, 128>,
    /// The CPUs; a `CpuId` is a place in this list.
    pub cpus: ArrayVec<Cpu, CPUS>,
    /// How to reach PSCI 0.2 or later; `None` when there is none.
    pub psci: Option<Conduit>,
    /// The interrupt controller.
    pub gic: Gic,
    /// The PCI hosts.
    pub pci: ArrayVec<PciHost, 16>,
    /// The SMMUs.
    pub smmus: ArrayVec<Smmu, 16>,
    /// The generic timer.
    pub timer: TimerPpis,
    /// The console.
    pub uart: Option<Uart>,
    /// The boot modules, in the firmware's order.
    pub modules: ArrayVec<Module, 8>,
    /// The domains beside dom0; domain N is at place N - 1.
    pub domains: ArrayVec<DomainConfig, DOMAINS>,
    /// Where the ACPI tables start, if it was they that described the machine.
    pub rsdp: Option<Pa>,
    /// The hypervisor's own command line.
    pub bootargs: ArrayString<2048>,
}

/// Domains besides dom0 that a machine's description can ask for.
pub const DOMAINS: usize = 8;

impl Machine {
    /// A machine with nothing in it; `const`, so that the real one can live in a static.
    #[must_use]
    pub const fn new() -> Machine {
        const NOWHERE: Range = Range::new(Pa(0), 0);
        Machine {
            memory: ArrayVec::new_const(),
            reserved: ArrayVec::new_const(),
            cpus: ArrayVec::new_const(),
            psci: None,
            gic: Gic {
                version_hint: GicKind::Other,
                dist: NOWHERE,
                redists: ArrayVec::new_const(),
                redist_stride: None,
                maintenance: Intid(0),
                non_coherent: false,
                itss: ArrayVec::new_const(),
            },
            pci: ArrayVec::new_const(),
            smmus: ArrayVec::new_const(),
            timer: TimerPpis { phys_s: None, phys: Intid(0), virt: Intid(0), hyp: Intid(0) },
            uart: None,
            modules: ArrayVec::new_const(),
            domains: ArrayVec::new_const(),
            rsdp: None,
            bootargs: ArrayString::new_const(),
        }
    }

    /// All RAM together, in bytes.
    #[must_use]
    pub fn memory_size(&self) -> u64 {
        self.memory.iter().map(|bank| bank.size).fold(0, u64::saturating_add)
    }

    /// How many CPUs may be used.
    #[must_use]
    pub fn enabled_cpus(&self) -> usize {
        self.cpus.iter().filter(|cpu| cpu.enabled).count()
    }

    /// The first module of a kind.
    #[must_use]
    pub fn module(&self, kind: ModuleKind) -> Option<&Module> {
        self.modules.iter().find(|module| module.kind == kind)
    }

    /// dom0's modules and then the other domains'.
    pub fn all_modules(&self) -> impl Iterator<Item = &Module> {
        self.modules.iter().chain(self.domains.iter().flat_map(|domain| &domain.modules))
    }

    /// dom0's kernel.
    ///
    /// # Errors
    ///
    /// [`MachineError::NoKernel`] when the boot loader brought none.
    pub fn kernel(&self) -> Result<&Module, MachineError> {
        self.module(ModuleKind::Kernel).ok_or(MachineError::NoKernel)
    }
}

impl Default for Machine {
    fn default() -> Machine {
        Machine::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requester_id_is_masked_before_it_is_mapped() {
        let mut host = PciHost {
            ecam: Range::default(),
            segment: 0,
            buses: (0, 255),
            windows: ArrayVec::new(),
            msi_map_mask: 0xfff8,
            msi_map: ArrayVec::new(),
            iommu_map_mask: u32::MAX,
            iommu_map: ArrayVec::new(),
        };
        host.msi_map.push(IdMap { rid_base: 0x100, target: ItsId(1), out_base: 0x8000, length: 0x100 });
        assert_eq!(host.device_id(0x10b), Some((ItsId(1), 0x8008)));
        assert_eq!(host.device_id(0xff), None);
        assert_eq!(host.device_id(0x200), None);
        assert_eq!(host.stream_id(0x10b), None);
    }
}
