//! domUs: each is built from its images, with RAM from the pool.
//!
//! What a domU is to be comes from the machine's description at boot, or from the tools of dom0 at run time
//! ([`super::draft`]). `plan` checks it and lists its parts, and is common to both. A domU keeps its resources (RAM, VMID,
//! vCPUs in the scheduler) when it is restarted. They are freed by `control::teardown`, or here if building fails.

use super::assembly::{Failure, assemble};
use super::fdt::make::{DomuTree, build_domu_fdt};
use super::guest_pci::Plan;
use super::image::Image;
use super::layout::domu::{
    DIST, MAX_RAM, MAX_VCPUS, RAM, SPIS, UART, UART_IRQ, affinities, place_modules, plan_pool, ram_size, redists,
};
use super::layout::{PlaceError, Placement};
use super::passthrough::{Given, Passthrough};
use super::platform_devices;
use super::{BuildError, Devices, Dma, DomainSpec, Homes, images, kernel_header};
use crate::dev::vtimer::CNTP_PPI;
use crate::domain::Domain;
use crate::domain::images::From;
use crate::domain::table::Domains;
use crate::host::Host;
use crate::host::cmdline::OnCrash;
use crate::ids::{DomId, DomainName, Ipa, Mpidr, Pa};
use crate::mm::guest_pool::GuestRanges;
use crate::mm::guest_ram::{BANKS, Bank, GuestRam, wipe};
use crate::mm::heap;
use crate::mm::stage2::Attr;
use crate::platform::{DomainConfig, Module, ModuleKind};
use crate::util::range::Range;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use doorward_api::Status;

/// Reserves RAM for the domUs of the machine's description. Returns the ranges that dom0 must not get: that RAM, and
/// the boot modules of domUs.
pub fn reserve(host: &Host, keep_out: &[Range]) -> Vec<Range> {
    let machine = host.machine;
    let mut reserved = Vec::new();
    for stretch in plan_pool(machine, keep_out, host.options.domu_mem) {
        match wipe(stretch) {
            Ok(()) => {
                host.guest_pool.lock().give(stretch);
                reserved.push(stretch);
            }
            Err(error) => log::error!("RAM of domUs: not reserved: {error}"),
        }
    }
    let (wanted, got) = (host.options.domu_mem >> 20, host.guest_pool.lock().free_bytes() >> 20);
    if got < wanted {
        log::warn!("RAM of domUs: {got} MiB are set aside instead of {wanted}: more is not free");
    }
    reserved.extend(machine.domains.iter().flat_map(|config| config.modules.iter().map(|module| module.range)));
    reserved
}

/// Room on EL2's heap that a domU has to find before it is built, and for each vCPU: many times the 5 KiB that one with a
/// single vCPU keeps, because the device tree is made there, too.
const ROOM: usize = 256 << 10;
const ROOM_FOR_VCPU: usize = 32 << 10;

/// Builds all domUs. If one cannot be built, the reason is logged and the others run without it.
pub fn build_all(domains: &'static Domains, given: &mut Passthrough) {
    let host = domains.host;
    if host.machine.domains.is_empty() {
        return;
    }
    host.log_free_memory();
    for index in 0..host.machine.domains.len() {
        build_or_log(domains, index, given);
    }
}

/// Builds a domU and starts it, or logs why it cannot be built.
fn build_or_log(domains: &'static Domains, index: usize, given: &mut Passthrough) {
    let Some(config) = domains.host.machine.domains.get(index) else { return };
    let name = name_of(config);
    let id = match domains.reserve(&name) {
        Ok(id) => id,
        Err(error) => return log::error!("domU `{}`: not built: {error}", config.name),
    };
    let devices = given.platform.take(index);
    let devices = devices.and_then(|platform| Ok(GivenDevices { functions: given.take(index)?, platform }));
    if let Err(error) = devices.and_then(|devices| build(domains, id, config, devices)) {
        // What was reserved for its devices; none of them has been mapped.
        let released = domains.host.gic.release_devices(id);
        debug_assert!(released, "{id} has never run");
        domains.give_back(id);
        log::error!("{id} `{}`: not built: {error}", config.name);
    }
}

/// The name of a domain at run time. That of its node may have more characters: others stand for those.
fn name_of(config: &DomainConfig) -> DomainName {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let mut name = DomainName::new();
    let is_bare = config.name.starts_with(|first: char| !first.is_ascii_alphanumeric())
        || config.name.bytes().all(|byte| byte.is_ascii_digit());
    let letters = is_bare.then_some('d').into_iter().chain(config.name.chars());
    // 32 bytes and one more fit.
    letters.for_each(|letter| _ = name.try_push(if allowed(letter) { letter } else { '_' }));
    name
}

/// The devices of the machine that a domU gets.
#[derive(Default)]
pub(super) struct GivenDevices {
    pub functions: Vec<Given>,
    pub platform: platform_devices::Devices,
}

/// What a domU is to be.
pub struct Wanted {
    /// Its name.
    pub name: DomainName,
    /// The number of its vCPUs.
    pub vcpus: usize,
    /// The size of its RAM in bytes.
    pub memory: u64,
    /// Whether it has a console.
    pub console: bool,
    /// The scheduler's weight for each vCPU; the default if `None`.
    pub weight: Option<u32>,
    /// The most CPU time of each vCPU, in percent of a CPU; no limit if `None`.
    pub cap: Option<u32>,
    /// What happens if it crashes.
    pub on_crash: OnCrash,
    /// The kernel's command line.
    pub bootargs: String,
}

/// A domU that cannot be built: why, for programs and for people.
pub struct Refused {
    /// For programs.
    pub status: Status,
    /// For people.
    pub error: BuildError,
}

impl Refused {
    fn new(status: Status, error: BuildError) -> Refused {
        Refused { status, error }
    }
}

impl Wanted {
    /// Checks whether there can be such a domain, and returns the size of its RAM in bytes. Heap that was free at the time
    /// of this call suffices for its assembly.
    pub(super) fn check(&self) -> Result<u64, Refused> {
        // Without room, an allocation would fail in the middle of the build, which is the end of EL2.
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            let text = alloc::format!("{} vCPUs are not 1 to {MAX_VCPUS}", self.vcpus);
            return Err(Refused::new(Status::InvalidValue, BuildError(text)));
        }
        if self.memory == 0 || self.memory > MAX_RAM {
            let text = alloc::format!("{} MiB of RAM are not 2 to {}", self.memory >> 20, MAX_RAM >> 20);
            return Err(Refused::new(Status::InvalidValue, BuildError(text)));
        }
        if !heap::has_room(ROOM + self.vcpus * ROOM_FOR_VCPU) {
            let error = BuildError::new("no memory is left for EL2's own objects");
            return Err(Refused::new(Status::NoHeap, error));
        }
        Ok(ram_size(self.memory))
    }
}

/// A domU all of whose parts are known, but for its RAM and images.
pub(super) struct Planned {
    id: DomId,
    name: DomainName,
    affinities: Vec<Mpidr>,
    weight: Option<u32>,
    cap: Option<u32>,
    on_crash: OnCrash,
    place: Placement,
    description: Vec<u8>,
    devices: Devices,
}

/// Lists the parts of a domU whose kernel has this header. `kernel` and `ramdisk` are the sizes of the images in bytes.
pub(super) fn plan(
    host: &Host,
    id: DomId,
    wanted: &Wanted,
    header: &Image,
    kernel: u64,
    ramdisk: Option<u64>,
    given: GivenDevices,
) -> Result<Planned, Refused> {
    let size = wanted.check()?;
    let place = place_modules(size, header, kernel, ramdisk)
        .map_err(|error: PlaceError| Refused::new(Status::DoesNotFit, BuildError::because("images", error)))?;
    let affinities = affinities(wanted.vcpus);
    let functions = |error| Refused::new(Status::NotAssignable, error);
    let GivenDevices { functions: given, platform } = given;
    let of_functions = Plan::new(host, given).map_err(functions)?;
    let description = build_domu_fdt(&DomuTree {
        vcpus: &affinities,
        ram: size,
        bootargs: &wanted.bootargs,
        initrd: place.initrd,
        uart: wanted.console,
        timers: (CNTP_PPI, host.machine.timer.virt),
        pci: of_functions.describe(),
        partial: &platform.tree,
    });
    if description.len() as u64 > place.dtb.size {
        return Err(Refused::new(Status::InvalidValue, BuildError::new("its description is too long")));
    }
    let (itss, device_ids, lpis, pci, mut dma) = match of_functions.make(host, id).map_err(functions)? {
        Some(of_pci) => (of_pci.itss, of_pci.device_ids, of_pci.events, Some(of_pci.host), of_pci.dma),
        None => (Vec::new(), Vec::new(), 0, None, Dma::default()),
    };
    dma.streams.extend(&platform.streams);
    let devices = Devices {
        dist: DIST,
        redists: redists(wanted.vcpus),
        spis: SPIS.max(platform.spis_needed()),
        itss,
        device_ids,
        lpis,
        console: wanted.console.then_some((UART, UART_IRQ)),
        ports: None,
        absent: Vec::new(),
        bridges: Vec::new(),
        mapped: platform.regs.iter().map(|&(at, range)| (at, range, Attr::Device)).collect(),
        pci,
        dma,
    };
    let Wanted { name, weight, cap, on_crash, .. } = *wanted;
    Ok(Planned { id, name, affinities, weight, cap, on_crash, place, description, devices })
}

impl Planned {
    /// The domU's specification.
    pub(super) fn with(self, ram: GuestRam, kernel: From, ramdisk: Option<From>) -> DomainSpec {
        let Planned { id, name, affinities, weight, cap, on_crash, place, description, devices } = self;
        let images = images(kernel, ramdisk, description, &place);
        let homes = Homes::Any;
        DomainSpec { id, name, affinities, homes, weight, cap, ram, images, restarts: true, on_crash, devices }
    }
}

fn build(domains: &'static Domains, id: DomId, config: &DomainConfig, given: GivenDevices) -> Result<(), BuildError> {
    if let Some(problem) = &config.problem {
        return Err(BuildError(problem.to_string()));
    }
    let host = domains.host;
    let kernel = config.module(ModuleKind::Kernel).ok_or_else(|| BuildError::new("no kernel module"))?;
    let ramdisk = config.module(ModuleKind::Ramdisk);
    let wanted = Wanted {
        name: name_of(config),
        vcpus: config.cpus.into(),
        memory: config.memory,
        console: config.vpl011,
        weight: config.weight,
        cap: config.cap,
        on_crash: host.options.on_crash,
        bootargs: String::from(kernel.bootargs.as_str()),
    };
    let header = kernel_header(kernel)?;
    let sizes = (kernel.range.size, ramdisk.map(|module| module.range.size));
    let spis = given.platform.spis.clone();
    let planned = plan(host, id, &wanted, &header, sizes.0, sizes.1, given).map_err(|refused| refused.error)?;
    let ram = take_ram(host, RAM, ram_size(config.memory))?;
    let file = |module: &Module| From::Module(module.range);
    let spec = planned.with(ram, file(kernel), ramdisk.map(file));
    let domain = assemble(host, spec).map_err(|failure| reclaim_ram(host, *failure))?;
    host.spis.give(id, |spi| spis.contains(&spi));
    domain.take_spis();
    let cpus: Vec<String> = domain.vcpus().iter().map(|vcpu| vcpu.cpu().to_string()).collect();
    let size = domain.ram().size() >> 20;
    log::info!("{id} `{}`: {} vCPUs ({}), {size} MiB", config.name, cpus.len(), cpus.join(", "));
    let domain = add(domains, domain)?;
    if domain.start() { Ok(()) } else { Err(BuildError::new("it has no vCPU")) }
}

/// Puts a domU that is built into the table of domains and gives it its console.
///
/// # Errors
///
/// [`BuildError`]: its place in the table, which was reserved for it, is taken.
pub fn add(domains: &'static Domains, domain: Domain) -> Result<Arc<Domain>, BuildError> {
    let domain = Arc::new(domain);
    domain.attach_console();
    if let Some(dom0) = domains.dom0() {
        domain.offer_console(dom0);
    }
    match domains.add(domain.clone()) {
        Ok(()) => Ok(domain),
        Err(_) => Err(BuildError::new("its place in the table of domains is taken")),
    }
}

/// Takes `size` bytes of RAM from the pool, zeroed. It has consecutive guest addresses, from `start` on.
pub(super) fn take_ram(host: &Host, start: Pa, size: u64) -> Result<GuestRam, BuildError> {
    let ranges = host.guest_pool.lock().take(size);
    let ranges = ranges.ok_or_else(|| BuildError(alloc::format!("{} MiB of RAM are not free", size >> 20)))?;
    GuestRam::new(banks(start, &ranges)).map_err(|error| BuildError::because("memory", error))
}

/// Assigns consecutive guest addresses to the ranges.
fn banks(start: Pa, ranges: &GuestRanges) -> ArrayVec<Bank, BANKS> {
    let mut ipa = start.0;
    let mut banks = ArrayVec::new();
    for stretch in ranges {
        banks.push(Bank { ipa: Ipa(ipa), pa: stretch.base, size: stretch.size });
        ipa += stretch.size;
    }
    banks
}

/// Zeroes the RAM of a domU that cannot be built, because it may hold parts of its images, and returns it to the pool, unless
/// a device may still reach it.
fn reclaim_ram(host: &Host, failure: Failure) -> BuildError {
    if host.iommu.is_sound() {
        for ram in failure.rams {
            let mut done = 0;
            while let Some(next) = ram.wipe(done, u64::MAX) {
                done = next;
            }
            host.guest_pool.lock().give_back(ram);
        }
    }
    failure.error
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrayvec::ArrayString;

    #[test]
    fn a_domain_gets_the_name_of_its_node_as_far_as_that_can_be_a_name() {
        let name = |node: &str| {
            let config = DomainConfig { name: ArrayString::from(node).unwrap(), ..DomainConfig::default() };
            let name = name_of(&config);
            assert!(doorward_api::Name::new(&name).is_ok(), "{name}");
            name
        };
        let all = [("web", "web"), ("domU@1,x", "domU_1_x"), ("7", "d7"), ("-a", "d-a"), ("", "d"), ("\u{e4}", "d_")];
        all.iter().for_each(|(node, expected)| assert_eq!(name(node).as_str(), *expected));
        assert_eq!(name(&"-".repeat(32)).len(), 33);
    }
}
