//! The image: says the order in which the machine comes up, and fills the tables that join rooms.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod boot;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("doorward runs at EL2: build it with `cargo xtask build`");
}

/// How long a CPU may take from its first instruction to taking interrupts.
#[cfg(target_os = "none")]
const BRING_UP_LIMIT_US: u64 = 1_000_000;

/// The boot CPU, on its own stack, with stage 1 on, memory to allocate and a console.
#[cfg(target_os = "none")]
fn start(own: boot::Own) -> ! {
    use alloc::vec::Vec;
    use doorward::arch::{percpu, psci};
    use doorward::build::dom0;
    use doorward::build::domu;
    use doorward::control::debug_keys;
    use doorward::gic::errata::{self, Who};
    use doorward::gic::{Gic, ItsLayout, Layout};
    use doorward::host::Hypervisor;
    use doorward::host::cmdline::{self, Direct};
    use doorward::ids::{CpuId, Pa};
    use doorward::mm::firmware::FirmwareMemory;
    use doorward::mm::hw::El2;
    use doorward::mm::tlb::Tlbs;
    use doorward::mmio::Hw;
    use doorward::platform::acpi::Tables;
    use doorward::platform::fdt;
    use doorward::util::range::Range;

    use doorward::{console, fatal, host, smmu};

    let machine = own.machine;
    log::info!("Doorward {} at {}, its memory at {}", env!("CARGO_PKG_VERSION"), own.image, own.pool);
    let options = cmdline::parse(&machine.bootargs, |word| log::warn!("nobody knows the command line word `{word}`"))
        .unwrap_or_else(|bad| fatal!("{bad}"));
    console::set_level(options.loglvl);
    let (memory, cpus) = (machine.memory_size() >> 20, machine.enabled_cpus());
    log::info!("{memory} MiB of memory, {cpus} CPUs, described by {}", own.firmware);

    for smmu in &machine.smmus {
        if let Err(error) = smmu::bypass(&El2, smmu.regs.base) {
            fatal!("the SMMU at {} cannot be put into bypass: {error}", smmu.regs.base);
        }
        log::info!("SMMU at {}: bypass", smmu.regs.base);
    }

    let gic = &machine.gic;
    let mut itss: Vec<ItsLayout> =
        gic.itss.iter().map(|its| ItsLayout { base: its.control.base, coherent: !its.non_coherent }).collect();
    let mut layout = Layout {
        dist: gic.dist.base,
        redists: &gic.redists.iter().map(|range| (range.base, range.size)).collect::<Vec<_>>(),
        stride: gic.redist_stride,
        cpus: &machine.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(),
        itss: &[],
        coherent: !gic.non_coherent,
        virtual_lpis_wanted: options.direct == Direct::On,
    };
    let memory = FirmwareMemory(machine);
    let oem = machine.rsdp.and_then(|rsdp| Some(Tables::open(rsdp, &memory).ok()?.xsdt().oem()));
    let who = Who { soc: psci::soc_id(), oem, is_compatible: &|word| fdt::is_compatible(own.fdt, word) };
    errata::apply(&El2, &mut layout, &mut itss, who, |its, erratum| match its {
        Some(its) => log::info!("ITS{its}: {erratum}"),
        None => log::info!("GIC: {erratum}"),
    });
    let layout = Layout { itss: &itss, ..layout };
    let gic = Gic::discover(El2, &layout).unwrap_or_else(|error| fatal!("the interrupt controller: {error}"));
    log::info!("{}", gic.facts());

    let tlbs = Tlbs::new().unwrap_or_else(|| fatal!("there is no memory for stage 2"));
    let tlbs: &'static Tlbs = alloc::boxed::Box::leak(alloc::boxed::Box::new(tlbs));
    let hv = host::install(Hypervisor::new(machine, options, gic, tlbs));
    let boot_cpu = percpu::cpu();
    if let Err(error) = hv.bring_up(boot_cpu) {
        fatal!("{boot_cpu}: {error}");
    }
    if let Some(irq) = hv.console_irq {
        let mpidr = hv.mpidr(boot_cpu).unwrap_or_default();
        hv.gic.spi_route(irq, mpidr);
        hv.gic.spi_enable(irq);
        console::listen();
    }
    debug_keys::register();

    let others = (0..machine.cpus.len()).filter_map(|cpu| u16::try_from(cpu).ok()).map(CpuId);
    for cpu in others.filter(|&cpu| cpu != boot_cpu && machine.cpus[cpu.index()].enabled) {
        match boot::start_cpu(cpu, secondary) {
            Err(error) => log::warn!("{cpu} stays off: {error}"),
            Ok(_) if !El2.wait(BRING_UP_LIMIT_US, || hv.is_online(cpu)) => log::warn!("{cpu} did not come up"),
            Ok(place) => hv.hotplug.remember(cpu, place),
        }
    }
    hv.kinds.settle();
    log::info!("{} CPUs online", hv.online());

    let fdt = Range::new(Pa(own.fdt.as_ptr() as u64), own.fdt.len() as u64);
    let others = domu::reserve(hv, &[own.image, own.pool, fdt]);
    let ground = dom0::Ground { fdt: own.fdt, fdt_range: fdt, image: own.image, pool: own.pool, others };
    if let Err(error) = dom0::build(hv, &ground) {
        fatal!("{error}");
    }
    domu::build_all(hv);
    doorward::run::cpu_loop(boot_cpu)
}

/// Each other CPU, once it has a stack and stage 1: at boot, and each time that it comes back.
#[cfg(target_os = "none")]
extern "C" fn secondary(cpu: doorward::ids::CpuId) -> ! {
    let hv = doorward::host::hypervisor();
    if let Err(error) = hv.bring_up(cpu) {
        log::error!("{cpu} is of no use: {error}");
        doorward::arch::barrier::park()
    }
    doorward::run::cpu_loop(cpu)
}
