//! domUs: each is built from its boot modules, with RAM from the pool.
//!
//! A domU is built once, at boot. It keeps its resources (RAM, VMID, vCPUs in the scheduler) when it is restarted. They
//! are freed by `control::teardown`, or here if building fails.

use super::fdt::make::{DomuTree, build_domu_fdt};
use super::guest_pci::Plan;
use super::layout::domu::{
    DIST, MAX_RAM, MAX_VCPUS, RAM, SPIS, UART, UART_IRQ, affinities, place_modules, plan_pool, ram_size, redists,
};
use super::passthrough::{Given, Passthrough};
use super::{BuildError, Devices, Dma, DomainSpec, Failure, Homes, assemble, images, kernel_header, start};
use crate::dev::vtimer::CNTP_PPI;
use crate::domain::table::Domains;
use crate::host::Host;
use crate::ids::{DomId, Ipa};
use crate::mm::guest_pool::GuestRanges;
use crate::mm::guest_ram::{BANKS, Bank, GuestRam, wipe};
use crate::mm::heap;
use crate::platform::{DomainConfig, ModuleKind};
use crate::util::range::Range;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use arrayvec::ArrayVec;

/// Reserves RAM for the domUs of the machine's description. Returns the ranges that dom0 must not get: that RAM, and
/// the boot modules of domUs.
pub fn reserve(host: &Host, keep_out: &[Range]) -> Vec<Range> {
    let machine = host.machine;
    let mut reserved = Vec::new();
    for stretch in plan_pool(machine, keep_out) {
        match wipe(stretch) {
            Ok(()) => {
                host.guest_pool.lock().give(stretch);
                reserved.push(stretch);
            }
            Err(error) => log::error!("RAM of domUs: not reserved: {error}"),
        }
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
    for id in (1..).take(host.machine.domains.len()).map(DomId) {
        build_or_log(domains, id, given);
    }
}

/// Builds a domU and starts it, or logs why it cannot be built.
fn build_or_log(domains: &'static Domains, id: DomId, given: &mut Passthrough) {
    let configs = &domains.host.machine.domains;
    let Some(index) = usize::from(id.0).checked_sub(1) else { return };
    let Some(config) = configs.get(index) else { return };
    if let Err(error) = given.take(index).and_then(|functions| build(domains, id, config, functions)) {
        // What was reserved for its devices; none of them has been mapped.
        let released = domains.host.gic.release_devices(id);
        debug_assert!(released, "{id} has never run");
        log::error!("{id} `{}`: not built: {error}", config.name);
    }
}

fn build(domains: &'static Domains, id: DomId, config: &DomainConfig, functions: Vec<Given>) -> Result<(), BuildError> {
    if let Some(problem) = &config.problem {
        return Err(BuildError(problem.to_string()));
    }
    let host = domains.host;
    let count = usize::from(config.cpus);
    // Without room, an allocation would fail in the middle of the build, which is the end of EL2.
    if !heap::has_room(ROOM + count * ROOM_FOR_VCPU) {
        return Err(BuildError::new("no memory is left for EL2's own objects"));
    }
    if config.memory > MAX_RAM {
        return Err(BuildError(alloc::format!("{} MiB of RAM are more than {}", config.memory >> 20, MAX_RAM >> 20)));
    }
    if count > MAX_VCPUS {
        return Err(BuildError(alloc::format!("{count} vCPUs are more than {MAX_VCPUS}")));
    }
    let kernel = config.module(ModuleKind::Kernel).ok_or_else(|| BuildError::new("no kernel module"))?;
    let ramdisk = config.module(ModuleKind::Ramdisk);
    if config.module(ModuleKind::DeviceTree).is_some() {
        log::warn!("{id} `{}`: device tree module ignored: platform devices cannot be given to domUs", config.name);
    }
    let size = ram_size(config);
    let image = kernel_header(kernel)?;
    let place = place_modules(size, &image, kernel.range.size, ramdisk.map(|module| module.range.size))
        .map_err(|error| BuildError::because("images", error))?;

    let affinities = affinities(count);
    let plan = Plan::new(host, functions)?;
    let description = build_domu_fdt(&DomuTree {
        vcpus: &affinities,
        ram: size,
        bootargs: &kernel.bootargs,
        initrd: place.initrd,
        uart: config.vpl011,
        timers: (CNTP_PPI, host.machine.timer.virt),
        pci: plan.describe(),
    });
    let images = images(kernel, ramdisk, description, &place)?;
    let entry = images.start;
    let (itss, device_ids, lpis, pci, dma) = match plan.make(host, id)? {
        Some(of_pci) => (of_pci.itss, of_pci.device_ids, of_pci.events, Some(of_pci.host), of_pci.dma),
        None => (Vec::new(), Vec::new(), 0, None, Dma::default()),
    };
    let ram = take_ram(host, size)?;
    let devices = Devices {
        dist: DIST,
        redists: redists(count),
        spis: SPIS,
        itss,
        device_ids,
        lpis,
        console: config.vpl011.then_some((UART, UART_IRQ)),
        ports: None,
        absent: Vec::new(),
        bridges: Vec::new(),
        mapped: Vec::new(),
        pci,
        dma,
    };
    let spec = DomainSpec {
        id,
        affinities,
        homes: Homes::Any,
        weight: config.weight,
        cap: config.cap,
        ram,
        images,
        restarts: true,
        devices,
    };
    let domain = assemble(host, spec).map_err(|failure| reclaim_ram(host, *failure))?;
    let cpus: Vec<String> = domain.vcpus().iter().map(|vcpu| vcpu.cpu().to_string()).collect();
    log::info!("{id} `{}`: {count} vCPUs ({}), {} MiB", config.name, cpus.join(", "), size >> 20);
    let domain = Arc::new(domain);
    domain.attach_console();
    if let Some(dom0) = domains.dom0() {
        domain.offer_console(dom0, &config.name);
    }
    if domains.add(domain.clone()).is_err() {
        unreachable!("{id} is built twice");
    }
    start(&domain, entry)
}

/// Takes `size` bytes of RAM from the pool. The guest sees them as one range.
fn take_ram(host: &Host, size: u64) -> Result<GuestRam, BuildError> {
    let ranges = host.guest_pool.lock().take(size);
    let ranges = ranges.ok_or_else(|| BuildError(alloc::format!("{} MiB of RAM are not free", size >> 20)))?;
    GuestRam::new(banks(&ranges)).map_err(|error| BuildError::because("memory", error))
}

/// Assigns consecutive guest addresses to the ranges.
fn banks(ranges: &GuestRanges) -> ArrayVec<Bank, BANKS> {
    let mut ipa = RAM.0;
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
        let mut done = 0;
        while let Some(next) = failure.ram.wipe(done, u64::MAX) {
            done = next;
        }
        host.guest_pool.lock().give_back(failure.ram);
    }
    failure.error
}
