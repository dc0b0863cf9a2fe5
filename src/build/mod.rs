//! Building domains: a `DomainSpec` becomes a [`Domain`](crate::domain::Domain).
//!
//! dom0's specification comes from the machine's description ([`dom0`]), a domU's from a `xen,domain` node or, at run
//! time, from the tools of dom0 ([`domu`]). Each lists the parts of the domain and their addresses. [`assembly`] is common to
//! all: it loads the images, and makes the address space, the interrupt controller, the vPEs and the vCPUs. The other
//! modules make the parts of a specification: where images are placed in memory ([`layout`], [`image`]), the affinities of vCPUs ([`affinity`]),
//! the devices that may send MSIs ([`device_ids`]) and the virtual ITSs for them (`itss`), the PCI functions that dom0
//! does not see ([`pci_hide`]), the place of dom0's console device ([`control_device`]), and the device tree or ACPI tables for the guest ([`fdt`], [`acpi`]).

pub mod acpi;
pub mod affinity;
pub mod assembly;
pub mod control_device;
pub mod device_ids;
pub mod dom0;
pub mod domu;
pub mod draft;
pub mod fdt;
mod guest_pci;
pub mod image;
mod itss;
pub mod layout;
pub mod passthrough;
pub mod pci_hide;
pub mod platform_devices;
mod streams;

use crate::arch::percpu;
use crate::domain::images::{File, From, Images};
use crate::domain::pci_host::PciHost;
use crate::host::Host;
use crate::host::cmdline::OnCrash;
use crate::ids::{CpuId, DeviceIds, DomId, DomainName, Intid, Ipa, Mpidr, Pa, Streams};
use crate::mm::guest_ram::{GuestRam, peek};
use crate::mm::stage2::Attr;
use crate::pci::bridge::Bridge;
use crate::platform::Module;
use crate::util::range::Range;
use crate::vcpu::Start;
use crate::vits::Vits;
use alloc::string::String;
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
/// ACPI tables, which fits into its place.
fn images(kernel: From, ramdisk: Option<From>, description: Vec<u8>, place: &Placement) -> Images {
    let kernel = File { what: "kernel", from: kernel, to: place.kernel };
    let ramdisk = ramdisk.zip(place.initrd).map(|(from, to)| File { what: "RAM disk", from, to });
    Images {
        files: [Some(kernel), ramdisk].into_iter().flatten().collect(),
        description,
        description_at: place.dtb,
        // As the boot protocol requires (Linux, Documentation/arch/arm64/booting.rst).
        start: Start { entry: Ipa(place.kernel.base.0), context: place.dtb.base.0 },
    }
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
    /// Ranges of the machine that are mapped, besides RAM, and where the domain sees them.
    mapped: Vec<(Ipa, Range, Attr)>,
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
    /// Any CPU that the scheduler accepts. The assembly chooses it.
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
    name: DomainName,
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
    /// What happens if it crashes.
    on_crash: OnCrash,
    devices: Devices,
}

impl DomainSpec {
    fn is_dom0(&self) -> bool {
        self.id == DomId(0)
    }
}

/// Reads the header of a kernel module.
fn kernel_header(kernel: &Module) -> Result<Image, BuildError> {
    let mut header = [0; HEADER_LEN];
    let header = peek(kernel.range, &mut header).map_err(|error| BuildError::because("kernel", error))?;
    Image::parse(header).map_err(|error| BuildError::because("kernel", error))
}

/// The CPUs for the next vCPU that may be on any: it is placed on the first one that accepts it. The boot CPU is the last
/// one, because it takes the console's interrupts. If vCPUs share CPUs, each CPU accepts any number of vCPUs, and they are
/// distributed in turn.
fn any_cpu(host: &Host) -> impl Iterator<Item = CpuId> {
    let count = host.cpus.ids().len();
    let turn = if host.sched.shares_cpus() { host.vcpus() % count } else { 0 };
    host.cpus.ids().rev().cycle().skip(turn).take(count).filter(|&cpu| host.cpu(cpu).is_online())
}
