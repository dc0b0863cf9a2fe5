//! The machine that all domains share: GIC, scheduler, TLBs, guest memory, CPUs, timers, and the owners of interrupts.
//!
//! [`Host`] is created once, at boot, and exists for ever. It has vCPUs but no domains: a doorbell is looked up in
//! [`owners::VpeOwners`], which maps the vPE to its vCPU, and [`Host::wake`] wakes that vCPU.

pub mod background;
pub mod cmdline;
pub mod cpu_features;
pub mod cpu_state;
pub mod events;
pub mod owners;
pub mod rate_limit;
pub mod routes;
pub mod sleepers;
pub mod timer;

use crate::arch::features::ids::reg;
use crate::arch::features::{Features, IdRegs};
use crate::arch::speculation::{Mitigations, Protections};
use crate::arch::sysreg::{self, Writeable};
use crate::arch::{barrier, ich, percpu, protect, psci, timer as counter, tlb};
use crate::console;
use crate::gic::{Gic, GicError, Interface, cpuif};
use crate::ids::{CpuId, Intid, Mpidr};
use crate::mm::guest_pool::GuestPool;
use crate::mm::hw::El2;
use crate::mm::stage2::Stage2;
use crate::mm::tlb::Tlbs;
use crate::mm::{frames, heap};
use crate::platform::Machine;
use crate::sched::{AddError, Credit, Null, Scheduler, Settings, Slices, Woken};
use crate::smmu::iommu::Iommu;
use crate::sync::{Lock, Rank};
use crate::trace::{Event, count};
use crate::util::PAGE;
use crate::vcpu::Vcpu;
use crate::vcpu::meter::Rate;
use alloc::boxed::Box;
use alloc::sync::Arc;
use cmdline::{Options, Sched};
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};
use cpu_features::CpuFeatures;
use cpu_state::{CpuState, Cpus, Hotplug};
use events::Events;
use owners::{SpiOwners, VmIds, VpeOwners};
use rate_limit::RateLimits;
use routes::Routes;

/// The SGI that makes another CPU exit from its guest or wake up.
pub const KICK: u8 = 0;

/// The period in which a vCPU may use its cap, in time slices.
const CAP_PERIOD: u64 = 6;

/// Why a CPU cannot run guests.
#[derive(Clone, Copy, Debug)]
pub enum CpuError {
    /// The GIC CPU interface cannot be accessed by system registers (ICC_SRE_EL2.SRE stays 0).
    NoSystemRegisters,
    /// The redistributor failed.
    Gic(GicError),
    /// The CPU lacks a feature that EL2 or the guests need.
    Features(&'static str),
}

impl fmt::Display for CpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuError::NoSystemRegisters => f.write_str("ICC_SRE_EL2.SRE stays 0: no GIC system registers"),
            CpuError::Gic(error) => error.fmt(f),
            CpuError::Features(why) => f.write_str(why),
        }
    }
}

/// The machine that all domains share.
pub struct Host {
    /// The machine's description.
    pub machine: &'static Machine,
    /// The command line.
    pub options: Options,
    /// The CPU features that guests see.
    pub cpu_features: CpuFeatures,
    /// The physical GIC.
    pub gic: Gic<El2>,
    /// The vCPU into which each physical LPI is injected.
    pub routes: Routes,
    /// LPIs and doorbells that are masked because they are above their vCPU's rate.
    pub rate_limits: RateLimits,
    /// The scheduler.
    pub sched: Box<dyn Scheduler<Vcpu>>,
    /// The interrupt of EL2's own UART.
    pub console_irq: Option<Intid>,
    /// TLB maintenance for stage 2.
    pub tlbs: &'static Tlbs,
    /// The SMMUs.
    pub iommu: &'static Iommu<El2>,
    /// The domain that owns each SPI.
    pub spis: SpiOwners,
    /// The vCPU that owns each vPE.
    pub vpes: VpeOwners<Vcpu>,
    /// Free VMIDs.
    pub vmids: VmIds,
    /// RAM for domUs.
    pub guest_pool: Lock<GuestPool>,
    /// What has happened, for the tools of dom0.
    pub events: Events,
    /// The state of each CPU.
    pub cpus: Cpus,
    /// The number of vCPUs in the scheduler.
    vcpus: AtomicU32,
}

/// Interrupts another CPU, so that it exits from its guest or wakes up.
fn kick(machine: &Machine, cpu: CpuId) {
    if let Some(cpu) = machine.cpus.get(cpu.index()) {
        cpuif::send_sgi(KICK, cpu.mpidr);
    }
}

fn scheduler(options: &Options, machine: &'static Machine) -> Box<dyn Scheduler<Vcpu>> {
    let cpus = machine.cpus.len();
    let ticks = |ms: u32| counter::us_to_ticks(u64::from(ms) * 1000);
    match options.sched {
        Sched::Null => Box::new(Null::new(cpus)),
        Sched::Credit => {
            let slice = ticks(options.tslice_ms);
            let settings = Settings {
                slices: Slices { slice, period: slice * CAP_PERIOD },
                torture: options.torture_ms.map(ticks),
                kick: Box::new(move |cpu| kick(machine, cpu)),
            };
            Box::new(Credit::new(cpus, settings))
        }
    }
}

impl Host {
    /// The machine, with no CPU online and no vCPU.
    #[must_use]
    pub fn new(
        machine: &'static Machine,
        options: Options,
        gic: Gic<El2>,
        tlbs: &'static Tlbs,
        iommu: &'static Iommu<El2>,
    ) -> Host {
        let facts = gic.facts();
        let rate = Rate::new(options.irq_rate, counter::frequency());
        let (routes, rate_limits) = (Routes::new(facts.lpis), RateLimits::new(facts.lpis, rate));
        let (spis, vpes) = (SpiOwners::new(facts.spis), VpeOwners::new(facts.vpes));
        Host {
            machine,
            options,
            cpu_features: CpuFeatures::new(&options.spec_ctrl.visible(IdRegs::read())),
            gic,
            routes,
            rate_limits,
            sched: scheduler(&options, machine),
            console_irq: machine.uart.and_then(|uart| uart.irq),
            tlbs,
            iommu,
            spis,
            vpes,
            vmids: VmIds::new(),
            guest_pool: Lock::new(Rank::Domain, GuestPool::new()),
            events: Events::new(),
            cpus: Cpus::new(machine.cpus.len()),
            vcpus: AtomicU32::new(0),
        }
    }

    /// Prepares this CPU, `cpu`, to run guests and to take interrupts: at boot, and each time it returns to service.
    ///
    /// # Errors
    ///
    /// [`CpuError`]; the CPU stays out of service.
    pub fn bring_up(&self, cpu: CpuId) -> Result<(), CpuError> {
        let state = self.cpu(cpu);
        let ready = self.prepare(cpu);
        if ready.is_err() {
            state.set_hotplug(Hotplug::Failed);
            return ready;
        }
        self.sched.bring_online(cpu);
        state.set_online(true);
        if state.change_hotplug(Hotplug::Returning, Hotplug::InService) {
            self.cpus.count_returned();
            console::line(format_args!("{cpu}: back in service"));
        }
        Ok(())
    }

    fn prepare(&self, cpu: CpuId) -> Result<(), CpuError> {
        sysreg::CNTVOFF_EL2.set(0);
        tlb::invalidate_guests_local();
        cpuif::init().map_err(|_| CpuError::NoSystemRegisters)?;
        // List registers are UNKNOWN after a reset.
        ich::clear_lrs(ich::count());
        let ids = IdRegs::read();
        let mitigations = Mitigations::decide(&ids, psci::workarounds(), self.options.spec_ctrl);
        let visible = self.options.spec_ctrl.visible(ids);
        if self.cpu_features.join(&visible, mitigations.protections()).map_err(CpuError::Features)? {
            log::info!("{cpu}: lacks features of earlier CPUs: these are hidden from guests");
        }
        protect::apply(&mitigations);
        let level = if mitigations.is_lacking() { log::Level::Warn } else { log::Level::Info };
        log::log!(level, "{cpu}: {mitigations}");
        let interface = Interface::new(ids.field(reg::PFR0, 24), ich::nv4());
        self.gic.join(cpu, interface).map_err(CpuError::Gic)?;
        // This comes last: from here on interrupts may be routed to the CPU.
        self.gic.init_cpu(cpu).map_err(CpuError::Gic)?;
        self.own_ppis().for_each(|ppi| self.gic.ppi_enable(cpu, ppi));
        Ok(())
    }

    /// The CPU features that guests see.
    ///
    /// # Panics
    ///
    /// Before they are settled, which happens before the first domain is built.
    #[must_use]
    pub fn features(&self) -> &Features {
        match self.cpu_features.settled() {
            Some(features) => features,
            None => panic!("guest CPU features are used before they are settled"),
        }
    }

    /// How well the worst CPU is protected from attacks on speculation. Those that come up later are not worse.
    #[must_use]
    pub fn protections(&self) -> Protections {
        self.cpu_features.protections().unwrap_or(Protections::WORST)
    }

    /// The PPIs that EL2 takes on each CPU.
    pub fn own_ppis(&self) -> impl Iterator<Item = Intid> {
        [self.machine.timer.virt, self.machine.timer.hyp, self.machine.gic.maintenance].into_iter()
    }

    /// The state of a CPU.
    ///
    /// # Panics
    ///
    /// If the machine has no such CPU.
    #[must_use]
    pub fn cpu(&self, cpu: CpuId) -> &CpuState {
        self.cpus.get(cpu)
    }

    /// The affinity of a CPU.
    #[must_use]
    pub fn mpidr(&self, cpu: CpuId) -> Option<Mpidr> {
        Some(self.machine.cpus.get(cpu.index())?.mpidr)
    }

    /// Loads a domain's stage 2 on this CPU.
    pub fn load_stage2(&self, cpu: CpuId, vtcr: u64, vttbr: u64) {
        sysreg::VTCR_EL2.set(vtcr);
        sysreg::VTTBR_EL2.set(vttbr);
        barrier::isb();
        self.cpu(cpu).set_stage2(vttbr);
    }

    /// Loads the empty stage 2 on this CPU, if another one is loaded. An idle CPU must not walk tables that may be
    /// freed.
    pub fn unload_stage2(&self, cpu: CpuId) {
        let state = self.cpu(cpu);
        if state.stage2() != 0 {
            sysreg::VTTBR_EL2.set(self.tlbs.empty_vttbr());
            barrier::isb();
            state.set_stage2(0);
        }
    }

    /// Frees a stage 2 and its VMID. No CPU has it loaded.
    pub fn free_stage2(&self, stage2: Stage2<'static, El2, Tlbs>) {
        let vmid = stage2.vmid();
        stage2.destroy();
        self.vmids.give_back(vmid);
    }

    /// Whether any CPU has this VTTBR_EL2 loaded.
    #[must_use]
    pub fn is_stage2_loaded(&self, vttbr: u64) -> bool {
        self.cpus.iter().any(|cpu| cpu.stage2() == vttbr)
    }

    /// Makes another CPU exit from its guest or wake up.
    pub fn send_kick(&self, cpu: CpuId) {
        kick(self.machine, cpu);
    }

    /// Adds a vCPU that is off to the scheduler.
    ///
    /// # Errors
    ///
    /// [`AddError`].
    pub fn add_vcpu(&self, vcpu: &Arc<Vcpu>, home: CpuId) -> Result<(), AddError> {
        self.sched.add(vcpu, home)?;
        self.vcpus.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Removes a vCPU that is off from the scheduler.
    pub fn remove_vcpu(&self, vcpu: &Vcpu) {
        self.sched.remove(vcpu);
        self.vcpus.fetch_sub(1, Ordering::Relaxed);
    }

    /// The number of vCPUs in the scheduler.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.vcpus.load(Ordering::Relaxed) as usize
    }

    /// Places a vCPU, which was blocked or off and is `Runnable` now, on a CPU.
    pub fn make_runnable(&self, vcpu: &Vcpu) {
        vcpu.entity.begin_wait(counter::now());
        let cpu = self.sched.place(vcpu);
        if cpu != percpu::cpu() {
            self.send_kick(cpu);
        }
    }

    /// Makes a vCPU evaluate its pending interrupts: wakes it if it is blocked, and makes it exit if it is in the guest
    /// on another CPU. The caller has made the interrupt visible to other CPUs before the call.
    pub fn wake(&self, vcpu: &Vcpu) -> Woken {
        let woken = vcpu.run.wake();
        if woken == Woken::WasBlocked {
            count(percpu::cpu(), Event::Wake);
            self.make_runnable(vcpu);
        } else if vcpu.is_in_guest() {
            // If it has moved to another CPU meanwhile, it has evaluated its interrupts on the way.
            let cpu = vcpu.cpu();
            if cpu != percpu::cpu() {
                self.send_kick(cpu);
            }
        }
        woken
    }

    /// Routes an SPI to `cpu`, or to this CPU if `cpu` has been taken out of service.
    pub fn route_spi(&self, spi: Intid, cpu: CpuId) {
        let mut to = cpu;
        loop {
            if let Some(mpidr) = self.mpidr(to) {
                self.gic.spi_route(spi, mpidr);
            }
            // A CPU that leaves service clears its online flag and then searches for SPIs that are routed to it. The
            // barrier orders this CPU's write of the route before its read of the flag. So either this CPU sees the
            // flag cleared, or the other one finds the SPI.
            barrier::dsb_sy();
            if self.cpu(to).is_online() {
                return;
            }
            to = percpu::cpu();
        }
    }

    /// Prints what domains have printed into their rings, as [`console::drain`] does, and sees to it that this is called
    /// again when needed.
    pub fn drain_console(&self, tell: &mut dyn FnMut(usize) -> bool) {
        if let Some(us) = console::drain(tell) {
            self.cpu(percpu::cpu()).timer.chores_at(counter::now() + counter::us_to_ticks(us));
        }
    }

    /// Logs how much memory is free. The numbers are the same before a domU is built and after it has been torn down.
    pub fn log_free_memory(&self) {
        // The heap keeps the frames that it has taken, so its growth is no use of memory; that of its objects is.
        let (objects, heap) = heap::usage();
        let guests = self.guest_pool.lock().free_bytes();
        let pages = (frames::free_bytes() + heap as u64) / PAGE;
        log::info!(
            "free memory: {pages} frames, those of the heap included, {} MiB for domUs; {objects} bytes of objects",
            guests >> 20
        );
    }
}
