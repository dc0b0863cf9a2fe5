//! The machine as EL2 runs it: what is set up once at boot and looked at from everywhere in `vm`.

use crate::arch::features::{Features, IdRegs};
use crate::arch::sysreg::{self, Writeable};
use crate::arch::{barrier, ich, percpu, timer, tlb};
use crate::control::hotplug::Hotplug;
use crate::control::teardown::Work;
use crate::domain::Domain;
use crate::domain::msi::Routes;
use crate::gic::{Gic, GicError, cpuif};
use crate::host::background::Duty;
use crate::host::cmdline::{Options, Sched};
use crate::host::cpu_features::Kinds;
use crate::host::owners::{SpiOwners, VmIds, VpeOwners};
use crate::host::rate_limit::{Rate, Storms};
use crate::host::timer::SoftTimer;
use crate::ids::{CpuId, DomId, Intid, Mpidr, VcpuId, VpeId};
use crate::mm::guest_pool::GuestPool;
use crate::mm::hw::El2;
use crate::mm::tlb::Tlbs;
use crate::platform::Machine;
use crate::sched::{AddError, Credit, Null, Scheduler, Settings, Slices, State};
use crate::sync::{Lock, Once, Rank, Slot, set_once};
use crate::vcpu::Vcpu;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Domains at most, dom0 among them.
pub const DOMAINS: usize = 1 + crate::platform::DOMAINS;

/// Complaints of one kind that are logged; the rest are counted.
const COMPLAINTS: u32 = 16;

/// Caps are kept over so many time slices.
const CAP_PERIOD: u64 = 6;

/// Why a CPU cannot run guests.
#[derive(Clone, Copy, Debug)]
pub enum CpuError {
    /// Its GIC CPU interface is not reached by system registers (ICC_SRE_EL2.SRE stays 0).
    NoSystemRegisters,
    /// Its redistributor.
    Gic(GicError),
    /// It is of a kind that cannot be used here, for this reason.
    Kind(&'static str),
}

impl fmt::Display for CpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuError::NoSystemRegisters => f.write_str("its GIC CPU interface has no system registers"),
            CpuError::Gic(error) => error.fmt(f),
            CpuError::Kind(why) => f.write_str(why),
        }
    }
}

/// A domain, for as long as somebody looks at it.
///
/// dom0 is there for good, and its interrupts pay nothing for the others' coming and going.
pub enum DomainRef<'a> {
    /// dom0.
    Lasting(&'a Domain),
    /// Another one.
    Counted(Arc<Domain>),
}

impl Deref for DomainRef<'_> {
    type Target = Domain;

    fn deref(&self) -> &Domain {
        match self {
            DomainRef::Lasting(domain) => domain,
            DomainRef::Counted(domain) => domain,
        }
    }
}

/// Everything.
pub struct Hypervisor {
    /// What machine this is.
    pub machine: &'static Machine,
    /// How it was asked to run.
    pub options: Options,
    /// What kinds of CPU there are.
    pub kinds: Kinds,
    /// The physical GIC.
    pub gic: Gic<El2>,
    /// Where physical LPIs go.
    pub routes: Routes,
    /// Those of them that come too often.
    pub storms: Storms,
    /// Which vCPU runs where.
    pub sched: Box<dyn Scheduler<Vcpu>>,
    /// The interrupt of EL2's own UART.
    pub console_irq: Option<Intid>,
    /// The TLBs, for every stage 2.
    pub tlbs: &'static Tlbs,
    /// Whose the SPIs are.
    pub spis: SpiOwners,
    /// Whose the vPEs are.
    pub vpes: VpeOwners,
    /// Which VMIDs are free.
    pub vmids: VmIds,
    /// RAM for domains beside dom0.
    pub guest_pool: Lock<GuestPool>,
    /// What goes on with domains that end.
    pub ends: Duty<Work>,
    /// CPUs that are taken out and back in.
    pub hotplug: Hotplug,
    /// The stage 2 that each CPU has loaded.
    loaded: Vec<AtomicU64>,
    dom0: Once<Domain>,
    others: [Slot<Domain>; DOMAINS - 1],
    timers: Vec<SoftTimer>,
    /// The vCPU whose registers a CPU was given last.
    last_on: Vec<AtomicU64>,
    online: Vec<AtomicBool>,
    complaints: AtomicU32,
    vcpus: AtomicU32,
}

/// A domain's vCPU in one number, never 0.
fn name_of(vcpu: &Vcpu) -> u64 {
    1 << 32 | u64::from(vcpu.domain.0) << 16 | u64::from(vcpu.id.0)
}

fn scheduler(options: &Options, cpus: usize) -> Box<dyn Scheduler<Vcpu>> {
    let ticks = |ms: u32| timer::us_to_ticks(u64::from(ms) * 1000);
    match options.sched {
        Sched::Null => Box::new(Null::new(cpus)),
        Sched::Credit => {
            let slice = ticks(options.tslice_ms);
            let settings = Settings {
                slices: Slices { slice, period: slice * CAP_PERIOD },
                torture: options.torture_ms.map(ticks),
                kick: |cpu| hypervisor().send_kick(cpu),
            };
            Box::new(Credit::new(cpus, settings))
        }
    }
}

static HYPERVISOR: Once<Hypervisor> = Once::new();

/// The one hypervisor.
///
/// # Panics
///
/// Before [`install`].
#[must_use]
pub fn hypervisor() -> &'static Hypervisor {
    match HYPERVISOR.get() {
        Some(hypervisor) => hypervisor,
        None => panic!("the hypervisor is used before it is set up"),
    }
}

/// Sets the hypervisor up; called once, by the boot CPU.
///
/// # Panics
///
/// The second time.
pub fn install(hypervisor: Hypervisor) -> &'static Hypervisor {
    if set_once(&HYPERVISOR, hypervisor).is_err() {
        panic!("the hypervisor is set up twice");
    }
    self::hypervisor()
}

impl Hypervisor {
    /// A machine without domains.
    #[must_use]
    pub fn new(machine: &'static Machine, options: Options, gic: Gic<El2>, tlbs: &'static Tlbs) -> Hypervisor {
        let routes = Routes::new(gic.facts().lpis);
        let storms = Storms::new(gic.facts().lpis, Rate::new(options.irq_rate, timer::frequency()));
        let (spis, vpes) = (SpiOwners::new(gic.facts().spis), VpeOwners::new(gic.facts().vpes));
        Hypervisor {
            machine,
            options,
            kinds: Kinds::new(&IdRegs::read()),
            gic,
            routes,
            storms,
            sched: scheduler(&options, machine.cpus.len()),
            console_irq: machine.uart.and_then(|uart| uart.irq),
            tlbs,
            spis,
            vpes,
            vmids: VmIds::new(),
            guest_pool: Lock::new(Rank::Domain, GuestPool::new()),
            ends: Duty::new(machine.cpus.len()),
            hotplug: Hotplug::new(machine.cpus.len()),
            loaded: machine.cpus.iter().map(|_| AtomicU64::new(0)).collect(),
            dom0: Once::new(),
            others: [const { Slot::new() }; DOMAINS - 1],
            timers: machine.cpus.iter().map(|_| SoftTimer::new()).collect(),
            last_on: machine.cpus.iter().map(|_| AtomicU64::new(0)).collect(),
            online: machine.cpus.iter().map(|_| AtomicBool::new(false)).collect(),
            complaints: AtomicU32::new(0),
            vcpus: AtomicU32::new(0),
        }
    }

    /// Makes this CPU able to run guests and to take interrupts: at boot, and after it was out.
    pub fn bring_up(&self, cpu: CpuId) -> Result<(), CpuError> {
        let ready = self.prepare(cpu);
        if ready.is_err() {
            self.hotplug.failed(cpu);
            return ready;
        }
        self.sched.bring_online(cpu);
        self.set_online(cpu, true);
        self.hotplug.came_up(cpu);
        Ok(())
    }

    fn prepare(&self, cpu: CpuId) -> Result<(), CpuError> {
        sysreg::CNTVOFF_EL2.set(0);
        tlb::forget_guests_here();
        cpuif::init().map_err(|_| CpuError::NoSystemRegisters)?;
        // After a reset they are unknown.
        ich::clear_lrs(ich::count());
        if self.kinds.join(&IdRegs::read()).map_err(CpuError::Kind)? {
            log::info!("{cpu} lacks something that the CPUs before it have: guests are not shown it");
        }
        // Last: from here on interrupts may be sent to it.
        self.gic.init_cpu(cpu).map_err(CpuError::Gic)?;
        self.own_ppis().for_each(|ppi| self.gic.ppi_enable(cpu, ppi));
        Ok(())
    }

    /// What guests have of the CPUs.
    ///
    /// # Panics
    ///
    /// Before that is settled, which is when the first domain is built.
    #[must_use]
    pub fn features(&self) -> &Features {
        match self.kinds.features() {
            Some(features) => features,
            None => panic!("a guest before it is known what guests have"),
        }
    }

    /// The PPIs that each CPU takes.
    pub fn own_ppis(&self) -> impl Iterator<Item = Intid> {
        [self.machine.timer.virt, self.machine.timer.hyp, self.machine.gic.maintenance].into_iter()
    }

    /// Says whether a CPU is there.
    pub fn set_online(&self, cpu: CpuId, now: bool) {
        if let Some(online) = self.online.get(cpu.index()) {
            online.store(now, Ordering::SeqCst);
        }
    }

    /// Whether a CPU has been brought up, and not taken out since.
    #[must_use]
    pub fn is_online(&self, cpu: CpuId) -> bool {
        self.online.get(cpu.index()).is_some_and(|online| online.load(Ordering::SeqCst))
    }

    /// How many CPUs are there.
    #[must_use]
    pub fn online(&self) -> usize {
        self.online.iter().filter(|online| online.load(Ordering::Acquire)).count()
    }

    /// A CPU's affinity.
    #[must_use]
    pub fn mpidr(&self, cpu: CpuId) -> Option<Mpidr> {
        Some(self.machine.cpus.get(cpu.index())?.mpidr)
    }

    /// A domain.
    #[must_use]
    pub fn domain(&self, id: DomId) -> Option<DomainRef<'_>> {
        match usize::from(id.0).checked_sub(1) {
            None => self.dom0.get().map(DomainRef::Lasting),
            Some(other) => self.others.get(other)?.get().map(DomainRef::Counted),
        }
    }

    /// All domains there are now.
    pub fn domains(&self) -> impl Iterator<Item = DomainRef<'_>> {
        (0..DOMAINS as u16).filter_map(|id| self.domain(DomId(id)))
    }

    /// Domain 0.
    #[must_use]
    pub fn dom0(&self) -> Option<&Domain> {
        self.dom0.get()
    }

    /// Makes `domain` domain 0.
    ///
    /// # Panics
    ///
    /// The second time.
    pub fn add_dom0(&self, domain: Domain) -> &Domain {
        if set_once(&self.dom0, domain).is_err() {
            panic!("dom0 is built twice");
        }
        match self.dom0.get() {
            Some(domain) => domain,
            None => unreachable!("it was just set"),
        }
    }

    /// Puts a domain beside dom0 into its place. Hands it back if there is one.
    ///
    /// # Errors
    ///
    /// The domain itself.
    pub fn add_domain(&self, domain: Arc<Domain>) -> Result<(), Arc<Domain>> {
        match usize::from(domain.id.0).checked_sub(1).and_then(|other| self.others.get(other)) {
            Some(slot) => slot.put(domain),
            None => Err(domain),
        }
    }

    /// Takes a domain beside dom0 out of its place: nobody finds it any more, and who has it lets go of it soon.
    #[must_use]
    pub fn take_domain(&self, id: DomId) -> Option<Arc<Domain>> {
        self.others.get(usize::from(id.0).checked_sub(1)?)?.take()
    }

    /// Makes a domain's stage 2 the one of this CPU.
    pub fn load_stage2(&self, cpu: CpuId, domain: &Domain) {
        sysreg::VTCR_EL2.set(domain.vtcr);
        sysreg::VTTBR_EL2.set(domain.vttbr);
        barrier::isb();
        self.note_stage2(cpu, domain.vttbr);
    }

    /// This CPU has nothing to run: no walker of it is to have a domain's tables that may go away.
    pub fn unload_stage2(&self, cpu: CpuId) {
        if self.loaded.get(cpu.index()).is_some_and(|loaded| loaded.load(Ordering::Relaxed) != 0) {
            sysreg::VTTBR_EL2.set(self.tlbs.nobody());
            barrier::isb();
            self.note_stage2(cpu, 0);
        }
    }

    /// What was loaded before is no longer when this is seen.
    fn note_stage2(&self, cpu: CpuId, vttbr: u64) {
        if let Some(loaded) = self.loaded.get(cpu.index()) {
            loaded.store(vttbr, Ordering::Release);
        }
    }

    /// Whether some CPU still has this VTTBR_EL2.
    #[must_use]
    pub fn is_loaded(&self, vttbr: u64) -> bool {
        self.loaded.iter().any(|loaded| loaded.load(Ordering::Acquire) == vttbr)
    }

    /// The vCPU of a CPU.
    #[must_use]
    pub fn vcpu_of(&self, cpu: CpuId) -> Option<Arc<Vcpu>> {
        self.sched.current(cpu)
    }

    /// The vCPU whose vPE this is, with its domain.
    #[must_use]
    pub fn vcpu_of_vpe(&self, vpe: VpeId) -> Option<(DomainRef<'_>, VcpuId)> {
        let (domain, vcpu) = self.vpes.get(vpe)?;
        Some((self.domain(domain)?, vcpu))
    }

    /// The domain that an SPI belongs to.
    #[must_use]
    pub fn domain_of_spi(&self, spi: Intid) -> Option<DomainRef<'_>> {
        self.domain(self.spis.get(spi)?)
    }

    /// Makes another CPU leave its guest, or its sleep.
    pub fn send_kick(&self, cpu: CpuId) {
        if let Some(mpidr) = self.mpidr(cpu) {
            cpuif::send_sgi(crate::domain::irq::KICK, mpidr);
        }
    }

    /// A CPU's EL2 timer.
    ///
    /// # Panics
    ///
    /// For a CPU that the machine does not have.
    #[must_use]
    pub fn timer(&self, cpu: CpuId) -> &SoftTimer {
        &self.timers[cpu.index()]
    }

    /// Adds a vCPU, which is off, to the scheduler.
    ///
    /// # Errors
    ///
    /// [`AddError`].
    pub fn add_vcpu(&self, vcpu: &Arc<Vcpu>, home: CpuId) -> Result<(), AddError> {
        self.sched.add(vcpu, home)?;
        self.vcpus.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Forgets a vCPU that is off.
    pub fn remove_vcpu(&self, vcpu: &Vcpu) {
        self.sched.remove(vcpu);
        self.vcpus.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many vCPUs there are.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.vcpus.load(Ordering::Relaxed) as usize
    }

    /// Has a vCPU run that was asleep or off and is `Runnable` now.
    pub fn make_runnable(&self, vcpu: &Vcpu) {
        vcpu.entity.begin_wait(timer::now());
        let cpu = self.sched.place(vcpu);
        if cpu != percpu::cpu() {
            self.send_kick(cpu);
        }
    }

    /// Whether `vcpu` was the last whose registers `cpu` was given.
    #[must_use]
    pub fn was_last_on(&self, cpu: CpuId, vcpu: &Vcpu) -> bool {
        self.last_on.get(cpu.index()).is_some_and(|last| last.load(Ordering::Relaxed) == name_of(vcpu))
    }

    /// `cpu` holds nobody's registers.
    pub fn forget_last_on(&self, cpu: CpuId) {
        if let Some(last) = self.last_on.get(cpu.index()) {
            last.store(0, Ordering::Relaxed);
        }
    }

    /// Sends an SPI to `cpu`, or to another if that has been taken out.
    pub fn route_spi(&self, spi: Intid, cpu: CpuId) {
        let mut to = cpu;
        loop {
            if let Some(mpidr) = self.mpidr(to) {
                self.gic.spi_route(spi, mpidr);
            }
            // Looked at afterwards: a CPU that goes says so first, and then looks for SPIs that come to it.
            barrier::dsb_sy();
            if self.is_online(to) {
                return;
            }
            to = percpu::cpu();
        }
    }

    /// `cpu` holds the registers of `vcpu`.
    pub fn set_last_on(&self, cpu: CpuId, vcpu: &Vcpu) {
        if let Some(last) = self.last_on.get(cpu.index()) {
            last.store(name_of(vcpu), Ordering::Relaxed);
        }
    }

    /// Wakes a vCPU. `false` if it was awake already.
    pub fn wake(&self, vcpu: &Vcpu) -> bool {
        let asleep = matches!(vcpu.run.get(), State::Blocked | State::Blocking);
        if let Some(domain) = self.domain(vcpu.domain) {
            domain.kick(vcpu);
        }
        asleep
    }

    /// Logs something that a guest or broken hardware could make happen without end: the first few times only.
    pub fn complain(&self, what: fmt::Arguments<'_>) {
        if self.complaints.fetch_add(1, Ordering::Relaxed) < COMPLAINTS {
            log::warn!("{what}");
        }
    }
}
