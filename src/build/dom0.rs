//! dom0: the memory and devices that it gets, and their description.
//!
//! dom0 gets all free memory and all devices that EL2 does not use itself, each mapped at its own address.

use super::acpi::{self, Places};
use super::assembly::assemble;
use super::fdt::edit::{Dom0FdtError, Dom0Plan, build_dom0_fdt, vgicr_place};
use super::itss::{ItsOf, virtual_itss};
use super::layout::{Banks, Placement, place, plan_dom0_memory};
use super::passthrough::Passthrough;
use super::pci_hide::Hidden;
use super::platform_devices::{HostTree, PlatformDevices};
use super::{
    BuildError, Devices, Dma, DomainSpec, Homes, affinity, control_device, device_ids, images, kernel_header, pci_hide,
    platform_devices, streams,
};
use crate::domain::images::From;
use crate::domain::mmio::TRANSLATION_FRAME;
use crate::domain::table::{DOM0_NAME, Domains};
use crate::gic::{ITS_BYTES_V41, MIN_EVENT_BITS};
use crate::host::Host;
use crate::host::cmdline::{Dom0Acpi, OnCrash};
use crate::ids::{CpuId, DeviceIds, DomId, DomainName, Intid, Ipa, ItsId, Mpidr, Pa};
use crate::mm::el2_map;
use crate::mm::firmware::FirmwareMemory;
use crate::mm::guest_ram::{Bank, GuestRam, peek};
use crate::mm::stage2::{Attr, ipa_bits};
use crate::pci::Ecam;
use crate::platform::acpi::Tables;
use crate::platform::{Machine, Module, ModuleKind, PciWindow, PciWindowKind, UartKind, fdt};
use crate::util::range::{Range, pages_without};
use crate::vits::Quota;
use alloc::vec::Vec;

/// What dom0 may use of each ITS. All of it is reserved when dom0 is built. The EventID bits are those of a PCI function:
/// MSI-X has at most 2048 vectors (PCI Express 6.0, 7.7.2).
const QUOTA: Quota =
    Quota { devices: 512, events: 8192, itt_entries: 32_768, min_event_bits: MIN_EVENT_BITS, device_event_bits: 11 };

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

/// Builds dom0 and powers its first vCPU on. `given` is what domUs get of its devices.
///
/// # Errors
///
/// [`BuildError`]; the machine cannot run without dom0.
pub fn build(domains: &Domains, in_use: &MemoryInUse<'_>, given: &Passthrough) -> Result<(), BuildError> {
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
    let (ports, spis) = control_device(host, in_use);
    let plan = Dom0Plan {
        vcpus: &affinities,
        memory: &banks,
        gicr: places.gicr,
        absent_itss: &absent_itss,
        bootargs: &kernel.bootargs,
        initrd: place.initrd,
        given_bars: &given.bars,
        given_devices: &given.platform.paths,
        ports,
    };
    let description = describe(host, in_use, &plan, &places, place.dtb)?;
    let file = |module: &Module| From::Module(module.range);
    if description.len() as u64 > place.dtb.size {
        return Err(BuildError::new("its description is too long"));
    }
    let images = images(file(kernel), ramdisk.map(file), description, &place);
    let entry = images.start;
    let hidden = hidden(machine, given)?;
    let mapped = mapped_devices(host, in_use, &hidden, given)?;
    let device_ids: Vec<_> = (0..)
        .map(ItsId)
        .take(machine.gic.itss.len())
        .map(|its| device_ids::of_dom0(machine, its, &given.device_ids(machine, its)))
        .collect();
    let itss = virtual_itss(host, DomId(0), &own_itss(host, &device_ids), QUOTA)?;
    let lpis = (itss.len() as u32).saturating_mul(QUOTA.events);
    let devices = Devices {
        dist: machine.gic.dist,
        redists: places.gicr,
        spis,
        itss,
        device_ids,
        lpis: lpis.min(host.gic.unreserved_lpis().saturating_sub(given.lpis())),
        console: places.console,
        ports,
        absent: hidden.absent,
        bridges: hidden.bridges,
        mapped: mapped.into_iter().map(|(range, attr)| (Ipa(range.base.0), range, attr)).collect(),
        pci: None,
        dma: dma(host, given),
    };
    let spec = DomainSpec {
        id: DomId::DOM0,
        name: DomainName::from(DOM0_NAME).unwrap_or_default(),
        affinities,
        homes: Homes::Fixed(homes),
        weight: None,
        cap: None,
        ram,
        images,
        restarts: false,
        on_crash: OnCrash::Destroy,
        devices,
    };
    let domain = assemble(host, spec).map_err(|failure| failure.error)?;
    let mut kept = kept_spis(machine);
    kept.extend(ports.map(|(_, irq)| irq));
    host.spis.give(DomId(0), |spi| !kept.contains(&spi) && !given.platform.spis.contains(&spi));
    let dom0 = domains.add_dom0(domain);
    dom0.attach_console();
    if dom0.start_at(entry) { Ok(()) } else { Err(BuildError::new("it has no vCPU")) }
}

/// Checks the devices of domUs that are no PCI functions. `fdt` is the host's device tree.
#[must_use]
pub fn prepare_platform_devices(host: &Host, fdt: &[u8]) -> PlatformDevices {
    let machine = host.machine;
    let kept_frames = kept_frames(machine, |id| host.gic.facts().its(id).is_none_or(|its| its.v41));
    let tree =
        HostTree { machine, blob: fdt, iommu: host.iommu, kept_frames: &kept_frames, kept_spis: &kept_spis(machine) };
    platform_devices::prepare(&tree, |file| {
        let mut bytes = alloc::vec![0; file.size as usize];
        peek(file, &mut bytes).map_err(|error| BuildError::because("device tree module", error))?;
        Ok(bytes)
    })
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
    Ok(Places { gicr: vgicr_place(machine, vcpus, in_use.pool)?, console })
}

/// Returns where dom0 sees its console device with ports, if it gets one, and the number of its SPIs.
fn control_device(host: &Host, in_use: &MemoryInUse<'_>) -> (Option<(Range, Intid)>, u32) {
    let spis = host.gic.facts().spis;
    if !host.options.dom0_control {
        return (None, spis);
    }
    let fdt = host.machine.rsdp.is_none().then_some(in_use.fdt);
    match control_device::place(host.machine, spis, in_use.pool, fdt) {
        Some((ports, spis)) => {
            log::info!("dom0: control device at {}, {}", ports.0.base, ports.1);
            (Some(ports), spis)
        }
        None => {
            log::warn!("dom0: no interrupt is free for its control device: domains cannot be managed from there");
            (None, spis)
        }
    }
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

/// The registers of the devices that EL2 uses itself or emulates, and those of the GIC that nobody uses. They are never
/// mapped in a guest's stage 2. `is_v41` says whether an ITS is one of GICv4.1.
fn kept_frames(machine: &Machine, is_v41: impl Fn(ItsId) -> bool) -> Vec<Range> {
    let mut kept = alloc::vec![machine.gic.dist];
    kept.extend(machine.gic.redists.iter());
    kept.extend(machine.gic.unused.iter());
    for (id, its) in (0..).map(ItsId).zip(&machine.gic.itss) {
        let size = if is_v41(id) { its.control.size.max(ITS_BYTES_V41) } else { its.control.size };
        kept.push(Range::new(its.control.base, size));
    }
    kept.extend(machine.smmus.iter().map(|smmu| smmu.regs));
    kept.extend(machine.uart.iter().map(|uart| uart.regs));
    kept
}

/// What dom0's devices reach: its RAM, the doorbells of the ITSs, and memory that they access for the firmware, at the
/// addresses that these have on the machine.
fn dma(host: &Host, given: &Passthrough) -> Dma {
    let machine = host.machine;
    let itss = (0..).map(ItsId).zip(&machine.gic.itss).filter(|&(id, _)| host.gic.facts().its(id).is_some());
    // All of dom0's devices reach it, since they have one view: the firmware's memory is not safer from one than from another.
    let kept = kept_frames(machine, |_| true);
    let of_firmware = machine
        .dma_reserved
        .iter()
        .filter(|memory| machine.is_reserved(memory.range) && !kept.iter().any(|frames| frames.overlaps(memory.range)));
    Dma {
        streams: streams::of_dom0(machine, &given.streams(machine)),
        doorbells: itss.map(|(_, its)| its.control.base.add(TRANSLATION_FRAME)).map(|at| (Ipa(at.0), at)).collect(),
        reserved: of_firmware.map(|memory| memory.range).collect(),
    }
}

/// Finds the PCI functions that dom0 does not see: those of `dom0_pci_hide=`, those that domUs get, and EL2's console if
/// it is a PCI function, which is possible only on a machine with ACPI.
fn hidden(machine: &Machine, given: &Passthrough) -> Result<Hidden, BuildError> {
    let mut functions = pci_hide::hidden_by_option(machine)
        .map_err(|text| BuildError(alloc::format!("dom0_pci_hide=: no PCI function `{text}` on this machine")))?;
    functions.extend(&given.hidden);
    let uart = machine.uart.filter(|uart| uart.kind != UartKind::Pl011 && machine.rsdp.is_some());
    for host in &machine.pci {
        if uart.is_some() || functions.iter().any(|function| function.segment == host.segment) {
            el2_map::map_device(host.ecam).map_err(|error| BuildError::because("PCI configuration space", error))?;
        }
        if let Some(console) = uart.and_then(|uart| pci_hide::function_at(host, uart.regs.base, &Ecam)) {
            log::info!("console: hidden from dom0: it is a PCI function");
            functions.push(console);
        }
    }
    pci_hide::hide(machine, &functions, &Ecam)
}

/// Returns the ranges that dom0 may access besides its RAM: the PCI windows and every device that EL2 does not use
/// itself.
fn mapped_devices(
    host: &Host,
    in_use: &MemoryInUse<'_>,
    of_pci: &Hidden,
    given: &Passthrough,
) -> Result<Vec<(Range, Attr)>, BuildError> {
    let machine = host.machine;
    // An ITS that could not be brought up may be of any version.
    let mut hidden = kept_frames(machine, |id| host.gic.facts().its(id).is_none_or(|its| its.v41));
    hidden.extend(of_pci.pages());
    hidden.extend(&given.bars);
    hidden.extend(&given.platform.regs);
    hidden.extend([in_use.image, in_use.pool]);
    if machine.rsdp.is_some() && host.options.dom0_acpi == Dom0Acpi::On {
        hidden.extend(host.gic.inherited_tables());
        let top = 1 << ipa_bits(host.features().stage2().pa_range);
        return Ok(all_but(machine, hidden, Range::new(Pa(0), top)));
    }
    let mut devices = Vec::new();
    if machine.rsdp.is_none() {
        fdt::for_each_device(in_use.fdt, |device| devices.extend(device.regs))
            .map_err(|error| BuildError::because("devices of the device tree", error))?;
    }
    Ok(only(machine, hidden, &devices))
}

/// The PCI windows to memory, and those to I/O ports.
fn windows(machine: &Machine) -> (Vec<Range>, Vec<Range>) {
    let all = machine.pci.iter().flat_map(|bridge| &bridge.windows);
    let (ports, memory): (Vec<_>, Vec<_>) = all.partition(|window| window.kind == PciWindowKind::Io);
    let ranges = |windows: Vec<&PciWindow>| windows.into_iter().map(|window| window.cpu).collect();
    (ranges(memory), ranges(ports))
}

fn ecams(machine: &Machine) -> Vec<Range> {
    machine.pci.iter().map(|bridge| bridge.ecam).collect()
}

/// The mapping of a dom0 whose devices are known: PCI, and `devices`.
fn only(machine: &Machine, mut hidden: Vec<Range>, devices: &[Range]) -> Vec<(Range, Attr)> {
    hidden.extend(machine.memory.iter());
    let (windows, ports) = windows(machine);
    let mut mapped = with(Attr::PciWindow, pages_without(&windows, &hidden));
    hidden.extend(windows);
    let devices: Vec<Range> = ecams(machine).into_iter().chain(ports).chain(devices.iter().copied()).collect();
    mapped.extend(with(Attr::Device, pages_without(&devices, &hidden)));
    mapped
}

/// The mapping of a dom0 with ACPI. Its devices are listed in AML alone, which EL2 does not interpret. So dom0 gets every
/// address below the end of `space` that is neither memory, nor the firmware's, nor in `hidden`, as registers.
fn all_but(machine: &Machine, mut hidden: Vec<Range>, space: Range) -> Vec<(Range, Attr)> {
    // ACPI's own memory is in the memory map as RAM and reserved. AML reads and writes it.
    let mut mapped = with(Attr::Ram, pages_without(&machine.acpi_memory, &hidden));
    // Firmware may reserve configuration space, so that nothing is placed there. It is dom0's nevertheless.
    let ecams = ecams(machine);
    mapped.extend(with(Attr::Device, pages_without(&ecams, &hidden)));
    hidden.extend(ecams);
    hidden.extend(machine.memory.iter());
    hidden.extend(machine.reserved.iter());
    // What is known of PCI windows, by `pci_windows=`, allows write-combining.
    let (windows, _) = windows(machine);
    mapped.extend(with(Attr::PciWindow, pages_without(&windows, &hidden)));
    hidden.extend(windows);
    mapped.extend(with(Attr::Device, pages_without(&[space], &hidden)));
    mapped
}

fn with(attr: Attr, ranges: Vec<Range>) -> Vec<(Range, Attr)> {
    ranges.into_iter().map(|range| (range, attr)).collect()
}

/// The control frames of the ITSs that could not be brought up.
fn absent_itss(host: &Host) -> Vec<Pa> {
    let itss = (0..).map(ItsId).zip(&host.machine.gic.itss);
    itss.filter(|&(id, _)| host.gic.facts().its(id).is_none()).map(|(_, its)| its.control.base).collect()
}

/// The host's ITSs that were brought up, each with its registers, which are also those of the virtual ITS, and the devices
/// that dom0 may map on it.
fn own_itss(host: &Host, device_ids: &[Vec<DeviceIds>]) -> Vec<ItsOf> {
    let all = (0..).map(ItsId).zip(&host.machine.gic.itss).zip(device_ids);
    all.filter(|&((id, _), _)| host.gic.facts().its(id).is_some())
        .map(|((id, its), ids)| (id, its.control, ids.clone()))
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::acpi::testing::{GICV4, Memory};

    const MIB: u64 = 1 << 20;
    const SPACE: Range = Range::new(Pa(0), 1 << 40);

    fn r(base: u64, size: u64) -> Range {
        Range::new(Pa(base), size)
    }

    /// A machine with ACPI: the firmware's flash and clock, memory with reserved parts, and ACPI's own memory.
    fn machine() -> alloc::boxed::Box<Machine> {
        let mut machine = Memory::of(GICV4).read().unwrap();
        machine.memory.extend([r(0x4000_0000, 512 * MIB)]);
        machine.acpi_memory.push(r(0x5c00_0000, MIB));
        machine.reserved.extend([r(0x0400_0000, 64 * MIB), r(0x0901_0000, 0x1000)]);
        machine.reserved.extend([r(0x5b00_0000, MIB), r(0x5c00_0000, MIB), r(0x7000_0000, MIB)]);
        machine
    }

    fn attr_at(mapped: &[(Range, Attr)], at: u64) -> Option<Attr> {
        let mut found = mapped.iter().filter(|(range, _)| range.contains(Pa(at)));
        let first = found.next().map(|&(_, attr)| attr);
        assert!(found.next().is_none(), "{at:#x} is mapped twice");
        first
    }

    #[test]
    fn a_dom0_with_acpi_gets_no_memory_but_acpis_own_and_nothing_of_the_firmware_or_the_gic() {
        let mut machine = machine();
        let ecam = machine.pci[0].ecam;
        // Firmware may reserve configuration space.
        machine.reserved.push(ecam);
        machine.gic.unused.push(r(0x0801_0000, 0x2000));
        let hidden: Vec<Range> =
            kept_frames(&machine, |_| true).into_iter().chain([r(ecam.base.0 + 0x8000, 0x1000)]).collect();
        let mapped = all_but(&machine, hidden, SPACE);
        let at = |at| attr_at(&mapped, at);
        assert_eq!(at(0x5c00_0000), Some(Attr::Ram), "ACPI's memory");
        assert_eq!(mapped.iter().filter(|(_, attr)| *attr == Attr::Ram).count(), 1);
        for (place, name) in [
            (0x0400_0000, "flash"),
            (0x0901_0000, "the clock of runtime services"),
            (0x4000_0000, "memory"),
            (0x5b00_0000, "reserved memory"),
            (0x7000_0000, "reserved, not memory"),
            (0x0800_0000, "distributor"),
            (0x0801_0000, "CPU interface"),
            (0x080a_0000, "redistributor"),
            (0x0808_0000, "ITS"),
            (0x0809_0000, "translation frame"),
            (0x0900_0000, "console"),
            (ecam.base.0 + 0x8000, "hidden function"),
        ] {
            assert_eq!(at(place), None, "{name}");
        }
        for place in [0x0a00_0000, 0x0b00_0000, 0x1000_0000, ecam.base.0, 0x80_0000_0000] {
            assert_eq!(at(place), Some(Attr::Device), "{place:#x}");
        }
    }

    #[test]
    fn windows_from_the_command_line_allow_write_combining_with_acpi() {
        let mut machine = machine();
        machine.bootargs.push_str("pci_windows=0:mem32:0x10000000+0x10000000");
        crate::platform::windows::apply(&mut machine).unwrap();
        let mapped = all_but(&machine, kept_frames(&machine, |_| false), SPACE);
        assert_eq!(attr_at(&mapped, 0x1000_0000), Some(Attr::PciWindow));
        assert_eq!(attr_at(&mapped, 0x2000_0000), Some(Attr::Device));
    }

    #[test]
    fn an_its_of_gicv4_1_keeps_its_third_frame() {
        let machine = machine();
        let its = machine.gic.itss[0].control;
        let hides =
            |v41, offset| kept_frames(&machine, |_| v41)[2..].iter().any(|frame| frame.contains(its.base.add(offset)));
        assert!(hides(false, 0x1_0000) && hides(true, 0x1_0000));
        // On this machine redistributors follow the ITS, and are the second range.
        assert!(!hides(false, 0x2_0020) && hides(true, 0x2_0020));
    }

    #[test]
    fn a_dom0_whose_devices_are_known_gets_these_alone() {
        let mut machine = machine();
        machine.bootargs.push_str("pci_windows=0:mem32:0x10000000+0x10000000,0:io:0x3eff0000+0x10000");
        crate::platform::windows::apply(&mut machine).unwrap();
        let mapped = only(&machine, kept_frames(&machine, |_| false), &[r(0x0a00_0000, 0x200), r(0x0900_0000, 0x1000)]);
        let ecam = machine.pci[0].ecam;
        assert_eq!(
            mapped,
            [
                (r(0x1000_0000, 0x1000_0000), Attr::PciWindow),
                (r(0x0a00_0000, 0x1000), Attr::Device),
                (r(0x3eff_0000, 0x1_0000), Attr::Device),
                (ecam, Attr::Device)
            ]
        );
    }
}
