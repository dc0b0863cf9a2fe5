//! Building domains: a `DomainSpec` becomes a [`Domain`].
//!
//! dom0's specification comes from the machine's description ([`dom0`]), a domU's from a `xen,domain` node ([`domu`]).
//! Both list the parts of the domain and their addresses. `assemble` is common to both: it loads the images, and
//! makes the address space, the interrupt controller, the vPEs and the vCPUs. The other modules make the parts of a
//! specification: where images are placed in memory ([`layout`], [`image`]), the affinities of vCPUs ([`affinity`]),
//! the devices that may send MSIs ([`device_ids`]) and the virtual ITSs for them (`itss`), the PCI functions that dom0
//! does not see ([`pci_hide`]), and the device tree or ACPI tables for the guest ([`fdt`], [`acpi`]).

pub mod acpi;
pub mod affinity;
pub mod device_ids;
pub mod dom0;
pub mod domu;
pub mod fdt;
pub mod image;
mod itss;
pub mod layout;
pub mod pci_hide;

use crate::arch::{ich, percpu};
use crate::domain::images::{File, Images};
use crate::domain::msi::LpiPaths;
use crate::domain::{Domain, Parts, remove_vpes};
use crate::gic::v4::VmHandle;
use crate::host::Host;
use crate::host::cmdline::Direct;
use crate::ids::{CpuId, DeviceIds, DomId, Intid, Ipa, Mpidr, VcpuId, VpeId};
use crate::mm::guest_ram::{GuestRam, peek};
use crate::mm::hw::El2;
use crate::mm::stage2::{Attr, Fwb, Stage2, Stage2Error, ipa_bits};
use crate::mm::tlb::Tlbs;
use crate::pci::bridge::Bridge;
use crate::platform::Module;
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
    /// The registers and the interrupt of the emulated console.
    console: Option<(Range, Intid)>,
    /// ECAM pages of PCI functions that the domain does not see.
    absent: Vec<Range>,
    /// The bridges above these functions.
    bridges: Vec<Bridge>,
    /// Ranges of the machine that are mapped at their own addresses, besides RAM.
    mapped: Vec<(Range, Attr)>,
}

/// The CPUs on which a domain's vCPUs start.
enum Homes {
    /// One CPU for each vCPU, in their order.
    Fixed(Vec<CpuId>),
    /// Any CPU that the scheduler accepts. `assemble` chooses it.
    Any,
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

/// A domain that could not be built. Its RAM may hold parts of its images.
struct Failure {
    error: BuildError,
    ram: GuestRam,
}

/// Builds a domain. Its vCPUs are off, and it is not in the table of domains yet.
fn assemble(host: &'static Host, spec: DomainSpec) -> Result<Domain, Box<Failure>> {
    match make_parts(host, &spec) {
        Ok((stage2, vgic, paths, vcpus)) => {
            let Devices { dist, redists, itss, console, absent, bridges, .. } = spec.devices;
            let (id, ram, images) = (spec.id, spec.ram, spec.restarts.then_some(spec.images));
            let parts =
                Parts { id, stage2, ram, vgic, dist, redists, itss, paths, console, absent, bridges, vcpus, images };
            Ok(Domain::new(host, parts))
        }
        Err(error) => Err(Box::new(Failure { error, ram: spec.ram })),
    }
}

/// The parts of a domain that are made from its specification.
type MadeParts = (Stage2<'static, El2, Tlbs>, Vgic, LpiPaths, Vec<Arc<Vcpu>>);

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
    let paths = lpi_paths(host, spec);
    if paths.vcpus.iter().all(|(_, vpe)| vpe.is_some()) && host.gic.has_virtual_sgis() {
        vgic.offer_direct_sgis();
        log::info!("{}: SGIs are virtual SGIs if the guest does without their active state", spec.id);
    }
    match place_vcpus(host, spec, &paths) {
        Ok(vcpus) => Ok((stage2, vgic, paths, vcpus)),
        Err(error) => {
            let removed = remove_vpes(host, spec.id, &paths);
            debug_assert!(removed, "none of them has been resident");
            host.free_stage2(stage2);
            Err(error)
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

/// Creates the VM and, as long as there are free ones, a vPE for each vCPU. The LPIs of a vCPU without a vPE are
/// injected by software.
fn lpi_paths(host: &Host, spec: &DomainSpec) -> LpiPaths {
    let homes: Vec<CpuId> = match &spec.homes {
        Homes::Fixed(homes) => homes.clone(),
        Homes::Any => alloc::vec![percpu::cpu(); spec.affinities.len()],
    };
    let with = |vm: Option<VmHandle>, vpe: &dyn Fn(CpuId) -> Option<VpeId>| LpiPaths {
        vm,
        vcpus: homes.iter().map(|&cpu| (cpu, vpe(cpu))).collect(),
        devices: spec.devices.device_ids.clone(),
    };
    let wanted = host.options.direct == Direct::On && !spec.devices.itss.is_empty();
    let Some(v4) = host.gic.v4().filter(|_| wanted) else { return with(None, &|_| None) };
    match v4.create_vm(ID_BITS) {
        Ok(vm) => with(Some(vm), &|cpu| {
            v4.add_vpe(vm, cpu)
                .inspect_err(|error| {
                    log::warn!("{}: no vPE for the vCPU on {cpu}: {error}; its LPIs are injected by software", spec.id);
                })
                .ok()
        }),
        Err(error) => {
            log::warn!("{}: no vLPI tables: {error}; LPIs are injected by software", spec.id);
            with(None, &|_| None)
        }
    }
}

/// Makes the vCPUs and adds them to the scheduler. On failure they are removed from it again.
fn place_vcpus(host: &Host, spec: &DomainSpec, paths: &LpiPaths) -> Result<Vec<Arc<Vcpu>>, BuildError> {
    let mut vcpus: Vec<Arc<Vcpu>> = Vec::new();
    for (id, &affinity) in (0..).map(VcpuId).zip(&spec.affinities) {
        let make = |cpu| Arc::new(Vcpu::new(spec.id, id, affinity, cpu, paths.vpe(id), ich::count()));
        let placed = match &spec.homes {
            Homes::Fixed(homes) => homes.get(id.index()).and_then(|&cpu| try_place(host, make(cpu), cpu)),
            Homes::Any => place_anywhere(host, make),
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

/// Places a vCPU on the first CPU that accepts it. The boot CPU is tried last, because it takes the console's
/// interrupts. If vCPUs share CPUs, each CPU accepts any number of vCPUs, and they are distributed in turn.
fn place_anywhere(host: &Host, make: impl Fn(CpuId) -> Arc<Vcpu>) -> Option<Arc<Vcpu>> {
    let count = host.cpus.ids().len();
    let turn = if host.sched.shares_cpus() { host.vcpus() % count } else { 0 };
    let all = host.cpus.ids().rev().cycle().skip(turn).take(count);
    all.filter(|&cpu| host.cpu(cpu).is_online()).find_map(|cpu| try_place(host, make(cpu), cpu))
}

/// Starts a domain.
fn start(domain: &Domain, start: Start) -> Result<(), BuildError> {
    if domain.start(start) { Ok(()) } else { Err(BuildError::new("it has no vCPU")) }
}
