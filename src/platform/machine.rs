//! The description of the machine, as plain data.

use super::domu::{DOMAINS, DomainConfig};
use super::error::{MachineError, Part};
use super::module::{Module, ModuleKind};
use crate::ids::{DeviceId, DeviceIds, Intid, ItsId, Mpidr, Pa, Sbdf, SmmuId, StreamId, Streams};
use crate::util::range::{Range, gaps, pages_around, whole_pages_in};
use arrayvec::{ArrayString, ArrayVec};
use core::fmt::{self, Write};

/// The largest number of CPUs, and of redistributor regions, since firmware may describe one region per CPU.
pub const CPUS: usize = 512;

/// The largest number of reservations.
pub const RESERVATIONS: usize = 256;

/// The largest numbers of ITSs, SMMUs and PCI hosts, and of entries in one `msi-map` or `iommu-map`.
pub const ITSS: usize = 32;
/// See [`ITSS`].
pub const SMMUS: usize = 64;
/// See [`ITSS`].
pub const PCI_HOSTS: usize = 48;
/// See [`ITSS`].
pub const ID_MAPS: usize = 32;

/// Physical addresses have at most 52 bits (FEAT_LPA). A CPU may have fewer, which the stage 1 code checks.
pub(super) const TOP: u64 = 1 << 52;

/// A CPU that the firmware describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// The affinity.
    pub mpidr: Mpidr,
    /// Whether the CPU may be used. A disabled CPU keeps its place in the list, so that `CpuId`s do not change.
    pub enabled: bool,
}

/// The instruction that calls PSCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `SMC #0`, to EL3.
    Smc,
    /// `HVC #0`, to a hypervisor that this one runs on.
    Hvc,
}

/// The GIC version that the firmware describes. Whether a GICv3 is a GICv4 is read from its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GicKind {
    /// A GICv2, which has neither redistributors nor LPIs.
    V2,
    /// A GICv3 or GICv4.
    V3,
    /// A GICv5.
    V5,
    /// Not described.
    #[default]
    Other,
}

/// An ITS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Its {
    /// Its two 64 KiB frames: the control frame, then the one with GITS_TRANSLATER.
    pub control: Range,
    /// Whether the firmware says that the ITS does not snoop the CPUs' caches when it accesses its tables.
    pub non_coherent: bool,
}

/// The interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gic {
    /// The version according to the firmware.
    pub version_hint: GicKind,
    /// The frame of the distributor.
    pub dist: Range,
    /// The redistributor regions; the redistributors of one region are adjacent.
    pub redists: ArrayVec<Range, CPUS>,
    /// The firmware lists each redistributor by itself, and does not state their sizes: they are those of a GICv3 until
    /// [`size_redists`](Gic::size_redists) makes regions of them.
    pub redists_listed: bool,
    /// The distance between two redistributors in bytes, where it differs from what GICR_TYPER implies.
    pub redist_stride: Option<u64>,
    /// The PPI of the CPU interface's maintenance interrupt.
    pub maintenance: Intid,
    /// Whether the firmware says that the redistributors do not snoop the CPUs' caches when they access their tables.
    pub non_coherent: bool,
    /// The ITSs; an `ItsId` is an index into this list.
    pub itss: ArrayVec<Its, ITSS>,
    /// The ITSs of the firmware that are not in the list: one bit for each available ITS, in the firmware's order. Those
    /// beyond the 64th are not in the list, either.
    pub skipped_itss: u64,
    /// Registers that EL2 does not use and that no guest may: memory-mapped CPU interfaces, message frames, and
    /// redistributors of CPUs that are not used.
    pub unused: ArrayVec<Range, CPUS>,
}

impl Gic {
    /// Adds a range to [`unused`](Gic::unused), unless it is there.
    pub(super) fn add_unused(&mut self, range: Range) -> Result<(), MachineError> {
        if self.unused.iter().any(|known| known.covers(range)) {
            return Ok(());
        }
        let full = MachineError::TooMany { part: Part::GicFrame, limit: self.unused.capacity() };
        self.unused.try_push(range).map_err(|_| full)
    }
}

/// The sizes of a redistributor without and with the frames for virtual LPIs (IHI 0069, 12.10).
pub(super) const GICV3_REDIST: u64 = 0x2_0000;
const GICV4_REDIST: u64 = 0x4_0000;

impl Gic {
    /// Sets the sizes of redistributors that the firmware does not state, and joins adjacent ones to regions: once,
    /// before the regions are used. The redistributors are those of a GIC of revision `arch_rev` (GICD_PIDR2.ArchRev).
    /// None reaches into the next one.
    pub fn size_redists(&mut self, arch_rev: u32) {
        if !self.redists_listed {
            return;
        }
        self.redists.sort_unstable();
        let size = if arch_rev >= 4 { GICV4_REDIST } else { GICV3_REDIST };
        for index in 0..self.redists.len() {
            let next = self.redists.get(index + 1).map(|next| next.base.0);
            let redist = &mut self.redists[index];
            redist.size = next.map_or(size, |next| size.min(next - redist.base.0));
        }
        // In place, because the list is too large for a boot stack.
        let mut regions = 0;
        for index in 0..self.redists.len() {
            let redist = self.redists[index];
            match self.redists[..regions].last_mut() {
                Some(last) if last.end() == redist.base => last.size += redist.size,
                _ => {
                    self.redists[regions] = redist;
                    regions += 1;
                }
            }
        }
        self.redists.truncate(regions);
    }
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

/// The kind of accesses that a PCI window carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PciWindowKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB in PCI address space.
    Mem32,
    /// Memory anywhere in PCI address space.
    Mem64,
}

/// A range of CPU addresses that a PCI host translates to PCI addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciWindow {
    /// The kind of accesses.
    pub kind: PciWindowKind,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
    /// The CPU addresses.
    pub cpu: Range,
    /// The PCI address that `cpu.base` is translated to.
    pub pci_base: u64,
}

/// One entry of `msi-map` or `iommu-map`: requester IDs `rid_base .. rid_base + length` become IDs from `out_base` on
/// at `target`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap<T> {
    /// The first requester ID.
    pub rid_base: u32,
    /// The ITS or SMMU that receives the translated ID.
    pub target: T,
    /// The ID that `rid_base` becomes.
    pub out_base: u32,
    /// The number of IDs.
    pub length: u32,
}

impl<T: Copy> IdMap<T> {
    /// Translates a requester ID. Returns `None` if this entry does not cover it.
    #[must_use]
    pub fn map(&self, rid: u32) -> Option<(T, u32)> {
        let offset = rid.checked_sub(self.rid_base)?;
        (offset < self.length).then(|| self.out_base.checked_add(offset)).flatten().map(|out| (self.target, out))
    }
}

/// A PCI host whose configuration space is an ECAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciHost {
    /// The configuration space; `ecam.base` is that of bus `buses.0`.
    pub ecam: Range,
    /// The PCI segment (a PCI domain in Linux' terms).
    pub segment: u16,
    /// The first and the last bus number.
    pub buses: (u8, u8),
    /// The windows to the devices' BARs and I/O ports.
    pub windows: ArrayVec<PciWindow, 8>,
    /// `msi-map-mask`: the mask applied to a requester ID before `msi_map` is searched.
    pub msi_map_mask: u32,
    /// The translation of requester IDs to DeviceIDs.
    pub msi_map: ArrayVec<IdMap<ItsId>, ID_MAPS>,
    /// `iommu-map-mask`: the mask applied to a requester ID before `iommu_map` is searched.
    pub iommu_map_mask: u32,
    /// The translation of requester IDs to StreamIDs.
    pub iommu_map: ArrayVec<IdMap<SmmuId>, ID_MAPS>,
    /// Whether DMA of the functions snoops the CPUs' caches.
    pub coherent: bool,
}

impl PciHost {
    /// Whether the host has this function's bus.
    #[must_use]
    pub fn has(&self, function: Sbdf) -> bool {
        self.segment == function.segment && (self.buses.0..=self.buses.1).contains(&function.bus())
    }

    /// Returns the ITS that receives a function's MSIs, and the DeviceID they carry.
    #[must_use]
    pub fn device_id(&self, rid: u16) -> Option<(ItsId, DeviceId)> {
        let found = self.msi_map.iter().find_map(|line| line.map(u32::from(rid) & self.msi_map_mask));
        found.map(|(its, id)| (its, DeviceId(id)))
    }

    /// Returns the SMMU in front of a function, and the function's StreamID there.
    #[must_use]
    pub fn stream_id(&self, rid: u16) -> Option<(SmmuId, StreamId)> {
        let found = self.iommu_map.iter().find_map(|line| line.map(u32::from(rid) & self.iommu_map_mask));
        found.map(|(smmu, id)| (smmu, StreamId(id)))
    }
}

impl<T: Copy> IdMap<T> {
    /// The IDs that the functions of a host with these buses get from this entry: the first and the last. `mask` is that of
    /// the map.
    #[must_use]
    pub fn ids(&self, buses: (u8, u8), mask: u32) -> Option<(u32, u32)> {
        let (first, last) = (u32::from(buses.0) << 8, u32::from(buses.1) << 8 | 0xff);
        // The mask merges functions: it clears bits of each requester ID. So its results are between 0 and `last`.
        let first = if mask & 0xffff == 0xffff { first } else { 0 };
        let end = self.rid_base.checked_add(self.length.checked_sub(1)?)?;
        let (from, to) = (first.max(self.rid_base), last.min(end));
        let out = |rid: u32| self.out_base.checked_add(rid.checked_sub(self.rid_base)?);
        if from <= to { Some((out(from)?, out(to)?)) } else { None }
    }
}

/// Devices on no PCI bus that send MSIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiDevices {
    /// The ITS that receives them.
    pub its: ItsId,
    /// The DeviceIDs they carry.
    pub ids: DeviceIds,
}

/// Memory that firmware has some devices access on its own behalf, such as a boot splash or a controller's mailbox. It has
/// to stay within their reach, at the same address, whoever owns them.
///
/// Firmware may be wrong about it: whoever maps the range for a device asks [`Machine::is_reserved`] first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaReserved {
    /// The streams of the devices.
    pub streams: Streams,
    /// The memory, in whole pages.
    pub range: Range,
}

/// An SMMUv3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smmu {
    /// Its registers, 128 KiB.
    pub regs: Range,
    /// Whether the firmware says that the SMMU snoops the CPUs' caches when it accesses its tables.
    pub coherent: bool,
    /// The wired interrupt of the event queue.
    pub event: Option<Intid>,
    /// The wired interrupt for global errors.
    pub gerror: Option<Intid>,
}

/// The programming interface of a UART.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UartKind {
    /// Arm's PL011, or its SBSA subset.
    Pl011,
    /// A 16550.
    Ns16550 {
        /// Registers are `1 << reg_shift` bytes apart.
        reg_shift: u32,
        /// The size of a register access in bytes.
        io_width: u32,
    },
}

/// The console UART.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uart {
    /// Its programming interface.
    pub kind: UartKind,
    /// Its registers.
    pub regs: Range,
    /// Its interrupt.
    pub irq: Option<Intid>,
}

/// Something that the firmware describes oddly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warning {
    /// What it is about: a node's path, or a part and its address.
    pub object: ArrayString<80>,
    /// The problem, and what is done.
    pub problem: &'static str,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.problem)
    }
}

/// Writes as much as there is room for.
struct Cut<'a>(&'a mut ArrayString<80>);

impl Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|letter| self.0.try_push(letter).map_err(|_| fmt::Error))
    }
}

/// The description of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// RAM, as the firmware lists it.
    pub memory: ArrayVec<Range, 64>,
    /// Memory that must not be used, in RAM or not: `/memreserve/` and fixed `/reserved-memory`, or what the firmware
    /// keeps, with the registers that its runtime services use.
    pub reserved: ArrayVec<Range, RESERVATIONS>,
    /// The parts of `reserved` that are for an operating system's use of ACPI: tables, and memory that AML refers to.
    pub acpi_memory: ArrayVec<Range, 64>,
    /// The CPUs; a `CpuId` is an index into this list.
    pub cpus: ArrayVec<Cpu, CPUS>,
    /// How PSCI 0.2 or later is called; `None` if the firmware does not have it.
    pub psci: Option<Conduit>,
    /// The interrupt controller.
    pub gic: Gic,
    /// The PCI hosts.
    pub pci: ArrayVec<PciHost, PCI_HOSTS>,
    /// The devices on no PCI bus that send MSIs, as the firmware lists them; a device may be listed twice.
    pub msi_devices: ArrayVec<MsiDevices, 128>,
    /// The SMMUs.
    pub smmus: ArrayVec<Smmu, SMMUS>,
    /// The streams of devices other than the PCI functions of [`pci`](Machine::pci); a stream may be listed twice.
    pub stream_devices: ArrayVec<Streams, 128>,
    /// Memory that devices access for the firmware.
    pub dma_reserved: ArrayVec<DmaReserved, 64>,
    /// What the firmware describes more of than these lists have room for. What did not fit is not listed.
    pub left_out: ArrayVec<Part, 8>,
    /// What the firmware describes oddly, and what is done with it.
    pub warnings: ArrayVec<Warning, 32>,
    /// The number of warnings that did not fit.
    pub more_warnings: u32,
    /// The generic timer.
    pub timer: TimerPpis,
    /// The console.
    pub uart: Option<Uart>,
    /// The boot modules, in the firmware's order.
    pub modules: ArrayVec<Module, 8>,
    /// The domUs; domain N is at index N - 1.
    pub domains: ArrayVec<DomainConfig, DOMAINS>,
    /// The address of the ACPI root pointer, if ACPI tables described the machine.
    pub rsdp: Option<Pa>,
    /// The command line of the hypervisor.
    pub bootargs: ArrayString<2048>,
}

impl Machine {
    /// An empty description; `const`, so that the real one can be a static.
    #[must_use]
    pub const fn new() -> Machine {
        const NOWHERE: Range = Range::new(Pa(0), 0);
        Machine {
            memory: ArrayVec::new_const(),
            reserved: ArrayVec::new_const(),
            acpi_memory: ArrayVec::new_const(),
            cpus: ArrayVec::new_const(),
            psci: None,
            gic: Gic {
                version_hint: GicKind::Other,
                dist: NOWHERE,
                redists: ArrayVec::new_const(),
                redists_listed: false,
                redist_stride: None,
                maintenance: Intid(0),
                non_coherent: false,
                itss: ArrayVec::new_const(),
                skipped_itss: 0,
                unused: ArrayVec::new_const(),
            },
            pci: ArrayVec::new_const(),
            msi_devices: ArrayVec::new_const(),
            smmus: ArrayVec::new_const(),
            stream_devices: ArrayVec::new_const(),
            dma_reserved: ArrayVec::new_const(),
            left_out: ArrayVec::new_const(),
            warnings: ArrayVec::new_const(),
            more_warnings: 0,
            timer: TimerPpis { phys_s: None, phys: Intid(0), virt: Intid(0), hyp: Intid(0) },
            uart: None,
            modules: ArrayVec::new_const(),
            domains: ArrayVec::new_const(),
            rsdp: None,
            bootargs: ArrayString::new_const(),
        }
    }

    /// Returns the size of all RAM in bytes.
    #[must_use]
    pub fn memory_size(&self) -> u64 {
        self.memory.iter().map(|bank| bank.size).fold(0, u64::saturating_add)
    }

    /// Returns the number of CPUs that may be used.
    #[must_use]
    pub fn enabled_cpus(&self) -> usize {
        self.cpus.iter().filter(|cpu| cpu.enabled).count()
    }

    /// Returns the PCI host that has a function's bus.
    #[must_use]
    pub fn pci_host(&self, function: Sbdf) -> Option<&PciHost> {
        self.pci.iter().find(|host| host.has(function))
    }

    /// Whether no domain may use any RAM in `range`.
    #[must_use]
    pub fn is_reserved(&self, range: Range) -> bool {
        gaps(range, &self.reserved).all(|gap| !self.memory.iter().any(|bank| bank.overlaps(gap)))
    }

    /// Adds streams to [`stream_devices`](Machine::stream_devices).
    pub(super) fn add_stream_device(&mut self, streams: Streams) {
        // Several devices may share a stream.
        if !self.stream_devices.contains(&streams) && self.stream_devices.try_push(streams).is_err() {
            self.leave_out(Part::StreamDevices);
        }
    }

    /// Adds memory to [`dma_reserved`](Machine::dma_reserved), in whole pages, unless there cannot be any there.
    pub(super) fn add_dma_reserved(&mut self, streams: Streams, range: Range) {
        if range.is_empty() || range.base.0.checked_add(range.size).is_none_or(|end| end > TOP) {
            return;
        }
        let reserved = DmaReserved { streams, range: pages_around(range) };
        if !self.dma_reserved.contains(&reserved) && self.dma_reserved.try_push(reserved).is_err() {
            self.leave_out(Part::DmaReserved);
        }
    }

    /// Notes that something is odd and does not keep the machine from running: the object, which is cut to 80 bytes, and
    /// `problem: consequence`.
    pub(super) fn warn(&mut self, object: impl fmt::Display, problem: &'static str) {
        let mut warning = Warning { object: ArrayString::new_const(), problem };
        // What did not fit is missing at the end.
        let _ = write!(Cut(&mut warning.object), "{object}");
        if self.warnings.try_push(warning).is_err() {
            self.more_warnings = self.more_warnings.saturating_add(1);
        }
    }

    /// Adds a bank of RAM, joined with those that it overlaps, in whole pages.
    ///
    /// # Errors
    ///
    /// Why it is not used.
    pub(super) fn add_memory(&mut self, bank: Range) -> Result<(), &'static str> {
        if bank.is_empty() {
            return Err("it is empty: ignored");
        }
        if bank.base.0.checked_add(bank.size).is_none_or(|end| end > TOP) {
            return Err("it exceeds 52 bits of address: ignored");
        }
        let mut all = whole_pages_in(bank);
        if all.is_empty() {
            return Err("it has no whole page: ignored");
        }
        let overlaps = self.memory.iter().any(|known| known.overlaps(all));
        while let Some(index) = self.memory.iter().position(|known| known.overlaps(all)) {
            let known = self.memory.remove(index);
            all = Range::between(known.base.min(all.base), known.end().max(all.end()));
        }
        if self.memory.try_push(all).is_err() {
            self.leave_out(Part::Memory);
        }
        if overlaps { Err("it overlaps another one: joined with it") } else { Ok(()) }
    }

    /// Notes that a list lacks something because it is full.
    pub(super) fn leave_out(&mut self, part: Part) {
        if !self.left_out.contains(&part) {
            // There is room for each part that is left out anywhere.
            let _ = self.left_out.try_push(part);
        }
    }

    /// Returns the first module of a kind.
    #[must_use]
    pub fn module(&self, kind: ModuleKind) -> Option<&Module> {
        self.modules.iter().find(|module| module.kind == kind)
    }

    /// Returns the modules of dom0, then those of the domUs.
    pub fn all_modules(&self) -> impl Iterator<Item = &Module> {
        self.modules.iter().chain(self.domains.iter().flat_map(|domain| &domain.modules))
    }

    /// Returns dom0's kernel.
    ///
    /// # Errors
    ///
    /// [`MachineError::NoKernel`] if the boot loader has not loaded one.
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
    use crate::ids::StreamId;

    #[test]
    fn memory_is_reserved_if_all_of_it_that_is_ram_is() {
        let r = |base, size| Range::new(Pa(base), size);
        let mut machine = Machine::new();
        machine.memory.push(r(0x4000_0000, 0x100_0000));
        machine.reserved.extend([r(0x4000_2000, 0x1000), r(0x4000_3000, 0x2000)]);
        assert!(machine.is_reserved(r(0x4000_2000, 0x3000)));
        assert!(machine.is_reserved(r(0x3000_0000, 0x1000)));
        assert!(!machine.is_reserved(r(0x4000_1fff, 0x1001)));
        assert!(!machine.is_reserved(r(0x4000_4000, 0x2000)));
        assert!(!machine.is_reserved(r(0x3fff_f000, 0x2000)));
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said_so() {
        let mut machine = Machine::new();
        let streams = |id| Streams { smmu: SmmuId(0), first: StreamId(id), last: StreamId(id) };
        let range = |id: u32| Range::new(Pa(u64::from(id) << 12), 1);
        for id in 0..128 {
            machine.add_stream_device(streams(id));
            machine.add_stream_device(streams(id));
        }
        assert_eq!((machine.stream_devices.len(), machine.left_out.len()), (128, 0));
        (128..140).for_each(|id| machine.add_stream_device(streams(id)));
        assert_eq!((machine.stream_devices.len(), &machine.left_out[..]), (128, &[Part::StreamDevices][..]));
        (0..65).for_each(|id| machine.add_dma_reserved(streams(id), range(id)));
        assert_eq!(machine.dma_reserved.len(), 64);
        assert_eq!(machine.left_out[..], [Part::StreamDevices, Part::DmaReserved]);
    }

    #[test]
    fn reserved_memory_of_devices_is_in_whole_pages_where_ram_can_be() {
        let mut machine = Machine::new();
        let streams = Streams { smmu: SmmuId(1), first: StreamId(1), last: StreamId(2) };
        for (base, size) in [(0, 0), (u64::MAX, 2), (1 << 52, 1), (0x1000, u64::MAX)] {
            machine.add_dma_reserved(streams, Range::new(Pa(base), size));
        }
        assert!(machine.dma_reserved.is_empty());
        machine.add_dma_reserved(streams, Range::new(Pa(0x1fff), 2));
        assert_eq!(machine.dma_reserved[..], [DmaReserved { streams, range: Range::new(Pa(0x1000), 0x2000) }]);
    }

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
            coherent: true,
        };
        host.msi_map.push(IdMap { rid_base: 0x100, target: ItsId(1), out_base: 0x8000, length: 0x100 });
        assert_eq!(host.device_id(0x10b), Some((ItsId(1), DeviceId(0x8008))));
        assert_eq!(host.device_id(0xff), None);
        assert_eq!(host.device_id(0x200), None);
        assert_eq!(host.stream_id(0x10b), None);
    }
}
