//! How a domain beside dom0 is built: from its boot modules, on RAM of the pool, with nothing of the host's.
//!
//! The same function builds it at boot and after each of its resets. What it takes (RAM, a VMID, places for vCPUs) is
//! given back by [`ends`](crate::control::teardown), or here when building fails half-way.

use crate::arch::{cache, ich, percpu};
use crate::build::domu_layout::{
    DIST, MAX_VCPUS, SPIS, UART, UART_IRQ, affinities, place_modules, plan_pool, ram_size, redists,
};
use crate::build::fdt::make::{DomuTree, build_domu_fdt};
use crate::build::layout::Placement;
use crate::console;
use crate::dev::pl011::Vpl011;
use crate::domain::lifecycle::Life;
use crate::domain::msi::LpiPaths;
use crate::domain::{Console, Domain, LastRan};
use crate::host::Hypervisor;
use crate::ids::{CpuId, DomId, Ipa, Pa, VcpuId};
use crate::mm::guest_pool::Stretches;
use crate::mm::guest_ram::{Bank, GuestRam, zero};
use crate::mm::hw::El2;
use crate::mm::stage2::{Attr, Fwb, Stage2, ipa_bits};
use crate::mm::tlb::Tlbs;
use crate::platform::{DomainConfig, Module, ModuleKind};
use crate::run::CNTP_PPI;
use crate::sync::{Lock, Once, Rank};
use crate::util::range::Range;
use crate::vcpu::{Start, Vcpu};
use crate::vgic::{Vgic, VgicConfig};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

/// Bits of a guest's INTIDs. Without an ITS there are no LPIs behind them.
const ID_BITS: u8 = 14;

/// Why there is no such domain, in words for the user.
pub struct NoDomain(String);

impl fmt::Display for NoDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn no(what: &str, error: impl fmt::Display) -> NoDomain {
    NoDomain(alloc::format!("{what}: {error}"))
}

/// Sets RAM aside for the domains that the machine's description asks for. Returns what dom0 must not have.
pub fn reserve(hv: &Hypervisor, keep_out: &[Range]) -> Vec<Range> {
    let machine = hv.machine;
    let stretches = plan_pool(machine, keep_out);
    for &stretch in &stretches {
        wipe(stretch);
        hv.guest_pool.lock().give(stretch);
    }
    let modules = machine.domains.iter().flat_map(|config| config.modules.iter().map(|module| module.range));
    stretches.iter().copied().chain(modules).collect()
}

/// Zeroes a stretch of the pool's RAM, in memory too: a guest starts with its caches off, and no line of ours may be
/// written back over what it stores.
pub(crate) fn wipe(stretch: Range) {
    // SAFETY: RAM of the pool, or of a domain that is gone; all of RAM is mapped.
    #[allow(unsafe_code, reason = "says that nobody else has it")]
    unsafe {
        zero(stretch);
    }
    cache::clean_invalidate(stretch.base, stretch.size);
}

/// Builds all of them. One that cannot be built is said so, and the others run without it.
pub fn build_all(hv: &'static Hypervisor) {
    if hv.machine.domains.is_empty() {
        return;
    }
    crate::control::teardown::report(hv);
    for id in (1..).take(hv.machine.domains.len()).map(DomId) {
        build_or_say(hv, id);
    }
}

/// Builds a domain, or says why not.
pub(crate) fn build_or_say(hv: &'static Hypervisor, id: DomId) {
    let Some(config) = usize::from(id.0).checked_sub(1).and_then(|place| hv.machine.domains.get(place)) else { return };
    if let Err(error) = build(hv, id, config) {
        log::error!("{id} `{}` is not there: {error}", config.name);
    }
}

/// Builds a domain and makes its first vCPU runnable.
fn build(hv: &'static Hypervisor, id: DomId, config: &DomainConfig) -> Result<(), NoDomain> {
    let count = usize::from(config.cpus);
    if count > MAX_VCPUS {
        return Err(NoDomain(alloc::format!("it has {count} vCPUs, and there is room for {MAX_VCPUS}")));
    }
    let kernel = config.module(ModuleKind::Kernel).ok_or_else(|| NoDomain("it has no kernel".to_string()))?;
    let ramdisk = config.module(ModuleKind::Ramdisk);
    if config.module(ModuleKind::DeviceTree).is_some() {
        log::warn!("{id} `{}`: its device tree module is passed over: domains get no devices yet", config.name);
    }
    let size = ram_size(config);
    let place = placement(kernel, ramdisk, size)?;

    let taken = hv.guest_pool.lock().take(size);
    let stretches = taken.ok_or_else(|| NoDomain(alloc::format!("there are no {} MiB left for it", size >> 20)))?;
    let built = furnish(hv, id, config, &stretches, &place, (kernel, ramdisk));
    let domain = match built {
        Ok(domain) => domain,
        Err(error) => {
            // The modules may be in it already.
            stretches.iter().for_each(|&stretch| wipe(stretch));
            stretches.iter().for_each(|&stretch| hv.guest_pool.lock().give(stretch));
            return Err(error);
        }
    };
    let vcpus = domain.vcpus();
    let places: Vec<String> = vcpus.iter().map(|vcpu| vcpu.cpu().to_string()).collect();
    log::info!("{id} `{}`: {count} vCPUs ({}), {} MiB", config.name, places.join(", "), size >> 20);
    let first = vcpus.first().cloned();
    let domain = Arc::new(domain);
    if config.vpl011 {
        console::attach(id);
    }
    if hv.add_domain(domain.clone()).is_err() {
        unreachable!("{id} is built twice");
    }
    let start = Start { entry: Ipa(place.kernel.base.0), context: place.dtb.base.0 };
    if let Some(vcpu) = first {
        let _ = domain.power_on(&vcpu, start);
    }
    Ok(())
}

/// Where kernel, RAM disk and device tree go, as the guest sees it.
fn placement(kernel: &Module, ramdisk: Option<&Module>, ram: u64) -> Result<Placement, NoDomain> {
    let image = crate::build::module::image(kernel).map_err(|error| NoDomain(error.to_string()))?;
    place_modules(ram, &image, kernel.range.size, ramdisk.map(|module| module.range.size))
        .map_err(|error| no("it does not fit its memory", error))
}

/// All of the domain, in `stretches` of RAM: loaded, mapped, with an interrupt controller, and its vCPUs in their places.
fn furnish(
    hv: &'static Hypervisor,
    id: DomId,
    config: &DomainConfig,
    stretches: &Stretches,
    place: &Placement,
    (kernel, ramdisk): (&Module, Option<&Module>),
) -> Result<Domain, NoDomain> {
    let affinities = affinities(usize::from(config.cpus));
    let banks = banks(stretches);
    // SAFETY: the pool's RAM is this domain's alone until it is given back, when the domain is no more.
    #[allow(unsafe_code, reason = "says that the banks are nobody else's")]
    let ram = unsafe { GuestRam::new(banks.iter().copied().collect()) };
    load(&ram, kernel, place.kernel.base)?;
    if let (Some(module), Some(to)) = (ramdisk, place.initrd) {
        load(&ram, module, to.base)?;
    }
    let tree = build_domu_fdt(&DomuTree {
        vcpus: &affinities,
        ram: ram.size(),
        bootargs: &kernel.bootargs,
        initrd: place.initrd,
        uart: config.vpl011,
        timers: (CNTP_PPI, hv.machine.timer.virt),
    });
    ram.write(Ipa(place.dtb.base.0), &tree).map_err(|_| NoDomain("its device tree does not fit".to_string()))?;
    // The kernel starts with its caches off: what was just written has to be in memory, not in ours.
    for range in [Some(place.kernel), place.initrd, Some(place.dtb)].into_iter().flatten() {
        let clean = ram.for_each_piece(Ipa(range.base.0), range.size, |piece, _| cache::clean(piece.base, piece.size));
        clean.map_err(|_| NoDomain("its modules are not in its RAM".to_string()))?;
    }
    cache::invalidate_instructions();

    let vgic = Vgic::new(VgicConfig {
        vcpus: affinities.clone(),
        spis: SPIS,
        id_bits: ID_BITS,
        has_lpis: false,
        list_registers: ich::count(),
        priority_bits: 5,
    })
    .map_err(|error| no("its interrupt controller cannot be made", error))?;
    let stage2 = address_space(hv, &banks)?;
    let domain = Domain {
        id,
        vttbr: stage2.vttbr(),
        vtcr: stage2.vtcr(),
        stage2: Lock::new(Rank::Domain, Some(stage2)),
        ram,
        vgic,
        dist: DIST,
        redists: redists(affinities.len()),
        vitss: Vec::new(),
        paths: LpiPaths { vm: None, vcpus: affinities.iter().map(|_| (percpu::cpu(), None)).collect() },
        console: config.vpl011.then(|| Console {
            regs: UART,
            irq: UART_IRQ,
            uart: Lock::new(Rank::Domain, Vpl011::new()),
        }),
        last_ran: LastRan::new(hv.machine.cpus.len()),
        absent: Vec::new(),
        vcpus: Once::new(),
        life: Life::new(),
    };
    let mut vcpus = Vec::new();
    for (index, &affinity) in (0..).zip(&affinities) {
        let Some(vcpu) = put_somewhere(hv, |cpu| Vcpu::new(id, VcpuId(index), affinity, cpu, None, ich::count()))
        else {
            vcpus.iter().for_each(|vcpu: &Arc<Vcpu>| hv.remove_vcpu(vcpu));
            give_address_space_back(hv, &domain);
            return Err(NoDomain("no CPU is free for all of its vCPUs".to_string()));
        };
        if let Some(weight) = config.weight {
            vcpu.entity.set_weight(weight);
        }
        if let Some(percent) = config.cap {
            vcpu.entity.set_cap(percent);
        }
        vcpus.push(vcpu);
    }
    domain.vcpus.call_once(|| vcpus);
    Ok(domain)
}

/// A vCPU on the first CPU that takes it; the boot CPU is asked last, as it takes the console's interrupts. Where CPUs
/// are shared, each takes it, and they take turns.
fn put_somewhere(hv: &Hypervisor, make: impl Fn(CpuId) -> Vcpu) -> Option<Arc<Vcpu>> {
    let count = hv.machine.cpus.len();
    let turn = if hv.sched.shares_cpus() { hv.vcpus() % count } else { 0 };
    let all = (0..count as u16).rev().map(CpuId).cycle().skip(turn).take(count);
    let cpus = all.filter(|&cpu| hv.is_online(cpu));
    cpus.map(|cpu| (Arc::new(make(cpu)), cpu)).find_map(|(vcpu, cpu)| hv.add_vcpu(&vcpu, cpu).is_ok().then_some(vcpu))
}

/// The stretches one after the other, as the guest sees them.
fn banks(stretches: &Stretches) -> Vec<Bank> {
    let mut ipa = crate::build::domu_layout::RAM.0;
    let mut banks = Vec::new();
    for stretch in stretches {
        banks.push(Bank { ipa: Ipa(ipa), pa: stretch.base, size: stretch.size });
        ipa += stretch.size;
    }
    banks
}

fn load(ram: &GuestRam, module: &Module, to: Pa) -> Result<(), NoDomain> {
    let bytes = module.range.size;
    let loaded = crate::build::module::load(ram, module, to);
    loaded.map_err(|at| NoDomain(alloc::format!("a boot module of {bytes} bytes does not fit its RAM at {}", at.0)))
}

/// All that the domain may touch: its RAM.
fn address_space(hv: &Hypervisor, banks: &[Bank]) -> Result<Stage2<'static, El2, Tlbs>, NoDomain> {
    let failed = |error| no("its address space cannot be made", error);
    let params = hv.features().stage2();
    let fwb = if params.fwb { Fwb::On } else { Fwb::Off };
    let vmid = hv.vmids.take().ok_or_else(|| NoDomain("there is no VMID left".to_string()))?;
    let made = Stage2::new(&El2, hv.tlbs, vmid, ipa_bits(params.pa_range), fwb).and_then(|mut stage2| {
        let mapped = banks.iter().try_for_each(|bank| stage2.map(bank.ipa, bank.pa, bank.size, Attr::Ram));
        match mapped {
            Ok(()) => Ok(stage2),
            Err(error) => {
                stage2.destroy();
                Err(error)
            }
        }
    });
    made.map_err(|error| {
        hv.vmids.give_back(vmid);
        failed(error)
    })
}

/// Frees a domain's tables and its VMID. No CPU has them loaded.
pub(crate) fn give_address_space_back(hv: &Hypervisor, domain: &Domain) {
    let stage2 = domain.stage2.lock().take();
    if let Some(stage2) = stage2 {
        let vmid = stage2.vmid();
        stage2.destroy();
        hv.vmids.give_back(vmid);
    }
}
