//! The bare-metal image: brings the machine up, builds the domains, and enters the run loop.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod boot;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("doorward runs at EL2: build it with `cargo xtask build`");
}

/// The time within which a CPU that was started must be online, in microseconds.
#[cfg(target_os = "none")]
const BRING_UP_LIMIT_US: u64 = 1_000_000;

/// What the boot CPU has set up, for the CPUs that start after it.
#[cfg(target_os = "none")]
static CONTROL: doorward::sync::Once<&doorward::control::Control> = doorward::sync::Once::new();

/// Continues the start-up on the boot CPU. Stack, stage 1, heap and console have been set up.
#[cfg(target_os = "none")]
fn start(own: boot::BootInfo) -> ! {
    use alloc::boxed::Box;
    use alloc::vec::Vec;
    use doorward::arch::{percpu, psci, timer};
    use doorward::build::{dom0, domu, passthrough};
    use doorward::console::onpanic::Facts;
    use doorward::control::{Control, debug_keys};
    use doorward::domain::table::Domains;
    use doorward::gic::errata::{self, Identity};
    use doorward::gic::{Gic, ItsLayout, Layout, Trigger};
    use doorward::host::Host;
    use doorward::host::cmdline::{self, Direct, Dom0Acpi, OnPanic};
    use doorward::ids::{CpuId, Pa};
    use doorward::mm::el2_map;
    use doorward::mm::firmware::FirmwareMemory;
    use doorward::mm::hw::El2;
    use doorward::mm::tlb::Tlbs;
    use doorward::mmio::Hw;
    use doorward::pci::Ecam;
    use doorward::platform::acpi::Tables;
    use doorward::platform::fdt;
    use doorward::run::cpu_loop;
    use doorward::smmu::iommu::Iommu;
    use doorward::sync::set_once;
    use doorward::util::range::Range;
    use doorward::{console, fatal};

    let machine = own.machine;
    log::info!("Doorward {} at {}, pool at {}", env!("CARGO_PKG_VERSION"), own.image, own.pool);
    let options = cmdline::parse(&machine.bootargs, |word| log::warn!("cmdline: unknown option `{word}`, ignored"))
        .unwrap_or_else(|invalid| fatal!("{invalid}"));
    console::set_level(options.loglvl);
    console::set_onpanic(Facts { off: options.on_panic == OnPanic::Off, psci_by_hvc: None });
    let (memory, cpus) = (machine.memory_size() >> 20, machine.enabled_cpus());
    log::info!("{memory} MiB of memory, {cpus} CPUs, described by {}", own.firmware);
    for warning in &machine.warnings {
        log::warn!("{}: {warning}", own.firmware);
    }
    if machine.more_warnings > 0 {
        log::warn!("{}: {} more oddities", own.firmware, machine.more_warnings);
    }
    for part in &machine.left_out {
        log::warn!("machine description: too many {}: not all are known", part.plural());
    }

    // Before anything that a device may use is in memory: firmware may have left devices at work.
    let iommu: &'static Iommu<El2> = Box::leak(Box::new(Iommu::start(El2, &machine.smmus, options.iommu)));
    if !iommu.protects_all() {
        log::warn!("SMMU: devices reach all memory by DMA, unless an SMMU that translates is in front of them");
    }

    let boot_cpu = percpu::cpu();
    let gic = &machine.gic;
    let mut itss: Vec<ItsLayout> =
        gic.itss.iter().map(|its| ItsLayout::new(its.control.base, !its.non_coherent)).collect();
    let mut layout = Layout {
        dist: gic.dist.base,
        redists: &gic.redists.iter().map(|range| (range.base, range.size)).collect::<Vec<_>>(),
        redists_listed: gic.redists_listed,
        stride: gic.redist_stride,
        cpus: &machine.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(),
        reserved: &machine.reserved,
        boot_cpu,
        itss: &[],
        coherent: !gic.non_coherent,
        virtual_lpis_wanted: options.direct == Direct::On,
    };
    let memory = FirmwareMemory(machine);
    let oem = machine.rsdp.and_then(|rsdp| Some(Tables::open(rsdp, &memory).ok()?.xsdt().oem()));
    let identity = Identity { soc: psci::soc_id(), oem, is_compatible: &|word| fdt::is_compatible(own.fdt, word) };
    errata::apply(&El2, &mut layout, &mut itss, identity, |its, erratum| match its {
        Some(its) => log::info!("ITS{its}: {erratum}"),
        None => log::info!("GIC: {erratum}"),
    });
    let layout = Layout { itss: &itss, ..layout };
    let mut gic = Gic::discover(El2, &layout).unwrap_or_else(|error| fatal!("GIC: {error}"));
    gic.map_sgi_frames(el2_map::map_device);
    log::info!("{}", gic.facts());

    let tlbs: &'static Tlbs = Box::leak(Box::new(Tlbs::new().unwrap_or_else(|| fatal!("no memory for stage 2"))));
    let host: &'static Host = Box::leak(Box::new(Host::new(machine, options, gic, tlbs, iommu)));
    let domains: &'static Domains = Box::leak(Box::new(Domains::new(host)));
    let control: &'static Control = Box::leak(Box::new(Control::new(domains)));
    if set_once(&CONTROL, control).is_err() {
        unreachable!("the boot CPU starts once");
    }
    if let Err(error) = host.bring_up(boot_cpu) {
        fatal!("{boot_cpu}: {error}");
    }
    if let Some(irq) = host.console_irq {
        let mpidr = host.mpidr(boot_cpu).unwrap_or_default();
        host.gic.spi_route(irq, mpidr);
        host.gic.spi_enable(irq);
        console::listen();
    }
    for irq in iommu.interrupts() {
        host.gic.spi_set_trigger(irq, Trigger::Edge);
        host.gic.spi_route(irq, host.mpidr(boot_cpu).unwrap_or_default());
        host.gic.spi_enable(irq);
    }
    debug_keys::register(domains);

    let can_start = |cpu: CpuId| machine.cpus[cpu.index()].enabled && host.gic.has_redistributor(cpu);
    for cpu in host.cpus.ids().filter(|&cpu| cpu != boot_cpu && can_start(cpu)) {
        match boot::start_cpu(cpu, secondary) {
            Err(error) => log::warn!("{cpu}: stays off: {error}"),
            Ok(_) if !El2.wait(BRING_UP_LIMIT_US, || host.cpu(cpu).is_online()) => {
                log::warn!("{cpu}: bring-up timed out");
            }
            Ok(place) => host.cpu(cpu).set_place(place),
        }
    }
    host.cpu_features.settle();
    log::info!("{} CPUs online", host.cpus.online());

    let fdt = Range::new(Pa(own.fdt.as_ptr() as u64), own.fdt.len() as u64);
    let domus = domu::reserve(host, &[own.image, own.pool, fdt]);
    let dom0_acpi = machine.rsdp.is_some() && options.dom0_acpi == Dom0Acpi::On;
    let mut passthrough = passthrough::prepare(machine, iommu, dom0_acpi, &Ecam, timer::now_us, el2_map::map_device);
    passthrough.platform = dom0::prepare_platform_devices(host, own.fdt);
    let in_use = dom0::MemoryInUse { fdt: own.fdt, fdt_range: fdt, image: own.image, pool: own.pool, domus };
    if let Err(error) = dom0::build(domains, &in_use, &passthrough) {
        fatal!("dom0: {error}");
    }
    if let Some(dom0) = domains.dom0() {
        dom0.serve_control(control);
    }
    domu::build_all(domains, &mut passthrough);
    cpu_loop(control, boot_cpu)
}

/// Continues the start-up on every other CPU, at boot and each time it returns to service. Stack and stage 1 have been
/// set up.
#[cfg(target_os = "none")]
extern "C" fn secondary(cpu: doorward::ids::CpuId) -> ! {
    let Some(control) = CONTROL.get() else { unreachable!("CPUs are started after CONTROL is set") };
    if let Err(error) = control.domains.host.bring_up(cpu) {
        log::error!("{cpu}: bring-up failed: {error}");
        doorward::arch::barrier::park()
    }
    doorward::run::cpu_loop(control, cpu)
}
