//! dom0: the memory and devices that it gets, and their description.
//!
//! dom0 gets all free memory and all devices that EL2 does not use itself, each mapped at its own address.

use super::acpi::{self, Places};
use super::fdt::edit::{Dom0FdtError, Dom0Plan, build_dom0_fdt, vgicr_region};
use super::layout::{Banks, Placement, place, plan_dom0_memory};
use super::{
    BuildError, Devices, DomainSpec, Homes, ID_BITS, Images, affinity, assemble, kernel_header, pci_hide, start,
};
use crate::domain::table::Domains;
use crate::host::Host;
use crate::host::cmdline::Dom0Acpi;
use crate::ids::{CpuId, DomId, Intid, ItsId, Mpidr, Pa};
use crate::mm::el2_map;
use crate::mm::firmware::FirmwareMemory;
use crate::mm::guest_ram::{Bank, GuestRam};
use crate::mm::hw::El2;
use crate::mm::stage2::{Attr, ipa_bits};
use crate::mmio::Hw;
use crate::platform::acpi::Tables;
use crate::platform::{Machine, Module, ModuleKind, UartKind, fdt};
use crate::util::range::{Range, pages_without};
use crate::vits::{OnError, Quota, Vits, VitsConfig};
use alloc::vec::Vec;

/// The EventID bits of a PCI function: MSI-X has at most 2048 vectors (PCI Express 6.0, 7.7.2).
const MSIX_BITS: u8 = 11;

/// The memory that is in use before dom0 is built.
pub struct MemoryInUse<'a> {
    /// The device tree that the boot loader passed.
    pub fdt: &'a [u8],
    /// The addresses of that device tree.
    pub fdt_range: Range,
    /// EL2's image.
    pub image: Range,
    /// EL2's pool, which holds frames, heap and stacks.
    pub pool: Range,
    /// RAM and boot modules of domUs.
    pub domus: Vec<Range>,
}

/// Builds dom0 and powers its first vCPU on.
///
/// # Errors
///
/// [`BuildError`]; the machine cannot run without dom0.
pub fn build(domains: &Domains, in_use: &MemoryInUse<'_>) -> Result<(), BuildError> {
    let host = domains.host;
    let machine = host.machine;
    let kernel = module(machine, ModuleKind::Kernel)
        .ok_or_else(|| BuildError::new("no kernel: /chosen has no module of kind multiboot,kernel"))?;
    let ramdisk = module(machine, ModuleKind::Ramdisk);

    let (homes, affinities): (Vec<CpuId>, Vec<Mpidr>) = vcpu_places(host).into_iter().unzip();
    let banks = banks(host, in_use)?;
    let place = placement(in_use, kernel, ramdisk, &banks)?;
    let total: u64 = banks.iter().map(|bank| bank.size).sum();
    log::info!("dom0: {} vCPUs, {} MiB, kernel at {}", affinities.len(), total >> 20, place.kernel.base);
    let ram = GuestRam::new(banks.iter().copied().map(Bank::direct).collect())
        .map_err(|error| BuildError::because("memory", error))?;

    let places =
        places(machine, affinities.len(), in_use).map_err(|error| BuildError::because("redistributors", error))?;
    let absent_itss = absent_itss(host);
    let plan = Dom0Plan {
        vcpus: &affinities,
        memory: &banks,
        gicr: places.gicr,
        absent_itss: &absent_itss,
        bootargs: &kernel.bootargs,
        initrd: place.initrd,
    };
    let description = describe(host, in_use, &plan, &places, place.dtb)?;
    let absent = absent(machine)?;
    let mapped = mapped_devices(host, in_use, &absent)?;
    let devices = Devices {
        dist: machine.gic.dist,
        redists: places.gicr,
        spis: host.gic.facts().spis,
        itss: virtual_itss(host)?,
        console: places.console,
        absent,
        mapped,
    };
    let spec = DomainSpec {
        id: DomId(0),
        affinities,
        homes: Homes::Fixed(homes),
        weight: None,
        cap: None,
        ram,
        images: Images { kernel, ramdisk, description, place },
        devices,
    };
    let domain = assemble(host, spec).map_err(|failure| failure.error)?;
    let kept = kept_spis(machine);
    host.spis.give(DomId(0), |spi| !kept.contains(&spi));
    start(domains.add_dom0(domain), &place)
}

fn module(machine: &Machine, kind: ModuleKind) -> Option<&Module> {
    machine.modules.iter().find(|module| module.kind == kind)
}

/// Returns the addresses of dom0's redistributors and console.
fn places(machine: &Machine, vcpus: usize, in_use: &MemoryInUse<'_>) -> Result<Places, Dom0FdtError> {
    if machine.rsdp.is_some() {
        return acpi::places(machine, vcpus, in_use.pool);
    }
    // The addresses are those of the host's device tree.
    let console = machine.uart.and_then(|uart| Some((uart.regs, uart.irq?)));
    Ok(Places { gicr: vgicr_region(machine, vcpus)?, console })
}

/// Makes the device tree or the ACPI tables that describe the machine to dom0. `room` is the range that they are loaded
/// to.
fn describe(
    host: &Host,
    in_use: &MemoryInUse<'_>,
    plan: &Dom0Plan<'_>,
    places: &Places,
    room: Range,
) -> Result<Vec<u8>, BuildError> {
    let machine = host.machine;
    match (machine.rsdp, host.options.dom0_acpi) {
        (None, _) => {
            build_dom0_fdt(in_use.fdt, machine, plan).map_err(|error| BuildError::because("device tree", error))
        }
        (Some(_), Dom0Acpi::Off) => Ok(acpi::tree::build(machine, plan, places)),
        (Some(rsdp), Dom0Acpi::On) => Tables::open(rsdp, &FirmwareMemory(machine))
            .map_err(Into::into)
            .and_then(|host| acpi::tables::build(&host, machine, plan, places, room))
            .map_err(|error| BuildError::because("ACPI tables", error)),
    }
}

/// Returns the CPU on which each vCPU starts, and the vCPU's affinity: that of the CPU, or one that no CPU has. The
/// first vCPU starts on the boot CPU.
fn vcpu_places(host: &Host) -> Vec<(CpuId, Mpidr)> {
    let boot = crate::arch::percpu::cpu();
    let mut cpus: Vec<(CpuId, Mpidr)> = host
        .machine
        .cpus
        .iter()
        .enumerate()
        .filter(|(_, cpu)| cpu.enabled)
        .filter_map(|(index, cpu)| Some((CpuId(u16::try_from(index).ok()?), cpu.mpidr)))
        .filter(|&(cpu, _)| cpu == boot || host.cpu(cpu).is_online())
        .collect();
    cpus.sort_by_key(|&(cpu, _)| (cpu != boot, cpu));
    let count = match host.options.dom0_max_vcpus.map(usize::from) {
        Some(most) if most > cpus.len() && !host.sched.shares_cpus() => {
            log::warn!("dom0: {} vCPUs instead of {most}: sched=null allows one for each CPU", cpus.len());
            cpus.len()
        }
        Some(most) => most,
        None => cpus.len(),
    };
    let own: Vec<Mpidr> = cpus.iter().map(|&(_, mpidr)| mpidr).collect();
    let homes: Vec<CpuId> = cpus.iter().map(|&(cpu, _)| cpu).collect();
    homes.into_iter().cycle().zip(affinity::for_vcpus(&own, count)).collect()
}

/// The SPIs of the devices that EL2 uses itself: its console and the SMMUs.
fn kept_spis(machine: &Machine) -> Vec<Intid> {
    let smmus = machine.smmus.iter().flat_map(|smmu| [smmu.event, smmu.gerror]);
    smmus.chain([machine.uart.and_then(|uart| uart.irq)]).flatten().collect()
}

/// The registers of the devices that EL2 uses itself or emulates. They are never mapped in a guest's stage 2.
fn kept_frames(machine: &Machine) -> Vec<Range> {
    let mut kept = alloc::vec![machine.gic.dist];
    kept.extend(machine.gic.redists.iter());
    kept.extend(machine.gic.itss.iter().map(|its| its.control));
    kept.extend(machine.smmus.iter().map(|smmu| smmu.regs));
    kept.extend(machine.uart.iter().map(|uart| uart.regs));
    kept
}

/// Returns the ECAM pages of the PCI functions that dom0 does not see: those of `dom0_pci_hide=`, and EL2's console if
/// it is a PCI function, which is possible only on a machine with ACPI.
fn absent(machine: &Machine) -> Result<Vec<Range>, BuildError> {
    let mut pages = pci_hide::hidden_by_option(machine)
        .map_err(|text| BuildError(alloc::format!("dom0_pci_hide=: no PCI function `{text}` on this machine")))?;
    let Some(uart) = machine.uart.filter(|uart| uart.kind != UartKind::Pl011 && machine.rsdp.is_some()) else {
        return Ok(pages);
    };
    for host in &machine.pci {
        el2_map::map_device(host.ecam).map_err(|error| BuildError::because("PCI configuration space", error))?;
        if let Some(page) = pci_hide::function_at(host, uart.regs.base, |at| El2.read32(at)) {
            log::info!("console: hidden from dom0: it is a PCI function");
            pages.push(page);
        }
    }
    Ok(pages)
}

/// Returns the ranges that dom0 may access besides its RAM: the PCI windows and every device that EL2 does not use
/// itself.
fn mapped_devices(host: &Host, in_use: &MemoryInUse<'_>, absent: &[Range]) -> Result<Vec<(Range, Attr)>, BuildError> {
    let machine = host.machine;
    let mut mapped = Vec::new();
    let mut hidden = kept_frames(machine);
    hidden.extend(absent);
    hidden.extend(machine.memory.iter());
    let mut windows: Vec<Range> =
        machine.pci.iter().flat_map(|bridge| bridge.windows.iter().map(|window| window.cpu)).collect();
    if machine.rsdp.is_some() && host.options.dom0_acpi == Dom0Acpi::On {
        // The devices are listed only in AML, which EL2 does not interpret. So dom0 gets every address that is neither
        // memory nor used by EL2. AML also reads memory that the firmware has reserved.
        let mut own = kept_frames(machine);
        own.extend([in_use.image, in_use.pool]);
        own.extend(host.gic.inherited_tables());
        mapped.extend(pages_without(&machine.reserved, &own).into_iter().map(|range| (range, Attr::Ram)));
        hidden.extend(own);
        hidden.extend(machine.reserved.iter());
        windows.push(Range::new(Pa(0), 1 << ipa_bits(host.features().stage2().pa_range)));
    }
    mapped.extend(pages_without(&windows, &hidden).into_iter().map(|range| (range, Attr::PciWindow)));
    let mut devices: Vec<Range> = machine.pci.iter().map(|bridge| bridge.ecam).collect();
    if machine.rsdp.is_none() {
        fdt::for_each_device(in_use.fdt, |device| devices.extend(device.regs))
            .map_err(|error| BuildError::because("devices of the device tree", error))?;
    }
    hidden.extend(windows);
    mapped.extend(pages_without(&devices, &hidden).into_iter().map(|range| (range, Attr::Device)));
    Ok(mapped)
}

/// The control frames of the ITSs that could not be brought up.
fn absent_itss(host: &Host) -> Vec<Pa> {
    let itss = (0..).map(ItsId).zip(&host.machine.gic.itss);
    itss.filter(|&(id, _)| host.gic.facts().its(id).is_none()).map(|(_, its)| its.control.base).collect()
}

/// Makes a virtual ITS for each of the host's ITSs that was brought up, at the same address.
fn virtual_itss(host: &Host) -> Result<Vec<(Range, Vits)>, BuildError> {
    let mut itss = Vec::new();
    for (index, its) in host.machine.gic.itss.iter().enumerate() {
        let id = ItsId(u8::try_from(index).unwrap_or(u8::MAX));
        let Some(facts) = host.gic.facts().its(id) else { continue };
        let vits = Vits::new(VitsConfig {
            domain: DomId(0),
            its: id,
            device_bits: facts.device_bits.min(32),
            event_bits: facts.event_bits.min(16),
            collection_bits: 10,
            id_bits: ID_BITS,
            quota: Quota { devices: 512, events: 8192, itt_entries: 32_768, device_event_bits: MSIX_BITS },
            on_error: OnError::Skip,
        })
        .map_err(|error| BuildError(alloc::format!("virtual {id}: {error:?}")))?;
        itss.push((its.control, vits));
    }
    Ok(itss)
}

/// Chooses dom0's RAM: as much as `dom0_mem=` says, or all free memory.
fn banks(host: &Host, in_use: &MemoryInUse<'_>) -> Result<Banks, BuildError> {
    let mut keep_out = alloc::vec![in_use.image, in_use.pool, in_use.fdt_range];
    keep_out.extend(&in_use.domus);
    let want = host.options.dom0_mem.unwrap_or(u64::MAX);
    let banks = plan_dom0_memory(host.machine, &keep_out, want);
    let total: u64 = banks.iter().map(|bank| bank.size).sum();
    if banks.is_empty() {
        return Err(BuildError::new("no memory is free"));
    }
    if host.options.dom0_mem.is_some() && total < want {
        log::warn!("dom0: {} MiB instead of {} MiB: no more memory is free", total >> 20, want >> 20);
    }
    Ok(banks)
}

/// Chooses the addresses of kernel, RAM disk and device tree.
fn placement(
    in_use: &MemoryInUse<'_>,
    kernel: &Module,
    ramdisk: Option<&Module>,
    banks: &Banks,
) -> Result<Placement, BuildError> {
    let image = kernel_header(kernel)?;
    place(banks, &image, kernel.range, ramdisk.map(|module| module.range), &[in_use.fdt_range])
        .map_err(|error| BuildError::because("images", error))
}
