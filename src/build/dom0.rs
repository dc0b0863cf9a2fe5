//! How dom0 is built: from the boot modules, on the memory and with the devices that EL2 does not keep.

use crate::arch::ich;
use crate::build::acpi::{self, Places};
use crate::build::affinity;
use crate::build::fdt::edit::{Dom0FdtError, Dom0Plan, build_dom0_fdt, vgicr_region};
use crate::build::layout::{Banks, Placement, place, plan_dom0_memory};
use crate::build::pci_hide;
use crate::dev::pl011::Vpl011;
use crate::domain::lifecycle::Life;
use crate::domain::msi::LpiPaths;
use crate::domain::{Console, Domain, LastRan};
use crate::host::Hypervisor;
use crate::host::cmdline::{Direct, Dom0Acpi};
use crate::ids::{CpuId, DomId, Intid, Ipa, ItsId, Mpidr, Pa, VcpuId, VpeId};
use crate::mm::el2_map;
use crate::mm::firmware::FirmwareMemory;
use crate::mm::guest_ram::{Bank, GuestRam};
use crate::mm::hw::El2;
use crate::mm::stage2::{Attr, Fwb, Stage2, ipa_bits};
use crate::mm::tlb::Tlbs;
use crate::mmio::{Coherence, Hw};
use crate::platform::acpi::Tables;
use crate::platform::{Machine, Module, ModuleKind, UartKind, fdt};
use crate::sync::{Lock, Once, Rank, set_once};
use crate::util::range::Range;
use crate::vcpu::{Start, Vcpu};
use crate::vgic::{Vgic, VgicConfig};
use crate::vits::{OnError, Quota, Vits, VitsConfig};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

/// Bits of a guest's INTIDs: 8192 LPIs. The vLPI configuration and pending tables follow from it.
const ID_BITS: u8 = 14;
/// What a PCI function's MSI-X table can hold at most.
const MSIX_BITS: u8 = 11;

/// Why there is no dom0, in words for the user.
pub struct NoDom0(String);

impl fmt::Display for NoDom0 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn no(what: &str, error: impl fmt::Display) -> NoDom0 {
    NoDom0(alloc::format!("{what}: {error}"))
}

/// What is where before dom0 exists.
pub struct Ground<'a> {
    /// The device tree that the loader gave.
    pub fdt: &'a [u8],
    /// Where that is.
    pub fdt_range: Range,
    /// EL2's image.
    pub image: Range,
    /// EL2's pool.
    pub pool: Range,
    /// RAM and boot modules of other domains.
    pub others: Vec<Range>,
}

/// Builds dom0 and makes its first vCPU runnable.
pub fn build(hv: &'static Hypervisor, ground: &Ground<'_>) -> Result<(), NoDom0> {
    let machine = hv.machine;
    let kernel = module(machine, ModuleKind::Kernel)
        .ok_or_else(|| NoDom0("there is no kernel: /chosen has no module of kind multiboot,kernel".to_string()))?;
    let ramdisk = module(machine, ModuleKind::Ramdisk);

    let cpus = vcpu_places(hv);
    let banks = banks(hv, ground)?;
    let place = placement(ground, kernel, ramdisk, &banks)?;
    let total: u64 = banks.iter().map(|bank| bank.size).sum();
    log::info!("dom0: {} vCPUs, {} MiB, kernel at {}", cpus.len(), total >> 20, place.kernel.base);

    // SAFETY: the plan keeps dom0's banks out of the image, the pool and the device tree; all of RAM is mapped, and
    // whatever else EL2 uses is in one of these.
    #[allow(unsafe_code, reason = "says that the banks are nobody else's")]
    let ram = unsafe { GuestRam::new(banks.iter().copied().map(Bank::direct).collect()) };
    load(&ram, kernel, place.kernel.base)?;
    if let (Some(module), Some(to)) = (ramdisk, place.initrd)
        && module.range != to
    {
        load(&ram, module, to.base)?;
    }

    let places =
        places(machine, cpus.len(), ground).map_err(|error| no("dom0's redistributors have no place", error))?;
    let plan = Dom0Plan {
        vcpus: &cpus.iter().map(|&(_, mpidr)| mpidr).collect::<Vec<_>>(),
        memory: &banks,
        gicr: places.gicr,
        bootargs: &kernel.bootargs,
        initrd: place.initrd,
    };
    let tree = describe(hv, ground, &plan, &places, place.dtb)?;
    ram.write(Ipa(place.dtb.base.0), &tree)
        .map_err(|_| NoDom0("dom0's device tree does not fit its RAM".to_string()))?;
    // The kernel starts with its caches off: what was just written has to be in memory, not in ours.
    for range in [Some(place.kernel), place.initrd, Some(place.dtb)].into_iter().flatten() {
        El2.publish(range.base, range.size as usize, Coherence::NonCoherent);
    }
    crate::arch::cache::invalidate_instructions();

    let absent = absent(machine)?;
    let stage2 = address_space(hv, ground, &banks, &absent)?;
    let paths = vpes(hv, &cpus);
    let vgic = Vgic::new(VgicConfig {
        vcpus: cpus.iter().map(|&(_, mpidr)| mpidr).collect(),
        spis: hv.gic.facts().spis,
        id_bits: ID_BITS,
        has_lpis: !machine.gic.itss.is_empty(),
        list_registers: ich::count(),
        priority_bits: 5,
    })
    .map_err(|error| no("dom0's interrupt controller cannot be made", error))?;
    let vcpus: Vec<Arc<Vcpu>> = cpus
        .iter()
        .enumerate()
        .filter_map(|(index, &(cpu, mpidr))| {
            let id = VcpuId(u16::try_from(index).ok()?);
            Some(Arc::new(Vcpu::new(DomId(0), id, mpidr, cpu, paths.vpe(id), ich::count())))
        })
        .collect();

    let domain = Domain {
        id: DomId(0),
        vttbr: stage2.vttbr(),
        vtcr: stage2.vtcr(),
        stage2: Lock::new(Rank::Domain, Some(stage2)),
        ram,
        vgic,
        dist: machine.gic.dist,
        redists: places.gicr,
        vitss: virtual_itss(hv)?,
        paths,
        console: places.console.map(|(regs, irq)| Console { regs, irq, uart: Lock::new(Rank::Domain, Vpl011::new()) }),
        last_ran: LastRan::new(machine.cpus.len()),
        absent,
        vcpus: Once::new(),
        life: Life::new(),
    };
    for (vcpu, &(home, _)) in vcpus.iter().zip(&cpus) {
        hv.add_vcpu(vcpu, home).map_err(|error| no("dom0's vCPUs have no place", error))?;
    }
    for vcpu in &vcpus {
        if let Some(vpe) = vcpu.vpe {
            hv.vpes.set(vpe, Some((vcpu.domain, vcpu.id)));
        }
    }
    let kept = kept_spis(machine);
    hv.spis.give(DomId(0), |spi| !kept.contains(&spi));
    let first = vcpus.first().cloned();
    if set_once(&domain.vcpus, vcpus).is_err() {
        unreachable!("a domain that was just made has no vCPUs");
    }
    let domain = hv.add_dom0(domain);
    let start = Start { entry: Ipa(place.kernel.base.0), context: place.dtb.base.0 };
    match first.filter(|vcpu| domain.power_on(vcpu, start)) {
        Some(_) => Ok(()),
        None => Err(NoDom0("dom0 has no vCPU".to_string())),
    }
}

fn module(machine: &Machine, kind: ModuleKind) -> Option<&Module> {
    machine.modules.iter().find(|module| module.kind == kind)
}

/// Where dom0 sees its redistributors and its console.
fn places(machine: &Machine, vcpus: usize, ground: &Ground<'_>) -> Result<Places, Dom0FdtError> {
    if machine.rsdp.is_some() {
        return acpi::places(machine, vcpus, ground.pool);
    }
    // Where its device tree has them.
    let console = machine.uart.and_then(|uart| Some((uart.regs, uart.irq?)));
    Ok(Places { gicr: vgicr_region(machine, vcpus)?, console })
}

/// What goes to where dom0 is told that its device tree is.
fn describe(
    hv: &Hypervisor,
    ground: &Ground<'_>,
    plan: &Dom0Plan<'_>,
    places: &Places,
    room: Range,
) -> Result<Vec<u8>, NoDom0> {
    let machine = hv.machine;
    match (machine.rsdp, hv.options.dom0_acpi) {
        (None, _) => {
            build_dom0_fdt(ground.fdt, machine, plan).map_err(|error| no("dom0's device tree cannot be made", error))
        }
        (Some(_), Dom0Acpi::Off) => Ok(acpi::tree::build(machine, plan, places)),
        (Some(rsdp), Dom0Acpi::On) => Tables::open(rsdp, &FirmwareMemory(machine))
            .map_err(Into::into)
            .and_then(|host| acpi::tables::build(&host, machine, plan, places, room))
            .map_err(|error| no("dom0's ACPI tables cannot be made", error)),
    }
}

/// The CPU that each vCPU starts on, and the affinity that it reads: its CPU's own, or one that is free. The boot
/// CPU's comes first.
fn vcpu_places(hv: &Hypervisor) -> Vec<(CpuId, Mpidr)> {
    let boot = crate::arch::percpu::cpu();
    let mut cpus: Vec<(CpuId, Mpidr)> = hv
        .machine
        .cpus
        .iter()
        .enumerate()
        .filter(|(_, cpu)| cpu.enabled)
        .filter_map(|(index, cpu)| Some((CpuId(u16::try_from(index).ok()?), cpu.mpidr)))
        .filter(|&(cpu, _)| cpu == boot || hv.is_online(cpu))
        .collect();
    cpus.sort_by_key(|&(cpu, _)| (cpu != boot, cpu));
    let count = match hv.options.dom0_max_vcpus.map(usize::from) {
        Some(most) if most > cpus.len() && !hv.sched.shares_cpus() => {
            log::warn!("dom0 gets {} vCPUs, not {most}: with sched=null there is one for each CPU", cpus.len());
            cpus.len()
        }
        Some(most) => most,
        None => cpus.len(),
    };
    let own: Vec<Mpidr> = cpus.iter().map(|&(_, mpidr)| mpidr).collect();
    let homes: Vec<CpuId> = cpus.iter().map(|&(cpu, _)| cpu).collect();
    homes.into_iter().cycle().zip(affinity::for_vcpus(&own, count)).collect()
}

fn load(ram: &GuestRam, module: &Module, to: Pa) -> Result<(), NoDom0> {
    let bytes = module.range.size;
    let loaded = crate::build::module::load(ram, module, to);
    loaded.map_err(|at| NoDom0(alloc::format!("a boot module of {bytes} bytes does not fit dom0's RAM at {}", at.0)))
}

/// SPIs of the devices that EL2 keeps: its console and the SMMUs.
fn kept_spis(machine: &Machine) -> Vec<Intid> {
    let smmus = machine.smmus.iter().flat_map(|smmu| [smmu.event, smmu.gerror]);
    smmus.chain([machine.uart.and_then(|uart| uart.irq)]).flatten().collect()
}

/// Frames of the devices that EL2 keeps or emulates: never in a guest's stage 2.
fn kept_frames(machine: &Machine) -> Vec<Range> {
    let mut kept = alloc::vec![machine.gic.dist];
    kept.extend(machine.gic.redists.iter());
    kept.extend(machine.gic.itss.iter().map(|its| its.control));
    kept.extend(machine.smmus.iter().map(|smmu| smmu.regs));
    kept.extend(machine.uart.iter().map(|uart| uart.regs));
    kept
}

/// Configuration space of the functions that dom0 is not to see: those it was said to, and our own console. Whether
/// that is one only machines with ACPI leave open; a device tree's console is never a PCI function.
fn absent(machine: &Machine) -> Result<Vec<Range>, NoDom0> {
    let mut pages = pci_hide::hidden_by_option(machine)
        .map_err(|text| NoDom0(alloc::format!("dom0_pci_hide= names no PCI function of this machine: `{text}`")))?;
    let Some(uart) = machine.uart.filter(|uart| uart.kind != UartKind::Pl011 && machine.rsdp.is_some()) else {
        return Ok(pages);
    };
    for host in &machine.pci {
        el2_map::map_device(host.ecam).map_err(|error| no("a PCI configuration space cannot be mapped", error))?;
        if let Some(page) = pci_hide::function_at(host, uart.regs.base, |at| El2.read32(at)) {
            log::info!("the console is a PCI function: dom0 does not see it");
            pages.push(page);
        }
    }
    Ok(pages)
}

/// All that dom0 may touch: its RAM, and every device that EL2 does not keep.
fn address_space(
    hv: &Hypervisor,
    ground: &Ground<'_>,
    banks: &Banks,
    absent: &[Range],
) -> Result<Stage2<'static, El2, Tlbs>, NoDom0> {
    let failed = |error| no("dom0's address space cannot be made", error);
    let params = hv.features().stage2();
    let fwb = if params.fwb { Fwb::On } else { Fwb::Off };
    let vmid = hv.vmids.take().ok_or_else(|| NoDom0("there is no VMID for dom0".to_string()))?;
    let mut stage2 = Stage2::new(&El2, hv.tlbs, vmid, ipa_bits(params.pa_range), fwb).map_err(failed)?;
    for bank in banks {
        stage2.map(Ipa(bank.base.0), bank.base, bank.size, Attr::Ram).map_err(failed)?;
    }
    let machine = hv.machine;
    let mut hidden = kept_frames(machine);
    hidden.extend(absent);
    hidden.extend(machine.memory.iter());
    let mut windows: Vec<Range> =
        machine.pci.iter().flat_map(|host| host.windows.iter().map(|window| window.cpu)).collect();
    if machine.rsdp.is_some() && hv.options.dom0_acpi == Dom0Acpi::On {
        // Which devices there are is for AML to say: dom0 gets all that is neither memory nor kept. AML also looks at
        // what the firmware has in memory.
        let mut own = kept_frames(machine);
        own.extend([ground.image, ground.pool]);
        for range in crate::util::range::pages_without(&machine.reserved, &own) {
            stage2.map(Ipa(range.base.0), range.base, range.size, Attr::Ram).map_err(failed)?;
        }
        hidden.extend(own);
        hidden.extend(machine.reserved.iter());
        windows.push(Range::new(Pa(0), 1 << ipa_bits(params.pa_range)));
    }
    for window in crate::util::range::pages_without(&windows, &hidden) {
        stage2.map(Ipa(window.base.0), window.base, window.size, Attr::PciWindow).map_err(failed)?;
    }
    let mut devices: Vec<Range> = machine.pci.iter().map(|host| host.ecam).collect();
    if machine.rsdp.is_none() {
        fdt::for_each_device(ground.fdt, |device| devices.extend(device.regs))
            .map_err(|error| no("dom0's devices cannot be listed", error))?;
    }
    hidden.extend(windows);
    for device in crate::util::range::pages_without(&devices, &hidden) {
        stage2.map(Ipa(device.base.0), device.base, device.size, Attr::Device).map_err(failed)?;
    }
    Ok(stage2)
}

/// A vPE for each vCPU, as far as they go.
fn vpes(hv: &Hypervisor, cpus: &[(CpuId, Mpidr)]) -> LpiPaths {
    let none = || LpiPaths { vm: None, vcpus: cpus.iter().map(|&(cpu, _)| (cpu, None)).collect() };
    let Some(v4) = hv.gic.v4().filter(|_| hv.options.direct == Direct::On) else { return none() };
    let vm = match v4.create_vm(ID_BITS) {
        Ok(vm) => vm,
        Err(error) => {
            log::warn!("dom0 takes device interrupts by way of EL2: {error}");
            return none();
        }
    };
    let vpe = |cpu: CpuId| -> Option<VpeId> {
        v4.add_vpe(vm, cpu)
            .inspect_err(|error| log::warn!("the vCPU on {cpu} takes device interrupts by way of EL2: {error}"))
            .ok()
    };
    LpiPaths { vm: Some(vm), vcpus: cpus.iter().map(|&(cpu, _)| (cpu, vpe(cpu))).collect() }
}

/// One virtual ITS for each of the host's, at its address.
fn virtual_itss(hv: &Hypervisor) -> Result<Vec<(Range, Vits)>, NoDom0> {
    let mut itss = Vec::new();
    for (index, its) in hv.machine.gic.itss.iter().enumerate() {
        let id = ItsId(u8::try_from(index).unwrap_or(u8::MAX));
        let Some(facts) = hv.gic.facts().its(id) else { continue };
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
        .map_err(|error| NoDom0(alloc::format!("{id} cannot be emulated: {error:?}")))?;
        itss.push((its.control, vits));
    }
    Ok(itss)
}

/// dom0's RAM: all that is free, or as much as was asked for.
fn banks(hv: &Hypervisor, ground: &Ground<'_>) -> Result<Banks, NoDom0> {
    let mut keep_out = alloc::vec![ground.image, ground.pool, ground.fdt_range];
    keep_out.extend(&ground.others);
    let want = hv.options.dom0_mem.unwrap_or(u64::MAX);
    let banks = plan_dom0_memory(hv.machine, &keep_out, want);
    let total: u64 = banks.iter().map(|bank| bank.size).sum();
    if banks.is_empty() {
        return Err(NoDom0("no memory is left for dom0".to_string()));
    }
    if hv.options.dom0_mem.is_some() && total < want {
        log::warn!("dom0 gets {} MiB of the {} MiB it was to have: no more is free", total >> 20, want >> 20);
    }
    Ok(banks)
}

/// Where its kernel, RAM disk and device tree go.
fn placement(
    ground: &Ground<'_>,
    kernel: &Module,
    ramdisk: Option<&Module>,
    banks: &Banks,
) -> Result<Placement, NoDom0> {
    let image = crate::build::module::image(kernel).map_err(|error| NoDom0(error.to_string()))?;
    place(banks, &image, kernel.range, ramdisk.map(|module| module.range), &[ground.fdt_range])
        .map_err(|error| no("dom0 does not fit its memory", error))
}
