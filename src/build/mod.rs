//! Building domains: a `DomainSpec` becomes a [`Domain`].
//!
//! dom0's specification comes from the machine's description ([`dom0`]), a domU's from a `xen,domain` node ([`domu`]).
//! Both list the parts of the domain and their addresses. `assemble` is common to both: it loads the images, and
//! makes the address space, the interrupt controller, the vPEs and the vCPUs. The other modules make the parts of a
//! specification: where images are placed in memory ([`layout`], [`image`]), the affinities of vCPUs ([`affinity`]),
//! the devices that may send MSIs ([`device_ids`]) and the virtual ITSs for them (`itss`), the PCI functions that dom0
//! does not see ([`pci_hide`]), the place of dom0's console device ([`control_device`]), and the device tree or ACPI tables for the guest ([`fdt`], [`acpi`]).

pub mod acpi;
pub mod affinity;
pub mod control_device;
pub mod device_ids;
pub mod dom0;
pub mod domu;
pub mod fdt;
mod guest_pci;
pub mod image;
mod itss;
pub mod layout;
pub mod passthrough;
pub mod pci_hide;
mod streams;

use crate::arch::{ich, percpu};
use crate::domain::images::{File, Images};
use crate::domain::msi::{LpiPaths, LpiQuota};
use crate::domain::pci_host::PciHost;
use crate::domain::{Domain, Parts, release_gic};
use crate::host::Host;
use crate::host::cmdline::Direct;
use crate::ids::{CpuId, DeviceIds, DomId, Intid, Ipa, Mpidr, Pa, Streams, VcpuId, VmId};
use crate::mm::guest_ram::{GuestRam, peek};
use crate::mm::hw::El2;
use crate::mm::stage2::{Attr, Fwb, Stage2, Stage2Error, ipa_bits};
use crate::mm::tlb::Tlbs;
use crate::pci::bridge::Bridge;
use crate::platform::Module;
use crate::smmu::iommu::DeviceView;
use crate::util::PAGE;
use crate::util::range::Range;
use crate::vcpu::{Loaded, Start, Vcpu};
use crate::vgic::{Vgic, VgicConfig};
use crate::vits::Vits;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use image::{HEADER_LEN, Image};
use layout::Placement;

/// The number of INTID bits of a guest: 8192 LPIs. The sizes of the vLPI configuration and pending tables follow from
/// it.
const ID_BITS: u8 = 14;

/// The priority bits of a guest's GIC: 32 priorities.
const PRIORITY_BITS: u8 = 5;

/// Why a domain cannot be built.
#[derive(Debug)]
pub struct BuildError(String);

impl BuildError {
    fn new(what: &str) -> BuildError {
        BuildError(String::from(what))
    }

    /// An error about `what`, caused by `error`.
    fn because(what: &str, error: impl fmt::Display) -> BuildError {
        BuildError(alloc::format!("{what}: {error}"))
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Lists what is loaded into a domain's RAM before it starts: kernel, RAM disk and `description`, the device tree or the
/// ACPI tables.
fn images(
    kernel: &Module,
    ramdisk: Option<&Module>,
    description: Vec<u8>,
    place: &Placement,
) -> Result<Images, BuildError> {
    if description.len() as u64 > place.dtb.size {
        return Err(BuildError::new("its description is too long"));
    }
    let kernel = File { what: "kernel", from: kernel.range, to: place.kernel };
    let ramdisk = ramdisk.zip(place.initrd).map(|(ramdisk, to)| File { what: "RAM disk", from: ramdisk.range, to });
    Ok(Images {
        files: [Some(kernel), ramdisk].into_iter().flatten().collect(),
        description,
        description_at: place.dtb,
        // As the boot protocol requires (Linux, Documentation/arch/arm64/booting.rst).
        start: Start { entry: Ipa(place.kernel.base.0), context: place.dtb.base.0 },
    })
}

/// The devices of a domain. Addresses are the guest's.
struct Devices {
    /// The registers of the distributor.
    dist: Range,
    /// The registers of all redistributors.
    redists: Range,
    /// The number of SPIs.
    spis: u32,
    /// The virtual ITSs and their registers.
    itss: Vec<(Range, Vits)>,
    /// The devices that the domain may map on each of the host's ITSs.
    device_ids: Vec<Vec<DeviceIds>>,
    /// The physical LPIs that it gets if a vCPU has no vPE: as many as it may have events mapped at the same time.
    lpis: u32,
    /// The registers and the interrupt of the emulated console.
    console: Option<(Range, Intid)>,
    /// The registers and the interrupt of the console device with ports.
    ports: Option<(Range, Intid)>,
    /// ECAM pages of PCI functions that the domain does not see.
    absent: Vec<Range>,
    /// The bridges above these functions.
    bridges: Vec<Bridge>,
    /// Ranges of the machine that are mapped at their own addresses, besides RAM.
    mapped: Vec<(Range, Attr)>,
    /// The PCI host of a domU.
    pci: Option<PciHost>,
    /// What the domain's devices reach by DMA.
    dma: Dma,
}

/// What the devices of a domain reach by DMA, besides its RAM.
#[derive(Default)]
struct Dma {
    /// The streams of the devices.
    streams: Vec<Streams>,
    /// The pages with GITS_TRANSLATER, as the devices address them, and those of the host's ITSs.
    doorbells: Vec<(Ipa, Pa)>,
    /// Memory of the firmware that devices go on to use, at its own addresses.
    reserved: Vec<Range>,
}

/// The CPUs on which a domain's vCPUs start.
enum Homes {
    /// One CPU for each vCPU, in their order.
    Fixed(Vec<CpuId>),
    /// Any CPU that the scheduler accepts. `assemble` chooses it.
    Any,
}

impl Homes {
    /// The CPU on which each of `vcpus` vCPUs is placed first, and where its vPE is made. The vPE moves with its vCPU if
    /// the scheduler does not accept that there.
    fn first(&self, host: &Host, vcpus: usize) -> Vec<CpuId> {
        match self {
            Homes::Fixed(homes) => homes.clone(),
            Homes::Any => {
                let free = |&cpu: &CpuId| host.sched.shares_cpus() || host.sched.current(cpu).is_none();
                let mut all: Vec<CpuId> = any_cpu(host).filter(free).collect();
                if all.is_empty() {
                    all.push(percpu::cpu());
                }
                all.into_iter().cycle().take(vcpus).collect()
            }
        }
    }
}

/// The specification of a domain.
struct DomainSpec {
    id: DomId,
    /// The affinity of each vCPU.
    affinities: Vec<Mpidr>,
    homes: Homes,
    /// The scheduler's weight for each vCPU; the default if `None`.
    weight: Option<u32>,
    /// The most CPU time of each vCPU, in percent of a CPU; no limit if `None`.
    cap: Option<u32>,
    ram: GuestRam,
    images: Images,
    /// Whether the domain can be restarted. If not, its images are not kept.
    restarts: bool,
    devices: Devices,
}

impl DomainSpec {
    fn is_dom0(&self) -> bool {
        self.id == DomId(0)
    }
}

/// A domain that could not be built. Its RAM may hold parts of its images.
struct Failure {
    error: BuildError,
    ram: GuestRam,
}

/// Builds a domain. Its vCPUs are off, and it is not in the table of domains yet.
fn assemble(host: &'static Host, spec: DomainSpec) -> Result<Domain, Box<Failure>> {
    match make_parts(host, &spec) {
        Ok(made) => {
            let Devices { dist, redists, itss, console, ports, absent, bridges, pci, .. } = spec.devices;
            Ok(Domain::new(
                host,
                Parts {
                    id: spec.id,
                    stage2: made.stage2,
                    device_view: made.device_view,
                    ram: spec.ram,
                    vgic: made.vgic,
                    dist,
                    redists,
                    itss,
                    paths: made.paths,
                    console,
                    ports,
                    absent,
                    bridges,
                    pci,
                    vcpus: made.vcpus,
                    images: spec.restarts.then_some(spec.images),
                },
            ))
        }
        Err(error) => Err(Box::new(Failure { error, ram: spec.ram })),
    }
}

/// The parts of a domain that are made from its specification.
struct MadeParts {
    stage2: Stage2<'static, El2, Tlbs>,
    device_view: Option<DeviceView<El2>>,
    vgic: Vgic,
    paths: LpiPaths,
    vcpus: Vec<Arc<Vcpu>>,
}

/// Loads the images and makes the parts of a domain. On failure everything is freed again, but the RAM may hold parts
/// of the images.
fn make_parts(host: &'static Host, spec: &DomainSpec) -> Result<MadeParts, BuildError> {
    load_images(&spec.ram, &spec.images)?;
    let vgic = Vgic::new(VgicConfig {
        vcpus: spec.affinities.clone(),
        spis: spec.devices.spis,
        id_bits: ID_BITS,
        has_lpis: !spec.devices.itss.is_empty(),
        list_registers: ich::count(),
        priority_bits: PRIORITY_BITS,
    })
    .map_err(|error| BuildError::because("interrupt controller", error))?;
    let stage2 = address_space(host, &spec.ram, &spec.devices.mapped)?;
    let undo = |stage2, error| {
        host.free_stage2(stage2);
        Err(error)
    };
    let paths = match lpi_paths(host, spec) {
        Ok(paths) => paths,
        Err(error) => return undo(stage2, error),
    };
    if paths.vcpus.iter().all(|(_, vpe)| vpe.is_some()) && host.gic.has_virtual_sgis() {
        vgic.offer_direct_sgis();
        log::info!("{}: SGIs are virtual SGIs if the guest does without their active state", spec.id);
    }
    let made = device_view(host, spec, stage2.vmid()).and_then(|view| match place_vcpus(host, spec, &paths) {
        Ok(vcpus) => Ok((vcpus, view)),
        Err(error) => {
            if let Some(view) = view {
                host.iommu.remove(spec.id, view);
            }
            Err(error)
        }
    });
    match made {
        Ok((vcpus, device_view)) => Ok(MadeParts { stage2, device_view, vgic, paths, vcpus }),
        Err(error) => {
            // It ends: none of the vPEs has been resident.
            while !release_gic(host, spec.id, &paths) {}
            undo(stage2, error)
        }
    }
}

/// Loads the images into the domain's RAM.
fn load_images(ram: &GuestRam, images: &Images) -> Result<(), BuildError> {
    let mut loaded = Loaded::default();
    loop {
        match images.load_piece(ram, loaded) {
            Ok(Some(more)) => loaded = more,
            Ok(None) => return Ok(()),
            Err(error) => return Err(BuildError::because("images", error)),
        }
    }
}

/// Reads the header of a kernel module.
fn kernel_header(kernel: &Module) -> Result<Image, BuildError> {
    let mut header = [0; HEADER_LEN];
    let header = peek(kernel.range, &mut header).map_err(|error| BuildError::because("kernel", error))?;
    Image::parse(header).map_err(|error| BuildError::because("kernel", error))
}

/// Maps the domain's RAM, and the ranges of the machine that it may access.
fn address_space(
    host: &Host,
    ram: &GuestRam,
    mapped: &[(Range, Attr)],
) -> Result<Stage2<'static, El2, Tlbs>, BuildError> {
    let failed = |error: Stage2Error| BuildError::because("address space", error);
    let params = host.features().stage2();
    let fwb = if params.fwb { Fwb::On } else { Fwb::Off };
    let vmid = host.vmids.take().ok_or_else(|| BuildError::new("no VMID is free"))?;
    let mut stage2 = Stage2::new(&El2, host.tlbs, vmid, ipa_bits(params.pa_range), fwb).map_err(|error| {
        host.vmids.give_back(vmid);
        failed(error)
    })?;
    let banks = ram.banks().iter().map(|bank| (bank.ipa, bank.pa, bank.size, Attr::Ram));
    let devices = mapped.iter().map(|&(range, attr)| (Ipa(range.base.0), range.base, range.size, attr));
    match banks.chain(devices).try_for_each(|(ipa, pa, size, attr)| stage2.map(ipa, pa, size, attr)) {
        Ok(()) => Ok(stage2),
        Err(error) => {
            host.free_stage2(stage2);
            Err(failed(error))
        }
    }
}

/// Makes what the domain's devices reach, and assigns their streams to it. `None` if no SMMU limits what they reach.
///
/// dom0 does without a device that cannot be assigned. A domU is not built then.
fn device_view(host: &Host, spec: &DomainSpec, vmid: VmId) -> Result<Option<DeviceView<El2>>, BuildError> {
    let (id, dma) = (spec.id, &spec.devices.dma);
    if dma.streams.is_empty() || !host.iommu.translates() {
        return Ok(None);
    }
    let failed = |error: Stage2Error| BuildError::because("address space of its devices", error);
    let mut view = host.iommu.new_view(vmid, ipa_bits(host.features().stage2().pa_range)).map_err(failed)?;
    let banks = spec.ram.banks().iter().map(|bank| (bank.ipa, bank.pa, bank.size, Attr::Ram));
    let doorbells = dma.doorbells.iter().map(|&(ipa, pa)| (ipa, pa, PAGE, Attr::Doorbell));
    let reserved = dma.reserved.iter().map(|range| (Ipa(range.base.0), range.base, range.size, Attr::Ram));
    for (ipa, pa, size, attr) in banks.chain(doorbells).chain(reserved) {
        match view.map(ipa, pa, size, attr) {
            Ok(()) => {}
            Err(error) if spec.is_dom0() => {
                log::error!("{id}: {}: not for devices: {error}: DMA to it fails", Range::new(pa, size));
            }
            Err(error) => {
                host.iommu.remove(id, view);
                return Err(failed(error));
            }
        }
    }
    for &streams in &dma.streams {
        match host.iommu.assign(id, streams, &view) {
            Ok(()) => {}
            Err(error) if spec.is_dom0() => {
                log::error!("{id}: {streams}: not assigned: {error}: its devices reach no memory");
            }
            Err(error) => {
                // Others may have been assigned before this one.
                host.iommu.remove(id, view);
                return Err(BuildError(alloc::format!("{streams}: {error}")));
            }
        }
    }
    Ok(Some(view))
}

/// Creates the VM and, as long as there are free ones, a vPE for each vCPU. The LPIs of a vCPU without a vPE are
/// injected by software: for these, physical LPIs are reserved.
fn lpi_paths(host: &Host, spec: &DomainSpec) -> Result<LpiPaths, BuildError> {
    let (id, gic) = (spec.id, &host.gic);
    let homes = spec.homes.first(host, spec.affinities.len());
    let has_itss = !spec.devices.itss.is_empty();
    let v4 = gic.v4().filter(|_| host.options.direct == Direct::On && has_itss);
    let vm = v4.and_then(|v4| {
        v4.create_vm(ID_BITS)
            .inspect_err(|error| log::warn!("{id}: no vLPI tables: {error}; LPIs are injected by software"))
            .ok()
    });
    let vpe_at = |cpu: CpuId| {
        v4?.add_vpe(vm?, cpu)
            .inspect_err(|error| {
                log::warn!("{id}: no vPE for the vCPU on {cpu}: {error}; its LPIs are injected by software");
            })
            .ok()
    };
    let vcpus: Vec<_> = homes.iter().map(|&cpu| (cpu, vpe_at(cpu))).collect();
    let all_direct = vcpus.iter().all(|(_, vpe)| vpe.is_some());
    let count = if all_direct || !has_itss { 0 } else { spec.devices.lpis };
    let paths = LpiPaths { vm, vcpus, devices: spec.devices.device_ids.clone(), lpis: LpiQuota::none() };
    let Some(lpis) = LpiQuota::reserve(gic, count) else {
        // It ends: none of the vPEs has been resident.
        while !release_gic(host, id, &paths) {}
        return Err(BuildError(alloc::format!("{count} LPIs are not free")));
    };
    Ok(LpiPaths { lpis, ..paths })
}

/// Makes the vCPUs and adds them to the scheduler. On failure they are removed from it again.
fn place_vcpus(host: &Host, spec: &DomainSpec, paths: &LpiPaths) -> Result<Vec<Arc<Vcpu>>, BuildError> {
    let mut vcpus: Vec<Arc<Vcpu>> = Vec::new();
    for (id, &affinity) in (0..).map(VcpuId).zip(&spec.affinities) {
        let make = |cpu| Arc::new(Vcpu::new(spec.id, id, affinity, cpu, paths.vpe(id), ich::count()));
        let placed = match &spec.homes {
            Homes::Fixed(homes) => homes.get(id.index()).and_then(|&cpu| try_place(host, make(cpu), cpu)),
            Homes::Any => any_cpu(host).find_map(|cpu| try_place(host, make(cpu), cpu)),
        };
        let Some(vcpu) = placed else {
            vcpus.iter().for_each(|vcpu| host.remove_vcpu(vcpu));
            return Err(BuildError(alloc::format!("no CPU is free for {id}")));
        };
        if let Some(weight) = spec.weight {
            vcpu.entity.set_weight(weight);
        }
        if let Some(percent) = spec.cap {
            vcpu.entity.set_cap(percent);
        }
        vcpus.push(vcpu);
    }
    for vcpu in &vcpus {
        if let Some(vpe) = vcpu.vpe {
            host.vpes.give(vpe, vcpu.clone());
        }
    }
    Ok(vcpus)
}

/// Adds a vCPU to the scheduler on `cpu`. Returns `None` if the scheduler does not accept it there.
fn try_place(host: &Host, vcpu: Arc<Vcpu>, cpu: CpuId) -> Option<Arc<Vcpu>> {
    host.add_vcpu(&vcpu, cpu).is_ok().then_some(vcpu)
}

/// The CPUs for the next vCPU that may be on any: it is placed on the first one that accepts it. The boot CPU is the last
/// one, because it takes the console's interrupts. If vCPUs share CPUs, each CPU accepts any number of vCPUs, and they are
/// distributed in turn.
fn any_cpu(host: &Host) -> impl Iterator<Item = CpuId> {
    let count = host.cpus.ids().len();
    let turn = if host.sched.shares_cpus() { host.vcpus() % count } else { 0 };
    host.cpus.ids().rev().cycle().skip(turn).take(count).filter(|&cpu| host.cpu(cpu).is_online())
}

/// Starts a domain.
fn start(domain: &Domain, start: Start) -> Result<(), BuildError> {
    if domain.start(start) { Ok(()) } else { Err(BuildError::new("it has no vCPU")) }
}
